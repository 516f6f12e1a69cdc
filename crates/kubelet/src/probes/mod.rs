//! Liveness, readiness and startup probes: a task with a timer for each.

mod grpc;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Probe};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::kubelet::Kubelet;
use crate::net;
use crate::pod::observed::{Instance, Observed};
use crate::pod::plan::{Unhealthy, timestamp};
use crate::pod::{lifecycle, spec};
use crate::pods::PodHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// By container id and kind of probe: what it last found out, success or failure past its threshold.
type Results = Arc<Mutex<HashMap<(String, Kind), (bool, String)>>>;

/// The probes of one pod.
#[derive(Default)]
pub struct Probes {
    results: Results,
    running: HashMap<(String, Kind), tokio::task::AbortHandle>,
    tasks: JoinSet<()>,
}

impl Probes {
    fn result(&self, id: &str, kind: Kind) -> Option<bool> {
        self.results.lock().get(&(id.to_owned(), kind)).map(|r| r.0)
    }

    pub fn started(&self, container: &Container, instance: &Instance) -> bool {
        container.startup_probe.is_none() || self.result(&instance.id, Kind::Startup) == Some(true)
    }

    pub fn ready(&self, container: &Container, instance: &Instance) -> bool {
        container.readiness_probe.is_none() || self.result(&instance.id, Kind::Readiness) == Some(true)
    }

    /// Takes over what is known of a container from before this kubelet started.
    pub fn assume_ready(&self, id: &str, ready: bool, started: bool) {
        let mut results = self.results.lock();
        if ready {
            results.entry((id.to_owned(), Kind::Readiness)).or_insert((true, String::new()));
        }
        if started {
            results.entry((id.to_owned(), Kind::Startup)).or_insert((true, String::new()));
        }
    }

    /// Running containers whose liveness or startup probe has failed for good.
    pub fn unhealthy(&self, pod: &Pod, seen: &Observed) -> HashMap<String, Unhealthy> {
        let results = self.results.lock();
        let mut out = HashMap::new();
        for instance in seen.running() {
            let Some((_, container)) = spec::find(pod, &instance.name) else { continue };
            for (kind, word) in [(Kind::Liveness, "liveness"), (Kind::Startup, "startup")] {
                let Some(probe) = kind.of(&container) else { continue };
                if let Some((false, _)) = results.get(&(instance.id.clone(), kind)) {
                    out.insert(
                        instance.id.clone(),
                        Unhealthy {
                            message: format!(
                                "Container {} failed {word} probe, will be restarted",
                                instance.name
                            ),
                            grace: probe.termination_grace_period_seconds,
                        },
                    );
                }
            }
        }
        out
    }

    /// Starts and ends probes so that they fit what runs. In a pod that ends only readiness is still asked for.
    pub fn sync(
        &mut self,
        kubelet: &Arc<Kubelet>,
        handle: &Arc<PodHandle>,
        pod: &Pod,
        seen: &Observed,
        host_ips: &[String],
        terminating: bool,
    ) {
        let mut wanted: HashSet<(String, Kind)> = HashSet::new();
        for instance in seen.running() {
            let Some((_, container)) = spec::find(pod, &instance.name) else { continue };
            let started = self.started(&container, instance);
            for kind in [Kind::Startup, Kind::Readiness, Kind::Liveness] {
                let due = match kind {
                    Kind::Startup => !started && !terminating,
                    Kind::Liveness => started && !terminating,
                    Kind::Readiness => started,
                };
                let Some(probe) = kind.of(&container).filter(|_| due) else { continue };
                let key = (instance.id.clone(), kind);
                wanted.insert(key.clone());
                if self.running.contains_key(&key) {
                    continue;
                }
                let ips = if spec::host_network(pod) { host_ips } else { seen.ips() };
                let task = Task {
                    kubelet: kubelet.clone(),
                    handle: handle.clone(),
                    reference: crate::events::container_reference(pod, spec::Kind::Main, &container.name),
                    pod_ip: ips.first().cloned(),
                    id: instance.id.clone(),
                    started_at: timestamp(instance.started_at),
                    results: self.results.clone(),
                    probe: probe.clone(),
                    container: container.clone(),
                    kind,
                };
                self.running.insert(key, self.tasks.spawn(task.run()));
            }
        }
        self.running.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        while self.tasks.try_join_next().is_some() {}
        self.results.lock().retain(|(id, _), _| seen.by_id(id).is_some());
    }
}

struct Task {
    kubelet: Arc<Kubelet>,
    handle: Arc<PodHandle>,
    reference: ObjectReference,
    pod_ip: Option<String>,
    id: String,
    started_at: Timestamp,
    results: Results,
    probe: Probe,
    container: Container,
    kind: Kind,
}

enum Outcome {
    Success,
    Warning(String),
    Failure(String),
    /// The probe itself could not be made.
    Unknown(String),
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

impl Task {
    async fn run(self) {
        let delay = Duration::from_secs(
            self.probe.initial_delay_seconds.and_then(|d| u64::try_from(d).ok()).unwrap_or(0),
        );
        let due = self.started_at + delay;
        if let Ok(wait) = Duration::try_from(due.duration_since(Timestamp::now())) {
            tokio::time::sleep(wait).await;
        }
        let period = seconds(self.probe.period_seconds, 10);
        let successes_needed = self.probe.success_threshold.unwrap_or(1).max(1);
        let failures_needed = self.probe.failure_threshold.unwrap_or(3).max(1);
        let (mut successes, mut failures) = (0, 0);
        let mut timer = tokio::time::interval(period);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Before the first success a readiness probe may come faster than its period: a pod is waited for.
        loop {
            timer.tick().await;
            let (ok, message) = match self.probe().await {
                Outcome::Success => (true, String::new()),
                Outcome::Warning(text) => {
                    self.kubelet.events.warning(
                        &self.reference,
                        "ProbeWarning",
                        format!("{} probe warning: {text}", self.kind.name()),
                    );
                    (true, String::new())
                }
                Outcome::Failure(text) => {
                    self.unhealthy(format!("{} probe failed: {text}", self.kind.name()));
                    (false, text)
                }
                Outcome::Unknown(text) => {
                    self.unhealthy(format!(
                        "{} probe errored and resulted in unknown state: {text}",
                        self.kind.name()
                    ));
                    continue;
                }
            };
            if ok {
                (successes, failures) = (successes + 1, 0);
            } else {
                (successes, failures) = (0, failures + 1);
            }
            let verdict = if ok && successes >= successes_needed {
                true
            } else if !ok && failures >= failures_needed {
                false
            } else {
                continue;
            };
            let changed = {
                let mut results = self.results.lock();
                let key = (self.id.clone(), self.kind);
                let old = results.insert(key, (verdict, message));
                old.map(|o| o.0) != Some(verdict)
            };
            if changed {
                self.handle.notify();
            }
            match (self.kind, verdict) {
                // A started container has started for good, and an unhealthy one will be killed.
                (Kind::Startup, _) | (Kind::Liveness, false) => return,
                _ => {}
            }
        }
    }

    fn unhealthy(&self, message: String) {
        self.kubelet.events.warning(&self.reference, "Unhealthy", message);
    }

    async fn probe(&self) -> Outcome {
        let timeout = seconds(self.probe.timeout_seconds, 1);
        if let Some(exec) = &self.probe.exec {
            let command =
                exec.command.iter().flatten().map(|a| crate::pod::env::expand(a, |_| None)).collect();
            return match self.kubelet.cri.exec_sync(&self.id, command, Some(timeout)).await {
                Ok(answer) if answer.exit_code == 0 => Outcome::Success,
                Ok(answer) => {
                    let mut output = answer.stdout;
                    output.extend(answer.stderr);
                    output.truncate(10 << 10);
                    Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
                }
                Err(crate::cri::CriError::Timeout(_)) => Outcome::Failure(format!(
                    "command timed out: {:?} timed out after {}s",
                    exec.command.as_deref().unwrap_or_default().join(" "),
                    timeout.as_secs()
                )),
                Err(error) => {
                    let text = error.to_string();
                    if text.contains("timed out") || text.contains("timeout") {
                        Outcome::Failure(text)
                    } else {
                        Outcome::Unknown(text)
                    }
                }
            };
        }
        let ip = self.pod_ip.as_deref();
        if let Some(action) = &self.probe.http_get {
            let target = match lifecycle::http_target(action, &self.container, ip, "kube-probe/1.36") {
                Ok(target) => target,
                Err(error) => return Outcome::Unknown(error),
            };
            let shown = format!(
                "{}://{}{}",
                if target.https { "https" } else { "http" },
                net::host_port(&target.host, target.port),
                target.path
            );
            return match net::get(&target, timeout).await {
                Ok(answer) if answer.redirected_away => {
                    Outcome::Warning(format!("Probe terminated redirects, Response body: {}", answer.body))
                }
                Ok(answer) if (200..400).contains(&answer.status) => Outcome::Success,
                Ok(answer) => {
                    Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.status))
                }
                Err(error) => Outcome::Failure(format!("Get \"{shown}\": {error}")),
            };
        }
        if let Some(action) = &self.probe.tcp_socket {
            let host = action.host.clone().filter(|h| !h.is_empty()).or_else(|| self.pod_ip.clone());
            let (Some(host), Ok(port)) = (host, lifecycle::port(&action.port, &self.container)) else {
                return Outcome::Unknown("no address or port to connect to".into());
            };
            return match net::connect(&host, port, timeout).await {
                Ok(()) => Outcome::Success,
                Err(error) => Outcome::Failure(error),
            };
        }
        if let Some(action) = &self.probe.grpc {
            let (Some(host), Ok(port)) = (ip, u16::try_from(action.port)) else {
                return Outcome::Unknown("no address or port to connect to".into());
            };
            let service = action.service.clone().unwrap_or_default();
            return match grpc::check(host, port, service, timeout).await {
                Ok(()) => Outcome::Success,
                Err(error) => Outcome::Failure(error),
            };
        }
        Outcome::Unknown(format!("missing probe handler for {}", self.container.name))
    }
}
