//! One task per pod: looks, plans, carries out, tells. The thinking is in `plan` and `status`; here is what
//! remembers between two looks.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use apimachinery::object::Encoded;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, ResourceRequirements};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::observed::{Observed, Observer};
use super::operations::{Scene, StartError};
use super::plan::{self, Action, Backoff, Knowledge};
use super::starts::Starts;
use super::status::{self, Verdict};
use super::{resize, spec};
use crate::kubelet::Kubelet;
use crate::pods::{PodHandle, Update};
use crate::probes::Probes;

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Containers are being stopped.
    Terminating,
    /// Containers and sandbox are stopped; volumes are being removed.
    Stopped,
    /// Nothing is left but records, until the API object goes.
    Cleaned,
}

enum Done {
    Sandbox(Result<(), String>),
    Reset,
    Volumes(Result<(), String>),
    Started {
        name: String,
        result: Result<(), StartError>,
    },
    Killed {
        name: String,
    },
    Resized {
        id: String,
        name: String,
        resources: ResourceRequirements,
        result: Result<(), String>,
    },
    Terminated(Result<(), String>),
    Cleaned(Result<(), String>),
    Removed(Result<(), String>),
    /// The pod as the API server answered.
    Status(Result<Option<Arc<Encoded>>, String>),
    Deleted(Result<(), String>),
    Quiet,
}

struct Worker {
    scene: Scene,
    phase: Phase,
    observer: Observer,
    seen: Arc<Observed>,
    probes: Probes,
    tasks: JoinSet<Done>,
    busy: HashSet<String>,
    sandbox_busy: bool,
    volumes_busy: bool,
    status_busy: bool,
    /// The step that ends the pod, or removes what is left, runs.
    ending_busy: bool,
    delete_busy: bool,
    removed: bool,
    deleted: bool,
    not_before: HashMap<String, Timestamp>,
    failures: u32,
    waiting: BTreeMap<String, (String, String)>,
    crash_loops: HashMap<String, Backoff>,
    verdict: Option<Verdict>,
    /// Containers that must be seen to have ended, with how often it was looked for.
    expected: Vec<String>,
    looks: u32,
    grace: i64,
    generation: Option<i64>,
    /// The final status reached the API.
    told: bool,
    /// The last status sent, and the revision of the pod it was sent to.
    sent: Option<(u64, serde_json::Value)>,
    retry_at: Option<Timestamp>,
    first: bool,
    /// The runtime has answered at least once.
    looked: bool,
    /// Labels and annotations that volumes show.
    shown: Option<Shown>,
    /// What running containers may use, by container id.
    applied: HashMap<String, ResourceRequirements>,
    resize: Option<(&'static str, &'static str, String)>,
}

type Shown = (Option<BTreeMap<String, String>>, Option<BTreeMap<String, String>>);

/// Runs until the pod is gone altogether, or the kubelet stops.
pub async fn run(kubelet: Arc<Kubelet>, handle: Arc<PodHandle>, stop: CancellationToken) {
    let Some(pod) = handle.decode() else {
        tracing::error!(pod = handle.name, namespace = handle.namespace, "a pod cannot be read");
        return;
    };
    let scene =
        Scene { kubelet, handle, pod: Arc::new(pod), volumes: Arc::default(), starts: Starts::default() };
    let mut worker = Worker {
        scene,
        phase: Phase::Running,
        observer: Observer::default(),
        seen: Arc::default(),
        probes: Probes::default(),
        tasks: JoinSet::new(),
        busy: HashSet::new(),
        sandbox_busy: false,
        volumes_busy: false,
        status_busy: false,
        ending_busy: false,
        delete_busy: false,
        removed: false,
        deleted: false,
        not_before: HashMap::new(),
        failures: 0,
        waiting: BTreeMap::new(),
        crash_loops: HashMap::new(),
        verdict: None,
        expected: vec![],
        looks: 0,
        grace: 0,
        generation: None,
        told: false,
        sent: None,
        retry_at: None,
        first: true,
        looked: false,
        shown: None,
        applied: HashMap::new(),
        resize: None,
    };
    let mut pace = Pace::new();
    loop {
        let Some(wake_at) = Box::pin(worker.step()).await else { return };
        // A mistake here must not take the processor from everybody else.
        pace.keep().await;
        let now = Timestamp::now();
        let pause = wake_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let handle = worker.scene.handle.clone();
        tokio::select! {
            _ = stop.cancelled() => return,
            _ = handle.woken() => {}
            Some(done) = worker.tasks.join_next() => worker.done(done),
            _ = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
        while let Some(done) = worker.tasks.try_join_next() {
            worker.done(done);
        }
    }
}

/// Lets a worker look at its pod often, but not without end.
struct Pace {
    since: tokio::time::Instant,
    looks: u32,
}

const LOOKS_PER_SECOND_MAX: u32 = 100;

impl Pace {
    fn new() -> Pace {
        Pace { since: tokio::time::Instant::now(), looks: 0 }
    }

    async fn keep(&mut self) {
        if self.since.elapsed() > Duration::from_secs(1) {
            *self = Pace::new();
        }
        self.looks += 1;
        if self.looks > LOOKS_PER_SECOND_MAX {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn sooner(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Worker {
    fn handle(&self) -> &Arc<PodHandle> {
        &self.scene.handle
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // A crash in a step must not leave its container busy for good.
                tracing::error!(pod = self.handle().name, %error, "a step of a pod failed");
                self.busy.clear();
                (self.sandbox_busy, self.volumes_busy, self.status_busy) = (false, false, false);
                (self.ending_busy, self.delete_busy) = (false, false);
                self.retry_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
                return;
            }
        };
        match done {
            Done::Sandbox(result) => {
                self.sandbox_busy = false;
                self.stir();
                match result {
                    Ok(()) => {
                        self.failures = 0;
                        self.not_before.remove("");
                    }
                    Err(error) => {
                        tracing::warn!(
                            pod = self.handle().name,
                            namespace = self.handle().namespace,
                            error,
                            "no sandbox"
                        );
                        // What volumes need is often only a moment late: an object just written, a permission just given.
                        let first = if error.starts_with("MountVolume") { 50i64 } else { 500 };
                        let delay = (first << self.failures.min(10)).min(30_000);
                        self.failures += 1;
                        self.not_before
                            .insert(String::new(), Timestamp::now() + SignedDuration::from_millis(delay));
                    }
                }
            }
            Done::Reset => {
                self.sandbox_busy = false;
                self.stir();
            }
            Done::Volumes(result) => {
                self.volumes_busy = false;
                if result.is_err() {
                    self.retry_at = Some(Timestamp::now() + SignedDuration::from_secs(5));
                    self.handle().objects_stirred.store(true, Ordering::Release);
                }
            }
            Done::Started { name, result } => {
                self.busy.remove(&name);
                self.stir();
                match result {
                    Ok(()) => {
                        self.waiting.remove(&name);
                        self.not_before.remove(&name);
                    }
                    Err(error) => {
                        tracing::debug!(pod = self.handle().name, container = name, ?error, "not started");
                        self.not_before.insert(name.clone(), error.retry_at);
                        self.waiting.insert(name, (error.reason.to_owned(), error.message));
                    }
                }
            }
            Done::Killed { name } => {
                self.busy.remove(&name);
                self.stir();
            }
            Done::Resized { id, name, resources, result } => {
                self.busy.remove(&name);
                match result {
                    Ok(()) => {
                        self.applied.insert(id, resources);
                        self.resize = None;
                    }
                    Err(error) => {
                        tracing::warn!(pod = self.handle().name, container = name, error, "resizing");
                        self.not_before.insert(name, Timestamp::now() + SignedDuration::from_secs(5));
                        self.resize = Some(("PodResizeInProgress", "Error", error));
                    }
                }
            }
            Done::Terminated(result) => {
                self.ending_busy = false;
                self.stir();
                if result.is_err() {
                    self.retry_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
                } else {
                    self.phase = Phase::Stopped;
                    self.handle().release_claims();
                }
            }
            Done::Cleaned(result) => {
                self.ending_busy = false;
                match result {
                    Ok(()) => self.phase = Phase::Cleaned,
                    Err(error) => {
                        tracing::warn!(pod = self.handle().name, error, "cleaning up");
                        self.retry_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
                    }
                }
            }
            Done::Removed(result) => {
                self.ending_busy = false;
                match result {
                    Ok(()) => self.removed = true,
                    Err(error) => {
                        tracing::warn!(pod = self.handle().name, error, "removing");
                        self.retry_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
                    }
                }
            }
            Done::Status(result) => {
                self.status_busy = false;
                match result {
                    Ok(Some(answer)) => self.handle().written(answer),
                    Ok(None) => self.told = true,
                    Err(error) => {
                        self.sent = None;
                        tracing::warn!(pod = self.handle().name, error, "telling a pod's status");
                        self.retry_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
                    }
                }
            }
            Done::Deleted(result) => {
                self.delete_busy = false;
                match result {
                    Ok(()) => self.deleted = true,
                    Err(error) => {
                        tracing::warn!(pod = self.handle().name, error, "deleting a pod");
                        self.retry_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
                    }
                }
            }
            Done::Quiet => self.stir(),
        }
    }

    fn stir(&self) {
        self.handle().stirred.store(true, Ordering::Release);
    }

    /// One look at the pod. Returns when to look again at the latest, or `None` once the pod is no more.
    async fn step(&mut self) -> Option<Option<Timestamp>> {
        let update = self.handle().take();
        match update.pod.decode::<Pod>() {
            Ok(pod) => self.scene.pod = Arc::new(pod),
            Err(error) => tracing::error!(pod = self.handle().name, %error, "a pod cannot be read"),
        }
        let pod = self.scene.pod.clone();
        if pod.metadata.generation != self.generation {
            // A changed pod is tried at once.
            self.generation = pod.metadata.generation;
            self.not_before.clear();
        }
        self.expected.extend(update.ended.iter().cloned());
        let mut wake = self.look().await;
        self.retry_at = self.retry_at.filter(|at| *at > Timestamp::now());
        wake = sooner(wake, self.retry_at);

        if !self.looked {
            // What runs already is not known; whatever is done now could be wrong.
            return Some(wake);
        }
        let old = self.old_status(&update);
        if self.first {
            self.adopt(&pod, &old);
        }
        self.judge(&pod, &update, &old);
        match self.phase {
            Phase::Running => wake = sooner(wake, self.keep_running(&pod)),
            Phase::Terminating => {
                if !self.ending_busy && self.retry_at.is_none() {
                    self.terminate();
                } else {
                    self.shorten(&pod);
                }
            }
            Phase::Stopped => {
                if !self.ending_busy && self.retry_at.is_none() {
                    let scene = self.scene.clone();
                    self.ending_busy = true;
                    self.tasks.spawn(async move { Done::Cleaned(scene.clean().await) });
                }
            }
            Phase::Cleaned => {}
        }
        let terminating = self.phase != Phase::Running;
        let host_ips = self.scene.kubelet.host_ips.clone();
        let (kubelet, handle) = (self.scene.kubelet.clone(), self.scene.handle.clone());
        self.probes.sync(&kubelet, &handle, &pod, &self.seen, &host_ips, terminating);
        self.tell(&pod, &update, &old);
        if self.phase == Phase::Cleaned && self.finish(&pod, &update) {
            return None;
        }
        self.first = false;
        Some(wake)
    }

    /// Asks the runtime, if there may be news.
    async fn look(&mut self) -> Option<Timestamp> {
        let stirred = self.handle().stirred.swap(false, Ordering::AcqRel);
        // News may have come between taking them and this.
        if !stirred && self.expected.is_empty() {
            return None;
        }
        let kubelet = self.scene.kubelet.clone();
        match self.observer.observe(&kubelet.cri, &self.scene.handle.uid).await {
            Ok(seen) => {
                self.looked = true;
                self.seen = Arc::new(seen);
                self.handle().set_observed(self.seen.clone());
                kubelet.pods.own(self.handle(), &self.seen);
            }
            Err(error) => {
                tracing::warn!(pod = self.handle().name, %error, "asking the runtime");
                self.stir();
                return Some(Timestamp::now() + SignedDuration::from_secs(1));
            }
        }
        // The runtime tells of an end a moment before its own records show it, even of one whose start they do not
        // show yet; under load the moment may be long.
        let seen = self.seen.clone();
        self.expected.retain(|id| {
            seen.by_id(id).is_some_and(|i| !i.exited())
                || seen.sandboxes.iter().any(|s| s.id == *id && s.ready)
        });
        if self.expected.is_empty() {
            self.looks = 0;
            return None;
        }
        let pause = (4i64 << self.looks.min(9)).min(1000);
        self.looks += 1;
        self.stir();
        Some(Timestamp::now() + SignedDuration::from_millis(pause))
    }

    fn old_status(&self, update: &Update) -> PodStatus {
        let source = if self.handle().is_static {
            update.mirror.as_ref().and_then(|m| m.decode::<Pod>().ok()).and_then(|p| p.status)
        } else {
            self.scene.pod.status.clone()
        };
        source.unwrap_or_default()
    }

    /// Takes over a pod that ran before this kubelet started.
    fn adopt(&mut self, pod: &Pod, old: &PodStatus) {
        for status in old.container_statuses.iter().chain(&old.init_container_statuses).flatten() {
            let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id);
            if let Some(id) = id
                && self.seen.by_id(id).is_some_and(|i| i.running())
            {
                self.probes.assume_ready(id, status.ready, status.started == Some(true));
            }
        }
        let ended = matches!(old.phase.as_deref(), Some("Failed" | "Succeeded"));
        if ended && self.seen.running().next().is_none() && self.seen.current().is_none() {
            self.phase = Phase::Stopped;
            self.grace = spec::grace_seconds(pod);
        }
    }

    /// Decides whether the pod has to end.
    fn judge(&mut self, pod: &Pod, update: &Update, old: &PodStatus) {
        if self.verdict.is_none() {
            self.verdict = update.verdict.as_ref().map(|(v, _)| v.clone());
        }
        if self.phase != Phase::Running {
            return;
        }
        if self.first && self.verdict.is_none() {
            self.admit(pod);
        }
        if self.first
            && self.seen.sandboxes.is_empty()
            && self.verdict.is_none()
            && let Some(name) = super::operations::forbidden_sysctl(pod)
        {
            let message = format!("Pod was rejected: forbidden sysctl: \"{name}\" not allowlisted");
            self.scene.kubelet.events.warning(
                &crate::events::pod_reference(pod),
                "SysctlForbidden",
                message.clone(),
            );
            self.verdict = Some(Verdict { reason: "SysctlForbidden".into(), message, disruption: false });
        }
        let now = Timestamp::now();
        let overdue = active_until(pod, old).is_some_and(|at| at <= now);
        let ended = matches!(old.phase.as_deref(), Some("Failed" | "Succeeded"));
        if overdue && self.verdict.is_none() && !ended {
            self.verdict = Some(Verdict {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
                disruption: false,
            });
        }
        if pod.metadata.deletion_timestamp.is_some() || update.gone || self.verdict.is_some() || ended {
            let ordered = update.verdict.as_ref().and_then(|(_, g)| *g);
            self.begin_end(ordered.unwrap_or_else(|| spec::grace_seconds(pod)));
        }
    }

    fn admit(&mut self, pod: &Pod) {
        let kubelet = &self.scene.kubelet;
        let runs = self.handle().is_static
            || !self.seen.sandboxes.is_empty()
            || pod.metadata.deletion_timestamp.is_some();
        let labels = kubelet
            .node
            .get("", &kubelet.config.node_name)
            .map(|node| node.attributes.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        let admitted = kubelet.pods.admit(self.handle(), pod, runs, &kubelet.allocatable(), labels.as_ref());
        if let Err(refusal) = admitted {
            tracing::info!(
                pod = self.handle().name,
                namespace = self.handle().namespace,
                refusal.message,
                "refused"
            );
            let reference = crate::events::pod_reference(pod);
            kubelet.events.warning(&reference, &refusal.reason, refusal.message.clone());
            self.verdict =
                Some(Verdict { reason: refusal.reason, message: refusal.message, disruption: false });
        }
    }

    fn begin_end(&mut self, grace: i64) {
        self.phase = Phase::Terminating;
        self.grace = grace;
        self.retry_at = None;
    }

    fn terminate(&mut self) {
        // Steps under way would start what is to be stopped.
        if !self.busy.is_empty() || self.sandbox_busy || self.volumes_busy {
            self.abort_steps();
        }
        let scene = self.scene.clone();
        let grace = self.grace;
        self.ending_busy = true;
        self.tasks.spawn(async move {
            // What an interrupted step left behind is part of the pod as well.
            scene.starts.ended().await;
            let mut observer = Observer::default();
            match observer.observe(&scene.kubelet.cri, &scene.handle.uid).await {
                Ok(seen) => Done::Terminated(scene.terminate(&seen, grace).await),
                Err(error) => Done::Terminated(Err(error.to_string())),
            }
        });
    }

    fn abort_steps(&mut self) {
        self.tasks.abort_all();
        self.tasks = JoinSet::new();
        self.busy.clear();
        (self.sandbox_busy, self.volumes_busy, self.status_busy) = (false, false, false);
    }

    /// A pod that is ending is asked to end sooner.
    fn shorten(&mut self, pod: &Pod) {
        let wanted = spec::grace_seconds(pod);
        if pod.metadata.deletion_grace_period_seconds.is_none() || wanted >= self.grace {
            return;
        }
        self.grace = wanted;
        for instance in self.seen.running() {
            let (scene, id) = (self.scene.clone(), instance.id.clone());
            self.tasks.spawn(async move {
                let _ = scene.kubelet.cri.stop_container(&id, wanted).await;
                Done::Quiet
            });
        }
    }

    /// Plans and carries out; returns when to plan again.
    fn keep_running(&mut self, pod: &Pod) -> Option<Timestamp> {
        let now = Timestamp::now();
        let unhealthy = self.probes.unhealthy(pod, &self.seen);
        let (probes, busy) = (&self.probes, &self.busy);
        let started =
            |c: &Container, i: &super::observed::Instance| !busy.contains(&c.name) && probes.started(c, i);
        let plan = plan::plan(
            pod,
            &self.seen,
            &Knowledge {
                now,
                busy: &self.busy,
                sandbox_busy: self.sandbox_busy,
                not_before: &self.not_before,
                crash_loops: &self.crash_loops,
                started: &started,
                unhealthy: &unhealthy,
            },
        );
        self.crash_loops.extend(plan.crash_loops);
        for (name, why) in plan.waiting {
            let news = self.waiting.get(&name) != Some(&why);
            if news && why.0 == "CrashLoopBackOff" {
                let kind = spec::find(pod, &name).map_or(spec::Kind::Main, |(k, _)| k);
                let reference = crate::events::container_reference(pod, kind, &name);
                let text = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    spec::name(pod),
                    spec::namespace(pod),
                    spec::uid(pod)
                );
                self.scene.kubelet.events.warning(&reference, "BackOff", text);
            }
            self.waiting.insert(name, why);
        }
        for action in plan.actions {
            self.carry_out(action);
        }
        if self.phase == Phase::Running {
            self.resize(pod, now);
        }
        if self.phase == Phase::Running
            && self.seen.current().is_some()
            && !self.volumes_busy
            && !self.sandbox_busy
        {
            self.refresh_volumes(now);
        }
        let mut wake = plan.wake_at;
        if let Some(at) = active_until(pod, pod.status.as_ref().unwrap_or(&PodStatus::default())) {
            wake = sooner(wake, Some(at));
        }
        if let Ok(volumes) = self.scene.volumes.try_lock() {
            wake = sooner(wake, volumes.refresh_at());
        }
        wake
    }

    /// Gives running containers the resources their spec has come to ask for.
    fn resize(&mut self, pod: &Pod, now: Timestamp) {
        let seen = self.seen.clone();
        let mut differing = Vec::new();
        for instance in seen.running() {
            let Some((kind, container)) = spec::find(pod, &instance.name) else { continue };
            let wanted = container.resources.clone().unwrap_or_default();
            let told = pod
                .status
                .iter()
                .flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten());
            let own = told.into_iter().find(|s| {
                s.container_id.as_deref().is_some_and(|id| id.ends_with(&instance.id))
                    && s.resources.is_some()
            });
            let applied = self
                .applied
                .entry(instance.id.clone())
                .or_insert_with(|| own.and_then(|s| s.resources.clone()).unwrap_or_else(|| wanted.clone()));
            if kind != spec::Kind::Ephemeral && resize::differs(applied, &wanted) {
                differing.push((instance.clone(), container, applied.clone(), wanted));
            }
        }
        self.applied.retain(|id, _| seen.by_id(id).is_some());
        if differing.is_empty() {
            self.resize = None;
            return;
        }
        if let Some(message) = resize::infeasible(pod, &self.scene.kubelet.allocatable()) {
            self.resize = Some(("PodResizePending", "Infeasible", message));
            return;
        }
        for (instance, container, old, wanted) in differing {
            let name = container.name.clone();
            if self.busy.contains(&name) || self.not_before.get(&name).is_some_and(|at| *at > now) {
                continue;
            }
            self.resize = Some(("PodResizeInProgress", "", String::new()));
            self.busy.insert(name.clone());
            let scene = self.scene.clone();
            if resize::restarts(&container, &old, &wanted) {
                self.tasks.spawn(async move {
                    let text = format!("Container {name} resize requires restart");
                    scene.kill(&instance, &text, None, None).await;
                    Done::Killed { name }
                });
                continue;
            }
            self.tasks.spawn(async move {
                let result = scene.resize(&instance.id, &container).await;
                Done::Resized { id: instance.id.clone(), name, resources: wanted, result }
            });
        }
    }

    fn refresh_volumes(&mut self, now: Timestamp) {
        let due = self.scene.volumes.try_lock().is_ok_and(|v| {
            v.refresh_at().is_some_and(|at| at <= now)
                || v.mounted().len() < spec::spec(&self.scene.pod).volumes.as_ref().map_or(0, Vec::len)
        });
        let stirred = self.handle().objects_stirred.swap(false, Ordering::AcqRel);
        // What the pod says of itself may have changed with the pod.
        let meta = &self.scene.pod.metadata;
        let shown = (meta.labels.clone(), meta.annotations.clone());
        let renamed = self.shown.as_ref() != Some(&shown);
        self.shown = Some(shown);
        let own = renamed
            && spec::spec(&self.scene.pod).volumes.iter().flatten().any(|v| {
                v.downward_api.is_some()
                    || v.projected
                        .as_ref()
                        .is_some_and(|p| p.sources.iter().flatten().any(|s| s.downward_api.is_some()))
            });
        if self.retry_at.is_some() || !(due || stirred || own) {
            return;
        }
        self.volumes_busy = true;
        let (scene, seen) = (self.scene.clone(), self.seen.clone());
        self.tasks.spawn(async move { Done::Volumes(scene.sync_volumes(&seen).await) });
    }

    fn carry_out(&mut self, action: Action) {
        let scene = self.scene.clone();
        let seen = self.seen.clone();
        match action {
            Action::CreateSandbox { attempt } => {
                self.sandbox_busy = true;
                self.tasks.spawn(async move { Done::Sandbox(scene.create_sandbox(attempt, &seen).await) });
            }
            Action::ResetSandbox => {
                self.sandbox_busy = true;
                self.tasks.spawn(async move {
                    scene.reset(&seen).await;
                    Done::Reset
                });
            }
            Action::Start { kind, name, restarts } => {
                self.busy.insert(name.clone());
                self.tasks.spawn(async move {
                    let result = Box::pin(scene.start(kind, &name, restarts, &seen)).await;
                    Done::Started { name, result }
                });
            }
            Action::Kill { id, name, message, grace } => {
                self.busy.insert(name.clone());
                self.tasks.spawn(async move {
                    if let Some(instance) = seen.by_id(&id) {
                        scene.kill(instance, &message, grace, None).await;
                    }
                    Done::Killed { name }
                });
            }
            Action::Finish => {
                if self.busy.is_empty() {
                    let grace = spec::grace_seconds(&self.scene.pod);
                    self.begin_end(grace);
                    self.terminate();
                }
            }
            Action::RemoveInstance { id } => {
                self.tasks.spawn(async move {
                    if let Some(instance) = seen.by_id(&id) {
                        let message = super::observed::message_host_path(&instance.log_path);
                        let _ = tokio::fs::remove_file(message).await;
                        let _ = tokio::fs::remove_file(&instance.log_path).await;
                    }
                    let _ = scene.kubelet.cri.remove_container(&id).await;
                    Done::Quiet
                });
            }
            Action::RemoveSandbox { id } => {
                self.tasks.spawn(async move {
                    let _ = scene.kubelet.cri.stop_sandbox(&id).await;
                    let _ = scene.kubelet.cri.remove_sandbox(&id).await;
                    Done::Quiet
                });
            }
        }
    }

    /// The last things, once a pod has ended. True when it is no more.
    fn finish(&mut self, pod: &Pod, update: &Update) -> bool {
        if update.gone {
            if self.removed {
                self.scene.kubelet.images.forget(&self.handle().uid);
                return true;
            }
            if !self.ending_busy && self.retry_at.is_none() {
                self.ending_busy = true;
                let scene = self.scene.clone();
                self.tasks.spawn(async move { Done::Removed(scene.remove().await) });
            }
            return false;
        }
        let deleting = pod.metadata.deletion_timestamp.is_some() && !self.handle().is_static;
        if deleting && self.told && !self.deleted && !self.delete_busy && self.retry_at.is_none() {
            self.delete_busy = true;
            let scene = self.scene.clone();
            self.tasks.spawn(async move { Done::Deleted(scene.kubelet.delete_pod(&scene.pod).await) });
        }
        false
    }

    /// Computes the status and sends what differs from what the API has.
    fn tell(&mut self, pod: &Pod, update: &Update, old: &PodStatus) {
        let kubelet = self.scene.kubelet.clone();
        let (probes, busy) = (&self.probes, &self.busy);
        let hooked = |c: &Container| {
            busy.contains(&c.name) && c.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some())
        };
        let started = |c: &Container, i: &super::observed::Instance| !hooked(c) && probes.started(c, i);
        let ready = |c: &Container, i: &super::observed::Instance| !hooked(c) && probes.ready(c, i);
        let applied = &self.applied;
        let resources = |c: &Container, i: &super::observed::Instance| {
            applied.get(&i.id).cloned().or_else(|| c.resources.clone())
        };
        let new = status::generate(&status::Inputs {
            resources: &resources,
            resize: self.resize.as_ref(),
            pod,
            old,
            seen: &self.seen,
            now: Timestamp::now(),
            waiting: &self.waiting,
            ready: &ready,
            started: &started,
            host_ips: &kubelet.host_ips,
            runtime: &kubelet.runtime_name,
            terminating: self.phase != Phase::Running,
            verdict: self.verdict.as_ref(),
        });
        let (Ok(new), Ok(old)) = (serde_json::to_value(&new), serde_json::to_value(old)) else { return };
        let new = Arc::new(new);
        let before = self.handle().set_status(new.clone());
        kubelet.terminations.count(before.as_deref().unwrap_or(&old), &new);
        if self.status_busy || update.gone || self.retry_at.is_some() {
            return;
        }
        let target = if self.handle().is_static { update.mirror.clone() } else { Some(update.pod.clone()) };
        let Some(target) = target else {
            self.told = true;
            return;
        };
        let Some(patch) = crate::status_patch::difference(&old, &new) else {
            self.told = self.phase == Phase::Cleaned;
            return;
        };
        let sending = (target.resource_version, patch);
        if self.sent.as_ref() == Some(&sending) {
            // The API has taken this and shows it otherwise; sending it again would change nothing.
            self.told = self.phase == Phase::Cleaned;
            return;
        }
        let patch = sending.1.clone();
        self.sent = Some(sending);
        self.told = false;
        self.status_busy = true;
        let (namespace, name, uid) =
            (target.namespace().to_owned(), target.name().to_owned(), target.uid().to_owned());
        self.tasks
            .spawn(async move { Done::Status(kubelet.patch_status(&namespace, &name, &uid, patch).await) });
    }
}

fn active_until(pod: &Pod, status: &PodStatus) -> Option<Timestamp> {
    let seconds = spec::spec(pod).active_deadline_seconds?;
    let start = status.start_time.as_ref()?.0;
    Some(start + SignedDuration::from_secs(seconds))
}
