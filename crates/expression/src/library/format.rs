//! `string.format` and the named formats.

use apimachinery::validation;

use super::{numbers, strings_of};
use crate::declarations::FORMATS;
use crate::value::{Error, List, Map, Value, fail};

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    if let ("format.named", [Value::String(name)]) = (function, args) {
        let found = FORMATS.iter().position(|(n, _)| *n == &**name);
        return Some(Ok(Value::Optional(found.map(|i| Value::Format(i).into()))));
    }
    if let ("validate", [Value::Format(i), Value::String(text)]) = (function, args) {
        let errors = check(FORMATS.get(*i)?.0, text);
        let errors = if errors.is_empty() { None } else { Some(strings_of(errors).into()) };
        return Some(Ok(Value::Optional(errors)));
    }
    let name = function.strip_prefix("format.")?;
    let found = FORMATS.iter().position(|(n, _)| *n == name)?;
    args.is_empty().then_some(Ok(Value::Format(found)))
}

/// What is wrong with a text of a named format.
fn check(format: &str, text: &str) -> Vec<String> {
    // A prefix may end with a dash, which what follows makes good.
    let prefix = || text.strip_suffix('-').map_or_else(|| text.to_owned(), |t| format!("{t}a"));
    let one = |fits: bool, why: &str| if fits { Vec::new() } else { vec![why.to_owned()] };
    match format {
        "dns1123Label" => validation::dns1123_label(text),
        "dns1123Subdomain" => validation::dns1123_subdomain(text),
        "dns1035Label" => validation::dns1035_label(text),
        "qualifiedName" => validation::qualified_name(text),
        "dns1123LabelPrefix" => validation::dns1123_label(&prefix()),
        "dns1123SubdomainPrefix" => validation::dns1123_subdomain(&prefix()),
        "dns1035LabelPrefix" => validation::dns1035_label(&prefix()),
        "labelValue" => validation::label_value(text),
        "uri" => super::Url::parse(text).err().into_iter().collect(),
        "uuid" => one(
            uuid::Uuid::parse_str(text).is_ok() && !text.starts_with(['{', 'u']),
            "does not match the UUID format",
        ),
        "byte" => {
            use base64::Engine;
            let fits = base64::engine::general_purpose::STANDARD.decode(text).is_ok();
            one(fits && !text.is_empty(), "invalid base64")
        }
        "date" => one(text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(), "invalid date"),
        "datetime" => one(super::parse_timestamp(text).is_ok(), "invalid datetime"),
        _ => Vec::new(),
    }
}

/// The longest text a format makes, and the widest precision.
const OUT_MAX: usize = 1 << 20;
const PRECISION_MAX: usize = 1000;

pub fn format(template: &str, values: &List<'_>) -> Result<String, Error> {
    let mut out = String::with_capacity(template.len());
    let mut chars = template.chars().peekable();
    let mut used = 0;
    while let Some(c) = chars.next() {
        if out.len() > OUT_MAX {
            return fail("the formatted string is too long");
        }
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.peek().filter(|c| c.is_ascii_digit()) {
                digits.push(*d);
                chars.next();
            }
            match digits.parse::<usize>() {
                Ok(n) if n <= PRECISION_MAX => precision = Some(n),
                _ => return fail(format!("error while converting precision to integer: {digits}")),
            }
        }
        let Some(clause) = chars.next() else { return fail("unexpected end of string") };
        let Some(value) = values.get(used) else { return fail(format!("index {used} out of range")) };
        used += 1;
        out.push_str(&formatted(clause, precision, &value)?);
    }
    if used < values.len() {
        return fail(format!(
            "too many arguments supplied to string.format (expected {used}, got {})",
            values.len()
        ));
    }
    Ok(out)
}

fn formatted(clause: char, precision: Option<usize>, value: &Value<'_>) -> Result<String, Error> {
    let wrong =
        |what: &str| fail(format!("error during formatting: {what}, was given {}", value.ty().name()));
    let number = |value: &Value<'_>| match value {
        Value::Double(d) => Some(*d),
        Value::String(s) => match &**s {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    };
    Ok(match (clause, value) {
        ('s', _) => shown(value)?,
        ('d', Value::Int(i)) => i.to_string(),
        ('d', Value::Uint(u)) => u.to_string(),
        ('d', _) => return wrong("decimal clause can only be used on integers"),
        ('f', _) => match number(value) {
            Some(d) if d.is_finite() => std::format!("{d:.*}", precision.unwrap_or(6)),
            Some(d) => special(d).to_owned(),
            None => return wrong("fixed-point clause can only be used on doubles"),
        },
        ('e', _) => match number(value) {
            Some(d) if d.is_finite() => {
                let text = std::format!("{d:.*e}", precision.unwrap_or(6));
                match text.split_once('e') {
                    Some((mantissa, exponent)) => {
                        let negative = exponent.starts_with('-');
                        let digits = exponent.trim_start_matches('-');
                        std::format!("{mantissa}e{}{digits:0>2}", if negative { '-' } else { '+' })
                    }
                    None => text,
                }
            }
            Some(d) => special(d).to_owned(),
            None => return wrong("scientific clause can only be used on doubles"),
        },
        ('b', Value::Int(i)) => radix(*i, 2),
        ('b', Value::Uint(u)) => std::format!("{u:b}"),
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('b', _) => return wrong("only integers and bools can be formatted as binary"),
        ('o', Value::Int(i)) => radix(*i, 8),
        ('o', Value::Uint(u)) => std::format!("{u:o}"),
        ('o', _) => return wrong("octal clause can only be used on integers"),
        ('x' | 'X', _) => {
            let text = match value {
                Value::Int(i) => radix(*i, 16),
                Value::Uint(u) => std::format!("{u:x}"),
                Value::String(s) => s.bytes().map(|b| std::format!("{b:02x}")).collect(),
                Value::Bytes(b) => b.iter().map(|b| std::format!("{b:02x}")).collect(),
                _ => return wrong("only integers, byte buffers, and strings can be formatted as hex"),
            };
            if clause == 'X' { text.to_uppercase() } else { text }
        }
        _ => {
            return fail(std::format!(
                "could not parse formatting clause: unrecognized formatting clause \"{clause}\""
            ));
        }
    })
}

fn radix(i: i64, base: u32) -> String {
    let n = i.unsigned_abs();
    let text = match base {
        2 => std::format!("{n:b}"),
        8 => std::format!("{n:o}"),
        _ => std::format!("{n:x}"),
    };
    if i < 0 { std::format!("-{text}") } else { text }
}

fn special(d: f64) -> &'static str {
    if d.is_nan() {
        "NaN"
    } else if d > 0.0 {
        "∞"
    } else {
        "-∞"
    }
}

fn shown(value: &Value<'_>) -> Result<String, Error> {
    match value {
        Value::List(list) => {
            let mut out = String::from("[");
            for (i, value) in list.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                out.push_str(&quoted(&value)?);
            }
            out.push(']');
            Ok(out)
        }
        Value::Map(map) => shown_map(map),
        Value::Double(d) if !d.is_finite() => Ok(if d.is_nan() {
            "NaN".into()
        } else if *d > 0.0 {
            "+Inf".into()
        } else {
            "-Inf".into()
        }),
        Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::Bool(_)
        | Value::String(_)
        | Value::Timestamp(_)
        | Value::Bytes(_)
        | Value::Duration(_)
        | Value::Type(_)
        | Value::Null => numbers::text(value),
        other => fail(std::format!(
            "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}",
            other.ty().name()
        )),
    }
}

fn shown_map(map: &Map<'_>) -> Result<String, Error> {
    let mut pairs = Vec::new();
    for (key, value) in map.entries() {
        pairs.push((quoted(&key)?, quoted(&value)?));
    }
    pairs.sort();
    let pairs: Vec<String> = pairs.into_iter().map(|(k, v)| std::format!("{k}:{v}")).collect();
    Ok(std::format!("{{{}}}", pairs.join(", ")))
}

/// As an element of a list: text in quotes, times and durations as the calls that make them.
fn quoted(value: &Value<'_>) -> Result<String, Error> {
    let text = shown(value)?;
    Ok(match value {
        Value::String(_) => apimachinery::status::quote(&text),
        Value::Bytes(_) => std::format!("b{}", apimachinery::status::quote(&text)),
        Value::Timestamp(_) => std::format!("timestamp({})", apimachinery::status::quote(&text)),
        Value::Duration(_) => std::format!("duration({})", apimachinery::status::quote(&text)),
        Value::Type(_) => std::format!("type({text})"),
        _ => text,
    })
}
