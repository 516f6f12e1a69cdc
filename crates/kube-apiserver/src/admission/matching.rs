//! Which requests a webhook or policy is asked about: rules, namespace and object selectors.

use apimachinery::resources;
use apimachinery::selector::LabelSelector;
use serde_json::Value;

use super::{Context, items};
use crate::seams::{AdmissionRequest, Operation};

/// The resource and kind a request is presented as: its own, or those of an equivalent version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub kind: String,
}

pub fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// Objects that configure admission itself are never sent to it; else a mistake could not be repaired.
pub fn is_exempt(request: &AdmissionRequest<'_>) -> bool {
    request.group == "admissionregistration.k8s.io"
        && matches!(
            request.resource,
            "validatingwebhookconfigurations"
                | "mutatingwebhookconfigurations"
                | "validatingadmissionpolicies"
                | "validatingadmissionpolicybindings"
                | "mutatingadmissionpolicies"
                | "mutatingadmissionpolicybindings"
        )
}

fn lists(rule: &Value, field: &str, item: &str) -> bool {
    items(rule, field).any(|v| v == "*" || v == item)
}

/// Whether a rule (a `RuleWithOperations`) is about the request in this version.
pub fn rule_matches(rule: &Value, request: &AdmissionRequest<'_>, version: &str) -> bool {
    let of_namespace = request.group.is_empty() && request.resource == "namespaces";
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => !of_namespace && !request.namespace.is_empty(),
        Some("Cluster") => of_namespace || request.namespace.is_empty(),
        _ => true,
    };
    let names = items(rule, "resourceNames");
    let named = names.len() == 0 || items(rule, "resourceNames").any(|n| n == request.name);
    let resource = items(rule, "resources").filter_map(Value::as_str).any(|pattern| {
        let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
        (resource == "*" || resource == request.resource) && (sub == "*" || sub == request.subresource)
    });
    scope
        && named
        && resource
        && lists(rule, "operations", operation_name(request.operation))
        && lists(rule, "apiGroups", request.group)
        && lists(rule, "apiVersions", version)
}

/// The form in which the first matching rule wants the request. With the policy `Equivalent` (the default) a rule on
/// another served version of the resource matches too.
pub fn presented(
    context: &Context,
    rules: &Value,
    match_policy: &Value,
    request: &AdmissionRequest<'_>,
) -> Option<Presented> {
    let rules: Vec<&Value> = rules.as_array().map(|r| r.iter().collect()).unwrap_or_default();
    let own = |version: &str| Presented {
        group: request.group.to_owned(),
        version: version.to_owned(),
        resource: request.resource.to_owned(),
        kind: request.kind.to_owned(),
    };
    if rules.iter().any(|r| rule_matches(r, request, request.version)) {
        return Some(own(request.version));
    }
    if match_policy == "Exact" {
        return None;
    }
    let versions = other_versions(context, request);
    rules.iter().find_map(|rule| {
        let version = versions.iter().find(|v| rule_matches(rule, request, v))?;
        Some(own(version))
    })
}

/// Other served versions of the request's resource in which its objects have the same form.
fn other_versions(context: &Context, request: &AdmissionRequest<'_>) -> Vec<String> {
    if let Some(own) = resources::find(request.group, request.version, request.resource) {
        // Versions of horizontal pod autoscalers differ in form.
        if request.group == "autoscaling" {
            return Vec::new();
        }
        let all = resources::all().iter();
        return all
            .filter(|r| r.group == own.group && r.resource == own.resource && r.version != own.version)
            .map(|r| r.version.to_owned())
            .collect();
    }
    let name = format!("{}.{}", request.resource, request.group);
    let definition = context.objects.get("apiextensions.k8s.io", "customresourcedefinitions", "", &name);
    let Some(definition) = definition.and_then(|d| serde_json::from_slice::<Value>(&d.body).ok()) else {
        return Vec::new();
    };
    let spec = &definition["spec"];
    if spec["conversion"]["strategy"] == "Webhook" {
        return Vec::new();
    }
    items(spec, "versions")
        .filter(|v| v["served"] == true && v["name"] != request.version)
        .filter_map(|v| v["name"].as_str().map(str::to_owned))
        .collect()
}

/// Whether the namespace selector lets the request through; `Err` is what is wrong with the selector.
pub fn namespace_matches(
    context: &Context,
    selector: &Value,
    request: &AdmissionRequest<'_>,
) -> Result<bool, String> {
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(true);
    }
    let selector = LabelSelector::from_value(selector).map_err(|e| e.0)?;
    if request.group.is_empty() && request.resource == "namespaces" {
        let object = match request.operation {
            Operation::Create | Operation::Update if request.subresource.is_empty() => &*request.object,
            _ => request.old_object.unwrap_or(&Value::Null),
        };
        return Ok(selector.matches_map(&object["metadata"]["labels"]));
    }
    if request.namespace.is_empty() {
        return Ok(true);
    }
    let namespace = context.objects.get("", "namespaces", "", request.namespace);
    Ok(namespace.is_some_and(|n| selector.matches(&n.attributes)))
}

/// Whether the object selector selects the new or the old object.
pub fn object_matches(selector: &Value, request: &AdmissionRequest<'_>) -> Result<bool, String> {
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(true);
    }
    let selector = LabelSelector::from_value(selector).map_err(|e| e.0)?;
    let selects = |v: &Value| v["metadata"].is_object() && selector.matches_map(&v["metadata"]["labels"]);
    Ok(selects(request.object) || request.old_object.is_some_and(selects))
}

/// The request's object as an object of the presented version.
pub fn in_version(object: &Value, presented: &Presented) -> Value {
    let mut object = object.clone();
    if object.is_object() {
        let api_version = if presented.group.is_empty() {
            presented.version.clone()
        } else {
            format!("{}/{}", presented.group, presented.version)
        };
        let same_group = object["apiVersion"].as_str().is_none_or(|v| {
            let group = v.rsplit_once('/').map(|(g, _)| g).unwrap_or_default();
            group == presented.group
        });
        // Options of connect requests and objects of some subresources belong to other groups.
        if same_group && object.get("metadata").is_some() {
            object["apiVersion"] = Value::String(api_version);
            if object.get("kind").is_none() {
                object["kind"] = Value::String(presented.kind.clone());
            }
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::Request;
    use serde_json::json;

    #[test]
    fn rules() {
        let pod = json!({"kind": "Pod", "metadata": {"namespace": "a", "name": "p"}});
        let namespace = json!({"kind": "Namespace", "metadata": {"name": "n"}});
        let rule = |operations: &str, groups: &str, versions: &str, resources: &str, scope: &str| {
            json!({"operations": [operations], "apiGroups": [groups], "apiVersions": [versions],
                   "resources": [resources], "scope": scope})
        };
        for (rule, resource, object, want) in [
            (rule("CREATE", "", "v1", "pods", "*"), "pods", &pod, true),
            (rule("*", "*", "*", "*", "*"), "pods", &pod, true),
            (rule("*", "*", "*", "*/*", "*"), "pods", &pod, true),
            (rule("*", "*", "*", "pods/status", "*"), "pods", &pod, false),
            (rule("UPDATE", "", "v1", "pods", "*"), "pods", &pod, false),
            (rule("CREATE", "apps", "v1", "pods", "*"), "pods", &pod, false),
            (rule("CREATE", "", "v1", "pods", "Cluster"), "pods", &pod, false),
            (rule("CREATE", "", "v1", "pods", "Namespaced"), "pods", &pod, true),
            (rule("CREATE", "", "v1", "*", "Namespaced"), "namespaces", &namespace, false),
            (rule("CREATE", "", "v1", "*", "Cluster"), "namespaces", &namespace, true),
        ] {
            let mut request = Request::create("", resource, object.clone());
            assert_eq!(request.with(|r| rule_matches(&rule, r, "v1")), want, "{rule}");
        }
    }

    #[test]
    fn selectors() {
        let object = json!({"metadata": {"name": "p", "labels": {"a": "b"}}});
        for (selector, want) in [
            (json!({}), true),
            (Value::Null, true),
            (json!({"matchLabels": {"a": "b"}}), true),
            (json!({"matchLabels": {"a": "c"}}), false),
            (json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}), true),
        ] {
            let mut request = Request::create("", "pods", object.clone());
            assert_eq!(request.with(|r| object_matches(&selector, r)), Ok(want), "{selector}");
        }
    }
}
