//! Whether an applied configuration is of its type, told as structured-merge-diff does.

use std::collections::HashSet;

use serde_json::Value;

use super::set;
use super::walk::{Shape, elements, shape};
use crate::go;
use crate::schema::{Kind, ListType, Schema};

/// What is wrong with `config`, if anything.
pub fn check(config: &Value, schema: &Schema) -> Result<(), String> {
    let mut errors = vec![];
    walk(config, schema, "", &mut errors);
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(format!("errors:\n  {}", errors.join("\n  "))),
    }
}

fn walk(value: &Value, schema: &Schema, path: &str, errors: &mut Vec<String>) {
    if value.is_null() {
        return;
    }
    let mut unexpected =
        |wanted: &str, got: String| errors.push(format!("{path}: expected {wanted}, got {got}"));
    match (&schema.kind, value) {
        (Kind::Object(_), Value::Object(members)) => {
            for (name, value) in members {
                let path = format!("{path}.{name}");
                match schema.field(name) {
                    Some(field) => walk(value, &field.schema, &path, errors),
                    // What declares nothing takes anything, which is dropped later.
                    None if schema.preserves_unknown()
                        || schema.is_custom() && schema.fields().is_empty() => {}
                    None => errors.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        (Kind::Map(values), Value::Object(members)) => {
            for (name, value) in members {
                walk(value, values, &format!("{path}.{name}"), errors);
            }
        }
        (Kind::Object(_) | Kind::Map(_), other) => unexpected("map", format!("&{{{}}}", go::plain(other))),
        (Kind::List(items, kind), Value::Array(list)) => {
            walk_list(value, list, items, kind, schema, path, errors)
        }
        (Kind::List(..), other) => unexpected("list", format!("&{{{}}}", go::plain(other))),
        (Kind::String | Kind::Bytes | Kind::Time | Kind::MicroTime | Kind::Duration, other)
            if !other.is_string() =>
        {
            unexpected("string", format!("&value.valueUnstructured{{Value:{other}}}"));
        }
        (Kind::Int32 | Kind::Int64 | Kind::Double, other) if !other.is_number() => {
            let kind = match other {
                Value::Array(_) => "[]interface {}",
                Value::Object(_) => "map[string]interface {}",
                other => go::kind(other),
            };
            unexpected("numeric (int or float)", kind.to_owned());
        }
        (Kind::Bool, other) if !other.is_boolean() => {
            unexpected("boolean", format!("&{{{}}}", go::plain(other)));
        }
        _ => {}
    }
}

fn walk_list(
    value: &Value,
    list: &[Value],
    items: &Schema,
    kind: &ListType,
    schema: &Schema,
    path: &str,
    errors: &mut Vec<String>,
) {
    let shape = shape(Some(schema), value);
    let named = match shape {
        Shape::Leaf | Shape::Object(_) => {
            for (i, item) in list.iter().enumerate() {
                walk(item, items, &format!("{path}[{i}]"), errors);
            }
            return;
        }
        Shape::Set | Shape::Keyed(..) => elements(shape, list),
    };
    if let ListType::Map(keys) = kind {
        for (i, item) in list.iter().enumerate() {
            if item.is_object() && elements(shape, std::slice::from_ref(item)).is_empty() {
                errors.push(format!(
                    "{path}: element {i}: associative list with keys has an element that omits key field {:?} (and \
                     doesn't have default value)",
                    keys.first().map_or("", |k| k)
                ));
            } else if !item.is_object() {
                errors.push(format!(
                    "{path}: element {i}: associative list with keys may not have non-map elements"
                ));
            }
        }
    }
    let mut seen = HashSet::new();
    for (element, item, _) in named {
        let shown = set::paths(&[(element.clone(), Value::Object(Default::default()))].into_iter().collect());
        let shown = shown.concat();
        if !seen.insert(element) {
            errors.push(format!("{path}: duplicate entries for key {shown}"));
            continue;
        }
        walk(item, items, &format!("{path}{shown}"), errors);
    }
}
