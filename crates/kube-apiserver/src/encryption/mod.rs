//! Encryption at rest: a store that keeps the values of chosen resources encrypted in the store beneath.

mod ciphers;
mod config;
mod kms;
mod kms_api;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use apimachinery::clock::Clock;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use storage::{
    Change, Error, Event, EventBatch, KeyRange, KeyValue, LeaseId, RangeRequest, RangeResponse, Revision,
    Store, WatchStream, WriteOutcome, WriteRequest,
};

use crate::config_file::Reloads;
use crate::file_watch::FileWatch;
use crate::metrics::Families;
use crate::tasks::Tasks;
use config::{Context, Rules};

/// What all encrypted values begin with.
const ENCRYPTED: &[u8] = b"k8s:enc:";
/// How long plugins that are new in a configuration have to be well.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// An `apiserver.config.k8s.io/v1` EncryptionConfiguration, as YAML.
#[derive(Clone, Debug)]
pub struct Config {
    pub text: Vec<u8>,
    /// The file it was read from, where that is to be followed.
    pub follow: Option<PathBuf>,
}

/// Why a value could not be read.
#[derive(Debug)]
pub enum Unopened {
    /// It cannot be, with what is configured.
    Wrong(String),
    /// Somebody who is needed for it does not answer.
    NotNow(String),
}

impl From<String> for Unopened {
    fn from(why: String) -> Unopened {
        Unopened::Wrong(why)
    }
}

pub struct Encrypted {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

struct Shared {
    rules: ArcSwap<Rules>,
    /// Whether the configuration is followed.
    follows: bool,
    /// Keys whose values are not kept as they would be now.
    stale: Mutex<HashSet<Bytes>>,
    /// Counts what made all values stale: another configuration, another key of a plugin.
    epoch: Arc<AtomicU64>,
    /// Keys whose values were written, or found to be as they should, since the last of these.
    fresh: Mutex<(u64, HashSet<Bytes>)>,
    tasks: Tasks,
}

impl Encrypted {
    pub async fn new(
        inner: Arc<dyn Store>,
        config: &Config,
        clock: Clock,
        families: &Families,
    ) -> anyhow::Result<Encrypted> {
        let epoch: Arc<AtomicU64> = Arc::default();
        let tasks = Tasks::default();
        let context =
            Context { clock, families: families.clone(), tasks: tasks.clone(), epoch: epoch.clone() };
        let watch = config.follow.as_deref().map(FileWatch::new);
        let rules = Rules::start(&config.text, &context).await.context("error while parsing file")?;
        let shared = Arc::new(Shared {
            rules: ArcSwap::from_pointee(rules),
            follows: watch.is_some(),
            stale: Mutex::default(),
            epoch,
            fresh: Mutex::default(),
            tasks,
        });
        if let Some(watch) = watch {
            shared.tasks.spawn(shared.clone().follow(watch, config.text.clone(), context));
        }
        Ok(Encrypted { inner, shared })
    }

    /// How the KMS plugins are; `None` where nobody asks after them.
    pub async fn health(&self) -> Option<Result<(), String>> {
        let rules = self.shared.rules.load_full();
        (self.shared.follows || !rules.plugins.is_empty()).then_some(())?;
        Some(health(&rules).await)
    }

    /// Ends what is done beside requests.
    pub fn end(&self) {
        self.shared.tasks.end();
    }
}

async fn health(rules: &Rules) -> Result<(), String> {
    let mut errors: Vec<String> = Vec::new();
    for (i, plugin) in rules.plugins.iter().enumerate() {
        errors.extend(plugin.health().await.err().map(|why| format!("kms-provider-{i}: {why}")));
    }
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.swap_remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

impl Shared {
    /// Takes what the file says, whenever that is another thing.
    async fn follow(self: Arc<Self>, watch: FileWatch, mut seen: Vec<u8>, context: Context) {
        let reloads = Reloads::new(
            &context.families,
            [
                "apiserver_encryption_config_controller_automatic_reloads_total",
                "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds",
                "apiserver_encryption_config_controller_last_config_info",
            ],
            &seen,
        );
        loop {
            watch.changed().await;
            let fresh = match tokio::fs::read(watch.path()).await {
                Ok(text) if text == seen => continue,
                Ok(text) => self.replace(&text, &context).await.map(|()| text),
                Err(error) => Err(error.into()),
            };
            match fresh {
                Ok(text) => {
                    tracing::info!("loaded a new encryption configuration");
                    reloads.succeeded(&text);
                    seen = text;
                }
                Err(error) => {
                    let path = watch.path().display();
                    tracing::error!("error processing encryption config file {path}: {error:#}");
                    reloads.failed();
                }
            }
        }
    }

    async fn replace(&self, text: &[u8], context: &Context) -> anyhow::Result<()> {
        let rules = Rules::start(text, context).await?;
        let well = async {
            loop {
                match health(&rules).await {
                    Ok(()) => return,
                    Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
                }
            }
        };
        if tokio::time::timeout(PATIENCE, well).await.is_err() {
            let why = health(&rules).await.err().unwrap_or_default();
            anyhow::bail!(
                "health check for new transformers failed, polling error timed out waiting for the condition: {why}"
            );
        }
        self.rules.store(Arc::new(rules));
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Notes whether the value of a key is kept as it would be now.
    fn note(&self, key: &Bytes, is_stale: bool) {
        let mut stale = self.stale.lock();
        if is_stale {
            stale.insert(key.clone());
            return;
        }
        if !stale.is_empty() {
            stale.remove(key);
        }
        drop(stale);
        let epoch = self.epoch.load(Ordering::Acquire);
        if epoch > 0 {
            let mut fresh = self.fresh.lock();
            if fresh.0 != epoch {
                *fresh = (epoch, HashSet::new());
            }
            fresh.1.insert(key.clone());
        }
    }

    fn is_stale(&self, key: &[u8]) -> bool {
        if self.stale.lock().contains(key) {
            return true;
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        if epoch == 0 || self.rules.load().of(key).is_none() {
            return false;
        }
        let fresh = self.fresh.lock();
        fresh.0 != epoch || !fresh.1.contains(key)
    }

    /// A value of now as it was meant. One that cannot be read is empty: nobody may take it for the value, reads of
    /// this object fail, all others go on.
    async fn open(&self, kv: Arc<KeyValue>) -> Result<Arc<KeyValue>, Error> {
        let rules = self.rules.load_full();
        let Some(rule) = rules.of(&kv.key) else { return Ok(kv) };
        match rule.open(&kv.value, &kv.key).await {
            Ok(opened) => {
                self.note(&kv.key, opened.stale);
                Ok(match opened.value {
                    Some(value) => Arc::new(KeyValue { value: value.into(), ..(*kv).clone() }),
                    None => kv,
                })
            }
            Err(Unopened::Wrong(why)) => {
                tracing::error!(key = %String::from_utf8_lossy(&kv.key), %why, "cannot decrypt");
                Ok(Arc::new(KeyValue { value: Bytes::new(), ..(*kv).clone() }))
            }
            Err(Unopened::NotNow(why)) => Err(Error::Unavailable(format!("decrypting: {why}"))),
        }
    }

    async fn open_event(&self, event: Event) -> Result<Event, Error> {
        Ok(match event {
            Event::Put { kv, previous } => {
                Event::Put { kv: self.open(kv).await?, previous: self.open_previous(previous).await? }
            }
            Event::Delete { key, revision, previous } => {
                self.stale.lock().remove(&key);
                Event::Delete { key, revision, previous: self.open_previous(previous).await? }
            }
        })
    }

    async fn open_previous(&self, previous: Option<Arc<KeyValue>>) -> Result<Option<Arc<KeyValue>>, Error> {
        match previous {
            Some(kv) => self.open_old(kv).await.map(Some),
            None => Ok(None),
        }
    }

    /// What is not there any more is not stale either.
    async fn open_old(&self, kv: Arc<KeyValue>) -> Result<Arc<KeyValue>, Error> {
        let rules = self.rules.load_full();
        let Some(rule) = rules.of(&kv.key) else { return Ok(kv) };
        let value = match rule.open(&kv.value, &kv.key).await {
            Ok(opened) => opened.value,
            Err(Unopened::Wrong(_)) => Some(Vec::new()),
            Err(Unopened::NotNow(why)) => return Err(Error::Unavailable(format!("decrypting: {why}"))),
        };
        Ok(match value {
            Some(value) => Arc::new(KeyValue { value: value.into(), ..(*kv).clone() }),
            None => kv,
        })
    }
}

#[async_trait]
impl Store for Encrypted {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let (bare, now) = (request.keys_only || request.count_only, request.revision.is_none());
        let mut found = self.inner.range(request).await?;
        if !bare {
            for kv in &mut found.kvs {
                let closed = kv.clone();
                *kv =
                    if now { self.shared.open(closed).await? } else { self.shared.open_old(closed).await? };
            }
        }
        Ok(found)
    }

    async fn write(&self, mut request: WriteRequest) -> Result<WriteOutcome, Error> {
        let (rules, epoch) = (self.shared.rules.load_full(), self.shared.epoch.load(Ordering::Acquire));
        if let Change::Put { value, .. } = &mut request.change
            && let Some(rule) = rules.of(&request.key)
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
                // Written the old way, it is as stale as before.
                if self.shared.epoch.load(Ordering::Acquire) == epoch {
                    self.shared.note(&key, false);
                }
                WriteOutcome::Written { revision }
            }
            WriteOutcome::Unmet { current, revision } => {
                let current = match current {
                    Some(kv) => Some(self.shared.open(kv).await?),
                    None => None,
                };
                WriteOutcome::Unmet { current, revision }
            }
        })
    }

    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error> {
        let shared = self.shared.clone();
        let events = self.inner.watch(range, from).await?;
        Ok(Box::pin(events.then(move |batch| {
            let shared = shared.clone();
            async move {
                let EventBatch { events, revision } = batch?;
                let mut opened = Vec::with_capacity(events.len());
                for event in events {
                    opened.push(shared.open_event(event).await?);
                }
                Ok(EventBatch { events: opened, revision })
            }
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
        self.shared.is_stale(key)
    }
}
