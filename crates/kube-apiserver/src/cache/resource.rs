//! The objects of one resource as of now, its latest changes, and those who watch it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apimachinery::object::{Attributes, Encoded};
use bytes::Bytes;
use parking_lot::RwLock;
use serde_json::Value;
use storage::{Event, KeyValue};
use tokio::sync::{mpsc, watch};

use super::events::{CachedEvent, EventKind, Frame};

/// Most events a ring keeps.
pub const RING_EVENTS_MAX: usize = 2048;
/// Bytes of bodies beyond which a ring shrinks to [`RING_EVENTS_MIN`] events.
const RING_BYTES_MAX: usize = 4 << 20;
const RING_EVENTS_MIN: usize = 128;
/// Events a watcher may lag behind before it is cut off.
const WATCHER_LAG_MAX: usize = 4096;

/// Selectable fields of an object, read when it enters the cache.
pub type FieldsOf = Arc<dyn Fn(&Value) -> Vec<(&'static str, String)> + Send + Sync>;
/// Turns stored bytes of another encoding into the JSON this server keeps.
pub type ToJson = Arc<dyn Fn(&Bytes) -> Result<Bytes, String> + Send + Sync>;

/// What a cache must know about its resource.
#[derive(Clone)]
pub struct ResourceKind {
    /// Below `/registry/`, with a slash at the end: `pods/`.
    pub prefix: String,
    pub fields: FieldsOf,
    pub to_json: Option<ToJson>,
}

/// Decides which objects a watcher sees.
pub type Matches = Arc<dyn Fn(&Attributes) -> bool + Send + Sync>;

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The present state as additions, then what follows.
    State,
    /// Changes after the present state.
    Now,
    /// Changes after this revision.
    After(u64),
}

/// The ring no longer reaches back so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: u64,
}

/// The present objects in key order, and the revision they are a state of.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub items: Vec<Arc<Encoded>>,
    pub revision: u64,
    /// A key that belongs there and whose value cannot be read.
    pub unreadable: Option<Box<str>>,
}

/// A change of the store on its way into a cache.
pub(super) struct Incoming {
    pub event: Event,
    /// Where the object's own key begins in the store's.
    pub at: usize,
    /// The object, where this server wrote it and need not read it again.
    pub prepared: Option<Arc<Encoded>>,
}

struct Subscriber {
    id: u64,
    matches: Option<Matches>,
    sender: mpsc::Sender<(EventKind, Arc<Frame>)>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Box<str>, Arc<Encoded>>,
    /// Keys whose stored values cannot be read: a list that would hold them fails, as upstream's does.
    unreadable: BTreeSet<Box<str>>,
    ring: VecDeque<Arc<CachedEvent>>,
    ring_bytes: usize,
    /// The ring holds every event after this revision.
    ring_after: u64,
    /// Revision of the newest event or listing applied.
    revision: u64,
    subscribers: Vec<Subscriber>,
    next_subscriber: u64,
    closed: bool,
}

pub struct ResourceCache {
    kind: ResourceKind,
    state: RwLock<State>,
    changes: watch::Sender<u64>,
    progress: Arc<AtomicU64>,
}

impl ResourceCache {
    pub(super) fn new(kind: ResourceKind, progress: Arc<AtomicU64>) -> ResourceCache {
        ResourceCache { kind, state: RwLock::default(), changes: watch::Sender::new(0), progress }
    }

    pub fn prefix(&self) -> &str {
        &self.kind.prefix
    }

    pub fn get(&self, key: &str) -> Option<Arc<Encoded>> {
        self.state.read().objects.get(key).cloned()
    }

    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the protobuf messages that were kept for the next who asks.
    pub(super) fn forget_messages(&self) {
        self.state.read().objects.values().for_each(|object| object.message.forget());
    }

    /// A value that changes with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The value of [`ResourceCache::changes`] as of now.
    pub fn changed(&self) -> u64 {
        *self.changes.borrow()
    }

    /// The objects whose key begins with `prefix` (empty, or `namespace/`) and that `matches` accepts.
    pub fn snapshot(&self, prefix: &str, matches: Option<&dyn Fn(&Attributes) -> bool>) -> Snapshot {
        let state = self.state.read();
        let unreadable = state.unreadable.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)).next();
        Snapshot {
            revision: self.current(&state),
            items: select(&state.objects, prefix, matches),
            unreadable: unreadable.filter(|key| key.starts_with(prefix)).cloned(),
        }
    }

    fn current(&self, state: &State) -> u64 {
        self.progress.load(Ordering::Acquire).max(state.revision)
    }

    /// Parses stored bytes into what the cache holds.
    pub fn encoded(&self, kv: &KeyValue) -> Result<Arc<Encoded>, String> {
        let body = match &self.kind.to_json {
            Some(to_json) if kv.value.first() != Some(&b'{') => to_json(&kv.value)?,
            _ => kv.value.clone(),
        };
        Encoded::new(body, kv.mod_revision as u64, |v| (self.kind.fields)(v))
            .map(Arc::new)
            .map_err(|e| e.to_string())
    }

    /// As [`ResourceCache::encoded`]; what cannot be read is told of in the log.
    fn readable(&self, kv: &KeyValue) -> Option<Arc<Encoded>> {
        self.encoded(kv)
            .inspect_err(|error| tracing::error!(key = ?kv.key, %error, "stored object is unreadable"))
            .ok()
    }

    /// Replaces everything; watchers end, since what they missed is not known.
    pub(super) fn reset(&self, kvs: Vec<Arc<KeyValue>>, revision: u64) {
        let start = super::ROOT.len() + self.kind.prefix.len();
        let (mut objects, mut unreadable) = (BTreeMap::new(), BTreeSet::new());
        for kv in kvs {
            let Some(key) = key_text(&kv.key, start) else { continue };
            match self.readable(&kv) {
                Some(object) => {
                    objects.insert(key.into(), object);
                }
                None => {
                    unreadable.insert(key.into());
                }
            }
        }
        let mut state = self.state.write();
        let next_subscriber = state.next_subscriber;
        *state = State {
            objects,
            unreadable,
            ring_after: revision,
            revision,
            next_subscriber,
            ..State::default()
        };
        drop(state);
        self.changes.send_replace(revision);
    }

    /// Adds what was listed at `revision`, except where a newer event was applied already.
    pub(super) fn fill(&self, kvs: &[Arc<KeyValue>], revision: u64) {
        let start = super::ROOT.len() + self.kind.prefix.len();
        let mut state = self.state.write();
        let touched: Vec<Box<str>> = state
            .ring
            .iter()
            .map(|e| apimachinery::object::object_key(e.object.namespace(), e.object.name()).into())
            .collect();
        for kv in kvs {
            let Some(key) = key_text(&kv.key, start) else { continue };
            if state.objects.contains_key(key) || touched.iter().any(|t| **t == *key) {
                continue;
            }
            match self.readable(kv) {
                Some(object) => {
                    state.objects.insert(key.into(), object);
                }
                None => {
                    state.unreadable.insert(key.into());
                }
            }
        }
        state.ring_after =
            state.ring_after.max(revision.min(state.ring.front().map_or(revision, |e| e.revision - 1)));
        state.revision = state.revision.max(revision);
        drop(state);
        self.changes.send_replace(revision);
    }

    pub(super) fn close(&self) {
        let mut state = self.state.write();
        state.subscribers.clear();
        state.closed = true;
    }

    /// Applies changes of the store, and tells watchers of all of them at once.
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = Incoming>) {
        let ready: Vec<_> = changes.into_iter().filter_map(|change| self.ready(change)).collect();
        let mut state = self.state.write();
        let mut events = Vec::with_capacity(ready.len());
        let mut newest = 0;
        for (key, revision, put) in ready {
            if revision <= state.revision
                && state.objects.get(&key).is_some_and(|o| o.resource_version >= revision)
            {
                continue;
            }
            state.unreadable.remove(&key);
            let put = match put {
                Change::Put(object) => Some(object),
                Change::Delete => None,
                Change::Unreadable => {
                    state.objects.remove(&key);
                    state.unreadable.insert(key);
                    state.revision = state.revision.max(revision);
                    newest = revision;
                    continue;
                }
            };
            let previous = match &put {
                Some(object) => state.objects.insert(key, object.clone()),
                None => state.objects.remove(&key),
            };
            state.revision = state.revision.max(revision);
            newest = revision;
            events.push(match (put, previous) {
                (Some(object), previous) => {
                    let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
                    CachedEvent { kind, object, previous, revision }
                }
                (None, Some(last)) => {
                    let object = Arc::new(Encoded { resource_version: revision, ..Encoded::clone(&last) });
                    CachedEvent { kind: EventKind::Deleted, object, previous: Some(last), revision }
                }
                (None, None) => continue,
            });
        }
        state.publish(events);
        drop(state);
        if newest > 0 {
            self.changes.send_replace(newest);
        }
    }

    /// A change as key, revision and what became of the object; `None` where the key is none of this resource's.
    fn ready(&self, change: Incoming) -> Option<(Box<str>, u64, Change)> {
        let Incoming { event, at, prepared } = change;
        let revision = event.revision() as u64;
        let key = key_text(event.key(), at).map(Box::<str>::from)?;
        let change = match &event {
            Event::Put { kv, .. } => {
                let object = match prepared.map(Arc::try_unwrap) {
                    Some(Ok(mine)) => Some(Arc::new(Encoded { resource_version: revision, ..mine })),
                    Some(Err(shared)) => {
                        Some(Arc::new(Encoded { resource_version: revision, ..Encoded::clone(&shared) }))
                    }
                    None => self.readable(kv),
                };
                object.map_or(Change::Unreadable, Change::Put)
            }
            Event::Delete { .. } => Change::Delete,
        };
        Some((key, revision, change))
    }

    /// Begins a watch. `prefix` and `matches` select as in [`ResourceCache::snapshot`].
    pub fn watch(
        self: &Arc<Self>,
        prefix: &str,
        matches: Option<Matches>,
        start: Start,
    ) -> Result<Watcher, TooOld> {
        let mut state = self.state.write();
        let current = self.current(&state);
        let prefix = prefix.to_owned();
        let matches: Option<Matches> = match (prefix.strip_suffix('/'), matches) {
            (None, matches) => matches,
            (Some(namespace), None) => {
                let namespace: Box<str> = namespace.into();
                Some(Arc::new(move |a: &Attributes| a.namespace == namespace))
            }
            (Some(namespace), Some(matches)) => {
                let namespace: Box<str> = namespace.into();
                Some(Arc::new(move |a: &Attributes| a.namespace == namespace && matches(a)))
            }
        };
        let accept = |a: &Attributes| matches.as_ref().is_none_or(|m| m(a));
        let mut initial = Vec::new();
        let mut missed = VecDeque::new();
        match start {
            Start::State => initial = select(&state.objects, &prefix, Some(&accept)),
            Start::Now => {}
            Start::After(revision) => {
                if revision < state.ring_after {
                    return Err(TooOld { oldest: state.ring_after });
                }
                let from = state.ring.partition_point(|e| e.revision <= revision);
                missed = state
                    .ring
                    .range(from..)
                    .filter_map(|e| e.kind_for(accept).map(|k| (k, Arc::new(Frame::new(e.clone())))))
                    .collect();
            }
        }
        let (sender, receiver) = mpsc::channel(WATCHER_LAG_MAX);
        let id = state.next_subscriber;
        state.next_subscriber += 1;
        if !state.closed {
            state.subscribers.push(Subscriber { id, matches, sender });
        }
        Ok(Watcher { id, cache: self.clone(), initial, revision: current, missed, receiver })
    }
}

/// What becomes of an object.
enum Change {
    Put(Arc<Encoded>),
    Delete,
    Unreadable,
}

impl State {
    /// Every watcher gets all its events before the next one gets any: it wakes up once and finds them together.
    fn publish(&mut self, events: Vec<CachedEvent>) {
        let frames: Vec<Arc<Frame>> =
            events.into_iter().map(|event| Arc::new(Frame::new(Arc::new(event)))).collect();
        self.subscribers.retain(|s| {
            frames.iter().all(|frame| {
                let kind = match &s.matches {
                    None => Some(frame.event.kind),
                    Some(matches) => frame.event.kind_for(|a| matches(a)),
                };
                // Full or closed: the watcher is cut off and its channel ends after what it holds.
                kind.is_none_or(|kind| s.sender.try_send((kind, frame.clone())).is_ok())
            })
        });
        for frame in frames {
            self.ring_bytes += frame.event.object.body.len();
            self.ring.push_back(frame.event.clone());
        }
        while self.ring.len() > RING_EVENTS_MAX
            || (self.ring_bytes > RING_BYTES_MAX && self.ring.len() > RING_EVENTS_MIN)
        {
            if let Some(old) = self.ring.pop_front() {
                self.ring_bytes -= old.object.body.len();
                self.ring_after = old.revision;
            }
        }
    }
}

fn key_text(key: &[u8], start: usize) -> Option<&str> {
    std::str::from_utf8(key.get(start..)?).ok()
}

fn select(
    objects: &BTreeMap<Box<str>, Arc<Encoded>>,
    prefix: &str,
    matches: Option<&dyn Fn(&Attributes) -> bool>,
) -> Vec<Arc<Encoded>> {
    let wanted = |o: &&Arc<Encoded>| matches.is_none_or(|m| m(&o.attributes));
    if prefix.is_empty() {
        return objects.values().filter(wanted).cloned().collect();
    }
    objects
        .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(|(k, _)| k.starts_with(prefix))
        .map(|(_, o)| o)
        .filter(wanted)
        .cloned()
        .collect()
}

/// One watch in progress: first `initial` (when asked for), then [`Watcher::next`].
pub struct Watcher {
    id: u64,
    cache: Arc<ResourceCache>,
    /// The state at `revision`, with [`Start::State`].
    pub initial: Vec<Arc<Encoded>>,
    pub revision: u64,
    missed: VecDeque<(EventKind, Arc<Frame>)>,
    receiver: mpsc::Receiver<(EventKind, Arc<Frame>)>,
}

impl Watcher {
    /// The next change; `None` when the watcher was cut off or the cache was rebuilt.
    pub async fn next(&mut self) -> Option<(EventKind, Arc<Frame>)> {
        if let Some(event) = self.missed.pop_front() {
            return Some(event);
        }
        self.receiver.recv().await
    }

    /// The next change if it is there already.
    pub fn ready(&mut self) -> Option<(EventKind, Arc<Frame>)> {
        self.missed.pop_front().or_else(|| self.receiver.try_recv().ok())
    }

    /// How many changes are there already.
    pub fn waiting(&self) -> usize {
        self.missed.len() + self.receiver.len()
    }

    /// A revision up to which this watcher has been sent everything, provided [`Watcher::ready`] answers `None`
    /// after the call.
    pub fn progress(&self) -> u64 {
        self.cache.progress.load(Ordering::Acquire).max(self.revision)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut state = self.cache.state.write();
        if let Some(i) = state.subscribers.iter().position(|s| s.id == self.id) {
            state.subscribers.swap_remove(i);
        }
    }
}
