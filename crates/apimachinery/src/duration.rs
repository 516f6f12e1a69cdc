//! `metav1.Duration`: Go's notation for lengths of time, such as `1h30m` or `1.5s`.

use std::time::Duration;

/// Parses Go's notation; negative durations are refused. `None` if it is no duration.
pub fn parse(text: &str) -> Option<Duration> {
    parse_nanos(text).and_then(|n| u64::try_from(n).ok()).map(Duration::from_nanos)
}

/// As [`parse`], in nanoseconds and signed.
pub fn parse_nanos(text: &str) -> Option<i64> {
    read(text).ok()
}

/// As [`parse_nanos`]; the error is what Go says of it.
pub fn read(text: &str) -> Result<i64, String> {
    let quoted = || crate::status::quote(text);
    let invalid = || format!("time: invalid duration {}", quoted());
    let (negative, mut rest) = match text.as_bytes().first().ok_or_else(invalid)? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let unit: i128 = match &after[..unit_end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(format!("time: missing unit in duration {}", quoted())),
            other => {
                let other = crate::status::quote(other);
                return Err(format!("time: unknown unit {other} in duration {}", quoted()));
            }
        };
        rest = &after[unit_end..];
        if !whole.is_empty() {
            let whole = whole.parse::<i128>().ok().and_then(|n| n.checked_mul(unit));
            total = whole.and_then(|n| total.checked_add(n)).ok_or_else(invalid)?;
        }
        let mut scale = unit;
        for digit in fraction.bytes().take(18) {
            total += scale * i128::from(digit - b'0') / 10;
            scale /= 10;
        }
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// Go's notation, as `time.Duration` prints itself.
pub fn format(duration: Duration) -> String {
    format_nanos(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
}

pub fn format_nanos(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let fraction = |value: u64, unit: u64| {
        let whole = value / unit;
        let mut digits = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        while digits.ends_with('0') {
            digits.pop();
        }
        if digits.is_empty() { whole.to_string() } else { format!("{whole}.{digits}") }
    };
    if n == 0 {
        return "0s".into();
    }
    if n < 1_000 {
        return format!("{sign}{n}ns");
    }
    if n < 1_000_000 {
        return format!("{sign}{}µs", fraction(n, 1_000));
    }
    if n < 1_000_000_000 {
        return format!("{sign}{}ms", fraction(n, 1_000_000));
    }
    let minutes = n / 60_000_000_000;
    let seconds = fraction(n % 60_000_000_000, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, m) => format!("{sign}{m}m{seconds}s"),
        (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
    }
}

/// A length of time as `kubectl get` shows ages: at most two units, coarser as it grows.
pub fn human(duration: Duration) -> String {
    let s = duration.as_secs();
    let (m, h) = (s / 60, s / 3600);
    match () {
        () if s < 120 => format!("{s}s"),
        () if m < 10 => {
            if s.is_multiple_of(60) {
                format!("{m}m")
            } else {
                format!("{m}m{}s", s % 60)
            }
        }
        () if m < 180 => format!("{m}m"),
        () if h < 8 => {
            if m.is_multiple_of(60) {
                format!("{h}h")
            } else {
                format!("{h}h{}m", m % 60)
            }
        }
        () if h < 48 => format!("{h}h"),
        () if h < 24 * 8 => {
            if h.is_multiple_of(24) {
                format!("{}d", h / 24)
            } else {
                format!("{}d{}h", h / 24, h % 24)
            }
        }
        () if h < 24 * 365 * 2 => format!("{}d", h / 24),
        () if h < 24 * 365 * 8 => {
            let days = h / 24 % 365;
            if days == 0 { format!("{}y", h / 24 / 365) } else { format!("{}y{days}d", h / 24 / 365) }
        }
        () => format!("{}y", h / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        for (text, nanos, printed) in [
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("250ms", 250_000_000, "250ms"),
            ("-1s", -1_000_000_000, "-1s"),
            ("0", 0, "0s"),
            ("1us", 1_000, "1µs"),
        ] {
            assert_eq!(parse_nanos(text), Some(nanos), "{text}");
            assert_eq!(format_nanos(nanos), printed);
        }
        for (bad, said) in [
            ("", "invalid duration \"\""),
            ("-", "invalid duration \"-\""),
            ("s", "invalid duration \"s\""),
            ("1", "missing unit in duration \"1\""),
            ("1.2.3s", "missing unit in duration \"1.2.3s\""),
            ("1d", "unknown unit \"d\" in duration \"1d\""),
            ("9999999h", "invalid duration \"9999999h\""),
        ] {
            assert_eq!(read(bad), Err(format!("time: {said}")));
        }
    }

    #[test]
    fn ages() {
        for (seconds, want) in [
            (5, "5s"),
            (119, "119s"),
            (125, "2m5s"),
            (599, "9m59s"),
            (3600, "60m"),
            (4 * 3600 + 60, "4h1m"),
            (30 * 3600, "30h"),
            (3 * 86400, "3d"),
            (3 * 86400 + 3600, "3d1h"),
            (400 * 86400, "400d"),
            (3 * 365 * 86400, "3y"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), want);
        }
    }
}
