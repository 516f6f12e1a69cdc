//! One resource's objects as last heard, with indexes and subscribers.
//!
//! Sketch: an object costs one pointer in an ordered set (namespace, name), and one more per index entry; keys are read from the
//! object itself, never copied. Readers take a read lock for the time of a lookup and clone the pointer.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;

use apimachinery::object::Encoded;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{Resource, Selection, SourceEvent};

/// The built-in index by namespace.
pub const NAMESPACE_INDEX: &str = "namespace";
/// The built-in index by the UID of every owner; built when first asked for.
pub const OWNER_INDEX: &str = "owner-uid";

/// One change, as subscribers get it.
#[derive(Clone, Debug)]
pub enum Delta {
    Added(Arc<Encoded>),
    Updated { old: Arc<Encoded>, new: Arc<Encoded> },
    Deleted(Arc<Encoded>),
}

impl Delta {
    /// The object as it is now, or as it was last.
    pub fn object(&self) -> &Arc<Encoded> {
        match self {
            Delta::Added(o) | Delta::Updated { new: o, .. } | Delta::Deleted(o) => o,
        }
    }

    pub fn old(&self) -> Option<&Arc<Encoded>> {
        match self {
            Delta::Updated { old, .. } => Some(old),
            _ => None,
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        self.object().key()
    }
}

type Subscriber = Arc<dyn Fn(&Delta) + Send + Sync>;
type Extract = fn(&Encoded) -> Vec<String>;

/// An object in a set ordered by namespace and name.
#[derive(Clone)]
struct Entry(Arc<Encoded>);

/// What a set of entries is ordered and looked up by.
trait ByName {
    fn pair(&self) -> (&str, &str);
}

impl ByName for Entry {
    fn pair(&self) -> (&str, &str) {
        (self.0.namespace(), self.0.name())
    }
}

impl ByName for (&str, &str) {
    fn pair(&self) -> (&str, &str) {
        *self
    }
}

impl<'a> Borrow<dyn ByName + 'a> for Entry {
    fn borrow(&self) -> &(dyn ByName + 'a) {
        self
    }
}

impl PartialEq for dyn ByName + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.pair() == other.pair()
    }
}
impl Eq for dyn ByName + '_ {}
impl PartialOrd for dyn ByName + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for dyn ByName + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.pair().cmp(&other.pair())
    }
}
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.pair() == other.pair()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.pair().cmp(&other.pair())
    }
}

struct Index {
    extract: Extract,
    entries: HashMap<Box<str>, BTreeSet<Entry>>,
}

impl Index {
    fn insert(&mut self, object: &Arc<Encoded>) {
        for key in (self.extract)(object) {
            self.entries.entry(key.into()).or_default().replace(Entry(object.clone()));
        }
    }

    fn remove(&mut self, object: &Arc<Encoded>) {
        for key in (self.extract)(object) {
            if let Some(set) = self.entries.get_mut(key.as_str()) {
                set.remove(&Entry(object.clone()));
                if set.is_empty() {
                    self.entries.remove(key.as_str());
                }
            }
        }
    }
}

#[derive(Default)]
struct State {
    objects: BTreeSet<Entry>,
    indexes: HashMap<&'static str, Index>,
}

impl State {
    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Encoded>> {
        let key = (namespace, name);
        self.objects.get(&key as &dyn ByName).map(|e| e.0.clone())
    }

    fn put(&mut self, object: &Arc<Encoded>) -> Option<Arc<Encoded>> {
        let old = self.objects.replace(Entry(object.clone())).map(|e| e.0);
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(old);
            }
            index.insert(object);
        }
        old
    }

    fn remove(&mut self, object: &Encoded) -> Option<Arc<Encoded>> {
        let key = (object.namespace(), object.name());
        let old = self.objects.take(&key as &dyn ByName).map(|e| e.0)?;
        for index in self.indexes.values_mut() {
            index.remove(&old);
        }
        Some(old)
    }

    fn in_namespace(&self, namespace: &str) -> Vec<Arc<Encoded>> {
        let from = (namespace, "");
        self.objects
            .range::<dyn ByName, _>((
                std::ops::Bound::Included(&from as &dyn ByName),
                std::ops::Bound::Unbounded,
            ))
            .take_while(|e| e.0.namespace() == namespace)
            .map(|e| e.0.clone())
            .collect()
    }
}

struct Shared {
    resource: Resource,
    selection: Selection,
    state: RwLock<State>,
    /// Held while a change is told, so that everyone hears changes in order and a new subscriber misses none.
    subscribers: Mutex<Vec<Subscriber>>,
    synced: watch::Sender<bool>,
}

/// An informer without a type. Cheap to clone.
#[derive(Clone)]
pub struct RawInformer {
    shared: Arc<Shared>,
}

impl RawInformer {
    pub(crate) fn new(resource: Resource, selection: Selection) -> RawInformer {
        RawInformer {
            shared: Arc::new(Shared {
                resource,
                selection,
                state: RwLock::default(),
                subscribers: Mutex::default(),
                synced: watch::Sender::new(false),
            }),
        }
    }

    pub fn resource(&self) -> &Resource {
        &self.shared.resource
    }

    pub fn selection(&self) -> &Selection {
        &self.shared.selection
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Encoded>> {
        self.shared.state.read().get(namespace, name)
    }

    /// The object of a work-queue key, `namespace/name` or `name`.
    pub fn get_key(&self, key: &str) -> Option<Arc<Encoded>> {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        self.get(namespace, name)
    }

    /// All objects, or those of one namespace, ordered by namespace and name.
    pub fn list(&self, namespace: Option<&str>) -> Vec<Arc<Encoded>> {
        let state = self.shared.state.read();
        match namespace {
            Some(namespace) => state.in_namespace(namespace),
            None => state.objects.iter().map(|e| e.0.clone()).collect(),
        }
    }

    pub fn len(&self) -> usize {
        self.shared.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an index unless one of that name is there.
    pub fn add_index(&self, name: &'static str, extract: Extract) {
        let mut state = self.shared.state.write();
        if name == NAMESPACE_INDEX || state.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { extract, entries: HashMap::new() };
        for entry in &state.objects {
            index.insert(&entry.0);
        }
        state.indexes.insert(name, index);
    }

    /// The objects an index holds under `key`, ordered by namespace and name. An index nobody added holds nothing.
    pub fn by_index(&self, name: &str, key: &str) -> Vec<Arc<Encoded>> {
        if name == NAMESPACE_INDEX {
            return self.list(Some(key));
        }
        {
            let state = self.shared.state.read();
            if let Some(index) = state.indexes.get(name) {
                return index
                    .entries
                    .get(key)
                    .map(|set| set.iter().map(|e| e.0.clone()).collect())
                    .unwrap_or_default();
            }
        }
        if name == OWNER_INDEX {
            self.add_index(OWNER_INDEX, owner_uids);
            return self.by_index(name, key);
        }
        debug_assert!(false, "no index {name}");
        Vec::new()
    }

    /// The objects that name `uid` as an owner.
    pub fn by_owner(&self, uid: &str) -> Vec<Arc<Encoded>> {
        self.by_index(OWNER_INDEX, uid)
    }

    /// Waits for the first list to have been told to everyone.
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives in `self`.
        let _ = synced.wait_for(|s| *s).await;
    }

    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Calls `f` with every change in order, beginning with what is there as `Added`. `f` runs in the informer's
    /// task: it may read informers and enqueue, and must neither block nor subscribe to this informer.
    pub fn subscribe(&self, f: impl Fn(&Delta) + Send + Sync + 'static) {
        let mut subscribers = self.shared.subscribers.lock();
        for object in self.list(None) {
            f(&Delta::Added(object));
        }
        subscribers.push(Arc::new(f));
    }

    pub(crate) fn apply(&self, event: SourceEvent) {
        let subscribers = self.shared.subscribers.lock();
        let tell = |delta: Delta| subscribers.iter().for_each(|f| f(&delta));
        match event {
            SourceEvent::Applied(new) => tell(self.put(new)),
            SourceEvent::Deleted(last) => {
                let known = self.shared.state.write().remove(&last);
                if known.is_some() {
                    tell(Delta::Deleted(last));
                }
            }
            SourceEvent::Replace { items, .. } => {
                let mut gone: BTreeSet<Entry> = self.shared.state.read().objects.clone();
                for item in items {
                    let entry = Entry(item);
                    if let Some(old) = gone.take(&entry) {
                        if old.0.resource_version == entry.0.resource_version && old.0.uid() == entry.0.uid()
                        {
                            continue;
                        }
                        // Gone and made anew while we were not looking.
                        if old.0.uid() != entry.0.uid() {
                            self.shared.state.write().remove(&old.0);
                            tell(Delta::Deleted(old.0));
                        }
                    }
                    tell(self.put(entry.0));
                }
                for old in gone {
                    self.shared.state.write().remove(&old.0);
                    tell(Delta::Deleted(old.0));
                }
                self.shared.synced.send_if_modified(|s| !std::mem::replace(s, true));
            }
            SourceEvent::Bookmark(_) => {}
        }
    }

    fn put(&self, new: Arc<Encoded>) -> Delta {
        match self.shared.state.write().put(&new) {
            Some(old) => Delta::Updated { old, new },
            None => Delta::Added(new),
        }
    }
}

fn owner_uids(object: &Encoded) -> Vec<String> {
    object.attributes.owners.iter().map(|o| o.uid.to_string()).collect()
}

/// An informer that decodes on demand. Cheap to clone.
pub struct Informer<K> {
    raw: RawInformer,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { raw: self.raw.clone(), kind: PhantomData }
    }
}

impl<K> std::ops::Deref for Informer<K> {
    type Target = RawInformer;
    fn deref(&self) -> &RawInformer {
        &self.raw
    }
}

impl<K: DeserializeOwned> Informer<K> {
    pub fn new(raw: RawInformer) -> Informer<K> {
        Informer { raw, kind: PhantomData }
    }

    pub fn raw(&self) -> &RawInformer {
        &self.raw
    }

    pub fn get_typed(&self, namespace: &str, name: &str) -> Option<K> {
        self.raw.get(namespace, name).and_then(|o| self.decode(&o))
    }

    /// As [`RawInformer::get_key`], decoded.
    pub fn get_key_typed(&self, key: &str) -> Option<K> {
        self.raw.get_key(key).and_then(|o| self.decode(&o))
    }

    pub fn list_typed(&self, namespace: Option<&str>) -> Vec<K> {
        self.raw.list(namespace).iter().filter_map(|o| self.decode(o)).collect()
    }

    pub fn by_index_typed(&self, name: &str, key: &str) -> Vec<K> {
        self.raw.by_index(name, key).iter().filter_map(|o| self.decode(o)).collect()
    }

    /// Decodes an object of this informer. One that does not decode is logged and skipped: it must not stop work
    /// on the others.
    pub fn decode(&self, object: &Encoded) -> Option<K> {
        match object.decode() {
            Ok(typed) => Some(typed),
            Err(error) => {
                tracing::warn!(resource = %self.raw.resource(), key = object.key(), %error, "skipping an object that does not decode");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures::StreamExt;
    use futures::stream::BoxStream;
    use k8s_openapi::api::core::v1::ConfigMap;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{Informers, WatchSource};

    struct FakeSource(Mutex<Option<mpsc::UnboundedReceiver<SourceEvent>>>);

    impl WatchSource for FakeSource {
        fn list_watch(&self, _: &Resource, _: &Selection) -> BoxStream<'static, SourceEvent> {
            UnboundedReceiverStream::new(self.0.lock().take().expect("one informer per resource")).boxed()
        }
    }

    fn object(namespace: &str, name: &str, owner: &str, rv: u64) -> Arc<Encoded> {
        let body = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": name, "namespace": namespace, "uid": format!("{namespace}-{name}"),
            "ownerReferences": [{"uid": owner, "kind": "K", "name": "o", "apiVersion": "v1"}]}});
        Arc::new(Encoded::new(Bytes::from(body.to_string()), rv, |_| vec![]).unwrap())
    }

    fn names(objects: &[Arc<Encoded>]) -> Vec<String> {
        objects.iter().map(|o| o.key()).collect()
    }

    #[test]
    fn conditions_without_a_time_are_read() {
        use k8s_openapi::api::core::v1::Service;
        let body = serde_json::json!({"metadata": {"name": "s", "creationTimestamp": null}, "status": {"conditions": [
            {"type": "A", "status": "True", "reason": "", "message": "", "lastTransitionTime": null}]}});
        let object = Encoded::new(Bytes::from(body.to_string()), 1, |_| vec![]).unwrap();
        let service: Service = object.decode().unwrap();
        assert_eq!(service.metadata.creation_timestamp, None);
        assert_eq!(service.status.unwrap().conditions.unwrap()[0].type_, "A");
    }

    #[tokio::test]
    async fn follows_its_source() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let source = FakeSource(Mutex::new(Some(receiver)));
        let informers = Informers::new(CancellationToken::new());
        let resource = Resource::of::<ConfigMap>();
        let start = || informers.informer(&source, resource.clone(), Selection::all());
        let informer = Informer::<ConfigMap>::new(start());
        let again = start();
        assert_eq!(informers.len(), 1);
        assert!(!informer.has_synced());

        let (told, mut heard) = mpsc::unbounded_channel();
        again.subscribe(move |delta| {
            let kind = match delta {
                Delta::Added(_) => "+",
                Delta::Updated { .. } => "~",
                Delta::Deleted(_) => "-",
            };
            told.send(format!("{kind}{}", delta.key())).unwrap();
        });
        let replace = |items, resource_version| SourceEvent::Replace { items, resource_version };
        let initial = vec![object("b", "x", "u1", 1), object("a", "y", "u1", 2), object("a", "x", "u2", 3)];
        sender.send(replace(initial, 3)).unwrap();
        informer.synced().await;
        assert_eq!(names(&informer.list(None)), ["a/x", "a/y", "b/x"]);
        assert_eq!(names(&informer.list(Some("a"))), ["a/x", "a/y"]);
        assert_eq!(names(&informer.by_index(NAMESPACE_INDEX, "b")), ["b/x"]);
        assert_eq!(names(&informer.by_owner("u1")), ["a/y", "b/x"]);

        sender.send(SourceEvent::Applied(object("a", "x", "u1", 4))).unwrap();
        sender.send(SourceEvent::Deleted(object("b", "x", "u1", 5))).unwrap();
        sender.send(replace(vec![object("a", "x", "u1", 4), object("c", "z", "u1", 7)], 9)).unwrap();
        let mut all = vec![];
        for _ in 0..7 {
            all.push(tokio::time::timeout(Duration::from_secs(5), heard.recv()).await.unwrap().unwrap());
        }
        assert_eq!(all, ["+b/x", "+a/y", "+a/x", "~a/x", "-b/x", "+c/z", "-a/y"]);
        assert_eq!(names(&informer.by_owner("u1")), ["a/x", "c/z"]);
        assert!(informer.by_owner("u2").is_empty());
        let typed = informer.get_typed("a", "x").unwrap();
        assert_eq!(typed.metadata.resource_version.as_deref(), Some("4"));

        // A late subscriber hears what is there.
        let count = Arc::new(Mutex::new(0));
        let counted = count.clone();
        informer.subscribe(move |_| *counted.lock() += 1);
        assert_eq!(*count.lock(), 2);
        informers.shutdown(Duration::from_secs(5)).await;
    }
}
