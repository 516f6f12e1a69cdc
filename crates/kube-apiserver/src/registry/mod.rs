//! The generic resource handler: every resource, built in or custom, goes through here. What is special about one is
//! in its strategy (crate `api`) or, for subresources with a life of their own, in [`subresource`].

pub mod access;
pub mod compaction;
pub mod component_status;
pub mod delete;
pub mod entry;
pub mod handler;
pub mod list;
pub mod meta;
pub mod output;
pub mod ownership;
pub mod selection;
pub mod subresource;
pub mod watching;
pub mod write;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::clock::Clock;
use apimachinery::object::Encoded;
use apimachinery::status::Status;
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use storage::{Change, Expect, KeyRange, KeyValue, RangeRequest, Store, WriteOutcome, WriteRequest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, ROOT, ResourceCache};
use crate::http::respond;
use crate::seams::Policy;

pub use entry::{Entry, Table};

/// How long a write waits for the caches to show it.
const SETTLE_MAX: Duration = Duration::from_millis(250);

/// All objects: the resources there are, their caches, and the store beneath.
pub struct Registry {
    pub table: ArcSwap<Table>,
    pub cache: Arc<Cache>,
    pub store: Arc<dyn Store>,
    pub clock: Clock,
    pub policy: ArcSwapOption<Policy>,
    pub leases: write::Leases,
    /// Whether the objects every cluster has are there.
    pub started: watch::Sender<bool>,
    /// Cancelled when the server begins to end.
    pub ending: CancellationToken,
}

/// How one conditional write ended.
pub enum Stored {
    Done {
        revision: u64,
    },
    /// Somebody came between: what is there now.
    Changed(Option<Arc<Encoded>>),
}

impl Registry {
    pub fn new(store: Arc<dyn Store>, clock: Clock, enabled: &dyn Fn(&str) -> Option<bool>) -> Arc<Registry> {
        let cache = Cache::new(store.clone());
        let table = entry::builtin(&cache, enabled);
        Arc::new(Registry {
            table: ArcSwap::from_pointee(table),
            cache,
            store,
            clock,
            policy: ArcSwapOption::empty(),
            leases: write::Leases::default(),
            started: watch::Sender::new(false),
            ending: CancellationToken::new(),
        })
    }

    pub fn is_started(&self) -> bool {
        *self.started.borrow()
    }

    pub fn set_started(&self) {
        self.started.send_replace(true);
    }

    pub fn subscribe_started(&self) -> watch::Receiver<bool> {
        self.started.subscribe()
    }

    pub fn is_ending(&self) -> bool {
        self.ending.is_cancelled()
    }

    pub fn policy(&self) -> Result<Arc<Policy>, Status> {
        self.policy.load_full().ok_or_else(|| Status::service_unavailable("the server is starting"))
    }

    /// The cache of a stored resource.
    pub fn cache_of<'a>(&self, entry: &'a Entry) -> Result<&'a Arc<ResourceCache>, Status> {
        entry.cache.as_ref().ok_or_else(|| Status::method_not_allowed(&entry.resource, &entry.group, "get"))
    }

    pub fn store_key(cache: &ResourceCache, key: &str) -> Bytes {
        let mut out = String::with_capacity(ROOT.len() + cache.prefix().len() + key.len());
        out.push_str(ROOT);
        out.push_str(cache.prefix());
        out.push_str(key);
        out.into()
    }

    /// Whether an object is worth writing again as it is.
    pub fn is_stale(&self, cache: &ResourceCache, key: &str) -> bool {
        self.store.is_stale(&Self::store_key(cache, key))
    }

    /// Reads one object from the store, consistently; shares the cache's copy when that is the same revision. Then the
    /// store is asked for the revision alone, since values lie on disk.
    pub async fn read(&self, cache: &ResourceCache, key: &str) -> Result<Option<Arc<Encoded>>, Status> {
        let mut request = RangeRequest::new(KeyRange::key(Self::store_key(cache, key)));
        request.limit = 1;
        if let Some(cached) = cache.get(key) {
            let request = RangeRequest { keys_only: true, ..request.clone() };
            let found = self.store.range(request).await.map_err(|e| respond::store_error(&e))?;
            match found.kvs.first() {
                None => return Ok(None),
                Some(kv) if cached.resource_version == kv.mod_revision as u64 => return Ok(Some(cached)),
                // Either of the two is behind.
                Some(_) => {}
            }
        }
        let found = self.store.range(request).await.map_err(|e| respond::store_error(&e))?;
        found.kvs.first().map(|kv| self.encoded(cache, key, kv)).transpose()
    }

    fn encoded(&self, cache: &ResourceCache, key: &str, kv: &KeyValue) -> Result<Arc<Encoded>, Status> {
        match cache.get(key) {
            Some(cached) if cached.resource_version == kv.mod_revision as u64 => Ok(cached),
            _ => cache.encoded(kv).map_err(Status::internal),
        }
    }

    /// Writes `object` when what is stored is still as `expect` says.
    pub async fn put(
        &self,
        cache: &ResourceCache,
        key: &str,
        expect: Expect,
        object: Arc<Encoded>,
        lease: i64,
    ) -> Result<Stored, Status> {
        let body = object.body.clone();
        self.cache.prepare(object);
        let request = WriteRequest {
            key: Self::store_key(cache, key),
            expect,
            change: Change::Put { value: body.clone(), lease },
        };
        let outcome = self.store.write(request).await;
        let result = match outcome {
            Ok(WriteOutcome::Written { revision, .. }) => {
                self.cache.wait_for(revision as u64, SETTLE_MAX).await;
                Ok(Stored::Done { revision: revision as u64 })
            }
            Ok(WriteOutcome::Unmet { current, .. }) => {
                current.map(|kv| self.encoded(cache, key, &kv)).transpose().map(Stored::Changed)
            }
            Err(error) => Err(respond::store_error(&error)),
        };
        self.cache.forget(&body);
        result
    }

    pub async fn remove(&self, cache: &ResourceCache, key: &str, expect: Expect) -> Result<Stored, Status> {
        let request = WriteRequest { key: Self::store_key(cache, key), expect, change: Change::Delete };
        match self.store.write(request).await.map_err(|e| respond::store_error(&e))? {
            WriteOutcome::Written { revision, .. } => {
                self.cache.wait_for(revision as u64, SETTLE_MAX).await;
                Ok(Stored::Done { revision: revision as u64 })
            }
            WriteOutcome::Unmet { current, .. } => {
                current.map(|kv| self.encoded(cache, key, &kv)).transpose().map(Stored::Changed)
            }
        }
    }
}

/// `Expect` for an object as it was read.
pub fn unchanged(object: &Encoded) -> Expect {
    Expect::ModRevision(object.resource_version as i64)
}
