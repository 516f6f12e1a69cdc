//! Runtime classes.

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::pod::scheduling;
use crate::core_v1::resources;
use crate::meta;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, Rules};
use crate::value::Read;

pub const GROUP: &str = "node.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "runtimeclasses",
    revalidates: true,
    warnings: crate::advice::of_runtime_class,
    validate,
    validate_update,
    namespaced: false,
    create_on_update: true,
    unconditional_update: false,
    ..DEFAULT
}];

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let handler = class.text("handler");
    if handler.is_empty() {
        errors.required(&Path::new("handler"), "");
    } else {
        errors.invalid_each(&Path::new("handler"), handler, check::dns1123_label(handler));
    }
    let overhead = Path::new("overhead");
    let path = overhead.child("limits");
    for (name, value) in class.entries("overhead.podFixed") {
        resources::container_name(&mut errors, name, &path.key(name));
        resources::amount(&mut errors, name, value, &path.key(name));
    }
    let path = Path::new("scheduling");
    meta::labels(&mut errors, class.at("scheduling.nodeSelector"), &path.child("nodeSelector"));
    let tolerations = class.list("scheduling.tolerations");
    scheduling::tolerations(&mut errors, tolerations, &path.child("tolerations"));
    for (i, toleration) in tolerations.iter().enumerate() {
        if tolerations[..i].contains(toleration) {
            errors.duplicate(&path.child("tolerations").index(i), toleration.clone());
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate(new);
    errors.immutable(&Path::new("handler"), new.at("handler"), old.at("handler"));
    errors
}
