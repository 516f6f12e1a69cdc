//! JSON to values in one pass over the bytes, led by the schema.

use std::borrow::Cow;

use base64::Engine;
use serde_json::{Map, Number, Value};

use super::inlined::inlined;
use super::{DecodeError, Decoded, normalize_micro_time, normalize_time, numbers};
use crate::schema::{Kind, Schema};
use crate::{prune, quantity};

/// Deeper nesting is refused; stored objects are read by readers that go to 128.
const MAX_DEPTH: usize = 120;
/// More complaints are not collected.
const MAX_COMPLAINTS: usize = 100;

type Result<T> = std::result::Result<T, DecodeError>;

pub(super) fn decode(bytes: &[u8], schema: &Schema, complain: bool, canonical: bool) -> Result<Decoded> {
    let text = text_of(bytes);
    let mut reader = Reader::new(&text, complain, canonical);
    reader.root = Some(schema);
    reader.custom = schema.is_custom();
    reader.blanks();
    let value = match reader.peek() {
        Some(b'{') => reader.value(schema)?.unwrap_or_default(),
        _ => {
            let found = reader.any()?;
            return Err(DecodeError::new(format!(
                "json: cannot unmarshal {} into Go value of type {}",
                kind_of(&found),
                schema.go_type()
            )));
        }
    };
    reader.end()?;
    let (mut value, mut complaints) = (value, reader.complaints);
    if schema.is_custom() {
        if canonical {
            prune::nulls(&mut value, schema);
        }
        complaints.sort_by(|a, b| rank(a).cmp(&rank(b)));
    }
    Ok(Decoded { value, complaints })
}

/// Of custom resources, fields that come twice are told first, in their order, then unknown ones: of the metadata, and all
/// others by name.
fn rank(complaint: &str) -> (u8, &str) {
    match complaint.strip_prefix("unknown field ") {
        None => (0, ""),
        Some(path) if path.starts_with("\"metadata.") => (1, ""),
        Some(path) => (2, path),
    }
}

/// The bytes as text, broken characters replaced. Checking first is much quicker than replacing.
fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

pub(super) fn decode_any(bytes: &[u8]) -> Result<Value> {
    let text = text_of(bytes);
    let mut reader = Reader::new(&text, false, false);
    reader.blanks();
    let value = reader.any()?;
    reader.end()?;
    Ok(value)
}

/// What Go would say about a document that another parser refused.
pub(super) fn explain(bytes: &[u8], error: &serde_json::Error) -> String {
    match decode_any(bytes) {
        Err(e) => e.message,
        Ok(_) => error.to_string(),
    }
}

pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What Go makes of a member that comes twice: it reads the second into what the first has left.
fn laid_over(before: Value, again: Value) -> Value {
    match (before, again) {
        (Value::Object(mut all), Value::Object(more)) => {
            for (name, value) in more {
                let value = match all.remove(&name) {
                    Some(before) => laid_over(before, value),
                    None => value,
                };
                all.insert(name, value);
            }
            Value::Object(all)
        }
        (_, again) => again,
    }
}

enum Segment<'a> {
    Field(Cow<'a, str>),
    /// Of a map.
    Key(Cow<'a, str>),
    Index(usize),
}

pub(super) struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    path: Vec<Segment<'a>>,
    /// The innermost struct, for messages.
    inside: &'a str,
    /// The schema of the whole document, for messages.
    root: Option<&'a Schema>,
    /// Whether the document is a custom resource, which Go reads without types.
    custom: bool,
    complain: bool,
    canonical: bool,
    complaints: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, complain: bool, canonical: bool) -> Reader<'a> {
        Reader {
            text,
            bytes: text.as_bytes(),
            at: 0,
            depth: 0,
            path: Vec::with_capacity(12),
            inside: "",
            root: None,
            custom: false,
            complain,
            canonical,
            complaints: vec![],
        }
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub(super) fn blanks(&mut self) {
        while let Some(b' ' | b'\n' | b'\t' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    pub(super) fn end(&mut self) -> Result<()> {
        self.blanks();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("after top-level value")),
        }
    }

    fn unexpected(&self, context: &str) -> DecodeError {
        match self.text.get(self.at..).and_then(|rest| rest.chars().next()) {
            None => DecodeError::new("unexpected end of JSON input"),
            Some('\'') => DecodeError::new(format!("invalid character '\\'' {context}")),
            Some(c) => DecodeError::new(format!("invalid character '{}' {context}", c.escape_default())),
        }
    }

    pub(super) fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(DecodeError::new("exceeded max depth")) } else { Ok(()) }
    }

    pub(super) fn shallower(&mut self) {
        self.depth -= 1;
    }

    /// Opens an object or a list; `false` if it is empty, and then it is closed as well.
    pub(super) fn open(&mut self, bracket: u8) -> Result<bool> {
        if self.peek() != Some(bracket) {
            return Err(self.unexpected("looking for beginning of object or array"));
        }
        self.at += 1;
        self.blanks();
        // `]` and `}` are each two above their opening brackets in ASCII.
        if self.peek() == Some(bracket + 2) {
            self.at += 1;
            self.depth -= 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// A string; anything else is passed over and is empty.
    pub(super) fn any_string(&mut self) -> Result<String> {
        if self.peek() == Some(b'"') {
            return Ok(self.string()?.into_owned());
        }
        self.skip()?;
        Ok(String::new())
    }

    /// The text of the next value.
    pub(super) fn raw(&mut self) -> Result<&'a str> {
        let start = self.at;
        self.skip()?;
        Ok(&self.text[start..self.at])
    }

    /// Passes over a value.
    pub(super) fn skip(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'{') => {
                self.deeper()?;
                if self.open(b'{')? {
                    loop {
                        self.key()?;
                        self.skip()?;
                        if self.after_member(b'}', "after object key:value pair")? {
                            break;
                        }
                    }
                    self.depth -= 1;
                }
                Ok(())
            }
            Some(b'[') => {
                self.deeper()?;
                if self.open(b'[')? {
                    loop {
                        self.blanks();
                        self.skip()?;
                        if self.after_member(b']', "after array element")? {
                            break;
                        }
                    }
                    self.depth -= 1;
                }
                Ok(())
            }
            Some(b'"') => self.string().map(|_| ()),
            _ => self.any().map(|_| ()),
        }
    }

    /// The value of a schema; `None` where it is null and Go would see nothing.
    fn value(&mut self, schema: &Schema) -> Result<Option<Value>> {
        let first = self.peek();
        if first == Some(b'n') {
            self.literal("null")?;
            return Ok(if schema.is_custom() { Some(Value::Null) } else { None });
        }
        let fits = matches!(
            (&schema.kind, first),
            (Kind::Object(_) | Kind::Map(_) | Kind::FieldsV1, Some(b'{'))
                | (Kind::List(..), Some(b'['))
                | (
                    Kind::String
                        | Kind::Bytes
                        | Kind::Time
                        | Kind::MicroTime
                        | Kind::Duration
                        | Kind::Quantity
                        | Kind::IntOrString,
                    Some(b'"'),
                )
                | (Kind::Bool, Some(b't' | b'f'))
                | (
                    Kind::Int32 | Kind::Int64 | Kind::Double | Kind::Quantity | Kind::IntOrString,
                    Some(b'-' | b'0'..=b'9'),
                )
                | (
                    Kind::Any
                        | Kind::Raw
                        | Kind::SchemaOrArray
                        | Kind::SchemaOrBool
                        | Kind::SchemaOrStringArray,
                    _,
                )
        );
        if !fits {
            let start = self.at;
            let found = self.any()?;
            if schema.is_custom() {
                return Ok(Some(found));
            }
            if matches!(schema.kind, Kind::Quantity) {
                let text = &self.text[start..self.at];
                let why = quantity::canonical(text).err().unwrap_or(quantity::ParseError::Format);
                return Err(DecodeError::new(why.to_string()));
            }
            if matches!(schema.kind, Kind::Time | Kind::MicroTime | Kind::Duration) {
                // Go reads these as texts first.
                return Err(self.mismatch_of(kind_of(&found), "string"));
            }
            return Err(self.mismatch(kind_of(&found), schema));
        }
        let value = match &schema.kind {
            Kind::Object(_) => self.object(schema)?,
            Kind::Map(values) => self.map(values)?,
            Kind::List(items, _) => self.list(items)?,
            Kind::Any
            | Kind::Raw
            | Kind::FieldsV1
            | Kind::SchemaOrArray
            | Kind::SchemaOrBool
            | Kind::SchemaOrStringArray => self.any()?,
            Kind::String => Value::String(self.string()?.into_owned()),
            Kind::Bool => Value::Bool(self.boolean()?),
            _ if schema.is_custom() => self.any()?,
            Kind::Int32 | Kind::Int64 => self.integer(schema)?,
            Kind::Double => {
                let number = self.number()?;
                let parsed: Option<f64> = number.parse().ok();
                match parsed.and_then(Number::from_f64) {
                    // Whole numbers stay whole, as Go prints them.
                    Some(_) => parse_number(number),
                    None => return Err(self.mismatch(&format!("number {number}"), schema)),
                }
            }
            Kind::Quantity => {
                let text: Cow<'_, str> =
                    if first == Some(b'"') { self.string()? } else { self.number()?.into() };
                quantity::canonical(&text).map(Value::String).map_err(|e| DecodeError::new(e.to_string()))?
            }
            Kind::IntOrString => {
                if first == Some(b'"') {
                    Value::String(self.string()?.into_owned())
                } else {
                    let number = self.number()?;
                    match number.parse::<i32>() {
                        Ok(n) => n.into(),
                        Err(_) => {
                            return Err(self.mismatch_of(&format!("number {number}"), "int32"));
                        }
                    }
                }
            }
            Kind::Bytes => self.base64()?,
            Kind::Time | Kind::MicroTime => {
                let text = self.string()?;
                let normal = if matches!(schema.kind, Kind::Time) {
                    normalize_time(&text)
                } else {
                    normalize_micro_time(&text)
                };
                Value::String(normal.map_err(DecodeError::new)?)
            }
            Kind::Duration => {
                let text = self.string()?;
                let nanos = crate::duration::read(&text).map_err(DecodeError::new)?;
                Value::String(crate::duration::format_nanos(nanos))
            }
        };
        Ok(Some(value))
    }

    fn object(&mut self, schema: &Schema) -> Result<Value> {
        self.deeper()?;
        let mut object = Map::new();
        let outer = std::mem::replace(&mut self.inside, schema.go);
        let custom = schema.is_custom();
        self.at += 1;
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            let mut expected = 0;
            // The fields that were there, by their place in the schema; what is left out below leaves no other trace.
            let mut seen = 0u64;
            let mut unknown: Vec<String> = Vec::new();
            loop {
                let key = self.key()?;
                match schema.field_near(&key, &mut expected) {
                    Some(field) => {
                        let bit = u32::try_from(expected).ok().and_then(|n| 1u64.checked_shl(n)).unwrap_or(0);
                        // Of more fields than there are bits, those that left something.
                        let again = seen & bit != 0 || bit == 0 && object.contains_key(&*key);
                        seen |= bit;
                        self.path.push(Segment::Field(key));
                        let value = self.value(&field.schema)?;
                        let keep = match value {
                            None => None,
                            Some(value) => {
                                let drop = self.canonical
                                    && !field.pointer()
                                    && match &value {
                                        Value::String(s) => field.omit_empty() && s.is_empty(),
                                        Value::Bool(b) => field.omit_empty() && !b,
                                        Value::Number(n) => {
                                            field.omit_empty()
                                                && (n.as_i64() == Some(0) || n.as_f64() == Some(0.0))
                                        }
                                        // An emptied list of managed fields resets ownership.
                                        Value::Array(list) => {
                                            field.omit_empty()
                                                && list.is_empty()
                                                && field.name != "managedFields"
                                        }
                                        Value::Object(map) => {
                                            map.is_empty()
                                                && if matches!(field.schema.kind, Kind::Map(_)) {
                                                    field.omit_empty()
                                                } else {
                                                    field.omit_zero()
                                                }
                                        }
                                        Value::Null => false,
                                    };
                                if drop { None } else { Some(value) }
                            }
                        };
                        let key = match self.path.pop() {
                            Some(Segment::Field(key)) => key,
                            _ => Cow::Borrowed(""),
                        };
                        if again {
                            self.complain("duplicate field", key.clone());
                        }
                        if let Some(mut value) = keep {
                            if again
                                && !self.custom
                                && let Some(before) = object.remove(&*key)
                            {
                                value = laid_over(before, value);
                            }
                            object.insert(key.into_owned(), value);
                        }
                    }
                    None => {
                        let (key, value) = self.any_member(key)?;
                        // What is applied to an object that declares nothing is owned before it is dropped.
                        let applied = || custom && !self.canonical && schema.fields().is_empty();
                        if schema.preserves_unknown() || applied() {
                            self.insert(&mut object, key, value);
                        } else {
                            if custom {
                                if unknown.iter().any(|k| *k == key) {
                                    self.complain("duplicate field", key.clone());
                                } else if self.complain && unknown.len() < MAX_COMPLAINTS {
                                    unknown.push(key.clone().into_owned());
                                }
                            }
                            self.complain("unknown field", key);
                        }
                    }
                }
                if self.after_member(b'}', "after object key:value pair")? {
                    break;
                }
            }
        }
        if self.canonical && !custom {
            schema.fill(&mut object);
        }
        self.inside = outer;
        self.depth -= 1;
        Ok(Value::Object(object))
    }

    fn map(&mut self, values: &Schema) -> Result<Value> {
        self.deeper()?;
        let mut object = Map::new();
        self.at += 1;
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                let key = self.key()?;
                self.path.push(Segment::Key(key));
                let value = match self.value(values)? {
                    Some(value) => value,
                    // Stored, bytes that are null are empty.
                    None if matches!(values.kind, Kind::Bytes) => Value::String(String::new()),
                    None => values.zero(),
                };
                let key = match self.path.pop() {
                    Some(Segment::Key(key)) => key,
                    _ => Cow::Borrowed(""),
                };
                if object.contains_key(&*key) {
                    self.complain("duplicate field", key.clone());
                }
                object.insert(key.into_owned(), value);
                if self.after_member(b'}', "after object key:value pair")? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(Value::Object(object))
    }

    fn list(&mut self, items: &Schema) -> Result<Value> {
        self.deeper()?;
        let mut list = vec![];
        self.at += 1;
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                self.blanks();
                self.path.push(Segment::Index(list.len()));
                let value = match self.value(items)? {
                    Some(value) => value,
                    None => items.zero(),
                };
                self.path.pop();
                list.push(value);
                if self.after_member(b']', "after array element")? {
                    break;
                }
            }
        }
        self.depth -= 1;
        Ok(Value::Array(list))
    }

    /// Reads a key and the colon; leaves the reader at the value.
    pub(super) fn key(&mut self) -> Result<Cow<'a, str>> {
        self.blanks();
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("looking for beginning of object key string"));
        }
        let key = self.string()?;
        self.blanks();
        if self.peek() != Some(b':') {
            return Err(self.unexpected("after object key"));
        }
        self.at += 1;
        self.blanks();
        Ok(key)
    }

    /// After an element: whether the object or array ends here.
    pub(super) fn after_member(&mut self, close: u8, context: &str) -> Result<bool> {
        self.blanks();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(false)
            }
            Some(b) if b == close => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(self.unexpected(context)),
        }
    }

    /// The value of a member without a type. Only custom resources are told where in it something is wrong.
    fn any_member(&mut self, key: Cow<'a, str>) -> Result<(Cow<'a, str>, Value)> {
        if !self.custom {
            return Ok((key, self.any()?));
        }
        self.path.push(Segment::Key(key));
        let value = self.any()?;
        match self.path.pop() {
            Some(Segment::Key(key)) => Ok((key, value)),
            _ => Ok((Cow::Borrowed(""), value)),
        }
    }

    /// Puts a member of what has no type into its object; one that comes twice is told of in custom resources.
    fn insert(&mut self, object: &mut Map<String, Value>, key: Cow<'a, str>, value: Value) {
        if self.custom && self.complain && object.contains_key(&*key) {
            self.complain("duplicate field", key.clone());
        }
        object.insert(key.into_owned(), value);
    }

    pub(super) fn any(&mut self) -> Result<Value> {
        match self.peek() {
            Some(b'{') => {
                self.deeper()?;
                let mut object = Map::new();
                self.at += 1;
                self.blanks();
                if self.peek() == Some(b'}') {
                    self.at += 1;
                } else {
                    loop {
                        let key = self.key()?;
                        let (key, value) = self.any_member(key)?;
                        self.insert(&mut object, key, value);
                        if self.after_member(b'}', "after object key:value pair")? {
                            break;
                        }
                    }
                }
                self.depth -= 1;
                Ok(Value::Object(object))
            }
            Some(b'[') => {
                self.deeper()?;
                let mut list = vec![];
                self.at += 1;
                self.blanks();
                if self.peek() == Some(b']') {
                    self.at += 1;
                } else {
                    loop {
                        self.blanks();
                        if self.custom {
                            self.path.push(Segment::Index(list.len()));
                        }
                        list.push(self.any()?);
                        if self.custom {
                            self.path.pop();
                        }
                        if self.after_member(b']', "after array element")? {
                            break;
                        }
                    }
                }
                self.depth -= 1;
                Ok(Value::Array(list))
            }
            Some(b'"') => Ok(Value::String(self.string()?.into_owned())),
            Some(b't' | b'f') => Ok(Value::Bool(self.boolean()?)),
            Some(b'n') => {
                self.literal("null")?;
                Ok(Value::Null)
            }
            Some(b'-' | b'0'..=b'9') => {
                let number = self.number()?;
                if self.custom {
                    return numbers::untyped(number).ok_or_else(|| {
                        DecodeError::new(format!(
                            "json: cannot unmarshal number {number} into Go value of type float64"
                        ))
                    });
                }
                Ok(parse_number(number))
            }
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    pub(super) fn boolean(&mut self) -> Result<bool> {
        if self.peek() == Some(b't') {
            self.literal("true")?;
            Ok(true)
        } else {
            self.literal("false")?;
            Ok(false)
        }
    }

    pub(super) fn literal(&mut self, word: &str) -> Result<()> {
        for (i, expected) in word.char_indices() {
            if self.peek() != Some(expected as u8) {
                return Err(self.unexpected(&format!("in literal {word} (expecting '{}')", &word[i..=i])));
            }
            self.at += 1;
        }
        Ok(())
    }

    pub(super) fn number(&mut self) -> Result<&'a str> {
        let start = self.at;
        let digits = |reader: &mut Self| {
            let from = reader.at;
            while reader.peek().is_some_and(|b| b.is_ascii_digit()) {
                reader.at += 1;
            }
            reader.at > from
        };
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else if !digits(self) {
            return Err(self.unexpected("in numeric literal"));
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if !digits(self) {
                return Err(self.unexpected("after decimal point in numeric literal"));
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if !digits(self) {
                return Err(self.unexpected("in exponent of numeric literal"));
            }
        }
        Ok(&self.text[start..self.at])
    }

    fn integer(&mut self, schema: &Schema) -> Result<Value> {
        let number = self.number()?;
        let parsed = number.parse::<i64>().ok().filter(|n| {
            matches!(schema.kind, Kind::Int64) || (i64::from(i32::MIN)..=i64::from(i32::MAX)).contains(n)
        });
        parsed.map(Value::from).ok_or_else(|| self.mismatch(&format!("number {number}"), schema))
    }

    fn base64(&mut self) -> Result<Value> {
        let text = self.string()?;
        let engine = &base64::engine::general_purpose::STANDARD;
        if engine.decode(text.as_bytes()).is_ok() {
            return Ok(Value::String(text.into_owned()));
        }
        let joined: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        match engine.decode(&joined) {
            Ok(_) => Ok(Value::String(joined)),
            Err(e) => {
                let at = match e {
                    base64::DecodeError::InvalidByte(at, _)
                    | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    _ => joined.len() / 4 * 4,
                };
                Err(DecodeError::new(format!("illegal base64 data at input byte {at}")))
            }
        }
    }

    /// A string, from its opening quote.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>> {
        self.at += 1;
        let start = self.at;
        while let Some(eight) = self.bytes.get(self.at..self.at + 8) {
            let special = special_bytes(u64::from_le_bytes(eight.try_into().unwrap_or_default()));
            if special != 0 {
                self.at += special.trailing_zeros() as usize / 8;
                break;
            }
            self.at += 8;
        }
        while let Some(b) = self.peek() {
            match b {
                b'"' => {
                    let text = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(Cow::Borrowed(text));
                }
                b'\\' => return self.escaped(start).map(Cow::Owned),
                0..0x20 => return Err(self.unexpected("in string literal")),
                _ => self.at += 1,
            }
        }
        Err(self.unexpected("in string literal"))
    }

    fn escaped(&mut self, start: usize) -> Result<String> {
        let mut out = self.text[start..self.at].to_owned();
        let mut run = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    out.push_str(&self.text[run..self.at]);
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    out.push_str(&self.text[run..self.at]);
                    self.at += 1;
                    let c = match self.peek() {
                        Some(b'"') => '"',
                        Some(b'\\') => '\\',
                        Some(b'/') => '/',
                        Some(b'b') => '\u{8}',
                        Some(b'f') => '\u{c}',
                        Some(b'n') => '\n',
                        Some(b'r') => '\r',
                        Some(b't') => '\t',
                        Some(b'u') => {
                            self.at += 1;
                            let unit = self.hex4()?;
                            let c = self.surrogates(unit)?;
                            out.push(c);
                            run = self.at;
                            continue;
                        }
                        _ => return Err(self.unexpected("in string escape code")),
                    };
                    out.push(c);
                    self.at += 1;
                    run = self.at;
                }
                Some(0..0x20) | None => return Err(self.unexpected("in string literal")),
                Some(_) => self.at += 1,
            }
        }
    }

    fn hex4(&mut self) -> Result<u32> {
        let mut unit = 0;
        for _ in 0..4 {
            match self.peek().and_then(|b| (b as char).to_digit(16)) {
                Some(digit) => unit = unit * 16 + digit,
                None => return Err(self.unexpected("in \\u hexadecimal character escape")),
            }
            self.at += 1;
        }
        Ok(unit)
    }

    /// The character of a UTF-16 unit and, for a high surrogate, the low one that follows.
    fn surrogates(&mut self, unit: u32) -> Result<char> {
        if (0xd800..0xdc00).contains(&unit) && self.bytes[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let c = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(c).unwrap_or('\u{fffd}'));
            }
            self.at = back;
        }
        Ok(char::from_u32(unit).unwrap_or('\u{fffd}'))
    }

    fn mismatch(&self, found: &str, schema: &Schema) -> DecodeError {
        self.mismatch_of(found, &schema.go_type())
    }

    fn mismatch_of(&self, found: &str, go: &str) -> DecodeError {
        let mut fields = self.fields();
        if self.custom && !fields.is_empty() {
            // Of custom resources Go reads the metadata by itself.
            fields.remove(0);
        }
        DecodeError::new(if fields.is_empty() {
            format!("json: cannot unmarshal {found} into Go value of type {go}")
        } else {
            let inside = self.inside.rsplit('.').next().unwrap_or("");
            format!(
                "json: cannot unmarshal {found} into Go struct field {inside}.{} of type {go}",
                fields.join(".")
            )
        })
    }

    /// The fields on the way as Go names them: without the keys of maps, with the structs that others inline.
    fn fields(&self) -> Vec<&str> {
        let mut schema = self.root;
        let mut fields = vec![];
        for segment in &self.path {
            schema = match (segment, schema.map(|s| (s, &s.kind))) {
                (Segment::Field(name), Some((outer, _))) => {
                    let field = outer.field(name);
                    fields.extend(field.into_iter().flat_map(|f| inlined(outer.go, f)));
                    fields.push(&**name);
                    field.map(|f| &*f.schema)
                }
                (Segment::Field(name), None) => {
                    fields.push(&**name);
                    None
                }
                (Segment::Key(_), Some((_, Kind::Map(inner))))
                | (Segment::Index(_), Some((_, Kind::List(inner, _)))) => Some(&**inner),
                _ => None,
            };
        }
        fields
    }

    fn complain(&mut self, what: &str, last: Cow<'_, str>) {
        if !self.complain || self.complaints.len() >= MAX_COMPLAINTS {
            return;
        }
        let mut path = String::new();
        for segment in &self.path {
            match segment {
                Segment::Field(name) | Segment::Key(name) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
                Segment::Index(i) => path.push_str(&format!("[{i}]")),
            }
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(&last);
        let complaint = format!("{what} {}", crate::status::quote(&path));
        if !self.complaints.contains(&complaint) {
            self.complaints.push(complaint);
        }
    }
}

/// The top bit of every byte that is a quote, a backslash or a control character, of eight at once. Bytes behind the
/// first such one may be marked wrongly.
fn special_bytes(eight: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const TOPS: u64 = ONES << 7;
    let zero = |x: u64| x.wrapping_sub(ONES) & !x;
    let control = eight.wrapping_sub(ONES * 0x20) & !eight;
    (zero(eight ^ (ONES * u64::from(b'"'))) | zero(eight ^ (ONES * u64::from(b'\\'))) | control) & TOPS
}

fn parse_number(text: &str) -> Value {
    if let Ok(n) = text.parse::<i64>() {
        return n.into();
    }
    if let Ok(n) = text.parse::<u64>() {
        return n.into();
    }
    match text.parse::<f64>().ok().and_then(Number::from_f64) {
        Some(n) => Value::Number(n),
        // Beyond what a double holds.
        None => Value::Null,
    }
}
