//! Namespaces.

use serde_json::{Value, json};

use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

const FINALIZER: &str = "kubernetes";

pub fn prepare_for_create(namespace: &mut Value) {
    namespace.put("status", json!({"phase": "Active"}));
    if !namespace.list("spec.finalizers").iter().any(|f| f == FINALIZER) {
        let mut finalizers = namespace.list("spec.finalizers").to_vec();
        finalizers.push(FINALIZER.into());
        namespace.put("spec.finalizers", finalizers);
    }
    set_name_label(namespace);
}

/// Finalizers of the spec change through `finalize` only.
pub fn prepare_for_update(new: &mut Value, old: &Value) {
    new.copy_from(old, "spec.finalizers");
    set_name_label(new);
}

pub fn prepare_for_subresource(_: &str, new: &mut Value, old: &Value) {
    new.copy_from(old, "status");
    set_name_label(new);
}

/// Every namespace carries its own name as a label.
pub fn set_name_label(namespace: &mut Value) {
    let name = namespace.text("metadata.name").to_owned();
    if !name.is_empty()
        && let Some(labels) = namespace.object_mut("metadata.labels")
    {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

pub fn defaults(namespace: &mut Value) {
    set_name_label(namespace);
    namespace.put_default_text("status.phase", "Active");
}

pub fn validate(namespace: &Value) -> Errors {
    finalizers(namespace, false)
}

pub fn validate_finalize(namespace: &Value) -> Errors {
    finalizers(namespace, true)
}

fn finalizers(namespace: &Value, by_index: bool) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::new("spec");
    let path = spec.child("finalizers");
    for (i, finalizer) in namespace.list("spec.finalizers").iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        let item = path.index(i);
        let at = if by_index { &item } else { &path };
        errors.invalid_each(at, name, check::qualified_name(name));
        if !name.contains('/') && !matches!(name, FINALIZER | "orphan" | "foregroundDeletion") {
            errors.invalid(at, name, "name is neither a standard finalizer name nor is it fully qualified");
        }
    }
    errors
}

pub fn validate_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let (phase, path) = (new.text("status.phase"), status.child("Phase"));
    match (new.has("metadata.deletionTimestamp"), phase) {
        (false, "Active") | (true, "Terminating") => {}
        (false, _) => errors.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty"),
        (true, _) => {
            errors.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
    }
    errors
}
