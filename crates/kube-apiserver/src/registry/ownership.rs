//! Who owns which fields: managed fields on every write, server-side apply.

use apimachinery::status::Status;
use serde_json::Value;

use super::write::Write;

/// Claims the fields of a new object for the writer.
pub fn created(_write: &Write<'_>, _object: &mut Value) -> Result<(), Status> {
    Ok(())
}

/// Claims what `new` changes in `old`.
pub fn updated(_write: &Write<'_>, _old: &Value, _new: &mut Value) -> Result<(), Status> {
    Ok(())
}

/// The object with an applied configuration merged into it.
pub fn applied(
    _write: &Write<'_>,
    _old: Option<&Value>,
    _config: &Value,
    _force: bool,
) -> Result<Value, Status> {
    Err(Status::unsupported_media_type(&[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ]))
}
