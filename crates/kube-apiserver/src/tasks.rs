//! Work that goes on beside requests, and who ends it.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where such work is started: the server waits for it when it ends.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    ending: CancellationToken,
}

impl Tasks {
    pub fn new(tracker: TaskTracker, ending: CancellationToken) -> Tasks {
        Tasks { tracker, ending }
    }

    /// As these, for work that may also be ended before the server is.
    pub fn child(&self) -> Tasks {
        Tasks { tracker: self.tracker.clone(), ending: self.ending.child_token() }
    }

    /// Ends what was started here.
    pub fn end(&self) {
        self.ending.cancel();
    }

    pub fn ending(&self) -> &CancellationToken {
        &self.ending
    }

    /// Starts something that is dropped when its time has come.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        self.tracker.spawn(async move {
            ending.run_until_cancelled(work).await;
        });
    }
}
