//! replicaset-controller and replicationcontroller-controller: as many pods as asked for.

mod kind;
mod plan;
mod ranking;

use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use kube::Api;
use kube::api::PostParams;

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound, message};
use crate::support::expectations::Expectations;
use crate::support::ownership::{self, Owner};
use crate::support::pod_control::{create_pod, delete_pod, pod_from_template, slow_start};
use crate::support::pods;
use kind::Replicated;

pub(crate) async fn run_replica_sets(ctx: Context) -> anyhow::Result<()> {
    run::<ReplicaSet>(ctx).await
}

pub(crate) async fn run_replication_controllers(ctx: Context) -> anyhow::Result<()> {
    run::<ReplicationController>(ctx).await
}

struct Controller<K> {
    ctx: Context,
    sets: Informer<K>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    expectations: Expectations,
    recorder: EventRecorder,
}

async fn run<K: Replicated>(ctx: Context) -> anyhow::Result<()> {
    let pods = ctx.client.informer::<Pod>();
    ownership::index_by_controller(&pods);
    let sets = ctx.client.informer::<K>();
    ownership::index_by_controller(&sets);
    let controller = Arc::new(Controller {
        recorder: ctx.client.recorder(K::COMPONENT, ""),
        sets,
        pods,
        queue: WorkQueue::new(),
        expectations: Expectations::default(),
        ctx: ctx.clone(),
    });
    let c = controller.clone();
    controller.sets.subscribe(move |delta| {
        if matches!(delta, Delta::Deleted(_)) {
            c.expectations.forget(&delta.key());
        }
        c.queue.add(delta.key());
    });
    controller.sets.synced().await;
    let c = controller.clone();
    controller.pods.subscribe(move |delta| c.pod_changed(delta));
    controller.pods.synced().await;
    let queue = controller.queue.clone();
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

impl<K: Replicated> Controller<K> {
    fn pod_changed(&self, delta: &Delta) {
        let pod = delta.object();
        let set_of = |pod: &apimachinery::object::Encoded| {
            let owner = pod.attributes.controller().filter(|o| *o.kind == *K::kind(&()))?;
            let set = self.sets.get(pod.namespace(), &owner.name)?;
            (set.uid() == &*owner.uid).then(|| set.key())
        };
        let set = set_of(pod);
        match delta {
            Delta::Added(_) if !pod.attributes.deleting => {
                if let Some(key) = &set {
                    self.expectations.creation_observed(key);
                }
            }
            Delta::Updated { old, .. } => {
                if let Some(former) = set_of(old).filter(|former| set.as_ref() != Some(former)) {
                    self.queue.add(former);
                }
                if let (Some(key), true) = (&set, pod.attributes.deleting) {
                    self.expectations.deletion_observed(key, pod.uid());
                }
            }
            _ => {
                if let Some(key) = &set {
                    self.expectations.deletion_observed(key, pod.uid());
                }
            }
        }
        match set {
            Some(key) => self.queue.add(key),
            // Somebody may want to adopt it.
            None if pod.attributes.controller().is_none() && !matches!(delta, Delta::Deleted(_)) => {
                if let Delta::Updated { old, .. } = delta
                    && old.attributes.labels == pod.attributes.labels
                    && old.attributes.controller().is_none()
                {
                    return;
                }
                for set in self.sets.list(Some(pod.namespace())) {
                    if self.sets.decode(&set).is_some_and(|s| s.selector().matches(&pod.attributes)) {
                        self.queue.add(set.key());
                    }
                }
            }
            None => {}
        }
    }

    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(set) = self.sets.get_key_typed(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let owner = Owner::of(&set);
        let settled = self.expectations.satisfied(key);
        let owned = ownership::claim::<K, Pod>(&self.ctx, &self.pods, &owner, &set.selector()).await?;
        let owned: Vec<Pod> = owned.iter().filter_map(|p| self.pods.decode(p)).collect();
        let terminating = owned.iter().filter(|p| pods::is_deleting(p) && !pods::is_terminal(p)).count();
        let active: Vec<Pod> = owned.into_iter().filter(pods::is_active).collect();

        let failure = match settled && !owner.deleting {
            true => self.manage(key, &set, &owner, &active).await.err(),
            false => None,
        };
        let now = self.ctx.clock.now();
        let failure_text = failure.as_ref().map(message);
        let status = plan::status(&set, &active, terminating, failure_text.as_deref(), now);
        self.write_status(&set, status).await?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        // Pods that are ready and not yet available become so by the passing of time alone.
        let waits = active.iter().filter_map(|p| pods::available_in(p, set.min_ready_seconds(), now));
        Ok(waits.filter(|d| !d.is_zero()).min().map(|d| d + Duration::from_millis(10)))
    }

    async fn manage(&self, key: &str, set: &K, owner: &Owner, active: &[Pod]) -> kube::Result<()> {
        let regarding = reference(set);
        match plan::replicas(set, active, || self.related(owner, set)) {
            plan::Replicas::Enough => Ok(()),
            plan::Replicas::Create(count) => {
                let pod = pod_from_template(&set.template(), owner);
                self.expectations.expect_creations(key, count);
                let (created, failure) = slow_start(count, |_| {
                    let (pod, regarding) = (&pod, &regarding);
                    async move {
                        let made = create_pod(&self.ctx, &self.recorder, regarding, pod).await;
                        match made {
                            // Nothing can be created here any more, and nothing needs to.
                            Err(error) if error.is_namespace_terminating() => {
                                self.expectations.creation_observed(key);
                                Ok(())
                            }
                            made => made.map(|_| ()),
                        }
                    }
                })
                .await;
                for _ in created..count {
                    self.expectations.creation_observed(key);
                }
                failure.map_or(Ok(()), Err)
            }
            plan::Replicas::Delete(doomed) => {
                let uids = doomed.iter().map(|p| pods::uid(p).to_owned());
                self.expectations.expect_deletions(key, uids);
                let mut deletions: FuturesUnordered<_> = doomed
                    .iter()
                    .map(|pod| {
                        let regarding = &regarding;
                        async move {
                            let result = delete_pod(
                                &self.ctx,
                                &self.recorder,
                                regarding,
                                &owner.namespace,
                                pods::name(pod),
                            )
                            .await;
                            if result.is_err() {
                                self.expectations.deletion_observed(key, pods::uid(pod));
                            }
                            result.ignore_not_found()
                        }
                    })
                    .collect();
                let mut failure = None;
                while let Some(result) = deletions.next().await {
                    failure = failure.or(result.err());
                }
                failure.map_or(Ok(()), Err)
            }
        }
    }

    /// Active pods of all sets that share this set's own controller.
    fn related(&self, owner: &Owner, set: &K) -> Vec<Pod> {
        let references = set.meta().owner_references.iter().flatten();
        let controller = references.into_iter().find(|r| r.controller == Some(true));
        let siblings = match controller {
            Some(controller) => ownership::controlled_by(&self.sets, &controller.uid),
            None => self.sets.get(&owner.namespace, &owner.name).into_iter().collect(),
        };
        siblings
            .iter()
            .flat_map(|s| ownership::controlled_by(&self.pods, s.uid()))
            .filter_map(|p| self.pods.decode(&p))
            .filter(pods::is_active)
            .collect()
    }

    async fn write_status(&self, set: &K, status: kind::Status) -> anyhow::Result<()> {
        let mut set = set.clone();
        if set.status() == status && set.meta().generation.unwrap_or(0) == status.observed_generation {
            return Ok(());
        }
        let owner = Owner::of(&set);
        let api: Api<K> = self.ctx.client.namespaced(&owner.namespace);
        set.set_status(status.clone());
        match api.replace_status(&owner.name, &PostParams::default(), &set).await {
            Err(error) if error.is_conflict() => {
                let Some(mut live) = api.get_opt(&owner.name).await? else { return Ok(()) };
                if live.meta().uid.as_deref() != Some(&owner.uid) {
                    return Ok(());
                }
                live.set_status(status);
                api.replace_status(&owner.name, &PostParams::default(), &live).await?;
                Ok(())
            }
            result => {
                result.ignore_not_found()?;
                Ok(())
            }
        }
    }
}
