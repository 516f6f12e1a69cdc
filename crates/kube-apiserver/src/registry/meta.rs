//! Small reads and changes of an object's metadata.

use serde_json::{Map, Value};

pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let members = object.as_object_mut().expect("an object, as just ensured");
    let metadata = members.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("an object, as just ensured")
}

pub fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    metadata(object).insert(field.to_owned(), value.into());
}

pub fn clear(object: &mut Value, field: &str) -> Option<Value> {
    metadata(object).remove(field)
}

/// Takes out what nobody says of an object that is yet to be made.
pub fn wipe_system_fields(metadata: &mut Map<String, Value>) {
    for name in ["selfLink", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        metadata.remove(name);
    }
}

/// The resource version an object carries, where it is a positive number.
pub fn resource_version(object: &Value) -> Option<u64> {
    text(object, "resourceVersion").parse().ok().filter(|v| *v > 0)
}

pub fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

pub fn finalizers(object: &Value) -> Vec<String> {
    object["metadata"]["finalizers"]
        .as_array()
        .map(|all| all.iter().filter_map(|f| f.as_str().map(str::to_owned)).collect())
        .unwrap_or_default()
}

/// Whether two states of an object say the same, resource version and the times of managed fields aside.
pub fn same(a: &Value, b: &Value) -> bool {
    same_members(a, b, |key, x, y| match (key, x, y) {
        ("metadata", Some(x), Some(y)) => same_members(x, y, |key, x, y| match (key, x, y) {
            ("resourceVersion", _, _) => true,
            ("managedFields", Some(x), Some(y)) => same_managers(x, y),
            _ => x == y,
        }),
        _ => x == y,
    })
}

fn same_managers(a: &Value, b: &Value) -> bool {
    match (a.as_array(), b.as_array()) {
        (Some(a), Some(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(x, y)| same_members(x, y, |key, x, y| key == "time" || x == y))
        }
        _ => a == b,
    }
}

/// Compares two objects member by member; `same` also decides on members that only one of them has.
fn same_members(a: &Value, b: &Value, same: impl Fn(&str, Option<&Value>, Option<&Value>) -> bool) -> bool {
    match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            a.iter().all(|(k, x)| same(k, Some(x), b.get(k)))
                && b.iter().all(|(k, y)| a.contains_key(k) || same(k, None, Some(y)))
        }
        _ => a == b,
    }
}

/// Leaves out owners that are named twice, and tells their identities.
pub fn distinct_owners(metadata: &mut Map<String, Value>) -> Option<String> {
    let owners = metadata.get_mut("ownerReferences")?.as_array_mut()?;
    let mut duplicates: Vec<String> = vec![];
    let mut at = 1;
    while at < owners.len() {
        if owners[..at].contains(&owners[at]) {
            let uid = owners.remove(at)["uid"].as_str().unwrap_or_default().to_owned();
            if !duplicates.contains(&uid) {
                duplicates.push(uid);
            }
        } else {
            at += 1;
        }
    }
    duplicates.sort();
    (!duplicates.is_empty()).then(|| duplicates.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tells_changes_from_repetitions() {
        let object = json!({"metadata": {"name": "a", "resourceVersion": "1",
            "managedFields": [{"manager": "m", "time": "t1"}]}, "data": {"x": "1"}});
        let edit = |pointer: &str, value: Value| {
            let mut changed = object.clone();
            *changed.pointer_mut(pointer).unwrap() = value;
            changed
        };
        for (other, want) in [
            (object.clone(), true),
            (edit("/metadata/resourceVersion", json!("2")), true),
            (edit("/metadata/managedFields/0/time", json!("t2")), true),
            (edit("/metadata/managedFields/0/manager", json!("n")), false),
            (edit("/data/x", json!("2")), false),
            (edit("/metadata/name", json!("b")), false),
            (
                json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": "t1"}]}, "data": {"x": "1"}}),
                true,
            ),
            (json!({"metadata": {"name": "a"}, "data": {"x": "1"}}), false),
        ] {
            assert_eq!(same(&object, &other), want, "{other}");
            assert_eq!(same(&other, &object), want, "{other}");
        }
    }
}
