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
        revalidates: true,
        unconditional_update: false,
        validate: validate_webhooks,
        validate_update: |new, _| validate_webhooks(new),
        defaults: |c| webhooks(c, true),
        generation: &["webhooks"],
        ..BASE
    },
    Rules {
        resource: "validatingwebhookconfigurations",
        revalidates: true,
        unconditional_update: false,
        validate: validate_webhooks,
        validate_update: |new, _| validate_webhooks(new),
        defaults: |c| webhooks(c, false),
        generation: &["webhooks"],
        ..BASE
    },
    Rules {
        resource: "validatingadmissionpolicies",
        revalidates: true,
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
        revalidates: true,
        defaults: binding,
        validate: validate_binding,
        validate_update: |new, _| validate_binding(new),
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicies",
        revalidates: true,
        defaults: policy,
        validate: validate_policy,
        validate_update: |new, _| validate_policy(new),
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicybindings",
        revalidates: true,
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
        if webhook.has("sideEffects") {
            let effects = webhook.text("sideEffects");
            errors.one_of(&path.child("sideEffects"), effects, &["None", "NoneOnDryRun"]);
        } else {
            errors.required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun");
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
        }
        for (j, version) in versions.iter().enumerate() {
            let text = version.as_str().unwrap_or_default();
            if versions[..j].contains(version) {
                errors.invalid(&path.index(j), text, "duplicate version");
            } else {
                errors.invalid_each(&path.index(j), text, check::dns1035_label(text));
            }
        }
        if !versions.is_empty() && !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
            errors.invalid(&path, versions.to_vec(), "must include at least one of v1, v1beta1");
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
            // Upstream mixes the two up.
            for (name, blamed) in [("namespace", "name"), ("name", "namespace")] {
                if service.text(name).is_empty() {
                    errors.required(&path.child(blamed), "");
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
    const MAX_ANNOTATIONS: usize = 20;
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = policy.at("spec");
    let mutates = policy.text("kind") == "MutatingAdmissionPolicy" || spec.has("mutations");
    if spec.has("failurePolicy") {
        errors.one_of(&path.child("failurePolicy"), spec.text("failurePolicy"), &["Fail", "Ignore"]);
    }
    if spec.has("paramKind") {
        param_kind(&mut errors, spec.at("paramKind"), &path.child("paramKind"));
    }
    let constraints = path.child("matchConstraints");
    if !spec.has("matchConstraints") {
        errors.required(&constraints, "");
    } else {
        match_resources(&mut errors, spec.at("matchConstraints"), &constraints);
        if spec.list("matchConstraints.resourceRules").is_empty() {
            errors.required(&constraints.child("resourceRules"), "");
        }
    }
    if mutates {
        mutable_operations(&mut errors, spec.at("matchConstraints"), &constraints);
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
    if mutates {
        if spec.list("mutations").is_empty() {
            errors.required(&path.child("mutations"), "mutations must contain at least one item");
        }
        for (i, mutation) in spec.list("mutations").iter().enumerate() {
            let list = path.child("mutations");
            self::mutation(&mut errors, mutation, &list.index(i));
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
        let annotations = spec.list("auditAnnotations");
        let list = path.child("auditAnnotations");
        if annotations.len() > MAX_ANNOTATIONS {
            let why = format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations");
            errors.invalid(&list, annotations.to_vec(), why);
        }
        for (i, annotation) in annotations.iter().enumerate() {
            let path = list.index(i);
            let name = annotation.text("key");
            let key = format!("{}/{name}", policy.text("metadata.name"));
            errors.invalid_each(&path.child("key"), &key, check::qualified_name(&key));
            if annotation.text("valueExpression").trim().is_empty() {
                errors.required(&path.child("valueExpression"), "valueExpression is not specified");
            }
            if annotations[..i].iter().any(|before| before.text("key") == name) {
                errors.duplicate(&path.child("key"), name);
            }
        }
    }
    errors
}

/// What is deleted cannot be changed.
fn mutable_operations(errors: &mut Errors, matching: &Value, path: &Path<'_>) {
    let path = path.child("resourceRules");
    for operation in matching.list("resourceRules").iter().flat_map(|rule| rule.list("operations")) {
        let operation = operation.as_str().unwrap_or_default();
        errors.one_of(&path.child("operations"), operation, &["*", "CONNECT", "CREATE", "UPDATE"]);
    }
}

/// What a policy's parameters are.
fn param_kind(errors: &mut Errors, of: &Value, path: &Path<'_>) {
    let (version, kind) = (of.text("apiVersion"), of.text("kind"));
    let at = path.child("apiVersion");
    let (group, name) = version.split_once('/').unwrap_or(("", version));
    if version.is_empty() {
        errors.required(&at, "");
    } else if name.contains('/') {
        errors.invalid(&at, version, format!("unexpected GroupVersion string: {version}"));
    } else {
        let wrong = check::dns1123_subdomain(group);
        if !group.is_empty() && !wrong.is_empty() {
            errors.invalid(&at, group, wrong.join(","));
        }
        let wrong = check::dns1035_label(name);
        if name.is_empty() {
            errors.invalid(&at, version, "version must be specified");
        } else if !wrong.is_empty() {
            errors.invalid(&at, name, wrong.join(","));
        }
    }
    let wrong = check::dns1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errors.required(&path.child("kind"), "");
    } else if !wrong.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.invalid(&path.child("kind"), kind, why);
    }
}

fn mutation(errors: &mut Errors, mutation: &Value, path: &Path<'_>) {
    let kinds = [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
    let kind = mutation.text("patchType");
    if kind.is_empty() {
        errors.required(&path.child("patchType"), "");
        return;
    }
    if kinds.iter().all(|(k, _)| *k != kind) {
        errors.not_supported(&path.child("patchType"), kind, &["ApplyConfiguration", "JSONPatch"]);
        return;
    }
    for (k, member) in kinds {
        let at = path.child(member);
        match (k == kind, mutation.has(member)) {
            (true, false) => errors.required(&at, format!("must be specified when patchType is {kind}")),
            (true, true) if mutation.at(member).text("expression").trim().is_empty() => {
                errors.required(&at.child("expression"), "");
            }
            (false, true) => {
                let why = format!("must not be specified when patchType is {kind}");
                errors.invalid(&at, format!("{{{member}}}"), why);
            }
            _ => {}
        }
    }
}

fn match_resources(errors: &mut Errors, matching: &Value, path: &Path<'_>) {
    for member in ["namespaceSelector", "objectSelector"] {
        meta::label_selector(errors, matching.at(member), &path.child(member));
    }
    for member in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in matching.list(member).iter().enumerate() {
            let list = path.child(member);
            let path = list.index(i);
            let names = rule.list("resourceNames");
            for (j, name) in names.iter().enumerate() {
                let at = path.child("resourceNames");
                let text = name.as_str().unwrap_or_default();
                errors.invalid_each(&at.index(j), text, check::path_segment(text));
                if names[..j].contains(name) {
                    errors.duplicate(&at.index(j), text);
                }
            }
            self::rule(errors, rule, &path);
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
        let name = reference.text("name");
        let both = !name.is_empty() && reference.has("selector");
        const EXCLUSIVE: &str = "name and selector are mutually exclusive";
        errors.invalid_each(&path.child("name"), name, check::path_segment(name));
        if both {
            errors.forbidden(&path.child("name"), EXCLUSIVE);
        }
        meta::label_selector(&mut errors, reference.at("selector"), &path.child("selector"));
        if both {
            errors.forbidden(&path.child("selector"), EXCLUSIVE);
        }
        if name.is_empty() && !reference.has("selector") {
            errors.required(&path, "one of name or selector must be specified");
        }
        match reference.text("parameterNotFoundAction") {
            "" => errors.required(&path.child("parameterNotFoundAction"), ""),
            action => errors.one_of(&path.child("parameterNotFoundAction"), action, &["Deny", "Allow"]),
        }
    }
    if spec.has("matchResources") {
        match_resources(&mut errors, spec.at("matchResources"), &path.child("matchResources"));
        if binding.text("kind") == "MutatingAdmissionPolicyBinding" {
            mutable_operations(&mut errors, spec.at("matchResources"), &path.child("matchResources"));
        }
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
