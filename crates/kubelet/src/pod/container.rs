//! A container as CRI is asked for it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::sandbox;
use super::spec;
use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::cri::api::*;
use crate::cri::{self};

/// What has been found out for a container before it can be described to the runtime.
pub struct Parts<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub restarts: u32,
    /// The image's own name or id in the runtime.
    pub image: String,
    /// The user the image runs as: a number or a name.
    pub image_user: (Option<i64>, String),
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    /// An ephemeral container's target, whose processes it sees.
    pub target_id: Option<String>,
}

pub fn log_name(container: &str, restarts: u32) -> String {
    format!("{container}/{restarts}.log")
}

/// Whether `runAsNonRoot` holds; an error says why not.
pub fn check_non_root(
    pod: &Pod,
    container: &Container,
    image_user: &(Option<i64>, String),
) -> Result<(), String> {
    let own = container.security_context.as_ref();
    let of_pod = spec::spec(pod).security_context.as_ref();
    let non_root = own.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root));
    if non_root != Some(true) {
        return Ok(());
    }
    let describe = || {
        format!(
            "(pod: \"{}_{}({})\", container: {})",
            spec::name(pod),
            spec::namespace(pod),
            spec::uid(pod),
            container.name
        )
    };
    match own.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user)) {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {}", describe())),
        Some(_) => return Ok(()),
        None => {}
    }
    match image_user {
        (Some(0), _) => Err(format!("container has runAsNonRoot and image will run as root {}", describe())),
        (None, name) if !name.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {}",
            describe()
        )),
        _ => Ok(()),
    }
}

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn security(parts: &Parts<'_>, root: &Path) -> LinuxContainerSecurityContext {
    let own = parts.container.security_context.as_ref();
    let of_pod = spec::spec(parts.pod).security_context.as_ref();
    let user = own.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user));
    let group = own.and_then(|c| c.run_as_group).or(of_pod.and_then(|c| c.run_as_group));
    let (image_uid, image_name) = &parts.image_user;
    let profile =
        own.and_then(|c| c.seccomp_profile.as_ref()).or(of_pod.and_then(|c| c.seccomp_profile.as_ref()));
    let unmasked = own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked");
    let paths =
        |list: &[&str]| if unmasked { vec![] } else { list.iter().map(|p| (*p).to_owned()).collect() };
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    let mut namespaces = sandbox::namespaces(parts.pod);
    if let Some(target) = &parts.target_id {
        namespaces.pid = namespace_mode::TARGET;
        namespaces.target_id.clone_from(target);
    }
    LinuxContainerSecurityContext {
        capabilities: capabilities.map(|c| Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
        }),
        privileged: own.and_then(|c| c.privileged).unwrap_or(false),
        namespace_options: Some(namespaces),
        run_as_user: user.or(*image_uid).map(|value| Int64Value { value }),
        run_as_group: group.map(|value| Int64Value { value }),
        run_as_username: if user.is_none() { image_name.clone() } else { String::new() },
        readonly_rootfs: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        supplemental_groups: sandbox::supplemental_groups(parts.pod),
        supplemental_groups_policy: sandbox::groups_policy(parts.pod),
        no_new_privs: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: sandbox::seccomp(profile, root),
        apparmor: None,
        apparmor_profile: String::new(),
    }
}

pub fn config(parts: Parts<'_>, config: &Config, cgroups: &Cgroups) -> ContainerConfig {
    let (pod, container) = (parts.pod, parts.container);
    let lookup = |name: &str| parts.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|t| super::env::expand(t, lookup)).collect()
    };
    let mut labels = spec::runtime_labels(pod);
    labels.insert(cri::CONTAINER_NAME_LABEL.into(), container.name.clone());
    let path = container.termination_message_path.clone().unwrap_or_default();
    let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".into());
    let mut annotations = BTreeMap::from([
        (cri::HASH_ANNOTATION.to_owned(), spec::container_hash(container)),
        (cri::RESTART_COUNT_ANNOTATION.to_owned(), parts.restarts.to_string()),
        (cri::MESSAGE_PATH_ANNOTATION.to_owned(), path),
        (cri::MESSAGE_POLICY_ANNOTATION.to_owned(), policy),
    ]);
    if let Some(grace) = spec::spec(pod).termination_grace_period_seconds {
        annotations.insert(cri::GRACE_ANNOTATION.into(), grace.to_string());
    }
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
        && let Ok(text) = serde_json::to_string(hook)
    {
        annotations.insert(cri::PRE_STOP_ANNOTATION.into(), text);
    }
    if let Some(ports) = container.ports.as_ref().filter(|p| !p.is_empty())
        && let Ok(text) = serde_json::to_string(ports)
    {
        annotations.insert(cri::PORTS_ANNOTATION.into(), text);
    }
    let image = container.image.clone().unwrap_or_default();
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: parts.restarts }),
        image: Some(ImageSpec {
            image: parts.image.clone(),
            user_specified_image: image,
            ..ImageSpec::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        labels,
        annotations,
        log_path: log_name(&container.name, parts.restarts),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(cgroups.container_resources(pod, container)),
            security_context: Some(security(&parts, &config.root_dir)),
        }),
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|l| l.stop_signal.as_deref())
            .map_or(0, stop_signal_number),
        envs: parts.env.into_iter().map(|(key, value)| KeyValue { key, value: value.into_bytes() }).collect(),
        mounts: parts.mounts,
        devices: vec![],
    }
}

/// CRI numbers the signals by their names in alphabetical order; these are the ones in use.
const SIGNALS: [&str; 35] = [
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGRTMIN",
];

fn stop_signal_number(name: &str) -> i32 {
    SIGNALS.iter().position(|s| *s == name).map_or(0, |n| n as i32 + 1)
}

/// The name of a stop signal that the runtime reports.
pub fn stop_signal_name(number: i32) -> Option<&'static str> {
    SIGNALS.get(usize::try_from(number).ok()?.checked_sub(1)?).copied()
}
