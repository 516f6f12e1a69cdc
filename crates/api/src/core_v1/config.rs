//! Secrets, config maps and limit ranges.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::check::{self, Report};
use crate::core_v1::resources;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write, quantity};

/// Besides its type: what was written as plain text goes into the data.
pub fn secret_defaults(secret: &mut Value) {
    secret.put_default_text("type", "Opaque");
    if let Some(Value::Object(plain)) = secret.remove("stringData")
        && let Some(data) = secret.object_mut("data")
    {
        for (key, text) in plain {
            data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
        }
    }
}

/// References to secrets say their names and no more.
pub fn bare_references(account: &mut Value) {
    for secret in account.list_mut("secrets") {
        if let Some(members) = secret.as_object_mut() {
            members.retain(|name, _| name == "name");
        }
    }
}

pub fn limit_range_defaults(range: &mut Value) {
    for item in range.list_mut("spec.limits").filter(|item| item.text("type") == "Container") {
        let map = |item: &Value, name: &str| item.at(name).as_object().cloned().unwrap_or_default();
        let mut default = map(item, "default");
        let mut request = map(item, "defaultRequest");
        let fill = |into: &mut Map<String, Value>, from: Map<String, Value>| {
            for (name, value) in from {
                into.entry(name).or_insert(value);
            }
        };
        fill(&mut default, map(item, "max"));
        fill(&mut request, default.clone());
        fill(&mut request, map(item, "min"));
        for (name, value) in [("default", default), ("defaultRequest", request)] {
            if !value.is_empty() {
                item.put(name, value);
            }
        }
    }
}

/// What the data of a secret or config map may take up.
const DATA_MAX_BYTES: usize = 1024 * 1024;

/// How many bytes a text in base64 stands for.
fn decoded_len(text: &str) -> usize {
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count().min(text.len() / 4 * 3)
}

pub fn validate_secret(secret: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("data");
    let data = secret.at("data");
    let mut size = 0;
    for (key, value) in secret.entries("data") {
        errors.invalid_each(&path.key(key), key, check::config_map_key(key));
        size += decoded_len(value.as_str().unwrap_or_default());
    }
    if size > DATA_MAX_BYTES {
        errors.too_long(&path, DATA_MAX_BYTES);
    }
    let has = |key: &str| data.get(key).is_some();
    let mut want = |key: &str| {
        if !has(key) {
            errors.required(&path.key(key), "");
        }
    };
    let json = match secret.text("type") {
        "kubernetes.io/service-account-token" => {
            const NAME: &str = "kubernetes.io/service-account.name";
            if secret.at("metadata.annotations").get_or_null(NAME).as_str().unwrap_or_default().is_empty() {
                let metadata = Path::new("metadata");
                errors.required(&metadata.child("annotations").key(NAME), "");
            }
            None
        }
        "kubernetes.io/dockercfg" => Some(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => Some(".dockerconfigjson"),
        "kubernetes.io/basic-auth" => {
            if !has("username") && !has("password") {
                want("username");
                want("password");
            }
            None
        }
        "kubernetes.io/ssh-auth" => {
            if data.get_or_null("ssh-privatekey").as_str().unwrap_or_default().is_empty() {
                errors.required(&path.key("ssh-privatekey"), "");
            }
            None
        }
        "kubernetes.io/tls" => {
            want("tls.crt");
            want("tls.key");
            None
        }
        _ => None,
    };
    if let Some(key) = json {
        match data.get_or_null(key).as_str() {
            None => errors.required(&path.key(key), ""),
            Some(text) => {
                let object: Option<Map<String, Value>> =
                    STANDARD.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if object.is_none() {
                    errors.invalid(&path.key(key), "<secret contents redacted>", "must be a JSON object");
                }
            }
        }
    }
    errors
}

/// What was sealed stays as it is.
fn sealed(errors: &mut Errors, new: &Value, old: &Value, members: &[&str]) {
    if !old.flag("immutable") {
        return;
    }
    const SEALED: &str = "field is immutable when `immutable` is set";
    if !new.flag("immutable") {
        errors.forbidden(&Path::new("immutable"), SEALED);
    }
    for member in members {
        if !crate::equality::same_at(new, old, member) {
            errors.forbidden(&Path::new(member), SEALED);
        }
    }
}

pub fn validate_secret_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    errors.immutable(&Path::new("type"), new.at("type"), old.at("type"));
    sealed(&mut errors, new, old, &["data"]);
    errors.extend(validate_secret(new));
    errors
}

pub fn validate_config_map(map: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut size = 0;
    for (key, value) in map.entries("data") {
        let data = Path::new("data");
        let path = data.key(key);
        errors.invalid_each(&path, key, check::config_map_key(key));
        if map.at("binaryData").get(key).is_some() {
            errors.invalid(&path, key.as_str(), "duplicate of key present in binaryData");
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in map.entries("binaryData") {
        let data = Path::new("binaryData");
        errors.invalid_each(&data.key(key), key, check::config_map_key(key));
        size += decoded_len(value.as_str().unwrap_or_default());
    }
    if size > DATA_MAX_BYTES {
        errors.too_long(&Path::new("[]"), DATA_MAX_BYTES);
    }
    errors
}

pub fn validate_config_map_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    sealed(&mut errors, new, old, &["data", "binaryData"]);
    errors.extend(validate_config_map(new));
    errors
}

pub fn validate_limit_range(range: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::new("spec");
    let list = spec.child("limits");
    let mut kinds: Vec<&str> = vec![];
    for (i, limit) in range.list("spec.limits").iter().enumerate() {
        let path = list.index(i);
        let kind = limit.text("type");
        let unqualified = check::qualified_name(kind);
        if unqualified.is_empty()
            && !kind.contains('/')
            && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim")
        {
            errors.invalid(&path.child("type"), kind, "must be a standard limit type or fully qualified");
        }
        errors.invalid_each(&path.child("type"), kind, unqualified);
        if kinds.contains(&kind) {
            errors.duplicate(&path.child("type"), kind);
        }
        kinds.push(kind);
        let mut names: Vec<&String> = vec![];
        for member in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            let at = path.child(member);
            if kind == "Pod" && member.starts_with("default") {
                if limit.entries(member).next().is_some() {
                    errors.forbidden(&at, "may not be specified when `type` is 'Pod'");
                }
                continue;
            }
            for (name, _) in limit.entries(member) {
                if matches!(kind, "Pod" | "Container") {
                    resources::container_name(&mut errors, name, &at.key(name));
                } else {
                    resources::name(&mut errors, name, &at.key(name));
                }
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        if kind == "PersistentVolumeClaim" && !limit.has("min.storage") && !limit.has("max.storage") {
            errors.required(
                &path.child("limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            );
        }
        for name in names {
            let of = |member: &str| quantity(limit.at(member).get_or_null(name));
            // (which is blamed, what may not be greater, than what)
            for (blamed, small, large, said_small, said_large) in [
                ("min", "min", "max", "min", "max"),
                ("defaultRequest", "min", "defaultRequest", "min", "default request"),
                ("defaultRequest", "defaultRequest", "max", "default request", "max"),
                ("defaultRequest", "defaultRequest", "default", "default request", "default limit"),
                ("default", "min", "default", "min", "default"),
                ("default", "default", "max", "default", "max"),
            ] {
                let pod_default =
                    kind == "Pod" && (small.starts_with("default") || large.starts_with("default"));
                if let (Some(a), Some(b), false) = (of(small), of(large), pod_default)
                    && a > b
                {
                    let shown = match (blamed, small) {
                        ("default", "min") => a.to_string(),
                        ("default", _) => b.to_string(),
                        _ => of(blamed).map_or_else(String::new, |q| q.to_string()),
                    };
                    errors.invalid(
                        &path.child(blamed).key(name),
                        shown,
                        format!("{said_small} value {a} is greater than {said_large} value {b}"),
                    );
                }
            }
            if let Some(ratio) = of("maxLimitRequestRatio") {
                let at = path.child("maxLimitRequestRatio");
                if ratio.as_f64() < 1.0 {
                    errors.invalid(&at.key(name), ratio.to_string(), format!("ratio {ratio} is less than 1"));
                }
                if let (Some(min), Some(max)) = (of("min"), of("max"))
                    && ratio.as_f64() > max.as_f64() / min.as_f64()
                {
                    errors.invalid(
                        &at.key(name),
                        ratio.to_string(),
                        format!("ratio {ratio} is greater than max/min = {:.6}", max.as_f64() / min.as_f64()),
                    );
                }
            }
        }
    }
    errors
}

const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// Whether a scope says anything about a resource of pods (or claims).
fn scope_applies(scope: &str, resource: &str) -> bool {
    let compute = matches!(
        resource,
        "pods"
            | "cpu"
            | "memory"
            | "ephemeral-storage"
            | "requests.cpu"
            | "requests.memory"
            | "requests.ephemeral-storage"
            | "limits.cpu"
            | "limits.memory"
            | "limits.ephemeral-storage"
    );
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => compute || resource.contains('/') || resource.contains("hugepages-"),
    }
}

pub fn validate_quota(quota: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = quota.at("spec");
    quota_amounts(&mut errors, spec.at("hard"), &path.child("hard"));
    let conflicting = |scopes: &[&str]| {
        [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]]
            .iter()
            .any(|pair| pair.iter().all(|s| scopes.contains(s)))
    };
    let unfit = |scope: &str| {
        spec.entries("hard").any(|(r, _)| resources::is_standard_quota(r) && !scope_applies(scope, r))
    };
    let scopes: Vec<&str> = spec.list("scopes").iter().filter_map(Value::as_str).collect();
    let at = path.child("scopes");
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.invalid(&at, scopes.clone(), "unsupported scope");
        }
        if unfit(scope) {
            errors.invalid(&at, scopes.clone(), "unsupported scope applied to resource");
        }
    }
    if conflicting(&scopes) {
        errors.invalid(&at, scopes, "conflicting scopes");
    }
    let selector = path.child("scopeSelector");
    let at = selector.child("matchExpressions");
    let mut selected = vec![];
    for requirement in spec.list("scopeSelector.matchExpressions") {
        let (scope, operator) = (requirement.text("scopeName"), requirement.text("operator"));
        if !SCOPES.contains(&scope) {
            errors.invalid(&at.child("scopeName"), scope, "unsupported scope");
        }
        if unfit(scope) {
            errors.invalid(&at, spec.at("scopeSelector").clone(), "unsupported scope applied to resource");
        }
        if SCOPES.contains(&scope)
            && !matches!(scope, "PriorityClass" | "VolumeAttributesClass")
            && operator != "Exists"
        {
            errors.invalid(
                &at.child("operator"),
                operator,
                "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        let values = requirement.list("values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.required(
                &at.child("values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.invalid(
                &at.child("values"),
                values.to_vec(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&at.child("operator"), other, "not a valid selector operator"),
        }
        selected.push(scope);
    }
    if conflicting(&selected) {
        errors.invalid(&at, selected, "conflicting scopes");
    }
    errors
}

fn quota_amounts(errors: &mut Errors, amounts: &Value, path: &Path<'_>) {
    for (name, value) in amounts.as_object().into_iter().flatten() {
        let path = path.key(name);
        resources::name(errors, name, &path);
        if !name.contains('/') && !resources::is_standard_quota(name) {
            errors.invalid(&path, name.as_str(), "must be a standard resource for quota");
        }
        resources::amount(errors, name, value, &path);
    }
}

pub fn validate_quota_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_quota(new);
    let sorted = |quota: &Value| {
        let mut scopes: Vec<String> =
            quota.list("spec.scopes").iter().filter_map(|s| s.as_str().map(str::to_owned)).collect();
        scopes.sort();
        scopes.dedup();
        scopes
    };
    if sorted(new) != sorted(old) {
        let spec = Path::new("spec");
        errors.invalid(&spec.child("scopes"), new.at("spec.scopes").clone(), check::IMMUTABLE);
    }
    errors
}

pub fn validate_quota_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    for name in ["hard", "used"] {
        quota_amounts(&mut errors, new.at("status").get_or_null(name), &status.child(name));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_becomes_data() {
        let mut secret = json!({"data": {"a": "AA=="}, "stringData": {"b": "hi"}});
        secret_defaults(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "AA==", "b": "aGk="}}));
    }

    #[test]
    fn limits_follow_each_other() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        limit_range_defaults(&mut range);
        assert_eq!(
            range,
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"},
                "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Mi"}}]}})
        );
    }
}
