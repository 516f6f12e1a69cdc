//! Horizontal pod autoscalers, stored as v2.

use serde_json::{Value, json};

use crate::check::{self, Report};
use crate::core_v1::resources;
use crate::path::Path;
use crate::strategy::{Errors, Rules, WITH_STATUS};
use crate::value::{Read, Write, quantity};

pub const GROUP: &str = "autoscaling";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "horizontalpodautoscalers",
    first_status: r#"{"currentMetrics":null,"desiredReplicas":0}"#,
    validate,
    validate_update: |new, _| validate(new),
    validate_status_update: validate_status,
    defaults,
    ..WITH_STATUS
}];

/// Without metrics an autoscaler aims at this much of the requested CPU.
const CPU_UTILIZATION_PERCENT: i64 = 80;

fn defaults(autoscaler: &mut Value) {
    autoscaler.put_default("spec.minReplicas", 1);
    if autoscaler.list("spec.metrics").is_empty() {
        autoscaler.put(
            "spec.metrics",
            json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": CPU_UTILIZATION_PERCENT}}}]),
        );
    }
    if !autoscaler.has("spec.behavior") {
        return;
    }
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    autoscaler.put_default("spec.behavior.scaleUp.stabilizationWindowSeconds", 0);
    for (way, policies) in [("scaleUp", json!([pods, percent])), ("scaleDown", json!([percent]))] {
        autoscaler.put_default(&format!("spec.behavior.{way}.selectPolicy"), "Max");
        autoscaler.put_default(&format!("spec.behavior.{way}.policies"), policies);
    }
}

fn validate(autoscaler: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = autoscaler.at("spec");
    let (min, max) = (spec.maybe_int("minReplicas"), spec.int("maxReplicas"));
    if let Some(min) = min.filter(|m| *m < 1) {
        errors.invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1");
    }
    if max == 0 {
        errors.required(&path.child("maxReplicas"), "must be set and greater than 0");
    } else if max < 0 {
        errors.invalid(&path.child("maxReplicas"), max, "must be greater than or equal to 1");
    }
    if min.is_some_and(|min| max < min) {
        errors.invalid(&path.child("maxReplicas"), max, "must be greater than or equal to `minReplicas`");
    }
    reference(&mut errors, spec.at("scaleTargetRef"), &path.child("scaleTargetRef"));
    for (i, metric) in spec.list("metrics").iter().enumerate() {
        let list = path.child("metrics");
        self::metric(&mut errors, metric, &list.index(i));
    }
    let from_outside = |m: &Value| matches!(m.text("type"), "Object" | "External");
    if min == Some(0) && !spec.list("metrics").iter().any(from_outside) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden(&path.child("metrics"), why);
    }
    for way in ["scaleUp", "scaleDown"] {
        let behavior = path.child("behavior");
        rules(&mut errors, spec.at("behavior").at(way), &behavior.child(way));
    }
    errors
}

fn reference(errors: &mut Errors, reference: &Value, path: &Path<'_>) {
    for name in ["kind", "name"] {
        let value = reference.text(name);
        if value.is_empty() {
            errors.required(&path.child(name), "");
        } else {
            errors.invalid_each(&path.child(name), value, check::path_segment(value));
        }
    }
    let version = reference.text("apiVersion");
    let of_target = path.to_string() == "spec.scaleTargetRef";
    // The core group has one kind that scales.
    let core = version.split_once('/').is_none_or(|(group, _)| group.is_empty())
        && reference.text("kind") != "ReplicationController";
    if of_target && core {
        errors.invalid(&path.child("apiVersion"), version, "apiVersion must specify API group");
    } else if version.split('/').count() > 2 {
        errors.invalid(
            &path.child("apiVersion"),
            version,
            format!("unexpected GroupVersion string: {version}"),
        );
    }
}

fn metric(errors: &mut Errors, metric: &Value, path: &Path<'_>) {
    let kind = metric.text("type");
    let kinds = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    let members = ["containerResource", "external", "object", "pods", "resource"];
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric source type");
    }
    errors.one_of(&path.child("type"), kind, &kinds);
    // The first source that is given is looked at, whatever is meant to be there.
    let given = ["object", "external", "pods", "resource", "containerResource"];
    if let Some(member) = given.into_iter().find(|member| metric.has(member)) {
        metric_source(errors, member, metric.at(member), &path.child(member));
    }
    let Some(at) = kinds.iter().position(|k| *k == kind) else { return };
    let wanted = members[at];
    if !metric.has(wanted) {
        errors.required(&path.child(wanted), "must populate information for the given metric source");
    }
    for member in members {
        if member != wanted && metric.has(member) {
            errors.forbidden(&path.child(member), "must populate the given metric source only");
        }
    }
}

fn metric_source(errors: &mut Errors, wanted: &str, source: &Value, path: &Path<'_>) {
    let target = source.at("target");
    let at = path.child("target");
    if matches!(wanted, "resource" | "containerResource") {
        if source.text("name").is_empty() {
            errors.required(&path.child("name"), "must specify a resource name");
        } else if wanted == "containerResource" {
            resources::container_name(errors, source.text("name"), &path.child("name"));
        }
        if wanted == "containerResource" {
            match source.text("container") {
                "" => errors.required(&path.child("container"), "must specify a container"),
                name => errors.invalid_each(&path.child("container"), name, check::dns1123_label(name)),
            }
        }
        metric_target(errors, target, &at);
        match (target.has("averageUtilization"), target.has("averageValue")) {
            (false, false) => errors.required(
                &at.child("averageUtilization"),
                "must set either a target raw value or a target utilization",
            ),
            (true, true) => errors.forbidden(
                &at.child("averageValue"),
                "may not set both a target raw value and a target utilization",
            ),
            _ => {}
        }
        return;
    }
    if wanted == "object" {
        reference(errors, source.at("describedObject"), &path.child("describedObject"));
    }
    let (name, metric) = (source.text("metric.name"), path.child("metric"));
    if name.is_empty() {
        errors.required(&metric.child("name"), "must specify a metric name");
    } else {
        errors.invalid_each(&metric.child("name"), name, check::path_segment(name));
    }
    metric_target(errors, target, &at);
    let average = at.child("averageValue");
    match (wanted, target.has("value"), target.has("averageValue")) {
        ("pods", _, false) => errors.required(&average, "must specify a positive target averageValue"),
        ("object", false, false) => {
            errors.required(&average, "must set either a target value or averageValue");
        }
        ("external", false, false) => {
            errors.required(&average, "must set either a target value for metric or a per-pod target");
        }
        ("external", true, true) => errors
            .forbidden(&at.child("value"), "may not set both a target value for metric and a per-pod target"),
        _ => {}
    }
}

fn metric_target(errors: &mut Errors, target: &Value, path: &Path<'_>) {
    let kind = target.text("type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errors.invalid(&path.child("type"), kind, "must be either Utilization, Value, or AverageValue");
    }
    for name in ["value", "averageValue"] {
        if let Some(q) = quantity(target.at(name)).filter(|q| q.sign() <= 0) {
            errors.invalid(&path.child(name), q.to_string(), "must be positive");
        }
    }
    if let Some(percent) = target.maybe_int("averageUtilization").filter(|p| *p < 1) {
        errors.invalid(&path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

fn rules(errors: &mut Errors, rules: &Value, path: &Path<'_>) {
    const MAX_WINDOW_SECONDS: i64 = 3600;
    const MAX_PERIOD_SECONDS: i64 = 1800;
    if rules.is_null() {
        return;
    }
    let window = rules.int("stabilizationWindowSeconds");
    let at = path.child("stabilizationWindowSeconds");
    if window < 0 {
        errors.invalid(&at, window, "must be greater than or equal to zero");
    }
    if window > MAX_WINDOW_SECONDS {
        errors.invalid(&at, window, format!("must be less than or equal to {MAX_WINDOW_SECONDS}"));
    }
    if rules.has("selectPolicy") {
        errors.one_of(&path.child("selectPolicy"), rules.text("selectPolicy"), &["Disabled", "Max", "Min"]);
    }
    let policies = path.child("policies");
    if rules.list("policies").is_empty() {
        errors.required(&policies, "must specify at least one Policy");
    }
    for (i, policy) in rules.list("policies").iter().enumerate() {
        let path = policies.index(i);
        errors.one_of(&path.child("type"), policy.text("type"), &["Percent", "Pods"]);
        for (name, max) in [("value", i64::MAX), ("periodSeconds", MAX_PERIOD_SECONDS)] {
            let value = policy.int(name);
            if value <= 0 {
                errors.invalid(&path.child(name), value, "must be greater than zero");
            } else if value > max {
                errors.invalid(&path.child(name), value, format!("must be less than or equal to {max}"));
            }
        }
    }
}

fn validate_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("status");
    for name in ["currentReplicas", "desiredReplicas"] {
        errors.not_negative(&path.child(name), new.at("status").int(name));
    }
    errors
}
