//! Pressure: memory, disk and process ids running out, and pods ended because of it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Pod, Volume};

use super::machine::{free_disk, memory_info};
use crate::cri;
use crate::kubelet::Kubelet;
use crate::pod::spec::{self, Qos};
use crate::pod::status::Verdict;
use crate::pods::PodHandle;
use crate::quantity;

const PERIOD: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

pub fn pressure(kubelet: &Kubelet) -> Pressure {
    let threshold = |signal: &str, capacity: u64| {
        kubelet.config.eviction_hard.get(signal).and_then(|t| quantity::threshold(t, capacity)).unwrap_or(0)
    };
    let memory = memory_info("MemAvailable").unwrap_or(u64::MAX)
        < threshold("memory.available", kubelet.machine.memory_bytes);
    let disk = free_disk(&kubelet.config.root_dir).is_some_and(|(free, total, inodes, inodes_total)| {
        free < threshold("nodefs.available", total)
            || free < threshold("imagefs.available", total)
            || inodes_total > 0 && inodes < threshold("nodefs.inodesFree", inodes_total)
    });
    let pids = pids().is_some_and(|(used, max)| max.saturating_sub(used) < threshold("pid.available", max));
    Pressure { memory, disk, pids }
}

/// Threads in use and how many there may be.
pub fn pids() -> Option<(u64, u64)> {
    let max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max").ok()?.trim().parse().ok()?;
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let used: u64 = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some((used, max))
}

pub async fn run(kubelet: Arc<Kubelet>) {
    let mut before = pressure(&kubelet);
    while kubelet.pause(PERIOD).await {
        let now = pressure(&kubelet);
        if now != before {
            before = now;
            kubelet.node_changed.notify_one();
        }
        local_storage(&kubelet).await;
        let (resource, message) = match (now.memory, now.disk, now.pids) {
            (true, _, _) => ("memory", "The node was low on resource: memory."),
            (_, true, _) => ("ephemeral-storage", "The node was low on resource: ephemeral-storage."),
            (_, _, true) => ("pids", "The node was low on resource: pids."),
            _ => continue,
        };
        if resource == "ephemeral-storage" && super::garbage::free_images(&kubelet, true).await > 0 {
            continue;
        }
        if let Some(victim) = victim(&kubelet) {
            evict(&kubelet, &victim, message.to_owned());
        }
    }
}

fn evict(kubelet: &Kubelet, victim: &Arc<PodHandle>, message: String) {
    tracing::warn!(pod = victim.name, namespace = victim.namespace, message, "evicting a pod");
    if let Some(pod) = victim.decode() {
        kubelet.events.warning(&crate::events::pod_reference(&pod), "Evicted", message.clone());
    }
    victim.set_verdict(Verdict { reason: "Evicted".into(), message, disruption: true }, Some(1));
}

/// The pod that goes first: the least important, and of these the least guaranteed.
fn victim(kubelet: &Kubelet) -> Option<Arc<PodHandle>> {
    let rank = |pod: &Pod| {
        let class = match spec::qos(pod) {
            Qos::BestEffort => 0,
            Qos::Burstable => 1,
            Qos::Guaranteed => 2,
        };
        (spec::spec(pod).priority.unwrap_or(0), class)
    };
    kubelet
        .pods
        .list()
        .into_iter()
        .filter(|h| !h.is_static && h.observed().running().next().is_some())
        .filter_map(|h| Some((rank(&h.decode()?), h)))
        .filter(|((priority, _), _)| *priority < 2_000_000_000)
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, h)| h)
}

/// Bytes used, by name.
type Used = BTreeMap<String, u64>;

/// Pods that use more local storage than they said they would.
async fn local_storage(kubelet: &Kubelet) {
    let mut layers: Option<HashMap<String, Used>> = None;
    for handle in kubelet.pods.list() {
        if handle.observed().running().next().is_none() {
            continue;
        }
        // Decoding is the dear part: most pods limit nothing.
        let body = handle.encoded();
        let containers_limited = memchr_contains(&body.body, b"\"ephemeral-storage\"");
        if !containers_limited && !memchr_contains(&body.body, b"\"sizeLimit\"") {
            continue;
        }
        let Some(pod) = handle.decode() else { continue };
        let mut containers = Used::new();
        if containers_limited {
            if layers.is_none() {
                layers = Some(writable_layers(kubelet).await);
            }
            let of_pod = layers.as_ref().and_then(|l| l.get(&handle.uid));
            let logs = crate::pod::sandbox::log_dir(&kubelet.config, &pod);
            for container in &spec::spec(&pod).containers {
                let layer = of_pod.and_then(|l| l.get(&container.name)).copied().unwrap_or(0);
                containers.insert(container.name.clone(), layer + disk_usage(&logs.join(&container.name)));
            }
        }
        let base = crate::volumes::pod_dir(&kubelet.config.root_dir, &handle.uid)
            .join("volumes/kubernetes.io~empty-dir");
        let on_disk = |v: &&Volume| {
            v.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref() != Some("Memory"))
        };
        let volumes = spec::spec(&pod).volumes.iter().flatten().filter(on_disk);
        let volumes = volumes.map(|v| (v.name.clone(), disk_usage(&base.join(&v.name)))).collect();
        if let Some(message) = over_limits(&pod, &volumes, &containers) {
            evict(kubelet, &handle, message);
        }
    }
}

/// What containers have written beside their volumes, by pod and container.
async fn writable_layers(kubelet: &Kubelet) -> HashMap<String, Used> {
    let mut out: HashMap<String, Used> = HashMap::new();
    for stats in kubelet.cri.container_stats().await.unwrap_or_default() {
        let Some(mut attributes) = stats.attributes else { continue };
        let mut label = |key: &str| attributes.labels.remove(key).unwrap_or_default();
        let pod = out.entry(label(cri::POD_UID_LABEL)).or_default();
        let used = stats.writable_layer.and_then(|l| l.used_bytes).map_or(0, |v| v.value);
        pod.insert(label(cri::CONTAINER_NAME_LABEL), used);
    }
    out
}

/// Says which limit a pod exceeds: a volume's, that of all containers together, or a container's.
fn over_limits(pod: &Pod, volumes: &Used, containers: &Used) -> Option<String> {
    let spec = spec::spec(pod);
    for volume in spec.volumes.iter().flatten() {
        let limit = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref());
        let (Some(limit), Some(used)) = (limit, volumes.get(&volume.name)) else { continue };
        if quantity::value(&limit.0).is_some_and(|l| l > 0 && *used > l as u64) {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, limit.0
            ));
        }
    }
    let limits: Vec<(&str, Quantity)> = spec
        .containers
        .iter()
        .filter_map(|c| {
            let limit = c.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")?;
            Some((c.name.as_str(), Quantity::parse(&limit.0).ok()?))
        })
        .collect();
    let limit = limits.iter().map(|(_, limit)| *limit).reduce(|a, b| a + b)?;
    let used: u64 = volumes.values().chain(containers.values()).sum();
    if used > u64::try_from(limit.value()).unwrap_or(0) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
        ));
    }
    limits.into_iter().find_map(|(name, limit)| {
        let exceeded = limit.value() > 0 && *containers.get(name)? > limit.value() as u64;
        let limit = limit.to_string();
        exceeded.then(|| format!("Container {name} exceeded its local ephemeral storage limit {limit:?}. "))
    })
}

fn memchr_contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Bytes on disk beneath a directory, which symbolic links do not lead out of.
pub fn disk_usage(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let mut total = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            total += disk_usage(&entry.path());
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_limit_is_exceeded() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [
                {"name": "a", "resources": {"limits": {"ephemeral-storage": "5Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "20Mi"}}},
            ],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "w", "emptyDir": {}}],
        }}))
        .unwrap();
        for (volumes, containers, want) in [
            ([1, 1], [1, 1], None),
            ([2, 0], [9, 0], Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ")),
            (
                [0, 10],
                [3, 13],
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 25Mi. "),
            ),
            ([0, 0], [6, 1], Some("Container a exceeded its local ephemeral storage limit \"5Mi\". ")),
        ] {
            let used = |names: [&str; 2], mebibytes: [u64; 2]| {
                names.map(str::to_owned).into_iter().zip(mebibytes.map(|m| m << 20)).collect()
            };
            let told = over_limits(&pod, &used(["v", "w"], volumes), &used(["a", "b"], containers));
            assert_eq!(told.as_deref(), want);
        }
    }
}
