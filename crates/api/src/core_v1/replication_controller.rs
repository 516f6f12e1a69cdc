//! Replication controllers.

use serde_json::Value;

use crate::check::Report;
use crate::core_v1::pod;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

/// The selector and the labels are those of the template, where none are given.
pub fn defaults(controller: &mut Value) {
    controller.put_default("spec.replicas", 1);
    let labels = controller.at("spec.template.metadata.labels").clone();
    if labels.is_object() {
        for path in ["spec.selector", "metadata.labels"] {
            if controller.at(path).as_object().is_none_or(serde_json::Map::is_empty) {
                controller.put(path, labels.clone());
            }
        }
    }
    if let Some(template) = controller.find_mut("spec.template") {
        pod::defaults::template(template);
    }
}

pub fn validate(controller: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = controller.at("spec");
    errors.not_negative(&path.child("minReadySeconds"), spec.int("minReadySeconds"));
    let selector = spec.at("selector");
    if selector.as_object().is_none_or(serde_json::Map::is_empty) {
        errors.required(&path.child("selector"), "");
    }
    errors.not_negative(&path.child("replicas"), spec.int("replicas"));
    let at = path.child("template");
    let template = spec.at("template");
    if template.is_null() {
        errors.required(&at, "");
        return errors;
    }
    let labels = template.at("metadata.labels");
    let selected =
        selector.as_object().into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    if !selected {
        errors.invalid(
            &at.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    pod::validation::template(&mut errors, template, &at);
    let policy = template.text("spec.restartPolicy");
    if policy != "Always" {
        errors.not_supported(&at.child("spec").child("restartPolicy"), policy, &["Always"]);
    }
    if template.has("spec.activeDeadlineSeconds") {
        errors.forbidden(
            &at.child("spec").child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicationController is not Supported",
        );
    }
    errors
}
