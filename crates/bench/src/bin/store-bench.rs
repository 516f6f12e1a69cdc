//! Durable puts per second through the store trait. Usage: store-bench [DIRECTORY] [WRITERS] [SECONDS]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench::process;
use etcd::{Directory, Engine, Options};
use storage::{Change, Expect, Store, WriteRequest};

// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let directory = args.next().unwrap_or_else(|| "store-bench.data".into());
    let writers: u64 = args.next().map_or(Ok(1000), |a| a.parse())?;
    let seconds: u64 = args.next().map_or(Ok(5), |a| a.parse())?;
    let engine = Engine::open(Arc::new(Directory::open(directory.as_ref())?), Options::default())?;
    let done = Arc::new(AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(seconds);
    let (started, cpu) = (Instant::now(), process::cpu_seconds("self"));
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let (engine, done) = (engine.clone(), done.clone());
        tasks.spawn(async move {
            let value = bytes::Bytes::from(vec![b'x'; 512]);
            let mut i = 0u64;
            while Instant::now() < until {
                let key = format!("/registry/bench/{writer:05}/{:04}", i % 10).into();
                let change = Change::Put { value: value.clone(), lease: 0 };
                engine.write(WriteRequest { key, expect: Expect::Anything, change }).await?;
                done.fetch_add(1, Ordering::Relaxed);
                i += 1;
            }
            Ok::<_, storage::Error>(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    let (n, elapsed) = (done.load(Ordering::Relaxed) as f64, started.elapsed().as_secs_f64());
    println!(
        "durable 512 B puts, {writers} writers: {:.0}/s, {:.1} µs CPU each",
        n / elapsed,
        (process::cpu_seconds("self") - cpu) / n * 1e6
    );
    Ok(())
}
