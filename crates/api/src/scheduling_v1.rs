//! Priority classes.

use serde_json::Value;

use crate::check::Report;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, Rules, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "scheduling.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "priorityclasses",
        validate,
        validate_update,
        defaults: |class| class.put_default("preemptionPolicy", "PreemptLowerPriority"),
        namespaced: false,
        generation: &["value"],
        ..DEFAULT
    },
    Rules { group: GROUP, resource: "workloads", ..DEFAULT },
    Rules { group: GROUP, resource: "podgroups", status_keeps_metadata: true, ..WITH_STATUS },
];

/// The highest priority that is not the system's own.
const USER_MAX: i64 = 1_000_000_000;

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let (name, value) = (class.text("metadata.name"), class.int("value"));
    if name.starts_with("system-") {
        let known = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
        let why = match known.iter().find(|(n, _)| *n == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, v)) if *v != value => Some(format!("value of {name} PriorityClass must be {v}")),
            Some(_) if class.flag("globalDefault") => {
                Some(format!("globalDefault of {name} PriorityClass must be false"))
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            let metadata = Path::new("metadata");
            errors.forbidden(
                &metadata.child("name"),
                format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"),
            );
        }
    } else if value > USER_MAX {
        errors.forbidden(
            &Path::new("value"),
            format!("maximum allowed value of a user defined priority is {USER_MAX}"),
        );
    }
    if class.has("preemptionPolicy") {
        errors.one_of(
            &Path::new("preemptionPolicy"),
            class.text("preemptionPolicy"),
            &["PreemptLowerPriority", "Never"],
        );
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if new.int("value") != old.int("value") {
        errors.forbidden(&Path::new("value"), "may not be changed in an update.");
    }
    errors.immutable(&Path::new("preemptionPolicy"), new.at("preemptionPolicy"), old.at("preemptionPolicy"));
    errors
}
