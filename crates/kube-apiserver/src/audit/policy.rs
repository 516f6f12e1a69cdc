//! An audit policy (`audit.k8s.io/v1` Policy): what is told about which requests. Pure.

use anyhow::{Context as _, bail, ensure};
use apimachinery::user::UserInfo;
use serde_json::Value;

use crate::seams::RequestInfo;

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }

    fn parse(text: &str) -> anyhow::Result<Level> {
        Ok(match text {
            "None" => Level::None,
            "Metadata" => Level::Metadata,
            "Request" => Level::Request,
            "RequestResponse" => Level::RequestResponse,
            other => bail!("{other:?} is no audit level (None, Metadata, Request, RequestResponse)"),
        })
    }
}

const STAGES: [&str; 4] = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];

/// What the policy says of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub level: Level,
    pub omit_stages: Vec<String>,
    pub omit_managed_fields: bool,
}

#[derive(Debug)]
struct Rule {
    level: Level,
    value: Value,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

#[derive(Debug)]
pub struct Policy(Vec<Rule>);

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn stages(value: &Value) -> anyhow::Result<Vec<String>> {
    let stages = texts(value);
    for stage in &stages {
        ensure!(STAGES.contains(&stage.as_str()), "{stage:?} is no audit stage");
    }
    Ok(stages)
}

impl Policy {
    pub fn parse(yaml: &[u8]) -> anyhow::Result<Policy> {
        let (json, _) = apimachinery::codec::yaml::to_json(yaml).map_err(|e| anyhow::anyhow!("{e}"))?;
        let value: Value = serde_json::from_slice(&json).context("the audit policy")?;
        let version = value["apiVersion"].as_str().unwrap_or_default();
        ensure!(
            value["kind"] == "Policy" && version.starts_with("audit.k8s.io/"),
            "the audit policy is of kind {} {version:?}, not Policy of audit.k8s.io/v1",
            value["kind"]
        );
        let everywhere = stages(&value["omitStages"])?;
        let managed = value["omitManagedFields"] == true;
        let rules = value["rules"].as_array().cloned().unwrap_or_default();
        ensure!(!rules.is_empty(), "loaded illegal policy with 0 rules");
        let rules = rules.into_iter().enumerate().map(|(i, rule)| {
            let level = Level::parse(rule["level"].as_str().unwrap_or_default());
            let level = level.with_context(|| format!("rules[{i}].level"))?;
            let mut omit_stages = stages(&rule["omitStages"])?;
            omit_stages.extend(everywhere.iter().cloned());
            let omit_managed_fields = rule["omitManagedFields"].as_bool().unwrap_or(managed);
            Ok(Rule { level, value: rule, omit_stages, omit_managed_fields })
        });
        Ok(Policy(rules.collect::<anyhow::Result<_>>()?))
    }

    /// What the first rule that is about the request says; nothing is told where there is none.
    pub fn decide(&self, user: &UserInfo, info: &RequestInfo) -> Decision {
        match self.0.iter().find(|rule| rule.matches(user, info)) {
            Some(rule) => Decision {
                level: rule.level,
                omit_stages: rule.omit_stages.clone(),
                omit_managed_fields: rule.omit_managed_fields,
            },
            None => Decision { level: Level::None, omit_stages: Vec::new(), omit_managed_fields: false },
        }
    }
}

impl Rule {
    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        let rule = &self.value;
        let lists = |field: &str| texts(&rule[field]);
        let (users, groups, verbs) = (lists("users"), lists("userGroups"), lists("verbs"));
        if !users.is_empty() && !users.contains(&user.name) {
            return false;
        }
        if !groups.is_empty() && !groups.iter().any(|g| user.in_group(g)) {
            return false;
        }
        if !verbs.is_empty() && !verbs.contains(&info.verb) {
            return false;
        }
        let (namespaces, urls) = (lists("namespaces"), lists("nonResourceURLs"));
        let resources = rule["resources"].as_array().cloned().unwrap_or_default();
        if !namespaces.is_empty() || !resources.is_empty() {
            return info.is_resource
                && (namespaces.is_empty() || namespaces.contains(&info.namespace))
                && (resources.is_empty() || resources.iter().any(|r| matches_resource(r, info)));
        }
        if !urls.is_empty() {
            return !info.is_resource
                && urls.iter().any(|pattern| {
                    pattern == "*"
                        || *pattern == info.path
                        || pattern.strip_suffix('*').is_some_and(|prefix| info.path.starts_with(prefix))
                });
        }
        true
    }
}

fn matches_resource(rule: &Value, info: &RequestInfo) -> bool {
    if rule["group"].as_str().unwrap_or_default() != info.group {
        return false;
    }
    let (resources, names) = (texts(&rule["resources"]), texts(&rule["resourceNames"]));
    if !names.is_empty() && !names.contains(&info.name) {
        return false;
    }
    let full = if info.subresource.is_empty() {
        info.resource.clone()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    resources.is_empty()
        || resources.iter().any(|pattern| {
            let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
            *pattern == full
                || (pattern == "*" && info.subresource.is_empty())
                || (resource == "*" && !sub.is_empty() && sub == info.subresource)
                || (sub == "*" && resource == info.resource)
                || pattern == "*/*"
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:kube-proxy]
  verbs: [watch]
  resources: [{group: '', resources: [endpoints, services]}]
- level: RequestResponse
  resources: [{group: '', resources: [pods]}, {group: apps}]
  omitManagedFields: true
- level: None
  nonResourceURLs: ['/healthz*', /version]
- level: Request
  namespaces: [kube-system]
  resources: [{group: '', resources: [configmaps], resourceNames: [x]}]
- level: Metadata
  userGroups: [system:authenticated]
";

    #[test]
    fn decides() {
        let policy = Policy::parse(POLICY.as_bytes()).unwrap();
        let resource =
            |verb: &str, group: &str, resource: &str, sub: &str, namespace: &str, name: &str| RequestInfo {
                verb: verb.into(),
                is_resource: true,
                group: group.into(),
                resource: resource.into(),
                subresource: sub.into(),
                namespace: namespace.into(),
                name: name.into(),
                ..RequestInfo::default()
            };
        let path =
            |path: &str| RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() };
        for (user, info, want) in [
            ("system:kube-proxy", resource("watch", "", "services", "", "", ""), Level::None),
            ("system:kube-proxy", resource("list", "", "services", "", "", ""), Level::Metadata),
            ("x", resource("create", "", "pods", "", "a", "p"), Level::RequestResponse),
            ("x", resource("create", "", "pods", "log", "a", "p"), Level::Metadata),
            ("x", resource("create", "apps", "deployments", "scale", "a", "p"), Level::RequestResponse),
            ("x", resource("get", "", "configmaps", "", "kube-system", "x"), Level::Request),
            ("x", resource("get", "", "configmaps", "", "default", "x"), Level::Metadata),
            ("x", path("/healthz/ping"), Level::None),
            ("x", path("/metrics"), Level::Metadata),
        ] {
            let decision = policy.decide(&UserInfo::new(user, &[]), &info);
            assert_eq!(decision.level, want, "{user} {info:?}");
            assert!(want == Level::None || decision.omit_stages == ["RequestReceived"]);
            assert_eq!(decision.omit_managed_fields, want == Level::RequestResponse);
        }
        assert_eq!(policy.decide(&UserInfo::anonymous(), &path("/x")).level, Level::None);
        for bad in [
            "",
            "kind: Policy\napiVersion: audit.k8s.io/v1",
            "kind: Pod\napiVersion: v1",
            "kind: Policy\napiVersion: audit.k8s.io/v1\nrules: [{level: Everything}]",
        ] {
            assert!(Policy::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
