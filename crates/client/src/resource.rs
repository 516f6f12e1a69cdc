//! Which objects: a resource and a selection of it.

use std::fmt;

/// A resource as it is addressed: `apps/v1 deployments`. The core group is "".
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
}

impl Resource {
    pub fn new(group: impl Into<String>, version: impl Into<String>, plural: impl Into<String>) -> Resource {
        Resource { group: group.into(), version: version.into(), plural: plural.into() }
    }

    /// The resource of a typed kind.
    pub fn of<K: kube::Resource<DynamicType = ()>>() -> Resource {
        Resource::new(K::group(&()), K::version(&()), K::plural(&()))
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of the collection, in one namespace or over all.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let scope = namespace.map(|ns| format!("namespaces/{ns}/")).unwrap_or_default();
        format!("{root}/{}/{scope}{}", self.api_version(), self.plural)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.group.is_empty() {
            true => write!(f, "{}", self.plural),
            false => write!(f, "{}.{}", self.plural, self.group),
        }
    }
}

/// Which objects of a resource; everything by default. The server decides: an object that ceases to match is told
/// as deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selection {
    pub namespace: Option<String>,
    /// A label selector in its text form.
    pub labels: Option<String>,
    /// A field selector in its text form.
    pub fields: Option<String>,
}

impl Selection {
    pub fn all() -> Selection {
        Selection::default()
    }

    pub fn namespace(namespace: impl Into<String>) -> Selection {
        Selection { namespace: Some(namespace.into()), ..Selection::default() }
    }

    pub fn with_labels(self, labels: impl Into<String>) -> Selection {
        Selection { labels: Some(labels.into()), ..self }
    }

    pub fn with_fields(self, fields: impl Into<String>) -> Selection {
        Selection { fields: Some(fields.into()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (group, version, plural, namespace, want) in [
            ("", "v1", "pods", None, "/api/v1/pods"),
            ("", "v1", "pods", Some("a"), "/api/v1/namespaces/a/pods"),
            ("apps", "v1", "deployments", Some("a"), "/apis/apps/v1/namespaces/a/deployments"),
        ] {
            assert_eq!(Resource::new(group, version, plural).path(namespace), want);
        }
    }
}
