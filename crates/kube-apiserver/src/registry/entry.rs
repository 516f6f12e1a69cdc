//! A served resource: a row of facts, the strategy and schema it follows, and the cache that holds its objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Strategy;
use apimachinery::codec::protobuf;
use apimachinery::object::{Encoded, InOrder};
use apimachinery::resources::ResourceInfo;
use apimachinery::schema::Schema;
use bytes::Bytes;
use serde_json::Value;

use crate::cache::{Cache, ResourceCache, ResourceKind};
use crate::custom::CustomResource;

/// A subresource as discovery and routing know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    pub name: String,
    pub kind: String,
    /// Where the kind is of another group version than the resource.
    pub group_version: Option<(String, String)>,
    pub verbs: Vec<String>,
}

/// One resource in one version. Versions of a resource share strategy and cache.
pub struct Entry {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub resource: String,
    pub kind: String,
    pub list_kind: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub verbs: Vec<String>,
    pub namespaced: bool,
    pub subresources: Vec<Subresource>,
    /// Of built-in kinds; custom resources have theirs in `custom`.
    pub builtin_schema: Option<&'static Schema>,
    pub strategy: &'static dyn Strategy,
    /// Absent for kinds that are not stored.
    pub cache: Option<Arc<ResourceCache>>,
    /// The version the bytes in the store are in.
    pub storage_version: String,
    /// The group the store's bytes carry: events of `events.k8s.io` are stored in the core group.
    pub storage_group: String,
    pub custom: Option<Arc<CustomResource>>,
}

impl Entry {
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    pub fn storage_api_version(&self) -> String {
        api_version(&self.storage_group, &self.storage_version)
    }

    /// Whether what is stored is what this version shows.
    pub fn is_storage_version(&self) -> bool {
        self.version == self.storage_version && self.group == self.storage_group
    }

    /// Whether an object is stored in the storage version. Custom resources stay in what that was when they were written.
    pub fn is_current(&self, object: &Encoded) -> bool {
        self.custom.as_ref().is_none_or(|c| c.is_current(object))
    }

    pub fn schema(&self) -> Option<&Schema> {
        match &self.custom {
            Some(custom) => custom.schema(),
            None => self.builtin_schema,
        }
    }

    /// Fills in what was left out.
    pub fn defaults(&self, object: &mut Value) {
        match &self.custom {
            Some(custom) => custom.defaults(object),
            None => self.strategy.defaults(object),
        }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.group == group && self.resource == resource
    }

    /// The key in the resource's cache.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Everything that is served now.
#[derive(Clone, Default)]
pub struct Table {
    /// group → version → resource
    groups: BTreeMap<String, BTreeMap<String, BTreeMap<String, Arc<Entry>>>>,
    /// What [`Table::find_any`] answers, by group and resource: it is asked many times for every request.
    any: hashbrown::HashMap<Name, Arc<Entry>>,
}

#[derive(Clone, Hash, PartialEq, Eq)]
struct Name {
    group: String,
    resource: String,
}

#[derive(Hash)]
struct NameRef<'a> {
    group: &'a str,
    resource: &'a str,
}

impl hashbrown::Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.resource == name.resource && self.group == name.group
    }
}

impl Table {
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Entry>> {
        self.groups.get(group)?.get(version)?.get(resource)
    }

    /// A resource in its storage version, or else in any.
    pub fn find_any(&self, group: &str, resource: &str) -> Option<&Arc<Entry>> {
        self.any.get(&NameRef { group, resource })
    }

    fn choose_any(&self, group: &str, resource: &str) -> Option<&Arc<Entry>> {
        let versions = self.groups.get(group)?;
        let mut found = versions.values().filter_map(|v| v.get(resource));
        let first = found.next()?;
        Some(if first.is_storage_version() {
            first
        } else {
            found.find(|e| e.is_storage_version()).unwrap_or(first)
        })
    }

    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Entry>> {
        self.groups.get(group)?.get(version)?.values().find(|e| e.kind == kind)
    }

    pub fn insert(&mut self, entry: Arc<Entry>) {
        let name = Name { group: entry.group.clone(), resource: entry.resource.clone() };
        self.groups
            .entry(entry.group.clone())
            .or_default()
            .entry(entry.version.clone())
            .or_default()
            .insert(entry.resource.clone(), entry);
        if let Some(any) = self.choose_any(&name.group, &name.resource).cloned() {
            self.any.insert(name, any);
        }
    }

    /// Removes every version of a resource.
    pub fn remove(&mut self, group: &str, resource: &str) {
        self.any.remove(&NameRef { group, resource });
        if let Some(versions) = self.groups.get_mut(group) {
            for resources in versions.values_mut() {
                resources.remove(resource);
            }
            versions.retain(|_, r| !r.is_empty());
            if versions.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    pub fn groups(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, BTreeMap<String, Arc<Entry>>>)> {
        self.groups.iter().map(|(g, v)| (g.as_str(), v))
    }

    pub fn group_versions(&self) -> Vec<(String, String)> {
        let pairs =
            self.groups().flat_map(|(g, versions)| versions.keys().map(move |v| (g.to_owned(), v.clone())));
        pairs.collect()
    }

    pub fn version(&self, group: &str, version: &str) -> Option<&BTreeMap<String, Arc<Entry>>> {
        self.groups.get(group)?.get(version)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.groups.values().flat_map(|v| v.values()).flat_map(|r| r.values())
    }
}

/// Whether a version is served without being asked for: generally available ones are.
fn on_by_default(version: &str) -> bool {
    !version.contains("alpha") && !version.contains("beta")
}

/// The built-in resources. `enabled` says more than the default about `group/version`.
pub fn builtin(cache: &Cache, enabled: &dyn Fn(&str) -> Option<bool>) -> Table {
    let mut table = Table::default();
    for info in apimachinery::resources::all() {
        let group_version = api_version(info.group, info.version);
        if enabled(&group_version).unwrap_or_else(|| on_by_default(info.version)) {
            table.insert(Arc::new(from_info(info, cache)));
        }
    }
    table
}

/// Reads an object that upstream's server stored: built-in kinds are protobuf there, in whichever version it stores.
fn from_protobuf(bytes: &Bytes) -> Result<Bytes, String> {
    let stored = protobuf::unwrap(bytes).map_err(|e| e.to_string())?;
    let (group, version) = stored.api_version.split_once('/').unwrap_or(("", &stored.api_version));
    let schema = apimachinery::schema::for_kind(group, version, &stored.kind)
        .ok_or_else(|| format!("{} {} is not known", stored.api_version, stored.kind))?;
    let value = protobuf::decode(bytes, schema).map_err(|e| e.to_string())?;
    match &value {
        Value::Object(members) => {
            serde_json::to_vec(&InOrder(members)).map(Bytes::from).map_err(|e| e.to_string())
        }
        _ => Err("not an object".to_owned()),
    }
}

fn from_info(info: &'static ResourceInfo, cache: &Cache) -> Entry {
    let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    // Events have one place in the store, whichever group they are asked for in; their own group is stricter.
    let storage_group = if info.resource == "events" { "" } else { info.group };
    let strategy = api::strategy(info.group, info.resource);
    let stored = info.is_stored().then(|| {
        cache.add(ResourceKind {
            prefix: format!("{}/", info.storage_prefix()),
            fields: Arc::new(|object| strategy.selectable_fields(object)),
            to_json: Some(Arc::new(from_protobuf)),
        })
    });
    let mut subresources: Vec<Subresource> = info
        .subresources
        .iter()
        .map(|s| Subresource {
            name: s.name.to_owned(),
            kind: s.kind.to_owned(),
            group_version: s.group.or(s.version).map(|_| {
                (s.group.unwrap_or(info.group).to_owned(), s.version.unwrap_or(info.version).to_owned())
            }),
            verbs: own(s.verbs),
        })
        .collect();
    subresources.sort_by(|a, b| a.name.cmp(&b.name));
    Entry {
        group: info.group.to_owned(),
        version: info.version.to_owned(),
        resource: info.resource.to_owned(),
        kind: info.kind.to_owned(),
        list_kind: format!("{}List", info.kind),
        singular: info.singular.to_owned(),
        short_names: own(info.short_names),
        categories: own(info.categories),
        verbs: own(info.verbs),
        namespaced: info.namespaced,
        subresources,
        builtin_schema: apimachinery::schema::for_kind(info.group, info.version, info.kind),
        strategy,
        cache: stored,
        storage_version: info.storage_version().to_owned(),
        storage_group: storage_group.to_owned(),
        custom: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_upstream_stored() {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "y"}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"},
        });
        let schema = apimachinery::schema::for_kind("", "v1", "Pod").unwrap();
        let stored = Bytes::from(protobuf::encode(&pod, schema));
        assert!(stored.starts_with(b"k8s\0"));
        let read: Value = serde_json::from_slice(&from_protobuf(&stored).unwrap()).unwrap();
        for path in [
            "/apiVersion",
            "/kind",
            "/metadata/uid",
            "/metadata/labels/x",
            "/spec/nodeName",
            "/spec/containers/0/image",
        ] {
            assert_eq!(read.pointer(path), pod.pointer(path), "{path}");
        }
        assert!(from_protobuf(&Bytes::from_static(b"k8s\0\x0a\x0a\x0a\x02v1\x12\x04None")).is_err());
        assert!(from_protobuf(&Bytes::from_static(b"junk")).is_err());
    }
}
