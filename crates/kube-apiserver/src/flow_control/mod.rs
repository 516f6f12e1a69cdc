//! API priority and fairness (KEP-1040): which requests run now, which wait, which are turned away.
//!
//! A request's flow schema says its priority level and its flow. A level has a share of the server's seats; it may also
//! use seats that other levels may lend and do not use. Requests beyond that wait in the level's queues, where each flow
//! is dealt a few of them, and are let in so that flows get their share of the service.

mod classes;
mod figures;
mod queues;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use apimachinery::status::Status;
use apimachinery::user::UserInfo;
use arc_swap::ArcSwap;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::metrics;
use crate::seams::{Objects, RequestInfo};
use classes::{Classes, LevelSpec};
use figures::{Figures, Rejection};
use queues::{Entered, Queues};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// How long a request waits for its turn: a quarter of what it may last.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Objects of a list that take a seat.
const OBJECTS_PER_SEAT: usize = 100;
const SEATS_MAX: u32 = 10;
/// The part of a level that one request may take.
const SEATS_FRACTION: f64 = 0.15;

/// How many requests run at a time, and whether they are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub enabled: bool,
    pub reading_max: u32,
    pub writing_max: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config { enabled: true, reading_max: 400, writing_max: 200 }
    }
}

/// A priority level at work.
struct Level {
    name: String,
    queues: Mutex<Queues<oneshot::Sender<()>>>,
    /// Seats in use; apart from the queues, so that other levels can look.
    executing: AtomicU32,
    nominal: AtomicU32,
    lendable: AtomicU32,
    borrows_max: AtomicU32,
}

impl Level {
    fn new(name: &str) -> Level {
        Level {
            name: name.to_owned(),
            queues: Mutex::new(Queues::default()),
            executing: AtomicU32::new(0),
            nominal: AtomicU32::new(0),
            lendable: AtomicU32::new(0),
            borrows_max: AtomicU32::new(0),
        }
    }

    fn set(&self, spec: &LevelSpec) {
        self.nominal.store(spec.nominal, Ordering::Relaxed);
        self.lendable.store(spec.lendable, Ordering::Relaxed);
        self.borrows_max.store(spec.borrows_max, Ordering::Relaxed);
        self.queues.lock().set(spec.queues, spec.hand_size, spec.queue_length_max);
    }
}

/// The classes of requests and the levels they are of.
struct State {
    revisions: [u64; 2],
    classes: Classes,
    levels: HashMap<String, Arc<Level>>,
    /// What is counted of each schema, by its name.
    figures: HashMap<String, Arc<Figures>>,
}

impl State {
    /// The seats a level may use now: its own, and what others may lend and neither use nor lend already.
    fn limit(&self, level: &Level) -> u32 {
        let of = |n: &AtomicU32| n.load(Ordering::Relaxed);
        let (mut free, mut lent) = (0u32, 0u32);
        for other in self.levels.values().filter(|l| !std::ptr::eq(&***l, level)) {
            let (nominal, executing) = (of(&other.nominal), of(&other.executing));
            free += of(&other.lendable).min(nominal.saturating_sub(executing));
            lent += executing.saturating_sub(nominal);
        }
        of(&level.nominal) + free.saturating_sub(lent).min(of(&level.borrows_max))
    }
}

pub struct FlowControl {
    config: Config,
    objects: Arc<dyn Objects>,
    changes: [watch::Receiver<u64>; 2],
    state: ArcSwap<State>,
    reloading: Mutex<()>,
    families: figures::Families,
}

/// What a request was taken for, as the answer's headers tell.
#[derive(Clone)]
pub struct Ids {
    pub schema: HeaderValue,
    pub level: HeaderValue,
}

/// A place among the running requests; given up when dropped.
pub struct Permit {
    control: Arc<FlowControl>,
    level: Arc<Level>,
    figures: Arc<Figures>,
    queue: Option<usize>,
    seats: u32,
    since: Instant,
    waited: Duration,
    /// Whether nothing is limited, and there is nothing to give back.
    exempt: bool,
}

impl Permit {
    /// How long its turn was waited for.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.figures.ended(self.seats, self.since.elapsed());
        if self.exempt {
            return;
        }
        self.level.executing.fetch_sub(self.seats, Ordering::AcqRel);
        if let Some(queue) = self.queue {
            self.level.queues.lock().done(queue, self.seats, self.since.elapsed());
        }
        self.control.dispatch(&self.level);
    }
}

impl FlowControl {
    pub fn new(config: Config, objects: Arc<dyn Objects>, families: &metrics::Families) -> Arc<FlowControl> {
        let changes =
            ["prioritylevelconfigurations", "flowschemas"].map(|resource| objects.changes(GROUP, resource));
        let state = State {
            revisions: [u64::MAX; 2],
            classes: Classes::default(),
            levels: HashMap::new(),
            figures: HashMap::new(),
        };
        Arc::new(FlowControl {
            config,
            objects,
            changes,
            state: ArcSwap::from_pointee(state),
            reloading: Mutex::new(()),
            families: figures::Families::new(families),
        })
    }

    pub fn is_on(&self) -> bool {
        self.config.enabled
    }

    fn revisions(&self) -> [u64; 2] {
        [*self.changes[0].borrow(), *self.changes[1].borrow()]
    }

    /// The state, made anew when schemas or levels have changed.
    fn state(&self) -> Arc<State> {
        let state = self.state.load_full();
        let revisions = self.revisions();
        if state.revisions == revisions {
            return state;
        }
        let _one = self.reloading.lock();
        let old = self.state.load_full();
        if old.revisions == revisions {
            return old;
        }
        let total = self.config.reading_max + self.config.writing_max;
        let values = |resource: &str| -> Vec<serde_json::Value> {
            self.objects.list(GROUP, resource, None).iter().filter_map(|o| o.to_value().ok()).collect()
        };
        let classes = Classes::new(&values("flowschemas"), &values("prioritylevelconfigurations"), total);
        let mut levels = HashMap::new();
        for (name, spec) in &classes.levels {
            let level = old.levels.get(name).cloned().unwrap_or_else(|| Arc::new(Level::new(name)));
            level.set(spec);
            levels.insert(name.clone(), level);
        }
        let figures = classes.names().map(|(schema, level)| {
            let known = old.figures.get(schema).filter(|known| known.is_of(level));
            let figures = known.cloned().unwrap_or_else(|| Arc::new(self.families.of(schema, level)));
            (schema.to_owned(), figures)
        });
        let figures = figures.collect();
        let fresh = Arc::new(State { revisions, classes, levels, figures });
        self.state.store(fresh.clone());
        fresh
    }

    /// Waits until the request may run. `objects` is how many it may have to look at.
    pub async fn admit(
        self: &Arc<Self>,
        user: &UserInfo,
        info: &RequestInfo,
        objects: usize,
    ) -> (Option<Ids>, Result<Option<Permit>, Status>) {
        let state = self.state();
        let Some(class) = state.classes.classify(user, info) else {
            // Before the default schemas are there, nothing is known of any request.
            return (None, Ok(None));
        };
        let ids = Some(class.ids.clone());
        let Some(level) = state.levels.get(&class.level) else { return (ids, Ok(None)) };
        let Some(figures) = state.figures.get(class.name()) else { return (ids, Ok(None)) };
        if state.classes.levels.get(&class.level).is_some_and(|l| l.exempt) {
            return (ids, Ok(Some(self.permit(level, figures, None, 1, Duration::ZERO, true))));
        }
        let nominal = level.nominal.load(Ordering::Relaxed);
        let most = ((f64::from(nominal) * SEATS_FRACTION) as u32).clamp(1, SEATS_MAX);
        let seats = u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(u32::MAX).clamp(1, most);
        let flow = class.flow(user, info);
        (ids, self.enter(&state, level, figures, seats, flow).await.map(Some))
    }

    fn permit(
        self: &Arc<Self>,
        level: &Arc<Level>,
        figures: &Arc<Figures>,
        queue: Option<usize>,
        seats: u32,
        waited: Duration,
        exempt: bool,
    ) -> Permit {
        figures.began(seats, waited);
        let (control, level, figures) = (self.clone(), level.clone(), figures.clone());
        Permit { control, level, figures, queue, seats, since: Instant::now(), waited, exempt }
    }

    async fn enter(
        self: &Arc<Self>,
        state: &Arc<State>,
        level: &Arc<Level>,
        figures: &Arc<Figures>,
        seats: u32,
        flow: u64,
    ) -> Result<Permit, Status> {
        let since = Instant::now();
        let permit = |queue| self.permit(level, figures, queue, seats, since.elapsed(), false);
        let (receiver, queue) = {
            let mut queues = level.queues.lock();
            let limit = state.limit(level);
            let executing = level.executing.load(Ordering::Acquire);
            let idle = executing == 0 || executing + seats <= limit;
            let (sender, receiver) = oneshot::channel();
            match queues.enter(flow, seats, idle, sender) {
                Entered::Runs(queue) => {
                    level.executing.fetch_add(seats, Ordering::AcqRel);
                    drop(queues);
                    return Ok(permit(queue));
                }
                Entered::Waits(queue) => (receiver, queue),
                Entered::Full => {
                    drop(queues);
                    // Where nobody waits there is no queue that could be full.
                    let none = state.classes.levels.get(&level.name).is_some_and(|l| l.queues == 0);
                    figures.rejected(if none { Rejection::Limit } else { Rejection::Full }, None);
                    return Err(refusal());
                }
            }
        };
        figures.waits(seats);
        // Giving up drops the receiver; what was let in at the same moment is given back then.
        let mut waiting = Waiting {
            control: self.clone(),
            level: level.clone(),
            figures: figures.clone(),
            queue,
            seats,
            receiver: Some(receiver),
        };
        let outcome = match &mut waiting.receiver {
            Some(receiver) => tokio::time::timeout(WAIT_MAX, receiver).await,
            None => return Err(refusal()),
        };
        match outcome {
            Ok(Ok(())) => {
                waiting.receiver = None;
                Ok(permit(Some(queue)))
            }
            Ok(Err(_)) => {
                figures.rejected(Rejection::Full, Some(since.elapsed()));
                Err(refusal())
            }
            Err(_) => {
                figures.rejected(Rejection::TimeOut, Some(since.elapsed()));
                Err(refusal())
            }
        }
    }

    /// Lets in what waits, as long as there are seats: first at `level`, then at those that borrow.
    fn dispatch(&self, level: &Arc<Level>) {
        let state = self.state.load_full();
        self.dispatch_at(&state, level);
        for other in state.levels.values().filter(|l| !Arc::ptr_eq(l, level)) {
            self.dispatch_at(&state, other);
        }
    }

    fn dispatch_at(&self, state: &State, level: &Level) {
        let mut queues = level.queues.lock();
        while queues.waiting() > 0 {
            let limit = state.limit(level);
            let executing = level.executing.load(Ordering::Acquire);
            let fits = |seats: u32| executing == 0 || executing + seats <= limit;
            let Some((queue, seats, sender)) = queues.next(fits) else { return };
            level.executing.fetch_add(seats, Ordering::AcqRel);
            if sender.send(()).is_err() {
                // Who waited has left.
                level.executing.fetch_sub(seats, Ordering::AcqRel);
                queues.done(queue, seats, Duration::ZERO);
            }
        }
    }

    /// The seats of the levels as they are now; what happens to requests is counted in the families.
    pub fn render(&self, out: &mut String) {
        let state = self.state.load_full();
        let mut levels: Vec<&Arc<Level>> = state.levels.values().collect();
        levels.sort_by(|a, b| a.name.cmp(&b.name));
        let of = |n: &AtomicU32| n.load(Ordering::Relaxed);
        let mut family = |name: &str, help: &str, value: &dyn Fn(&Level) -> u32| {
            let name = format!("apiserver_flowcontrol_{name}");
            let _ = writeln!(out, "# HELP {name} [ALPHA] {help}\n# TYPE {name} gauge");
            for level in &levels {
                let _ = writeln!(out, "{name}{{priority_level={:?}}} {}", level.name, value(level));
            }
        };
        let lower = |l: &Level| of(&l.nominal).saturating_sub(of(&l.lendable));
        let upper = |l: &Level| of(&l.nominal).saturating_add(of(&l.borrows_max));
        family("nominal_limit_seats", "Seats a priority level is given.", &|l| of(&l.nominal));
        family("lower_limit_seats", "Seats a priority level keeps when it lends all it may.", &lower);
        family("upper_limit_seats", "Seats a priority level has when it borrows all it may.", &upper);
        family("current_limit_seats", "Seats a priority level may use now.", &|l| state.limit(l));
    }
}

fn refusal() -> Status {
    Status::too_many_requests("Too many requests, please try again later.", 1)
}

/// A request in a queue, which may leave it at any moment.
struct Waiting {
    control: Arc<FlowControl>,
    level: Arc<Level>,
    figures: Arc<Figures>,
    queue: usize,
    seats: u32,
    receiver: Option<oneshot::Receiver<()>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.figures.waits_no_more(self.seats);
        let Some(mut receiver) = self.receiver.take() else { return };
        receiver.close();
        // Let in and leaving at once: the seats are free again.
        if receiver.try_recv().is_ok() {
            self.level.executing.fetch_sub(self.seats, Ordering::AcqRel);
            self.level.queues.lock().done(self.queue, self.seats, Duration::ZERO);
            self.control.dispatch(&self.level);
        } else {
            self.level.queues.lock().sweep(|sender| sender.is_closed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;
    use serde_json::json;

    fn control(queue_length: u32) -> Arc<FlowControl> {
        let objects = Arc::new(FakeObjects::default());
        for (name, shares, response) in [
            (
                "small",
                1,
                json!({"type": "Queue", "queuing": {"queues": 2, "handSize": 1, "queueLengthLimit": queue_length}}),
            ),
            ("strict", 1, json!({"type": "Reject"})),
        ] {
            let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": 0, "borrowingLimitPercent": 0,
                "limitResponse": response});
            objects.put(GROUP, "prioritylevelconfigurations",
                json!({"metadata": {"name": name, "uid": name}, "spec": {"type": "Limited", "limited": limited}}));
            let rule = json!({"subjects": [{"kind": "User", "user": {"name": name}}],
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}]});
            objects.put(GROUP, "flowschemas", json!({"metadata": {"name": name, "uid": format!("s-{name}")},
                "spec": {"matchingPrecedence": 1, "priorityLevelConfiguration": {"name": name}, "rules": [rule]}}));
        }
        let families = metrics::Families::default();
        FlowControl::new(Config { enabled: true, reading_max: 2, writing_max: 2 }, objects, &families)
    }

    fn info() -> RequestInfo {
        RequestInfo {
            verb: "get".into(),
            is_resource: true,
            resource: "pods".into(),
            namespace: "a".into(),
            ..RequestInfo::default()
        }
    }

    #[tokio::test]
    async fn full_levels_make_wait_or_turn_away() {
        let control = control(1);
        let (strict, small) = (UserInfo::new("strict", &[]), UserInfo::new("small", &[]));
        let info = info();
        let (ids, first) = control.admit(&strict, &info, 1).await;
        assert_eq!(ids.unwrap().level, "strict");
        let second = control.admit(&strict, &info, 1).await.1.unwrap();
        let refused = control.admit(&strict, &info, 1).await.1.err().unwrap();
        assert_eq!((refused.code, refused.reason.as_str()), (429, "TooManyRequests"));
        drop(first);
        assert!(control.admit(&strict, &info, 1).await.1.is_ok());
        drop(second);

        let held = [
            control.admit(&small, &info, 1).await.1.unwrap(),
            control.admit(&small, &info, 1).await.1.unwrap(),
        ];
        let waiting = tokio::spawn({
            let (control, small, info) = (control.clone(), small.clone(), info.clone());
            async move { control.admit(&small, &info, 1).await.1.is_ok() }
        });
        let level = control.state().levels["small"].clone();
        while level.queues.lock().waiting() == 0 {
            tokio::task::yield_now().await;
        }
        // One flow has one queue of one here, which is taken.
        assert!(control.admit(&small, &info, 1).await.1.is_err());
        drop(held);
        assert!(waiting.await.unwrap());
        assert_eq!(level.executing.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn who_leaves_the_queue_takes_no_seat() {
        let control = control(5);
        let small = UserInfo::new("small", &[]);
        let info = info();
        let held = [
            control.admit(&small, &info, 1).await.1.unwrap(),
            control.admit(&small, &info, 1).await.1.unwrap(),
        ];
        {
            let waiting = control.admit(&small, &info, 1);
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        let level = control.state().levels["small"].clone();
        assert_eq!(level.queues.lock().waiting(), 0);
        drop(held);
        assert_eq!(level.executing.load(Ordering::Relaxed), 0);
        let mut text = String::new();
        control.render(&mut text);
        assert!(
            text.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"small\"} 2"),
            "{text}"
        );
    }
}
