//! Arithmetic, order, conversions and quantities.

use std::cmp::Ordering;

use apimachinery::quantity::{Format, Quantity};

use super::time::{duration_text, parse_duration, parse_timestamp};
use crate::value::{Error, Value, fail, no_overload};

pub fn order<'a>(op: &str, a: &Value<'a>, b: &Value<'a>) -> Result<Value<'a>, Error> {
    let Some(order) = a.compare(b)? else { return fail("NaN values cannot be ordered") };
    Ok(Value::Bool(match op {
        "_<_" => order == Ordering::Less,
        "_<=_" => order != Ordering::Greater,
        "_>_" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    }))
}

const INT: &str = "integer overflow";
const UINT: &str = "unsigned integer overflow";
const DURATION: &str = "duration overflow";
const TIMESTAMP: &str = "timestamp overflow";

fn within<T>(value: Option<T>, otherwise: &'static str) -> Result<T, Error> {
    value.map_or_else(|| fail(otherwise), Ok)
}

pub fn arithmetic<'a>(op: &str, a: &Value<'a>, b: &Value<'a>) -> Result<Value<'a>, Error> {
    use Value::*;
    Ok(match (a, b) {
        (Int(a), Int(b)) => {
            let (a, b) = (*a, *b);
            Int(match op {
                "_+_" => within(a.checked_add(b), INT)?,
                "_-_" => within(a.checked_sub(b), INT)?,
                "_*_" => within(a.checked_mul(b), INT)?,
                "_/_" if b == 0 => return fail("division by zero"),
                "_/_" => within(a.checked_div(b), INT)?,
                _ if b == 0 => return fail("modulus by zero"),
                _ => within(a.checked_rem(b), INT)?,
            })
        }
        (Uint(a), Uint(b)) => {
            let (a, b) = (*a, *b);
            Uint(match op {
                "_+_" => within(a.checked_add(b), UINT)?,
                "_-_" => within(a.checked_sub(b), UINT)?,
                "_*_" => within(a.checked_mul(b), UINT)?,
                "_/_" if b == 0 => return fail("division by zero"),
                "_/_" => a / b,
                _ if b == 0 => return fail("modulus by zero"),
                _ => a % b,
            })
        }
        (Double(a), Double(b)) => Double(match op {
            "_+_" => a + b,
            "_-_" => a - b,
            "_*_" => a * b,
            "_/_" => a / b,
            _ => return no_overload(),
        }),
        (Duration(a), Duration(b)) => Duration(match op {
            "_+_" => within(a.checked_add(*b), DURATION)?,
            "_-_" => within(a.checked_sub(*b), DURATION)?,
            _ => return no_overload(),
        }),
        (Timestamp(t), Duration(d)) => {
            let d = jiff::SignedDuration::from_nanos(*d);
            Timestamp(match op {
                "_+_" => within(t.checked_add(d).ok(), TIMESTAMP)?,
                "_-_" => within(t.checked_sub(d).ok(), TIMESTAMP)?,
                _ => return no_overload(),
            })
        }
        (Duration(_), Timestamp(_)) if op == "_+_" => return arithmetic(op, b, a),
        (Timestamp(a), Timestamp(b)) if op == "_-_" => {
            Duration(within(i64::try_from(a.duration_since(*b).as_nanos()).ok(), DURATION)?)
        }
        (String(a), String(b)) if op == "_+_" => {
            let mut out = std::string::String::with_capacity(a.len() + b.len());
            out.push_str(a);
            out.push_str(b);
            out.into()
        }
        (Bytes(a), Bytes(b)) if op == "_+_" => Bytes([&a[..], &b[..]].concat().into()),
        (List(a), List(b)) if op == "_+_" => Value::list(a.concat(b)),
        _ => return no_overload(),
    })
}

pub fn negate<'a>(a: &Value<'a>) -> Result<Value<'a>, Error> {
    Ok(match a {
        Value::Int(i) => Value::Int(within(i.checked_neg(), INT)?),
        Value::Double(d) => Value::Double(-d),
        Value::Duration(n) => Value::Duration(within(n.checked_neg(), DURATION)?),
        _ => return no_overload(),
    })
}

/// A double as Go's shortest format prints it.
pub fn double_text(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let exponent = if d == 0.0 { 0 } else { d.abs().log10().floor() as i32 };
    if (-4..21).contains(&exponent) || d == 0.0 {
        return format!("{d}");
    }
    let text = format!("{d:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

/// What `string()` makes of a value.
pub fn text(value: &Value<'_>) -> Result<String, Error> {
    Ok(match value {
        Value::String(s) => (**s).to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Uint(u) => u.to_string(),
        Value::Double(d) => double_text(*d),
        Value::Bytes(b) => match std::str::from_utf8(b) {
            Ok(text) => text.to_owned(),
            Err(_) => return fail("invalid UTF-8 in bytes, cannot convert to string"),
        },
        Value::Duration(nanos) => duration_text(*nanos),
        Value::Timestamp(t) => t.to_string(),
        Value::Type(t) => t.name().into_owned(),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(ip, bits) => format!("{ip}/{bits}"),
        Value::Null => "null".to_owned(),
        _ => return no_overload(),
    })
}

pub fn convert<'a>(to: &str, value: &Value<'a>) -> Result<Value<'a>, Error> {
    use Value::*;
    let quoted = |s: &str| apimachinery::status::quote(s);
    Ok(match (to, value) {
        ("bool", Bool(_))
        | ("bytes", Bytes(_))
        | ("double", Double(_))
        | ("int", Int(_))
        | ("uint", Uint(_))
        | ("string", String(_))
        | ("duration", Duration(_))
        | ("timestamp", Timestamp(_)) => value.clone(),
        ("string", Null) => return no_overload(),
        ("string", _) => text(value)?.into(),
        ("bool", String(s)) => match &**s {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Bool(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Bool(false),
            _ => return fail("type conversion error from 'string' to 'bool'"),
        },
        ("bytes", String(s)) => Bytes(s.as_bytes().into()),
        ("double", Int(i)) => Double(*i as f64),
        ("double", Uint(u)) => Double(*u as f64),
        ("double", String(s)) => match s.parse::<f64>() {
            Ok(d) => Double(d),
            Err(_) => return fail(format!("strconv.ParseFloat: parsing {}: invalid syntax", quoted(s))),
        },
        ("int", Uint(u)) => Int(within(i64::try_from(*u).ok(), INT)?),
        ("int", Double(d)) => {
            let fits = d.is_finite() && *d > -(2f64.powi(63)) && *d < 2f64.powi(63);
            Int(within(fits.then_some(*d as i64), INT)?)
        }
        ("int", Duration(n)) => Int(*n),
        ("int", Timestamp(t)) => Int(t.as_second()),
        ("int", String(s)) => match s.parse::<i64>() {
            Ok(i) => Int(i),
            Err(e) => return fail(parse_int_error(s, "ParseInt", e.kind())),
        },
        ("uint", Int(i)) => Uint(within(u64::try_from(*i).ok(), UINT)?),
        ("uint", Double(d)) => {
            let fits = d.is_finite() && *d >= 0.0 && *d < 2f64.powi(64);
            Uint(within(fits.then_some(*d as u64), UINT)?)
        }
        ("uint", String(s)) => match s.parse::<u64>() {
            Ok(u) => Uint(u),
            Err(e) => return fail(parse_int_error(s, "ParseUint", e.kind())),
        },
        ("duration", Int(i)) => Duration(*i),
        ("duration", String(s)) => Duration(parse_duration(s)?),
        ("timestamp", Int(i)) => Timestamp(within(jiff::Timestamp::from_second(*i).ok(), TIMESTAMP)?),
        ("timestamp", String(s)) => Timestamp(parse_timestamp(s)?),
        _ => return no_overload(),
    })
}

fn parse_int_error(text: &str, function: &str, kind: &std::num::IntErrorKind) -> String {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    let why = if matches!(kind, PosOverflow | NegOverflow) { "value out of range" } else { "invalid syntax" };
    format!("strconv.{function}: parsing {}: {why}", apimachinery::status::quote(text))
}

/// Functions of quantities.
pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    use Value::{Int, Quantity as Q};
    Some(Ok(match (function, args) {
        ("quantity", [Value::String(s)]) => match Quantity::parse(s) {
            Ok(q) => Q(q),
            Err(e) => return Some(fail(e.to_string())),
        },
        ("isQuantity", [Value::String(s)]) => Value::Bool(Quantity::parse(s).is_ok()),
        ("sign", [Q(q)]) => Int(i64::from(q.sign())),
        ("isGreaterThan", [Q(a), Q(b)]) => Value::Bool(a > b),
        ("isLessThan", [Q(a), Q(b)]) => Value::Bool(a < b),
        ("compareTo", [Q(a), Q(b)]) => Int(a.cmp(b) as i64),
        ("asApproximateFloat", [Q(q)]) => Value::Double(q.as_f64()),
        ("asInteger", [Q(q)]) => match q.as_i64() {
            Some(i) => Int(i),
            None => return Some(fail("cannot convert value to integer")),
        },
        ("isInteger", [Q(q)]) => Value::Bool(q.as_i64().is_some()),
        ("add", [Q(a), Q(b)]) => Q(*a + *b),
        ("add", [Q(a), Int(b)]) => Q(*a + Quantity::new(*b, Format::DecimalExponent)),
        ("sub", [Q(a), Q(b)]) => Q(*a - *b),
        ("sub", [Q(a), Int(b)]) => Q(*a - Quantity::new(*b, Format::DecimalExponent)),
        _ => return None,
    }))
}
