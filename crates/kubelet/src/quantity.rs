//! Quantities as plain numbers, which is all a kubelet needs of them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The exact value in billionths, or `None` if `text` is no quantity.
fn nanos(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    // Scale of the suffix, as billionths.
    let scale: i128 = match suffix {
        "" => 1_000_000_000,
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "k" => 1_000_000_000_000,
        "M" => 10i128.pow(15),
        "G" => 10i128.pow(18),
        "T" => 10i128.pow(21),
        "P" => 10i128.pow(24),
        "E" => 10i128.pow(27),
        "Ki" => 1_000_000_000 << 10,
        "Mi" => 1_000_000_000 << 20,
        "Gi" => 1_000_000_000 << 30,
        "Ti" => 1_000_000_000 << 40,
        "Pi" => 1_000_000_000 << 50,
        "Ei" => 1_000_000_000 << 60,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if !(-9..=18).contains(&exponent) {
                return None;
            }
            10i128.pow((9 + exponent) as u32)
        }
    };
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(scale)?;
    let mut part = scale;
    for digit in fraction.bytes() {
        part /= 10;
        total = total.checked_add(part * i128::from(digit - b'0'))?;
    }
    Some(if negative { -total } else { total })
}

fn divide_up(n: i128, by: i128) -> i64 {
    let q = n.div_euclid(by) + i128::from(n.rem_euclid(by) != 0);
    q.clamp(i64::MIN as i128, i64::MAX as i128) as i64
}

/// Rounded up to whole units.
pub fn value(text: &str) -> Option<i64> {
    nanos(text).map(|n| divide_up(n, 1_000_000_000))
}

/// Rounded up to thousandths.
pub fn milli_value(text: &str) -> Option<i64> {
    nanos(text).map(|n| divide_up(n, 1_000_000))
}

pub type Resources = BTreeMap<String, Quantity>;

pub fn of(resources: Option<&Resources>, name: &str) -> Option<i64> {
    value(&resources?.get(name)?.0)
}

pub fn milli_of(resources: Option<&Resources>, name: &str) -> Option<i64> {
    milli_value(&resources?.get(name)?.0)
}

/// The value of `text` in units of `divisor`, rounded up: what a resource field reference shows.
pub fn divided(text: &str, divisor: &str) -> Option<i64> {
    let divisor = match nanos(divisor) {
        None | Some(0) => 1_000_000_000,
        Some(d) => d,
    };
    Some(divide_up(nanos(text)?, divisor))
}

/// A threshold such as `10%` or `100Mi` of a capacity.
pub fn threshold(text: &str, capacity: u64) -> Option<u64> {
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.trim().parse().ok()?;
            Some((capacity as f64 * percent / 100.0) as u64)
        }
        None => value(text).and_then(|v| u64::try_from(v).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        for (text, whole, milli) in [
            ("100m", 1, 100),
            ("1", 1, 1000),
            ("1.5", 2, 1500),
            ("0.1", 1, 100),
            ("64Mi", 64 << 20, 64_000 << 20),
            ("1e3", 1000, 1_000_000),
            ("1Ki", 1024, 1_024_000),
            ("-1", -1, -1000),
            ("100n", 1, 1),
        ] {
            assert_eq!((value(text), milli_value(text)), (Some(whole), Some(milli)), "{text}");
        }
        for bad in ["", "x", "1.2.3", "1Zi", "."] {
            assert_eq!(value(bad), None, "{bad}");
        }
        assert_eq!(divided("1500m", "1m"), Some(1500));
        assert_eq!(divided("64Mi", "1Mi"), Some(64));
        assert_eq!(divided("1500m", "0"), Some(2));
        assert_eq!(threshold("10%", 1000), Some(100));
    }
}
