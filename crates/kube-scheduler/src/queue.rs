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

/// What happened in the cluster, as far as it may make a place for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node appeared or offers something else.
    Node,
    /// Something on a node was given up.
    Freed,
    /// A pod got a node, or other labels.
    Placed,
}

impl Event {
    /// Whether it may help a pod that one of `plugins` refused.
    fn helps(self, plugins: &BTreeSet<&'static str>) -> bool {
        plugins.iter().any(|plugin| match *plugin {
            "InterPodAffinity" | "PodTopologySpread" => true,
            "SchedulingGates" => false,
            "NodeResourcesFit" | "NodePorts" => self != Event::Placed,
            _ => self == Event::Node,
        }) || plugins.is_empty() && self == Event::Node
    }
}

/// Higher priority first, then who came first.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
enum Place {
    Active(Rank),
    Backoff(Instant),
    Unschedulable(Instant),
    /// Being decided or bound, or others are being evicted for it.
    InFlight {
        /// What happened meanwhile.
        events: Vec<Event>,
        /// The pod itself changed.
        changed: bool,
    },
}

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    attempts: u32,
    arrived: u64,
    /// When it was last popped.
    tried: Option<Instant>,
    place: Place,
    /// The plugins that refused every node.
    refused_by: BTreeSet<&'static str>,
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
                self.entries.insert(
                    uid,
                    Entry {
                        pod,
                        attempts: 0,
                        arrived,
                        tried: None,
                        place: Place::Active(rank),
                        refused_by: BTreeSet::new(),
                    },
                );
            }
            Some(entry) => {
                entry.pod = pod;
                match &mut entry.place {
                    Place::InFlight { changed, .. } => *changed |= retry,
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
        entry.place = Place::InFlight { events: Vec::new(), changed: false };
        entry.attempts += 1;
        entry.tried = Some(now);
        Some(entry.pod.clone())
    }

    /// When [`Queue::pop`] may have something although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), ())| *at)
    }

    /// No node would do, `refused_by` these plugins. The pod waits for an event that may help, or its back-off where
    /// one came meanwhile.
    pub fn unschedulable(&mut self, uid: &str, refused_by: BTreeSet<&'static str>, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.refused_by = refused_by;
        if let Place::InFlight { events, changed } = &entry.place
            && (*changed || events.iter().any(|event| event.helps(&entry.refused_by)))
        {
            self.back_off(uid, now);
            return;
        }
        let at = now + UNSCHEDULABLE_MAX;
        entry.place = Place::Unschedulable(at);
        self.timers.insert((at, uid.to_owned()), ());
    }

    /// Worth another try once its back-off since the last is over.
    pub fn back_off(&mut self, uid: &str, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let at = entry.tried.unwrap_or(now) + backoff(entry.attempts);
        entry.place = Place::Backoff(at);
        self.timers.insert((at, uid.to_owned()), ());
    }

    /// Tries a pod at once that waits for something to happen.
    pub fn retry(&mut self, uid: &str) {
        match self.entries.get_mut(uid).map(|entry| &mut entry.place) {
            Some(Place::Unschedulable(_)) => {
                self.leave(uid);
                self.activate(uid);
            }
            Some(Place::InFlight { changed, .. }) => *changed = true,
            _ => {}
        }
    }

    /// The cluster changed so that unschedulable pods may have become schedulable.
    pub fn cluster_changed(&mut self, event: Event, now: Instant) {
        let waiting: Vec<(Instant, String)> = self
            .timers
            .keys()
            .filter(|(_, uid)| {
                self.entries.get(uid).is_some_and(|entry| {
                    matches!(entry.place, Place::Unschedulable(_)) && event.helps(&entry.refused_by)
                })
            })
            .cloned()
            .collect();
        for key in waiting {
            let uid = key.1.clone();
            self.timers.remove(&key);
            self.back_off(&uid, now);
        }
        for entry in self.entries.values_mut() {
            if let Place::InFlight { events, .. } = &mut entry.place
                && !events.contains(&event)
            {
                events.push(event);
            }
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(5)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(refused_by: &[&'static str]) -> (Queue, Instant) {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.put(Arc::new(Pod { uid: "a".into(), ..Pod::default() }), true);
        assert_eq!(queue.pop(now).map(|p| p.uid.clone()), Some("a".into()));
        queue.unschedulable("a", refused_by.iter().copied().collect(), now);
        (queue, now)
    }

    #[test]
    fn only_what_may_help_wakes_a_pod() {
        let cases: &[(&[&'static str], Event, bool)] = &[
            (&["NodeResourcesFit"], Event::Freed, true),
            (&["NodeResourcesFit"], Event::Placed, false),
            (&["NodeResourcesFit", "InterPodAffinity"], Event::Placed, true),
            (&["NodeAffinity"], Event::Freed, false),
            (&["NodeAffinity"], Event::Node, true),
            (&["NodePorts"], Event::Freed, true),
            (&[], Event::Node, true),
            (&[], Event::Freed, false),
        ];
        for (plugins, event, wakes) in cases {
            let (mut queue, now) = waiting(plugins);
            queue.cluster_changed(*event, now);
            let soon = queue.deadline().is_some_and(|at| at <= now + BACKOFF_MAX);
            assert_eq!(soon, *wakes, "{plugins:?} {event:?}");
        }
    }

    #[test]
    fn what_happened_in_flight_counts() {
        let (mut queue, now) = waiting(&["NodeResourcesFit"]);
        queue.retry("a");
        assert!(queue.pop(now).is_some());
        queue.cluster_changed(Event::Freed, now);
        queue.unschedulable("a", ["NodeResourcesFit"].into(), now);
        assert!(queue.deadline().is_some_and(|at| at <= now + BACKOFF_MAX));
    }
}
