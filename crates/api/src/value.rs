//! Short ways through `serde_json::Value`. Reading what is absent, or of another type, gives the empty value: decoding
//! has checked types against the schema before anything here runs.

use apimachinery::quantity::Quantity;
use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Reading access by name and dotted path.
pub trait Read {
    /// The member of that name; null where there is none.
    fn get_or_null(&self, name: &str) -> &Value;
    /// The value at a dotted path; null where there is none.
    fn at(&self, path: &str) -> &Value;
    fn text(&self, path: &str) -> &str;
    fn int(&self, path: &str) -> i64;
    fn maybe_int(&self, path: &str) -> Option<i64>;
    fn flag(&self, path: &str) -> bool;
    fn list(&self, path: &str) -> &[Value];
    /// The members of an object, in order.
    fn entries(&self, path: &str) -> Entries<'_>;
    fn has(&self, path: &str) -> bool;
}

pub type Entries<'a> = std::iter::FlatMap<
    std::option::IntoIter<&'a Map<String, Value>>,
    serde_json::map::Iter<'a>,
    fn(&'a Map<String, Value>) -> serde_json::map::Iter<'a>,
>;

fn iterate(map: &Map<String, Value>) -> serde_json::map::Iter<'_> {
    map.iter()
}

/// The first name of a dotted path, and the path behind it.
#[inline]
fn first(path: &str) -> (&str, Option<&str>) {
    // Names are short: looking at each byte is quicker than a search that is made for long texts.
    match path.bytes().position(|b| b == b'.') {
        Some(dot) => (&path[..dot], Some(&path[dot + 1..])),
        None => (path, None),
    }
}

impl Read for Value {
    fn get_or_null(&self, name: &str) -> &Value {
        self.get(name).unwrap_or(&NULL)
    }

    fn at(&self, path: &str) -> &Value {
        let (mut value, mut rest) = (self, Some(path));
        while let Some(path) = rest {
            let (name, below) = first(path);
            match value {
                Value::Object(members) => match members.get(name) {
                    Some(v) => value = v,
                    None => return &NULL,
                },
                _ => return &NULL,
            }
            rest = below;
        }
        value
    }

    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    fn int(&self, path: &str) -> i64 {
        self.at(path).as_i64().unwrap_or_default()
    }

    fn maybe_int(&self, path: &str) -> Option<i64> {
        self.at(path).as_i64()
    }

    fn flag(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or_default()
    }

    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn entries(&self, path: &str) -> Entries<'_> {
        let map = self.at(path).as_object();
        map.into_iter().flat_map(iterate as fn(&Map<String, Value>) -> serde_json::map::Iter<'_>)
    }

    fn has(&self, path: &str) -> bool {
        !self.at(path).is_null()
    }
}

/// Changing access. Objects on the way are made where they are missing; a value of another type on the way is left
/// alone and nothing happens.
pub trait Write {
    /// The object at a dotted path, made where it is missing.
    fn object_mut(&mut self, path: &str) -> Option<&mut Map<String, Value>>;
    /// The value at a dotted path, if it is there and not null.
    fn find_mut(&mut self, path: &str) -> Option<&mut Value>;
    /// The elements of the list at a dotted path.
    fn list_mut(&mut self, path: &str) -> std::slice::IterMut<'_, Value>;
    fn put(&mut self, path: &str, value: impl Into<Value>);
    /// Puts the value where there is none (or null) yet.
    fn put_default(&mut self, path: &str, value: impl Into<Value>);
    /// Puts the text where there is none or an empty one.
    fn put_default_text(&mut self, path: &str, text: &str);
    fn remove(&mut self, path: &str) -> Option<Value>;
    /// Makes the member at the path what it is in `from`: copied, or removed.
    fn copy_from(&mut self, from: &Value, path: &str);
}

fn split(path: &str) -> (Option<&str>, &str) {
    match path.rsplit_once('.') {
        Some((head, last)) => (Some(head), last),
        None => (None, path),
    }
}

fn descend<'a>(root: &'a mut Value, path: Option<&str>) -> Option<&'a mut Map<String, Value>> {
    let mut value = root;
    for name in path.into_iter().flat_map(|p| p.split('.')) {
        if value.is_null() {
            *value = Value::Object(Map::new());
        }
        value = value.as_object_mut()?.entry(name).or_insert(Value::Null);
    }
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

impl Write for Value {
    fn object_mut(&mut self, path: &str) -> Option<&mut Map<String, Value>> {
        descend(self, Some(path))
    }

    fn find_mut(&mut self, path: &str) -> Option<&mut Value> {
        let (mut value, mut rest) = (self, Some(path));
        while let Some(path) = rest {
            let (name, below) = first(path);
            value = value.as_object_mut()?.get_mut(name)?;
            rest = below;
        }
        (!value.is_null()).then_some(value)
    }

    fn list_mut(&mut self, path: &str) -> std::slice::IterMut<'_, Value> {
        match self.find_mut(path) {
            Some(Value::Array(items)) => items.iter_mut(),
            _ => [].iter_mut(),
        }
    }

    fn put(&mut self, path: &str, value: impl Into<Value>) {
        let (head, last) = split(path);
        if let Some(map) = descend(self, head) {
            map.insert(last.to_owned(), value.into());
        }
    }

    fn put_default(&mut self, path: &str, value: impl Into<Value>) {
        if !self.has(path) {
            self.put(path, value);
        }
    }

    fn put_default_text(&mut self, path: &str, text: &str) {
        if self.text(path).is_empty() {
            self.put(path, text);
        }
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let (head, last) = split(path);
        let holder = match head {
            Some(head) => self.find_mut(head)?,
            None => self,
        };
        holder.as_object_mut()?.remove(last)
    }

    fn copy_from(&mut self, from: &Value, path: &str) {
        match from.at(path) {
            Value::Null => {
                self.remove(path);
            }
            value => self.put(path, value.clone()),
        }
    }
}

/// Whether two quantities are of the same amount, however they are written.
pub fn same_quantity(a: &Value, b: &Value) -> bool {
    a == b || matches!((quantity(a), quantity(b)), (Some(a), Some(b)) if a == b)
}

/// A quantity, given as text or number.
pub fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(s) => Quantity::parse(s).ok(),
        Value::Number(n) => Quantity::parse(&n.to_string()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_and_writes_by_path() {
        let mut v = json!({"a": {"b": [1, 2], "s": ""}, "n": null});
        assert_eq!(v.list("a.b").len(), 2);
        assert_eq!(v.text("a.missing.deeper"), "");
        v.put_default_text("a.s", "x");
        v.put_default("n.made", 1);
        v.put("a.b.c", 5); // through a list: nothing happens
        assert_eq!(v, json!({"a": {"b": [1, 2], "s": "x"}, "n": {"made": 1}}));
        assert_eq!(v.remove("a.s"), Some(json!("x")));
        v.copy_from(&json!({"a": {}}), "a.b");
        assert_eq!(v, json!({"a": {}, "n": {"made": 1}}));
    }
}
