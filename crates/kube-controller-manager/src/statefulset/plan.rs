//! What a stateful set does next. Pure.
//!
//! Ordered sets take one step at a time and wait for it; parallel ones take all steps that are due.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::deployment::math::scaled;
use crate::support::ownership::Owner;
use crate::support::pods;
use crate::support::revisions::POD_REVISION;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// A revision by name, with its template.
pub(super) struct Revision<'a> {
    pub(super) name: &'a str,
    pub(super) template: PodTemplateSpec,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Create(Box<Pod>),
    Delete(Box<Pod>),
    /// Makes sure that a pending pod's claims exist.
    Claims(Box<Pod>),
}

pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: StatefulSetStatus,
}

/// The ordinal in a pod's name, if it is one of `set`.
pub(super) fn ordinal(set: &str, pod: &Pod) -> Option<i32> {
    let text = pods::name(pod).strip_prefix(set)?.strip_prefix('-')?;
    let number: i32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn revision(pod: &Pod) -> &str {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|l| l.get(POD_REVISION)).map(String::as_str).unwrap_or_default()
}

fn runs_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::is_ready(pod)
}

/// The claim that a template makes for a pod.
pub(super) fn claims(set: &StatefulSet, pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let spec = set.spec.clone().unwrap_or_default();
    let matching = spec.selector.match_labels.unwrap_or_default();
    spec.volume_claim_templates
        .unwrap_or_default()
        .into_iter()
        .map(|mut claim| {
            let template = claim.metadata.name.take().unwrap_or_default();
            claim.metadata.name = Some(format!("{template}-{}", pods::name(pod)));
            claim.metadata.namespace = set.metadata.namespace.clone();
            claim.metadata.labels.get_or_insert_default().extend(matching.clone());
            claim.status = None;
            claim
        })
        .collect()
}

fn new_pod(set: &StatefulSet, owner: &Owner, from: &Revision<'_>, ordinal: i32) -> Pod {
    let spec = set.spec.clone().unwrap_or_default();
    let name = format!("{}-{ordinal}", owner.name);
    let meta = from.template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(POD_REVISION.to_owned(), from.name.to_owned());
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(owner.namespace.clone()),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: from.template.spec.clone(),
        status: None,
    };
    if let Some(pod_spec) = &mut pod.spec {
        pod_spec.hostname = Some(name.clone());
        pod_spec.subdomain = spec.service_name.clone().filter(|s| !s.is_empty());
        let templates = spec.volume_claim_templates.unwrap_or_default();
        let own: BTreeMap<String, Volume> = templates
            .iter()
            .map(|t| {
                let template = t.metadata.name.clone().unwrap_or_default();
                let claim = PersistentVolumeClaimVolumeSource {
                    claim_name: format!("{template}-{name}"),
                    read_only: None,
                };
                let volume = Volume {
                    name: template.clone(),
                    persistent_volume_claim: Some(claim),
                    ..Volume::default()
                };
                (template, volume)
            })
            .collect();
        let given = pod_spec.volumes.take().unwrap_or_default();
        let mut volumes: Vec<Volume> = own.values().cloned().collect();
        volumes.extend(given.into_iter().filter(|v| !own.contains_key(&v.name)));
        pod_spec.volumes = Some(volumes).filter(|v| !v.is_empty());
    }
    pod
}

pub(super) fn plan(
    set: &StatefulSet,
    current: &Revision<'_>,
    update: &Revision<'_>,
    pods_all: &[Pod],
    collisions: Option<i32>,
    now: Timestamp,
) -> Plan {
    let owner = Owner::of(set);
    let spec = set.spec.clone().unwrap_or_default();
    let wanted = spec.replicas.unwrap_or(1).max(0);
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let partition = rolling.and_then(|r| r.partition).unwrap_or(0);
    let on_delete = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");

    let mut replicas: Vec<Option<&Pod>> = vec![None; wanted as usize];
    let mut condemned: Vec<(i32, &Pod)> = Vec::new();
    for pod in pods_all {
        match ordinal(&owner.name, pod) {
            Some(n) if n >= start && n < start + wanted => replicas[(n - start) as usize] = Some(pod),
            Some(n) => condemned.push((n, pod)),
            None => {}
        }
    }
    condemned.sort_by_key(|(n, _)| -n);

    let mut steps = Vec::new();
    if set.metadata.deletion_timestamp.is_none() {
        let revision_of = |n: i32| {
            let keep = !on_delete && n < start + partition;
            if keep { current } else { update }
        };
        let pod_at = |i: usize| {
            let n = start + i as i32;
            new_pod(set, &owner, revision_of(n), n)
        };
        let view =
            View { spec: &spec, now, ordered: spec.pod_management_policy.as_deref() != Some("Parallel") };
        let blocked =
            view.fill(&replicas, pod_at, &mut steps) || view.shrink(&replicas, &condemned, &mut steps);
        if !blocked && !on_delete {
            view.update(&replicas, partition, update.name, &mut steps);
        }
    }
    let status = status(set, current, update, pods_all, &steps, collisions, now);
    Plan { steps, status }
}

struct View<'a> {
    spec: &'a StatefulSetSpec,
    now: Timestamp,
    ordered: bool,
}

impl View<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        runs_ready(pod) && pods::is_available(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        self.is_available(pod) && !pods::is_deleting(pod)
    }

    /// Makes what is missing. Returns whether the set must wait before anything else happens.
    fn fill(&self, replicas: &[Option<&Pod>], pod_at: impl Fn(usize) -> Pod, steps: &mut Vec<Step>) -> bool {
        let mut blocked = false;
        for (i, pod) in replicas.iter().enumerate() {
            let Some(pod) = pod else {
                steps.push(Step::Create(Box::new(pod_at(i))));
                if self.ordered {
                    return true;
                }
                continue;
            };
            if pods::is_terminal(pod) {
                if !pods::is_deleting(pod) {
                    steps.push(Step::Delete(Box::new((*pod).clone())));
                }
                blocked = true;
                if self.ordered {
                    return true;
                }
                continue;
            }
            if pods::phase(pod) == "Pending" {
                steps.push(Step::Claims(Box::new((*pod).clone())));
            }
            if self.ordered && (pods::is_deleting(pod) || !self.is_available(pod)) {
                return true;
            }
        }
        blocked
    }

    /// Deletes what is too many, highest ordinal first.
    fn shrink(&self, replicas: &[Option<&Pod>], condemned: &[(i32, &Pod)], steps: &mut Vec<Step>) -> bool {
        let lowest_condemned = condemned.iter().rev().map(|(_, p)| *p);
        let first_unhealthy =
            replicas.iter().flatten().copied().chain(lowest_condemned).find(|p| !self.is_healthy(p));
        let mut blocked = false;
        for (_, pod) in condemned {
            if pods::is_deleting(pod) {
                if self.ordered {
                    return true;
                }
                continue;
            }
            let is_first = first_unhealthy.is_some_and(|p| pods::uid(p) == pods::uid(pod));
            if self.ordered && !self.is_available(pod) && !is_first {
                return true;
            }
            steps.push(Step::Delete(Box::new((*pod).clone())));
            blocked = true;
            if self.ordered {
                return true;
            }
        }
        blocked
    }

    /// Replaces pods of other revisions, highest ordinal first, never more than may be unavailable.
    fn update(&self, replicas: &[Option<&Pod>], partition: i32, update: &str, steps: &mut Vec<Step>) {
        let rolling = self.spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
        let limit = rolling.and_then(|r| r.max_unavailable.as_ref());
        let mut room = limit.map_or(1, |l| scaled(Some(l), replicas.len() as i32, false)).max(1);
        for (i, pod) in replicas.iter().enumerate().rev() {
            if (i as i32) < partition || room == 0 {
                return;
            }
            let Some(pod) = pod else {
                room -= 1;
                continue;
            };
            if revision(pod) != update && !pods::is_deleting(pod) {
                steps.push(Step::Delete(Box::new((*pod).clone())));
                room -= 1;
            } else if !self.is_healthy(pod) {
                room -= 1;
            }
        }
    }
}

fn status(
    set: &StatefulSet,
    current: &Revision<'_>,
    update: &Revision<'_>,
    pods_all: &[Pod],
    steps: &[Step],
    collisions: Option<i32>,
    now: Timestamp,
) -> StatefulSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let of_revision = |name: &str| {
        let counts = |p: &&Pod| !pods::is_deleting(p) && revision(p) == name;
        pods_all.iter().filter(counts).count() as i32
    };
    let created = |name: &str| {
        let of = |s: &&Step| matches!(s, Step::Create(p) if revision(p) == name);
        steps.iter().filter(of).count() as i32
    };
    let deleted = |name: &str| {
        let of = |s: &&Step| matches!(s, Step::Delete(p) if !pods::is_deleting(p) && revision(p) == name);
        steps.iter().filter(of).count() as i32
    };
    let made = steps.iter().filter(|s| matches!(s, Step::Create(_))).count() as i32;
    let ready = pods_all.iter().filter(|p| runs_ready(p));
    let available = ready.clone().filter(|p| pods::is_available(p, min_ready, now)).count() as i32;
    let count = |name: &str| of_revision(name) + created(name) - deleted(name);
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: pods_all.len() as i32 + made,
        ready_replicas: Some(ready.count() as i32),
        available_replicas: Some(available),
        current_revision: Some(current.name.to_owned()),
        update_revision: Some(update.name.to_owned()),
        current_replicas: Some(count(current.name)),
        updated_replicas: Some(count(update.name)),
        collision_count: Some(collisions.unwrap_or(0)),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    };
    let wanted = spec.replicas.unwrap_or(1);
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    if rolling
        && status.updated_replicas == Some(wanted)
        && status.ready_replicas == Some(wanted)
        && status.replicas == wanted
    {
        status.current_revision = status.update_revision.clone();
        status.current_replicas = status.updated_replicas;
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(replicas: i32, extra: Value) -> StatefulSet {
        let mut spec = json!({"replicas": replicas, "serviceName": "s", "selector": {"matchLabels": {"a": "b"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}});
        for (k, v) in extra.as_object().unwrap() {
            spec[k] = v.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "w", "namespace": "n", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    /// `ordinal:revision:state`, state being r(eady), p(ending), d(eleting) or f(ailed).
    fn pods_of(text: &str) -> Vec<Pod> {
        let one = |t: &str| -> Pod {
            let parts: Vec<&str> = t.split(':').collect();
            let (phase, ready) = match parts[2] {
                "p" => ("Pending", "False"),
                "f" => ("Failed", "False"),
                _ => ("Running", "True"),
            };
            let mut pod = json!({"metadata": {"name": format!("w-{}", parts[0]), "uid": parts[0],
                "labels": {POD_REVISION: parts[1]}}, "status": {"phase": phase, "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            if parts[2] == "d" {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(pod).unwrap()
        };
        text.split_whitespace().map(one).collect()
    }

    fn run(set: &StatefulSet, pods: &str) -> (String, StatefulSetStatus) {
        let template = set.spec.as_ref().unwrap().template.clone();
        let old = Revision { name: "1", template: template.clone() };
        let new = Revision { name: "2", template };
        let plan = plan(set, &old, &new, &pods_of(pods), None, Timestamp::now());
        let text = |s: &Step| match s {
            Step::Create(p) => Some(format!("+{}:{}", pods::name(p), revision(p))),
            Step::Delete(p) => Some(format!("-{}", pods::name(p))),
            Step::Claims(_) => None,
        };
        let steps: Vec<String> = plan.steps.iter().filter_map(text).collect();
        (steps.join(" "), plan.status)
    }

    #[test]
    fn ordered_sets_take_one_step_at_a_time() {
        for (replicas, pods, want) in [
            (3, "", "+w-0:2"),
            (3, "0:2:p", ""),
            (3, "0:2:r", "+w-1:2"),
            (3, "0:2:r 2:2:r", "+w-1:2"),
            (3, "0:2:f 1:2:r 2:2:r", "-w-0"),
            (1, "0:2:r 1:2:r 2:2:r", "-w-2"),
            (1, "0:2:r 1:2:r 2:2:d", ""),
            (1, "0:2:p 1:2:r 2:2:r", ""),
            (3, "0:1:r 1:1:r 2:1:r", "-w-2"),
            (3, "0:1:r 1:1:r 2:1:d", ""),
            (3, "0:1:r 1:1:r 2:2:r", "-w-1"),
            (3, "0:2:r 1:2:r 2:2:r", ""),
        ] {
            assert_eq!(run(&set(replicas, json!({})), pods).0, want, "{replicas} {pods}");
        }
    }

    #[test]
    fn parallel_sets_take_all_steps() {
        let parallel = |n| set(n, json!({"podManagementPolicy": "Parallel"}));
        for (replicas, pods, want) in [
            (3, "", "+w-0:2 +w-1:2 +w-2:2"),
            (3, "1:2:p", "+w-0:2 +w-2:2"),
            (1, "0:2:p 1:2:r 2:2:p", "-w-2 -w-1"),
        ] {
            let (steps, _) = run(&parallel(replicas), pods);
            assert_eq!(steps, want, "{replicas} {pods}");
        }
    }

    #[test]
    fn partitions_and_on_delete() {
        let split =
            set(3, json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}));
        assert_eq!(run(&split, "0:1:r 1:1:r 2:1:r").0, "-w-2");
        assert_eq!(run(&split, "0:1:r 1:1:r 2:2:r").0, "");
        assert_eq!(run(&split, "0:1:r 2:2:r").0, "+w-1:1");
        let (_, status) = run(&split, "0:1:r 1:1:r 2:2:r");
        assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(1)));
        let manual = set(2, json!({"updateStrategy": {"type": "OnDelete"}}));
        assert_eq!(run(&manual, "0:1:r 1:1:r").0, "");
        assert_eq!(run(&manual, "0:1:r").0, "+w-1:2");
    }

    #[test]
    fn a_finished_update_becomes_current() {
        let (_, status) = run(&set(2, json!({})), "0:2:r 1:2:r");
        assert_eq!((status.current_revision.as_deref(), status.current_replicas), (Some("2"), Some(2)));
        let (_, status) = run(&set(2, json!({})), "0:2:r 1:2:p");
        assert_eq!(status.current_revision.as_deref(), Some("1"));
    }
}
