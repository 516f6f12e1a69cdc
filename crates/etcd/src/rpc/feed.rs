//! The newest events, read from the store once and encoded once for all watchers.
//!
//! One task follows the store and appends to a ring; a watch stream remembers its place in the ring and copies what it wants
//! from there. A stream that the ring has left behind reads the store's history until it is back. Per event and watcher
//! that is a comparison of the range and a copy of the encoded bytes into the frame.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use parking_lot::{RwLock, RwLockReadGuard};
use storage::{Event, KeyRange, Revision};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::wire;
use crate::{Engine, EventsMax};

const RING_EVENTS_MAX: usize = 8192;
const RING_BYTES_MAX: usize = 8 << 20;
/// What the runtime's timers tell apart.
const TICK: Duration = Duration::from_millis(1);
/// What it costs about to wake a stream and to write it a message.
const STREAM_TURN: Duration = Duration::from_micros(8);
const READ: EventsMax = EventsMax { events: 1024, bytes: 1 << 20 };

/// An event and its encodings, made when the first watcher wants them.
pub struct Entry {
    pub event: Event,
    /// Whether the event was read with what it replaced.
    has_previous: bool,
    plain: OnceLock<Bytes>,
    full: OnceLock<Bytes>,
}

impl Entry {
    pub fn new(event: Event, has_previous: bool) -> Entry {
        Entry { event, has_previous, plain: OnceLock::new(), full: OnceLock::new() }
    }

    /// As field 11 of a WatchResponse; `None` when what it replaced is wanted and was not read.
    pub fn encoded(&self, with_previous: bool) -> Option<&Bytes> {
        if with_previous && !self.has_previous {
            return None;
        }
        let cell = if with_previous { &self.full } else { &self.plain };
        Some(cell.get_or_init(|| {
            let mut out = BytesMut::new();
            wire::put_event(&self.event, with_previous, &mut out);
            out.freeze()
        }))
    }

    fn bytes(&self) -> usize {
        match &self.event {
            Event::Put { kv, .. } => kv.key.len() + kv.value.len() + 64,
            Event::Delete { key, .. } => key.len() + 64,
        }
    }
}

/// Where a reader of the ring is: the next entry, and the revision that all before it reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub sequence: u64,
    pub revision: Revision,
}

pub struct Ring {
    entries: VecDeque<Entry>,
    /// Sequence of the first entry.
    first: u64,
    revision: Revision,
    bytes: usize,
}

impl Ring {
    /// The entries from `sequence` on; `None` when the ring has left that behind.
    pub fn from(&self, sequence: u64) -> Option<impl Iterator<Item = &Entry> + Clone> {
        let skip = sequence.checked_sub(self.first)? as usize;
        Some(self.entries.range(skip.min(self.entries.len())..))
    }

    pub fn end(&self) -> Place {
        Place { sequence: self.first + self.entries.len() as u64, revision: self.revision }
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.entries.len() > RING_EVENTS_MAX || self.bytes > RING_BYTES_MAX && self.entries.len() > 1 {
            if let Some(old) = self.entries.pop_front() {
                self.bytes -= old.bytes();
                self.first += 1;
            }
        }
    }

    /// Goes on at `revision` with nothing in between, so that every reader sees that it was left behind.
    fn skip_to(&mut self, revision: Revision) {
        self.first += self.entries.len() as u64 + 1;
        self.entries.clear();
        self.bytes = 0;
        self.revision = revision;
    }
}

pub struct Feed {
    engine: Engine,
    ring: RwLock<Ring>,
    tip: watch::Sender<u64>,
    stopped: AtomicBool,
    /// Watchers that want what an event replaced.
    wanting_previous: AtomicUsize,
}

impl Feed {
    pub fn new(engine: Engine) -> Arc<Feed> {
        let ring = Ring { entries: VecDeque::new(), first: 1, revision: engine.current_revision(), bytes: 0 };
        Arc::new(Feed {
            engine,
            ring: RwLock::new(ring),
            tip: watch::Sender::new(0),
            stopped: AtomicBool::new(false),
            wanting_previous: AtomicUsize::new(0),
        })
    }

    pub fn ring(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read()
    }

    /// Wakes whenever the ring grows. Subscribe before looking at the ring.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.tip.subscribe()
    }

    pub fn want_previous(&self, wanted: bool) {
        if wanted {
            self.wanting_previous.fetch_add(1, Ordering::Relaxed);
        } else {
            self.wanting_previous.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Whether nothing comes any more. Who subscribed before looking is woken when it comes to that.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Follows the store until `shutdown`.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        self.follow(shutdown).await;
        self.stopped.store(true, Ordering::Release);
        self.tip.send_modify(|_| {});
    }

    async fn follow(&self, shutdown: impl Future<Output = ()>) {
        let all = [KeyRange { start: Bytes::new(), end: None }];
        let mut applied = self.engine.subscribe();
        tokio::pin!(shutdown);
        let mut told = Instant::now();
        loop {
            let next = self.ring.read().revision + 1;
            if *applied.borrow_and_update() < next {
                tokio::select! {
                    () = &mut shutdown => return,
                    changed = applied.changed() => if changed.is_err() { return },
                }
                continue;
            }
            if self.tip.receiver_count() == 0 {
                let now = *applied.borrow();
                self.ring.write().skip_to(now);
                continue;
            }
            // While the streams are still at work on the last events (on one core, about), new ones gather: a message of
            // several events costs hardly more than one of one.
            let turn = STREAM_TURN * self.tip.receiver_count() as u32;
            if told.elapsed() + TICK < turn {
                tokio::select! {
                    () = &mut shutdown => return,
                    () = tokio::time::sleep_until(told + turn) => {}
                }
            }
            told = Instant::now();
            let previous = self.wanting_previous.load(Ordering::Relaxed) > 0;
            let sequence = match self.engine.events(&all, next, READ, previous).await {
                Ok(batch) => {
                    let mut ring = self.ring.write();
                    for event in batch.events {
                        ring.push(Entry::new(event, previous));
                    }
                    ring.revision = batch.revision;
                    ring.end().sequence
                }
                Err(error) => {
                    if !matches!(error, storage::Error::Compacted { .. }) {
                        tracing::error!(%error, "cannot read events");
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        continue;
                    }
                    let mut ring = self.ring.write();
                    ring.skip_to(self.engine.current_revision());
                    ring.end().sequence
                }
            };
            self.tip.send_replace(sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted(revision: Revision) -> Entry {
        Entry::new(Event::Delete { key: "k".into(), revision, previous: None }, false)
    }

    #[test]
    fn a_ring_tells_who_was_left_behind() {
        let mut ring = Ring { entries: VecDeque::new(), first: 1, revision: 1, bytes: 0 };
        for revision in 2..5 {
            ring.push(deleted(revision));
            ring.revision = revision;
        }
        assert_eq!(ring.end(), Place { sequence: 4, revision: 4 });
        assert_eq!(ring.from(2).unwrap().count(), 2);
        assert_eq!(ring.from(4).unwrap().count(), 0);
        let end = ring.end();
        ring.skip_to(9);
        assert!(ring.from(end.sequence).is_none());
        assert_eq!(ring.from(ring.end().sequence).unwrap().count(), 0);
        for revision in 0..RING_EVENTS_MAX as i64 + 10 {
            ring.push(deleted(10 + revision));
        }
        assert_eq!(ring.entries.len(), RING_EVENTS_MAX);
        assert!(ring.from(5).is_none());
    }

    #[test]
    fn what_was_not_read_is_not_told() {
        let entry = deleted(2);
        assert!(entry.encoded(false).is_some());
        assert!(entry.encoded(true).is_none());
    }
}
