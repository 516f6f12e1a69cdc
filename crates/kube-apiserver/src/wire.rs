//! Bodies in and out: which bytes are which object. The codecs themselves are in `apimachinery`.

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use bytes::Bytes;
use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::http::Body;
use crate::http::negotiation::{Accept, Encoding};
use crate::registry::Entry;
use crate::registry::handler::PatchKind;
use crate::registry::output::Show;

/// What happens to fields nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    Ignore,
    Warn,
    Strict,
}

fn malformed(encoding: Encoding, why: impl std::fmt::Display) -> Status {
    let what = match encoding {
        Encoding::Json => "json",
        Encoding::Yaml => "yaml",
        Encoding::Protobuf => "protobuf",
    };
    Status::bad_request(format!("couldn't get version/kind; {what} parse error: {why}"))
}

fn parse(body: &Bytes, encoding: Encoding) -> Result<Value, Status> {
    match encoding {
        Encoding::Json => serde_json::from_slice(body).map_err(|e| malformed(encoding, e)),
        Encoding::Yaml | Encoding::Protobuf => Err(Status::unsupported_media_type(&["application/json"])),
    }
}

/// Fills in, or checks, the kind and version of an object.
fn check_kind(value: &mut Value, group: &str, version: &str, kind: &str) -> Result<(), Status> {
    let wanted = crate::registry::entry::api_version(group, version);
    let Some(object) = value.as_object_mut() else {
        return Err(Status::bad_request("the request body is not an object"));
    };
    let said = |name: &str, object: &serde_json::Map<String, Value>| {
        object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (said_version, said_kind) = (said("apiVersion", object), said("kind", object));
    if said_version.is_empty() {
        object.insert("apiVersion".to_owned(), wanted.into());
    } else if said_version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({said_version}) does not match the expected API version ({wanted})"
        )));
    }
    if said_kind.is_empty() {
        object.insert("kind".to_owned(), kind.into());
    } else if said_kind != kind {
        let (given, expected) = (
            format!("{said_version}, Kind={said_kind}"),
            format!("{}, Kind={kind}", crate::registry::entry::api_version(group, version)),
        );
        return Err(Status::bad_request(format!(
            "no kind {said_kind:?} is registered: the object provided is {given} (must be {expected})"
        )));
    }
    Ok(())
}

/// Reads an object of `kind`; also returns what was dropped from it.
pub fn decode(
    body: &Bytes,
    encoding: Encoding,
    _strictness: Strictness,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<(Value, Vec<String>), Status> {
    let mut value = parse(body, encoding)?;
    check_kind(&mut value, group, version, kind)?;
    Ok((value, Vec::new()))
}

/// Reads an applied configuration, which gets no defaults.
pub fn decode_apply(
    body: &Bytes,
    _strictness: Strictness,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<(Value, Vec<String>), Status> {
    let mut value = parse(body, Encoding::Json)?;
    check_kind(&mut value, group, version, kind)?;
    Ok((value, Vec::new()))
}

/// Reads DeleteOptions.
pub fn decode_options(body: &Bytes, encoding: Encoding) -> Result<Value, Status> {
    parse(body, encoding)
}

pub fn parse_patch(body: &Bytes, kind: PatchKind) -> Result<Value, Status> {
    let patch: Value = serde_json::from_slice(body).map_err(|e| malformed(Encoding::Json, e))?;
    let shape = if kind == PatchKind::Json { patch.is_array() } else { patch.is_object() };
    if shape { Ok(patch) } else { Err(Status::bad_request("the patch has the wrong form for its media type")) }
}

pub fn apply_patch(old: &Value, patch: &Value, kind: PatchKind, _entry: &Entry) -> Result<Value, Status> {
    match kind {
        PatchKind::Merge | PatchKind::Strategic => {
            let mut new = old.clone();
            merge(&mut new, patch);
            Ok(new)
        }
        PatchKind::Json | PatchKind::Apply => Err(Status::unsupported_media_type(&["application/merge-patch+json"])),
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let members = target.as_object_mut().expect("an object, as just ensured");
    for (k, v) in patch {
        if v.is_null() {
            members.remove(k);
        } else {
            merge(members.entry(k.clone()).or_insert(Value::Null), v);
        }
    }
}

/// Checks a patched object as if it had been sent whole.
pub fn recheck(
    mut value: Value,
    _strictness: Strictness,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<(Value, Vec<String>), Status> {
    check_kind(&mut value, group, version, kind)?;
    Ok((value, Vec::new()))
}

pub fn encode_value(value: &Value, accept: Accept) -> Result<Vec<u8>, String> {
    match accept.encoding {
        Encoding::Json if accept.pretty => {
            let mut out = serde_json::to_vec_pretty(value).map_err(|e| e.to_string())?;
            out.push(b'\n');
            Ok(out)
        }
        Encoding::Json => serde_json::to_vec(value).map_err(|e| e.to_string()),
        Encoding::Yaml | Encoding::Protobuf => Err("not JSON".to_owned()),
    }
}

/// One frame of a watch.
pub fn encode_event(kind: &str, object: &Value, _accept: Accept) -> Option<Bytes> {
    let mut out = serde_json::to_vec(&json!({"type": kind, "object": object})).ok()?;
    out.push(b'\n');
    Some(out.into())
}

/// A list in protobuf, straight from the stored bytes.
pub fn protobuf_list(
    _show: Show<'_>,
    _items: &[std::sync::Arc<Encoded>],
    _metadata: &Value,
) -> Result<Option<Response<Body>>, Status> {
    Ok(None)
}

/// The columns of a built-in resource's table.
pub fn columns(_entry: &Entry) -> Vec<Value> {
    vec![
        json!({"name": "Name", "type": "string", "format": "name", "description": "Name must be unique within a namespace.", "priority": 0}),
        json!({"name": "Created At", "type": "date", "format": "", "description": "When the object was created.", "priority": 0}),
    ]
}

pub fn cells(_entry: &Entry, object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
}

/// Completes an object of the server's own making: kind, version, schema defaults.
pub fn complete(object: &mut Value, entry: &Entry) -> Result<(), Status> {
    check_kind(object, &entry.group, &entry.version, &entry.kind)
}
