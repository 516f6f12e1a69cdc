//! `metadata`: the rules every kind shares.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::check::{self, Report};
use crate::equality;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
const MANAGER_MAX_BYTES: usize = 128;
const SUBRESOURCE_MAX_BYTES: usize = 256;

/// A generated name is checked by its prefix: a hyphen at its end is followed by random characters.
fn masked(name: &str, prefix: bool) -> String {
    match name.strip_suffix('-') {
        Some(head) if prefix && name.len() > 1 => format!("{head}a"),
        _ => name.to_owned(),
    }
}

pub fn subdomain_name(name: &str, prefix: bool) -> Vec<String> {
    check::dns1123_subdomain(&masked(name, prefix))
}

pub fn label_name(name: &str, prefix: bool) -> Vec<String> {
    check::dns1123_label(&masked(name, prefix))
}

pub fn label_1035_name(name: &str, prefix: bool) -> Vec<String> {
    check::dns1035_label(&masked(name, prefix))
}

/// RBAC names may be anything that fits in a path.
pub fn path_segment_name(name: &str, prefix: bool) -> Vec<String> {
    if prefix { check::path_segment_prefix(name) } else { check::path_segment(name) }
}

/// Checks the metadata of an object to be created.
pub fn validate(meta: &Value, namespaced: bool, name_rule: fn(&str, bool) -> Vec<String>) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("metadata");
    let (name, generate) = (meta.text("name"), meta.text("generateName"));
    if !generate.is_empty() {
        errors.invalid_each(&path.child("generateName"), generate, name_rule(generate, true));
    }
    if name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        errors.invalid_each(&path.child("name"), name, name_rule(name, false));
    }
    let namespace = meta.text("namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.required(&path.child("namespace"), ""),
        (true, false) => {
            errors.invalid_each(&path.child("namespace"), namespace, check::dns1123_label(namespace));
        }
        (false, false) => errors.forbidden(&path.child("namespace"), "not allowed on this type"),
        (false, true) => {}
    }
    errors.not_negative(&path.child("generation"), meta.int("generation"));
    common(&mut errors, meta, &path);
    finalizers(&mut errors, meta.list("finalizers"), &path.child("finalizers"));
    errors
}

/// Checks what an update does to metadata. That the resource version is given where it must be is the registry's
/// business, because stored objects carry none.
pub fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("metadata");
    if old.has("deletionTimestamp") {
        let had: BTreeSet<&str> = old.list("finalizers").iter().filter_map(Value::as_str).collect();
        let added: BTreeSet<&str> =
            new.list("finalizers").iter().filter_map(Value::as_str).filter(|f| !had.contains(f)).collect();
        if !added.is_empty() {
            let added: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
            errors.forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    added.join(", ")
                ),
            );
        }
    }
    if new.int("generation") < old.int("generation") {
        errors.invalid(&path.child("generation"), new.int("generation"), "must not be decremented");
    }
    for name in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        errors.immutable(&path.child(name), new.get_or_null(name), old.get_or_null(name));
    }
    // What was accepted once and did not change needs no second look; most updates change none of it.
    if !unchanged(new, old) {
        common(&mut errors, new, &path);
    }
    errors
}

/// What [`validate`] says beyond [`validate_update`] about what an update changes.
pub fn revalidate(errors: &mut Errors, new: &Value, old: &Value, name_rule: fn(&str, bool) -> Vec<String>) {
    let path = Path::new("metadata");
    let generate = new.text("generateName");
    if !generate.is_empty() && generate != old.text("generateName") {
        errors.invalid_each(&path.child("generateName"), generate, name_rule(generate, true));
    }
    if new.at("finalizers") != old.at("finalizers") {
        finalizers(errors, new.list("finalizers"), &path.child("finalizers"));
    }
}

fn unchanged(new: &Value, old: &Value) -> bool {
    ["labels", "annotations", "ownerReferences", "managedFields"]
        .iter()
        .all(|p| equality::same_at(new, old, p))
}

fn common(errors: &mut Errors, meta: &Value, path: &Path<'_>) {
    labels(errors, meta.at("labels"), &path.child("labels"));
    annotations(errors, meta.at("annotations"), &path.child("annotations"));
    owners(errors, meta, &path.child("ownerReferences"));
    managed_fields(errors, meta.list("managedFields"), &path.child("managedFields"));
}

pub fn labels(errors: &mut Errors, labels: &Value, path: &Path<'_>) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.invalid_each(path, key, check::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_each(path, value, check::label_value(value));
    }
}

pub fn annotations(errors: &mut Errors, annotations: &Value, path: &Path<'_>) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        errors.invalid_each(path, key, check::qualified_name(&key.to_lowercase()));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.too_long(path, ANNOTATIONS_MAX_BYTES);
    }
}

fn owners(errors: &mut Errors, meta: &Value, path: &Path<'_>) {
    let mut controller: Option<String> = None;
    for owner in meta.list("ownerReferences") {
        let (api_version, kind) = (owner.text("apiVersion"), owner.text("kind"));
        if api_version.rsplit('/').next().unwrap_or_default().is_empty()
            || api_version.matches('/').count() > 1
        {
            errors.invalid(&path.child("apiVersion"), api_version, "version must not be empty");
        }
        for name in ["kind", "name", "uid"] {
            if owner.text(name).is_empty() {
                errors.invalid(&path.child(name), "", "must not be empty");
            }
        }
        if api_version == "v1" && kind == "Event" {
            errors.invalid(path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.flag("controller") {
            let this = format!("{kind}/{}", owner.text("name"));
            match &controller {
                Some(first) => errors.invalid(
                    path,
                    meta.at("ownerReferences").clone(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                ),
                None => controller = Some(this),
            }
        }
    }
}

fn finalizers(errors: &mut Errors, finalizers: &[Value], path: &Path<'_>) {
    let names: Vec<&str> = finalizers.iter().filter_map(Value::as_str).collect();
    for name in &names {
        errors.invalid_each(path, name, check::qualified_name(name));
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        errors.invalid(
            path,
            finalizers.to_vec(),
            "finalizer orphan and foregroundDeletion cannot be both set",
        );
    }
}

fn managed_fields(errors: &mut Errors, entries: &[Value], path: &Path<'_>) {
    for (i, entry) in entries.iter().enumerate() {
        let path = path.index(i);
        let operation = entry.text("operation");
        if !matches!(operation, "Apply" | "Update") {
            errors.invalid(&path.child("operation"), operation, "must be `Apply` or `Update`");
        }
        let fields_type = entry.text("fieldsType");
        if !fields_type.is_empty() && fields_type != "FieldsV1" {
            errors.invalid(&path.child("fieldsType"), fields_type, "must be `FieldsV1`");
        }
        let manager = entry.text("manager");
        if manager.len() > MANAGER_MAX_BYTES {
            errors.too_long(&path.child("manager"), MANAGER_MAX_BYTES);
        }
        if manager.chars().any(char::is_control) {
            errors.invalid(&path.child("manager"), manager, "should only contain printable characters");
        }
        if entry.text("subresource").len() > SUBRESOURCE_MAX_BYTES {
            errors.too_long(&path.child("subresource"), SUBRESOURCE_MAX_BYTES);
        }
    }
}

/// Names without a domain are Kubernetes' own.
pub fn known_finalizers(errors: &mut Errors, finalizers: &[Value]) {
    let metadata = Path::new("metadata");
    let list = metadata.child("finalizers");
    for (i, finalizer) in finalizers.iter().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
            errors.invalid(
                &list.index(i),
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
}

/// Checks a `metav1.LabelSelector`; null is fine.
pub fn label_selector(errors: &mut Errors, selector: &Value, path: &Path<'_>) {
    labels(errors, selector.at("matchLabels"), &path.child("matchLabels"));
    for (i, requirement) in selector.list("matchExpressions").iter().enumerate() {
        let list = path.child("matchExpressions");
        label_requirement(errors, requirement, &list.index(i));
    }
}

fn label_requirement(errors: &mut Errors, requirement: &Value, path: &Path<'_>) {
    let values = requirement.list("values");
    match requirement.text("operator") {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors
                    .required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.forbidden(
                    &path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
        }
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    let key = requirement.text("key");
    errors.invalid_each(&path.child("key"), key, check::qualified_name(key));
    for (i, value) in values.iter().enumerate() {
        let value = value.as_str().unwrap_or_default();
        errors.invalid_each(&path.child("values").index(i), value, check::label_value(value));
    }
}

/// Whether a `metav1.LabelSelector` selects an object with these labels. One that is absent selects nothing, an empty
/// one everything.
pub fn selects(selector: &Value, labels: &Value) -> bool {
    if selector.is_null() {
        return false;
    }
    selector.entries("matchLabels").all(|(key, value)| labels.get(key) == Some(value))
        && selector.list("matchExpressions").iter().all(|requirement| {
            let value = labels.get(requirement.text("key"));
            let listed = || value.is_some_and(|v| requirement.list("values").contains(v));
            match requirement.text("operator") {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// Whether a `metav1.LabelSelector` can be understood at all.
pub fn is_readable_selector(selector: &Value) -> bool {
    let mut errors = Errors::new();
    label_selector(&mut errors, selector, &Path::ROOT);
    errors.is_empty()
}

/// Whether a `metav1.LabelSelector` says nothing.
pub fn is_empty_selector(selector: &Value) -> bool {
    selector.entries("matchLabels").next().is_none() && selector.list("matchExpressions").is_empty()
}

/// Checks `metav1.Condition`s.
pub fn conditions(errors: &mut Errors, conditions: &[Value], path: &Path<'_>) {
    let mut kinds: Vec<&str> = vec![];
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let (kind, status, reason) =
            (condition.text("type"), condition.text("status"), condition.text("reason"));
        if kinds.contains(&kind) {
            errors.duplicate(&path.child("type"), kind);
        }
        kinds.push(kind);
        if kind.is_empty() {
            errors.required(&path.child("type"), "must be set");
        } else {
            errors.invalid_each(&path.child("type"), kind, check::qualified_name(kind));
        }
        errors.one_of(&path.child("status"), status, &["False", "True", "Unknown"]);
        errors.not_negative(&path.child("observedGeneration"), condition.int("observedGeneration"));
        if condition.text("lastTransitionTime").is_empty() {
            errors.required(&path.child("lastTransitionTime"), "");
        }
        let form = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_,:".contains(&b));
        if reason.is_empty() {
            errors.required(&path.child("reason"), "");
        } else if !(reason.starts_with(|c: char| c.is_ascii_alphabetic())
            && form(reason)
            && !reason.ends_with([',', ':']))
        {
            let pattern = "[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?";
            let said = format!(
                "a condition reason must start with alphabetic character, optionally followed by a string of \
                 alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  \
                 or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation \
                 is '{pattern}')"
            );
            errors.invalid(&path.child("reason"), reason, said);
        } else if reason.len() > 1024 {
            errors.too_long(&path.child("reason"), 1024);
        }
        if condition.text("message").len() > 32 * 1024 {
            errors.too_long(&path.child("message"), 32 * 1024);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn metadata_of_new_objects() {
        for (meta, want) in [
            (json!({"name": "a", "namespace": "b"}), None),
            (json!({"generateName": "a-", "name": "a-x", "namespace": "b"}), None),
            (
                json!({"namespace": "b"}),
                Some("metadata.name: Required value: name or generateName is required"),
            ),
            (json!({"name": "a"}), Some("metadata.namespace: Required value")),
            (
                json!({"name": "a", "namespace": "b", "ownerReferences": [{"kind": "A", "name": "b", "uid": "u"}]}),
                Some("metadata.ownerReferences.apiVersion: Invalid value: \"\": version must not be empty"),
            ),
            (
                json!({"name": "a", "namespace": "b", "finalizers": ["a/b/c"]}),
                Some(
                    "metadata.finalizers: Invalid value: \"a/b/c\": a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                ),
            ),
        ] {
            assert_eq!(texts(&validate(&meta, true, subdomain_name)), Vec::from_iter(want), "{meta}");
        }
    }

    #[test]
    fn metadata_of_updates() {
        let old =
            json!({"name": "a", "namespace": "b", "uid": "u", "finalizers": ["x"], "deletionTimestamp": "t"});
        let mut new = old.clone();
        assert_eq!(texts(&validate_update(&new, &old)), Vec::<String>::new());
        new["finalizers"] = json!(["x", "example.com/y"]);
        new["uid"] = json!("other");
        assert_eq!(
            texts(&validate_update(&new, &old)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/y\"}",
                "metadata.uid: Invalid value: \"other\": field is immutable",
            ]
        );
    }
}
