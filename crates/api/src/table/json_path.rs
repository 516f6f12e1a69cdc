//! The JSONPath of printer columns: names, indexes, wildcards and simple filters.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Name(String),
    Index(i64),
    All,
    Descend,
    /// `[?(@.path == value)]`; no operator asks whether it is there.
    Filter(Vec<Step>, Option<(String, Value)>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// `None` where the path is not understood.
    pub fn parse(text: &str) -> Option<JsonPath> {
        let text = text.trim();
        let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let text = text.strip_prefix('$').unwrap_or(text);
        Some(JsonPath(steps(text)?))
    }

    /// The values the path leads to, in order.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        find(&self.0, root)
    }
}

fn steps(mut text: &str) -> Option<Vec<Step>> {
    let mut out = vec![];
    while !text.is_empty() {
        if let Some(rest) = text.strip_prefix("..") {
            out.push(Step::Descend);
            text = rest;
            if !text.starts_with('[') {
                let (step, rest) = name(text)?;
                out.push(step);
                text = rest;
            }
        } else if let Some(rest) = text.strip_prefix('.') {
            if rest.starts_with('[') {
                text = rest;
                continue;
            }
            if rest.is_empty() {
                break;
            }
            let (step, rest) = name(rest)?;
            out.push(step);
            text = rest;
        } else if text.starts_with('[') {
            let end = closing(text)?;
            out.push(bracket(text[1..end].trim())?);
            text = &text[end + 1..];
        } else {
            let (step, rest) = name(text)?;
            out.push(step);
            text = rest;
        }
    }
    Some(out)
}

/// A name up to the next `.` or `[`; a backslash takes the next character as it is.
fn name(text: &str) -> Option<(Step, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => {
                end = i;
                break;
            }
            c => name.push(c),
        }
    }
    if name.is_empty() {
        return None;
    }
    let step = if name == "*" { Step::All } else { Step::Name(name) };
    Some((step, &text[end..]))
}

/// Where the bracket that `text` begins with closes.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q)?.strip_suffix(*q))
}

fn bracket(text: &str) -> Option<Step> {
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquote(text) {
        return Some(Step::Name(name.to_owned()));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (path, comparison) = ["==", "!=", ">=", "<=", ">", "<"]
            .iter()
            .find_map(|op| filter.split_once(op).map(|(l, r)| (l, Some(((*op).to_owned(), r)))))
            .unwrap_or((filter, None));
        let path = steps(path.trim().strip_prefix('@')?)?;
        let comparison = match comparison {
            Some((op, right)) => {
                let right = right.trim();
                let value = match unquote(right) {
                    Some(text) => Value::from(text),
                    None => serde_json::from_str(right).ok()?,
                };
                Some((op, value))
            }
            None => None,
        };
        return Some(Step::Filter(path, comparison));
    }
    text.parse().ok().map(Step::Index)
}

fn find<'a>(steps: &[Step], root: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![root];
    for step in steps {
        found = found.into_iter().flat_map(|value| follow(step, value)).collect();
    }
    found
}

fn members(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => vec![],
    }
}

fn follow<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match step {
        Step::Name(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let at = if *index < 0 { items.len() as i64 + index } else { *index };
            usize::try_from(at).ok().and_then(|i| items.get(i)).into_iter().collect()
        }
        Step::All => members(value),
        Step::Descend => {
            let mut all = vec![value];
            for member in members(value) {
                all.extend(follow(step, member));
            }
            all
        }
        Step::Filter(path, comparison) => members(value)
            .into_iter()
            .filter(|item| {
                let found = find(path, item);
                match (found.first(), comparison) {
                    (None, _) => false,
                    (Some(_), None) => true,
                    (Some(left), Some((op, right))) => compare(left, op, right),
                }
            })
            .collect(),
    }
}

fn compare(left: &Value, op: &str, right: &Value) -> bool {
    let order = match (left, right) {
        (Value::String(a), Value::String(b)) => a.partial_cmp(b),
        _ => match (left.as_f64(), right.as_f64()) {
            (Some(a), Some(b)) => a.partial_cmp(&b),
            _ => (left == right).then_some(std::cmp::Ordering::Equal),
        },
    };
    match (op, order) {
        ("==", o) => o.is_some_and(|o| o.is_eq()),
        ("!=", o) => !o.is_some_and(|o| o.is_eq()),
        (">", Some(o)) => o.is_gt(),
        ("<", Some(o)) => o.is_lt(),
        (">=", Some(o)) => o.is_ge(),
        ("<=", Some(o)) => o.is_le(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds() {
        let object = json!({"spec": {"replicas": 3, "a.b/c": "x"}, "status": {"conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        for (path, want) in [
            (".spec.replicas", vec![json!(3)]),
            ("{.spec.replicas}", vec![json!(3)]),
            (".spec.a\\.b/c", vec![json!("x")]),
            (".spec['a.b/c']", vec![json!("x")]),
            (".status.conditions[?(@.type==\"Ready\")].status", vec![json!("True")]),
            (".status.conditions[?(@.type == 'Other')].status", vec![json!("False")]),
            (".status.conditions[*].status", vec![json!("True"), json!("False")]),
            (".status.conditions[-1].type", vec![json!("Other")]),
            (".missing.deeper", vec![]),
        ] {
            let got: Vec<Value> = JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect();
            assert_eq!(got, want, "{path}");
        }
        assert_eq!(JsonPath::parse(".a[?(x"), None);
    }
}
