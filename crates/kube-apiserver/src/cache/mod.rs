//! The watch cache: one watch over the whole store, dispatched to one cache per resource.
//!
//! Sketch: a store event costs one parse of the object (for its attributes), one insertion into an ordered map, one
//! slot in the resource's ring; a batch of them one send of an `Arc` per interested watcher. Watchers share the encoded frame
//! of an event; nobody copies the body but the one who first needs the frame, and who has several to send at once.
//! Memory: an object is its bytes, its attributes (~300 B) and a map entry; a ring holds at most [`resource::RING_EVENTS_MAX`]
//! events.
//!
//! One watch means one progress revision: a consistent list waits until that has passed the store's revision.

pub mod events;
pub mod resource;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use apimachinery::object::{Encoded, Message};
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use storage::{Event, EventBatch, KeyRange, KeyValue, RangeRequest, Store};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use events::{CachedEvent, EventKind, Frame};
use resource::Incoming;
pub use resource::{Next, ResourceCache, ResourceKind, Snapshot, Start, TooOld, Watcher};

/// Where upstream keeps everything.
pub const ROOT: &str = "/registry/";

/// Changes of one resource applied at a time, during which its readers wait.
const TOGETHER_MAX: usize = 64;
const RELIST_PAUSE: Duration = Duration::from_millis(200);
/// A message that nobody has asked for this long, or up to twice as long, is forgotten. Lists that many clients ask for come close
/// together, after a restart for instance.
const MESSAGES_AGE_EVERY: Duration = Duration::from_millis(500);
/// How long a consistent read waits for the cache before it reads the store itself.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);

/// Caches whose watchers are to be told something, and when.
type Owing = Vec<(Instant, Arc<ResourceCache>)>;

/// All resource caches and the task that feeds them.
pub struct Cache {
    store: Arc<dyn Store>,
    resources: ArcSwap<HashMap<String, Arc<ResourceCache>>>,
    /// Serializes registrations, which read the store.
    registering: tokio::sync::Mutex<()>,
    progress: watch::Sender<u64>,
    progress_now: Arc<AtomicU64>,
    synced: AtomicBool,
    /// Attributes of objects about to be written, by the address of their bytes: saves parsing them again.
    prepared: Mutex<HashMap<usize, Arc<Encoded>>>,
    messages: Notify,
    freed: Arc<Notify>,
}

impl Cache {
    pub fn new(store: Arc<dyn Store>) -> Arc<Cache> {
        Arc::new(Cache {
            store,
            resources: ArcSwap::default(),
            registering: tokio::sync::Mutex::new(()),
            progress: watch::Sender::new(0),
            progress_now: Arc::new(AtomicU64::new(0)),
            synced: AtomicBool::new(false),
            prepared: Mutex::new(HashMap::new()),
            messages: Notify::new(),
            freed: Arc::default(),
        })
    }

    /// Adds the cache of a resource before [`Cache::run`] starts, or returns the one that is there.
    pub fn add(&self, kind: ResourceKind) -> Arc<ResourceCache> {
        if let Some(there) = self.resources.load().get(&kind.prefix) {
            return there.clone();
        }
        let cache = Arc::new(ResourceCache::new(kind, self.progress_now.clone()));
        self.resources.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.insert(cache.prefix().to_owned(), cache.clone());
            all
        });
        cache
    }

    /// Adds the cache of a resource while the server runs (custom resources) and fills it from the store.
    pub async fn add_live(&self, kind: ResourceKind) -> Result<Arc<ResourceCache>, storage::Error> {
        let _one = self.registering.lock().await;
        if let Some(there) = self.resources.load().get(&kind.prefix) {
            return Ok(there.clone());
        }
        let cache = self.add(kind);
        if self.synced.load(Ordering::Acquire) {
            // Events that arrive meanwhile are applied; the listing only fills in what is older.
            let range = KeyRange::prefix(format!("{ROOT}{}", cache.prefix()));
            let found = self.store.range(RangeRequest::new(range)).await?;
            cache.fill(&found.kvs, found.revision as u64);
        }
        Ok(cache)
    }

    /// Forgets a resource; its watchers end.
    pub fn remove(&self, prefix: &str) {
        let mut gone = None;
        self.resources.rcu(|all| {
            let mut all = HashMap::clone(all);
            gone = all.remove(prefix);
            all
        });
        if let Some(cache) = gone {
            cache.reset(Vec::new(), self.revision());
        }
    }

    /// Every change up to this revision is in the caches.
    pub fn revision(&self) -> u64 {
        self.progress_now.load(Ordering::Acquire)
    }

    pub fn synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    pub fn subscribe_progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Waits until the caches hold everything up to `revision`; false when that takes longer than `limit`.
    pub async fn wait_for(&self, revision: u64, limit: Duration) -> bool {
        if self.revision() >= revision {
            return true;
        }
        let mut progress = self.progress.subscribe();
        tokio::time::timeout(limit, progress.wait_for(|now| *now >= revision)).await.is_ok_and(|r| r.is_ok())
    }

    /// Waits until the caches hold everything that is in the store now; false when they lag.
    pub async fn catch_up(&self) -> Result<bool, storage::Error> {
        let revision = self.store.revision().await? as u64;
        Ok(self.wait_for(revision, CATCH_UP_MAX).await)
    }

    /// Announces an object about to be written, so that its event need not be parsed. Pair with [`Cache::forget`].
    pub fn prepare(&self, object: Arc<Encoded>) {
        self.prepared.lock().insert(object.body.as_ptr() as usize, object);
    }

    pub fn forget(&self, body: &Bytes) {
        self.prepared.lock().remove(&(body.as_ptr() as usize));
    }

    /// To be called after a list, which may have kept protobuf messages for the next: those are forgotten some time after the
    /// last has asked for them.
    pub fn messages_made(&self) {
        if Message::any_kept() {
            self.messages.notify_one();
        }
    }

    /// Tells each time when much memory has been freed.
    pub fn freed(&self) -> Arc<Notify> {
        self.freed.clone()
    }

    async fn forget_messages(&self) {
        loop {
            self.messages.notified().await;
            loop {
                tokio::time::sleep(MESSAGES_AGE_EVERY).await;
                let resources = self.resources.load_full();
                if !resources.values().fold(false, |any, cache| cache.age_messages() | any) {
                    break;
                }
            }
            self.freed.notify_one();
        }
    }

    /// Fills the caches and follows the store until `shutdown`.
    pub async fn run(self: Arc<Cache>, shutdown: CancellationToken) {
        let work = async {
            loop {
                if let Err(error) = self.follow().await {
                    tracing::warn!(%error, "watch cache: reading everything again");
                }
                tokio::time::sleep(RELIST_PAUSE).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
            () = self.forget_messages() => {}
        }
        for cache in self.resources.load().values() {
            cache.close();
        }
    }

    async fn follow(&self) -> Result<(), storage::Error> {
        let found = self.store.range(RangeRequest::new(KeyRange::prefix(ROOT))).await?;
        let revision = found.revision as u64;
        let mut by_prefix: HashMap<String, Vec<Arc<KeyValue>>> = HashMap::new();
        for kv in found.kvs {
            if let Some((cache, _)) = self.route(&kv.key) {
                by_prefix.entry(cache.prefix().to_owned()).or_default().push(kv);
            }
        }
        for (prefix, cache) in self.resources.load().iter() {
            cache.reset(by_prefix.remove(prefix).unwrap_or_default(), revision);
        }
        self.advance(revision);
        self.synced.store(true, Ordering::Release);
        let mut events = self.store.watch(KeyRange::prefix(ROOT), found.revision + 1).await?;
        let mut owing: Owing = Vec::new();
        loop {
            let due = owing.iter().map(|(at, _)| *at).min();
            let batch = match due {
                None => events.next().await,
                Some(due) => tokio::select! {
                    batch = events.next() => batch,
                    () = tokio::time::sleep_until(due.into()) => {
                        owing.retain(|(at, cache)| {
                            let later = *at > due;
                            if !later {
                                cache.tell();
                            }
                            later
                        });
                        continue;
                    }
                },
            };
            match batch {
                Some(batch) => self.apply(batch?, &mut owing),
                None => return Ok(()),
            }
        }
    }

    fn apply(&self, batch: EventBatch, owing: &mut Owing) {
        let mut apply = |cache: Arc<ResourceCache>, changes: Vec<Incoming>| {
            if let Some(later) = cache.apply(changes) {
                owing.push((later, cache));
            }
        };
        let mut together: Option<(Arc<ResourceCache>, Vec<Incoming>)> = None;
        for event in batch.events {
            let Some((cache, at)) = self.route(event.key()) else { continue };
            let prepared = match &event {
                Event::Put { kv, .. } => self.prepared.lock().remove(&(kv.value.as_ptr() as usize)),
                Event::Delete { .. } => None,
            };
            let incoming = Incoming { event, at, prepared };
            match &mut together {
                Some((same, changes)) if Arc::ptr_eq(same, &cache) && changes.len() < TOGETHER_MAX => {
                    changes.push(incoming);
                }
                _ => {
                    if let Some((cache, changes)) = together.replace((cache, vec![incoming])) {
                        apply(cache, changes);
                    }
                }
            }
        }
        if let Some((cache, changes)) = together {
            apply(cache, changes);
        }
        self.advance(batch.revision as u64);
    }

    fn advance(&self, revision: u64) {
        if self.progress_now.fetch_max(revision, Ordering::AcqRel) < revision {
            self.progress.send_replace(revision);
        }
    }

    /// The cache a store key belongs to, and where the object's own key begins in it.
    fn route(&self, key: &[u8]) -> Option<(Arc<ResourceCache>, usize)> {
        let text = std::str::from_utf8(key).ok()?;
        let rest = text.strip_prefix(ROOT)?;
        let resources = self.resources.load();
        let first = rest.find('/')?;
        // Prefixes have one segment (`pods/`) or two (`services/specs/`); the longer one is the more specific.
        if let Some(second) = rest[first + 1..].find('/').map(|i| first + 1 + i)
            && let Some(cache) = resources.get(&rest[..=second])
        {
            return Some((cache.clone(), ROOT.len() + second + 1));
        }
        resources.get(&rest[..=first]).map(|cache| (cache.clone(), ROOT.len() + first + 1))
    }
}
