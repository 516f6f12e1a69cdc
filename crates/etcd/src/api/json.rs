//! JSON as the gateway speaks it: protobuf's mapping with the protocol's own field names.

use std::marker::PhantomData;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde_json::{Map, Value};

/// A message with a JSON form.
pub trait Json: Default {
    /// Adds the fields that are set.
    fn write(&self, out: &mut Map<String, Value>);
    /// Sets the field of this name; false when there is none.
    fn read(&mut self, name: &str, value: &Value) -> Result<bool, String>;
}

/// The names of an enumeration's values.
pub trait EnumNames {
    const NAMES: &'static [(&'static str, i32)];
}

pub fn to_value<T: Json>(message: &T) -> Value {
    let mut out = Map::new();
    message.write(&mut out);
    Value::Object(out)
}

/// Decodes a message; a field it does not have is an error, `null` is an unset field.
pub fn from_value<T: Json>(value: &Value) -> Result<T, String> {
    let Value::Object(fields) = value else { return Err(format!("expected an object, got {value}")) };
    let mut message = T::default();
    for (name, value) in fields {
        if !value.is_null() && !message.read(name, value)? {
            return Err(format!("unknown field {name:?}"));
        }
    }
    Ok(message)
}

/// Whether `given` is the field `name`, as it stands or in lowerCamelCase.
pub fn same_name(given: &str, name: &str) -> bool {
    if given == name {
        return true;
    }
    let mut given = given.chars();
    let mut up = false;
    for c in name.chars() {
        if c == '_' {
            up = true;
            continue;
        }
        let expected = if std::mem::take(&mut up) { c.to_ascii_uppercase() } else { c };
        if given.next() != Some(expected) {
            return false;
        }
    }
    given.next().is_none()
}

/// How a field's type is written and read.
pub trait Field: Sized {
    /// `None` when unset.
    fn to_json(&self) -> Option<Value>;
    fn from_json(value: &Value) -> Result<Self, String>;
}

/// Accepts both alphabets and any padding, as protobuf's JSON does.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Field for Bytes {
    fn to_json(&self) -> Option<Value> {
        (!self.is_empty()).then(|| LENIENT.encode(self).into())
    }
    fn from_json(value: &Value) -> Result<Bytes, String> {
        let text = value.as_str().ok_or_else(|| format!("expected base64, got {value}"))?;
        let text = text.replace('-', "+").replace('_', "/");
        LENIENT.decode(text).map(Bytes::from).map_err(|e| format!("illegal base64 data: {e}"))
    }
}

impl Field for String {
    fn to_json(&self) -> Option<Value> {
        (!self.is_empty()).then(|| self.as_str().into())
    }
    fn from_json(value: &Value) -> Result<String, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| format!("expected a string, got {value}"))
    }
}

impl Field for bool {
    fn to_json(&self) -> Option<Value> {
        self.then_some(Value::Bool(true))
    }
    fn from_json(value: &Value) -> Result<bool, String> {
        value.as_bool().ok_or_else(|| format!("expected true or false, got {value}"))
    }
}

macro_rules! integers {
    ($($t:ty as $out:expr),+) => {$(
        impl Field for $t {
            fn to_json(&self) -> Option<Value> {
                (*self != 0).then(|| ($out)(*self))
            }
            fn from_json(value: &Value) -> Result<$t, String> {
                let wrong = || format!("expected an integer, got {value}");
                match value {
                    Value::Number(n) => n.to_string().parse().map_err(|_| wrong()),
                    Value::String(s) => s.parse().map_err(|_| wrong()),
                    _ => Err(wrong()),
                }
            }
        }
    )+};
}
integers!(i64 as |n: i64| Value::String(n.to_string()), u64 as |n: u64| Value::String(n.to_string()), u32 as Value::from);

impl<T: Json> Field for Option<T> {
    fn to_json(&self) -> Option<Value> {
        self.as_ref().map(to_value)
    }
    fn from_json(value: &Value) -> Result<Option<T>, String> {
        from_value(value).map(Some)
    }
}

/// An element of a repeated field.
pub trait Element: Sized {
    fn element(&self) -> Value;
    fn from_element(value: &Value) -> Result<Self, String>;
}

impl<T: Json> Element for T {
    fn element(&self) -> Value {
        to_value(self)
    }
    fn from_element(value: &Value) -> Result<T, String> {
        from_value(value)
    }
}

macro_rules! elements {
    ($($t:ty),+) => {$(
        impl Element for $t {
            fn element(&self) -> Value {
                self.to_json().unwrap_or_else(|| Value::String(String::new()))
            }
            fn from_element(value: &Value) -> Result<$t, String> {
                Field::from_json(value)
            }
        }
    )+};
}
elements!(Bytes, String);

impl<T: Element> Field for Vec<T> {
    fn to_json(&self) -> Option<Value> {
        (!self.is_empty()).then(|| Value::Array(self.iter().map(T::element).collect()))
    }
    fn from_json(value: &Value) -> Result<Vec<T>, String> {
        let Value::Array(items) = value else { return Err(format!("expected an array, got {value}")) };
        items.iter().map(T::from_element).collect()
    }
}

/// A field whose type says its form.
pub struct Plain;

impl Plain {
    pub fn write<T: Field>(self, out: &mut Map<String, Value>, name: &str, field: &T) {
        if let Some(value) = field.to_json() {
            out.insert(name.into(), value);
        }
    }
    pub fn read<T: Field>(self, value: &Value) -> Result<T, String> {
        T::from_json(value)
    }
}

/// A field that holds a value of `E`.
pub struct Enumeration<E>(PhantomData<E>);

impl<E> Default for Enumeration<E> {
    fn default() -> Self {
        Enumeration(PhantomData)
    }
}

impl<E: EnumNames> Enumeration<E> {
    fn name(n: i32) -> Value {
        E::NAMES.iter().find(|(_, v)| *v == n).map_or_else(|| n.into(), |(name, _)| (*name).into())
    }
    pub fn write(self, out: &mut Map<String, Value>, name: &str, field: &i32) {
        if *field != 0 {
            out.insert(name.into(), Self::name(*field));
        }
    }
    pub fn read(self, value: &Value) -> Result<i32, String> {
        if let Some(n) = value.as_i64() {
            return i32::try_from(n).map_err(|_| format!("{n} is out of range"));
        }
        let found = value.as_str().and_then(|s| E::NAMES.iter().find(|(name, _)| *name == s));
        found.map(|(_, n)| *n).ok_or_else(|| format!("unknown value {value}"))
    }
}

/// A repeated field that holds values of `E`.
pub struct Enumerations<E>(PhantomData<E>);

impl<E> Default for Enumerations<E> {
    fn default() -> Self {
        Enumerations(PhantomData)
    }
}

impl<E: EnumNames> Enumerations<E> {
    pub fn write(self, out: &mut Map<String, Value>, name: &str, field: &[i32]) {
        if !field.is_empty() {
            out.insert(name.into(), field.iter().map(|n| Enumeration::<E>::name(*n)).collect());
        }
    }
    pub fn read(self, value: &Value) -> Result<Vec<i32>, String> {
        let Value::Array(items) = value else { return Err(format!("expected an array, got {value}")) };
        items.iter().map(|item| Enumeration::<E>::default().read(item)).collect()
    }
}

/// The JSON form of a oneof, whose members stand beside the message's other fields.
macro_rules! oneof_json {
    ($message:ident, $field:ident, $oneof:path, { $($variant:ident $name:literal),+ $(,)? } $(, plain { $($p:ident)+ })?) => {
        impl $crate::api::json::Json for $message {
            fn write(&self, out: &mut ::serde_json::Map<String, ::serde_json::Value>) {
                use $oneof as Oneof;
                match &self.$field {
                    $(Some(Oneof::$variant(inner)) => { out.insert($name.into(), $crate::api::json::OneofMember::member(inner)); })+
                    None => {}
                }
            }
            fn read(&mut self, name: &str, value: &::serde_json::Value) -> Result<bool, String> {
                use $oneof as Oneof;
                $(if $crate::api::json::same_name(name, $name) {
                    let inner = $crate::api::json::OneofMember::from_member(value).map_err(|e| format!("{name}: {e}"))?;
                    self.$field = Some(Oneof::$variant(inner));
                    return Ok(true);
                })+
                Ok(false)
            }
        }
    };
}
pub(crate) use oneof_json;

/// A member of a oneof: set even when it has its default.
pub trait OneofMember: Sized {
    fn member(&self) -> Value;
    fn from_member(value: &Value) -> Result<Self, String>;
}

impl<T: Json> OneofMember for T {
    fn member(&self) -> Value {
        to_value(self)
    }
    fn from_member(value: &Value) -> Result<T, String> {
        from_value(value)
    }
}

impl OneofMember for Bytes {
    fn member(&self) -> Value {
        Value::String(LENIENT.encode(self))
    }
    fn from_member(value: &Value) -> Result<Bytes, String> {
        Bytes::from_json(value)
    }
}

impl OneofMember for i64 {
    fn member(&self) -> Value {
        Value::String(self.to_string())
    }
    fn from_member(value: &Value) -> Result<i64, String> {
        i64::from_json(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::*;
    use serde_json::json;

    #[test]
    fn messages_are_written_as_protobuf_json() {
        let put =
            PutRequest { key: "a".into(), value: "b".into(), lease: 7, prev_kv: true, ..Default::default() };
        let value = json!({"key": "YQ==", "value": "Yg==", "lease": "7", "prev_kv": true});
        assert_eq!(to_value(&put), value);
        assert_eq!(from_value::<PutRequest>(&value).unwrap(), put);
        let camel = json!({"key": "YQ", "value": "Yg==", "lease": 7, "prevKv": true, "ignore_value": null});
        assert_eq!(from_value::<PutRequest>(&camel).unwrap(), put);
        assert!(from_value::<PutRequest>(&json!({"kee": "YQ=="})).is_err());
        assert!(from_value::<PutRequest>(&json!({"key": 5})).is_err());
    }

    #[test]
    fn oneofs_and_enumerations() {
        let value = json!({
            "compare": [{"result": "GREATER", "target": "MOD", "key": "YQ==", "mod_revision": "0"}],
            "success": [{"request_put": {"key": "YQ==", "value": "Yg=="}}, {"request_txn": {"failure": [{"request_range": {"key": "YQ==", "sort_order": "DESCEND"}}]}}],
        });
        let txn = from_value::<TxnRequest>(&value).unwrap();
        assert_eq!(txn.compare[0].target_union, Some(compare::TargetUnion::ModRevision(0)));
        assert_eq!(to_value(&txn), value);
    }

    #[test]
    fn names_with_capitals_stay() {
        let value = json!({"header": {"revision": "3"}, "members": [{"ID": "9", "peerURLs": ["http://a"], "isLearner": true}]});
        assert_eq!(to_value(&from_value::<MemberListResponse>(&value).unwrap()), value);
    }
}
