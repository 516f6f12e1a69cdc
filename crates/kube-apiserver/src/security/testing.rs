//! Fakes for the tests of identity and policy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::failure;
use crate::seams::{Objects, Writer};

type Key = (String, String);

/// Objects in memory; writes go straight in.
#[derive(Default)]
pub struct FakeObjects {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, BTreeMap<String, Arc<Encoded>>>,
    changes: HashMap<Key, watch::Sender<u64>>,
}

fn key(group: &str, resource: &str) -> Key {
    (group.to_owned(), resource.to_owned())
}

impl FakeObjects {
    pub fn put(&self, group: &str, resource: &str, mut object: Value) -> Arc<Encoded> {
        let mut state = self.state.lock();
        state.revision += 1;
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
            if meta.get("uid").is_none_or(Value::is_null) {
                meta.insert(
                    "uid".into(),
                    json!(format!("uid-{}", meta["name"].as_str().unwrap_or_default())),
                );
            }
        }
        let mut fields = Vec::new();
        for path in ["spec.nodeName", "type"] {
            let value = path.split('.').fold(&object, |v, p| &v[p]);
            fields.push((path, value.as_str().unwrap_or_default().to_owned()));
        }
        let body = serde_json::to_vec(&object).unwrap_or_default();
        let encoded = Arc::new(Encoded::with_value(body.into(), state.revision, &object, fields));
        state.objects.entry(key(group, resource)).or_default().insert(encoded.key(), encoded.clone());
        let revision = state.revision;
        state
            .changes
            .entry(key(group, resource))
            .or_insert_with(|| watch::channel(0).0)
            .send_replace(revision);
        encoded
    }
}

impl Objects for FakeObjects {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Encoded>> {
        let state = self.state.lock();
        let of_resource = state.objects.get(&key(group, resource))?;
        of_resource.get(&apimachinery::object::object_key(namespace, name)).cloned()
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Encoded>> {
        let state = self.state.lock();
        let all = state.objects.get(&key(group, resource)).into_iter().flat_map(BTreeMap::values);
        all.filter(|o| namespace.is_none_or(|ns| o.namespace() == ns)).cloned().collect()
    }

    fn changes(&self, group: &str, resource: &str) -> watch::Receiver<u64> {
        let mut state = self.state.lock();
        state.changes.entry(key(group, resource)).or_insert_with(|| watch::channel(0).0).subscribe()
    }
}

#[async_trait]
impl Writer for FakeObjects {
    async fn create(
        &self,
        group: &str,
        _version: &str,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Encoded>, Status> {
        let meta = &object["metadata"];
        let (ns, name) =
            (meta["namespace"].as_str().unwrap_or_default(), meta["name"].as_str().unwrap_or_default());
        if self.get(group, resource, ns, name).is_some() {
            return Err(failure::already_exists(group, resource, name));
        }
        Ok(self.put(group, resource, object))
    }

    async fn update(
        &self,
        group: &str,
        _version: &str,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Encoded>, Status> {
        let resource = resource.split('/').next().unwrap_or(resource);
        Ok(self.put(group, resource, object))
    }

    async fn apply(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        config: Value,
        _manager: &str,
    ) -> Result<Arc<Encoded>, Status> {
        self.update(group, version, resource, config).await
    }

    async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Encoded>, Status> {
        self.get(group, resource, namespace, name).ok_or_else(|| failure::not_found(group, resource, name))
    }

    async fn delete(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Result<(), Status> {
        let mut state = self.state.lock();
        let of_resource = state.objects.entry(key(group, resource)).or_default();
        let gone = of_resource.remove(&apimachinery::object::object_key(namespace, name));
        gone.map(|_| ()).ok_or_else(|| failure::not_found(group, resource, name))
    }
}
