//! The parameters of policies.

use apimachinery::resources;
use apimachinery::selector::LabelSelector;
use serde_json::Value;

use crate::admission::Context;
use crate::seams::AdmissionRequest;

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
pub fn find(
    context: &Context,
    kind: &Value,
    reference: &Value,
    request: &AdmissionRequest<'_>,
) -> Result<Vec<Value>, String> {
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
    let given = reference["namespace"].as_str().filter(|n| !n.is_empty());
    let namespace = match given {
        Some(_) if !namespaced => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
        _ if !namespaced => "",
        Some(namespace) => namespace,
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
