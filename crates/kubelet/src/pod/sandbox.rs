//! A pod's sandbox as CRI is asked for it.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, SeccompProfile};

use super::{network, spec};
use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::cri::api::*;

/// Where the logs of a pod's containers lie.
pub fn log_dir(config: &Config, pod: &Pod) -> PathBuf {
    config.pod_logs_dir.join(format!("{}_{}_{}", spec::namespace(pod), spec::name(pod), spec::uid(pod)))
}

pub fn namespaces(pod: &Pod) -> NamespaceOption {
    let s = spec::spec(pod);
    let node_if = |host: Option<bool>| {
        if host == Some(true) { namespace_mode::NODE } else { namespace_mode::POD }
    };
    NamespaceOption {
        network: node_if(s.host_network),
        ipc: node_if(s.host_ipc),
        pid: if s.host_pid == Some(true) {
            namespace_mode::NODE
        } else if s.share_process_namespace == Some(true) {
            namespace_mode::POD
        } else {
            namespace_mode::CONTAINER
        },
        target_id: String::new(),
    }
}

pub fn seccomp(profile: Option<&SeccompProfile>, root: &Path) -> Option<SecurityProfile> {
    let (profile_type, localhost_ref) = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => (profile_type::RUNTIME_DEFAULT, String::new()),
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or_default();
            (profile_type::LOCALHOST, root.join("seccomp").join(name).to_string_lossy().into_owned())
        }
        _ => (profile_type::UNCONFINED, String::new()),
    };
    Some(SecurityProfile { profile_type, localhost_ref })
}

pub fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let context = spec::spec(pod).security_context.as_ref();
    let mut groups: Vec<i64> = context.and_then(|c| c.fs_group).into_iter().collect();
    groups.extend(context.and_then(|c| c.supplemental_groups.as_ref()).into_iter().flatten());
    groups
}

pub fn groups_policy(pod: &Pod) -> i32 {
    let context = spec::spec(pod).security_context.as_ref();
    i32::from(context.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict"))
}

pub fn config(pod: &Pod, attempt: u32, config: &Config, cgroups: &Cgroups) -> PodSandboxConfig {
    let s = spec::spec(pod);
    let (hostname, _) = network::hostname(pod, &config.cluster_domain);
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(spec::runtime_labels(pod));
    let context = s.security_context.as_ref();
    let privileged = spec::init_containers(pod)
        .iter()
        .chain(&s.containers)
        .any(|c| c.security_context.as_ref().and_then(|c| c.privileged) == Some(true));
    let mut sysctls = std::collections::BTreeMap::new();
    for sysctl in context.and_then(|c| c.sysctls.as_ref()).into_iter().flatten() {
        sysctls.insert(sysctl.name.replace('/', "."), sysctl.value.clone());
    }
    let port_mappings = s
        .containers
        .iter()
        .chain(spec::init_containers(pod).iter().filter(|c| spec::is_sidecar(c)))
        .flat_map(|c| c.ports.iter().flatten())
        .map(|p| PortMapping {
            protocol: match p.protocol.as_deref() {
                Some("UDP") => 1,
                Some("SCTP") => 2,
                _ => 0,
            },
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect();
    let totals = crate::cgroup::pod_totals(pod);
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: spec::name(pod).into(),
            uid: spec::uid(pod).into(),
            namespace: spec::namespace(pod).into(),
            attempt,
        }),
        hostname: if spec::host_network(pod) { String::new() } else { hostname },
        log_directory: log_dir(config, pod).to_string_lossy().into_owned(),
        dns_config: Some(network::dns_config(pod, config)),
        port_mappings: if spec::host_network(pod) { vec![] } else { port_mappings },
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroups.parent(pod),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(pod)),
                run_as_user: context.and_then(|c| c.run_as_user).map(|value| Int64Value { value }),
                run_as_group: context.and_then(|c| c.run_as_group).map(|value| Int64Value { value }),
                readonly_rootfs: false,
                supplemental_groups: supplemental_groups(pod),
                supplemental_groups_policy: groups_policy(pod),
                privileged,
                // The sandbox's own process does nothing; it gets the runtime's ordinary confinement.
                seccomp: seccomp(
                    Some(&SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
                    &config.root_dir,
                ),
                apparmor: None,
            }),
            sysctls,
            overhead: None,
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: totals.cpu_limit.map_or(0, |l| l * 100),
                cpu_shares: crate::cgroup::milli_to_shares(totals.cpu_request),
                memory_limit_in_bytes: totals.memory_limit.unwrap_or(0),
                ..LinuxContainerResources::default()
            }),
        }),
    }
}
