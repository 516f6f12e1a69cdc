//! The engine on a disk that loses what was not synced, tears the last append, or is damaged.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use etcd::disk::{AppendFile, Disk};
use etcd::{Engine, Options};
use futures::StreamExt;
use parking_lot::Mutex;
use storage::{Change, Error, Event, Expect, KeyRange, RangeRequest, Store, WriteOutcome, WriteRequest};

/// A disk in memory. Per file: the bytes, and how many of them were synced.
#[derive(Clone, Default)]
struct FakeDisk(Arc<Mutex<Files>>);

#[derive(Default)]
struct Files {
    files: BTreeMap<String, (Vec<u8>, usize)>,
    capacity: Option<usize>,
}

impl FakeDisk {
    /// What a power loss leaves: synced bytes, and `torn` bytes of what came after.
    fn after_power_loss(&self, torn: usize) -> FakeDisk {
        let files = self.0.lock();
        let kept = files.files.iter().map(|(name, (bytes, synced))| {
            let len = (*synced + torn).min(bytes.len());
            (name.clone(), (bytes[..len].to_vec(), len))
        });
        FakeDisk(Arc::new(Mutex::new(Files { files: kept.collect(), capacity: None })))
    }

    fn edit(&self, name: &str, f: impl FnOnce(&mut Vec<u8>)) {
        f(&mut self.0.lock().files.get_mut(name).unwrap().0);
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().files.keys().cloned().collect()
    }
}

struct FakeFile(FakeDisk, String);

impl Disk for FakeDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.lock().files.get(name).map(|f| f.0.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let mut files = self.0.lock();
        let file = files.files.entry(name.into()).or_default();
        file.0.resize(len as usize, 0);
        file.1 = file.1.min(len as usize);
        Ok(Box::new(FakeFile(self.clone(), name.into())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock();
        let file = files.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.files.insert(to.into(), file);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl AppendFile for FakeFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.0.0.lock();
        let capacity = files.capacity.unwrap_or(usize::MAX);
        let file = files.files.get_mut(&self.1).unwrap();
        let room = capacity.saturating_sub(file.0.len()).min(bytes.len());
        file.0.extend_from_slice(&bytes[..room]);
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut files = self.0.0.lock();
        let file = files.files.get_mut(&self.1).unwrap();
        file.1 = file.0.len();
        Ok(())
    }
    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.0.lock().files.get_mut(&self.1).unwrap().0.truncate(len as usize);
        Ok(())
    }
}

fn open(disk: &FakeDisk, options: &Options) -> Result<Engine, Error> {
    Engine::open(Arc::new(disk.clone()), options.clone())
}

async fn put(engine: &Engine, key: &str, value: &str) -> Result<i64, Error> {
    let change = Change::Put { value: value.to_owned().into(), lease: 0 };
    match engine.write(WriteRequest { key: key.to_owned().into(), expect: Expect::Anything, change }).await? {
        WriteOutcome::Written { revision, .. } => Ok(revision),
        other => panic!("{other:?}"),
    }
}

async fn dump(engine: &Engine) -> Vec<(String, String, i64)> {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    let all = engine.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap();
    all.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value), kv.mod_revision)).collect()
}

fn small() -> Options {
    Options { segment_bytes: 2000, snapshot_bytes: 6000, history_events_max: 0, ..Options::default() }
}

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
        let after = open(&disk.after_power_loss((seed % 11) as usize), &small()).unwrap();
        let want: Vec<_> = acknowledged.into_iter().map(|(k, (v, r))| (k, v, r)).collect();
        assert_eq!(dump(&after).await, want, "seed {seed}");
        assert_eq!(after.revision().await.unwrap(), revision, "seed {seed}");
        assert_eq!(put(&after, "/new", "x").await.unwrap(), revision + 1);
    }
}

#[tokio::test]
async fn every_torn_tail_is_cut_off_and_every_corrupt_middle_refused() {
    let disk = FakeDisk::default();
    let options = Options::default();
    let engine = open(&disk, &options).unwrap();
    put(&engine, "/a", "1").await.unwrap();
    let good = disk.read("log-0000000000000001").unwrap().len();
    put(&engine, "/a", "2").await.unwrap();
    put(&engine, "/b", "3").await.unwrap();
    drop(engine);
    let bytes = disk.read("log-0000000000000001").unwrap();
    for cut in good..bytes.len() {
        let copy = disk.after_power_loss(0);
        copy.edit("log-0000000000000001", |b| b.truncate(cut));
        let engine = open(&copy, &options).unwrap();
        put(&engine, "/c", "after").await.unwrap();
        drop(engine);
        assert!(
            dump(&open(&copy, &options).unwrap()).await.iter().any(|(k, v, _)| k == "/c" && v == "after")
        );
    }
    for i in 0..good {
        let copy = disk.after_power_loss(0);
        copy.edit("log-0000000000000001", |b| b[i] ^= 1);
        assert!(matches!(open(&copy, &options), Err(Error::Corrupt(_))), "flipped byte {i}");
    }
    let copy = disk.after_power_loss(0);
    copy.edit("log-0000000000000001", |b| b.clear());
    copy.rename("log-0000000000000001", "log-0000000000000005").unwrap();
    assert!(matches!(open(&copy, &options), Err(Error::Corrupt(_))), "a missing segment is refused");
}

#[tokio::test]
async fn old_segments_go_and_a_resumed_watch_misses_nothing() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &small()).unwrap();
    for i in 0..600 {
        put(&engine, &format!("/k{}", i % 5), &"v".repeat(40)).await.unwrap();
        if i % 100 == 99 {
            let revision = engine.revision().await.unwrap();
            engine.compact(revision - 30).await.unwrap();
        }
    }
    let logs = disk.names().into_iter().filter(|n| n.starts_with("log-")).count();
    assert!(logs < 15, "{:?}", disk.names());
    let revision = engine.revision().await.unwrap();
    drop(engine);
    let engine = open(&disk.after_power_loss(0), &small()).unwrap();
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
async fn a_full_disk_refuses_writes_and_recovers() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &Options::default()).unwrap();
    put(&engine, "/a", "1").await.unwrap();
    disk.0.lock().capacity = Some(disk.read("log-0000000000000001").unwrap().len() + 10);
    assert_eq!(put(&engine, "/a", "2").await, Err(Error::NoSpace));
    assert_eq!(dump(&engine).await[0].1, "1");
    disk.0.lock().capacity = None;
    put(&engine, "/a", "3").await.unwrap();
    drop(engine);
    assert_eq!(dump(&open(&disk.after_power_loss(0), &Options::default()).unwrap()).await[0].1, "3");
}

#[tokio::test(start_paused = true)]
async fn leases_run_out_and_survive_a_restart() {
    let disk = FakeDisk::default();
    let engine = open(&disk, &Options::default()).unwrap();
    let lease = engine.lease_grant(5).await.unwrap();
    let change = Change::Put { value: "v".into(), lease };
    engine.write(WriteRequest { key: "/leased".into(), expect: Expect::Anything, change }).await.unwrap();
    drop(engine);
    let engine = open(&disk.after_power_loss(0), &Options::default()).unwrap();
    assert_eq!(dump(&engine).await.len(), 1);
    let mut watch = engine.watch(KeyRange::prefix("/"), 3).await.unwrap();
    tokio::select! {
        () = engine.run_leases(std::future::pending()) => unreachable!(),
        batch = watch.next() => assert!(matches!(batch.unwrap().unwrap().events[..], [Event::Delete { .. }])),
    }
}
