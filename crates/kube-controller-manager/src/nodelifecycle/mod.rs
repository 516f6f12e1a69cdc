//! node-lifecycle-controller: notices nodes that fell silent, taints nodes after their conditions.

mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, Selection, WorkQueue, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::Context;
use crate::support::errors::IgnoreNotFound;
use crate::support::pods;

/// Taints that drive pods off are put on nodes one at a time, this far apart.
const EVICTION_INTERVAL: Duration = Duration::from_secs(10);

struct Health {
    /// When the kubelet was last heard of, by our own clock.
    heard: Instant,
    heartbeat: Option<Timestamp>,
    /// The Ready status the pods were last told of.
    told: Option<String>,
}

struct Controller {
    ctx: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    health: Mutex<HashMap<String, Health>>,
    ready: Mutex<HashSet<String>>,
    next_eviction: Mutex<Option<Instant>>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        nodes: ctx.client.informer(),
        pods: ctx.client.informer(),
        queue: WorkQueue::new(),
        health: Mutex::default(),
        ready: Mutex::default(),
        next_eviction: Mutex::default(),
        recorder: ctx.client.recorder("node-controller", ""),
        ctx: ctx.clone(),
    });
    pods::index_by_node(&controller.pods);
    let leases = ctx.client.informer_selected::<Lease>(Selection::namespace("kube-node-lease"));
    let c = controller.clone();
    leases.subscribe(move |delta| {
        // Nothing to do but to note it: the node's own timer asks.
        if let Delta::Updated { new, .. } = delta
            && let Some(health) = c.health.lock().get_mut(new.name())
        {
            health.heard = Instant::now();
        }
    });
    controller.pods.synced().await;
    let c = controller.clone();
    controller.nodes.subscribe(move |delta| c.node_changed(delta));
    controller.nodes.synced().await;
    leases.synced().await;
    let queue = controller.queue.clone();
    run_workers(queue, 4, ctx.shutdown.clone(), move |name| {
        let controller = controller.clone();
        async move { controller.sync(&name).await }
    })
    .await;
    Ok(())
}

/// The reference that events about nodes carry: the name stands in for the UID, as kubelets do it.
fn reference(node: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    }
}

impl Controller {
    fn node_changed(&self, delta: &Delta) {
        let object = delta.object();
        let name = object.name().to_owned();
        if let Delta::Deleted(_) = delta {
            self.health.lock().remove(&name);
            self.ready.lock().remove(&name);
            let text = format!("Node {name} event: Removing Node {name} from Controller");
            self.recorder.normal(&reference(&name), "RemovingNode", text);
            return;
        }
        let Some(node) = self.nodes.decode(object) else { return };
        let heartbeat =
            plan::condition(&node, "Ready").and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0);
        {
            let mut health = self.health.lock();
            match health.get_mut(&name) {
                Some(health) => {
                    if health.heartbeat != heartbeat {
                        health.heard = Instant::now();
                        health.heartbeat = heartbeat;
                    }
                }
                None => {
                    health.insert(name.clone(), Health { heard: Instant::now(), heartbeat, told: None });
                    let text = format!("Node {name} event: Registered Node {name} in Controller");
                    self.recorder.normal(&reference(&name), "RegisteredNode", text);
                }
            }
        }
        let (was_none_ready, is_none_ready) = {
            let mut ready = self.ready.lock();
            let was = ready.is_empty();
            match plan::ready(&node) == "True" {
                true => ready.insert(name.clone()),
                false => ready.remove(&name),
            };
            (was, ready.is_empty())
        };
        if was_none_ready != is_none_ready {
            // Whether pods are driven off at all depends on it.
            self.nodes.list(None).iter().for_each(|n| self.queue.add(n.name().to_owned()));
        }
        self.queue.add(name);
    }

    async fn sync(&self, name: &str) -> anyhow::Result<Option<Duration>> {
        let Some(mut node) = self.nodes.get_typed("", name) else { return Ok(None) };
        let now = self.ctx.clock.now();
        let Some((silent_for, told)) =
            self.health.lock().get(name).map(|h| (h.heard.elapsed(), h.told.clone()))
        else {
            return Ok(None);
        };
        let grace = match plan::condition(&node, "Ready") {
            Some(_) => self.ctx.config.node_monitor_grace_period,
            None => self.ctx.config.node_startup_grace_period,
        };
        let silent = silent_for >= grace;
        if silent && let Some(conditions) = plan::silence(&node, now) {
            node.status.get_or_insert_default().conditions = Some(conditions);
            let api = self.ctx.client.all::<Node>();
            match api.replace_status(name, &PostParams::default(), &node).await.ignore_not_found()? {
                Some(updated) => node = updated,
                None => return Ok(None),
            }
        }
        let status = plan::ready(&node).to_owned();
        let again = self.taint(name, &node, now).await?;
        if told.as_deref() != Some(&status) {
            if status != "True" && plan::condition(&node, "Ready").is_some() {
                if told.is_some() {
                    let text = format!("Node {name} status is now: NodeNotReady");
                    self.recorder.normal(&reference(name), "NodeNotReady", text);
                }
                self.mark_pods(name).await?;
            }
            if let Some(health) = self.health.lock().get_mut(name) {
                health.told = Some(status);
            }
        }
        // A silent node's next word is an event of its own.
        let next_look = (!silent).then(|| grace - silent_for + Duration::from_millis(10));
        Ok([again, next_look].into_iter().flatten().min())
    }

    /// Returns when to try again, if the node must wait for its turn.
    async fn taint(&self, name: &str, node: &Node, now: Timestamp) -> anyhow::Result<Option<Duration>> {
        // With no node left there is nowhere to drive pods to, and the fault may be ours.
        let mut evict = !self.ready.lock().is_empty();
        let mut again = None;
        if evict && plan::begins_eviction(node) {
            let mut next = self.next_eviction.lock();
            let at = Instant::now();
            match *next {
                Some(turn) if turn > at => {
                    evict = false;
                    again = Some(turn - at);
                }
                _ => *next = Some(at + EVICTION_INTERVAL),
            }
        }
        if let Some(taints) = plan::taints(node, evict, now) {
            let patch = json!({"metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
            let api = self.ctx.client.all::<Node>();
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.ignore_not_found()?;
        }
        Ok(again)
    }

    /// Pods on a node that is not ready are not ready either.
    async fn mark_pods(&self, node: &str) -> anyhow::Result<()> {
        for object in self.pods.by_index(pods::NODE_INDEX, node) {
            if !self.pods.decode(&object).is_some_and(|p| pods::is_ready(&p)) {
                continue;
            }
            let condition = ("Ready", "False", "NodeNotReady", "");
            pods::patch_condition(&self.ctx, &object, json!({}), condition).await?;
        }
        Ok(())
    }
}
