//! Kubernetes' protobuf, both ways, led by the schema's numbers. Objects travel in an envelope: the four bytes
//! `k8s\0` and a `runtime.Unknown` with type and message.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::{DecodeError, time};
use crate::schema::{self, Field, Kind, Schema};
use crate::{duration, quantity};

pub const MAGIC: [u8; 4] = *b"k8s\0";

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;
const MAX_DEPTH: usize = 120;

type Result<T> = std::result::Result<T, DecodeError>;

/// An object in its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown<'a> {
    pub api_version: String,
    pub kind: String,
    /// The message itself.
    pub raw: &'a [u8],
}

fn error(message: &str) -> DecodeError {
    DecodeError::new(format!("proto: {message}"))
}

// Reading

struct Wire<'a> {
    rest: &'a [u8],
}

enum Item<'a> {
    Number(u64),
    Fixed64([u8; 8]),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Wire<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (first, rest) = self.rest.split_first().ok_or_else(|| error("unexpected EOF"))?;
            self.rest = rest;
            if shift == 63 && *first > 1 {
                return Err(error("integer overflow"));
            }
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(error("integer overflow"))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        if n > self.rest.len() {
            return Err(error("unexpected EOF"));
        }
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(taken)
    }

    /// The next field's number and content.
    fn next(&mut self) -> Result<Option<(u64, Item<'a>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let item = match tag & 7 {
            VARINT => Item::Number(self.varint()?),
            FIXED64 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(self.take(8)?);
                Item::Fixed64(bytes)
            }
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| error("integer overflow"))?;
                Item::Bytes(self.take(length)?)
            }
            FIXED32 => {
                self.take(4)?;
                Item::Other
            }
            _ => return Err(error("illegal wireType")),
        };
        if tag >> 3 == 0 {
            return Err(error("illegal tag 0"));
        }
        Ok(Some((tag >> 3, item)))
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Opens the envelope.
pub fn unwrap(bytes: &[u8]) -> Result<Unknown<'_>> {
    let Some(body) = bytes.strip_prefix(&MAGIC[..]) else {
        return Err(DecodeError::new(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ));
    };
    let mut unknown = Unknown { api_version: String::new(), kind: String::new(), raw: &[] };
    let mut wire = Wire { rest: body };
    while let Some((number, item)) = wire.next()? {
        match (number, item) {
            (1, Item::Bytes(meta)) => {
                let mut wire = Wire { rest: meta };
                while let Some((number, item)) = wire.next()? {
                    match (number, item) {
                        (1, Item::Bytes(b)) => unknown.api_version = text(b),
                        (2, Item::Bytes(b)) => unknown.kind = text(b),
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(raw)) => unknown.raw = raw,
            _ => {}
        }
    }
    Ok(unknown)
}

/// Decodes an object in its envelope.
pub fn decode(bytes: &[u8], schema: &Schema) -> Result<Value> {
    let unknown = unwrap(bytes)?;
    let mut value = decode_message(unknown.raw, schema)?;
    if let Value::Object(object) = &mut value {
        for (name, text) in [("apiVersion", unknown.api_version), ("kind", unknown.kind)] {
            if !text.is_empty() && schema.field(name).is_some() {
                object.insert(name.to_owned(), Value::String(text));
            }
        }
    }
    Ok(value)
}

/// Decodes a message without envelope.
pub fn decode_message(bytes: &[u8], schema: &Schema) -> Result<Value> {
    message(bytes, schema, 0)
}

fn message(bytes: &[u8], schema: &Schema, depth: usize) -> Result<Value> {
    if depth > MAX_DEPTH {
        return Err(error("exceeded max depth"));
    }
    let mut object = Map::new();
    members(bytes, schema, &[], &mut object, depth)?;
    schema.fill(&mut object);
    Ok(Value::Object(object))
}

/// Whether a value is one that Go would not write into this field.
fn left_out(field: &Field, value: &Value) -> bool {
    if value.is_null() {
        return true;
    }
    if field.pointer() {
        return false;
    }
    match value {
        Value::String(s) => field.omit_empty() && s.is_empty(),
        Value::Bool(b) => field.omit_empty() && !*b,
        Value::Number(n) => field.omit_empty() && n.as_f64() == Some(0.0),
        Value::Object(map) => map.is_empty() && field.omit_zero(),
        Value::Null | Value::Array(_) => false,
    }
}

/// Reads the fields whose numbers begin with `prefix`; inlined structs are messages within the message.
fn members(
    bytes: &[u8],
    schema: &Schema,
    prefix: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<()> {
    let level = prefix.len();
    let mut wire = Wire { rest: bytes };
    while let Some((number, item)) = wire.next()? {
        let found = if level == 0 {
            schema.numbered(number)
        } else {
            let same = |f: &&Field| f.numbers[..level] == *prefix && u64::from(f.numbers[level]) == number;
            schema.fields().iter().find(same)
        };
        let Some(field) = found else { continue };
        let number = field.numbers[level];
        if level + 1 < field.numbers.len() && field.numbers[level + 1] != 0 {
            if let Item::Bytes(inner) = item {
                let mut longer: SmallVec<[u8; 4]> = prefix.into();
                longer.push(number);
                members(inner, schema, &longer, object, depth)?;
            }
            continue;
        }
        match &field.schema.kind {
            Kind::List(items, _) if !field.schema.message() => {
                let list = object
                    .entry(&*field.name)
                    .or_insert_with(|| Value::Array(vec![]))
                    .as_array_mut()
                    .ok_or_else(|| error("a list and something else"))?;
                match item {
                    // Packed numbers.
                    Item::Bytes(mut packed)
                        if matches!(items.kind, Kind::Int32 | Kind::Int64 | Kind::Bool) =>
                    {
                        while !packed.is_empty() {
                            let mut wire = Wire { rest: packed };
                            let n = wire.varint()?;
                            packed = wire.rest;
                            list.push(single(&Item::Number(n), items, depth)?);
                        }
                    }
                    item => list.push(or_zero(single(&item, items, depth)?, items)),
                }
            }
            Kind::Map(values) => {
                let Item::Bytes(entry) = item else { return Err(error("wrong wireType for a map")) };
                let map = object
                    .entry(&*field.name)
                    .or_insert_with(|| Value::Object(Map::new()))
                    .as_object_mut()
                    .ok_or_else(|| error("a map and something else"))?;
                let (mut key, mut value) = (String::new(), None);
                let mut wire = Wire { rest: entry };
                while let Some((number, item)) = wire.next()? {
                    match (number, item) {
                        (1, Item::Bytes(b)) => key = text(b),
                        (2, item) => value = Some(single(&item, values, depth)?),
                        _ => {}
                    }
                }
                let value = match value {
                    Some(value) => or_zero(value, values),
                    None => empty(values),
                };
                map.insert(key, value);
            }
            _ => {
                let value = single(&item, &field.schema, depth)?;
                if !left_out(field, &value) {
                    object.insert(field.name.clone().into_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn or_zero(value: Value, schema: &Schema) -> Value {
    if value.is_null() { empty(schema) } else { value }
}

fn empty(schema: &Schema) -> Value {
    match &schema.kind {
        Kind::Bytes => Value::String(String::new()),
        Kind::Quantity => Value::String("0".into()),
        Kind::List(..) => Value::Array(vec![]),
        Kind::Map(_) => Value::Object(Map::new()),
        _ => schema.zero(),
    }
}

/// One value that is no repeated field; `Null` where Go's value would be null in JSON.
fn single(item: &Item<'_>, schema: &Schema, depth: usize) -> Result<Value> {
    let wrong = || error("wrong wireType");
    let bytes = || match item {
        Item::Bytes(b) => Ok(*b),
        _ => Err(wrong()),
    };
    let number = || match item {
        Item::Number(n) => Ok(*n),
        _ => Err(wrong()),
    };
    Ok(match &schema.kind {
        Kind::Object(_) => message(bytes()?, schema, depth + 1)?,
        Kind::String => Value::String(text(bytes()?)),
        Kind::Bool => Value::Bool(number()? != 0),
        Kind::Int32 => Value::from(number()? as i32),
        Kind::Int64 => Value::from(number()? as i64),
        Kind::Double => {
            let Item::Fixed64(bits) = item else { return Err(wrong()) };
            let double = f64::from_le_bytes(*bits);
            if double.fract() == 0.0 && double.abs() < 9e15 {
                Value::from(double as i64)
            } else {
                Value::from(double)
            }
        }
        Kind::Bytes => Value::String(BASE64.encode(bytes()?)),
        Kind::Quantity => {
            let mut quantity = String::new();
            each(bytes()?, |number, item| {
                if let (1, Item::Bytes(b)) = (number, item) {
                    quantity = text(b);
                }
            })?;
            if quantity.is_empty() {
                Value::String("0".into())
            } else {
                Value::String(quantity::canonical(&quantity).map_err(|e| DecodeError::new(e.to_string()))?)
            }
        }
        Kind::Time | Kind::MicroTime => {
            let bytes = bytes()?;
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            let (mut seconds, mut nanos) = (0, 0);
            each(bytes, |number, item| match (number, item) {
                (1, Item::Number(n)) => seconds = n as i64,
                (2, Item::Number(n)) => nanos = n as i32,
                _ => {}
            })?;
            let at = jiff::Timestamp::new(seconds, nanos).map_err(|_| error("time out of range"))?;
            // Go's zero time, which is null in JSON.
            if seconds == -62_135_596_800 {
                return Ok(Value::Null);
            }
            Value::String(if matches!(schema.kind, Kind::Time) {
                crate::clock::rfc3339_seconds(at)
            } else {
                time::micro_time(at)
            })
        }
        Kind::Duration => {
            let mut nanos = 0;
            each(bytes()?, |number, item| {
                if let (1, Item::Number(n)) = (number, item) {
                    nanos = n as i64;
                }
            })?;
            Value::String(duration::format_nanos(nanos))
        }
        Kind::IntOrString => {
            let (mut kind, mut int, mut string) = (0, 0, String::new());
            each(bytes()?, |number, item| match (number, item) {
                (1, Item::Number(n)) => kind = n,
                (2, Item::Number(n)) => int = n as i32,
                (3, Item::Bytes(b)) => string = text(b),
                _ => {}
            })?;
            if kind == 1 { Value::String(string) } else { Value::from(int) }
        }
        Kind::Raw | Kind::FieldsV1 | Kind::Any => {
            let mut raw: &[u8] = &[];
            let mut wire = Wire { rest: bytes()? };
            while let Some((number, item)) = wire.next()? {
                if let (1, Item::Bytes(b)) = (number, item) {
                    raw = b;
                }
            }
            embedded(raw)?
        }
        Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStringArray => {
            let (mut object, mut list, mut allows) = (None, None::<Vec<Value>>, None);
            let mut wire = Wire { rest: bytes()? };
            let of = json_schema_props()?;
            while let Some((number, item)) = wire.next()? {
                match (&schema.kind, number, item) {
                    (Kind::SchemaOrBool, 1, Item::Number(n)) => allows = Some(n != 0),
                    (Kind::SchemaOrBool, 2, Item::Bytes(b)) | (_, 1, Item::Bytes(b)) => {
                        object = Some(message(b, of, depth + 1)?);
                    }
                    (Kind::SchemaOrStringArray, 2, Item::Bytes(b)) => {
                        list.get_or_insert_default().push(Value::String(text(b)));
                    }
                    (_, 2, Item::Bytes(b)) => {
                        list.get_or_insert_default().push(message(b, of, depth + 1)?);
                    }
                    _ => {}
                }
            }
            match (object, list, allows) {
                (Some(object), _, _) => object,
                (None, Some(list), _) => Value::Array(list),
                (None, None, Some(allows)) => Value::Bool(allows),
                (None, None, None) => Value::Null,
            }
        }
        Kind::List(items, _) => {
            let mut list = vec![];
            let mut wire = Wire { rest: bytes()? };
            while let Some((number, item)) = wire.next()? {
                if number == 1 {
                    list.push(single(&item, items, depth + 1)?);
                }
            }
            Value::Array(list)
        }
        Kind::Map(_) => return Err(error("a map where none can be")),
    })
}

fn each<'a>(bytes: &'a [u8], mut see: impl FnMut(u64, Item<'a>)) -> Result<()> {
    let mut wire = Wire { rest: bytes };
    while let Some((number, item)) = wire.next()? {
        see(number, item);
    }
    Ok(())
}

/// An object within an object: JSON, or protobuf in an envelope.
fn embedded(raw: &[u8]) -> Result<Value> {
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    if raw.starts_with(&MAGIC) {
        let unknown = unwrap(raw)?;
        let (group, version) = unknown.api_version.split_once('/').unwrap_or(("", &unknown.api_version));
        let schema = schema::for_kind(group, version, &unknown.kind)
            .ok_or_else(|| DecodeError::new(format!("no kind {:?} is registered", unknown.kind)))?;
        return decode(raw, schema);
    }
    super::json::decode_any(raw)
}

fn json_schema_props() -> Result<&'static Schema> {
    schema::builtin("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        .ok_or_else(|| error("no schema of schemas"))
}

// Writing

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_number(out: &mut Vec<u8>, number: u8, value: u64) {
    put_varint(out, u64::from(number) << 3 | VARINT);
    put_varint(out, value);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn put_double(out: &mut Vec<u8>, number: u8, value: f64) {
    put_varint(out, u64::from(number) << 3 | FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_tag(out: &mut Vec<u8>, number: u8) {
    put_varint(out, u64::from(number) << 3 | BYTES);
}

/// Writes the length of what follows `start` into the byte before it, moving things along where one byte will not do.
pub(super) fn put_length(out: &mut Vec<u8>, start: usize) {
    let mut length = out.len() - start;
    if length < 0x80 {
        out[start - 1] = length as u8;
        return;
    }
    let mut bytes: SmallVec<[u8; 10]> = SmallVec::new();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    out.splice(start - 1..start, bytes);
}

/// A message whose length is known only once it is written.
fn put_message(out: &mut Vec<u8>, number: u8, write: impl FnOnce(&mut Vec<u8>)) {
    put_tag(out, number);
    out.push(0);
    let start = out.len();
    write(out);
    put_length(out, start);
}

/// Puts a message into the envelope.
pub fn wrap(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + api_version.len() + kind.len() + 24);
    out.extend_from_slice(&MAGIC);
    put_type(&mut out, api_version, kind);
    put_bytes(&mut out, 2, message);
    put_end(&mut out);
    out
}

fn put_type(out: &mut Vec<u8>, api_version: &str, kind: &str) {
    put_message(out, 1, |out| {
        put_bytes(out, 1, api_version.as_bytes());
        put_bytes(out, 2, kind.as_bytes());
    });
}

/// The envelope's last fields, which say nothing.
fn put_end(out: &mut Vec<u8>) {
    put_bytes(out, 3, b"");
    put_bytes(out, 4, b"");
}

/// An object in its envelope; type and version are the object's own.
pub fn encode(value: &Value, schema: &Schema) -> Vec<u8> {
    let own = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    wrap(own("apiVersion"), own("kind"), &encode_message(value, schema))
}

/// A message without envelope.
pub fn encode_message(value: &Value, schema: &Schema) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    put_object(&mut out, value, schema);
    out
}

/// From JSON to protobuf in its envelope, in one pass.
pub fn transcode_json(json: &[u8], schema: &Schema) -> Result<Vec<u8>> {
    let mut message = Vec::with_capacity(json.len());
    let (api_version, kind) = super::transcode::message(json, schema, &mut message)?;
    Ok(wrap(&api_version, &kind, &message))
}

/// From JSON to a message without envelope, such as an item of a list.
pub fn transcode_message(json: &[u8], schema: &Schema) -> Result<Vec<u8>> {
    let mut message = Vec::with_capacity(json.len());
    super::transcode::message(json, schema, &mut message)?;
    // Copied, since an allocator gives back little when a block shrinks where it is.
    Ok(message.as_slice().to_vec())
}

/// How a list of items, given as messages, begins in its envelope. The envelope tells its length before all else, so the lengths
/// of the items must be known; they follow with [`put_list_item`], and [`put_list_end`] after the last.
pub fn list_head(
    api_version: &str,
    list_kind: &str,
    list_meta: &Value,
    items: impl Iterator<Item = usize>,
) -> Vec<u8> {
    let mut meta = Vec::with_capacity(64);
    put_list_meta(&mut meta, list_meta);
    let items: usize = items.map(|length| 1 + varint_length(length as u64) + length).sum();
    let mut head = Vec::with_capacity(128 + meta.len());
    head.extend_from_slice(&MAGIC);
    put_type(&mut head, api_version, list_kind);
    put_varint(&mut head, 2 << 3 | BYTES);
    put_varint(&mut head, (meta.len() + items) as u64);
    head.extend_from_slice(&meta);
    head
}

/// Appends an item of a list, a message.
pub fn put_list_item(out: &mut Vec<u8>, message: &[u8]) {
    put_bytes(out, 2, message);
}

/// Ends a list.
pub fn put_list_end(out: &mut Vec<u8>) {
    put_end(out);
}

fn varint_length(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_list_meta(out: &mut Vec<u8>, list_meta: &Value) {
    if let Some(schema) = schema::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta") {
        put_message(out, 1, |out| put_object(out, list_meta, schema));
    }
}

/// One frame of a watch: four bytes of length and a WatchEvent. `object` is in its envelope.
pub fn watch_frame(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + event_type.len() + 24);
    out.extend_from_slice(&[0; 4]);
    put_bytes(&mut out, 1, event_type.as_bytes());
    put_message(&mut out, 2, |out| put_bytes(out, 1, object));
    let length = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Reads one frame; `None` while it is incomplete. Answers type, object in its envelope, and the bytes used.
pub fn read_watch_frame(bytes: &[u8]) -> Result<Option<(String, &[u8], usize)>> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    let Some(frame) = rest.get(..length) else { return Ok(None) };
    let (mut kind, mut object): (String, &[u8]) = (String::new(), &[]);
    let mut wire = Wire { rest: frame };
    while let Some((number, item)) = wire.next()? {
        match (number, item) {
            (1, Item::Bytes(b)) => kind = text(b),
            (2, Item::Bytes(b)) => {
                let mut wire = Wire { rest: b };
                while let Some((number, item)) = wire.next()? {
                    if let (1, Item::Bytes(raw)) = (number, item) {
                        object = raw;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Some((kind, object, length + 4)))
}

type Present<'a> = SmallVec<[(&'a Field, &'a Value); 16]>;

fn put_object(out: &mut Vec<u8>, value: &Value, schema: &Schema) {
    let Some(object) = value.as_object() else { return };
    let mut present: Present<'_> = SmallVec::new();
    // Both are sorted by name.
    let mut fields = schema.fields().iter();
    for (name, value) in object {
        if let Some(field) = fields.find(|f| *f.name >= **name) {
            if *field.name == **name {
                present.push((field, value));
            } else if let Some(field) = schema.field(name) {
                present.push((field, value));
            } else {
                // Went past an unknown member; start over behind it.
                let at = schema.fields().partition_point(|f| *f.name < **name);
                fields = schema.fields()[at..].iter();
            }
        }
    }
    present.retain(|(field, value)| field.numbers[0] != 0 && !value.is_null());
    present.sort_by_key(|(field, _)| field.numbers);
    put_present(out, &present, 0);
}

fn put_present(out: &mut Vec<u8>, present: &[(&Field, &Value)], level: usize) {
    let mut rest = present;
    while let Some((field, value)) = rest.first() {
        let number = field.numbers[level];
        if level + 1 < field.numbers.len() && field.numbers[level + 1] != 0 {
            let inlined = rest.iter().take_while(|(f, _)| f.numbers[level] == number).count();
            put_message(out, number, |out| put_present(out, &rest[..inlined], level + 1));
            rest = &rest[inlined..];
        } else {
            put_value(out, number, value, &field.schema);
            rest = &rest[1..];
        }
    }
}

pub(super) fn put_value(out: &mut Vec<u8>, number: u8, value: &Value, schema: &Schema) {
    match (&schema.kind, value) {
        (Kind::List(items, _), Value::Array(list)) => {
            if schema.message() {
                put_message(out, number, |out| list.iter().for_each(|v| put_value(out, 1, v, items)));
            } else {
                list.iter().for_each(|v| put_value(out, number, v, items));
            }
        }
        (Kind::Map(values), Value::Object(map)) => {
            for (key, value) in map {
                put_message(out, number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    put_value(out, 2, value, values);
                });
            }
        }
        (Kind::Object(_), Value::Object(_)) => put_message(out, number, |out| put_object(out, value, schema)),
        (Kind::String, Value::String(s)) => put_bytes(out, number, s.as_bytes()),
        (Kind::Bool, Value::Bool(b)) => put_number(out, number, u64::from(*b)),
        (Kind::Int32 | Kind::Int64, Value::Number(n)) => {
            put_number(out, number, n.as_i64().unwrap_or_default() as u64);
        }
        (Kind::Double, Value::Number(n)) => {
            put_double(out, number, n.as_f64().unwrap_or_default());
        }
        (Kind::Bytes, Value::String(s)) => put_bytes(out, number, &BASE64.decode(s).unwrap_or_default()),
        (Kind::Quantity, Value::String(s)) => put_message(out, number, |out| put_bytes(out, 1, s.as_bytes())),
        (Kind::Quantity, Value::Number(n)) => {
            put_message(out, number, |out| put_bytes(out, 1, n.to_string().as_bytes()));
        }
        (Kind::Time | Kind::MicroTime, Value::String(s)) => put_message(out, number, |out| {
            if let Some((seconds, nanos)) = time::seconds(s) {
                put_number(out, 1, seconds as u64);
                put_number(out, 2, i64::from(nanos) as u64);
            }
        }),
        (Kind::Duration, Value::String(s)) => put_message(out, number, |out| {
            put_number(out, 1, duration::parse_nanos(s).unwrap_or_default() as u64);
        }),
        (Kind::IntOrString, Value::String(s)) => put_message(out, number, |out| {
            put_number(out, 1, 1);
            put_number(out, 2, 0);
            put_bytes(out, 3, s.as_bytes());
        }),
        (Kind::IntOrString, Value::Number(n)) => put_message(out, number, |out| {
            put_number(out, 1, 0);
            put_number(out, 2, n.as_i64().unwrap_or_default() as u64);
            put_bytes(out, 3, b"");
        }),
        (Kind::Raw | Kind::FieldsV1 | Kind::Any, value) => {
            put_message(out, number, |out| {
                if !value.is_null() {
                    put_bytes(out, 1, &super::encode_json(value));
                }
            });
        }
        (Kind::SchemaOrBool, Value::Bool(b)) => {
            put_message(out, number, |out| put_number(out, 1, u64::from(*b)));
        }
        (Kind::SchemaOrBool, Value::Object(_)) => put_message(out, number, |out| {
            put_number(out, 1, 1);
            put_schema(out, 2, value);
        }),
        (Kind::SchemaOrArray | Kind::SchemaOrStringArray, Value::Object(_)) => {
            put_message(out, number, |out| put_schema(out, 1, value));
        }
        (Kind::SchemaOrArray, Value::Array(list)) => {
            put_message(out, number, |out| list.iter().for_each(|v| put_schema(out, 2, v)));
        }
        (Kind::SchemaOrStringArray, Value::Array(list)) => put_message(out, number, |out| {
            list.iter().filter_map(Value::as_str).for_each(|s| put_bytes(out, 2, s.as_bytes()));
        }),
        // A value that does not fit its schema cannot be told in protobuf.
        _ => {}
    }
}

fn put_schema(out: &mut Vec<u8>, number: u8, value: &Value) {
    if let Ok(schema) = json_schema_props() {
        put_message(out, number, |out| put_object(out, value, schema));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{MediaType, Strictness};
    use serde_json::json;

    fn canonical(value: &Value, schema: &Schema) -> Value {
        crate::codec::normalize(value, schema, Strictness::Strict).unwrap().value
    }

    #[test]
    fn round_trips() {
        for (group, version, kind, value) in [
            (
                "",
                "v1",
                "Pod",
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"b": "", "a": "1"},
                    "creationTimestamp": "2024-01-02T03:04:05Z", "deletionGracePeriodSeconds": 0,
                    "managedFields": [{"manager": "m", "operation": "Apply", "fieldsType": "FieldsV1",
                        "fieldsV1": {"f:spec": {"f:x": {}}}}]},
                    "spec": {"containers": [{"name": "a", "image": "i", "command": ["x", ""],
                        "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
                        "readinessProbe": {"tcpSocket": {"port": 80}},
                        "resources": {"limits": {"cpu": "500m"}},
                        "env": [{"name": "e", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}}]}],
                        "ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "a"}],
                        "volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}],
                        "terminationGracePeriodSeconds": -1, "enableServiceLinks": false},
                    "status": {"phase": "Running", "startTime": "2024-01-02T03:04:05Z"}}),
            ),
            (
                "",
                "v1",
                "Secret",
                json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "AAEC", "b": ""}, "immutable": false}),
            ),
            (
                "coordination.k8s.io",
                "v1",
                "Lease",
                json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"holderIdentity": "x",
                    "renewTime": "2024-01-02T03:04:05.000006Z"}}),
            ),
            (
                "authorization.k8s.io",
                "v1",
                "SubjectAccessReview",
                json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "u",
                    "extra": {"a": ["b", "c"], "d": []}}}),
            ),
            (
                "apiextensions.k8s.io",
                "v1",
                "CustomResourceDefinition",
                json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {"group": "g",
                    "names": {"plural": "as", "kind": "A"}, "scope": "Namespaced", "versions": [{"name": "v1",
                    "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "a": {"type": "array", "items": {"type": "string"}, "minItems": 0, "x-kubernetes-list-type": "set"},
                        "b": {"type": "object", "additionalProperties": true}, "c": {"type": "object",
                        "additionalProperties": {"type": "number", "maximum": 1.5}}, "d": {"default": {"x": [1, null]},
                        "enum": ["a", 1]}}}}}]}}),
            ),
            (
                "",
                "v1",
                "DeleteOptions",
                json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                "preconditions": {"uid": "u"}, "propagationPolicy": "Background"}),
            ),
            ("", "v1", "Status", crate::status::Status::not_found("pods", "", "x").to_value()),
            (
                "apps",
                "v1",
                "ControllerRevision",
                json!({"apiVersion": "apps/v1", "kind": "ControllerRevision",
                "data": {"spec": {"a": [1]}}, "revision": 3}),
            ),
        ] {
            let schema = schema::for_kind(group, version, kind).unwrap();
            let value = canonical(&value, schema);
            let bytes = encode(&value, schema);
            let decoded =
                crate::codec::decode(&bytes, MediaType::Protobuf, schema, Strictness::Warn).unwrap();
            assert_eq!(decoded.value, value, "{kind}");
            assert_eq!(crate::codec::type_meta(&bytes, MediaType::Protobuf).unwrap().1, kind);
        }
    }

    #[test]
    fn known_bytes() {
        let schema = schema::for_kind("", "v1", "ConfigMap").unwrap();
        let value =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"}});
        let want = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01x\x12\x06\x0a\x01a\x12\x01b\x1a\0\x22\0";
        assert_eq!(encode(&value, schema), want);
    }

    #[test]
    fn lists_and_frames() {
        let pod = schema::for_kind("", "v1", "Pod").unwrap();
        let list = schema::for_kind("", "v1", "PodList").unwrap();
        let value = canonical(&json!({"metadata": {"name": "a"}}), pod);
        let item = encode_message(&value, pod);
        let mut bytes = vec![];
        let first = transcode_message(&crate::codec::encode_json(&value), pod).unwrap();
        for count in [1, 2, 40_000] {
            let items = || std::iter::once(&first).chain(std::iter::repeat_n(&item, count - 1));
            let lengths = items().map(Vec::len);
            bytes = list_head("v1", "PodList", &json!({"resourceVersion": "7"}), lengths);
            items().for_each(|item| put_list_item(&mut bytes, item));
            put_list_end(&mut bytes);
            let decoded = decode(&bytes, list).unwrap();
            let items = vec![value.clone(); count];
            assert_eq!(
                decoded,
                json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": items})
            );
        }
        let frame = watch_frame("ADDED", &bytes);
        assert_eq!(read_watch_frame(&frame).unwrap(), Some(("ADDED".into(), &bytes[..], frame.len())));
        assert_eq!(read_watch_frame(&frame[..frame.len() - 1]).unwrap(), None);
    }

    #[test]
    fn refuses_rubbish() {
        let pod = schema::for_kind("", "v1", "Pod").unwrap();
        for bytes in [
            &b""[..],
            b"{}",
            b"k8s\0\xff",
            b"k8s\0\x12\x05abc",
            b"k8s\0\x12\x02\x0a\x7f",
            b"k8s\0\x12\x02\x08\x01",
        ] {
            assert!(decode(bytes, pod).is_err(), "{bytes:?}");
        }
    }
}
