//! How a job stands and which pods it needs. Pure.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes::{self, Indexes};
use super::policy::{self, Failure};
use crate::support::pods;

pub(super) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
pub(super) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
const BACKOFF_BASE: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(600);
/// Pods made or deleted in one go.
const BURST: usize = 500;

/// Failures since the last success, as they slow down new pods.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Backoff {
    pub(super) failures: u32,
    pub(super) last: Option<Timestamp>,
}

impl Backoff {
    fn left(&self, now: Timestamp) -> Duration {
        let Some(last) = self.last.filter(|_| self.failures > 0) else { return Duration::ZERO };
        let wait = BACKOFF_BASE.saturating_mul(1u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX));
        let at = last + wait.min(BACKOFF_MAX);
        Duration::try_from(at.duration_since(now)).unwrap_or_default()
    }
}

#[derive(Debug, Default, PartialEq)]
pub(super) enum Work {
    #[default]
    Nothing,
    /// New pods, by index where the job has indexes: (index, failures of the index so far).
    Create(Vec<Option<(i32, u32)>>),
    Delete(Vec<Pod>),
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) work: Work,
    /// FailureTarget or SuccessCriteriaMet: delete what is active, then finish.
    pub(super) finish: Option<JobCondition>,
    pub(super) active: Vec<Pod>,
    pub(super) ready: i32,
    pub(super) terminating: i32,
    pub(super) succeeded_indexes: Option<Indexes>,
    pub(super) failed_indexes: Option<Indexes>,
    pub(super) backoff: Backoff,
    pub(super) again: Option<Duration>,
    /// The job should say so: suspended, or resumed.
    pub(super) suspended: Option<bool>,
}

pub(super) fn new_condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub(super) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
}

pub(super) fn is_finished(job: &Job) -> bool {
    job.status.as_ref().is_some_and(|s| condition(s, "Complete").or(condition(s, "Failed")).is_some())
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

pub(super) fn has_finalizer(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

pub(super) fn index_of(pod: &Pod, completions: i32) -> Option<i32> {
    let index: i32 = pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()?;
    (0..completions).contains(&index).then_some(index)
}

fn index_failures(pod: &Pod) -> u32 {
    let text = pod.metadata.annotations.as_ref().and_then(|a| a.get(INDEX_FAILURES));
    text.and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn finished_at(pod: &Pod, now: Timestamp) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ends = statuses.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    ends.map(|t| t.0).max().or(pod.metadata.deletion_timestamp.as_ref().map(|t| t.0)).unwrap_or(now).min(now)
}

/// `counted` are the UIDs whose finalizer was removed already, `settled` whether the informer has seen all that was
/// asked for.
pub(super) fn plan(
    job: &Job,
    pods_all: &[Pod],
    counted: &HashSet<String>,
    mut backoff: Backoff,
    settled: bool,
    now: Timestamp,
) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let active: Vec<Pod> = pods_all.iter().filter(|p| pods::is_active(p)).cloned().collect();
    let terminating =
        pods_all.iter().filter(|p| pods::is_deleting(p) && !pods::is_terminal(p)).count() as i32;
    let ready = active.iter().filter(|p| pods::is_ready(p)).count() as i32;

    let known = |p: &Pod| {
        let uid = pods::uid(p).to_owned();
        let listed = |list: &Option<Vec<String>>| list.iter().flatten().any(|u| *u == uid);
        counted.contains(&uid) || listed(&uncounted.succeeded) || listed(&uncounted.failed)
    };
    let fresh: Vec<&Pod> = pods_all.iter().filter(|p| has_finalizer(p) && !known(p)).collect();
    let new_succeeded: Vec<&&Pod> = fresh.iter().filter(|p| pods::phase(p) == "Succeeded").collect();
    let new_failed: Vec<&&Pod> = fresh.iter().filter(|p| policy::has_failed(&spec, p)).collect();
    let failure_policy = spec.pod_failure_policy.as_ref();
    let counts = |p: &Pod| policy::judge(failure_policy, p) != Failure::Ignore;

    let list = |l: &Option<Vec<String>>| l.as_ref().map_or(0, Vec::len) as i32;
    let mut succeeded =
        status.succeeded.unwrap_or(0) + new_succeeded.len() as i32 + list(&uncounted.succeeded);
    let failed = status.failed.unwrap_or(0)
        + new_failed.iter().filter(|p| counts(p)).count() as i32
        + list(&uncounted.failed);

    let last_success = new_succeeded.iter().map(|p| finished_at(p, now)).max();
    if last_success.is_some() {
        backoff = Backoff::default();
    }
    for pod in &new_failed {
        let at = finished_at(pod, now);
        if last_success.is_none_or(|s| at > s) {
            backoff.failures += 1;
            backoff.last = backoff.last.max(Some(at));
        }
    }

    let mut again: Option<Duration> = None;
    let suspended = spec.suspend.unwrap_or(false);
    let target = |reason: &str, message: &str| Some(new_condition("FailureTarget", reason, message, now));
    let mut finish =
        condition(&status, "SuccessCriteriaMet").or(condition(&status, "FailureTarget")).cloned();
    if finish.is_none() {
        let verdict = pods_all.iter().filter(|p| policy::has_failed(&spec, p)).find_map(|p| {
            match policy::judge(failure_policy, p) {
                Failure::FailJob(message) => Some(message),
                _ => None,
            }
        });
        finish = verdict.and_then(|message| target("PodFailurePolicy", &message));
    }
    if finish.is_none() {
        let limit =
            spec.backoff_limit.unwrap_or(if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
        if failed > limit || restarts_exceed(&spec, pods_all, limit) {
            finish = target("BackoffLimitExceeded", "Job has reached the specified backoff limit");
        } else if let (Some(deadline), Some(start), false) =
            (spec.active_deadline_seconds, &status.start_time, suspended)
        {
            let at = start.0 + Duration::from_secs(deadline.max(0) as u64);
            if now >= at {
                finish = target("DeadlineExceeded", "Job was active longer than specified deadline");
            } else {
                again = Duration::try_from(at.duration_since(now)).ok();
            }
        }
    }

    let completions = spec.completions.unwrap_or(1);
    let mut succeeded_indexes = None;
    let mut failed_indexes = None;
    if is_indexed(&spec) {
        let mut done = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default(), completions);
        done.extend(new_succeeded.iter().filter_map(|p| index_of(p, completions)));
        succeeded = done.len() as i32;
        if let Some(limit) = spec.backoff_limit_per_index {
            let text = status.failed_indexes.as_deref().unwrap_or_default();
            let mut lost = indexes::parse(text, completions);
            for pod in pods_all.iter().filter(|p| policy::has_failed(&spec, p)) {
                let Some(index) = index_of(pod, completions) else { continue };
                let verdict = policy::judge(failure_policy, pod);
                let exhausted =
                    verdict != Failure::Ignore && index_failures(pod) as i64 + 1 > i64::from(limit);
                if verdict == Failure::FailIndex || exhausted {
                    lost.insert(index);
                }
            }
            if finish.is_none() {
                if spec.max_failed_indexes.is_some_and(|max| lost.len() as i64 > i64::from(max)) {
                    finish = target(
                        "MaxFailedIndexesExceeded",
                        "Job has exceeded the specified maximal number of failed indexes",
                    );
                } else if !lost.is_empty() && lost.len() + done.len() >= completions.max(0) as usize {
                    finish = target("FailedIndexes", "Job has failed indexes");
                }
            }
            failed_indexes = Some(lost);
        }
        if finish.is_none()
            && let Some(message) = policy::success(spec.success_policy.as_ref(), completions, &done)
        {
            finish = Some(new_condition("SuccessCriteriaMet", "SuccessPolicy", &message, now));
        }
        succeeded_indexes = Some(done);
    }

    let mut plan = Plan {
        ready,
        terminating,
        succeeded_indexes,
        failed_indexes,
        backoff,
        again,
        finish,
        ..Plan::default()
    };
    if plan.finish.is_none() {
        if settled && job.metadata.deletion_timestamp.is_none() {
            plan.suspended = Some(suspended);
            manage(&spec, pods_all, &active, succeeded, now, &mut plan);
        }
        let complete = match spec.completions {
            None => succeeded > 0 && active.is_empty(),
            Some(completions) => succeeded >= completions && active.is_empty(),
        };
        if complete && settled {
            let message = "Reached expected number of succeeded pods";
            plan.finish = Some(new_condition("SuccessCriteriaMet", "CompletionsReached", message, now));
            plan.suspended = None;
            plan.work = Work::Nothing;
        }
    }
    plan.active = active;
    plan
}

/// Containers restarted in place count as failures, too.
fn restarts_exceed(spec: &JobSpec, pods_all: &[Pod], limit: i32) -> bool {
    if spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let restarts: i32 = pods_all
        .iter()
        .filter(|p| matches!(pods::phase(p), "Running" | "Pending"))
        .flat_map(|p| &p.status)
        .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()))
        .map(|c| c.restart_count)
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

fn manage(spec: &JobSpec, pods_all: &[Pod], active: &[Pod], succeeded: i32, now: Timestamp, plan: &mut Plan) {
    if plan.suspended == Some(true) {
        if !active.is_empty() {
            plan.work = Work::Delete(active.to_vec());
        }
        return;
    }
    let parallelism = spec.parallelism.unwrap_or(1).max(0) as usize;
    let wanted = match spec.completions {
        None if succeeded > 0 => active.len(),
        None => parallelism,
        Some(completions) => {
            let lost = plan.failed_indexes.as_ref().map_or(0, Indexes::len);
            ((completions - succeeded).max(0) as usize).saturating_sub(lost).min(parallelism)
        }
    };
    let doomed = surplus(spec, active, wanted, plan);
    if !doomed.is_empty() {
        plan.work = Work::Delete(doomed);
        return;
    }
    let only_failed = policy::replaces_only_failed(spec);
    let occupied = active.len() + if only_failed { plan.terminating.max(0) as usize } else { 0 };
    let missing = wanted.saturating_sub(occupied).min(BURST);
    if missing == 0 {
        return;
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    if !per_index {
        let left = plan.backoff.left(now);
        if !left.is_zero() {
            plan.again = Some(plan.again.map_or(left, |a| a.min(left)));
            return;
        }
    }
    if !is_indexed(spec) {
        plan.work = Work::Create(vec![None; missing]);
        return;
    }
    let completions = spec.completions.unwrap_or(1);
    let taken: HashSet<i32> = pods_all
        .iter()
        .filter(|p| !pods::is_terminal(p) && (only_failed || !pods::is_deleting(p)))
        .filter_map(|p| index_of(p, completions))
        .collect();
    // Failures per index so far, and the last of them.
    let mut history: BTreeMap<i32, Backoff> = BTreeMap::new();
    if per_index {
        for pod in pods_all.iter().filter(|p| policy::has_failed(spec, p)) {
            let Some(index) = index_of(pod, completions) else { continue };
            let ignored = policy::judge(spec.pod_failure_policy.as_ref(), pod) == Failure::Ignore;
            let entry = history.entry(index).or_default();
            entry.failures = entry.failures.max(index_failures(pod) + u32::from(!ignored));
            entry.last = entry.last.max(Some(finished_at(pod, now)));
        }
    }
    let mut create = Vec::new();
    for index in 0..completions {
        if create.len() == missing {
            break;
        }
        let done = plan.succeeded_indexes.as_ref().is_some_and(|d| d.contains(&index));
        let lost = plan.failed_indexes.as_ref().is_some_and(|l| l.contains(&index));
        if done || lost || taken.contains(&index) {
            continue;
        }
        let past = history.get(&index).copied().unwrap_or_default();
        let left = past.left(now);
        if left.is_zero() {
            create.push(Some((index, past.failures)));
        } else {
            plan.again = Some(plan.again.map_or(left, |a| a.min(left)));
        }
    }
    if !create.is_empty() {
        plan.work = Work::Create(create);
    }
}

/// Active pods to delete: those whose index is done, foreign or taken twice, then the least far along.
fn surplus(spec: &JobSpec, active: &[Pod], wanted: usize, plan: &Plan) -> Vec<Pod> {
    let mut order: Vec<&Pod> = active.iter().collect();
    let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
    // Those to keep come first.
    order.sort_by_key(|p| {
        let unassigned = pods::node_name(p).is_empty();
        (unassigned, pods::phase(p) != "Running", !pods::is_ready(p), created(p))
    });
    let mut doomed: Vec<Pod> = Vec::new();
    let mut kept: Vec<&Pod> = Vec::new();
    let mut seen: HashSet<i32> = HashSet::new();
    for pod in order {
        let misplaced = is_indexed(spec)
            && match index_of(pod, spec.completions.unwrap_or(1)) {
                None => true,
                Some(i) => {
                    plan.succeeded_indexes.as_ref().is_some_and(|d| d.contains(&i))
                        || plan.failed_indexes.as_ref().is_some_and(|l| l.contains(&i))
                        || !seen.insert(i)
                }
            };
        if misplaced {
            doomed.push(pod.clone());
        } else {
            kept.push(pod);
        }
    }
    doomed.extend(kept.into_iter().skip(wanted).cloned());
    doomed.truncate(BURST);
    doomed
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(spec: Value, status: Value) -> Job {
        let mut full = json!({"template": {"spec": {"restartPolicy": "Never", "containers": []}}});
        for (k, v) in spec.as_object().unwrap() {
            full[k] = v.clone();
        }
        serde_json::from_value(
            json!({"metadata": {"name": "j", "namespace": "n"}, "spec": full, "status": status}),
        )
        .unwrap()
    }

    fn pod(name: &str, phase: &str, index: Option<i32>, failures: u32) -> Pod {
        let mut annotations = json!({INDEX_FAILURES: failures.to_string()});
        if let Some(i) = index {
            annotations[INDEX] = json!(i.to_string());
        }
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "finalizers": [FINALIZER],
            "annotations": annotations}, "status": {"phase": phase}}))
        .unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn run(job: &Job, pods: &[Pod]) -> Plan {
        plan(job, pods, &HashSet::new(), Backoff::default(), true, now())
    }

    fn reason(plan: &Plan) -> Option<&str> {
        plan.finish.as_ref().and_then(|c| c.reason.as_deref())
    }

    #[test]
    fn as_many_pods_as_remain() {
        let j = job(json!({"parallelism": 3, "completions": 5, "backoffLimit": 6}), json!({"succeeded": 3}));
        assert_eq!(run(&j, &[pod("a", "Running", None, 0)]).work, Work::Create(vec![None]));
        assert_eq!(run(&j, &[]).work, Work::Create(vec![None; 2]));
        let three: Vec<Pod> = ["a", "b", "c"].iter().map(|n| pod(n, "Running", None, 0)).collect();
        assert!(matches!(run(&j, &three).work, Work::Delete(d) if d.len() == 1));
        let done = job(json!({"parallelism": 3, "completions": 5}), json!({"succeeded": 5}));
        assert_eq!(reason(&run(&done, &[])), Some("CompletionsReached"));
        let suspended = job(json!({"parallelism": 3, "completions": 5, "suspend": true}), json!({}));
        assert!(matches!(run(&suspended, &three).work, Work::Delete(d) if d.len() == 3));
    }

    #[test]
    fn failures_slow_down_and_end_the_job() {
        let j = job(json!({"parallelism": 1, "completions": 1, "backoffLimit": 1}), json!({}));
        let one = run(&j, &[pod("a", "Failed", None, 0)]);
        assert_eq!((&one.work, one.again), (&Work::Nothing, Some(Duration::from_secs(10))));
        let two = run(&j, &[pod("a", "Failed", None, 0), pod("b", "Failed", None, 0)]);
        assert_eq!(reason(&two), Some("BackoffLimitExceeded"));
        // What was counted is not counted again.
        let counted = HashSet::from(["a".to_owned(), "b".to_owned()]);
        let pods = [pod("a", "Failed", None, 0), pod("b", "Failed", None, 0)];
        assert_eq!(reason(&plan(&j, &pods, &counted, Backoff::default(), true, now())), None);
        let late = job(
            json!({"parallelism": 1, "activeDeadlineSeconds": 5}),
            json!({"startTime": "2025-12-31T23:59:00Z"}),
        );
        assert_eq!(reason(&run(&late, &[])), Some("DeadlineExceeded"));
    }

    #[test]
    fn indexes_fail_one_by_one() {
        let spec = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 3, "backoffLimitPerIndex": 0});
        let j = job(spec, json!({"completedIndexes": "2", "succeeded": 1}));
        let p = run(&j, &[pod("a", "Failed", Some(0), 0)]);
        assert_eq!(indexes::format(p.failed_indexes.as_ref().unwrap()), "0");
        assert_eq!(p.work, Work::Create(vec![Some((1, 0))]));
        let p = run(&j, &[pod("a", "Failed", Some(0), 0), pod("b", "Succeeded", Some(1), 0)]);
        assert_eq!(indexes::format(p.succeeded_indexes.as_ref().unwrap()), "1,2");
        assert_eq!(reason(&p), Some("FailedIndexes"));
    }

    #[test]
    fn each_index_runs_once() {
        let j = job(json!({"completionMode": "Indexed", "parallelism": 4, "completions": 4}), json!({}));
        let p = run(&j, &[pod("a", "Running", Some(1), 0), pod("b", "Running", Some(1), 0)]);
        assert!(matches!(p.work, Work::Delete(d) if d.len() == 1));
        let p = run(&j, &[pod("a", "Running", Some(1), 0)]);
        assert_eq!(p.work, Work::Create(vec![Some((0, 0)), Some((2, 0)), Some((3, 0))]));
    }
}
