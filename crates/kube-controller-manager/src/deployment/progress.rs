//! What a deployment tells of itself. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::math::Targets;
use super::replica_sets::{name, replicas};

pub(crate) const AVAILABLE: &str = "Available";
pub(crate) const PROGRESSING: &str = "Progressing";
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";
pub(crate) const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub(crate) const TIMED_OUT: &str = "ProgressDeadlineExceeded";

pub(crate) fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

pub(crate) fn new_condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// Puts a condition in unless one of the same status and reason is there.
pub(crate) fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(old) = conditions.iter().find(|c| c.type_ == condition.type_) {
        if old.status == condition.status && old.reason == condition.reason {
            return;
        }
        if old.status == condition.status {
            condition.last_transition_time = old.last_transition_time.clone();
        }
    }
    conditions.retain(|c| c.type_ != condition.type_);
    conditions.push(condition);
}

pub(crate) fn remove_condition(status: &mut DeploymentStatus, kind: &str) {
    status.conditions.get_or_insert_default().retain(|c| c.type_ != kind);
}

/// The deadline, where there is one.
pub(crate) fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| Duration::from_secs(seconds.max(0) as u64))
}

/// Counts over all sets, and the Available condition.
pub(crate) fn counts(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |f: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        all.iter().filter_map(|s| s.status.as_ref()).map(f).sum()
    };
    let available = sum(|s| s.available_replicas.unwrap_or(0));
    let wanted: i32 = all.iter().map(|s| replicas(s)).sum();
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(|s| s.replicas)),
        updated_replicas: Some(new.and_then(|n| n.status.as_ref()).map_or(0, |s| s.replicas)),
        ready_replicas: Some(sum(|s| s.ready_replicas.unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some((wanted - available).max(0)),
        terminating_replicas: Some(sum(|s| s.terminating_replicas.unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    let enough = available >= Targets::of(deployment).min_available();
    set_condition(
        &mut status,
        match enough {
            true => new_condition(
                AVAILABLE,
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
                now,
            ),
            false => new_condition(
                AVAILABLE,
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
                now,
            ),
        },
    );
    status
}

pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(Targets::of(deployment).replicas);
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |v: Option<i32>| v.unwrap_or(0);
    n(new.updated_replicas) > n(old.updated_replicas)
        || n(new.replicas) - n(new.updated_replicas) < n(old.replicas) - n(old.updated_replicas)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn is_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(condition)) = (deadline(deployment), condition(status, PROGRESSING)) else {
        return false;
    };
    match condition.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => condition.last_update_time.as_ref().is_some_and(|t| t.0 + deadline < now),
    }
}

/// The status of a rollout: counts, availability, progress, failures.
pub(crate) fn rollout_status(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let mut status = counts(deployment, all, new, now);
    let old = deployment.status.clone().unwrap_or_default();
    if deadline(deployment).is_none() {
        remove_condition(&mut status, PROGRESSING);
    }
    let current = condition(&old, PROGRESSING).cloned();
    let was_complete = status.replicas == status.updated_replicas
        && current.as_ref().is_some_and(|c| c.reason.as_deref() == Some(NEW_SET_AVAILABLE));
    if deadline(deployment).is_some() && !was_complete {
        let subject = match new {
            Some(new) => format!("ReplicaSet {:?}", name(new)),
            None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
        };
        if is_complete(deployment, &status) {
            let message = format!("{subject} has successfully progressed.");
            set_condition(&mut status, new_condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message, now));
        } else if is_progressing(&old, &status) {
            let message = format!("{subject} is progressing.");
            let mut condition = new_condition(PROGRESSING, "True", "ReplicaSetUpdated", message, now);
            // Each bit of progress moves the deadline, so the condition is always put in anew.
            if let Some(current) = current.filter(|c| c.status == "True") {
                condition.last_transition_time = current.last_transition_time;
            }
            remove_condition(&mut status, PROGRESSING);
            set_condition(&mut status, condition);
        } else if is_timed_out(deployment, &status, now) {
            let message = format!("{subject} has timed out progressing.");
            set_condition(&mut status, new_condition(PROGRESSING, "False", TIMED_OUT, message, now));
        }
    }
    match failure(all, new, now) {
        Some(condition) => set_condition(&mut status, condition),
        None => remove_condition(&mut status, REPLICA_FAILURE),
    }
    status
}

fn failure(all: &[&ReplicaSet], new: Option<&ReplicaSet>, now: Timestamp) -> Option<DeploymentCondition> {
    let of = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        let c = conditions.iter().find(|c| c.type_ == REPLICA_FAILURE)?;
        Some(DeploymentCondition {
            last_transition_time: c.last_transition_time.clone(),
            ..new_condition(
                REPLICA_FAILURE,
                &c.status,
                c.reason.as_deref().unwrap_or_default(),
                c.message.clone().unwrap_or_default(),
                now,
            )
        })
    };
    new.and_then(of).or_else(|| all.iter().find_map(|s| of(s)))
}

/// When to look again because the deadline may have passed.
pub(crate) fn look_again_in(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let (deadline, condition) = (deadline(deployment)?, condition(status, PROGRESSING)?);
    if is_complete(deployment, status) || condition.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let at = condition.last_update_time.as_ref()?.0 + deadline + Duration::from_secs(1);
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO).max(Duration::from_millis(10)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d", "generation": 2},
            "spec": {"replicas": 2, "progressDeadlineSeconds": 60, "selector": {}, "template": {}}, "status": status}))
        .unwrap()
    }

    fn set(replicas: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(
            json!({"metadata": {"name": "d-1"}, "spec": {"replicas": replicas, "selector": {}},
            "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available}}),
        )
        .unwrap()
    }

    fn progress(status: &DeploymentStatus) -> (String, String) {
        let c = condition(status, PROGRESSING).unwrap();
        (c.status.clone(), c.reason.clone().unwrap())
    }

    #[test]
    fn tells_of_progress() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let stuck = json!({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1, "availableReplicas": 1, "conditions": [
            {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
             "lastUpdateTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        for (d, s, want) in [
            (deployment(json!({})), set(2, 1), ("True", "ReplicaSetUpdated")),
            (deployment(json!({})), set(2, 2), ("True", NEW_SET_AVAILABLE)),
            (deployment(stuck.clone()), set(2, 1), ("False", TIMED_OUT)),
            (deployment(stuck), set(2, 2), ("True", NEW_SET_AVAILABLE)),
        ] {
            let status = rollout_status(&d, &[&s], Some(&s), now);
            let got = progress(&status);
            assert_eq!((got.0.as_str(), got.1.as_str()), want);
            assert_eq!(status.unavailable_replicas, Some(2 - status.available_replicas.unwrap()));
        }
    }

    #[test]
    fn looks_again_after_the_deadline() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let d = deployment(json!({}));
        let status = rollout_status(&d, &[&set(2, 1)], Some(&set(2, 1)), now);
        assert_eq!(look_again_in(&d, &status, now), Some(Duration::from_secs(61)));
        let done = rollout_status(&d, &[&set(2, 2)], Some(&set(2, 2)), now);
        assert_eq!(look_again_in(&d, &done, now), None);
    }
}
