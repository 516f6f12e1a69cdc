//! Who owns which fields: managed fields on every write, server-side apply.

use apimachinery::managed_fields::{self, Unusual, Writer};
use apimachinery::schema::Schema;
use apimachinery::status::Status;
use serde_json::Value;

use super::write::Write;

const NOTHING: &[&[&str]] = &[];

/// Runs `with` as the writer of a request. Ownership is kept in the storage version.
fn as_writer<T>(write: &Write<'_>, with: impl FnOnce(&Writer<'_>, &Schema) -> T) -> Option<T> {
    let schema = write.entry.storage_schema()?;
    let now = write.registry.clock.now_rfc3339();
    let api_version = write.entry.storage_api_version();
    let reset_fields = match (write.subresource, &write.entry.custom) {
        ("" | "status", Some(custom)) => custom.reset_fields(!write.subresource.is_empty()),
        ("", None) => write.entry.strategy.reset_fields(false),
        ("status", None) => write.entry.strategy.reset_fields(true),
        _ => NOTHING,
    };
    let writer = Writer {
        manager: &write.manager,
        api_version: &api_version,
        subresource: write.subresource,
        now: &now,
        reset_fields,
    };
    Some(with(&writer, schema))
}

/// Claims the fields of a new object for the writer.
pub fn created(write: &Write<'_>, object: &mut Value) {
    as_writer(write, |writer, schema| managed_fields::update(None, object, schema, writer));
}

/// What [`created`] would put into the object, as JSON; `Err` where only that can tell.
pub fn created_json(write: &Write<'_>, object: &Value) -> Result<Option<String>, Unusual> {
    as_writer(write, |writer, schema| managed_fields::created(object, schema, writer)).unwrap_or(Ok(None))
}

/// Claims what `new` changes in `old`.
pub fn updated(write: &Write<'_>, old: &Value, new: &mut Value) {
    as_writer(write, |writer, schema| managed_fields::update(Some(old), new, schema, writer));
}

/// The object with an applied configuration merged into it, defaults included.
pub fn applied(write: &Write<'_>, old: Option<&Value>, config: &Value, force: bool) -> Result<Value, Status> {
    let merged = as_writer(write, |writer, schema| {
        let mut new = managed_fields::apply(old, config, schema, writer, force)?;
        apimachinery::defaults::apply(&mut new, schema);
        Ok(new)
    });
    merged.unwrap_or_else(|| {
        Err(Status::unsupported_media_type(&["application/json-patch+json", "application/merge-patch+json"]))
    })
}
