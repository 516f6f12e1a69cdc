//! statefulset-controller: pods with names, claims and an order.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound, message};
use crate::support::ownership::{self, Owner};
use crate::support::pods;
use crate::support::revisions;
use crate::support::selectors;
use plan::{Revision, Step};

const REVISION_HASH: &str = "controller.kubernetes.io/hash";

struct Controller {
    ctx: Context,
    sets: Informer<StatefulSet>,
    revisions: Informer<ControllerRevision>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    queue: WorkQueue<String>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        sets: ctx.client.informer(),
        revisions: ctx.client.informer(),
        pods: ctx.client.informer(),
        claims: ctx.client.informer(),
        queue: WorkQueue::new(),
        recorder: ctx.client.recorder("statefulset-controller", ""),
        ctx: ctx.clone(),
    });
    ownership::index_by_controller(&controller.pods);
    ownership::index_by_controller(&controller.revisions);
    let queue = controller.queue.clone();
    controller.sets.subscribe(move |delta| queue.add(delta.key()));
    controller.sets.synced().await;
    let c = controller.clone();
    controller.pods.subscribe(move |delta| c.pod_changed(delta));
    controller.pods.synced().await;
    controller.revisions.synced().await;
    controller.claims.synced().await;
    let queue = controller.queue.clone();
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

impl Controller {
    fn pod_changed(&self, delta: &Delta) {
        let mut owned = false;
        for pod in [Some(delta.object()), delta.old()].into_iter().flatten() {
            if let Some(owner) = pod.attributes.controller() {
                owned = true;
                if *owner.kind == *"StatefulSet" {
                    self.queue.add(format!("{}/{}", pod.namespace(), owner.name));
                }
            }
        }
        let pod = delta.object();
        if owned || matches!(delta, Delta::Deleted(_)) {
            return;
        }
        if delta.old().is_some_and(|old| old.attributes.labels == pod.attributes.labels) {
            return;
        }
        for object in self.sets.list(Some(pod.namespace())) {
            let spec = self.sets.decode(&object).and_then(|s| s.spec);
            if spec.is_some_and(|s| selectors::from_typed(&s.selector).matches(&pod.attributes)) {
                self.queue.add(object.key());
            }
        }
    }

    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(set) = self.sets.get_key_typed(key) else { return Ok(None) };
        let Some(spec) = set.spec.clone() else { return Ok(None) };
        let selector = selectors::from_typed(&spec.selector);
        let owner = Owner::of(&set);
        let old_status = set.status.clone().unwrap_or_default();
        let history = revisions::ensure::<StatefulSet>(
            &self.ctx,
            &self.revisions,
            &owner,
            &selector,
            revisions::Source {
                annotations: set.metadata.annotations.as_ref(),
                template: &spec.template,
                hash_label: REVISION_HASH,
            },
            old_status.collision_count,
        )
        .await?;
        let owned = ownership::claim::<StatefulSet, Pod>(&self.ctx, &self.pods, &owner, &selector).await?;
        let all: Vec<Pod> = owned
            .iter()
            .filter_map(|p| self.pods.decode(p))
            .filter(|p| plan::ordinal(&owner.name, p).is_some())
            .collect();
        let current = old_status.current_revision.as_deref().unwrap_or_default();
        let current = history.all.iter().find(|r| revisions::name(r) == current).unwrap_or(&history.update);
        let revision = |r| Revision {
            name: revisions::name(r),
            template: revisions::template(r).unwrap_or_else(|| spec.template.clone()),
        };
        let now = self.ctx.clock.now();
        let (current, update) = (revision(current), revision(&history.update));
        let plan = plan::plan(&set, &current, &update, &all, history.collisions, now);
        let mut failure = None;
        let mut undone = 0;
        for step in plan.steps {
            let result = match &step {
                Step::Create(pod) => self.create(&set, &owner, pod).await,
                Step::Delete(pod) => self.delete(&set, &owner, pod).await,
                Step::Claims(pod) => self.make_claims(&set, pod).await,
            };
            if let Err(error) = result {
                undone += i32::from(matches!(step, Step::Create(_)));
                failure = failure.or(Some(error));
            }
        }
        let mut status = plan.status;
        status.replicas -= undone;
        if undone > 0 {
            status.updated_replicas = status.updated_replicas.map(|n| (n - undone).max(0));
        }
        self.write(&set, status).await?;
        if let Some(error) = failure {
            return Err(error);
        }
        let limit = spec.revision_history_limit.unwrap_or(10);
        let in_use = |r: &ControllerRevision| {
            let name = revisions::name(r);
            let of = |p: &Pod| {
                p.metadata
                    .labels
                    .as_ref()
                    .and_then(|l| l.get(revisions::POD_REVISION))
                    .is_some_and(|h| h == name)
            };
            name == current.name || all.iter().any(of)
        };
        revisions::clean_up(&self.ctx, &owner, &history, limit, in_use).await?;
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let waits = all.iter().filter_map(|p| pods::available_in(p, min_ready, now));
        Ok(waits.filter(|d| !d.is_zero()).min().map(|d| d + Duration::from_millis(10)))
    }

    async fn create(&self, set: &StatefulSet, owner: &Owner, pod: &Pod) -> anyhow::Result<()> {
        self.make_claims(set, pod).await?;
        let name = pods::name(pod);
        let api = self.ctx.client.namespaced::<Pod>(&owner.namespace);
        match api.create(&PostParams::default(), pod).await {
            Ok(_) => {
                let text = format!("create Pod {name} in StatefulSet {} successful", owner.name);
                self.recorder.normal(&reference(set), "SuccessfulCreate", text);
                Ok(())
            }
            // Seen by the informer in a moment.
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let text = format!(
                    "create Pod {name} in StatefulSet {} failed error: {}",
                    owner.name,
                    message(&error)
                );
                self.recorder.warning(&reference(set), "FailedCreate", text);
                Err(error.into())
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, owner: &Owner, pod: &Pod) -> anyhow::Result<()> {
        let name = pods::name(pod);
        let api = self.ctx.client.namespaced::<Pod>(&owner.namespace);
        // Names are used again, so the one meant must be told from its successor.
        let delete = DeleteParams {
            preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(name, &delete).await {
            Ok(_) => {
                let text = format!("delete Pod {name} in StatefulSet {} successful", owner.name);
                self.recorder.normal(&reference(set), "SuccessfulDelete", text);
                Ok(())
            }
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => {
                let text = format!(
                    "delete Pod {name} in StatefulSet {} failed error: {}",
                    owner.name,
                    message(&error)
                );
                self.recorder.warning(&reference(set), "FailedDelete", text);
                Err(error.into())
            }
        }
    }

    async fn make_claims(&self, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        for claim in plan::claims(set, pod) {
            let (ns, name) = (&claim.metadata.namespace, &claim.metadata.name);
            let (ns, name) = (ns.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default());
            if let Some(present) = self.claims.get(ns, name) {
                anyhow::ensure!(!present.attributes.deleting, "pvc {name} is being deleted");
                continue;
            }
            let api = self.ctx.client.namespaced::<PersistentVolumeClaim>(ns);
            let set_name = set.metadata.name.as_deref().unwrap_or_default();
            match api.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let text = format!(
                        "create Claim {name} Pod {} in StatefulSet {set_name} success",
                        pods::name(pod)
                    );
                    self.recorder.normal(&reference(set), "SuccessfulCreate", text);
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => {
                    let text = format!(
                        "create Claim {name} for Pod {} in StatefulSet {set_name} failed error: {}",
                        pods::name(pod),
                        message(&error)
                    );
                    self.recorder.warning(&reference(set), "FailedCreate", text);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    async fn write(&self, set: &StatefulSet, status: StatefulSetStatus) -> anyhow::Result<()> {
        let filled = |s: &StatefulSetStatus| StatefulSetStatus {
            ready_replicas: Some(s.ready_replicas.unwrap_or(0)),
            available_replicas: Some(s.available_replicas.unwrap_or(0)),
            current_replicas: Some(s.current_replicas.unwrap_or(0)),
            updated_replicas: Some(s.updated_replicas.unwrap_or(0)),
            collision_count: Some(s.collision_count.unwrap_or(0)),
            conditions: s.conditions.clone().filter(|c| !c.is_empty()),
            ..s.clone()
        };
        if set.status.as_ref().is_some_and(|old| filled(old) == filled(&status)) {
            return Ok(());
        }
        let owner = Owner::of(set);
        let api = self.ctx.client.namespaced::<StatefulSet>(&owner.namespace);
        let wanted = StatefulSet { status: Some(status.clone()), ..set.clone() };
        match api.replace_status(&owner.name, &PostParams::default(), &wanted).await.ignore_not_found() {
            Err(error) if error.is_conflict() => {
                let Some(live) = api.get_opt(&owner.name).await? else { return Ok(()) };
                let wanted = StatefulSet { status: Some(status), ..live };
                api.replace_status(&owner.name, &PostParams::default(), &wanted).await.ignore_not_found()?;
            }
            result => {
                result?;
            }
        }
        Ok(())
    }
}
