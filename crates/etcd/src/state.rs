//! The state machine: a multi-version map, leases, alarms, meta keys, and the history of events. Pure and
//! deterministic: applying the same commands gives the same state. No I/O, no clock; values, which lie elsewhere, are
//! asked for through [`Values`] where a transaction compares them.
//!
//! Sketch: a version costs one [`Record`] (72 B with its count), a pointer in history, and for the first version of a
//! key the key itself and a map slot of 24 B; about 180 B in all for a key of 30 B. A write finds its key in the map and
//! allocates the record. Readers hold the lock for the time of cloning pointers. Compaction only sets a number;
//! [`State::sweep`] then drops superseded versions a few at a time, in the order of history, so nobody waits for it.

mod history;
mod scan;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::Mutex;
use storage::{Error, Expect, KeyRange, LeaseId, Revision};

use crate::command::{ChangeTo, Command};
use crate::record::{Key, Record, RecordRef};
use crate::request::{Alarm, Place, Query, Value};

use history::{History, Version};
pub use scan::Scan;

/// Where the state finds a value.
pub trait Values {
    fn value(&self, record: &Record) -> Result<Bytes, Error>;
}

/// A lease and the keys that end with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    pub ttl_seconds: i64,
    /// What was left when that was last noted; 0 is all of it.
    pub remaining_seconds: i64,
    pub keys: BTreeSet<Key>,
}

/// What a range found, before values are fetched.
#[derive(Debug, Default)]
pub struct Found {
    pub records: Vec<RecordRef>,
    pub more: bool,
    pub count: usize,
    pub revision: Revision,
    pub keys_only: bool,
    /// Order by value and cut to this many, which needs the values.
    pub by_value: Option<(bool, usize)>,
}

/// What a transaction did, before values are fetched.
#[derive(Debug)]
pub struct Transacted {
    pub succeeded: bool,
    pub revision: Revision,
    pub outcomes: Vec<Done>,
}

#[derive(Debug)]
pub enum Done {
    Range(Found),
    Put { previous: Option<RecordRef> },
    DeleteRange { deleted: usize, previous: Vec<RecordRef> },
    Txn(Transacted),
}

/// What applying a command gave.
#[derive(Debug)]
pub enum Applied {
    Written {
        revision: Revision,
    },
    Unmet {
        current: Option<RecordRef>,
        revision: Revision,
    },
    Transacted(Transacted),
    /// The bucket's version, and whether the writer's expectation held.
    Meta {
        version: u64,
        written: bool,
    },
    /// Whether the command changed anything.
    Done {
        changed: bool,
    },
    Refused(Error),
}

/// One event of history, before values are fetched.
#[derive(Debug)]
pub struct Happened {
    pub record: RecordRef,
    pub previous: Option<RecordRef>,
}

impl Transacted {
    /// Bytes of values that the answer holds.
    pub fn reading(&self) -> usize {
        let bytes = |records: &[RecordRef]| records.iter().map(|r| r.len as usize).sum::<usize>();
        self.outcomes
            .iter()
            .map(|done| match done {
                Done::Range(found) => bytes(&found.records),
                Done::Put { previous } => previous.as_ref().map_or(0, |r| r.len as usize),
                Done::DeleteRange { previous, .. } => bytes(previous),
                Done::Txn(nested) => nested.reading(),
            })
            .sum()
    }
}

impl Happened {
    /// Bytes of values that the event holds.
    pub fn reading(&self) -> usize {
        self.record.len as usize + self.previous.as_ref().map_or(0, |r| r.len as usize)
    }
}

/// Bounds on one batch of events. At least one revision is always given, and revisions are never split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventsMax {
    pub events: usize,
    pub bytes: usize,
}

/// Events looked at under one hold of the lock.
const EVENTS_SCANNED_MAX: usize = 1 << 14;

/// Everything a member knows.
#[derive(Debug)]
pub struct State {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<Key, History>,
    /// Every version that compaction has not passed by, in order.
    events: VecDeque<RecordRef>,
    leases: HashMap<LeaseId, Lease>,
    alarms: BTreeSet<Alarm>,
    meta: BTreeMap<Bytes, Bytes>,
    meta_version: u64,
    live_keys: usize,
    bytes_in_use: u64,
    /// Bytes that are in use by file: values and what the log keeps with them.
    file_use: HashMap<u32, u64>,
    /// Somebody is reading as of these revisions (with a count): sweeping must leave them readable. Only what is kept
    /// in memory depends on it, never an answer.
    pins: Mutex<BTreeMap<Revision, usize>>,
    /// Changes made so far by the transaction being applied.
    changes: u32,
    /// What was put since [`State::take_fresh`].
    fresh: Vec<Fresh>,
}

/// A version just put, with the bytes that came with it.
#[derive(Debug)]
pub struct Fresh {
    pub record: RecordRef,
    pub key: Bytes,
    pub value: Bytes,
}

impl Default for State {
    fn default() -> State {
        State {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            events: VecDeque::new(),
            leases: HashMap::new(),
            alarms: BTreeSet::new(),
            meta: BTreeMap::new(),
            meta_version: 0,
            live_keys: 0,
            bytes_in_use: 0,
            file_use: HashMap::new(),
            pins: Mutex::default(),
            changes: 0,
            fresh: Vec::new(),
        }
    }
}

/// The parts of a state that are not versions of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub revision: Revision,
    pub compacted: Revision,
    /// Id, granted and remaining seconds.
    pub leases: Vec<(LeaseId, i64, i64)>,
    pub alarms: Vec<Alarm>,
    pub meta: Vec<(Bytes, Bytes)>,
    pub meta_version: u64,
}

impl State {
    /// A state as a snapshot tells it. Versions of one key follow each other, oldest first, and keys ascend.
    pub fn restored(header: Header, versions: impl IntoIterator<Item = RecordRef>) -> State {
        let mut state = State {
            revision: header.revision,
            compacted: header.compacted,
            alarms: header.alarms.into_iter().collect(),
            meta: header.meta.into_iter().collect(),
            meta_version: header.meta_version,
            ..State::default()
        };
        state.leases = header
            .leases
            .into_iter()
            .map(|(id, ttl_seconds, remaining_seconds)| {
                (id, Lease { ttl_seconds, remaining_seconds, ..Lease::default() })
            })
            .collect();
        let (mut keys, mut events, mut versions) = (Vec::new(), Vec::new(), versions.into_iter().peekable());
        let mut life: Vec<RecordRef> = Vec::new();
        while let Some(record) = versions.next() {
            life.push(record);
            let key = &life[0].key;
            if versions.peek().is_some_and(|next| next.key == *key) {
                continue;
            }
            if let Some(entry) = state.restore_key(&mut life, &mut events) {
                keys.push(entry);
            }
        }
        std::thread::scope(|scope| {
            // Sorted by what lies beside the pointers, since following each would take long.
            let sorted = scope.spawn(|| {
                events.sort_unstable_by_key(|(position, _)| *position);
                events.into_iter().map(|(_, record)| record).collect()
            });
            state.keys = keys.into_iter().collect();
            state.events = sorted.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        state
    }

    /// Takes in the versions of one key, which leaves `life` empty.
    fn restore_key(
        &mut self,
        life: &mut Vec<RecordRef>,
        events: &mut Vec<((Revision, u32), RecordRef)>,
    ) -> Option<(Key, History)> {
        let mut history = match life.len() {
            1 => History::one(life.pop()?),
            _ => History::many(std::mem::take(life))?,
        };
        if !history.trim(self.compacted, &mut Vec::new()) {
            return None;
        }
        for record in history.versions() {
            self.account(&record);
            if record.mod_revision > self.compacted {
                events.push((record.position(), record.clone_arc()));
            }
        }
        let latest = history.newest()?;
        let key = latest.key.clone();
        if !latest.is_tombstone() {
            self.live_keys += 1;
            if let Some(lease) = self.leases.get_mut(&latest.lease) {
                lease.keys.insert(key.clone());
            }
        }
        Some((key, history))
    }

    pub fn header(&self) -> Header {
        let mut leases: Vec<(LeaseId, i64, i64)> =
            self.leases.iter().map(|(id, l)| (*id, l.ttl_seconds, l.remaining_seconds)).collect();
        leases.sort_unstable();
        Header {
            revision: self.revision,
            compacted: self.compacted,
            leases,
            alarms: self.alarms.iter().copied().collect(),
            meta: self.meta.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            meta_version: self.meta_version,
        }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    pub fn live_keys(&self) -> usize {
        self.live_keys
    }

    pub fn history_len(&self) -> usize {
        self.events.len()
    }

    pub fn bytes_in_use(&self) -> u64 {
        self.bytes_in_use
    }

    pub fn file_use(&self) -> &HashMap<u32, u64> {
        &self.file_use
    }

    /// The revision to compact at so that at most `keep` events remain.
    pub fn revision_keeping(&self, keep: usize) -> Option<Revision> {
        let cut = self.events.len().checked_sub(keep)?;
        self.events.get(cut.checked_sub(1)?).map(|e| e.mod_revision).filter(|r| *r > self.compacted)
    }

    pub fn leases(&self) -> &HashMap<LeaseId, Lease> {
        &self.leases
    }

    pub fn alarms(&self) -> &BTreeSet<Alarm> {
        &self.alarms
    }

    pub fn meta(&self) -> &BTreeMap<Bytes, Bytes> {
        &self.meta
    }

    pub fn meta_version(&self) -> u64 {
        self.meta_version
    }

    /// Keeps everything that can be read at `revision` or later until [`State::unpin`].
    pub fn pin(&self, revision: Revision) {
        *self.pins.lock().entry(revision).or_default() += 1;
    }

    pub fn unpin(&self, revision: Revision) {
        let mut pins = self.pins.lock();
        if let Some(count) = pins.get_mut(&revision) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&revision);
            }
        }
    }

    pub fn apply(&mut self, command: Command, values: &dyn Values) -> Applied {
        let done = |changed| Applied::Done { changed };
        match command {
            Command::Write { key, expect, change } => self.write(&key, expect, change),
            Command::Txn(txn) => match self.transact(txn, values) {
                Ok(transacted) => Applied::Transacted(transacted),
                Err(error) => Applied::Refused(error),
            },
            Command::LeaseGrant { lease, ttl_seconds } => {
                if self.leases.contains_key(&lease) {
                    return Applied::Refused(Error::LeaseExists);
                }
                self.leases.insert(lease, Lease { ttl_seconds, ..Lease::default() });
                done(true)
            }
            Command::LeaseRevoke { lease } => self.revoke(lease),
            Command::LeaseRemaining(leases) => {
                for (id, seconds) in leases {
                    if let Some(lease) = self.leases.get_mut(&id) {
                        lease.remaining_seconds = seconds;
                    }
                }
                done(true)
            }
            Command::Compact { revision } => self.compact(revision),
            Command::Alarm { alarm, raised } => {
                done(if raised { self.alarms.insert(alarm) } else { self.alarms.remove(&alarm) })
            }
            Command::Meta { expect, changes } => {
                let written = expect.is_none_or(|version| version == self.meta_version);
                if written {
                    self.meta_version += 1;
                    for (key, value) in changes {
                        match value {
                            Some(value) => self.meta.insert(key, value),
                            None => self.meta.remove(&key),
                        };
                    }
                }
                Applied::Meta { version: self.meta_version, written }
            }
        }
    }

    fn latest(&self, key: &[u8]) -> Option<Version<'_>> {
        self.keys.get(key).and_then(History::latest)
    }

    fn write(&mut self, key: &Bytes, expect: Expect, change: ChangeTo) -> Applied {
        let current = self.latest(key).map(|v| v.clone_arc());
        let met = match expect {
            Expect::Anything => true,
            Expect::Absent => current.is_none(),
            Expect::ModRevision(revision) => current.as_ref().is_some_and(|kv| kv.mod_revision == revision),
        };
        if !met || (current.is_none() && change == ChangeTo::Delete) {
            return Applied::Unmet { current, revision: self.revision };
        }
        self.changes = 0;
        match change {
            ChangeTo::Put { value, lease } => {
                if lease != 0 && !self.leases.contains_key(&lease) {
                    return Applied::Refused(Error::LeaseNotFound);
                }
                self.put(key, &value, lease, current);
            }
            ChangeTo::Delete => {
                if let Some(current) = current {
                    self.delete(&current);
                }
            }
        }
        self.revision += 1;
        Applied::Written { revision: self.revision }
    }

    /// Makes a change of the revision that is under way.
    fn put(&mut self, key: &Bytes, value: &Value, lease: LeaseId, previous: Option<RecordRef>) {
        let revision = self.revision + 1;
        // One allocation of the key serves the map and every version.
        let shared = match &previous {
            Some(previous) => previous.key.clone(),
            None => Key::from(&key[..]),
        };
        let create = previous.as_ref().map_or(revision, |p| p.create_revision);
        let version = previous.as_ref().map_or(1, |p| p.version + 1);
        if let Some(p) = &previous
            && p.lease != lease
            && let Some(old) = self.leases.get_mut(&p.lease)
        {
            old.keys.remove(&key[..]);
        }
        if lease != 0
            && let Some(new) = self.leases.get_mut(&lease)
        {
            new.keys.insert(shared.clone());
        }
        if previous.is_none() {
            self.live_keys += 1;
        }
        let place = if value.len == 0 { Place::default() } else { value.place };
        let record = self.remember(Record::put(
            shared,
            (create, revision, self.changes),
            version,
            lease,
            (value.len, value.crc, place),
        ));
        if value.len > 0 && value.bytes.len() == value.len as usize {
            self.fresh.push(Fresh { record, key: key.clone(), value: value.bytes.clone() });
        }
    }

    fn delete(&mut self, previous: &Record) {
        if let Some(lease) = self.leases.get_mut(&previous.lease) {
            lease.keys.remove(&previous.key);
        }
        self.live_keys -= 1;
        self.remember(Record::tombstone(previous.key.clone(), self.revision + 1, self.changes));
    }

    fn remember(&mut self, record: Record) -> RecordRef {
        self.changes += 1;
        self.account(&record);
        let record = RecordRef::new(record);
        self.events.push_back(record.clone());
        match self.keys.entry(record.key.clone()) {
            Entry::Occupied(mut history) => history.get_mut().push(record.clone()),
            Entry::Vacant(slot) => {
                slot.insert(History::one(record.clone()));
            }
        }
        record
    }

    fn account(&mut self, record: &Record) {
        self.bytes_in_use += record.cost();
        if record.len > 0 {
            *self.file_use.entry(record.place().file).or_default() += record.stored();
        }
    }

    /// What was put since the last call, with the bytes that came with it.
    pub fn take_fresh(&mut self) -> Vec<Fresh> {
        std::mem::take(&mut self.fresh)
    }

    fn revoke(&mut self, lease: LeaseId) -> Applied {
        let Some(gone) = self.leases.remove(&lease) else { return Applied::Refused(Error::LeaseNotFound) };
        self.changes = 0;
        for key in gone.keys {
            if let Some(record) = self.latest(&key).map(|v| v.clone_arc()) {
                self.delete(&record);
            }
        }
        if self.changes > 0 {
            // As in etcd, all the keys of a lease go in one revision.
            self.revision += 1;
        }
        Applied::Done { changed: true }
    }

    fn compact(&mut self, at: Revision) -> Applied {
        if at <= self.compacted {
            return Applied::Refused(Error::Compacted { compacted: self.compacted });
        }
        if at > self.revision {
            return Applied::Refused(Error::FutureRevision { requested: at, current: self.revision });
        }
        self.compacted = at;
        Applied::Done { changed: true }
    }

    /// Whether [`State::sweep`] has something to do.
    pub fn is_swept(&self) -> bool {
        let upto = self.sweepable();
        self.events.front().is_none_or(|e| e.mod_revision > upto)
    }

    fn sweepable(&self) -> Revision {
        self.pins.lock().first_key_value().map_or(self.compacted, |(pinned, _)| (*pinned).min(self.compacted))
    }

    /// Drops versions that compaction has made unreachable, looking at no more than `max` events. Returns what went.
    pub fn sweep(&mut self, max: usize) -> Vec<RecordRef> {
        let upto = self.sweepable();
        let mut gone = Vec::new();
        for _ in 0..max {
            if self.events.front().is_none_or(|e| e.mod_revision > upto) {
                break;
            }
            let Some(event) = self.events.pop_front() else { break };
            self.trim(&event.key, upto, &mut gone);
        }
        if self.events.capacity() > 4 * self.events.len().max(1024) {
            self.events.shrink_to(2 * self.events.len());
        }
        for record in &gone {
            self.bytes_in_use -= record.cost();
            if record.len > 0
                && let Some(used) = self.file_use.get_mut(&record.place().file)
            {
                *used -= record.stored();
            }
        }
        gone
    }

    /// What can be read at `upto` stays, and all after it; a tombstone no later than that goes.
    fn trim(&mut self, key: &[u8], upto: Revision, gone: &mut Vec<RecordRef>) {
        if let Some(history) = self.keys.get_mut(key)
            && !history.trim(upto, gone)
        {
            self.keys.remove(key);
        }
    }

    /// Whether `revision` can be read.
    pub fn readable(&self, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision { requested: revision, current: self.revision });
        }
        if revision < self.compacted {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        Ok(())
    }

    fn histories(&self, range: &KeyRange) -> impl Iterator<Item = &History> {
        self.entries(range).map(|(_, history)| history)
    }

    fn entries(&self, range: &KeyRange) -> impl Iterator<Item = (&Key, &History)> {
        let end = match &range.end {
            Some(end) => Bound::Excluded(&end[..]),
            None => Bound::Unbounded,
        };
        let empty = range.end.as_ref().is_some_and(|end| *end <= range.start);
        let bounds = if empty {
            (Bound::Excluded(&range.start[..]), Bound::Included(&range.start[..]))
        } else {
            (Bound::Included(&range.start[..]), end)
        };
        self.keys.range::<[u8], _>(bounds)
    }

    pub fn range(&self, query: &Query) -> Result<Found, Error> {
        if let Some(revision) = query.revision {
            self.readable(revision)?;
        }
        Ok(self.find(query))
    }

    fn find(&self, query: &Query) -> Found {
        let mut scan = Scan::new(query);
        if is_one_key(&query.range) && query.revision.is_none() {
            scan.found.revision = self.revision;
            self.latest(&query.range.start).into_iter().for_each(|version| scan.add(version));
        } else {
            scan.step(self, usize::MAX);
        }
        scan.finish()
    }

    /// Every version no later than `revision` of at most `max` keys, from `from` on: how snapshots read without
    /// stopping writers. The second value says where to go on.
    pub fn chunk(&self, from: &[u8], revision: Revision, max: usize) -> (Vec<RecordRef>, Option<Key>) {
        let mut records = Vec::with_capacity(max);
        for (visited, (key, history)) in
            self.keys.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).enumerate()
        {
            if visited == max {
                return (records, Some(key.clone()));
            }
            records.extend(history.versions().filter(|v| v.mod_revision <= revision).map(|v| v.clone_arc()));
        }
        (records, None)
    }

    /// Every version of `key` that is kept.
    pub fn versions<'a>(&'a self, key: &[u8]) -> impl Iterator<Item = Version<'a>> + use<'a> {
        self.keys.get(key).into_iter().flat_map(History::versions)
    }

    /// Accounts for a value that was moved to another file.
    pub fn moved(&mut self, record: &Record, to: Place) {
        if let Some(used) = self.file_use.get_mut(&record.place().file) {
            *used -= record.stored();
        }
        *self.file_use.entry(to.file).or_default() += record.stored();
        record.move_to(to);
    }

    /// Forgets a file that no value lies in.
    pub fn forget_file(&mut self, file: u32) {
        self.file_use.remove(&file);
    }

    /// Events in any of `ranges` from revision `from` on, whole revisions only, and the revision up to which they are
    /// all there are. `previous` also looks up what each event replaced.
    pub fn events_from(
        &self,
        ranges: &[KeyRange],
        from: Revision,
        max: EventsMax,
        previous: bool,
    ) -> Result<(Vec<Happened>, Revision), Error> {
        if from <= self.compacted && from != 0 {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        let from = from.max(self.compacted + 1);
        let start = self.events.partition_point(|e| e.mod_revision < from);
        let (mut events, mut bytes) = (Vec::new(), 0);
        let (mut upto, mut last) = (self.revision, 0);
        for (scanned, record) in self.events.range(start..).enumerate() {
            let full = events.len() >= max.events || bytes >= max.bytes || scanned >= EVENTS_SCANNED_MAX;
            if full && record.mod_revision != last && last != 0 {
                upto = last;
                break;
            }
            last = record.mod_revision;
            if ranges.iter().any(|range| range.contains(&record.key)) {
                bytes += record.key.len() + record.len as usize;
                let previous = match previous {
                    true => self
                        .keys
                        .get(&record.key[..])
                        .and_then(|h| h.before(record.position()))
                        .map(|v| v.clone_arc()),
                    false => None,
                };
                events.push(Happened { record: record.clone(), previous });
            }
        }
        Ok((events, upto))
    }
}

/// Whether the range is one key, which can be found without a scan.
pub fn is_one_key(range: &KeyRange) -> bool {
    range.end.as_ref().is_some_and(|end| {
        end.len() == range.start.len() + 1 && end.ends_with(&[0]) && end.starts_with(&range.start)
    })
}
