//! Custom resources: what a CustomResourceDefinition adds to a row of the table.

pub mod controller;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use api::scale::Scale;
use api::strategy::{DEFAULT, Rules};
use api::table::custom::CustomTable;
use apimachinery::field_path::Path;
use apimachinery::object::Encoded;
use apimachinery::schema::Schema;
use apimachinery::selector::FieldSelector;
use apimachinery::status::{FieldError, FieldErrorKind, Status, quote};
use apimachinery::structural::Validator;
use expression::rules::Rules as CelRules;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::admission::webhooks::conversion::Conversion;
use crate::cache::{ResourceCache, ResourceKind};
use crate::discovery::groups::version_rank;
use crate::registry::Entry;
use crate::registry::entry::{Subresource, api_version};
use crate::registry::meta;
use crate::seams::Objects;

/// What is the same for all custom resources.
static NAMESPACED: Rules =
    Rules { namespaced: true, unconditional_update: false, warnings: warn_of_finalizers, ..DEFAULT };
static CLUSTER: Rules = Rules { namespaced: false, ..NAMESPACED };

/// Advice on names of finalizers that are new.
fn warn_of_finalizers(new: &Value, old: Option<&Value>) -> Vec<String> {
    let before = old.map(meta::finalizers).unwrap_or_default();
    let mut added = meta::finalizers(new);
    added.retain(|f| {
        !f.contains('/')
            && !before.contains(f)
            && !matches!(&**f, "kubernetes" | "orphan" | "foregroundDeletion")
    });
    added.sort();
    added.dedup();
    let told = |name: &String| {
        let path = if name.contains('.') { " including a path (/)" } else { "" };
        format!(
            "metadata.finalizers: {}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with \
             other finalizer writers",
            quote(name)
        )
    };
    added.iter().map(told).collect()
}

/// A version that objects may be in.
struct Version {
    api_version: String,
    schema: Arc<Schema>,
    has_defaults: bool,
}

/// One served version of a custom resource. What clients write is in this version until it is stored.
pub struct CustomResource {
    api_version: String,
    storage_api_version: String,
    schema: Arc<Schema>,
    /// All there are: what is stored may be in any of them.
    versions: Arc<[Version]>,
    /// What the bytes of objects in the storage version begin with: members are stored by name, and that is the first.
    stored_prefix: String,
    open_api: Value,
    validator: Validator,
    /// Of the status alone, which is all that counts where only that is written.
    status_validator: Option<Validator>,
    rules: Option<CelRules>,
    table: CustomTable,
    /// Of all versions, which share the cache.
    selectable: Arc<[&'static str]>,
    /// Of this version.
    labels: Vec<String>,
    selectable_fields: Value,
    has_status: bool,
    scale: Option<Scale>,
    preserve_unknown: bool,
    /// What clients of a deprecated version are warned with; empty for others.
    deprecation_warning: String,
    has_defaults: bool,
    /// Versions convert by more than their name.
    /// Set where objects of other versions are converted by a webhook.
    conversion: Option<Arc<Conversion>>,
    fingerprint: String,
}

/// A copy of `text` that lives on; equal texts share one, so that changes of definitions do not grow memory.
fn interned(text: &str) -> &'static str {
    static ALL: OnceLock<Mutex<HashSet<&'static str>>> = OnceLock::new();
    let mut all = ALL.get_or_init(Mutex::default).lock();
    if let Some(there) = all.get(text) {
        return there;
    }
    let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
    all.insert(kept);
    kept
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// `.spec.x` → `spec.x`
fn plain_path(path: &str) -> &str {
    path.trim_start_matches('.')
}

/// The warning that comes with each answer in `version`, where that is deprecated: its own words, or the newest better
/// version that is served and not deprecated.
fn deprecation_warning(spec: &Value, version: &Value) -> String {
    if version["deprecated"] != true {
        return String::new();
    }
    if let Some(own) = version["deprecationWarning"].as_str() {
        return own.to_owned();
    }
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (group, kind, name) = (text(&spec["group"]), text(&spec["names"]["kind"]), text(&version["name"]));
    let better = spec["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|v| v["served"] == true && v["deprecated"] != true)
        .map(|v| text(&v["name"]))
        .filter(|other| version_rank(other) < version_rank(&name))
        .min_by_key(|other| version_rank(other));
    match better {
        Some(better) => format!("{group}/{name} {kind} is deprecated; use {group}/{better} {kind}"),
        None => format!("{group}/{name} {kind} is deprecated"),
    }
}

/// How the cache of a definition's objects reads them.
pub fn cache_kind(definition: &Value) -> ResourceKind {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or_default();
    let selectable = selectable(definition);
    ResourceKind {
        prefix: format!("{group}/{plural}/"),
        fields: Arc::new(move |object| fields(&selectable, object)),
        to_json: None,
    }
}

fn selectable(definition: &Value) -> Arc<[&'static str]> {
    let mut all: Vec<&'static str> = Vec::new();
    for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
        for field in version["selectableFields"].as_array().into_iter().flatten() {
            let path = field["jsonPath"].as_str().unwrap_or_default();
            let name = interned(plain_path(path));
            if !all.contains(&name) {
                all.push(name);
            }
        }
    }
    all.into()
}

fn fields(selectable: &[&'static str], object: &Value) -> Vec<(&'static str, String)> {
    selectable.iter().map(|name| (*name, field_text(object, name))).collect()
}

fn field_text(object: &Value, name: &str) -> String {
    match name.split('.').try_fold(object, |value, member| value.get(member)) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// The rows of a definition's served versions.
pub fn entries(
    definition: &Encoded,
    value: &Value,
    cache: &Arc<ResourceCache>,
    objects: &Arc<dyn Objects>,
) -> Vec<Arc<Entry>> {
    let spec = &value["spec"];
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let names = &spec["names"];
    let group = text(&spec["group"]);
    let namespaced = spec["scope"] == "Namespaced";
    let versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    let Some(stored) = versions.iter().find(|v| v["storage"] == true) else { return Vec::new() };
    let storage_version = text(&stored["name"]);
    let all: Arc<[Version]> = versions
        .iter()
        .map(|version| {
            let open_api = &version["schema"]["openAPIV3Schema"];
            Version {
                api_version: api_version(&group, &text(&version["name"])),
                schema: Schema::custom(open_api),
                has_defaults: has_default(open_api),
            }
        })
        .collect();
    let selectable = selectable(value);
    let verbs = |verbs: &[&str]| verbs.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
    let conversion = Conversion::new(objects.clone(), spec).map(Arc::new);
    let mut entries = Vec::new();
    for version in versions.iter().filter(|v| v["served"] == true) {
        let name = text(&version["name"]);
        let open_api = version["schema"]["openAPIV3Schema"].clone();
        let subresources = &version["subresources"];
        let has_status = subresources["status"].is_object();
        let scale = subresources["scale"].is_object().then(|| {
            let at =
                |field: &str| interned(plain_path(subresources["scale"][field].as_str().unwrap_or_default()));
            Scale {
                spec_replicas: at("specReplicasPath"),
                status_replicas: at("statusReplicasPath"),
                selector: at("labelSelectorPath"),
            }
        });
        let mut subs = Vec::new();
        if scale.is_some() {
            subs.push(Subresource {
                name: "scale".to_owned(),
                kind: "Scale".to_owned(),
                group_version: Some(("autoscaling".to_owned(), "v1".to_owned())),
                verbs: verbs(&["get", "patch", "update"]),
            });
        }
        if has_status {
            subs.push(Subresource {
                name: "status".to_owned(),
                kind: text(&names["kind"]),
                group_version: None,
                verbs: verbs(&["get", "patch", "update"]),
            });
        }
        let labels = version["selectableFields"].as_array().into_iter().flatten();
        let own_api_version = api_version(&group, &name);
        let Some(own) = all.iter().find(|v| v.api_version == own_api_version) else { continue };
        let storage_api_version = api_version(&group, &storage_version);
        let custom = CustomResource {
            stored_prefix: format!("{{\"apiVersion\":{},", json!(storage_api_version)),
            schema: own.schema.clone(),
            has_defaults: own.has_defaults,
            versions: all.clone(),
            api_version: own_api_version,
            storage_api_version,
            validator: Validator::new(&open_api),
            status_validator: open_api["properties"].get("status").filter(|_| has_status).map(Validator::new),
            rules: CelRules::new(&open_api),
            table: CustomTable::new(version),
            selectable: selectable.clone(),
            labels: labels.filter_map(|f| f["jsonPath"].as_str().map(|p| plain_path(p).to_owned())).collect(),
            selectable_fields: version["selectableFields"].clone(),
            has_status,
            scale,
            preserve_unknown: spec["preserveUnknownFields"] == true,
            deprecation_warning: deprecation_warning(spec, version),
            conversion: conversion.clone(),
            fingerprint: format!("{}/{}", definition.uid(), value["metadata"]["generation"]),
            open_api,
        };
        entries.push(Arc::new(Entry {
            group: group.clone(),
            version: name,
            resource: text(&names["plural"]),
            kind: text(&names["kind"]),
            list_kind: match names["listKind"].as_str() {
                Some(kind) if !kind.is_empty() => kind.to_owned(),
                _ => format!("{}List", text(&names["kind"])),
            },
            singular: match names["singular"].as_str() {
                Some(singular) if !singular.is_empty() => singular.to_owned(),
                _ => text(&names["kind"]).to_lowercase(),
            },
            short_names: texts(&names["shortNames"]),
            categories: texts(&names["categories"]),
            verbs: verbs(&[
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "create",
                "update",
                "watch",
            ]),
            namespaced,
            subresources: subs,
            builtin_schema: None,
            strategy: if namespaced { &NAMESPACED } else { &CLUSTER },
            cache: Some(cache.clone()),
            storage_version: storage_version.clone(),
            storage_group: group.clone(),
            custom: Some(Arc::new(custom)),
        }));
    }
    entries
}

fn has_default(schema: &Value) -> bool {
    match schema {
        Value::Object(members) => members.contains_key("default") || members.values().any(has_default),
        Value::Array(items) => items.iter().any(has_default),
        _ => false,
    }
}

/// What is wrong with a number of replicas at `path`, which need not be there.
fn replicas(object: &Value, path: &str) -> Option<FieldError> {
    let shown = Path::new(&format!(".{path}"));
    let other = |at: &str, value: &Value, wanted: &str| {
        let found = match value {
            Value::Array(_) => "[]interface {}",
            Value::Object(_) => "map[string]interface {}",
            other => apimachinery::go::kind(other),
        };
        let value = apimachinery::go::plain(value);
        let why = format!("{at} accessor error: {value} is of the type {found}, expected {wanted}");
        Some(FieldError::invalid(&shown, 0, why))
    };
    let (mut value, mut at) = (object, String::new());
    for name in path.split('.') {
        let Some(members) = value.as_object() else {
            return other(&format!("{at}.{name}"), value, "map[string]interface{}")
                .filter(|_| !value.is_null());
        };
        value = members.get(name)?;
        at.push('.');
        at.push_str(name);
    }
    match value.as_i64() {
        None if value.is_null() => None,
        None => other(&at, value, "int64"),
        Some(n) if n < 0 => Some(FieldError::invalid(&shown, n, "should be a non-negative integer")),
        Some(n) if n > i64::from(i32::MAX) => {
            Some(FieldError::invalid(&shown, n, format!("should be less than or equal to {}", i32::MAX)))
        }
        Some(_) => None,
    }
}

impl CustomResource {
    /// The stored name of a field label, or why it cannot be selected by.
    pub fn field_label(&self, label: &str) -> Result<String, String> {
        if matches!(label, "metadata.name" | "metadata.namespace") || self.labels.iter().any(|l| l == label) {
            return Ok(label.to_owned());
        }
        Err(format!("field label not supported: {label}"))
    }

    /// Whether objects of this version are made from the stored ones by a webhook.
    pub fn converts(&self) -> bool {
        self.conversion.is_some() && self.api_version != self.storage_api_version
    }

    /// Whether a stored object has these fields when it is in this version. What cannot be converted has none.
    pub fn selects_converted(&self, selector: &FieldSelector, object: &Encoded) -> bool {
        let Ok(mut value) = object.to_value() else { return false };
        if let Err(status) = self.from_storage(&mut value) {
            tracing::debug!(name = object.name(), %status, "cannot be converted for a field selector");
            return false;
        }
        selector.terms().iter().all(|term| (field_text(&value, &term.field) == term.value) == term.equal)
    }

    pub fn prepare_for_create(&self, object: &mut Value) {
        if self.has_status
            && let Some(members) = object.as_object_mut()
        {
            members.remove("status");
        }
        meta::set(object, "generation", 1);
    }

    pub fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if self.has_status
            && let Some(members) = new.as_object_mut()
        {
            match old.get("status") {
                Some(status) => members.insert("status".to_owned(), status.clone()),
                None => members.remove("status"),
            };
        }
        let counted = |key: &str| key != "metadata" && !(self.has_status && key == "status");
        let (Some(a), Some(b)) = (new.as_object(), old.as_object()) else { return };
        let changed = a.iter().any(|(k, v)| counted(k) && b.get(k) != Some(v))
            || b.keys().any(|k| counted(k) && !a.contains_key(k));
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + i64::from(changed);
        meta::set(new, "generation", generation);
    }

    pub fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        let (status, managed) = (new.get("status").cloned(), new["metadata"]["managedFields"].clone());
        let version = meta::text(new, "resourceVersion").to_owned();
        *new = old.clone();
        meta::set(new, "resourceVersion", version);
        if managed.is_null() {
            meta::clear(new, "managedFields");
        } else {
            meta::set(new, "managedFields", managed);
        }
        if let Some(members) = new.as_object_mut() {
            match status {
                Some(status) => members.insert("status".to_owned(), status),
                None => members.remove("status"),
            };
        }
    }

    /// Drops what the schema does not know, such as webhooks may have added.
    pub fn prune(&self, object: &mut Value) {
        if !self.preserve_unknown {
            apimachinery::prune::prune(object, &self.schema);
        }
    }

    /// Fills in the schema's defaults.
    pub fn defaults(&self, object: &mut Value) {
        if self.has_defaults {
            apimachinery::defaults::apply(object, &self.schema);
        }
    }

    /// What is wrong with an object, or with its status alone, given what it was before. Also returns warnings about what was as
    /// wrong before.
    pub fn validate(
        &self,
        object: &Value,
        old: Option<&Value>,
        status: bool,
    ) -> (Vec<FieldError>, Vec<String>) {
        let mut errors = match (old, status) {
            (Some(old), true) => self.validate_status(object, old),
            (Some(old), false) => self.validator.validate_update(object, old),
            (None, _) => self.validator.validate(object),
        };
        if let Some(scale) = &self.scale {
            let spec = (!status).then_some(scale.spec_replicas);
            errors.extend(
                spec.into_iter().chain([scale.status_replicas]).filter_map(|path| replicas(object, path)),
            );
        }
        let Some(rules) = &self.rules else { return (errors, Vec::new()) };
        let blocks = |e: &FieldError| {
            use FieldErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
            matches!(e.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
        };
        if errors.iter().any(blocks) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid(&Path::root(), Value::Null, detail));
            return (errors, Vec::new());
        }
        let findings = rules.validate(object, old);
        errors.extend(findings.errors);
        (errors, findings.warnings)
    }

    fn validate_status(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let (Some(validator), Some(status)) = (&self.status_validator, object.get("status")) else {
            return Vec::new();
        };
        let mut errors = validator.validate_update(status, &old["status"]);
        for error in &mut errors {
            error.path = match error.path.as_str() {
                "<nil>" => "status".to_owned(),
                index if index.starts_with('[') => format!("status{index}"),
                path => format!("status.{path}"),
            };
        }
        errors
    }

    pub fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        fields(&self.selectable, object)
    }

    pub fn deprecation_warning(&self) -> &str {
        &self.deprecation_warning
    }

    /// Whether the bytes of objects that are stored in the storage version are what clients of this version see.
    pub fn reads_verbatim(&self) -> bool {
        !self.has_defaults && self.api_version == self.storage_api_version
    }

    /// Whether an object is stored in what is the storage version now.
    pub fn is_current(&self, object: &Encoded) -> bool {
        object.body.starts_with(self.stored_prefix.as_bytes())
    }

    pub fn columns(&self) -> Vec<Value> {
        self.table.columns.clone()
    }

    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        self.table.row(object, now)
    }

    pub fn scale(&self) -> Option<Scale> {
        self.scale
    }

    /// Whether a webhook converts between versions.
    pub fn has_webhook(&self) -> bool {
        self.conversion.is_some()
    }

    /// The schema of a version, such as `example.com/v1`.
    pub fn schema_of(&self, api_version: &str) -> Option<&Schema> {
        self.versions.iter().find(|v| v.api_version == api_version).map(|v| &*v.schema)
    }

    pub fn schema(&self) -> Option<&Schema> {
        Some(&self.schema)
    }

    /// What a write through the main resource, or `status`, cannot change.
    pub fn reset_fields(&self, status: bool) -> &'static [&'static [&'static str]] {
        const STATUS: &[&[&str]] = &[&["status"]];
        const REST: &[&[&str]] = &[&["spec"], &["metadata"]];
        match (status, self.has_status) {
            (true, _) => REST,
            (false, true) => STATUS,
            (false, false) => &[],
        }
    }

    /// The resource for OpenAPI documents.
    pub fn open_api(&self, entry: &Entry) -> apimachinery::openapi::CustomResource {
        apimachinery::openapi::CustomResource {
            group: entry.group.clone(),
            version: entry.version.clone(),
            plural: entry.resource.clone(),
            kind: entry.kind.clone(),
            list_kind: entry.list_kind.clone(),
            namespaced: entry.namespaced,
            schema: self.open_api.clone(),
            preserve_unknown: self.preserve_unknown,
            status: self.has_status,
            scale: self.scale.is_some(),
            selectable_fields: self.selectable_fields.clone(),
        }
    }

    /// The `openAPIV3Schema` of this version.
    pub fn open_api_schema(&self) -> &Value {
        &self.open_api
    }

    /// Changes whenever what is published about the resource does.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Turns a stored object into this version. What it lacks gets the defaults of the version it is stored in, as
    /// upstream has it.
    pub fn from_storage(&self, object: &mut Value) -> Result<(), Status> {
        if let Some(version) = self.versions.iter().find(|v| object["apiVersion"] == *v.api_version) {
            self.fit(object, &version.schema);
            if version.has_defaults {
                apimachinery::defaults::apply(object, &version.schema);
            }
        }
        self.convert(object, &self.api_version)
    }

    /// Turns an object into the version that is stored.
    pub fn to_storage(&self, object: &mut Value) -> Result<(), Status> {
        self.convert(object, &self.storage_api_version)
    }

    /// Leaves of an object what a schema knows.
    fn fit(&self, object: &mut Value, schema: &Schema) {
        if !self.preserve_unknown {
            apimachinery::prune::prune(object, schema);
            apimachinery::prune::nulls(object, schema);
        }
    }

    fn convert(&self, object: &mut Value, to: &str) -> Result<(), Status> {
        let from = object["apiVersion"].as_str().unwrap_or_default();
        if from == to {
            return Ok(());
        }
        self.change_version(object, to)?;
        if let Some(schema) = self.schema_of(to) {
            self.fit(object, schema);
        }
        Ok(())
    }

    fn change_version(&self, object: &mut Value, to: &str) -> Result<(), Status> {
        if let Some(conversion) = &self.conversion {
            *object = conversion.convert_blocking(object.take(), to)?;
            return Ok(());
        }
        object["apiVersion"] = json!(to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_are_numbers() {
        for (object, want) in [
            (json!({}), ""),
            (json!({"spec": null}), ""),
            (json!({"spec": {"n": 3}}), ""),
            (json!({"spec": {"n": -1}}), ".spec.n: Invalid value: -1: should be a non-negative integer"),
            (
                json!({"spec": {"n": 2_147_483_648u64}}),
                ".spec.n: Invalid value: 2147483648: should be less than or equal to 2147483647",
            ),
            (
                json!({"spec": {"n": 1.5}}),
                ".spec.n: Invalid value: 0: .spec.n accessor error: 1.5 is of the type float64, expected int64",
            ),
            (
                json!({"spec": "x"}),
                ".spec.n: Invalid value: 0: .spec.n accessor error: x is of the type string, expected \
                 map[string]interface{}",
            ),
        ] {
            let error = replicas(&object, "spec.n").map(|e| e.to_string()).unwrap_or_default();
            assert_eq!(error, want);
        }
    }

    #[test]
    fn new_finalizers_are_advised_on() {
        let object = |finalizers: &[&str]| json!({"metadata": {"finalizers": finalizers}});
        let new = object(&["b.c", "a", "a/b", "orphan"]);
        let told = |name: &str, path: &str| {
            format!(
                "metadata.finalizers: \"{name}\": prefer a domain-qualified finalizer name{path} to avoid accidental \
                 conflicts with other finalizer writers"
            )
        };
        let (a, b) = (told("a", ""), told("b.c", " including a path (/)"));
        assert_eq!(warn_of_finalizers(&new, None), [a.clone(), b]);
        assert_eq!(warn_of_finalizers(&new, Some(&object(&["b.c"]))), [a]);
    }
}
