//! The shell: reads keys, moves ReplicaSets.

use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as MetaSelector, ObjectMeta};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use super::math::{self, Size, Targets};
use super::progress;
use super::replica_sets::{
    REVISION, annotate_new, annotate_scale, created, desired_annotation, name, replicas, revision,
};
use super::template;
use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound, message};
use crate::support::ownership::{self, Owner};
use crate::support::pods;
use crate::support::selectors;

struct Controller {
    ctx: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        deployments: ctx.client.informer(),
        sets: ctx.client.informer(),
        pods: ctx.client.informer(),
        queue: WorkQueue::new(),
        recorder: ctx.client.recorder("deployment-controller", ""),
        ctx: ctx.clone(),
    });
    ownership::index_by_controller(&controller.sets);
    ownership::index_by_controller(&controller.pods);
    let queue = controller.queue.clone();
    controller.deployments.subscribe(move |delta| queue.add(delta.key()));
    controller.deployments.synced().await;
    let c = controller.clone();
    controller.sets.subscribe(move |delta| c.set_changed(delta));
    let c = controller.clone();
    controller.pods.subscribe(move |delta| c.pod_changed(delta));
    controller.sets.synced().await;
    controller.pods.synced().await;
    let queue = controller.queue.clone();
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

/// A deployment's sets, sorted out.
struct Sets {
    new: Option<ReplicaSet>,
    /// Oldest first.
    old: Vec<ReplicaSet>,
}

impl Sets {
    fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }
}

impl Controller {
    fn set_changed(&self, delta: &Delta) {
        let set = delta.object();
        let deployment_of = |o: &apimachinery::object::Encoded| {
            let owner = o.attributes.controller().filter(|c| *c.kind == *"Deployment")?;
            Some(format!("{}/{}", o.namespace(), owner.name))
        };
        if let Some(old) = delta.old().and_then(|o| deployment_of(o)) {
            self.queue.add(old);
        }
        match deployment_of(set) {
            Some(key) => self.queue.add(key),
            None if set.attributes.controller().is_none() && !matches!(delta, Delta::Deleted(_)) => {
                for deployment in self.deployments.list(Some(set.namespace())) {
                    let selector = self.deployments.decode(&deployment).map(|d| selector(&d));
                    if selector.is_some_and(|s| s.matches(&set.attributes)) {
                        self.queue.add(deployment.key());
                    }
                }
            }
            None => {}
        }
    }

    /// A recreating deployment waits for the last pod of its old sets.
    fn pod_changed(&self, delta: &Delta) {
        let Delta::Deleted(pod) = delta else { return };
        let Some(owner) = pod.attributes.controller().filter(|o| *o.kind == *"ReplicaSet") else { return };
        let Some(set) = self.sets.get(pod.namespace(), &owner.name) else { return };
        if let Some(owner) = set.attributes.controller() {
            self.queue.add(format!("{}/{}", pod.namespace(), owner.name));
        }
    }

    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(mut deployment) = self.deployments.get_key_typed(key) else { return Ok(None) };
        let selector = selector(&deployment);
        if selector.is_everything() {
            self.recorder.warning(
                &reference(&deployment),
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.",
            );
            return Ok(None);
        }
        let owner = Owner::of(&deployment);
        let owned =
            ownership::claim::<Deployment, ReplicaSet>(&self.ctx, &self.sets, &owner, &selector).await?;
        let owned: Vec<ReplicaSet> = owned.iter().filter_map(|s| self.sets.decode(s)).collect();
        let mut sets = sort_out(&deployment, owned);
        if owner.deleting {
            return self.write_status(&deployment, &sets).await;
        }
        self.note_pause(&mut deployment).await?;
        let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
        let targets = Targets::of(&deployment);
        let scaling = sets
            .all()
            .iter()
            .any(|s| replicas(s) > 0 && desired_annotation(s).is_some_and(|d| d != targets.replicas));
        if paused || scaling {
            self.take_new(&mut deployment, &mut sets, false).await?;
            self.scale(&deployment, &mut sets).await?;
            if paused {
                self.clean_up(&deployment, &mut sets).await?;
            }
            return self.write_counts(&deployment, &sets).await;
        }
        match targets.rolling {
            true => self.roll(&mut deployment, &mut sets).await?,
            false => self.recreate(&mut deployment, &mut sets).await?,
        }
        self.write_status(&deployment, &sets).await
    }

    async fn roll(&self, deployment: &mut Deployment, sets: &mut Sets) -> anyhow::Result<()> {
        self.take_new(deployment, sets, true).await?;
        let targets = Targets::of(deployment);
        let total: i32 = sets.all().iter().map(|s| replicas(s)).sum();
        let Some(new) = &mut sets.new else { return Ok(()) };
        let size = math::new_size(targets, total, replicas(new));
        if self.resize(deployment, new, size).await? {
            return Ok(());
        }
        let measure = |s: &ReplicaSet| Size {
            wanted: replicas(s),
            available: s.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0),
        };
        let sizes: Vec<Size> = sets.old.iter().map(measure).collect();
        let wanted = math::old_sizes(targets, &sizes, measure(new));
        let mut moved = false;
        for (set, size) in sets.old.iter_mut().zip(wanted) {
            if size != replicas(set) {
                moved |= self.resize(deployment, set, size).await?;
            }
        }
        if !moved && progress::is_complete(deployment, &deployment.status.clone().unwrap_or_default()) {
            self.clean_up(deployment, sets).await?;
        }
        Ok(())
    }

    async fn recreate(&self, deployment: &mut Deployment, sets: &mut Sets) -> anyhow::Result<()> {
        self.take_new(deployment, sets, false).await?;
        let mut moved = false;
        for set in &mut sets.old {
            if replicas(set) > 0 {
                moved |= self.resize(deployment, set, 0).await?;
            }
        }
        if moved || self.old_pods_run(sets) {
            return Ok(());
        }
        self.take_new(deployment, sets, true).await?;
        let targets = Targets::of(deployment);
        if let Some(new) = &mut sets.new {
            self.resize(deployment, new, targets.replicas).await?;
        }
        if progress::is_complete(deployment, &deployment.status.clone().unwrap_or_default()) {
            self.clean_up(deployment, sets).await?;
        }
        Ok(())
    }

    fn old_pods_run(&self, sets: &Sets) -> bool {
        sets.old.iter().any(|set| {
            set.status.as_ref().is_some_and(|s| s.replicas > 0)
                || ownership::controlled_by(&self.pods, set.metadata.uid.as_deref().unwrap_or_default())
                    .iter()
                    .filter_map(|p| self.pods.decode(p))
                    .any(|p| !pods::is_terminal(&p))
        })
    }

    /// Makes `sets.new` what it should be: found, annotated, and created if `create`.
    async fn take_new(
        &self,
        deployment: &mut Deployment,
        sets: &mut Sets,
        create: bool,
    ) -> anyhow::Result<()> {
        let next = sets.old.iter().map(revision).max().unwrap_or(0) + 1;
        let now = self.ctx.clock.now();
        if let Some(new) = &sets.new {
            let mut wanted = new.clone();
            let mut changed = annotate_new(deployment, &mut wanted, next, true);
            let min_ready = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds);
            if let Some(spec) = &mut wanted.spec
                && spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0)
            {
                spec.min_ready_seconds = min_ready;
                changed = true;
            }
            if changed {
                let api = self.sets_api(deployment);
                wanted = api.replace(name(new), &PostParams::default(), &wanted).await?;
            }
            self.note_revision(deployment, revision(&wanted)).await?;
            let status = deployment.status.clone().unwrap_or_default();
            if progress::deadline(deployment).is_some()
                && progress::condition(&status, progress::PROGRESSING).is_none()
            {
                let text = format!("Found new replica set {:?}", name(&wanted));
                self.note_progress(deployment, "True", "FoundNewReplicaSet", text, now).await?;
            }
            sets.new = Some(wanted);
            return Ok(());
        }
        if !create {
            return Ok(());
        }
        let wanted = new_set(deployment, sets, next);
        let api = self.sets_api(deployment);
        let owner = Owner::of(deployment);
        let has_deadline = progress::deadline(deployment).is_some();
        match api.create(&PostParams::default(), &wanted).await {
            Ok(set) => {
                if replicas(&set) > 0 {
                    let text = format!("Scaled up replica set {} from 0 to {}", name(&set), replicas(&set));
                    self.recorder.normal(&reference(deployment), "ScalingReplicaSet", text);
                }
                self.note_revision(deployment, next).await?;
                if has_deadline {
                    let text = format!("Created new replica set {:?}", name(&set));
                    self.note_progress(deployment, "True", "NewReplicaSetCreated", text, now).await?;
                }
                sets.new = Some(set);
                Ok(())
            }
            Err(error) if error.is_already_exists() => {
                let taken = api.get(name(&wanted)).await?;
                let ours = taken
                    .metadata
                    .owner_references
                    .iter()
                    .flatten()
                    .any(|r| r.controller == Some(true) && r.uid == owner.uid);
                if ours && same_template(deployment, &taken) {
                    self.note_revision(deployment, revision(&taken)).await?;
                    sets.new = Some(taken);
                    return Ok(());
                }
                // Another template under this name: the next try hashes to another.
                let mut changed = deployment.clone();
                let status = changed.status.get_or_insert_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                self.replace_status(&changed).await?;
                Err(error.into())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => {
                let text =
                    format!("Failed to create new replica set {:?}: {}", name(&wanted), message(&error));
                if has_deadline {
                    self.note_progress(deployment, "False", "ReplicaSetCreateError", text.clone(), now)
                        .await?;
                }
                self.recorder.warning(&reference(deployment), "ReplicaSetCreateError", text);
                Err(error.into())
            }
        }
    }

    /// Sizes sets for a deployment that is paused or was scaled in the middle of a rollout.
    async fn scale(&self, deployment: &Deployment, sets: &mut Sets) -> anyhow::Result<()> {
        let targets = Targets::of(deployment);
        let active: Vec<&ReplicaSet> = sets.all().into_iter().filter(|s| replicas(s) > 0).collect();
        let only = match active.as_slice() {
            [] => sets.new.as_ref().or(sets.old.last()).map(|s| name(s).to_owned()),
            [one] => Some(name(one).to_owned()),
            _ => None,
        };
        let all = || -> Vec<ReplicaSet> { sets.all().into_iter().cloned().collect() };
        if let Some(only) = only {
            for mut set in all().into_iter().filter(|s| name(s) == only) {
                self.resize(deployment, &mut set, targets.replicas).await?;
                sets.put(set);
            }
        } else if sets.new.as_ref().is_some_and(|n| math::is_saturated(targets, n)) {
            for set in sets.old.iter_mut().filter(|s| replicas(s) > 0) {
                self.resize(deployment, set, 0).await?;
            }
        } else if targets.rolling {
            let mut active: Vec<ReplicaSet> = all().into_iter().filter(|s| replicas(s) > 0).collect();
            let before = deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
            for (i, size) in math::proportional(targets, before, &active) {
                self.resize(deployment, &mut active[i], size).await?;
                sets.put(active[i].clone());
            }
        }
        Ok(())
    }

    /// Sizes one set and notes the scale it was sized for. Returns whether its size changed.
    async fn resize(&self, deployment: &Deployment, set: &mut ReplicaSet, size: i32) -> anyhow::Result<bool> {
        let before = replicas(set);
        let mut wanted = set.clone();
        let annotated = annotate_scale(&mut wanted, Targets::of(deployment));
        if size == before && !annotated {
            return Ok(false);
        }
        if let Some(spec) = &mut wanted.spec {
            spec.replicas = Some(size);
        }
        *set = self.sets_api(deployment).replace(name(set), &PostParams::default(), &wanted).await?;
        if size == before {
            return Ok(false);
        }
        let direction = if size > before { "up" } else { "down" };
        let text = format!("Scaled {direction} replica set {} from {before} to {size}", name(set));
        self.recorder.normal(&reference(deployment), "ScalingReplicaSet", text);
        Ok(true)
    }

    /// Deletes old sets beyond the history limit.
    async fn clean_up(&self, deployment: &Deployment, sets: &mut Sets) -> anyhow::Result<()> {
        let limit = deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        if limit == i32::MAX {
            return Ok(());
        }
        let mut cleanable: Vec<&ReplicaSet> =
            sets.old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
        let surplus = cleanable.len().saturating_sub(limit.max(0) as usize);
        cleanable.sort_by_key(|s| (revision(s), created(s)));
        for set in cleanable.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let settled = status.observed_generation.unwrap_or(0) >= set.metadata.generation.unwrap_or(0);
            if status.replicas != 0 || replicas(set) != 0 || !settled {
                continue;
            }
            let delete = DeleteParams {
                preconditions: Some(Preconditions { uid: set.metadata.uid.clone(), resource_version: None }),
                ..DeleteParams::background()
            };
            self.sets_api(deployment).delete(name(set), &delete).await.ignore_not_found()?;
        }
        Ok(())
    }

    /// Notes that a deployment was paused or resumed, so that the deadline does not run on.
    async fn note_pause(&self, deployment: &mut Deployment) -> anyhow::Result<()> {
        if progress::deadline(deployment).is_none() {
            return Ok(());
        }
        let status = deployment.status.clone().unwrap_or_default();
        let reason = progress::condition(&status, progress::PROGRESSING).and_then(|c| c.reason.as_deref());
        let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
        let now = self.ctx.clock.now();
        match (reason, paused) {
            (Some(progress::TIMED_OUT), _) => Ok(()),
            (Some("DeploymentPaused"), false) => {
                self.note_progress(deployment, "Unknown", "DeploymentResumed", "Deployment is resumed", now)
                    .await
            }
            (reason, true) if reason != Some("DeploymentPaused") => {
                self.note_progress(deployment, "Unknown", "DeploymentPaused", "Deployment is paused", now)
                    .await
            }
            _ => Ok(()),
        }
    }

    async fn note_progress(
        &self,
        deployment: &mut Deployment,
        status: &str,
        reason: &str,
        text: impl Into<String>,
        now: jiff::Timestamp,
    ) -> anyhow::Result<()> {
        let condition = progress::new_condition(progress::PROGRESSING, status, reason, text, now);
        let mut changed = deployment.clone();
        progress::set_condition(changed.status.get_or_insert_default(), condition);
        if changed != *deployment {
            *deployment = self.replace_status(&changed).await?;
        }
        Ok(())
    }

    async fn note_revision(&self, deployment: &mut Deployment, revision: i64) -> anyhow::Result<()> {
        let revision = revision.to_string();
        let annotations = deployment.metadata.annotations.get_or_insert_default();
        if annotations.get(REVISION) == Some(&revision) {
            return Ok(());
        }
        // Upstream's role for this controller allows updates, not patches.
        annotations.insert(REVISION.to_owned(), revision);
        let api: Api<Deployment> = self.api(deployment);
        let name = deployment.metadata.name.clone().unwrap_or_default();
        *deployment = api.replace(&name, &PostParams::default(), deployment).await?;
        Ok(())
    }

    async fn write_status(&self, deployment: &Deployment, sets: &Sets) -> anyhow::Result<Option<Duration>> {
        let now = self.ctx.clock.now();
        let status = progress::rollout_status(deployment, &sets.all(), sets.new.as_ref(), now);
        let again = progress::look_again_in(deployment, &status, now);
        self.write(deployment, status).await?;
        Ok(again)
    }

    /// The status without judging progress.
    async fn write_counts(&self, deployment: &Deployment, sets: &Sets) -> anyhow::Result<Option<Duration>> {
        let status = progress::counts(deployment, &sets.all(), sets.new.as_ref(), self.ctx.clock.now());
        self.write(deployment, status).await?;
        Ok(None)
    }

    async fn write(&self, deployment: &Deployment, status: DeploymentStatus) -> anyhow::Result<()> {
        if same_status(deployment.status.as_ref(), &status) {
            return Ok(());
        }
        let changed = Deployment { status: Some(status), ..deployment.clone() };
        let name = changed.metadata.name.clone().unwrap_or_default();
        self.api(&changed)
            .replace_status(&name, &PostParams::default(), &changed)
            .await
            .ignore_not_found()?;
        Ok(())
    }

    async fn replace_status(&self, deployment: &Deployment) -> kube::Result<Deployment> {
        let name = deployment.metadata.name.clone().unwrap_or_default();
        self.api(deployment).replace_status(&name, &PostParams::default(), deployment).await
    }

    fn api(&self, deployment: &Deployment) -> Api<Deployment> {
        self.ctx.client.namespaced(deployment.metadata.namespace.as_deref().unwrap_or_default())
    }

    fn sets_api(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        self.ctx.client.namespaced(deployment.metadata.namespace.as_deref().unwrap_or_default())
    }
}

impl Sets {
    fn put(&mut self, set: ReplicaSet) {
        let slot = self.old.iter_mut().chain(&mut self.new).find(|s| name(s) == name(&set));
        if let Some(slot) = slot {
            *slot = set;
        }
    }
}

/// Absent numbers are zeros.
fn same_status(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let filled = |s: &DeploymentStatus| DeploymentStatus {
        replicas: Some(s.replicas.unwrap_or(0)),
        updated_replicas: Some(s.updated_replicas.unwrap_or(0)),
        ready_replicas: Some(s.ready_replicas.unwrap_or(0)),
        available_replicas: Some(s.available_replicas.unwrap_or(0)),
        unavailable_replicas: Some(s.unavailable_replicas.unwrap_or(0)),
        terminating_replicas: Some(s.terminating_replicas.unwrap_or(0)),
        conditions: Some(s.conditions.clone().unwrap_or_default()),
        ..s.clone()
    };
    old.is_some_and(|old| filled(old) == filled(new))
}

fn selector(deployment: &Deployment) -> apimachinery::selector::LabelSelector {
    selectors::from_optional(deployment.spec.as_ref().map(|s| &s.selector))
}

fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let (Some(ours), Some(theirs)) =
        (deployment.spec.as_ref(), set.spec.as_ref().and_then(|s| s.template.as_ref()))
    else {
        return false;
    };
    template::canonical(&ours.template) == template::canonical(theirs)
}

/// Of several sets with the deployment's template the oldest is the new one, for as long as it exists.
fn sort_out(deployment: &Deployment, mut sets: Vec<ReplicaSet>) -> Sets {
    sets.sort_by(|a, b| created(a).cmp(&created(b)).then_with(|| name(a).cmp(name(b))));
    let new = sets.iter().position(|s| same_template(deployment, s)).map(|i| sets.remove(i));
    Sets { new, old: sets }
}

fn new_set(deployment: &Deployment, sets: &Sets, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = template::hash(&spec.template, collisions);
    let mut pod_template = spec.template;
    let labels = pod_template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(template::HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector: MetaSelector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(template::HASH_LABEL.to_owned(), hash.clone());
    let total: i32 = sets.all().iter().map(|s| replicas(s)).sum();
    let owner = Owner::of(deployment);
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name)),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels),
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(math::new_size(Targets::of(deployment), total, 0)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(pod_template),
        }),
        status: None,
    };
    annotate_new(deployment, &mut set, revision, false);
    set
}
