//! What ReplicaSets say about the deployment they belong to.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::math::Targets;

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a deployment that its ReplicaSets do not inherit.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

pub(crate) fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

pub(crate) fn created(set: &ReplicaSet) -> Option<Timestamp> {
    set.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

fn annotation<T: std::str::FromStr>(set: &ReplicaSet, key: &str) -> Option<T> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

pub(crate) fn desired_annotation(set: &ReplicaSet) -> Option<i32> {
    annotation(set, DESIRED)
}

pub(crate) fn max_annotation(set: &ReplicaSet) -> Option<i32> {
    annotation(set, MAX)
}

pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).unwrap_or(0)
}

fn insert(annotations: &mut BTreeMap<String, String>, key: &str, value: String) -> bool {
    if annotations.get(key) == Some(&value) {
        return false;
    }
    annotations.insert(key.to_owned(), value);
    true
}

/// Notes the scale a set was last sized for; returns whether that changed.
pub(crate) fn annotate_scale(set: &mut ReplicaSet, t: Targets) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let desired = insert(annotations, DESIRED, t.replicas.to_string());
    insert(annotations, MAX, t.max_total().to_string()) || desired
}

/// Gives the new set the deployment's annotations and its revision; returns whether anything changed.
pub(crate) fn annotate_new(
    deployment: &Deployment,
    set: &mut ReplicaSet,
    new_revision: i64,
    exists: bool,
) -> bool {
    let old_revision = revision(set);
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            changed |= insert(annotations, key, value.clone());
        }
    }
    if old_revision < new_revision {
        // A set that comes back remembers the revisions it was.
        if old_revision > 0 {
            let history = annotations.get(REVISION_HISTORY).filter(|h| !h.is_empty());
            let history = match history {
                Some(history) => format!("{history},{old_revision}"),
                None => old_revision.to_string(),
            };
            insert(annotations, REVISION_HISTORY, history);
        }
        changed |= insert(annotations, REVISION, new_revision.to_string());
    }
    if !exists {
        changed |= annotate_scale(set, Targets::of(deployment));
    }
    changed
}
