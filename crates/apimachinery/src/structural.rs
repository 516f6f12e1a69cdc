//! Validation of custom resources against their OpenAPI schema, in upstream's words. Rules in CEL
//! (`x-kubernetes-validations`) are the crate `expression`'s business.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use regex::Regex;
use serde_json::Value;

use crate::codec;
use crate::field_path::Path;
use crate::status::{FieldError, quote};

/// A schema compiled for validating.
#[derive(Debug, Default)]
pub struct Validator {
    kind: Option<String>,
    format: String,
    nullable: bool,
    int_or_string: bool,
    allowed: Vec<Value>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    pattern: Option<(String, OnceLock<Option<Regex>>)>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    unique_items: bool,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    required: Vec<String>,
    properties: BTreeMap<String, Validator>,
    additional: Option<Box<Validator>>,
    items: Option<Box<Validator>>,
    list_set: bool,
    list_keys: Vec<String>,
    all_of: Vec<Validator>,
    any_of: Vec<Validator>,
    one_of: Vec<Validator>,
    not: Option<Box<Validator>>,
}

impl Validator {
    /// From an `openAPIV3Schema`; `Null` accepts everything.
    pub fn new(schema: &Value) -> Validator {
        let text = |name: &str| schema[name].as_str().unwrap_or_default().to_owned();
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let count = |name: &str| schema[name].as_u64();
        let texts = |name: &str| -> Vec<String> {
            schema[name]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        let several = |name: &str| -> Vec<Validator> {
            schema[name].as_array().into_iter().flatten().map(Validator::new).collect()
        };
        let one = |name: &str| match &schema[name] {
            inner @ Value::Object(_) => Some(Box::new(Validator::new(inner))),
            _ => None,
        };
        Validator {
            kind: schema["type"].as_str().filter(|t| !t.is_empty()).map(str::to_owned),
            format: text("format"),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
            minimum: schema["minimum"].as_f64().map(|m| (m, flag("exclusiveMinimum"))),
            maximum: schema["maximum"].as_f64().map(|m| (m, flag("exclusiveMaximum"))),
            multiple_of: schema["multipleOf"].as_f64(),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: schema["pattern"]
                .as_str()
                .filter(|p| !p.is_empty())
                .map(|p| (p.to_owned(), OnceLock::new())),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag("uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            required: texts("required"),
            properties: schema["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, inner)| (name.clone(), Validator::new(inner)))
                .collect(),
            additional: one("additionalProperties"),
            items: one("items"),
            list_set: schema["x-kubernetes-list-type"] == "set",
            list_keys: if schema["x-kubernetes-list-type"] == "map" {
                texts("x-kubernetes-list-map-keys")
            } else {
                vec![]
            },
            all_of: several("allOf"),
            any_of: several("anyOf"),
            one_of: several("oneOf"),
            not: one("not"),
        }
    }

    /// What is wrong with a whole object. `apiVersion`, `kind` and `metadata` are others' business.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = vec![];
        self.check(object, &Path::root(), None, &mut errors);
        errors
    }

    /// What is wrong with an object and was not before: values that have not changed pass (KEP-4008).
    pub fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = vec![];
        self.check(object, &Path::root(), Some(old), &mut errors);
        errors
    }

    /// `old` is the value's counterpart in an older object.
    fn check(&self, value: &Value, path: &Path, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        let before = errors.len();
        self.check_value(value, path, old, errors);
        if errors.len() > before && old == Some(value) {
            errors.truncate(before);
        }
    }

    fn check_value(&self, value: &Value, path: &Path, old: Option<&Value>, errors: &mut Vec<FieldError>) {
        let invalid = |value: &Value, text: String| {
            FieldError::invalid(path, value.clone(), format!("{} in body {text}", shown(path)))
        };
        if value.is_null() {
            if let Some(kind) = &self.kind
                && !self.nullable
            {
                errors.push(type_error(path, kind, "null"));
            }
            return;
        }
        if self.int_or_string {
            if !(value.is_string() || is_integer(value)) {
                errors.push(type_error(path, "integer,string", kind_of(value)));
                return;
            }
        } else if let Some(kind) = &self.kind {
            let fits = match kind.as_str() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "number" => value.is_number(),
                "integer" => is_integer(value),
                _ => true,
            };
            if !fits {
                errors.push(match value {
                    // Told by the format, where there is one.
                    Value::Bool(_) | Value::Number(_) | Value::Object(_) if !self.format.is_empty() => {
                        type_error(path, &self.format, format_of(value))
                    }
                    _ => type_error(path, kind, kind_of(value)),
                });
                if let Some(number) = value.as_f64() {
                    self.check_number(number, value, path, &invalid, errors);
                }
                return;
            }
        }
        if !self.allowed.is_empty() && !self.allowed.iter().any(|a| same(a, value)) {
            let allowed: Vec<String> = self
                .allowed
                .iter()
                .map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_owned))
                .collect();
            errors.push(FieldError::not_supported(path, value.clone(), &allowed));
        }
        match value {
            Value::Number(n) => {
                self.check_number(n.as_f64().unwrap_or_default(), value, path, &invalid, errors);
            }
            Value::String(text) => self.check_text(text, value, path, &invalid, errors),
            Value::Array(list) => self.check_list(list, value, path, old, &invalid, errors),
            Value::Object(object) => {
                let length = object.len() as u64;
                if let Some(min) = self.min_properties.filter(|min| length < *min) {
                    errors.push(invalid(value, format!("should have at least {min} properties")));
                }
                if let Some(max) = self.max_properties.filter(|max| length > *max) {
                    errors.push(FieldError::too_many(path, object.len(), max as usize));
                }
                for name in &self.required {
                    if !object.contains_key(name) {
                        errors.push(FieldError::required(&path.child(name), ""));
                    }
                }
                let root = path.as_str().is_empty();
                for (name, value) in object {
                    if root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                        // Names and the like may still be constrained.
                        if let Some(inner) = self.properties.get(name) {
                            let old = old.and_then(|o| o.get(name)).filter(|_| name == "metadata");
                            inner.check(value, &path.child(name), old, errors);
                        }
                        continue;
                    }
                    let old = old.and_then(|o| o.get(name));
                    match (self.properties.get(name), &self.additional) {
                        (Some(inner), _) => inner.check(value, &path.child(name), old, errors),
                        (None, Some(inner)) => inner.check(value, &path.child(name), old, errors),
                        (None, None) => {}
                    }
                }
            }
            _ => {}
        }
        self.check_combinations(value, path, errors);
    }

    fn check_number(
        &self,
        number: f64,
        value: &Value,
        path: &Path,
        invalid: &dyn Fn(&Value, String) -> FieldError,
        errors: &mut Vec<FieldError>,
    ) {
        if let Some(kind) = self.kind.as_deref().filter(|kind| !within(value, kind, &self.format)) {
            let format = match self.format.as_str() {
                "" => "(default format)".to_owned(),
                format => format!("with format {format}"),
            };
            let text = format!("Checked value must be of type {kind} {format} in {}", shown(path));
            errors.push(FieldError::invalid(&Path::root(), "", text));
        }
        if let Some((min, exclusive)) = self.minimum {
            if exclusive && number <= min {
                errors.push(invalid(value, format!("should be greater than {min}")));
            } else if number < min {
                errors.push(invalid(value, format!("should be greater than or equal to {min}")));
            }
        }
        if let Some((max, exclusive)) = self.maximum {
            if exclusive && number >= max {
                errors.push(invalid(value, format!("should be less than {max}")));
            } else if number > max {
                errors.push(invalid(value, format!("should be less than or equal to {max}")));
            }
        }
        if let Some(step) = self.multiple_of.filter(|s| *s > 0.0)
            && (number / step).fract() != 0.0
        {
            errors.push(invalid(value, format!("should be a multiple of {step}")));
        }
    }

    fn check_text(
        &self,
        text: &str,
        value: &Value,
        path: &Path,
        invalid: &dyn Fn(&Value, String) -> FieldError,
        errors: &mut Vec<FieldError>,
    ) {
        let length = text.chars().count() as u64;
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            errors.push(FieldError::too_long(path, max as usize));
        }
        if let Some(min) = self.min_length.filter(|min| length < *min) {
            errors.push(invalid(value, format!("should be at least {min} chars long")));
        }
        if let Some((pattern, compiled)) = &self.pattern {
            let matches = match compiled.get_or_init(|| Regex::new(pattern).ok()) {
                Some(regex) => regex.is_match(text),
                // A pattern that cannot be compiled matches nothing, so that it is noticed.
                None => false,
            };
            if !matches {
                errors.push(invalid(value, format!("should match '{pattern}'")));
            }
        }
        if !format_fits(&self.format, text) {
            errors.push(invalid(value, format!("must be of type {}: {}", self.format, quote(text))));
        }
    }

    fn check_list(
        &self,
        list: &[Value],
        value: &Value,
        path: &Path,
        old: Option<&Value>,
        invalid: &dyn Fn(&Value, String) -> FieldError,
        errors: &mut Vec<FieldError>,
    ) {
        let length = list.len() as u64;
        if let Some(min) = self.min_items.filter(|min| length < *min) {
            errors.push(invalid(value, format!("should have at least {min} items")));
        }
        if let Some(max) = self.max_items.filter(|max| length > *max) {
            errors.push(FieldError::too_many(path, list.len(), max as usize));
        }
        let repeats = |i: usize| list[..i].contains(&list[i]);
        if self.unique_items && (0..list.len()).any(repeats) {
            errors.push(invalid(value, "shouldn't contain duplicates".into()));
        }
        if let Some(items) = &self.items {
            // Only items of lists that are maps have counterparts.
            let same = |a: &Value, b: &Value| self.list_keys.iter().all(|k| a.get(k) == b.get(k));
            let old = old.and_then(Value::as_array).filter(|_| !self.list_keys.is_empty());
            for (i, item) in list.iter().enumerate() {
                let old = old.and_then(|o| o.iter().find(|o| same(o, item)));
                items.check(item, &path.index(i), old, errors);
            }
        }
        if self.list_set {
            for (i, item) in list.iter().enumerate().filter(|(i, _)| repeats(*i)) {
                errors.push(FieldError::duplicate(&path.index(i), item.clone()));
            }
        }
        if !self.list_keys.is_empty() {
            let identity = |item: &Value| -> Vec<(String, Value)> {
                self.list_keys.iter().filter_map(|k| item.get(k).map(|v| (k.clone(), v.clone()))).collect()
            };
            let mut seen: Vec<Vec<(String, Value)>> = vec![];
            for (i, item) in list.iter().enumerate() {
                let id = identity(item);
                if seen.contains(&id) {
                    let id: serde_json::Map<String, Value> = id.into_iter().collect();
                    errors.push(FieldError::duplicate(&path.index(i), Value::Object(id)));
                } else {
                    seen.push(id);
                }
            }
        }
    }

    fn check_combinations(&self, value: &Value, path: &Path, errors: &mut Vec<FieldError>) {
        let passes = |schema: &Validator| {
            let mut inner = vec![];
            schema.check(value, path, None, &mut inner);
            inner
        };
        let said =
            |text: &str| FieldError::invalid(path, value.clone(), format!("{} {text}", quote(&shown(path))));
        for schema in &self.all_of {
            errors.extend(passes(schema));
        }
        if !self.any_of.is_empty() {
            let tries: Vec<Vec<FieldError>> = self.any_of.iter().map(passes).collect();
            if !tries.iter().any(Vec::is_empty) {
                errors.push(said("must validate at least one schema (anyOf)"));
                errors.extend(tries.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
        }
        if !self.one_of.is_empty() {
            let tries: Vec<Vec<FieldError>> = self.one_of.iter().map(passes).collect();
            match tries.iter().filter(|t| t.is_empty()).count() {
                1 => {}
                0 => {
                    errors.push(said("must validate one and only one schema (oneOf). Found none valid"));
                    errors.extend(tries.into_iter().min_by_key(Vec::len).unwrap_or_default());
                }
                n => errors.push(said(&format!(
                    "must validate one and only one schema (oneOf). Found {n} valid alternatives"
                ))),
            }
        }
        if let Some(not) = &self.not
            && passes(not).is_empty()
        {
            errors.push(said("must not validate the schema (not)"));
        }
    }
}

fn shown(path: &Path) -> String {
    path.as_str().to_owned()
}

fn type_error(path: &Path, wanted: &str, found: &str) -> FieldError {
    let text = format!("{} in body must be of type {wanted}: {}", shown(path), quote(found));
    FieldError::type_invalid(path, found, text)
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if !n.is_i64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What Go calls the format of a value that it has read.
fn format_of(value: &Value) -> &'static str {
    match value {
        Value::Number(n) if !n.is_i64() => "float64",
        Value::Number(_) => "int64",
        _ => "",
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.as_f64().is_some_and(codec::numbers::is_whole)
}

/// Whether a number is one that its type and format can hold.
fn within(value: &Value, kind: &str, format: &str) -> bool {
    let number = value.as_f64().unwrap_or_default();
    if kind == "number" {
        return !matches!(format, "float" | "float32") || number.abs() <= f64::from(f32::MAX);
    }
    let whole = || number.fract() == 0.0;
    // Bounds of 64 bits are powers of two, which doubles hold.
    let (min, end) = match format {
        "int32" => (f64::from(i32::MIN), f64::from(i32::MAX) + 1.0),
        "uint32" => (0.0, f64::from(u32::MAX) + 1.0),
        "uint64" => (0.0, 2f64.powi(64)),
        _ if value.is_i64() => return true,
        _ => (-2f64.powi(63), 2f64.powi(63)),
    };
    kind != "integer" || whole() && (min..end).contains(&number)
}

/// Equal as JSON: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn format_fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" => codec::normalize_time(text).is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "cidr" => crate::validation::parse_cidr(text).is_some(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "duration" => crate::duration::parse_nanos(text).is_some(),
        "k8s-short-name" => crate::validation::is_dns1123_label(text),
        "k8s-long-name" => crate::validation::is_dns1123_subdomain(text),
        // Formats that upstream does not know, or that hardly anything fails, constrain nothing.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn validates() {
        let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
            "required": ["name"], "properties": {
            "name": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
            "size": {"type": "integer", "minimum": 1, "maximum": 5, "multipleOf": 2},
            "mode": {"type": "string", "enum": ["a", "b"]},
            "port": {"x-kubernetes-int-or-string": true},
            "maybe": {"type": "string", "nullable": true},
            "when": {"type": "string", "format": "date-time"},
            "small": {"type": "integer", "format": "int32"},
            "float": {"type": "number", "format": "float"},
            "list": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "keyed": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": {"type": "object", "properties": {"id": {"type": "integer"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "boolean"}},
            "either": {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            "never": {"not": {"enum": ["x"]}}}}}});
        let validator = Validator::new(&schema);
        for (spec, want) in [
            (
                json!({"name": "ab", "size": 2, "mode": "a", "port": 1, "maybe": null, "list": ["x"], "keyed": [{"id": 1}],
                "map": {"x": true}, "either": {"a": 1}, "never": "y", "when": "2024-01-01T00:00:00Z", "free": 1}),
                "",
            ),
            (json!({}), "spec.name: Required value"),
            (
                json!({"name": 1}),
                r#"spec.name: Invalid value: "integer": spec.name in body must be of type string: "integer""#,
            ),
            (
                json!({"name": "ab", "size": 7.5}),
                r#"spec.size: Invalid value: "number": spec.size in body must be of type integer: "number"; <nil>: Invalid value: "": Checked value must be of type integer (default format) in spec.size; spec.size: Invalid value: 7.5: spec.size in body should be less than or equal to 5; spec.size: Invalid value: 7.5: spec.size in body should be a multiple of 2"#,
            ),
            (
                json!({"name": "ab", "keyed": [{"id": 1e18}]}),
                r#"spec.keyed[0].id: Invalid value: "number": spec.keyed[0].id in body must be of type integer: "number""#,
            ),
            (
                json!({"name": "ab", "keyed": [{"id": 9_223_372_036_854_775_808u64}]}),
                r#"spec.keyed[0].id: Invalid value: "number": spec.keyed[0].id in body must be of type integer: "number"; <nil>: Invalid value: "": Checked value must be of type integer (default format) in spec.keyed[0].id"#,
            ),
            (
                json!({"name": "ab", "small": 1_099_511_627_776u64}),
                r#"<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.small"#,
            ),
            (
                json!({"name": "ab", "small": 3.5}),
                r#"spec.small: Invalid value: "float64": spec.small in body must be of type int32: "float64"; <nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.small"#,
            ),
            (
                json!({"name": "ab", "float": 1e300}),
                r#"<nil>: Invalid value: "": Checked value must be of type number with format float in spec.float"#,
            ),
            (json!({"name": "ab", "small": 3.0, "port": 3.0, "float": 3}), ""),
            (
                json!({"name": "AB"}),
                r#"spec.name: Invalid value: "AB": spec.name in body should match '^[a-z]+$'"#,
            ),
            (
                json!({"name": "a"}),
                r#"spec.name: Invalid value: "a": spec.name in body should be at least 2 chars long"#,
            ),
            (json!({"name": "abcde"}), "spec.name: Too long: may not be more than 4 bytes"),
            (
                json!({"name": "ab", "size": 0}),
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
            ),
            (
                json!({"name": "ab", "size": 3}),
                "spec.size: Invalid value: 3: spec.size in body should be a multiple of 2",
            ),
            (
                json!({"name": "ab", "mode": "c"}),
                r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#,
            ),
            (
                json!({"name": "ab", "port": true}),
                r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
            ),
            (
                json!({"name": null}),
                r#"spec.name: Invalid value: "null": spec.name in body must be of type string: "null""#,
            ),
            (json!({"name": "ab", "list": ["a", "a"]}), r#"spec.list[1]: Duplicate value: "a""#),
            (
                json!({"name": "ab", "list": ["a", "b", "c"]}),
                "spec.list: Too many: 3: must have at most 2 items",
            ),
            (
                json!({"name": "ab", "keyed": [{"id": 1}, {"id": 1}]}),
                r#"spec.keyed[1]: Duplicate value: {"id":1}"#,
            ),
            (
                json!({"name": "ab", "map": {"x": 1}}),
                r#"spec.map.x: Invalid value: "integer": spec.map.x in body must be of type boolean: "integer""#,
            ),
            (
                json!({"name": "ab", "either": {"a": 1, "b": 1}}),
                r#"spec.either: Invalid value: {"a":1,"b":1}: "spec.either" must validate one and only one schema (oneOf). Found 2 valid alternatives"#,
            ),
            (
                json!({"name": "ab", "never": "x"}),
                r#"spec.never: Invalid value: "x": "spec.never" must not validate the schema (not)"#,
            ),
            (
                json!({"name": "ab", "when": "now"}),
                r#"spec.when: Invalid value: "now": spec.when in body must be of type date-time: "now""#,
            ),
        ] {
            let errors =
                validator.validate(&json!({"apiVersion": "a/v1", "kind": "A", "metadata": {}, "spec": spec}));
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(texts.join("; "), want);
        }
        assert_eq!(validator.validate(&json!({}))[0].to_string(), "spec: Required value");
        // What has not changed passes; what holds it must be whole.
        let object = |spec: Value| json!({"apiVersion": "a/v1", "kind": "A", "metadata": {}, "spec": spec});
        for (new, old, want) in [
            (json!({"name": "AB", "free": 1}), json!({"name": "AB"}), 0),
            (json!({"name": "AB"}), json!({"name": "CD"}), 1),
            (json!({"name": "ab", "keyed": [{"id": "x"}]}), json!({"name": "ab", "keyed": [{"id": "x"}]}), 0),
            (
                json!({"name": "ab", "keyed": [{"id": "x"}, {"id": 1}]}),
                json!({"name": "ab", "keyed": [{"id": "x"}]}),
                0,
            ),
            (json!({"name": "ab", "keyed": [{"id": "y"}]}), json!({"name": "ab", "keyed": [{"id": "x"}]}), 1),
        ] {
            let errors = validator.validate_update(&object(new.clone()), &object(old));
            assert_eq!(errors.len(), want, "{new}");
        }
        assert!(Validator::new(&Value::Null).validate(&json!({"x": 1})).is_empty());
    }
}
