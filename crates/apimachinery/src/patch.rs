//! The three patch formats that need no knowledge of owners: JSON patch (RFC 6902), merge patch (RFC 7386) and
//! strategic merge patch. Server-side apply is in [`crate::managed_fields`].

use serde_json::{Map, Value, json};

use crate::codec::{self, MediaType};
use crate::go;
use crate::schema::{Field, Kind, ListType, Schema};
use crate::status::Status;

pub mod json;

use json::JsonPatch;

/// More operations in one JSON patch are refused.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// What a patch that cannot be applied answers.
fn unprocessable() -> Status {
    Status {
        code: 422,
        reason: "Invalid".into(),
        details: Some(Box::default()),
        ..Status::bad_request("the server rejected our request due to an error in our request")
    }
}

/// RFC 6902: a list of operations.
pub fn json_patch(target: &Value, patch: &[u8]) -> Result<Value, Status> {
    let refused = |why: String| Status::bad_request(format!("error decoding patch: {why}"));
    let patch = JsonPatch::decode(patch).map_err(refused)?;
    if let Some(why) = patch.mistyped() {
        return Err(refused(why));
    }
    if patch.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(Status::request_entity_too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {}",
            patch.len()
        )));
    }
    let mut value = target.clone();
    patch.apply(&mut value).map_err(|_| unprocessable())?;
    Ok(value)
}

/// RFC 7386: objects are merged, null deletes, all else replaces.
pub fn merge_patch(target: &Value, patch: &[u8]) -> Result<Value, Status> {
    let decoding = |why: String| Status::bad_request(format!("error decoding patch: {why}"));
    let patch = parse(patch).map_err(decoding)?.ok_or_else(|| Status::bad_request("Invalid JSON Patch"))?;
    let mut value = target.clone();
    merge(&mut value, Value::Object(patch));
    Ok(value)
}

/// Upstream's library drops null members of what is new too, also of objects in lists; but not of a list that takes an
/// object's place.
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                match target.get_mut(&name) {
                    _ if value.is_null() => {
                        target.remove(&name);
                    }
                    Some(current) if !current.is_null() => merge(current, value),
                    _ => {
                        target.insert(name, without_nulls(value));
                    }
                }
            }
        }
        (target, patch) if target.is_object() => *target = patch,
        (target, patch) => *target = without_nulls(patch),
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, without_nulls(value)))
            .collect(),
        Value::Array(elements) => elements.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// Merges by the patch strategies and merge keys of the schema; understands the `$patch`, `$retainKeys`,
/// `$setElementOrder/…` and `$deleteFromPrimitiveList/…` directives.
pub fn strategic_merge_patch(target: &Value, patch: &[u8], schema: &Schema) -> Result<Value, Status> {
    let patch = parse(patch).map_err(Status::bad_request)?;
    let mut value = target.clone();
    if let (Value::Object(target), Some(patch)) = (&mut value, patch) {
        merge_object(target, patch, Some(schema))?;
    }
    Ok(value)
}

/// Why a patched object is none of its type, in the words of upstream's conversion of maps to structs, which is how
/// strategic merge patches are read there. `None` when each value is of its field's type.
pub fn unrestorable(value: &Value, schema: &Schema) -> Option<String> {
    if value.is_null() {
        return None;
    }
    let kind = crate::go::kind(value);
    let scalar = |like: &[&str], name: &str| {
        if like.contains(&kind) { None } else { Some(format!("unrecognized type: {name}")) }
    };
    match (&schema.kind, value) {
        (Kind::Object(_), Value::Object(members)) => schema
            .fields()
            .iter()
            .filter_map(|f| Some((members.get(&*f.name)?, &f.schema)))
            .find_map(|(value, schema)| unrestorable(value, schema)),
        (Kind::Object(_), _) => Some(format!("cannot restore struct from: {kind}")),
        (Kind::Map(values), Value::Object(members)) => {
            members.values().find_map(|value| unrestorable(value, values))
        }
        (Kind::Map(_), _) => Some(format!("cannot restore map from {kind}")),
        (Kind::List(items, _), Value::Array(elements)) => {
            elements.iter().find_map(|value| unrestorable(value, items))
        }
        (Kind::Bytes, Value::String(_)) => None,
        (Kind::List(..) | Kind::Bytes, _) => Some(format!("cannot restore slice from {kind}")),
        (Kind::String, Value::Number(_)) if kind == "int64" => {
            Some(format!("cannot convert int64 to {}", schema.go_type()))
        }
        (Kind::String, _) => scalar(&["string"], "string"),
        (Kind::Bool, _) => scalar(&["bool"], "bool"),
        (Kind::Int32 | Kind::Int64, Value::Number(n)) if n.as_f64().is_some_and(|n| n.fract() != 0.0) => {
            Some(format!("cannot convert float64 to {}", schema.go_type()))
        }
        (Kind::Int32, _) => scalar(&["int64", "float64"], "int32"),
        (Kind::Int64, _) => scalar(&["int64", "float64"], "int64"),
        (Kind::Double, _) => scalar(&["int64", "float64"], "float64"),
        // These read themselves.
        _ => None,
    }
}

/// The members of a patch; none if it is null.
fn parse(patch: &[u8]) -> Result<Option<Map<String, Value>>, String> {
    match codec::decode_any(patch, MediaType::Json).map_err(|e| e.message)? {
        Value::Object(members) => Ok(Some(members)),
        Value::Null => Ok(None),
        other => Err(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            codec::json::kind_of(&other)
        )),
    }
}

const ORDER: &str = "$setElementOrder/";
const DELETE: &str = "$deleteFromPrimitiveList/";

fn merge_object(
    target: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<(), Status> {
    match patch.get("$patch").map(Value::as_str) {
        None => {}
        Some(Some("replace")) => {
            patch.remove("$patch");
            *target = without_directives(patch);
            return Ok(());
        }
        Some(Some("delete")) => {
            target.clear();
            return Ok(());
        }
        Some(_) => return Err(unknown_directive(&patch)),
    }
    if let Some(keys) = patch.remove("$retainKeys") {
        let Value::Array(keys) = keys else {
            return Err(Status::bad_request("invalid patch format of retainKeys"));
        };
        if patch.iter().any(|(k, v)| !v.is_null() && !k.starts_with('$') && !keys.iter().any(|x| x == k)) {
            return Err(Status::bad_request("invalid patch format of retainKeys"));
        }
        target.retain(|key, _| keys.iter().any(|k| k == key));
    }
    // Directives about lists are named after the list; the list itself may be missing from the patch.
    let mut orders = vec![];
    let directives: Vec<String> = patch.keys().filter(|k| k.starts_with('$')).cloned().collect();
    for name in directives {
        let directive = patch.remove(&name).unwrap_or_default();
        if let Some(list) = name.strip_prefix(ORDER) {
            let Value::Array(order) = directive else {
                return Err(Status::bad_request("invalid patch format of setElementOrder list"));
            };
            orders.push((list.to_owned(), order));
        } else if let Some(list) = name.strip_prefix(DELETE) {
            let Value::Array(gone) = directive else {
                return Err(Status::bad_request("invalid patch format of primitive list"));
            };
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|item| !gone.contains(item));
            }
        } else {
            // A field that happens to begin with a dollar, such as `$ref`.
            patch.insert(name, directive);
        }
    }
    for (name, order) in orders {
        let field = schema.and_then(|s| s.field(&name));
        let additions = match patch.remove(&name) {
            Some(Value::Array(list)) => list,
            Some(other) => {
                patch.insert(name, other);
                continue;
            }
            None => vec![],
        };
        let current = match target.remove(&name) {
            Some(Value::Array(list)) => list,
            _ => vec![],
        };
        let key = field.map_or("", |f| f.patch_merge_key);
        check_order(&additions, &order, key)?;
        let before = current.clone();
        let merged = merge_list(current, additions, field)?;
        target.insert(name, Value::Array(reorder(merged, &order, &before, key)));
    }
    for (name, value) in patch {
        let field = schema.and_then(|s| s.field(&name));
        let member = schema.and_then(|s| s.member(&name));
        match value {
            Value::Null => {
                target.remove(&name);
            }
            value => match (target.get_mut(&name), value) {
                (Some(Value::Object(current)), Value::Object(value)) => {
                    if field.is_some_and(|f| f.patch_strategy == "replace") {
                        *current = without_directives(value);
                    } else {
                        merge_object(current, value, member)?;
                    }
                }
                (Some(Value::Array(current)), Value::Array(value)) => {
                    *current = merge_list(std::mem::take(current), value, field)?;
                }
                // What is not there yet, or is of another type, is taken as it is given.
                (_, value) => match fresh(value) {
                    Some(value) => {
                        target.insert(name, value);
                    }
                    None => {
                        target.remove(&name);
                    }
                },
            },
        }
    }
    Ok(())
}

/// What a value is that has nothing to merge with: itself without nulls and directives. `None` where it is one itself.
fn fresh(value: Value) -> Option<Value> {
    Some(match value {
        Value::Object(members) if members.contains_key("$patch") => return None,
        Value::Object(members) => without_directives(members)
            .into_iter()
            .filter_map(|(name, value)| Some((name, fresh(value)?)))
            .collect(),
        Value::Array(elements) => elements.into_iter().filter_map(fresh).collect(),
        other => other,
    })
}

/// A `$patch` that is none there is.
fn unknown_directive(patch: &Map<String, Value>) -> Status {
    let told = match patch.get("$patch") {
        Some(Value::String(directive)) => directive.clone(),
        Some(other) => format!("%!s({}={})", go::kind(other), go::plain(other)),
        None => String::new(),
    };
    let patch = go::plain(&Value::Object(patch.clone()));
    Status::unknown(format!("unknown patch type: {told} in map: {patch}"))
}

/// The elements of a patch have to be in the order it gives.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), Status> {
    let same = |element: &Value, ordered: &Value| match key {
        "" => element == ordered,
        key => element.get(key).is_some() && element.get(key) == ordered.get(key),
    };
    // What goes is in no order.
    let mut left: Vec<&Value> = patch.iter().filter(|e| e.get("$patch").is_none()).collect();
    for ordered in order {
        if left.first().is_some_and(|element| same(element, ordered)) {
            left.remove(0);
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let shown = |list: &[Value]| go::plain(&Value::Array(list.to_vec()));
    Err(Status::unknown(format!(
        "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
        shown(patch),
        shown(order)
    )))
}

fn without_directives(patch: Map<String, Value>) -> Map<String, Value> {
    patch
        .into_iter()
        .filter(|(k, v)| {
            !v.is_null() && !k.starts_with(ORDER) && !k.starts_with(DELETE) && k != "$retainKeys"
        })
        .collect()
}

fn merge_list(
    mut current: Vec<Value>,
    patch: Vec<Value>,
    field: Option<&Field>,
) -> Result<Vec<Value>, Status> {
    let Some(field) = field.filter(|f| f.merges()) else {
        return Ok(patch);
    };
    let items = field.schema.items();
    if !items.is_some_and(|s| matches!(s.kind, Kind::Object(_))) {
        let before = current.clone();
        for value in &patch {
            if !current.contains(value) {
                current.push(value.clone());
            }
        }
        return Ok(reorder(current, &patch, &before, ""));
    }
    let key = field.patch_merge_key;
    let directive = |v: &Value| v.get("$patch").and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|v| directive(v).as_deref() == Some("replace")) {
        return Ok(patch
            .into_iter()
            .filter(|v| directive(v).as_deref() != Some("replace"))
            .map(|v| match v {
                Value::Object(map) => Value::Object(without_directives(map)),
                other => other,
            })
            .collect());
    }
    let ids = |list: &[Value]| -> Vec<Value> {
        list.iter().filter_map(|v| Some(json!({key: v.get(key)?}))).collect()
    };
    let (order, before) = (ids(&patch), ids(&current));
    for element in patch {
        let Value::Object(element) = element else {
            return Err(unprocessable());
        };
        let Some(id) = element.get(key).cloned() else {
            return Err(Status::unknown(format!(
                "map: {} does not contain declared merge key: {key}",
                go::plain(&Value::Object(element))
            )));
        };
        let same = |v: &Value| v.get(key) == Some(&id);
        match element.get("$patch").and_then(Value::as_str) {
            Some("delete") => {
                current.retain(|v| !same(v));
                continue;
            }
            Some("merge") => {
                return Err(Status::unknown("merging lists cannot yet be specified in the patch"));
            }
            _ if element.contains_key("$patch") => return Err(unknown_directive(&element)),
            _ => {}
        }
        match current.iter_mut().find(|v| same(v)) {
            Some(Value::Object(existing)) => merge_object(existing, element, items)?,
            _ => {
                let mut fresh = Map::new();
                merge_object(&mut fresh, element, items)?;
                current.push(Value::Object(fresh));
            }
        }
    }
    // What the patch adds comes before what it does not name, as upstream has it.
    Ok(reorder(current, &order, &before, key))
}

/// Sorts what `order` names as it says; the rest stays where the server had it relative to the others.
fn reorder(list: Vec<Value>, order: &[Value], before: &[Value], key: &str) -> Vec<Value> {
    let id = |v: &Value| if key.is_empty() { v.clone() } else { v.get(key).cloned().unwrap_or_default() };
    let rank = |v: &Value| order.iter().position(|o| id(o) == id(v));
    let (mut ordered, others): (Vec<Value>, Vec<Value>) = list.into_iter().partition(|v| rank(v).is_some());
    ordered.sort_by_key(|v| rank(v));
    let server_rank = |v: &Value| before.iter().position(|b| id(b) == id(v));
    let mut others = others.into_iter().peekable();
    let mut ordered = ordered.into_iter().peekable();
    let mut out = vec![];
    loop {
        match (others.peek(), ordered.peek()) {
            (Some(other), Some(one)) => {
                let first = match (server_rank(other), server_rank(one)) {
                    (Some(a), Some(b)) => a < b,
                    _ => false,
                };
                out.extend(if first { others.next() } else { ordered.next() });
            }
            (Some(_), None) => out.extend(others.next()),
            (None, Some(_)) => out.extend(ordered.next()),
            (None, None) => return out,
        }
    }
}

/// Whether lists of this schema are merged by keys.
pub fn list_keys(schema: &Schema) -> Option<&[std::borrow::Cow<'static, str>]> {
    match &schema.kind {
        Kind::List(_, ListType::Map(keys)) => Some(keys),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    #[test]
    fn strategic() {
        let schema = schema::for_kind("", "v1", "Pod").unwrap();
        let pod = json!({"metadata": {"name": "x", "labels": {"a": "1", "b": "2"}, "finalizers": ["f", "g"]},
            "spec": {"nodeName": "n", "containers": [
                {"name": "a", "image": "1", "args": ["x"], "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "1"}],
                "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"x": "y"}}});
        for (patch, pointer, want) in [
            (
                json!({"metadata": {"labels": {"a": null, "c": "3"}}}),
                "/metadata/labels",
                json!({"b": "2", "c": "3"}),
            ),
            (json!({"spec": {"nodeName": null}}), "/spec/nodeName", Value::Null),
            (
                json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}}),
                "/spec/containers",
                json!([{"name": "a", "image": "1", "args": ["x"], "ports": [{"containerPort": 80}]},
                    {"name": "b", "image": "2"}, {"name": "c"}]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                "/spec/containers",
                json!([{"name": "b", "image": "1"}]),
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
                "/spec/containers",
                json!([{"name": "z"}]),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                    "containers": [{"name": "c"}]}}),
                "/spec/containers",
                json!([{"name": "c"}, {"name": "b", "image": "1"},
                    {"name": "a", "image": "1", "args": ["x"], "ports": [{"containerPort": 80}]}]),
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}}),
                "/spec/volumes",
                json!([{"name": "v", "configMap": {"name": "c"}}]),
            ),
            (
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f"], "finalizers": ["h"]}}),
                "/metadata/finalizers",
                json!(["h", "g"]),
            ),
            (
                json!({"spec": {"nodeSelector": {"$patch": "replace", "q": "r"}}}),
                "/spec/nodeSelector",
                json!({"q": "r"}),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "args": ["y"], "ports": [{"containerPort": 81}]}]}}),
                "/spec/containers/0",
                json!({"name": "a", "image": "1", "args": ["y"], "ports": [{"containerPort": 81}, {"containerPort": 80}]}),
            ),
            (json!({"spec": {"containers": [{"name": "c"}]}}), "/spec/containers/0/name", json!("c")),
            (
                json!({"spec": {"tolerations": [{"key": "a", "value": null}, {"$patch": "delete", "key": "b"}],
                    "imagePullSecrets": [{}], "hostAliases": [{"hostnames": ["x"]}]}}),
                "/spec/tolerations",
                json!([{"key": "a"}]),
            ),
            (
                json!({"spec": {"hostAliases": [{"hostnames": ["x"]}]}}),
                "/spec/hostAliases",
                json!([{"hostnames": ["x"]}]),
            ),
            (
                json!({"spec": {"affinity": {"nodeAffinity": null, "podAffinity": {}}}}),
                "/spec/affinity",
                json!({"podAffinity": {}}),
            ),
        ] {
            let patched = strategic_merge_patch(&pod, patch.to_string().as_bytes(), schema).unwrap();
            assert_eq!(patched.pointer(pointer).cloned().unwrap_or_default(), want, "{patch}");
        }
        for (bad, code, message) in [
            ("[]", 400, "json: cannot unmarshal array into Go value of type map[string]interface {}"),
            ("a: b", 400, "invalid character 'a' looking for beginning of value"),
            (
                r#"{"spec":{"containers":[{"image":"x"}]}}"#,
                500,
                "map: map[image:x] does not contain declared merge key: name",
            ),
            (r#"{"spec":{"$patch":"x","a":1}}"#, 500, "unknown patch type: x in map: map[$patch:x a:1]"),
            (r#"{"spec":{"$patch":"merge"}}"#, 500, "unknown patch type: merge in map: map[$patch:merge]"),
            (r#"{"spec":{"$patch":5}}"#, 500, "unknown patch type: %!s(int64=5) in map: map[$patch:5]"),
            (
                r#"{"spec":{"containers":[{"name":"a","$patch":"merge"}]}}"#,
                500,
                "merging lists cannot yet be specified in the patch",
            ),
            (
                r#"{"spec":{"$setElementOrder/containers":[{"name":"z"}],"containers":[{"name":"a"}]}}"#,
                500,
                "The order in patch list:\n[map[name:a]]\n doesn't match $setElementOrder list:\n[map[name:z]]\n",
            ),
        ] {
            let status = strategic_merge_patch(&pod, bad.as_bytes(), schema).unwrap_err();
            assert_eq!((status.code, status.message.as_str()), (code, message), "{bad}");
        }
        assert_eq!(strategic_merge_patch(&pod, b"null", schema).unwrap(), pod);
    }

    #[test]
    fn json_and_merge() {
        let target = json!({"a": {"b": 1, "c": [1, 2]}});
        for (patch, want) in [
            (
                r#"[{"op":"replace","path":"/a/b","value":2},{"op":"add","path":"/a/c/-","value":3}]"#,
                json!({"a": {"b": 2, "c": [1, 2, 3]}}),
            ),
            (r#"[{"op":"test","path":"/a/b","value":1},{"op":"remove","path":"/a"}]"#, json!({})),
            (r#"[{"op":"add","path":"/d"}]"#, json!({"a": {"b": 1, "c": [1, 2]}, "d": null})),
        ] {
            assert_eq!(json_patch(&target, patch.as_bytes()).unwrap(), want);
        }
        for (patch, code) in [
            (r#"[{"op":"test","path":"/a/b","value":2}]"#, 422),
            (r#"[{"op":"remove","path":"/x"}]"#, 422),
            (r#"[{"op":"x"}]"#, 422),
            (r#"[{"op":"add","value":1}]"#, 422),
            ("[null]", 422),
            ("[1]", 400),
            ("{}", 400),
        ] {
            assert_eq!(json_patch(&target, patch.as_bytes()).unwrap_err().code, code, "{patch}");
        }
        assert_eq!(
            merge_patch(&target, br#"{"a":{"b":null,"c":[3]},"d":"e"}"#).unwrap(),
            json!({"a": {"c": [3]}, "d": "e"})
        );
        for (target, patch, want) in [
            (json!({"a": 1}), r#"{"a":[{"x":null,"y":1},null]}"#, json!({"a": [{"y": 1}, null]})),
            (json!({"a": {}}), r#"{"a":[{"x":null}]}"#, json!({"a": [{"x": null}]})),
            (json!({"a": null}), r#"{"a":{"x":null,"y":{"z":null}}}"#, json!({"a": {"y": {}}})),
        ] {
            assert_eq!(merge_patch(&target, patch.as_bytes()).unwrap(), want, "{patch}");
        }
        for (bad, message) in [
            ("null", "Invalid JSON Patch"),
            ("", "error decoding patch: unexpected end of JSON input"),
            (
                "1",
                "error decoding patch: json: cannot unmarshal number into Go value of type map[string]interface {}",
            ),
        ] {
            assert_eq!(merge_patch(&target, bad.as_bytes()).unwrap_err().message, message);
        }
    }

    #[test]
    fn what_is_no_object_of_its_type() {
        let pod = schema::for_kind("", "v1", "Pod").unwrap();
        for (value, want) in [
            (json!({"metadata": {"labels": {"a": "b"}}, "spec": {"priority": 1, "nodeName": null}}), None),
            (json!({"metadata": {"labels": "invalid"}}), Some("cannot restore map from string")),
            (json!({"metadata": "x"}), Some("cannot restore struct from: string")),
            (json!({"spec": {"containers": {"a": 1}}}), Some("cannot restore slice from map")),
            (json!({"spec": {"containers": [{"name": true}]}}), Some("unrecognized type: string")),
            (json!({"spec": {"nodeName": 3}}), Some("cannot convert int64 to string")),
            (json!({"spec": {"priority": "x"}}), Some("unrecognized type: int32")),
            (json!({"spec": {"priority": 1.5}}), Some("cannot convert float64 to int32")),
            (json!({"spec": {"hostNetwork": "x"}}), Some("unrecognized type: bool")),
        ] {
            assert_eq!(unrestorable(&value, pod).as_deref(), want, "{value}");
        }
    }
}
