//! The engine as its callers see it.

mod support;

use std::time::Duration;

use bytes::Bytes;
use etcd::{
    Alarm, AlarmKind, Compare, CompareOp, CompareTarget, DeleteRange, EventsMax, Op, OpOutcome, Options, Put,
    Query, Sort, SortTarget, Txn, restore,
};
use futures::StreamExt;
use storage::{Error, Event, KeyRange};
use support::{FakeDisk, dump, open, put, small};

fn everything() -> KeyRange {
    KeyRange { start: Bytes::new(), end: None }
}

#[tokio::test]
async fn transactions_read_and_write_through_cache_and_disk() {
    let disk = FakeDisk::default();
    // No cache: every value comes from disk.
    let engine = open(&disk, &Options { cache_bytes: 0, ..small() }).unwrap();
    for (key, value) in [("/a", "3"), ("/b", "1"), ("/c", "2")] {
        put(&engine, key, value).await.unwrap();
    }
    let by_value = Query {
        sort: Some(Sort { target: SortTarget::Value, descending: true }),
        limit: 2,
        ..Query::new(KeyRange::prefix("/"))
    };
    let compare = |value: &'static str| Compare {
        range: KeyRange::key("/a"),
        target: CompareTarget::Value(value.into()),
        op: CompareOp::Equal,
    };
    let txn = Txn {
        compares: vec![compare("3")],
        success: vec![
            Op::Range(by_value.clone()),
            Op::Put(Put { previous: true, ..Put::new("/a".into(), "4".into()) }),
            Op::DeleteRange(DeleteRange { range: KeyRange::prefix("/b"), previous: true }),
        ],
        failure: vec![],
    };
    let outcome = engine.txn(txn).await.unwrap();
    assert!(outcome.succeeded);
    assert_eq!(outcome.revision, 5);
    let [
        OpOutcome::Range(found),
        OpOutcome::Put { previous: Some(before) },
        OpOutcome::DeleteRange { deleted: 1, previous },
    ] = &outcome.outcomes[..]
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(found.kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"3", b"2"]);
    assert!(found.more && found.count == 3);
    assert_eq!(before.value, "3");
    assert_eq!(previous[0].value, "1");

    let index = engine.applied_index();
    let read = Txn { compares: vec![compare("4")], success: vec![Op::Range(by_value)], ..Txn::default() };
    assert!(engine.txn(read).await.unwrap().succeeded);
    assert_eq!(engine.applied_index(), index, "reading does not touch the log");

    let max = EventsMax { events: 10, bytes: 1000 };
    let batch = engine.events(&[KeyRange::key("/b"), KeyRange::key("/a")], 3, max, true).await.unwrap();
    let seen: Vec<String> = batch
        .events
        .iter()
        .map(|event| {
            let text = |kv: &storage::KeyValue| String::from_utf8_lossy(&kv.value).into_owned();
            match event {
                Event::Put { kv, previous } => format!("{}<{:?}", text(kv), previous.as_deref().map(text)),
                Event::Delete { previous, .. } => format!("gone<{:?}", previous.as_deref().map(text)),
            }
        })
        .collect();
    assert_eq!(seen, ["1<None", "4<Some(\"3\")", "gone<Some(\"1\")"]);
}

/// The numbers are etcd 3.4's for the same requests.
#[tokio::test]
async fn hashes_are_those_of_etcd() {
    let engine = open(&FakeDisk::default(), &small()).unwrap();
    for (key, value) in [("a", "1"), ("a", "2"), ("b", "xyz")] {
        put(&engine, key, value).await.unwrap();
    }
    engine.delete_range(DeleteRange { range: KeyRange::key("a"), previous: false }).await.unwrap();
    let lease = engine.grant(0x61d0_a217_bf10_be0a, 100).await.unwrap().id;
    engine.put(Put { lease, ..Put::new("e".into(), "leased".into()) }).await.unwrap();
    assert_eq!(engine.hash_kv(0).await.unwrap().hash, 3_259_144_486);
    assert_eq!(engine.hash_kv(4).await.unwrap().hash, 3_514_295_712);
    engine.compact_to(4, true).await.unwrap();
    let hash = engine.hash_kv(6).await.unwrap();
    assert_eq!((hash.hash, hash.revision, hash.compacted), (1_910_650_262, 6, 4));
    assert_eq!(engine.hash_kv(4).await, Err(Error::Compacted { compacted: 4 }));
    assert_eq!(engine.hash_kv(7).await, Err(Error::FutureRevision { requested: 7, current: 6 }));
}

#[tokio::test]
async fn a_backup_restores_to_the_same_state() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &small()).unwrap();
    let lease = engine.grant(9, 1000).await.unwrap().id;
    engine.put(Put { lease, ..Put::new("/leased".into(), "held".into()) }).await.unwrap();
    for i in 0..300 {
        put(&engine, &format!("/k{}", i % 17), &format!("{i}-{}", "v".repeat(i % 50))).await.unwrap();
    }
    put(&engine, "/empty", "").await.unwrap();
    engine.delete_range(DeleteRange { range: KeyRange::key("/k3"), previous: false }).await.unwrap();
    engine.compact_to(200, true).await.unwrap();
    engine.meta_write(None, vec![("user/root".into(), Some("secret".into()))]).await.unwrap().unwrap();
    engine.set_alarm(Alarm { member: 1, kind: AlarmKind::Corrupt }, true).await.unwrap();

    let mut snapshot = engine.snapshot();
    // What happens later is not in it, and takes nothing from it.
    for i in 0..300 {
        put(&engine, &format!("/k{}", i % 17), "later").await.unwrap();
    }
    engine.compact_to(500, false).await.unwrap();
    let mut versions = Vec::new();
    while let Some(next) = snapshot.next(1000).unwrap() {
        versions.extend(next);
    }
    assert!(versions.is_sorted_by_key(|v| (v.kv.mod_revision, v.sub)));
    let header = snapshot.header.clone();
    drop(snapshot);

    let copy = FakeDisk::default();
    restore(&copy, &header, versions.into_iter().map(Ok)).unwrap();
    let restored = open(&copy.after_power_loss(|_| 0), &small()).unwrap();
    assert_eq!(restored.current_revision(), 304);
    assert_eq!(restored.compacted(), 200);
    assert_eq!(restored.snapshot().header, header);
    assert_eq!(restored.meta_get(b"user/root").unwrap(), "secret");
    assert_eq!(restored.lease_status(9, true).unwrap().keys, ["/leased"]);
    let found = dump(&restored).await;
    assert_eq!(found.len(), 18);
    assert!(
        found.iter().any(|(key, value, revision)| key == "/empty" && value.is_empty() && *revision == 303)
    );
    let mut watch = restored.watch_ranges(vec![everything()], 201, true);
    assert_eq!(watch.next().await.unwrap().unwrap().events[0].revision(), 201);
    assert_eq!(put(&restored, "/new", "x").await.unwrap(), 305);
    assert!(restore(&copy, &header, std::iter::empty()).is_err(), "only into an empty directory");
}

#[tokio::test]
async fn the_quota_stops_puts_until_space_is_freed_and_the_alarm_disarmed() {
    let options = Options { quota_bytes: 8000, member_id: 5, ..small() };
    let disk = FakeDisk::default();
    let engine = open(&disk, &options).unwrap();
    let mut refused = None;
    for i in 0..200 {
        if let Err(error) = put(&engine, "/k", &format!("{i:0100}")).await {
            refused = Some(error);
            break;
        }
    }
    assert_eq!(refused, Some(Error::NoSpace));
    let alarm = Alarm { member: 5, kind: AlarmKind::NoSpace };
    assert_eq!(engine.alarms(), [alarm]);
    drop(engine);
    let engine = open(&disk.after_power_loss(|_| 0), &options).unwrap();
    assert_eq!(put(&engine, "/k", "x").await, Err(Error::NoSpace), "the alarm outlives a restart");
    assert_eq!(engine.grant(0, 5).await, Err(Error::NoSpace));
    engine.delete_range(DeleteRange { range: everything(), previous: false }).await.unwrap();
    engine.compact_to(engine.current_revision(), true).await.unwrap();
    assert_eq!(put(&engine, "/k", "x").await, Err(Error::NoSpace), "until it is disarmed");
    assert!(engine.set_alarm(alarm, false).await.unwrap());
    put(&engine, "/k", "x").await.unwrap();
}

#[tokio::test]
async fn meta_keys_change_together_or_not_at_all() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &small()).unwrap();
    let set = |key: &'static str| vec![(Bytes::from(key), Some(Bytes::from("v")))];
    assert_eq!(engine.meta_write(Some(0), set("role/a")).await.unwrap(), Ok(1));
    assert_eq!(engine.meta_write(Some(0), set("role/b")).await.unwrap(), Err(1));
    assert_eq!(engine.meta_write(Some(1), set("user/b")).await.unwrap(), Ok(2));
    drop(engine);
    let engine = open(&disk.after_power_loss(|_| 0), &small()).unwrap();
    assert_eq!(engine.meta_version(), 2);
    assert_eq!(engine.meta_range(b"role/"), [(Bytes::from("role/a"), Bytes::from("v"))]);
    assert_eq!(engine.current_revision(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_kept_alive_stays() {
    let engine = open(&FakeDisk::default(), &small()).unwrap();
    assert_eq!(engine.grant(0, i64::MAX).await, Err(Error::LeaseTtlTooLarge));
    let lease = engine.grant(7, 10).await.unwrap().id;
    assert_eq!(engine.grant(7, 10).await, Err(Error::LeaseExists));
    engine.put(Put { lease, ..Put::new("/held".into(), "".into()) }).await.unwrap();
    for _ in 0..5 {
        tokio::time::advance(Duration::from_secs(8)).await;
        assert_eq!(engine.lease_status(7, false).unwrap().remaining_seconds, 2);
        assert_eq!(engine.renew(lease).await, Ok(10));
        assert_eq!(engine.lease_status(7, false).unwrap().remaining_seconds, 10);
    }
    let mut watch = engine.watch_ranges(vec![everything()], 3, false);
    let started = tokio::time::Instant::now();
    tokio::select! {
        () = engine.run_leases(std::future::pending()) => unreachable!(),
        batch = watch.next() => assert!(matches!(batch.unwrap().unwrap().events[..], [Event::Delete { .. }])),
    }
    assert_eq!(started.elapsed().as_secs(), 10);
    assert_eq!(engine.renew(lease).await, Err(Error::LeaseNotFound));
    assert!(engine.lease_ids().is_empty());
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_harms_nobody() {
    let engine = open(&FakeDisk::default(), &Options { frame_bytes_max: 1000, ..small() }).unwrap();
    let huge = Put::new("/huge".into(), vec![0; 1000].into());
    assert!(matches!(engine.put(huge).await, Err(Error::Unavailable(why)) if why.contains("too large")));
    put(&engine, "/small", "x").await.unwrap();
}
