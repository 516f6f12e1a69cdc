//! Answers of others, remembered for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use apimachinery::clock::Clock;
use jiff::Timestamp;
use parking_lot::Mutex;

/// At most so many answers, each until its end. When there is no more room, those that ended are forgotten, then all.
pub struct Remembered<K, V> {
    max: usize,
    clock: Clock,
    known: Mutex<HashMap<K, (V, Timestamp)>>,
}

impl<K: Eq + Hash, V: Clone> Remembered<K, V> {
    pub fn new(max: usize, clock: Clock) -> Remembered<K, V> {
        Remembered { max, clock, known: Mutex::default() }
    }

    pub fn get(&self, key: &K) -> Option<V> {
        let known = self.known.lock();
        known.get(key).filter(|(_, until)| self.clock.now() < *until).map(|(value, _)| value.clone())
    }

    /// Nothing is kept for a time of zero.
    pub fn keep(&self, key: K, value: V, time: Duration) {
        if time.is_zero() {
            return;
        }
        let now = self.clock.now();
        let mut known = self.known.lock();
        if known.len() >= self.max {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() >= self.max {
            known.clear();
        }
        known.insert(key, (value, now + time));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn forgets_in_time_and_in_order() {
        let time = Arc::new(Mutex::new(Timestamp::UNIX_EPOCH));
        let clock = Clock::from_fn({
            let time = time.clone();
            move || *time.lock()
        });
        let known = Remembered::new(2, clock);
        let second = Duration::from_secs(1);
        known.keep("never", 0, Duration::ZERO);
        known.keep("short", 1, second);
        known.keep("long", 2, 3 * second);
        assert_eq!(["never", "short", "long"].map(|key| known.get(&key)), [None, Some(1), Some(2)]);
        *time.lock() += second;
        assert_eq!(["short", "long"].map(|key| known.get(&key)), [None, Some(2)]);
        known.keep("third", 3, second);
        assert_eq!(["long", "third"].map(|key| known.get(&key)), [Some(2), Some(3)]);
        known.keep("fourth", 4, second);
        assert_eq!(["long", "third", "fourth"].map(|key| known.get(&key)), [None, None, Some(4)]);
    }
}
