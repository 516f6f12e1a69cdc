//! The shell around the decision: informers feed snapshot and queue, bindings go out, outcomes are told.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use apimachinery::object::Encoded;
use client::{Client, Delta, EventRecorder, Resource, Selection};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod as ApiPod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pod::Pod;
use crate::queue::Queue;
use crate::schedule::{Decision, Unschedulable, schedule};
use crate::snapshot::Snapshot;

const BINDINGS_MAX: usize = 64;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    snapshot: Snapshot,
    queue: Queue,
    /// Pods given a node that the API does not show yet.
    assumed: HashMap<String, String>,
    scheduler_name: String,
}

impl State {
    fn pod_changed(&mut self, object: &Encoded, old: Option<&Arc<Encoded>>) {
        let pod = match Pod::decode(object) {
            Ok(pod) => Arc::new(pod),
            Err(error) => {
                tracing::warn!(pod = object.key(), %error, "cannot be read; it is left alone");
                return;
            }
        };
        if pod.finished {
            self.pod_gone(&pod.uid);
        } else if !pod.node_name.is_empty() {
            self.queue.remove(&pod.uid);
            let was_assumed = self.assumed.remove(&pod.uid).is_some();
            self.snapshot.place(pod);
            if !was_assumed {
                self.queue.cluster_changed(Instant::now());
            }
        } else if pod.deleting {
            self.queue.remove(&pod.uid);
        } else if pod.scheduler_name == self.scheduler_name && !self.assumed.contains_key(&pod.uid) {
            // What the scheduler itself writes to the status is no reason to try again.
            let retry = old.and_then(|o| Pod::decode(o).ok()).is_none_or(|old| {
                old.labels != pod.labels
                    || old.gates != pod.gates
                    || old.tolerations != pod.tolerations
                    || old.requests != pod.requests
            });
            self.queue.put(pod, retry);
        }
    }

    /// The binding failed: the pod is where it was before, unless it is gone.
    fn not_bound(&mut self, uid: &str, gone: bool) {
        self.assumed.remove(uid);
        self.snapshot.displace(uid);
        if gone {
            self.queue.remove(uid);
        } else {
            self.queue.back_off(uid, Instant::now());
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        if self.snapshot.displace(uid) {
            self.queue.cluster_changed(Instant::now());
        }
    }
}

/// Runs until `shutdown`.
pub async fn run(scheduler_name: String, client: Client, shutdown: CancellationToken) -> Result<()> {
    let recorder = client.recorder(&*scheduler_name, "");
    let shared = Arc::new(Shared::default());
    shared.state.lock().scheduler_name = scheduler_name;
    let core = |plural: &str| client.raw_informer(Resource::new("", "v1", plural), Selection::all());
    let (nodes, namespaces, pods) = (core("nodes"), core("namespaces"), core("pods"));
    {
        let shared = shared.clone();
        nodes.subscribe(move |delta| {
            let mut state = shared.state.lock();
            match delta {
                Delta::Deleted(object) => state.snapshot.remove_node(object.name()),
                Delta::Added(object) | Delta::Updated { new: object, .. } => {
                    if let Err(error) = state.snapshot.set_node(object) {
                        tracing::warn!(node = object.name(), %error, "cannot be read; it is left as it was");
                    }
                }
            }
            state.queue.cluster_changed(Instant::now());
            shared.wake.notify_one();
        });
    }
    {
        let shared = shared.clone();
        namespaces.subscribe(move |delta| {
            let object = delta.object();
            let labels =
                object.attributes.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            shared.state.lock().snapshot.namespace_labels.insert(object.name().to_owned(), labels);
        });
    }
    nodes.synced().await;
    namespaces.synced().await;
    {
        let shared = shared.clone();
        pods.subscribe(move |delta| {
            let mut state = shared.state.lock();
            match delta {
                Delta::Added(object) => state.pod_changed(object, None),
                Delta::Updated { old, new } => state.pod_changed(new, Some(old)),
                Delta::Deleted(object) => state.pod_gone(object.uid()),
            }
            shared.wake.notify_one();
        });
    }
    pods.synced().await;
    let scheduler = Scheduler { client, shared, recorder, bindings: Arc::new(Semaphore::new(BINDINGS_MAX)) };
    scheduler.decide_until(shutdown).await;
    Ok(())
}

struct Scheduler {
    client: Client,
    shared: Arc<Shared>,
    recorder: EventRecorder,
    bindings: Arc<Semaphore>,
}

impl Scheduler {
    async fn decide_until(&self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        loop {
            let (next, deadline) = {
                let mut state = self.shared.state.lock();
                (state.queue.pop(Instant::now()), state.queue.deadline())
            };
            if let Some(pod) = next {
                self.decide(pod, &mut tasks).await;
                while tasks.try_join_next().is_some() {}
                continue;
            }
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.shared.wake.notified() => {}
                () = timer => {}
                Some(_) = tasks.join_next() => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn decide(&self, pod: Arc<Pod>, tasks: &mut JoinSet<()>) {
        let Ok(permit) = self.bindings.clone().acquire_owned().await else { return };
        if !pod.gates.is_empty() {
            let message = format!("Scheduling is blocked due to non-empty scheduling gates: {:?}", pod.gates);
            let this = self.teller();
            self.shared.state.lock().queue.unschedulable(&pod.uid, Instant::now());
            tasks.spawn(async move {
                this.condition(&pod, "SchedulingGated", &message).await;
                drop(permit);
            });
            return;
        }
        let decision = {
            let mut state = self.shared.state.lock();
            if !state.queue.contains(&pod.uid) {
                return;
            }
            let decision = schedule(&pod, &state.snapshot, rand::random());
            match &decision {
                Decision::Node(node) => {
                    let assumed = Pod { node_name: node.clone(), ..(*pod).clone() };
                    state.snapshot.place(Arc::new(assumed));
                    state.assumed.insert(pod.uid.clone(), node.clone());
                }
                Decision::Unschedulable(_) => state.queue.unschedulable(&pod.uid, Instant::now()),
            }
            decision
        };
        let this = self.teller();
        let shared = self.shared.clone();
        tasks.spawn(async move {
            match decision {
                Decision::Node(node) => {
                    if let Err(error) = this.bind(&pod, &node).await {
                        let gone = matches!(&error, kube::Error::Api(s) if s.code == 404);
                        shared.state.lock().not_bound(&pod.uid, gone);
                        shared.wake.notify_one();
                        if !gone {
                            this.failed(&pod, "SchedulerError", &format!("binding rejected: {error}")).await;
                        }
                    }
                }
                Decision::Unschedulable(why) => this.unschedulable(&pod, why).await,
            }
            drop(permit);
        });
    }

    fn teller(&self) -> Teller {
        Teller { client: self.client.clone(), recorder: self.recorder.clone() }
    }
}

/// Tells the API what was decided.
struct Teller {
    client: Client,
    recorder: EventRecorder,
}

impl Teller {
    async fn bind(&self, pod: &Pod, node: &str) -> Result<(), kube::Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.into()),
                ..ObjectReference::default()
            },
        };
        let pods = self.client.namespaced::<ApiPod>(&pod.namespace);
        let _: serde_json::Value =
            pods.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await?;
        let message = format!("Successfully assigned {} to {node}", pod.key());
        self.recorder.normal(&reference(pod), "Scheduled", message);
        Ok(())
    }

    async fn unschedulable(&self, pod: &Pod, why: Unschedulable) {
        self.failed(pod, "Unschedulable", &why.message()).await;
    }

    async fn failed(&self, pod: &Pod, reason: &str, message: &str) {
        self.recorder.warning(&reference(pod), "FailedScheduling", message);
        self.condition(pod, reason, message).await;
    }

    async fn condition(&self, pod: &Pod, reason: &str, message: &str) {
        let now = apimachinery::clock::Clock::system().now_rfc3339();
        let patch = json!({"status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": now,
        }]}});
        let pods = self.client.namespaced::<ApiPod>(&pod.namespace);
        if pod.unschedulable_reason == reason {
            return;
        }
        let outcome = pods.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if let Err(error) = outcome {
            tracing::debug!(pod = pod.key(), %error, "could not write the PodScheduled condition");
        }
    }
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.name.clone()),
        namespace: Some(pod.namespace.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}
