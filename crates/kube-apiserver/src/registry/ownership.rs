//! Who owns which fields: managed fields on every write, server-side apply.
//!
//! A writer owns fields of the version it wrote in, so an object of a built-in kind that came in another version than it is
//! stored in is turned into that version to be compared.

use apimachinery::managed_fields::{self, Unusual, Writer};
use apimachinery::schema::Schema;
use apimachinery::status::Status;
use serde_json::Value;

use super::write::Write;
use super::{meta, output};

const NOTHING: &[&[&str]] = &[];

/// Whether the fields of what is worked on are not those that the writer knows.
fn converts(write: &Write<'_>) -> bool {
    write.entry.custom.is_none() && !write.entry.is_storage_version()
}

/// Runs `with` as the writer of a request.
fn as_writer<T>(write: &Write<'_>, with: impl FnOnce(&Writer<'_>, &Schema) -> T) -> Option<T> {
    let entry = write.entry;
    let (schema, api_version) = (entry.schema()?, entry.api_version());
    let now = write.registry.clock.now_rfc3339();
    let reset_fields = match (write.subresource, &entry.custom) {
        ("" | "status", Some(custom)) => custom.reset_fields(!write.subresource.is_empty()),
        ("", None) => entry.strategy.reset_fields(false),
        ("status", None) => entry.strategy.reset_fields(true),
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

/// An object in the writer's version.
fn shown(write: &Write<'_>, object: &Value) -> Value {
    let mut object = object.clone();
    output::from_working(write.entry, &mut object);
    object
}

/// Why the fields that others own in other versions cannot be told, if so: upstream turns a custom resource into each of these
/// versions by its name alone and wants it declared there. What webhooks convert is not looked at.
fn untold(write: &Write<'_>, owned: &Value, objects: &[&Value]) -> Option<String> {
    let custom = write.entry.custom.as_ref().filter(|c| !c.has_webhook())?;
    let own = write.entry.api_version();
    let entries = owned.pointer("/metadata/managedFields")?.as_array()?;
    let mut versions: Vec<&str> = entries.iter().filter_map(|e| e["apiVersion"].as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    versions.retain(|version| *version != own);
    versions.iter().find_map(|version| {
        let schema = custom.schema_of(version)?;
        objects.iter().find_map(|object| managed_fields::typed::check(object, schema).err())
    })
}

/// Claims the fields of `new`, which was `old`, for the writer.
fn claim(write: &Write<'_>, old: Option<&Value>, new: &mut Value) {
    if let Some(old) = old
        && let Some(why) = untold(write, old, &[old, new])
    {
        tracing::debug!(name = meta::text(old, "name"), why, "cannot tell who owns which field");
        meta::clear(new, "managedFields");
        return;
    }
    as_writer(write, |writer, schema| {
        if !converts(write) {
            return managed_fields::update(old, new, schema, writer);
        }
        let old = old.map(|old| shown(write, old));
        let mut owned = shown(write, new);
        managed_fields::update(old.as_ref(), &mut owned, schema, writer);
        match owned["metadata"]["managedFields"].take() {
            Value::Null => drop(meta::clear(new, "managedFields")),
            managed => meta::set(new, "managedFields", managed),
        }
    });
}

/// Claims the fields of a new object for the writer.
pub fn created(write: &Write<'_>, object: &mut Value) {
    claim(write, None, object);
}

/// What [`created`] would put into the object, as JSON; `Err` where only that can tell.
pub fn created_json(write: &Write<'_>, object: &Value) -> Result<Option<String>, Unusual> {
    if converts(write) {
        return Err(Unusual);
    }
    as_writer(write, |writer, schema| managed_fields::created(object, schema, writer)).unwrap_or(Ok(None))
}

/// Claims what `new` changes in `old`.
pub fn updated(write: &Write<'_>, old: &Value, new: &mut Value) {
    claim(write, Some(old), new);
}

/// The stored object with a configuration, which is in the writer's version, merged into it, defaults included.
pub fn applied(write: &Write<'_>, old: Option<&Value>, config: &Value, force: bool) -> Result<Value, Status> {
    if let Some(old) = old
        && let Some(why) = untold(write, old, &[old])
    {
        return Err(Status::unknown(why));
    }
    let merged = as_writer(write, |writer, schema| {
        let old = old.map(|old| if converts(write) { shown(write, old) } else { old.clone() });
        let mut new = managed_fields::apply(old.as_ref(), config, schema, writer, force)?;
        apimachinery::defaults::apply(&mut new, schema);
        if converts(write) {
            output::to_working(write.entry, &mut new);
        }
        Ok(new)
    });
    merged.unwrap_or_else(|| {
        Err(Status::unsupported_media_type(&["application/json-patch+json", "application/merge-patch+json"]))
    })
}
