//! JSON patch (RFC 6902), as lenient as the library behind upstream's API server (evanphx/json-patch, version 4): it does
//! not tell an absent member from one that is null, and reads indices as Go reads numbers, negative ones from the end.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::codec::{self, MediaType};

/// What all copies of one patch may add, in bytes of JSON.
const COPIED_BYTES_MAX: usize = 3 << 20;

/// A list of operations.
pub struct JsonPatch(Vec<Map<String, Value>>);

impl JsonPatch {
    /// Reads a patch. What its operations hold is looked at when they are applied.
    pub fn decode(bytes: &[u8]) -> Result<JsonPatch, String> {
        let unlike = |value: &Value, what: &str| {
            format!("json: cannot unmarshal {} into Go value of type {what}", codec::json::kind_of(value))
        };
        let operations = match codec::decode_any(bytes, MediaType::Json).map_err(|e| e.message)? {
            Value::Array(operations) => operations,
            Value::Null => Vec::new(),
            other => return Err(unlike(&other, "[]handlers.jsonPatchOp")),
        };
        let members = |operation| match operation {
            Value::Object(members) => Ok(members),
            Value::Null => Ok(Map::new()),
            other => Err(unlike(&other, "handlers.jsonPatchOp")),
        };
        Ok(JsonPatch(operations.into_iter().map(members).collect::<Result<_, _>>()?))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first member that is of another type than an operation's.
    pub fn mistyped(&self) -> Option<String> {
        self.0.iter().find_map(|operation| {
            ["op", "path", "from"].into_iter().find_map(|name| match operation.get(name) {
                None | Some(Value::Null | Value::String(_)) => None,
                Some(other) => Some(format!(
                    "json: cannot unmarshal {} into Go struct field jsonPatchOp.{name} of type string",
                    codec::json::kind_of(other)
                )),
            })
        })
    }

    /// Applies the operations one after the other; the first that cannot be ends it.
    pub fn apply(&self, target: &mut Value) -> Result<(), String> {
        let mut copied = 0;
        self.0.iter().try_for_each(|operation| apply(operation, target, &mut copied))
    }
}

fn apply(operation: &Map<String, Value>, target: &mut Value, copied: &mut usize) -> Result<(), String> {
    let kind = operation.get("op").and_then(Value::as_str).unwrap_or("unknown");
    let text = |name: &str| {
        let missing = || format!("{kind} operation failed to decode {name}: missing value");
        operation.get(name).and_then(Value::as_str).ok_or_else(missing)
    };
    let value = || operation.get("value").cloned().unwrap_or_default();
    let nowhere = |what: &str, path: &str| {
        format!("{kind} operation does not apply: doc is missing {what}: {path}: missing value")
    };
    let within = |path: &str, why: String| format!("error in {kind} for path: '{path}': {why}");
    match kind {
        "add" => {
            let path = text("path")?;
            let place = Place::find(target, path).ok_or_else(|| nowhere("path", &format!("{path:?}")))?;
            place.add(value()).map_err(|why| within(path, why))
        }
        "remove" => {
            let path = text("path")?;
            let place = Place::find(target, path).ok_or_else(|| nowhere("path", &format!("{path:?}")))?;
            place.remove().map(drop).map_err(|why| within(path, why))
        }
        "replace" => {
            let path = text("path")?;
            if path.is_empty() {
                let whole = value();
                if !whole.is_object() && !whole.is_array() {
                    return Err("replace operation value must be object or array".into());
                }
                *target = whole;
                return Ok(());
            }
            let place = Place::find(target, path).ok_or_else(|| nowhere("path", path))?;
            place.set(value()).map_err(|_| nowhere("key", path))
        }
        "move" => {
            let (from, path) = (text("from")?, text("path"));
            let place = Place::find(target, from).ok_or_else(|| nowhere("from path", from))?;
            let moved = place.remove().map_err(|why| within(from, why))?;
            let path = path?;
            let place = Place::find(target, path).ok_or_else(|| nowhere("destination path", path))?;
            place.add(moved).map_err(|why| within(path, why))
        }
        "copy" => {
            let (from, path) = (text("from")?, text("path"));
            let place = Place::find(target, from).ok_or_else(|| nowhere("from path", from))?;
            let copy = place.get().map_err(|why| within(from, why))?.cloned().unwrap_or_default();
            let path = path?;
            *copied += size(&copy);
            if *copied > COPIED_BYTES_MAX {
                return Err(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit \
                     {COPIED_BYTES_MAX}"
                ));
            }
            let place = Place::find(target, path).ok_or_else(|| nowhere("destination path", path))?;
            place.add(copy).map_err(|why| format!("error while adding value during copy: {why}"))
        }
        "test" => {
            let path = text("path")?;
            let failed = || format!("testing value {path} failed: test failed");
            let wanted = operation.get("value");
            if path.is_empty() {
                return if wanted == Some(target) { Ok(()) } else { Err(failed()) };
            }
            let place = Place::find(target, path).ok_or_else(|| {
                format!("test operation does not apply: is missing path: {path}: missing value")
            })?;
            match (place.get().map_err(|why| within(path, why))?, wanted) {
                (None | Some(Value::Null), None | Some(Value::Null)) => Ok(()),
                (Some(found), Some(wanted)) if found == wanted => Ok(()),
                _ => Err(failed()),
            }
        }
        other => Err(format!("Unexpected kind: {other}")),
    }
}

/// Where an operation does its work: the last segment of its path, in what holds it.
enum Place<'a> {
    Member(&'a mut Map<String, Value>, String),
    Element(&'a mut Vec<Value>, String),
}

impl<'a> Place<'a> {
    /// `None` where what should hold it is not there. What stands before the first slash does not count.
    fn find(target: &'a mut Value, path: &str) -> Option<Place<'a>> {
        let (_, path) = path.split_once('/')?;
        let (holders, last) = path.rsplit_once('/').map_or((None, path), |(rest, last)| (Some(rest), last));
        let mut holder = target;
        for segment in holders.into_iter().flat_map(|holders| holders.split('/')) {
            let segment = unescaped(segment);
            holder = match holder {
                Value::Object(members) => members.get_mut(&segment)?,
                Value::Array(elements) => {
                    let at = index(&segment, elements.len()).ok()?;
                    elements.get_mut(at)?
                }
                _ => return None,
            };
        }
        match holder {
            Value::Object(members) => Some(Place::Member(members, unescaped(last))),
            Value::Array(elements) => Some(Place::Element(elements, unescaped(last))),
            _ => None,
        }
    }

    /// What is there; of an object's members also none.
    fn get(self) -> Result<Option<&'a Value>, String> {
        match self {
            Place::Member(members, name) => Ok(members.get(&name)),
            Place::Element(elements, name) => {
                let at = existing(&name, elements.len())?;
                Ok(elements.get(at))
            }
        }
    }

    fn set(self, value: Value) -> Result<(), String> {
        match self {
            Place::Member(members, name) => {
                members.insert(name, value);
            }
            Place::Element(elements, name) => {
                let at = existing(&name, elements.len())?;
                elements[at] = value;
            }
        }
        Ok(())
    }

    fn add(self, value: Value) -> Result<(), String> {
        match self {
            Place::Member(members, name) => {
                members.insert(name, value);
            }
            Place::Element(elements, name) if name == "-" => elements.push(value),
            Place::Element(elements, name) => {
                let at = index(&name, elements.len() + 1).map_err(|why| match why {
                    Index::NoNumber => format!("value was not a proper array index: '{name}'"),
                    Index::Beyond(at) => beyond(at),
                })?;
                elements.insert(at, value);
            }
        }
        Ok(())
    }

    fn remove(self) -> Result<Value, String> {
        match self {
            Place::Member(members, name) => members
                .remove(&name)
                .ok_or_else(|| format!("Unable to remove nonexistent key: {name}: missing value")),
            Place::Element(elements, name) => {
                let at = existing(&name, elements.len())?;
                Ok(elements.remove(at))
            }
        }
    }
}

/// Why a segment names no element.
enum Index {
    NoNumber,
    Beyond(i64),
}

fn beyond(at: i64) -> String {
    format!("Unable to access invalid index: {at}: invalid index referenced")
}

/// The place below `len` that a segment names; negative ones count from there.
fn index(segment: &str, len: usize) -> Result<usize, Index> {
    let at: i64 = segment.parse().map_err(|_| Index::NoNumber)?;
    let from_start = if at < 0 { at + len as i64 } else { at };
    usize::try_from(from_start).ok().filter(|&at| at < len).ok_or(Index::Beyond(at))
}

fn existing(segment: &str, len: usize) -> Result<usize, String> {
    index(segment, len).map_err(|why| match why {
        Index::NoNumber => format!("strconv.Atoi: parsing {segment:?}: invalid syntax"),
        Index::Beyond(at) => beyond(at),
    })
}

/// RFC 6901, section 4: `~1` is a slash and `~0` a tilde; any other tilde is itself.
fn unescaped(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some(at) = rest.find('~') {
        out.push_str(&rest[..at]);
        let (piece, length) = match rest.as_bytes().get(at + 1) {
            Some(b'1') => ('/', 2),
            Some(b'0') => ('~', 2),
            _ => ('~', 1),
        };
        out.push(piece);
        rest = &rest[at + length..];
    }
    out.push_str(rest);
    out
}

/// Bytes of the JSON of a value.
fn size(value: &Value) -> usize {
    struct Counted(usize);
    impl std::io::Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut counted = Counted(0);
    // Counting cannot fail.
    let _ = serde_json::to_writer(&mut counted, value);
    counted.0
}

/// What field validation says of a patch that can be read: members that operations do not have, or have twice.
pub fn complaints(bytes: &[u8]) -> Vec<String> {
    serde_json::from_slice::<Vec<Members>>(bytes)
        .unwrap_or_default()
        .iter()
        .enumerate()
        .flat_map(|(i, Members(names))| {
            names.iter().enumerate().filter_map(move |(n, name)| {
                let what = match name.as_str() {
                    "op" | "path" | "from" | "value" if !names[..n].contains(name) => return None,
                    "op" | "path" | "from" | "value" => "duplicate",
                    _ => "unknown",
                };
                Some(format!("json patch {what} field \"[{i}].{name}\""))
            })
        })
        .collect()
}

/// The names of an object's members, as often as they stand there.
struct Members(Vec<String>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an operation")
            }

            fn visit_unit<E>(self) -> Result<Members, E> {
                Ok(Members(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Members, A::Error> {
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Members(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Members, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = members.next_entry()? {
                    names.push(name);
                }
                Ok(Members(names))
            }
        }
        deserializer.deserialize_any(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(target: &Value, patch: &str) -> Result<Value, String> {
        let mut target = target.clone();
        JsonPatch::decode(patch.as_bytes())?.apply(&mut target).map(|()| target)
    }

    #[test]
    fn operations() {
        let target = json!({"a": {"b": 1, "c": [1, 2], "n": null}, "x/y": 1, "t~1": 2});
        let with = |pointer: &str, value: Value| {
            let mut target = target.clone();
            *target.pointer_mut(pointer).unwrap() = value;
            target
        };
        let plus = |name: &str, value: Value| {
            let mut target = target.clone();
            target[name] = value;
            target
        };
        let c = |list: Value| with("/a/c", list);
        for (patch, want) in [
            (r#"[{"op":"replace","path":"/a/b","value":2}]"#, with("/a/b", json!(2))),
            (r#"[{"op":"add","path":"/a/c/-","value":3}]"#, c(json!([1, 2, 3]))),
            (r#"[{"op":"add","path":"/a/c/0","value":3}]"#, c(json!([3, 1, 2]))),
            (r#"[{"op":"add","path":"/a/c/-1","value":3}]"#, c(json!([1, 2, 3]))),
            (r#"[{"op":"add","path":"/a/c/-3","value":3}]"#, c(json!([3, 1, 2]))),
            (r#"[{"op":"add","path":"/a/c/+1","value":3}]"#, c(json!([1, 3, 2]))),
            (r#"[{"op":"replace","path":"/a/c/-1","value":3}]"#, c(json!([1, 3]))),
            (r#"[{"op":"replace","path":"/a/c/01","value":3}]"#, c(json!([1, 3]))),
            (r#"[{"op":"remove","path":"/a/c/-2"}]"#, c(json!([2]))),
            (r#"[{"op":"add","path":"/d"}]"#, plus("d", Value::Null)),
            (r#"[{"op":"replace","path":"/d","value":1}]"#, plus("d", json!(1))),
            (r#"[{"op":"copy","from":"/nothing","path":"/d"}]"#, plus("d", Value::Null)),
            (r#"[{"op":"copy","from":"/a/c/-1","path":"/d"}]"#, plus("d", json!(2))),
            (r#"[{"op":"add","path":"a/b","value":5}]"#, plus("b", json!(5))),
            (r#"[{"op":"replace","path":"/x~1y","value":5}]"#, plus("x/y", json!(5))),
            (r#"[{"op":"replace","path":"/t~01","value":5}]"#, plus("t~1", json!(5))),
            (r#"[{"op":"add","path":"/q~2~","value":5}]"#, plus("q~2~", json!(5))),
            (r#"[{"op":"replace","path":"","value":{"z":1}}]"#, json!({"z": 1})),
            (r#"[{"op":"replace","path":"","value":{}},{"op":"test","path":"","value":{}}]"#, json!({})),
            (
                r#"[{"op":"test","path":"/a/c","value":[1,2]},{"op":"test","path":"/a/b","value":1}]"#,
                target.clone(),
            ),
            (r#"[{"op":"test","path":"/nothing","value":null}]"#, target.clone()),
            (r#"[{"op":"test","path":"/nothing"},{"op":"test","path":"/a/n"}]"#, target.clone()),
            ("[]", target.clone()),
            ("null", target.clone()),
        ] {
            assert_eq!(applied(&target, patch).as_ref(), Ok(&want), "{patch}");
        }
        let moved = applied(&target, r#"[{"op":"move","from":"/a/c/0","path":"/d"}]"#).unwrap();
        assert_eq!((&moved["a"]["c"], &moved["d"]), (&json!([2]), &json!(1)));
    }

    #[test]
    fn refused() {
        let target = json!({"a": {"b": 1, "c": [1, 2]}});
        for (patch, why) in [
            (r#"[{"op":"test","path":"/a/b","value":2}]"#, "testing value /a/b failed: test failed"),
            (r#"[{"op":"test","path":"/a/b"}]"#, "testing value /a/b failed: test failed"),
            (r#"[{"op":"test","path":"/x","value":1}]"#, "testing value /x failed: test failed"),
            (
                r#"[{"op":"test","path":"/x/y","value":null}]"#,
                "test operation does not apply: is missing path: /x/y: missing value",
            ),
            (
                r#"[{"op":"remove","path":"/x"}]"#,
                "error in remove for path: '/x': Unable to remove nonexistent key: x: missing value",
            ),
            (
                r#"[{"op":"remove","path":"/a/c/2"}]"#,
                "error in remove for path: '/a/c/2': Unable to access invalid index: 2: invalid index referenced",
            ),
            (
                r#"[{"op":"add","path":"/a/c/4","value":1}]"#,
                "error in add for path: '/a/c/4': Unable to access invalid index: 4: invalid index referenced",
            ),
            (
                r#"[{"op":"add","path":"/a/c/x","value":1}]"#,
                "error in add for path: '/a/c/x': value was not a proper array index: 'x'",
            ),
            (
                r#"[{"op":"add","path":"","value":{}}]"#,
                "add operation does not apply: doc is missing path: \"\": missing value",
            ),
            (
                r#"[{"op":"remove","path":""}]"#,
                "remove operation does not apply: doc is missing path: \"\": missing value",
            ),
            (
                r#"[{"op":"add","path":"/a/b/c","value":1}]"#,
                "add operation does not apply: doc is missing path: \"/a/b/c\": missing value",
            ),
            (r#"[{"op":"replace","path":"","value":1}]"#, "replace operation value must be object or array"),
            (
                r#"[{"op":"replace","path":"/a/c/-3","value":1}]"#,
                "replace operation does not apply: doc is missing key: /a/c/-3: missing value",
            ),
            (r#"[{"op":"add","value":1}]"#, "add operation failed to decode path: missing value"),
            (r#"[{"op":"move","path":"/b"}]"#, "move operation failed to decode from: missing value"),
            (r#"[{"op":"x"}]"#, "Unexpected kind: x"),
            (r#"[{"op":1}]"#, "Unexpected kind: unknown"),
            ("[null]", "Unexpected kind: unknown"),
        ] {
            assert_eq!(applied(&target, patch), Err(why.to_owned()), "{patch}");
        }
    }

    /// Copies that double what they copy end at a limit, long before memory does.
    #[test]
    fn copies_are_bounded() {
        let operations = vec![json!({"op": "copy", "from": "/a", "path": "/a/-"}); 60];
        let why = applied(&json!({"a": ["x"]}), &json!(operations).to_string()).unwrap_err();
        assert!(why.starts_with("Unable to complete the copy"), "{why}");
    }

    #[test]
    fn mistyped_and_superfluous() {
        let mistyped = |patch: &str| JsonPatch::decode(patch.as_bytes()).unwrap().mistyped();
        assert_eq!(mistyped(r#"[{"op":"add","path":"/a","from":null}]"#), None);
        assert_eq!(
            mistyped(r#"[{"op":1}]"#).unwrap(),
            "json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string"
        );
        assert_eq!(
            complaints(br#"[{"op":"add","path":"/a","value":1,"value":2,"extra":3},null]"#),
            ["json patch duplicate field \"[0].value\"", "json patch unknown field \"[0].extra\""]
        );
    }
}
