//! A member alone, with etcd's flags: what `isopod etcd` runs, without the rest of the binary. For measuring.

use clap::Parser;
use etcd::flags::Flags;
use tokio_util::sync::CancellationToken;

// As in the isopod binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Command::parse().flags.config()?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let stopping = tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    etcd::server::run(config, shutdown).await?;
    stopping.abort();
    Ok(())
}
