//! Sets of fields. The representation is `FieldsV1` itself: a tree of maps whose keys are path elements (`f:name`,
//! `k:{"name":"a"}`, `v:"x"`), sorted. A node is a member of the set when it is empty or holds `.`. So nothing is
//! parsed or printed, and the operations are merges of sorted maps.

use serde_json::{Map, Value};

/// A set of paths below one node.
pub type Set = Map<String, Value>;

/// Marks a node with children as a member itself.
pub const SELF: &str = ".";

/// Whether a node is itself in the set.
pub fn is_member(node: &Set) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

fn has_children(node: &Set) -> bool {
    node.keys().any(|k| k != SELF)
}

/// A node from its parts; `None` if it stands for nothing.
pub fn node(member: bool, mut children: Set) -> Option<Set> {
    children.remove(SELF);
    match (member, children.is_empty()) {
        (false, true) => None,
        (true, true) => Some(Set::new()),
        (true, false) => {
            children.insert(SELF.into(), Value::Object(Set::new()));
            Some(children)
        }
        (false, false) => Some(children),
    }
}

/// Adds one element: as a member, with children below it, or both.
pub fn insert(set: &mut Set, element: String, member: bool, children: Set) {
    if let Some(node) = node(member, children) {
        match set.get_mut(&element) {
            Some(Value::Object(existing)) => *existing = union_node(std::mem::take(existing), &node),
            _ => {
                set.insert(element, Value::Object(node));
            }
        }
    }
}

fn children(node: &Set) -> impl Iterator<Item = (&String, &Set)> {
    node.iter().filter(|(k, _)| *k != SELF).filter_map(|(k, v)| v.as_object().map(|v| (k, v)))
}

fn union_node(mut a: Set, b: &Set) -> Set {
    let member = is_member(&a) || is_member(b);
    a.remove(SELF);
    union(&mut a, b);
    node(member, a).unwrap_or_default()
}

/// `a ∪ b`, into `a`.
pub fn union(a: &mut Set, b: &Set) {
    for (element, theirs) in children(b) {
        match a.get_mut(element) {
            Some(Value::Object(ours)) => *ours = union_node(std::mem::take(ours), theirs),
            _ => {
                a.insert(element.clone(), Value::Object(theirs.clone()));
            }
        }
    }
}

/// `a ∪ b`, into `a`, without copying where only one of them has something.
pub fn absorb(a: &mut Set, b: Set) {
    if a.is_empty() {
        *a = b;
        return;
    }
    for (element, theirs) in b {
        match (a.get_mut(&element), theirs) {
            (Some(Value::Object(ours)), Value::Object(mut theirs)) => {
                let member = is_member(ours) || is_member(&theirs);
                ours.remove(SELF);
                theirs.remove(SELF);
                absorb(ours, theirs);
                *ours = node(member, std::mem::take(ours)).unwrap_or_default();
            }
            (_, theirs) => {
                a.insert(element, theirs);
            }
        }
    }
}

/// `a \ b`, into `a`: exactly the paths of `b` go.
pub fn subtract(a: &mut Set, b: &Set) {
    if b.is_empty() {
        return;
    }
    for (element, theirs) in children(b) {
        let Some(Value::Object(ours)) = a.get_mut(element) else { continue };
        let member = is_member(ours) && !is_member(theirs);
        subtract(ours, theirs);
        match node(member, std::mem::take(ours)) {
            Some(rest) => *ours = rest,
            None => {
                a.remove(element);
            }
        }
    }
}

/// Removes the paths of `b` and everything below them.
pub fn subtract_trees(a: &mut Set, b: &Set) {
    for (element, theirs) in children(b) {
        let Some(Value::Object(ours)) = a.get_mut(element) else { continue };
        if is_member(theirs) {
            a.remove(element);
            continue;
        }
        let member = is_member(ours);
        subtract_trees(ours, theirs);
        match node(member, std::mem::take(ours)) {
            Some(rest) => *ours = rest,
            None => {
                a.remove(element);
            }
        }
    }
}

/// `a ∩ b`.
pub fn intersection(a: &Set, b: &Set) -> Set {
    let mut out = Set::new();
    for (element, theirs) in children(b) {
        if let Some(Value::Object(ours)) = a.get(element) {
            let member = is_member(ours) && is_member(theirs);
            if let Some(node) = node(member, intersection(ours, theirs)) {
                out.insert(element.clone(), Value::Object(node));
            }
        }
    }
    out
}

/// The set's paths as messages print them: `.spec.containers[name="a"].image`.
pub fn paths(set: &Set) -> Vec<String> {
    let mut out = vec![];
    collect(set, &mut String::new(), &mut out);
    out
}

fn collect(set: &Set, path: &mut String, out: &mut Vec<String>) {
    // Members first, then what is below, as upstream iterates.
    let length = path.len();
    for (element, below) in children(set) {
        if is_member(below) {
            path.push_str(&printed(element));
            out.push(path.clone());
            path.truncate(length);
        }
    }
    for (element, below) in children(set) {
        if has_children(below) {
            path.push_str(&printed(element));
            collect(below, path, out);
            path.truncate(length);
        }
    }
}

fn printed(element: &str) -> String {
    let (kind, rest) = element.split_at(element.len().min(2));
    match kind {
        "f:" => format!(".{rest}"),
        "v:" => format!("[={rest}]"),
        "k:" => match serde_json::from_str::<Map<String, Value>>(rest) {
            Ok(keys) => {
                let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", keys.join(","))
            }
            Err(_) => format!("[{rest}]"),
        },
        _ => format!("[{rest}]"),
    }
}

/// A set from a `fieldsV1`; `None` if it is none.
pub fn parse(fields: &Value) -> Option<Set> {
    fn sound(set: &Set) -> bool {
        set.iter().all(|(k, v)| {
            v.as_object().is_some_and(sound)
                && (k == SELF || matches!(k.get(..2), Some("f:" | "v:" | "k:" | "i:")))
        })
    }
    match fields {
        Value::Null => Some(Set::new()),
        Value::Object(set) if sound(set) => Some(set.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(value: Value) -> Set {
        parse(&value).unwrap()
    }

    #[test]
    fn algebra() {
        let a = || set(json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}, "f:d": {"f:e": {}}}));
        let b = set(json!({"f:b": {}, "f:d": {"f:e": {}, "f:f": {}}}));
        let mut u = a();
        union(&mut u, &b);
        assert_eq!(
            Value::from(u.clone()),
            json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}, "f:d": {"f:e": {}, "f:f": {}}})
        );
        let mut d = a();
        subtract(&mut d, &b);
        assert_eq!(Value::from(d), json!({"f:a": {}, "f:b": {"f:c": {}}}));
        let mut t = a();
        subtract_trees(&mut t, &b);
        assert_eq!(Value::from(t), json!({"f:a": {}}));
        assert_eq!(Value::from(intersection(&a(), &b)), json!({"f:b": {}, "f:d": {"f:e": {}}}));
        let mut absorbed = a();
        absorb(&mut absorbed, b.clone());
        assert_eq!(Value::from(absorbed), Value::from(u.clone()));
        let mut leaf = set(json!({"f:a": {}}));
        union(&mut leaf, &set(json!({"f:a": {"f:x": {}}})));
        assert_eq!(Value::from(leaf), json!({"f:a": {".": {}, "f:x": {}}}));
    }

    #[test]
    fn prints() {
        let s = set(
            json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}, "f:x": {"v:\"y\"": {}}}}),
        );
        assert_eq!(
            paths(&s),
            [r#".spec.containers[name="a"]"#, r#".spec.containers[name="a"].image"#, r#".spec.x[="y"]"#]
        );
        assert!(parse(&json!({"x": {}})).is_none() && parse(&json!([])).is_none());
    }
}
