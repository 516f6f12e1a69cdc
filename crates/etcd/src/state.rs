//! The state machine: a multi-version map, leases, and the history of events. Pure and deterministic: applying the
//! same commands gives the same state. No I/O, no clock.
//!
//! Sketch: a key costs its bytes, one `Arc<KeyValue>` (about 130 B) and a map slot. A write touches one map entry
//! and appends one event that shares the value. Readers hold the lock for the time of cloning `Arc`s.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use storage::{
    Error, Event, Expect, KeyRange, KeyValue, LeaseId, RangeRequest, RangeResponse, Revision, WriteOutcome,
};

use crate::command::{ChangeTo, Command};

/// A key's life since the last compaction, oldest first.
#[derive(Clone, Debug)]
enum Version {
    Put(Arc<KeyValue>),
    Tombstone(Revision),
}

impl Version {
    fn revision(&self) -> Revision {
        match self {
            Version::Put(kv) => kv.mod_revision,
            Version::Tombstone(revision) => *revision,
        }
    }
}

/// Most keys have one version; those keep it without a vector.
#[derive(Debug)]
enum History {
    One(Version),
    Many(Vec<Version>),
}

impl History {
    fn versions(&self) -> &[Version] {
        match self {
            History::One(v) => std::slice::from_ref(v),
            History::Many(v) => v,
        }
    }

    fn push(&mut self, version: Version) {
        match self {
            History::One(first) => *self = History::Many(vec![first.clone(), version]),
            History::Many(v) => v.push(version),
        }
    }

    fn latest(&self) -> Option<&Arc<KeyValue>> {
        match self.versions().last() {
            Some(Version::Put(kv)) => Some(kv),
            _ => None,
        }
    }

    fn at(&self, revision: Revision) -> Option<&Arc<KeyValue>> {
        match self.versions().iter().rev().find(|v| v.revision() <= revision) {
            Some(Version::Put(kv)) => Some(kv),
            _ => None,
        }
    }
}

/// A lease and the keys that end with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    pub ttl_seconds: i64,
    pub keys: BTreeSet<Bytes>,
}

/// What applying a command gave.
#[derive(Debug)]
pub enum Applied {
    Write(Result<WriteOutcome, Error>),
    Done(Result<(), Error>),
}

/// Everything a member knows.
#[derive(Debug)]
pub struct State {
    revision: Revision,
    compacted: Revision,
    keys: BTreeMap<Bytes, History>,
    /// Keys with more to their history than one put: what compaction has to visit.
    changed: BTreeSet<Bytes>,
    /// Every event after `compacted`, in revision order.
    events: VecDeque<Event>,
    leases: HashMap<LeaseId, Lease>,
    live_keys: usize,
    /// A snapshot is reading as of this revision: compaction must leave it readable.
    pinned: Option<Revision>,
}

impl Default for State {
    fn default() -> State {
        State {
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            changed: BTreeSet::new(),
            events: VecDeque::new(),
            leases: HashMap::new(),
            live_keys: 0,
            pinned: None,
        }
    }
}

impl State {
    /// A state as a snapshot tells it: present at `revision`, nothing known before.
    pub fn restored(
        revision: Revision,
        kvs: impl IntoIterator<Item = Arc<KeyValue>>,
        leases: impl IntoIterator<Item = (LeaseId, i64)>,
    ) -> State {
        let mut state = State { revision, compacted: revision, ..State::default() };
        state.leases = leases
            .into_iter()
            .map(|(id, ttl_seconds)| (id, Lease { ttl_seconds, ..Lease::default() }))
            .collect();
        for kv in kvs {
            if let Some(lease) = state.leases.get_mut(&kv.lease) {
                lease.keys.insert(kv.key.clone());
            }
            state.keys.insert(kv.key.clone(), History::One(Version::Put(kv)));
        }
        state.live_keys = state.keys.len();
        // Nothing at or before the snapshot's revision can be replayed to a watcher, but the state itself can be read.
        state.compacted = if revision > 1 { revision } else { 0 };
        state
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

    /// The revision to compact at so that at most `keep` events remain.
    pub fn revision_keeping(&self, keep: usize) -> Option<Revision> {
        let cut = self.events.len().checked_sub(keep)?;
        self.events.get(cut.checked_sub(1)?).map(Event::revision)
    }

    pub fn leases(&self) -> &HashMap<LeaseId, Lease> {
        &self.leases
    }

    /// Keeps `revision` physically readable through compactions until unpinned with `None`. Only what is kept in
    /// memory depends on it, never an answer.
    pub fn pin(&mut self, revision: Option<Revision>) {
        self.pinned = revision;
    }

    pub fn apply(&mut self, command: Command) -> Applied {
        match command {
            Command::Write { key, expect, change } => Applied::Write(self.write(key, expect, change)),
            Command::LeaseGrant { lease, ttl_seconds } => {
                self.leases.entry(lease).or_default().ttl_seconds = ttl_seconds;
                Applied::Done(Ok(()))
            }
            Command::LeaseRevoke { lease } => Applied::Done(self.revoke(lease)),
            Command::Compact { revision } => Applied::Done(self.compact(revision)),
        }
    }

    fn write(&mut self, key: Bytes, expect: Expect, change: ChangeTo) -> Result<WriteOutcome, Error> {
        let current = self.keys.get(&key).and_then(History::latest).cloned();
        let met = match expect {
            Expect::Anything => true,
            Expect::Absent => current.is_none(),
            Expect::ModRevision(revision) => current.as_ref().is_some_and(|kv| kv.mod_revision == revision),
        };
        let deletes_nothing = current.is_none() && change == ChangeTo::Delete;
        if !met || deletes_nothing {
            return Ok(WriteOutcome::Unmet { current, revision: self.revision });
        }
        match change {
            ChangeTo::Put { value, lease } => {
                if lease != 0 && !self.leases.contains_key(&lease) {
                    return Err(Error::LeaseNotFound);
                }
                self.revision += 1;
                self.put(key, value, lease, current.clone());
            }
            ChangeTo::Delete => {
                self.revision += 1;
                if let Some(kv) = current.clone() {
                    self.delete(kv);
                }
            }
        }
        Ok(WriteOutcome::Written { revision: self.revision, previous: current })
    }

    fn put(&mut self, key: Bytes, value: Bytes, lease: LeaseId, previous: Option<Arc<KeyValue>>) {
        // One allocation for the key serves the map, the value and every later version.
        let key = previous.as_ref().map_or(key, |p| p.key.clone());
        let kv = Arc::new(KeyValue {
            create_revision: previous.as_ref().map_or(self.revision, |p| p.create_revision),
            mod_revision: self.revision,
            version: previous.as_ref().map_or(1, |p| p.version + 1),
            lease,
            key: key.clone(),
            value,
        });
        if let Some(p) = &previous
            && p.lease != lease
            && let Some(old) = self.leases.get_mut(&p.lease)
        {
            old.keys.remove(&key);
        }
        if let Some(new) = self.leases.get_mut(&lease) {
            new.keys.insert(key.clone());
        }
        if previous.is_none() {
            self.live_keys += 1;
        }
        self.remember(key, Version::Put(kv.clone()));
        self.events.push_back(Event::Put { kv, previous });
    }

    fn delete(&mut self, previous: Arc<KeyValue>) {
        let key = previous.key.clone();
        if let Some(lease) = self.leases.get_mut(&previous.lease) {
            lease.keys.remove(&key);
        }
        self.live_keys -= 1;
        self.remember(key.clone(), Version::Tombstone(self.revision));
        self.events.push_back(Event::Delete { key, revision: self.revision, previous: Some(previous) });
    }

    fn remember(&mut self, key: Bytes, version: Version) {
        match self.keys.entry(key.clone()) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(History::One(version));
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                slot.get_mut().push(version);
                self.changed.insert(key);
            }
        }
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<(), Error> {
        let Some(gone) = self.leases.remove(&lease) else { return Err(Error::LeaseNotFound) };
        let doomed: Vec<Arc<KeyValue>> =
            gone.keys.iter().filter_map(|k| self.keys.get(k).and_then(History::latest).cloned()).collect();
        if !doomed.is_empty() {
            // As in etcd, all the keys of a lease go in one revision.
            self.revision += 1;
            for kv in doomed {
                self.delete(kv);
            }
        }
        Ok(())
    }

    fn compact(&mut self, at: Revision) -> Result<(), Error> {
        if at <= self.compacted {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        if at > self.revision {
            return Err(Error::FutureRevision { requested: at, current: self.revision });
        }
        self.compacted = at;
        let keep_from = self.pinned.map_or(at, |pinned| pinned.min(at));
        while self.events.front().is_some_and(|e| e.revision() <= at) {
            self.events.pop_front();
        }
        let keys = &mut self.keys;
        self.changed.retain(|key| {
            let Some(history) = keys.get_mut(key) else { return false };
            let mut versions = match std::mem::replace(history, History::Many(Vec::new())) {
                History::One(v) => vec![v],
                History::Many(v) => v,
            };
            // What can be read at `keep_from` stays, and all after it; a tombstone no later than that goes.
            let first = versions.iter().rposition(|v| v.revision() <= keep_from).unwrap_or(0);
            versions.drain(..first);
            if versions.first().is_some_and(|v| matches!(v, Version::Tombstone(r) if *r <= keep_from)) {
                versions.remove(0);
            }
            match (versions.len(), versions.pop()) {
                (0, _) | (_, None) => {
                    keys.remove(key);
                    false
                }
                (1, Some(only)) => {
                    let stays = matches!(only, Version::Tombstone(_));
                    *history = History::One(only);
                    stays
                }
                (_, Some(last)) => {
                    versions.push(last);
                    versions.shrink_to_fit();
                    *history = History::Many(versions);
                    true
                }
            }
        });
        if self.events.capacity() > 4 * self.events.len().max(1024) {
            self.events.shrink_to_fit();
        }
        Ok(())
    }

    /// Whether `revision` can be read.
    fn readable(&self, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision { requested: revision, current: self.revision });
        }
        if revision < self.compacted {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        Ok(())
    }

    fn histories(&self, range: &KeyRange) -> impl Iterator<Item = &History> {
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
        self.keys.range::<[u8], _>(bounds).map(|(_, h)| h)
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        if let Some(revision) = request.revision {
            self.readable(revision)?;
        }
        let mut response = RangeResponse { revision: self.revision, ..RangeResponse::default() };
        for history in self.histories(&request.range) {
            let found = match request.revision {
                None => history.latest(),
                Some(revision) => history.at(revision),
            };
            let Some(kv) = found else { continue };
            response.count += 1;
            if request.count_only {
                continue;
            }
            if request.limit > 0 && response.kvs.len() == request.limit {
                response.more = true;
                continue;
            }
            response.kvs.push(if request.keys_only {
                Arc::new(KeyValue { value: Bytes::new(), ..(**kv).clone() })
            } else {
                kv.clone()
            });
        }
        Ok(response)
    }

    /// At most `max` key-values as of `revision`, from `from` on: how snapshots read without stopping writers.
    /// The second value says where to go on.
    pub fn chunk(&self, from: &[u8], revision: Revision, max: usize) -> (Vec<Arc<KeyValue>>, Option<Bytes>) {
        let mut kvs = Vec::with_capacity(max);
        for (visited, (key, history)) in
            self.keys.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).enumerate()
        {
            if visited == max {
                return (kvs, Some(key.clone()));
            }
            kvs.extend(history.at(revision).cloned());
        }
        (kvs, None)
    }

    /// Up to `max` events in `range` from revision `from` on, whole revisions only, and the revision that answers for.
    pub fn events_from(
        &self,
        range: &KeyRange,
        from: Revision,
        max: usize,
    ) -> Result<(Vec<Event>, Revision), Error> {
        if from <= self.compacted && from != 0 {
            return Err(Error::Compacted { compacted: self.compacted });
        }
        let start = self.events.partition_point(|e| e.revision() < from);
        let mut events = Vec::new();
        let mut upto = self.revision;
        let mut last = 0;
        for event in self.events.range(start..) {
            if events.len() >= max && event.revision() != last {
                upto = last;
                break;
            }
            last = event.revision();
            if range.contains(event.key()) {
                events.push(event.clone());
            }
        }
        Ok((events, upto))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(state: &mut State, key: &str, value: &str) -> Revision {
        match state.apply(Command::Write {
            key: Bytes::copy_from_slice(key.as_bytes()),
            expect: Expect::Anything,
            change: ChangeTo::Put { value: Bytes::copy_from_slice(value.as_bytes()), lease: 0 },
        }) {
            Applied::Write(Ok(WriteOutcome::Written { revision, .. })) => revision,
            other => panic!("{other:?}"),
        }
    }

    fn delete(state: &mut State, key: &str) -> WriteOutcome {
        match state.apply(Command::Write {
            key: Bytes::copy_from_slice(key.as_bytes()),
            expect: Expect::Anything,
            change: ChangeTo::Delete,
        }) {
            Applied::Write(Ok(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn read(state: &State, revision: Option<Revision>) -> Result<Vec<String>, Error> {
        let request = RangeRequest { revision, ..RangeRequest::new(KeyRange::prefix("/")) };
        Ok(state
            .range(&request)?
            .kvs
            .iter()
            .map(|kv| format!("{}={}", String::from_utf8_lossy(&kv.key), String::from_utf8_lossy(&kv.value)))
            .collect())
    }

    #[test]
    fn old_revisions_stay_readable_until_compacted() {
        let mut s = State::default();
        assert_eq!(put(&mut s, "/a", "1"), 2);
        put(&mut s, "/a", "2");
        put(&mut s, "/b", "x");
        delete(&mut s, "/a");
        assert_eq!(read(&s, Some(2)).unwrap(), ["/a=1"]);
        assert_eq!(read(&s, Some(4)).unwrap(), ["/a=2", "/b=x"]);
        assert_eq!(read(&s, None).unwrap(), ["/b=x"]);
        assert_eq!(read(&s, Some(6)), Err(Error::FutureRevision { requested: 6, current: 5 }));
        s.apply(Command::Compact { revision: 4 });
        assert_eq!(read(&s, Some(3)), Err(Error::Compacted { compacted: 4 }));
        assert_eq!(read(&s, Some(4)).unwrap(), ["/a=2", "/b=x"]);
        s.apply(Command::Compact { revision: 5 });
        assert_eq!(read(&s, Some(5)).unwrap(), ["/b=x"]);
        assert_eq!(s.keys.len(), 1, "tombstones are gone");
        assert!(s.changed.is_empty());
    }

    #[test]
    fn expectations_guard_writes() {
        let mut s = State::default();
        let write = |s: &mut State, expect| {
            matches!(
                s.apply(Command::Write {
                    key: "/k".into(),
                    expect,
                    change: ChangeTo::Put { value: "v".into(), lease: 0 }
                }),
                Applied::Write(Ok(WriteOutcome::Written { .. }))
            )
        };
        assert!(!write(&mut s, Expect::ModRevision(2)));
        assert!(write(&mut s, Expect::Absent));
        assert!(!write(&mut s, Expect::Absent));
        assert!(write(&mut s, Expect::ModRevision(2)));
        assert!(!write(&mut s, Expect::ModRevision(2)));
        assert_eq!(s.revision(), 3, "unmet writes do not move the revision");
        assert!(matches!(delete(&mut s, "/none"), WriteOutcome::Unmet { .. }));
    }

    #[test]
    fn a_lease_takes_its_keys_in_one_revision() {
        let mut s = State::default();
        s.apply(Command::LeaseGrant { lease: 7, ttl_seconds: 5 });
        for key in ["/a", "/b"] {
            s.apply(Command::Write {
                key: key.into(),
                expect: Expect::Anything,
                change: ChangeTo::Put { value: "v".into(), lease: 7 },
            });
        }
        put(&mut s, "/b", "kept");
        s.apply(Command::LeaseRevoke { lease: 7 });
        assert_eq!(read(&s, None).unwrap(), ["/b=kept"]);
        assert!(matches!(
            s.apply(Command::Write {
                key: "/c".into(),
                expect: Expect::Anything,
                change: ChangeTo::Put { value: "v".into(), lease: 7 }
            }),
            Applied::Write(Err(Error::LeaseNotFound))
        ));
    }

    #[test]
    fn events_come_in_whole_revisions() {
        let mut s = State::default();
        for i in 0..10 {
            put(&mut s, if i % 2 == 0 { "/a" } else { "/b" }, &i.to_string());
        }
        let (events, upto) = s.events_from(&KeyRange::prefix("/a"), 4, 2).unwrap();
        assert_eq!(events.iter().map(Event::revision).collect::<Vec<_>>(), [4, 6]);
        assert_eq!(upto, 6);
        let (events, upto) = s.events_from(&KeyRange::prefix("/"), 12, 9).unwrap();
        assert!(events.is_empty());
        assert_eq!(upto, 11);
        assert_eq!(s.revision_keeping(3), Some(8));
        s.apply(Command::Compact { revision: 8 });
        assert!(matches!(
            s.events_from(&KeyRange::prefix("/"), 8, 9),
            Err(Error::Compacted { compacted: 8 })
        ));
        assert_eq!(s.events_from(&KeyRange::prefix("/"), 9, 9).unwrap().0.len(), 3);
    }
}
