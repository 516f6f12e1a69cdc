//! `resource.Quantity`: fixed-point numbers with decimal or binary suffixes, in upstream's canonical form.

use std::cmp::Ordering;
use std::fmt::{self, Display};
use std::str::FromStr;

/// Which family of suffixes a quantity is written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// A number with nano precision. Equality and order look at the value alone, not at the format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

const NANO: i128 = 1_000_000_000;
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    pub fn new(value: i64, format: Format) -> Quantity {
        Quantity { nanos: i128::from(value) * NANO, format }
    }

    pub fn from_milli(value: i64, format: Format) -> Quantity {
        Quantity { nanos: i128::from(value) * (NANO / 1000), format }
    }

    pub fn parse(text: &str) -> Result<Quantity, ParseError> {
        let bytes = text.as_bytes();
        let mut at = 0;
        let negative = match bytes.first() {
            None => return Err(ParseError::Format),
            Some(b'-') => {
                at = 1;
                true
            }
            Some(b'+') => {
                at = 1;
                false
            }
            _ => false,
        };
        let digits_from = |start: usize| {
            bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |n| start + n)
        };
        let whole_end = digits_from(at);
        let whole = &text[at..whole_end];
        at = whole_end;
        let mut fraction = "";
        if bytes.get(at) == Some(&b'.') {
            let end = digits_from(at + 1);
            fraction = &text[at + 1..end];
            at = end;
        }
        if whole.is_empty() && fraction.is_empty() {
            // Upstream reads a bare suffix as a number that is not there.
            return Err(if at == bytes.len() || at == 0 { ParseError::Format } else { ParseError::Numeric });
        }
        let suffix = &text[at..];
        let letters = suffix.bytes().position(|b| !b"eEinumkKMGTP".contains(&b)).unwrap_or(suffix.len());
        let mut rest = &suffix[letters..];
        rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        if !rest.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ParseError::Format);
        }
        let (exponent, binary_shift, mut format) = suffix_meaning(suffix).ok_or(ParseError::Suffix)?;

        // Digits as one integer, scaled to nanos; what lies below a nano rounds away from zero.
        let mut mantissa: i128 = 0;
        let mut scale = exponent.saturating_add(9);
        let mut inexact = false;
        for (i, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
            let digit = i128::from(digit - b'0');
            match mantissa.checked_mul(10).and_then(|m| m.checked_add(digit)) {
                Some(m) if !inexact => {
                    mantissa = m;
                    if i >= whole.len() {
                        scale = scale.saturating_sub(1);
                    }
                }
                _ => {
                    inexact = true;
                    if i < whole.len() {
                        scale = scale.saturating_add(1);
                    }
                }
            }
        }
        if binary_shift > 0 {
            match mantissa.checked_mul(1i128 << binary_shift) {
                Some(m) => mantissa = m,
                None => mantissa = i128::MAX,
            }
        }
        if let Some(factor) = u32::try_from(scale).ok().and_then(|s| 10i128.checked_pow(s))
            && let Some(scaled) = mantissa.checked_mul(factor)
        {
            mantissa = scaled;
            scale = 0;
        }
        while scale > 0 && mantissa != 0 {
            scale -= 1;
            mantissa = mantissa.saturating_mul(10);
            if mantissa == i128::MAX {
                break;
            }
        }
        let mut round_up = false;
        while scale < 0 && mantissa != 0 {
            scale += 1;
            round_up |= mantissa % 10 != 0;
            mantissa /= 10;
            if mantissa == 0 {
                break;
            }
        }
        if round_up {
            mantissa = mantissa.saturating_add(1);
        }
        if format == Format::BinarySi {
            mantissa = mantissa.min(i128::from(i64::MAX) * NANO);
            if mantissa > 0 && mantissa < NANO {
                format = Format::DecimalSi;
            }
        }
        Ok(Quantity { nanos: if negative { -mantissa } else { mantissa }, format })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    #[must_use]
    pub fn with_format(self, format: Format) -> Quantity {
        Quantity { format, ..self }
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let quotient = self.nanos / unit;
        let up = if self.nanos % unit != 0 { self.nanos.signum() } else { 0 };
        (quotient + up).clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// The value where it is a whole number that fits.
    pub fn as_i64(&self) -> Option<i64> {
        if self.nanos % NANO == 0 { i64::try_from(self.nanos / NANO).ok() } else { None }
    }

    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Whether nothing finer than thousandths is in it.
    pub fn is_whole_milli(&self) -> bool {
        self.nanos % (NANO / 1000) == 0
    }

    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    #[must_use]
    pub fn times(self, factor: i64) -> Quantity {
        Quantity { nanos: self.nanos.saturating_mul(i128::from(factor)), ..self }
    }

    fn combined(self, other: Quantity, nanos: i128) -> Quantity {
        Quantity { nanos, format: if self.nanos == 0 { other.format } else { self.format } }
    }
}

/// Decimal exponent, binary shift and format of a suffix.
fn suffix_meaning(suffix: &str) -> Option<(i32, u32, Format)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((*exponent, 0, Format::DecimalSi));
    }
    if let Some(i) = BINARY.iter().position(|s| *s == suffix) {
        return Some((0, 10 * i as u32, Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let exponent: i64 = exponent.parse().ok()?;
    Some((exponent.clamp(-10_000, 10_000) as i32, 0, Format::DecimalExponent))
}

/// Canonical text of a quantity, or what is wrong with it.
pub fn canonical(text: &str) -> Result<String, ParseError> {
    if is_plain(text) {
        return Ok(text.to_owned());
    }
    Quantity::parse(text.trim()).map(|q| q.to_string())
}

/// Whether this is one of the many quantities that are canonical at a glance: up to three digits and a common suffix.
fn is_plain(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (1..=3).contains(&digits)
        && !text.starts_with('0')
        && matches!(&text[digits..], "" | "m" | "k" | "M" | "G" | "T" | "Ki" | "Mi" | "Gi" | "Ti")
}

impl Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.nanos.abs() >= 1024 * NANO && self.nanos % NANO == 0 {
            let mut value = self.nanos / NANO;
            let mut step = 0;
            while value % 1024 == 0 && step + 1 < BINARY.len() {
                value /= 1024;
                step += 1;
            }
            return write!(f, "{value}{}", BINARY[step]);
        }
        let (mut value, mut exponent) = (self.nanos, -9);
        while value % 1000 == 0 && (exponent < 18 || self.format == Format::DecimalExponent) {
            value /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{value}") } else { write!(f, "{value}e{exponent}") };
        }
        let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        write!(f, "{value}{suffix}")
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Quantity, ParseError> {
        Quantity::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        self.combined(other, self.nanos.saturating_add(other.nanos))
    }
}

impl std::ops::AddAssign for Quantity {
    fn add_assign(&mut self, other: Quantity) {
        *self = *self + other;
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        self.combined(other, self.nanos.saturating_sub(other.nanos))
    }
}

impl std::ops::SubAssign for Quantity {
    fn sub_assign(&mut self, other: Quantity) {
        *self = *self - other;
    }
}

impl std::ops::Neg for Quantity {
    type Output = Quantity;

    fn neg(self) -> Quantity {
        Quantity { nanos: -self.nanos, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("1.5Gi", "1536Mi"),
            ("100Ki", "100Ki"),
            ("512", "512"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1k", "1k"),
            ("123456789", "123456789"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("12e6", "12e6"),
            ("0.5Ki", "512"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("-1500m", "-1500m"),
            ("+1", "1"),
            ("0.1Ki", "102400m"),
            ("100000000000000000000000000000000000000000Ki", "9223372036854775807"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn plain_quantities_are_canonical() {
        for number in ["1", "24", "512", "999"] {
            for suffix in ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"] {
                let text = format!("{number}{suffix}");
                assert!(is_plain(&text));
                assert_eq!(Quantity::parse(&text).unwrap().to_string(), text);
            }
        }
        assert!(["0", "010m", "1000", "1.5", "-1", "", "m", "1E"].iter().all(|t| !is_plain(t)));
    }

    #[test]
    fn refuses() {
        for (text, want) in [
            ("", ParseError::Format),
            ("1 Mi", ParseError::Format),
            ("1.1.1", ParseError::Format),
            ("10Kb", ParseError::Format),
            ("1Mib", ParseError::Format),
            ("10mM", ParseError::Suffix),
            ("ten", ParseError::Format),
        ] {
            assert_eq!(Quantity::parse(text).err(), Some(want), "{text}");
        }
    }

    #[test]
    fn arithmetic_and_order() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        assert_eq!((q("1Gi") + q("512Mi")).to_string(), "1536Mi");
        assert_eq!((q("1") - q("100m")).to_string(), "900m");
        assert_eq!((Quantity::ZERO + q("1Mi")).to_string(), "1Mi");
        assert_eq!(q("1"), q("1000m"));
        assert!(q("1Ki") > q("1k"));
        assert_eq!((q("1500m").value(), q("1500m").milli_value(), q("-1500m").value()), (2, 1500, -2));
        assert_eq!((q("1500m").as_i64(), q("2").as_i64()), (None, Some(2)));
    }
}
