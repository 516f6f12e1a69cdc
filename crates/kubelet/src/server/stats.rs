//! What machine, pods and containers use: the stats summary and the metrics made of the same numbers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Body, text};
use crate::cri::{self, api};
use crate::kubelet::Kubelet;
use crate::node::eviction::pids;
use crate::node::machine::{free_disk, memory_info};

type Outcome<T> = Result<T, Response<Body>>;

struct Usage {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    id: String,
    at: Timestamp,
    cpu_nanos: u64,
    memory: api::MemoryUsage,
    layer: u64,
    inodes: u64,
}

async fn usage(kubelet: &Kubelet) -> Outcome<Vec<Usage>> {
    let stats = kubelet
        .cri
        .container_stats()
        .await
        .map_err(|e| text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(stats
        .into_iter()
        .filter_map(|s| {
            let attributes = s.attributes?;
            let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
            let cpu = s.cpu.unwrap_or_default();
            let layer = s.writable_layer.unwrap_or_default();
            Some(Usage {
                namespace: label(cri::POD_NAMESPACE_LABEL),
                pod: label(cri::POD_NAME_LABEL),
                uid: label(cri::POD_UID_LABEL),
                container: label(cri::CONTAINER_NAME_LABEL),
                id: attributes.id,
                at: crate::pod::plan::timestamp(cpu.timestamp),
                cpu_nanos: cpu.usage_core_nano_seconds.map_or(0, |v| v.value),
                memory: s.memory.unwrap_or_default(),
                layer: layer.used_bytes.map_or(0, |v| v.value),
                inodes: layer.inodes_used.map_or(0, |v| v.value),
            })
        })
        .collect())
}

fn value(v: &Option<api::UInt64Value>) -> u64 {
    v.as_ref().map_or(0, |v| v.value)
}

/// Processor time since boot, all processors together.
fn node_cpu_nanos() -> u64 {
    let Ok(stat) = fs::read_to_string("/proc/stat") else { return 0 };
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; waiting is not using.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, t)| t).sum();
    busy * (1_000_000_000 / 100)
}

fn node_memory(kubelet: &Kubelet) -> (u64, u64) {
    let available = memory_info("MemAvailable").unwrap_or(0);
    (kubelet.machine.memory_bytes.saturating_sub(available), available)
}

fn fs_stats(path: &std::path::Path, at: &str) -> Value {
    let (free, total, inodes_free, inodes) = free_disk(path).unwrap_or_default();
    json!({
        "time": at, "availableBytes": free, "capacityBytes": total, "usedBytes": total.saturating_sub(free),
        "inodesFree": inodes_free, "inodes": inodes, "inodesUsed": inodes.saturating_sub(inodes_free),
    })
}

/// Received and sent bytes of an interface, from `/proc/net/dev` as some process sees it.
fn network(path: &str) -> Vec<(String, u64, u64, u64, u64)> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .skip(2)
        .filter_map(|l| {
            let (name, rest) = l.split_once(':')?;
            let n: Vec<u64> = rest.split_whitespace().filter_map(|v| v.parse().ok()).collect();
            Some((name.trim().to_owned(), *n.first()?, *n.get(2)?, *n.get(8)?, *n.get(10)?))
        })
        .filter(|(name, ..)| name != "lo")
        .collect()
}

fn memory_json(memory: &api::MemoryUsage, at: &str) -> Value {
    json!({
        "time": at,
        "availableBytes": value(&memory.available_bytes),
        "usageBytes": value(&memory.usage_bytes),
        "workingSetBytes": value(&memory.working_set_bytes),
        "rssBytes": value(&memory.rss_bytes),
        "pageFaults": value(&memory.page_faults),
        "majorPageFaults": value(&memory.major_page_faults),
    })
}

pub async fn summary(kubelet: &Kubelet) -> Outcome<Value> {
    let usage = usage(kubelet).await?;
    let now = Timestamp::now().to_string();
    let root = &kubelet.config.root_dir;
    let disk = fs_stats(root, &now);
    let mut pods: BTreeMap<String, Vec<&Usage>> = BTreeMap::new();
    for u in &usage {
        pods.entry(u.uid.clone()).or_default().push(u);
    }
    let pods: Vec<Value> = pods
        .values()
        .filter_map(|containers| {
            let first = containers.first()?;
            let sum = |f: &dyn Fn(&Usage) -> u64| containers.iter().map(|c| f(c)).sum::<u64>();
            let started = |id: &str| {
                let handle = kubelet.pods.get(&first.uid)?;
                let observed = handle.observed();
                observed.by_id(id).map(|i| crate::pod::plan::timestamp(i.started_at).to_string())
            };
            let list: Vec<Value> = containers
                .iter()
                .map(|c| {
                    let at = c.at.to_string();
                    let mut rootfs = disk.clone();
                    rootfs["usedBytes"] = json!(c.layer);
                    rootfs["inodesUsed"] = json!(c.inodes);
                    json!({
                        "name": c.container,
                        "startTime": started(&c.id).unwrap_or_else(|| now.clone()),
                        "cpu": {"time": at, "usageNanoCores": 0, "usageCoreNanoSeconds": c.cpu_nanos},
                        "memory": memory_json(&c.memory, &at),
                        "rootfs": rootfs,
                        "logs": disk,
                    })
                })
                .collect();
            let mut ephemeral = disk.clone();
            ephemeral["usedBytes"] = json!(sum(&|c| c.layer));
            Some(json!({
                "podRef": {"name": first.pod, "namespace": first.namespace, "uid": first.uid},
                "startTime": started(&first.id).unwrap_or_else(|| now.clone()),
                "containers": list,
                "cpu": {"time": now, "usageNanoCores": 0, "usageCoreNanoSeconds": sum(&|c| c.cpu_nanos)},
                "memory": {
                    "time": now,
                    "usageBytes": sum(&|c| value(&c.memory.usage_bytes)),
                    "workingSetBytes": sum(&|c| value(&c.memory.working_set_bytes)),
                    "rssBytes": sum(&|c| value(&c.memory.rss_bytes)),
                    "availableBytes": 0, "pageFaults": 0, "majorPageFaults": 0,
                },
                "ephemeral-storage": ephemeral,
            }))
        })
        .collect();
    let (used, available) = node_memory(kubelet);
    let interfaces: Vec<Value> = network("/proc/net/dev")
        .into_iter()
        .map(|(name, rx, rx_errors, tx, tx_errors)| {
            json!({"name": name, "rxBytes": rx, "rxErrors": rx_errors, "txBytes": tx, "txErrors": tx_errors})
        })
        .collect();
    let first = interfaces.first().cloned().unwrap_or_default();
    let (procs, max) = pids().unwrap_or_default();
    Ok(json!({
        "node": {
            "nodeName": kubelet.config.node_name,
            "startTime": kubelet.started_at.to_string(),
            "cpu": {"time": now, "usageNanoCores": 0, "usageCoreNanoSeconds": node_cpu_nanos()},
            "memory": {
                "time": now, "availableBytes": available, "usageBytes": used, "workingSetBytes": used,
                "rssBytes": memory_info("AnonPages").unwrap_or(0), "pageFaults": 0, "majorPageFaults": 0,
            },
            "network": {
                "time": now, "name": first["name"], "rxBytes": first["rxBytes"], "rxErrors": first["rxErrors"],
                "txBytes": first["txBytes"], "txErrors": first["txErrors"], "interfaces": interfaces,
            },
            "fs": disk,
            "runtime": {"imageFs": fs_stats(&kubelet.config.containerd.root, &now), "containerFs": disk},
            "rlimit": {"time": now, "maxpid": max, "curproc": procs},
        },
        "pods": pods,
    }))
}

pub fn metrics(kubelet: &Kubelet) -> String {
    let mut out = String::new();
    let pods = kubelet.pods.list();
    let running: usize = pods.iter().filter(|p| p.observed().current().is_some()).count();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in &pods {
        for instance in &pod.observed().instances {
            let state = match instance.state {
                api::container_state::CREATED => "created",
                api::container_state::RUNNING => "running",
                api::container_state::EXITED => "exited",
                _ => "unknown",
            };
            *states.entry(state).or_default() += 1;
        }
    }
    let _ = writeln!(
        out,
        "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node=\"{}\"}} 1",
        kubelet.config.node_name
    );
    let _ = writeln!(out, "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {running}");
    let _ = writeln!(
        out,
        "# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods{{static=\"\"}} {}",
        pods.len()
    );
    let _ = writeln!(out, "# TYPE kubelet_running_containers gauge");
    for (state, count) in states {
        let _ = writeln!(out, "kubelet_running_containers{{container_state=\"{state}\"}} {count}");
    }
    kubelet.terminations.write(&mut out);
    let _ = writeln!(
        out,
        "# TYPE kubernetes_build_info gauge\nkubernetes_build_info{{git_version=\"v1.36.2+isopod\",major=\"1\",minor=\"36\"}} 1"
    );
    let start = kubelet.started_at.as_second();
    let _ = writeln!(out, "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {start}");
    out
}

pub async fn resource_metrics(kubelet: &Kubelet) -> Outcome<String> {
    let usage = usage(kubelet).await?;
    let mut out = String::new();
    let now = Timestamp::now().as_millisecond();
    let (used, _) = node_memory(kubelet);
    let _ = writeln!(out, "# TYPE node_cpu_usage_seconds_total counter");
    let _ = writeln!(out, "node_cpu_usage_seconds_total {} {now}", node_cpu_nanos() as f64 / 1e9);
    let _ = writeln!(
        out,
        "# TYPE node_memory_working_set_bytes gauge\nnode_memory_working_set_bytes {used} {now}"
    );
    let labels =
        |u: &Usage| format!("container=\"{}\",namespace=\"{}\",pod=\"{}\"", u.container, u.namespace, u.pod);
    let _ = writeln!(out, "# TYPE container_cpu_usage_seconds_total counter");
    for u in &usage {
        let at = u.at.as_millisecond();
        let _ = writeln!(
            out,
            "container_cpu_usage_seconds_total{{{}}} {} {at}",
            labels(u),
            u.cpu_nanos as f64 / 1e9
        );
    }
    let _ = writeln!(out, "# TYPE container_memory_working_set_bytes gauge");
    for u in &usage {
        let at = u.at.as_millisecond();
        let _ = writeln!(
            out,
            "container_memory_working_set_bytes{{{}}} {} {at}",
            labels(u),
            value(&u.memory.working_set_bytes)
        );
    }
    let _ = writeln!(out, "# TYPE container_start_time_seconds gauge");
    for u in &usage {
        let Some(handle) = kubelet.pods.get(&u.uid) else { continue };
        if let Some(instance) = handle.observed().by_id(&u.id) {
            let _ = writeln!(
                out,
                "container_start_time_seconds{{{}}} {}",
                labels(u),
                instance.started_at as f64 / 1e9
            );
        }
    }
    let mut pods: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    for u in &usage {
        let pod = pods.entry((u.namespace.clone(), u.pod.clone())).or_default();
        pod.0 += u.cpu_nanos;
        pod.1 += value(&u.memory.working_set_bytes);
    }
    let _ = writeln!(out, "# TYPE pod_cpu_usage_seconds_total counter");
    for ((namespace, pod), (cpu, _)) in &pods {
        let _ = writeln!(
            out,
            "pod_cpu_usage_seconds_total{{namespace=\"{namespace}\",pod=\"{pod}\"}} {} {now}",
            *cpu as f64 / 1e9
        );
    }
    let _ = writeln!(out, "# TYPE pod_memory_working_set_bytes gauge");
    for ((namespace, pod), (_, memory)) in &pods {
        let _ = writeln!(
            out,
            "pod_memory_working_set_bytes{{namespace=\"{namespace}\",pod=\"{pod}\"}} {memory} {now}"
        );
    }
    let _ = writeln!(out, "# TYPE resource_scrape_error gauge\nresource_scrape_error 0");
    Ok(out)
}

pub async fn cadvisor_metrics(kubelet: &Kubelet) -> Outcome<String> {
    let usage = usage(kubelet).await?;
    let mut out = String::new();
    let m = &kubelet.machine;
    let _ = writeln!(out, "# TYPE machine_cpu_cores gauge\nmachine_cpu_cores {}", m.cpus);
    let _ = writeln!(out, "# TYPE machine_memory_bytes gauge\nmachine_memory_bytes {}", m.memory_bytes);
    let labels = |u: &Usage| {
        format!(
            "container=\"{}\",id=\"{}\",name=\"{}\",namespace=\"{}\",pod=\"{}\"",
            u.container, u.id, u.id, u.namespace, u.pod
        )
    };
    type Get = fn(&Usage) -> f64;
    let families: [(&str, &str, Get); 5] = [
        ("container_cpu_usage_seconds_total", "counter", |u| u.cpu_nanos as f64 / 1e9),
        ("container_memory_usage_bytes", "gauge", |u| value(&u.memory.usage_bytes) as f64),
        ("container_memory_working_set_bytes", "gauge", |u| value(&u.memory.working_set_bytes) as f64),
        ("container_memory_rss", "gauge", |u| value(&u.memory.rss_bytes) as f64),
        ("container_fs_usage_bytes", "gauge", |u| u.layer as f64),
    ];
    for (name, kind, get) in families {
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for u in &usage {
            let _ = writeln!(out, "{name}{{{}}} {} {}", labels(u), get(u), u.at.as_millisecond());
        }
    }
    Ok(out)
}
