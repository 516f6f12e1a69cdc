//! Keys that wait for work: each at most once, none handed to two workers at a time, failures retried with back-off.
//!
//! Bounded by the number of distinct keys, that is, of objects. Needs no task of its own: whoever waits in
//! [`WorkQueue::next`] also waits for the earliest delayed key.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The first retry of a failed key waits this long, each further one twice as long.
const BACKOFF_BASE: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1000);
/// Retries over all keys: this many at once, then one per [`RETRY_INTERVAL`].
const RETRY_BURST: u32 = 100;
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A queue of keys. Cheap to clone.
pub struct WorkQueue<K> {
    inner: Arc<Inner<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue { inner: self.inner.clone() }
    }
}

struct Inner<K> {
    state: Mutex<State<K>>,
    wake: Notify,
    backoff: (Duration, Duration),
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys that wait in `ready`, or for their worker to be done.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    failures: HashMap<K, u32>,
    delayed: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    sequence: u64,
    /// When the overall retry bucket will be full again.
    bucket_full_at: Option<Instant>,
    closed: bool,
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        WorkQueue::new()
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    pub fn new() -> WorkQueue<K> {
        WorkQueue::with_backoff(BACKOFF_BASE, BACKOFF_MAX)
    }

    /// A queue whose retries wait `base`, doubled per failure up to `max`.
    pub fn with_backoff(base: Duration, max: Duration) -> WorkQueue<K> {
        WorkQueue {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    dirty: HashSet::new(),
                    processing: HashSet::new(),
                    failures: HashMap::new(),
                    delayed: BTreeMap::new(),
                    due: HashMap::new(),
                    sequence: 0,
                    bucket_full_at: None,
                    closed: false,
                }),
                wake: Notify::new(),
                backoff: (base, max),
            }),
        }
    }

    /// Queues `key` unless it waits already. A key that is being worked on comes again once that is done.
    pub fn add(&self, key: K) {
        let mut state = self.inner.state.lock();
        if state.closed {
            return;
        }
        if state.make_ready(key) {
            drop(state);
            self.inner.wake.notify_one();
        }
    }

    /// Queues `key` after `delay`; of several delays the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.inner.state.lock();
        if state.closed {
            return;
        }
        // Past what a timer can hold is as good as that far away.
        let at = Instant::now() + delay.min(Duration::from_secs(365 * 24 * 3600));
        if let Some(known) = state.due.get(&key).copied() {
            if known.0 <= at {
                return;
            }
            state.delayed.remove(&known);
        }
        state.sequence += 1;
        let slot = (at, state.sequence);
        let first = state.delayed.keys().next().is_none_or(|k| slot < *k);
        state.delayed.insert(slot, key.clone());
        state.due.insert(key, slot);
        drop(state);
        if first {
            self.inner.wake.notify_one();
        }
    }

    /// Queues `key` after its back-off, which grows until [`forget`](Self::forget).
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut state = self.inner.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let exponent = *failures;
            *failures = failures.saturating_add(1);
            let (base, max) = self.inner.backoff;
            let own = base.saturating_mul(1u32.checked_shl(exponent).unwrap_or(u32::MAX)).min(max);
            own.max(state.take_retry(Instant::now()))
        };
        self.add_after(key, delay);
    }

    /// Ends the back-off of `key`.
    pub fn forget(&self, key: &K) {
        self.inner.state.lock().failures.remove(key);
    }

    /// How often `key` failed since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.inner.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// The next key, or `None` once the queue is closed. Follow with [`done`](Self::done). Cancel-safe.
    pub async fn next(&self) -> Option<K> {
        loop {
            let deadline = {
                let mut state = self.inner.state.lock();
                if state.closed {
                    return None;
                }
                state.move_due(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.inner.wake.notify_one();
                    }
                    return Some(key);
                }
                state.delayed.keys().next().map(|(at, _)| *at)
            };
            let woken = self.inner.wake.notified();
            match deadline {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, woken).await;
                }
                None => woken.await,
            }
        }
    }

    /// The worker of `key` is done; if the key was added meanwhile, it comes again.
    pub fn done(&self, key: &K) {
        let mut state = self.inner.state.lock();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.inner.wake.notify_one();
        }
    }

    /// Keys ready for a worker.
    pub fn len(&self) -> usize {
        self.inner.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends the queue: waiters get `None`, nothing can be added.
    pub fn close(&self) {
        let mut state = self.inner.state.lock();
        state.closed = true;
        state.ready.clear();
        state.delayed.clear();
        state.due.clear();
        drop(state);
        self.inner.wake.notify_waiters();
        self.inner.wake.notify_one();
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Returns whether a worker can take it now.
    fn make_ready(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn move_due(&mut self, now: Instant) {
        while let Some(first) = self.delayed.first_entry() {
            if first.key().0 > now {
                return;
            }
            let key = first.remove();
            self.due.remove(&key);
            self.make_ready(key);
        }
    }

    /// Takes one retry from the overall bucket and says how long it must wait.
    fn take_retry(&mut self, now: Instant) -> Duration {
        let full_at = self.bucket_full_at.unwrap_or(now).max(now) + RETRY_INTERVAL;
        self.bucket_full_at = Some(full_at);
        (full_at - now).saturating_sub(RETRY_INTERVAL * RETRY_BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hands_out_each_key_once_and_again_when_dirty() {
        let queue = WorkQueue::new();
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.next().await, Some("b"));
        assert!(queue.is_empty(), "a is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.close();
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test]
    async fn delays_come_in_order_and_the_earliest_counts() {
        let queue = WorkQueue::new();
        queue.add_after("late", Duration::from_millis(100));
        queue.add_after("soon", Duration::from_millis(50));
        queue.add_after("late", Duration::from_secs(20));
        let start = Instant::now();
        assert_eq!(queue.next().await, Some("soon"));
        assert!(start.elapsed() >= Duration::from_millis(49));
        assert_eq!(queue.next().await, Some("late"));
        assert!(start.elapsed() >= Duration::from_millis(99) && start.elapsed() < Duration::from_secs(20));
    }

    #[tokio::test]
    async fn an_earlier_deadline_wakes_a_waiter() {
        let queue = WorkQueue::new();
        queue.add_after(1, Duration::from_secs(100));
        let other = queue.clone();
        let waiter = tokio::spawn(async move { other.next().await });
        tokio::task::yield_now().await;
        queue.add_after(2, Duration::from_millis(50));
        let start = Instant::now();
        assert_eq!(waiter.await.unwrap(), Some(2));
        assert!(start.elapsed() < Duration::from_secs(50));
    }

    #[tokio::test]
    async fn back_off_doubles_until_forgotten() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        let mut waits = vec![];
        for _ in 0..4 {
            let before = start.elapsed();
            queue.add_rate_limited("a");
            queue.next().await;
            queue.done(&"a");
            waits.push((start.elapsed() - before).as_millis());
        }
        assert!(waits.iter().zip([5, 10, 20, 40]).all(|(waited, want)| *waited >= want), "{waits:?}");
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }
}
