//! Forgetting old revisions, which lists in pages and watches of the store would otherwise keep for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Registry;

/// History is kept for one to two of these, as upstream's default.
const INTERVAL: Duration = Duration::from_secs(300);

/// Compacts the store to where it stood an interval ago, every interval, until `shutdown`.
pub async fn run(registry: Arc<Registry>, shutdown: CancellationToken) {
    let mut before = 0;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let now = match registry.store.revision().await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%error, "cannot read the store's revision");
                continue;
            }
        };
        if before > 0 && before < now {
            match registry.store.compact(before).await {
                // Another server of the cluster may have been here.
                Ok(()) | Err(storage::Error::Compacted { .. }) => {}
                Err(error) => tracing::warn!(%error, revision = before, "cannot compact the store"),
            }
        }
        before = now;
    }
}
