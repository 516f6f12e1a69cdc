//! What the scheduler wants to know of a pod: a projection decoded straight from its bytes, a fraction of the typed
//! object's size.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::object::Encoded;
use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Affinity, Toleration};
use serde::Deserialize;

/// Amounts of resources: CPU in millicores, the others in their own unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    pub extended: BTreeMap<Arc<str>, i64>,
}

impl Resources {
    pub fn from_map(map: &BTreeMap<String, String>) -> Resources {
        let mut out = Resources::default();
        for (name, amount) in map {
            let Ok(quantity) = Quantity::parse(amount) else { continue };
            match name.as_str() {
                "cpu" => out.milli_cpu = quantity.milli_value(),
                "memory" => out.memory = quantity.value(),
                "ephemeral-storage" => out.ephemeral_storage = quantity.value(),
                "pods" => {}
                _ => {
                    out.extended.insert(name.as_str().into(), quantity.value());
                }
            }
        }
        out
    }

    pub fn add(&mut self, other: &Resources) {
        self.milli_cpu += other.milli_cpu;
        self.memory += other.memory;
        self.ephemeral_storage += other.ephemeral_storage;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() += amount;
        }
    }

    pub fn subtract(&mut self, other: &Resources) {
        self.milli_cpu -= other.milli_cpu;
        self.memory -= other.memory;
        self.ephemeral_storage -= other.ephemeral_storage;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() -= amount;
        }
    }

    fn at_least(&mut self, other: &Resources) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory = self.memory.max(other.memory);
        self.ephemeral_storage = self.ephemeral_storage.max(other.ephemeral_storage);
        for (name, amount) in &other.extended {
            let mine = self.extended.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }
}

/// A port a pod wants on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub address: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let any = |a: &str| a.is_empty() || a == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (any(&self.address) || any(&other.address) || self.address == other.address)
    }
}

#[derive(Clone, Debug)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: String,
    /// `DoNotSchedule` as against `ScheduleAnyway`.
    pub hard: bool,
    pub selector: LabelSelector,
    pub min_domains: i64,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

/// One pod as the scheduler keeps it.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub node_name: String,
    pub scheduler_name: String,
    pub priority: i32,
    pub preempts: bool,
    pub requests: Resources,
    /// Requests with upstream's stand-ins (100 m, 200 MB) where there are none; for scoring.
    pub requests_nonzero: Resources,
    pub node_selector: BTreeMap<String, String>,
    pub affinity: Option<Box<Affinity>>,
    pub tolerations: Vec<Toleration>,
    pub host_ports: Vec<HostPort>,
    pub spread: Vec<SpreadConstraint>,
    pub images: Vec<String>,
    pub claims: Vec<String>,
    pub gates: Vec<String>,
    pub nominated_node: String,
    pub created: String,
    /// Succeeded or Failed: holds nothing on its node.
    pub finished: bool,
    pub deleting: bool,
    /// Evicted by the scheduler, and perhaps still going.
    pub preempted: bool,
    pub controller: Option<String>,
    pub started: String,
    /// The PodScheduled condition's reason, when it is False.
    pub unschedulable_reason: String,
    pub unschedulable_message: String,
    pub generation: i64,
}

impl Pod {
    pub fn key(&self) -> String {
        apimachinery::object::object_key(&self.namespace, &self.name)
    }

    pub fn decode(object: &Encoded) -> Result<Pod, serde_json::Error> {
        let raw: RawPod = apimachinery::object::read(&object.body)?;
        let spec = raw.spec;
        let mut requests = Resources::default();
        let mut nonzero = Resources::default();
        let (mut sidecars, mut sidecars_nonzero) = (Resources::default(), Resources::default());
        let (mut init, mut init_nonzero) = (Resources::default(), Resources::default());
        for c in &spec.containers {
            requests.add(&c.requests());
            nonzero.add(&with_stand_ins(c.requests()));
        }
        for c in &spec.init_containers {
            let (own, own_nonzero) = (c.requests(), with_stand_ins(c.requests()));
            let (mut peak, mut peak_nonzero) = (sidecars.clone(), sidecars_nonzero.clone());
            peak.add(&own);
            peak_nonzero.add(&own_nonzero);
            if c.restart_policy == "Always" {
                (sidecars, sidecars_nonzero) = (peak, peak_nonzero);
                requests.add(&own);
                nonzero.add(&own_nonzero);
            } else {
                init.at_least(&peak);
                init_nonzero.at_least(&peak_nonzero);
            }
        }
        requests.at_least(&init);
        nonzero.at_least(&init_nonzero);
        if let Some(pod_level) = spec.resources.as_ref().filter(|r| !r.requests.is_empty()) {
            let own = Resources::from_map(&pod_level.requests);
            if pod_level.requests.contains_key("cpu") {
                (requests.milli_cpu, nonzero.milli_cpu) = (own.milli_cpu, own.milli_cpu);
            }
            if pod_level.requests.contains_key("memory") {
                (requests.memory, nonzero.memory) = (own.memory, own.memory);
            }
        }
        let overhead = Resources::from_map(&spec.overhead);
        requests.add(&overhead);
        nonzero.add(&overhead);
        let scheduled =
            raw.status.conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let preempted = raw.status.conditions.iter().any(|c| {
            c.type_ == "DisruptionTarget" && c.status == "True" && c.reason == "PreemptionByScheduler"
        });
        let containers = || spec.containers.iter().chain(&spec.init_containers);
        Ok(Pod {
            host_ports: containers()
                .flat_map(|c| &c.ports)
                .filter(|p| p.host_port > 0)
                .map(|p| HostPort {
                    address: p.host_ip.clone(),
                    protocol: if p.protocol.is_empty() { "TCP".into() } else { p.protocol.clone() },
                    port: p.host_port,
                })
                .collect(),
            images: containers().map(|c| c.image.clone()).collect(),
            claims: spec
                .volumes
                .iter()
                .filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
                    (Some(claim), _) => Some(claim.claim_name.clone()),
                    (None, Some(_)) => Some(format!("{}-{}", raw.metadata.name, v.name)),
                    (None, None) => None,
                })
                .collect(),
            spread: spec.topology_spread_constraints.iter().map(|c| c.parse(&raw.metadata.labels)).collect(),
            namespace: raw.metadata.namespace,
            name: raw.metadata.name,
            uid: raw.metadata.uid,
            labels: raw.metadata.labels,
            created: raw.metadata.creation_timestamp,
            deleting: object.attributes.deleting,
            preempted,
            controller: object.attributes.controller().map(|o| o.uid.to_string()),
            node_name: spec.node_name,
            scheduler_name: spec.scheduler_name,
            priority: spec.priority,
            preempts: spec.preemption_policy != "Never",
            requests,
            requests_nonzero: nonzero,
            node_selector: spec.node_selector,
            affinity: spec.affinity,
            tolerations: spec.tolerations,
            gates: spec.scheduling_gates.into_iter().map(|g| g.name).collect(),
            nominated_node: raw.status.nominated_node_name,
            finished: matches!(raw.status.phase.as_str(), "Succeeded" | "Failed"),
            started: raw.status.start_time,
            unschedulable_reason: scheduled.map(|c| c.reason.clone()).unwrap_or_default(),
            unschedulable_message: scheduled.map(|c| c.message.clone()).unwrap_or_default(),
            generation: raw.metadata.generation,
        })
    }
}

/// A container without requests is scored as if it asked for a little.
fn with_stand_ins(mut requests: Resources) -> Resources {
    if requests.milli_cpu == 0 {
        requests.milli_cpu = 100;
    }
    if requests.memory == 0 {
        requests.memory = 200 * 1024 * 1024;
    }
    requests
}

#[derive(Deserialize)]
struct RawPod {
    metadata: RawMeta,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
    creation_timestamp: String,
    generation: i64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    node_name: String,
    scheduler_name: String,
    priority: i32,
    preemption_policy: String,
    containers: Vec<RawContainer>,
    init_containers: Vec<RawContainer>,
    overhead: BTreeMap<String, String>,
    resources: Option<RawResources>,
    node_selector: BTreeMap<String, String>,
    affinity: Option<Box<Affinity>>,
    tolerations: Vec<Toleration>,
    topology_spread_constraints: Vec<RawSpread>,
    volumes: Vec<RawVolume>,
    scheduling_gates: Vec<RawGate>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawContainer {
    image: String,
    restart_policy: String,
    ports: Vec<RawPort>,
    resources: RawResources,
}

impl RawContainer {
    fn requests(&self) -> Resources {
        Resources::from_map(&self.resources.requests)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawResources {
    requests: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPort {
    #[serde(rename = "hostPort")]
    host_port: i32,
    #[serde(rename = "hostIP")]
    host_ip: String,
    protocol: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawVolume {
    name: String,
    persistent_volume_claim: Option<RawClaim>,
    ephemeral: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawClaim {
    claim_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawGate {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSpread {
    max_skew: i64,
    topology_key: String,
    when_unsatisfiable: String,
    label_selector: serde_json::Value,
    min_domains: Option<i64>,
    node_affinity_policy: Option<String>,
    node_taints_policy: Option<String>,
    match_label_keys: Vec<String>,
}

impl RawSpread {
    fn parse(&self, labels: &BTreeMap<String, String>) -> SpreadConstraint {
        let mut selector = self.label_selector.clone();
        for key in &self.match_label_keys {
            if let Some(value) = labels.get(key) {
                selector["matchLabels"][key] = value.as_str().into();
            }
        }
        SpreadConstraint {
            max_skew: self.max_skew,
            topology_key: self.topology_key.clone(),
            hard: self.when_unsatisfiable == "DoNotSchedule",
            selector: LabelSelector::from_value(&selector).unwrap_or_else(|_| LabelSelector::nothing()),
            min_domains: self.min_domains.unwrap_or(1),
            honor_affinity: self.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: self.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus {
    phase: String,
    nominated_node_name: String,
    start_time: String,
    conditions: Vec<RawCondition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    reason: String,
    message: String,
}
