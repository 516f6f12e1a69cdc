//! A node as the scheduler keeps it: what it offers, what runs on it, what is in use.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::object::Encoded;
use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;

use crate::pod::{HostPort, Pod, Resources};

/// One node with the pods assigned to it, those assumed there included.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Resources,
    pub pods_max: i64,
    /// Image name to bytes.
    pub images: BTreeMap<String, i64>,
    pub pods: Vec<Arc<Pod>>,
    pub requested: Resources,
    pub requested_nonzero: Resources,
    pub ports: Vec<HostPort>,
    /// Whether the node object exists; pods may be known before their node is.
    pub known: bool,
}

impl Node {
    pub fn add(&mut self, pod: Arc<Pod>) {
        self.requested.add(&pod.requests);
        self.requested_nonzero.add(&pod.requests_nonzero);
        self.ports.extend(pod.host_ports.iter().cloned());
        self.pods.push(pod);
    }

    /// Takes the pod off; whether it was there.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(at) = self.pods.iter().position(|p| p.uid == uid) else { return false };
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        self.requested_nonzero.subtract(&pod.requests_nonzero);
        for port in &pod.host_ports {
            if let Some(at) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(at);
            }
        }
        true
    }

    /// Takes over what the API says of the node; its pods stay.
    pub fn update(&mut self, object: &Encoded) -> Result<(), serde_json::Error> {
        let raw: RawNode = apimachinery::object::read(&object.body)?;
        self.name = raw.metadata.name;
        self.labels = raw.metadata.labels;
        self.taints = raw.spec.taints;
        self.unschedulable = raw.spec.unschedulable;
        let allocatable =
            if raw.status.allocatable.is_empty() { &raw.status.capacity } else { &raw.status.allocatable };
        self.allocatable = Resources::from_map(allocatable);
        self.pods_max = allocatable
            .get("pods")
            .and_then(|q| apimachinery::quantity::Quantity::parse(q).ok())
            .map_or(0, |q| q.value());
        self.images = raw
            .status
            .images
            .into_iter()
            .flat_map(|i| i.names.into_iter().map(move |n| (n, i.size_bytes)))
            .collect();
        self.known = true;
        Ok(())
    }
}

#[derive(Deserialize)]
struct RawNode {
    metadata: RawMeta,
    #[serde(default)]
    spec: RawSpec,
    #[serde(default)]
    status: RawStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawMeta {
    name: String,
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawSpec {
    taints: Vec<Taint>,
    unschedulable: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawStatus {
    capacity: BTreeMap<String, String>,
    allocatable: BTreeMap<String, String>,
    images: Vec<RawImage>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawImage {
    names: Vec<String>,
    size_bytes: i64,
}
