//! CEL in admission: what expressions may refer to, match conditions, and the check of expressions in configurations.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use apimachinery::field_path::Path;
use apimachinery::status::{FieldError, Status};
use expression::{
    AUTHORIZER, CALL_COST_MAX, CONDITIONS_COST_MAX, Environment, Error, Program, RESOURCE_CHECK, Type,
    Variables,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::authorizer_value::Check;
use super::matching::{self, Presented};
use super::{Context, items};
use crate::authorization::reviews::user_json;
use crate::seams::{AdmissionRequest, Operation};

const COMPILED_MAX: usize = 4096;

/// What the request looks like to expressions.
static REQUEST: LazyLock<Type> = LazyLock::new(|| {
    let text = json!({"type": "string"});
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let kind = object(json!({"group": text, "version": text, "kind": text}));
    let resource = object(json!({"group": text, "version": text, "resource": text}));
    let texts = json!({"type": "array", "items": text});
    let user = object(json!({"username": text, "uid": text, "groups": texts,
        "extra": {"type": "object", "additionalProperties": texts}}));
    let request = object(
        json!({"kind": kind, "resource": resource, "subResource": text, "requestKind": kind,
        "requestResource": resource, "requestSubResource": text, "name": text, "namespace": text, "operation": text,
        "userInfo": user, "dryRun": {"type": "boolean"}, "options": {"x-kubernetes-int-or-string": true}}),
    );
    expression::schema::declare_plain(&request, "kubernetes.AdmissionRequest").map_or(Type::Dyn, |d| d.ty())
});

/// What its namespace looks like.
static NAMESPACE: LazyLock<Type> = LazyLock::new(|| {
    let text = json!({"type": "string"});
    let texts = json!({"type": "array", "items": text});
    let map = json!({"type": "object", "additionalProperties": text});
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let time = json!({"type": "string", "format": "date-time"});
    let metadata = object(
        json!({"name": text, "generateName": text, "namespace": text, "labels": map, "annotations": map,
        "UID": text, "creationTimestamp": time, "deletionGracePeriodSeconds": {"type": "integer"},
        "deletionTimestamp": time, "generation": {"type": "integer"}, "resourceVersion": text, "finalizers": texts}),
    );
    let condition = object(
        json!({"status": text, "type": text, "lastTransitionTime": time, "message": text, "reason": text}),
    );
    let namespace = object(json!({"metadata": metadata, "spec": object(json!({"finalizers": texts})),
        "status": object(json!({"conditions": {"type": "array", "items": condition}, "phase": text}))}));
    expression::schema::declare_plain(&namespace, "kubernetes.Namespace").map_or(Type::Dyn, |d| d.ty())
});

/// What expressions that decide whether a webhook is asked may use.
pub(super) static CONDITIONS: LazyLock<Environment> = LazyLock::new(|| {
    Environment::default()
        .variable("object", Type::Dyn)
        .variable("oldObject", Type::Dyn)
        .variable("request", REQUEST.clone())
        .variable("namespaceObject", NAMESPACE.clone())
        .variable("authorizer", Type::Opaque(AUTHORIZER))
        .variable("authorizer.requestResource", Type::Opaque(RESOURCE_CHECK))
});

/// A compiled expression or why it is none, starting with "compilation failed".
pub(super) type Compiled = Result<Arc<Program>, String>;

static COMPILED: LazyLock<Mutex<HashMap<String, Compiled>>> = LazyLock::new(Mutex::default);

pub(super) fn compile(source: &str, environment: &Environment) -> Compiled {
    Program::compile(source, environment).map(Arc::new).map_err(|e| format!("compilation failed: {e}"))
}

/// As [`compile`], checking that the result is one of `wanted`.
pub(super) fn compile_to(source: &str, environment: &Environment, wanted: &[Type]) -> Compiled {
    let program = compile(source, environment)?;
    let output = program.output();
    let fits = |t: &Type| t.to_string() == output.to_string() || matches!(output, Type::Dyn);
    if wanted.iter().any(fits) {
        return Ok(program);
    }
    match wanted {
        [only] => Err(format!("must evaluate to {only} but got {output}")),
        many => {
            let names: Vec<String> = many.iter().map(ToString::to_string).collect();
            Err(format!("must evaluate to one of [{}] but got {output}", names.join(" ")))
        }
    }
}

/// A webhook's condition, compiled, from memory where possible.
fn condition(source: &str) -> Compiled {
    if let Some(known) = COMPILED.lock().get(source) {
        return known.clone();
    }
    let fresh = compile_to(source, &CONDITIONS, &[Type::Bool]);
    let mut all = COMPILED.lock();
    if all.len() >= COMPILED_MAX {
        all.clear();
    }
    all.insert(source.to_owned(), fresh.clone());
    fresh
}

/// What expressions see of a request.
pub(super) struct Seen {
    pub object: Value,
    old: Value,
    request: Value,
    namespace: Value,
    authorizer: Check,
    request_resource: Check,
}

impl Seen {
    pub fn new(context: &Context, presented: &Presented, request: &AdmissionRequest<'_>) -> Seen {
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
        let is_namespace = request.group.is_empty() && request.kind == "Namespace";
        let namespace = if request.namespace.is_empty() || is_namespace {
            None
        } else {
            context.objects.get("", "namespaces", "", request.namespace)
        };
        Seen {
            object: matching::in_version(request.object, presented),
            old: request.old_object.map(|o| matching::in_version(o, presented)).unwrap_or(Value::Null),
            request: described,
            namespace: namespace.and_then(|n| n.to_value().ok()).unwrap_or(Value::Null),
            authorizer: Check::authorizer(&context.authorizers, request.user),
            request_resource: Check::of_request(&context.authorizers, request),
        }
    }

    pub fn variables(&self) -> Variables<'_> {
        let mut out = Variables::default();
        let data = |v| expression::Value::from_json(v, None);
        out.set("object", data(&self.object));
        out.set("oldObject", data(&self.old));
        out.set("request", data(&self.request));
        out.set("namespaceObject", data(&self.namespace));
        out.set("authorizer", self.authorizer.clone().value());
        out.set("authorizer.requestResource", self.request_resource.clone().value());
        out
    }
}

/// How an expression that failed is told.
pub(super) fn failure(source: &str, error: &Error) -> String {
    match error {
        Error::Cancelled => {
            "validation failed due to running out of cost budget, no further validation rules will be run"
                .to_owned()
        }
        Error::Failed(why) => format!("expression '{source}' resulted in error: {why}"),
    }
}

/// Whether every condition is true; the first that is false decides, errors count only when none is.
pub(super) fn hold<'c>(
    conditions: impl Iterator<Item = (&'c str, Compiled)>,
    variables: &Variables<'_>,
) -> Result<bool, String> {
    let mut errors: Vec<String> = Vec::new();
    let mut budget = CONDITIONS_COST_MAX;
    for (source, program) in conditions {
        let program = match program {
            Ok(program) => program,
            Err(why) => {
                errors.push(why);
                continue;
            }
        };
        let (value, cost) = evaluate(&program, variables, budget.min(CALL_COST_MAX));
        budget = budget.saturating_sub(cost);
        match value {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => errors.push(failure(source, &why)),
        }
    }
    match errors.len() {
        0 => Ok(true),
        1 => Err(errors.swap_remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

fn evaluate(program: &Program, variables: &Variables<'_>, limit: u64) -> (Result<bool, Error>, u64) {
    let evaluated = program.evaluate(variables, limit);
    let value = match evaluated.value {
        Ok(expression::Value::Bool(b)) => Ok(b),
        Ok(_) => Err(Error::Failed("the result is not a bool".into())),
        Err(why) => Err(why),
    };
    (value, evaluated.cost)
}

/// Whether a webhook's match conditions hold for the request.
pub fn all_hold(
    context: &Context,
    conditions: &Value,
    presented: &Presented,
    request: &AdmissionRequest<'_>,
) -> Result<bool, String> {
    let seen = Seen::new(context, presented, request);
    let conditions = conditions.as_array().into_iter().flatten().map(|c| {
        let source = c["expression"].as_str().unwrap_or_default();
        (source, condition(source))
    });
    hold(conditions, &seen.variables())
}

/// Refuses configurations with expressions that do not compile, unless they were stored before.
pub(super) fn check_configuration(_: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    if !matching::is_exempt(request) || !writes || !request.subresource.is_empty() {
        return Ok(());
    }
    if request.old_object.is_some_and(|old| old["spec"] == request.object["spec"] && old["spec"].is_object())
    {
        return Ok(());
    }
    let errors: Vec<FieldError> = if request.resource.ends_with("webhookconfigurations") {
        let stored: Vec<&Value> = request.old_object.into_iter().flat_map(|o| items(o, "webhooks")).collect();
        let mut errors = Vec::new();
        for (i, hook) in items(request.object, "webhooks").enumerate() {
            if stored.iter().any(|old| old["matchConditions"] == hook["matchConditions"]) {
                continue;
            }
            for (j, condition) in items(hook, "matchConditions").enumerate() {
                let path =
                    Path::new("webhooks").index(i).child("matchConditions").index(j).child("expression");
                let source = condition["expression"].as_str().unwrap_or_default();
                errors
                    .extend(self::condition(source).err().map(|why| FieldError::invalid(&path, source, why)));
            }
        }
        errors
    } else if request.resource.ends_with("policies") {
        super::policies::check(&request.object["spec"], request.resource)
    } else {
        Vec::new()
    };
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
        for (expression, want) in [
            ("object.metadata.namespace == 'production'", None),
            ("request.namespace == 'production'", None),
            ("authorizer.group('').resource('pods').namespace('x').check('get').allowed()", None),
            ("authorizer.requestResource.check('get').allowed() && request.userInfo.username == 'x'", None),
            ("... [] bad expression", Some("compilation failed")),
            ("params.x == 1", Some("undeclared reference to 'params'")),
            ("request.nothing == 1", Some("undefined field 'nothing'")),
            ("request.name", Some("must evaluate to bool but got string")),
        ] {
            let mut request = Request::create(group, resource, config(expression));
            let got = request.with(|r| check_configuration(&context, r));
            match want {
                None => got.unwrap(),
                Some(text) => {
                    let error = got.unwrap_err();
                    assert_eq!(error.code, 422);
                    assert!(error.message.contains("webhooks[0].matchConditions[0].expression"), "{error}");
                    assert!(error.message.contains(text), "{error}");
                }
            }
        }
    }
}
