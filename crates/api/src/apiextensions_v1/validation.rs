//! Whether the definition of a custom resource makes sense.

use apimachinery::field_path::Path as FieldPath;
use serde_json::Value;

use crate::admissionregistration_v1::client_config;
use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

const SPEC: Path<'static> = Path::new("spec");
const STATUS: Path<'static> = Path::new("status");

pub fn definition(definition: &Value) -> Errors {
    definition_over(definition, &Value::Null)
}

/// `old` is what the definition was before, or `Null`.
fn definition_over(definition: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = definition.at("spec");
    let (name, group, plural) =
        (definition.text("metadata.name"), spec.text("group"), spec.text("names.plural"));
    let required = format!("{plural}.{group}");
    if name != required {
        let metadata = Path::new("metadata");
        errors.invalid(&metadata.child("name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
    spec_errors(&mut errors, spec, old.at("spec"));
    stored(&mut errors, definition);
    errors
}

fn spec_errors(errors: &mut Errors, spec: &Value, old: &Value) {
    let group = spec.text("group");
    let path = SPEC.child("group");
    if group.is_empty() {
        errors.required(&path, "");
    } else {
        let messages = check::dns1123_subdomain(group);
        if !messages.is_empty() {
            errors.invalid(&path, group, messages.join(","));
        } else if !group.contains('.') {
            errors.invalid(&path, group, "should be a domain with at least one dot");
        }
    }
    match spec.text("scope") {
        "" => errors.required(&SPEC.child("scope"), ""),
        scope => errors.one_of(&SPEC.child("scope"), scope, &["Cluster", "Namespaced"]),
    }
    if spec.flag("preserveUnknownFields") {
        errors.invalid(
            &SPEC.child("preserveUnknownFields"),
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    let versions = spec.list("versions");
    let list = SPEC.child("versions");
    let mut names: Vec<&str> = vec![];
    let mut unique = true;
    for (i, version) in versions.iter().enumerate() {
        let path = list.index(i);
        let name = version.text("name");
        unique &= !names.contains(&name);
        names.push(name);
        let messages = check::dns1035_label(name);
        if !messages.is_empty() {
            errors.invalid(&path.child("name"), name, messages.join(","));
        }
        if !version.flag("deprecated") && version.has("deprecationWarning") {
            errors.invalid(
                &path.child("deprecationWarning"),
                version.text("deprecationWarning"),
                "can only be set for deprecated versions",
            );
        }
        let schema_path = path.child("schema");
        let path_schema = schema_path.child("openAPIV3Schema");
        let sound = errors.len();
        match version.at("schema.openAPIV3Schema") {
            Value::Null => errors.required(&path_schema, ""),
            schema => {
                if schema.text("type") != "object" {
                    if schema.text("type").is_empty() {
                        errors.required(&path_schema.child("type"), "must not be empty at the root");
                    } else {
                        errors.invalid(
                            &path_schema.child("type"),
                            schema.text("type"),
                            "must be object at the root",
                        );
                    }
                }
                structural(errors, schema, &path_schema, 0);
                let before = old.list("versions").iter().find(|v| v.text("name") == name);
                let stored = before.is_some_and(|v| v.at("schema.openAPIV3Schema") == schema);
                if errors.len() == sound && !stored {
                    let path = FieldPath::new(&path_schema.to_string());
                    errors.extend(expression::rules::check(schema, &path));
                }
                let limited =
                    before.is_none_or(|v| v.list("selectableFields").len() <= SELECTABLE_FIELDS_MAX);
                let fields = version.list("selectableFields");
                selectable_fields(errors, fields, schema, &path.child("selectableFields"), limited);
            }
        }
        columns(errors, version.list("additionalPrinterColumns"), &path.child("additionalPrinterColumns"));
        subresources(errors, version.at("subresources"), &path.child("subresources"));
    }
    if !unique {
        errors.invalid(&list, versions.to_vec(), "must contain unique version names");
    }
    if versions.iter().filter(|v| v.flag("storage")).count() != 1 {
        errors.invalid(&list, or_null(versions), "must have exactly one version marked as storage version");
    }
    self::names(errors, spec.at("names"));
    conversion(errors, spec.at("conversion"));
}

fn names(errors: &mut Errors, names: &Value) {
    let path = SPEC.child("names");
    for (name, kind) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let value = names.text(name);
        if value.is_empty() {
            errors.required(&path.child(name), "");
            continue;
        }
        let text = if kind { value.to_lowercase() } else { value.to_owned() };
        let messages = check::dns1035_label(&text);
        if !messages.is_empty() {
            let said = messages.join(",");
            let said =
                if kind { format!("may have mixed case, but should otherwise match: {said}") } else { said };
            errors.invalid(&path.child(name), value, said);
        }
    }
    if !names.text("kind").is_empty() && names.text("kind") == names.text("listKind") {
        errors.invalid(
            &path.child("listKind"),
            names.text("listKind"),
            "kind and listKind may not be the same",
        );
    }
    for (i, short) in names.list("shortNames").iter().enumerate() {
        let short = short.as_str().unwrap_or_default();
        let messages = check::dns1035_label(short);
        if !messages.is_empty() {
            errors.invalid(&path.child("shortNames").index(i), short, messages.join(","));
        }
    }
    for (i, category) in names.list("categories").iter().enumerate() {
        let category = category.as_str().unwrap_or_default();
        let messages = check::dns1035_label(category);
        if !messages.is_empty() {
            errors.invalid(&path.child("categories").index(i), category, messages.join(","));
        }
    }
}

fn conversion(errors: &mut Errors, conversion: &Value) {
    if conversion.is_null() {
        return;
    }
    let path = SPEC.child("conversion");
    match conversion.text("strategy") {
        "" => errors.required(&path.child("strategy"), ""),
        strategy => errors.one_of(&path.child("strategy"), strategy, &["None", "Webhook"]),
    }
    let versions = conversion.list("webhook.conversionReviewVersions");
    if conversion.text("strategy") == "Webhook" {
        let config_path = path.child("webhookClientConfig");
        match conversion.at("webhook.clientConfig") {
            Value::Null => errors.required(&config_path, "required when strategy is set to Webhook"),
            config => client_config(errors, config, &config_path),
        }
        let path = path.child("conversionReviewVersions");
        if versions.is_empty() {
            errors.required(&path, "");
        } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            errors.invalid(&path, versions.to_vec(), "must include at least one of v1, v1beta1");
        }
    } else if conversion.has("webhook") {
        errors.forbidden(
            &path.child("webhookClientConfig"),
            "should not be set when strategy is not set to Webhook",
        );
    }
}

fn columns(errors: &mut Errors, columns: &[Value], path: &Path<'_>) {
    for (i, column) in columns.iter().enumerate() {
        let path = path.index(i);
        if column.text("name").is_empty() {
            errors.required(&path.child("name"), "");
        }
        match column.text("type") {
            "" => errors.required(&path.child("type"), "must be one of boolean,date,integer,number,string"),
            kind if !["boolean", "date", "integer", "number", "string"].contains(&kind) => {
                errors.invalid(&path.child("type"), kind, "must be one of boolean,date,integer,number,string")
            }
            _ => {}
        }
        let format = column.text("format");
        if !format.is_empty()
            && !["int32", "int64", "float", "double", "byte", "date", "date-time", "password"]
                .contains(&format)
        {
            errors.invalid(
                &path.child("format"),
                format,
                "must be one of byte,date,date-time,double,float,int32,int64,password",
            );
        }
        if column.text("jsonPath").is_empty() {
            errors.required(&path.child("JSONPath"), "");
        }
    }
}

/// How many fields objects of one version may be selected by.
const SELECTABLE_FIELDS_MAX: usize = 8;

fn selectable_fields(errors: &mut Errors, fields: &[Value], schema: &Value, list: &Path<'_>, limited: bool) {
    let mut seen: Vec<String> = vec![];
    for (i, field) in fields.iter().enumerate() {
        let path = list.index(i);
        let path = path.child("jsonPath");
        let given = field.text("jsonPath");
        if given.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let (found, leaf) = match expression::rules::resolve_field_path(given, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(&path, given, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if found == "metadata" || found.starts_with("metadata.") {
            errors.invalid(&path, given, "must not point to fields in metadata");
        }
        if !["string", "boolean", "integer"].contains(&leaf.text("type")) {
            errors.invalid(
                &path,
                given,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            );
        }
        if seen.contains(&found) {
            errors.duplicate(&path, given);
        } else {
            seen.push(found);
        }
    }
    if seen.len() > SELECTABLE_FIELDS_MAX && limited {
        errors.too_many(list, seen.len(), SELECTABLE_FIELDS_MAX);
    }
}

fn subresources(errors: &mut Errors, subresources: &Value, path: &Path<'_>) {
    let scale = subresources.at("scale");
    if scale.is_null() {
        return;
    }
    let path = path.child("scale");
    for (name, prefix) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let value = scale.text(name);
        if value.is_empty() {
            errors.required(&path.child(name), "");
        } else if !value.starts_with(prefix) {
            errors.invalid(
                &path.child(name),
                value,
                format!("should be a json path under {}", prefix.trim_end_matches('.')),
            );
        }
    }
    let value = scale.text("labelSelectorPath");
    if !value.is_empty() && !value.starts_with(".spec.") && !value.starts_with(".status.") {
        errors.invalid(
            &path.child("labelSelectorPath"),
            value,
            "should be a json path under either .spec or .status",
        );
    }
}

/// Every field says what it is: that makes pruning, defaulting and merging well defined.
fn structural(errors: &mut Errors, schema: &Value, path: &Path<'_>, depth: usize) {
    const DEPTH_MAX: usize = 100;
    if depth > DEPTH_MAX {
        errors.invalid(path, Value::Null, "schema is nested too deep");
        return;
    }
    if schema.has("$ref") {
        errors.forbidden(&path.child("$ref"), "$ref is not supported");
    }
    if schema.flag("uniqueItems") {
        errors.forbidden(
            &path.child("uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        );
    }
    let has_properties = schema.entries("properties").next().is_some();
    if has_properties && schema.has("additionalProperties") && schema.at("additionalProperties") != true {
        errors.forbidden(
            &path.child("additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        );
    }
    let kind = schema.text("type");
    if !kind.is_empty() {
        errors.one_of(
            &path.child("type"),
            kind,
            &["array", "boolean", "integer", "number", "object", "string"],
        );
    }
    if kind == "array" && !schema.has("items") {
        errors.required(&path.child("items"), "must be specified");
    }
    let list_type = schema.text("x-kubernetes-list-type");
    if !list_type.is_empty() {
        errors.one_of(&path.child("x-kubernetes-list-type"), list_type, &["atomic", "map", "set"]);
    }
    if list_type == "map" && schema.list("x-kubernetes-list-map-keys").is_empty() {
        errors.required(
            &path.child("x-kubernetes-list-map-keys"),
            "must not be empty if x-kubernetes-list-type is map",
        );
    }
    let untyped = |schema: &Value| {
        schema.text("type").is_empty()
            && !schema.flag("x-kubernetes-int-or-string")
            && !schema.flag("x-kubernetes-preserve-unknown-fields")
    };
    let properties = path.child("properties");
    for (name, inner) in schema.entries("properties") {
        let path = properties.key(name);
        if untyped(inner) {
            errors.required(&path.child("type"), "must not be empty for specified object fields");
        }
        structural(errors, inner, &path, depth + 1);
    }
    let items = schema.at("items");
    if items.is_object() {
        let path = path.child("items");
        if untyped(items) {
            errors.required(&path.child("type"), "must not be empty for specified array items");
        }
        structural(errors, items, &path, depth + 1);
    }
    let additional = schema.at("additionalProperties");
    if additional.is_object() {
        let path = path.child("additionalProperties");
        if untyped(additional) {
            errors.required(&path.child("type"), "must not be empty for specified object fields");
        }
        structural(errors, additional, &path, depth + 1);
    }
}

/// A list as Go shows it.
fn or_null(list: &[Value]) -> Value {
    if list.is_empty() { Value::Null } else { list.to_vec().into() }
}

fn stored(errors: &mut Errors, definition: &Value) {
    let stored = definition.list("status.storedVersions");
    let path = STATUS.child("storedVersions");
    if stored.is_empty() {
        errors.invalid(&path, or_null(stored), "must have at least one stored version");
        return;
    }
    let versions = definition.list("spec.versions");
    for version in versions.iter().filter(|v| v.flag("storage")) {
        if !stored.contains(version.at("name")) {
            errors.invalid(
                &path,
                stored.to_vec(),
                format!("must have the storage version {}", version.text("name")),
            );
        }
    }
    for (i, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v.at("name") == name) {
            let name = name.as_str().unwrap_or_default();
            errors.invalid(
                &path.index(i),
                name,
                format!(
                    "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
                ),
            );
        }
    }
}

pub fn definition_update(new: &Value, old: &Value) -> Errors {
    let mut errors = definition_over(new, old);
    let (spec, was) = (new.at("spec"), old.at("spec"));
    let established = old
        .list("status.conditions")
        .iter()
        .any(|c| c.text("type") == "Established" && c.text("status") == "True");
    if established {
        errors.immutable(&SPEC.child("scope"), spec.at("scope"), was.at("scope"));
        errors.immutable(&SPEC.child("names").child("kind"), spec.at("names.kind"), was.at("names.kind"));
    }
    errors.immutable(&SPEC.child("group"), spec.at("group"), was.at("group"));
    errors.immutable(&SPEC.child("names").child("plural"), spec.at("names.plural"), was.at("names.plural"));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::strategy;

    fn made(change: impl FnOnce(&mut Value)) -> Value {
        let mut crd = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}}}]}});
        change(&mut crd);
        let strategy = strategy("apiextensions.k8s.io", "customresourcedefinitions");
        strategy.defaults(&mut crd);
        strategy.prepare_for_create(&mut crd);
        crd
    }

    #[test]
    fn what_is_wrong_with_definitions() {
        type Change = fn(&mut Value);
        let cases: Vec<(Change, &[&str])> = vec![
            (|_| {}, &[]),
            (
                |c| c["metadata"]["name"] = json!("x"),
                &["metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"],
            ),
            (
                |c| c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["a"] = json!({}),
                &[
                    "spec.versions[0].schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
                ],
            ),
            (
                |c| {
                    c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["a"] = json!({
                        "type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": true});
                },
                &[],
            ),
            (
                |c| {
                    c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["a"] = json!({
                        "type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": false});
                },
                &[
                    "spec.versions[0].schema.openAPIV3Schema.properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
                ],
            ),
            (
                |c| c["spec"]["versions"][0]["schema"] = Value::Null,
                &["spec.versions[0].schema.openAPIV3Schema: Required value"],
            ),
            (
                |c| {
                    c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
                        json!([{"rule": "self.spec.x == 1"}]);
                },
                &[
                    "spec.versions[0].schema.openAPIV3Schema.x-kubernetes-validations[0].rule: Invalid value: {\"rule\":\"self.spec.x == 1\"}: compilation failed: ERROR: <input>:1:10: undefined field 'x'\n | self.spec.x == 1\n | .........^",
                ],
            ),
            (
                |c| {
                    c["spec"]["versions"][0]["selectableFields"] =
                        json!([{"jsonPath": ".spec"}, {"jsonPath": ".none"}, {"jsonPath": ".spec"}]);
                },
                &[
                    "spec.versions[0].selectableFields[0].jsonPath: Invalid value: \".spec\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                    "spec.versions[0].selectableFields[1].jsonPath: Invalid value: \".none\": is an invalid path: does not refer to a valid field",
                    "spec.versions[0].selectableFields[2].jsonPath: Invalid value: \".spec\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                    "spec.versions[0].selectableFields[2].jsonPath: Duplicate value: \".spec\"",
                ],
            ),
        ];
        for (change, want) in cases {
            let crd = made(change);
            let got: Vec<String> = definition(&crd).iter().map(ToString::to_string).collect();
            assert_eq!(got, want, "{crd}");
        }
        let status = json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": null, "storedVersions": ["v1"]});
        assert_eq!(made(|_| {})["status"], status);
    }
}
