//! Numbers without a type, as Go reads and writes them: whole ones that fit are integers, all others doubles.

use std::io;

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Number, Value};

/// The whole numbers that doubles tell apart go up to this.
const EXACT_MAX: f64 = ((1u64 << 53) - 1) as f64;

/// A number of a custom resource; `None` beyond what a double holds.
pub(super) fn untyped(text: &str) -> Option<Value> {
    if let Ok(n) = text.parse::<i64>() {
        return Some(n.into());
    }
    let number = text.parse::<f64>().ok()?;
    if is_whole(number) {
        // Within what an i64 holds.
        return Some((number as i64).into());
    }
    Number::from_f64(number).map(Value::Number)
}

/// Whether a double counts as an integer.
pub(crate) fn is_whole(number: f64) -> bool {
    number.fract() == 0.0 && number.abs() <= EXACT_MAX
}

/// JSON in one line, doubles as Go writes them.
pub fn to_writer(out: impl io::Write, value: &(impl Serialize + ?Sized)) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(out, Compact))
}

/// As [`to_writer`], indented by two.
pub fn to_vec_pretty(value: &(impl Serialize + ?Sized)) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Pretty(PrettyFormatter::new())))?;
    Ok(out)
}

/// Exponents only where a number would be long otherwise.
fn write_double<W: io::Write + ?Sized>(out: &mut W, number: f64) -> io::Result<()> {
    if number == 0.0 || (1e-6..1e21).contains(&number.abs()) {
        return write!(out, "{number}");
    }
    let text = format!("{number:e}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => write!(out, "{digits}e+{exponent}"),
        _ => out.write_all(text.as_bytes()),
    }
}

struct Compact;

impl Formatter for Compact {
    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        write_double(writer, value)
    }
}

struct Pretty(PrettyFormatter<'static>);

impl Formatter for Pretty {
    fn write_f64<W: io::Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        write_double(writer, value)
    }

    fn begin_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn as_go_writes_them() {
        for (read, written) in [
            ("3", "3"),
            ("3.0", "3"),
            ("3e0", "3"),
            ("-0.0", "0"),
            ("-0", "0"),
            ("3.5", "3.5"),
            ("1e20", "100000000000000000000"),
            ("1e21", "1e+21"),
            ("-1.5e300", "-1.5e+300"),
            ("0.000001", "0.000001"),
            ("1e-7", "1e-7"),
            ("9007199254740993", "9007199254740993"),
            ("9223372036854775807", "9223372036854775807"),
            ("9223372036854775808", "9223372036854776000"),
            ("1e-400", "0"),
        ] {
            let mut out = Vec::new();
            to_writer(&mut out, &untyped(read).unwrap()).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), written, "{read}");
        }
        assert_eq!(untyped("1e400"), None);
        let value = json!({"a": [1, {"b": 1e20}], "c": {}, "d": []});
        let pretty = String::from_utf8(to_vec_pretty(&value).unwrap()).unwrap();
        let plain = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(
            pretty,
            plain.replace("1e20", "100000000000000000000").replace("1e+20", "100000000000000000000")
        );
    }
}
