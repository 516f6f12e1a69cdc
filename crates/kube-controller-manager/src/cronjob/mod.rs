//! cronjob-controller: makes jobs on schedule.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use client::{EventRecorder, Informer, WorkQueue, reference, run_workers};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, Job, JobStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, PostParams};

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound, message};
use crate::support::ownership::{self, Owner};
use schedule::Schedule;

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this look like a clock gone wrong.
const MISSED_MAX: usize = 100;

struct Controller {
    ctx: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        crons: ctx.client.informer(),
        jobs: ctx.client.informer(),
        recorder: ctx.client.recorder("cronjob-controller", ""),
        ctx: ctx.clone(),
    });
    ownership::index_by_controller(&controller.jobs);
    let queue = WorkQueue::<String>::new();
    let q = queue.clone();
    controller.crons.subscribe(move |delta| q.add(delta.key()));
    controller.crons.synced().await;
    let q = queue.clone();
    controller.jobs.subscribe(move |delta| {
        for job in [Some(delta.object()), delta.old()].into_iter().flatten() {
            if let Some(owner) = job.attributes.controller().filter(|o| *o.kind == *"CronJob") {
                q.add(format!("{}/{}", job.namespace(), owner.name));
            }
        }
    });
    controller.jobs.synced().await;
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

fn ended(status: Option<&JobStatus>) -> Option<&str> {
    let conditions = status?.conditions.as_ref()?;
    let done =
        conditions.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    done.map(|c| c.type_.as_str())
}

/// The zone a schedule is read in. Zones beyond UTC come from the system's database.
fn zone(spec: &CronJobSpec) -> Result<TimeZone, String> {
    let Some(name) = spec.time_zone.as_deref().filter(|z| !matches!(*z, "UTC" | "Etc/UTC")) else {
        return Ok(TimeZone::UTC);
    };
    apimachinery::clock::time_zone(name).ok_or_else(|| format!("unknown time zone {name}"))
}

/// What the clock asks for.
#[derive(Debug, Default, PartialEq)]
struct Due {
    /// The latest time that has come and was not served.
    at: Option<Timestamp>,
    missed: usize,
    next: Option<Timestamp>,
}

fn due(cron: &CronJob, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Due {
    let last = cron.status.as_ref().and_then(|s| s.last_schedule_time.as_ref());
    let mut from = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |t| t.0);
    if let Some(limit) = cron.spec.starting_deadline_seconds {
        from = from.max(now - Duration::from_secs(limit.max(0) as u64));
    }
    let mut due = Due::default();
    let mut time = schedule.next(from, zone);
    while let Some(at) = time.filter(|at| *at <= now) {
        (due.at, due.missed) = (Some(at), due.missed + 1);
        time = if due.missed > 10 * MISSED_MAX {
            // Far behind: only what is near matters.
            due.missed += 1;
            schedule.next(at.max(now - Duration::from_secs(3600)), zone)
        } else {
            schedule.next(at, zone)
        };
    }
    due.next = time;
    due
}

impl Controller {
    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(mut cron) = self.crons.get_key_typed(key) else { return Ok(None) };
        let spec = cron.spec.clone();
        let owner = Owner::of(&cron);
        let before = cron.status.clone().unwrap_or_default();
        cron.status.get_or_insert_default();
        let children: Vec<Job> = ownership::controlled_by(&self.jobs, &owner.uid)
            .iter()
            .filter_map(|j| self.jobs.decode(j))
            .collect();
        self.follow(&mut cron, &owner, &children).await?;
        self.clean_up(&cron, &owner, &spec, &children).await?;
        let mut again = None;
        if !owner.deleting && !spec.suspend.unwrap_or(false) {
            again = self.start(&mut cron, &owner, &spec).await?;
        }
        if cron.status.as_ref() != Some(&before) {
            let api = self.ctx.client.namespaced::<CronJob>(&owner.namespace);
            api.replace_status(&owner.name, &PostParams::default(), &cron).await.ignore_not_found()?;
        }
        Ok(again)
    }

    /// Brings `status.active` up to date with the jobs.
    async fn follow(&self, cron: &mut CronJob, owner: &Owner, children: &[Job]) -> anyhow::Result<()> {
        let regarding = reference(cron);
        let status = cron.status.get_or_insert_default();
        let active = status.active.get_or_insert_default();
        for job in children {
            let (name, uid) = (job.metadata.name.clone().unwrap_or_default(), job.metadata.uid.clone());
            let listed = active.iter().position(|r| r.uid == uid);
            match (listed, ended(job.status.as_ref())) {
                (Some(at), Some(how)) => {
                    active.remove(at);
                    let text = format!("Saw completed job: {name}, condition: {how}");
                    self.recorder.normal(&regarding, "SawCompletedJob", text);
                    let done = job.status.as_ref().and_then(|s| s.completion_time.clone());
                    if how == "Complete" && done > status.last_successful_time {
                        status.last_successful_time = done;
                    }
                }
                (None, None) => {
                    // Ours, if a crash kept it out of the status.
                    let live =
                        self.ctx.client.namespaced::<CronJob>(&owner.namespace).get_opt(&owner.name).await?;
                    let known = live
                        .iter()
                        .flat_map(|c| &c.status)
                        .flat_map(|s| s.active.iter().flatten())
                        .any(|r| r.uid == uid);
                    if !known {
                        let text = format!("Saw a job that the controller did not create or forgot: {name}");
                        self.recorder.warning(&regarding, "UnexpectedJob", text);
                    }
                }
                (None, Some("Complete")) => {
                    let done = job.status.as_ref().and_then(|s| s.completion_time.clone());
                    if done > status.last_successful_time {
                        status.last_successful_time = done;
                    }
                }
                _ => {}
            }
        }
        let mut kept = Vec::new();
        for entry in active.drain(..) {
            let name = entry.name.clone().unwrap_or_default();
            let present = children.iter().any(|j| j.metadata.uid == entry.uid);
            let api = self.ctx.client.namespaced::<Job>(&owner.namespace);
            if present || api.get_opt(&name).await?.is_some_and(|j| j.metadata.uid == entry.uid) {
                kept.push(entry);
            } else {
                let text = format!("Active job went missing: {name}");
                self.recorder.normal(&regarding, "MissingJob", text);
            }
        }
        status.active = Some(kept).filter(|a| !a.is_empty());
        Ok(())
    }

    /// Deletes finished jobs beyond the history limits.
    async fn clean_up(
        &self,
        cron: &CronJob,
        owner: &Owner,
        spec: &CronJobSpec,
        children: &[Job],
    ) -> anyhow::Result<()> {
        for (how, limit) in
            [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
        {
            let Some(limit) = limit else { continue };
            let mut ended: Vec<&Job> = children
                .iter()
                .filter(|j| ended(j.status.as_ref()) == Some(how) && j.metadata.deletion_timestamp.is_none())
                .collect();
            ended.sort_by_key(|j| {
                let start = j.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
                (start, j.metadata.name.clone())
            });
            let surplus = ended.len().saturating_sub(limit.max(0) as usize);
            for job in ended.into_iter().take(surplus) {
                self.delete(cron, owner, job.metadata.name.as_deref().unwrap_or_default()).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, cron: &CronJob, owner: &Owner, job: &str) -> anyhow::Result<()> {
        let api = self.ctx.client.namespaced::<Job>(&owner.namespace);
        match api.delete(job, &DeleteParams::background()).await {
            Ok(_) => self.recorder.normal(&reference(cron), "SuccessfulDelete", format!("Deleted job {job}")),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                let text = format!("Deleted job: {}", message(&error));
                self.recorder.warning(&reference(cron), "FailedDelete", text);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Starts the job that is due, and says when the next one is.
    async fn start(
        &self,
        cron: &mut CronJob,
        owner: &Owner,
        spec: &CronJobSpec,
    ) -> anyhow::Result<Option<Duration>> {
        let regarding = reference(cron);
        let zone = match zone(spec) {
            Ok(zone) => zone,
            Err(why) => {
                self.recorder.warning(&regarding, "UnknownTimeZone", why);
                return Ok(None);
            }
        };
        let schedule = match Schedule::parse(&spec.schedule) {
            Ok(schedule) => schedule,
            Err(why) => {
                let text = format!("unparseable schedule: {:?} : {why}", spec.schedule);
                self.recorder.warning(&regarding, "UnparseableSchedule", text);
                return Ok(None);
            }
        };
        let now = self.ctx.clock.now();
        let due = due(cron, &schedule, &zone, now);
        let wait = |at: Timestamp| {
            Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(100)
        };
        let Some(next) = due.next else {
            let text = format!(
                "invalid schedule: {} : time difference between two schedules is less than 1 second",
                spec.schedule
            );
            self.recorder.warning(&regarding, "InvalidSchedule", text);
            return Ok(None);
        };
        let again = Some(wait(next));
        let Some(at) = due.at else { return Ok(again) };
        if due.missed > MISSED_MAX {
            self.recorder.warning(
                &regarding,
                "TooManyMissedTimes",
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew",
            );
        }
        if let Some(limit) = spec.starting_deadline_seconds
            && at + Duration::from_secs(limit.max(0) as u64) < now
        {
            let text = format!("Missed scheduled time to start a job: {at}");
            self.recorder.warning(&regarding, "MissSchedule", text);
            return Ok(again);
        }
        let name = format!("{}-{}", owner.name, at.as_second() / 60);
        let status = cron.status.get_or_insert_default();
        let active = status.active.clone().unwrap_or_default();
        let served = status.last_schedule_time.as_ref().is_some_and(|t| t.0 == at);
        if served || active.iter().any(|r| r.name.as_ref() == Some(&name)) {
            return Ok(again);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                self.recorder.normal(
                    &regarding,
                    "JobAlreadyActive",
                    "Not starting job because prior execution is running and concurrency policy is Forbid",
                );
                return Ok(again);
            }
            Some("Replace") => {
                for entry in &active {
                    self.delete(cron, owner, entry.name.as_deref().unwrap_or_default()).await?;
                }
                cron.status.get_or_insert_default().active = None;
            }
            _ => {}
        }
        let job = new_job(owner, spec, &name, at, &zone);
        let api = self.ctx.client.namespaced::<Job>(&owner.namespace);
        let made = match api.create(&PostParams::default(), &job).await {
            Ok(made) => {
                self.recorder.normal(&regarding, "SuccessfulCreate", format!("Created job {name}"));
                made
            }
            Err(error) if error.is_namespace_terminating() => return Ok(None),
            Err(error) if error.is_already_exists() => {
                let made = api.get(&name).await?;
                let ours = made.metadata.owner_references.iter().flatten().any(|r| r.uid == owner.uid);
                anyhow::ensure!(ours, "job {name} exists and belongs to somebody else");
                made
            }
            Err(error) => {
                let text = format!("Error creating job: {}", message(&error));
                self.recorder.warning(&regarding, "FailedCreate", text);
                return Err(error.into());
            }
        };
        let status = cron.status.get_or_insert_default();
        if ended(made.status.as_ref()).is_none() {
            status.active.get_or_insert_default().push(ObjectReference {
                api_version: Some("batch/v1".to_owned()),
                kind: Some("Job".to_owned()),
                namespace: made.metadata.namespace.clone(),
                name: made.metadata.name.clone(),
                uid: made.metadata.uid.clone(),
                resource_version: made.metadata.resource_version.clone(),
                field_path: None,
            });
        }
        status.last_schedule_time = Some(Time(at));
        Ok(again)
    }
}

fn new_job(owner: &Owner, spec: &CronJobSpec, name: &str, at: Timestamp, zone: &TimeZone) -> Job {
    let template = spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let local = at.to_zoned(zone.clone());
    let text = match zone == &TimeZone::UTC {
        true => apimachinery::clock::rfc3339_seconds(at),
        false => local.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
    };
    annotations.insert(SCHEDULED_AT.to_owned(), text);
    Job {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(owner.namespace.clone()),
            labels: meta.labels,
            annotations: Some(annotations),
            creation_timestamp: None,
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_due() {
        let now: Timestamp = "2026-01-01T00:10:30Z".parse().unwrap();
        let minute = Schedule::parse("* * * * *").unwrap();
        let t = |s: &str| Some(format!("2026-01-01T00:{s}Z").parse::<Timestamp>().unwrap());
        for (last, deadline, want) in [
            (Some("2026-01-01T00:10:00Z"), None, (None, 0)),
            (Some("2026-01-01T00:09:00Z"), None, (t("10:00"), 1)),
            (Some("2026-01-01T00:05:00Z"), None, (t("10:00"), 5)),
            (None, None, (t("10:00"), 10)),
            (None, Some(90), (t("10:00"), 1)),
            (None, Some(20), (None, 0)),
        ] {
            let cron: CronJob = serde_json::from_value(json!({
                "metadata": {"creationTimestamp": "2026-01-01T00:00:30Z"},
                "spec": {"schedule": "", "jobTemplate": {}, "startingDeadlineSeconds": deadline},
                "status": {"lastScheduleTime": last}}))
            .unwrap();
            let due = due(&cron, &minute, &TimeZone::UTC, now);
            assert_eq!((due.at, due.missed), want, "{last:?} {deadline:?}");
            assert_eq!(due.next, t("11:00"));
        }
    }
}
