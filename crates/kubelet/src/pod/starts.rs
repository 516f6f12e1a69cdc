//! Calls that start containers. A pod that is told to end gives up the steps under way, but a runtime whose start is given up
//! reports a container that failed to start; so each start runs to its end, and the pod's end waits for it.

use std::sync::Arc;

use tokio::sync::RwLock;

#[derive(Clone, Default)]
pub struct Starts(Arc<RwLock<()>>);

impl Starts {
    /// Makes the call, whoever stops waiting for it. `None` if it panicked.
    pub async fn run<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let under_way = self.0.clone().read_owned().await;
        let call = async move {
            let answer = call.await;
            drop(under_way);
            answer
        };
        tokio::spawn(call).await.ok()
    }

    /// Returns when no call is under way.
    pub async fn ended(&self) {
        let _ = self.0.write().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_start_given_up_is_waited_for() {
        let starts = Starts::default();
        let (begun, has_begun) = oneshot::channel();
        let (answer, answered) = oneshot::channel::<()>();
        let own = starts.clone();
        let step = tokio::spawn(async move {
            own.run(async move {
                let _ = begun.send(());
                let _ = answered.await;
            })
            .await
        });
        has_begun.await.unwrap();
        step.abort();
        assert!(step.await.unwrap_err().is_cancelled());
        assert!(starts.ended().now_or_never().is_none(), "the call is under way");
        answer.send(()).unwrap();
        starts.ended().await;
        assert_eq!(starts.run(async { 5 }).await, Some(5));
    }
}
