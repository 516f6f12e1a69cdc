//! The difference between two statuses as a strategic merge patch: only what changed, and only what is the
//! kubelet's own, so that others' conditions stay.

use serde_json::{Map, Value, json};

/// The patch that turns `old` into `new`, or `None` where they say the same.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    let (old, new) = (plain(old), plain(new));
    let empty = Map::new();
    let old = old.as_object().unwrap_or(&empty);
    let new = new.as_object().unwrap_or(&empty);
    let mut patch = Map::new();
    for (field, value) in new {
        let was = old.get(field);
        if was == Some(value) {
            continue;
        }
        match field.as_str() {
            "conditions" => {
                let changed = changed_conditions(was, value);
                if !changed.is_empty() {
                    patch.insert(field.clone(), Value::Array(changed));
                }
            }
            // Merged by their address otherwise, which would keep the old ones.
            "podIPs" | "hostIPs" => {
                let mut list = value.as_array().cloned().unwrap_or_default();
                if was.is_some() {
                    list.push(json!({"$patch": "replace"}));
                }
                patch.insert(field.clone(), Value::Array(list));
            }
            _ => {
                patch.insert(field.clone(), value.clone());
            }
        }
    }
    for field in old.keys() {
        if !new.contains_key(field) {
            patch.insert(field.clone(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// Without what says nothing: absent, null and empty are one and the same in the API.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(k, v)| (k.clone(), plain(v))).filter(|(_, v)| {
                !(v.is_null()
                    || v.as_object().is_some_and(Map::is_empty)
                    || v.as_array().is_some_and(Vec::is_empty))
            });
            Value::Object(kept.collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(plain).collect()),
        other => other.clone(),
    }
}

fn changed_conditions(old: Option<&Value>, new: &Value) -> Vec<Value> {
    let old = old.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut changed = Vec::new();
    for condition in new.as_array().into_iter().flatten() {
        let was = old.iter().find(|c| c["type"] == condition["type"]);
        if was == Some(condition) {
            continue;
        }
        let mut condition = condition.clone();
        if let (Some(was), Some(now)) = (was.and_then(Value::as_object), condition.as_object_mut()) {
            for key in was.keys() {
                now.entry(key.clone()).or_insert(Value::Null);
            }
        }
        changed.push(condition);
    }
    for was in &old {
        // Others' conditions are in both; one that is missing is an own one that ended.
        if !new.as_array().is_some_and(|n| n.iter().any(|c| c["type"] == was["type"])) {
            changed.push(json!({"$patch": "delete", "type": was["type"]}));
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed() {
        let old = json!({"phase": "Pending", "reason": "x", "conditions": [
            {"type": "Ready", "status": "False", "reason": "r"}, {"type": "Other", "status": "True"}]});
        let new = json!({"phase": "Pending", "podIPs": [{"ip": "1"}], "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]});
        assert_eq!(
            difference(&old, &new).unwrap(),
            json!({"reason": null, "podIPs": [{"ip": "1"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}]})
        );
        assert_eq!(difference(&new, &new), None);
        assert_eq!(difference(&json!({"a": {"b": {}}, "c": null}), &json!({})), None);
    }
}
