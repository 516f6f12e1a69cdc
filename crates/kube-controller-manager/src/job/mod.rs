//! job-controller: runs pods to completion.

mod indexes;
mod plan;
mod policy;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound};
use crate::support::expectations::Expectations;
use crate::support::ownership::{self, Owner};
use crate::support::pod_control::{create_pod, delete_pod, pod_from_template, slow_start};
use crate::support::pods;
use crate::support::selectors;
use plan::{Backoff, FINALIZER, INDEX, INDEX_FAILURES, Plan, Work, has_finalizer, plan};

/// Put on pods of jobs; tells stray ones without decoding.
const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const OURS: &str = "kubernetes.io/job-controller";
/// Changes to pods are gathered for this long, so that many make one status update.
const GATHER: Duration = Duration::from_millis(100);

struct Controller {
    ctx: Context,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    /// Pods whose finalizer nobody will remove.
    strays: WorkQueue<String>,
    expectations: Expectations,
    backoffs: Mutex<HashMap<String, Backoff>>,
    /// UIDs of pods whose finalizer was removed and which the informer may still show with it, by job UID.
    counted: Mutex<HashMap<String, HashSet<String>>>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        jobs: ctx.client.informer(),
        pods: ctx.client.informer(),
        queue: WorkQueue::new(),
        strays: WorkQueue::new(),
        expectations: Expectations::default(),
        backoffs: Mutex::default(),
        counted: Mutex::default(),
        recorder: ctx.client.recorder("job-controller", ""),
        ctx: ctx.clone(),
    });
    ownership::index_by_controller(&controller.pods);
    let c = controller.clone();
    controller.jobs.subscribe(move |delta| {
        if let Delta::Deleted(job) = delta {
            for pod in ownership::controlled_by(&c.pods, job.uid()) {
                c.strays.add(pod.key());
            }
            c.counted.lock().remove(job.uid());
            c.backoffs.lock().remove(job.uid());
            c.expectations.forget(&delta.key());
        }
        c.queue.add(delta.key());
    });
    controller.jobs.synced().await;
    let c = controller.clone();
    controller.pods.subscribe(move |delta| c.pod_changed(delta));
    controller.pods.synced().await;
    let (c, s) = (controller.clone(), controller.clone());
    tokio::join!(
        run_workers(controller.queue.clone(), 5, ctx.shutdown.clone(), move |key| {
            let controller = c.clone();
            async move { controller.sync(&key).await }
        }),
        run_workers(controller.strays.clone(), 2, ctx.shutdown.clone(), move |key| {
            let controller = s.clone();
            async move { controller.release_stray(&key).await }
        }),
    );
    Ok(())
}

impl Controller {
    fn pod_changed(&self, delta: &Delta) {
        let pod = delta.object();
        let owner = pod.attributes.controller().filter(|o| *o.kind == *"Job");
        let job = owner.and_then(|o| {
            self.jobs.get(pod.namespace(), &o.name).filter(|j| j.uid() == &*o.uid).map(|j| j.key())
        });
        let was = delta.old().and_then(|old| {
            let owner = old.attributes.controller().filter(|o| *o.kind == *"Job")?;
            Some(format!("{}/{}", old.namespace(), owner.name))
        });
        if let Some(was) = was.filter(|w| job.as_ref() != Some(w)) {
            self.queue.add(was);
        }
        match (&job, delta) {
            (Some(key), Delta::Added(_)) if !pod.attributes.deleting => {
                self.expectations.creation_observed(key);
            }
            (Some(key), _) if pod.attributes.deleting || matches!(delta, Delta::Deleted(_)) => {
                self.expectations.deletion_observed(key, pod.uid());
            }
            _ => {}
        }
        match job {
            Some(key) => self.queue.add_after(key, GATHER),
            None if pod.attributes.label(CONTROLLER_UID).is_some() || owner.is_some() => {
                self.strays.add(pod.key());
                if owner.is_none() && !matches!(delta, Delta::Deleted(_)) {
                    self.offer(pod);
                }
            }
            None => {}
        }
    }

    /// Orphans that a job's selector matches may be adopted.
    fn offer(&self, pod: &apimachinery::object::Encoded) {
        for object in self.jobs.list(Some(pod.namespace())) {
            let Some(job) = self.jobs.decode(&object) else { continue };
            let selector = selectors::from_optional(job.spec.as_ref().and_then(|s| s.selector.as_ref()));
            if selector.matches(&pod.attributes) {
                self.queue.add(object.key());
            }
        }
    }

    /// A pod whose job is gone or finished is nobody's to count.
    async fn release_stray(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(pod) = self.pods.get_key_typed(key).filter(has_finalizer) else { return Ok(None) };
        let controller = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        if let Some(owner) = controller.filter(|o| o.kind == "Job") {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            // The informer of jobs may be behind that of pods.
            let job = self.ctx.client.namespaced::<Job>(namespace).get_opt(&owner.name).await?;
            if job.is_some_and(|j| j.metadata.uid.as_ref() == Some(&owner.uid) && !plan::is_finished(&j)) {
                return Ok(None);
            }
        } else if controller.is_none() {
            // A moment for a job to adopt it.
            let old =
                pod.metadata.creation_timestamp.as_ref().map(|t| self.ctx.clock.now().duration_since(t.0));
            if old.is_some_and(|age| age.as_secs() < 2) && !pods::is_deleting(&pod) {
                return Ok(Some(Duration::from_secs(2)));
            }
        }
        self.remove_finalizer(&pod).await?;
        Ok(None)
    }

    async fn remove_finalizer(&self, pod: &Pod) -> kube::Result<()> {
        let rest: Vec<&String> =
            pod.metadata.finalizers.iter().flatten().filter(|f| *f != FINALIZER).collect();
        let patch = json!({"metadata": {"uid": pods::uid(pod), "finalizers": rest}});
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.ctx.client.namespaced::<Pod>(namespace);
        api.patch(pods::name(pod), &PatchParams::default(), &Patch::Merge(patch)).await.ignore_not_found()?;
        Ok(())
    }

    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(mut job) = self.jobs.get_key_typed(key) else { return Ok(None) };
        let spec = job.spec.clone().unwrap_or_default();
        if plan::is_finished(&job) || spec.managed_by.as_deref().is_some_and(|m| m != OURS) {
            return Ok(None);
        }
        let owner = Owner::of(&job);
        let settled = self.expectations.satisfied(key);
        let selector = selectors::from_optional(spec.selector.as_ref());
        let owned = ownership::claim::<Job, Pod>(&self.ctx, &self.pods, &owner, &selector).await?;
        let all: Vec<Pod> = owned.iter().filter_map(|p| self.pods.decode(p)).collect();
        let counted = {
            let mut counted = self.counted.lock();
            match counted.get_mut(&owner.uid) {
                Some(set) => {
                    set.retain(|uid| all.iter().any(|p| pods::uid(p) == uid && has_finalizer(p)));
                    set.clone()
                }
                None => HashSet::new(),
            }
        };
        let now = self.ctx.clock.now();
        let status = job.status.get_or_insert_default();
        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        uncounted.failed.get_or_insert_default();
        uncounted.succeeded.get_or_insert_default();
        let before = status.clone();
        let suspended = spec.suspend.unwrap_or(false);
        if status.start_time.is_none() && !suspended {
            status.start_time = Some(Time(now));
        }
        let backoff = self.backoffs.lock().get(&owner.uid).copied().unwrap_or_default();
        let mut plan = plan(&job, &all, &counted, backoff, settled, now);

        let failure = self.work(key, &job, &owner, &mut plan, settled).await;
        self.note_suspension(&mut job, &plan, now);
        let status = job.status.get_or_insert_default();
        status.active = Some(plan.active.len() as i32);
        status.ready = Some(plan.ready);
        status.terminating = Some(plan.terminating);
        self.track(&mut job, &owner, &all, &counted, &plan, before, now).await?;
        self.backoffs.lock().insert(owner.uid.clone(), plan.backoff);
        failure?;
        Ok(plan.again)
    }

    /// Makes and deletes pods. Afterwards `plan` tells what is active, and `finish` is taken back where that must
    /// wait.
    async fn work(
        &self,
        key: &str,
        job: &Job,
        owner: &Owner,
        plan: &mut Plan,
        settled: bool,
    ) -> anyhow::Result<()> {
        if plan.finish.is_some() {
            let doomed = plan.active.clone();
            let result = self.delete(key, job, owner, plan, doomed).await;
            if !plan.active.is_empty() || !settled {
                plan.finish = None;
                plan.again = Some(Duration::from_secs(1));
            }
            return result;
        }
        match std::mem::take(&mut plan.work) {
            Work::Nothing => Ok(()),
            Work::Delete(doomed) => self.delete(key, job, owner, plan, doomed).await,
            Work::Create(wanted) => self.create(key, job, owner, plan, wanted).await,
        }
    }

    async fn delete(
        &self,
        key: &str,
        job: &Job,
        owner: &Owner,
        plan: &mut Plan,
        doomed: Vec<Pod>,
    ) -> anyhow::Result<()> {
        if doomed.is_empty() {
            return Ok(());
        }
        self.expectations.expect_deletions(key, doomed.iter().map(|p| pods::uid(p).to_owned()));
        let regarding = reference(job);
        let mut deletions: FuturesUnordered<_> = doomed
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
                    (pod, result.ignore_not_found())
                }
            })
            .collect();
        let mut failure = None;
        while let Some((pod, result)) = deletions.next().await {
            match result {
                Ok(_) => {
                    plan.active.retain(|p| pods::uid(p) != pods::uid(pod));
                    plan.ready -= i32::from(pods::is_ready(pod));
                    plan.terminating += 1;
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |e| Err(e.into()))
    }

    async fn create(
        &self,
        key: &str,
        job: &Job,
        owner: &Owner,
        plan: &mut Plan,
        wanted: Vec<Option<(i32, u32)>>,
    ) -> anyhow::Result<()> {
        let spec = job.spec.clone().unwrap_or_default();
        self.expectations.expect_creations(key, wanted.len());
        let regarding = reference(job);
        let made = Mutex::new(Vec::new());
        let (created, failure) = slow_start(wanted.len(), |i| {
            let per_index = spec.backoff_limit_per_index.is_some();
            let pod = new_pod(&spec.template, owner, wanted[i], per_index);
            let (regarding, made) = (&regarding, &made);
            async move {
                match create_pod(&self.ctx, &self.recorder, regarding, &pod).await {
                    Err(error) if error.is_namespace_terminating() => {
                        self.expectations.creation_observed(key);
                        Ok(())
                    }
                    Err(error) => Err(error),
                    Ok(pod) => {
                        made.lock().push(pod);
                        Ok(())
                    }
                }
            }
        })
        .await;
        for _ in created..wanted.len() {
            self.expectations.creation_observed(key);
        }
        plan.active.append(&mut made.lock());
        failure.map_or(Ok(()), |e| Err(e.into()))
    }

    fn note_suspension(&self, job: &mut Job, plan: &Plan, now: Timestamp) {
        let Some(suspended) = plan.suspended else { return };
        let (wanted, reason, message, event) = match suspended {
            true => ("True", "JobSuspended", "Job suspended", "Suspended"),
            false => ("False", "JobResumed", "Job resumed", "Resumed"),
        };
        let regarding = reference(job);
        let status = job.status.get_or_insert_default();
        let conditions = status.conditions.get_or_insert_default();
        let present = conditions.iter_mut().find(|c| c.type_ == "Suspended");
        let new = JobCondition {
            status: wanted.to_owned(),
            ..plan::new_condition("Suspended", reason, message, now)
        };
        match present {
            Some(c) if c.status == wanted => return,
            Some(c) => *c = new,
            // A job that never was suspended does not say it was resumed.
            None if !suspended => return,
            None => conditions.push(new),
        }
        status.start_time = (!suspended).then_some(Time(now));
        self.recorder.normal(&regarding, event, message);
    }

    /// Counts finished pods in three steps, so that a crash in between neither loses nor doubles one: their UIDs go
    /// into the status, their finalizers go, then they go into the counters.
    async fn track(
        &self,
        job: &mut Job,
        owner: &Owner,
        all: &[Pod],
        counted: &HashSet<String>,
        plan: &Plan,
        before: JobStatus,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        let spec = job.spec.clone().unwrap_or_default();
        let completions = spec.completions.unwrap_or(1);
        let indexed = plan::is_indexed(&spec);
        let failing = plan.finish.as_ref().is_some_and(|c| c.type_ == "FailureTarget");
        let deleting = job.metadata.deletion_timestamp.is_some();
        let tracked: Vec<&Pod> =
            all.iter().filter(|p| has_finalizer(p) && !counted.contains(pods::uid(p))).collect();
        let status = job.status.get_or_insert_default();
        count_those_without_finalizer(status, &tracked, indexed);

        let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
        let (good, bad) =
            (uncounted.succeeded.get_or_insert_default(), uncounted.failed.get_or_insert_default());
        let mut release: Vec<&Pod> = Vec::new();
        for &pod in &tracked {
            let uid = pods::uid(pod).to_owned();
            let failed = policy::has_failed(&spec, pod);
            if pods::phase(pod) == "Succeeded" {
                // Completed indexes are not counted by UID.
                if !indexed && !good.contains(&uid) && !bad.contains(&uid) {
                    good.push(uid);
                }
            } else if failed || plan.finish.is_some() || deleting {
                let known = bad.contains(&uid);
                let counts = policy::judge(spec.pod_failure_policy.as_ref(), pod) != policy::Failure::Ignore;
                let ours = !indexed || plan::index_of(pod, completions).is_some();
                if !known && counts && ours && (failed || failing) {
                    bad.push(uid);
                }
            } else {
                continue;
            }
            release.push(pod);
        }
        if let Some(done) = &plan.succeeded_indexes {
            status.succeeded = Some(done.len() as i32);
            status.completed_indexes = Some(indexes::format(done)).filter(|t| !t.is_empty());
            status.failed_indexes = plan.failed_indexes.as_ref().map(indexes::format);
        }
        let mut finished = plan.finish.clone();
        if let Some(target) = &plan.finish {
            if plan::condition(status, &target.type_).is_none() {
                status.conditions.get_or_insert_default().push(target.clone());
            }
            let kind = if failing { "Failed" } else { "Complete" };
            finished = Some(plan::new_condition(
                kind,
                target.reason.as_deref().unwrap_or_default(),
                target.message.as_deref().unwrap_or_default(),
                now,
            ));
        }
        if !release.is_empty() {
            if *status != before {
                self.write(job).await?;
            }
            self.release(owner, &release).await?;
            let left: Vec<&Pod> = tracked
                .iter()
                .copied()
                .filter(|p| !release.iter().any(|r| pods::uid(r) == pods::uid(p)))
                .collect();
            count_those_without_finalizer(job.status.get_or_insert_default(), &left, indexed);
        }
        let written = release.is_empty().then_some(before);
        let status = job.status.get_or_insert_default();
        // Pods still going would change the counters afterwards.
        let mut event = None;
        if let Some(condition) = finished.filter(|_| plan.terminating <= 0) {
            if condition.type_ == "Complete" {
                status.completion_time = Some(Time(now));
            }
            status.ready = Some(0);
            status.conditions.get_or_insert_default().push(condition.clone());
            event = Some(condition);
        }
        if written.is_some_and(|before| before == *status) {
            return Ok(());
        }
        self.write(job).await?;
        if let Some(condition) = event {
            let text = condition.message.clone().unwrap_or_default();
            match condition.type_.as_str() {
                "Complete" => self.recorder.normal(&reference(job), "Completed", "Job completed"),
                _ => self.recorder.warning(
                    &reference(job),
                    condition.reason.as_deref().unwrap_or_default(),
                    text,
                ),
            }
        }
        Ok(())
    }

    async fn write(&self, job: &mut Job) -> kube::Result<()> {
        let owner = Owner::of(job);
        let api = self.ctx.client.namespaced::<Job>(&owner.namespace);
        if let Some(updated) =
            api.replace_status(&owner.name, &PostParams::default(), job).await.ignore_not_found()?
        {
            *job = updated;
        }
        Ok(())
    }

    async fn release(&self, owner: &Owner, pods_done: &[&Pod]) -> kube::Result<()> {
        let mut removals: FuturesUnordered<_> =
            pods_done.iter().map(|pod| async move { (*pod, self.remove_finalizer(pod).await) }).collect();
        let mut failure = None;
        while let Some((pod, result)) = removals.next().await {
            match result {
                Ok(()) => {
                    let mut counted = self.counted.lock();
                    counted.entry(owner.uid.clone()).or_default().insert(pods::uid(pod).to_owned());
                }
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Moves UIDs whose finalizer is gone into the counters.
fn count_those_without_finalizer(status: &mut JobStatus, tracked: &[&Pod], indexed: bool) {
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let count = |list: &mut Option<Vec<String>>| {
        let list = list.get_or_insert_default();
        let before = list.len();
        list.retain(|uid| tracked.iter().any(|p| pods::uid(p) == uid));
        (before - list.len()) as i32
    };
    let (good, bad) = (count(&mut uncounted.succeeded), count(&mut uncounted.failed));
    if !indexed {
        status.succeeded =
            Some(status.succeeded.unwrap_or(0) + good).filter(|n| *n > 0 || status.succeeded.is_some());
    }
    status.failed = Some(status.failed.unwrap_or(0) + bad).filter(|n| *n > 0 || status.failed.is_some());
}

fn new_pod(template: &PodTemplateSpec, owner: &Owner, index: Option<(i32, u32)>, per_index: bool) -> Pod {
    let mut pod = pod_from_template(template, owner);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let Some((index, failures)) = index else { return pod };
    let text = index.to_string();
    let suffix = format!("-{index}-");
    let mut prefix = owner.name.clone();
    prefix.truncate(63 - 5 - suffix.len());
    pod.metadata.generate_name = Some(prefix + &suffix);
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), text);
    if per_index {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{}-{index}", owner.name));
        let variable = EnvVar {
            name: "JOB_COMPLETION_INDEX".to_owned(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    field_path: format!("metadata.labels['{INDEX}']"),
                    ..ObjectFieldSelector::default()
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        };
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            let env = container.env.get_or_insert_default();
            if !env.iter().any(|v| v.name == variable.name) {
                env.push(variable.clone());
            }
        }
    }
    pod
}
