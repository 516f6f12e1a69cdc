//! JSON to protobuf in one pass, without values in between: lists and watches in protobuf are made from the stored
//! bytes this way. What is any JSON (managed fields, raw extensions) is copied as it is. Fields come out in the order
//! of the JSON; inlined structs come in pieces, which every reader merges.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::json::Reader;
use super::protobuf::{self, put_bytes, put_double, put_number};
use super::{DecodeError, time};
use crate::duration;
use crate::schema::{Kind, Schema};

type Result<T> = std::result::Result<T, DecodeError>;

/// Appends the message of a JSON object; answers its `apiVersion` and `kind`.
pub fn message(json: &[u8], schema: &Schema, out: &mut Vec<u8>) -> Result<(String, String)> {
    let text = std::str::from_utf8(json).map_err(|e| DecodeError::new(e.to_string()))?;
    let mut reader = Reader::new(text, false, false);
    reader.blanks();
    let mut types = (String::new(), String::new());
    object(&mut reader, schema, out, Some(&mut types))?;
    reader.end()?;
    Ok(types)
}

/// Opens a message of unknown length; [`close`] puts the length in.
fn open(out: &mut Vec<u8>, number: u8) -> usize {
    protobuf::put_tag(out, number);
    out.push(0);
    out.len()
}

fn close(out: &mut Vec<u8>, start: usize) {
    protobuf::put_length(out, start);
}

fn object(
    reader: &mut Reader<'_>,
    schema: &Schema,
    out: &mut Vec<u8>,
    mut types: Option<&mut (String, String)>,
) -> Result<()> {
    reader.deeper()?;
    if !reader.open(b'{')? {
        return Ok(());
    }
    let mut expected = 0;
    loop {
        let key = reader.key()?;
        match schema.field_near(&key, &mut expected) {
            Some(field) if field.numbers[0] != 0 => {
                if reader.peek() == Some(b'n') {
                    reader.literal("null")?;
                } else {
                    let numbers = field.numbers;
                    let depth = numbers.iter().take_while(|n| **n != 0).count();
                    let starts: [usize; 3] =
                        std::array::from_fn(|i| if i + 1 < depth { open(out, numbers[i]) } else { 0 });
                    value(reader, numbers[depth - 1], &field.schema, out)?;
                    for start in starts.into_iter().rev().filter(|s| *s != 0) {
                        close(out, start);
                    }
                }
            }
            _ => match &mut types {
                Some(types) if &*key == "apiVersion" => types.0 = reader.any_string()?,
                Some(types) if &*key == "kind" => types.1 = reader.any_string()?,
                _ => reader.skip()?,
            },
        }
        if reader.after_member(b'}', "after object key:value pair")? {
            break;
        }
    }
    reader.shallower();
    Ok(())
}

fn value(reader: &mut Reader<'_>, number: u8, schema: &Schema, out: &mut Vec<u8>) -> Result<()> {
    let first = reader.peek();
    if first == Some(b'n') {
        return reader.literal("null");
    }
    let quoted = first == Some(b'"');
    match &schema.kind {
        Kind::Object(_) => {
            let start = open(out, number);
            object(reader, schema, out, None)?;
            close(out, start);
        }
        Kind::List(items, _) => {
            let start = schema.message().then(|| open(out, number));
            let number = if start.is_some() { 1 } else { number };
            reader.deeper()?;
            if reader.open(b'[')? {
                loop {
                    reader.blanks();
                    value(reader, number, items, out)?;
                    if reader.after_member(b']', "after array element")? {
                        break;
                    }
                }
                reader.shallower();
            }
            if let Some(start) = start {
                close(out, start);
            }
        }
        Kind::Map(values) => {
            reader.deeper()?;
            if reader.open(b'{')? {
                loop {
                    let key = reader.key()?;
                    let start = open(out, number);
                    put_bytes(out, 1, key.as_bytes());
                    value(reader, 2, values, out)?;
                    close(out, start);
                    if reader.after_member(b'}', "after object key:value pair")? {
                        break;
                    }
                }
                reader.shallower();
            }
        }
        Kind::Raw | Kind::FieldsV1 | Kind::Any => {
            let raw = reader.raw()?;
            let start = open(out, number);
            put_bytes(out, 1, raw.as_bytes());
            close(out, start);
        }
        Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStringArray => {
            let any = reader.any()?;
            protobuf::put_value(out, number, &any, schema);
        }
        Kind::Bool => {
            let truth = reader.boolean()?;
            put_number(out, number, u64::from(truth));
        }
        Kind::Int32 | Kind::Int64 => {
            let text = reader.number()?;
            let parsed: i64 = text.parse().map_err(|_| DecodeError::new(format!("{text} is no integer")))?;
            put_number(out, number, parsed as u64);
        }
        Kind::Double => {
            let text = reader.number()?;
            put_double(out, number, text.parse().unwrap_or_default());
        }
        Kind::IntOrString if !quoted => {
            let parsed: i64 = reader.number()?.parse().unwrap_or_default();
            let start = open(out, number);
            put_number(out, 1, 0);
            put_number(out, 2, parsed as u64);
            put_bytes(out, 3, b"");
            close(out, start);
        }
        Kind::Quantity if !quoted => {
            let text = reader.number()?;
            let start = open(out, number);
            put_bytes(out, 1, text.as_bytes());
            close(out, start);
        }
        _ if !quoted => return Err(DecodeError::new(format!("a {} that is no string", schema.go_type()))),
        Kind::String => {
            let text = reader.string()?;
            put_bytes(out, number, text.as_bytes());
        }
        Kind::Bytes => {
            let text = reader.string()?;
            put_bytes(out, number, &BASE64.decode(text.as_bytes()).unwrap_or_default());
        }
        Kind::Quantity => {
            let text = reader.string()?;
            let start = open(out, number);
            put_bytes(out, 1, text.as_bytes());
            close(out, start);
        }
        Kind::Time | Kind::MicroTime => {
            let text = reader.string()?;
            let start = open(out, number);
            if let Some((seconds, nanos)) = time::seconds(&text) {
                put_number(out, 1, seconds as u64);
                put_number(out, 2, i64::from(nanos) as u64);
            }
            close(out, start);
        }
        Kind::Duration => {
            let text = reader.string()?;
            let start = open(out, number);
            put_number(out, 1, duration::parse_nanos(&text).unwrap_or_default() as u64);
            close(out, start);
        }
        Kind::IntOrString => {
            let text = reader.string()?;
            let start = open(out, number);
            put_number(out, 1, 1);
            put_number(out, 2, 0);
            put_bytes(out, 3, text.as_bytes());
            close(out, start);
        }
    }
    Ok(())
}
