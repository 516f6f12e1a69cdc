//! OpenAPI schemas as declarations: what expressions see of custom resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::schema::{Kind, ListType as TableListType, Schema};
use serde_json::{Value, json};

use crate::types::{Decl, DeclKind, ListType, Object, ObjectField, escape};

/// The largest request the server takes, which bounds what schemas leave open.
const REQUEST_BYTES_MAX: u64 = 3 << 20;
const DURATION_MAX: u64 = 32;
const DATE: u64 = 12;
const TIME_MAX: u64 = 32;
/// Deeper schemas are not looked into.
const DEPTH_MAX: usize = 100;

/// The declaration of a schema; `None` where expressions see nothing of it. `root` is for the root of a resource,
/// which has a kind and a name whether the schema says so or not. `name` is what an object type is called.
pub fn declare(schema: &Value, root: bool, name: &str) -> Option<Arc<Decl>> {
    declare_at(schema, root, name, 0, escape)
}

/// The declaration of something that Kubernetes describes by itself, such as a request: expressions spell its fields as
/// they are, where those of resources are escaped.
pub fn declare_plain(schema: &Value, name: &str) -> Option<Arc<Decl>> {
    declare_at(schema, false, name, 0, |field| Some(field.to_owned()))
}

/// How expressions spell the name of a field; `None` where they cannot.
type Spelling = fn(&str) -> Option<String>;

fn flag(schema: &Value, name: &str) -> bool {
    schema[name] == true
}

/// Whether the schema is the root of a resource of its own.
pub(crate) fn embedded(schema: &Value) -> bool {
    flag(schema, "x-kubernetes-embedded-resource")
}

fn declare_at(schema: &Value, root: bool, name: &str, depth: usize, spell: Spelling) -> Option<Arc<Decl>> {
    if depth > DEPTH_MAX {
        return None;
    }
    let count = |name: &str| schema[name].as_i64().map(|n| u64::try_from(n).unwrap_or(0));
    let made = |kind: DeclKind, max_elements: u64, min_size: u64| {
        Some(Arc::new(Decl { kind, nullable: flag(schema, "nullable"), max_elements, min_size }))
    };
    if flag(schema, "x-kubernetes-int-or-string") {
        let max = count("maxLength").map_or(REQUEST_BYTES_MAX - 2, |n| n.saturating_mul(4));
        return made(DeclKind::Dyn, max, 1);
    }
    match schema["type"].as_str()? {
        "array" => {
            let items = &schema["items"];
            if !items.is_object() {
                return None;
            }
            let element = declare_at(items, embedded(items), &format!("{name}.@idx"), depth + 1, spell)?;
            let max = count("maxItems").unwrap_or((REQUEST_BYTES_MAX - 2) / (element.min_size + 1));
            let list_type = match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => ListType::Map(
                    schema["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|k| k.as_str().map(str::to_owned))
                        .collect(),
                ),
                _ => ListType::Atomic,
            };
            made(DeclKind::List(element, list_type), max, 2)
        }
        "object" => {
            let additional = &schema["additionalProperties"];
            if additional.is_object() && !root {
                let value =
                    declare_at(additional, embedded(additional), &format!("{name}.@elem"), depth + 1, spell)?;
                let max = count("maxProperties").unwrap_or((REQUEST_BYTES_MAX - 2) / (value.min_size + 6));
                return made(DeclKind::Map(value), max, 2);
            }
            let (fields, min_size) = declare_fields(schema, root, name, depth, spell);
            made(DeclKind::Object(Arc::new(Object { name: name.into(), fields })), 0, min_size)
        }
        "string" => {
            let max = count("maxLength");
            match schema["format"].as_str().unwrap_or_default() {
                "byte" => made(DeclKind::Bytes, max.unwrap_or(REQUEST_BYTES_MAX - 2), 2),
                "duration" => made(DeclKind::Duration, DURATION_MAX, 3),
                "date" => made(DeclKind::Timestamp, DATE, DATE),
                "date-time" => made(DeclKind::Timestamp, TIME_MAX, 21),
                _ => {
                    let longest = || {
                        let allowed = schema["enum"].as_array().filter(|a| !a.is_empty())?;
                        allowed.iter().filter_map(|v| v.as_str().map(|s| s.len() as u64)).max().or(Some(0))
                    };
                    let max =
                        max.map(|n| n.saturating_mul(4)).or_else(longest).unwrap_or(REQUEST_BYTES_MAX - 2);
                    made(DeclKind::String, max, 2)
                }
            }
        }
        "boolean" => made(DeclKind::Bool, 0, 4),
        "number" => made(DeclKind::Double, 0, 1),
        "integer" => made(DeclKind::Int, 0, 1),
        _ => None,
    }
}

fn declare_fields(
    schema: &Value,
    root: bool,
    name: &str,
    depth: usize,
    spell: Spelling,
) -> (BTreeMap<String, ObjectField>, u64) {
    let mut fields = BTreeMap::new();
    let mut min_size = 2;
    let required =
        |property: &str| schema["required"].as_array().is_some_and(|r| r.iter().any(|n| n == property));
    let text = json!({"type": "string"});
    let metadata = json!({"type": "object", "properties": {"name": text, "generateName": text}});
    let own = schema["properties"].as_object();
    let given = own.into_iter().flatten().map(|(n, p)| (n.as_str(), p));
    let added = [("kind", &text), ("apiVersion", &text), ("metadata", &metadata)];
    let complete = root && has_type_and_name(schema);
    let given = given.filter(|(n, _)| !root || complete || !added.iter().any(|(a, _)| a == n));
    let added = added.into_iter().filter(|_| root && !complete);
    for (property, inner) in given.chain(added) {
        let inner_name = spell(property).map(|e| format!("{name}.{e}")).unwrap_or_default();
        let Some(decl) = declare_at(inner, embedded(inner), &inner_name, depth + 1, spell) else { continue };
        if required(property) && inner.get("default").is_none() {
            min_size += property.len() as u64 + decl.min_size + 4;
        }
        if let Some(escaped) = spell(property) {
            fields.insert(escaped, ObjectField { name: property.to_owned(), decl });
        }
    }
    (fields, min_size)
}

fn has_type_and_name(schema: &Value) -> bool {
    let properties = &schema["properties"];
    let meta = &properties["metadata"]["properties"];
    properties["kind"]["type"] == "string"
        && properties["apiVersion"]["type"] == "string"
        && properties["metadata"]["type"] == "object"
        && meta["name"]["type"] == "string"
        && meta["generateName"]["type"] == "string"
}

/// The declaration of a built-in type, as the table of types describes it. `name` is what it is called.
pub fn of_type(schema: &Schema, name: &str) -> Arc<Decl> {
    of_type_within(schema, name, &mut Vec::new())
}

fn of_type_within(schema: &Schema, name: &str, around: &mut Vec<&'static str>) -> Arc<Decl> {
    let made = |kind: DeclKind| {
        Arc::new(Decl { kind, nullable: schema.nullable(), max_elements: REQUEST_BYTES_MAX, min_size: 1 })
    };
    let element =
        |inner: &Schema, name: String, around: &mut Vec<&'static str>| of_type_within(inner, &name, around);
    match &schema.kind {
        Kind::Object(fields) if !schema.preserves_unknown() => {
            // Types that hold themselves are not followed further.
            if !schema.name.is_empty() && around.contains(&schema.name) {
                return made(DeclKind::Dyn);
            }
            around.push(schema.name);
            let mut out = BTreeMap::new();
            for field in fields.iter() {
                if let Some(escaped) = escape(&field.name) {
                    let decl = of_type_within(&field.schema, &format!("{name}.{escaped}"), around);
                    out.insert(escaped, ObjectField { name: field.name.to_string(), decl });
                }
            }
            around.pop();
            made(DeclKind::Object(Arc::new(Object { name: name.into(), fields: out })))
        }
        Kind::Map(value) => made(DeclKind::Map(element(value, format!("{name}.@elem"), around))),
        Kind::List(item, list_type) => {
            let list_type = match list_type {
                TableListType::Atomic => ListType::Atomic,
                TableListType::Set => ListType::Set,
                TableListType::Map(keys) => ListType::Map(keys.iter().map(ToString::to_string).collect()),
            };
            made(DeclKind::List(element(item, format!("{name}.@idx"), around), list_type))
        }
        Kind::String | Kind::Quantity | Kind::Duration => made(DeclKind::String),
        Kind::Bool => made(DeclKind::Bool),
        Kind::Int32 | Kind::Int64 => made(DeclKind::Int),
        Kind::Double => made(DeclKind::Double),
        Kind::Bytes => made(DeclKind::Bytes),
        Kind::Time | Kind::MicroTime => made(DeclKind::Timestamp),
        _ => made(DeclKind::Dyn),
    }
}
