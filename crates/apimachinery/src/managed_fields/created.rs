//! The managed fields of a new object, written as JSON at once.
//!
//! Every creation needs them, and as values they would be a third of all the values of the request: two allocations for
//! each field, only to be encoded and thrown away. This says the same as [`super::update`] does of an object that nobody
//! has owned yet, without a tree in between.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::set::{self, Set};
use super::walk::{self, Shape};
use super::{UNOWNED, Writer, reset_set};
use crate::schema::Schema;

/// The object is not the common case; [`super::update`] knows what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusual;

/// The `metadata.managedFields` of an object that `writer` creates, as JSON; `None` where there is nothing to own.
/// `new` must be in the form [`crate::codec::decode`] answers.
pub fn created(new: &Value, schema: &Schema, writer: &Writer<'_>) -> Result<Option<String>, Unusual> {
    let object = new.as_object().ok_or(Unusual)?;
    let metadata = object.get("metadata").and_then(Value::as_object).ok_or(Unusual)?;
    if metadata.contains_key("managedFields") {
        return Err(Unusual);
    }
    let blank = schema.blank();
    let reset = reset_set(writer.reset_fields);
    let mut out = String::with_capacity(2048);
    out.push_str("[{\"apiVersion\":");
    string(&mut out, writer.api_version);
    out.push_str(",\"fieldsType\":\"FieldsV1\",\"fieldsV1\":");
    let mut node = Node::begin(&mut out, false);
    for (name, value) in object {
        let (old, (below, _)) = (blank.get(name), walk::member(Some(schema), name));
        let reset = Reset::below(Some(&reset), name);
        match (name.as_str(), reset) {
            ("apiVersion" | "kind", _) | (_, Reset::Whole) => {}
            ("metadata", Reset::Part(reset)) => {
                node.child(&mut out, name, |out| own_metadata(out, metadata, old, below, reset))?;
            }
            (_, Reset::Part(reset)) => {
                node.child(&mut out, name, |out| changed(out, old, value, below, reset))?
            }
        }
    }
    if !node.end(&mut out) {
        return Ok(None);
    }
    out.push_str(",\"manager\":");
    string(&mut out, if writer.manager.is_empty() { "unknown" } else { writer.manager });
    out.push_str(",\"operation\":\"Update\"");
    if !writer.subresource.is_empty() {
        out.push_str(",\"subresource\":");
        string(&mut out, writer.subresource);
    }
    out.push_str(",\"time\":");
    string(&mut out, writer.now);
    out.push_str("}]");
    Ok(Some(out))
}

fn own_metadata(
    out: &mut String,
    metadata: &Map<String, Value>,
    old: Option<&Value>,
    schema: Option<&Schema>,
    reset: Option<&Set>,
) -> Result<bool, Unusual> {
    let mut node = Node::begin(out, false);
    for (name, value) in metadata {
        if UNOWNED.iter().any(|unowned| unowned[2..] == **name) {
            continue;
        }
        if let Reset::Part(reset) = Reset::below(reset, name) {
            let (old, (below, _)) = (old.and_then(|o| o.get(name)), walk::member(schema, name));
            node.child(out, name, |out| changed(out, old, value, below, reset))?;
        }
    }
    Ok(node.end(out))
}

/// What the strategy will put back anyway, below one element.
#[derive(Clone, Copy)]
enum Reset<'a> {
    Whole,
    Part(Option<&'a Set>),
}

impl<'a> Reset<'a> {
    fn below(reset: Option<&'a Set>, name: &str) -> Reset<'a> {
        let Some(reset) = reset.filter(|r| !r.is_empty()) else { return Reset::Part(None) };
        let below = reset.iter().find(|(element, _)| element.get(2..) == Some(name));
        match below.and_then(|(_, node)| node.as_object()) {
            Some(node) if set::is_member(node) => Reset::Whole,
            node => Reset::Part(node),
        }
    }
}

/// A node being written.
struct Node {
    start: usize,
    member: bool,
    empty: bool,
}

impl Node {
    fn begin(out: &mut String, member: bool) -> Node {
        let start = out.len();
        out.push('{');
        if member {
            out.push_str("\".\":{}");
        }
        Node { start, member, empty: true }
    }

    /// A child of a declared or undeclared name, if `write` writes one.
    fn child(
        &mut self,
        out: &mut String,
        name: &str,
        write: impl FnOnce(&mut String) -> Result<bool, Unusual>,
    ) -> Result<(), Unusual> {
        let mark = out.len();
        self.separate(out);
        if name.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
            out.push_str("\"f:");
            out.push_str(name);
            out.push('"');
        } else {
            string(out, &format!("f:{name}"));
        }
        self.finish(out, mark, write)
    }

    fn element(
        &mut self,
        out: &mut String,
        element: &str,
        write: impl FnOnce(&mut String) -> Result<bool, Unusual>,
    ) -> Result<(), Unusual> {
        let mark = out.len();
        self.separate(out);
        string(out, element);
        self.finish(out, mark, write)
    }

    fn separate(&self, out: &mut String) {
        if self.member || !self.empty {
            out.push(',');
        }
    }

    fn finish(
        &mut self,
        out: &mut String,
        mark: usize,
        write: impl FnOnce(&mut String) -> Result<bool, Unusual>,
    ) -> Result<(), Unusual> {
        out.push(':');
        if write(out)? {
            self.empty = false;
        } else {
            out.truncate(mark);
        }
        Ok(())
    }

    /// Whether anything was written.
    fn end(self, out: &mut String) -> bool {
        match (self.empty, self.member) {
            (true, member) => {
                out.truncate(self.start);
                if member {
                    out.push_str("{}");
                }
                member
            }
            (false, _) => {
                out.push('}');
                true
            }
        }
    }
}

fn string(out: &mut String, text: &str) {
    use std::fmt::Write;
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        // Writing to a string cannot fail.
        let _ = write!(out, "{}", Value::from(text));
    }
}

/// The node of a value that the blank object does not have.
fn whole(
    out: &mut String,
    value: &Value,
    schema: Option<&Schema>,
    reset: Option<&Set>,
) -> Result<bool, Unusual> {
    match (walk::shape(schema, value), value) {
        (Shape::Object(schema), Value::Object(object)) => {
            let mut node = Node::begin(out, true);
            let is_meta = schema.is_some_and(walk::is_object_meta);
            for (name, value) in object {
                if is_meta && name == "managedFields" {
                    continue;
                }
                if let Reset::Part(reset) = Reset::below(reset, name) {
                    let below = walk::member(schema, name).0;
                    node.child(out, name, |out| whole(out, value, below, reset))?;
                }
            }
            Ok(node.end(out))
        }
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Array(list)) => {
            let mut node = Node::begin(out, true);
            write_elements(out, &mut node, shape, list)?;
            Ok(node.end(out))
        }
        _ => {
            out.push_str("{}");
            Ok(true)
        }
    }
}

fn write_elements(
    out: &mut String,
    node: &mut Node,
    shape: Shape<'_>,
    list: &[Value],
) -> Result<(), Unusual> {
    let mut elements = walk::elements(shape, list);
    elements.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    for (i, (element, value, schema)) in elements.iter().enumerate() {
        if elements.get(i + 1).is_some_and(|(next, ..)| next.cmp(element) == Ordering::Equal) {
            // Twice the same is owned as one; rare enough for the long way.
            return Err(Unusual);
        }
        node.element(out, element, |out| whole(out, value, *schema, None))?;
    }
    Ok(())
}

/// The node of what `new` says other than `old`.
fn changed(
    out: &mut String,
    old: Option<&Value>,
    new: &Value,
    schema: Option<&Schema>,
    reset: Option<&Set>,
) -> Result<bool, Unusual> {
    let Some(old) = old else {
        return if new.is_null() { Ok(false) } else { whole(out, new, schema, reset) };
    };
    if old == new {
        return Ok(false);
    }
    match (walk::shape(schema, new), old, new) {
        (_, _, Value::Null) => Err(Unusual),
        (Shape::Object(schema), Value::Object(_) | Value::Null, Value::Object(object))
            if !object.is_empty() || old.as_object().is_some_and(|o| !o.is_empty()) =>
        {
            let mut node = Node::begin(out, false);
            let is_meta = schema.is_some_and(walk::is_object_meta);
            for (name, value) in object {
                if is_meta && name == "managedFields" {
                    continue;
                }
                if let Reset::Part(reset) = Reset::below(reset, name) {
                    let (old, below) = (old.get(name), walk::member(schema, name).0);
                    node.child(out, name, |out| changed(out, old, value, below, reset))?;
                }
            }
            Ok(node.end(out))
        }
        (shape @ (Shape::Set | Shape::Keyed(..)), Value::Null, Value::Array(list)) if !list.is_empty() => {
            let mut node = Node::begin(out, false);
            write_elements(out, &mut node, shape, list)?;
            Ok(node.end(out))
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(_), _) => Err(Unusual),
        _ => {
            out.push_str("{}");
            Ok(true)
        }
    }
}
