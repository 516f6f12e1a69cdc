//! The key-value store as the API server sees it: one trait, two implementations (the embedded engine of crate
//! `etcd`, called directly, and a v3 gRPC client for any etcd). No I/O happens here.
//!
//! The model is etcd's: a single, ever-growing revision orders all writes; each key carries the revision that
//! created it and the one that last changed it; a watch resumes from any revision that is not compacted.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// Position in the store's total order of writes. The first write has revision 2, as in etcd.
pub type Revision = i64;

/// Identifies a lease; 0 means none.
pub type LeaseId = i64;

/// One key at one revision. `value` is shared, never copied, between store, caches and responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// Number of puts since the key was created.
    pub version: i64,
    pub lease: LeaseId,
}

/// A half-open interval of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bytes,
    /// Exclusive. `None` means "to the end of the key space".
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// The one key.
    pub fn key(key: impl Into<Bytes>) -> KeyRange {
        let start = key.into();
        let mut end = Vec::with_capacity(start.len() + 1);
        end.extend_from_slice(&start);
        end.push(0);
        KeyRange { start, end: Some(end.into()) }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> KeyRange {
        let start = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return KeyRange { start, end: Some(end.into()) };
            }
        }
        KeyRange { start, end: None }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

/// What to read.
#[derive(Clone, Debug)]
pub struct RangeRequest {
    pub range: KeyRange,
    /// 0 means no limit.
    pub limit: usize,
    /// Read the state as of this revision; `None` reads the present state (linearizable).
    pub revision: Option<Revision>,
    pub keys_only: bool,
    pub count_only: bool,
}

impl RangeRequest {
    pub fn new(range: KeyRange) -> RangeRequest {
        RangeRequest { range, limit: 0, revision: None, keys_only: false, count_only: false }
    }
}

/// What was found, in key order.
#[derive(Clone, Debug, Default)]
pub struct RangeResponse {
    pub kvs: Vec<Arc<KeyValue>>,
    /// Whether `limit` cut the answer short.
    pub more: bool,
    /// Keys in the range, whatever the limit.
    pub count: usize,
    /// The store's revision when the read was served.
    pub revision: Revision,
}

/// The state of the key that a write requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    /// The key exists with this mod revision.
    ModRevision(Revision),
}

/// What a write does.
#[derive(Clone, Debug)]
pub enum Change {
    Put { value: Bytes, lease: LeaseId },
    Delete,
}

/// A compare-and-change of one key.
#[derive(Clone, Debug)]
pub struct WriteRequest {
    pub key: Bytes,
    pub expect: Expect,
    pub change: Change,
}

/// How a write ended. `Written` is returned only once the write is durable.
#[derive(Clone, Debug)]
pub enum WriteOutcome {
    Written {
        revision: Revision,
    },
    /// The expectation did not hold (or a delete found nothing); nothing was changed.
    Unmet {
        current: Option<Arc<KeyValue>>,
        revision: Revision,
    },
}

/// One change of one key, in revision order.
#[derive(Clone, Debug)]
pub enum Event {
    Put {
        kv: Arc<KeyValue>,
        /// What the put replaced, where that was asked for and is still known.
        previous: Option<Arc<KeyValue>>,
    },
    Delete {
        key: Bytes,
        revision: Revision,
        /// What was deleted, where that was asked for and is still known.
        previous: Option<Arc<KeyValue>>,
    },
}

impl Event {
    pub fn revision(&self) -> Revision {
        match self {
            Event::Put { kv, .. } => kv.mod_revision,
            Event::Delete { revision, .. } => *revision,
        }
    }

    pub fn key(&self) -> &Bytes {
        match self {
            Event::Put { kv, .. } => &kv.key,
            Event::Delete { key, .. } => key,
        }
    }
}

/// Events of one or more whole revisions. An empty batch says that everything up to `revision` has been sent.
#[derive(Clone, Debug)]
pub struct EventBatch {
    pub events: Vec<Event>,
    pub revision: Revision,
}

/// A watch ends with one error, or when the store stops.
pub type WatchStream = Pin<Box<dyn futures::Stream<Item = Result<EventBatch, Error>> + Send>>;

/// What the caller can do about a failed call is in the variant.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    /// Read or watch again from the present state.
    #[error("required revision has been compacted (compacted at {compacted})")]
    Compacted { compacted: Revision },
    #[error("required revision {requested} is a future revision (current {current})")]
    FutureRevision { requested: Revision, current: Revision },
    /// The watcher was too slow and was cut off; list again.
    #[error("the watcher fell too far behind and was cut off")]
    TooSlow,
    #[error("requested lease not found")]
    LeaseNotFound,
    #[error("lease already exists")]
    LeaseExists,
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    /// A put was to keep the value or the lease of a key that does not exist.
    #[error("key not found")]
    KeyNotFound,
    /// Delete or compact something, or raise the quota.
    #[error("database space exceeded")]
    NoSpace,
    /// Whether a write took place is unknown; read before trying again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The files are damaged; restore from a snapshot.
    #[error("the store's data is corrupt: {0}")]
    Corrupt(String),
}

/// A store of keys. Cheap to call from many tasks; implementations batch concurrent writes.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error>;

    /// Compares and changes one key; returns when the change is durable.
    async fn write(&self, request: WriteRequest) -> Result<WriteOutcome, Error>;

    /// Streams every change in `range` with a revision of at least `from`, without what it replaced.
    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error>;

    /// The revision of the newest write.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Forgets history below `revision`: older reads and watches answer [`Error::Compacted`].
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// Grants a lease of `ttl_seconds`; keys put with it are deleted when it runs out.
    async fn lease_grant(&self, ttl_seconds: i64) -> Result<LeaseId, Error>;
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error>;
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error>;

    /// Bytes on disk, for metrics and quotas.
    async fn size_bytes(&self) -> Result<u64, Error>;

    /// Whether the value of a key is kept otherwise than it would be written now, so that writing the same again is of
    /// use.
    fn is_stale(&self, _key: &[u8]) -> bool {
        false
    }
}
