//! Flow schemas and priority levels.

use serde_json::Value;

use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::{Errors, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "flowschemas",
        revalidates: true,
        first_status: r#"{}"#,
        defaults: schema_defaults,
        validate: validate_schema,
        validate_update: |new, _| validate_schema(new),
        validate_status_update: conditions,
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "prioritylevelconfigurations",
        revalidates: true,
        first_status: r#"{}"#,
        defaults: level_defaults,
        validate: validate_level,
        validate_update: |new, _| validate_level(new),
        validate_status_update: conditions,
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
];

fn schema_defaults(schema: &mut Value) {
    if schema.int("spec.matchingPrecedence") == 0 {
        schema.put("spec.matchingPrecedence", 1000);
    }
}

fn level_defaults(level: &mut Value) {
    for (kind, shares) in [("spec.exempt", 0), ("spec.limited", 30)] {
        if let Some(level) = level.find_mut(kind) {
            level.put_default("nominalConcurrencyShares", shares);
            level.put_default("lendablePercent", 0);
        }
    }
    if let Some(queuing) = level.find_mut("spec.limited.limitResponse.queuing") {
        for (name, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            if queuing.int(name) == 0 {
                queuing.put(name, value);
            }
        }
    }
}

fn conditions(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let (all, list) = (new.list("status.conditions"), status.child("conditions"));
    for (i, condition) in all.iter().enumerate() {
        let item = list.index(i);
        let (kind, path) = (condition.text("type"), item.child("type"));
        if all[..i].iter().any(|before| before.text("type") == kind) {
            errors.duplicate(&path, kind);
        }
        if kind.is_empty() {
            errors.required(&path, "");
        }
    }
    errors
}

fn validate_schema(schema: &Value) -> Errors {
    const MAX_PRECEDENCE: i64 = 10_000;
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = schema.at("spec");
    let precedence = spec.int("matchingPrecedence");
    let at = path.child("matchingPrecedence");
    if precedence <= 0 {
        errors.invalid(&at, precedence, "must be a positive value");
    }
    if precedence > MAX_PRECEDENCE {
        errors.invalid(&at, precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
    }
    if precedence == 1 && schema.text("metadata.name") != "exempt" {
        errors.invalid(&at, precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    if spec.has("distinguisherMethod") {
        let method = path.child("distinguisherMethod");
        let kind = spec.text("distinguisherMethod.type");
        const KINDS: [&str; 2] = ["ByNamespace", "ByUser"];
        if !KINDS.contains(&kind) {
            // The whole method is shown, in Go's spelling.
            errors.not_supported(&method.child("type"), serde_json::json!({"Type": kind}), &KINDS);
        }
    }
    let level = spec.text("priorityLevelConfiguration.name");
    let at = path.child("priorityLevelConfiguration");
    if level.is_empty() {
        errors.required(&at.child("name"), "must reference a priority level");
    } else {
        errors.invalid_each(&at.child("name"), level, check::dns1123_subdomain(level));
    }
    for (i, rule) in spec.list("rules").iter().enumerate() {
        let list = path.child("rules");
        policy_rule(&mut errors, rule, &list.index(i));
    }
    errors
}

/// What can be done to resources.
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn verbs(errors: &mut Errors, rule: &Value, path: &Path<'_>) {
    members(errors, rule, "verbs", "verbs must contain at least one value", "verbs", path);
    let verbs = rule.list("verbs");
    if !verbs.iter().filter_map(Value::as_str).all(|verb| verb == "*" || VERBS.contains(&verb)) {
        errors.not_supported(&path.child("verbs"), verbs.to_vec(), &VERBS);
    }
}

fn policy_rule(errors: &mut Errors, rule: &Value, path: &Path<'_>) {
    let subjects = rule.list("subjects");
    if subjects.is_empty() {
        errors.required(&path.child("subjects"), "subjects must contain at least one value");
    }
    for (i, one) in subjects.iter().enumerate() {
        let list = path.child("subjects");
        subject(errors, one, &list.index(i));
    }
    let (resources, others) = (rule.list("resourceRules"), rule.list("nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, one) in resources.iter().enumerate() {
        let list = path.child("resourceRules");
        let path = list.index(i);
        verbs(errors, one, &path);
        members(
            errors,
            one,
            "apiGroups",
            "resource rules must supply at least one api group",
            "api groups",
            &path,
        );
        members(
            errors,
            one,
            "resources",
            "resource rules must supply at least one resource",
            "resources",
            &path,
        );
        if one.list("namespaces").is_empty() {
            if !one.flag("clusterScope") {
                errors.required(
                    &path.child("namespaces"),
                    "resource rules that are not cluster scoped must supply at least one namespace",
                );
            }
        } else {
            members(errors, one, "namespaces", "", "namespaces", &path);
            let list = path.child("namespaces");
            let names = one.list("namespaces");
            for (j, name) in names.iter().enumerate().filter(|_| names.iter().all(|name| name != "*")) {
                let name = name.as_str().unwrap_or_default();
                for said in check::dns1123_label(name) {
                    let said = format!("each member of this list must be '*' or a DNS-1123 label; {said}");
                    errors.invalid(&list.index(j), name, said);
                }
            }
        }
    }
    for (i, one) in others.iter().enumerate() {
        let list = path.child("nonResourceRules");
        let path = list.index(i);
        verbs(errors, one, &path);
        members(
            errors,
            one,
            "nonResourceURLs",
            "nonResourceURLs must contain at least one value",
            "non-resource URLs",
            &path,
        );
        for (j, url) in one.list("nonResourceURLs").iter().enumerate() {
            let text = url.as_str().unwrap_or_default();
            let said = if text.is_empty() {
                "must not be empty"
            } else if text == "*" || text == "/" {
                continue;
            } else if !text.starts_with('/') {
                "must start with slash"
            } else if text.contains(' ') {
                "must not contain white-space"
            } else if text.contains("//") {
                "must not contain double slash"
            } else if text.strip_suffix("/*").unwrap_or(text).contains('*') {
                "wildcard can only do suffix matching"
            } else {
                continue;
            };
            errors.invalid(&path.child("nonResourceURLs").index(j), text, said);
        }
    }
}

/// A list that says something; `*` stands alone.
fn members(errors: &mut Errors, holder: &Value, name: &str, empty: &str, said: &str, path: &Path<'_>) {
    let list = holder.list(name);
    if list.is_empty() {
        errors.required(&path.child(name), empty);
    } else if list.len() > 1 && list.iter().any(|v| v == "*") {
        errors.invalid(
            &path.child(name),
            list.to_vec(),
            format!("if '*' is present, must not specify other {said}"),
        );
    }
}

fn subject(errors: &mut Errors, subject: &Value, path: &Path<'_>) {
    let kinds = [("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")];
    let kind = subject.text("kind");
    let Some((_, own)) = kinds.iter().find(|(k, _)| *k == kind) else {
        errors.not_supported(&path.child("kind"), kind, &["Group", "ServiceAccount", "User"]);
        return;
    };
    for (k, member) in kinds {
        if member != *own && subject.has(member) {
            errors.forbidden(
                &path.child(member),
                format!("{member} is forbidden when subject kind is not '{k}'"),
            );
        }
    }
    let path = path.child(own);
    if !subject.has(own) {
        errors.required(&path, format!("{own} is required when subject kind is '{kind}'"));
        return;
    }
    let name = subject.at(own).text("name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else if kind == "ServiceAccount" && name != "*" {
        errors.invalid_each(&path.child("name"), name, check::dns1123_subdomain(name));
    }
    if kind == "ServiceAccount" {
        match subject.at(own).text("namespace") {
            "" => errors.required(&path.child("namespace"), "must specify namespace for service account"),
            namespace => {
                errors.invalid_each(&path.child("namespace"), namespace, check::dns1123_label(namespace));
            }
        }
    }
}

fn validate_level(level: &Value) -> Errors {
    const MAX_QUEUES: i64 = 10_000_000;
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = level.at("spec");
    let kind = spec.text("type");
    if (kind == "Exempt") != (level.text("metadata.name") == "exempt") {
        errors.invalid(&path.child("type"), kind, "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    errors.one_of(&path.child("type"), kind, &["Exempt", "Limited"]);
    let limited = spec.at("limited");
    match kind {
        "Exempt" if !limited.is_null() => {
            errors.forbidden(&path.child("limited"), "must be nil if the type is not Limited");
        }
        "Limited" if spec.has("exempt") => {
            errors.forbidden(&path.child("exempt"), "must be nil if the type is Limited");
        }
        "Limited" if limited.is_null() => {
            errors.required(&path.child("limited"), "must not be empty when type is Limited");
        }
        _ => {}
    }
    for member in ["limited", "exempt"] {
        let (config, path) = (spec.at(member), path.child(member));
        let shares = config.int("nominalConcurrencyShares");
        if shares < 0 {
            errors.invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
        }
        let lendable = config.int("lendablePercent");
        if !(0..=100).contains(&lendable) {
            errors.invalid(&path.child("lendablePercent"), lendable, "must be between 0 and 100, inclusive");
        }
    }
    if limited.is_null() {
        return errors;
    }
    let path = path.child("limited");
    let borrowing = limited.int("borrowingLimitPercent");
    if borrowing < 0 {
        errors.invalid(
            &path.child("borrowingLimitPercent"),
            borrowing,
            "if specified, must be a non-negative integer",
        );
    }
    let path = path.child("limitResponse");
    let queuing = limited.at("limitResponse.queuing");
    match limited.text("limitResponse.type") {
        "Reject" if !queuing.is_null() => errors
            .forbidden(&path.child("queuing"), "must be nil if limited.limitResponse.type is not Limited"),
        "Queue" if queuing.is_null() => errors
            .required(&path.child("queuing"), "must not be empty if limited.limitResponse.type is Limited"),
        "Reject" | "Queue" => {}
        other => errors.not_supported(&path.child("type"), other, &["Queue", "Reject"]),
    }
    if queuing.is_null() || limited.text("limitResponse.type") != "Queue" {
        return errors;
    }
    let path = path.child("queuing");
    for name in ["queueLengthLimit", "queues", "handSize"] {
        if queuing.int(name) <= 0 {
            errors.invalid(&path.child(name), queuing.int(name), "must be positive");
        }
    }
    let (queues, hand) = (queuing.int("queues"), queuing.int("handSize"));
    if queues > MAX_QUEUES {
        errors.invalid(&path.child("queues"), queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand > queues {
        errors.invalid(
            &path.child("handSize"),
            hand,
            format!("should not be greater than queues ({queues})"),
        );
    }
    errors
}
