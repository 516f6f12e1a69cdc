//! The set of informers that all components of a process share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{RawInformer, Resource, Selection, WatchSource};

/// Informers keyed by resource and selection. Owns the task of each.
#[derive(Clone)]
pub struct Informers {
    inner: Arc<Inner>,
}

struct Inner {
    shutdown: CancellationToken,
    tasks: TaskTracker,
    running: Mutex<HashMap<(Resource, Selection), (RawInformer, CancellationToken)>>,
}

impl Informers {
    /// An empty set whose tasks end when `shutdown` is cancelled.
    pub fn new(shutdown: CancellationToken) -> Informers {
        Informers {
            inner: Arc::new(Inner {
                shutdown,
                tasks: TaskTracker::new(),
                running: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// The informer of `selection`, started from `source` if nobody has yet.
    pub fn informer(
        &self,
        source: &dyn WatchSource,
        resource: Resource,
        selection: Selection,
    ) -> RawInformer {
        let mut running = self.inner.running.lock();
        let key = (resource, selection);
        if let Some((informer, _)) = running.get(&key) {
            return informer.clone();
        }
        let informer = RawInformer::new(key.0.clone(), key.1.clone());
        let stop = self.inner.shutdown.child_token();
        let mut events = source.list_watch(&key.0, &key.1);
        let (fed, stopped) = (informer.clone(), stop.clone());
        self.inner.tasks.spawn(async move {
            loop {
                match stopped.run_until_cancelled(events.next()).await {
                    Some(Some(event)) => fed.apply(event),
                    // Sources do not end by themselves; this one was shut down before us.
                    Some(None) => {
                        tracing::debug!(resource = %fed.resource(), "watch source ended");
                        return;
                    }
                    None => return,
                }
            }
        });
        running.insert(key, (informer.clone(), stop));
        informer
    }

    /// Ends an informer, for resources that ceased to exist. Whoever holds it keeps its last state.
    pub fn stop(&self, resource: &Resource, selection: &Selection) {
        let key = (resource.clone(), selection.clone());
        if let Some((_, stop)) = self.inner.running.lock().remove(&key) {
            stop.cancel();
        }
    }

    /// How many informers run.
    pub fn len(&self) -> usize {
        self.inner.running.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all tasks and waits for them, at most for `patience`.
    pub async fn shutdown(&self, patience: Duration) {
        self.inner.shutdown.cancel();
        self.inner.tasks.close();
        let _ = tokio::time::timeout(patience, self.inner.tasks.wait()).await;
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    pub(crate) fn shutdown_token(&self) -> CancellationToken {
        self.inner.shutdown.child_token()
    }
}
