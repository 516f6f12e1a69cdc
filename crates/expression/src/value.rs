//! Values while an expression is evaluated. Data in JSON is looked into where it lies, never copied as a whole.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use apimachinery::quantity::Quantity;
use jiff::Timestamp;
use serde_json::{Map as JsonMap, Number, Value as Json};

use crate::library::{Semver, Url};
use crate::types::{Decl, DeclKind, ListType, Type, escape};

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The cost limit was reached; nothing recovers from that.
    Cancelled,
    Failed(Cow<'static, str>),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Cancelled => f.write_str("operation cancelled: actual cost limit exceeded"),
            Error::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Error {}

pub fn fail<T>(message: impl Into<Cow<'static, str>>) -> Result<T, Error> {
    Err(Error::Failed(message.into()))
}

pub fn no_overload<T>() -> Result<T, Error> {
    fail("no such overload")
}

#[derive(Clone, Debug)]
pub enum Text<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Text::Borrowed(s) => s,
            Text::Shared(s) => s,
        }
    }
}

/// A value that only its own functions know, such as the authorizer.
pub trait Opaque: std::fmt::Debug + Send + Sync {
    fn type_name(&self) -> &'static str;
    /// Calls a function on it; `args` are without the receiver.
    fn call(&self, function: &str, args: &[Value<'_>]) -> Result<Value<'static>, Error>;
}

#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    /// In nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Value<'a>>>),
    Type(Type),
    Ip(IpAddr),
    Cidr(IpAddr, u8),
    Url(Arc<Url>),
    Quantity(Quantity),
    Semver(Arc<Semver>),
    /// A named format, by its place in the table.
    Format(usize),
    Opaque(Arc<dyn Opaque>),
}

#[derive(Clone, Debug)]
pub enum List<'a> {
    Json(&'a [Json], Option<&'a Decl>),
    Owned(Arc<Vec<Value<'a>>>),
}

#[derive(Clone, Debug)]
pub enum Map<'a> {
    Json(&'a JsonMap<String, Json>, Option<&'a Decl>),
    Owned(Arc<Vec<(Value<'a>, Value<'a>)>>),
    /// A message made by the expression; its name goes with it.
    Message(Arc<str>, Arc<Vec<(Value<'a>, Value<'a>)>>),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Value<'a> {
        Value::String(Text::Borrowed(text))
    }
}

impl From<String> for Value<'static> {
    fn from(text: String) -> Value<'static> {
        Value::String(Text::Shared(text.into()))
    }
}

impl From<bool> for Value<'static> {
    fn from(value: bool) -> Value<'static> {
        Value::Bool(value)
    }
}

impl From<i64> for Value<'static> {
    fn from(value: i64) -> Value<'static> {
        Value::Int(value)
    }
}

impl<'a> Value<'a> {
    pub fn list(values: Vec<Value<'a>>) -> Value<'a> {
        Value::List(List::Owned(Arc::new(values)))
    }

    pub fn map(entries: Vec<(Value<'a>, Value<'a>)>) -> Value<'a> {
        Value::Map(Map::Owned(Arc::new(entries)))
    }

    /// Data as an expression sees it; `decl` says what it is where a schema does.
    pub fn from_json(json: &'a Json, decl: Option<&'a Decl>) -> Value<'a> {
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => number(n, decl),
            Json::String(s) => text(s, decl),
            Json::Array(items) => Value::List(List::Json(items, decl)),
            Json::Object(members) => Value::Map(Map::Json(members, decl)),
        }
    }

    pub fn to_json(&self) -> Result<Json, Error> {
        Ok(match self {
            Value::Null => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(i) => (*i).into(),
            Value::Uint(u) => (*u).into(),
            Value::Double(d) => Number::from_f64(*d).map(Json::Number).unwrap_or(Json::Null),
            Value::String(s) => Json::String((**s).to_owned()),
            Value::Bytes(b) => {
                use base64::Engine;
                Json::String(base64::engine::general_purpose::STANDARD.encode(b))
            }
            Value::Duration(nanos) => Json::String(crate::library::duration_text(*nanos)),
            Value::Timestamp(t) => Json::String(t.to_string()),
            Value::List(List::Json(items, _)) => Json::Array(items.to_vec()),
            Value::List(list) => Json::Array(list.iter().map(|v| v.to_json()).collect::<Result<_, _>>()?),
            Value::Map(Map::Json(members, _)) => Json::Object((*members).clone()),
            Value::Map(map) => {
                let mut out = JsonMap::new();
                for (key, value) in map.entries() {
                    let key = match key {
                        Value::String(s) => (*s).to_owned(),
                        Value::Int(i) => i.to_string(),
                        Value::Uint(u) => u.to_string(),
                        Value::Bool(b) => b.to_string(),
                        _ => return fail("unsupported key type"),
                    };
                    if let Value::Optional(inner) = &value {
                        if let Some(inner) = inner {
                            out.insert(key, inner.to_json()?);
                        }
                        continue;
                    }
                    out.insert(key, value.to_json()?);
                }
                Json::Object(out)
            }
            Value::Optional(Some(inner)) => inner.to_json()?,
            Value::Optional(None) => Json::Null,
            Value::Quantity(q) => Json::String(q.to_string()),
            Value::Ip(ip) => Json::String(ip.to_string()),
            Value::Cidr(ip, bits) => Json::String(format!("{ip}/{bits}")),
            Value::Url(url) => Json::String(url.text.clone()),
            Value::Semver(v) => Json::String(v.to_string()),
            Value::Type(_) | Value::Format(_) | Value::Opaque(_) => {
                return fail(format!("unsupported conversion of {} to JSON", self.ty()));
            }
        })
    }

    pub fn ty(&self) -> Type {
        use crate::declarations::{CIDR, FORMAT, IP, QUANTITY, SEMVER, URL};
        match self {
            Value::Null => Type::Null,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Uint(_) => Type::Uint,
            Value::Double(_) => Type::Double,
            Value::String(_) => Type::String,
            Value::Bytes(_) => Type::Bytes,
            Value::Duration(_) => Type::Duration,
            Value::Timestamp(_) => Type::Timestamp,
            Value::List(_) => Type::list(Type::Dyn),
            Value::Map(Map::Json(_, Some(Decl { kind: DeclKind::Object(object), .. }))) => {
                Type::Object(object.clone())
            }
            Value::Map(Map::Message(name, _)) => Type::Open(name.clone()),
            Value::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Value::Optional(_) => Type::optional(Type::Dyn),
            Value::Type(_) => Type::Type(None),
            Value::Ip(_) => Type::Opaque(IP),
            Value::Cidr(..) => Type::Opaque(CIDR),
            Value::Url(_) => Type::Opaque(URL),
            Value::Quantity(_) => Type::Opaque(QUANTITY),
            Value::Semver(_) => Type::Opaque(SEMVER),
            Value::Format(_) => Type::Opaque(FORMAT),
            Value::Opaque(o) => Type::Opaque(o.type_name()),
        }
    }

    /// What `size()` answers, where it answers.
    pub fn size(&self) -> Option<usize> {
        match self {
            Value::String(s) => Some(s.chars().count()),
            Value::Bytes(b) => Some(b.len()),
            Value::List(list) => Some(list.len()),
            Value::Map(map) => Some(map.len()),
            Value::Ip(ip) => Some(if ip.is_ipv4() { 4 } else { 16 }),
            Value::Cidr(_, bits) => Some(usize::from(*bits).div_ceil(8)),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(s) => Some(s),
            _ => None,
        }
    }

    /// Equality over all types; numbers are equal by value.
    pub fn equals(&self, other: &Value<'_>) -> bool {
        use Value::*;
        match (self, other) {
            (Null, Null) => true,
            (Bool(a), Bool(b)) => a == b,
            (Int(_) | Uint(_) | Double(_), Int(_) | Uint(_) | Double(_)) => {
                self.compare(other).ok().flatten() == Some(Ordering::Equal)
            }
            (String(a), String(b)) => **a == **b,
            (Bytes(a), Bytes(b)) => a == b,
            (Duration(a), Duration(b)) => a == b,
            (Timestamp(a), Timestamp(b)) => a == b,
            (List(a), List(b)) => a.equals(b),
            (Map(a), Map(b)) => a.equals(b),
            (Optional(a), Optional(b)) => match (a, b) {
                (None, None) => true,
                (Some(a), Some(b)) => a.equals(b),
                _ => false,
            },
            (Type(a), Type(b)) => a.name() == b.name(),
            (Ip(a), Ip(b)) => a == b,
            (Cidr(a, n), Cidr(b, m)) => a == b && n == m,
            (Url(a), Url(b)) => a.text == b.text,
            (Quantity(a), Quantity(b)) => a == b,
            (Semver(a), Semver(b)) => a.compare(b).is_eq(),
            (Format(a), Format(b)) => a == b,
            (Opaque(a), Opaque(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The order of two values; `None` where one is not a number.
    pub fn compare(&self, other: &Value<'_>) -> Result<Option<Ordering>, Error> {
        use Value::*;
        Ok(match (self, other) {
            (Bool(a), Bool(b)) => Some(a.cmp(b)),
            (Int(a), Int(b)) => Some(a.cmp(b)),
            (Uint(a), Uint(b)) => Some(a.cmp(b)),
            (Double(a), Double(b)) => a.partial_cmp(b),
            (Int(a), Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Uint(a), Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
            (Int(a), Double(b)) => compare_whole(i128::from(*a), *b),
            (Uint(a), Double(b)) => compare_whole(i128::from(*a), *b),
            (Double(a), Int(b)) => compare_whole(i128::from(*b), *a).map(Ordering::reverse),
            (Double(a), Uint(b)) => compare_whole(i128::from(*b), *a).map(Ordering::reverse),
            (String(a), String(b)) => Some((**a).cmp(&**b)),
            (Bytes(a), Bytes(b)) => Some(a.cmp(b)),
            (Duration(a), Duration(b)) => Some(a.cmp(b)),
            (Timestamp(a), Timestamp(b)) => Some(a.cmp(b)),
            _ => return no_overload(),
        })
    }

    /// Whether it is what its type begins with: 0, "", an empty list.
    pub fn is_zero(&self) -> bool {
        match self {
            Value::Null | Value::Optional(None) => true,
            Value::Bool(b) => !b,
            Value::Int(i) => *i == 0,
            Value::Uint(u) => *u == 0,
            Value::Double(d) => *d == 0.0,
            Value::Duration(n) => *n == 0,
            Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => self.size() == Some(0),
            _ => false,
        }
    }
}

fn compare_whole(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    // Doubles beyond the range of integers compare by sign; within it the whole part decides first.
    if b >= 2f64.powi(64) {
        return Some(Ordering::Less);
    }
    if b < -(2f64.powi(63)) {
        return Some(Ordering::Greater);
    }
    let whole = b.trunc();
    Some(a.cmp(&(whole as i128)).then_with(|| 0.0f64.partial_cmp(&(b - whole)).unwrap_or(Ordering::Equal)))
}

fn number<'a>(n: &Number, decl: Option<&Decl>) -> Value<'a> {
    if let Some(Decl { kind: DeclKind::Double, .. }) = decl {
        return Value::Double(n.as_f64().unwrap_or_default());
    }
    if let Some(i) = n.as_i64() {
        return Value::Int(i);
    }
    if let Some(u) = n.as_u64() {
        return Value::Uint(u);
    }
    let d = n.as_f64().unwrap_or_default();
    match decl {
        Some(Decl { kind: DeclKind::Int, .. }) if d.fract() == 0.0 => Value::Int(d as i64),
        _ => Value::Double(d),
    }
}

fn text<'a>(s: &'a str, decl: Option<&Decl>) -> Value<'a> {
    let parsed = match decl.map(|d| &d.kind) {
        Some(DeclKind::Bytes) => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(s).ok().map(|b| Value::Bytes(b.into()))
        }
        Some(DeclKind::Duration) => crate::library::parse_duration(s).ok().map(Value::Duration),
        Some(DeclKind::Timestamp) => crate::library::parse_date_or_time(s).map(Value::Timestamp),
        _ => None,
    };
    parsed.unwrap_or(Value::String(Text::Borrowed(s)))
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            List::Json(items, _) => items.len(),
            List::Owned(items) => items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, i: usize) -> Option<Value<'a>> {
        match self {
            List::Json(items, decl) => items.get(i).map(|v| Value::from_json(v, element(*decl))),
            List::Owned(items) => items.get(i).cloned(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    fn list_type(&self) -> &ListType {
        match self {
            List::Json(_, Some(Decl { kind: DeclKind::List(_, kind), .. })) => kind,
            _ => &ListType::Atomic,
        }
    }

    fn equals(&self, other: &List<'_>) -> bool {
        if self.len() != other.len() {
            return false;
        }
        match self.list_type() {
            ListType::Atomic => self.iter().zip(other.iter()).all(|(a, b)| a.equals(&b)),
            // Sets and maps have no order.
            ListType::Set => self.iter().all(|a| other.iter().any(|b| a.equals(&b))),
            ListType::Map(keys) => {
                self.iter().all(|a| other.iter().any(|b| same_keys(&a, &b, keys) && a.equals(&b)))
            }
        }
    }

    /// The sum of two lists: sets and maps take what they have not, or put it in the place of what they have.
    pub fn concat(&self, other: &List<'a>) -> Vec<Value<'a>> {
        let mut out: Vec<Value<'a>> = self.iter().collect();
        match self.list_type() {
            ListType::Atomic => out.extend(other.iter()),
            ListType::Set => {
                for value in other.iter() {
                    if !out.iter().any(|v| v.equals(&value)) {
                        out.push(value);
                    }
                }
            }
            ListType::Map(keys) => {
                for value in other.iter() {
                    match out.iter_mut().find(|v| same_keys(v, &value, keys)) {
                        Some(there) => *there = value,
                        None => out.push(value),
                    }
                }
            }
        }
        out
    }
}

fn same_keys(a: &Value<'_>, b: &Value<'_>, keys: &[String]) -> bool {
    let (Value::Map(a), Value::Map(b)) = (a, b) else { return false };
    keys.iter().all(|key| {
        let name = escape(key).unwrap_or_else(|| key.clone());
        match (a.member(&name), b.member(&name)) {
            (Some(a), Some(b)) => a.equals(&b),
            (None, None) => true,
            _ => false,
        }
    })
}

fn element(decl: Option<&Decl>) -> Option<&Decl> {
    decl.and_then(Decl::element).map(|d| &**d)
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Map::Json(members, _) => members.values().filter(|v| !v.is_null()).count(),
            Map::Owned(entries) | Map::Message(_, entries) => entries.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The member an expression names; objects spell names with escapes.
    pub fn member(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Map::Json(members, Some(decl)) if matches!(decl.kind, DeclKind::Object(_)) => {
                let field = decl.field(name)?;
                let value = members.get(&field.name)?;
                if value.is_null() && !field.decl.nullable {
                    return None;
                }
                Some(Value::from_json(value, Some(&field.decl)))
            }
            Map::Json(members, decl) => {
                let element = element(*decl);
                // A null member is an unset one, unless the schema says otherwise.
                let value = members.get(name)?;
                let kept = !value.is_null() || element.is_some_and(|d| d.nullable);
                kept.then(|| Value::from_json(value, element))
            }
            Map::Owned(_) | Map::Message(..) => self.get(&Value::from(name)),
        }
    }

    pub fn get(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match self {
            Map::Json(..) => self.member(key.as_str()?),
            Map::Owned(entries) | Map::Message(_, entries) => {
                entries.iter().find(|(k, _)| k.equals(key)).map(|(_, v)| v.clone())
            }
        }
    }

    pub fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Map::Json(members, _) => members
                .iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, _)| Value::String(Text::Borrowed(k)))
                .collect(),
            Map::Owned(entries) | Map::Message(_, entries) => {
                entries.iter().map(|(k, _)| k.clone()).collect()
            }
        }
    }

    pub fn entries(&self) -> Vec<(Value<'a>, Value<'a>)> {
        match self {
            Map::Json(members, decl) => {
                let object = decl.is_some_and(|d| matches!(d.kind, DeclKind::Object(_)));
                members
                    .iter()
                    .filter(|(_, v)| !v.is_null())
                    .map(|(k, v)| {
                        let decl = if object {
                            decl.and_then(|d| d.field(&escape(k)?)).map(|f| &*f.decl)
                        } else {
                            element(*decl)
                        };
                        (Value::String(Text::Borrowed(k)), Value::from_json(v, decl))
                    })
                    .collect()
            }
            Map::Owned(entries) | Map::Message(_, entries) => entries.to_vec(),
        }
    }

    fn equals(&self, other: &Map<'_>) -> bool {
        self.len() == other.len()
            && self.entries().iter().all(|(key, value)| other.lookup(key).is_some_and(|v| v.equals(value)))
    }

    /// By the key as data spells it.
    fn lookup(&self, key: &Value<'_>) -> Option<Value<'a>> {
        match (self, key) {
            (Map::Json(_, Some(decl)), Value::String(name)) if matches!(decl.kind, DeclKind::Object(_)) => {
                self.member(&escape(name)?)
            }
            _ => self.get(key),
        }
    }
}
