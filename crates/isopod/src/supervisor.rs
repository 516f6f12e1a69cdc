//! Owns every component: starts them, starts them again when they fail, ends them in order.

use std::future::Future;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A component that ran this long is taken to have been well.
const WELL_AFTER: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Components that stop together.
#[derive(Default)]
pub struct Supervisor {
    tasks: JoinSet<&'static str>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// Runs `component` until the supervisor stops; when it fails it is started again after a while.
    pub fn keep_running<F>(
        &mut self,
        name: &'static str,
        start: impl Fn(CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let mut backoff = BACKOFF_FIRST;
            while !shutdown.is_cancelled() {
                let started = tokio::time::Instant::now();
                // A task of its own, so that a panic is an error here and not the end of the supervisor.
                let child = shutdown.child_token();
                let outcome = tokio::spawn(start(child.clone())).await;
                child.cancel();
                if shutdown.is_cancelled() {
                    break;
                }
                match outcome {
                    Ok(Ok(())) => tracing::error!(component = name, "stopped by itself; starting it again"),
                    Ok(Err(error)) => {
                        tracing::error!(component = name, "failed: {error:#}; starting it again");
                    }
                    Err(panic) => tracing::error!(component = name, "crashed: {panic}; starting it again"),
                }
                if started.elapsed() > WELL_AFTER {
                    backoff = BACKOFF_FIRST;
                }
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = tokio::time::sleep(backoff) => {}
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
            name
        });
    }

    /// Ends all components and waits for them, for a bounded time.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let deadline = tokio::time::sleep(STOP_WITHIN);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                () = &mut deadline => {
                    tracing::warn!(left = self.tasks.len(), "components did not stop in time; leaving them");
                    self.tasks.abort_all();
                    return;
                }
                ended = self.tasks.join_next() => match ended {
                    Some(Ok(name)) => tracing::debug!(component = name, "stopped"),
                    Some(Err(_)) => {}
                    None => return,
                }
            }
        }
    }
}
