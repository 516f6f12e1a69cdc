//! Whether the definition of a custom resource makes sense.

use serde_json::Value;

use super::schema;
use crate::admissionregistration_v1::client_config;
use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

const SPEC: Path<'static> = Path::new("spec");
const STATUS: Path<'static> = Path::new("status");

const WARNING_MAX_BYTES: usize = 256;

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
    if name != required && old.is_null() {
        let metadata = Path::new("metadata");
        errors.invalid(&metadata.child("name"), name, "must be spec.names.plural+\".\"+spec.group");
    }
    spec_errors(&mut errors, spec, old.at("spec"));
    stored(&mut errors, definition);
    approval(&mut errors, definition, old);
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
    let shared = Shared::of(versions);
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
        if version.has("deprecationWarning") {
            let warning = version.text("deprecationWarning");
            let why = [
                (!version.flag("deprecated"), "can only be set for deprecated versions"),
                (warning.len() > WARNING_MAX_BYTES, "must be <= 256 characters long"),
                (warning.is_empty(), "must not be an empty string"),
            ];
            for (_, why) in why.into_iter().filter(|(wrong, _)| *wrong) {
                errors.invalid(&path.child("deprecationWarning"), warning, why);
            }
        }
        if version.at("schema.openAPIV3Schema").is_null() {
            errors.required(&path.child("schema").child("openAPIV3Schema"), "");
        }
        if !shared.schema {
            schema(errors, version, &path.child("schema"), version.has("subresources.status"), old);
        }
        if !shared.subresources {
            subresources(errors, version.at("subresources"), &path.child("subresources"));
        }
        if !shared.columns {
            columns(errors, version.list(COLUMNS), &path.child(COLUMNS));
        }
        if !shared.selectable {
            selectable_fields(errors, version, &path.child(SELECTABLE), old);
        }
    }
    if !unique {
        errors.invalid(&list, versions.to_vec(), "must contain unique version names");
    }
    if versions.iter().filter(|v| v.flag("storage")).count() != 1 {
        let given = spec.at("versions").clone();
        errors.invalid(&list, given, "must have exactly one version marked as storage version");
    }
    if let Some(first) = versions.first() {
        // Upstream's field of old times, which stands for the first version.
        let name = first.text("name");
        let messages = check::dns1035_label(name);
        if !name.is_empty() && !messages.is_empty() {
            errors.invalid(&SPEC.child("version"), name, messages.join(","));
        }
    }
    let path = SPEC.child("names");
    for name in ["plural", "singular", "kind", "listKind"] {
        if spec.at("names").text(name).is_empty() {
            errors.required(&path.child(name), "");
        }
    }
    self::names(errors, spec.at("names"), &path);
    if let Some(first) = versions.first() {
        if shared.schema {
            let with_status = versions.iter().any(|v| v.has("subresources.status"));
            schema(errors, first, &SPEC.child("validation"), with_status, old);
        }
        if shared.subresources {
            subresources(errors, first.at("subresources"), &SPEC.child("subresources"));
        }
        if shared.columns {
            columns(errors, first.list(COLUMNS), &SPEC.child(COLUMNS));
        }
        if shared.selectable {
            selectable_fields(errors, first, &SPEC.child(SELECTABLE), old);
        }
    }
    conversion(errors, spec.at("conversion"));
}

/// What all versions have in common. Upstream knows that as a property of the whole, where one version has everything in
/// common with itself, and blames it there.
struct Shared {
    schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Shared {
    fn of(versions: &[Value]) -> Shared {
        let same = |name: &str| versions.iter().all(|v| v.at(name) == versions[0].at(name));
        Shared {
            schema: same("schema"),
            subresources: same("subresources"),
            columns: same(COLUMNS),
            selectable: same(SELECTABLE),
        }
    }
}

const COLUMNS: &str = "additionalPrinterColumns";
const SELECTABLE: &str = "selectableFields";

/// The same version as it was before, or `Null`.
fn before<'a>(version: &Value, old: &'a Value) -> &'a Value {
    let name = version.text("name");
    old.list("versions").iter().find(|v| v.text("name") == name).unwrap_or(&Value::Null)
}

fn schema(errors: &mut Errors, version: &Value, path: &Path<'_>, with_status: bool, old: &Value) {
    let given = version.at("schema.openAPIV3Schema");
    if !given.is_null() {
        let stored = before(version, old).at("schema.openAPIV3Schema") == given;
        schema::check(errors, given, &path.child("openAPIV3Schema"), with_status, stored);
    }
}

pub fn status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    names(&mut errors, new.at("status.acceptedNames"), &status.child("acceptedNames"));
    errors
}

fn names(errors: &mut Errors, names: &Value, path: &Path<'_>) {
    for (name, kind) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let value = names.text(name);
        if value.is_empty() {
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
    for (i, short) in names.list("shortNames").iter().enumerate() {
        let short = short.as_str().unwrap_or_default();
        let messages = check::dns1035_label(short);
        if !messages.is_empty() {
            errors.invalid(&path.child("shortNames").index(i), short, messages.join(","));
        }
    }
    if !names.text("kind").is_empty() && names.text("kind") == names.text("listKind") {
        errors.invalid(
            &path.child("listKind"),
            names.text("listKind"),
            "kind and listKind may not be the same",
        );
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
            return;
        }
        for (i, version) in versions.iter().enumerate() {
            let text = version.as_str().unwrap_or_default();
            if versions[..i].contains(version) {
                errors.invalid(&path.index(i), text, "duplicate version");
            } else {
                errors.invalid_each(&path.index(i), text, check::dns1035_label(text));
            }
        }
        if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            errors.invalid(&path, versions.to_vec(), "must include at least one of v1, v1beta1");
        }
    } else {
        let why = "should not be set when strategy is not set to Webhook";
        if !conversion.at("webhook.clientConfig").is_null() {
            errors.forbidden(&path.child("webhookClientConfig"), why);
        }
        if !versions.is_empty() {
            errors.forbidden(&path.child("conversionReviewVersions"), why);
        }
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
        match column.text("jsonPath") {
            "" => errors.required(&path.child("JSONPath"), ""),
            given if !given.starts_with('.') => {
                errors.invalid(&path.child("JSONPath"), given, SIMPLE_PATH);
            }
            _ => {}
        }
    }
}

/// How many fields objects of one version may be selected by.
const SELECTABLE_FIELDS_MAX: usize = 8;

fn selectable_fields(errors: &mut Errors, version: &Value, list: &Path<'_>, old: &Value) {
    let (fields, schema) = (version.list(SELECTABLE), version.at("schema.openAPIV3Schema"));
    if schema.is_null() {
        return;
    }
    let limited = before(version, old).list(SELECTABLE).len() <= SELECTABLE_FIELDS_MAX;
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

const SIMPLE_PATH: &str = "must be a simple json path starting with .";

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
        } else if !value.starts_with('.') {
            errors.invalid(&path.child(name), value, SIMPLE_PATH);
        } else if !value.starts_with(prefix) {
            errors.invalid(
                &path.child(name),
                value,
                format!("should be a json path under {}", prefix.trim_end_matches('.')),
            );
        }
    }
    let value = scale.text("labelSelectorPath");
    if !value.is_empty() && !value.starts_with('.') {
        errors.invalid(&path.child("labelSelectorPath"), value, SIMPLE_PATH);
    } else if !value.is_empty() && !value.starts_with(".spec.") && !value.starts_with(".status.") {
        errors.invalid(
            &path.child("labelSelectorPath"),
            value,
            "should be a json path under either .spec or .status",
        );
    }
}

const APPROVED: &str = "api-approved.kubernetes.io";

/// Whether the community has agreed to a definition in one of its own groups.
#[derive(PartialEq)]
enum Approval {
    Missing,
    Invalid,
    /// Approved, or said not to be.
    Told,
}

impl Approval {
    fn of(definition: &Value) -> Approval {
        let said = definition.at("metadata.annotations").get_or_null(APPROVED).as_str().unwrap_or_default();
        let is_url = said.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty() && !rest.split('/').next().unwrap_or_default().is_empty()
        });
        match said {
            "" => Approval::Missing,
            said if said.starts_with("unapproved") || is_url => Approval::Told,
            _ => Approval::Invalid,
        }
    }
}

fn approval(errors: &mut Errors, definition: &Value, old: &Value) {
    let group = definition.text("spec.group");
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|owned| {
        group.strip_suffix(owned).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    });
    let approval = Approval::of(definition);
    if !protected || !old.is_null() && Approval::of(old) == approval {
        return;
    }
    let metadata = Path::new("metadata");
    let annotations = metadata.child("annotations");
    let path = annotations.key(APPROVED);
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match approval {
        Approval::Told => {}
        Approval::Missing => errors.required(
            &path,
            format!("protected groups must have approval annotation {APPROVED:?}, {see}"),
        ),
        Approval::Invalid => errors.invalid(
            &path,
            definition.at("metadata.annotations").get_or_null(APPROVED).clone(),
            format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting \
                 with \"unapproved\", {see}"
            ),
        ),
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
        errors.immutable_text(&SPEC.child("scope"), spec.at("scope"), was.at("scope"));
        let names = SPEC.child("names");
        errors.immutable_text(&names.child("kind"), spec.at("names.kind"), was.at("names.kind"));
    }
    errors.immutable_text(&SPEC.child("group"), spec.at("group"), was.at("group"));
    let plural = SPEC.child("names");
    errors.immutable_text(&plural.child("plural"), spec.at("names.plural"), was.at("names.plural"));
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
                    "spec.validation.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
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
                    "spec.validation.openAPIV3Schema.properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
                ],
            ),
            (
                |c| c["spec"]["versions"][0]["schema"] = Value::Null,
                &["spec.versions[0].schema.openAPIV3Schema: Required value"],
            ),
            (
                |c| {
                    let mut second = c["spec"]["versions"][0].clone();
                    (second["name"], second["storage"]) = (json!("v2"), json!(false));
                    second["schema"]["openAPIV3Schema"]["properties"]["a"] = json!({});
                    c["spec"]["versions"].as_array_mut().unwrap().push(second);
                },
                &[
                    "spec.versions[1].schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields",
                ],
            ),
            (
                |c| {
                    c["metadata"]["name"] = json!("foos.x.k8s.io");
                    c["spec"]["group"] = json!("x.k8s.io");
                },
                &[
                    "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
                ],
            ),
            (
                |c| {
                    c["metadata"] = json!({"name": "foos.x.k8s.io", "annotations": {"api-approved.kubernetes.io": "https://a/b"}});
                    c["spec"]["group"] = json!("x.k8s.io");
                },
                &[],
            ),
            (
                |c| {
                    c["spec"]["versions"][0]["additionalPrinterColumns"] =
                        json!([{"name": "a", "type": "x", "jsonPath": "x"}])
                },
                &[
                    "spec.additionalPrinterColumns[0].type: Invalid value: \"x\": must be one of boolean,date,integer,number,string",
                    "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"x\": must be a simple json path starting with .",
                ],
            ),
            (
                |c| c["spec"]["versions"][0]["subresources"] = json!({"scale": {}}),
                &[
                    "spec.subresources.scale.specReplicasPath: Required value",
                    "spec.subresources.scale.statusReplicasPath: Required value",
                ],
            ),
            (
                |c| {
                    c["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
                        json!([{"rule": "self.spec.x == 1"}]);
                },
                &[
                    "spec.validation.openAPIV3Schema.x-kubernetes-validations[0].rule: Invalid value: {\"rule\":\"self.spec.x == 1\"}: compilation failed: ERROR: <input>:1:10: undefined field 'x'\n | self.spec.x == 1\n | .........^",
                ],
            ),
            (
                |c| {
                    c["spec"]["versions"][0]["selectableFields"] =
                        json!([{"jsonPath": ".spec"}, {"jsonPath": ".none"}, {"jsonPath": ".spec"}]);
                },
                &[
                    "spec.selectableFields[0].jsonPath: Invalid value: \".spec\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                    "spec.selectableFields[1].jsonPath: Invalid value: \".none\": is an invalid path: does not refer to a valid field",
                    "spec.selectableFields[2].jsonPath: Invalid value: \".spec\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                    "spec.selectableFields[2].jsonPath: Duplicate value: \".spec\"",
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
