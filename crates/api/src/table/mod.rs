//! Objects as rows: what `kubectl get` prints. All columns are computed; those of priority 1 are shown on request.

use std::time::Duration;

use apimachinery::duration;
use jiff::Timestamp;
use serde_json::Value;

use crate::value::Read;

mod core;
pub mod custom;
mod descriptions;
mod json_path;
mod others;
mod pods;
mod rows;
mod workloads;

/// One column of a built-in resource. `kind` is an OpenAPI type, `format` may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    pub format: &'static str,
    /// 0 is always shown.
    pub priority: u8,
}

pub(crate) struct Table {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// The columns of a built-in resource.
pub fn columns(group: &str, resource: &str) -> &'static [Column] {
    rows::find(group, resource).columns
}

/// What a column of a built-in resource holds.
pub fn description(group: &str, resource: &str, column: &Column) -> &'static str {
    descriptions::of(group, resource, column)
}

/// The cells of one object, one for each column.
pub fn row(group: &str, resource: &str, object: &Value, now: Timestamp) -> Vec<Value> {
    (rows::find(group, resource).cells)(object, now)
}

/// What marks a whole row, as `conditions` of a TableRow: pods that have finished.
pub fn row_conditions(group: &str, resource: &str, object: &Value) -> Option<Value> {
    let (reason, message) = match (group, resource, object.text("status.phase")) {
        ("", "pods", "Succeeded") => ("Succeeded", "The pod has completed successfully."),
        ("", "pods", "Failed") => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(serde_json::json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// A time by how long it is ago, as tables show it.
pub(crate) fn since(time: &Value, now: Timestamp) -> String {
    match instant(time) {
        Some(then) => between(then, now),
        None => "<unknown>".to_owned(),
    }
}

pub(crate) fn instant(time: &Value) -> Option<Timestamp> {
    time.as_str()?.parse().ok()
}

pub(crate) fn between(from: Timestamp, to: Timestamp) -> String {
    let milliseconds = to.as_millisecond() - from.as_millisecond();
    match u64::try_from(milliseconds) {
        Ok(ms) => duration::human(Duration::from_millis(ms)),
        // A clock that is a moment off is not worth showing.
        Err(_) if milliseconds > -2000 => "0s".to_owned(),
        Err(_) => "<invalid>".to_owned(),
    }
}

pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    since(object.at("metadata.creationTimestamp"), now).into()
}

pub(crate) fn name(object: &Value) -> Value {
    object.text("metadata.name").into()
}

pub(crate) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}
