//! Bodies in and out: which bytes are which object. The codecs themselves are in `apimachinery`.

use apimachinery::codec::{self, MediaType, protobuf};
use apimachinery::field_path::Path;
use apimachinery::object::{Encoded, InOrder};
use apimachinery::patch;
use apimachinery::schema::Schema;
use apimachinery::status::{FieldError, Status};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::http::negotiation::{Accept, Encoding, View};
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

    fn is_builtin(&self) -> bool {
        apimachinery::schema::for_kind(self.group, self.version, self.kind).is_some()
    }
}

fn media_type(encoding: Encoding) -> MediaType {
    match encoding {
        Encoding::Json => MediaType::Json,
        Encoding::Yaml => MediaType::Yaml,
        Encoding::Protobuf => MediaType::Protobuf,
    }
}

/// What upstream says of an object that is of another kind than the resource's.
fn other_kind(shape: Shape<'_>, said_version: &str, said_kind: &str) -> Status {
    let (group, version) = said_version.split_once('/').unwrap_or(("", said_version));
    let known = |kind: &str| apimachinery::schema::for_kind(group, version, kind).is_some();
    let why = if known(said_kind) || said_kind.strip_suffix("List").is_some_and(known) {
        let internal = match shape.group.split('.').next() {
            None | Some("") => "core",
            Some(first) => first,
        };
        format!("converting ({version}.{said_kind}) to ({internal}.{}): unknown conversion", shape.kind)
    } else {
        not_registered(shape, said_version, said_kind)
    };
    Status::bad_request(format!(
        "{said_kind} in version {version:?} cannot be handled as a {}: {why}",
        shape.kind
    ))
}

fn not_registered(shape: Shape<'_>, version: &str, kind: &str) -> String {
    let scheme = match shape.group {
        "apiextensions.k8s.io" => "k8s.io/apiextensions-apiserver/pkg/apiserver/apiserver.go:55",
        "apiregistration.k8s.io" => "k8s.io/kube-aggregator/pkg/apiserver/scheme/scheme.go:28",
        _ => "pkg/api/legacyscheme/scheme.go:30",
    };
    format!("no kind {kind:?} is registered for version {version:?} in scheme {scheme:?}")
}

/// The beginning of a body, as upstream quotes what it cannot make out.
fn excerpt(body: &[u8]) -> String {
    const BYTES_MAX: usize = 30;
    let (head, more) = match body.get(..BYTES_MAX) {
        Some(head) if body.len() > BYTES_MAX => (head, " ..."),
        _ => (body, ""),
    };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => {
            let hex: String = head.iter().map(|b| format!("{b:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

/// A body whose kind cannot be made out.
fn unrecognized(body: &[u8], shape: Shape<'_>, why: &str) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({})",
        shape.kind,
        excerpt(body)
    ))
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
    } else if said_version != wanted && shape.is_builtin() {
        let said_kind = if said_kind.is_empty() { shape.kind } else { &said_kind };
        return Err(other_kind(shape, &said_version, said_kind));
    } else if said_version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({said_version}) does not match the expected API version ({wanted})"
        )));
    }
    if said_kind.is_empty() {
        object.insert("kind".to_owned(), shape.kind.into());
    } else if said_kind != shape.kind && shape.is_builtin() {
        let said_version = if said_version.is_empty() { &wanted } else { &said_version };
        return Err(other_kind(shape, said_version, &said_kind));
    } else if said_kind != shape.kind {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {said_version}, Kind={said_kind}",
            shape.kind
        )));
    }
    Ok(())
}

/// The kind and version of a custom resource that was sent, neither of which may be left out.
fn check_sent_kind(value: &Value, body: &[u8], shape: Shape<'_>) -> Result<(), Status> {
    let said = |name: &str| value[name].as_str().unwrap_or_default();
    let wanted = api_version(shape.group, shape.version);
    if said("kind").is_empty() {
        let text = String::from_utf8_lossy(body);
        return Err(unrecognized(body, shape, &format!("Object 'Kind' is missing in '{text}'")));
    }
    if said("apiVersion") != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({wanted})",
            said("apiVersion")
        )));
    }
    check_same_kind(value, shape)
}

/// The kind and version that a patch left to a custom resource.
fn check_patched_kind(value: &Value, shape: Shape<'_>) -> Result<(), Status> {
    let told = |why: &str| unpatchable(value.to_string(), why);
    let typed = json!({"apiVersion": value["apiVersion"], "kind": value["kind"]});
    let (version, kind) =
        codec::type_meta(&codec::encode_json(&typed), MediaType::Json).map_err(|e| told(&e.message))?;
    if kind.is_empty() {
        return Err(told(&format!("Object 'Kind' is missing in '{value}'")));
    }
    if version.is_empty() {
        return Err(Status::internal("Object 'apiVersion' is missing in 'object has no apiVersion field'"));
    }
    check_same_kind(value, shape)
}

/// Custom resources are told to be of another kind or version as objects that are invalid.
fn check_same_kind(value: &Value, shape: Shape<'_>) -> Result<(), Status> {
    let said = |name: &str| value[name].as_str().unwrap_or_default();
    let wanted = api_version(shape.group, shape.version);
    let mut errors = Vec::new();
    for (name, must) in [("kind", shape.kind), ("apiVersion", &wanted)] {
        if said(name) != must {
            errors.push(FieldError::invalid(&Path::new(name), said(name), format!("must be {must}")));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let group = said("apiVersion").split_once('/').map_or("", |(group, _)| group);
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    Err(Status::invalid(said("kind"), group, name, errors))
}

type Read = (Value, Vec<String>);

/// Reads an object; also returns what was dropped from it. In strict mode what would be dropped is an error.
pub fn decode(
    body: &[u8],
    encoding: Encoding,
    strictness: Strictness,
    shape: Shape<'_>,
) -> Result<Read, Status> {
    let media = media_type(encoding);
    let refused = |e: codec::DecodeError| e.to_status(shape.kind, shape.version);
    let mut read = match shape.schema {
        Some(schema) => {
            // A null stands for an object without fields.
            let blank = body.trim_ascii();
            let nothing = match encoding {
                Encoding::Json => blank == b"null",
                Encoding::Yaml => blank.is_empty() || blank == b"null",
                Encoding::Protobuf => false,
            };
            let (body, media) = if nothing { (&b"{}"[..], MediaType::Json) } else { (body, media) };
            let decoded = codec::decode(body, media, schema, strictness).map_err(|error| {
                // What is of another kind is told as such, whatever else is wrong with it.
                match codec::type_meta(body, media) {
                    Ok((version, _)) if version.matches('/').count() > 1 => {
                        unrecognized(body, shape, &format!("unexpected GroupVersion string: {version}"))
                    }
                    // Custom resources of another kind are told as invalid, once they can be read.
                    Ok(_) if !shape.is_builtin() => refused(error),
                    Err(_) if error.message.ends_with(" into Go value of type float64") => refused(error),
                    Ok((version, kind)) => {
                        let mut other = json!({"apiVersion": version, "kind": kind});
                        check_kind(&mut other, shape).err().unwrap_or_else(|| refused(error))
                    }
                    Err(why) => unrecognized(
                        body,
                        shape,
                        why.message.trim_start_matches("error converting YAML to JSON: "),
                    ),
                }
            })?;
            (decoded.value, decoded.complaints)
        }
        None => (codec::decode_any(body, media).map_err(refused)?, Vec::new()),
    };
    if let Some(version) = read.0["apiVersion"].as_str().filter(|v| v.matches('/').count() > 1) {
        return Err(unrecognized(body, shape, &format!("unexpected GroupVersion string: {version}")));
    }
    match shape.is_builtin() {
        true => check_kind(&mut read.0, shape)?,
        false => check_sent_kind(&read.0, body, shape)?,
    }
    Ok(read)
}

/// Reads an applied configuration, which gets no defaults.
pub fn decode_apply(body: &[u8], strictness: Strictness, shape: Shape<'_>) -> Result<Read, Status> {
    let refused = |e: codec::DecodeError| e.to_status(shape.kind, shape.version);
    let codec::Decoded { value, complaints } = codec::read_applied(body, strictness).map_err(refused)?;
    let said = |name: &str| value[name].as_str().unwrap_or_default();
    let (version, kind) = (said("apiVersion"), said("kind"));
    if version != api_version(shape.group, shape.version) || kind != shape.kind {
        let slash = if version.contains('/') { "" } else { "/" };
        return Err(Status::bad_request(format!("invalid object type: {slash}{version}, Kind={kind}")));
    }
    match shape.schema {
        Some(schema) => Ok((codec::type_applied(&value, schema).map_err(refused)?, complaints)),
        None => Ok((value, complaints)),
    }
}

/// Reads DeleteOptions, which every group has under its own name.
pub fn decode_options(body: &[u8], encoding: Encoding) -> Result<Value, Status> {
    const NAME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
    const SCHEME: &str = "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27";
    let refused = |e: codec::DecodeError| Status::bad_request(e.message);
    let media = media_type(encoding);
    let (version, kind) = codec::type_meta(body, media).map_err(refused)?;
    if !kind.is_empty() && kind != "DeleteOptions" {
        return Err(Status::bad_request(format!(
            "no kind {kind:?} is registered for version {version:?} in scheme {SCHEME:?}"
        )));
    }
    match apimachinery::schema::builtin(NAME) {
        Some(schema) => {
            codec::decode(body, media, schema, Strictness::Ignore).map(|d| d.value).map_err(refused)
        }
        None => codec::decode_any(body, media).map_err(refused),
    }
}

/// Applies a patch of any kind but server-side apply.
pub fn apply_patch(old: &Value, patch: &[u8], kind: PatchKind, shape: Shape<'_>) -> Result<Value, Status> {
    match (kind, shape.schema) {
        (PatchKind::Json, _) => patch::json_patch(old, patch),
        (PatchKind::Merge, _) => patch::merge_patch(old, patch),
        (PatchKind::Strategic, Some(schema)) => {
            let patched = patch::strategic_merge_patch(old, patch, schema)?;
            match patch::unrestorable(&patched, schema) {
                Some(why) => {
                    let patch = serde_json::from_slice(patch).unwrap_or_default();
                    Err(unpatchable(apimachinery::go::plain(&patch), &why))
                }
                None => Ok(patched),
            }
        }
        (PatchKind::Strategic | PatchKind::Apply, _) => Err(Status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
        ])),
    }
}

/// A patch whose outcome is no object of the kind.
fn unpatchable(outcome: String, why: &str) -> Status {
    let error = FieldError::invalid(&Path::new("patch"), outcome, why);
    Status::invalid("", "", "", vec![error])
}

/// Checks a patched object as if it had been sent whole. A strategic merge is told by the patch, all else by its
/// outcome.
pub fn recheck(
    mut value: Value,
    patch: &[u8],
    kind: PatchKind,
    strictness: Strictness,
    shape: Shape<'_>,
) -> Result<Read, Status> {
    if kind != PatchKind::Strategic && shape.is_builtin() {
        let said = |name: &str| value[name].as_str().unwrap_or_default();
        let (version, kind) = (said("apiVersion"), said("kind"));
        let (group, bare) = version.split_once('/').unwrap_or(("", version));
        if apimachinery::schema::for_kind(group, bare, kind).is_none()
            && !version.is_empty()
            && !kind.is_empty()
        {
            let why = not_registered(shape, version, kind);
            return Err(unpatchable(value.to_string(), &why));
        }
        if ["apiVersion", "kind"].iter().any(|name| !matches!(value[*name], Value::Null | Value::String(_))) {
            let text = value.to_string();
            if let Err(why) = codec::type_meta(text.as_bytes(), MediaType::Json) {
                return Err(unpatchable(text, &why.message));
            }
        }
        if version.is_empty() {
            // Upstream reads it as of the version it keeps objects in, which has no metadata that JSON could name.
            return Err(Status::bad_request(
                "the name of the object (one based on URL) was undeterminable: name must be provided",
            ));
        }
    }
    if kind == PatchKind::Strategic
        && let Some(members) = value.as_object_mut()
    {
        // The patch is laid on an object that is known to be of this kind.
        members.remove("apiVersion");
        members.remove("kind");
    }
    if !shape.is_builtin() {
        check_patched_kind(&value, shape)?;
    } else if let Err(status) = check_kind(&mut value, shape) {
        return Err(match status.message.split_once(": ") {
            Some((_, why)) => unpatchable(value.to_string(), why),
            None => status,
        });
    }
    let Some(schema) = shape.schema else { return Ok((value, Vec::new())) };
    let told = |why: &str| match kind {
        PatchKind::Strategic => {
            let patch = serde_json::from_slice(patch).unwrap_or_default();
            unpatchable(apimachinery::go::plain(&patch), why)
        }
        _ => unpatchable(value.to_string(), why),
    };
    let mut doubled = match kind {
        PatchKind::Merge if strictness != Strictness::Ignore => {
            codec::decode(patch, MediaType::Json, schema, Strictness::Warn)
                .map(|d| d.complaints.into_iter().filter(|c| c.starts_with("duplicate")).collect())
                .unwrap_or_default()
        }
        PatchKind::Json if strictness != Strictness::Ignore => patch::json::complaints(patch),
        _ => Vec::new(),
    };
    let lenient = if strictness == Strictness::Strict { Strictness::Warn } else { strictness };
    let mut decoded = codec::normalize(&value, schema, lenient).map_err(|e| told(&e.message))?;
    doubled.append(&mut decoded.complaints);
    if strictness == Strictness::Strict && !doubled.is_empty() {
        return Err(told(&format!("strict decoding error: {}", doubled.join(", "))));
    }
    Ok((decoded.value, doubled))
}

/// Completes an object of the server's own making: kind, version, schema defaults.
pub fn complete(object: &mut Value, entry: &Entry) -> Result<(), Status> {
    check_kind(object, Shape::of(entry))?;
    if let Some(schema) = entry.schema() {
        apimachinery::defaults::apply(object, schema);
    }
    Ok(())
}

/// The schema an object is encoded by, from its own kind and version.
fn schema_of(value: &Value) -> Option<&'static Schema> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
    let kind = text("kind");
    apimachinery::schema::for_kind(group, version, kind)
        .or_else(|| apimachinery::schema::builtin(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")))
}

/// Whether objects of this entry can be shown in protobuf.
pub fn has_protobuf(entry: &Entry, view: View) -> bool {
    match view {
        View::Whole => entry.custom.is_none() && entry.builtin_schema.is_some(),
        View::Metadata => partial_schema().is_some(),
        View::Table => false,
    }
}

fn partial_schema() -> Option<&'static Schema> {
    apimachinery::schema::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata")
}

/// A value on its way into JSON. The members of what is built in come in order, those of custom resources by name.
struct Ordered<'a>(&'a Value);

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let own = |members: &Map<String, Value>| {
            let text = |name: &str| members.get(name).and_then(Value::as_str);
            match (text("apiVersion"), text("kind")) {
                (Some("meta.k8s.io/v1"), Some(_)) => true,
                (Some(version), Some(kind)) => {
                    let (group, version) = version.split_once('/').unwrap_or(("", version));
                    let known = |kind| apimachinery::schema::for_kind(group, version, kind).is_some();
                    known(kind) || kind.strip_suffix("List").is_some_and(known)
                }
                _ => false,
            }
        };
        match self.0 {
            Value::Object(members) if own(members) => InOrder(members).serialize(serializer),
            other => other.serialize(serializer),
        }
    }
}

pub fn encode_value(value: &Value, accept: Accept) -> Result<Vec<u8>, String> {
    match accept.encoding {
        Encoding::Json if accept.pretty => {
            codec::numbers::to_vec_pretty(&Ordered(value)).map_err(|e| e.to_string())
        }
        Encoding::Json => {
            let mut out = Vec::with_capacity(128);
            codec::numbers::to_writer(&mut out, &Ordered(value)).map_err(|e| e.to_string())?;
            out.push(b'\n');
            Ok(out)
        }
        Encoding::Yaml => Ok(codec::encode_yaml(value)),
        Encoding::Protobuf => {
            let schema = schema_of(value).ok_or("the kind has no protobuf form")?;
            Ok(protobuf::encode(value, schema))
        }
    }
}

/// One frame of a watch.
pub fn encode_event(kind: &str, object: &Value, accept: Accept) -> Option<Bytes> {
    if accept.encoding == Encoding::Protobuf {
        let object = encode_value(object, accept).ok()?;
        return Some(protobuf::watch_frame(kind, &object).into());
    }
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    codec::numbers::to_writer(&mut out, &Ordered(object)).ok()?;
    out.extend_from_slice(b"}\n");
    Some(out.into())
}

/// The schema by which stored objects become protobuf as they are: of built-in kinds in their storage version.
pub fn message_schema(entry: &Entry) -> Option<&'static Schema> {
    if entry.custom.is_none() && entry.is_storage_version() { entry.builtin_schema } else { None }
}

/// One object in protobuf, straight from the stored bytes.
pub fn protobuf_object(entry: &Entry, object: &Encoded, schema: &Schema) -> Option<Vec<u8>> {
    let message = object.to_message(schema).ok()?;
    Some(protobuf::wrap(&entry.api_version(), &entry.kind, &message))
}

/// One frame of a protobuf watch, straight from the stored bytes.
pub fn protobuf_event(kind: &str, entry: &Entry, object: &Encoded, schema: &Schema) -> Option<Bytes> {
    Some(protobuf::watch_frame(kind, &protobuf_object(entry, object, schema)?).into())
}

/// What a protobuf list of the objects holds, straight from the stored bytes; `None` where nothing is known of the kind's messages.
pub async fn protobuf_messages(
    show: Show<'_>,
    items: &[std::sync::Arc<Encoded>],
) -> Result<Option<Vec<Bytes>>, Status> {
    /// Items between which others get their turn: about a millisecond.
    const TURN: usize = 128;
    let Some(schema) = show.entry.schema() else { return Ok(None) };
    let stored = message_schema(show.entry);
    let mut messages = Vec::with_capacity(items.len());
    for (i, object) in items.iter().enumerate() {
        messages.push(match stored {
            Some(schema) => object.to_kept_message(schema).map_err(Status::internal)?,
            None => protobuf::encode_message(&show.value(object)?, schema).into(),
        });
        if i % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
    }
    Ok(Some(messages))
}

/// The columns of a built-in resource's table.
pub fn columns(entry: &Entry) -> Vec<Value> {
    api::table::columns(&entry.storage_group, &entry.resource)
        .iter()
        .map(|c| {
            let description = api::table::description(&entry.storage_group, &entry.resource, c);
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": description,
                "priority": c.priority})
        })
        .collect()
}

pub fn cells(entry: &Entry, object: &Value, now: Timestamp) -> Vec<Value> {
    if entry.is_storage_version() {
        return api::table::row(&entry.storage_group, &entry.resource, object, now);
    }
    let mut stored = object.clone();
    api::convert::convert(&mut stored, &entry.storage_group, &entry.storage_version);
    api::table::row(&entry.storage_group, &entry.resource, &stored, now)
}

pub fn row_conditions(entry: &Entry, object: &Value) -> Option<Value> {
    api::table::row_conditions(&entry.storage_group, &entry.resource, object)
}
