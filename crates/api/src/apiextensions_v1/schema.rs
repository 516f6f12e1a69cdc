//! Whether the schema of a custom resource is structural (KEP-1693) and says nothing that is not supported.

use apimachinery::field_path::Path as FieldPath;
use apimachinery::structural::Validator;
use serde_json::{Value, json};

use crate::check::Report;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

/// Schemas within schemas; what is deeper is not looked at.
const DEPTH_MAX: usize = 100;
const LIST_TYPE: &str = "x-kubernetes-list-type";
const LIST_KEYS: &str = "x-kubernetes-list-map-keys";
const MAP_TYPE: &str = "x-kubernetes-map-type";
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const KEEPS_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const RULES: &str = "x-kubernetes-validations";

/// `stored` says that the definition has this very schema already: its expressions are not looked at again.
pub fn check(errors: &mut Errors, schema: &Value, path: &Path<'_>, with_status: bool, stored: bool) {
    let sound = errors.len();
    let kind = schema.text("type");
    if with_status && !kind.is_empty() && kind != "object" {
        let why = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.invalid(&path.child("type"), kind, why);
    } else if with_status && only_for_status(schema) {
        errors.invalid(path, schema.clone(), ROOT_WITH_STATUS);
    }
    if schema.flag("nullable") {
        errors.forbidden(&path.child("nullable"), "nullable cannot be true at the root");
    }
    // What is not supported anywhere cannot be read as a structural schema, and is told of below.
    if !any(schema, 0, &|s| !unsupported(s).is_empty()) {
        let mut found = Errors::new();
        structural(&mut found, schema, Level::Root, path, 0);
        found.sort_by_cached_key(ToString::to_string);
        match found.is_empty() {
            true => defaults(errors, schema, path, 0),
            false => errors.extend(found),
        }
    }
    let place = Place { root: true, in_metadata: false, defaults_forbidden: None };
    supported(errors, schema, &place, path, 0);
    if errors.len() == sound && !stored {
        errors.extend(expression::rules::check(schema, &FieldPath::new(&path.to_string())));
    }
}

/// Whether a schema or one within it is such.
const ROOT_WITH_STATUS: &str = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum \
    MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example \
    XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status subresource is enabled";

/// Whether the root says what could not be told apart for the status: anything but the members named above.
fn only_for_status(schema: &Value) -> bool {
    const ALLOWED: [&str; 22] = [
        "description",
        "type",
        "format",
        "title",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "maxItems",
        "minItems",
        "uniqueItems",
        "multipleOf",
        "required",
        "items",
        "properties",
        "externalDocs",
        "example",
        KEEPS_UNKNOWN,
        RULES,
    ];
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    let members = schema.as_object().into_iter().flatten();
    members.filter(|(_, value)| !empty(value)).any(|(name, _)| !ALLOWED.contains(&name.as_str()))
}

/// Formats that nothing is known of, in all schemas of a definition.
pub fn unknown_formats(definition: &Value) -> Vec<String> {
    let mut found = vec![];
    let mut all: Vec<&Value> = vec![];
    for version in definition.list("spec.versions") {
        all.push(version.at("schema.openAPIV3Schema"));
    }
    // In the order in which a schema is walked: itself, then what it holds.
    while let Some(schema) = all.pop() {
        if !schema.is_object() {
            continue;
        }
        let format = schema.text("format");
        if !format.is_empty() && !is_known_format(schema.text("type"), format) {
            found.push(format.to_owned());
        }
        all.extend(["items", "additionalProperties", "not"].iter().map(|name| schema.at(name)));
        all.extend(schema.entries("properties").map(|(_, s)| s));
        all.extend(["allOf", "anyOf", "oneOf"].iter().flat_map(|name| schema.list(name)));
    }
    found
}

fn is_known_format(kind: &str, format: &str) -> bool {
    const OF_STRINGS: &str = " bsonobjectid uri email hostname ipv4 ipv6 cidr mac uuid uuid3 uuid4 uuid5 isbn isbn10 isbn13 \
                              creditcard ssn hexcolor rgbcolor byte password date duration datetime k8sshortname \
                              k8slongname ";
    match kind {
        "" | "string" => OF_STRINGS.contains(&format!(" {} ", format.replace('-', ""))),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

fn any(schema: &Value, depth: usize, such: &dyn Fn(&Value) -> bool) -> bool {
    if depth > DEPTH_MAX || !schema.is_object() {
        return false;
    }
    let inner = |inner: &Value| any(inner, depth + 1, such);
    such(schema)
        || ["items", "additionalProperties", "not"].iter().any(|name| inner(schema.at(name)))
        || schema.entries("properties").any(|(_, s)| inner(s))
        || ["allOf", "anyOf", "oneOf"].iter().any(|name| schema.list(name).iter().any(inner))
}

/// The fields of a schema that are not supported, and what is said of them.
fn unsupported(schema: &Value) -> Vec<(&'static str, &'static str)> {
    let filled = |name: &str| !schema.text(name).is_empty();
    let mut found = vec![];
    if filled("id") {
        found.push(("id", "id is not supported"));
    }
    if !schema.at("additionalItems").is_null() {
        found.push(("additionalItems", "additionalItems is not supported"));
    }
    if schema.entries("patternProperties").next().is_some() {
        found.push(("patternProperties", "patternProperties is not supported"));
    }
    if schema.entries("definitions").next().is_some() {
        found.push(("definitions", "definitions is not supported"));
    }
    if schema.at("dependencies").is_object() {
        found.push(("dependencies", "dependencies is not supported"));
    }
    if !schema.get_or_null("$ref").is_null() {
        found.push(("$ref", "$ref is not supported"));
    }
    if schema.text("type") == "null" {
        found.push(("type", "type cannot be set to null, use nullable as an alternative"));
    }
    if !schema.list("items").is_empty() {
        found.push(("items", "items must be a schema object and not an array"));
    }
    found
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

fn is_any_type(schema: &Value) -> bool {
    schema.flag(INT_OR_STRING) || schema.flag(KEEPS_UNKNOWN)
}

/// Every field says what it is: that makes pruning, defaulting and merging well defined.
fn structural(errors: &mut Errors, schema: &Value, level: Level, path: &Path<'_>, depth: usize) {
    if depth > DEPTH_MAX {
        errors.invalid(path, Value::Null, "schema is nested too deep");
        return;
    }
    let kind = schema.text("type");
    let items = schema.at("items");
    if kind == "array" && items.is_null() {
        errors.required(&path.child("items"), "must be specified");
    }
    if items.is_object() {
        structural(errors, items, Level::Item, &path.child("items"), depth + 1);
    }
    for (name, inner) in schema.entries("properties") {
        structural(errors, inner, Level::Field, &path.child("properties").key(name), depth + 1);
    }
    let additional = schema.at("additionalProperties");
    if !additional.is_null() {
        let path = path.child("additionalProperties");
        if level == Level::Root {
            errors.forbidden(&path, "must not be used at the root");
        }
        if additional.is_object() {
            structural(errors, additional, Level::Field, &path, depth + 1);
        }
    }
    if schema.flag(INT_OR_STRING) {
        for other in [KEEPS_UNKNOWN, EMBEDDED] {
            if schema.flag(other) {
                let why = "must be false if x-kubernetes-int-or-string is true";
                errors.invalid(&path.child(other), true, why);
            }
        }
    }
    let int_or_string = json!([{"type": "integer"}, {"type": "string"}]);
    let any_of = schema.at("anyOf") == &int_or_string;
    let first_of_all = schema.list("allOf").first().is_some_and(|s| s.at("anyOf") == &int_or_string);
    value_checks(errors, schema, (any_of, first_of_all), path, depth);
    let embedded = schema.flag(EMBEDDED);
    let type_path = path.child("type");
    match level {
        _ if embedded && kind.is_empty() => {
            errors.required(&type_path, "must be object if x-kubernetes-embedded-resource is true");
        }
        _ if embedded && kind != "object" => {
            errors.invalid(&type_path, kind, "must be object if x-kubernetes-embedded-resource is true");
        }
        _ if !kind.is_empty() || is_any_type(schema) => {}
        Level::Root => errors.required(&type_path, "must not be empty at the root"),
        Level::Item => errors.required(&type_path, "must not be empty for specified array items"),
        Level::Field => errors.required(&type_path, "must not be empty for specified object fields"),
    }
    if embedded && !additional.is_null() {
        let why = "must not be used if x-kubernetes-embedded-resource is set";
        errors.forbidden(&path.child("additionalProperties"), why);
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&type_path, kind, "must be object at the root");
    }
    let properties = path.child("properties");
    let property = |name: &str| schema.get_or_null("properties").get_or_null(name);
    if level == Level::Root || embedded {
        for (name, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
            let found = property(name);
            if !found.is_null() && found.text("type") != wanted {
                let why = format!("must be {wanted}");
                errors.invalid(&properties.key(name).child("type"), found.text("type"), why);
            }
        }
    }
    if level == Level::Root && !is_plain_metadata(property("metadata")) {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.forbidden(&properties.key("metadata"), why);
    }
    let bare = schema.entries("properties").next().is_none();
    if embedded && !schema.flag(KEEPS_UNKNOWN) && bare {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.required(&path.child("properties"), why);
    }
}

/// Whether the schema of the metadata says of nothing but the names what they are.
fn is_plain_metadata(metadata: &Value) -> bool {
    let Some(members) = metadata.as_object() else { return true };
    members.iter().all(|(name, value)| match name.as_str() {
        "type" | "default" => true,
        "properties" => {
            value.as_object().is_some_and(|all| all.keys().all(|k| k == "name" || k == "generateName"))
        }
        _ => false,
    })
}

/// Conditions on values: within them, nothing may be said about the structure. `int_or_string` says which two of the
/// usual forms of a number or text are there, which may.
fn value_checks(
    errors: &mut Errors,
    schema: &Value,
    int_or_string: (bool, bool),
    path: &Path<'_>,
    depth: usize,
) {
    for name in ["anyOf", "allOf", "oneOf"] {
        if name == "anyOf" && int_or_string.0 {
            continue;
        }
        let path = path.child(name);
        for (i, inner) in schema.list(name).iter().enumerate() {
            let any_of = name == "allOf" && i == 0 && int_or_string.1;
            nested(errors, inner, any_of, &path.index(i), depth + 1);
        }
    }
    if schema.at("not").is_object() {
        nested(errors, schema.at("not"), false, &path.child("not"), depth + 1);
    }
    let pattern = schema.text("pattern");
    if let Some(why) = wrong_pattern(pattern) {
        let why = format!("must be a valid regular expression, but isn't: error parsing regexp: {why}");
        errors.invalid(&path.child("pattern"), pattern, why);
    }
}

/// What is wrong with a regular expression, in Go's words. Only what Go and the library here agree on.
fn wrong_pattern(pattern: &str) -> Option<String> {
    let regex::Error::Syntax(text) = regex::Regex::new(pattern).err()? else { return None };
    if text.contains("unclosed group") {
        Some(format!("missing closing ): `{pattern}`"))
    } else if text.contains("unopened group") {
        Some(format!("unexpected ): `{pattern}`"))
    } else {
        None
    }
}

fn nested(errors: &mut Errors, schema: &Value, any_of: bool, path: &Path<'_>, depth: usize) {
    if depth > DEPTH_MAX {
        errors.invalid(path, Value::Null, "schema is nested too deep");
        return;
    }
    value_checks(errors, schema, (any_of, false), path, depth);
    if schema.at("items").is_object() {
        nested(errors, schema.at("items"), false, &path.child("items"), depth + 1);
    }
    let properties = path.child("properties");
    for (name, inner) in schema.entries("properties") {
        nested(errors, inner, false, &properties.key(name), depth + 1);
    }
    let mut forbid = |name: &str, said: bool, what: &str| {
        if said {
            errors.forbidden(&path.child(name), format!("must be {what} to be structural"));
        }
    };
    let filled = |name: &str| !schema.text(name).is_empty();
    forbid("type", filled("type"), "empty");
    forbid("additionalProperties", !schema.at("additionalProperties").is_null(), "undefined");
    forbid("default", !schema.at("default").is_null(), "undefined");
    forbid("title", filled("title"), "empty");
    forbid("description", filled("description"), "empty");
    forbid("nullable", schema.flag("nullable"), "false");
    forbid(KEEPS_UNKNOWN, schema.flag(KEEPS_UNKNOWN), "false");
    forbid(EMBEDDED, schema.flag(EMBEDDED), "false");
    forbid(INT_OR_STRING, schema.flag(INT_OR_STRING), "false");
    forbid(LIST_KEYS, !schema.list(LIST_KEYS).is_empty(), "empty");
    forbid(LIST_TYPE, filled(LIST_TYPE), "undefined");
    forbid(MAP_TYPE, filled(MAP_TYPE), "undefined");
    forbid(RULES, !schema.list(RULES).is_empty(), "empty");
    if !schema.get_or_null("properties").get_or_null("metadata").is_null() {
        errors.forbidden(&properties.key("metadata"), "must not be specified in a nested context");
    }
}

/// Defaults are values that objects may have.
fn defaults(errors: &mut Errors, schema: &Value, path: &Path<'_>, depth: usize) {
    if depth > DEPTH_MAX || !schema.is_object() {
        return;
    }
    let default = schema.at("default");
    if !default.is_null() {
        let own = path.child("default").to_string();
        let within = |error: apimachinery::status::FieldError| {
            let path = match error.path.as_str() {
                // The default itself.
                "" | "<nil>" => own.clone(),
                inner if inner.starts_with('[') => format!("{own}{inner}"),
                inner => format!("{own}.{inner}"),
            };
            apimachinery::status::FieldError { path, ..error }
        };
        errors.extend(Validator::new(schema).validate(default).into_iter().map(within));
    }
    defaults(errors, schema.at("items"), &path.child("items"), depth + 1);
    defaults(errors, schema.at("additionalProperties"), &path.child("additionalProperties"), depth + 1);
    for (name, inner) in schema.entries("properties") {
        defaults(errors, inner, &path.child("properties").key(name), depth + 1);
    }
}

/// Where in the schema the walk is.
#[derive(Clone)]
struct Place {
    root: bool,
    in_metadata: bool,
    /// Why nothing may have a default here.
    defaults_forbidden: Option<String>,
}

fn supported(errors: &mut Errors, schema: &Value, place: &Place, path: &Path<'_>, depth: usize) {
    if depth > DEPTH_MAX || !schema.is_object() {
        return;
    }
    let kind = schema.text("type");
    if !kind.is_empty() {
        let known = ["array", "boolean", "integer", "number", "object", "string"];
        errors.one_of(&path.child("type"), kind, &known);
    }
    if let Some(why) = &place.defaults_forbidden
        && !schema.at("default").is_null()
    {
        errors.forbidden(&path.child("default"), format!("must not be set {why}"));
    }
    for (name, why) in unsupported(schema) {
        errors.forbidden(&path.child(name), why);
    }
    if place.in_metadata && schema.flag(EMBEDDED) {
        errors.forbidden(&path.child(EMBEDDED), "must not be used inside of resource meta");
    }
    if schema.flag("uniqueItems") {
        errors.forbidden(
            &path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    let inner = Place { root: false, ..place.clone() };
    let has_properties = schema.entries("properties").next().is_some();
    let additional = schema.at("additionalProperties");
    if !additional.is_null() {
        let path = path.child("additionalProperties");
        if has_properties && additional != true {
            errors.forbidden(&path, "additionalProperties and properties are mutual exclusive");
        }
        let mut place = inner.clone();
        if place.in_metadata {
            place.defaults_forbidden =
                Some("inside additionalProperties applying to object metadata".to_owned());
        }
        supported(errors, additional, &place, &path, depth + 1);
    }
    for (name, property) in schema.entries("properties") {
        let mut inside = inner.clone();
        if (place.root || schema.flag(EMBEDDED))
            && ["metadata", "kind", "apiVersion"].contains(&name.as_str())
        {
            inside.in_metadata = true;
            if place.root {
                inside.defaults_forbidden = Some(format!("in top-level {name}"));
            }
        }
        supported(errors, property, &inside, &path.child("properties").key(name), depth + 1);
    }
    supported(errors, schema.at("not"), &inner, &path.child("not"), depth + 1);
    for list in ["allOf", "oneOf", "anyOf"] {
        let path = path.child(list);
        for (i, one) in schema.list(list).iter().enumerate() {
            supported(errors, one, &inner, &path.index(i), depth + 1);
        }
    }
    supported(errors, schema.at("items"), &inner, &path.child("items"), depth + 1);
    if schema.get_or_null(KEEPS_UNKNOWN) == &Value::Bool(false) {
        errors.invalid(&path.child(KEEPS_UNKNOWN), false, "must be true or undefined");
    }
    for (extension, wanted) in [(MAP_TYPE, "object"), (LIST_TYPE, "array")] {
        if schema.text(extension).is_empty() || kind == wanted {
            continue;
        }
        let why = format!("must be {wanted} if {extension} is specified");
        match kind {
            "" => errors.required(&path.child("type"), why),
            kind => errors.invalid(&path.child("type"), kind, why),
        }
    }
    let map_type = schema.text(MAP_TYPE);
    if !map_type.is_empty() {
        errors.one_of(&path.child(MAP_TYPE), map_type, &["atomic", "granular"]);
    }
    list_type(errors, schema, path);
}

/// What is said about how lists are merged.
fn list_type(errors: &mut Errors, schema: &Value, path: &Path<'_>) {
    let list_type = schema.text(LIST_TYPE);
    let items = schema.at("items");
    let items_path = path.child("items");
    if list_type == "set" && schema.text("type") == "array" && items.is_object() {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let of_items = items.text(LIST_TYPE);
        match items.text("type") {
            "array" if !of_items.is_empty() && of_items != "atomic" => {
                errors.invalid(&items_path.child(LIST_TYPE), of_items, why);
            }
            "object" if items.text(MAP_TYPE) != "atomic" => {
                errors.invalid(&items_path.child(MAP_TYPE), items.get_or_null(LIST_TYPE).clone(), why);
            }
            _ => {}
        }
    }
    if !list_type.is_empty() {
        errors.one_of(&path.child(LIST_TYPE), list_type, &["atomic", "set", "map"]);
    }
    let keys = schema.list(LIST_KEYS);
    if !keys.is_empty() {
        let why = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            "map" => {}
            "" => errors.required(&path.child(LIST_TYPE), why),
            other => errors.invalid(&path.child(LIST_TYPE), other, why),
        }
    }
    let keys_path = path.child(LIST_KEYS);
    if list_type == "map" {
        if keys.is_empty() {
            errors.required(&keys_path, "must not be empty if x-kubernetes-list-type is map");
        }
        if items.is_null() {
            errors.required(&items_path, "must have a schema if x-kubernetes-list-type is map");
        }
        if items.is_object() && items.text("type") != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            errors.invalid(&items_path.child("type"), items.text("type"), why);
        } else if items.is_object() {
            list_keys(errors, items, keys, &items_path, &keys_path);
        }
    }
    if !matches!(list_type, "set" | "map") || !items.is_object() {
        return;
    }
    if items.flag("nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.forbidden(&items_path.child("nullable"), why);
    }
    if list_type != "map" {
        return;
    }
    let properties = items_path.child("properties");
    for key in keys.iter().filter_map(Value::as_str) {
        let property = items.get_or_null("properties").get_or_null(key);
        if property.is_null() {
            continue;
        }
        let path = properties.key(key);
        if !items.list("required").iter().any(|r| r == key) && property.at("default").is_null() {
            let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(&path.child("default"), why);
        }
        if property.flag("nullable") {
            let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&path.child("nullable"), why);
        }
    }
}

fn list_keys(errors: &mut Errors, items: &Value, keys: &[Value], items_path: &Path<'_>, path: &Path<'_>) {
    for (i, key) in keys.iter().enumerate() {
        let name = key.as_str().unwrap_or_default();
        let property = items.get_or_null("properties").get_or_null(name);
        if property.is_null() {
            errors.invalid(path, keys.to_vec(), "entries must all be names of item properties");
        } else if matches!(property.text("type"), "array" | "object") {
            let properties = items_path.child("properties");
            let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.invalid(&properties.key(name).child("type"), items.text("type"), why);
        }
        if keys[..i].contains(key) {
            errors.invalid(path, keys.to_vec(), "must not contain duplicate entries");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_schemas() {
        for (properties, want) in [
            (
                json!({"a": {}}),
                "s.properties[a].type: Required value: must not be empty for specified object fields",
            ),
            (
                json!({"a": {"type": "string", "pattern": "("}}),
                "s.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error parsing regexp: missing closing ): `(`",
            ),
            (json!({"a": {"type": "string", "pattern": "^[^[]+$"}}), ""),
            (
                json!({"a": {"type": "integer", "default": "x"}}),
                "s.properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
            ),
            (
                json!({"a": {"type": "object", "default": {"b": 1}, "properties": {"b": {"type": "string"}}}}),
                "s.properties[a].default.b: Invalid value: \"integer\": b in body must be of type string: \"integer\"",
            ),
            (
                json!({"a": {"type": "string", "anyOf": [{"type": "string"}]}}),
                "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                json!({"a": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}),
                "",
            ),
            (
                json!({"a": {"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}]}}),
                "",
            ),
            (json!({"a": {"$ref": "#/x"}}), "s.properties[a].$ref: Forbidden: $ref is not supported"),
            (
                json!({"a": {"type": "object", "x-kubernetes-map-type": "x"}}),
                "s.properties[a].x-kubernetes-map-type: Unsupported value: \"x\": supported values: \"atomic\", \"granular\"",
            ),
            (
                json!({"a": {"type": "object", "x-kubernetes-preserve-unknown-fields": false}}),
                "s.properties[a].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
            ),
            (
                json!({"metadata": {"type": "object", "properties": {"name": {"type": "string", "pattern": "a"}}}}),
                "",
            ),
            (
                json!({"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}),
                "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
            ),
            (
                json!({"a": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}),
                "s.properties[a].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ),
            (
                json!({"a": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}}}),
                "s.properties[a].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
            ),
            (
                json!({"kind": {"type": "string", "default": "x"}}),
                "s.properties[kind].default: Forbidden: must not be set in top-level kind",
            ),
        ] {
            let mut errors = Errors::new();
            let schema = json!({"type": "object", "properties": properties});
            check(&mut errors, &schema, &Path::new("s"), false, false);
            let got: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(got.join(", "), want, "{schema}");
        }
    }
}
