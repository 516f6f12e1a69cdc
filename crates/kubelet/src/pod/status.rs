//! The status of a pod as the API tells it: a pure function of spec, runtime and what the worker knows.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus,
    ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observed::{Instance, Observed};
use super::plan::timestamp;
use super::spec::{self, Kind};
use crate::cri::api::container_state;

/// A verdict from outside the containers, such as eviction or the active deadline.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// Also said as a condition `DisruptionTarget`.
    pub disruption: bool,
}

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub old: &'a PodStatus,
    pub seen: &'a Observed,
    pub now: Timestamp,
    /// Why containers that ought to run do not.
    pub waiting: &'a BTreeMap<String, (String, String)>,
    pub ready: &'a dyn Fn(&Container, &Instance) -> bool,
    pub started: &'a dyn Fn(&Container, &Instance) -> bool,
    pub host_ips: &'a [String],
    /// What a container may use at present, which a resize changes.
    pub resources: &'a dyn Fn(&Container, &Instance) -> Option<ResourceRequirements>,
    /// A resize that goes on or waits: type, reason and message of the condition.
    pub resize: Option<&'a (&'static str, &'static str, String)>,
    /// `containerd`, as container ids are prefixed.
    pub runtime: &'a str,
    /// Containers are not started any more.
    pub terminating: bool,
    pub verdict: Option<&'a Verdict>,
}

pub fn generate(i: &Inputs<'_>) -> PodStatus {
    let pod = i.pod;
    let has_init = !spec::init_containers(pod).is_empty();
    let mut init = container_statuses(i, Kind::Init, spec::init_containers(pod), has_init);
    let mut main = container_statuses(i, Kind::Main, &spec::spec(pod).containers, has_init);
    let ephemeral: Vec<Container> = spec::ephemeral_containers(pod).iter().map(spec::as_container).collect();
    let ephemeral = container_statuses(i, Kind::Ephemeral, &ephemeral, false);

    if i.verdict.is_some() && i.seen.instances.is_empty() && i.old.container_statuses.is_none() {
        // A pod that was refused has no containers to tell of.
        init.clear();
        main.clear();
    }
    let running = |s: &ContainerStatus| s.state.as_ref().is_some_and(|s| s.running.is_some());
    let any_running = init.iter().chain(&main).any(running);
    let old_phase = i.old.phase.as_deref().unwrap_or("Pending");
    let mut phase = phase(pod, &init, &main, i.terminating);
    let (mut reason, mut message) = (None, None);
    if let Some(verdict) = i.verdict {
        phase = "Failed";
        reason = Some(verdict.reason.clone());
        message = Some(verdict.message.clone());
    }
    if matches!(old_phase, "Failed" | "Succeeded") {
        // What has ended has ended, and for the same reason.
        phase = if old_phase == "Failed" { "Failed" } else { "Succeeded" };
        if reason.is_none() {
            (reason, message) = (i.old.reason.clone(), i.old.message.clone());
        }
    } else if matches!(phase, "Failed" | "Succeeded") && any_running {
        // The end is told once it is true of every container.
        phase = if old_phase == "Pending" { "Pending" } else { "Running" };
        (reason, message) = (i.old.reason.clone(), i.old.message.clone());
    }

    let mut conditions = Conditions { inputs: i, list: vec![] };
    conditions.put("PodReadyToStartContainers", i.seen.current().is_some(), "", String::new());
    let (status, why, text) = initialized(pod, &init, &main, phase);
    conditions.put("Initialized", status, why, text);
    let ready = containers_ready(pod, &init, &main, phase);
    let gates = readiness_gates(pod, i.old);
    if !ready.0 || gates.is_empty() {
        conditions.put("Ready", ready.0, ready.1, ready.2.clone());
    } else {
        conditions.put("Ready", false, "ReadinessGatesNotReady", gates.join(", "));
    }
    conditions.put("ContainersReady", ready.0, ready.1, ready.2);
    conditions.put("PodScheduled", true, "", String::new());
    if i.verdict.is_some_and(|v| v.disruption) {
        let text = i.verdict.map(|v| v.message.clone()).unwrap_or_default();
        conditions.put("DisruptionTarget", true, "TerminationByKubelet", text);
    }
    if let Some((kind, reason, message)) = i.resize {
        conditions.put(kind, true, reason, message.clone());
    }
    let mut list = conditions.list;
    for foreign in i.old.conditions.as_deref().unwrap_or_default() {
        let over = matches!(foreign.type_.as_str(), "PodResizePending" | "PodResizeInProgress");
        if !over && !list.iter().any(|c| c.type_ == foreign.type_) {
            list.push(foreign.clone());
        }
    }

    let ended = matches!(phase, "Failed" | "Succeeded");
    let ips: Vec<String> = if spec::host_network(pod) {
        i.host_ips.to_vec()
    } else if i.seen.ips().is_empty() && (ended || i.terminating) {
        i.old.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect()
    } else {
        i.seen.ips().to_vec()
    };
    let some = |v: Vec<ContainerStatus>| Some(v).filter(|v| !v.is_empty());
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(list),
        container_statuses: some(main),
        init_container_statuses: some(init),
        ephemeral_container_statuses: some(ephemeral),
        host_ip: i.host_ips.first().cloned(),
        host_ips: Some(i.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect::<Vec<_>>())
            .filter(|v| !v.is_empty()),
        pod_ip: ips.first().cloned(),
        pod_ips: Some(ips.into_iter().map(|ip| PodIP { ip }).collect::<Vec<_>>()).filter(|v| !v.is_empty()),
        start_time: i.old.start_time.clone().or(Some(Time(whole(i.now)))),
        qos_class: Some(spec::qos(pod).name().to_owned()),
        observed_generation: pod.metadata.generation,
        resources: i.old.resources.clone(),
        allocated_resources: i.old.allocated_resources.clone(),
        nominated_node_name: i.old.nominated_node_name.clone(),
        resize: i.old.resize.clone(),
        resource_claim_statuses: i.old.resource_claim_statuses.clone(),
        extended_resource_claim_status: i.old.extended_resource_claim_status.clone(),
        node_allocatable_resource_claim_statuses: i.old.node_allocatable_resource_claim_statuses.clone(),
    }
}

/// Whole seconds: the API keeps no more, and more would look like a change.
fn whole(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

struct Conditions<'a> {
    inputs: &'a Inputs<'a>,
    list: Vec<PodCondition>,
}

impl Conditions<'_> {
    fn put(&mut self, type_: &str, status: bool, reason: &str, message: String) {
        let status = if status { "True" } else { "False" };
        let old = self.inputs.old.conditions.iter().flatten().find(|c| c.type_ == type_);
        let since = match old {
            Some(old) if old.status == status => old.last_transition_time.clone(),
            _ => None,
        };
        self.list.push(PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
            message: Some(message).filter(|m| !m.is_empty()),
            last_transition_time: since.or(Some(Time(whole(self.inputs.now)))),
            last_probe_time: None,
            observed_generation: self.inputs.pod.metadata.generation,
        });
    }
}

fn status_of<'a>(list: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    list.iter().find(|s| s.name == name)
}

fn bracketed(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn initialized(
    pod: &Pod,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    phase: &str,
) -> (bool, &'static str, String) {
    if phase == "Succeeded" {
        return (true, "PodCompleted", String::new());
    }
    let begun = main.iter().any(|s| {
        s.started == Some(true)
            || s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
    });
    if begun {
        return (true, "", String::new());
    }
    let incomplete: Vec<&str> = spec::init_containers(pod)
        .iter()
        .filter(|c| {
            status_of(init, &c.name)
                .is_none_or(|s| if spec::is_sidecar(c) { s.started != Some(true) } else { !s.ready })
        })
        .map(|c| c.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return (true, "", String::new());
    }
    (
        false,
        "ContainersNotInitialized",
        format!("containers with incomplete status: {}", bracketed(&incomplete)),
    )
}

fn containers_ready(
    pod: &Pod,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    phase: &str,
) -> (bool, &'static str, String) {
    match phase {
        "Succeeded" => return (false, "PodCompleted", String::new()),
        "Failed" => return (false, "PodFailed", String::new()),
        _ => {}
    }
    let sidecars = spec::init_containers(pod)
        .iter()
        .filter(|c| spec::is_sidecar(c))
        .filter(|c| status_of(init, &c.name).is_none_or(|s| !s.ready));
    let mains =
        spec::spec(pod).containers.iter().filter(|c| status_of(main, &c.name).is_none_or(|s| !s.ready));
    let unready: Vec<&str> = sidecars.chain(mains).map(|c| c.name.as_str()).collect();
    if unready.is_empty() {
        return (true, "", String::new());
    }
    (false, "ContainersNotReady", format!("containers with unready status: {}", bracketed(&unready)))
}

fn readiness_gates(pod: &Pod, old: &PodStatus) -> Vec<String> {
    let mut complaints = Vec::new();
    for gate in spec::spec(pod).readiness_gates.as_deref().unwrap_or_default() {
        let kind = &gate.condition_type;
        match old.conditions.iter().flatten().find(|c| c.type_ == *kind) {
            None => complaints
                .push(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => complaints
                .push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status)),
            _ => {}
        }
    }
    complaints
}

/// The last exit code of a container that is not running.
fn ended(status: &ContainerStatus) -> Option<i32> {
    let of = |s: &Option<ContainerState>| s.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
    match status.state.as_ref() {
        Some(s) if s.terminated.is_some() => of(&status.state),
        Some(s) if s.waiting.is_some() => of(&status.last_state),
        _ => None,
    }
}

fn phase(pod: &Pod, init: &[ContainerStatus], main: &[ContainerStatus], terminating: bool) -> &'static str {
    let running = |s: &ContainerStatus| s.state.as_ref().is_some_and(|s| s.running.is_some());
    let begun = main.iter().any(|s| running(s) || ended(s).is_some());
    let mut initializing = false;
    for container in spec::init_containers(pod) {
        let Some(status) = status_of(init, &container.name) else { continue };
        if spec::is_sidecar(container) {
            initializing |= status.started != Some(true) && ended(status).is_none();
        } else {
            match ended(status) {
                Some(0) => {}
                Some(code) if !spec::restarts(pod, container, code) => return "Failed",
                Some(_) => initializing = true,
                None => initializing = true,
            }
        }
    }
    if initializing && !begun {
        return if terminating { terminal_before_start(pod) } else { "Pending" };
    }
    let (mut up, mut waiting, mut stopped, mut succeeded, mut again) = (0, 0, 0, 0, 0);
    for container in &spec::spec(pod).containers {
        let Some(status) = status_of(main, &container.name) else { continue };
        if running(status) {
            up += 1;
        } else if let Some(code) = ended(status) {
            stopped += 1;
            succeeded += usize::from(code == 0);
            again += usize::from(spec::restarts(pod, container, code));
        } else {
            waiting += 1;
        }
    }
    match (waiting, up, stopped) {
        (1.., 0, _) if terminating => terminal_before_start(pod),
        (1.., ..) => "Pending",
        (_, 1.., _) => "Running",
        (_, 0, 1..) if terminating || again == 0 => {
            if stopped == succeeded {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        (_, 0, 1..) => "Running",
        _ => "Pending",
    }
}

/// A pod that was ended before its containers ran has failed, if it will not be gone anyway.
fn terminal_before_start(_pod: &Pod) -> &'static str {
    "Failed"
}

fn container_statuses(
    i: &Inputs<'_>,
    kind: Kind,
    containers: &[Container],
    has_init: bool,
) -> Vec<ContainerStatus> {
    let old = match kind {
        Kind::Init => &i.old.init_container_statuses,
        Kind::Main => &i.old.container_statuses,
        Kind::Ephemeral => &i.old.ephemeral_container_statuses,
    };
    let old = old.as_deref().unwrap_or_default();
    let mains_begun = spec::spec(i.pod).containers.iter().any(|c| i.seen.newest(&c.name).is_some());
    let mut out: Vec<ContainerStatus> = containers
        .iter()
        .map(|c| {
            let mut status = match i.seen.newest(&c.name) {
                Some(instance) => of_instance(i, kind, c, instance, status_of(old, &c.name)),
                None => of_absent(i, kind, c, status_of(old, &c.name), has_init, mains_begun),
            };
            status.volume_mounts = volume_mounts(c);
            status
        })
        .collect();
    if kind != Kind::Init {
        out.sort_by(|a, b| a.name.cmp(&b.name));
    }
    out
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<_> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| {
            let read_only = m.read_only.unwrap_or(false);
            VolumeMountStatus {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| "Disabled".to_owned()),
                volume_status: None,
            }
        })
        .collect();
    Some(mounts).filter(|m| !m.is_empty())
}

/// A container of which the runtime holds no run.
fn of_absent(
    i: &Inputs<'_>,
    kind: Kind,
    container: &Container,
    old: Option<&ContainerStatus>,
    has_init: bool,
    mains_begun: bool,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        ..ContainerStatus::default()
    };
    let was = old.and_then(|o| o.state.as_ref());
    if let (Some(old), Some(state)) = (old, was)
        && state.terminated.is_some()
    {
        // The runtime forgot a run whose end is known.
        return ContainerStatus {
            started: Some(false),
            ready: old.ready && kind == Kind::Init,
            ..old.clone()
        };
    }
    if let Some(old) = old {
        status.restart_count = old.restart_count;
        status.last_state = old.last_state.clone();
    }
    if kind == Kind::Init && !spec::is_sidecar(container) && mains_begun {
        status.state = Some(terminated_state(ContainerStateTerminated {
            exit_code: 0,
            reason: Some("Completed".into()),
            message: Some(
                "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally"
                    .into(),
            ),
            ..ContainerStateTerminated::default()
        }));
        status.ready = true;
        return status;
    }
    if was.is_some_and(|s| s.running.is_some()) {
        status.last_state = Some(terminated_state(ContainerStateTerminated {
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some(
                "The container could not be located when the pod was deleted.  The container used to be Running"
                    .into(),
            ),
            ..ContainerStateTerminated::default()
        }));
        if i.pod.metadata.deletion_timestamp.is_none() {
            status.restart_count += 1;
        }
    }
    let default = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let (reason, message) = match i.waiting.get(&container.name) {
        Some((reason, message)) => (reason.clone(), Some(message.clone()).filter(|m| !m.is_empty())),
        None => (default.to_owned(), None),
    };
    status.state = Some(waiting_state(reason, message));
    status
}

fn waiting_state(reason: String, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason), message }),
        ..ContainerState::default()
    }
}

fn terminated_state(terminated: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn time(nanos: i64) -> Option<Time> {
    // A container that never started has no such time; the API shows the epoch then, as upstream does.
    Some(Time(whole(timestamp(nanos.max(0)))))
}

fn terminated(i: &Inputs<'_>, instance: &Instance) -> ContainerState {
    terminated_state(ContainerStateTerminated {
        container_id: Some(format!("{}://{}", i.runtime, instance.id)),
        exit_code: instance.exit_code,
        reason: Some(instance.reason.clone()).filter(|r| !r.is_empty()),
        message: Some(instance.message.clone()).filter(|m| !m.is_empty()),
        started_at: time(instance.started_at),
        finished_at: time(instance.finished_at),
        signal: None,
    })
}

fn of_instance(
    i: &Inputs<'_>,
    kind: Kind,
    container: &Container,
    instance: &Instance,
    old: Option<&ContainerStatus>,
) -> ContainerStatus {
    let running = instance.running();
    let started = running && (i.started)(container, instance);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: instance.image.clone(),
        image_id: instance.image_id.clone(),
        container_id: Some(format!("{}://{}", i.runtime, instance.id)),
        restart_count: instance.restarts as i32,
        started: Some(started),
        stop_signal: super::container::stop_signal_name(instance.stop_signal).map(str::to_owned),
        ready: match kind {
            Kind::Init if !spec::is_sidecar(container) => instance.exited() && instance.exit_code == 0,
            Kind::Ephemeral => false,
            _ => running && started && (i.ready)(container, instance),
        },
        last_state: i.seen.previous(&container.name).filter(|p| p.exited()).map(|p| terminated(i, p)),
        user: instance.user.clone().map(|(uid, gid, groups)| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid,
                gid,
                supplemental_groups: Some(groups).filter(|g| !g.is_empty()),
            }),
        }),
        ..ContainerStatus::default()
    };
    if status.last_state.is_none() {
        // The run before may have been removed; what was told of it stays true.
        status.last_state = old
            .filter(|o| o.restart_count == status.restart_count)
            .and_then(|o| o.last_state.clone())
            .filter(|s| s.terminated.as_ref().is_some_and(|t| t.container_id != status.container_id));
    }
    if kind != Kind::Ephemeral {
        let resources = (i.resources)(container, instance).unwrap_or_default();
        status.allocated_resources = resources.requests.clone();
        status.resources = Some(resources);
    }
    status.state = Some(match instance.state {
        container_state::RUNNING => ContainerState {
            running: Some(ContainerStateRunning { started_at: time(instance.started_at) }),
            ..ContainerState::default()
        },
        container_state::EXITED => terminated(i, instance),
        container_state::CREATED => {
            let reason = i.waiting.get(&container.name);
            waiting_state(
                reason.map_or_else(|| "ContainerCreating".to_owned(), |r| r.0.clone()),
                reason.map(|r| r.1.clone()),
            )
        }
        _ => terminated_state(ContainerStateTerminated {
            container_id: status.container_id.clone(),
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".into()),
            message: Some("The container could not be located when the pod was terminated".into()),
            ..ContainerStateTerminated::default()
        }),
    });
    if instance.exited()
        && !i.terminating
        && let Some((reason, message)) = i.waiting.get(&container.name)
    {
        // It will run again: its end is history already.
        status.last_state = status.state.take();
        status.state = Some(waiting_state(reason.clone(), Some(message.clone()).filter(|m| !m.is_empty())));
    }
    status
}
