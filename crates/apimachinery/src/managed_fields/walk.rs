//! Walks of values along their schema: which fields are there, what differs, merging and removing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::set::{self, Set};
use crate::schema::{Kind, ListType, Schema};

/// How a value is taken apart. Where there is no schema, objects are taken apart and lists are not.
#[derive(Clone, Copy)]
pub(super) enum Shape<'s> {
    Leaf,
    /// Members, with the schema where they are declared.
    Object(Option<&'s Schema>),
    /// Elements that are their own identity.
    Set,
    /// Elements identified by keys.
    Keyed(&'s Schema, &'s [Cow<'static, str>]),
}

pub(super) fn shape<'s>(schema: Option<&'s Schema>, value: &Value) -> Shape<'s> {
    let Some(schema) = schema else {
        return if value.is_object() { Shape::Object(None) } else { Shape::Leaf };
    };
    if schema.atomic() {
        return Shape::Leaf;
    }
    match (&schema.kind, value) {
        (Kind::Object(_) | Kind::Map(_), Value::Object(_)) => Shape::Object(Some(schema)),
        (Kind::List(_, ListType::Set), Value::Array(_)) => Shape::Set,
        (Kind::List(items, ListType::Map(keys)), Value::Array(_)) => Shape::Keyed(items, keys),
        (
            Kind::Any | Kind::FieldsV1 | Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStringArray,
            Value::Object(_),
        ) => Shape::Object(None),
        _ => Shape::Leaf,
    }
}

/// The schema of a member, and whether it is a declared field (rather than a key of a map).
pub(super) fn member<'s>(schema: Option<&'s Schema>, name: &str) -> (Option<&'s Schema>, bool) {
    match schema {
        None => (None, false),
        Some(schema) => match &schema.kind {
            Kind::Map(values) => (Some(values), false),
            _ => match schema.field(name) {
                Some(field) => (Some(&field.schema), true),
                None => (None, false),
            },
        },
    }
}

fn field_element(name: &str) -> String {
    let mut element = String::with_capacity(name.len() + 2);
    element.push_str("f:");
    element.push_str(name);
    element
}

fn push_json(out: &mut String, value: &Value) {
    use std::fmt::Write;
    // Writing to a string cannot fail.
    let _ = write!(out, "{value}");
}

fn value_element(value: &Value) -> String {
    let mut element = String::from("v:");
    push_json(&mut element, value);
    element
}

/// `k:{"name":"a"}`; keys that are missing take their default.
fn key_element(item: &Value, items: &Schema, keys: &[Cow<'static, str>]) -> Option<String> {
    let mut parts: SmallVec<[(&str, Cow<'_, Value>); 2]> = SmallVec::new();
    for key in keys {
        let value = match item.get(&**key) {
            Some(Value::Null) | None => {
                items.field(key).and_then(|f| f.default().or_else(|| f.key_zero())).map(Cow::Owned)
            }
            Some(value) => Some(Cow::Borrowed(value)),
        };
        if let Some(value) = value {
            parts.push((key, value));
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.sort_by_key(|(key, _)| *key);
    let mut element = String::with_capacity(32);
    element.push_str("k:{");
    for (i, (key, value)) in parts.iter().enumerate() {
        // Keys are names of fields, which need no escaping.
        element.push_str(if i == 0 { "\"" } else { ",\"" });
        element.push_str(key);
        element.push_str("\":");
        push_json(&mut element, value);
    }
    element.push('}');
    Some(element)
}

/// The elements of a list, with their names in sets. Elements without identity are left out.
pub(super) fn elements<'v, 's>(
    shape: Shape<'s>,
    list: &'v [Value],
) -> Vec<(String, &'v Value, Option<&'s Schema>)> {
    list.iter()
        .filter_map(|item| match shape {
            Shape::Keyed(items, keys) => key_element(item, items, keys).map(|e| (e, item, Some(items))),
            _ => Some((value_element(item), item, None)),
        })
        .collect()
}

pub(super) fn is_object_meta(schema: &Schema) -> bool {
    schema.name == "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
}

fn is_managed_fields(schema: Option<&Schema>, name: &str) -> bool {
    name == "managedFields" && schema.is_some_and(is_object_meta)
}

/// All fields of an object.
pub fn fields_of(value: &Value, schema: Option<&Schema>) -> Set {
    fields(value, schema).1
}

/// Whether the value is itself a member, and what is below it.
fn fields(value: &Value, schema: Option<&Schema>) -> (bool, Set) {
    let mut out = Set::new();
    match (shape(schema, value), value) {
        (Shape::Object(schema), Value::Object(object)) => {
            for (name, value) in object {
                if is_managed_fields(schema, name) {
                    continue;
                }
                let (below, declared) = member(schema, name);
                let (leaf, children) = fields(value, below);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                set::insert(&mut out, field_element(name), leaf || empty || !declared, children);
            }
            (false, out)
        }
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Array(list)) => {
            for (element, item, schema) in elements(shape, list) {
                let (_, children) = match schema {
                    Some(schema) => fields(item, Some(schema)),
                    None => (true, Set::new()),
                };
                set::insert(&mut out, element, true, children);
            }
            (false, out)
        }
        (_, Value::Null)
            if schema.is_some_and(|s| matches!(s.kind, Kind::Object(_) | Kind::Map(_) | Kind::List(..))) =>
        {
            (false, out)
        }
        _ => (true, out),
    }
}

/// What differs between two objects.
#[derive(Debug, Default)]
pub struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.modified.is_empty() && self.added.is_empty()
    }

    /// What the new object says about more fields than the old one, or otherwise; takes it out.
    pub fn take_changed(&mut self) -> Set {
        let mut changed = std::mem::take(&mut self.modified);
        set::absorb(&mut changed, std::mem::take(&mut self.added));
        changed
    }

    /// Adds an element that is not there yet.
    fn insert(&mut self, element: String, below: (Membership, Comparison)) {
        let (membership, below) = below;
        let mut nodes = [
            (&mut self.removed, Membership::Removed, below.removed),
            (&mut self.modified, Membership::Modified, below.modified),
            (&mut self.added, Membership::Added, below.added),
        ]
        .into_iter()
        .filter_map(|(set, member, below)| Some((set, set::node(membership == member, below)?)))
        .peekable();
        while let Some((set, node)) = nodes.next() {
            if nodes.peek().is_none() {
                set.insert(element, Value::Object(node));
                return;
            }
            set.insert(element.clone(), Value::Object(node));
        }
    }
}

/// The node of a value that one of two objects does not have at all: every field below it, itself included. `None` for
/// null, which is nothing.
fn whole_node(value: &Value, schema: Option<&Schema>) -> Set {
    // Sorts before every element; alone it is left out.
    let own = || (set::SELF.to_owned(), Value::Object(Set::new()));
    let below: Vec<(String, Value)> = match (shape(schema, value), value) {
        (Shape::Object(schema), Value::Object(object)) => {
            let mut below = Vec::with_capacity(object.len() + 1);
            below.push(own());
            let is_meta = schema.is_some_and(is_object_meta);
            for (name, value) in object {
                if is_meta && name == "managedFields" {
                    continue;
                }
                let node = whole_node(value, member(schema, name).0);
                below.push((field_element(name), Value::Object(node)));
            }
            below
        }
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Array(list)) => {
            let mut below = Vec::with_capacity(list.len() + 1);
            below.push(own());
            for (element, value, schema) in elements(shape, list) {
                below.push((element, Value::Object(whole_node(value, schema))));
            }
            below.sort_by(|(a, _), (b, _)| a.cmp(b));
            // Duplicates are owned as one.
            below.dedup_by(|(later, _), (earlier, node)| {
                let same = later == earlier;
                if same {
                    *node = Value::Object(Set::new());
                }
                same
            });
            below
        }
        _ => return Set::new(),
    };
    if below.len() > 1 { below.into_iter().collect() } else { Set::new() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Membership {
    Same,
    Removed,
    Modified,
    Added,
}

pub fn compare(old: &Value, new: &Value, schema: &Schema) -> Comparison {
    differ(Some(old), Some(new), Some(schema)).1
}

fn differ(old: Option<&Value>, new: Option<&Value>, schema: Option<&Schema>) -> (Membership, Comparison) {
    let mut out = Comparison::default();
    let whole = match (old, new) {
        (None, None) => return (Membership::Same, out),
        (Some(_), Some(_)) => Membership::Modified,
        (Some(one), None) | (None, Some(one)) => {
            if one.is_null() {
                return (Membership::Same, out);
            }
            let mut node = whole_node(one, schema);
            node.remove(set::SELF);
            if old.is_some() {
                out.removed = node;
                return (Membership::Removed, out);
            }
            out.added = node;
            return (Membership::Added, out);
        }
    };
    let Some(some) = new.filter(|v| !v.is_null()).or(old) else { return (Membership::Same, out) };
    let empty = |v: Option<&Value>| match v {
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        _ => true,
    };
    let shape = shape(schema, some);
    let alike = match (old, new) {
        (Some(old), Some(new)) => {
            old.is_null() || new.is_null() || std::mem::discriminant(old) == std::mem::discriminant(new)
        }
        _ => true,
    };
    if matches!(shape, Shape::Leaf) || !alike || (empty(old) && empty(new)) {
        return (whole, out);
    }
    match shape {
        Shape::Leaf => {}
        Shape::Object(schema) => {
            let none = Map::new();
            let old_members = old.and_then(Value::as_object).unwrap_or(&none);
            let new_members = new.and_then(Value::as_object).unwrap_or(&none);
            let gone = old_members.keys().filter(|k| !new_members.contains_key(*k));
            for name in new_members.keys().chain(gone) {
                if is_managed_fields(schema, name) {
                    continue;
                }
                let (old, new) = (old_members.get(name), new_members.get(name));
                if old != new {
                    let below = differ(old, new, member(schema, name).0);
                    out.insert(field_element(name), below);
                }
            }
        }
        Shape::Set | Shape::Keyed(..) => {
            fn list(v: Option<&Value>) -> &[Value] {
                v.and_then(Value::as_array).map_or(&[][..], Vec::as_slice)
            }
            type Same<'v> = SmallVec<[&'v Value; 1]>;
            let mut both: BTreeMap<String, (Same<'_>, Same<'_>, Option<&Schema>)> = BTreeMap::new();
            for (element, value, schema) in elements(shape, list(old)) {
                both.entry(element).or_insert((Same::new(), Same::new(), schema)).0.push(value);
            }
            for (element, value, schema) in elements(shape, list(new)) {
                both.entry(element).or_insert((Same::new(), Same::new(), schema)).1.push(value);
            }
            for (element, (in_old, in_new, schema)) in both {
                let below = if in_old == in_new {
                    (Membership::Same, Comparison::default())
                } else if in_old.len() <= 1 && in_new.len() <= 1 {
                    differ(in_old.first().copied(), in_new.first().copied(), schema)
                } else {
                    // Duplicates are owned as one.
                    let membership = match (in_old.is_empty(), in_new.is_empty()) {
                        (true, _) => Membership::Added,
                        (_, true) => Membership::Removed,
                        _ => Membership::Modified,
                    };
                    (membership, Comparison::default())
                };
                out.insert(element, below);
            }
        }
    }
    (Membership::Same, out)
}

/// `config` laid over `live`.
pub fn merge(live: &Value, config: &Value, schema: &Schema) -> Value {
    overlay(Some(live), Some(config), Some(schema))
}

fn overlay(live: Option<&Value>, config: Option<&Value>, schema: Option<&Schema>) -> Value {
    let (live, config) = match (live, config) {
        (None, None) => return Value::Null,
        (Some(live), None) => return live.clone(),
        (None, Some(config)) => (&Value::Null, config),
        (Some(live), Some(config)) => (live, config),
    };
    match (shape(schema, config), config) {
        (Shape::Object(schema), Value::Object(theirs)) => {
            let mut out = live.as_object().cloned().unwrap_or_default();
            for (name, value) in theirs {
                let merged = overlay(out.get(name), Some(value), member(schema, name).0);
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Array(theirs)) => {
            let ours = live.as_array().map_or(&[][..], Vec::as_slice);
            overlay_list(shape, ours, theirs)
        }
        _ => config.clone(),
    }
}

/// Elements of both lists: the live ones in their place, the applied ones in the order they were applied in.
fn overlay_list(shape: Shape<'_>, ours: &[Value], theirs: &[Value]) -> Value {
    let ours = elements(shape, ours);
    let applied = elements(shape, theirs);
    let in_applied = |element: &str| applied.iter().any(|(e, ..)| e == element);
    let merged = |element: &str| -> Value {
        let mut same = ours.iter().filter(|(e, ..)| e == element);
        let ours = match (same.next(), same.next()) {
            (Some((_, value, _)), None) => Some(*value),
            _ => None,
        };
        let theirs = applied.iter().find(|(e, ..)| e == element);
        match theirs {
            Some((_, theirs, Some(schema))) => overlay(ours, Some(theirs), Some(schema)),
            Some((_, theirs, None)) => (*theirs).clone(),
            None => ours.cloned().unwrap_or_default(),
        }
    };
    let mut out = Vec::with_capacity(ours.len().max(applied.len()));
    let mut next = applied.iter().peekable();
    for (element, value, _) in &ours {
        if !in_applied(element) {
            out.push((*value).clone());
            continue;
        }
        // Everything applied up to and including this element comes now, unless it has come already.
        if next.clone().any(|(e, ..)| e == element) {
            for (e, ..) in next.by_ref() {
                out.push(merged(e));
                if e == element {
                    break;
                }
            }
        }
    }
    for (e, ..) in next {
        out.push(merged(e));
    }
    Value::Array(out)
}

/// `value` without the fields of `gone`.
pub fn remove(value: &mut Value, gone: &Set, schema: Option<&Schema>) {
    match (shape(schema, value), value) {
        (Shape::Object(schema), Value::Object(object)) => {
            object.retain(|name, value| match gone.get(&field_element(name)) {
                Some(Value::Object(node)) if set::is_member(node) => false,
                Some(Value::Object(node)) => {
                    remove(value, node, member(schema, name).0);
                    true
                }
                _ => true,
            })
        }
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Array(list)) => list.retain_mut(|item| {
            let (element, schema) = match shape {
                Shape::Keyed(items, keys) => match key_element(item, items, keys) {
                    Some(element) => (element, Some(items)),
                    None => return true,
                },
                _ => (value_element(item), None),
            };
            match gone.get(&element) {
                Some(Value::Object(node)) if set::is_member(node) => false,
                Some(Value::Object(node)) => {
                    remove(item, node, schema);
                    true
                }
                _ => true,
            }
        }),
        _ => {}
    }
}

/// The set with every declared field on the way to a member made a member.
pub fn with_named_fields(fields: &Set, schema: Option<&Schema>) -> Set {
    let mut out = Set::new();
    for (element, node) in fields {
        let Value::Object(node) = node else { continue };
        if element == "." {
            continue;
        }
        let (below, declared) = match (element.strip_prefix("f:"), schema) {
            (Some(name), _) => member(schema, name),
            (None, Some(schema)) => (schema.items(), false),
            (None, None) => (None, false),
        };
        let children = with_named_fields(node, below);
        set::insert(&mut out, element.clone(), declared || set::is_member(node), children);
    }
    out
}
