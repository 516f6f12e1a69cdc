//! Events, stored as core/v1 whichever group they come through.

use serde_json::Value;

use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

/// Labels of both groups: they are stored under the core group's names.
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

/// An event is in the namespace of what it is about (or in the default one, for what has none), says why and how.
pub fn validate(event: &Value) -> Errors {
    let mut errors = Errors::new();
    let involved = Path::new("involvedObject");
    let (own, about) = (event.text("metadata.namespace"), event.text("involvedObject.namespace"));
    let fits = match about {
        "" => matches!(own, "" | "default" | "kube-system"),
        _ => own == about,
    };
    if !fits {
        errors.invalid(&involved.child("namespace"), about, "does not match event.namespace");
    }
    // The newer API asks for more, and is told by its own time.
    if !event.has("eventTime") {
        return errors;
    }
    for (path, value, max) in [
        ("reportingController", event.text("reportingComponent"), usize::MAX),
        ("reportingInstance", event.text("reportingInstance"), 128),
        ("action", event.text("action"), 128),
        ("reason", event.text("reason"), 128),
    ] {
        let at = Path::new(path);
        if value.is_empty() {
            errors.required(&at, "");
        } else if value.len() > max {
            errors.invalid(&at, "", format!("can have at most {max} characters"));
        } else if path == "reportingController" {
            errors.invalid_each(&at, value, check::qualified_name(value));
        }
    }
    if event.text("message").len() > 1024 {
        errors.invalid(&Path::new("message"), "", "can have at most 1024 characters");
    }
    let kind = event.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.invalid(&Path::new("type"), "", format!("has invalid value: {kind}"));
    }
    errors
}
