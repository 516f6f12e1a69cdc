//! Collecting what is wrong, and the checks of names and formats that many kinds share.

use apimachinery::status::{FieldError, FieldErrorKind};
use apimachinery::validation;
pub use apimachinery::validation::{
    config_map_key, dns1035_label, dns1123_label, dns1123_subdomain, env_var_name, http_header_name,
    is_dns1123_label, is_dns1123_subdomain, label_value, percent, port_name, qualified_name,
    wildcard_dns1123_subdomain,
};
use serde_json::Value;

use crate::path::Path;
use crate::strategy::Errors;

/// Adds findings to a list of errors.
pub trait Report {
    fn report(&mut self, kind: FieldErrorKind, path: &Path<'_>, value: Option<Value>, detail: String);
    fn required(&mut self, path: &Path<'_>, detail: impl Into<String>);
    fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>);
    fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>);
    fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>);
    fn not_found(&mut self, path: &Path<'_>, value: impl Into<Value>);
    fn too_long(&mut self, path: &Path<'_>, max: usize);
    fn too_many(&mut self, path: &Path<'_>, actual: usize, max: usize);
    fn not_supported(&mut self, path: &Path<'_>, value: impl Into<Value>, supported: &[&str]);
    /// One `Invalid` for each message.
    fn invalid_each(&mut self, path: &Path<'_>, value: &str, messages: Vec<String>);
    /// Reports a text that is none of `supported` (which is in the order to be shown).
    fn one_of(&mut self, path: &Path<'_>, value: &str, supported: &[&str]);
    fn not_negative(&mut self, path: &Path<'_>, value: i64);
    fn positive_value(&mut self, path: &Path<'_>, value: i64);
    /// Reports what has changed though it may not.
    fn immutable(&mut self, path: &Path<'_>, new: &Value, old: &Value);
    /// As [`Report::immutable`] for texts that are never absent, only empty.
    fn immutable_text(&mut self, path: &Path<'_>, new: &Value, old: &Value);
}

impl Report for Errors {
    fn report(&mut self, kind: FieldErrorKind, path: &Path<'_>, bad_value: Option<Value>, detail: String) {
        self.push(FieldError { kind, path: path.to_string(), bad_value, detail });
    }

    fn required(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.report(FieldErrorKind::Required, path, None, detail.into());
    }

    fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) {
        self.report(FieldErrorKind::Invalid, path, Some(value.into()), detail.into());
    }

    fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.report(FieldErrorKind::Forbidden, path, None, detail.into());
    }

    fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.report(FieldErrorKind::Duplicate, path, Some(value.into()), String::new());
    }

    fn not_found(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.report(FieldErrorKind::NotFound, path, Some(value.into()), String::new());
    }

    fn too_long(&mut self, path: &Path<'_>, max: usize) {
        let unit = if max == 1 { "byte" } else { "bytes" };
        self.report(FieldErrorKind::TooLong, path, None, format!("may not be more than {max} {unit}"));
    }

    fn too_many(&mut self, path: &Path<'_>, actual: usize, max: usize) {
        let unit = if max == 1 { "item" } else { "items" };
        self.report(
            FieldErrorKind::TooMany,
            path,
            Some(actual.into()),
            format!("must have at most {max} {unit}"),
        );
    }

    fn not_supported(&mut self, path: &Path<'_>, value: impl Into<Value>, supported: &[&str]) {
        let shown: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = format!("supported values: {}", shown.join(", "));
        self.report(FieldErrorKind::NotSupported, path, Some(value.into()), detail);
    }

    fn invalid_each(&mut self, path: &Path<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.invalid(path, value, message);
        }
    }

    fn one_of(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            self.not_supported(path, value, supported);
        }
    }

    fn not_negative(&mut self, path: &Path<'_>, value: i64) {
        if value < 0 {
            self.invalid(path, value, NOT_NEGATIVE);
        }
    }

    fn positive_value(&mut self, path: &Path<'_>, value: i64) {
        if value <= 0 {
            self.invalid(path, value, "must be greater than zero");
        }
    }

    fn immutable(&mut self, path: &Path<'_>, new: &Value, old: &Value) {
        if !crate::equality::same(new, old) {
            self.invalid(path, new.clone(), IMMUTABLE);
        }
    }

    fn immutable_text(&mut self, path: &Path<'_>, new: &Value, old: &Value) {
        let text = new.as_str().unwrap_or_default();
        if text != old.as_str().unwrap_or_default() {
            self.invalid(path, text, IMMUTABLE);
        }
    }
}

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";

/// A fully qualified domain name of at least `labels` labels; a trailing dot is allowed.
pub fn fully_qualified_name(errors: &mut Errors, path: &Path<'_>, name: &str, labels: usize) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let trimmed = name.strip_suffix('.').unwrap_or(name);
    let messages = dns1123_subdomain(trimmed);
    if !messages.is_empty() {
        errors.invalid_each(path, name, messages);
    } else if trimmed.split('.').count() < labels {
        let labels = if labels == 2 { "two" } else { "three" };
        errors.invalid(
            path,
            name,
            format!("should be a domain with at least {labels} segments separated by dots"),
        );
    }
}

/// The first thing wrong with a port number.
pub fn port_number(port: i64) -> Option<String> {
    validation::port_number(port).into_iter().next()
}

pub fn is_ip(text: &str) -> bool {
    validation::parse_ip(text).is_some()
}

/// What is wrong with a segment of a path.
pub fn path_segment(s: &str) -> Vec<String> {
    match s {
        "." | ".." => vec![format!("may not be '{s}'")],
        _ => path_segment_prefix(s),
    }
}

pub fn path_segment_prefix(s: &str) -> Vec<String> {
    ['/', '%'].iter().filter(|c| s.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}
