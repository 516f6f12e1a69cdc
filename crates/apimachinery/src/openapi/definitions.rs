//! Types as OpenAPI definitions.

use serde_json::{Map, Value, json};

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
pub(super) fn special(flavor: Flavor, name: &str) -> Option<Value> {
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

pub(super) fn version_info() -> Value {
    let names = [
        "major",
        "minor",
        "gitVersion",
        "gitCommit",
        "gitTreeState",
        "buildDate",
        "goVersion",
        "compiler",
        "platform",
    ];
    let properties: Map<String, Value> =
        names.iter().map(|n| ((*n).into(), json!({"type": "string"}))).collect();
    json!({"type": "object", "properties": properties, "required": names})
}

/// The kinds a type is registered as.
fn kinds(schema: &Schema) -> Vec<Value> {
    schema::kinds()
        .iter()
        .filter(|(.., s)| std::ptr::eq(*s, schema))
        .map(|(group, version, kind, _)| json!({"group": group, "version": version, "kind": kind}))
        .collect()
}

pub(super) fn builtin(flavor: Flavor, schema: &Schema) -> Value {
    let mut out = Map::new();
    out.insert("type".into(), "object".into());
    let fields = schema.fields();
    if !fields.is_empty() {
        let mut properties: Map<String, Value> =
            fields.iter().map(|f| (f.name.clone().into_owned(), property(flavor, schema.name, f))).collect();
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
    Value::Object(out)
}

const API_VERSION: &str = "APIVersion defines which version of the type this object is written in; the server reads every version it serves.";
const KIND: &str = "Kind is the type of the object, in CamelCase; it cannot be changed.";
const OBJECT_META: &str = "Standard object's metadata: name, labels, owners and the like.";
const LIST_META: &str = "Standard list metadata: where the list was read and how to read on.";

/// What the fields of every object mean, for `kubectl explain`.
fn description(owner: &str, field: &Field) -> &'static str {
    match &*field.name {
        "apiVersion" if field.numbers[0] == 0 => API_VERSION,
        "kind" if field.numbers[0] == 0 => KIND,
        "metadata" if field.schema.name.ends_with(".ObjectMeta") => OBJECT_META,
        "metadata" if field.schema.name.ends_with(".ListMeta") => LIST_META,
        name if owner.ends_with("meta.v1.ObjectMeta") => match name {
            "annotations" => "Annotations are values under keys, kept for tools; they cannot be selected by.",
            "creationTimestamp" => {
                "CreationTimestamp is a timestamp of when the server created the object, in UTC."
            }
            "deletionGracePeriodSeconds" => {
                "Seconds the object has left to end by itself; set while it is being deleted."
            }
            "deletionTimestamp" => {
                "DeletionTimestamp is when the object will be removed; set once deletion was asked for."
            }
            "finalizers" => "The object is removed only when this list is empty.",
            "generateName" => "Prefix of the name that the server makes up where none is given.",
            "generation" => "Number of the desired state; it grows whenever that changes.",
            "labels" => "Labels are values under keys by which objects are organized and selected.",
            "managedFields" => "Who owns which fields.",
            "name" => "Name, unique among the objects of a resource in a namespace; it cannot be changed.",
            "namespace" => "Namespace the object lives in; empty for cluster-scoped objects.",
            "ownerReferences" => "Objects this one depends on; it is collected when all of them are gone.",
            "resourceVersion" => {
                "Opaque version of the object, for telling changes and for optimistic writes."
            }
            "selfLink" => "No longer set.",
            "uid" => "Identity of this object in time and space, set by the server.",
            _ => "",
        },
        _ => "",
    }
}

fn property(flavor: Flavor, owner: &str, field: &Field) -> Value {
    let mut out = inline(flavor, &field.schema, true);
    let description = description(owner, field);
    if !description.is_empty() {
        out.insert("description".into(), description.into());
    }
    if let Some(default) = field.default() {
        out.insert("default".into(), default);
    }
    if !field.patch_strategy.is_empty() {
        out.insert("x-kubernetes-patch-strategy".into(), field.patch_strategy.into());
    }
    if !field.patch_merge_key.is_empty() {
        out.insert("x-kubernetes-patch-merge-key".into(), field.patch_merge_key.into());
    }
    Value::Object(out)
}

/// A schema where it is used. References stand alone in version 3, so there they are wrapped.
fn inline(flavor: Flavor, schema: &Schema, property: bool) -> Map<String, Value> {
    let mut out = Map::new();
    if let Some(name) = named(schema) {
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
pub(super) fn custom(flavor: Flavor, resource: &CustomResource) -> Vec<(String, Value)> {
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
        add_embedded(flavor, &mut schema);
        if let Value::Object(schema) = schema {
            object.extend(schema);
        }
        let properties = object.entry("properties").or_insert_with(|| json!({}));
        if let Value::Object(properties) = properties {
            add_object_properties(flavor, properties);
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
            "apiVersion": {"type": "string", "description": API_VERSION},
            "kind": {"type": "string", "description": KIND},
            "metadata": metadata(flavor, "ListMeta", LIST_META),
            "items": {"type": "array", "items": items},
        },
        "x-kubernetes-group-version-kind": kind(&resource.list_kind),
    });
    vec![(name(&resource.kind), Value::Object(object)), (name(&resource.list_kind), list)]
}

fn add_object_properties(flavor: Flavor, properties: &mut Map<String, Value>) {
    properties.insert("metadata".into(), metadata(flavor, "ObjectMeta", OBJECT_META));
    properties.insert("apiVersion".into(), json!({"type": "string", "description": API_VERSION}));
    properties.insert("kind".into(), json!({"type": "string", "description": KIND}));
}

/// Objects within the object have a kind and metadata of their own.
fn add_embedded(flavor: Flavor, schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(|p| add_embedded(flavor, p));
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(name) {
            add_embedded(flavor, inner);
        }
    }
    let truth = |name: &str| object.get(name) == Some(&Value::Bool(true));
    if !truth("x-kubernetes-embedded-resource")
        || flavor == Flavor::V2 && truth("x-kubernetes-preserve-unknown-fields")
    {
        return;
    }
    if let Value::Object(properties) = object.entry("properties").or_insert_with(|| json!({})) {
        add_object_properties(flavor, properties);
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
