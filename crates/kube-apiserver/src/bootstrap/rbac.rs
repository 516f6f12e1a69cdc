//! The default roles and bindings, from the table in `rbac.txt`.
//!
//! A line starts an object (`clusterrole NAME label:K=V aggregate:K=V`, `role NS/NAME`, `clusterrolebinding NAME
//! clusterrole:ROLE SUBJECT…`, `rolebinding NS/NAME …`); indented lines below a role are its rules:
//! `verbs | groups | resources [| names]` or `verbs | /path …`.
//!
//! One departure from upstream: roles of controllers (`system:controller:*`) that may update may also patch, because
//! Isopod's controllers send what changes instead of whole objects.

use serde_json::{Map, Value, json};

use crate::authorization::rule::PolicyRule;

const TABLE: &str = include_str!("rbac.txt");
const GROUP: &str = "rbac.authorization.k8s.io";
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// One default object and the resource it belongs to.
#[derive(Clone, Debug)]
pub struct Default {
    pub resource: &'static str,
    pub object: Value,
}

fn words(list: &str) -> Vec<String> {
    list.split(',').map(|w| if w == "core" { String::new() } else { w.to_owned() }).collect()
}

fn rule(line: &str) -> PolicyRule {
    let mut parts = line.split('|').map(str::trim);
    let verbs = words(parts.next().unwrap_or_default());
    let (second, third, fourth) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    match third {
        None => PolicyRule {
            verbs,
            non_resource_urls: second.split(' ').map(str::to_owned).collect(),
            ..PolicyRule::default()
        },
        Some(resources) => PolicyRule {
            verbs,
            api_groups: words(second),
            resources: words(resources),
            resource_names: fourth.map(words).unwrap_or_default(),
            ..PolicyRule::default()
        },
    }
}

fn metadata(name: &str, namespaced: bool) -> Value {
    let mut meta = json!({
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    });
    match name.split_once('/').filter(|_| namespaced) {
        Some((namespace, name)) => {
            meta["namespace"] = json!(namespace);
            meta["name"] = json!(name);
        }
        None => meta["name"] = json!(name),
    }
    meta
}

fn role(kind: &str, name: &str, words: &[&str], rules: &[PolicyRule]) -> Value {
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": metadata(name, kind == "Role"),
        "rules": rules,
    });
    let mut selectors = Vec::new();
    for word in words {
        if let Some((key, value)) = word.strip_prefix("label:").and_then(|w| w.split_once('=')) {
            object["metadata"]["labels"][key] = json!(value);
        }
        if let Some((key, value)) = word.strip_prefix("aggregate:").and_then(|w| w.split_once('=')) {
            selectors.push(json!({"matchLabels": {key: value}}));
        }
    }
    if !selectors.is_empty() {
        object["aggregationRule"] = json!({"clusterRoleSelectors": selectors});
    }
    object
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    Some(match kind {
        "sa" => {
            let (namespace, name) = name.split_once('/')?;
            json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
        }
        "user" => json!({"apiGroup": GROUP, "kind": "User", "name": name}),
        "group" => json!({"apiGroup": GROUP, "kind": "Group", "name": name}),
        _ => return None,
    })
}

fn binding(kind: &str, name: &str, words: &[&str]) -> Value {
    let (role_kind, role) = words.first().and_then(|w| w.split_once(':')).unwrap_or_default();
    let role_kind = if role_kind == "clusterrole" { "ClusterRole" } else { "Role" };
    let mut object = json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": metadata(name, kind == "RoleBinding"),
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role},
    });
    let subjects: Vec<Value> = words.iter().skip(1).filter_map(|w| subject(w)).collect();
    if !subjects.is_empty() {
        object["subjects"] = json!(subjects);
    }
    object
}

/// All default roles and bindings; aggregated roles carry the rules they will have.
pub fn defaults() -> Vec<Default> {
    let mut out: Vec<Default> = Vec::new();
    let mut lines = TABLE.lines().filter(|l| !l.is_empty()).peekable();
    while let Some(line) = lines.next() {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, name, rest @ ..] = words.as_slice() else { continue };
        let mut rules = Vec::new();
        while let Some(line) = lines.next_if(|l| l.starts_with(' ')) {
            rules.push(rule(line));
        }
        let (resource, object) = match *kind {
            "clusterrole" => ("clusterroles", role("ClusterRole", name, rest, &rules)),
            "role" => ("roles", role("Role", name, rest, &rules)),
            "clusterrolebinding" => ("clusterrolebindings", binding("ClusterRoleBinding", name, rest)),
            _ => ("rolebindings", binding("RoleBinding", name, rest)),
        };
        out.push(Default { resource, object });
    }
    // Repeated, because aggregated roles select aggregated roles (view → edit → admin).
    for _ in 0..3 {
        let roles: Vec<Value> = of(&out, "clusterroles");
        for default in out.iter_mut().filter(|d| d.resource == "clusterroles") {
            if let Some(rules) = aggregated_rules(&default.object, &roles) {
                default.object["rules"] = rules;
            }
        }
    }
    out
}

fn of(defaults: &[Default], resource: &str) -> Vec<Value> {
    defaults.iter().filter(|d| d.resource == resource).map(|d| d.object.clone()).collect()
}

/// The rules of the default cluster role `name`.
pub fn role_rules(name: &str) -> Vec<PolicyRule> {
    let found =
        defaults().into_iter().find(|d| d.resource == "clusterroles" && d.object["metadata"]["name"] == name);
    found.and_then(|d| serde_json::from_value(d.object["rules"].clone()).ok()).unwrap_or_default()
}

fn matches(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"].as_object().cloned().unwrap_or_default();
    let expressions = selector["matchExpressions"].as_array().cloned().unwrap_or_default();
    let expression_holds = |e: &Value| {
        let value = e["key"].as_str().and_then(|k| labels.get(k));
        let listed = e["values"].as_array().zip(value).is_some_and(|(list, v)| list.contains(v));
        match e["operator"].as_str().unwrap_or_default() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    };
    exact.iter().all(|(k, v)| labels.get(k) == Some(v)) && expressions.iter().all(expression_holds)
}

/// What an aggregated role's rules should be: those of the roles it selects, in the order of their names, once each.
/// `None` when the role does not aggregate.
pub fn aggregated_rules(role: &Value, roles: &[Value]) -> Option<Value> {
    let selectors = role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        let mut selected: Vec<&Value> =
            roles.iter().filter(|r| matches(selector, &r["metadata"]["labels"])).collect();
        selected.sort_by_key(|r| r["metadata"]["name"].as_str().unwrap_or_default());
        for other in selected {
            if other["metadata"]["name"] == role["metadata"]["name"] {
                continue;
            }
            for rule in other["rules"].as_array().into_iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(Value::Array(rules))
}

/// The stored object brought up to the default, or `None` when nothing is missing. Permissions and subjects that an
/// administrator added stay.
pub fn reconciled(stored: &Value, default: &Value) -> Option<Value> {
    if stored["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return None;
    }
    let mut object = stored.clone();
    for field in ["labels", "annotations"] {
        let wanted = default["metadata"][field].as_object().cloned().unwrap_or_else(Map::new);
        if !object["metadata"][field].is_object() {
            object["metadata"][field] = json!({});
        }
        for (key, value) in wanted {
            if object["metadata"][field].get(&key).is_none() {
                object["metadata"][field][key] = value;
            }
        }
    }
    if default.get("aggregationRule").is_some() {
        if object.get("aggregationRule").is_none_or(Value::is_null) {
            object["aggregationRule"] = default["aggregationRule"].clone();
        }
    } else if default.get("rules").is_some() {
        let rules =
            |v: &Value| -> Vec<PolicyRule> { serde_json::from_value(v["rules"].clone()).unwrap_or_default() };
        let missing = crate::authorization::rule::uncovered(&rules(stored), &rules(default));
        if !missing.is_empty() {
            let mut all = stored["rules"].as_array().cloned().unwrap_or_default();
            all.extend(missing.iter().map(|r| json!(r)));
            object["rules"] = Value::Array(all);
        }
    }
    if let Some(wanted) = default["subjects"].as_array() {
        let mut subjects = stored["subjects"].as_array().cloned().unwrap_or_default();
        for subject in wanted {
            if !subjects.contains(subject) {
                subjects.push(subject.clone());
            }
        }
        object["subjects"] = Value::Array(subjects);
    }
    (object != *stored).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_complete() {
        let defaults = defaults();
        let count = |resource: &str| defaults.iter().filter(|d| d.resource == resource).count();
        assert_eq!(count("clusterroles"), TABLE.lines().filter(|l| l.starts_with("clusterrole ")).count());
        assert!(count("clusterroles") > 60 && count("clusterrolebindings") > 45);
        assert_eq!((count("roles"), count("rolebindings")), (7, 7));
        let admin = role_rules("admin");
        let (edit, view) = (role_rules("edit"), role_rules("view"));
        assert!(admin.len() > edit.len() && edit.len() > view.len() && !view.is_empty());
        assert!(view.iter().all(|r| edit.contains(r)) && edit.iter().all(|r| admin.contains(r)));
        for default in &defaults {
            assert_eq!(default.object["metadata"]["annotations"][AUTOUPDATE], "true");
            if default.resource.ends_with("bindings") {
                assert!(!default.object["roleRef"]["name"].as_str().unwrap().is_empty());
            }
        }
    }

    #[test]
    fn adds_only_what_is_missing() {
        let default = json!({"metadata": {"annotations": {AUTOUPDATE: "true"}},
                             "rules": [{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]});
        let stored = |verbs: Value, auto: &str| {
            json!({"metadata": {"labels": {}, "annotations": {AUTOUPDATE: auto}},
                   "rules": [{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]})
        };
        assert!(reconciled(&stored(json!(["*"]), "true"), &default).is_none());
        assert!(reconciled(&stored(json!(["get"]), "false"), &default).is_none());
        let fixed = reconciled(&stored(json!(["get"]), "true"), &default).unwrap();
        assert_eq!(fixed["rules"].as_array().unwrap().len(), 2);
        assert_eq!(fixed["rules"][1]["verbs"], json!(["list"]));
    }
}
