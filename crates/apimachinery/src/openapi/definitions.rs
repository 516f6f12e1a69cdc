//! Types as OpenAPI definitions.

use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::{CustomResource, Flavor, META};
use crate::schema::{self, Field, Kind, ListType, Schema};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// The name of the definition a schema refers to, for types that have one.
fn named(schema: &Schema) -> Option<String> {
    Some(match &schema.kind {
        Kind::Object(_) if !schema.name.is_empty() => schema.name.to_owned(),
        Kind::Quantity => QUANTITY.into(),
        Kind::IntOrString => INT_OR_STRING.into(),
        Kind::Raw => RAW.into(),
        Kind::Time => format!("{META}Time"),
        Kind::MicroTime => format!("{META}MicroTime"),
        Kind::FieldsV1 => format!("{META}FieldsV1"),
        Kind::Any => format!("{EXTENSIONS}JSON"),
        Kind::SchemaOrArray => format!("{EXTENSIONS}JSONSchemaPropsOrArray"),
        Kind::SchemaOrBool => format!("{EXTENSIONS}JSONSchemaPropsOrBool"),
        Kind::SchemaOrStringArray => format!("{EXTENSIONS}JSONSchemaPropsOrStringArray"),
        _ => return None,
    })
}

/// The definitions that a type's fields refer to.
pub(super) fn references(schema: &Schema, out: &mut Vec<String>) {
    for field in schema.fields() {
        let mut inner: &Schema = &field.schema;
        while let Some(next) = inner.items().or(inner.additional()) {
            inner = next;
        }
        out.extend(named(inner));
    }
}

/// Definitions that are no structs.
pub(super) fn special(flavor: Flavor, facts: &Facts, name: &str) -> Option<Value> {
    let mut out = shape(flavor, name)?;
    if let Value::Object(out) = &mut out {
        describe(out, facts, name);
    }
    Some(out)
}

fn shape(flavor: Flavor, name: &str) -> Option<Value> {
    Some(match name {
        QUANTITY if flavor == Flavor::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        QUANTITY => json!({"type": "string"}),
        INT_OR_STRING if flavor == Flavor::V3 => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        INT_OR_STRING => json!({"type": "string", "format": "int-or-string"}),
        RAW => json!({"type": "object"}),
        _ => match name.strip_prefix(META) {
            Some("Time" | "MicroTime") => json!({"type": "string", "format": "date-time"}),
            Some("FieldsV1" | "Patch") => json!({"type": "object"}),
            Some(_) => return None,
            None if name.starts_with(EXTENSIONS) => json!({}),
            None => return None,
        },
    })
}

/// The kinds a type is registered as.
fn kinds(schema: &Schema) -> Vec<Value> {
    schema::kinds()
        .iter()
        .filter(|(.., s)| std::ptr::eq(*s, schema))
        .map(|(group, version, kind, _)| json!({"group": group, "version": version, "kind": kind}))
        .collect()
}

/// Groups and versions that are registered beside those with resources: of reviews, of configuration, of times past.
const REGISTERED: &[(&str, &[&str])] = &[
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1beta1"]),
    ("apiregistration.k8s.io", &["v1beta1"]),
    ("apps", &["v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1beta1"]),
    ("batch", &["v1beta1"]),
    ("discovery.k8s.io", &["v1beta1"]),
    ("events.k8s.io", &["v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("node.k8s.io", &["v1alpha1", "v1beta1"]),
    ("policy", &["v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1alpha1", "v1beta1"]),
    ("scheduling.k8s.io", &["v1beta1"]),
    ("storage.k8s.io", &["v1alpha1"]),
];

/// Every group and version that has kinds.
pub(super) fn all_registered() -> Vec<(&'static str, &'static str)> {
    let beside = REGISTERED.iter().flat_map(|(group, versions)| versions.iter().map(move |v| (*group, *v)));
    crate::resources::all().iter().map(|r| (r.group, r.version)).chain(beside).collect()
}

/// Says that a definition is a kind of these groups and versions, and of the core group.
pub(super) fn registered(definition: &mut Value, kind: &str, of: &[(&str, &str)]) {
    let mut all: Vec<(&str, &str)> = [("", "v1")].iter().chain(of).copied().collect();
    all.sort_unstable();
    all.dedup();
    let all = all.into_iter().map(|(g, v)| json!({"group": g, "version": v, "kind": kind}));
    definition["x-kubernetes-group-version-kind"] = all.collect();
}

pub(super) fn builtin(flavor: Flavor, facts: &Facts, schema: &Schema) -> Value {
    let mut out = Map::new();
    describe(&mut out, facts, schema.name);
    out.insert("type".into(), "object".into());
    let fields = schema.fields();
    if !fields.is_empty() {
        let mut properties: Map<String, Value> = fields
            .iter()
            .map(|f| (f.name.clone().into_owned(), property(flavor, facts, schema.name, f)))
            .collect();
        if schema.name.ends_with("List")
            && let Some(Value::Object(items)) = properties.get_mut("items")
        {
            items.remove("x-kubernetes-list-type");
        }
        out.insert("properties".into(), Value::Object(properties));
    }
    let required: Vec<&str> = fields.iter().filter(|f| f.required()).map(|f| &*f.name).collect();
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
    let kinds = kinds(schema);
    if !kinds.is_empty() {
        out.insert("x-kubernetes-group-version-kind".into(), kinds.into());
    }
    if schema.atomic() {
        out.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if let Some(unions) = facts.of(schema.name, "").and_then(|f| f.unions.clone()) {
        out.insert("x-kubernetes-unions".into(), unions);
    }
    Value::Object(out)
}

fn describe(out: &mut Map<String, Value>, facts: &Facts, name: &str) {
    let description = facts.description(name, "");
    if !description.is_empty() {
        out.insert("description".into(), description.into());
    }
}

const LIST_META: &str = "Standard list metadata: where the list was read and how to read on.";
/// A type whose members every object has.
const ANY_OBJECT: &str = "io.k8s.api.core.v1.ConfigMap";

/// What a field is for; the lists have no words of their own.
fn description<'a>(facts: &'a Facts, owner: &str, field: &Field) -> &'a str {
    match &*field.name {
        "metadata" if field.schema.name.ends_with(".ListMeta") => LIST_META,
        name @ ("apiVersion" | "kind") if owner.ends_with("List") => facts.description(ANY_OBJECT, name),
        name => facts.description(owner, name),
    }
}

fn property(flavor: Flavor, facts: &Facts, owner: &str, field: &Field) -> Value {
    let mut out = inline(flavor, &field.schema, true);
    let fact = facts.of(owner, &field.name);
    let description = description(facts, owner, field);
    if !description.is_empty() {
        let mut description = description.to_owned();
        let values = fact.map(|f| f.values.as_slice()).unwrap_or_default();
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(|v| format!(" - `\"{v}\"`")).collect();
            description = format!("{description}\n\nPossible enum values:\n{}", values.join("\n"));
        }
        out.insert("description".into(), description.into());
    }
    let beyond = || fact.and_then(|f| f.default.clone()).or_else(|| field.zero());
    if flavor == Flavor::V3
        && let Some(default) = field.default().or_else(beyond)
    {
        out.insert("default".into(), default);
    }
    if let Some(values) = fact.map(|f| &f.values).filter(|v| !v.is_empty()) {
        let mut innermost = &mut out;
        loop {
            let inner = if innermost.contains_key("items") { "items" } else { "additionalProperties" };
            match innermost.get(inner) {
                Some(Value::Object(_)) => innermost = innermost[inner].as_object_mut().expect("just seen"),
                _ => break,
            }
        }
        innermost.insert("enum".into(), values.as_slice().into());
    }
    if !field.patch_strategy.is_empty() {
        out.insert("x-kubernetes-patch-strategy".into(), field.patch_strategy.into());
    }
    if !field.patch_merge_key.is_empty() {
        out.insert("x-kubernetes-patch-merge-key".into(), field.patch_merge_key.into());
    }
    if out.len() == 1
        && let Some(Value::Array(mut alone)) = out.remove("allOf")
    {
        return alone.pop().unwrap_or_default();
    }
    Value::Object(out)
}

/// A schema where it is used. References stand alone in version 3, so there they are wrapped.
fn inline(flavor: Flavor, schema: &Schema, property: bool) -> Map<String, Value> {
    let mut out = Map::new();
    if let Some(name) = named(schema) {
        if schema.granular() {
            out.insert("x-kubernetes-map-type".into(), "granular".into());
        }
        let reference = json!({"$ref": flavor.reference(&name)});
        match flavor {
            Flavor::V3 if property => {
                out.insert("allOf".into(), json!([reference]));
            }
            _ => {
                out.insert("$ref".into(), reference["$ref"].clone());
            }
        }
        return out;
    }
    let (kind, format) = match &schema.kind {
        Kind::List(items, list) => {
            out.insert("items".into(), Value::Object(inline(flavor, items, false)));
            match list {
                // A message of its own in protobuf: a named type in Go, of which nothing is said.
                _ if schema.message() => {}
                ListType::Atomic => {
                    out.insert("x-kubernetes-list-type".into(), "atomic".into());
                }
                ListType::Set => {
                    out.insert("x-kubernetes-list-type".into(), "set".into());
                }
                ListType::Map(keys) => {
                    out.insert("x-kubernetes-list-type".into(), "map".into());
                    let keys: Vec<&str> = keys.iter().map(|k| &**k).collect();
                    out.insert("x-kubernetes-list-map-keys".into(), keys.into());
                }
            }
            ("array", "")
        }
        Kind::Map(values) => {
            out.insert("additionalProperties".into(), Value::Object(inline(flavor, values, false)));
            if schema.atomic() {
                out.insert("x-kubernetes-map-type".into(), "atomic".into());
            } else if schema.granular() {
                out.insert("x-kubernetes-map-type".into(), "granular".into());
            }
            ("object", "")
        }
        Kind::Bool => ("boolean", ""),
        Kind::Int32 => ("integer", "int32"),
        Kind::Int64 => ("integer", "int64"),
        Kind::Double => ("number", "double"),
        Kind::Bytes => ("string", "byte"),
        Kind::Object(_) => ("object", ""),
        _ => ("string", ""),
    };
    out.insert("type".into(), kind.into());
    if !format.is_empty() {
        out.insert("format".into(), format.into());
    }
    out
}

/// `com.example.v1.Foo`: the group reversed.
pub fn custom_definition_name(group: &str, version: &str, kind: &str) -> String {
    let group: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", group.join("."))
}

fn metadata(flavor: Flavor, name: &str, description: &str) -> Value {
    let reference = flavor.reference(&format!("{META}{name}"));
    match flavor {
        Flavor::V2 => json!({"$ref": reference, "description": description}),
        Flavor::V3 => json!({"allOf": [{"$ref": reference}], "description": description}),
    }
}

/// The definitions of a custom resource and of its list.
pub(super) fn custom(flavor: Flavor, facts: &Facts, resource: &CustomResource) -> Vec<(String, Value)> {
    let kind = |kind: &str| json!([{"group": resource.group, "version": resource.version, "kind": kind}]);
    let mut object = Map::new();
    object.insert("type".into(), "object".into());
    let open = resource.preserve_unknown || resource.schema["x-kubernetes-preserve-unknown-fields"] == true;
    // Version 2 says nothing of objects that take anything.
    if let Value::Object(_) = &resource.schema
        && !(flavor == Flavor::V2 && open)
    {
        let mut schema = resource.schema.clone();
        if flavor == Flavor::V2 {
            plain(&mut schema);
        }
        add_embedded(flavor, facts, &mut schema);
        if let Value::Object(schema) = schema {
            object.extend(schema);
        }
        let properties = object.entry("properties").or_insert_with(|| json!({}));
        if let Value::Object(properties) = properties {
            add_object_properties(flavor, facts, properties);
        }
    }
    object.insert("x-kubernetes-group-version-kind".into(), kind(&resource.kind));
    if !resource.selectable_fields.is_null() {
        object.insert("x-kubernetes-selectable-fields".into(), resource.selectable_fields.clone());
    }
    let name = |kind: &str| custom_definition_name(&resource.group, &resource.version, kind);
    let items = json!({"$ref": flavor.reference(&name(&resource.kind))});
    let list = json!({
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": facts.description(ANY_OBJECT, "apiVersion")},
            "kind": {"type": "string", "description": facts.description(ANY_OBJECT, "kind")},
            "metadata": metadata(flavor, "ListMeta", LIST_META),
            "items": {"type": "array", "items": items},
        },
        "x-kubernetes-group-version-kind": kind(&resource.list_kind),
    });
    vec![(name(&resource.kind), Value::Object(object)), (name(&resource.list_kind), list)]
}

fn add_object_properties(flavor: Flavor, facts: &Facts, properties: &mut Map<String, Value>) {
    properties
        .insert("metadata".into(), metadata(flavor, "ObjectMeta", facts.description(ANY_OBJECT, "metadata")));
    properties.insert(
        "apiVersion".into(),
        json!({"type": "string", "description": facts.description(ANY_OBJECT, "apiVersion")}),
    );
    properties.insert(
        "kind".into(),
        json!({"type": "string", "description": facts.description(ANY_OBJECT, "kind")}),
    );
}

/// Objects within the object have a kind and metadata of their own.
fn add_embedded(flavor: Flavor, facts: &Facts, schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(|p| add_embedded(flavor, facts, p));
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(name) {
            add_embedded(flavor, facts, inner);
        }
    }
    let truth = |name: &str| object.get(name) == Some(&Value::Bool(true));
    if !truth("x-kubernetes-embedded-resource")
        || flavor == Flavor::V2 && truth("x-kubernetes-preserve-unknown-fields")
    {
        return;
    }
    if let Value::Object(properties) = object.entry("properties").or_insert_with(|| json!({})) {
        add_object_properties(flavor, facts, properties);
    }
    if let Value::Array(required) = object.entry("required").or_insert_with(|| json!([])) {
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|r| r == name) {
                required.push(name.into());
            }
        }
    }
}

/// Takes from a version 3 schema what version 2 and its clients do not know.
fn plain(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    for name in ["allOf", "oneOf", "anyOf", "not"] {
        object.remove(name);
    }
    let truth = |object: &Map<String, Value>, name: &str| object.get(name) == Some(&Value::Bool(true));
    if truth(object, "nullable") {
        for name in ["type", "nullable", "items", "properties"] {
            object.remove(name);
        }
    }
    if truth(object, "x-kubernetes-preserve-unknown-fields") {
        object.remove("items");
        object.remove("properties");
        if object.get("type").is_some_and(|t| t == "object") {
            object.remove("type");
        }
    }
    if object.get("type").is_some_and(|t| t == "array") && !object.contains_key("items") {
        object.remove("type");
    }
    let nullable: Vec<String> = object
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(_, p)| p["nullable"] == true)
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(Value::Array(required)) = object.get_mut("required") {
        required.retain(|r| !nullable.iter().any(|n| r == n));
        if required.is_empty() {
            object.remove("required");
        }
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(plain);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(name) {
            plain(inner);
        }
    }
}
