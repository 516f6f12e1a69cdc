//! The objects of one resource as of now, its latest changes, and those who watch it.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use apimachinery::object::{Attributes, Encoded};
use bytes::Bytes;
use parking_lot::RwLock;
use serde_json::Value;
use storage::{Event, KeyValue};
use tokio::sync::{mpsc, watch};

use super::events::{CachedEvent, EventKind, Frame, Told};

/// Most events a ring keeps.
pub const RING_EVENTS_MAX: usize = 2048;
/// Bytes of bodies beyond which a ring shrinks to [`RING_EVENTS_MIN`] events.
const RING_BYTES_MAX: usize = 4 << 20;
const RING_EVENTS_MIN: usize = 128;
/// Events a watcher may lag behind before it is cut off.
const WATCHER_LAG_MAX: usize = 4096;
/// What it costs about to wake a watcher and to send it what it has not seen.
const WATCHER_TURN: Duration = Duration::from_micros(8);
/// What the runtime's timers tell apart.
const TICK: Duration = Duration::from_millis(1);

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
    sender: mpsc::UnboundedSender<Told>,
    /// Events that are on their way to it: at most [`WATCHER_LAG_MAX`].
    waiting: Arc<AtomicUsize>,
}

impl Subscriber {
    /// False when it has ended, or lags so much that it is cut off: then its channel ends after what it holds.
    fn tell(&self, told: Told) -> bool {
        let waiting = self.waiting.fetch_add(told.events(), Ordering::AcqRel);
        (waiting == 0 || waiting + told.events() <= WATCHER_LAG_MAX) && self.sender.send(told).is_ok()
    }
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
    /// Events that watchers have not been told yet.
    held: Vec<Frame>,
    /// While the watchers are at work on what they were told last (on one core, about), new events gather: several at once
    /// cost hardly more than one.
    busy_until: Option<Instant>,
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

    /// Lets the protobuf messages grow older that were kept for the next who asks. Whether any are left.
    pub(super) fn age_messages(&self) -> bool {
        self.state.read().objects.values().fold(false, |any, object| object.message.grow_older() | any)
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
        let touched: HashSet<Box<str>> = state
            .ring
            .iter()
            .map(|e| apimachinery::object::object_key(e.object.namespace(), e.object.name()).into())
            .collect();
        for kv in kvs {
            let Some(key) = key_text(&kv.key, start) else { continue };
            if state.objects.contains_key(key) || touched.contains(key) {
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
        state.tell();
        state.subscribers.clear();
        state.closed = true;
    }

    /// Applies changes of the store, and tells watchers of all of them at once, unless those are still busy: then at the
    /// time returned, by [`ResourceCache::tell`].
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = Incoming>) -> Option<Instant> {
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
            // The ring still holds it, but no list asks for it any more.
            previous.iter().for_each(|previous| previous.message.forget());
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
        let later = state.publish(events);
        drop(state);
        if newest > 0 {
            self.changes.send_replace(newest);
        }
        later
    }

    /// Tells watchers what was held back.
    pub(super) fn tell(&self) {
        if !self.state.read().held.is_empty() {
            self.state.write().tell();
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
        // The new watcher finds those in the state or in the ring.
        state.tell();
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
        let mut missed = None;
        match start {
            Start::State => initial = select(&state.objects, &prefix, Some(&accept)),
            Start::Now => {}
            Start::After(revision) => {
                if revision < state.ring_after {
                    return Err(TooOld { oldest: state.ring_after });
                }
                let from = state.ring.partition_point(|e| e.revision <= revision);
                let frames = state.ring.range(from..).map(|event| Frame::new(event.clone())).collect();
                missed = Told::new(&frames, |event| event.kind_for(accept));
            }
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting: Arc<AtomicUsize> = Arc::default();
        let id = state.next_subscriber;
        state.next_subscriber += 1;
        if !state.closed {
            state.subscribers.push(Subscriber { id, matches, sender, waiting: waiting.clone() });
        }
        let cache = self.clone();
        Ok(Watcher { id, cache, initial, revision: current, told: missed, seen: 0, receiver, waiting })
    }
}

/// What becomes of an object.
enum Change {
    Put(Arc<Encoded>),
    Delete,
    Unreadable,
}

impl State {
    /// Takes in events in the order of their revisions. Returns when watchers are to be told, if that is not done yet
    /// and not owed already.
    fn publish(&mut self, events: Vec<CachedEvent>) -> Option<Instant> {
        let owed = !self.held.is_empty();
        for event in events.into_iter().map(Arc::new) {
            self.ring_bytes += event.object.body.len();
            self.ring.push_back(event.clone());
            self.held.push(Frame::new(event));
        }
        self.shrink_ring();
        let later = self.busy_until.filter(|until| Instant::now() < *until);
        if later.is_none() {
            self.tell();
        }
        later.filter(|_| !owed && !self.held.is_empty())
    }

    /// Every watcher gets all its events before the next one gets any: it wakes up once and finds them together.
    fn tell(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let frames: Arc<[Frame]> = std::mem::take(&mut self.held).into();
        let mut told = 0;
        self.subscribers.retain(|s| {
            let seen = Told::new(&frames, |event| match &s.matches {
                None => Some(event.kind),
                Some(matches) => event.kind_for(|a| matches(a)),
            });
            told += u32::from(seen.is_some());
            seen.is_none_or(|seen| s.tell(seen))
        });
        let turn = WATCHER_TURN * told;
        self.busy_until = (turn > TICK).then(|| Instant::now() + turn);
    }

    fn shrink_ring(&mut self) {
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

/// A change as a watcher sees it, and how many more are there already.
pub struct Next<'a> {
    pub kind: EventKind,
    pub frame: &'a Frame,
    pub waiting: usize,
}

/// One watch in progress: first `initial` (when asked for), then [`Watcher::next`].
pub struct Watcher {
    id: u64,
    cache: Arc<ResourceCache>,
    /// The state at `revision`, with [`Start::State`].
    pub initial: Vec<Arc<Encoded>>,
    pub revision: u64,
    /// What it was told last, and how much of that it has seen.
    told: Option<Told>,
    seen: usize,
    receiver: mpsc::UnboundedReceiver<Told>,
    waiting: Arc<AtomicUsize>,
}

impl Watcher {
    /// The next change; `None` when the watcher was cut off or the cache was rebuilt.
    pub async fn next(&mut self) -> Option<Next<'_>> {
        if self.unseen() == 0 {
            // Sleeping, it holds nothing.
            self.told = None;
            let told = self.receiver.recv().await?;
            self.take(told);
        }
        self.see()
    }

    /// The next change if it is there already.
    pub fn ready(&mut self) -> Option<Next<'_>> {
        if self.unseen() == 0 {
            self.told = None;
            let told = self.receiver.try_recv().ok()?;
            self.take(told);
        }
        self.see()
    }

    fn take(&mut self, told: Told) {
        self.waiting.fetch_sub(told.events(), Ordering::AcqRel);
        (self.told, self.seen) = (Some(told), 0);
    }

    fn see(&mut self) -> Option<Next<'_>> {
        self.seen += 1;
        let waiting = self.unseen() + self.waiting.load(Ordering::Relaxed);
        let (kind, frame) = self.told.as_ref()?.get(self.seen - 1)?;
        Some(Next { kind, frame, waiting })
    }

    fn unseen(&self) -> usize {
        self.told.as_ref().map_or(0, |told| told.events() - self.seen)
    }

    /// Every change up to this revision is in the cache, though perhaps not told yet.
    pub fn cached(&self) -> u64 {
        self.cache.progress.load(Ordering::Acquire).max(self.revision)
    }

    /// A revision up to which this watcher has been sent everything, provided [`Watcher::ready`] answers `None`
    /// after the call.
    pub fn progress(&self) -> u64 {
        let progress = self.cached();
        self.cache.tell();
        progress
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

#[cfg(test)]
mod tests {
    use super::*;

    fn put(revision: i64) -> Incoming {
        let body = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"c{revision}","namespace":"d"}}}}"#
        );
        let kv = KeyValue {
            key: format!("/registry/configmaps/d/c{revision}").into(),
            value: body.into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        };
        let at = super::super::ROOT.len() + "configmaps/".len();
        Incoming { event: Event::Put { kv: Arc::new(kv), previous: None }, at, prepared: None }
    }

    fn cache() -> Arc<ResourceCache> {
        let kind =
            ResourceKind { prefix: "configmaps/".into(), fields: Arc::new(|_| Vec::new()), to_json: None };
        let cache = Arc::new(ResourceCache::new(kind, Arc::default()));
        cache.reset(Vec::new(), 1);
        cache
    }

    fn told(watcher: &mut Watcher) -> Vec<u64> {
        std::iter::from_fn(|| watcher.ready().map(|next| next.frame.event.revision)).collect()
    }

    #[test]
    fn messages_grow_old_and_go_with_their_objects() {
        let schema = apimachinery::schema::for_kind("", "v1", "ConfigMap").unwrap();
        let cache = cache();
        cache.apply([put(2)]);
        let object = cache.get("d/c2").unwrap();
        object.to_kept_message(schema).unwrap();
        assert!(cache.age_messages());
        assert!(!cache.age_messages());
        object.to_kept_message(schema).unwrap();
        let mut again = put(2);
        if let Event::Put { kv, .. } = &mut again.event {
            Arc::make_mut(kv).mod_revision = 3;
        }
        cache.apply([again]);
        // Held by the ring and by the test, and not by the message's keeper.
        assert!(!object.message.grow_older());
        assert!(!cache.age_messages());
    }

    #[test]
    fn few_watchers_are_told_at_once() {
        let cache = cache();
        let mut watcher = cache.watch("", None, Start::Now).unwrap();
        for revision in 2..5 {
            assert_eq!(cache.apply([put(revision)]), None);
            assert_eq!(told(&mut watcher), [revision as u64]);
        }
    }

    #[test]
    fn many_watchers_are_told_again_when_they_have_had_time() {
        let cache = cache();
        // Long enough that the machine does not get there by itself.
        let many = 2_000_000;
        let mut watchers: Vec<Watcher> =
            (0..300).map(|_| cache.watch("", None, Start::Now).unwrap()).collect();
        assert_eq!(cache.apply([put(2)]), None);
        assert_eq!(told(&mut watchers[0]), [2]);
        cache.state.write().busy_until = Some(Instant::now() + WATCHER_TURN * many);
        let until = cache.state.read().busy_until;
        // Owed once.
        assert_eq!((cache.apply([put(3)]), cache.apply([put(4)])), (until, None));
        assert!(told(&mut watchers[0]).is_empty());
        assert_eq!(cache.snapshot("", None).revision, 4);
        // Who asks how far he is, is told all of it; who comes later gets nothing twice.
        watchers[0].progress();
        assert_eq!(told(&mut watchers[0]), [3, 4]);
        cache.state.write().busy_until = until;
        assert_eq!(cache.apply([put(5)]), until);
        let mut late = cache.watch("", None, Start::After(3)).unwrap();
        assert_eq!(told(&mut late), [4, 5]);
        assert_eq!(told(&mut watchers[299]), [2, 3, 4, 5]);
        cache.state.write().busy_until = until;
        assert_eq!(cache.apply([put(6)]), until);
        cache.tell();
        assert_eq!(told(&mut late), [6]);
    }
}
