//! Policies in a file, a JSON object a line (`abac.authorization.kubernetes.io/v1beta1`). Pure.

use anyhow::anyhow;
use apimachinery::user::UserInfo;
use serde::Deserialize;
use serde_json::Value;

use super::rule::PolicyRule;
use crate::seams::RequestInfo;

const API_VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";
/// Whom policies without a version are about, where they do not say it.
const ALL_AUTHENTICATED: &str = "system:authenticated";

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

/// The policies of a file.
#[derive(Clone, Debug, Default)]
pub struct Policies(Vec<Policy>);

impl Policies {
    /// `path` is told in errors.
    pub fn parse(path: &str, text: &str) -> anyhow::Result<Policies> {
        let mut policies = Vec::new();
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            let wrong = |why: &dyn std::fmt::Display| {
                anyhow!("error reading policy file {path}, line {}: {line}: {why}", i + 1)
            };
            let value: Value = serde_json::from_str(line).map_err(|e| wrong(&e))?;
            let said = |name: &str| value[name].as_str().unwrap_or_default();
            if said("apiVersion") == API_VERSION && said("kind") == "Policy" {
                policies.push(Policy::deserialize(&value["spec"]).map_err(|e| wrong(&e))?);
            } else if said("apiVersion").is_empty() || said("kind").is_empty() {
                let policy = Policy::deserialize(&value).map_err(|e| wrong(&e))?;
                policies.push(policy.unversioned());
            } else {
                let why =
                    format!("no kind {:?} is registered for version {:?}", said("kind"), said("apiVersion"));
                return Err(wrong(&why));
            }
        }
        Ok(Policies(policies))
    }

    pub fn allow(&self, user: &UserInfo, request: &RequestInfo) -> bool {
        self.0.iter().any(|p| p.is_about(user) && p.covers(request))
    }

    /// What a user may do in a namespace.
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> Vec<PolicyRule> {
        let about = |p: &&Policy| p.is_about(user) && (p.namespace == "*" || p.namespace == namespace);
        let of = |policy: &Policy| {
            let verbs: &[&str] = if policy.readonly { &["get", "list", "watch"] } else { &["*"] };
            let verbs: Vec<String> = verbs.iter().map(|v| (*v).to_owned()).collect();
            let resources = PolicyRule {
                verbs: verbs.clone(),
                api_groups: vec![policy.api_group.clone()],
                resources: vec![policy.resource.clone()],
                ..PolicyRule::default()
            };
            let paths = PolicyRule {
                verbs,
                non_resource_urls: vec![policy.non_resource_path.clone()],
                ..PolicyRule::default()
            };
            [
                (!policy.resource.is_empty()).then_some(resources),
                (!policy.non_resource_path.is_empty()).then_some(paths),
            ]
        };
        self.0.iter().filter(about).flat_map(of).flatten().collect()
    }
}

impl Policy {
    /// Policies of old say less and mean more.
    fn unversioned(self) -> Policy {
        let everybody = self.user == "*" || self.group == "*";
        let nobody = self.user.is_empty() && self.group.is_empty();
        let all = |text: &str| if text.is_empty() { "*".to_owned() } else { text.to_owned() };
        let paths = self.namespace.is_empty() && self.resource.is_empty();
        Policy {
            group: if everybody || nobody { ALL_AUTHENTICATED.to_owned() } else { self.group },
            user: if everybody { String::new() } else { self.user },
            readonly: self.readonly,
            api_group: "*".to_owned(),
            namespace: all(&self.namespace),
            resource: all(&self.resource),
            non_resource_path: if paths { "*".to_owned() } else { String::new() },
        }
    }

    fn is_about(&self, user: &UserInfo) -> bool {
        let name = self.user.is_empty() || self.user == "*" || self.user == user.name;
        let group = self.group.is_empty() || self.group == "*" || user.in_group(&self.group);
        name && group && !(self.user.is_empty() && self.group.is_empty())
    }

    fn covers(&self, request: &RequestInfo) -> bool {
        if self.readonly && !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return false;
        }
        let is = |pattern: &str, value: &str| pattern == "*" || pattern == value;
        if request.is_resource {
            return is(&self.namespace, &request.namespace)
                && is(&self.resource, &request.resource)
                && is(&self.api_group, &request.group);
        }
        let pattern = self.non_resource_path.as_str();
        is(pattern, &request.path)
            || pattern.ends_with('*') && request.path.starts_with(pattern.trim_end_matches('*'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
# Who may do what.
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "alice", "namespace": "*", "resource": "*", "apiGroup": "*"}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "bob", "namespace": "a", "resource": "pods", "readonly": true}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"group": "dev", "nonResourcePath": "/api*", "readonly": true}}
{"user": "carol", "resource": "events"}
"#;

    #[test]
    fn decides() {
        let policies = Policies::parse("f", FILE).unwrap();
        let of = |user: &str, groups: &[&str], verb: &str, target: &str| {
            let mut request = RequestInfo { verb: verb.into(), ..RequestInfo::default() };
            match target.split('/').collect::<Vec<_>>().as_slice() {
                ["", ..] => request.path = target.into(),
                [namespace, group, resource] => {
                    request.is_resource = true;
                    (request.namespace, request.group) = ((*namespace).into(), (*group).into());
                    request.resource = (*resource).into();
                }
                _ => unreachable!(),
            }
            policies.allow(&UserInfo::new(user, groups), &request)
        };
        for (user, groups, verb, target, want) in [
            ("alice", &[] as &[&str], "delete", "a/apps/deployments", true),
            ("alice", &[], "get", "/metrics", false),
            ("bob", &[], "get", "a//pods", true),
            ("bob", &[], "delete", "a//pods", false),
            ("bob", &[], "get", "b//pods", false),
            ("bob", &[], "get", "a//secrets", false),
            ("dan", &["dev"], "get", "/apis/x", true),
            ("dan", &["dev"], "post", "/apis/x", false),
            ("dan", &["dev"], "get", "/version", false),
            ("dan", &["ops"], "get", "/apis/x", false),
            ("carol", &[], "create", "b/events.k8s.io/events", true),
            ("carol", &[], "create", "b//pods", false),
            ("eve", &[], "get", "a//pods", false),
        ] {
            assert_eq!(of(user, groups, verb, target), want, "{user} {verb} {target}");
        }
        let rules = policies.rules(&UserInfo::new("bob", &[]), "a");
        assert_eq!((rules.len(), rules[0].verbs.len()), (1, 3));
        assert!(policies.rules(&UserInfo::new("bob", &[]), "b").is_empty());
        let all = Policies::parse("f", "{\"readonly\": true}").unwrap();
        let request = RequestInfo { verb: "get".into(), path: "/x".into(), ..RequestInfo::default() };
        assert!(all.allow(&UserInfo::new("x", &[]), &request));
        assert!(!all.allow(&UserInfo::anonymous(), &request));
        for (text, why) in [
            ("{", "error reading policy file f, line 1: {: "),
            ("{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}", "no kind \"Pod\" is registered"),
        ] {
            let told = Policies::parse("f", text).unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
    }
}
