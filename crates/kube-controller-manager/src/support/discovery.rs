//! Which resources the API server serves, custom ones and aggregated ones included.

use std::collections::BTreeMap;

use http::Request;
use serde::Deserialize;

const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A resource in its group's preferred version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Discovered {
    pub(crate) resource: client::Resource,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Discovered {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// What was found, and the groups that did not answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Discovery {
    pub(crate) resources: Vec<Discovered>,
    /// `group/version: why`.
    pub(crate) failures: Vec<String>,
}

#[derive(Deserialize)]
struct Groups {
    #[serde(default)]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    metadata: Meta,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Default, Deserialize)]
struct Meta {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default)]
    resources: Vec<Entry>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    resource: String,
    #[serde(default)]
    response_kind: Kind,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Default, Deserialize)]
struct Kind {
    #[serde(default)]
    kind: String,
}

/// Asks for aggregated discovery. Each resource comes once, in the first version its group lists it in.
pub(crate) async fn discover(kube: &kube::Client) -> anyhow::Result<Discovery> {
    let mut found = Discovery::default();
    for path in ["/api", "/apis"] {
        let request = Request::get(path).header(http::header::ACCEPT, ACCEPT).body(Vec::new())?;
        let groups: Groups = kube.request(request).await?;
        collect(groups, &mut found);
    }
    Ok(found)
}

fn collect(groups: Groups, found: &mut Discovery) {
    for group in groups.items {
        let name = group.metadata.name;
        let mut first: BTreeMap<String, Discovered> = BTreeMap::new();
        for version in group.versions {
            if version.freshness == "Stale" {
                found.failures.push(format!("{name}/{}: stale GroupVersion discovery", version.version));
            }
            for entry in version.resources {
                let resource =
                    client::Resource::new(name.clone(), version.version.clone(), entry.resource.clone());
                first.entry(entry.resource).or_insert_with(|| Discovered {
                    resource,
                    kind: entry.response_kind.kind,
                    namespaced: entry.scope == "Namespaced",
                    verbs: entry.verbs,
                });
            }
        }
        found.resources.extend(first.into_values());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn prefers_the_first_version() {
        let groups = json!({"items": [{"metadata": {"name": "g"}, "versions": [
            {"version": "v1", "resources": [{"resource": "as", "responseKind": {"kind": "A"}, "scope": "Namespaced", "verbs": ["list"]}]},
            {"version": "v1beta1", "freshness": "Stale", "resources": [
                {"resource": "as", "responseKind": {"kind": "A"}, "scope": "Namespaced", "verbs": ["list"]},
                {"resource": "bs", "responseKind": {"kind": "B"}, "scope": "Cluster", "verbs": ["delete"]}]}]}]});
        let mut found = Discovery::default();
        collect(serde_json::from_value(groups).unwrap(), &mut found);
        let got: Vec<_> = found
            .resources
            .iter()
            .map(|r| (r.resource.version.as_str(), r.kind.as_str(), r.namespaced))
            .collect();
        assert_eq!(got, [("v1", "A", true), ("v1beta1", "B", false)]);
        assert_eq!(found.failures.len(), 1);
        assert!(found.resources[0].can("list") && !found.resources[0].can("delete"));
    }
}
