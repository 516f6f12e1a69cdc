//! Whether the rules in a schema compile, and what they may cost.

use apimachinery::field_path::Path;
use apimachinery::status::FieldError;
use serde_json::Value as Json;

use super::{Rule, TYPE_NAME, correlates, field_path};
use crate::schema::{declare, embedded};

/// The most one rule may cost.
const RULE_COST_MAX: u64 = 10_000_000;
/// The most all rules of a schema may cost.
const SCHEMA_COST_MAX: u64 = 100_000_000;
const REQUEST_BYTES_MAX: u64 = 3 << 20;
const DEPTH_MAX: usize = 100;
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// What is wrong with the rules of an `openAPIV3Schema`, which must be sound otherwise.
pub fn check(schema: &Json, path: &Path) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new(), total: 0, expensive: Vec::new() };
    checker.texts(schema, path, 0);
    if !checker.errors.is_empty() {
        return checker.errors;
    }
    let scope = Scope { path, root: true, cardinality: Some(1), uncorrelated: None, depth: 0 };
    checker.programs(schema, &scope);
    if checker.total > SCHEMA_COST_MAX {
        checker.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (path, _) in checker.expensive.iter().take(4) {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            checker.errors.push(FieldError::forbidden(path, detail));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        checker.errors.push(FieldError::forbidden(path, too_expensive(what, checker.total, SCHEMA_COST_MAX)));
    }
    checker.errors
}

fn too_expensive(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

struct Checker {
    errors: Vec<FieldError>,
    total: u64,
    expensive: Vec<(Path, u64)>,
}

/// Where in the schema the walk is.
struct Scope<'a> {
    path: &'a Path,
    root: bool,
    /// How many values of this place an object may have; `None` where nothing bounds it.
    cardinality: Option<u64>,
    /// The first place above whose values have no counterparts in an older object.
    uncorrelated: Option<&'a Path>,
    depth: usize,
}

fn rules(schema: &Json) -> &[Json] {
    schema["x-kubernetes-validations"].as_array().map(Vec::as_slice).unwrap_or_default()
}

impl Checker {
    /// What can be said without compiling; of every schema, also those inside `allOf` and the like.
    fn texts(&mut self, schema: &Json, path: &Path, depth: usize) {
        if depth > DEPTH_MAX || !schema.is_object() {
            return;
        }
        for name in ["additionalProperties", "items", "not"] {
            self.texts(&schema[name], &path.child(name), depth + 1);
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            self.texts(inner, &path.child("properties").key(name), depth + 1);
        }
        for list in ["allOf", "oneOf", "anyOf"] {
            for (i, inner) in schema[list].as_array().into_iter().flatten().enumerate() {
                self.texts(inner, &path.child(list).index(i), depth + 1);
            }
        }
        for (i, rule) in rules(schema).iter().enumerate() {
            let at = |field: &str| path.child("x-kubernetes-validations").index(i).child(field);
            let text = |field: &str| rule[field].as_str().unwrap_or_default();
            let breaks = |text: &str| text.contains(['\n', '\r']);
            let (source, message) = (text("rule").trim(), text("message").trim());
            if source.is_empty() {
                self.errors.push(FieldError::required(&at("rule"), "rule is not specified"));
            } else if !text("message").is_empty() && message.is_empty() {
                let detail = "must be non-empty if specified";
                self.errors.push(FieldError::invalid(&at("message"), text("message"), detail));
            } else if breaks(message) {
                let detail = "must not contain line breaks";
                self.errors.push(FieldError::invalid(&at("message"), text("message"), detail));
            } else if breaks(source) && message.is_empty() {
                let detail = "message must be specified if rule contains line breaks";
                self.errors.push(FieldError::required(&at("message"), detail));
            }
            if !text("messageExpression").is_empty() && text("messageExpression").trim().is_empty() {
                let detail = "messageExpression must be non-empty if specified";
                self.errors.push(FieldError::required(&at("messageExpression"), detail));
            }
            if let Some(reason) = rule["reason"].as_str()
                && !REASONS.contains(&reason)
            {
                self.errors.push(FieldError::not_supported(&at("reason"), reason, &REASONS));
            }
            let field = text("fieldPath");
            if field.is_empty() {
                continue;
            }
            if field.trim().is_empty() {
                let detail = "must be non-empty if specified";
                self.errors.push(FieldError::invalid(&at("fieldPath"), field, detail));
            }
            if breaks(field) {
                self.errors.push(FieldError::invalid(
                    &at("fieldPath"),
                    field,
                    "must not contain line breaks",
                ));
            }
            if field_path::resolve(field, schema, true).is_err() {
                self.errors.push(FieldError::invalid(&at("fieldPath"), field, "must be a valid path"));
            }
        }
    }

    fn programs(&mut self, schema: &Json, scope: &Scope<'_>) {
        if scope.depth > DEPTH_MAX || !schema.is_object() {
            return;
        }
        let bounded = |limit: &str| schema[limit].as_i64().map(|n| u64::try_from(n).unwrap_or(0));
        let times = |factor: Option<u64>| Some(scope.cardinality?.saturating_mul(factor?));
        let additional = &schema["additionalProperties"];
        if additional.is_object() {
            let path = scope.path.child("additionalProperties");
            let cardinality = times(bounded("maxProperties"));
            let uncorrelated = scope.uncorrelated;
            let depth = scope.depth + 1;
            self.programs(additional, &Scope { path: &path, root: false, cardinality, uncorrelated, depth });
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = scope.path.child("properties").key(name);
            let uncorrelated = scope.uncorrelated.or((!correlates(schema)).then_some(scope.path));
            let cardinality = scope.cardinality;
            let depth = scope.depth + 1;
            self.programs(inner, &Scope { path: &path, root: false, cardinality, uncorrelated, depth });
        }
        let items = &schema["items"];
        if items.is_object() {
            let path = scope.path.child("items");
            let keyed = schema["x-kubernetes-list-type"] == "map";
            let uncorrelated = scope.uncorrelated.or((!keyed).then_some(scope.path));
            let cardinality = times(bounded("maxItems"));
            let depth = scope.depth + 1;
            self.programs(items, &Scope { path: &path, root: false, cardinality, uncorrelated, depth });
        }
        if rules(schema).is_empty() {
            return;
        }
        let list = scope.path.child("x-kubernetes-validations");
        let Some(decl) = declare(schema, scope.root || embedded(schema), TYPE_NAME) else {
            let detail = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations";
            self.errors.push(FieldError::internal(&list, detail));
            return;
        };
        for (i, rule) in rules(schema).iter().enumerate() {
            let at = |field: &str| list.index(i).child(field);
            let compiled = Rule::new(rule, schema, &decl);
            match &compiled.program {
                Some(Ok(program)) => {
                    let cost = program.estimate(Some(&decl)).max;
                    let times = scope.cardinality.unwrap_or(REQUEST_BYTES_MAX / (decl.min_size + 1));
                    self.charge("estimated rule cost", &at("rule"), cost.saturating_mul(times));
                }
                Some(Err(why)) => {
                    self.errors.push(FieldError::invalid(&at("rule"), rule.clone(), why.as_str()))
                }
                None => {}
            }
            match &compiled.message_program {
                Some(Ok(program)) => {
                    let cost = program.estimate(Some(&decl)).max;
                    self.charge("estimated messageExpression cost", &at("messageExpression"), cost);
                }
                Some(Err(why)) => {
                    self.errors.push(FieldError::invalid(
                        &at("messageExpression"),
                        rule.clone(),
                        why.as_str(),
                    ));
                }
                None => {}
            }
            if compiled.uses_old {
                if let Some(uncorrelated) = scope.uncorrelated {
                    let detail = format!(
                        "oldSelf cannot be used on the uncorrelatable portion of the schema within {uncorrelated}"
                    );
                    self.errors.push(FieldError::invalid(&at("rule"), compiled.source.as_str(), detail));
                }
            } else if let Some(optional) = rule["optionalOldSelf"].as_bool() {
                let detail = "may not be set if oldSelf is not used in rule";
                self.errors.push(FieldError::invalid(&at("optionalOldSelf"), optional, detail));
            }
        }
    }

    fn charge(&mut self, what: &str, path: &Path, cost: u64) {
        if cost > RULE_COST_MAX {
            self.errors.push(FieldError::forbidden(path, too_expensive(what, cost, RULE_COST_MAX)));
        }
        self.total = self.total.saturating_add(cost);
        if cost >= SCHEMA_COST_MAX / 100 {
            self.expensive.push((path.clone(), cost));
        }
    }
}
