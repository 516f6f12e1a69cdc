//! A soak: half of the load that the machine can bear, with compaction, leases that expire, and watchers that come and
//! go. Memory, latency and disk should stay flat. Usage: `store-soak DIRECTORY [SECONDS]`, 1200 seconds unless told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench::process;
use bytes::Bytes;
use etcd::{Directory, Engine, Options, Put};
use futures::StreamExt;
use parking_lot::Mutex;
use storage::{KeyRange, Store};
use tokio_util::sync::CancellationToken;

// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WRITERS: u64 = 400;
const KEYS: u64 = 250;
const REPORTS: u64 = 10;

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    events: AtomicU64,
    watches: AtomicU64,
    leases: AtomicU64,
    latencies_us: Mutex<Vec<u32>>,
}

/// Writes until `stop`, a write every `pause` (0 is as fast as possible).
async fn writer(
    engine: Engine,
    counters: Arc<Counters>,
    writer: u64,
    pause: Duration,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(pause.max(Duration::from_micros(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut i = writer;
    while !stop.is_cancelled() {
        if !pause.is_zero() {
            ticks.tick().await;
        }
        i = i.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = format!("/registry/soak/{writer:04}/{:04}", (i >> 33) % KEYS);
        let value = Bytes::from(vec![b'x'; 256 + ((i >> 40) % 512) as usize]);
        let started = Instant::now();
        if let Err(error) = engine.put(Put::new(key.into(), value)).await {
            eprintln!("a write failed: {error}");
            return;
        }
        counters.writes.fetch_add(1, Ordering::Relaxed);
        counters.latencies_us.lock().push(started.elapsed().as_micros() as u32);
    }
}

async fn leases(
    engine: Engine,
    counters: Arc<Counters>,
    stop: CancellationToken,
) -> Result<(), storage::Error> {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let lease = engine.grant(0, 5).await?.id;
        engine
            .put(Put { lease, ..Put::new(format!("/registry/leased/{lease:x}").into(), "held".into()) })
            .await?;
        counters.leases.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn watchers(engine: Engine, counters: Arc<Counters>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let mut running = tokio::task::JoinSet::new();
    let mut i = 0;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        i = (i + 37) % WRITERS;
        let range = KeyRange::prefix(format!("/registry/soak/{i:04}/"));
        let from = (engine.current_revision() - 1000).max(engine.compacted() + 1);
        let (mut stream, counters) = (engine.watch_ranges(vec![range], from, i % 2 == 0), counters.clone());
        counters.watches.fetch_add(1, Ordering::Relaxed);
        running.spawn(tokio::time::timeout(Duration::from_secs(3), async move {
            while let Some(Ok(batch)) = stream.next().await {
                counters.events.fetch_add(batch.events.len() as u64, Ordering::Relaxed);
            }
        }));
        while running.try_join_next().is_some() {}
    }
}

async fn compaction(engine: Engine, stop: CancellationToken) {
    let mut before = 0;
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let now = engine.current_revision();
        if before > 1 {
            let _ = engine.compact(before).await;
        }
        before = now;
    }
}

fn report(engine: &Engine, counters: &Counters, seconds: f64, cpu: f64) {
    let mut latencies = std::mem::take(&mut *counters.latencies_us.lock());
    latencies.sort_unstable();
    let at = |q: f64| {
        f64::from(latencies.get((latencies.len() as f64 * q) as usize).copied().unwrap_or(0)) / 1000.0
    };
    let (writes, size, (keys, events)) =
        (counters.writes.swap(0, Ordering::Relaxed), engine.size(), engine.statistics());
    println!(
        "{:.0} writes/s ({:.1} µs CPU each, all told), p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms; resident {:.0} MB; disk \
         {:.0} MB, in use {:.0} MB; {keys} keys, {events} events kept, {} leases granted, {} watches begun, {:.0} events/s seen",
        writes as f64 / seconds,
        cpu / writes.max(1) as f64 * 1e6,
        at(0.5),
        at(0.99),
        at(1.0 - 1e-9),
        process::memory_mb("self", "VmRSS"),
        size.bytes as f64 / 1e6,
        size.bytes_in_use as f64 / 1e6,
        counters.leases.swap(0, Ordering::Relaxed),
        counters.watches.swap(0, Ordering::Relaxed),
        counters.events.swap(0, Ordering::Relaxed) as f64 / seconds,
    );
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let directory = args.next().unwrap_or_else(|| "store-soak.data".into());
    let seconds: u64 = args.next().map_or(Ok(1200), |a| a.parse())?;
    let options = Options { history_events_max: 0, ..Options::default() };
    let engine = Engine::open(Arc::new(Directory::open(directory.as_ref())?), options)?;
    let counters = Arc::new(Counters::default());

    let (stop, probe) = (CancellationToken::new(), 5);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..WRITERS {
        tasks.spawn(writer(engine.clone(), counters.clone(), i, Duration::ZERO, stop.clone()));
    }
    let cpu = process::cpu_seconds("self");
    tokio::time::sleep(Duration::from_secs(probe)).await;
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    let full = counters.writes.load(Ordering::Relaxed) / probe;
    print!("full load: ");
    report(&engine, &counters, probe as f64, process::cpu_seconds("self") - cpu);

    let (stop, pause) =
        (CancellationToken::new(), Duration::from_secs_f64(2.0 * WRITERS as f64 / full.max(1) as f64));
    for i in 0..WRITERS {
        tasks.spawn(writer(engine.clone(), counters.clone(), i, pause, stop.clone()));
    }
    {
        let (engine, counters, stop) = (engine.clone(), counters.clone(), stop.clone());
        tasks.spawn(async move {
            if let Err(error) = leases(engine, counters, stop).await {
                eprintln!("a lease failed: {error}");
            }
        });
    }
    tasks.spawn(watchers(engine.clone(), counters.clone(), stop.clone()));
    tasks.spawn(compaction(engine.clone(), stop.clone()));
    {
        let (engine, stop) = (engine.clone(), stop.clone());
        tasks.spawn(async move { engine.run_leases(stop.cancelled_owned()).await });
    }
    for _ in 0..REPORTS {
        let (started, cpu) = (Instant::now(), process::cpu_seconds("self"));
        tokio::time::sleep(Duration::from_secs_f64(seconds as f64 / REPORTS as f64)).await;
        report(&engine, &counters, started.elapsed().as_secs_f64(), process::cpu_seconds("self") - cpu);
    }
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    Ok(())
}
