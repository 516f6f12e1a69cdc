//! ttl-after-finished-controller: deletes finished jobs when their time is up.

use std::time::Duration;

use client::{Delta, WorkQueue, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};

use crate::Context;
use crate::support::errors::IgnoreNotFound;

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let queue = WorkQueue::<String>::new();
    let jobs = ctx.client.informer::<Job>();
    let q = queue.clone();
    jobs.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            q.add(delta.key());
        }
    });
    jobs.synced().await;
    run_workers(queue, 2, ctx.shutdown.clone(), move |key| {
        let (ctx, job) = (ctx.clone(), jobs.get_key_typed(&key));
        async move {
            match job.as_ref().and_then(|j| left(j, ctx.clock.now())) {
                Some(left) if left.is_zero() => expire(&ctx, &key).await,
                left => Ok(left),
            }
        }
    })
    .await;
    Ok(())
}

/// How long a finished job still has; `None` for those that stay.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let done = conditions
        .iter()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    let at = done.last_transition_time.as_ref()?.0 + Duration::from_secs(ttl.max(0) as u64);
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

async fn expire(ctx: &Context, key: &str) -> kube::Result<Option<Duration>> {
    let (namespace, name) = key.split_once('/').unwrap_or_default();
    let api = ctx.client.namespaced::<Job>(namespace);
    // The time may have been extended in the meantime.
    let Some(job) = api.get_opt(name).await? else { return Ok(None) };
    match left(&job, ctx.clock.now()) {
        Some(left) if left.is_zero() => {}
        left => return Ok(left),
    }
    let delete = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        preconditions: Some(Preconditions { uid: job.metadata.uid, resource_version: None }),
        ..DeleteParams::default()
    };
    api.delete(name, &delete).await.ignore_not_found()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn time_left() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        for (ttl, finished, want) in [
            (Some(90), true, Some(30)),
            (Some(60), true, Some(0)),
            (Some(0), true, Some(0)),
            (None, true, None),
            (Some(60), false, None),
        ] {
            let conditions = match finished {
                true => {
                    json!([{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
                }
                false => json!([]),
            };
            let job: Job = serde_json::from_value(json!({"metadata": {}, "spec": {"template": {},
                "ttlSecondsAfterFinished": ttl}, "status": {"conditions": conditions}}))
            .unwrap();
            assert_eq!(left(&job, now).map(|d| d.as_secs()), want);
        }
    }
}
