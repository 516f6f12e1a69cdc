//! Encryption at rest: a store that keeps the values of chosen resources encrypted in the store beneath.

mod ciphers;
mod config;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use storage::{
    Change, Error, Event, EventBatch, KeyRange, KeyValue, LeaseId, RangeRequest, RangeResponse, Revision,
    Store, WatchStream, WriteOutcome, WriteRequest,
};

use config::Rules;

/// What all encrypted values begin with.
const ENCRYPTED: &[u8] = b"k8s:enc:";

pub struct Encrypted {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

struct Shared {
    rules: Rules,
    /// Keys whose values are not kept as they would be now.
    stale: Mutex<HashSet<Bytes>>,
}

impl Encrypted {
    /// `configuration` is an `apiserver.config.k8s.io/v1` EncryptionConfiguration, as YAML.
    pub fn new(inner: Arc<dyn Store>, configuration: &[u8]) -> anyhow::Result<Encrypted> {
        let shared = Shared { rules: Rules::parse(configuration)?, stale: Mutex::default() };
        Ok(Encrypted { inner, shared: Arc::new(shared) })
    }
}

impl Shared {
    fn open(&self, kv: Arc<KeyValue>) -> Arc<KeyValue> {
        let Some(rule) = self.rules.of(&kv.key) else { return kv };
        match rule.open(&kv.value, &kv.key) {
            Ok(opened) => {
                let mut stale = self.stale.lock();
                if opened.stale {
                    stale.insert(kv.key.clone());
                } else if !stale.is_empty() {
                    stale.remove(&kv.key);
                }
                drop(stale);
                match opened.value {
                    Some(value) => Arc::new(KeyValue { value: value.into(), ..(*kv).clone() }),
                    None => kv,
                }
            }
            Err(why) => {
                // Nobody may take it for the value; reads of this object fail, all others go on.
                tracing::error!(key = %String::from_utf8_lossy(&kv.key), %why, "cannot decrypt");
                Arc::new(KeyValue { value: Bytes::new(), ..(*kv).clone() })
            }
        }
    }

    fn open_event(&self, event: Event) -> Event {
        match event {
            Event::Put { kv, previous } => {
                Event::Put { kv: self.open(kv), previous: previous.map(|kv| self.open_old(kv)) }
            }
            Event::Delete { key, revision, previous } => {
                self.stale.lock().remove(&key);
                Event::Delete { key, revision, previous: previous.map(|kv| self.open_old(kv)) }
            }
        }
    }

    /// What is not there any more is not stale either.
    fn open_old(&self, kv: Arc<KeyValue>) -> Arc<KeyValue> {
        let Some(rule) = self.rules.of(&kv.key) else { return kv };
        let value = match rule.open(&kv.value, &kv.key) {
            Ok(opened) => opened.value,
            Err(_) => Some(Vec::new()),
        };
        match value {
            Some(value) => Arc::new(KeyValue { value: value.into(), ..(*kv).clone() }),
            None => kv,
        }
    }
}

#[async_trait]
impl Store for Encrypted {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let (bare, now) = (request.keys_only || request.count_only, request.revision.is_none());
        let mut found = self.inner.range(request).await?;
        if !bare {
            let open = |kv| if now { self.shared.open(kv) } else { self.shared.open_old(kv) };
            found.kvs = found.kvs.into_iter().map(open).collect();
        }
        Ok(found)
    }

    async fn write(&self, mut request: WriteRequest) -> Result<WriteOutcome, Error> {
        if let Change::Put { value, .. } = &mut request.change
            && let Some(rule) = self.shared.rules.of(&request.key)
        {
            let sealed =
                rule.seal(value, &request.key).map_err(|e| Error::Unavailable(format!("encrypting: {e}")))?;
            if let Some(sealed) = sealed {
                *value = sealed.into();
            }
        }
        let key = request.key.clone();
        Ok(match self.inner.write(request).await? {
            WriteOutcome::Written { revision } => {
                self.shared.stale.lock().remove(&key);
                WriteOutcome::Written { revision }
            }
            WriteOutcome::Unmet { current, revision } => {
                WriteOutcome::Unmet { current: current.map(|kv| self.shared.open(kv)), revision }
            }
        })
    }

    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error> {
        let shared = self.shared.clone();
        let events = self.inner.watch(range, from).await?;
        Ok(Box::pin(events.map(move |batch| {
            let EventBatch { events, revision } = batch?;
            Ok(EventBatch { events: events.into_iter().map(|e| shared.open_event(e)).collect(), revision })
        })))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.inner.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }

    async fn lease_grant(&self, ttl_seconds: i64) -> Result<LeaseId, Error> {
        self.inner.lease_grant(ttl_seconds).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.inner.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.inner.lease_revoke(lease).await
    }

    async fn size_bytes(&self) -> Result<u64, Error> {
        self.inner.size_bytes().await
    }

    fn is_stale(&self, key: &[u8]) -> bool {
        self.shared.stale.lock().contains(key)
    }
}
