use std::cell::RefCell;

use super::*;
use crate::request::{
    AlarmKind, Compare, CompareOp, CompareTarget, DeleteRange, Op, Put, Sort, SortTarget, Txn,
};

/// A state whose values are where the test can find them.
#[derive(Default)]
struct Store {
    state: State,
    values: Kept,
}

#[derive(Default)]
struct Kept(RefCell<HashMap<(Revision, u32), Bytes>>);

impl Values for Kept {
    fn value(&self, record: &Record) -> Result<Bytes, Error> {
        Ok(self.0.borrow().get(&record.position()).cloned().unwrap_or_default())
    }
}

impl Store {
    fn apply(&mut self, command: Command) -> Applied {
        let applied = self.state.apply(command, &self.values);
        for fresh in self.state.take_fresh() {
            self.values.0.borrow_mut().insert(fresh.record.position(), fresh.value);
        }
        applied
    }

    fn write(&mut self, key: &str, expect: Expect, change: ChangeTo) -> Applied {
        self.apply(Command::Write { key: Bytes::copy_from_slice(key.as_bytes()), expect, change })
    }

    fn put(&mut self, key: &str, value: &str) -> Revision {
        match self.write(key, Expect::Anything, to(value, 0)) {
            Applied::Written { revision } => revision,
            other => panic!("{other:?}"),
        }
    }

    fn delete(&mut self, key: &str) -> Applied {
        self.write(key, Expect::Anything, ChangeTo::Delete)
    }

    fn txn(&mut self, txn: Txn) -> Result<Transacted, Error> {
        match self.apply(Command::Txn(txn)) {
            Applied::Transacted(transacted) => Ok(transacted),
            Applied::Refused(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    fn show(&self, records: &[RecordRef]) -> Vec<String> {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        records.iter().map(|r| format!("{}={}", text(&r.key), text(&self.values.value(r).unwrap()))).collect()
    }

    fn read(&self, revision: Option<Revision>) -> Result<Vec<String>, Error> {
        let query = Query { revision, ..Query::new(KeyRange::prefix("/")) };
        Ok(self.show(&self.state.range(&query)?.records))
    }

    fn compact(&mut self, revision: Revision) {
        assert!(matches!(self.apply(Command::Compact { revision }), Applied::Done { .. }));
        while !self.state.is_swept() {
            self.state.sweep(2);
        }
    }
}

fn to(value: &str, lease: LeaseId) -> ChangeTo {
    ChangeTo::Put { value: Bytes::copy_from_slice(value.as_bytes()).into(), lease }
}

fn put_op(key: &'static str, value: &'static str) -> Op {
    Op::Put(Put::new(key.into(), value.into()))
}

fn compare(key: &'static str, target: CompareTarget, op: CompareOp) -> Compare {
    Compare { range: KeyRange::key(key), target, op }
}

#[test]
fn old_revisions_stay_readable_until_compacted() {
    let mut s = Store::default();
    assert_eq!(s.put("/a", "1"), 2);
    s.put("/a", "2");
    s.put("/b", "x");
    s.delete("/a");
    assert_eq!(s.read(Some(2)).unwrap(), ["/a=1"]);
    assert_eq!(s.read(Some(4)).unwrap(), ["/a=2", "/b=x"]);
    assert_eq!(s.read(None).unwrap(), ["/b=x"]);
    assert_eq!(s.read(Some(6)), Err(Error::FutureRevision { requested: 6, current: 5 }));
    s.compact(4);
    assert_eq!(s.read(Some(3)), Err(Error::Compacted { compacted: 4 }));
    assert_eq!(s.read(Some(4)).unwrap(), ["/a=2", "/b=x"]);
    s.compact(5);
    assert_eq!(s.read(Some(5)).unwrap(), ["/b=x"]);
    assert_eq!(s.state.keys.len(), 1, "tombstones are gone");
    assert!(s.state.events.is_empty());
    let only = s.state.versions(b"/b").next().unwrap().cost();
    assert_eq!(s.state.bytes_in_use(), only);
}

#[test]
fn a_pin_keeps_what_compaction_has_passed() {
    let mut s = Store::default();
    s.put("/a", "1");
    s.put("/a", "2");
    s.put("/a", "3");
    s.state.pin(2);
    s.compact(4);
    assert_eq!(s.state.versions(b"/a").count(), 3);
    s.state.unpin(2);
    assert!(!s.state.is_swept());
    assert_eq!(s.state.sweep(100).len(), 2);
    assert_eq!(s.state.versions(b"/a").count(), 1);
}

#[test]
fn expectations_guard_writes() {
    let mut s = Store::default();
    let mut write = |expect| matches!(s.write("/k", expect, to("v", 0)), Applied::Written { .. });
    assert!(!write(Expect::ModRevision(2)));
    assert!(write(Expect::Absent));
    assert!(!write(Expect::Absent));
    assert!(write(Expect::ModRevision(2)));
    assert!(!write(Expect::ModRevision(2)));
    assert_eq!(s.state.revision(), 3, "unmet writes do not move the revision");
    assert!(matches!(s.delete("/none"), Applied::Unmet { current: None, revision: 3 }));
}

#[test]
fn a_lease_takes_its_keys_in_one_revision() {
    let mut s = Store::default();
    s.apply(Command::LeaseGrant { lease: 7, ttl_seconds: 5 });
    assert!(matches!(
        s.apply(Command::LeaseGrant { lease: 7, ttl_seconds: 5 }),
        Applied::Refused(Error::LeaseExists)
    ));
    for key in ["/a", "/b", "/c"] {
        s.write(key, Expect::Anything, to("v", 7));
    }
    s.put("/b", "kept");
    s.apply(Command::LeaseRevoke { lease: 7 });
    assert_eq!(s.read(None).unwrap(), ["/b=kept"]);
    assert_eq!(s.state.revision(), 6);
    assert!(matches!(s.write("/c", Expect::Anything, to("v", 7)), Applied::Refused(Error::LeaseNotFound)));
    let all = EventsMax { events: 100, bytes: 1 << 20 };
    let (events, _) = s.state.events_from(&[KeyRange::prefix("/")], 6, all, true).unwrap();
    let seen: Vec<_> = events.iter().map(|e| (e.record.position(), e.previous.is_some())).collect();
    assert_eq!(seen, [((6, 0), true), ((6, 1), true)]);
}

#[test]
fn transactions_decide_first_and_then_write_at_one_revision() {
    let mut s = Store::default();
    s.put("/a", "1");
    let nested = Txn {
        // Seen as it was before the outer transaction.
        compares: vec![compare("/a", CompareTarget::Value("1".into()), CompareOp::Equal)],
        success: vec![put_op("/b", "nested")],
        failure: vec![put_op("/b", "wrong")],
    };
    let done = s
        .txn(Txn {
            compares: vec![compare("/a", CompareTarget::Mod(2), CompareOp::Equal)],
            success: vec![
                put_op("/a", "2"),
                Op::Txn(nested),
                Op::Range(Query::new(KeyRange::prefix("/"))),
                Op::DeleteRange(DeleteRange { range: KeyRange::key("/a"), previous: true }),
            ],
            failure: vec![],
        })
        .unwrap();
    assert!(done.succeeded);
    assert_eq!((done.revision, s.state.revision()), (3, 3));
    let Done::Range(found) = &done.outcomes[2] else { panic!() };
    assert_eq!(s.show(&found.records), ["/a=2", "/b=nested"], "a range sees what went before");
    let Done::DeleteRange { deleted: 1, previous } = &done.outcomes[3] else { panic!() };
    assert_eq!(s.show(previous), ["/a=2"]);
    assert_eq!(s.read(None).unwrap(), ["/b=nested"]);
    assert_eq!(s.state.versions(b"/b").next().unwrap().sub, 1);
}

#[test]
fn compares_of_every_kind() {
    let mut s = Store::default();
    s.apply(Command::LeaseGrant { lease: 9, ttl_seconds: 5 });
    s.put("/a", "1");
    s.put("/a", "5");
    s.write("/b", Expect::Anything, to("7", 9));
    use CompareOp::*;
    use CompareTarget::*;
    for (key, target, op, want) in [
        ("/a", Create(2), Equal, true),
        ("/a", Mod(2), Greater, true),
        ("/a", Version(2), Less, false),
        ("/a", Version(2), Equal, true),
        ("/a", Value("5".into()), Equal, true),
        ("/a", Value("4".into()), Greater, true),
        ("/a", Value("4".into()), NotEqual, true),
        ("/b", Lease(9), Equal, true),
        ("/none", Create(0), Equal, true),
        ("/none", Version(0), NotEqual, false),
        ("/none", Value("".into()), Equal, false),
        ("/none", Value("x".into()), NotEqual, false),
    ] {
        let compare = compare(key, target.clone(), op);
        assert_eq!(s.state.holds(&compare, &s.values).unwrap(), want, "{key} {target:?} {op:?}");
    }
    let range = |target| Compare { range: KeyRange::prefix("/"), target, op: Greater };
    assert!(s.state.holds(&range(Create(1)), &s.values).unwrap());
    assert!(!s.state.holds(&range(Create(2)), &s.values).unwrap(), "every key has to meet it");
}

#[test]
fn refused_transactions_change_nothing() {
    let mut s = Store::default();
    s.put("/a", "1");
    let keep = Put { ignore_value: true, ..Put::new("/none".into(), "".into()) };
    let leased = Put { lease: 3, ..Put::new("/x".into(), "".into()) };
    let future = Query { revision: Some(99), ..Query::new(KeyRange::key("/a")) };
    for (op, want) in [
        (Op::Put(keep), Error::KeyNotFound),
        (Op::Put(leased), Error::LeaseNotFound),
        (Op::Range(future), Error::FutureRevision { requested: 99, current: 2 }),
    ] {
        let txn = Txn { success: vec![put_op("/a", "2"), op], ..Txn::default() };
        assert_eq!(s.txn(txn).unwrap_err(), want);
    }
    assert_eq!((s.state.revision(), s.read(None).unwrap()), (2, vec!["/a=1".to_owned()]));
}

#[test]
fn puts_can_keep_value_or_lease() {
    let mut s = Store::default();
    s.apply(Command::LeaseGrant { lease: 3, ttl_seconds: 5 });
    s.write("/a", Expect::Anything, to("v", 3));
    let (first, crc) = (s.state.versions(b"/a").next().unwrap().clone_arc(), crc32fast::hash(b"v"));
    s.txn(Txn::of(Op::Put(Put { ignore_value: true, ..Put::new("/a".into(), "".into()) }))).unwrap();
    let second = s.state.versions(b"/a").nth(1).unwrap().clone_arc();
    assert_eq!((second.len, second.crc, second.place(), second.lease), (1, crc, first.place(), 0));
    s.write("/a", Expect::Anything, to("w", 3));
    s.txn(Txn::of(Op::Put(Put { ignore_lease: true, ..Put::new("/a".into(), "z".into()) }))).unwrap();
    assert_eq!(s.state.latest(b"/a").unwrap().lease, 3);
    assert_eq!(s.state.leases()[&3].keys.len(), 1);
}

#[test]
fn ranges_are_filtered_sorted_and_cut() {
    let mut s = Store::default();
    for (key, value) in [("/a", "3"), ("/b", "1"), ("/c", "2"), ("/a", "0")] {
        s.put(key, value);
    }
    let keys = |query: Query| {
        let found = s.state.range(&query).unwrap();
        let keys: Vec<_> =
            found.records.iter().map(|r| String::from_utf8_lossy(&r.key).into_owned()).collect();
        (keys.join(""), found.more, found.count)
    };
    let all = || Query::new(KeyRange::prefix("/"));
    let sort = |target, descending| Some(Sort { target, descending });
    let want = |text: &str, more, count| (text.to_owned(), more, count);
    assert_eq!(keys(Query { limit: 2, ..all() }), want("/a/b", true, 3));
    assert_eq!(keys(Query { limit: 3, ..all() }), want("/a/b/c", false, 3));
    assert_eq!(keys(Query { count_only: true, ..all() }), want("", false, 3));
    assert_eq!(keys(Query { sort: sort(SortTarget::Mod, false), ..all() }), want("/b/c/a", false, 3));
    assert_eq!(keys(Query { sort: sort(SortTarget::Key, true), limit: 1, ..all() }), want("/c", true, 3));
    assert_eq!(keys(Query { sort: sort(SortTarget::Version, true), ..all() }), want("/a/b/c", false, 3));
    assert_eq!(keys(Query { min_mod_revision: 4, ..all() }), want("/a/c", false, 3));
    assert_eq!(keys(Query { max_create_revision: 3, limit: 1, ..all() }), want("/a", true, 3));
    assert_eq!(keys(Query { revision: Some(3), ..all() }), want("/a/b", false, 2));
}

#[test]
fn a_long_range_is_read_in_steps_as_of_one_revision() {
    let mut s = Store::default();
    for i in 0..10 {
        s.put(&format!("/{i}"), "old");
    }
    let query = Query::new(KeyRange::prefix("/"));
    let mut scan = Scan::new(&query);
    assert!(!scan.step(&s.state, 4));
    s.put("/7", "new");
    s.delete("/8");
    s.compact(13);
    assert!(!scan.step(&s.state, 4));
    assert!(scan.step(&s.state, 4));
    let found = scan.finish();
    assert_eq!((found.count, found.revision), (10, 11));
    assert!(s.show(&found.records).iter().all(|kv| kv.ends_with("=old")));
    s.state.sweep(100);
    assert_eq!(s.state.keys.len(), 9, "nothing is pinned any more");
}

#[test]
fn events_come_in_whole_revisions() {
    let mut s = Store::default();
    for i in 0..10 {
        s.put(if i % 2 == 0 { "/a" } else { "/b" }, &i.to_string());
    }
    let two = EventsMax { events: 2, bytes: 1 << 20 };
    let revisions = |s: &Store, prefix: &'static str, from, max| {
        let (events, upto) = s.state.events_from(&[KeyRange::prefix(prefix)], from, max, false)?;
        Ok::<_, Error>((events.iter().map(|e| e.record.mod_revision).collect::<Vec<_>>(), upto))
    };
    assert_eq!(revisions(&s, "/a", 4, two).unwrap(), (vec![4, 6], 6));
    assert_eq!(revisions(&s, "/", 12, two).unwrap(), (vec![], 11));
    assert_eq!(s.state.revision_keeping(3), Some(8));
    s.txn(Txn { success: vec![put_op("/x", "1"), put_op("/y", "2"), put_op("/z", "3")], ..Txn::default() })
        .unwrap();
    assert_eq!(revisions(&s, "/", 12, two).unwrap(), (vec![12, 12, 12], 12));
    s.compact(8);
    assert_eq!(revisions(&s, "/", 8, two), Err(Error::Compacted { compacted: 8 }));
    assert_eq!(revisions(&s, "/", 0, EventsMax { bytes: 1, ..two }).unwrap(), (vec![9], 9));
}

#[test]
fn meta_keys_and_alarms() {
    let mut s = Store::default();
    let write =
        |expect, key: &'static str| Command::Meta { expect, changes: vec![(key.into(), Some("v".into()))] };
    assert!(matches!(s.apply(write(None, "k")), Applied::Meta { version: 1, written: true }));
    assert!(matches!(s.apply(write(Some(0), "l")), Applied::Meta { version: 1, written: false }));
    assert_eq!(s.state.meta().len(), 1);
    let alarm = Alarm { member: 1, kind: AlarmKind::NoSpace };
    for (raised, changed) in [(true, true), (true, false), (false, true)] {
        let applied = s.apply(Command::Alarm { alarm, raised });
        assert!(matches!(applied, Applied::Done { changed: c } if c == changed));
    }
}
