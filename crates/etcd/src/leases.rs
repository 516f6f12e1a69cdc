//! When leases run out. Only the member that serves leases keeps this; the state knows just the times granted and, so
//! that a restart does not give everybody the whole time again, what was left when that was last noted in the log.
//! That is noted when half of what was left has passed, and at least every five minutes.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use storage::LeaseId;
use tokio::time::Instant;

const NOTE_EVERY: Duration = Duration::from_secs(300);
/// What is left is not worth noting below this.
const NOTE_MIN: Duration = Duration::from_secs(4);

struct Timer {
    deadline: Instant,
    /// When to note what is left.
    note: Option<Instant>,
    /// Whether the log says that less than the whole time is left.
    noted: bool,
}

impl Timer {
    fn wake(&self) -> Instant {
        self.note.map_or(self.deadline, |note| note.min(self.deadline))
    }
}

#[derive(Default)]
pub struct Timers {
    timers: HashMap<LeaseId, Timer>,
    wakes: BTreeSet<(Instant, LeaseId)>,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub expired: Vec<LeaseId>,
    /// Leases, and the seconds that are left to note.
    pub notes: Vec<(LeaseId, i64)>,
}

fn note_after(left: Duration) -> Option<Duration> {
    (left >= NOTE_MIN).then(|| (left / 2).min(NOTE_EVERY))
}

/// Whole seconds, bounded so that adding them to the present is safe.
pub fn seconds(n: i64) -> Duration {
    Duration::from_secs(n.clamp(1, 9_000_000_000) as u64)
}

impl Timers {
    /// Starts or restarts a lease with `left` to go.
    pub fn set(&mut self, lease: LeaseId, left: Duration, noted: bool, now: Instant) {
        self.remove(lease);
        let timer = Timer { deadline: now + left, note: note_after(left).map(|after| now + after), noted };
        self.wakes.insert((timer.wake(), lease));
        self.timers.insert(lease, timer);
    }

    /// Gives a lease its whole time again. Whether the log has to be told that nothing is missing any more; `None`
    /// when the lease has no timer.
    pub fn renew(&mut self, lease: LeaseId, whole: Duration, now: Instant) -> Option<bool> {
        let noted = self.timers.get(&lease)?.noted;
        self.set(lease, whole, false, now);
        Some(noted)
    }

    pub fn remove(&mut self, lease: LeaseId) {
        if let Some(timer) = self.timers.remove(&lease) {
            self.wakes.remove(&(timer.wake(), lease));
        }
    }

    /// Tries an expired lease again later.
    pub fn retry(&mut self, lease: LeaseId, at: Instant) {
        self.remove(lease);
        self.wakes.insert((at, lease));
        self.timers.insert(lease, Timer { deadline: at, note: None, noted: true });
    }

    pub fn left(&self, lease: LeaseId, now: Instant) -> Option<Duration> {
        self.timers.get(&lease).map(|timer| timer.deadline.saturating_duration_since(now))
    }

    pub fn next(&self) -> Option<Instant> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Takes what is due. Expired leases lose their timers.
    pub fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        while let Some((at, lease)) = self.wakes.first().copied()
            && at <= now
        {
            self.wakes.pop_first();
            let Some(timer) = self.timers.get_mut(&lease) else { continue };
            if timer.deadline <= now {
                self.timers.remove(&lease);
                due.expired.push(lease);
                continue;
            }
            let left = timer.deadline - now;
            due.notes.push((lease, (left.as_secs_f64().ceil() as i64).max(1)));
            timer.noted = true;
            timer.note = note_after(left).map(|after| now + after);
            self.wakes.insert((timer.wake(), lease));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_times_are_noted_until_the_end() {
        let (mut timers, start) = (Timers::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        timers.set(7, seconds(20), false, start);
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.due(at(10)), Due { expired: vec![], notes: vec![(7, 10)] });
        assert_eq!(timers.renew(7, seconds(20), at(12)), Some(true), "the log must hear of it");
        assert_eq!(timers.renew(7, seconds(20), at(13)), Some(false));
        assert_eq!(timers.due(at(22)), Due::default());
        assert_eq!(timers.due(at(23)).notes, [(7, 10)]);
        assert_eq!(timers.due(at(28)).notes, [(7, 5)]);
        assert_eq!(timers.left(7, at(30)), Some(Duration::from_secs(3)));
        assert_eq!(timers.due(at(31)).notes, [(7, 2)]);
        assert_eq!(timers.due(at(33)).expired, [7]);
        assert_eq!(timers.next(), None);
        assert_eq!(timers.renew(7, seconds(20), at(34)), None);
    }
}
