//! disruption-controller: how many pods of each PodDisruptionBudget may be disrupted now.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::selector::LabelSelector;
use client::{
    Delta, EventRecorder, Informer, RawInformer, Resource, Selection, WorkQueue, reference, run_workers,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;

use crate::Context;
use crate::deployment::math::scaled;
use crate::support::errors::IgnoreNotFound;
use crate::support::pods;
use crate::support::selectors;

/// An evicted pod that is still there after this long was not deleted after all.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";
/// Kinds with a scale that is known without asking.
const SCALED: [(&str, &str, &str); 4] = [
    ("apps/v1", "ReplicaSet", "replicasets"),
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("v1", "ReplicationController", "replicationcontrollers"),
];

struct Controller {
    ctx: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scaled: HashMap<&'static str, RawInformer>,
    queue: WorkQueue<String>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let informer = |(api_version, kind, plural): (&'static str, &'static str, &str)| {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        (kind, ctx.client.raw_informer(Resource::new(group, version, plural), Selection::all()))
    };
    let controller = Arc::new(Controller {
        budgets: ctx.client.informer(),
        pods: ctx.client.informer(),
        scaled: SCALED.into_iter().map(informer).collect(),
        queue: WorkQueue::new(),
        recorder: ctx.client.recorder("controllermanager", ""),
        ctx: ctx.clone(),
    });
    let c = controller.clone();
    controller.budgets.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            c.queue.add(delta.key());
        }
    });
    controller.budgets.synced().await;
    let c = controller.clone();
    controller.pods.subscribe(move |delta| {
        for pod in [Some(delta.object()), delta.old()].into_iter().flatten() {
            c.enqueue_for(pod);
        }
    });
    controller.pods.synced().await;
    for (kind, informer) in &controller.scaled {
        let (c, kind) = (controller.clone(), *kind);
        // A new scale moves percentages, without any pod changing yet.
        informer.subscribe(move |delta| {
            if let Delta::Updated { old, new } = delta
                && scale(old) != scale(new)
                && kind != "Deployment"
            {
                for budget in c.budgets.list(Some(new.namespace())) {
                    c.queue.add(budget.key());
                }
            }
        });
        informer.synced().await;
    }
    let queue = controller.queue.clone();
    run_workers(queue, 2, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

fn scale(object: &Encoded) -> Option<i32> {
    let value = object.to_value().ok()?;
    i32::try_from(value["spec"]["replicas"].as_i64().unwrap_or(1)).ok()
}

/// A budget without a selector covers nothing, one with an empty selector everything.
fn selector(spec: &PodDisruptionBudgetSpec) -> LabelSelector {
    selectors::from_optional(spec.selector.as_ref())
}

/// What the status is made from.
struct Counts {
    expected: i32,
    desired: i32,
    unmanaged: usize,
}

/// `scales` maps the UID of each pod's controller to its scale.
fn counts(spec: &PodDisruptionBudgetSpec, pod_count: usize, scales: &[i32], unmanaged: usize) -> Counts {
    let total: i32 = scales.iter().sum();
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(limit), _) => {
            let desired = (total - scaled(Some(limit), total, true)).max(0);
            Counts { expected: total, desired, unmanaged }
        }
        (None, Some(IntOrString::Int(n))) => Counts { expected: pod_count as i32, desired: *n, unmanaged: 0 },
        (None, Some(share)) => {
            Counts { expected: total, desired: scaled(Some(share), total, true), unmanaged }
        }
        (None, None) => Counts { expected: 0, desired: 0, unmanaged: 0 },
    }
}

/// Pods that were evicted and are still to go, and when the first of them is overdue.
fn disrupted(
    status: &PodDisruptionBudgetStatus,
    pods_all: &[Pod],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut kept = BTreeMap::new();
    let mut next: Option<Duration> = None;
    for (name, at) in status.disrupted_pods.iter().flatten() {
        let waits = pods_all.iter().any(|p| pods::name(p) == name && !pods::is_deleting(p));
        let due = at.0 + DELETION_TIMEOUT;
        if waits && due >= now {
            let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
            next = Some(next.map_or(left, |n| n.min(left)));
            kept.insert(name.clone(), at.clone());
        }
    }
    (kept, next)
}

fn set_condition(
    status: &mut PodDisruptionBudgetStatus,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|c| c.type_ == ALLOWED && c.status == value);
    let since = old.map_or(Time(now), |c| c.last_transition_time.clone());
    let condition = Condition {
        type_: ALLOWED.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: status.observed_generation,
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|c| c.type_ == ALLOWED) {
        Some(c) => *c = condition,
        None => conditions.push(condition),
    }
}

impl Controller {
    fn enqueue_for(&self, pod: &Encoded) {
        for object in self.budgets.list(Some(pod.namespace())) {
            let spec = self.budgets.decode(&object).and_then(|b| b.spec);
            if spec.is_some_and(|s| selector(&s).matches(&pod.attributes)) {
                self.queue.add(object.key());
            }
        }
    }

    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(budget) = self.budgets.get_key_typed(key) else { return Ok(None) };
        let spec = budget.spec.clone().unwrap_or_default();
        let namespace = budget.metadata.namespace.clone().unwrap_or_default();
        let selector = selector(&spec);
        let objects: Vec<Arc<Encoded>> = self
            .pods
            .list(Some(&namespace))
            .into_iter()
            .filter(|p| selector.matches(&p.attributes))
            .collect();
        let all: Vec<Pod> = objects.iter().filter_map(|p| self.pods.decode(p)).collect();
        let regarding = reference(&budget);
        if all.is_empty() {
            self.recorder.normal(&regarding, "NoPods", "No matching pods found");
        }
        let now = self.ctx.clock.now();
        let old = budget.status.clone().unwrap_or_default();
        let mut status =
            PodDisruptionBudgetStatus { observed_generation: budget.metadata.generation, ..old.clone() };
        let mut again = None;
        match self.scales(&namespace, &objects).await? {
            Ok((scales, unmanaged)) => {
                let counts = counts(&spec, all.len(), &scales, unmanaged);
                if counts.unmanaged > 0 {
                    self.recorder.warning(
                        &regarding,
                        "UnmanagedPods",
                        "Pods selected by this PodDisruptionBudget were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                    );
                }
                let (waiting, next) = disrupted(&old, &all, now);
                again = next;
                let healthy = all
                    .iter()
                    .filter(|p| {
                        !pods::is_deleting(p) && !waiting.contains_key(pods::name(p)) && pods::is_ready(p)
                    })
                    .count() as i32;
                let allowed = if counts.expected > 0 { (healthy - counts.desired).max(0) } else { 0 };
                status.current_healthy = Some(healthy);
                status.desired_healthy = Some(counts.desired);
                status.expected_pods = Some(counts.expected);
                status.disruptions_allowed = Some(allowed);
                status.disrupted_pods = Some(waiting).filter(|w| !w.is_empty());
                match allowed > 0 {
                    true => set_condition(&mut status, "True", "SufficientPods", "", now),
                    false => set_condition(&mut status, "False", "InsufficientPods", "", now),
                }
            }
            Err(pod) => {
                // Better no disruption than too many.
                let text = format!("found no controllers for pod {pod:?}");
                self.recorder.warning(
                    &regarding,
                    "CalculateExpectedPodCountFailed",
                    format!("Failed to calculate the number of expected pods: {text}"),
                );
                status.disruptions_allowed = Some(0);
                set_condition(&mut status, "False", "SyncFailed", &text, now);
            }
        }
        let bare = |s: &PodDisruptionBudgetStatus| PodDisruptionBudgetStatus {
            disrupted_pods: s.disrupted_pods.clone().filter(|p| !p.is_empty()),
            ..s.clone()
        };
        if budget.status.is_none() || bare(&status) != bare(&old) {
            let name = budget.metadata.name.clone().unwrap_or_default();
            let wanted = PodDisruptionBudget { status: Some(status), ..budget };
            let api = self.ctx.client.namespaced::<PodDisruptionBudget>(&namespace);
            api.replace_status(&name, &PostParams::default(), &wanted).await.ignore_not_found()?;
        }
        Ok(again)
    }

    /// The scales of the pods' controllers and the number of pods without one, or the pod whose controller has no
    /// scale.
    async fn scales(
        &self,
        namespace: &str,
        pods_all: &[Arc<Encoded>],
    ) -> anyhow::Result<Result<(Vec<i32>, usize), String>> {
        let mut by_uid: HashMap<String, i32> = HashMap::new();
        let mut unmanaged = 0;
        for pod in pods_all {
            let Some(owner) = pod.attributes.controller() else {
                unmanaged += 1;
                continue;
            };
            if by_uid.contains_key(&*owner.uid) {
                continue;
            }
            let find = |kind: &str, name: &str, uid: &str| {
                let informer = self.scaled.get(kind)?;
                informer.get(namespace, name).filter(|o| o.uid() == uid)
            };
            let found = match find(&owner.kind, &owner.name, &owner.uid) {
                // The deployment above a replica set is what holds the scale.
                Some(set) => match set.attributes.controller() {
                    Some(above) => find(&above.kind, &above.name, &above.uid)
                        .map(|d| (d.uid().to_owned(), scale(&d)))
                        .or_else(|| Some((set.uid().to_owned(), scale(&set)))),
                    None => Some((set.uid().to_owned(), scale(&set))),
                },
                None => {
                    let (group, version) =
                        owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
                    let scale = self.ask_scale(namespace, group, version, &owner.kind, &owner.name).await?;
                    scale.map(|s| (owner.uid.to_string(), Some(s)))
                }
            };
            match found {
                Some((uid, Some(scale))) => {
                    by_uid.insert(uid, scale);
                }
                _ => return Ok(Err(pod.name().to_owned())),
            }
        }
        Ok(Ok((by_uid.into_values().collect(), unmanaged)))
    }

    /// The scale subresource of any other kind.
    async fn ask_scale(
        &self,
        namespace: &str,
        group: &str,
        version: &str,
        kind: &str,
        name: &str,
    ) -> anyhow::Result<Option<i32>> {
        let kube = self.ctx.client.kube();
        let found = crate::support::discovery::discover(&kube).await?;
        let of = |r: &crate::support::discovery::Discovered| r.resource.group == group && r.kind == kind;
        let Some(found) = found.resources.into_iter().find(of) else { return Ok(None) };
        let resource = Resource { version: version.to_owned(), ..found.resource };
        let path = format!("{}/{name}/scale", resource.path(Some(namespace)));
        let request = http::Request::get(path).body(Vec::new())?;
        let scale = kube.request::<serde_json::Value>(request).await.ignore_not_found()?;
        Ok(scale.and_then(|s| i32::try_from(s["spec"]["replicas"].as_i64()?).ok()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn how_many_are_wanted() {
        let text = |t: &str| Some(IntOrString::String(t.into()));
        for (min, max, pods_seen, scales, want) in [
            (Some(IntOrString::Int(2)), None, 3, vec![5], (3, 2)),
            (text("50%"), None, 3, vec![5], (5, 3)),
            (None, Some(IntOrString::Int(1)), 3, vec![5, 2], (7, 6)),
            (None, text("30%"), 3, vec![10], (10, 7)),
            (None, Some(IntOrString::Int(9)), 3, vec![5], (5, 0)),
        ] {
            let spec = PodDisruptionBudgetSpec {
                min_available: min,
                max_unavailable: max,
                ..PodDisruptionBudgetSpec::default()
            };
            let c = counts(&spec, pods_seen, &scales, 0);
            assert_eq!((c.expected, c.desired), want);
        }
    }

    #[test]
    fn evicted_pods_count_until_they_are_gone_or_overdue() {
        let now: Timestamp = "2026-01-01T00:03:00Z".parse().unwrap();
        let status: PodDisruptionBudgetStatus = serde_json::from_value(json!({
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
            "disruptedPods": {"a": "2026-01-01T00:02:00Z", "late": "2026-01-01T00:00:00Z", "gone": "2026-01-01T00:02:00Z"}}))
        .unwrap();
        let pod = |n: &str| -> Pod { serde_json::from_value(json!({"metadata": {"name": n}})).unwrap() };
        let (kept, next) = disrupted(&status, &[pod("a"), pod("late")], now);
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(next, Some(Duration::from_secs(60)));
    }
}
