//! metrics.k8s.io/v1beta1: what nodes and pods use, from the figures of their kubelets, for `kubectl top` and autoscalers.
//!
//! Nothing is gathered while nobody asks. A request compares each kubelet's counters with those of an earlier one; where
//! there are none yet, it takes two samples a second apart.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::status::Status;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::http::Body;
use crate::http::respond;
use crate::registry::access::Access;
use crate::registry::handler::Call;
use crate::seams::Objects;
use crate::server::Server;

pub const GROUP: &str = "metrics.k8s.io";
pub const VERSION: &str = "v1beta1";
const API_VERSION: &str = "metrics.k8s.io/v1beta1";
/// Figures this young are answered again.
const FRESH: SignedDuration = SignedDuration::from_secs(10);
/// Counters older than this tell too little about now.
const STALE: SignedDuration = SignedDuration::from_secs(120);
const FIRST_WINDOW: Duration = Duration::from_secs(1);
const KUBELET_TIMEOUT: Duration = Duration::from_secs(10);
const KUBELETS_AT_ONCE: usize = 16;
const SUMMARY_BYTES_MAX: usize = 16 << 20;

/// A counter of processor time and the memory held at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reading {
    at: Timestamp,
    cpu_nanos: u64,
    memory_bytes: u64,
}

/// What one kubelet said.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    at: Timestamp,
    node: Option<Reading>,
    /// By namespace, pod and container.
    containers: BTreeMap<(String, String, String), Reading>,
}

/// Use between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    at: Timestamp,
    window: SignedDuration,
    nano_cores: u64,
    memory_bytes: u64,
}

/// The use of a node and its pods.
#[derive(Clone, Debug, Default)]
struct Measured {
    node: Option<Usage>,
    /// By namespace and pod.
    pods: BTreeMap<(String, String), Vec<(String, Usage)>>,
}

#[derive(Default)]
struct Node {
    last: Option<Sample>,
    measured: Arc<Measured>,
}

/// What was measured so far, by node.
#[derive(Default)]
pub struct ResourceMetrics {
    nodes: tokio::sync::Mutex<HashMap<String, Node>>,
}

fn reading(usage: &Value) -> Option<Reading> {
    let at = usage["cpu"]["time"].as_str().or_else(|| usage["memory"]["time"].as_str())?;
    Some(Reading {
        at: at.parse().ok()?,
        cpu_nanos: usage["cpu"]["usageCoreNanoSeconds"].as_u64()?,
        memory_bytes: usage["memory"]["workingSetBytes"].as_u64()?,
    })
}

fn sample(summary: &Value, now: Timestamp) -> Sample {
    let mut containers = BTreeMap::new();
    for pod in summary["pods"].as_array().into_iter().flatten() {
        let text = |field: &str| pod["podRef"][field].as_str().unwrap_or_default().to_owned();
        for container in pod["containers"].as_array().into_iter().flatten() {
            if let (Some(name), Some(reading)) = (container["name"].as_str(), reading(container)) {
                containers.insert((text("namespace"), text("name"), name.to_owned()), reading);
            }
        }
    }
    Sample { at: now, node: reading(&summary["node"]), containers }
}

fn usage(before: &Reading, now: &Reading) -> Option<Usage> {
    let window = now.at.duration_since(before.at);
    let nanos = u64::try_from(window.as_nanos()).ok().filter(|n| *n > 0)?;
    // A counter that went back was started anew.
    let used = now.cpu_nanos.checked_sub(before.cpu_nanos)?;
    let nano_cores = u64::try_from(u128::from(used) * 1_000_000_000 / u128::from(nanos)).ok()?;
    Some(Usage { at: now.at, window, nano_cores, memory_bytes: now.memory_bytes })
}

/// The use between two samples. A pod counts when all its containers have been seen twice.
fn measure(before: &Sample, now: &Sample) -> Measured {
    let node = before.node.as_ref().zip(now.node.as_ref()).and_then(|(b, n)| usage(b, n));
    let mut pods: BTreeMap<(String, String), Option<Vec<(String, Usage)>>> = BTreeMap::new();
    for (key, reading) in &now.containers {
        let (namespace, pod, container) = key;
        let used = before.containers.get(key).and_then(|b| usage(b, reading));
        let all = pods.entry((namespace.clone(), pod.clone())).or_insert_with(|| Some(Vec::new()));
        match (all.as_mut(), used) {
            (Some(all), Some(used)) => all.push((container.clone(), used)),
            _ => *all = None,
        }
    }
    Measured { node, pods: pods.into_iter().filter_map(|(k, v)| Some((k, v?))).collect() }
}

async fn ask(server: &Server, node: &str) -> Result<Sample, Status> {
    let asked = async {
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = http::Uri::from_static("/stats/summary");
        let answer = server.kubelets.ask(&server.registry, node, request).await?;
        let status = answer.status();
        let body = Body::Incoming(answer.into_body()).collect(SUMMARY_BYTES_MAX).await?;
        if !status.is_success() {
            return Err(Status::service_unavailable(format!("the kubelet of {node} answered {status}")));
        }
        serde_json::from_slice::<Value>(&body).map_err(Status::internal)
    };
    match tokio::time::timeout(KUBELET_TIMEOUT, asked).await {
        Ok(summary) => Ok(sample(&summary?, server.registry.clock.now())),
        Err(_) => Err(Status::service_unavailable(format!("the kubelet of {node} did not answer in time"))),
    }
}

async fn ask_all(server: &Server, nodes: Vec<String>) -> Vec<(String, Sample)> {
    let asking = futures::stream::iter(nodes).map(|node| async move {
        match ask(server, &node).await {
            Ok(sample) => Some((node, sample)),
            Err(status) => {
                tracing::debug!(node, %status, "no figures from a kubelet");
                None
            }
        }
    });
    asking.buffer_unordered(KUBELETS_AT_ONCE).filter_map(|found| async { found }).collect().await
}

impl ResourceMetrics {
    /// What these nodes use now.
    async fn measured(&self, server: &Server, wanted: &[String]) -> HashMap<String, Arc<Measured>> {
        let known: Vec<String> = Access(server.registry.clone())
            .list("", "nodes", None)
            .iter()
            .map(|n| n.name().to_owned())
            .collect();
        // One at a time: those who wait find the figures fresh.
        let mut nodes = self.nodes.lock().await;
        nodes.retain(|name, _| known.contains(name));
        let now = server.registry.clock.now();
        let age = |node: Option<&Node>| node.and_then(|n| n.last.as_ref()).map(|s| now.duration_since(s.at));
        let old = |node: Option<&Node>, limit| age(node).is_none_or(|a| a > limit);
        let first: Vec<String> = wanted.iter().filter(|n| old(nodes.get(*n), STALE)).cloned().collect();
        if !first.is_empty() {
            for (name, sample) in ask_all(server, first).await {
                nodes.insert(name, Node { last: Some(sample), measured: Arc::default() });
            }
            tokio::time::sleep(FIRST_WINDOW).await;
        }
        let due = |node: Option<&Node>| node.is_none_or(|n| n.measured.node.is_none()) || old(node, FRESH);
        let due: Vec<String> =
            wanted.iter().filter(|n| nodes.contains_key(*n) && due(nodes.get(*n))).cloned().collect();
        for (name, sample) in ask_all(server, due).await {
            let node = nodes.entry(name).or_default();
            if let Some(before) = &node.last {
                node.measured = Arc::new(measure(before, &sample));
            }
            node.last = Some(sample);
        }
        wanted.iter().filter_map(|n| Some((n.clone(), nodes.get(n)?.measured.clone()))).collect()
    }
}

fn quantities(nano_cores: u64, memory_bytes: u64) -> Value {
    json!({"cpu": format!("{nano_cores}n"), "memory": format!("{}Ki", memory_bytes / 1024)})
}

fn seconds(window: SignedDuration) -> String {
    let millis = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
    apimachinery::duration::format_nanos(millis.saturating_mul(1_000_000))
}

fn metadata(object: &Encoded, now: &str) -> Value {
    let mut metadata = json!({"name": object.name(), "creationTimestamp": now});
    if !object.namespace().is_empty() {
        metadata["namespace"] = object.namespace().into();
    }
    if let Ok(value) = object.to_value()
        && value["metadata"]["labels"].is_object()
    {
        metadata["labels"] = value["metadata"]["labels"].clone();
    }
    metadata
}

fn node_metrics(node: &Encoded, measured: &Measured, now: &str) -> Option<Value> {
    let usage = measured.node?;
    Some(json!({
        "kind": "NodeMetrics", "apiVersion": API_VERSION, "metadata": metadata(node, now),
        "timestamp": whole_seconds(usage.at), "window": seconds(usage.window),
        "usage": quantities(usage.nano_cores, usage.memory_bytes),
    }))
}

fn pod_metrics(pod: &Encoded, measured: &Measured, now: &str) -> Option<Value> {
    let key = (pod.namespace().to_owned(), pod.name().to_owned());
    let containers = measured.pods.get(&key).filter(|c| !c.is_empty())?;
    let latest = containers.iter().map(|(_, u)| u).max_by_key(|u| u.at)?;
    let containers: Vec<Value> = containers
        .iter()
        .map(|(name, u)| json!({"name": name, "usage": quantities(u.nano_cores, u.memory_bytes)}))
        .collect();
    Some(json!({
        "kind": "PodMetrics", "apiVersion": API_VERSION, "metadata": metadata(pod, now),
        "timestamp": whole_seconds(latest.at), "window": seconds(latest.window), "containers": containers,
    }))
}

fn whole_seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// The rows of the group's APIResourceList.
pub fn resources() -> Vec<Value> {
    let row = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    vec![row("nodes", "NodeMetrics", false), row("pods", "PodMetrics", true)]
}

/// Answers a request below `/apis/metrics.k8s.io/v1beta1`, which is authorized.
pub async fn serve(server: &Arc<Server>, call: &mut Call) -> Result<Response<Body>, Status> {
    let accept = call.accept(false)?;
    let answer = |value: &Value| Ok(respond::value(StatusCode::OK, value, accept));
    if !call.info.is_resource {
        return answer(&json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION,
            "resources": resources()}));
    }
    let info = call.info.clone();
    let kind = match info.resource.as_str() {
        "nodes" => "NodeMetrics",
        "pods" => "PodMetrics",
        _ => return Err(Status::no_such_resource()),
    };
    if !matches!(info.verb.as_str(), "get" | "list") || !info.subresource.is_empty() {
        return Err(Status::method_not_allowed(&info.resource, GROUP, &info.verb));
    }
    let selector = |text: Option<&str>| match text.filter(|t| !t.is_empty()) {
        None => Ok(LabelSelector::everything()),
        Some(text) => LabelSelector::parse(text).map_err(|e| Status::bad_request(e.to_string())),
    };
    let labels = selector(call.query.get("labelSelector"))?;
    let fields = match call.query.non_empty("fieldSelector") {
        None => FieldSelector::everything(),
        Some(text) => FieldSelector::parse(text).map_err(|e| Status::bad_request(e.to_string()))?,
    };
    let objects = Access(server.registry.clone());
    let namespace =
        (info.resource == "pods" && !info.namespace.is_empty()).then_some(info.namespace.as_str());
    let mut selected = objects.list("", &info.resource, namespace);
    selected.retain(|o| {
        (info.name.is_empty() || o.name() == info.name)
            && labels.matches(&o.attributes)
            && fields.matches(&o.attributes)
    });
    selected.sort_by(|a, b| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
    // The node of each object.
    let of_node = |object: &Encoded| -> String {
        if info.resource == "nodes" {
            return object.name().to_owned();
        }
        let value = object.to_value().unwrap_or_default();
        value["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
    };
    let placed: Vec<(String, Arc<Encoded>)> =
        selected.into_iter().map(|o| (of_node(&o), o)).filter(|(node, _)| !node.is_empty()).collect();
    let mut nodes: Vec<String> = placed.iter().map(|(node, _)| node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    let measured = server.resource_metrics.measured(server, &nodes).await;
    let now = server.registry.clock.now_rfc3339();
    let mut items = placed.iter().filter_map(|(node, object)| {
        let measured = measured.get(node)?;
        if info.resource == "nodes" {
            node_metrics(object, measured, &now)
        } else {
            pod_metrics(object, measured, &now)
        }
    });
    if info.verb == "get" {
        let missing = || Status::not_found(&format!("{}metrics", info.resource), GROUP, &info.name);
        return answer(&items.next().ok_or_else(missing)?);
    }
    let items: Vec<Value> = items.collect();
    answer(&json!({"kind": format!("{kind}List"), "apiVersion": API_VERSION, "metadata": {}, "items": items}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(at: &str, node: u64, containers: &[(&str, &str, u64)]) -> Sample {
        let cpu = |n: u64| json!({"time": at, "usageCoreNanoSeconds": n});
        let memory = json!({"time": at, "workingSetBytes": 2048});
        let pods: Vec<Value> = containers
            .iter()
            .map(|(pod, container, n)| {
                json!({"podRef": {"name": pod, "namespace": "a"},
                    "containers": [{"name": container, "cpu": cpu(*n), "memory": memory}]})
            })
            .collect();
        sample(&json!({"node": {"cpu": cpu(node), "memory": memory}, "pods": pods}), at.parse().unwrap())
    }

    #[test]
    fn measures_between_two_samples() {
        let before = summary("2026-01-01T00:00:00Z", 1_000_000_000, &[("p", "c", 500), ("back", "c", 900)]);
        let now = summary(
            "2026-01-01T00:00:10Z",
            6_000_000_000,
            &[("p", "c", 1_000_000_500), ("back", "c", 100), ("new", "c", 100)],
        );
        let measured = measure(&before, &now);
        let node = measured.node.unwrap();
        assert_eq!(
            (node.nano_cores, node.memory_bytes, seconds(node.window)),
            (500_000_000, 2048, "10s".to_owned())
        );
        let pods: Vec<(&str, u64)> =
            measured.pods.iter().map(|((_, p), c)| (p.as_str(), c[0].1.nano_cores)).collect();
        assert_eq!(pods, [("p", 100_000_000)]);
        assert!(measure(&now, &now).node.is_none());
    }
}
