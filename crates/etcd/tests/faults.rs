//! The engine under load, stopped at random points: by a power loss that drops what was not synced, and by `kill -9`.
//! Nothing acknowledged is lost, revisions never go back, transactions are whole, and a watcher that resumes misses
//! nothing and sees nothing twice.
//!
//! The long form: `ISOPOD_FAULT_POINTS=1000 cargo test -p etcd --test faults -- --nocapture`.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd::{DeleteRange, Directory, Engine, EventsMax, Op, Options, Put, Txn};
use futures::StreamExt;
use parking_lot::Mutex;
use storage::{Error, Event, KeyRange, RangeRequest, Revision, Store};
use support::{FakeDisk, Random, fault_points, open, small};

/// Keys and what they are set to; `None` deletes.
type Changes = BTreeMap<Bytes, Option<Bytes>>;

/// What one writer knows of its own keys.
#[derive(Clone, Default)]
struct Written {
    keys: BTreeMap<Bytes, Bytes>,
    under_way: Option<Changes>,
}

impl Written {
    fn after(&self, changes: &Changes) -> BTreeMap<Bytes, Bytes> {
        let mut keys = self.keys.clone();
        for (key, value) in changes {
            match value {
                Some(value) => keys.insert(key.clone(), value.clone()),
                None => keys.remove(key),
            };
        }
        keys
    }
}

#[derive(Default)]
struct Journal {
    writers: BTreeMap<u64, Written>,
    /// What was acknowledged at which revision.
    acknowledged: BTreeMap<Revision, Changes>,
    /// What watchers have seen, and where the last one began.
    seen: BTreeMap<Revision, Changes>,
    resumed: Revision,
}

fn changes_of(events: &[Event]) -> BTreeMap<Revision, Changes> {
    let mut all: BTreeMap<Revision, Changes> = BTreeMap::new();
    for event in events {
        let value = match event {
            Event::Put { kv, .. } => Some(kv.value.clone()),
            Event::Delete { .. } => None,
        };
        let twice = all.entry(event.revision()).or_default().insert(event.key().clone(), value);
        assert!(twice.is_none(), "an event came twice");
    }
    all
}

fn random_changes(random: &mut Random, writer: u64, i: u64, keys: &BTreeMap<Bytes, Bytes>) -> Changes {
    let key = |n: u64| Bytes::from(format!("/{writer}/{n}"));
    let value = |random: &mut Random| Bytes::from(format!("{i}-{}", "x".repeat(random.below(300) as usize)));
    let mut changes = Changes::new();
    match random.below(8) {
        0 => {
            if let Some(key) = keys.keys().nth(random.below(keys.len() as u64) as usize) {
                changes.insert(key.clone(), None);
            }
        }
        1 | 2 => {
            for n in 0..2 + random.below(3) {
                changes.insert(key(n), Some(value(random)));
            }
        }
        _ => {}
    }
    if changes.is_empty() {
        changes.insert(key(random.below(6)), Some(value(random)));
    }
    changes
}

async fn write(engine: &Engine, changes: &Changes) -> Result<Revision, Error> {
    let op = |(key, value): (&Bytes, &Option<Bytes>)| match value {
        Some(value) => Op::Put(Put::new(key.clone(), value.clone())),
        None => Op::DeleteRange(DeleteRange { range: KeyRange::key(key.clone()), previous: false }),
    };
    let txn = Txn { success: changes.iter().map(op).collect(), ..Txn::default() };
    Ok(engine.txn(txn).await?.revision)
}

async fn run_writer(
    engine: Engine,
    journal: Arc<Mutex<Journal>>,
    writer: u64,
    mut random: Random,
    writes: u64,
) {
    for i in 0..writes {
        let changes = {
            let mut journal = journal.lock();
            let written = journal.writers.entry(writer).or_default();
            let changes = random_changes(&mut random, writer, i, &written.keys);
            written.under_way = Some(changes.clone());
            changes
        };
        let Ok(revision) = write(&engine, &changes).await else { return };
        {
            let mut journal = journal.lock();
            let written = journal.writers.entry(writer).or_default();
            written.keys = written.after(&changes);
            written.under_way = None;
            assert!(journal.acknowledged.insert(revision, changes).is_none(), "a revision was given twice");
        }
        match random.below(30) {
            0 => drop(engine.compact_to(revision - 25, random.below(2) == 0).await),
            1 if random.below(4) == 0 => drop(engine.defragment().await),
            _ => {}
        }
    }
}

async fn run_watcher(engine: Engine, journal: Arc<Mutex<Journal>>, from: Revision) {
    let mut stream = engine.watch_ranges(vec![KeyRange::prefix("/")], from, false);
    drop(engine);
    while let Some(Ok(batch)) = stream.next().await {
        let mut journal = journal.lock();
        for (revision, changes) in changes_of(&batch.events) {
            assert!(journal.seen.insert(revision, changes).is_none(), "revision {revision} was seen twice");
        }
    }
}

/// Compares what was recovered with what is known, and settles what was under way.
async fn verify(engine: &Engine, journal: &mut Journal) {
    let (revision, compacted) = (engine.current_revision(), engine.compacted());
    let known = journal.acknowledged.keys().chain(journal.seen.keys()).max().copied().unwrap_or(1);
    assert!(revision >= known, "the revision went back from {known} to {revision}");

    let all = engine.range(RangeRequest::new(KeyRange::prefix("/"))).await.unwrap();
    let mut found: BTreeMap<Bytes, Bytes> =
        all.kvs.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect();
    for (writer, written) in &mut journal.writers {
        let prefix = format!("/{writer}/");
        let mine: BTreeMap<Bytes, Bytes> = found
            .iter()
            .filter(|(k, _)| k.starts_with(prefix.as_bytes()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        found.retain(|k, _| !k.starts_with(prefix.as_bytes()));
        let under_way = written.under_way.take().map(|changes| written.after(&changes));
        assert!(
            mine == written.keys || Some(&mine) == under_way.as_ref(),
            "writer {writer}: found {mine:?}\nacknowledged {:?}\nwith what was under way {under_way:?}",
            written.keys
        );
        written.keys = mine;
    }
    assert!(found.is_empty(), "keys that nobody wrote: {found:?}");

    let (mut events, mut from) = (Vec::new(), compacted + 1);
    while from <= revision {
        let max = EventsMax { events: 7, bytes: 1 << 20 };
        let batch = engine.events(&[KeyRange::prefix("")], from, max, false).await.unwrap();
        events.extend(batch.events);
        from = batch.revision + 1;
    }
    let history = changes_of(&events);
    let expected: Vec<Revision> = (compacted.max(1) + 1..=revision).collect();
    assert_eq!(history.keys().copied().collect::<Vec<_>>(), expected, "history has gaps");
    for (revision, changes) in journal.acknowledged.iter().chain(&journal.seen) {
        if *revision > compacted {
            assert_eq!(history.get(revision), Some(changes), "revision {revision} is not what it was");
        }
    }
    let last_seen = journal.seen.keys().max().copied().unwrap_or(0);
    for revision in journal.resumed.max(2)..=last_seen {
        assert!(journal.seen.contains_key(&revision), "the watcher missed revision {revision}");
    }
    for (revision, changes) in &journal.seen {
        let acknowledged = journal.acknowledged.get(revision);
        assert!(acknowledged.is_none_or(|a| a == changes), "a watcher saw something else at {revision}");
    }
}

/// Runs a load on `disk` until it is done or the disk fails.
async fn load(disk: &FakeDisk, seed: u64, journal: &Arc<Mutex<Journal>>) {
    let Ok(engine) = open(disk, &small()) else { return };
    let resume = journal.lock().seen.keys().max().map_or(0, |last| last + 1);
    let resume = resume.max(engine.compacted() + 1);
    journal.lock().resumed = resume;
    let watcher = tokio::spawn(run_watcher(engine.clone(), journal.clone(), resume));
    let writers = (0..6).map(|writer| {
        let random = Random(seed * 31 + writer * 7 + 1);
        tokio::spawn(run_writer(engine.clone(), journal.clone(), writer, random, 60))
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    drop(engine);
    watcher.abort();
    if let Err(failed) = watcher.await {
        assert!(failed.is_cancelled(), "{failed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_loss_at_any_point_under_load() {
    let (started, points) = (Instant::now(), fault_points(60));
    let (mut disk, mut journal) = (FakeDisk::default(), Arc::new(Mutex::new(Journal::default())));
    let (mut writes, mut in_opening) = (0, 0);
    for point in 0..points {
        let mut random = Random(point * 0x9e37_79b9 + 77);
        if point % 25 == 0 {
            // A long history of crashes, and then a new directory.
            (disk, journal) = (FakeDisk::default(), Arc::default());
        }
        let before = journal.lock().acknowledged.len();
        let steps = if random.below(5) == 0 { random.below(12) } else { random.below(900) };
        disk.0.lock().steps_left = Some(steps);
        load(&disk, point + 1, &journal).await;
        // One in four is only the end of the process: what was written stays.
        let whole = random.below(4) == 0;
        disk =
            disk.after_power_loss(
                |unsynced| if whole { unsynced } else { random.below(unsynced as u64 + 1) as usize },
            );
        let after = disk.after_kill();
        let engine = open(&after, &small()).unwrap_or_else(|error| panic!("point {point}: {error}"));
        let mut known = std::mem::take(&mut *journal.lock());
        in_opening += u64::from(known.acknowledged.len() == before);
        writes += known.acknowledged.len() - before;
        verify(&engine, &mut known).await;
        *journal.lock() = known;
    }
    println!(
        "{points} power losses ({in_opening} before any write) in {:.1} s; {writes} acknowledged writes, none lost",
        started.elapsed().as_secs_f64()
    );
}

/// Files roll, are checkpointed and cleaned several times a second.
fn brisk() -> Options {
    Options {
        segment_bytes: 64 << 10,
        checkpoint_bytes: 16 << 10,
        cache_bytes: 64 << 10,
        history_events_max: 2000,
        ..Options::default()
    }
}

const CHILD: &str = "ISOPOD_FAULT_CHILD";
const CHILD_WRITERS: u64 = 8;
const CHILD_KEYS: u64 = 7;

/// Not a test by itself: the process that is killed. It writes to the directory it is given and tells what was
/// acknowledged (`a`, writer, number, revision) and what a watcher saw (`s`, writer, number, revision).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_killed() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let engine = Engine::open(Arc::new(Directory::open(directory.as_ref()).unwrap()), brisk()).unwrap();
    let say = |line: String| std::io::stdout().write_all(line.as_bytes()).unwrap();
    let from = engine.current_revision() + 1;
    say(format!("o {from}\n"));
    let mut stream = engine.watch_ranges(vec![KeyRange::prefix("/")], from, false);
    tokio::spawn(async move {
        while let Some(Ok(batch)) = stream.next().await {
            for event in batch.events {
                if let Event::Put { kv, .. } = event {
                    let value = String::from_utf8_lossy(&kv.value).into_owned();
                    say(format!(
                        "s {} {}\n",
                        value.split('-').take(2).collect::<Vec<_>>().join(" "),
                        kv.mod_revision
                    ));
                }
            }
        }
    });
    let writers = (0..CHILD_WRITERS).map(|writer| {
        let engine = engine.clone();
        async move {
            for i in from as u64 * 1000.. {
                let value = format!("{writer}-{i}-{}", "x".repeat((i % 500) as usize));
                let put = Put::new(format!("/{writer}/{}", i % CHILD_KEYS).into(), value.into());
                let revision = engine.put(put).await.unwrap().revision;
                say(format!("a {writer} {i} {revision}\n"));
            }
        }
    });
    futures::future::join_all(writers).await;
}

#[tokio::test]
async fn kill_9_at_random_points() {
    let (started, points) = (Instant::now(), fault_points(10));
    let directory = tempfile::tempdir().unwrap();
    let (mut revision, mut total, mut last_seen) = (1, 0, 0);
    for point in 0..points {
        let mut random = Random(point * 0x1234_5679 + 99);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writes_until_killed", "--exact", "--nocapture"])
            .env(CHILD, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let first =
            lines.by_ref().find_map(|line| line.strip_prefix("o ").map(|n| n.parse::<i64>().unwrap()));
        let from = first.expect("the child opened the directory");
        assert!(from > revision, "the revision went back from {revision} to {}", from - 1);
        let reader = std::thread::spawn(move || lines.collect::<Vec<_>>());
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        child.kill().unwrap();
        child.wait().unwrap();

        let (mut acknowledged, mut seen) = (BTreeMap::new(), BTreeMap::new());
        for line in reader.join().unwrap() {
            let words: Vec<&str> = line.split(' ').collect();
            // The last line may be cut.
            let [kind @ ("a" | "s"), writer, i, at] = words[..] else { continue };
            let (Ok(writer), Ok(i), Ok(at)) = (writer.parse::<u64>(), i.parse::<u64>(), at.parse::<i64>())
            else {
                continue;
            };
            let of = if kind == "a" { &mut acknowledged } else { &mut seen };
            assert!(of.insert(at, (writer, i)).is_none(), "revision {at} twice");
        }
        // A number that was cut short looks like an early revision.
        acknowledged.retain(|at, _| *at >= from);
        seen.retain(|at, _| *at >= from);

        let engine = Engine::open(Arc::new(Directory::open(directory.path()).unwrap()), brisk()).unwrap();
        revision = engine.current_revision();
        let known = acknowledged.keys().chain(seen.keys()).max().copied().unwrap_or(0);
        assert!(revision >= known, "the revision went back from {known} to {revision}");
        let from = from.max(engine.compacted() + 1);
        let (mut history, mut next) = (BTreeMap::new(), from);
        while next <= revision {
            let max = EventsMax { events: 500, bytes: 1 << 20 };
            let batch = engine.events(&[KeyRange::prefix("/")], next, max, false).await.unwrap();
            for event in &batch.events {
                let Event::Put { kv, .. } = event else { continue };
                let value = String::from_utf8_lossy(&kv.value).into_owned();
                let mut words = value.split('-').map(|n| n.parse::<u64>().unwrap_or_default());
                let what = (words.next().unwrap(), words.next().unwrap());
                assert!(history.insert(kv.mod_revision, what).is_none(), "an event came twice");
            }
            next = batch.revision + 1;
        }
        assert_eq!(history.keys().copied().collect::<Vec<_>>(), (from..=revision).collect::<Vec<_>>());
        // Whoever watched goes on after the last it saw: up to there it has seen everything, and all of it is true.
        last_seen = seen.keys().max().copied().unwrap_or(last_seen);
        for at in from..=seen.keys().max().copied().unwrap_or(0) {
            assert!(seen.contains_key(&at), "a watcher missed revision {at}");
        }
        for (at, what) in acknowledged.iter().chain(&seen).filter(|(at, _)| **at >= from) {
            assert_eq!(history.get(at), Some(what), "revision {at} is not what it was");
        }
        let all = engine.range(RangeRequest::new(KeyRange::prefix("/"))).await.unwrap();
        for (writer, i) in acknowledged.values() {
            let key = format!("/{writer}/{}", i % CHILD_KEYS);
            let kv = all.kvs.iter().find(|kv| kv.key == key).unwrap_or_else(|| panic!("{key} is lost"));
            let value = String::from_utf8_lossy(&kv.value).into_owned();
            let there: u64 = value.split('-').nth(1).unwrap().parse().unwrap();
            assert!(there >= *i, "{key}: write {i} is lost, {there} is there");
        }
        total += acknowledged.len();
        drop(engine);
        // The log thread lets go of the directory soon after its last handle.
        while Directory::open(directory.path()).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    println!(
        "{points} kills in {:.1} s; {total} acknowledged writes, none lost; at revision {revision}, last seen {last_seen}",
        started.elapsed().as_secs_f64()
    );
}
