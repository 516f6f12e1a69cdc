//! The embedded engine: what callers see. One log thread (module [`log`](crate::log)) owns the files.
//!
//! Writers hand commands to the log thread over a bounded channel and wait. Readers and watchers take the state's read
//! lock for the time of cloning pointers, and read values from cache or disk after that; they never wait for a write.
//! A watcher holds nothing but the revision it wants next and reads the shared history, so a slow one costs nothing
//! and is cut off when history moves past it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use storage::{
    Error, Event, EventBatch, KeyRange, LeaseId, RangeRequest, RangeResponse, Revision, Store, WatchStream,
    WriteOutcome, WriteRequest,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::command::Command;
use crate::disk::Disk;
use crate::durations::Durations;
use crate::files::{Files, without_value};
use crate::leases::{Timers, seconds};
use crate::log::{self, Message, Proposal};
use crate::record::RecordRef;
use crate::recovery;
use crate::request::{Alarm, AlarmKind, DeleteRange, Op, Put, Query, Txn, TxnOutcome};
use crate::snapshot::Snapshot;
use crate::state::{Applied, EventsMax, Found, Happened, Scan, State, is_one_key};

/// How the engine behaves; the defaults suit a cluster's API server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a write waits for the disk. Off, a crash of the machine (not of the process) loses the newest writes.
    pub sync: bool,
    /// Commands waiting for the log thread.
    pub queue_max: usize,
    /// Commands in one frame.
    pub batch_commands_max: usize,
    /// Bytes in one frame, beyond the first command.
    pub batch_bytes_max: usize,
    /// A frame that would be longer is refused: one request is as large as that by itself. No more than
    /// [`PAYLOAD_MAX`](crate::frame::PAYLOAD_MAX), past which a frame is taken for damage.
    pub frame_bytes_max: usize,
    /// A new file begins past this length.
    pub segment_bytes: u64,
    /// A checkpoint is taken when the log has grown by this since the last one, but by no less than the size of the
    /// last one, and by four times as much when that was a moment ago.
    pub checkpoint_bytes: u64,
    /// Key-values kept in memory: those written or read last.
    pub cache_bytes: usize,
    /// Events kept for watchers before the engine compacts by itself; 0 leaves compaction to the caller.
    pub history_events_max: usize,
    /// Events in one batch of a watch.
    pub watch_batch_events: usize,
    /// Bytes of keys and values in one batch of a watch.
    pub watch_batch_bytes: usize,
    /// Bytes in use past which puts are refused and the alarm is raised; 0 is no limit.
    pub quota_bytes: u64,
    /// Whose alarms this engine raises.
    pub member_id: u64,
    /// Shorter leases are granted this time.
    pub lease_ttl_seconds_min: i64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sync: true,
            queue_max: 8192,
            batch_commands_max: 4096,
            batch_bytes_max: 8 << 20,
            frame_bytes_max: 64 << 20,
            segment_bytes: 64 << 20,
            checkpoint_bytes: 16 << 20,
            cache_bytes: 8 << 20,
            history_events_max: 100_000,
            watch_batch_events: 1024,
            watch_batch_bytes: 8 << 20,
            quota_bytes: 0,
            member_id: 0,
            lease_ttl_seconds_min: 1,
        }
    }
}

/// The longest lease, as in etcd.
pub const LEASE_TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Values beyond this are read on a thread that may block.
const READ_INLINE_BYTES_MAX: usize = 1 << 20;

/// Keys looked at under one hold of the lock.
const SCAN_KEYS: usize = 1 << 13;

/// Bytes on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Of all files.
    pub bytes: u64,
    /// Of the versions that are kept: what the quota counts. The rest is reused as files are cleaned.
    pub bytes_in_use: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    pub id: LeaseId,
    pub ttl_seconds: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    pub granted_seconds: i64,
    pub remaining_seconds: i64,
    /// Empty unless asked for.
    pub keys: Vec<Bytes>,
}

/// What [`Engine::hash_kv`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    /// The revision hashed up to.
    pub revision: Revision,
    pub compacted: Revision,
}

/// What the log thread and the engine's handles share.
pub(crate) struct Shared {
    pub state: RwLock<State>,
    pub files: Files,
    pub disk: Arc<dyn Disk>,
    /// The newest applied revision; watchers sleep on it.
    pub applied: watch::Receiver<Revision>,
    /// Everything up to here that compaction made unreachable is gone.
    pub swept: watch::Receiver<Revision>,
    /// Set once: why nothing can be written any more.
    pub failed: Mutex<Option<Error>>,
    pub timers: Mutex<Timers>,
    pub timers_changed: tokio::sync::Notify,
    pub index: AtomicU64,
    pub disk_bytes: AtomicU64,
    pub bytes_in_use: AtomicU64,
    pub no_space: AtomicBool,
    /// Making a batch durable, and applying it.
    pub syncs: Durations,
    pub commits: Durations,
    pub counts: Counts,
    pub options: Options,
}

/// What metrics tell of, since the start.
#[derive(Default)]
pub(crate) struct Counts {
    /// Bytes appended to the log.
    pub appended: AtomicU64,
    /// Commands that could not be logged.
    pub refused: AtomicU64,
    /// Batches that took longer than [`SLOW`] to apply.
    pub slow: AtomicU64,
    /// Leases that ran out.
    pub expired: AtomicU64,
}

/// etcd's bound for entries that took too long.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

impl Shared {
    /// Runs what reads `bytes` of values where that does no harm.
    async fn fetch<T: Send + 'static>(
        self: &Arc<Shared>,
        bytes: usize,
        read: impl FnOnce(&Files) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        if bytes <= READ_INLINE_BYTES_MAX {
            return read(&self.files);
        }
        let shared = self.clone();
        tokio::task::spawn_blocking(move || read(&shared.files))
            .await
            .map_err(|e| Error::Unavailable(format!("read values: {e}")))?
    }

    async fn events(
        self: &Arc<Shared>,
        ranges: &[KeyRange],
        from: Revision,
        max: EventsMax,
        previous: bool,
    ) -> Result<EventBatch, Error> {
        let (happened, revision) = self.state.read().events_from(ranges, from, max, previous)?;
        if happened.is_empty() {
            return Ok(EventBatch { events: Vec::new(), revision });
        }
        let bytes = happened.iter().map(Happened::reading).sum();
        let events = self.fetch(bytes, move |files| build_events(files, &happened)).await?;
        Ok(EventBatch { events, revision })
    }
}

/// An open data directory. Clones share it; it closes when the last is gone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    messages: mpsc::Sender<Message>,
}

impl Engine {
    /// Recovers the state and starts the log thread. Leases run only inside [`Engine::run_leases`].
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Engine, Error> {
        let files = Files::new(disk.clone(), options.cache_bytes);
        let mut recovered = recovery::recover(&*disk, &files)?;
        let state = std::mem::take(&mut recovered.state);
        let (applied_sender, applied) = watch::channel(state.revision());
        let (swept_sender, swept) = watch::channel(0);
        let (messages, receiver) = mpsc::channel(options.queue_max);
        let (mut timers, now) = (Timers::default(), Instant::now());
        for (id, lease) in state.leases() {
            let noted = lease.remaining_seconds > 0;
            let left = if noted { lease.remaining_seconds } else { lease.ttl_seconds };
            timers.set(*id, seconds(left), noted, now);
        }
        let shared = Arc::new(Shared {
            index: recovered.index.into(),
            disk_bytes: AtomicU64::new(0),
            bytes_in_use: state.bytes_in_use().into(),
            no_space: state.alarms().iter().any(|a| a.kind == AlarmKind::NoSpace).into(),
            syncs: Durations::default(),
            commits: Durations::default(),
            counts: Counts::default(),
            state: RwLock::new(state),
            files,
            disk,
            applied,
            swept,
            failed: Mutex::new(None),
            timers: Mutex::new(timers),
            timers_changed: tokio::sync::Notify::new(),
            options,
        });
        log::start(shared.clone(), recovered, applied_sender, swept_sender, receiver, messages.downgrade())?;
        Ok(Engine { shared, messages })
    }

    fn stopped(&self) -> Error {
        self.shared
            .failed
            .lock()
            .clone()
            .unwrap_or_else(|| Error::Unavailable("the store has stopped".into()))
    }

    async fn propose(&self, command: Command) -> Result<Applied, Error> {
        self.admit(&command).await?;
        self.propose_admitted(command).await
    }

    async fn propose_admitted(&self, command: Command) -> Result<Applied, Error> {
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { command, reply: Some(reply) };
        self.messages.send(Message::Propose(proposal)).await.map_err(|_| self.stopped())?;
        match answer.await.map_err(|_| self.stopped())? {
            Applied::Refused(error) => Err(error),
            applied => Ok(applied),
        }
    }

    /// Refuses what would grow a full store, and raises the alarm when the quota is reached.
    async fn admit(&self, command: &Command) -> Result<(), Error> {
        let cost = command.cost();
        if cost == 0 {
            return Ok(());
        }
        if self.shared.no_space.load(Ordering::Relaxed) {
            return Err(Error::NoSpace);
        }
        let quota = self.shared.options.quota_bytes;
        if quota == 0 || self.shared.bytes_in_use.load(Ordering::Relaxed) + cost <= quota {
            return Ok(());
        }
        let alarm = Alarm { member: self.shared.options.member_id, kind: AlarmKind::NoSpace };
        tracing::warn!(
            quota,
            "the quota is used up; puts are refused until space is freed and the alarm is disarmed"
        );
        self.set_alarm(alarm, true).await?;
        Err(Error::NoSpace)
    }

    /// Reads a range. One member's reads are always linearizable.
    pub async fn query(&self, query: &Query) -> Result<RangeResponse, Error> {
        let found = self.find(query)?;
        let bytes = if found.keys_only { 0 } else { Files::reading(&found.records) };
        self.shared.fetch(bytes, move |files| files.response(found)).await
    }

    fn find(&self, query: &Query) -> Result<Found, Error> {
        let state = self.shared.state.read();
        if is_one_key(&query.range) {
            return state.range(query);
        }
        if let Some(revision) = query.revision {
            state.readable(revision)?;
        }
        let mut scan = Scan::new(query);
        let mut done = scan.step(&state, SCAN_KEYS);
        drop(state);
        while !done {
            done = scan.step(&self.shared.state.read(), SCAN_KEYS);
        }
        Ok(scan.finish())
    }

    /// Runs a transaction; returns when it is durable. One that cannot write never touches the log. Keys and values are kept as
    /// they come, and should not be slices of something larger.
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        let transacted = if txn.is_read_only() {
            self.shared.state.read().read(&txn, &self.shared.files)?
        } else {
            match self.propose(Command::Txn(txn)).await? {
                Applied::Transacted(transacted) => transacted,
                other => return Err(unexpected(&other)),
            }
        };
        self.shared.fetch(transacted.reading(), move |files| files.outcome(transacted)).await
    }

    /// A transaction of one put.
    pub async fn put(&self, put: Put) -> Result<TxnOutcome, Error> {
        self.txn(Txn::of(Op::Put(put))).await
    }

    /// A transaction of one delete.
    pub async fn delete_range(&self, delete: DeleteRange) -> Result<TxnOutcome, Error> {
        self.txn(Txn::of(Op::DeleteRange(delete))).await
    }

    pub fn current_revision(&self) -> Revision {
        self.shared.state.read().revision()
    }

    /// The newest revision compacted at; 0 when there is none.
    pub fn compacted(&self) -> Revision {
        self.shared.state.read().compacted()
    }

    /// The index of the newest entry applied.
    pub fn applied_index(&self) -> u64 {
        self.shared.index.load(Ordering::Relaxed)
    }

    /// The newest applied revision, and its changes.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.shared.applied.clone()
    }

    /// The events in any of `ranges` from revision `from` on (0 is the oldest there is), whole revisions only, in
    /// order; all there are up to the batch's revision. `previous` fills in what each event replaced. Fails with
    /// [`Error::Compacted`] where `from` is no longer known.
    pub async fn events(
        &self,
        ranges: &[KeyRange],
        from: Revision,
        max: EventsMax,
        previous: bool,
    ) -> Result<EventBatch, Error> {
        self.shared.events(ranges, from, max, previous).await
    }

    /// [`Engine::events`] as a stream, which waits for new ones. It ends with an error, or when the store stops.
    pub fn watch_ranges(&self, ranges: Vec<KeyRange>, from: Revision, previous: bool) -> WatchStream {
        let watcher = Watcher {
            shared: self.shared.clone(),
            applied: self.shared.applied.clone(),
            ranges,
            next: from,
            previous,
        };
        Box::pin(futures::stream::unfold(Some(watcher), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.step().await? {
                Ok(batch) => Some((Ok(batch), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    /// Grants a lease; id 0 lets the engine choose. Fails with [`Error::LeaseExists`] or [`Error::LeaseTtlTooLarge`].
    pub async fn grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseGrant, Error> {
        if ttl_seconds > LEASE_TTL_SECONDS_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        let ttl_seconds = ttl_seconds.max(self.shared.options.lease_ttl_seconds_min).max(1);
        // Ids are drawn, not counted, so that a restart cannot give one twice.
        let lease = if id == 0 { (random_bits() & i64::MAX).max(1) } else { id };
        self.propose(Command::LeaseGrant { lease, ttl_seconds }).await?;
        self.shared.timers.lock().set(lease, seconds(ttl_seconds), false, Instant::now());
        self.shared.timers_changed.notify_one();
        Ok(LeaseGrant { id: lease, ttl_seconds })
    }

    /// Gives a lease its whole time again, which is returned.
    pub async fn renew(&self, id: LeaseId) -> Result<i64, Error> {
        let ttl_seconds = {
            let state = self.shared.state.read();
            state.leases().get(&id).ok_or(Error::LeaseNotFound)?.ttl_seconds
        };
        let renewed = self.shared.timers.lock().renew(id, seconds(ttl_seconds), Instant::now());
        match renewed {
            // Its end has come, and its revocation is on the way.
            None => return Err(Error::LeaseNotFound),
            Some(true) => drop(self.propose(Command::LeaseRemaining(vec![(id, 0)])).await?),
            Some(false) => {}
        }
        self.shared.timers_changed.notify_one();
        Ok(ttl_seconds)
    }

    /// Deletes a lease and its keys.
    pub async fn revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.propose(Command::LeaseRevoke { lease: id }).await?;
        self.shared.timers.lock().remove(id);
        Ok(())
    }

    pub fn lease_status(&self, id: LeaseId, keys: bool) -> Option<LeaseStatus> {
        let state = self.shared.state.read();
        let lease = state.leases().get(&id)?;
        let left = self.shared.timers.lock().left(id, Instant::now()).unwrap_or_default();
        let keys = match keys {
            true => lease.keys.iter().map(|key| Bytes::copy_from_slice(key)).collect(),
            false => Vec::new(),
        };
        Some(LeaseStatus {
            granted_seconds: lease.ttl_seconds,
            remaining_seconds: left.as_secs() as i64,
            keys,
        })
    }

    /// All leases, sorted by id.
    pub fn lease_ids(&self) -> Vec<LeaseId> {
        let mut ids: Vec<LeaseId> = self.shared.state.read().leases().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Revokes leases as they run out; returns when `shutdown` completes.
    pub async fn run_leases(&self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let next = self.shared.timers.lock().next();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = self.shared.timers_changed.notified() => {}
                () = due => self.lease_work().await,
            }
        }
    }

    async fn lease_work(&self) {
        let now = Instant::now();
        let due = self.shared.timers.lock().due(now);
        let revoked = futures::future::join_all(due.expired.iter().map(|lease| self.revoke(*lease))).await;
        for (lease, result) in due.expired.into_iter().zip(revoked) {
            match result {
                Ok(()) => drop(self.shared.counts.expired.fetch_add(1, Ordering::Relaxed)),
                Err(Error::LeaseNotFound) => {}
                Err(error) => {
                    tracing::warn!(lease, %error, "could not revoke an expired lease");
                    self.shared.timers.lock().retry(lease, now + Duration::from_secs(1));
                }
            }
        }
        if !due.notes.is_empty()
            && let Err(error) = self.propose(Command::LeaseRemaining(due.notes)).await
        {
            tracing::warn!(%error, "could not note what is left of leases");
        }
    }

    /// Forgets history below `revision`. `physical` also waits until what that made unreachable is gone from memory,
    /// so that its space on disk can be reused.
    pub async fn compact_to(&self, revision: Revision, physical: bool) -> Result<(), Error> {
        self.propose(Command::Compact { revision }).await?;
        if physical {
            let mut swept = self.shared.swept.clone();
            swept.wait_for(|upto| *upto >= revision).await.map_err(|_| self.stopped())?;
        }
        Ok(())
    }

    /// Gives unused space back to the file system. Writes go on meanwhile.
    pub async fn defragment(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(Message::Defragment(reply)).await.map_err(|_| self.stopped())?;
        answer.await.map_err(|_| self.stopped())?
    }

    pub fn size(&self) -> Size {
        Size {
            bytes: self.shared.disk_bytes.load(Ordering::Relaxed),
            bytes_in_use: self.shared.bytes_in_use.load(Ordering::Relaxed),
        }
    }

    /// The hash of every version up to `revision` (0 is the present), the same number as etcd's for the same history.
    pub async fn hash_kv(&self, revision: Revision) -> Result<HashKv, Error> {
        let mut snapshot = self.snapshot();
        let revision = if revision == 0 { snapshot.header.revision } else { revision };
        if revision <= snapshot.header.compacted {
            return Err(Error::Compacted { compacted: snapshot.header.compacted });
        }
        if revision > snapshot.header.revision {
            return Err(Error::FutureRevision { requested: revision, current: snapshot.header.revision });
        }
        tokio::task::spawn_blocking(move || snapshot.hash_kv(revision))
            .await
            .map_err(|e| Error::Unavailable(format!("hash: {e}")))?
    }

    /// A hash of the whole state.
    pub async fn hash(&self) -> Result<u32, Error> {
        let mut snapshot = self.snapshot();
        tokio::task::spawn_blocking(move || snapshot.hash())
            .await
            .map_err(|e| Error::Unavailable(format!("hash: {e}")))?
    }

    pub fn alarms(&self) -> Vec<Alarm> {
        self.shared.state.read().alarms().iter().copied().collect()
    }

    /// Raises or disarms an alarm; whether that changed anything.
    pub async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool, Error> {
        match self.propose_admitted(Command::Alarm { alarm, raised }).await? {
            Applied::Done { changed } => Ok(changed),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes meta keys, all or nothing. With `expect`, only where the bucket still has that version. The bucket's
    /// version afterwards: `Ok` of the new one, `Err` of the present one that was not expected.
    pub async fn meta_write(
        &self,
        expect: Option<u64>,
        changes: Vec<(Bytes, Option<Bytes>)>,
    ) -> Result<Result<u64, u64>, Error> {
        match self.propose(Command::Meta { expect, changes }).await? {
            Applied::Meta { version, written: true } => Ok(Ok(version)),
            Applied::Meta { version, written: false } => Ok(Err(version)),
            other => Err(unexpected(&other)),
        }
    }

    pub fn meta_get(&self, key: &[u8]) -> Option<Bytes> {
        self.shared.state.read().meta().get(key).cloned()
    }

    /// All meta keys that begin with `prefix`, in order.
    pub fn meta_range(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        let state = self.shared.state.read();
        let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
        state
            .meta()
            .range::<[u8], _>(from)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Grows with every change of the meta keys.
    pub fn meta_version(&self) -> u64 {
        self.shared.state.read().meta_version()
    }

    /// The state as it is now, to be read at leisure. While it is held, compaction frees nothing newer.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.shared.clone())
    }

    /// How long making batches durable took, and applying them.
    pub fn durations(&self) -> (&Durations, &Durations) {
        (&self.shared.syncs, &self.shared.commits)
    }

    /// Bytes appended to the log since the start.
    pub fn appended(&self) -> u64 {
        self.shared.counts.appended.load(Ordering::Relaxed)
    }

    /// Commands that could not be logged.
    pub fn refused(&self) -> u64 {
        self.shared.counts.refused.load(Ordering::Relaxed)
    }

    /// Batches that took longer than 100 ms to apply.
    pub fn slow(&self) -> u64 {
        self.shared.counts.slow.load(Ordering::Relaxed)
    }

    /// Leases that ran out.
    pub fn expired(&self) -> u64 {
        self.shared.counts.expired.load(Ordering::Relaxed)
    }

    /// Commands that wait for the log.
    pub fn pending(&self) -> u64 {
        (self.messages.max_capacity() - self.messages.capacity()) as u64
    }

    /// Live keys and events of history, for metrics.
    pub fn statistics(&self) -> (usize, usize) {
        let state = self.shared.state.read();
        (state.live_keys(), state.history_len())
    }
}

fn unexpected(applied: &Applied) -> Error {
    Error::Unavailable(format!("a command was answered with {applied:?}"))
}

/// 64 random bits from the standard library's per-process hash keys.
fn random_bits() -> i64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as i64
}

fn build_events(files: &Files, happened: &[Happened]) -> Result<Vec<Event>, Error> {
    let mut records: Vec<RecordRef> = Vec::with_capacity(happened.len());
    for happened in happened {
        records.extend((!happened.record.is_tombstone()).then(|| happened.record.clone()));
        records.extend(happened.previous.clone());
    }
    let mut kvs = files.key_values(&records)?.into_iter();
    let mut next = || kvs.next().ok_or_else(|| Error::Unavailable("an event's value was not read".into()));
    happened
        .iter()
        .map(|Happened { record, previous }| {
            let put = if record.is_tombstone() { None } else { Some(next()?) };
            let previous = if previous.is_some() { Some(next()?) } else { None };
            Ok(match put {
                Some(kv) => Event::Put { kv, previous },
                None => {
                    Event::Delete { key: without_value(record).key, revision: record.mod_revision, previous }
                }
            })
        })
        .collect()
}

struct Watcher {
    shared: Arc<Shared>,
    applied: watch::Receiver<Revision>,
    ranges: Vec<KeyRange>,
    next: Revision,
    previous: bool,
}

impl Watcher {
    /// The next batch; `None` when the store has stopped.
    async fn step(&mut self) -> Option<Result<EventBatch, Error>> {
        while *self.applied.borrow_and_update() < self.next {
            self.applied.changed().await.ok()?;
        }
        let options = &self.shared.options;
        let max = EventsMax { events: options.watch_batch_events, bytes: options.watch_batch_bytes };
        let batch = self.shared.events(&self.ranges, self.next, max, self.previous).await;
        if let Ok(batch) = &batch {
            self.next = batch.revision + 1;
        }
        Some(batch)
    }
}

#[async_trait]
impl Store for Engine {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.query(&Query {
            limit: request.limit,
            revision: request.revision,
            keys_only: request.keys_only,
            count_only: request.count_only,
            ..Query::new(request.range)
        })
        .await
    }

    async fn write(&self, request: WriteRequest) -> Result<WriteOutcome, Error> {
        let command =
            Command::Write { key: request.key, expect: request.expect, change: request.change.into() };
        match self.propose(command).await? {
            Applied::Written { revision } => Ok(WriteOutcome::Written { revision }),
            Applied::Unmet { current, revision } => {
                let current = current.map(|record| self.shared.files.key_value(&record)).transpose()?;
                Ok(WriteOutcome::Unmet { current, revision })
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error> {
        let compacted = self.shared.state.read().compacted();
        if from != 0 && from <= compacted {
            return Err(Error::Compacted { compacted });
        }
        let events = self.watch_ranges(vec![range], from, false);
        Ok(Box::pin(futures::StreamExt::map(events, |batch| {
            batch.map_err(|error| match error {
                Error::Compacted { .. } => Error::TooSlow,
                error => error,
            })
        })))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.current_revision())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.compact_to(revision, false).await
    }

    async fn lease_grant(&self, ttl_seconds: i64) -> Result<LeaseId, Error> {
        Ok(self.grant(0, ttl_seconds).await?.id)
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.renew(lease).await.map(drop)
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.revoke(lease).await
    }

    async fn size_bytes(&self) -> Result<u64, Error> {
        Ok(self.size().bytes)
    }
}
