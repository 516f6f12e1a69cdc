//! Checks a value against an `openAPIV3Schema`, with upstream's texts.

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::field_path::Path;
use apimachinery::status::FieldError;
use parking_lot::Mutex;
use regex::Regex;
use serde_json::{Map, Value};

/// Errors after which a value is given up.
const ERRORS_MAX: usize = 100;

/// A compiled schema: the patterns in it are compiled once.
#[derive(Default)]
pub struct Validator {
    schema: Value,
    patterns: Mutex<HashMap<String, Option<Arc<Regex>>>>,
}

impl Validator {
    pub fn new(schema: Value) -> Validator {
        Validator { schema, patterns: Mutex::default() }
    }

    /// What is wrong with `object`, metadata aside.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.schema.is_object() {
            self.check(object, &self.schema, None, &mut errors, true);
        }
        errors
    }

    fn pattern(&self, text: &str) -> Option<Arc<Regex>> {
        self.patterns
            .lock()
            .entry(text.to_owned())
            .or_insert_with(|| Regex::new(text).ok().map(Arc::new))
            .clone()
    }

    fn accepts(&self, value: &Value, schema: &Value, path: Option<&Path>) -> bool {
        let mut errors = Vec::new();
        self.check(value, schema, path, &mut errors, false);
        errors.is_empty()
    }

    fn check(
        &self,
        value: &Value,
        schema: &Value,
        path: Option<&Path>,
        errors: &mut Vec<FieldError>,
        root: bool,
    ) {
        if errors.len() >= ERRORS_MAX {
            return;
        }
        let nowhere = Path::new("");
        let at = path.unwrap_or(&nowhere);
        let invalid = |detail: String| FieldError::invalid(at, value.clone(), detail);
        let named = at.to_string();
        let named = named.as_str();
        if value.is_null() {
            if schema["nullable"] != true && schema["type"].is_string() {
                errors.push(FieldError::invalid(
                    at,
                    "null",
                    format!(
                        "{named} in body must be of type {}: \"null\"",
                        schema["type"].as_str().unwrap_or_default()
                    ),
                ));
            }
            return;
        }
        let int_or_string = schema["x-kubernetes-int-or-string"] == true;
        if let Some(wanted) = schema["type"].as_str() {
            let is = kind_of(value);
            let fits = wanted == is || wanted == "number" && is == "integer";
            if !fits {
                errors.push(FieldError::invalid(
                    at,
                    is,
                    format!("{named} in body must be of type {wanted}: {is:?}"),
                ));
                return;
            }
        } else if int_or_string && !matches!(kind_of(value), "integer" | "string") {
            let is = kind_of(value);
            errors.push(FieldError::invalid(
                at,
                is,
                format!("{named} in body must be of type integer,string: {is:?}"),
            ));
            return;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            let names: Vec<String> =
                allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
            errors.push(FieldError::not_supported(at, value.clone(), &names));
        }
        match value {
            Value::String(text) => self.check_text(text, schema, at, named, errors),
            Value::Number(number) => {
                let n = number.as_f64().unwrap_or(0.0);
                if let Some(least) = schema["minimum"].as_f64() {
                    let exclusive = schema["exclusiveMinimum"] == true;
                    if n < least || exclusive && n == least {
                        let or_equal = if exclusive { "" } else { " or equal to" };
                        errors.push(invalid(format!(
                            "{named} in body should be greater than{or_equal} {}",
                            schema["minimum"]
                        )));
                    }
                }
                if let Some(most) = schema["maximum"].as_f64() {
                    let exclusive = schema["exclusiveMaximum"] == true;
                    if n > most || exclusive && n == most {
                        let or_equal = if exclusive { "" } else { " or equal to" };
                        errors.push(invalid(format!(
                            "{named} in body should be less than{or_equal} {}",
                            schema["maximum"]
                        )));
                    }
                }
                if let Some(of) = schema["multipleOf"].as_f64().filter(|m| *m != 0.0)
                    && (n / of).fract().abs() > 1e-9
                {
                    errors.push(invalid(format!(
                        "{named} in body should be a multiple of {}",
                        schema["multipleOf"]
                    )));
                }
            }
            Value::Array(items) => self.check_list(items, value, schema, path, at, named, errors),
            Value::Object(members) => self.check_object(members, value, schema, path, named, errors, root),
            _ => {}
        }
        for all in schema["allOf"].as_array().into_iter().flatten() {
            self.check(value, all, path, errors, root);
        }
        if let Some(any) = schema["anyOf"].as_array()
            && !int_or_string
            && !any.iter().any(|s| self.accepts(value, s, path))
        {
            errors.push(invalid(format!("{named} in body must validate at least one schema (anyOf)")));
        }
        if let Some(one) = schema["oneOf"].as_array() {
            let n = one.iter().filter(|s| self.accepts(value, s, path)).count();
            if n != 1 {
                let found = if n == 0 {
                    "Found none valid".to_owned()
                } else {
                    format!("Found {n} valid alternatives")
                };
                errors.push(invalid(format!(
                    "{named} in body must validate one and only one schema (oneOf). {found}"
                )));
            }
        }
        if schema["not"].is_object() && self.accepts(value, &schema["not"], path) {
            errors.push(invalid(format!("{named} in body must not validate the schema (not)")));
        }
    }

    fn check_text(&self, text: &str, schema: &Value, at: &Path, named: &str, errors: &mut Vec<FieldError>) {
        let length = text.chars().count() as u64;
        if let Some(most) = schema["maxLength"].as_u64()
            && length > most
        {
            errors.push(FieldError::too_long(at, most as usize));
        }
        if let Some(least) = schema["minLength"].as_u64()
            && length < least
        {
            errors.push(FieldError::invalid(
                at,
                text,
                format!("{named} in body should be at least {least} chars long"),
            ));
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && let Some(compiled) = self.pattern(pattern)
            && !compiled.is_match(text)
        {
            errors.push(FieldError::invalid(at, text, format!("{named} in body should match '{pattern}'")));
        }
        if let Some(format) = schema["format"].as_str()
            && !well_formed(format, text)
        {
            errors.push(FieldError::invalid(
                at,
                text,
                format!("{named} in body must be of type {format}: {text:?}"),
            ));
        }
    }

    fn check_list(
        &self,
        items: &[Value],
        value: &Value,
        schema: &Value,
        path: Option<&Path>,
        at: &Path,
        named: &str,
        errors: &mut Vec<FieldError>,
    ) {
        if let Some(most) = schema["maxItems"].as_u64()
            && items.len() as u64 > most
        {
            errors.push(FieldError::too_many(at, items.len(), most as usize));
        }
        if let Some(least) = schema["minItems"].as_u64()
            && (items.len() as u64) < least
        {
            let detail = format!("{named} in body should have at least {least} items");
            errors.push(FieldError::invalid(at, items.len() as u64, detail));
        }
        if schema["uniqueItems"] == true && items.iter().enumerate().any(|(i, v)| items[..i].contains(v)) {
            errors.push(FieldError::invalid(
                at,
                value.clone(),
                format!("{named} in body shouldn't contain duplicates"),
            ));
        }
        let index = |i: usize| path.map_or_else(|| Path::new("").index(i), |p| p.index(i));
        match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => {
                for (i, item) in items.iter().enumerate() {
                    if items[..i].contains(item) {
                        errors.push(FieldError::duplicate(&index(i), item.clone()));
                    }
                }
            }
            Some("map") => {
                let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                let key_of = |item: &Value| -> Map<String, Value> {
                    keys.iter().filter_map(|k| item.get(*k).map(|v| ((*k).to_owned(), v.clone()))).collect()
                };
                let all: Vec<Map<String, Value>> = items.iter().map(key_of).collect();
                for (i, key) in all.iter().enumerate() {
                    if all[..i].contains(key) {
                        errors.push(FieldError::duplicate(&index(i), Value::Object(key.clone())));
                    }
                }
            }
            _ => {}
        }
        if schema["items"].is_object() {
            for (i, item) in items.iter().enumerate() {
                self.check(item, &schema["items"], Some(&index(i)), errors, false);
            }
        }
    }

    fn check_object(
        &self,
        members: &Map<String, Value>,
        value: &Value,
        schema: &Value,
        path: Option<&Path>,
        named: &str,
        errors: &mut Vec<FieldError>,
        root: bool,
    ) {
        let child = |name: &str| path.map_or_else(|| Path::new(name), |p| p.child(name));
        let nowhere = Path::new("");
        let at = path.unwrap_or(&nowhere);
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !members.contains_key(required) {
                errors.push(FieldError::required(&child(required), ""));
            }
        }
        if let Some(most) = schema["maxProperties"].as_u64()
            && members.len() as u64 > most
        {
            errors.push(FieldError::too_many(at, members.len(), most as usize));
        }
        if let Some(least) = schema["minProperties"].as_u64()
            && (members.len() as u64) < least
        {
            let detail = format!("{named} in body should have at least {least} properties");
            errors.push(FieldError::invalid(at, value.clone(), detail));
        }
        let properties = &schema["properties"];
        for (name, member) in members {
            if root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            if let Some(property) = properties.get(name) {
                self.check(member, property, Some(&child(name)), errors, false);
            } else if schema["additionalProperties"].is_object() {
                let at = path.map_or_else(|| Path::new(name), |p| p.key(name));
                self.check(member, &schema["additionalProperties"], Some(&at), errors, false);
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(n) if n.as_f64().is_some_and(|f| f.fract() == 0.0) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn well_formed(format: &str, text: &str) -> bool {
    use base64::Engine as _;
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "byte" => base64::prelude::BASE64_STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.parse::<ipnet::IpNet>().is_ok(),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid::Uuid::parse_str(text).is_ok(),
        "duration" => apimachinery::duration::parse(text).is_some(),
        // Formats nobody knows are not checked.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tells_what_is_wrong() {
        let validator =
            Validator::new(json!({"type": "object", "required": ["spec"], "properties": {"spec": {
            "type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 5},
                "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
                "mode": {"type": "string", "enum": ["a", "b"]},
                "list": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
                "port": {"x-kubernetes-int-or-string": true}}}}}));
        for (spec, want) in [
            (json!({"size": 3, "port": "http"}), vec![]),
            (
                json!({"size": 0}),
                vec!["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"],
            ),
            (json!({}), vec!["spec.size: Required value"]),
            (
                json!({"size": "x"}),
                vec![
                    r#"spec.size: Invalid value: "string": spec.size in body must be of type integer: "string""#,
                ],
            ),
            (
                json!({"size": 1, "name": "A"}),
                vec!["spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'"],
            ),
            (
                json!({"size": 1, "mode": "c"}),
                vec![r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#],
            ),
            (
                json!({"size": 1, "list": [1, "x"]}),
                vec![
                    r#"spec.list[1]: Invalid value: "string": spec.list[1] in body must be of type integer: "string""#,
                ],
            ),
            (
                json!({"size": 1, "port": true}),
                vec![
                    r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
                ],
            ),
        ] {
            let errors = validator.validate(&json!({"kind": "X", "metadata": {"x": 1}, "spec": spec}));
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts, want, "{spec}");
        }
    }
}
