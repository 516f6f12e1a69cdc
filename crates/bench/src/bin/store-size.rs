//! What a large store costs. Usage:
//! `store-size fill DIRECTORY [KEYS] [VALUE BYTES] [ROUNDS]` writes every key that many times and prints memory and disk;
//! `store-size open DIRECTORY` prints how long a start takes, and memory;
//! `store-size stalls DIRECTORY [SECONDS]` writes steadily and prints the longest that a write had to wait while nothing
//! else happens, during compaction, defragmentation, a backup and a list of everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bench::process;
use bytes::Bytes;
use etcd::{Directory, Engine, Op, Options, Put, Query, Txn};
use storage::{Change, Expect, KeyRange, Store, WriteRequest};

// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn report(engine: &Engine) {
    let (size, (keys, events)) = (engine.size(), engine.statistics());
    println!(
        "{keys} keys, {events} events of history; resident {:.0} MB (anonymous {:.0} MB, highest {:.0} MB); disk {:.0} MB, \
         in use {:.0} MB",
        process::memory_mb("self", "VmRSS"),
        process::memory_mb("self", "RssAnon"),
        process::memory_mb("self", "VmHWM"),
        size.bytes as f64 / 1e6,
        size.bytes_in_use as f64 / 1e6
    );
}

fn open(directory: &str) -> anyhow::Result<Engine> {
    let options = Options { history_events_max: 0, ..Options::default() };
    let started = Instant::now();
    let engine = Engine::open(Arc::new(Directory::open(directory.as_ref())?), options)?;
    println!("open: {:.3} s, {:.2} s of CPU", started.elapsed().as_secs_f64(), process::cpu_seconds("self"));
    Ok(engine)
}

fn key(i: u64) -> Bytes {
    format!("/registry/bench/{:05}/{i:09}", i % 1000).into()
}

fn value(i: u64, bytes: usize) -> Bytes {
    let mut state = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out.into()
}

async fn fill(engine: &Engine, keys: u64, bytes: usize, rounds: u64) -> anyhow::Result<()> {
    for round in 0..rounds {
        let started = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..8 {
            let engine = engine.clone();
            tasks.spawn(async move {
                for first in (worker * 100..keys).step_by(800) {
                    let put = |i| Op::Put(Put::new(key(i), value(i + round, bytes)));
                    let success = (first..(first + 100).min(keys)).map(put).collect();
                    engine.txn(Txn { success, ..Txn::default() }).await?;
                }
                Ok::<_, storage::Error>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        println!(
            "round {round}: {:.1} s, {:.1} s of CPU",
            started.elapsed().as_secs_f64(),
            process::cpu_seconds("self")
        );
        report(engine);
    }
    Ok(())
}

struct Probe {
    worst_us: Arc<AtomicU64>,
    writes: Arc<AtomicU64>,
}

impl Probe {
    async fn phase<T>(&self, what: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.worst_us.store(0, Ordering::Relaxed);
        let (started, before) = (Instant::now(), self.writes.load(Ordering::Relaxed));
        let result = work.await?;
        let writes = self.writes.load(Ordering::Relaxed) - before;
        println!(
            "{what}: {:.2} s, {:.0} writes/s meanwhile, longest {:.1} ms",
            started.elapsed().as_secs_f64(),
            writes as f64 / started.elapsed().as_secs_f64(),
            self.worst_us.load(Ordering::Relaxed) as f64 / 1000.0
        );
        Ok(result)
    }
}

async fn pause(seconds: u64) -> anyhow::Result<()> {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    Ok(())
}

async fn stalls(engine: &Engine, seconds: u64) -> anyhow::Result<()> {
    let keys = engine.statistics().0 as u64;
    let probe = Probe { worst_us: Arc::default(), writes: Arc::default() };
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..50u64 {
        let (engine, stop) = (engine.clone(), stop.clone());
        let (worst, writes) = (probe.worst_us.clone(), probe.writes.clone());
        tasks.spawn(async move {
            let mut i = writer;
            while !stop.load(Ordering::Relaxed) {
                i = (i * 1_103_515_245 + 12_345) % keys.max(1);
                let change = Change::Put { value: value(i, 256), lease: 0 };
                let request = WriteRequest { key: key(i), expect: Expect::Anything, change };
                let started = Instant::now();
                engine.write(request).await?;
                worst.fetch_max(started.elapsed().as_micros() as u64, Ordering::Relaxed);
                writes.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, storage::Error>(())
        });
    }
    probe.phase("nothing else", pause(seconds)).await?;
    let revision = engine.current_revision();
    probe.phase("compaction", async { Ok(engine.compact_to(revision, true).await?) }).await?;
    probe.phase("checkpoint and cleaning that follow", pause(seconds)).await?;
    probe.phase("defragmentation", async { Ok(engine.defragment().await?) }).await?;
    let mut snapshot = engine.snapshot();
    let backup = async {
        let work = move || -> anyhow::Result<usize> {
            let mut versions = 0;
            while let Some(next) = snapshot.next(1 << 20)? {
                versions += next.len();
            }
            Ok(versions)
        };
        tokio::task::spawn_blocking(work).await.context("backup")?
    };
    let versions = probe.phase("backup", backup).await?;
    println!("the backup had {versions} versions");
    let all = Query { keys_only: true, ..Query::new(KeyRange { start: Bytes::new(), end: None }) };
    probe.phase("listing every key", async { Ok(engine.query(&all).await?.count) }).await?;
    stop.store(true, Ordering::Relaxed);
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    report(engine);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, directory, rest @ ..] = &args[..] else { bail!("usage: see the top of its source") };
    let number = |i: usize, default: u64| rest.get(i).map_or(Ok(default), |n| n.parse::<u64>());
    let engine = open(directory)?;
    match &mode[..] {
        "fill" => fill(&engine, number(0, 1_000_000)?, number(1, 256)? as usize, number(2, 1)?).await?,
        "open" => report(&engine),
        "stalls" => stalls(&engine, number(0, 5)?).await?,
        other => bail!("unknown mode {other}"),
    }
    Ok(())
}
