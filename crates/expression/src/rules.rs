//! `x-kubernetes-validations`: rules that the schema of a custom resource carries, checked when the definition is
//! written and evaluated when objects are (KEP-2876; ratcheting is KEP-4008).

mod check;
mod field_path;

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::field_path::Path;
use apimachinery::status::{FieldError, FieldErrorKind};
use serde_json::Value as Json;

pub use check::check;
pub use field_path::resolve as resolve_field_path;

use crate::schema::{declare, embedded};
use crate::types::Decl;
use crate::value::{Error, Value};
use crate::{CALL_COST_MAX, Environment, Program, TOTAL_COST_MAX, Type, Variables};

/// The longest message an expression may make.
const MESSAGE_BYTES_MAX: usize = 5 << 10;
const SELF: &str = "self";
const OLD_SELF: &str = "oldSelf";
const TYPE_NAME: &str = "selfType";

/// What is wrong with an object, and what is but was before.
#[derive(Debug, Default)]
pub struct Findings {
    pub errors: Vec<FieldError>,
    pub warnings: Vec<String>,
}

/// One rule, compiled.
#[derive(Debug)]
struct Rule {
    source: String,
    program: Option<Result<Program, String>>,
    uses_old: bool,
    /// It also runs where there is no old value, which is an optional then.
    optional_old: bool,
    message: String,
    message_source: String,
    message_program: Option<Result<Program, String>>,
    reason: Option<String>,
    field_path: String,
}

impl Rule {
    fn new(rule: &Json, schema: &Json, decl: &Arc<Decl>) -> Rule {
        let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        let optional_old = rule["optionalOldSelf"] == true;
        let old = if optional_old { Type::optional(decl.ty()) } else { decl.ty() };
        let environment = Environment::default().variable(SELF, decl.ty()).variable(OLD_SELF, old);
        let compiled = |source: &str, wanted: &Type, what: &str, otherwise: &str| {
            if source.trim().is_empty() {
                return None;
            }
            let program =
                Program::compile(source, &environment).map_err(|e| format!("{what}compilation failed: {e}"));
            Some(
                program.and_then(|p| if p.output().same(wanted) { Ok(p) } else { Err(otherwise.to_owned()) }),
            )
        };
        let source = text("rule");
        let program = compiled(&source, &Type::Bool, "", "cel expression must evaluate to a bool");
        let message_source = text("messageExpression");
        let message_program = match &program {
            Some(Ok(_)) => compiled(
                &message_source,
                &Type::String,
                "messageExpression ",
                "messageExpression must evaluate to a string",
            ),
            _ => None,
        };
        let field_path = text("fieldPath");
        let field_path = match field_path.is_empty() {
            true => None,
            false => field_path::resolve(&field_path, schema, true).ok().map(|(path, _)| path),
        };
        Rule {
            uses_old: matches!(&program, Some(Ok(p)) if p.uses(OLD_SELF)),
            program,
            optional_old,
            message: text("message"),
            message_source,
            message_program,
            reason: rule["reason"].as_str().map(str::to_owned),
            field_path: field_path.unwrap_or_default(),
            source,
        }
    }

    /// What stands for the rule in messages.
    fn shown(&self) -> &str {
        if self.message.is_empty() { self.source.trim() } else { self.message.trim() }
    }
}

/// The rules of one place in a schema and below.
#[derive(Debug)]
struct Node {
    rules: Vec<Rule>,
    decl: Option<Arc<Decl>>,
    /// The schema's type, which messages show for what is too large to be shown.
    kind: String,
    properties: BTreeMap<String, Node>,
    additional: Option<Box<Node>>,
    items: Option<Box<Node>>,
    all_of: Vec<Node>,
    map_keys: Option<Vec<String>>,
    /// Whether members are the same as those of the same name before.
    correlates: bool,
}

/// The rules of a schema.
#[derive(Debug)]
pub struct Rules(Node);

fn has_rules(schema: &Json) -> bool {
    schema["x-kubernetes-validations"].as_array().is_some_and(|r| !r.is_empty())
        || (schema["items"].is_object() && has_rules(&schema["items"]))
        || (schema["additionalProperties"].is_object() && has_rules(&schema["additionalProperties"]))
        || schema["properties"].as_object().is_some_and(|p| p.values().any(has_rules))
}

fn correlates(schema: &Json) -> bool {
    matches!(schema["x-kubernetes-map-type"].as_str(), None | Some("granular" | "atomic"))
}

fn map_keys(schema: &Json) -> Option<Vec<String>> {
    if schema["x-kubernetes-list-type"] != "map" {
        return None;
    }
    let keys = schema["x-kubernetes-list-map-keys"].as_array()?;
    Some(keys.iter().filter_map(|k| k.as_str().map(str::to_owned)).collect())
}

impl Rules {
    /// The rules of an `openAPIV3Schema`; `None` where it has none.
    pub fn new(schema: &Json) -> Option<Rules> {
        if !has_rules(schema) {
            return None;
        }
        Node::new(schema, schema, true).map(Rules)
    }

    /// Evaluates the rules on an object; `old` is what it was before, for rules about changes and to let pass what has
    /// not changed.
    pub fn validate(&self, object: &Json, old: Option<&Json>) -> Findings {
        let mut run = Run { findings: Findings::default(), budget: TOTAL_COST_MAX };
        let correlation = Correlation { current: old.map(|old| (object, old)), parent: None };
        run.node(&self.0, &Path::root(), object, old, correlation);
        run.findings
    }
}

impl Node {
    /// `rules` is the schema the rules are in, `schema` the one that says what the data are: they differ in `allOf`.
    fn new(rules: &Json, schema: &Json, root: bool) -> Option<Node> {
        let list = rules["x-kubernetes-validations"].as_array().filter(|l| !l.is_empty());
        let decl = list.and_then(|_| declare(schema, root, TYPE_NAME));
        let compiled: Vec<Rule> = match (&decl, list) {
            (Some(decl), Some(list)) => list.iter().map(|r| Rule::new(r, schema, decl)).collect(),
            _ => Vec::new(),
        };
        let below = |name: &str| {
            let (rules, schema) = (&rules[name], &schema[name]);
            let both = rules.is_object() && schema.is_object();
            both.then(|| Node::new(rules, schema, embedded(schema)).map(Box::new)).flatten()
        };
        let mut properties = BTreeMap::new();
        for (name, inner) in rules["properties"].as_object().into_iter().flatten() {
            let schema = &schema["properties"][name];
            if schema.is_object()
                && let Some(node) = Node::new(inner, schema, embedded(schema))
            {
                properties.insert(name.clone(), node);
            }
        }
        let all_of = rules["allOf"].as_array().into_iter().flatten();
        let node = Node {
            rules: compiled,
            decl,
            kind: schema["type"].as_str().unwrap_or_default().to_owned(),
            properties,
            additional: below("additionalProperties"),
            items: below("items"),
            all_of: all_of.filter_map(|inner| Node::new(inner, schema, root)).collect(),
            map_keys: map_keys(schema),
            correlates: correlates(schema),
        };
        let empty = node.rules.is_empty()
            && node.properties.is_empty()
            && node.additional.is_none()
            && node.items.is_none()
            && node.all_of.is_empty();
        (!empty).then_some(node)
    }
}

/// A value with what it was, and the nearest value around it that has a counterpart.
#[derive(Clone, Copy)]
struct Correlation<'a> {
    current: Option<(&'a Json, &'a Json)>,
    parent: Option<(&'a Json, &'a Json)>,
}

impl<'a> Correlation<'a> {
    fn unchanged(&self) -> bool {
        self.current.or(self.parent).is_some_and(|(new, old)| new == old)
    }

    fn key(self, name: &str) -> Correlation<'a> {
        let Some((new, old)) = self.current else { return self };
        if self.parent.is_none() && (name == "apiVersion" || name == "kind") {
            return Correlation { current: None, parent: None };
        }
        Correlation { current: new.get(name).zip(old.get(name)), parent: self.current }
    }

    fn index(self, i: usize, keys: Option<&[String]>) -> Correlation<'a> {
        let Some((new, old)) = self.current else { return self };
        let counterpart = new.get(i).and_then(|item| Some((item, counterpart(item, old, keys?)?)));
        Correlation { current: counterpart, parent: self.current }
    }
}

/// The item of an old list with the same keys.
fn counterpart<'a>(item: &Json, old: &'a Json, keys: &[String]) -> Option<&'a Json> {
    old.as_array()?.iter().find(|o| keys.iter().all(|k| o.get(k) == item.get(k)))
}

struct Run {
    findings: Findings,
    budget: u64,
}

/// Whether anything further is to be evaluated.
type GoOn = bool;

const EXHAUSTED: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

impl Run {
    fn invalid(&mut self, path: &Path, kind: &str, detail: String) {
        self.findings.errors.push(FieldError::invalid(path, kind, detail));
    }

    fn node<'a>(
        &mut self,
        node: &Node,
        path: &Path,
        object: &'a Json,
        old: Option<&'a Json>,
        correlation: Correlation<'a>,
    ) -> GoOn {
        if object.is_null() {
            return true;
        }
        let old = old.filter(|o| !o.is_null());
        if !self.rules(node, path, object, old, correlation) {
            return false;
        }
        for inner in &node.all_of {
            let apart = Correlation { current: None, parent: correlation.parent };
            if !self.node(inner, path, object, old, apart) {
                return false;
            }
        }
        match object {
            Json::Array(items) => {
                let Some(inner) = &node.items else { return true };
                items.iter().enumerate().all(|(i, item)| {
                    let before = node.map_keys.as_deref().and_then(|keys| counterpart(item, old?, keys));
                    let correlation = correlation.index(i, node.map_keys.as_deref());
                    self.node(inner, &path.index(i), item, before, correlation)
                })
            }
            Json::Object(members) => members.iter().all(|(name, value)| {
                let before = if node.correlates { old.and_then(|o| o.get(name)) } else { None };
                let correlation = correlation.key(name);
                if let Some(inner) = &node.additional
                    && !self.node(inner, &path.key(name), value, before, correlation)
                {
                    return false;
                }
                match node.properties.get(name) {
                    Some(inner) => self.node(inner, &path.child(name), value, before, correlation),
                    None => true,
                }
            }),
            _ => true,
        }
    }

    fn rules<'a>(
        &mut self,
        node: &Node,
        path: &Path,
        object: &'a Json,
        old: Option<&'a Json>,
        correlation: Correlation<'a>,
    ) -> GoOn {
        let Some(decl) = node.decl.as_ref().filter(|_| !node.rules.is_empty()) else { return true };
        if self.budget == 0 {
            self.invalid(path, &node.kind, EXHAUSTED.into());
            return false;
        }
        for rule in &node.rules {
            let program = match &rule.program {
                None => continue,
                Some(Err(why)) => {
                    self.invalid(path, &node.kind, format!("rule compile error: {why}"));
                    continue;
                }
                Some(Ok(program)) => program,
            };
            if rule.uses_old && old.is_none() && !rule.optional_old {
                continue;
            }
            let mut variables = Variables::default();
            variables.set(SELF, Value::from_json(object, Some(decl)));
            let before = old.map(|o| Value::from_json(o, Some(decl)));
            if rule.optional_old {
                variables.set(OLD_SELF, Value::Optional(before.map(Arc::new)));
            } else if let Some(before) = before {
                variables.set(OLD_SELF, before);
            }
            let evaluated = program.evaluate(&variables, CALL_COST_MAX);
            if evaluated.cost > self.budget {
                self.invalid(path, &node.kind, EXHAUSTED.into());
                return false;
            }
            self.budget -= evaluated.cost;
            match evaluated.value {
                Ok(Value::Bool(true)) => continue,
                Ok(_) => {}
                Err(Error::Cancelled) => {
                    let detail = format!(
                        "'{}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        Error::Cancelled,
                        rule.shown()
                    );
                    self.invalid(path, &node.kind, detail);
                    return false;
                }
                Err(Error::Failed(why)) if why.starts_with("no such overload") => {
                    let detail = format!(
                        "'{why}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                        rule.shown()
                    );
                    self.invalid(path, &node.kind, detail);
                    continue;
                }
                Err(Error::Failed(why)) => {
                    self.invalid(path, &node.kind, format!("{why} evaluating rule: {}", rule.shown()));
                    continue;
                }
            }
            let path = if rule.field_path.is_empty() { path.clone() } else { path.child(&rule.field_path) };
            let ratchets = !rule.uses_old && correlation.unchanged();
            let mut report = |error: FieldError| {
                if ratchets {
                    self.findings.warnings.push(error.to_string());
                } else {
                    self.findings.errors.push(error);
                }
            };
            let mut detail = None;
            if let Some(Ok(program)) = &rule.message_program {
                match message(program, &rule.message_source, &variables, self.budget) {
                    Ok((text, cost)) => {
                        self.budget -= cost;
                        detail = text;
                    }
                    Err(why) => {
                        report(FieldError::invalid(&path, node.kind.as_str(), why));
                        return false;
                    }
                }
            }
            let detail = detail.unwrap_or_else(|| match rule.message.is_empty() {
                true => format!("failed rule: {}", rule.shown()),
                false => rule.shown().to_owned(),
            });
            let value = match node.kind.as_str() {
                "object" | "array" => None,
                _ => Some(object.clone()),
            };
            report(failure(&path, value, detail, rule.reason.as_deref()));
        }
        true
    }
}

fn failure(path: &Path, value: Option<Json>, detail: String, reason: Option<&str>) -> FieldError {
    let made = |kind, bad_value, detail| FieldError { kind, path: path.to_string(), bad_value, detail };
    match reason {
        Some("FieldValueForbidden") => FieldError::forbidden(path, detail),
        Some("FieldValueRequired") => FieldError::required(path, detail),
        Some("FieldValueDuplicate") => made(FieldErrorKind::Duplicate, value, String::new()),
        _ => made(FieldErrorKind::Invalid, value, detail),
    }
}

/// The message an expression makes, if it makes a good one, and what that cost. The error ends all evaluation.
fn message<'a>(
    program: &'a Program,
    source: &str,
    variables: &Variables<'a>,
    budget: u64,
) -> Result<(Option<String>, u64), String> {
    let evaluated = program.evaluate(variables, CALL_COST_MAX);
    if evaluated.cost > budget {
        return Err(
            "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run"
                .into(),
        );
    }
    let text = match &evaluated.value {
        Err(Error::Cancelled) => {
            let quoted = apimachinery::status::quote(source);
            return Err(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {quoted}"
            ));
        }
        Ok(value) => value.as_str().map(str::trim),
        Err(_) => None,
    };
    let good = text.filter(|t| !t.is_empty() && t.len() <= MESSAGE_BYTES_MAX && !t.contains('\n'));
    Ok((good.map(str::to_owned), evaluated.cost))
}

#[cfg(test)]
mod tests;
