//! Dropping what a schema does not know, and nulls where it knows none.

use serde_json::Value;

use crate::schema::{Kind, Schema};
use crate::status::quote;

/// Removes unknown fields; answers `unknown field "path"` for each, up to a hundred.
pub fn prune(value: &mut Value, schema: &Schema) -> Vec<String> {
    let mut complaints = vec![];
    walk(value, schema, &mut String::new(), &mut complaints);
    complaints
}

fn walk(value: &mut Value, schema: &Schema, path: &mut String, complaints: &mut Vec<String>) {
    let length = path.len();
    let enter = |path: &mut String, name: &str| {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(name);
    };
    match (&schema.kind, value) {
        (Kind::Object(_), Value::Object(object)) => object.retain(|name, member| {
            enter(path, name);
            let keep = match schema.field(name) {
                Some(field) => {
                    walk(member, &field.schema, path, complaints);
                    true
                }
                None if schema.preserves_unknown() => true,
                None => {
                    if complaints.len() < 100 {
                        complaints.push(format!("unknown field {}", quote(path)));
                    }
                    false
                }
            };
            path.truncate(length);
            keep
        }),
        (Kind::Map(values), Value::Object(object)) => {
            for (name, member) in object {
                enter(path, name);
                walk(member, values, path, complaints);
                path.truncate(length);
            }
        }
        (Kind::List(items, _), Value::Array(list)) => {
            for (i, item) in list.iter_mut().enumerate() {
                path.push_str(&format!("[{i}]"));
                walk(item, items, path, complaints);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// Removes the members of a custom resource that are null although their schema neither allows that nor has a default to put
/// there. Elements of lists stay.
pub fn nulls(value: &mut Value, schema: &Schema) {
    let stays = |of: &Schema| !of.is_custom() || of.nullable() || of.default().is_some();
    // Metadata is read as its type.
    if !schema.is_custom() {
        return;
    }
    match (&schema.kind, value) {
        (Kind::Object(_), Value::Object(object)) => object.retain(|name, member| {
            let Some(field) = schema.field(name) else { return true };
            if member.is_null() {
                return stays(&field.schema);
            }
            nulls(member, &field.schema);
            true
        }),
        (Kind::Map(values), Value::Object(object)) => object.retain(|_, member| {
            if member.is_null() {
                return stays(values);
            }
            nulls(member, values);
            true
        }),
        (Kind::List(items, _), Value::Array(list)) => {
            for item in list {
                nulls(item, items);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nulls_go_where_none_are_allowed() {
        let text = json!({"type": "string"});
        let schema = Schema::custom(
            &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "text": text,
            "default": {"type": "string", "default": "x"},
            "nullable": {"type": "string", "nullable": true},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"text": text}},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "map": {"type": "object", "additionalProperties": text},
            "default_map": {"type": "object", "additionalProperties": {"type": "string", "default": "x"}},
            "open_map": {"type": "object", "additionalProperties": true},
            "list": {"type": "array", "items": {"type": "object", "properties": {"text": text}}}}}}}),
        );
        for (before, after) in [
            (json!({"text": null}), json!({})),
            (json!({"default": null, "nullable": null}), json!({"default": null, "nullable": null})),
            (json!({"free": {"text": null, "other": null}}), json!({"free": {"other": null}})),
            (json!({"any": null}), json!({})),
            (json!({"any": {"a": null}}), json!({"any": {"a": null}})),
            (json!({"map": {"a": null, "b": "c"}}), json!({"map": {"b": "c"}})),
            (json!({"default_map": {"a": null}}), json!({"default_map": {"a": null}})),
            (json!({"open_map": {"a": null}}), json!({"open_map": {"a": null}})),
            (json!({"list": [null, {"text": null}]}), json!({"list": [null, {}]})),
            (Value::Null, Value::Null),
        ] {
            let mut value = json!({"metadata": {"name": "x"}, "spec": before});
            nulls(&mut value, &schema);
            let spec = value.as_object_mut().unwrap().remove("spec").unwrap_or_default();
            assert_eq!(spec, after);
        }
    }

    #[test]
    fn prunes() {
        let schema = Schema::custom(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "items": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}}}}}}));
        let mut value = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x"}, "extra": 1,
            "spec": {"free": {"x": 1}, "items": [{"a": "b", "c": 1}]}});
        let complaints = prune(&mut value, &schema);
        assert_eq!(complaints, [r#"unknown field "extra""#, r#"unknown field "spec.items[0].c""#]);
        assert_eq!(
            value,
            json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x"},
                "spec": {"free": {"x": 1}, "items": [{"a": "b"}]}})
        );
    }
}
