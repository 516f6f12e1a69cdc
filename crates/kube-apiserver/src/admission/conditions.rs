//! CEL in admission: what expressions may refer to, and the check of expressions in configurations.

use std::collections::HashMap;
use std::sync::LazyLock;

use apimachinery::field_path::Path;
use apimachinery::status::{FieldError, Status};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::matching::{self, Presented};
use super::{Context, items};
use crate::authorization::reviews::user_json;
use crate::expression::{Program, Variables};
use crate::seams::{AdmissionRequest, Operation};

const NAMES: [&str; 6] = ["object", "oldObject", "request", "params", "namespaceObject", "variables"];
const COMPILED_MAX: usize = 4096;

static COMPILED: LazyLock<Mutex<HashMap<String, Result<Program, String>>>> = LazyLock::new(Mutex::default);

/// A compiled expression, from memory where possible. The error starts with "compilation failed".
pub(super) fn compiled(source: &str) -> Result<Program, String> {
    if let Some(known) = COMPILED.lock().get(source) {
        return known.clone();
    }
    let fresh = Program::compile(source, &NAMES).map_err(|e| format!("compilation failed: {e}"));
    let mut all = COMPILED.lock();
    if all.len() >= COMPILED_MAX {
        all.clear();
    }
    all.insert(source.to_owned(), fresh.clone());
    fresh
}

/// What expressions see of a request; `params` and `variables` are set by whoever has them.
pub(super) fn variables(
    context: &Context,
    presented: &Presented,
    request: &AdmissionRequest<'_>,
) -> Variables {
    let mut out = Variables::default();
    out.set("object", &matching::in_version(request.object, presented));
    let old = request.old_object.map(|o| matching::in_version(o, presented)).unwrap_or(Value::Null);
    out.set("oldObject", &old);
    let kind = |version: &str| json!({"group": request.group, "version": version, "kind": request.kind});
    let resource =
        |version: &str| json!({"group": request.group, "version": version, "resource": request.resource});
    let mut described = json!({
        "kind": kind(&presented.version),
        "resource": resource(&presented.version),
        "subResource": request.subresource,
        "requestKind": kind(request.version),
        "requestResource": resource(request.version),
        "requestSubResource": request.subresource,
        "name": super::name(request),
        "namespace": request.namespace,
        "operation": matching::operation_name(request.operation),
        "userInfo": user_json(request.user),
        "dryRun": request.dry_run,
    });
    if !request.options.is_null() {
        described["options"] = request.options.clone();
    }
    out.set("request", &described);
    let namespace = if request.namespace.is_empty() {
        None
    } else {
        context.objects.get("", "namespaces", "", request.namespace)
    };
    let namespace = namespace.and_then(|n| n.to_value().ok()).unwrap_or(Value::Null);
    out.set("namespaceObject", &namespace);
    out.set("params", &Value::Null);
    out.set("variables", &json!({}));
    out
}

/// Whether every condition is true; the first that is false decides, errors count only when none is.
pub(super) fn hold(conditions: &Value, variables: &Variables) -> Result<bool, String> {
    let mut errors: Vec<String> = Vec::new();
    for condition in conditions.as_array().into_iter().flatten() {
        let source = condition["expression"].as_str().unwrap_or_default();
        match compiled(source).and_then(|p| p.evaluate_bool(variables)) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => {
                let name = condition["name"].as_str().unwrap_or_default();
                errors.push(format!("condition {name:?}: expression '{source}' resulted in error: {why}"));
            }
        }
    }
    if errors.is_empty() { Ok(true) } else { Err(errors.join(", ")) }
}

/// Whether a webhook's match conditions hold for the request.
pub fn all_hold(
    context: &Context,
    conditions: &Value,
    presented: &Presented,
    request: &AdmissionRequest<'_>,
) -> Result<bool, String> {
    hold(conditions, &variables(context, presented, request))
}

/// Every expression of a configuration object, with where it stands.
fn expressions(resource: &str, object: &Value) -> Vec<(Path, String)> {
    let mut out = Vec::new();
    let mut add = |path: Path, value: &Value| {
        if let Some(source) = value.as_str() {
            out.push((path, source.to_owned()));
        }
    };
    if resource.ends_with("webhookconfigurations") {
        for (i, hook) in items(object, "webhooks").enumerate() {
            for (j, condition) in items(hook, "matchConditions").enumerate() {
                let path =
                    Path::new("webhooks").index(i).child("matchConditions").index(j).child("expression");
                add(path, &condition["expression"]);
            }
        }
        return out;
    }
    let spec = &object["spec"];
    let at = |list: &str, i: usize| Path::new("spec").child(list).index(i);
    for (list, fields) in [
        ("matchConditions", &["expression"][..]),
        ("variables", &["expression"][..]),
        ("validations", &["expression", "messageExpression"][..]),
        ("auditAnnotations", &["valueExpression"][..]),
    ] {
        for (i, item) in items(spec, list).enumerate() {
            for field in fields {
                add(at(list, i).child(field), &item[*field]);
            }
        }
    }
    for (i, mutation) in items(spec, "mutations").enumerate() {
        for field in ["applyConfiguration", "jsonPatch"] {
            add(at("mutations", i).child(field).child("expression"), &mutation[field]["expression"]);
        }
    }
    out
}

/// Refuses configurations with expressions that do not compile, unless they were stored before.
pub(super) fn check_configuration(_: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    if !matching::is_exempt(request) || !writes || !request.subresource.is_empty() {
        return Ok(());
    }
    let stored: Vec<String> = request
        .old_object
        .map(|o| expressions(request.resource, o).into_iter().map(|(_, source)| source).collect())
        .unwrap_or_default();
    let errors: Vec<FieldError> = expressions(request.resource, request.object)
        .into_iter()
        .filter(|(_, source)| !stored.contains(source))
        .filter_map(|(path, source)| {
            let why = compiled(&source).err()?;
            Some(FieldError::invalid(&path, source, why))
        })
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(request.kind, request.group, super::name(request), errors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use std::sync::Arc;

    #[test]
    fn bad_expressions_are_refused_with_their_place() {
        let context = context(&Arc::new(FakeObjects::default()));
        let config = |expression: &str| {
            json!({"kind": "ValidatingWebhookConfiguration", "metadata": {"name": "c"}, "webhooks": [
                {"matchConditions": [{"name": "x", "expression": expression}]}]})
        };
        let group = "admissionregistration.k8s.io";
        let resource = "validatingwebhookconfigurations";
        let mut good = Request::create(group, resource, config("object.metadata.namespace == 'production'"));
        good.with(|r| check_configuration(&context, r)).unwrap();
        let mut bad = Request::create(group, resource, config("... [] bad expression"));
        let error = bad.with(|r| check_configuration(&context, r)).unwrap_err();
        assert_eq!(error.code, 422);
        assert!(error.message.contains("webhooks[0].matchConditions[0].expression"), "{error}");
        assert!(error.message.contains("compilation failed"), "{error}");
    }
}
