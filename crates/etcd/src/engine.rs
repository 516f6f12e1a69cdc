//! The embedded engine: one log thread that owns the files, any number of readers.
//!
//! Writers hand commands to the log thread over a bounded channel and wait. The thread takes everything that has
//! arrived while the last sync ran, appends it as one frame, syncs once, applies in order under a short write lock,
//! and wakes the writers. Readers and watchers only take the read lock; they never wait for the disk. A watcher holds
//! nothing but the revision it wants next and reads the shared history, so a slow one costs nothing and is cut off
//! when history moves past it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use storage::{
    Error, EventBatch, KeyRange, LeaseId, RangeRequest, RangeResponse, Revision, Store, WatchStream,
    WriteOutcome, WriteRequest,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::command::Command;
use crate::disk::{AppendFile, Disk};
use crate::frame;
use crate::recovery::{self, Recovered, segment_name};
use crate::snapshot::{self, Position};
use crate::state::{Applied, State};

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
    /// A new segment begins past this length.
    pub segment_bytes: u64,
    /// A snapshot is taken when the log has grown by this since the last one, or by the size of the last one.
    pub snapshot_bytes: u64,
    /// Events kept for watchers before the engine compacts by itself; 0 leaves compaction to the caller.
    pub history_events_max: usize,
    /// Events in one batch of a watch.
    pub watch_batch_events: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            sync: true,
            queue_max: 8192,
            batch_commands_max: 4096,
            batch_bytes_max: 8 << 20,
            segment_bytes: 64 << 20,
            snapshot_bytes: 64 << 20,
            history_events_max: 100_000,
            watch_batch_events: 1024,
        }
    }
}

struct Proposal {
    command: Command,
    reply: oneshot::Sender<Applied>,
}

struct Shared {
    state: RwLock<State>,
    /// The newest applied revision; watchers sleep on it.
    applied: watch::Receiver<Revision>,
    /// Set once: why nothing can be written any more.
    failed: Mutex<Option<Error>>,
    deadlines: Mutex<BTreeMap<LeaseId, Instant>>,
    lease_changed: tokio::sync::Notify,
    log_bytes: std::sync::atomic::AtomicU64,
    options: Options,
}

/// An open data directory. Clones share it; it closes when the last is gone.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    proposals: mpsc::Sender<Proposal>,
}

impl Engine {
    /// Recovers the state and starts the log thread. Leases run only inside [`Engine::run_leases`].
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Engine, Error> {
        let recovered = recovery::recover(&*disk)?;
        let (applied_sender, applied) = watch::channel(recovered.state.revision());
        let (proposals, receiver) = mpsc::channel(options.queue_max);
        let now = Instant::now();
        // As etcd does when leadership changes, leases get their whole time again after a restart.
        let deadlines =
            recovered.state.leases().iter().map(|(id, lease)| (*id, now + ttl(lease.ttl_seconds))).collect();
        let Recovered { state, index, snapshots, segments, tail_len, log_bytes } = recovered;
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            applied,
            failed: Mutex::new(None),
            deadlines: Mutex::new(deadlines),
            lease_changed: tokio::sync::Notify::new(),
            log_bytes: log_bytes.into(),
            options: options.clone(),
        });
        let first = segments.last().copied().unwrap_or(index + 1);
        let io = |e: std::io::Error| Error::Unavailable(format!("open {}: {e}", segment_name(first)));
        let file = disk.append_to(&segment_name(first), tail_len).map_err(io)?;
        disk.sync().map_err(io)?;
        let log = Log {
            shared: shared.clone(),
            applied: applied_sender,
            segments: if segments.is_empty() { vec![first] } else { segments },
            disk,
            file,
            file_len: tail_len,
            index,
            since_snapshot: log_bytes,
            last_snapshot_bytes: 0,
            snapshots,
            snapshot_running: None,
            buffer: Vec::new(),
        };
        std::thread::Builder::new()
            .name("etcd-log".into())
            .spawn(move || log.run(receiver))
            .map_err(|e| Error::Unavailable(format!("start the log thread: {e}")))?;
        Ok(Engine { shared, proposals })
    }

    async fn propose(&self, command: Command) -> Result<Applied, Error> {
        let (reply, answer) = oneshot::channel();
        let stopped = || {
            self.shared
                .failed
                .lock()
                .clone()
                .unwrap_or_else(|| Error::Unavailable("the store has stopped".into()))
        };
        self.proposals.send(Proposal { command, reply }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }

    async fn propose_done(&self, command: Command) -> Result<(), Error> {
        match self.propose(command).await? {
            Applied::Done(result) => result,
            Applied::Write(result) => result.map(drop),
        }
    }

    /// Revokes leases as they run out; returns when `shutdown` completes.
    pub async fn run_leases(&self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            let next = self.shared.deadlines.lock().iter().map(|(id, at)| (*at, *id)).min();
            let expiry = async {
                match next {
                    Some((at, _)) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                () = self.shared.lease_changed.notified() => {}
                () = expiry => {
                    let now = Instant::now();
                    let due: Vec<LeaseId> = {
                        let deadlines = self.shared.deadlines.lock();
                        deadlines.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect()
                    };
                    for lease in due {
                        if let Err(error) = self.lease_revoke(lease).await {
                            tracing::warn!(lease, %error, "could not revoke an expired lease");
                            self.shared.deadlines.lock().insert(lease, now + Duration::from_secs(1));
                        }
                    }
                }
            }
        }
    }

    /// Live keys and events of history, for metrics.
    pub fn statistics(&self) -> (usize, usize) {
        let state = self.shared.state.read();
        (state.live_keys(), state.history_len())
    }
}

fn ttl(seconds: i64) -> Duration {
    Duration::from_secs(seconds.clamp(1, 9_000_000_000) as u64)
}

#[async_trait]
impl Store for Engine {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        self.shared.state.read().range(&request)
    }

    async fn write(&self, request: WriteRequest) -> Result<WriteOutcome, Error> {
        let command =
            Command::Write { key: request.key, expect: request.expect, change: request.change.into() };
        match self.propose(command).await? {
            Applied::Write(result) => result,
            Applied::Done(result) => {
                Err(result.err().unwrap_or_else(|| Error::Unavailable("a write was not answered".into())))
            }
        }
    }

    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error> {
        let compacted = self.shared.state.read().compacted();
        if from <= compacted {
            return Err(Error::Compacted { compacted });
        }
        let start =
            Watcher { shared: self.shared.clone(), applied: self.shared.applied.clone(), range, next: from };
        Ok(Box::pin(futures::stream::unfold(Some(start), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.step().await? {
                Ok(batch) => Some((Ok(batch), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.state.read().revision())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.propose_done(Command::Compact { revision }).await
    }

    async fn lease_grant(&self, ttl_seconds: i64) -> Result<LeaseId, Error> {
        // Ids are drawn, not counted, so that a restart cannot give one twice.
        let drawn = uuid_bits() & i64::MAX;
        let lease = if drawn == 0 { 1 } else { drawn };
        self.propose_done(Command::LeaseGrant { lease, ttl_seconds }).await?;
        self.shared.deadlines.lock().insert(lease, Instant::now() + ttl(ttl_seconds));
        self.shared.lease_changed.notify_one();
        Ok(lease)
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        let seconds = match self.shared.state.read().leases().get(&lease) {
            Some(found) => found.ttl_seconds,
            None => return Err(Error::LeaseNotFound),
        };
        self.shared.deadlines.lock().insert(lease, Instant::now() + ttl(seconds));
        self.shared.lease_changed.notify_one();
        Ok(())
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.shared.deadlines.lock().remove(&lease);
        self.propose_done(Command::LeaseRevoke { lease }).await
    }

    async fn size_bytes(&self) -> Result<u64, Error> {
        Ok(self.shared.log_bytes.load(std::sync::atomic::Ordering::Relaxed))
    }
}

/// 64 random bits from the standard library's per-process hash keys.
fn uuid_bits() -> i64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as i64
}

struct Watcher {
    shared: Arc<Shared>,
    applied: watch::Receiver<Revision>,
    range: KeyRange,
    next: Revision,
}

impl Watcher {
    /// The next batch; `None` when the store has stopped.
    async fn step(&mut self) -> Option<Result<EventBatch, Error>> {
        while *self.applied.borrow_and_update() < self.next {
            self.applied.changed().await.ok()?;
        }
        let max = self.shared.options.watch_batch_events;
        let read = self.shared.state.read().events_from(&self.range, self.next, max);
        Some(match read {
            Ok((events, revision)) => {
                self.next = revision + 1;
                Ok(EventBatch { events, revision })
            }
            Err(Error::Compacted { .. }) => Err(Error::TooSlow),
            Err(error) => Err(error),
        })
    }
}

/// What the log thread owns.
struct Log {
    shared: Arc<Shared>,
    applied: watch::Sender<Revision>,
    disk: Arc<dyn Disk>,
    file: Box<dyn AppendFile>,
    file_len: u64,
    /// The last entry appended and applied.
    index: u64,
    segments: Vec<u64>,
    snapshots: Vec<Position>,
    since_snapshot: u64,
    last_snapshot_bytes: u64,
    snapshot_running: Option<SnapshotRun>,
    buffer: Vec<u8>,
}

enum Failure {
    /// Nothing was written; later appends may succeed.
    Refused(Error),
    /// What the file holds is unknown.
    Fatal(Error),
}

struct SnapshotRun {
    position: Position,
    thread: std::thread::JoinHandle<std::io::Result<u64>>,
}

impl Log {
    fn run(mut self, mut proposals: mpsc::Receiver<Proposal>) {
        let mut batch: Vec<Proposal> = Vec::new();
        while let Some(first) = proposals.blocking_recv() {
            batch.push(first);
            self.fill(&mut batch, &mut proposals);
            match self.append() {
                Ok(()) => {
                    self.apply(&mut batch);
                    self.keep_house();
                }
                Err(Failure::Refused(error)) => {
                    tracing::error!(%error, commands = batch.len(), "could not append to the log; the writes are refused");
                    for proposal in batch.drain(..) {
                        let _ = proposal.reply.send(Applied::Done(Err(error.clone())));
                    }
                }
                Err(Failure::Fatal(error)) => {
                    tracing::error!(%error, "the log cannot be written any more; refusing all further writes");
                    *self.shared.failed.lock() = Some(error);
                    return;
                }
            }
        }
        if let Some(run) = self.snapshot_running.take() {
            let _ = run.thread.join();
        }
    }

    /// Encodes what has arrived into one frame.
    fn fill(&mut self, batch: &mut Vec<Proposal>, proposals: &mut mpsc::Receiver<Proposal>) {
        let options = &self.shared.options;
        self.buffer.clear();
        let at = frame::begin(&mut self.buffer, self.index + 1);
        batch[0].command.encode(&mut self.buffer);
        while batch.len() < options.batch_commands_max && self.buffer.len() < options.batch_bytes_max {
            let Ok(next) = proposals.try_recv() else { break };
            next.command.encode(&mut self.buffer);
            batch.push(next);
        }
        frame::finish(&mut self.buffer, at);
    }

    /// Makes the frame durable. What could not be appended is cut off again. After a failed sync nobody knows what
    /// the disk holds, so that ends the engine.
    fn append(&mut self) -> Result<(), Failure> {
        if let Err(error) = self.file.append(&self.buffer) {
            let refused = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::NoSpace,
                _ => Error::Unavailable(format!("append to the log: {error}")),
            };
            return Err(match self.file.truncate(self.file_len) {
                Ok(()) => Failure::Refused(refused),
                Err(_) => Failure::Fatal(refused),
            });
        }
        if self.shared.options.sync {
            self.file.sync().map_err(|e| Failure::Fatal(Error::Unavailable(format!("sync the log: {e}"))))?;
        }
        let len = self.buffer.len() as u64;
        self.file_len += len;
        self.since_snapshot += len;
        self.shared.log_bytes.fetch_add(len, std::sync::atomic::Ordering::Relaxed);
        if self.buffer.capacity() > 1 << 20 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn apply(&mut self, batch: &mut Vec<Proposal>) {
        self.index += batch.len() as u64;
        let mut answers = Vec::with_capacity(batch.len());
        let revision = {
            let mut state = self.shared.state.write();
            for proposal in batch.drain(..) {
                answers.push((proposal.reply, state.apply(proposal.command)));
            }
            state.revision()
        };
        self.applied.send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
        for (reply, answer) in answers {
            let _ = reply.send(answer);
        }
    }

    /// Rolls segments, takes snapshots, drops what is no longer needed. Failing here costs space, not safety.
    fn keep_house(&mut self) {
        if let Err(error) = self.try_keep_house() {
            tracing::warn!(%error, "could not tidy the data directory");
        }
    }

    fn try_keep_house(&mut self) -> std::io::Result<()> {
        let options = self.shared.options.clone();
        if options.history_events_max > 0 {
            // Some slack, so that compaction does not run for every write.
            let mut state = self.shared.state.write();
            if state.history_len() > options.history_events_max + options.history_events_max / 4
                && let Some(revision) = state.revision_keeping(options.history_events_max)
            {
                state.apply(Command::Compact { revision });
            }
        }
        if self.file_len >= options.segment_bytes {
            let first = self.index + 1;
            self.file = self.disk.append_to(&segment_name(first), 0)?;
            self.disk.sync()?;
            self.segments.push(first);
            self.file_len = 0;
        }
        if self.snapshot_running.as_ref().is_some_and(|run| run.thread.is_finished())
            && let Some(run) = self.snapshot_running.take()
        {
            let bytes =
                run.thread.join().map_err(|_| std::io::Error::other("the snapshot thread panicked"))??;
            self.last_snapshot_bytes = bytes;
            self.snapshots.push(run.position);
        }
        if self.snapshot_running.is_none()
            && self.since_snapshot >= options.snapshot_bytes.max(self.last_snapshot_bytes)
        {
            self.since_snapshot = 0;
            self.begin_snapshot()?;
        }
        self.drop_old()
    }

    fn begin_snapshot(&mut self) -> std::io::Result<()> {
        let (position, leases) = {
            let mut state = self.shared.state.write();
            let revision = state.revision();
            state.pin(Some(revision));
            let leases: Vec<(LeaseId, i64)> =
                state.leases().iter().map(|(id, lease)| (*id, lease.ttl_seconds)).collect();
            (Position { index: self.index, revision }, leases)
        };
        let (disk, shared) = (self.disk.clone(), self.shared.clone());
        let thread = std::thread::Builder::new()
            .name("etcd-snapshot".into())
            .spawn(move || snapshot::write(&*disk, &shared.state, position, &leases))?;
        self.snapshot_running = Some(SnapshotRun { position, thread });
        Ok(())
    }

    /// A snapshot replaces everything before it once history before it has been compacted: until then the older one
    /// is needed to give resuming watchers their events.
    fn drop_old(&mut self) -> std::io::Result<()> {
        let compacted = self.shared.state.read().compacted();
        let Some(base) = self.snapshots.iter().rposition(|p| p.revision <= compacted) else { return Ok(()) };
        for old in self.snapshots.drain(..base).collect::<Vec<_>>() {
            self.disk.remove(&snapshot::name(old))?;
        }
        let index = self.snapshots[0].index;
        while self.segments.get(1).is_some_and(|next| *next <= index + 1) {
            let first = self.segments.remove(0);
            self.disk.remove(&segment_name(first))?;
        }
        Ok(())
    }
}
