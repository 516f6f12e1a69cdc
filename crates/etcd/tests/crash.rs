//! The engine on a disk that loses what was not synced, tears the last append, or is damaged.

mod support;

use std::collections::BTreeMap;

use etcd::{Engine, Options};
use futures::StreamExt;
use storage::{Change, Error, Event, Expect, KeyRange, Store, WriteRequest};
use support::{FakeDisk, dump, open, put, small};

#[tokio::test]
async fn power_loss_at_any_point_loses_nothing_acknowledged() {
    for seed in 0..40u64 {
        let disk = FakeDisk::default();
        let engine = open(&disk, &small()).unwrap();
        let mut acknowledged = BTreeMap::new();
        for i in 0..seed * 7 {
            let key = format!("/k{}", i % 13);
            let value = format!("{i}");
            acknowledged.insert(key.clone(), (value.clone(), put(&engine, &key, &value).await.unwrap()));
            if i % 50 == 49 {
                let revision = engine.revision().await.unwrap();
                engine.compact(revision - 20).await.unwrap();
            }
        }
        let revision = engine.revision().await.unwrap();
        let torn = (seed % 11) as usize;
        let after = open(&disk.after_power_loss(|_| torn), &small()).unwrap();
        let want: Vec<_> = acknowledged.into_iter().map(|(k, (v, r))| (k, v, r)).collect();
        assert_eq!(dump(&after).await, want, "seed {seed}");
        assert_eq!(after.revision().await.unwrap(), revision, "seed {seed}");
        assert_eq!(put(&after, "/new", "x").await.unwrap(), revision + 1);
    }
}

#[tokio::test]
async fn without_syncs_a_power_loss_takes_only_the_newest() {
    let options = Options { sync: false, ..small() };
    for seed in 1..20 {
        let disk = FakeDisk::default();
        let engine = open(&disk, &options).unwrap();
        for i in 0..seed * 20 {
            put(&engine, &format!("/k{}", i % 13), &"v".repeat(i % 100)).await.unwrap();
        }
        let after = open(&disk.after_power_loss(|_| 0), &options).unwrap();
        let found = dump(&after).await;
        assert!(found.iter().all(|(_, _, revision)| *revision <= after.current_revision()));
        assert!(put(&after, "/new", "x").await.unwrap() > 1);
    }
}

#[tokio::test]
async fn every_torn_tail_is_cut_off_and_every_corrupt_middle_refused() {
    let disk = FakeDisk::default();
    let options = Options::default();
    let engine = open(&disk, &options).unwrap();
    put(&engine, "/a", "1").await.unwrap();
    let log = disk.last("log-");
    let good = disk.bytes(&log).len();
    put(&engine, "/a", "2").await.unwrap();
    put(&engine, "/b", "3").await.unwrap();
    drop(engine);
    let bytes = disk.bytes(&log);
    for cut in good..bytes.len() {
        let copy = disk.after_kill();
        copy.edit(&log, |b| b.truncate(cut));
        let engine = open(&copy, &options).unwrap();
        put(&engine, "/c", "after").await.unwrap();
        drop(engine);
        assert!(
            dump(&open(&copy, &options).unwrap()).await.iter().any(|(k, v, _)| k == "/c" && v == "after")
        );
    }
    for i in 0..good {
        let copy = disk.after_kill();
        copy.edit(&log, |b| b[i] ^= 1);
        assert!(matches!(open(&copy, &options), Err(Error::Corrupt(_))), "flipped byte {i}");
    }
}

#[tokio::test]
async fn missing_and_foreign_files_are_refused() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &small()).unwrap();
    for i in 0..300 {
        put(&engine, &format!("/k{i}"), &"v".repeat(40)).await.unwrap();
    }
    // Checkpoints are written beside the log, at their own pace.
    while !disk.names().iter().any(|name| name.starts_with("checkpoint-")) {
        tokio::task::yield_now().await;
    }
    drop(engine);
    let whole = disk.after_kill();
    open(&whole.after_kill(), &small()).unwrap();
    let refused = |disk: &FakeDisk, what: &str| match open(disk, &small()) {
        Err(Error::Corrupt(why)) => assert!(why.contains(what), "{why}"),
        other => panic!("{:?}", other.map(drop)),
    };
    let last = whole.last("log-");
    for name in whole.names().iter().filter(|n| n.starts_with("log-") && **n != last) {
        let copy = whole.after_kill();
        copy.0.lock().files.remove(name);
        refused(&copy, "missing");
    }
    let checkpoint = whole.last("checkpoint-");
    for i in (0..whole.bytes(&checkpoint).len()).step_by(7) {
        let copy = whole.after_kill();
        copy.edit(&checkpoint, |b| b[i] ^= 1);
        refused(&copy, "damaged");
    }
    let copy = whole.after_kill();
    copy.edit("VERSION", |v| *v = b"3\n".to_vec());
    refused(&copy, "version");
    let copy = whole.after_kill();
    copy.0.lock().files.remove("VERSION");
    refused(&copy, "earlier version");
}

#[tokio::test]
async fn a_damaged_value_is_never_served() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &Options { checkpoint_bytes: 1, ..small() }).unwrap();
    put(&engine, "/a", &"precious".repeat(20)).await.unwrap();
    for i in 0..200 {
        put(&engine, &format!("/k{i}"), &"v".repeat(40)).await.unwrap();
    }
    drop(engine);
    let copy = disk.after_kill();
    let log = copy.names().into_iter().find(|n| n.starts_with("log-")).unwrap();
    let at = copy.bytes(&log).windows(8).position(|w| w == b"precious").unwrap();
    copy.edit(&log, |b| b[at + 3] = b'X');
    let engine = open(&copy, &small()).unwrap();
    let found = engine.range(storage::RangeRequest::new(KeyRange::key("/a"))).await;
    match found {
        Err(Error::Corrupt(why)) => assert!(why.contains("/a") && why.contains(&log), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn old_files_go_and_a_resumed_watch_misses_nothing() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &small()).unwrap();
    put(&engine, "/stays", &"s".repeat(40)).await.unwrap();
    for i in 0..2000 {
        put(&engine, &format!("/k{}", i % 5), &"v".repeat(40)).await.unwrap();
        if i % 100 == 99 {
            let revision = engine.revision().await.unwrap();
            engine.compact_to(revision - 30, true).await.unwrap();
        }
    }
    engine.defragment().await.unwrap();
    assert!(disk.total() < 10_000, "{} bytes in {:?}", disk.total(), disk.names());
    assert_eq!(engine.size().bytes as usize, disk.total() - 2, "all but VERSION");
    let revision = engine.revision().await.unwrap();
    drop(engine);
    let engine = open(&disk.after_power_loss(|_| 0), &small()).unwrap();
    assert_eq!(dump(&engine).await.len(), 6);
    let mut watch = engine.watch(KeyRange::prefix("/k"), revision - 20).await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!(
        batch.events.iter().map(Event::revision).collect::<Vec<_>>(),
        (revision - 20..=revision).collect::<Vec<_>>()
    );
    put(&engine, "/k1", "live").await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().events.len(), 1);
    assert!(matches!(engine.watch(KeyRange::prefix("/"), 3).await, Err(Error::Compacted { .. })));
}

#[tokio::test]
async fn defragmentation_ends_however_little_there_is() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &small()).unwrap();
    let limit = std::time::Duration::from_secs(20);
    for i in 0..3 {
        put(&engine, "/k", &format!("{i}")).await.unwrap();
        tokio::time::timeout(limit, engine.defragment()).await.unwrap().unwrap();
    }
    put(&engine, "/k", "x").await.unwrap();
    disk.0.lock().steps_left = Some(0);
    assert!(tokio::time::timeout(limit, engine.defragment()).await.unwrap().is_err());
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &Options::default()).unwrap();
    put(&engine, "/a", "1").await.unwrap();
    disk.0.lock().capacity = Some(disk.bytes(&disk.last("log-")).len() + 10);
    assert_eq!(put(&engine, "/a", "2").await, Err(Error::NoSpace));
    assert_eq!(dump(&engine).await[0].1, "1");
    disk.0.lock().capacity = None;
    put(&engine, "/a", "3").await.unwrap();
    drop(engine);
    assert_eq!(dump(&open(&disk.after_power_loss(|_| 0), &Options::default()).unwrap()).await[0].1, "3");
}

async fn put_leased(engine: &Engine, key: &'static str, lease: i64) {
    let change = Change::Put { value: "v".into(), lease };
    engine.write(WriteRequest { key: key.into(), expect: Expect::Anything, change }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn leases_run_out_and_deadlines_survive_a_restart() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &Options::default()).unwrap();
    let lease = engine.grant(0, 100).await.unwrap().id;
    put_leased(&engine, "/leased", lease).await;
    // After half the time, what is left is in the log.
    engine.run_leases(tokio::time::sleep(std::time::Duration::from_secs(51))).await;
    put(&engine, "/after", "x").await.unwrap();
    drop(engine);
    let engine = open(&disk.after_power_loss(|_| 0), &Options::default()).unwrap();
    let status = engine.lease_status(lease, true).unwrap();
    assert_eq!((status.granted_seconds, status.remaining_seconds), (100, 50));
    assert_eq!(status.keys, ["/leased"]);
    let mut watch = engine.watch(KeyRange::prefix("/"), 4).await.unwrap();
    let started = tokio::time::Instant::now();
    tokio::select! {
        () = engine.run_leases(std::future::pending()) => unreachable!(),
        batch = watch.next() => assert!(matches!(batch.unwrap().unwrap().events[..], [Event::Delete { .. }])),
    }
    assert_eq!(started.elapsed().as_secs(), 50);
    assert!(engine.lease_ids().is_empty());
}
