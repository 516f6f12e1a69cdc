//! The shell around the decision: informers feed snapshot and queue, bindings go out, outcomes are told.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use apimachinery::object::Encoded;
use client::{Client, Delta, EventRecorder, Resource, Selection};
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod as ApiPod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pod::Pod;
use crate::preemption::{Budget, Candidate, Preemption, preempt};
use crate::queue::{Event, Queue};
use crate::schedule::{Decision, Unschedulable, schedule};
use crate::snapshot::Snapshot;

const BINDINGS_MAX: usize = 64;
/// No event of the cluster opens a gate.
const GATED: [&str; 1] = ["SchedulingGates"];

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
    /// By key.
    budgets: HashMap<String, Budget>,
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
            self.assumed.remove(&pod.uid);
            self.snapshot.forget_nomination(&pod.uid);
            let old = old.and_then(|o| Pod::decode(o).ok()).filter(|old| !old.node_name.is_empty());
            let event = match &old {
                None => Some(Event::Placed),
                Some(old) if old.requests != pod.requests => Some(Event::Freed),
                // Who is going no longer counts where pods are to be spread.
                Some(old) => {
                    (old.labels != pod.labels || old.deleting != pod.deleting).then_some(Event::Placed)
                }
            };
            self.snapshot.place(pod);
            if let Some(event) = event {
                self.queue.cluster_changed(event, Instant::now());
            }
        } else if pod.deleting {
            self.pod_gone(&pod.uid);
        } else if pod.scheduler_name == self.scheduler_name && !self.assumed.contains_key(&pod.uid) {
            let old = old.and_then(|o| Pod::decode(o).ok());
            // What was decided here may not have reached the API yet; only a change there overrules it.
            if old.as_ref().is_none_or(|old| old.nominated_node != pod.nominated_node) {
                self.snapshot.nominate(pod.clone(), &pod.nominated_node);
            }
            // What the scheduler itself writes to the status is no reason to try again.
            let retry = old.is_none_or(|old| {
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
        if self.snapshot.displace(uid) {
            self.queue.cluster_changed(Event::Freed, Instant::now());
        }
        if gone {
            self.queue.remove(uid);
        } else {
            self.queue.back_off(uid, Instant::now());
        }
    }

    fn pod_gone(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        let had_room = self.snapshot.displace(uid);
        if self.snapshot.forget_nomination(uid) || had_room {
            self.queue.cluster_changed(Event::Freed, Instant::now());
        }
    }

    fn decide(&mut self, pod: &Arc<Pod>) -> Outcome {
        let mut why = match schedule(pod, &self.snapshot, rand::random()) {
            Decision::Node(node) => {
                let assumed = Pod { node_name: node.clone(), ..(**pod).clone() };
                self.snapshot.forget_nomination(&pod.uid);
                self.snapshot.place(Arc::new(assumed));
                self.assumed.insert(pod.uid.clone(), node.clone());
                return Outcome::Bind(node);
            }
            Decision::Unschedulable(why) => why,
        };
        let refused_by = why.plugins();
        if why.nodes == 0 {
            self.queue.unschedulable(&pod.uid, refused_by, Instant::now());
            return Outcome::Wait { why, nominated: None };
        }
        let budgets: Vec<Budget> = self.budgets.values().cloned().collect();
        match preempt(pod, &self.snapshot, &why, &budgets, rand::random()) {
            Preemption::Evict(candidate) => {
                // Those of less priority may find another place sooner than this one.
                let lesser = self.snapshot.nominated_to(&candidate.node);
                let displaced: Vec<_> = lesser.filter(|p| p.priority < pod.priority).cloned().collect();
                for other in &displaced {
                    self.snapshot.forget_nomination(&other.uid);
                    self.queue.retry(&other.uid);
                }
                self.snapshot.nominate(pod.clone(), &candidate.node);
                Outcome::Evict { why, candidate, displaced }
            }
            Preemption::NotEligible(reason) => {
                self.queue.unschedulable(&pod.uid, refused_by, Instant::now());
                why.preemption = format!("preemption: {reason}");
                Outcome::Wait { why, nominated: None }
            }
            Preemption::NoHelp(reason) => {
                self.queue.unschedulable(&pod.uid, refused_by, Instant::now());
                self.snapshot.forget_nomination(&pod.uid);
                why.preemption = format!("preemption: {reason}");
                Outcome::Wait { why, nominated: Some(String::new()) }
            }
        }
    }
}

/// What became of one attempt.
enum Outcome {
    Bind(String),
    /// `nominated` is the node to tell of, empty for none any more.
    Wait {
        why: Unschedulable,
        nominated: Option<String>,
    },
    /// Others go so that the pod may come; `displaced` lose the room that was made for them.
    Evict {
        why: Unschedulable,
        candidate: Candidate,
        displaced: Vec<Arc<Pod>>,
    },
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
            state.queue.cluster_changed(Event::Node, Instant::now());
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
    let budgets =
        client.raw_informer(Resource::new("policy", "v1", "poddisruptionbudgets"), Selection::all());
    {
        let shared = shared.clone();
        budgets.subscribe(move |delta| {
            let mut state = shared.state.lock();
            match delta {
                Delta::Deleted(object) => drop(state.budgets.remove(&object.key())),
                Delta::Added(object) | Delta::Updated { new: object, .. } => match Budget::decode(object) {
                    Ok(budget) => drop(state.budgets.insert(object.key(), budget)),
                    Err(error) => tracing::warn!(budget = object.key(), %error, "cannot be read"),
                },
            }
        });
    }
    nodes.synced().await;
    namespaces.synced().await;
    budgets.synced().await;
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
            self.shared.state.lock().queue.unschedulable(&pod.uid, GATED.into(), Instant::now());
            tasks.spawn(async move {
                this.condition(&pod, "SchedulingGated", &message, None).await;
                drop(permit);
            });
            return;
        }
        let outcome = {
            let mut state = self.shared.state.lock();
            if !state.queue.contains(&pod.uid) {
                return;
            }
            state.decide(&pod)
        };
        let this = self.teller();
        let shared = self.shared.clone();
        tasks.spawn(async move {
            match outcome {
                Outcome::Bind(node) => {
                    if let Err(error) = this.bind(&pod, &node).await {
                        let gone = matches!(&error, kube::Error::Api(s) if s.code == 404);
                        shared.state.lock().not_bound(&pod.uid, gone);
                        shared.wake.notify_one();
                        if !gone {
                            let message = format!("binding rejected: {error}");
                            this.failed(&pod, "SchedulerError", &message, None).await;
                        }
                    }
                }
                Outcome::Wait { why, nominated } => {
                    this.unschedulable(&pod, &why, nominated.as_deref()).await
                }
                Outcome::Evict { why, candidate, displaced } => {
                    this.unschedulable(&pod, &why, Some(&candidate.node)).await;
                    for other in displaced {
                        this.nominate(&other, "").await;
                    }
                    let evicted = this.evict(&pod, &candidate).await;
                    let mut state = shared.state.lock();
                    // Until here the pod was in flight, so that it did not look for more victims.
                    match evicted {
                        Ok(()) => state.queue.unschedulable(&pod.uid, why.plugins(), Instant::now()),
                        Err(_) => state.queue.back_off(&pod.uid, Instant::now()),
                    }
                    drop(state);
                    shared.wake.notify_one();
                }
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

    async fn unschedulable(&self, pod: &Pod, why: &Unschedulable, nominated: Option<&str>) {
        self.failed(pod, "Unschedulable", &why.message(), nominated).await;
    }

    async fn failed(&self, pod: &Pod, reason: &str, message: &str, nominated: Option<&str>) {
        self.recorder.warning(&reference(pod), "FailedScheduling", message);
        self.condition(pod, reason, message, nominated).await;
    }

    /// Writes why the pod has no node and, if that changed, which one is meant for it.
    async fn condition(&self, pod: &Pod, reason: &str, message: &str, nominated: Option<&str>) {
        let mut status = json!({});
        if pod.unschedulable_reason != reason || pod.unschedulable_message != message {
            let mut condition = json!({
                "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
                "lastProbeTime": null, "observedGeneration": pod.generation,
            });
            if pod.unschedulable_reason.is_empty() {
                condition["lastTransitionTime"] = apimachinery::clock::Clock::system().now_rfc3339().into();
            }
            status["conditions"] = json!([condition]);
        }
        if let Some(node) = nominated.filter(|node| *node != pod.nominated_node) {
            status["nominatedNodeName"] = (!node.is_empty()).then_some(node).into();
        }
        self.patch_status(pod, status).await;
    }

    async fn nominate(&self, pod: &Pod, node: &str) {
        self.patch_status(pod, json!({"nominatedNodeName": (!node.is_empty()).then_some(node)})).await;
    }

    async fn patch_status(&self, pod: &Pod, status: serde_json::Value) {
        if status.as_object().is_none_or(serde_json::Map::is_empty) {
            return;
        }
        let pods = self.client.namespaced::<ApiPod>(&pod.namespace);
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": status}));
        if let Err(error) = pods.patch_status(&pod.name, &PatchParams::default(), &patch).await {
            tracing::debug!(pod = pod.key(), %error, "could not write the status");
        }
    }

    /// Marks and deletes all victims; the least important go first and the attempt ends with the first failure.
    async fn evict(&self, pod: &Pod, candidate: &Candidate) -> Result<(), kube::Error> {
        for victim in candidate.victims.iter().rev().filter(|victim| !victim.deleting) {
            match self.evict_one(pod, victim).await {
                Ok(()) => {
                    let message = format!("Preempted by pod {} on node {}", pod.uid, candidate.node);
                    self.recorder.normal(&reference(victim), "Preempted", message);
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    tracing::warn!(pod = pod.key(), victim = victim.key(), %error, "could not be preempted");
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn evict_one(&self, pod: &Pod, victim: &Pod) -> Result<(), kube::Error> {
        let pods = self.client.namespaced::<ApiPod>(&victim.namespace);
        let message = format!("{}: preempting to accommodate a higher priority pod", pod.scheduler_name);
        let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message,
            "lastProbeTime": null, "lastTransitionTime": apimachinery::clock::Clock::system().now_rfc3339(),
            "observedGeneration": victim.generation,
        }]}});
        pods.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        let same = Preconditions { uid: Some(victim.uid.clone()), ..Preconditions::default() };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        pods.delete(&victim.name, &params).await.map(drop)
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
