//! A node's status, computed.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::Value;

use crate::kubelet::Kubelet;

pub const VERSION: &str = "v1.36.2+isopod";
/// As many images as upstream reports.
const IMAGES_MAX: usize = 50;

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "arm",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

pub fn new_node(kubelet: &Kubelet) -> Node {
    let config = &kubelet.config;
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
    }
    let annotations = BTreeMap::from([(
        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
        "true".to_owned(),
    )]);
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(config.taints.clone()).filter(|t| !t.is_empty()),
            provider_id: config.provider_id.clone(),
            ..NodeSpec::default()
        }),
        status: Some(NodeStatus {
            capacity: Some(kubelet.machine.capacity(config)),
            allocatable: Some(kubelet.allocatable()),
            addresses: Some(addresses(kubelet)),
            node_info: Some(info(kubelet)),
            conditions: Some(vec![condition(
                "Ready",
                false,
                "KubeletNotReady",
                "the kubelet is starting".into(),
                &NodeStatus::default(),
            )]),
            daemon_endpoints: Some(endpoints(kubelet)),
            ..NodeStatus::default()
        }),
    }
}

fn endpoints(kubelet: &Kubelet) -> NodeDaemonEndpoints {
    NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(kubelet.config.port) }) }
}

fn addresses(kubelet: &Kubelet) -> Vec<NodeAddress> {
    let mut out: Vec<NodeAddress> = kubelet
        .host_ips
        .iter()
        .map(|ip| NodeAddress { type_: "InternalIP".into(), address: ip.clone() })
        .collect();
    out.push(NodeAddress { type_: "Hostname".into(), address: kubelet.config.node_name.clone() });
    out
}

fn info(kubelet: &Kubelet) -> NodeSystemInfo {
    let m = &kubelet.machine;
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: m.boot_id.clone(),
        container_runtime_version: format!("{}://{}", kubelet.runtime_name, kubelet.runtime_version),
        kernel_version: m.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.into(),
        machine_id: m.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: m.os_image.clone(),
        swap: None,
        system_uuid: m.system_uuid.clone(),
    }
}

fn condition(kind: &str, is: bool, reason: &str, message: String, old: &NodeStatus) -> NodeCondition {
    let status = if is { "True" } else { "False" };
    let now = Timestamp::now();
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let was = old.conditions.iter().flatten().find(|c| c.type_ == kind);
    let since = was.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    NodeCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: since.or(Some(now)),
    }
}

/// The status, and whether the node can run pods.
pub async fn compute(kubelet: &Arc<Kubelet>, old: &NodeStatus) -> (NodeStatus, bool) {
    let runtime = kubelet.cri.status(false).await;
    let (mut problems, mut handlers, mut features) = (Vec::new(), Vec::new(), None);
    match &runtime {
        Err(error) => problems.push(format!("container runtime is down: {error}")),
        Ok(answer) => {
            for c in answer.status.iter().flat_map(|s| &s.conditions).filter(|c| !c.status) {
                let what = if c.r#type == "NetworkReady" {
                    "container runtime network not ready"
                } else {
                    "container runtime status check may not have completed yet"
                };
                problems
                    .push(format!("{what}: {}=false reason:{} message:{}", c.r#type, c.reason, c.message));
            }
            handlers = answer
                .runtime_handlers
                .iter()
                .map(|h| NodeRuntimeHandler {
                    name: Some(h.name.clone()),
                    features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
                        recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                        user_namespaces: Some(f.user_namespaces),
                    }),
                })
                .collect();
            features = answer
                .features
                .as_ref()
                .map(|f| NodeFeatures { supplemental_groups_policy: Some(f.supplemental_groups_policy) });
        }
    }
    let ready = problems.is_empty();
    let pressure = super::eviction::pressure(kubelet);
    let mut conditions = vec![
        match pressure.memory {
            true => condition(
                "MemoryPressure",
                true,
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available".into(),
                old,
            ),
            false => condition(
                "MemoryPressure",
                false,
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available".into(),
                old,
            ),
        },
        match pressure.disk {
            true => condition(
                "DiskPressure",
                true,
                "KubeletHasDiskPressure",
                "kubelet has disk pressure".into(),
                old,
            ),
            false => condition(
                "DiskPressure",
                false,
                "KubeletHasNoDiskPressure",
                "kubelet has no disk pressure".into(),
                old,
            ),
        },
        match pressure.pids {
            true => condition(
                "PIDPressure",
                true,
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available".into(),
                old,
            ),
            false => condition(
                "PIDPressure",
                false,
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available".into(),
                old,
            ),
        },
        match ready {
            true => condition("Ready", true, "KubeletReady", "kubelet is posting ready status".into(), old),
            false => condition("Ready", false, "KubeletNotReady", problems.join(", "), old),
        },
    ];
    for foreign in old.conditions.iter().flatten() {
        if !conditions.iter().any(|c| c.type_ == foreign.type_) {
            conditions.push(foreign.clone());
        }
    }
    // Resources that others advertise on the node are theirs to keep.
    let (mut capacity, mut allocatable) = (kubelet.machine.capacity(&kubelet.config), kubelet.allocatable());
    for (own, old) in [(&mut capacity, &old.capacity), (&mut allocatable, &old.allocatable)] {
        for (name, value) in old.iter().flatten().filter(|(n, _)| n.contains('/')) {
            own.entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    let status = NodeStatus {
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions),
        addresses: Some(addresses(kubelet)),
        daemon_endpoints: Some(endpoints(kubelet)),
        node_info: Some(info(kubelet)),
        images: Some(images(kubelet).await).filter(|i| !i.is_empty()).or_else(|| old.images.clone()),
        runtime_handlers: Some(handlers).filter(|h| !h.is_empty()),
        features,
        volumes_attached: old.volumes_attached.clone(),
        volumes_in_use: old.volumes_in_use.clone(),
        phase: old.phase.clone(),
        config: old.config.clone(),
        declared_features: old.declared_features.clone(),
    };
    (status, ready)
}

async fn images(kubelet: &Kubelet) -> Vec<ContainerImage> {
    let mut list = kubelet.cri.list_images().await.unwrap_or_default();
    list.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    list.truncate(IMAGES_MAX);
    list.into_iter()
        .map(|i| {
            let mut names: Vec<String> = i.repo_digests.into_iter().chain(i.repo_tags).collect();
            names.truncate(5);
            ContainerImage { names: Some(names), size_bytes: i64::try_from(i.size).ok() }
        })
        .collect()
}

/// The status without what changes by itself.
pub fn comparable(status: &NodeStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    for condition in value["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
        }
    }
    value
}
