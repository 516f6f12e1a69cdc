//! The log thread: it owns the files, decides the order of commands, and keeps house.
//!
//! It takes everything that has arrived while the last sync ran, appends it as one frame, syncs once, applies in order
//! under a short write lock, and wakes the writers. Between batches it sweeps away what compaction made unreachable, a
//! few thousand events at a time. Checkpoints and the cleaning of files run on a thread of their own, one task at a
//! time; the log thread begins them and takes their results.
//!
//! Values stay in the log file that they were first written to. When more is wasted than used, and more than two files,
//! the cleaner copies what is left in files less than half in use to data files. A file that nothing lies in any more is
//! removed once a checkpoint that knows so is durable. So disk is bounded by about twice what is in use and a few files,
//! and most values are written once in their life.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use storage::{Error, Revision};
use tokio::sync::{mpsc, oneshot, watch};

use crate::checkpoint::{self, Position};
use crate::cleaner::{self, Cleaned};
use crate::command::{Command, Writer};
use crate::disk::AppendFile;
use crate::engine::{SLOW, Shared};
use crate::files::FileName;
use crate::frame;
use crate::recovery::Recovered;
use crate::request::AlarmKind;
use crate::state::Applied;

/// Events swept between two batches, or twice as many as the batch made.
const SWEEP_EVENTS: usize = 2048;

/// A busy log is checkpointed a quarter as often as an idle one.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(10);

/// After a task has failed.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// What one cleaning copies at most.
const CLEAN_BYTES_MAX: u64 = 256 << 20;

pub(crate) struct Proposal {
    pub command: Command,
    /// Nobody waits for what the log thread itself proposes.
    pub reply: Option<oneshot::Sender<Applied>>,
}

pub(crate) enum Message {
    Propose(Proposal),
    Defragment(oneshot::Sender<Result<(), Error>>),
    Checkpointed(io::Result<u64>),
    Cleaned(Result<Cleaned, Error>),
}

enum Failure {
    /// Nothing was written; later appends may succeed.
    Refused(Error),
    /// What the file holds is unknown.
    Fatal(Error),
}

/// What runs on the other thread.
enum Task {
    /// With the files that were empty when it began.
    Checkpoint {
        position: Position,
        empty: Vec<u32>,
    },
    Clean {
        victims: Vec<u32>,
    },
}

/// What the log thread owns.
struct Log {
    shared: Arc<Shared>,
    messages: mpsc::WeakSender<Message>,
    applied: watch::Sender<Revision>,
    swept: watch::Sender<Revision>,
    /// All files by number with their lengths; the last log among them is being written.
    files: BTreeMap<u32, (FileName, u64)>,
    next_file: Arc<AtomicU32>,
    file: Box<dyn AppendFile>,
    file_number: u32,
    file_len: u64,
    /// The last entry appended and applied.
    index: u64,
    checkpoint: Option<Position>,
    checkpoint_bytes: u64,
    since_checkpoint: u64,
    checkpoint_at: Instant,
    task: Option<Task>,
    /// Files were cleaned, and nothing but a checkpoint keeps them from being removed.
    just_cleaned: bool,
    /// After a failure, when to try tasks again.
    retry_at: Option<Instant>,
    /// Files that could not be cleaned; they are let be.
    bad: Vec<u32>,
    /// Removed files that somebody may still be reading from.
    removed: Vec<u32>,
    defragmenting: Vec<oneshot::Sender<Result<(), Error>>>,
    buffer: Vec<u8>,
    sweep_max: usize,
}

/// Opens the log for writing and starts its thread.
pub(crate) fn start(
    shared: Arc<Shared>,
    recovered: Recovered,
    applied: watch::Sender<Revision>,
    swept: watch::Sender<Revision>,
    receiver: mpsc::Receiver<Message>,
    messages: mpsc::WeakSender<Message>,
) -> Result<(), Error> {
    let Recovered { index, checkpoint, checkpoint_bytes, files, since_checkpoint, .. } = recovered;
    let next_file = files.iter().map(|(name, _)| name.file()).max().unwrap_or(0) + 1;
    let last = files.iter().rev().find(|(name, _)| matches!(name, FileName::Log { .. })).copied();
    let (name, len) = last.unwrap_or((FileName::Log { file: next_file, first: index + 1 }, 0));
    let io = |e: io::Error| Error::Unavailable(format!("open {name}: {e}"));
    let file = shared.disk.append_to(&name.to_string(), len).map_err(io)?;
    shared.disk.sync().map_err(io)?;
    if last.is_none() {
        shared.files.open(name).map_err(io)?;
    }
    let mut files: BTreeMap<u32, (FileName, u64)> =
        files.into_iter().map(|(name, len)| (name.file(), (name, len))).collect();
    files.insert(name.file(), (name, len));
    let next_file = next_file.max(name.file() + 1);
    let log = Log {
        shared,
        messages,
        applied,
        swept,
        files,
        next_file: Arc::new(next_file.into()),
        file,
        file_number: name.file(),
        file_len: len,
        index,
        checkpoint,
        checkpoint_bytes,
        since_checkpoint,
        checkpoint_at: Instant::now(),
        task: None,
        just_cleaned: false,
        retry_at: None,
        bad: Vec::new(),
        removed: Vec::new(),
        defragmenting: Vec::new(),
        buffer: Vec::new(),
        sweep_max: SWEEP_EVENTS,
    };
    log.publish_size();
    std::thread::Builder::new()
        .name("etcd-log".into())
        .spawn(move || log.run(receiver))
        .map_err(|e| Error::Unavailable(format!("start the log thread: {e}")))?;
    Ok(())
}

impl Log {
    fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        let mut batch: Vec<Proposal> = Vec::new();
        loop {
            let message = if self.shared.state.read().is_swept() {
                receiver.blocking_recv()
            } else {
                match receiver.try_recv() {
                    Ok(message) => Some(message),
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                    Err(mpsc::error::TryRecvError::Empty) => {
                        self.keep_house();
                        continue;
                    }
                }
            };
            let Some(message) = message else { return };
            if self.shared.failed.lock().is_some() {
                // Found out while keeping house. What the file holds is unknown, so nothing may follow.
                return;
            }
            let mut other = None;
            self.take(message, &mut batch);
            if batch.is_empty() {
                self.keep_house();
                continue;
            }
            let options = &self.shared.options;
            let mut bytes = batch[0].command.cost();
            let mut given_way = false;
            while other.is_none()
                && batch.len() < options.batch_commands_max
                && bytes < options.batch_bytes_max as u64
            {
                match receiver.try_recv() {
                    Ok(Message::Propose(proposal)) => {
                        bytes += proposal.command.cost();
                        batch.push(proposal);
                    }
                    Ok(message) => other = Some(message),
                    // Who is about to propose, and waits for this core, goes before a sync that would then be shared.
                    Err(mpsc::error::TryRecvError::Empty) if !given_way => {
                        given_way = true;
                        std::thread::yield_now();
                    }
                    Err(_) => break,
                }
            }
            if !self.commit(&mut batch) {
                return;
            }
            if let Some(message) = other {
                self.take(message, &mut batch);
            }
            self.keep_house();
        }
    }

    /// Starts a batch with a proposal, and deals with any other message.
    fn take(&mut self, message: Message, batch: &mut Vec<Proposal>) {
        match message {
            Message::Propose(proposal) => batch.push(proposal),
            Message::Defragment(reply) => {
                if let Err(error) = self.begin_defragment() {
                    let _ = reply.send(Err(Error::Unavailable(format!("defragment: {error}"))));
                } else {
                    self.defragmenting.push(reply);
                }
            }
            Message::Checkpointed(result) => self.checkpointed(result),
            Message::Cleaned(result) => self.cleaned(result),
        }
    }

    /// Logs and applies a batch; false when the log is lost.
    fn commit(&mut self, batch: &mut Vec<Proposal>) -> bool {
        self.encode(batch);
        let logged = if self.buffer.len() > self.shared.options.frame_bytes_max.min(frame::PAYLOAD_MAX) {
            Err(Failure::Refused(Error::Unavailable("the request is too large for the log".into())))
        } else {
            self.append()
        };
        match logged {
            Ok(()) => {
                self.apply(batch);
                true
            }
            Err(Failure::Refused(error)) => {
                tracing::error!(%error, commands = batch.len(), "could not append to the log; the writes are refused");
                self.shared.counts.refused.fetch_add(batch.len() as u64, Ordering::Relaxed);
                for proposal in batch.drain(..) {
                    answer(proposal.reply, Applied::Refused(error.clone()));
                }
                true
            }
            Err(Failure::Fatal(error)) => {
                tracing::error!(%error, "the log cannot be written any more; refusing all further writes");
                *self.shared.failed.lock() = Some(error);
                false
            }
        }
    }

    fn encode(&mut self, batch: &mut [Proposal]) {
        self.buffer.clear();
        let at = frame::begin(&mut self.buffer, self.index + 1);
        let mut writer = Writer { out: &mut self.buffer, file: self.file_number, base: self.file_len };
        for proposal in batch {
            proposal.command.encode(&mut writer);
        }
        frame::finish(&mut self.buffer, at);
    }

    /// Makes the frame durable. What could not be appended is cut off again. After a failed sync nobody knows what
    /// the disk holds, so that ends the engine.
    fn append(&mut self) -> Result<(), Failure> {
        if let Err(error) = self.file.append(&self.buffer) {
            let refused = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace,
                _ => Error::Unavailable(format!("append to the log: {error}")),
            };
            return Err(match self.file.truncate(self.file_len) {
                Ok(()) => Failure::Refused(refused),
                Err(_) => Failure::Fatal(refused),
            });
        }
        if self.shared.options.sync {
            let begun = Instant::now();
            self.file.sync().map_err(|e| Failure::Fatal(Error::Unavailable(format!("sync the log: {e}"))))?;
            self.shared.syncs.observe(begun.elapsed());
        }
        let len = self.buffer.len() as u64;
        self.file_len += len;
        self.since_checkpoint += len;
        self.shared.disk_bytes.fetch_add(len, Ordering::Relaxed);
        self.shared.counts.appended.fetch_add(len, Ordering::Relaxed);
        if let Some((_, file_len)) = self.files.get_mut(&self.file_number) {
            *file_len = self.file_len;
        }
        if self.buffer.capacity() > 1 << 20 {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn apply(&mut self, batch: &mut Vec<Proposal>) {
        self.index += batch.len() as u64;
        self.sweep_max = SWEEP_EVENTS.max(2 * batch.len());
        let begun = Instant::now();
        let mut answers = Vec::with_capacity(batch.len());
        let (revision, fresh, no_space) = {
            let mut state = self.shared.state.write();
            for proposal in batch.drain(..) {
                let applied = state.apply(proposal.command, &self.shared.files);
                answers.push((proposal.reply, applied));
            }
            self.shared.bytes_in_use.store(state.bytes_in_use(), Ordering::Relaxed);
            let no_space = state.alarms().iter().any(|a| a.kind == AlarmKind::NoSpace);
            (state.revision(), state.take_fresh(), no_space)
        };
        let took = begun.elapsed();
        self.shared.commits.observe(took);
        if took > SLOW {
            self.shared.counts.slow.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.no_space.store(no_space, Ordering::Relaxed);
        self.shared.index.store(self.index, Ordering::Relaxed);
        self.shared.files.remember(fresh);
        self.applied.send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
        for (reply, applied) in answers {
            answer(reply, applied);
        }
    }

    /// Sweeps, compacts, rolls files, and begins tasks. Failing here costs space, not safety.
    fn keep_house(&mut self) {
        self.sweep();
        self.bound_history();
        let done = self.roll(self.shared.options.segment_bytes).and_then(|()| self.begin_task());
        if let Err(error) = done {
            tracing::warn!(%error, "could not tidy the data directory");
            self.refuse_defragmenting(&format!("tidy the data directory: {error}"));
        }
    }

    fn sweep(&mut self) {
        if !self.shared.state.read().is_swept() {
            let gone = {
                let mut state = self.shared.state.write();
                let gone = state.sweep(self.sweep_max);
                self.shared.bytes_in_use.store(state.bytes_in_use(), Ordering::Relaxed);
                gone
            };
            self.shared.files.forget(&gone);
        }
        let state = self.shared.state.read();
        if state.is_swept() {
            let compacted = state.compacted();
            drop(state);
            self.swept.send_if_modified(|upto| std::mem::replace(upto, compacted) != compacted);
        }
    }

    /// Compacts when history has outgrown its bound, with some slack so that this does not happen for every write.
    fn bound_history(&mut self) {
        let max = self.shared.options.history_events_max;
        if max == 0 {
            return;
        }
        let revision = {
            let state = self.shared.state.read();
            if state.history_len() <= max + max / 4 || !state.is_swept() {
                return;
            }
            state.revision_keeping(max)
        };
        if let Some(revision) = revision {
            let mut batch = vec![Proposal { command: Command::Compact { revision }, reply: None }];
            self.commit(&mut batch);
        }
    }

    /// Begins a new file when the present one is longer than `max`.
    fn roll(&mut self, max: u64) -> io::Result<()> {
        if self.file_len < max.max(1) {
            return Ok(());
        }
        self.sync_if_lazy()?;
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let name = FileName::Log { file: number, first: self.index + 1 };
        self.file = self.shared.disk.append_to(&name.to_string(), 0)?;
        self.shared.disk.sync()?;
        self.shared.files.open(name)?;
        self.files.insert(number, (name, 0));
        (self.file_number, self.file_len) = (number, 0);
        Ok(())
    }

    /// Where writes do not wait for the disk, checkpoints still must not run ahead of the values that they tell of.
    fn sync_if_lazy(&mut self) -> io::Result<()> {
        if self.shared.options.sync { Ok(()) } else { self.file.sync() }
    }

    fn begin_defragment(&mut self) -> io::Result<()> {
        self.roll(1)?;
        self.bad.clear();
        Ok(())
    }

    /// Files that are not written to any more, whose entries are all applied: number, length, bytes in use.
    fn closed(&self) -> Vec<(u32, u64, u64)> {
        let state = self.shared.state.read();
        let used = |file: &u32| state.file_use().get(file).copied().unwrap_or(0);
        self.files
            .iter()
            .filter(|(number, _)| **number != self.file_number)
            .map(|(number, (_, len))| (*number, *len, used(number)))
            .collect()
    }

    fn begin_task(&mut self) -> io::Result<()> {
        if self.task.is_some() {
            return Ok(());
        }
        let options = &self.shared.options;
        let recent = self.checkpoint_at.elapsed() < CHECKPOINT_PAUSE;
        let enough = options.checkpoint_bytes * if recent { 4 } else { 1 };
        let grown = self.since_checkpoint >= enough.max(self.checkpoint_bytes);
        let thorough = !self.defragmenting.is_empty();
        if !grown
            && !thorough
            && (self.files.len() == 1 || self.retry_at.is_some_and(|at| Instant::now() < at))
        {
            return Ok(());
        }
        if thorough && !self.shared.state.read().is_swept() {
            return Ok(());
        }
        let closed = self.closed();
        let empty: Vec<u32> = closed.iter().filter(|(_, _, used)| *used == 0).map(|(n, ..)| *n).collect();
        let empty_bytes: u64 = closed.iter().filter(|(_, _, used)| *used == 0).map(|(_, len, _)| len).sum();
        let worth = options.segment_bytes / 2;
        let frees = empty_bytes >= worth.max(self.checkpoint_bytes)
            || (empty_bytes > 0 && (thorough || self.just_cleaned));
        if grown || frees {
            return self.begin_checkpoint(empty);
        }
        // Much of what is written soon dies by itself. Some space is well spent on waiting for that.
        let (len, used) = closed.iter().fold((0, 0), |(l, u), (_, len, used)| (l + len, u + used));
        let wasteful = len - used.min(len) > used.max(2 * options.segment_bytes);
        let mut victims: Vec<(u32, u64, u64)> = closed
            .into_iter()
            .filter(|_| thorough || wasteful)
            .filter(|(number, len, used)| {
                // What cleaning leaves wastes next to nothing, so that defragmentation comes to an end.
                let waste = len - used.min(len);
                let much = if thorough { waste > 64 && waste > len / 10 } else { waste > len / 2 };
                *used > 0 && much && !self.bad.contains(number)
            })
            .collect();
        victims.sort_unstable_by_key(|(_, len, used)| (used * 1000 / len.max(&1), *used));
        let mut copied = 0;
        victims.retain(|(_, _, used)| {
            copied += used;
            copied <= CLEAN_BYTES_MAX || copied == *used
        });
        if victims.is_empty() {
            for reply in self.defragmenting.drain(..) {
                let _ = reply.send(Ok(()));
            }
            return Ok(());
        }
        self.begin_cleaning(victims.into_iter().map(|(number, ..)| number).collect())
    }

    fn begin_checkpoint(&mut self, empty: Vec<u32>) -> io::Result<()> {
        let Some(messages) = self.messages.upgrade() else { return Ok(()) };
        self.sync_if_lazy()?;
        let header = {
            let state = self.shared.state.read();
            let header = state.header();
            state.pin(header.compacted);
            header
        };
        let position = Position {
            index: self.index,
            revision: header.revision,
            file: self.file_number,
            offset: self.file_len,
        };
        let needless: Vec<String> = self
            .checkpoint
            .filter(|old| old.index != position.index)
            .map(|old| checkpoint::name(old.index))
            .into_iter()
            .chain(empty.iter().filter_map(|number| self.files.get(number)).map(|(name, _)| name.to_string()))
            .collect();
        let shared = self.shared.clone();
        std::thread::Builder::new().name("etcd-keep".into()).spawn(move || {
            let result = checkpoint::write(&*shared.disk, &shared.state, position, &header);
            shared.state.read().unpin(header.compacted);
            if result.is_ok() {
                // Removing large files takes a while too.
                for name in needless {
                    if let Err(error) = shared.disk.remove(&name) {
                        tracing::warn!(%error, name, "could not remove a file that is no longer needed");
                    }
                }
            }
            let _ = messages.blocking_send(Message::Checkpointed(result));
        })?;
        self.since_checkpoint = 0;
        self.checkpoint_at = Instant::now();
        self.just_cleaned = false;
        self.task = Some(Task::Checkpoint { position, empty });
        Ok(())
    }

    fn begin_cleaning(&mut self, victims: Vec<u32>) -> io::Result<()> {
        let Some(messages) = self.messages.upgrade() else { return Ok(()) };
        let names: Vec<FileName> =
            victims.iter().filter_map(|number| self.files.get(number)).map(|(name, _)| *name).collect();
        let (shared, next_file) = (self.shared.clone(), self.next_file.clone());
        std::thread::Builder::new().name("etcd-keep".into()).spawn(move || {
            let result = cleaner::clean(&shared, &names, &next_file);
            let _ = messages.blocking_send(Message::Cleaned(result));
        })?;
        self.task = Some(Task::Clean { victims });
        Ok(())
    }

    fn failed_task(&mut self, what: &str, error: &dyn std::fmt::Display) {
        tracing::error!(%error, "{what} failed; it is tried again later");
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
        self.refuse_defragmenting(&format!("{what}: {error}"));
    }

    fn refuse_defragmenting(&mut self, why: &str) {
        for reply in self.defragmenting.drain(..) {
            let _ = reply.send(Err(Error::Unavailable(why.to_owned())));
        }
    }

    fn checkpointed(&mut self, result: io::Result<u64>) {
        let Some(Task::Checkpoint { position, empty }) = self.task.take() else { return };
        match result {
            Ok(bytes) => {
                self.checkpoint = Some(position);
                self.checkpoint_bytes = bytes;
                self.forget(empty);
            }
            Err(error) => self.failed_task("the checkpoint", &error),
        }
    }

    /// Forgets files that are removed.
    fn forget(&mut self, empty: Vec<u32>) {
        let mut state = self.shared.state.write();
        for number in &empty {
            self.files.remove(number);
            state.forget_file(*number);
        }
        drop(state);
        // Somebody may be about to read a version that was swept just now.
        self.shared.files.close(&std::mem::replace(&mut self.removed, empty));
        self.publish_size();
    }

    fn cleaned(&mut self, result: Result<Cleaned, Error>) {
        let Some(Task::Clean { victims }) = self.task.take() else { return };
        match result {
            Ok(cleaned) => {
                for (name, len) in cleaned.created {
                    self.files.insert(name.file(), (name, len));
                }
                self.just_cleaned = true;
                self.publish_size();
            }
            Err(error) => {
                self.bad.extend(victims);
                self.failed_task("cleaning files", &error);
            }
        }
    }

    fn publish_size(&self) {
        let bytes = self.files.values().map(|(_, len)| len).sum::<u64>() + self.checkpoint_bytes;
        self.shared.disk_bytes.store(bytes, Ordering::Relaxed);
    }
}

fn answer(reply: Option<oneshot::Sender<Applied>>, applied: Applied) {
    if let Some(reply) = reply {
        let _ = reply.send(applied);
    }
}
