//! Disruption budgets.

use serde_json::Value;

use crate::apps_v1::validation::{at_most_all, number_or_percent};
use crate::check::Report;
use crate::meta;
use crate::path::Path;
use crate::strategy::{Errors, Rules, WITH_STATUS};
use crate::value::Read;

pub const GROUP: &str = "policy";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "poddisruptionbudgets",
    name: meta::path_segment_name,
    first_status: r#"{"disruptionsAllowed":0,"currentHealthy":0,"desiredHealthy":0,"expectedPods":0}"#,
    validate,
    validate_update: |new, _| validate(new),
    validate_status_update: validate_status,
    generation: &["spec"],
    unconditional_update: false,
    ..WITH_STATUS
}];

fn validate(budget: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = budget.at("spec");
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        errors.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for name in ["minAvailable", "maxUnavailable"] {
        if spec.has(name) {
            number_or_percent(&mut errors, spec.at(name), &path.child(name));
            at_most_all(&mut errors, spec.at(name), &path.child(name));
        }
    }
    meta::label_selector(&mut errors, spec.at("selector"), &path.child("selector"));
    if spec.has("unhealthyPodEvictionPolicy") {
        errors.one_of(
            &path.child("unhealthyPodEvictionPolicy"),
            spec.text("unhealthyPodEvictionPolicy"),
            &["AlwaysAllow", "IfHealthyBudget"],
        );
    }
    errors
}

fn validate_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("status");
    let status = new.at("status");
    meta::conditions(&mut errors, status.list("conditions"), &path.child("conditions"));
    for name in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        errors.not_negative(&path.child(name), status.int(name));
    }
    errors
}
