//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: rules in CEL, bound to requests and parameters.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use apimachinery::status::{Cause, Status};
use apimachinery::{patch, resources, schema};
use arc_swap::ArcSwapOption;
use serde_json::Value;

use super::conditions::{compiled, hold, variables};
use super::matching::{self, Presented};
use super::{Context, items, refuse};
use crate::expression::{Variables, to_json};
use crate::seams::AdmissionRequest;

const GROUP: &str = "admissionregistration.k8s.io";

/// A policy with the bindings that use it.
struct Policy {
    name: String,
    spec: Value,
    bindings: Vec<(String, Value)>,
}

/// The policies of one kind, read again when they or their bindings change.
struct Source {
    policies: &'static str,
    bindings: &'static str,
    cached: ArcSwapOption<([u64; 2], Vec<Policy>)>,
}

impl Source {
    fn new(policies: &'static str, bindings: &'static str) -> Source {
        Source { policies, bindings, cached: ArcSwapOption::empty() }
    }

    fn load(&self, context: &Context) -> Arc<([u64; 2], Vec<Policy>)> {
        let revisions =
            [self.policies, self.bindings].map(|resource| *context.objects.changes(GROUP, resource).borrow());
        if let Some(cached) = self.cached.load_full()
            && cached.0 == revisions
        {
            return cached;
        }
        let list = |resource: &str| -> Vec<(String, Value)> {
            let objects = context.objects.list(GROUP, resource, None);
            let mut out: Vec<(String, Value)> = objects
                .iter()
                .filter_map(|o| {
                    let value: Value = serde_json::from_slice(&o.body).ok()?;
                    Some((o.name().to_owned(), value["spec"].clone()))
                })
                .collect();
            out.sort_by(|a, b| a.0.cmp(&b.0));
            out
        };
        let bindings = list(self.bindings);
        let policies = list(self.policies).into_iter().map(|(name, spec)| {
            let own = bindings.iter().filter(|(_, b)| b["policyName"] == name.as_str()).cloned().collect();
            Policy { name, spec, bindings: own }
        });
        // Policies without a binding do nothing.
        let fresh = Arc::new((revisions, policies.filter(|p| !p.bindings.is_empty()).collect()));
        self.cached.store(Some(fresh.clone()));
        fresh
    }
}

/// Whether `matchConstraints` or `matchResources` select the request, and in which version.
fn selects(
    context: &Context,
    constraints: &Value,
    request: &AdmissionRequest<'_>,
) -> Result<Option<Presented>, String> {
    if constraints.is_null() {
        return Ok(Some(own(request)));
    }
    if !matching::namespace_matches(context, &constraints["namespaceSelector"], request)?
        || !matching::object_matches(&constraints["objectSelector"], request)?
    {
        return Ok(None);
    }
    let policy = &constraints["matchPolicy"];
    let excluded = matching::presented(context, &constraints["excludeResourceRules"], policy, request);
    if excluded.is_some() {
        return Ok(None);
    }
    if items(constraints, "resourceRules").len() == 0 {
        return Ok(Some(own(request)));
    }
    Ok(matching::presented(context, &constraints["resourceRules"], policy, request))
}

fn own(request: &AdmissionRequest<'_>) -> Presented {
    Presented {
        group: request.group.to_owned(),
        version: request.version.to_owned(),
        resource: request.resource.to_owned(),
        kind: request.kind.to_owned(),
    }
}

/// The resource of a parameter kind and whether it has namespaces.
fn param_resource(context: &Context, kind: &Value) -> Option<(String, String, bool)> {
    let api_version = kind["apiVersion"].as_str()?;
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let kind = kind["kind"].as_str()?;
    if let Some(known) = resources::find_kind(group, version, kind) {
        return Some((group.to_owned(), known.resource.to_owned(), known.namespaced));
    }
    let definitions = context.objects.list("apiextensions.k8s.io", "customresourcedefinitions", None);
    definitions.iter().find_map(|definition| {
        let value: Value = serde_json::from_slice(&definition.body).ok()?;
        let spec = &value["spec"];
        if spec["group"] != group || spec["names"]["kind"] != kind {
            return None;
        }
        let resource = spec["names"]["plural"].as_str()?.to_owned();
        Some((group.to_owned(), resource, spec["scope"] == "Namespaced"))
    })
}

/// The parameters a binding gives; one `Null` where the policy has none.
fn params(
    context: &Context,
    policy: &Policy,
    binding: &Value,
    request: &AdmissionRequest<'_>,
) -> Result<Vec<Value>, String> {
    let (kind, reference) = (&policy.spec["paramKind"], &binding["paramRef"]);
    if kind.is_null() || reference.is_null() {
        return Ok(vec![Value::Null]);
    }
    let (group, resource, namespaced) = param_resource(context, kind).ok_or_else(|| {
        format!(
            "failed to find resource referenced by paramKind: '{}, Kind={}'",
            kind["apiVersion"].as_str().unwrap_or_default(),
            kind["kind"].as_str().unwrap_or_default()
        )
    })?;
    let namespace = match reference["namespace"].as_str() {
        _ if !namespaced => "",
        Some(namespace) if !namespace.is_empty() => namespace,
        _ if request.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        _ => request.namespace,
    };
    let found: Vec<Value> = match reference["name"].as_str().filter(|n| !n.is_empty()) {
        Some(name) => {
            let object = context.objects.get(&group, &resource, namespace, name);
            object.and_then(|o| o.to_value().ok()).into_iter().collect()
        }
        None => {
            let selector = LabelSelector::from_value(&reference["selector"]).map_err(|e| e.0)?;
            let scope = namespaced.then_some(namespace);
            let objects = context.objects.list(&group, &resource, scope);
            let selected = objects.iter().filter(|o| selector.matches(&o.attributes));
            selected.filter_map(|o| o.to_value().ok()).collect()
        }
    };
    if found.is_empty() && reference["parameterNotFoundAction"] != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}

/// Sets `params` and evaluates the policy's variables, each of which may use those before it. A variable that fails is
/// missing for whoever uses it.
fn with_params(policy: &Policy, base: &Variables, params: &Value) -> Variables {
    let mut out = base.clone();
    out.set("params", params);
    let mut values: HashMap<String, cel::Value> = HashMap::new();
    for variable in items(&policy.spec, "variables") {
        let (Some(name), Some(source)) = (variable["name"].as_str(), variable["expression"].as_str()) else {
            continue;
        };
        out.set_map("variables", &values);
        if let Ok(value) = compiled(source).and_then(|p| p.evaluate(&out)) {
            values.insert(name.to_owned(), value);
        }
    }
    out.set_map("variables", &values);
    out
}

/// Why a policy refuses.
#[derive(Debug, PartialEq)]
struct Finding {
    message: String,
    reason: String,
}

impl Finding {
    fn error(message: String) -> Finding {
        Finding { message, reason: String::new() }
    }
}

fn validations(policy: &Policy, variables: &Variables) -> Vec<Finding> {
    let ignores = policy.spec["failurePolicy"] == "Ignore";
    let mut out = Vec::new();
    for validation in items(&policy.spec, "validations") {
        let source = validation["expression"].as_str().unwrap_or_default();
        match compiled(source).and_then(|p| p.evaluate_bool(variables)) {
            Ok(true) => {}
            Err(_) if ignores => {}
            Err(why) => out.push(Finding::error(format!("expression '{source}' resulted in error: {why}"))),
            Ok(false) => {
                let computed = validation["messageExpression"].as_str().and_then(|source| {
                    let text = compiled(source).and_then(|p| p.evaluate_string(variables)).ok()?;
                    let text = text.trim().to_owned();
                    (!text.is_empty() && !text.contains('\n')).then_some(text)
                });
                let given = validation["message"].as_str().map(str::trim).filter(|m| !m.is_empty());
                let message = computed
                    .or_else(|| given.map(str::to_owned))
                    .unwrap_or_else(|| format!("failed expression: {}", source.trim()));
                let reason = validation["reason"].as_str().unwrap_or_default().to_owned();
                out.push(Finding { message, reason });
            }
        }
    }
    out
}

fn denied(request: &AdmissionRequest<'_>, policy: &str, binding: &str, finding: &Finding) -> Status {
    let message = format!(
        "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
        finding.message
    );
    let mut status = refuse(request, &message);
    let (reason, code) = match finding.reason.as_str() {
        "Forbidden" => ("Forbidden", 403),
        "Unauthorized" => ("Unauthorized", 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ => ("Invalid", 422),
    };
    status.reason = reason.into();
    status.code = code;
    if let Some(details) = &mut status.details {
        details.causes.push(Cause { message, ..Cause::default() });
    }
    status
}

/// One use of a policy: its binding and what expressions see.
struct Use<'a> {
    policy: &'a Policy,
    binding: &'a str,
    spec: &'a Value,
    presented: Presented,
    outcome: Result<Variables, String>,
}

/// All uses of policies for a request whose conditions hold.
fn uses<'a>(
    context: &Context,
    policies: &'a [Policy],
    request: &AdmissionRequest<'_>,
    wanted: impl Fn(&Policy) -> bool,
) -> Vec<Use<'a>> {
    let mut out = Vec::new();
    for policy in policies.iter().filter(|p| wanted(p)) {
        let presented = match selects(context, &policy.spec["matchConstraints"], request) {
            Ok(Some(presented)) => presented,
            Ok(None) => continue,
            Err(why) => {
                tracing::warn!(policy = policy.name, why, "policy with a selector that cannot be read");
                continue;
            }
        };
        let base = variables(context, &presented, request);
        for (binding, spec) in &policy.bindings {
            if !matches!(selects(context, &spec["matchResources"], request), Ok(Some(_))) {
                continue;
            }
            let mut push = |outcome: Result<Variables, String>| {
                out.push(Use { policy, binding, spec, presented: presented.clone(), outcome });
            };
            match params(context, policy, spec, request) {
                Err(why) => push(Err(why)),
                Ok(all) => {
                    for params in all {
                        let variables = with_params(policy, &base, &params);
                        match hold(&policy.spec["matchConditions"], &variables) {
                            Ok(true) => push(Ok(variables)),
                            Ok(false) => {}
                            Err(why) => push(Err(why)),
                        }
                    }
                }
            }
        }
    }
    out
}

pub struct Policies {
    validating: Source,
    mutating: Source,
}

impl Default for Policies {
    fn default() -> Policies {
        Policies {
            validating: Source::new("validatingadmissionpolicies", "validatingadmissionpolicybindings"),
            mutating: Source::new("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"),
        }
    }
}

impl Policies {
    pub fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if matching::is_exempt(request) {
            return Ok(());
        }
        let policies = self.validating.load(context);
        if policies.1.is_empty() {
            return Ok(());
        }
        let mut refusal: Option<Status> = None;
        let mut warnings: Vec<String> = Vec::new();
        for used in uses(context, &policies.1, request, |_| true) {
            let findings = match used.outcome {
                Ok(variables) => validations(used.policy, &variables),
                Err(_) if used.policy.spec["failurePolicy"] == "Ignore" => Vec::new(),
                Err(why) => vec![Finding::error(why)],
            };
            let acts = |action: &str| items(used.spec, "validationActions").any(|a| a == action);
            for finding in findings {
                if acts("Deny") && refusal.is_none() {
                    refusal = Some(denied(request, &used.policy.name, used.binding, &finding));
                }
                if acts("Warn") {
                    warnings.push(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                        used.policy.name, used.binding, finding.message
                    ));
                }
            }
        }
        request.warnings.extend(warnings);
        refusal.map_or(Ok(()), Err)
    }

    /// Changes the object as the policies say; whether it changed. In a second round only policies that asked for it
    /// run again.
    pub fn mutate(
        &self,
        context: &Context,
        request: &mut AdmissionRequest<'_>,
        second: bool,
    ) -> Result<bool, Status> {
        if matching::is_exempt(request) || !request.object.is_object() {
            return Ok(false);
        }
        let policies = self.mutating.load(context);
        let mut changed = false;
        for i in 0..policies.1.len() {
            let one = &policies.1[i..=i];
            let again = |p: &Policy| !second || p.spec["reinvocationPolicy"] == "IfNeeded";
            for used in uses(context, one, request, again) {
                let ignores = used.policy.spec["failurePolicy"] == "Ignore";
                let result = used
                    .outcome
                    .and_then(|variables| apply(used.policy, &used.presented, variables, request));
                match result {
                    Ok(did) => changed |= did,
                    Err(_) if ignores => {}
                    Err(why) => {
                        return Err(refuse(
                            request,
                            format!(
                                "MutatingAdmissionPolicy '{}' with binding '{}' denied request: {why}",
                                used.policy.name, used.binding
                            ),
                        ));
                    }
                }
            }
        }
        Ok(changed)
    }
}

/// Applies a policy's mutations one after the other, each seeing the object the one before made.
fn apply(
    policy: &Policy,
    presented: &Presented,
    mut seen: Variables,
    request: &mut AdmissionRequest<'_>,
) -> Result<bool, String> {
    let before = request.object.clone();
    for mutation in items(&policy.spec, "mutations") {
        let object = matching::in_version(request.object, presented);
        seen.set("object", &object);
        let evaluate = |field: &str| -> Result<Value, String> {
            let source = mutation[field]["expression"].as_str().unwrap_or_default();
            let value = compiled(source).and_then(|p| p.evaluate(&seen)).and_then(|v| to_json(&v));
            value.map_err(|why| format!("expression '{}' resulted in error: {why}", source.trim()))
        };
        let patched = if mutation["patchType"] == "JSONPatch" {
            let operations = evaluate("jsonPatch")?;
            let bytes = serde_json::to_vec(&operations).map_err(|e| e.to_string())?;
            patch::json_patch(&object, &bytes).map_err(|e| e.message)?
        } else {
            let configuration = evaluate("applyConfiguration")?;
            let bytes = serde_json::to_vec(&configuration).map_err(|e| e.to_string())?;
            match schema::for_kind(&presented.group, &presented.version, &presented.kind) {
                Some(schema) => patch::strategic_merge_patch(&object, &bytes, schema),
                None => patch::merge_patch(&object, &bytes),
            }
            .map_err(|e| e.message)?
        };
        let back = Presented { version: request.version.to_owned(), ..presented.clone() };
        *request.object = matching::in_version(&patched, &back);
    }
    Ok(*request.object != before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use serde_json::json;

    fn put_policy(objects: &FakeObjects, kind: &str, spec: Value, binding: Value) {
        let rules = json!([{"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]);
        let mut spec = spec;
        spec["matchConstraints"] = json!({"resourceRules": rules});
        let mut binding = binding;
        binding["policyName"] = json!("p");
        objects.put(
            GROUP,
            &format!("{kind}admissionpolicies"),
            json!({"metadata": {"name": "p"}, "spec": spec}),
        );
        objects.put(
            GROUP,
            &format!("{kind}admissionpolicybindings"),
            json!({"metadata": {"name": "b"}, "spec": binding}),
        );
    }

    fn deployment(replicas: i64) -> Request {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "a", "name": "d"},
            "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        Request::create("apps", "deployments", object)
    }

    #[test]
    fn validates() {
        let objects = Arc::new(FakeObjects::default());
        objects.put("", "namespaces", json!({"metadata": {"name": "a"}}));
        put_policy(
            &objects,
            "validating",
            json!({
                "variables": [{"name": "odd", "expression": "variables_unused == 1"},
                              {"name": "replicas", "expression": "object.spec.replicas"},
                              {"name": "isOdd", "expression": "variables.replicas % 2 == 1"}],
                "validations": [
                    {"expression": "variables.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + string(variables.replicas)"},
                    {"expression": "variables.isOdd", "message": "must be odd", "reason": "Forbidden"},
                    {"expression": "namespaceObject.metadata.name == 'a'"}]}),
            json!({"validationActions": ["Deny", "Warn"]}),
        );
        let context = context(&objects);
        let policies = Policies::default();
        for (replicas, want) in
            [(3, None), (1, Some((422, "wants replicas > 1, got 1"))), (4, Some((403, "must be odd")))]
        {
            let mut request = deployment(replicas);
            let got = request.with(|r| policies.validate(&context, r));
            match want {
                None => got.unwrap(),
                Some((code, text)) => {
                    let status = got.unwrap_err();
                    let full =
                        format!("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {text}");
                    assert!(status.message.ends_with(&full), "{status}");
                    assert_eq!(status.code, code);
                    assert!(request.warnings[0].contains(text));
                }
            }
        }
    }

    #[test]
    fn mutates() {
        let objects = Arc::new(FakeObjects::default());
        put_policy(
            &objects,
            "mutating",
            json!({"mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{replicas: 1337}}"}},
                {"patchType": "ApplyConfiguration", "applyConfiguration": {
                    "expression": "Object{metadata: Object.metadata{annotations: {\"mutated-by\": \"admission-policy\"}}}"}},
                {"patchType": "JSONPatch", "jsonPatch": {
                    "expression": "[JSONPatch{op: 'add', path: '/spec/paused', value: object.spec.replicas == 1337}]"}}]}),
            json!({}),
        );
        let context = context(&objects);
        let mut request = deployment(1);
        assert!(request.with(|r| Policies::default().mutate(&context, r, false)).unwrap());
        let object = &request.object;
        assert_eq!((&object["spec"]["replicas"], &object["spec"]["paused"]), (&json!(1337), &json!(true)));
        assert_eq!(object["metadata"]["annotations"]["mutated-by"], "admission-policy");
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], "i");
    }

    #[test]
    fn parameters() {
        let objects = Arc::new(FakeObjects::default());
        let bind = json!({"validationActions": ["Deny"], "paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}});
        put_policy(
            &objects,
            "validating",
            json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                   "validations": [{"expression": "object.spec.replicas <= int(params.data.max)"}]}),
            bind,
        );
        let context = context(&objects);
        let policies = Policies::default();
        let run = |replicas: i64| {
            deployment(replicas).with(|r| policies.validate(&context, r)).map_err(|s| s.message)
        };
        assert!(run(1).unwrap_err().contains("no params found"));
        objects.put(
            "",
            "configmaps",
            json!({"metadata": {"namespace": "a", "name": "limit"}, "data": {"max": "5"}}),
        );
        assert_eq!(run(5), Ok(()));
        assert!(
            run(6).unwrap_err().contains("failed expression: object.spec.replicas <= int(params.data.max)")
        );
    }
}
