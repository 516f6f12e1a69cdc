//! The built-in resources: names, verbs, subresources, and where the store keeps them.

/// One built-in resource in one version.
#[derive(Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
}

/// A subresource, such as `status`.
#[derive(Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: &'static str,
    pub kind: &'static str,
    /// Where the kind is of another group than the resource (`scale` is `autoscaling/v1`).
    pub group: Option<&'static str>,
    pub version: Option<&'static str>,
    pub verbs: &'static [&'static str],
}

static RESOURCES: &[ResourceInfo] = include!(concat!(env!("OUT_DIR"), "/resources.rs"));

/// Every built-in resource, grouped by group and version in discovery order.
pub fn all() -> &'static [ResourceInfo] {
    RESOURCES
}

/// `group` is empty for the core group.
pub fn find(group: &str, version: &str, resource: &str) -> Option<&'static ResourceInfo> {
    RESOURCES.iter().find(|r| r.resource == resource && r.group == group && r.version == version)
}

/// The resource that serves a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static ResourceInfo> {
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

/// A resource in whichever version is listed first (the preferred one).
pub fn find_any_version(group: &str, resource: &str) -> Option<&'static ResourceInfo> {
    RESOURCES.iter().find(|r| r.resource == resource && r.group == group)
}

impl ResourceInfo {
    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether objects of it are kept in the store (reviews and bindings are not).
    pub fn is_stored(&self) -> bool {
        self.has_verb("get") && self.has_verb("create")
    }

    /// Where etcd keeps the objects, below `/registry/`, as upstream does: keys are
    /// `/registry/<prefix>/[<namespace>/]<name>`.
    pub fn storage_prefix(&self) -> &'static str {
        match (self.group, self.resource) {
            ("", "replicationcontrollers") => "controllers",
            ("", "endpoints") => "services/endpoints",
            ("", "nodes") => "minions",
            ("", "services") => "services/specs",
            ("networking.k8s.io", "ingresses") => "ingress",
            ("apiextensions.k8s.io", "customresourcedefinitions") => {
                "apiextensions.k8s.io/customresourcedefinitions"
            }
            ("apiregistration.k8s.io", "apiservices") => "apiregistration.k8s.io/apiservices",
            _ => self.resource,
        }
    }

    /// The version upstream writes to etcd.
    pub fn storage_version(&self) -> &'static str {
        match (self.group, self.resource) {
            ("events.k8s.io", "events") => "v1",
            ("coordination.k8s.io", "leasecandidates") => "v1beta1",
            (
                "admissionregistration.k8s.io",
                "mutatingadmissionpolicies" | "mutatingadmissionpolicybindings",
            ) => "v1beta1",
            ("resource.k8s.io", "devicetaintrules") => "v1alpha3",
            _ => find_any_version(self.group, self.resource).map_or(self.version, |r| r.version),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds() {
        let pods = find("", "v1", "pods").unwrap();
        assert_eq!((pods.kind, pods.namespaced, pods.storage_prefix()), ("Pod", true, "pods"));
        assert_eq!(pods.subresource("eviction").unwrap().group, Some("policy"));
        assert_eq!(
            find_kind("apps", "v1", "Deployment").unwrap().subresource("scale").unwrap().version,
            Some("v1")
        );
        assert_eq!(find("", "v1", "nodes").unwrap().storage_prefix(), "minions");
        assert_eq!(find("autoscaling", "v1", "horizontalpodautoscalers").unwrap().storage_version(), "v2");
        assert!(find("apps", "v2", "deployments").is_none());
        assert!(!find("", "v1", "bindings").unwrap().is_stored());
    }
}
