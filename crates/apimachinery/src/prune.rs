//! Dropping what a schema does not know.

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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
