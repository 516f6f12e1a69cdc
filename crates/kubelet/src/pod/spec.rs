//! Questions asked of a pod's spec.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// Why a container exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Init,
    Main,
    Ephemeral,
}

pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod).ephemeral_containers.as_deref().unwrap_or_default()
}

/// An init container that keeps running beside the main ones.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// An ephemeral container in the shape of the others.
pub fn as_container(e: &EphemeralContainer) -> Container {
    Container {
        args: e.args.clone(),
        command: e.command.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        name: e.name.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        tty: e.tty,
        volume_devices: e.volume_devices.clone(),
        volume_mounts: e.volume_mounts.clone(),
        working_dir: e.working_dir.clone(),
        ..Container::default()
    }
}

/// The container of that name, wherever it stands.
pub fn find(pod: &Pod, name: &str) -> Option<(Kind, Container)> {
    if let Some(c) = spec(pod).containers.iter().find(|c| c.name == name) {
        return Some((Kind::Main, c.clone()));
    }
    if let Some(c) = init_containers(pod).iter().find(|c| c.name == name) {
        return Some((Kind::Init, c.clone()));
    }
    ephemeral_containers(pod).iter().find(|c| c.name == name).map(|e| (Kind::Ephemeral, as_container(e)))
}

/// Whether a container that ended with `exit_code` runs again.
pub fn restarts(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.as_deref().unwrap_or_default() {
        if let Some(codes) = &rule.exit_codes {
            let listed = codes.values.as_deref().unwrap_or_default().contains(&exit_code);
            let matches = match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            if matches && rule.action == "Restart" {
                return true;
            }
        }
    }
    let policy = container.restart_policy.as_deref().or(spec(pod).restart_policy.as_deref());
    match policy.unwrap_or("Always") {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a main container may ever run again after it failed.
pub fn never_restarts(pod: &Pod) -> bool {
    spec(pod).restart_policy.as_deref() == Some("Never")
}

/// The grace period that applies to ending the pod now.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let grace = pod
        .metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30);
    // Zero would leave the processes no moment at all.
    grace.max(1)
}

pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What changes a container's identity: another image means another container.
pub fn container_hash(container: &Container) -> String {
    // FNV-1a: short, and only ever compared with itself.
    let text = format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default());
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The quality of service class, from what containers request and may use of processor time and memory.
pub fn qos(pod: &Pod) -> Qos {
    if let Some(class) = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        match class {
            "Guaranteed" => return Qos::Guaranteed,
            "Burstable" => return Qos::Burstable,
            "BestEffort" => return Qos::BestEffort,
            _ => {}
        }
    }
    let mut any = false;
    let mut guaranteed = true;
    let pod_level = spec(pod).resources.as_ref();
    let all = init_containers(pod).iter().chain(&spec(pod).containers).map(|c| c.resources.as_ref());
    let levels: Vec<_> = if pod_level.is_some_and(|r| r.limits.is_some() || r.requests.is_some()) {
        vec![pod_level]
    } else {
        all.collect()
    };
    for resources in levels {
        for name in ["cpu", "memory"] {
            let limit =
                crate::quantity::milli_of(resources.and_then(|r| r.limits.as_ref()), name).unwrap_or(0);
            let request =
                crate::quantity::milli_of(resources.and_then(|r| r.requests.as_ref()), name).unwrap_or(0);
            any |= limit != 0 || request != 0;
            guaranteed &= limit != 0 && (request == 0 || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// Labels with which the runtime's objects are marked.
pub fn runtime_labels(pod: &Pod) -> BTreeMap<String, String> {
    BTreeMap::from([
        (crate::cri::POD_NAME_LABEL.to_owned(), name(pod).to_owned()),
        (crate::cri::POD_NAMESPACE_LABEL.to_owned(), namespace(pod).to_owned()),
        (crate::cri::POD_UID_LABEL.to_owned(), uid(pod).to_owned()),
    ])
}
