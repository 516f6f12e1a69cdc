//! What to do about a set, and what to tell of it. Pure.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSetCondition;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::kind::{Replicated, Status};
use super::ranking::choose;
use crate::support::pods;
use crate::support::selectors;

/// Pods created or deleted in one go.
const BURST: usize = 500;
const REPLICA_FAILURE: &str = "ReplicaFailure";

#[derive(Debug, PartialEq)]
pub(crate) enum Replicas {
    Enough,
    Create(usize),
    Delete(Vec<Pod>),
}

/// `related` gives the active pods of the set's siblings; asked only when pods must go.
pub(crate) fn replicas<K: Replicated>(
    set: &K,
    active: &[Pod],
    related: impl FnOnce() -> Vec<Pod>,
) -> Replicas {
    let wanted = set.replicas().max(0) as usize;
    if active.len() < wanted {
        Replicas::Create((wanted - active.len()).min(BURST))
    } else if active.len() > wanted {
        let count = (active.len() - wanted).min(BURST);
        Replicas::Delete(choose(active, &related(), count))
    } else {
        Replicas::Enough
    }
}

pub(crate) fn status<K: Replicated>(
    set: &K,
    active: &[Pod],
    terminating: usize,
    failure: Option<&str>,
    now: Timestamp,
) -> Status {
    let template = set.template().metadata.and_then(|m| m.labels).unwrap_or_default();
    let template = selectors::from_map(&template);
    let count = |f: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| f(p)).count() as i32;
    let mut conditions = set.status().conditions;
    let failed_before = conditions.iter().any(|c| c.type_ == REPLICA_FAILURE);
    match failure {
        Some(message) if !failed_before => {
            let too_few = active.len() < set.replicas().max(0) as usize;
            conditions.push(ReplicaSetCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(if too_few { "FailedCreate" } else { "FailedDelete" }.to_owned()),
                message: Some(message.to_owned()),
                last_transition_time: Some(Time(now)),
            });
        }
        None => conditions.retain(|c| c.type_ != REPLICA_FAILURE),
        Some(_) => {}
    }
    Status {
        replicas: active.len() as i32,
        fully_labeled: count(&|p| selectors::matches(&template, p.metadata.labels.as_ref())),
        ready: count(&pods::is_ready),
        available: count(&|p| pods::is_available(p, set.min_ready_seconds(), now)),
        terminating: K::TELLS_TERMINATING.then_some(terminating as i32),
        observed_generation: set.meta().generation.unwrap_or(0),
        conditions,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": "s", "generation": 3}, "spec": {
            "replicas": replicas, "minReadySeconds": min_ready, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b", "v": "1"}}}}}))
        .unwrap()
    }

    fn pod(name: &str, version: &str, ready_at: Option<&str>) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"a": "b", "v": version}},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": if ready_at.is_some() {"True"} else {"False"}, "lastTransitionTime": ready_at}]}}))
        .unwrap()
    }

    #[test]
    fn how_many() {
        let active = [pod("a", "1", None), pod("b", "1", Some("2026-01-01T00:00:00Z"))];
        assert_eq!(replicas(&set(2, 0), &active, Vec::new), Replicas::Enough);
        assert_eq!(replicas(&set(5, 0), &active, Vec::new), Replicas::Create(3));
        assert_eq!(replicas(&set(1000, 0), &active, Vec::new), Replicas::Create(BURST));
        assert_eq!(replicas(&set(1, 0), &active, Vec::new), Replicas::Delete(vec![active[0].clone()]));
    }

    #[test]
    fn counts() {
        let now: Timestamp = "2026-01-01T00:00:10Z".parse().unwrap();
        let active = [
            pod("a", "1", None),
            pod("b", "1", Some("2026-01-01T00:00:00Z")),
            pod("c", "2", Some("2026-01-01T00:00:09Z")),
        ];
        let s = status(&set(3, 5), &active, 1, None, now);
        assert_eq!(
            (s.replicas, s.fully_labeled, s.ready, s.available, s.terminating, s.observed_generation),
            (3, 2, 2, 1, Some(1), 3)
        );
        let s = status(&set(9, 0), &active, 0, Some("quota"), now);
        assert_eq!(s.conditions[0].reason.as_deref(), Some("FailedCreate"));
        let mut failed = set(3, 0);
        failed.set_status(s);
        assert!(status(&failed, &active, 0, None, now).conditions.is_empty());
    }
}
