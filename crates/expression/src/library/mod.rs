//! What functions do. A function is found by name; it looks at the types of its arguments itself.

mod format;
mod lists;
mod net;
mod numbers;
mod semver;
mod strings;
mod time;

use std::borrow::Cow;

use regex::Regex;

pub use net::Url;
pub use semver::Semver;
pub use time::{duration_text, parse_date_or_time, parse_duration, parse_timestamp};

use crate::value::{Error, List, Map, Text, Value, fail, no_overload};

/// Calls a function; the receiver, where there is one, is the first argument. `pattern` is the compiled literal
/// pattern of the call.
pub fn call<'a>(function: &str, args: &[Value<'a>], pattern: Option<&Regex>) -> Result<Value<'a>, Error> {
    match function {
        "_==_" => binary(args, |a, b| Ok(Value::Bool(a.equals(b)))),
        "_!=_" => binary(args, |a, b| Ok(Value::Bool(!a.equals(b)))),
        "_<_" | "_<=_" | "_>_" | "_>=_" => binary(args, |a, b| numbers::order(function, a, b)),
        "_+_" | "_-_" | "_*_" | "_/_" | "_%_" => binary(args, |a, b| numbers::arithmetic(function, a, b)),
        "-_" => unary(args, numbers::negate),
        "!_" => unary(args, |a| match a {
            Value::Bool(b) => Ok(Value::Bool(!b)),
            _ => no_overload(),
        }),
        "@not_strictly_false" => unary(args, |a| Ok(Value::Bool(!matches!(a, Value::Bool(false))))),
        "_[_]" => binary(args, index),
        "_[?_]" => binary(args, optional_index),
        "@in" => binary(args, contained),
        "size" => unary(args, |a| match a {
            Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_) => {
                Ok(Value::Int(a.size().unwrap_or_default() as i64))
            }
            _ => no_overload(),
        }),
        "type" => unary(args, |a| Ok(Value::Type(a.ty()))),
        "dyn" => unary(args, |a| Ok(a.clone())),
        "bool" | "bytes" | "double" | "int" | "uint" | "string" | "duration" | "timestamp" => {
            unary(args, |a| numbers::convert(function, a))
        }
        "optional.of" => unary(args, |a| Ok(Value::Optional(Some(a.clone().into())))),
        "optional.ofNonZeroValue" => {
            unary(args, |a| Ok(Value::Optional(if a.is_zero() { None } else { Some(a.clone().into()) })))
        }
        "optional.none" => Ok(Value::Optional(None)),
        "value" => unary(args, |a| match a {
            Value::Optional(Some(inner)) => Ok((**inner).clone()),
            Value::Optional(None) => fail("optional.none() dereference"),
            _ => no_overload(),
        }),
        "hasValue" => unary(args, |a| match a {
            Value::Optional(inner) => Ok(Value::Bool(inner.is_some())),
            _ => no_overload(),
        }),
        "optional.unwrap" | "unwrapOpt" => unary(args, lists::unwrap),
        "cel.@mapInsert" => insert(args),
        "jsonpatch.escapeKey" => match args {
            [Value::String(key)] => Ok(Value::from(key.replace('~', "~0").replace('/', "~1"))),
            _ => no_overload(),
        },
        _ => {
            if let [Value::Opaque(receiver), rest @ ..] = args {
                return receiver.call(function, rest);
            }
            if let Some(result) = strings::call(function, args, pattern) {
                return result;
            }
            if let Some(result) = lists::call(function, args) {
                return result;
            }
            if let Some(result) = time::call(function, args) {
                return result;
            }
            if let Some(result) = net::call(function, args) {
                return result;
            }
            if let Some(result) = numbers::call(function, args) {
                return result;
            }
            if let Some(result) = semver::call(function, args) {
                return result;
            }
            if let Some(result) = format::call(function, args) {
                return result;
            }
            no_overload()
        }
    }
}

fn unary<'a>(
    args: &[Value<'a>],
    f: impl FnOnce(&Value<'a>) -> Result<Value<'a>, Error>,
) -> Result<Value<'a>, Error> {
    match args {
        [a] => f(a),
        _ => no_overload(),
    }
}

fn binary<'a>(
    args: &[Value<'a>],
    f: impl FnOnce(&Value<'a>, &Value<'a>) -> Result<Value<'a>, Error>,
) -> Result<Value<'a>, Error> {
    match args {
        [a, b] => f(a, b),
        _ => no_overload(),
    }
}

/// A value as messages show it.
pub(crate) fn shown(value: &Value<'_>) -> Cow<'static, str> {
    match value {
        Value::String(s) => Cow::Owned((**s).to_owned()),
        other => Cow::Owned(numbers::text(other).unwrap_or_else(|_| other.ty().to_string())),
    }
}

pub(crate) fn index<'a>(of: &Value<'a>, by: &Value<'a>) -> Result<Value<'a>, Error> {
    match of {
        Value::List(list) => {
            let i = match by {
                Value::Int(i) => Some(*i),
                Value::Uint(u) => i64::try_from(*u).ok(),
                Value::Double(d) if d.fract() == 0.0 => Some(*d as i64),
                _ => return fail(format!("unsupported index type '{}' in list", by.ty())),
            };
            let found = i.and_then(|i| usize::try_from(i).ok()).and_then(|i| list.get(i));
            found.map_or_else(|| fail(format!("index out of bounds: {}", shown(by))), Ok)
        }
        Value::Map(map) => map.get(by).map_or_else(|| fail(format!("no such key: {}", shown(by))), Ok),
        Value::Optional(Some(inner)) => Ok(Value::Optional(index(inner, by).ok().map(Into::into))),
        Value::Optional(None) => Ok(Value::Optional(None)),
        _ => no_overload(),
    }
}

fn optional_index<'a>(of: &Value<'a>, by: &Value<'a>) -> Result<Value<'a>, Error> {
    match of {
        Value::Optional(Some(inner)) => optional_index(inner, by),
        Value::Optional(None) => Ok(Value::Optional(None)),
        _ => Ok(Value::Optional(index(of, by).ok().map(Into::into))),
    }
}

fn contained<'a>(value: &Value<'a>, of: &Value<'a>) -> Result<Value<'a>, Error> {
    match of {
        Value::List(list) => Ok(Value::Bool(list.iter().any(|v| v.equals(value)))),
        Value::Map(map) => Ok(Value::Bool(map.get(value).is_some())),
        _ => no_overload(),
    }
}

fn insert<'a>(args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let mut entries = match args.first() {
        Some(Value::Map(map)) => map.entries(),
        _ => return no_overload(),
    };
    insert_into(&mut entries, &args[1..])?;
    Ok(Value::Map(Map::Owned(entries.into())))
}

/// Adds an entry, or those of a map, to entries; a key that is there is an error.
pub(crate) fn insert_into<'a>(
    entries: &mut Vec<(Value<'a>, Value<'a>)>,
    added: &[Value<'a>],
) -> Result<(), Error> {
    let added = match added {
        [key, value] => vec![(key.clone(), value.clone())],
        [Value::Map(map)] => map.entries(),
        _ => return no_overload(),
    };
    for (key, value) in added {
        if entries.iter().any(|(k, _)| k.equals(&key)) {
            return fail(format!("insert failed: key {} already exists", shown(&key)));
        }
        entries.push((key, value));
    }
    Ok(())
}

fn strings_of<'a>(values: impl IntoIterator<Item = String>) -> Value<'a> {
    Value::List(List::Owned(std::sync::Arc::new(values.into_iter().map(Value::from).collect())))
}

fn str_of<'v>(value: &'v Value<'_>) -> Option<&'v str> {
    match value {
        Value::String(Text::Borrowed(s)) => Some(s),
        Value::String(Text::Shared(s)) => Some(s),
        _ => None,
    }
}
