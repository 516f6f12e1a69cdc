//! The loop every controller runs.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::WorkQueue;

/// Works on keys, at most `n` at a time, until `shutdown`. `work` answers when to look at the key again, if at all;
/// on failure the key is retried with back-off. While nothing is to do, no task and no future exists.
pub async fn run_workers<K, F, Fut, E>(queue: WorkQueue<K>, n: usize, shutdown: CancellationToken, work: F)
where
    K: Clone + Eq + Hash + Debug + Send + Sync + 'static,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Option<Duration>, E>> + Send + 'static,
    E: Into<anyhow::Error>,
{
    let mut running = JoinSet::new();
    loop {
        let key = tokio::select! {
            _ = shutdown.cancelled() => break,
            Some(_) = running.join_next() => continue,
            key = queue.next(), if running.len() < n => key,
        };
        let Some(key) = key else { break };
        let (queue, future) = (queue.clone(), AssertUnwindSafe(work(key.clone())).catch_unwind());
        running.spawn(async move {
            match future.await {
                Ok(Ok(again)) => {
                    queue.forget(&key);
                    if let Some(delay) = again {
                        queue.add_after(key.clone(), delay);
                    }
                }
                Ok(Err(error)) => {
                    let error: anyhow::Error = error.into();
                    // Somebody else was faster, or we were: the next look sorts it out.
                    if is_conflict(&error) || queue.failures(&key) < 2 {
                        tracing::debug!(?key, error = describe(&error), "will be retried");
                    } else {
                        tracing::warn!(?key, error = describe(&error), "will be retried");
                    }
                    queue.add_rate_limited(key.clone());
                }
                Err(_) => {
                    tracing::error!(?key, "worker panicked; will be retried");
                    queue.add_rate_limited(key.clone());
                }
            }
            queue.done(&key);
        });
    }
    queue.close();
    running.shutdown().await;
}

fn is_conflict(error: &anyhow::Error) -> bool {
    error.chain().any(|e| match e.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.code == 409,
        _ => false,
    })
}

/// An API error by its message alone; others with their causes.
fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => status.message.clone(),
        _ => format!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn retries_failures_and_panics() {
        let queue = WorkQueue::new();
        queue.add("a");
        let (calls, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let (seen, end) = (calls.clone(), stop.clone());
        run_workers(queue, 2, stop, move |_| {
            let (seen, end) = (seen.clone(), end.clone());
            async move {
                match seen.fetch_add(1, Ordering::SeqCst) {
                    0 => anyhow::bail!("first"),
                    1 => panic!("second"),
                    2 => Ok(Some(Duration::from_millis(20))),
                    _ => {
                        end.cancel();
                        Ok(None)
                    }
                }
            }
        })
        .await;
        assert_eq!(calls.load(Ordering::SeqCst), 4);
    }
}
