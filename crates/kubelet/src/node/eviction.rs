//! Pressure: memory, disk and process ids running out, and pods ended because of it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::machine::{free_disk, memory_info};
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
        local_storage(&kubelet);
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

/// Pods that use more local storage than they said they would.
fn local_storage(kubelet: &Kubelet) {
    for handle in kubelet.pods.list() {
        if handle.observed().running().next().is_none() {
            continue;
        }
        // Decoding is the dear part: most pods limit nothing.
        let body = handle.encoded();
        let limits = memchr_contains(&body.body, b"\"sizeLimit\"")
            || memchr_contains(&body.body, b"\"ephemeral-storage\"");
        if !limits {
            continue;
        }
        let Some(pod) = handle.decode() else { continue };
        let base = crate::volumes::pod_dir(&kubelet.config.root_dir, &handle.uid)
            .join("volumes/kubernetes.io~empty-dir");
        let mut total = 0;
        for volume in spec::spec(&pod).volumes.iter().flatten() {
            let Some(source) = &volume.empty_dir else { continue };
            if source.medium.as_deref() == Some("Memory") {
                continue;
            }
            let used = disk_usage(&base.join(&volume.name));
            total += used;
            let limit = source.size_limit.as_ref().and_then(|q| quantity::value(&q.0)).filter(|l| *l > 0);
            if let Some(limit) = limit.filter(|l| used > *l as u64) {
                let text = source.size_limit.as_ref().map_or(limit.to_string(), |q| q.0.clone());
                evict(
                    kubelet,
                    &handle,
                    format!("Usage of EmptyDir volume {:?} exceeds the limit {text:?}. ", volume.name),
                );
                break;
            }
        }
        let limit: i64 = spec::spec(&pod)
            .containers
            .iter()
            .filter_map(|c| {
                quantity::of(c.resources.as_ref().and_then(|r| r.limits.as_ref()), "ephemeral-storage")
            })
            .sum();
        if limit > 0 {
            total += disk_usage(&crate::pod::sandbox::log_dir(&kubelet.config, &pod));
            if total > limit as u64 {
                evict(
                    kubelet,
                    &handle,
                    format!(
                        "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
                    ),
                );
            }
        }
    }
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
