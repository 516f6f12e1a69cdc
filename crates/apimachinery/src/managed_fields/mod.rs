//! Who owns which field: server-side apply, and the bookkeeping of every other write.
//!
//! `metadata.managedFields` holds one entry per manager, operation, version and subresource. [`update`] gives changed
//! fields to whoever changed them; [`apply`] merges a configuration in, refuses to take fields from others unless
//! forced, and removes what the manager no longer mentions and nobody else owns. A write that changes nothing leaves
//! the entries, times included, as they were.

mod created;
pub mod set;
#[cfg(test)]
mod tests;
pub mod typed;
mod walk;

pub use walk::merge;

use serde_json::{Map, Value, json};

pub use self::created::{Unusual, created};
use self::set::Set;
use crate::codec::{self, Strictness};
use crate::schema::Schema;
use crate::status::{Cause, FieldError, Status, quote};
use crate::{field_path, schema};

/// More updating managers than this are folded into one called `ancient-changes`.
pub const MAX_UPDATE_MANAGERS: usize = 10;
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// On whose behalf, and how, an object is written.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    /// Of the request, such as `apps/v1`.
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// RFC 3339 in seconds.
    pub now: &'a str,
    /// Paths the strategy will put back (`["status"]` on the object, `["spec"]` on its status); they are not owned.
    pub reset_fields: &'a [&'a [&'a str]],
}

/// The manager of a request: its `fieldManager`, else the first part of its user agent.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let agent = user_agent.split('/').next().unwrap_or("");
    agent.chars().filter(|c| !c.is_control()).take(128).collect()
}

/// What is wrong with a `fieldManager`; applying demands one.
pub fn validate_manager(field_manager: &str, applying: bool) -> Vec<FieldError> {
    let path = field_path::Path::new("fieldManager");
    let mut errors = vec![];
    if applying && field_manager.is_empty() {
        errors.push(FieldError::required(&path, "is required for apply patch"));
    }
    if field_manager.len() > 128 {
        errors.push(FieldError::too_long(&path, 128));
    }
    if let Some((i, _)) = field_manager.char_indices().find(|(_, c)| c.is_control()) {
        errors.push(FieldError::invalid(
            &path,
            field_manager,
            format!("invalid character {i} (only printable characters are allowed)"),
        ));
    }
    errors
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    applied: bool,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: Set,
}

impl Entry {
    /// Whether two entries are of the same manager: applied ones whatever their version.
    fn same_owner(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.applied == other.applied
            && self.subresource == other.subresource
            && (self.applied || self.api_version == other.api_version)
    }

    fn new(writer: &Writer<'_>, applied: bool, fields: Set) -> Entry {
        Entry {
            manager: if writer.manager.is_empty() { "unknown" } else { writer.manager }.to_owned(),
            applied,
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time: Some(writer.now.to_owned()),
            fields,
        }
    }

    fn parse(value: &Value) -> Option<Entry> {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let entry = Entry {
            manager: text("manager"),
            applied: match value["operation"].as_str() {
                Some("Apply") => true,
                Some("Update") => false,
                _ => return None,
            },
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: value["time"].as_str().map(str::to_owned),
            fields: set::parse(&value["fieldsV1"])?,
        };
        (!entry.api_version.is_empty() && value["fieldsType"] == "FieldsV1").then_some(entry)
    }

    fn into_value(self) -> Value {
        let mut value = Map::new();
        if !self.manager.is_empty() {
            value.insert("manager".into(), self.manager.into());
        }
        value.insert("operation".into(), if self.applied { "Apply" } else { "Update" }.into());
        value.insert("apiVersion".into(), self.api_version.into());
        if let Some(time) = self.time {
            value.insert("time".into(), time.into());
        }
        value.insert("fieldsType".into(), "FieldsV1".into());
        value.insert("fieldsV1".into(), Value::Object(self.fields));
        if !self.subresource.is_empty() {
            value.insert("subresource".into(), self.subresource.into());
        }
        Value::Object(value)
    }

    /// As conflict messages name it.
    fn printed(&self) -> String {
        let mut text = quote(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", quote(&self.subresource)));
        }
        if !self.applied {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

fn entries(object: &Value) -> Option<Vec<Entry>> {
    let list = match object.pointer("/metadata/managedFields") {
        None | Some(Value::Null) => return Some(vec![]),
        Some(list) => list.as_array()?,
    };
    list.iter().map(Entry::parse).collect()
}

fn take_managed_fields(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn put_managed_fields(object: &mut Value, mut entries: Vec<Entry>) {
    if entries.is_empty() {
        return;
    }
    entries.sort_by(|a, b| {
        fn key(e: &Entry) -> (bool, &str, &str, &str, &str) {
            (!e.applied, e.time.as_deref().unwrap_or_default(), &e.manager, &e.api_version, &e.subresource)
        }
        key(a).cmp(&key(b))
    });
    put_value(object, Value::Array(entries.into_iter().map(Entry::into_value).collect()));
}

fn put_value(object: &mut Value, managed: Value) {
    if let Value::Object(object) = object {
        let meta = object.entry("metadata").or_insert_with(|| json!({}));
        if let Value::Object(meta) = meta {
            meta.insert("managedFields".into(), managed);
        }
    }
}

/// Members of the metadata that nobody owns.
const UNOWNED: [&str; 9] = [
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:selfLink",
    "f:uid",
    "f:clusterName",
    "f:generation",
    "f:managedFields",
    "f:resourceVersion",
];

/// Takes out what nobody owns.
fn strip(fields: &mut Set) {
    const METADATA: &str = "f:metadata";
    fields.remove("f:apiVersion");
    fields.remove("f:kind");
    let Some(Value::Object(metadata)) = fields.get_mut(METADATA) else { return };
    metadata.remove(set::SELF);
    for name in UNOWNED {
        metadata.remove(name);
    }
    if metadata.is_empty() {
        fields.remove(METADATA);
    }
}

fn reset_set(paths: &[&[&str]]) -> Set {
    let mut out = Set::new();
    for path in paths {
        let mut children = Set::new();
        for (i, name) in path.iter().enumerate().rev() {
            let mut parent = Set::new();
            set::insert(&mut parent, format!("f:{name}"), i + 1 == path.len(), children);
            children = parent;
        }
        set::union(&mut out, &children);
    }
    out
}

/// Whether two objects are equal but for their managed fields.
fn same_but_managed(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    a.len() == b.len()
        && a.iter().all(|(name, value)| match (name.as_str(), value, b.get(name)) {
            ("metadata", Value::Object(a), Some(Value::Object(b))) => {
                let rest = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key("managedFields"));
                rest(a) == rest(b) && a.iter().all(|(k, v)| k == "managedFields" || b.get(k) == Some(v))
            }
            (_, value, Some(other)) => value == other,
            (_, _, None) => false,
        })
}

/// Tracks a write that is no apply: what differs from `live` (`None` on creation) is the writer's from now on. Sets
/// `metadata.managedFields` of `new`; what it held before counts as upstream counts it (an emptied list resets).
pub fn update(live: Option<&Value>, new: &mut Value, schema: &Schema, writer: &Writer<'_>) {
    let sent = take_managed_fields(new);
    let live_managed = live.and_then(|l| l.pointer("/metadata/managedFields"));
    let reset = writer.subresource.is_empty()
        && sent.as_ref().and_then(Value::as_array).is_some_and(|list| {
            list.is_empty() || list.len() == 1 && list[0].as_object().is_some_and(Map::is_empty)
        });
    // The usual case: the client sent back what it had read, or nothing at all.
    let untouched =
        !reset && (sent.is_none() || !writer.subresource.is_empty() || sent.as_ref() == live_managed);
    if untouched
        && let Some(live) = live
        && let Some(managed) = live_managed
        && same_but_managed(live, new)
    {
        put_value(new, managed.clone());
        return;
    }
    let mut managers = if reset {
        vec![]
    } else {
        let sent = match sent {
            Some(list) if !untouched => list
                .as_array()
                .and_then(|l| l.iter().map(Entry::parse).collect::<Option<Vec<Entry>>>())
                .filter(|l| !l.is_empty()),
            _ => None,
        };
        sent.or_else(|| live.and_then(entries)).unwrap_or_default()
    };
    if managers.is_empty() && live.is_some_and(|l| l.pointer("/metadata/uid").is_some()) {
        // Written before fields were tracked, or tracking was reset: the first apply will begin it.
        return;
    }
    let nothing = if live.is_none() { schema.blank() } else { Value::Null };
    give_changes(&mut managers, live.unwrap_or(&nothing), new, schema, writer, true);
    cap(&mut managers);
    put_managed_fields(new, managers);
}

fn same_but_times(a: &[Entry], b: &[Entry]) -> bool {
    a.len() == b.len()
        && a.iter().all(|x| {
            b.iter().any(|y| x.same_owner(y) && x.fields == y.fields && x.api_version == y.api_version)
        })
}

/// Moves what changed from its owners to the writer.
fn give_changes(
    managers: &mut Vec<Entry>,
    live: &Value,
    new: &Value,
    schema: &Schema,
    writer: &Writer<'_>,
    strip_meta: bool,
) {
    let mut changes = walk::compare(live, new, schema);
    let reset = reset_set(writer.reset_fields);
    for part in [&mut changes.removed, &mut changes.modified, &mut changes.added] {
        set::subtract_trees(part, &reset);
    }
    if changes.is_same() {
        managers.retain(|e| !e.fields.is_empty());
        return;
    }
    let mut own = changes.take_changed();
    for entry in managers.iter_mut() {
        set::subtract(&mut entry.fields, &own);
        set::subtract(&mut entry.fields, &changes.removed);
    }
    if strip_meta {
        strip(&mut own);
    }
    if !own.is_empty() {
        let entry = Entry::new(writer, false, own);
        match managers.iter_mut().find(|e| e.same_owner(&entry)) {
            Some(existing) => {
                set::absorb(&mut existing.fields, entry.fields);
                existing.time = entry.time;
            }
            None => managers.push(entry),
        }
    }
    managers.retain(|e| !e.fields.is_empty());
}

/// Folds the oldest updating managers of each version into one.
fn cap(managers: &mut Vec<Entry>) {
    if managers.len() <= MAX_UPDATE_MANAGERS {
        return;
    }
    let mut updaters: Vec<(String, String, usize)> = managers
        .iter()
        .enumerate()
        .filter(|(_, e)| !e.applied)
        .map(|(i, e)| (e.time.clone().unwrap_or_default(), e.manager.clone(), i))
        .collect();
    let mut excess = updaters.len().saturating_sub(MAX_UPDATE_MANAGERS);
    if excess == 0 {
        return;
    }
    updaters.sort();
    let mut buckets: Vec<(String, usize)> = vec![];
    let mut gone = vec![];
    for (time, _, i) in updaters {
        if excess == 0 {
            break;
        }
        let version = managers[i].api_version.clone();
        match buckets.iter().find(|(v, _)| *v == version) {
            None => buckets.push((version, i)),
            Some((_, first)) => {
                let fields = std::mem::take(&mut managers[i].fields);
                let bucket = &mut managers[*first];
                bucket.manager = "ancient-changes".into();
                bucket.subresource.clear();
                bucket.time = (!time.is_empty()).then_some(time);
                set::union(&mut bucket.fields, &fields);
                gone.push(i);
                excess -= 1;
            }
        }
    }
    let mut at = 0;
    managers.retain(|_| {
        at += 1;
        !gone.contains(&(at - 1))
    });
}

/// Server-side apply: `config` (decoded with [`crate::codec::type_applied`]) laid over `live` (`None` creates).
/// Answers the new object with its managed fields; equal to `live` when nothing changes.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    schema: &Schema,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    let version = config["apiVersion"].as_str().unwrap_or_default();
    if version != writer.api_version {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            writer.api_version
        )));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let mut base = live.cloned().unwrap_or_else(|| json!({}));
    let live_managed = take_managed_fields(&mut base);
    let mut managers = match live.map(entries) {
        None => vec![],
        Some(Some(entries)) => entries,
        Some(None) => return Err(Status::internal("failed to decode managed fields")),
    };
    let before = managers.clone();
    if managers.is_empty() && live.is_some() {
        let first = Writer { manager: "before-first-apply", ..*writer };
        give_changes(&mut managers, &schema.blank(), &base, schema, &first, true);
    }
    let merged = walk::merge(&base, config, schema);

    let mut own = walk::fields_of(config, Some(schema));
    set::subtract_trees(&mut own, &reset_set(writer.reset_fields));
    let mut mine = Entry::new(writer, true, own);
    let last = managers.iter().position(|e| e.same_owner(&mine)).map(|i| managers.remove(i));
    let new = match &last {
        Some(last) if !last.fields.is_empty() => prune(&merged, schema, &managers, &mine, last),
        _ => merged,
    };

    let blank;
    let old = if live.is_some() {
        &base
    } else {
        blank = schema.blank();
        &blank
    };
    let mut changes = walk::compare(old, &new, schema);
    let reset = reset_set(writer.reset_fields);
    for part in [&mut changes.removed, &mut changes.modified, &mut changes.added] {
        set::subtract_trees(part, &reset);
    }
    let changed = changes.take_changed();
    let mut conflicts: Vec<(&Entry, Set)> = managers
        .iter()
        .map(|e| (e, set::intersection(&e.fields, &changed)))
        .filter(|(_, s)| !s.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        if writer.manager == "kubectl" {
            let allowed = last_applied_fields(&base, schema, writer);
            for (_, fields) in &mut conflicts {
                set::subtract(fields, &allowed);
            }
            conflicts.retain(|(_, s)| !s.is_empty());
        }
        if !conflicts.is_empty() {
            return Err(conflict(&conflicts));
        }
    }
    for entry in &mut managers {
        set::subtract(&mut entry.fields, &changed);
        set::subtract(&mut entry.fields, &changes.removed);
    }
    managers.retain(|e| !e.fields.is_empty());
    strip(&mut mine.fields);
    let new = if schema.is_custom() {
        new
    } else {
        codec::normalize(&new, schema, Strictness::Ignore)
            .map_err(|e| Status::internal(format!("failed to convert the merged object: {e}")))?
            .value
    };
    let object_same = live.is_some() && new == base;
    if object_same {
        // What changes nothing has happened at no time.
        mine.time = last.as_ref().and_then(|last| last.time.clone());
    }
    if !mine.fields.is_empty() {
        managers.push(mine);
    }
    let mut new = new;
    if writer.manager == "kubectl" {
        refresh_last_applied(&mut new, config);
    }
    match live_managed {
        Some(managed)
            if object_same && before.len() == managers.len() && same_but_times(&before, &managers) =>
        {
            put_value(&mut new, managed);
        }
        _ => put_managed_fields(&mut new, managers),
    }
    Ok(new)
}

/// Removes what the manager applied last time, does not mention now, and nobody else owns.
fn prune(merged: &Value, schema: &Schema, others: &[Entry], mine: &Entry, last: &Entry) -> Value {
    let named = |fields: &Set| walk::with_named_fields(fields, Some(schema));
    let last_fields = named(&last.fields);
    let mut bare = merged.clone();
    walk::remove(&mut bare, &last_fields, Some(schema));

    // Of what that took away, give back what somebody owns.
    let all = named(&walk::fields_of(merged, Some(schema)));
    let mut owned = named(&mine.fields);
    for entry in others {
        set::union(&mut owned, &named(&entry.fields));
    }
    let mut unowned = all.clone();
    set::subtract(&mut unowned, &named(&walk::fields_of(&bare, Some(schema))));
    set::subtract(&mut unowned, &owned);
    let mut pruned = merged.clone();
    walk::remove(&mut pruned, &unowned, Some(schema));

    // And give back what hung below it without having been applied.
    let mut gone = all;
    set::subtract(&mut gone, &named(&walk::fields_of(&pruned, Some(schema))));
    let gone = set::intersection(&gone, &last_fields);
    let mut out = merged.clone();
    walk::remove(&mut out, &gone, Some(schema));
    out
}

fn conflict(conflicts: &[(&Entry, Set)]) -> Status {
    let mut flat: Vec<(String, String)> = vec![];
    for (entry, fields) in conflicts {
        flat.extend(set::paths(fields).into_iter().map(|p| (entry.printed(), p)));
    }
    let causes = flat
        .iter()
        .map(|(manager, path)| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {manager}"),
            field: path.clone(),
        })
        .collect();
    let message = match &flat[..] {
        [(manager, path)] => format!("Apply failed with 1 conflict: conflict with {manager}: {path}"),
        many => {
            let mut managers: Vec<&String> = many.iter().map(|(m, _)| m).collect();
            managers.sort();
            managers.dedup();
            let mut lines = vec![];
            for manager in managers {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(many.iter().filter(|(m, _)| m == manager).map(|(_, p)| format!("- {p}")));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    Status::apply_conflict(causes, message)
}

/// The fields that client-side apply set and that still have its values: these may be taken over.
fn last_applied_fields(live: &Value, schema: &Schema, writer: &Writer<'_>) -> Set {
    let annotation = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    let Ok(applied) = serde_json::from_str::<Value>(annotation) else { return Set::new() };
    if applied["apiVersion"] != writer.api_version {
        return Set::new();
    }
    let mut fields = walk::fields_of(&applied, Some(schema));
    let differences = walk::compare(&applied, live, schema);
    for part in [&differences.modified, &differences.added, &differences.removed] {
        set::subtract(&mut fields, part);
    }
    fields
}

/// Keeps the annotation of client-side apply current, so that either way of applying may be used next.
fn refresh_last_applied(new: &mut Value, config: &Value) {
    if new["metadata"]["annotations"][LAST_APPLIED].is_string() {
        let mut config = config.clone();
        if let Some(Value::Object(annotations)) = config.pointer_mut("/metadata/annotations") {
            annotations.remove(LAST_APPLIED);
        }
        new["metadata"]["annotations"][LAST_APPLIED] = Value::String(format!("{config}\n"));
    }
}

/// The set of all fields of a built-in object, for tests and tools.
pub fn fields_of(value: &Value, schema: &Schema) -> Set {
    walk::fields_of(value, Some(schema))
}

/// Schema of `metadata`, which every object shares.
pub fn meta_schema() -> &'static Schema {
    schema::object_meta()
}
