//! What a controller has asked for and not yet seen in its informers. Acting again before would act twice.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After this long an expectation counts as met: the informer may have missed an add and its delete.
const TIMEOUT: Duration = Duration::from_secs(300);

struct Expected {
    creations: usize,
    /// UIDs.
    deletions: HashSet<String>,
    since: Instant,
}

/// Expectations by controller key.
#[derive(Default)]
pub(crate) struct Expectations {
    by_key: Mutex<HashMap<String, Expected>>,
}

impl Expectations {
    pub(crate) fn expect_creations(&self, key: &str, count: usize) {
        self.set(key, count, HashSet::new());
    }

    pub(crate) fn expect_deletions(&self, key: &str, uids: impl IntoIterator<Item = String>) {
        self.set(key, 0, uids.into_iter().collect());
    }

    /// Both at once, for controllers that create and delete in one go.
    pub(crate) fn set(&self, key: &str, creations: usize, deletions: HashSet<String>) {
        let expected = Expected { creations, deletions, since: Instant::now() };
        self.by_key.lock().insert(key.to_owned(), expected);
    }

    pub(crate) fn creation_observed(&self, key: &str) {
        if let Some(expected) = self.by_key.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    pub(crate) fn deletion_observed(&self, key: &str, uid: &str) {
        if let Some(expected) = self.by_key.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    pub(crate) fn satisfied(&self, key: &str) -> bool {
        let by_key = self.by_key.lock();
        by_key
            .get(key)
            .is_none_or(|e| (e.creations == 0 && e.deletions.is_empty()) || e.since.elapsed() > TIMEOUT)
    }

    pub(crate) fn forget(&self, key: &str) {
        self.by_key.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn met_once_everything_was_seen() {
        let e = Expectations::default();
        assert!(e.satisfied("a"));
        e.expect_creations("a", 2);
        e.creation_observed("a");
        assert!(!e.satisfied("a"));
        e.creation_observed("a");
        assert!(e.satisfied("a"));
        e.expect_deletions("a", ["u".to_owned()]);
        e.deletion_observed("a", "other");
        assert!(!e.satisfied("a"));
        e.deletion_observed("a", "u");
        e.deletion_observed("a", "u");
        assert!(e.satisfied("a"));
    }
}
