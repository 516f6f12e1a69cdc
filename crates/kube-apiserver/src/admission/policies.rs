//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: rules in CEL, bound to requests and parameters.

mod compiled;
mod params;
pub mod type_checking;

use std::sync::Arc;

use apimachinery::status::{Cause, FieldError, Status};
use apimachinery::{managed_fields, patch, schema};
use arc_swap::ArcSwapOption;
use serde_json::{Value, json};

use self::compiled::{Evaluation, Expressions, Known, Validation};
use super::conditions::{Seen, hold};
use super::matching::{self, Presented};
use super::{Context, items, refuse};
use crate::seams::AdmissionRequest;

const GROUP: &str = "admissionregistration.k8s.io";
/// The longest message an expression may make.
const MESSAGE_BYTES_MAX: usize = 5 << 10;
const ANNOTATION_BYTES_MAX: usize = 10 << 10;

/// A policy with the bindings that use it.
struct Policy {
    name: String,
    spec: Value,
    expressions: Expressions,
    bindings: Vec<(String, Value)>,
}

impl Policy {
    fn ignores_failures(&self) -> bool {
        self.spec["failurePolicy"] == "Ignore"
    }
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
        let revisions = [self.policies, self.bindings].map(|r| context.objects.revision(GROUP, r));
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
        // Policies without a binding do nothing.
        let policies = list(self.policies).into_iter().filter_map(|(name, spec)| {
            let own = bindings.iter().filter(|(_, b)| b["policyName"] == name.as_str()).cloned();
            let bindings: Vec<(String, Value)> = own.collect();
            if bindings.is_empty() {
                return None;
            }
            let expressions = Expressions::new(&spec, &Known::default());
            Some(Policy { name, spec, expressions, bindings })
        });
        let fresh = Arc::new((revisions, policies.collect()));
        self.cached.store(Some(fresh.clone()));
        fresh
    }
}

/// What is wrong with the expressions of a policy that is written.
pub(super) fn check(spec: &Value, _resource: &str) -> Vec<FieldError> {
    Expressions::new(spec, &Known::default()).errors()
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

/// Why a policy refuses.
#[derive(Debug, PartialEq)]
struct Finding {
    message: String,
    reason: String,
    /// Which of the policy's validations, counted from 0.
    index: usize,
}

impl Finding {
    fn error(message: String) -> Finding {
        Finding { message, reason: String::new(), index: 0 }
    }
}

/// The values of a policy's audit annotations, or why one of them refuses the request.
type Annotations = Vec<(String, String)>;

fn message(validation: &Validation, evaluation: &Evaluation<'_>, computed: Option<String>) -> String {
    let _ = evaluation;
    computed
        .map(|m| m.trim().to_owned())
        .filter(|m| !m.is_empty() && m.len() <= MESSAGE_BYTES_MAX && !m.contains('\n'))
        .or_else(|| Some(validation.message.clone()).filter(|m| !m.is_empty()))
        .unwrap_or_else(|| format!("failed expression: {}", validation.rule.source.trim()))
}

/// What one use of a policy finds.
fn validations<'a>(
    policy: &'a Policy,
    evaluation: &Evaluation<'a>,
    annotations: &mut Annotations,
) -> Vec<Finding> {
    let mut out = Vec::new();
    for (index, validation) in policy.expressions.validations.iter().enumerate() {
        let failed = match evaluation.value(&validation.rule) {
            Ok(expression::Value::Bool(true)) => continue,
            Ok(_) => None,
            Err(_) if policy.ignores_failures() => continue,
            Err(why) => Some(why),
        };
        let (message, reason) = match failed {
            Some(why) => (why, String::new()),
            None => {
                let computed = validation.message_rule.as_ref().and_then(|rule| {
                    let value = evaluation.run(rule).ok()?;
                    value.as_str().map(str::to_owned)
                });
                (message(validation, evaluation, computed), validation.reason.clone())
            }
        };
        out.push(Finding { message, reason, index });
    }
    for (key, rule) in &policy.expressions.annotations {
        match evaluation.value(rule) {
            Ok(expression::Value::Null) => {}
            Ok(value) => {
                let text = value.as_str().unwrap_or_default().trim();
                let end =
                    (0..=text.len().min(ANNOTATION_BYTES_MAX)).rev().find(|i| text.is_char_boundary(*i));
                let text = &text[..end.unwrap_or(0)];
                if !text.is_empty() {
                    annotations.push((format!("{}/{key}", policy.name), text.to_owned()));
                }
            }
            Err(_) if policy.ignores_failures() => {}
            Err(why) => out.push(Finding::error(why)),
        }
    }
    out
}

fn denied(request: &AdmissionRequest<'_>, policy: &str, binding: Option<&str>, finding: &Finding) -> Status {
    let message = match binding {
        Some(binding) => format!(
            "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {}",
            finding.message
        ),
        None => format!("ValidatingAdmissionPolicy '{policy}' denied request: {}", finding.message),
    };
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

/// A binding of a policy that is about the request, with its parameters.
struct Use<'a> {
    binding: &'a str,
    spec: &'a Value,
    params: Result<Vec<Value>, String>,
}

/// The uses of a policy for a request; `Err` is what is wrong with the policy's own selectors.
fn uses<'a>(
    context: &Context,
    policy: &'a Policy,
    request: &AdmissionRequest<'_>,
) -> Result<Option<(Presented, Vec<Use<'a>>)>, String> {
    let Some(presented) = selects(context, &policy.spec["matchConstraints"], request)? else {
        return Ok(None);
    };
    let mut out = Vec::new();
    for (binding, spec) in &policy.bindings {
        let params = match selects(context, &spec["matchResources"], request) {
            Ok(None) => continue,
            Ok(Some(_)) => params::find(context, &policy.spec["paramKind"], &spec["paramRef"], request),
            Err(why) => Err(why),
        };
        out.push(Use { binding, spec, params });
    }
    Ok((!out.is_empty()).then_some((presented, out)))
}

fn conditions_hold(policy: &Policy, seen: &expression::Variables<'_>) -> Result<bool, String> {
    hold(policy.expressions.conditions.iter().map(|c| (c.source.as_str(), c.program.clone())), seen)
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
    /// Whether there is a policy with a binding.
    pub fn any(&self, context: &Context) -> bool {
        [&self.validating, &self.mutating].iter().any(|source| !source.load(context).1.is_empty())
    }

    pub fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if matching::is_exempt(request) {
            return Ok(());
        }
        let policies = self.validating.load(context);
        let mut refusal: Option<Status> = None;
        let mut warnings: Vec<String> = Vec::new();
        for policy in &policies.1 {
            let (presented, uses) = match uses(context, policy, request) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(_) if policy.ignores_failures() => continue,
                Err(why) => {
                    let finding = Finding::error(format!("failed to configure policy: {why}"));
                    refusal.get_or_insert_with(|| denied(request, &policy.name, None, &finding));
                    continue;
                }
            };
            let seen = Seen::new(context, &presented, request);
            let mut annotations = Annotations::new();
            for used in &uses {
                let params = match &used.params {
                    Ok(params) => params,
                    Err(_) if policy.ignores_failures() => continue,
                    Err(why) => {
                        let finding = Finding::error(format!("failed to configure binding: {why}"));
                        refusal.get_or_insert_with(|| {
                            denied(request, &policy.name, Some(used.binding), &finding)
                        });
                        continue;
                    }
                };
                for params in params {
                    let mut variables = seen.variables();
                    variables.set("params", expression::Value::from_json(params, None));
                    let findings = match conditions_hold(policy, &variables) {
                        Ok(false) => continue,
                        Ok(true) => validations(
                            policy,
                            &Evaluation::new(&policy.expressions, variables),
                            &mut annotations,
                        ),
                        Err(_) if policy.ignores_failures() => continue,
                        Err(why) => vec![Finding::error(why)],
                    };
                    for finding in findings {
                        for action in items(used.spec, "validationActions").filter_map(Value::as_str) {
                            match action {
                                "Deny" => {
                                    refusal.get_or_insert_with(|| {
                                        denied(request, &policy.name, Some(used.binding), &finding)
                                    });
                                }
                                "Warn" => warnings.push(format!(
                                    "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                                    policy.name, used.binding, finding.message
                                )),
                                "Audit" => {
                                    let failure = json!([{"message": finding.message, "policy": policy.name,
                                        "binding": used.binding, "expressionIndex": finding.index,
                                        "validationActions": used.spec["validationActions"]}]);
                                    let key = "validation.policy.admission.k8s.io/validation_failure";
                                    request.annotations.insert(key.to_owned(), failure.to_string());
                                }
                                _ => {}
                            }
                        }
                    }
                }
            }
            for (key, value) in annotations {
                let all = request.annotations.entry(key).or_default();
                if all.is_empty() {
                    *all = value;
                } else if !all.split(", ").any(|v| v == value) {
                    *all = format!("{all}, {value}");
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
        let mut failures: Vec<String> = Vec::new();
        for policy in policies.1.iter().filter(|p| !second || p.spec["reinvocationPolicy"] == "IfNeeded") {
            let mut fail = |binding: Option<&str>, why: String| {
                if policy.ignores_failures() {
                    return;
                }
                failures.push(match binding {
                    Some(binding) => {
                        format!("policy '{}' with binding '{binding}' denied request: {why}", policy.name)
                    }
                    None => format!("policy {:?} denied request: {why}", policy.name),
                });
            };
            let (presented, uses) = match uses(context, policy, request) {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(why) => {
                    fail(None, format!("failed to configure policy: {why}"));
                    continue;
                }
            };
            for used in uses {
                match used.params {
                    Err(why) => fail(Some(used.binding), format!("failed to configure binding: {why}")),
                    Ok(params) => {
                        for params in params {
                            match apply(context, policy, &presented, &params, request) {
                                Ok(did) => changed |= did,
                                Err(why) => fail(Some(used.binding), why),
                            }
                        }
                    }
                }
            }
        }
        let Some(first) = failures.first() else { return Ok(changed) };
        let mut status = refuse(request, "admission request denied by policy");
        status.message = first.clone();
        status.reason = "Invalid".into();
        if let Some(details) = &mut status.details {
            details.causes.extend(failures.iter().map(|m| Cause { message: m.clone(), ..Cause::default() }));
        }
        Err(status)
    }
}

/// Applies a policy's mutations one after the other, each seeing the object the one before made.
fn apply(
    context: &Context,
    policy: &Policy,
    presented: &Presented,
    params: &Value,
    request: &mut AdmissionRequest<'_>,
) -> Result<bool, String> {
    let before = request.object.clone();
    for (i, mutation) in policy.expressions.mutations.iter().enumerate() {
        let seen = Seen::new(context, presented, request);
        let mut variables = seen.variables();
        variables.set("params", expression::Value::from_json(params, None));
        if i == 0 && !conditions_hold(policy, &variables)? {
            return Ok(false);
        }
        let evaluation = Evaluation::new(&policy.expressions, variables);
        let value = evaluation.value(&mutation.rule)?;
        let value = value.to_json().map_err(|why| why.to_string())?;
        let patched = if mutation.json_patch {
            let operations = serde_json::to_vec(&value).map_err(|e| e.to_string())?;
            patch::json_patch(&seen.object, &operations).map_err(|e| e.message)?
        } else {
            merged(&seen.object, value, presented)?
        };
        let back = Presented { version: request.version.to_owned(), ..presented.clone() };
        *request.object = matching::in_version(&patched, &back);
    }
    Ok(*request.object != before)
}

/// An apply configuration laid over the object, as server-side apply would, with no one owning the result.
fn merged(object: &Value, mut configuration: Value, presented: &Presented) -> Result<Value, String> {
    let Some(schema) = schema::for_kind(&presented.group, &presented.version, &presented.kind) else {
        let bytes = serde_json::to_vec(&configuration).map_err(|e| e.to_string())?;
        return patch::merge_patch(object, &bytes).map_err(|e| e.message);
    };
    let mut atomic = Vec::new();
    atomics(&configuration, schema, "", &mut atomic);
    if !atomic.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomic.join(", ")
        ));
    }
    for field in ["apiVersion", "kind"] {
        configuration[field] = object[field].clone();
    }
    managed_fields::typed::check(&configuration, schema)
        .map_err(|why| format!("error applying patch: failed to merge patch: {why}"))?;
    Ok(managed_fields::merge(object, &configuration, schema))
}

/// The paths of atomic values in a configuration: laying one over an object would remove what it leaves out.
fn atomics(value: &Value, schema: &schema::Schema, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            if schema.atomic() {
                out.push(path.to_owned());
            }
            for (name, inner) in members {
                if let Some(schema) = schema.member(name) {
                    atomics(inner, schema, &format!("{path}.{name}"), out);
                }
            }
        }
        Value::Array(items) => match &schema.kind {
            schema::Kind::List(_, schema::ListType::Atomic) => out.push(path.to_owned()),
            _ => {
                let Some(inner) = schema.items() else { return };
                for (i, item) in items.iter().enumerate() {
                    atomics(item, inner, &format!("{path}[{i}]"), out);
                }
            }
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests;
