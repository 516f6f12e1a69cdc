//! daemonset-controller: one pod on each node that fits.

mod plan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound};
use crate::support::expectations::Expectations;
use crate::support::ownership::{self, Owner};
use crate::support::pod_control::{create_pod, delete_pod, pod_from_template, slow_start};
use crate::support::pods;
use crate::support::revisions::{self, POD_REVISION};
use crate::support::selectors;
use plan::{Observed, Plan};

const GENERATION: &str = "pod-template-generation";
/// Failed pods on one node are replaced no faster than this, doubling to the second.
const FAILED_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(900));

struct Controller {
    ctx: Context,
    sets: Informer<DaemonSet>,
    revisions: Informer<ControllerRevision>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    queue: WorkQueue<String>,
    expectations: Expectations,
    /// When a failed pod was last replaced, and how long the next one waits; by set and node.
    failed: Mutex<HashMap<(String, String), (Instant, Duration)>>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        sets: ctx.client.informer(),
        revisions: ctx.client.informer(),
        pods: ctx.client.informer(),
        nodes: ctx.client.informer(),
        queue: WorkQueue::new(),
        expectations: Expectations::default(),
        failed: Mutex::default(),
        recorder: ctx.client.recorder("daemonset-controller", ""),
        ctx: ctx.clone(),
    });
    ownership::index_by_controller(&controller.pods);
    ownership::index_by_controller(&controller.revisions);
    let c = controller.clone();
    controller.sets.subscribe(move |delta| {
        if matches!(delta, Delta::Deleted(_)) {
            c.expectations.forget(&delta.key());
            let key = delta.key();
            c.failed.lock().retain(|(set, _), _| *set != key);
        }
        c.queue.add(delta.key());
    });
    controller.sets.synced().await;
    let c = controller.clone();
    controller.pods.subscribe(move |delta| c.pod_changed(delta));
    let c = controller.clone();
    controller.revisions.subscribe(move |delta| {
        let object = delta.object();
        if let Some(owner) = object.attributes.controller().filter(|o| *o.kind == *"DaemonSet") {
            c.queue.add(format!("{}/{}", object.namespace(), owner.name));
        }
    });
    let c = controller.clone();
    controller.nodes.subscribe(move |delta| c.node_changed(delta));
    controller.pods.synced().await;
    controller.revisions.synced().await;
    controller.nodes.synced().await;
    let queue = controller.queue.clone();
    run_workers(queue, 2, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

impl Controller {
    fn pod_changed(&self, delta: &Delta) {
        let pod = delta.object();
        let set_of = |o: &apimachinery::object::Encoded| {
            let owner = o.attributes.controller().filter(|c| *c.kind == *"DaemonSet")?;
            let set = self.sets.get(o.namespace(), &owner.name)?;
            (set.uid() == &*owner.uid).then(|| set.key())
        };
        let set = set_of(pod);
        if let Some(former) = delta.old().and_then(|o| set_of(o)).filter(|f| set.as_ref() != Some(f)) {
            self.queue.add(former);
        }
        match (&set, delta) {
            (Some(key), Delta::Added(_)) if !pod.attributes.deleting => {
                self.expectations.creation_observed(key)
            }
            (Some(key), _) if pod.attributes.deleting || matches!(delta, Delta::Deleted(_)) => {
                self.expectations.deletion_observed(key, pod.uid());
            }
            _ => {}
        }
        match set {
            Some(key) => self.queue.add(key),
            None if pod.attributes.controller().is_none() && !matches!(delta, Delta::Deleted(_)) => {
                if delta.old().is_some_and(|old| {
                    old.attributes.labels == pod.attributes.labels && old.attributes.controller().is_none()
                }) {
                    return;
                }
                for object in self.sets.list(Some(pod.namespace())) {
                    let set = self.sets.decode(&object).and_then(|s| s.spec);
                    if set.is_some_and(|s| selectors::from_typed(&s.selector).matches(&pod.attributes)) {
                        self.queue.add(object.key());
                    }
                }
            }
            None => {}
        }
    }

    /// Only what placement depends on matters: heartbeats do not.
    fn node_changed(&self, delta: &Delta) {
        if let Delta::Updated { old, new } = delta {
            let placement = |o: &apimachinery::object::Encoded| {
                let node = self.nodes.decode(o)?;
                Some((node.metadata.labels, node.spec?.taints))
            };
            if placement(old) == placement(new) {
                return;
            }
        }
        self.sets.list(None).iter().for_each(|s| self.queue.add(s.key()));
    }

    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(set) = self.sets.get_key_typed(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let Some(spec) = set.spec.clone() else { return Ok(None) };
        let selector = selectors::from_typed(&spec.selector);
        if selector.is_everything() {
            self.recorder.warning(
                &reference(&set),
                "SelectingAll",
                "This daemon set is selecting all pods. A non-empty selector is required.",
            );
            return Ok(None);
        }
        let owner = Owner::of(&set);
        if owner.deleting {
            return Ok(None);
        }
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let history = revisions::ensure::<DaemonSet>(
            &self.ctx,
            &self.revisions,
            &owner,
            &selector,
            revisions::Source {
                annotations: set.metadata.annotations.as_ref(),
                template: &spec.template,
                hash_label: POD_REVISION,
            },
            collisions,
        )
        .await?;
        let labels = history.update.metadata.labels.as_ref();
        let hash = labels.and_then(|l| l.get(POD_REVISION)).cloned().unwrap_or_default();
        let settled = self.expectations.satisfied(key);
        let nodes = self.nodes.list_typed(None);
        let by_node = self.pods_by_node(&owner, &selector).await?;
        let now = self.ctx.clock.now();
        let observed = Observed { set: &set, nodes: &nodes, pods: &by_node, hash: &hash, now };

        let mut again = None;
        let mut result = Ok(());
        if settled {
            let mut plan = plan::manage(&observed);
            again = self.pace_failed(key, &set, &mut plan);
            let on_delete =
                spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
            if plan.create.is_empty() && plan.delete.is_empty() && !on_delete {
                plan = plan::roll(&observed);
            }
            result = self.carry_out(key, &set, &owner, &hash, plan).await;
            if result.is_ok() {
                let in_use = |r: &ControllerRevision| {
                    let hash = r.metadata.labels.as_ref().and_then(|l| l.get(POD_REVISION));
                    let of = |p: &Pod| p.metadata.labels.as_ref().and_then(|l| l.get(POD_REVISION)) == hash;
                    by_node.values().flatten().any(of)
                };
                let limit = spec.revision_history_limit.unwrap_or(10);
                revisions::clean_up(&self.ctx, &owner, &history, limit, in_use).await?;
            }
        }
        let status = plan::status(&observed, settled, history.collisions);
        self.write(&set, status).await?;
        result?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let waits = by_node.values().flatten().filter_map(|p| pods::available_in(p, min_ready, now));
        let soon = waits.filter(|d| !d.is_zero()).min().map(|d| d + Duration::from_millis(10));
        Ok([again, soon].into_iter().flatten().min())
    }

    async fn pods_by_node(
        &self,
        owner: &Owner,
        selector: &apimachinery::selector::LabelSelector,
    ) -> anyhow::Result<BTreeMap<String, Vec<Pod>>> {
        let owned = ownership::claim::<DaemonSet, Pod>(&self.ctx, &self.pods, owner, selector).await?;
        let mut by_node: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
        for pod in owned.iter().filter_map(|p| self.pods.decode(p)) {
            if let Some(node) = plan::target(&pod) {
                by_node.entry(node).or_default().push(pod);
            }
        }
        Ok(by_node)
    }

    /// Moves failed and succeeded pods into `plan.delete` as their turn comes.
    fn pace_failed(&self, key: &str, set: &DaemonSet, plan: &mut Plan) -> Option<Duration> {
        let regarding = reference(set);
        let mut again: Option<Duration> = None;
        for pod in std::mem::take(&mut plan.failed) {
            let node = pods::node_name(&pod).to_owned();
            let mut failed = self.failed.lock();
            let now = Instant::now();
            let (at, wait) =
                failed.get(&(key.to_owned(), node.clone())).copied().unwrap_or((now, Duration::ZERO));
            let left = wait.saturating_sub(at.elapsed());
            if !left.is_zero() {
                again = Some(again.map_or(left, |a| a.min(left)));
                continue;
            }
            let next = (wait * 2).clamp(FAILED_BACKOFF.0, FAILED_BACKOFF.1);
            failed.insert((key.to_owned(), node.clone()), (now, next));
            let (ns, name) = (pod.metadata.namespace.as_deref().unwrap_or_default(), pods::name(&pod));
            let text = format!("Found failed daemon pod {ns}/{name} on node {node}, will try to kill it");
            self.recorder.warning(&regarding, "FailedDaemonPod", text);
            plan.delete.push(pod);
        }
        for pod in std::mem::take(&mut plan.succeeded) {
            let (ns, name) = (pod.metadata.namespace.as_deref().unwrap_or_default(), pods::name(&pod));
            let node = pods::node_name(&pod);
            let text =
                format!("Found succeeded daemon pod {ns}/{name} on node {node}, will try to delete it");
            self.recorder.normal(&regarding, "SucceededDaemonPod", text);
            plan.delete.push(pod);
        }
        again
    }

    async fn carry_out(
        &self,
        key: &str,
        set: &DaemonSet,
        owner: &Owner,
        hash: &str,
        plan: Plan,
    ) -> anyhow::Result<()> {
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        let regarding = reference(set);
        let uids: HashSet<String> = plan.delete.iter().map(|p| pods::uid(p).to_owned()).collect();
        self.expectations.set(key, plan.create.len(), uids);
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut base = pod_from_template(&template, owner);
        base.metadata.labels.get_or_insert_default().insert(POD_REVISION.to_owned(), hash.to_owned());
        let annotations = set.metadata.annotations.as_ref();
        if let Some(generation) = annotations.and_then(|a| a.get("deprecated.daemonset.template.generation"))
        {
            base.metadata.labels.get_or_insert_default().insert(GENERATION.to_owned(), generation.clone());
        }
        let spec = plan::pod_spec(set);
        let (created, failure) = slow_start(plan.create.len(), |i| {
            let mut pod = base.clone();
            let mut spec = spec.clone();
            plan::pin(&mut spec, &plan.create[i]);
            pod.spec = Some(spec);
            let regarding = &regarding;
            async move {
                match create_pod(&self.ctx, &self.recorder, regarding, &pod).await {
                    Err(error) if error.is_namespace_terminating() => {
                        self.expectations.creation_observed(key);
                        Ok(())
                    }
                    made => made.map(|_| ()),
                }
            }
        })
        .await;
        for _ in created..plan.create.len() {
            self.expectations.creation_observed(key);
        }
        let mut failure = failure;
        let mut deletions: FuturesUnordered<_> = plan
            .delete
            .iter()
            .map(|pod| {
                let regarding = &regarding;
                async move {
                    let name = pods::name(pod);
                    let result =
                        delete_pod(&self.ctx, &self.recorder, regarding, &owner.namespace, name).await;
                    if result.is_err() {
                        self.expectations.deletion_observed(key, pods::uid(pod));
                    }
                    result.ignore_not_found()
                }
            })
            .collect();
        while let Some(result) = deletions.next().await {
            failure = failure.or(result.err());
        }
        failure.map_or(Ok(()), |e| Err(e.into()))
    }

    async fn write(&self, set: &DaemonSet, status: DaemonSetStatus) -> anyhow::Result<()> {
        if set.status.as_ref().is_some_and(|s| same(s, &status)) {
            return Ok(());
        }
        let owner = Owner::of(set);
        let api = self.ctx.client.namespaced::<DaemonSet>(&owner.namespace);
        let wanted = DaemonSet { status: Some(status.clone()), ..set.clone() };
        match api.replace_status(&owner.name, &PostParams::default(), &wanted).await.ignore_not_found() {
            Err(error) if error.is_conflict() => {
                let Some(live) = api.get_opt(&owner.name).await? else { return Ok(()) };
                let wanted = DaemonSet { status: Some(status), ..live };
                api.replace_status(&owner.name, &PostParams::default(), &wanted).await.ignore_not_found()?;
            }
            result => {
                result?;
            }
        }
        Ok(())
    }
}

fn same(a: &DaemonSetStatus, b: &DaemonSetStatus) -> bool {
    let zeros = |s: &DaemonSetStatus| DaemonSetStatus {
        updated_number_scheduled: s.updated_number_scheduled.filter(|n| *n != 0),
        number_available: s.number_available.filter(|n| *n != 0),
        number_unavailable: s.number_unavailable.filter(|n| *n != 0),
        conditions: s.conditions.clone().filter(|c| !c.is_empty()),
        ..s.clone()
    };
    zeros(a) == zeros(b)
}
