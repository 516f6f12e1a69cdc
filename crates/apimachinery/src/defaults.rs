//! Defaults that schemas declare. Built-in types have few; custom resources rely on them.

use serde_json::Value;

use crate::schema::{Kind, Schema};

/// Sets what is absent (or null where null is not allowed) to its declared default, from the outside in.
pub fn apply(value: &mut Value, schema: &Schema) {
    match (&schema.kind, value) {
        (Kind::Object(fields), Value::Object(object)) => {
            for field in fields.iter() {
                let unset = match object.get(&*field.name) {
                    None => true,
                    Some(Value::Null) => !field.schema.nullable(),
                    Some(_) => false,
                };
                if unset && let Some(default) = field.default() {
                    object.insert(field.name.clone().into_owned(), default);
                }
                if let Some(member) = object.get_mut(&*field.name) {
                    apply(member, &field.schema);
                }
            }
        }
        (Kind::Map(values), Value::Object(object)) => {
            for member in object.values_mut() {
                if member.is_null()
                    && !values.nullable()
                    && let Some(default) = values.default()
                {
                    *member = default.clone();
                }
                apply(member, values);
            }
        }
        (Kind::List(items, _), Value::Array(list)) => {
            for item in list {
                if item.is_null()
                    && !items.nullable()
                    && let Some(default) = items.default()
                {
                    *item = default.clone();
                }
                apply(item, items);
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
    fn applies() {
        let schema = Schema::custom(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "default": {}, "properties": {
                "size": {"type": "integer", "default": 3},
                "mode": {"type": "string", "nullable": true, "default": "x"},
                "items": {"type": "array", "items": {"type": "object", "properties": {
                    "a": {"type": "string", "default": "b"}}}}}}}}));
        for (before, after) in [
            (json!({}), json!({"spec": {"size": 3, "mode": "x"}})),
            (json!({"spec": {"size": null, "mode": null}}), json!({"spec": {"size": 3, "mode": null}})),
            (
                json!({"spec": {"size": 1, "mode": "y", "items": [{}]}}),
                json!({"spec": {"size": 1, "mode": "y", "items": [{"a": "b"}]}}),
            ),
        ] {
            let mut value = before;
            apply(&mut value, &schema);
            assert_eq!(value, after);
        }
    }
}
