//! Policy rules: what one allows, and whether one set of rules covers another.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::seams::RequestInfo;

/// `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyRule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == item)
}

fn has_or_all(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == "*" || x == item)
}

fn url_matches(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*'))
}

impl PolicyRule {
    pub fn allows(&self, request: &RequestInfo) -> bool {
        if !has_or_all(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.non_resource_urls.iter().any(|p| url_matches(p, &request.path));
        }
        has_or_all(&self.api_groups, &request.group)
            && self.resources.iter().any(|r| resource_matches(r, &request.resource, &request.subresource))
            && (self.resource_names.is_empty() || has(&self.resource_names, &request.name))
    }

    /// The rule as rules of one verb, one group, one resource and at most one name each.
    fn atoms(&self) -> Vec<PolicyRule> {
        let one = |s: &str| vec![s.to_owned()];
        let mut out = Vec::new();
        for verb in &self.verbs {
            for group in &self.api_groups {
                for resource in &self.resources {
                    let base = PolicyRule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..PolicyRule::default()
                    };
                    if self.resource_names.is_empty() {
                        out.push(base);
                        continue;
                    }
                    out.extend(
                        self.resource_names
                            .iter()
                            .map(|name| PolicyRule { resource_names: one(name), ..base.clone() }),
                    );
                }
            }
            out.extend(self.non_resource_urls.iter().map(|url| PolicyRule {
                verbs: one(verb),
                non_resource_urls: one(url),
                ..PolicyRule::default()
            }));
        }
        out
    }

    /// Whether this rule grants all that `atom` does.
    fn covers(&self, atom: &PolicyRule) -> bool {
        let resource_covered = |r: &String| {
            has_or_all(&self.resources, r)
                || r.split_once('/').is_some_and(|(_, sub)| has(&self.resources, &format!("*/{sub}")))
        };
        let url_covered = |u: &String| {
            self.non_resource_urls
                .iter()
                .any(|p| p == u || p.ends_with('*') && u.starts_with(p.trim_end_matches('*')))
        };
        let name_covered = self.resource_names.is_empty()
            || !atom.resource_names.is_empty()
                && atom.resource_names.iter().all(|n| has(&self.resource_names, n));
        atom.verbs.iter().all(|v| has_or_all(&self.verbs, v))
            && atom.api_groups.iter().all(|g| has_or_all(&self.api_groups, g))
            && atom.resources.iter().all(resource_covered)
            && atom.non_resource_urls.iter().all(url_covered)
            && name_covered
    }

    /// The form the escalation message lists rules in.
    fn compact(&self) -> String {
        let list = |name: &str, items: &[String]| {
            if items.is_empty() {
                return None;
            }
            let items: Vec<String> = items.iter().map(|i| format!("{i:?}")).collect();
            Some(format!("{name}:[{}]", items.join(" ")))
        };
        let parts: Vec<String> = [
            list("APIGroups", &self.api_groups),
            list("Resources", &self.resources),
            list("NonResourceURLs", &self.non_resource_urls),
            list("ResourceNames", &self.resource_names),
            list("Verbs", &self.verbs),
        ]
        .into_iter()
        .flatten()
        .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    if subresource.is_empty() {
        return pattern == resource;
    }
    match pattern.split_once('/') {
        Some((r, s)) => s == subresource && (r == resource || r == "*"),
        None => false,
    }
}

/// The rules of `wanted` that `owned` does not cover, one verb and resource each.
pub fn uncovered(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    wanted.iter().flat_map(PolicyRule::atoms).filter(|atom| !owned.iter().any(|o| o.covers(atom))).collect()
}

/// Joins atoms that differ only in their verb and prints them, sorted, one per line.
pub fn describe(rules: &[PolicyRule]) -> String {
    let mut merged: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        let same = merged.iter_mut().find(|m| {
            m.api_groups == rule.api_groups
                && m.resources == rule.resources
                && m.resource_names == rule.resource_names
                && m.non_resource_urls == rule.non_resource_urls
        });
        match same {
            Some(m) => m.verbs.extend(rule.verbs.iter().cloned()),
            None => merged.push(rule.clone()),
        }
    }
    let lines: BTreeSet<String> = merged.iter().map(PolicyRule::compact).collect();
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> PolicyRule {
        let list = |s: &str| s.split(',').filter(|x| !x.is_empty()).map(str::to_owned).collect();
        let groups = if groups == "core" { vec![String::new()] } else { list(groups) };
        PolicyRule {
            verbs: list(verbs),
            api_groups: groups,
            resources: list(resources),
            resource_names: list(names),
            ..PolicyRule::default()
        }
    }

    #[test]
    fn allows_what_it_names() {
        for (rule, verb, group, resource, subresource, name, want) in [
            (rule("get", "core", "pods", ""), "get", "", "pods", "", "a", true),
            (rule("get", "core", "pods", ""), "list", "", "pods", "", "", false),
            (rule("*", "*", "*", ""), "list", "apps", "deployments", "scale", "", true),
            (rule("get", "core", "pods", ""), "get", "", "pods", "log", "a", false),
            (rule("get", "core", "pods/log", ""), "get", "", "pods", "log", "a", true),
            (rule("get", "*", "*/scale", ""), "get", "apps", "deployments", "scale", "a", true),
            (rule("get", "*", "*/scale", ""), "get", "apps", "deployments", "", "a", false),
            (rule("get", "core", "configmaps", "a"), "get", "", "configmaps", "", "a", true),
            (rule("get", "core", "configmaps", "a"), "get", "", "configmaps", "", "b", false),
            (rule("list", "core", "configmaps", "a"), "list", "", "configmaps", "", "", false),
        ] {
            let request = RequestInfo {
                verb: verb.into(),
                is_resource: true,
                group: group.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                name: name.into(),
                ..RequestInfo::default()
            };
            assert_eq!(rule.allows(&request), want, "{rule:?} {request:?}");
        }
    }

    #[test]
    fn allows_paths() {
        for (pattern, path, want) in [
            ("/healthz", "/healthz", true),
            ("/api/*", "/api/v1", true),
            ("*", "/x", true),
            ("/a", "/ab", false),
        ] {
            let rule = PolicyRule {
                verbs: vec!["get".into()],
                non_resource_urls: vec![pattern.into()],
                ..PolicyRule::default()
            };
            let request = RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() };
            assert_eq!(rule.allows(&request), want);
        }
    }

    #[test]
    fn covering() {
        for (owned, wanted, want) in [
            (rule("*", "*", "*", ""), rule("get,list", "core", "pods,pods/log", "x"), 0),
            (rule("get", "core", "pods", ""), rule("get,list", "core", "pods", ""), 1),
            (rule("get", "core", "pods", "a"), rule("get", "core", "pods", ""), 1),
            (rule("get", "core", "pods", "a"), rule("get", "core", "pods", "a,b"), 1),
            (rule("get", "core", "*/log", ""), rule("get", "core", "pods/log", ""), 0),
        ] {
            assert_eq!(uncovered(std::slice::from_ref(&owned), &[wanted]).len(), want, "{owned:?}");
        }
    }
}
