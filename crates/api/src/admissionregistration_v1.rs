//! Webhook configurations and admission policies.

use serde_json::{Value, json};

use crate::check::{self, Report};
use crate::meta;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, Rules, SPEC_AND_METADATA, STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "admissionregistration.k8s.io";

const BASE: Rules = Rules { group: GROUP, namespaced: false, ..DEFAULT };

pub static RULES: &[Rules] = &[
    Rules {
        resource: "mutatingwebhookconfigurations",
        unconditional_update: false,
        validate: validate_webhooks,
        validate_update: |new, _| validate_webhooks(new),
        defaults: |c| webhooks(c, true),
        generation: &["webhooks"],
        ..BASE
    },
    Rules {
        resource: "validatingwebhookconfigurations",
        unconditional_update: false,
        validate: validate_webhooks,
        validate_update: |new, _| validate_webhooks(new),
        defaults: |c| webhooks(c, false),
        generation: &["webhooks"],
        ..BASE
    },
    Rules {
        resource: "validatingadmissionpolicies",
        first_status: "{}",
        defaults: policy,
        validate: validate_policy,
        validate_status_update: |new, _| {
            let mut errors = Errors::new();
            let status = Path::new("status");
            meta::conditions(&mut errors, new.list("status.conditions"), &status.child("conditions"));
            errors
        },
        validate_update: |new, _| validate_policy(new),
        generation: &["spec"],
        unconditional_update: false,
        status: true,
        status_keeps_metadata: true,
        reset: STATUS,
        reset_by_status: SPEC_AND_METADATA,
        ..BASE
    },
    Rules {
        resource: "validatingadmissionpolicybindings",
        defaults: binding,
        validate: validate_binding,
        validate_update: |new, _| validate_binding(new),
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicies",
        defaults: policy,
        validate: validate_policy,
        validate_update: |new, _| validate_policy(new),
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicybindings",
        defaults: binding,
        validate: validate_binding,
        validate_update: |new, _| validate_binding(new),
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
];

fn webhooks(configuration: &mut Value, mutating: bool) {
    for webhook in configuration.list_mut("webhooks") {
        webhook.put_default("failurePolicy", "Fail");
        matching(webhook);
        webhook.put_default("timeoutSeconds", 10);
        if mutating {
            webhook.put_default("reinvocationPolicy", "Never");
        }
        for rule in webhook.list_mut("rules") {
            rule.put_default("scope", "*");
        }
        if let Some(service) = webhook.find_mut("clientConfig.service") {
            service.put_default("port", 443);
        }
    }
}

fn matching(holder: &mut Value) {
    holder.put_default("matchPolicy", "Equivalent");
    holder.put_default("namespaceSelector", json!({}));
    holder.put_default("objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in holder.list_mut(list) {
            rule.put_default("scope", "*");
        }
    }
}

fn policy(policy: &mut Value) {
    policy.put_default("spec.failurePolicy", "Fail");
    if let Some(constraints) = policy.find_mut("spec.matchConstraints") {
        matching(constraints);
    }
}

fn binding(binding: &mut Value) {
    if let Some(resources) = binding.find_mut("spec.matchResources") {
        matching(resources);
    }
}

fn validate_webhooks(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    let list = Path::new("webhooks");
    let mut names: Vec<&str> = vec![];
    for (i, webhook) in configuration.list("webhooks").iter().enumerate() {
        let path = list.index(i);
        let name = webhook.text("name");
        check::fully_qualified_name(&mut errors, &path.child("name"), name, 3);
        if !name.is_empty() && names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        }
        names.push(name);
        for (j, rule) in webhook.list("rules").iter().enumerate() {
            let rules = path.child("rules");
            self::rule(&mut errors, rule, &rules.index(j));
        }
        for (member, supported) in [
            ("failurePolicy", ["Fail", "Ignore"]),
            ("matchPolicy", ["Equivalent", "Exact"]),
            ("reinvocationPolicy", ["IfNeeded", "Never"]),
        ] {
            if webhook.has(member) {
                errors.one_of(&path.child(member), webhook.text(member), &supported);
            }
        }
        match webhook.text("sideEffects") {
            "" => errors.required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun"),
            effects => errors.one_of(&path.child("sideEffects"), effects, &["None", "NoneOnDryRun"]),
        }
        if let Some(seconds) = webhook.maybe_int("timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
            errors.invalid(
                &path.child("timeoutSeconds"),
                seconds,
                "the timeout value must be between 1 and 30 seconds",
            );
        }
        for member in ["namespaceSelector", "objectSelector"] {
            meta::label_selector(&mut errors, webhook.at(member), &path.child(member));
        }
        client_config(&mut errors, webhook.at("clientConfig"), &path.child("clientConfig"));
        let versions = webhook.list("admissionReviewVersions");
        let path = path.child("admissionReviewVersions");
        if versions.is_empty() {
            errors.required(&path, "must specify one of v1, v1beta1");
        } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            errors.invalid(&path, versions.to_vec(), "must include at least one of v1, v1beta1");
        }
        for (j, version) in versions.iter().enumerate() {
            let text = version.as_str().unwrap_or_default();
            if versions[..j].contains(version) {
                errors.invalid(&path.index(j), text, "duplicate version");
            } else {
                errors.invalid_each(&path.index(j), text, check::dns1035_label(text));
            }
        }
    }
    match_conditions(&mut errors, configuration);
    errors
}

fn match_conditions(errors: &mut Errors, configuration: &Value) {
    const MAX: usize = 64;
    for (i, webhook) in configuration.list("webhooks").iter().enumerate() {
        let list = Path::new("webhooks");
        let webhook_path = list.index(i);
        conditions(errors, webhook.list("matchConditions"), MAX, &webhook_path.child("matchConditions"));
    }
}

fn conditions(errors: &mut Errors, conditions: &[Value], max: usize, path: &Path<'_>) {
    if conditions.len() > max {
        errors.too_many(path, conditions.len(), max);
    }
    let mut names: Vec<&str> = vec![];
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let name = condition.text("name");
        if condition.text("expression").trim().is_empty() {
            errors.required(&path.child("expression"), "");
        }
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            errors.invalid_each(&path.child("name"), name, check::qualified_name(name));
            if names.contains(&name) {
                errors.duplicate(&path.child("name"), name);
            }
            names.push(name);
        }
    }
}

/// How a webhook is reached: a URL, or a service.
pub fn client_config(errors: &mut Errors, config: &Value, path: &Path<'_>) {
    const FORM: &str = "; desired format: https://host[/path]";
    match (config.has("url"), config.has("service")) {
        (true, false) => {
            let (text, path) = (config.text("url"), path.child("url"));
            let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
            if scheme != "https" {
                errors.invalid(&path, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
            }
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            if host.is_empty() || scheme.is_empty() {
                errors.invalid(&path, "", format!("host must be specified{FORM}"));
            }
            if let Some((user, _)) = host.rsplit_once('@') {
                errors.invalid(&path, user, "user information is not permitted in the URL");
            }
            if let Some((_, fragment)) = rest.split_once('#') {
                errors.invalid(&path, fragment, "fragments are not permitted in the URL");
            } else if let Some((_, query)) = rest.split_once('?') {
                errors.invalid(&path, query, "query parameters are not permitted in the URL");
            }
        }
        (false, true) => {
            let (service, path) = (config.at("service"), path.child("service"));
            for name in ["name", "namespace"] {
                if service.text(name).is_empty() {
                    errors.required(&path.child(name), "");
                }
            }
            if let Some(message) = check::port_number(service.maybe_int("port").unwrap_or(443)) {
                errors.invalid(
                    &path.child("port"),
                    service.int("port"),
                    format!("port is not valid: {message}"),
                );
            }
            let url = service.text("path");
            let path = path.child("path");
            if !url.is_empty() && url != "/" {
                if !url.starts_with('/') {
                    errors.invalid(&path, url, "must start with a '/'");
                }
                // What comes after the first character, be that a slash or not.
                let rest = url.char_indices().nth(1).map_or("", |(i, _)| &url[i..]);
                let rest = rest.strip_suffix('/').unwrap_or(rest);
                for (i, step) in rest.split('/').enumerate() {
                    if step.is_empty() {
                        errors.invalid(&path, url, format!("segment[{i}] may not be empty"));
                        continue;
                    }
                    for why in check::dns1123_subdomain(step) {
                        errors.invalid(&path, url, format!("segment[{i}]: {why}"));
                    }
                }
            }
        }
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

/// Operations, groups, versions and resources that a webhook or policy is about.
fn rule(errors: &mut Errors, rule: &Value, path: &Path<'_>) {
    let operations = rule.list("operations");
    let at = path.child("operations");
    if operations.is_empty() {
        errors.required(&at, "");
    }
    let all = |list: &[Value]| list.len() > 1 && list.iter().any(|v| v == "*");
    if all(operations) {
        errors.invalid(&at, operations.to_vec(), "if '*' is present, must not specify other operations");
    }
    for (i, operation) in operations.iter().enumerate() {
        errors.one_of(
            &at.index(i),
            operation.as_str().unwrap_or_default(),
            &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"],
        );
    }
    for (member, said) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let list = rule.list(member);
        let at = path.child(member);
        if list.is_empty() {
            errors.required(&at, "");
        }
        if all(list) {
            errors.invalid(&at, list.to_vec(), format!("if '*' is present, must not specify other {said}"));
        }
        if member == "apiVersions" {
            for (i, version) in list.iter().enumerate() {
                if version == "" {
                    errors.required(&at.index(i), "");
                }
            }
        }
    }
    let resources: Vec<&str> = rule.list("resources").iter().filter_map(Value::as_str).collect();
    let at = path.child("resources");
    if resources.is_empty() {
        errors.required(&at, "");
    }
    for (i, resource) in resources.iter().enumerate() {
        let at = at.index(i);
        if resource.is_empty() {
            errors.required(&at, "");
            continue;
        }
        if let Some((name, sub)) = resource.split_once('/') {
            if name != "*" && sub != "*" && resources.contains(&format!("{name}/*").as_str()) {
                errors.invalid(
                    &at,
                    *resource,
                    format!("if '{name}/*' is present, must not specify {resource}"),
                );
            }
            if name != "*" && sub != "*" && resources.contains(&format!("*/{sub}").as_str()) {
                errors.invalid(
                    &at,
                    *resource,
                    format!("if '*/{sub}' is present, must not specify {resource}"),
                );
            }
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        errors.invalid(&at, resources.clone(), "if '*/*' is present, must not specify other resources");
    }
    if resources.contains(&"*") && resources.iter().any(|r| *r != "*" && !r.contains('/')) {
        errors.invalid(
            &at,
            resources,
            "if '*' is present, must not specify other resources without subresources",
        );
    }
    if rule.has("scope") {
        errors.one_of(&path.child("scope"), rule.text("scope"), &["*", "Cluster", "Namespaced"]);
    }
}

fn validate_policy(policy: &Value) -> Errors {
    const MAX_CONDITIONS: usize = 64;
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = policy.at("spec");
    if spec.has("failurePolicy") {
        errors.one_of(&path.child("failurePolicy"), spec.text("failurePolicy"), &["Fail", "Ignore"]);
    }
    if spec.has("paramKind") {
        let path = path.child("paramKind");
        for name in ["apiVersion", "kind"] {
            if spec.at("paramKind").text(name).is_empty() {
                errors.required(&path.child(name), "");
            }
        }
        let version = spec.text("paramKind.apiVersion");
        if version.matches('/').count() > 1 {
            let why = format!("unexpected GroupVersion string: {version}");
            errors.invalid(&path.child("apiVersion"), version, why);
        }
    }
    let constraints = path.child("matchConstraints");
    if !spec.has("matchConstraints") {
        errors.required(&constraints, "");
    } else {
        if spec.list("matchConstraints.resourceRules").is_empty() {
            errors.required(&constraints.child("resourceRules"), "");
        }
        match_resources(&mut errors, spec.at("matchConstraints"), &constraints);
    }
    conditions(&mut errors, spec.list("matchConditions"), MAX_CONDITIONS, &path.child("matchConditions"));
    for (i, variable) in spec.list("variables").iter().enumerate() {
        let list = path.child("variables");
        for name in ["name", "expression"] {
            if variable.text(name).trim().is_empty() {
                errors.required(&list.index(i).child(name), format!("{name} is not specified"));
            }
        }
        let name = variable.text("name");
        if !name.trim().is_empty() && !expression::is_identifier(name) {
            errors.invalid(&list.index(i).child("name"), name, "must be a valid CEL identifier");
        }
    }
    if policy.text("kind") == "MutatingAdmissionPolicy" || spec.has("mutations") {
        if spec.list("mutations").is_empty() {
            errors.required(&path.child("mutations"), "mutations must contain at least one item");
        }
        let at = path.child("reinvocationPolicy");
        match spec.text("reinvocationPolicy") {
            "" => errors.required(&at, ""),
            given => errors.one_of(&at, given, &["IfNeeded", "Never"]),
        }
    } else {
        let validations = spec.list("validations");
        if validations.is_empty() && spec.list("auditAnnotations").is_empty() {
            errors.required(
                &path.child("validations"),
                "validations or auditAnnotations must contain at least one item",
            );
            errors.required(
                &path.child("auditAnnotations"),
                "validations or auditAnnotations must contain at least one item",
            );
        }
        for (i, validation) in validations.iter().enumerate() {
            let list = path.child("validations");
            let path = list.index(i);
            let expression = validation.text("expression").trim();
            if expression.is_empty() {
                errors.required(&path.child("expression"), "expression is not specified");
            }
            let message = validation.text("message");
            if validation.has("message") && message.trim().is_empty() {
                errors.invalid(&path.child("message"), message, "must be non-empty if specified");
            } else if message.contains('\n') {
                errors.invalid(&path.child("message"), message, "message must not contain line breaks");
            } else if expression.contains('\n') && message.trim().is_empty() {
                errors.required(
                    &path.child("message"),
                    "message must be specified if expression contains line breaks",
                );
            }
            if validation.has("reason") {
                let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
                errors.one_of(&path.child("reason"), validation.text("reason"), &reasons);
            }
        }
        for (i, annotation) in spec.list("auditAnnotations").iter().enumerate() {
            let list = path.child("auditAnnotations");
            let path = list.index(i);
            let key = format!("{}/{}", policy.text("metadata.name"), annotation.text("key"));
            errors.invalid_each(&path.child("key"), &key, check::qualified_name(&key));
        }
    }
    errors
}

fn match_resources(errors: &mut Errors, matching: &Value, path: &Path<'_>) {
    for member in ["namespaceSelector", "objectSelector"] {
        meta::label_selector(errors, matching.at(member), &path.child(member));
    }
    for member in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in matching.list(member).iter().enumerate() {
            let list = path.child(member);
            self::rule(errors, rule, &list.index(i));
        }
    }
    if matching.has("matchPolicy") {
        errors.one_of(&path.child("matchPolicy"), matching.text("matchPolicy"), &["Equivalent", "Exact"]);
    }
}

fn validate_binding(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = binding.at("spec");
    let name = spec.text("policyName");
    if name.is_empty() {
        errors.required(&path.child("policyName"), "");
    } else {
        errors.invalid_each(&path.child("policyName"), name, check::dns1123_subdomain(name));
    }
    let reference = spec.at("paramRef");
    if !reference.is_null() {
        let path = path.child("paramRef");
        match (reference.text("name").is_empty(), reference.has("selector")) {
            (false, true) => {
                for name in ["name", "selector"] {
                    errors.forbidden(&path.child(name), "name and selector are mutually exclusive");
                }
            }
            (true, false) => errors.required(&path, "one of name or selector must be specified"),
            _ => {}
        }
        match reference.text("parameterNotFoundAction") {
            "" => errors.required(&path.child("parameterNotFoundAction"), ""),
            action => errors.one_of(&path.child("parameterNotFoundAction"), action, &["Deny", "Allow"]),
        }
    }
    if spec.has("matchResources") {
        match_resources(&mut errors, spec.at("matchResources"), &path.child("matchResources"));
    }
    if spec.has("validationActions") || binding.text("kind") == "ValidatingAdmissionPolicyBinding" {
        let actions: Vec<&str> = spec.list("validationActions").iter().filter_map(Value::as_str).collect();
        let path = path.child("validationActions");
        if actions.is_empty() {
            errors.required(&path, "at least one validation action is required");
        }
        for (i, action) in actions.iter().enumerate() {
            errors.one_of(&path.index(i), action, &["Audit", "Deny", "Warn"]);
            if actions[..i].contains(action) {
                errors.duplicate(&path.index(i), *action);
            }
        }
        if actions.contains(&"Deny") && actions.contains(&"Warn") {
            errors.invalid(
                &path,
                actions,
                "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
            );
        }
    }
    errors
}
