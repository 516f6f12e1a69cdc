//! What the endpoints controllers share: which services select a pod, and what an endpoint needs to know of it.

use std::collections::{BTreeMap, HashMap};

use apimachinery::object::{Attributes, Encoded};
use apimachinery::selector::LabelSelector;
use client::{Delta, Informer, WorkQueue};
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::RwLock;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::support::selectors;

/// The selectors of all services, by namespace and name.
#[derive(Default)]
pub(crate) struct ServiceSelectors {
    by_namespace: RwLock<HashMap<String, BTreeMap<String, LabelSelector>>>,
}

impl ServiceSelectors {
    pub(crate) fn observe(&self, services: &Informer<Service>, delta: &Delta) {
        let object = delta.object();
        let selector = match delta {
            Delta::Deleted(_) => None,
            _ => services.decode(object).and_then(|s| s.spec).and_then(|s| selector(&s)),
        };
        let mut all = self.by_namespace.write();
        let here = all.entry(object.namespace().to_owned()).or_default();
        match selector {
            Some(selector) => {
                here.insert(object.name().to_owned(), selector);
            }
            None => {
                here.remove(object.name());
                if here.is_empty() {
                    all.remove(object.namespace());
                }
            }
        }
    }

    /// Keys of the services that select a pod.
    pub(crate) fn selecting(&self, pod: &Attributes) -> Vec<String> {
        let all = self.by_namespace.read();
        let here = all.get(&*pod.namespace).into_iter().flatten();
        here.filter(|(_, s)| s.matches(pod)).map(|(name, _)| format!("{}/{name}", pod.namespace)).collect()
    }

    /// Queues the services that a change to a pod concerns.
    pub(crate) fn enqueue(&self, pods: &Informer<Pod>, delta: &Delta, queue: &WorkQueue<String>) {
        if let Delta::Updated { old, new } = delta {
            if old.attributes.labels != new.attributes.labels {
                self.selecting(&old.attributes).into_iter().for_each(|k| queue.add(k));
            } else {
                let services = self.selecting(&new.attributes);
                if services.is_empty() || view(pods, old) == view(pods, new) {
                    return;
                }
            }
        }
        self.selecting(&delta.object().attributes).into_iter().for_each(|k| queue.add(k));
    }
}

/// The selector by which a service finds its pods, if it looks for any.
pub(crate) fn selector(spec: &ServiceSpec) -> Option<LabelSelector> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty()).map(selectors::from_map)
}

/// Whether the service has an address of its own.
pub(crate) fn has_address(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty() && ip != "None")
}

/// What an endpoint tells of its pod; everything else of the pod is skipped.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct PodView {
    pub(crate) metadata: MetaView,
    pub(crate) spec: SpecView,
    pub(crate) status: StatusView,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct MetaView {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    #[serde(deserialize_with = "present")]
    pub(crate) deletion_timestamp: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct SpecView {
    pub(crate) node_name: String,
    pub(crate) hostname: String,
    pub(crate) subdomain: String,
    pub(crate) containers: Vec<ContainerView>,
    pub(crate) init_containers: Vec<ContainerView>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ContainerView {
    pub(crate) restart_policy: String,
    pub(crate) ports: Vec<PortView>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct PortView {
    pub(crate) name: String,
    pub(crate) container_port: i32,
    pub(crate) protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct StatusView {
    pub(crate) phase: String,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: String,
    #[serde(rename = "podIPs")]
    pub(crate) pod_ips: Vec<IpView>,
    pub(crate) conditions: Vec<ConditionView>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct IpView {
    pub(crate) ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ConditionView {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) status: String,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(deserializer)?.is_some())
}

/// Reads a pod's view.
pub(crate) fn view(pods: &Informer<Pod>, pod: &Encoded) -> Option<PodView> {
    match pod.decode() {
        Ok(view) => Some(view),
        Err(error) => {
            tracing::warn!(resource = %pods.resource(), key = pod.key(), %error, "skipping a pod that does not decode");
            None
        }
    }
}

impl PodView {
    pub(crate) fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
    }

    /// Whether the pod is an endpoint at all.
    pub(crate) fn is_endpoint(&self, even_terminating: bool) -> bool {
        !matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
            && self.addresses().next().is_some()
            && (even_terminating || !self.metadata.deletion_timestamp)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = &str> {
        let first =
            Some(self.status.pod_ip.as_str()).filter(|ip| !ip.is_empty() && self.status.pod_ips.is_empty());
        self.status.pod_ips.iter().map(|i| i.ip.as_str()).chain(first)
    }

    pub(crate) fn hostname_for(&self, service: &str) -> Option<&str> {
        let s = &self.spec;
        (!s.hostname.is_empty() && s.subdomain == service).then_some(s.hostname.as_str())
    }

    /// The port number a service port means on this pod.
    pub(crate) fn port(&self, port: &ServicePort) -> Option<i32> {
        match &port.target_port {
            Some(IntOrString::Int(0)) | None => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::String(name)) => {
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                let sidecars = self.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
                let mut ports = self.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
                let same = |p: &&PortView| {
                    p.name == *name
                        && (p.protocol == protocol || (p.protocol.is_empty() && protocol == "TCP"))
                };
                ports.find(same).map(|p| p.container_port)
            }
        }
    }
}
