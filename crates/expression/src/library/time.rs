//! Durations and times.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{Offset, TimeZone};

use crate::value::{Error, Value, fail};

const SECOND: i64 = 1_000_000_000;

/// A duration as Go spells it, in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, Error> {
    match apimachinery::duration::parse_nanos(text) {
        Some(nanos) => Ok(nanos),
        None => fail(format!("time: invalid duration {}", apimachinery::status::quote(text))),
    }
}

/// A duration as CEL spells it: seconds with a fraction.
pub fn duration_text(nanos: i64) -> String {
    let (whole, part) = (nanos / SECOND, (nanos % SECOND).unsigned_abs());
    if part == 0 {
        return format!("{whole}s");
    }
    let sign = if nanos < 0 && whole == 0 { "-" } else { "" };
    let fraction = format!("{part:09}");
    format!("{sign}{whole}.{}s", fraction.trim_end_matches('0'))
}

/// RFC 3339.
pub fn parse_timestamp(text: &str) -> Result<Timestamp, Error> {
    let shaped = text.len() >= 20
        && text.is_ascii()
        && text.as_bytes()[10] == b'T'
        && !text.contains(['[', ' '])
        && !text.starts_with(['-', '+']);
    match text.parse::<Timestamp>() {
        Ok(t) if shaped => Ok(t),
        _ => {
            let quoted = apimachinery::status::quote(text);
            fail(format!(
                "parsing time {quoted} as \"2006-01-02T15:04:05Z07:00\": cannot parse {quoted} as \"2006\""
            ))
        }
    }
}

/// What the formats `date` and `date-time` allow.
pub fn parse_date_or_time(text: &str) -> Option<Timestamp> {
    if let Ok(t) = text.parse::<Timestamp>() {
        return Some(t);
    }
    let date: Date = text.parse().ok()?;
    date.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp())
}

pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Result<Value<'a>, Error>> {
    let zone = match args {
        [Value::Timestamp(_)] => TimeZone::UTC,
        [Value::Timestamp(_), Value::String(name)] => match zone(name) {
            Some(zone) => zone,
            None => return Some(fail(format!("unknown time zone {}", &**name))),
        },
        [Value::Duration(nanos)] => {
            let value = match function {
                "getHours" => nanos / (3600 * SECOND),
                "getMinutes" => nanos / (60 * SECOND),
                "getSeconds" => nanos / SECOND,
                "getMilliseconds" => nanos % SECOND / 1_000_000,
                _ => return None,
            };
            return Some(Ok(Value::Int(value)));
        }
        _ => return None,
    };
    let Value::Timestamp(t) = &args[0] else { return None };
    let t = t.to_zoned(zone);
    let value = match function {
        "getFullYear" => i64::from(t.year()),
        "getMonth" => i64::from(t.month()) - 1,
        "getDayOfYear" => i64::from(t.day_of_year()) - 1,
        "getDayOfMonth" => i64::from(t.day()) - 1,
        "getDate" => i64::from(t.day()),
        "getDayOfWeek" => i64::from(t.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(t.hour()),
        "getMinutes" => i64::from(t.minute()),
        "getSeconds" => i64::from(t.second()),
        "getMilliseconds" => i64::from(t.millisecond()),
        _ => return None,
    };
    Some(Ok(Value::Int(value)))
}

/// A zone by name or as an offset such as `-08:00`.
fn zone(name: &str) -> Option<TimeZone> {
    if name.is_empty() || name == "UTC" {
        return Some(TimeZone::UTC);
    }
    if let Some((hours, minutes)) = name.split_once(':') {
        let negative = hours.starts_with('-');
        let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
        let minutes: i32 = minutes.parse().ok()?;
        if hours > 23 || !(0..60).contains(&minutes) {
            return None;
        }
        let seconds = hours * 3600 + minutes * 60;
        return Offset::from_seconds(if negative { -seconds } else { seconds }).ok().map(TimeZone::fixed);
    }
    apimachinery::clock::time_zone(name)
}
