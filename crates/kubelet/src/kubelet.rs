//! What all parts of a kubelet share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use bytes::Bytes;
use client::{Client, EventRecorder, Informer};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, Preconditions};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::cri::Cri;
use crate::images::Images;
use crate::node::machine::Machine;
use crate::pod::spec;
use crate::pods::{PodHandle, Pods};
use crate::terminations::Terminations;
use crate::volumes::objects::Objects;

pub struct Kubelet {
    pub config: Config,
    pub cri: Cri,
    pub client: Client,
    pub events: EventRecorder,
    pub cgroups: Cgroups,
    pub images: Images,
    pub objects: Objects,
    pub pods: Pods,
    pub services: Informer<Service>,
    pub node: Informer<Node>,
    pub machine: Machine,
    pub host_ips: Vec<String>,
    /// `containerd`, `cri-o`: as container ids are prefixed.
    pub runtime_name: String,
    pub runtime_version: String,
    pub started_at: jiff::Timestamp,
    pub terminations: Terminations,
    /// Marked when a mirror of a static pod is being deleted, or gone.
    pub mirror_lost: tokio::sync::watch::Sender<()>,
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
    /// Told when something of the node's status may have changed.
    pub node_changed: tokio::sync::Notify,
}

/// What the API server said, without the wrapping.
pub fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl Kubelet {
    /// What pods may use of the machine.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.machine.allocatable(&self.config)
    }

    pub fn service_variables(&self, namespace: &str, links: bool) -> BTreeMap<String, String> {
        let mut services: Vec<Service> = Vec::new();
        if links {
            services.extend(self.services.list_typed(Some(namespace)));
        }
        // The API server's own service is told to everybody.
        if (namespace != "default" || !links)
            && let Some(kubernetes) = self.services.get_typed("default", "kubernetes")
        {
            services.insert(0, kubernetes);
        }
        crate::pod::env::service_variables(&services)
    }

    /// Starts the worker of a pod that is not known yet.
    pub fn start_pod(self: &Arc<Kubelet>, handle: Arc<PodHandle>) {
        self.pods.insert(handle.clone());
        let kubelet = self.clone();
        let stop = self.shutdown.child_token();
        self.tasks.spawn(async move {
            let uid = handle.uid.clone();
            crate::pod::worker::run(kubelet.clone(), handle, stop).await;
            if !kubelet.shutdown.is_cancelled() {
                kubelet.pods.remove(&uid);
            }
        });
    }

    /// Writes a pod's status. `None` if that pod is gone already.
    pub async fn patch_status(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        status: Value,
    ) -> Result<Option<Arc<Encoded>>, String> {
        let body = json!({"metadata": {"uid": uid}, "status": status});
        let request = http::Request::patch(format!("/api/v1/namespaces/{namespace}/pods/{name}/status"))
            .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
            .body(body.to_string().into_bytes())
            .map_err(|e| e.to_string())?;
        match self.client.kube().request_text(request).await {
            Ok(text) => encoded(&text).map(|p| Some(Arc::new(p))),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(None),
            Err(error) => Err(api_message(&error)),
        }
    }

    /// Removes a pod that has ended from the API.
    pub async fn delete_pod(&self, pod: &Pod) -> Result<(), String> {
        let pods = self.client.namespaced::<Pod>(spec::namespace(pod));
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(spec::uid(pod).to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match pods.delete(spec::name(pod), &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(error) => Err(api_message(&error)),
        }
    }

    /// Waits, but not beyond the shutdown; false if that came.
    pub async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            _ = self.shutdown.cancelled() => false,
            _ = tokio::time::sleep(time) => true,
        }
    }
}

/// An object as the API server answers it: taken apart into bytes and resource version.
pub fn encoded(text: &str) -> Result<Encoded, String> {
    let mut value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let version = value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0);
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    let body = Bytes::from(value.to_string());
    Ok(Encoded::with_value(body, version, &value, vec![]))
}
