//! When two values of the API mean the same: what is absent equals what is null or an empty list, and empty maps equal
//! absent ones where the member is known to be a map. Empty texts that mean nothing are gone since decoding; one that
//! is still there was chosen.

use serde_json::Value;

use crate::value::Read;

/// Whether both mean the same.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same_member(k, v, b.get_or_null(k)))
                && y.iter().all(|(k, v)| x.contains_key(k) || absent(k, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// Whether the member at a dotted path means the same in both.
pub fn same_at(a: &Value, b: &Value, path: &str) -> bool {
    let name = path.rsplit('.').next().unwrap_or(path);
    same_member(name, a.at(path), b.at(path))
}

fn same_member(name: &str, a: &Value, b: &Value) -> bool {
    if a == b || (absent(name, a) && absent(name, b)) {
        return true;
    }
    if is_resource_list(name)
        && let (Some(x), Some(y)) = (a.as_object(), b.as_object())
    {
        return x.len() == y.len()
            && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| crate::value::same_quantity(v, w)));
    }
    same(a, b)
}

fn is_empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        _ => false,
    }
}

fn absent(name: &str, v: &Value) -> bool {
    is_empty(v) || (v.as_object().is_some_and(serde_json::Map::is_empty) && is_map(name))
}

fn is_resource_list(name: &str) -> bool {
    matches!(
        name,
        "limits"
            | "requests"
            | "capacity"
            | "allocatable"
            | "hard"
            | "used"
            | "overhead"
            | "podFixed"
            | "allocatedResources"
    )
}

fn is_map(name: &str) -> bool {
    is_resource_list(name)
        || matches!(
            name,
            "labels"
                | "annotations"
                | "matchLabels"
                | "nodeSelector"
                | "data"
                | "stringData"
                | "binaryData"
                | "parameters"
        )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn compares_by_meaning() {
        for (a, b, want) in [
            (json!({}), json!({"a": null, "b": [], "labels": {}}), true),
            (json!({}), json!({"c": ""}), false),
            (json!({"emptyDir": {}}), json!({}), false),
            (json!({"replicas": 0}), json!({}), false),
            (json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "1000m"}}), true),
            (json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}}), false),
            (json!({"a": [1, 2]}), json!({"a": [2, 1]}), false),
        ] {
            assert_eq!(same(&a, &b), want, "{a} {b}");
            assert_eq!(same(&b, &a), want, "{b} {a}");
        }
    }
}
