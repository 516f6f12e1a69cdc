//! `metav1.Time` and `metav1.MicroTime` in text.

use jiff::Timestamp;

use crate::clock::rfc3339_seconds;
use crate::status::quote;

/// Whole seconds in UTC. `Err` is Go's complaint.
pub fn normalize_time(text: &str) -> Result<String, String> {
    if is_canonical(text.as_bytes()) {
        return Ok(text.to_owned());
    }
    parse(text).map(rfc3339_seconds).ok_or_else(|| complaint(text, "2006-01-02T15:04:05Z07:00"))
}

/// Microseconds in UTC.
pub fn normalize_micro_time(text: &str) -> Result<String, String> {
    let b = text.as_bytes();
    if b.len() == 27 && b[19] == b'.' && b[26] == b'Z' && b[20..26].iter().all(u8::is_ascii_digit) {
        let mut seconds = [b'Z'; 20];
        seconds[..19].copy_from_slice(&b[..19]);
        if is_canonical(&seconds) {
            return Ok(text.to_owned());
        }
    }
    const LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";
    let at = parse(text).map(micro_time).ok_or_else(|| complaint(text, LAYOUT))?;
    // Six digits, no more and no less.
    let cannot = |rest: &str, part: &str| {
        let (text, layout) = (quote(text), quote(LAYOUT));
        format!("parsing time {text} as {layout}: cannot parse {} as {}", quote(rest), quote(part))
    };
    let fraction = text.get(19..).unwrap_or_default();
    match fraction.as_bytes() {
        [b'.', digits @ ..] if digits.len() >= 6 && digits[..6].iter().all(u8::is_ascii_digit) => {
            match &fraction[7..] {
                zone if zone.starts_with(|c: char| c.is_ascii_digit()) => Err(cannot(zone, "Z07:00")),
                _ => Ok(at),
            }
        }
        _ => Err(cannot(fraction, ".000000")),
    }
}

pub(crate) fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Seconds since 1970 and nanoseconds beyond them.
pub(crate) fn seconds(text: &str) -> Option<(i64, i32)> {
    parse(text).map(|at| (at.as_second(), at.subsec_nanosecond()))
}

pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    // Go wants the capital letters, a full date and an offset; jiff takes more.
    if text.as_bytes().get(10) != Some(&b'T') || text.contains('[') {
        return None;
    }
    text.parse().ok()
}

fn complaint(text: &str, layout: &str) -> String {
    format!(
        "parsing time {} as {}: cannot parse {} as {}",
        quote(text),
        quote(layout),
        quote(text),
        quote("2006")
    )
}

/// `2024-01-31T23:59:59Z`, with every part in its range.
fn is_canonical(b: &[u8]) -> bool {
    let number = |from: usize| -> Option<u32> {
        let (tens, ones) = (b[from].wrapping_sub(b'0'), b[from + 1].wrapping_sub(b'0'));
        (tens < 10 && ones < 10).then(|| u32::from(tens) * 10 + u32::from(ones))
    };
    if b.len() != 20
        || b[4] != b'-'
        || b[7] != b'-'
        || b[10] != b'T'
        || b[13] != b':'
        || b[16] != b':'
        || b[19] != b'Z'
    {
        return false;
    }
    let parts = (number(0), number(2), number(5), number(8), number(11), number(14), number(17));
    let (Some(century), Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) = parts
    else {
        return false;
    };
    let year = century * 100 + year;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u32::from(leap),
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day) && hour < 24 && minute < 60 && second < 60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes() {
        for (text, want) in [
            ("2024-02-29T23:59:59Z", Some("2024-02-29T23:59:59Z")),
            ("2023-02-29T23:59:59Z", None),
            ("2024-01-01T00:00:00.5Z", Some("2024-01-01T00:00:00Z")),
            ("2024-01-01T01:00:00+01:00", Some("2024-01-01T00:00:00Z")),
            ("2024-01-01", None),
            ("yesterday", None),
        ] {
            assert_eq!(normalize_time(text).ok().as_deref(), want, "{text}");
        }
        for (text, want) in [
            ("2024-01-01T00:00:00.000001Z", "2024-01-01T00:00:00.000001Z"),
            ("2024-01-01T01:00:00.000001+01:00", "2024-01-01T00:00:00.000001Z"),
        ] {
            assert_eq!(normalize_micro_time(text).as_deref(), Ok(want));
        }
        for (text, rest) in [
            ("2024-01-01T00:00:00Z", "\"Z\" as \".000000\""),
            ("2024-01-01T00:00:00.5Z", "\".5Z\" as \".000000\""),
            ("2024-01-01T00:00:00.1234567Z", "\"7Z\" as \"Z07:00\""),
        ] {
            let why = normalize_micro_time(text).unwrap_err();
            assert!(why.ends_with(&format!(": cannot parse {rest}")), "{why}");
        }
    }
}
