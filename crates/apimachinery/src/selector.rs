//! Label and field selectors: parsing, printing, matching.

use std::fmt::{self, Display};

use serde_json::Value;

use crate::field_path::Path;
use crate::object::Attributes;
use crate::status::FieldError;
use crate::validation;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One term of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repetitions.
    pub values: Vec<String>,
}

/// Terms that must all hold. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// What is wrong with a selector's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

impl LabelSelector {
    pub fn everything() -> LabelSelector {
        LabelSelector::default()
    }

    pub fn nothing() -> LabelSelector {
        LabelSelector { requirements: vec![], nothing: true }
    }

    /// One `key=value` term per pair.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> LabelSelector {
        let mut requirements: Vec<Requirement> = pairs
            .into_iter()
            .map(|(k, v)| Requirement { key: k.into(), operator: Operator::Equals, values: vec![v.into()] })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// From a map of labels, such as a service's `spec.selector`; `Null` matches everything.
    pub fn from_map(map: &Value) -> LabelSelector {
        LabelSelector::from_pairs(
            map.as_object().into_iter().flatten().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())),
        )
    }

    /// Parses the `labelSelector` of a request: `a=b,c!=d,e in (f,g),!h,i>5`.
    pub fn parse(text: &str) -> Result<LabelSelector, ParseError> {
        let mut parser = Parser { tokens: tokenize(text), at: 0 };
        let mut requirements = parser.selector()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a `metav1.LabelSelector`. Absent (`Null`) matches nothing, empty matches everything.
    pub fn from_value(value: &Value) -> Result<LabelSelector, ParseError> {
        let Some(object) = value.as_object() else {
            return Ok(LabelSelector::nothing());
        };
        let mut selector = LabelSelector::from_map(object.get("matchLabels").unwrap_or(&Value::Null));
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression[name].as_str().unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(ParseError(format!("{other:?} is not a valid label selector operator"))),
            };
            let values = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|v| v.as_str().unwrap_or_default().to_owned())
                .collect();
            selector.requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        selector.requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(selector)
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects all there is.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub fn matches(&self, attributes: &Attributes) -> bool {
        self.matches_with(|key| attributes.label(key))
    }

    /// Matches a JSON map of labels (or `Null`: no labels).
    pub fn matches_map(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Matches whatever `get` answers for a key.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }
}

impl Requirement {
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Requirement, ParseError> {
        let mut errors = vec![];
        let path = Path::new("key");
        let wrong = validation::qualified_name(key);
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(&path, key, wrong.join("; ")));
        }
        let path = Path::new("values");
        let shown = || Value::from(values.clone());
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => errors.push(FieldError::invalid(
                &path,
                shown(),
                "for 'in', 'notin' operators, values set can't be empty",
            )),
            Operator::Equals | Operator::NotEquals if values.len() != 1 => errors.push(FieldError::invalid(
                &path,
                shown(),
                "exact-match compatibility requires one single value",
            )),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => errors.push(
                FieldError::invalid(&path, shown(), "values set must be empty for exists and does not exist"),
            ),
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    errors.push(FieldError::invalid(
                        &path,
                        shown(),
                        "for 'Gt', 'Lt' operators, exactly one value is required",
                    ));
                }
                for (i, value) in values.iter().enumerate() {
                    if value.parse::<i64>().is_err() {
                        errors.push(FieldError::invalid(
                            &path.index(i),
                            value.as_str(),
                            "for 'Gt', 'Lt' operators, the value must be an integer",
                        ));
                    }
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let wrong = validation::label_value(value);
            if !wrong.is_empty() {
                errors.push(FieldError::invalid(&path.index(i).key(key), value.as_str(), wrong.join("; ")));
            }
        }
        if !errors.is_empty() {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            return Err(ParseError(match &texts[..] {
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            }));
        }
        values.sort();
        values.dedup();
        Ok(Requirement { key: key.into(), operator, values })
    }

    /// Whether a label with this value (or its absence) satisfies the term.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        let ordered =
            |v: &str, above: bool| match (v.parse::<i64>(), self.values.first().map(|x| x.parse::<i64>())) {
                (Ok(v), Some(Ok(bound))) => {
                    if above {
                        v > bound
                    } else {
                        v < bound
                    }
                }
                _ => false,
            };
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|v| !listed(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => value.is_some_and(|v| ordered(v, true)),
            Operator::LessThan => value.is_some_and(|v| ordered(v, false)),
        }
    }
}

impl Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.join(",");
        let key = &self.key;
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

impl Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'a str),
    Bad(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(&self) -> String {
        match self {
            Token::Word(s) | Token::Symbol(s) => (*s).to_owned(),
            Token::Bad(s) => format!("error expected: keyword found '{s}'"),
            Token::End => String::new(),
        }
    }
}

fn tokenize(text: &str) -> Vec<Token<'_>> {
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
    let special = |c: char| "=!(),><".contains(c);
    let blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut tokens = vec![];
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(blank);
        let Some(first) = rest.chars().next() else {
            tokens.push(Token::End);
            return tokens;
        };
        let len = if special(first) {
            match SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
                Some(symbol) => {
                    tokens.push(Token::Symbol(&rest[..symbol.len()]));
                    symbol.len()
                }
                None => {
                    tokens.push(Token::Bad(&rest[..1]));
                    1
                }
            }
        } else {
            let len = rest.find(|c| special(c) || blank(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(&rest[..len]));
            len
        };
        rest = &rest[len..];
    }
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, ParseError> {
        let mut requirements = vec![];
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {
                    let requirement = self
                        .requirement()
                        .map_err(|e| ParseError(format!("unable to parse requirement: {e}")))?;
                    requirements.push(requirement);
                    match self.next() {
                        Token::End => return Ok(requirements),
                        Token::Symbol(",") => match self.peek() {
                            Token::Word(_) | Token::Symbol("!") => {}
                            other => {
                                return Err(ParseError(format!(
                                    "found '{}', expected: identifier after ','",
                                    other.text()
                                )));
                            }
                        },
                        other => {
                            return Err(ParseError(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.text()
                            )));
                        }
                    }
                }
                Token::End => return Ok(requirements),
                other => {
                    return Err(ParseError(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    )));
                }
            }
        }
    }

    fn word(&mut self) -> Result<&'a str, ParseError> {
        match self.next() {
            Token::Word(word) => Ok(word),
            other => Err(ParseError(format!("found '{}', expected: identifier", other.text()))),
        }
    }

    fn requirement(&mut self) -> Result<Requirement, ParseError> {
        let absent = self.peek() == Token::Symbol("!");
        if absent {
            self.next();
        }
        let key = self.word()?;
        let wrong = validation::qualified_name(key);
        if !wrong.is_empty() {
            return Err(ParseError(FieldError::invalid(&Path::root(), key, wrong.join("; ")).to_string()));
        }
        if absent {
            return Requirement::new(key, Operator::DoesNotExist, vec![]);
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(key, Operator::Exists, vec![]);
        }
        let operator = match self.next() {
            Token::Word("in") => Operator::In,
            Token::Word("notin") => Operator::NotIn,
            Token::Symbol("=" | "==") => Operator::Equals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => {
                return Err(ParseError(format!(
                    "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    other.text()
                )));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ if matches!(self.peek(), Token::End | Token::Symbol(",")) => vec![String::new()],
            _ => vec![self.word()?.to_owned()],
        };
        Requirement::new(key, operator, values)
    }

    /// `(a,b)`; a missing element is the empty value.
    fn values(&mut self) -> Result<Vec<String>, ParseError> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(ParseError(format!("found '{}' expected: '('", other.text()))),
        }
        let mut values = vec![];
        loop {
            match self.peek() {
                Token::Word(word) => {
                    values.push(word.to_owned());
                    self.next();
                }
                Token::Symbol("," | ")") => values.push(String::new()),
                other => {
                    return Err(ParseError(format!(
                        "found '{}', expected: ',', ')' or identifier",
                        other.text()
                    )));
                }
            }
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(ParseError(format!("found '{}', expected: ',' or ')'", other.text()))),
            }
        }
    }
}

/// Terms `field=value` or `field!=value` that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    /// Whether the field must have the value, rather than must not.
    pub equal: bool,
}

impl FieldSelector {
    pub fn everything() -> FieldSelector {
        FieldSelector::default()
    }

    pub fn equal(field: &str, value: &str) -> FieldSelector {
        FieldSelector { terms: vec![FieldTerm { field: field.into(), value: value.into(), equal: true }] }
    }

    /// Parses the `fieldSelector` of a request; `\` escapes `\`, `,` and `=` in values.
    pub fn parse(text: &str) -> Result<FieldSelector, ParseError> {
        let mut terms = vec![];
        for part in split_terms(text) {
            if part.is_empty() {
                continue;
            }
            let not_understood =
                || ParseError(format!("invalid selector: '{text}'; can't understand '{part}'"));
            let at = part.find(['!', '=']).ok_or_else(not_understood)?;
            // A lone `!` belongs to the field's name.
            let at = part[at..]
                .char_indices()
                .map(|(i, _)| at + i)
                .find(|i| part[*i..].starts_with("!=") || part[*i..].starts_with('='))
                .ok_or_else(not_understood)?;
            let (field, rest) = part.split_at(at);
            let (equal, value) = if let Some(value) = rest.strip_prefix("!=") {
                (false, value)
            } else {
                (true, rest.strip_prefix("==").unwrap_or(&rest[1..]))
            };
            terms.push(FieldTerm { field: field.into(), value: unescape(value)?, equal });
        }
        terms.sort_by(|a, b| a.field.cmp(&b.field));
        Ok(FieldSelector { terms })
    }

    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The terms on fields that `keep` accepts.
    #[must_use]
    pub fn retained(&self, keep: impl Fn(&str) -> bool) -> FieldSelector {
        FieldSelector { terms: self.terms.iter().filter(|t| keep(&t.field)).cloned().collect() }
    }

    /// The value a field must have, where one term says so.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    pub fn matches(&self, attributes: &Attributes) -> bool {
        self.matches_with(|field| attributes.field(field))
    }

    /// A field that `get` does not know counts as empty.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|t| (get(&t.field).unwrap_or_default() == t.value) == t.equal)
    }
}

impl Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}", term.field)?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = vec![];
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> Result<String, ParseError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = other.into_iter().collect();
                    return Err(ParseError(format!(
                        "invalid field selector: invalid escape sequence: \\{sequence}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(ParseError(format!(
                    "invalid field selector: unescaped character in value: {}",
                    c as u32
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors() {
        for (text, printed, labels, want) in [
            ("", "", json!({}), true),
            ("a=b", "a=b", json!({"a": "b"}), true),
            ("a==b", "a=b", json!({"a": "c"}), false),
            ("a!=b", "a!=b", json!({}), true),
            ("a in (c, b)", "a in (b,c)", json!({"a": "c"}), true),
            ("a notin (b)", "a notin (b)", json!({}), true),
            ("a", "a", json!({"a": ""}), true),
            ("!a", "!a", json!({"a": ""}), false),
            ("a>5", "a>5", json!({"a": "6"}), true),
            ("a<5", "a<5", json!({"a": "x"}), false),
            ("b=,a=c", "a=c,b=", json!({"a": "c", "b": ""}), true),
            ("x in (,a)", "x in (,a)", json!({"x": ""}), true),
            ("in in (in)", "in in (in)", json!({"in": "in"}), true),
        ] {
            let selector = LabelSelector::parse(text).unwrap();
            assert_eq!(selector.to_string(), printed);
            assert_eq!(selector.matches_map(&labels), want, "{text}");
        }
        for (bad, message) in [
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ] {
            assert_eq!(LabelSelector::parse(bad).unwrap_err().0, message, "{bad}");
        }
        for bad in ["-a=b", "a=-b", "a>b", "a=b=c", "!", "a in ()x"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_selector_values() {
        let s = LabelSelector::from_value(&json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d"]}]}))
        .unwrap();
        assert!(s.matches_map(&json!({"a": "b", "c": "d"})) && !s.matches_map(&json!({"a": "b"})));
        assert!(LabelSelector::from_value(&Value::Null).unwrap().is_nothing());
        assert!(LabelSelector::from_value(&json!({})).unwrap().is_everything());
        assert!(
            LabelSelector::from_value(&json!({"matchExpressions": [{"key": "c", "operator": "X"}]})).is_err()
        );
    }

    #[test]
    fn field_selectors() {
        let s = FieldSelector::parse("metadata.name=a,spec.nodeName!=b").unwrap();
        assert_eq!(s.required("metadata.name"), Some("a"));
        assert!(s.matches_with(|f| (f == "metadata.name").then_some("a")));
        assert!(!s.matches_with(|_| Some("b")));
        assert_eq!(s.to_string(), "metadata.name=a,spec.nodeName!=b");
        assert_eq!(FieldSelector::parse(r"a=b\,c\=d\\").unwrap().required("a"), Some(r"b,c=d\"));
        for bad in ["a", "a=b=c", r"a=\x", r"a=\"] {
            assert!(FieldSelector::parse(bad).is_err(), "{bad}");
        }
    }
}
