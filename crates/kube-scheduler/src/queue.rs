//! Pods waiting for a node: those to try now, those that wait out a back-off, and those that nothing has changed for
//! since they were found unschedulable. Pure; the caller tells the time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::pod::Pod;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Even if no event suggests it, an unschedulable pod is tried again after this long.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// Higher priority first, then who came first.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Active(Rank),
    Backoff(Instant),
    Unschedulable(Instant),
    /// Being decided or bound.
    InFlight {
        changed: bool,
    },
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    attempts: u32,
    arrived: u64,
    place: Place,
}

#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<String, Entry>,
    active: BTreeSet<(Rank, String)>,
    timers: BTreeMap<(Instant, String), ()>,
    arrivals: u64,
}

impl Queue {
    /// A pod that wants a node, new or changed. A change of an unschedulable pod makes it worth another try.
    pub fn put(&mut self, pod: Arc<Pod>, retry: bool) {
        let uid = pod.uid.clone();
        match self.entries.get_mut(&uid) {
            None => {
                self.arrivals += 1;
                let arrived = self.arrivals;
                let rank = (Reverse(pod.priority), arrived);
                self.active.insert((rank, uid.clone()));
                self.entries.insert(uid, Entry { pod, attempts: 0, arrived, place: Place::Active(rank) });
            }
            Some(entry) => {
                entry.pod = pod;
                match &mut entry.place {
                    Place::InFlight { changed } => *changed |= retry,
                    Place::Unschedulable(_) if retry => {
                        self.leave(&uid);
                        self.activate(&uid);
                    }
                    _ => {}
                }
            }
        }
    }

    pub fn remove(&mut self, uid: &str) {
        self.leave(uid);
        self.entries.remove(uid);
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.entries.contains_key(uid)
    }

    fn leave(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        match entry.place {
            Place::Active(rank) => {
                self.active.remove(&(rank, uid.to_owned()));
            }
            Place::Backoff(at) | Place::Unschedulable(at) => {
                self.timers.remove(&(at, uid.to_owned()));
            }
            Place::InFlight { .. } => {}
        }
    }

    fn activate(&mut self, uid: &str) {
        if let Some(entry) = self.entries.get_mut(uid) {
            let rank = (Reverse(entry.pod.priority), entry.arrived);
            entry.place = Place::Active(rank);
            self.active.insert((rank, uid.to_owned()));
        }
    }

    /// The next pod to decide, which is then in flight.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<Pod>> {
        while let Some((&(at, _), ())) = self.timers.first_key_value() {
            if at > now {
                break;
            }
            if let Some(((_, uid), ())) = self.timers.pop_first() {
                self.activate(&uid);
            }
        }
        let (_, uid) = self.active.pop_first()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight { changed: false };
        entry.attempts += 1;
        Some(entry.pod.clone())
    }

    /// When [`Queue::pop`] may have something although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), ())| *at)
    }

    /// No node would do. The pod waits for an event, or its back-off where one came meanwhile.
    pub fn unschedulable(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if matches!(entry.place, Place::InFlight { changed: true }) {
            self.back_off(uid, now);
            return;
        }
        let at = now + UNSCHEDULABLE_MAX;
        entry.place = Place::Unschedulable(at);
        self.timers.insert((at, uid.to_owned()), ());
    }

    /// Something went wrong; try again after a while.
    pub fn back_off(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let at = now + backoff(entry.attempts);
        entry.place = Place::Backoff(at);
        self.timers.insert((at, uid.to_owned()), ());
    }

    /// The cluster changed so that unschedulable pods may have become schedulable.
    pub fn cluster_changed(&mut self, now: Instant) {
        let waiting: Vec<(Instant, String)> = self
            .timers
            .keys()
            .filter(|(_, uid)| {
                matches!(self.entries.get(uid), Some(Entry { place: Place::Unschedulable(_), .. }))
            })
            .cloned()
            .collect();
        for key in waiting {
            let uid = key.1.clone();
            self.timers.remove(&key);
            self.back_off(&uid, now);
        }
        for entry in self.entries.values_mut() {
            if let Place::InFlight { changed } = &mut entry.place {
                *changed = true;
            }
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(5)).min(BACKOFF_MAX)
}
