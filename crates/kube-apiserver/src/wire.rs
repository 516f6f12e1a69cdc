//! Bodies in and out: which bytes are which object. The codecs themselves are in `apimachinery`.

use apimachinery::codec::{self, MediaType};
use apimachinery::object::Encoded;
use apimachinery::schema::Schema;
use apimachinery::status::Status;
use bytes::Bytes;
use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::http::Body;
use crate::http::negotiation::{Accept, Encoding};
use crate::registry::Entry;
use crate::registry::entry::api_version;
use crate::registry::handler::PatchKind;
use crate::registry::output::Show;

pub use apimachinery::codec::Strictness;

/// What an object must be.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    /// Absent for custom resources that keep whatever they are given.
    pub schema: Option<&'a Schema>,
}

impl<'a> Shape<'a> {
    /// A built-in kind.
    pub fn builtin(group: &'a str, version: &'a str, kind: &'a str) -> Shape<'a> {
        Shape { group, version, kind, schema: apimachinery::schema::for_kind(group, version, kind) }
    }

    pub fn of(entry: &'a Entry) -> Shape<'a> {
        Shape { group: &entry.group, version: &entry.version, kind: &entry.kind, schema: entry.schema() }
    }
}

fn media_type(encoding: Encoding) -> MediaType {
    match encoding {
        Encoding::Json => MediaType::Json,
        Encoding::Yaml => MediaType::Yaml,
        Encoding::Protobuf => MediaType::Protobuf,
    }
}

/// Fills in, or checks, the kind and version of an object.
fn check_kind(value: &mut Value, shape: Shape<'_>) -> Result<(), Status> {
    let wanted = api_version(shape.group, shape.version);
    let Some(object) = value.as_object_mut() else {
        return Err(Status::bad_request("the request body is not an object"));
    };
    let said = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (said_version, said_kind) = (said("apiVersion"), said("kind"));
    if said_version.is_empty() {
        object.insert("apiVersion".to_owned(), wanted.clone().into());
    } else if said_version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({said_version}) does not match the expected API version ({wanted})"
        )));
    }
    if said_kind.is_empty() {
        object.insert("kind".to_owned(), shape.kind.into());
    } else if said_kind != shape.kind {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {said_version}, Kind={said_kind}",
            shape.kind
        )));
    }
    Ok(())
}

type Read = (Value, Vec<String>);

/// Reads an object; also returns what was dropped from it. In strict mode what would be dropped is an error.
pub fn decode(
    body: &[u8],
    encoding: Encoding,
    strictness: Strictness,
    shape: Shape<'_>,
) -> Result<Read, Status> {
    read(body, encoding, strictness, shape, true)
}

/// Reads an applied configuration, which gets no defaults.
pub fn decode_apply(body: &[u8], strictness: Strictness, shape: Shape<'_>) -> Result<Read, Status> {
    read(body, Encoding::Yaml, strictness, shape, false)
}

fn read(
    body: &[u8],
    encoding: Encoding,
    strictness: Strictness,
    shape: Shape<'_>,
    defaults: bool,
) -> Result<Read, Status> {
    let media = media_type(encoding);
    let group_version = api_version(shape.group, shape.version);
    let refused = |e: codec::DecodeError| e.to_status(shape.kind, shape.version);
    let mut read = match shape.schema {
        Some(schema) => {
            let decoded = if defaults {
                codec::decode(body, media, schema, strictness)
            } else {
                codec::decode_applied(body, media, schema, strictness)
            };
            let decoded = decoded.map_err(|error| {
                // What is of another kind is told as such, whatever else is wrong with it.
                let mut other = match codec::type_meta(body, media) {
                    Ok((version, kind)) => json!({"apiVersion": version, "kind": kind}),
                    Err(_) => json!({}),
                };
                check_kind(&mut other, shape).err().unwrap_or_else(|| refused(error))
            })?;
            (decoded.value, decoded.complaints)
        }
        None => (codec::decode_any(body, media).map_err(refused)?, Vec::new()),
    };
    let _ = group_version;
    check_kind(&mut read.0, shape)?;
    Ok(read)
}

/// Reads DeleteOptions.
pub fn decode_options(body: &[u8], encoding: Encoding) -> Result<Value, Status> {
    let schema = apimachinery::schema::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
    let refused = |e: codec::DecodeError| e.to_status("DeleteOptions", "v1");
    match schema {
        Some(schema) => codec::decode(body, media_type(encoding), schema, Strictness::Ignore)
            .map(|d| d.value)
            .map_err(refused),
        None => codec::decode_any(body, media_type(encoding)).map_err(refused),
    }
}

pub fn parse_patch(body: &[u8], kind: PatchKind) -> Result<Value, Status> {
    let patch = codec::decode_any(body, MediaType::Json)
        .map_err(|e| Status::bad_request(format!("error decoding patch: {e}")))?;
    let shape = if kind == PatchKind::Json { patch.is_array() } else { patch.is_object() };
    if shape {
        Ok(patch)
    } else {
        Err(Status::bad_request("the patch has the wrong form for its media type"))
    }
}

pub fn apply_patch(old: &Value, patch: &Value, kind: PatchKind, _shape: Shape<'_>) -> Result<Value, Status> {
    match kind {
        PatchKind::Merge | PatchKind::Strategic => {
            let mut new = old.clone();
            merge(&mut new, patch);
            Ok(new)
        }
        PatchKind::Json | PatchKind::Apply => {
            Err(Status::unsupported_media_type(&["application/merge-patch+json"]))
        }
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
pub fn recheck(mut value: Value, strictness: Strictness, shape: Shape<'_>) -> Result<Read, Status> {
    check_kind(&mut value, shape)?;
    match shape.schema {
        Some(schema) => codec::normalize(&value, schema, strictness)
            .map(|d| (d.value, d.complaints))
            .map_err(|e| e.to_status(shape.kind, shape.version)),
        None => Ok((value, Vec::new())),
    }
}

/// Completes an object of the server's own making: kind, version, schema defaults.
pub fn complete(object: &mut Value, entry: &Entry) -> Result<(), Status> {
    check_kind(object, Shape::of(entry))?;
    if let Some(schema) = entry.schema() {
        apimachinery::defaults::apply(object, schema);
    }
    Ok(())
}

pub fn encode_value(value: &Value, accept: Accept) -> Result<Vec<u8>, String> {
    match accept.encoding {
        Encoding::Json if accept.pretty => {
            let mut out = serde_json::to_vec_pretty(value).map_err(|e| e.to_string())?;
            out.push(b'\n');
            Ok(out)
        }
        Encoding::Json => serde_json::to_vec(value).map_err(|e| e.to_string()),
        Encoding::Yaml => Ok(codec::encode_yaml(value)),
        Encoding::Protobuf => Err("not there yet".to_owned()),
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
