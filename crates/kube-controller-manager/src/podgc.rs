//! pod-garbage-collector-controller: pods nobody else will delete. Those on nodes that are gone, those deleted before
//! they were scheduled, those finished long ago, those stuck on nodes out of service.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use client::{Delta, Informer, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Preconditions};
use serde_json::json;

use crate::Context;
use crate::support::errors::IgnoreNotFound;
use crate::support::pods;

/// How long a node must be gone before its pods go.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished pods are counted at most this often.
const COUNT_INTERVAL: Duration = Duration::from_secs(20);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Finished,
    Node(String),
    Pod(String),
}

struct Controller {
    ctx: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    queue: WorkQueue<Key>,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        pods: ctx.client.informer(),
        nodes: ctx.client.informer(),
        queue: WorkQueue::new(),
        ctx: ctx.clone(),
    });
    pods::index_by_node(&controller.pods);
    controller.nodes.synced().await;
    let c = controller.clone();
    controller.nodes.subscribe(move |delta| {
        let name = delta.object().name().to_owned();
        match delta {
            Delta::Deleted(_) => c.queue.add_after(Key::Node(name), QUARANTINE),
            _ => {
                if c.nodes.decode(delta.object()).is_some_and(|n| is_out_of_service(&n)) {
                    c.queue.add(Key::Node(name));
                }
            }
        }
    });
    let c = controller.clone();
    controller.pods.subscribe(move |delta| c.pod_changed(delta));
    controller.pods.synced().await;
    let queue = controller.queue.clone();
    run_workers(queue, 2, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move {
            match key {
                Key::Finished => controller.collect_finished().await,
                Key::Node(name) => controller.collect_node(&name).await,
                Key::Pod(key) => controller.collect_pod(&key).await,
            }
        }
    })
    .await;
    Ok(())
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

fn node_of(pod: &Encoded) -> &str {
    pod.attributes.field("spec.nodeName").unwrap_or_default()
}

fn is_finished(pod: &Encoded) -> bool {
    matches!(pod.attributes.field("status.phase"), Some("Succeeded" | "Failed"))
}

impl Controller {
    fn pod_changed(&self, delta: &Delta) {
        if matches!(delta, Delta::Deleted(_)) {
            return;
        }
        let pod = delta.object();
        if is_finished(pod) && self.ctx.config.terminated_pod_gc_threshold > 0 {
            self.queue.add_after(Key::Finished, COUNT_INTERVAL);
        }
        let node = node_of(pod);
        if node.is_empty() {
            if pod.attributes.deleting {
                self.queue.add(Key::Pod(pod.key()));
            }
        } else if self.nodes.get("", node).is_none() {
            self.queue.add_after(Key::Node(node.to_owned()), QUARANTINE);
        } else if pod.attributes.deleting {
            let node = self.nodes.get_typed("", node);
            if node.is_some_and(|n| is_out_of_service(&n)) {
                self.queue.add(Key::Node(node_of(pod).to_owned()));
            }
        }
    }

    async fn collect_finished(&self) -> anyhow::Result<Option<Duration>> {
        let threshold = self.ctx.config.terminated_pod_gc_threshold.max(0) as usize;
        let finished: Vec<Arc<Encoded>> =
            self.pods.list(None).into_iter().filter(|p| is_finished(p) && !p.attributes.deleting).collect();
        if finished.len() <= threshold {
            return Ok(None);
        }
        let surplus = finished.len() - threshold;
        let mut aged: Vec<_> = finished
            .into_iter()
            .map(|p| {
                let created = self.pods.decode(&p).and_then(|p| p.metadata.creation_timestamp).map(|t| t.0);
                (created, p)
            })
            .collect();
        aged.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name().cmp(b.1.name())));
        for (_, pod) in aged.into_iter().take(surplus) {
            self.delete(&pod, None).await?;
        }
        Ok(None)
    }

    async fn collect_node(&self, name: &str) -> anyhow::Result<Option<Duration>> {
        let pods = self.pods.by_index(pods::NODE_INDEX, name);
        if pods.is_empty() {
            return Ok(None);
        }
        match self.ctx.client.all::<Node>().get_opt(name).await? {
            Some(node) => {
                let ready = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
                let ready = ready.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
                if is_out_of_service(&node) && !ready {
                    for pod in pods.into_iter().filter(|p| p.attributes.deleting) {
                        let why = "PodGC: node is out of service";
                        self.delete(&pod, Some(why)).await?;
                    }
                }
            }
            None => {
                for pod in pods {
                    self.delete(&pod, Some("PodGC: node no longer exists")).await?;
                }
            }
        }
        Ok(None)
    }

    async fn collect_pod(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        match self.pods.get_key(key) {
            Some(pod) if pod.attributes.deleting && node_of(&pod).is_empty() => {
                self.delete(&pod, None).await?
            }
            _ => {}
        }
        Ok(None)
    }

    /// Deletes at once. `disrupted` says why the pod is cut off, where it is.
    async fn delete(&self, pod: &Encoded, disrupted: Option<&str>) -> anyhow::Result<()> {
        if let Some(message) = disrupted
            && !is_finished(pod)
        {
            let condition = ("DisruptionTarget", "True", "DeletionByPodGC", message);
            pods::patch_condition(&self.ctx, pod, json!({"phase": "Failed"}), condition).await?;
        } else if !is_finished(pod) {
            let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed"}});
            let api = self.ctx.client.namespaced::<Pod>(pod.namespace());
            let patch = kube::api::Patch::Strategic(patch);
            api.patch_status(pod.name(), &Default::default(), &patch).await.ignore_not_found()?;
        }
        let delete = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(pod.uid().to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let api = self.ctx.client.namespaced::<Pod>(pod.namespace());
        api.delete(pod.name(), &delete).await.ignore_not_found()?;
        Ok(())
    }
}
