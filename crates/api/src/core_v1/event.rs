//! Events, stored as core/v1 whichever group they come through.

use serde_json::Value;

use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

/// Labels of the core group.
pub const LABELS: &[(&str, &str)] = &[
    ("involvedObject.kind", "involvedObject.kind"),
    ("involvedObject.namespace", "involvedObject.namespace"),
    ("involvedObject.name", "involvedObject.name"),
    ("involvedObject.uid", "involvedObject.uid"),
    ("involvedObject.apiVersion", "involvedObject.apiVersion"),
    ("involvedObject.resourceVersion", "involvedObject.resourceVersion"),
    ("involvedObject.fieldPath", "involvedObject.fieldPath"),
    ("reason", "reason"),
    ("reportingComponent", "reportingComponent"),
    ("source", "source"),
    ("type", "type"),
    ("metadata.namespace", "metadata.namespace"),
];

/// Labels of the events' own group, by the core group's names under which they are stored.
pub const NEW_LABELS: &[(&str, &str)] = &[
    ("reason", "reason"),
    ("type", "type"),
    ("metadata.namespace", "metadata.namespace"),
    ("regarding.kind", "involvedObject.kind"),
    ("regarding.namespace", "involvedObject.namespace"),
    ("regarding.name", "involvedObject.name"),
    ("regarding.uid", "involvedObject.uid"),
    ("regarding.apiVersion", "involvedObject.apiVersion"),
    ("regarding.resourceVersion", "involvedObject.resourceVersion"),
    ("regarding.fieldPath", "involvedObject.fieldPath"),
    ("reportingController", "reportingComponent"),
];

pub fn fields(event: &Value) -> Vec<(&'static str, String)> {
    let component = event.text("source.component");
    let source = if component.is_empty() { event.text("reportingComponent") } else { component };
    let mut fields: Vec<(&'static str, String)> = [
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "type",
    ]
    .into_iter()
    .map(|path| (path, event.text(path).to_owned()))
    .collect();
    fields.push(("source", source.to_owned()));
    fields
}

/// Members that are always shown.
pub fn defaults(event: &mut Value) {
    event.put_default("source", serde_json::json!({}));
    event.put_default("reportingComponent", "");
    event.put_default("reportingInstance", "");
}

/// An event is in the namespace of what it is about (or in the default one, for what has none), and those of the
/// newer kind say who reports what.
pub fn validate(event: &Value) -> Errors {
    let mut errors = Errors::new();
    let involved = Path::new("involvedObject");
    let (own, about) = (event.text("metadata.namespace"), event.text("involvedObject.namespace"));
    let new_kind = event.has("eventTime");
    let fits = match (about, new_kind) {
        ("", false) => matches!(own, "" | "default"),
        ("", true) => matches!(own, "default" | "kube-system"),
        (_, false) => own == about,
        (_, true) => true,
    };
    if !fits {
        errors.invalid(&involved.child("namespace"), about, "does not match event.namespace");
    }
    if new_kind {
        reported(&mut errors, event, "reportingComponent");
    }
    errors
}

fn legacy_of_new(event: &Value) -> Errors {
    let mut errors = validate(event);
    for error in &mut errors {
        if error.path == "reportingComponent" {
            error.path = "reportingController".to_owned();
        }
    }
    errors
}

fn series(errors: &mut Errors, event: &Value) {
    if !event.has("series") {
        return;
    }
    if event.int("series.count") < 2 {
        errors.invalid(&Path::new("series.count"), "", "should be at least 2");
    }
    if event.text("series.lastObservedTime").is_empty() {
        errors.required(&Path::new("series.lastObservedTime"), "");
    }
}

/// As [`validate`], for events through their own group, which must be of the newer kind.
pub fn validate_new(event: &Value) -> Errors {
    let mut errors = legacy_of_new(event);
    series(&mut errors, event);
    if !event.has("eventTime") {
        errors.required(&Path::new("eventTime"), "");
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    for name in ["firstTimestamp", "lastTimestamp"] {
        if event.has(name) {
            errors.invalid(&Path::new(name), "", "needs to be unset");
        }
    }
    if event.int("count") != 0 {
        errors.invalid(&Path::new("count"), "", "needs to be unset");
    }
    if !event.text("source.component").is_empty() || !event.text("source.host").is_empty() {
        errors.invalid(&Path::new("source"), "", "needs to be unset");
    }
    errors
}

/// Only how often an event was seen may change through its own group.
pub fn validate_new_update(new: &Value, old: &Value) -> Errors {
    let mut errors = legacy_of_new(new);
    if !crate::equality::same_at(new, old, "series") {
        series(&mut errors, new);
    }
    for name in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "reason",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ] {
        if !crate::equality::same_at(new, old, name) {
            let path = if name == "reportingComponent" { "reportingController" } else { name };
            let now = match (name, new.at(name)) {
                ("count" | "eventTime" | "related" | "series" | "source", now) => now.clone(),
                (_, Value::Null) => "".into(),
                (_, now) => now.clone(),
            };
            errors.invalid(&Path::new(path), now, check::IMMUTABLE);
        }
    }
    errors
}

/// Checks who reports what.
fn reported(errors: &mut Errors, event: &Value, field: &'static str) {
    let controller = event.text("reportingComponent");
    let path = Path::new(field);
    if controller.is_empty() {
        errors.required(&path, "");
    }
    errors.invalid_each(&path, controller, check::qualified_name(controller));
    for name in ["reportingInstance", "action", "reason"] {
        let path = Path::new(name);
        let value = event.text(name);
        if value.is_empty() {
            errors.required(&path, "");
        } else if value.len() > 128 {
            errors.invalid(&path, "", "can have at most 128 characters");
        }
    }
    if event.text("message").len() > 1024 {
        errors.invalid(&Path::new("message"), "", "can have at most 1024 characters");
    }
}
