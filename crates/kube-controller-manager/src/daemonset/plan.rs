//! Which nodes want a daemon pod, which pods must go. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Toleration,
};

use crate::deployment::math::scaled;
use crate::support::node_affinity;
use crate::support::pods;
use crate::support::revisions::POD_REVISION;

/// Daemon pods stay through these.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The pod spec of daemon pods, before a node is chosen.
pub(super) fn pod_spec(set: &DaemonSet) -> PodSpec {
    let mut spec = set.spec.as_ref().and_then(|s| s.template.spec.clone()).unwrap_or_default();
    let host = spec.host_network.unwrap_or(false);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(host.then_some(NETWORK_UNAVAILABLE)) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    spec
}

/// Pins a pod to a node, leaving the placing to the scheduler.
pub(super) fn pin(spec: &mut PodSpec, node: &str) {
    let term = NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]),
        match_expressions: None,
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    affinity.required_during_scheduling_ignored_during_execution =
        Some(NodeSelector { node_selector_terms: vec![term] });
}

/// The node a daemon pod is on or meant for.
pub(super) fn target(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.clone().filter(|n| !n.is_empty()) {
        return Some(node);
    }
    let required = spec
        .affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let named = fields.into_iter().find(|f| f.key == "metadata.name" && f.operator == "In")?;
    named.values.as_ref()?.first().cloned()
}

/// (should run, may keep running)
pub(super) fn fits(spec: &PodSpec, node: &Node) -> (bool, bool) {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let pinned = spec.node_name.as_deref().unwrap_or_default();
    if !(pinned.is_empty() || pinned == name) || !node_affinity::matches(spec, node) {
        return (false, false);
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let fits = |effects: &[&str]| node_affinity::tolerates_all(tolerations, taints, effects);
    match fits(&["NoSchedule", "NoExecute"]) {
        true => (true, true),
        false => (false, fits(&["NoExecute"])),
    }
}

/// What a plan is made from.
pub(super) struct Observed<'a> {
    pub(super) set: &'a DaemonSet,
    pub(super) nodes: &'a [Node],
    /// All pods of the set by node.
    pub(super) pods: &'a BTreeMap<String, Vec<Pod>>,
    /// Hash of the present template.
    pub(super) hash: &'a str,
    pub(super) now: Timestamp,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Nodes to make pods for.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Pod>,
    /// Among `delete`: failed ones, which are replaced at a measured pace.
    pub(super) failed: Vec<Pod>,
    pub(super) succeeded: Vec<Pod>,
}

impl Observed<'_> {
    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn is_current(&self, pod: &Pod) -> bool {
        pod.metadata.labels.as_ref().and_then(|l| l.get(POD_REVISION)).is_some_and(|h| h == self.hash)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        pods::is_available(pod, self.min_ready(), self.now)
    }

    fn on(&self, node: &Node) -> &[Pod] {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.pods.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// (surge, unavailable) for this many nodes.
    fn limits(&self, desired: i32) -> (i32, i32) {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let surge = rolling.map_or(0, |r| scaled(r.max_surge.as_ref(), desired, true));
        let unavailable = match rolling {
            Some(r) => scaled(r.max_unavailable.as_ref(), desired, true),
            None => 1,
        };
        if desired > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    fn surges(&self) -> bool {
        let strategy = self.set.spec.as_ref().and_then(|s| s.update_strategy.as_ref());
        let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
        !on_delete && self.limits(self.nodes.len().max(1) as i32).0 > 0
    }
}

fn age(pod: &Pod) -> (Option<Timestamp>, String) {
    (pod.metadata.creation_timestamp.as_ref().map(|t| t.0), pods::name(pod).to_owned())
}

/// One pod on each node that should have one.
pub(super) fn manage(o: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let spec = pod_spec(o.set);
    for node in o.nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let (should, may) = fits(&spec, node);
        let here = o.on(node);
        if should && here.is_empty() {
            plan.create.push(name);
        } else if may {
            let mut running: Vec<&Pod> = Vec::new();
            for pod in here.iter().filter(|p| !pods::is_deleting(p)) {
                match pods::phase(pod) {
                    "Failed" => plan.failed.push(pod.clone()),
                    "Succeeded" => plan.succeeded.push(pod.clone()),
                    _ => running.push(pod),
                }
            }
            running.sort_by_key(|p| (pods::node_name(p).is_empty(), age(p)));
            if !o.surges() {
                plan.delete.extend(running.into_iter().skip(1).cloned());
                continue;
            }
            if running.is_empty() {
                if should {
                    plan.create.push(name);
                }
                continue;
            }
            if running.len() == 1 {
                continue;
            }
            let (current, old): (Vec<&Pod>, Vec<&Pod>) = running.into_iter().partition(|p| o.is_current(p));
            plan.delete.extend(current.iter().skip(1).chain(old.iter().skip(1)).map(|p| (*p).clone()));
            if let (Some(new), Some(old)) = (current.first(), old.first())
                && (!pods::is_ready(old) || o.is_available(new))
            {
                plan.delete.push((*old).clone());
            }
        } else {
            plan.delete.extend(here.iter().filter(|p| !pods::is_deleting(p)).cloned());
        }
    }
    // Pods meant for nodes that are gone wait for nothing.
    let known = |name: &str| o.nodes.iter().any(|n| n.metadata.name.as_deref() == Some(name));
    for (node, stranded) in o.pods.iter().filter(|(n, _)| !known(n)) {
        let waiting = |p: &&Pod| pods::node_name(p).is_empty() && !pods::is_deleting(p) && !node.is_empty();
        plan.delete.extend(stranded.iter().filter(waiting).cloned());
    }
    plan
}

/// The next step of a rolling update; only meaningful once [`manage`] has nothing to do.
pub(super) fn roll(o: &Observed<'_>) -> Plan {
    let spec = pod_spec(o.set);
    let desired: Vec<&Node> = o.nodes.iter().filter(|n| fits(&spec, n).0).collect();
    let (surge, unavailable) = o.limits(desired.len() as i32);
    let mut plan = Plan::default();
    let (mut missing, mut surging) = (0, 0);
    let mut replace: Vec<&Pod> = Vec::new();
    let mut candidates: Vec<&Pod> = Vec::new();
    let mut allowed: Vec<String> = Vec::new();
    let mut later: Vec<String> = Vec::new();
    for node in desired {
        let name = node.metadata.name.clone().unwrap_or_default();
        let alive: Vec<&Pod> = o.on(node).iter().filter(|p| !pods::is_deleting(p)).collect();
        let (new, old): (Vec<&Pod>, Vec<&Pod>) = alive.into_iter().partition(|p| o.is_current(p));
        if surge == 0 {
            match (new.as_slice(), old.as_slice()) {
                ([pod], []) => missing += i32::from(!o.is_available(pod)),
                ([], [pod]) if o.is_available(pod) => candidates.push(pod),
                ([], [pod]) => {
                    replace.push(pod);
                    missing += 1;
                }
                _ => missing += 1,
            }
        } else {
            match (new.as_slice(), old.as_slice()) {
                (_, []) => {}
                ([], [pod]) if o.is_available(pod) => later.push(name),
                ([], [_]) => allowed.push(name),
                ([new], [old]) => match o.is_available(new) {
                    true => plan.delete.push((*old).clone()),
                    false => surging += 1,
                },
                _ => surging += 1,
            }
        }
    }
    let room = (unavailable - missing).max(0) as usize;
    plan.delete.extend(replace.into_iter().chain(candidates.into_iter().take(room)).cloned());
    let room = (surge - surging).max(0) as usize;
    plan.create.extend(allowed);
    plan.create.extend(later.into_iter().take(room));
    plan
}

pub(super) fn status(o: &Observed<'_>, observe_generation: bool, collisions: Option<i32>) -> DaemonSetStatus {
    let spec = pod_spec(o.set);
    let old = o.set.status.clone().unwrap_or_default();
    let mut s = DaemonSetStatus {
        collision_count: collisions,
        conditions: old.conditions,
        observed_generation: match observe_generation {
            true => o.set.metadata.generation,
            false => old.observed_generation,
        },
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for node in o.nodes {
        let mut here: Vec<&Pod> = o.on(node).iter().collect();
        here.sort_by_key(|p| (pods::is_deleting(p), pods::node_name(p).is_empty(), age(p)));
        if !fits(&spec, node).0 {
            s.number_misscheduled += i32::from(!here.is_empty());
            continue;
        }
        s.desired_number_scheduled += 1;
        let Some(pod) = here.first() else { continue };
        s.current_number_scheduled += 1;
        s.number_ready += i32::from(pods::is_ready(pod));
        available += i32::from(o.is_available(pod));
        updated += i32::from(o.is_current(pod));
    }
    let unavailable = s.desired_number_scheduled - available;
    s.updated_number_scheduled = Some(updated).filter(|n| *n != 0);
    s.number_available = Some(available).filter(|n| *n != 0);
    s.number_unavailable = Some(unavailable).filter(|n| *n != 0);
    s
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(strategy: serde_json::Value) -> DaemonSet {
        serde_json::from_value(
            json!({"metadata": {"name": "d"}, "spec": {"selector": {}, "updateStrategy": strategy,
            "template": {"spec": {"containers": [], "nodeSelector": {"run": "yes"}}}}}),
        )
        .unwrap()
    }

    fn node(name: &str, run: &str, taint: Option<&str>) -> Node {
        let taints = taint.map(|effect| vec![json!({"key": "x", "effect": effect})]);
        serde_json::from_value(
            json!({"metadata": {"name": name, "labels": {"run": run}}, "spec": {"taints": taints}}),
        )
        .unwrap()
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {POD_REVISION: hash}},
            "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": if ready {"True"} else {"False"}, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .unwrap()
    }

    fn names(pods: &[Pod]) -> Vec<&str> {
        pods.iter().map(pods::name).collect()
    }

    #[test]
    fn one_pod_per_fitting_node() {
        let d = set(json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}));
        let nodes = [
            node("empty", "yes", None),
            node("double", "yes", None),
            node("wrong", "no", None),
            node("closed", "yes", Some("NoSchedule")),
            node("barred", "yes", Some("NoExecute")),
        ];
        let pods = BTreeMap::from([
            ("double".to_owned(), vec![pod("a", "double", "1", true), pod("b", "double", "1", true)]),
            ("wrong".to_owned(), vec![pod("c", "wrong", "1", true)]),
            ("closed".to_owned(), vec![pod("d", "closed", "1", true)]),
            ("barred".to_owned(), vec![pod("e", "barred", "1", true)]),
        ]);
        let o = Observed { set: &d, nodes: &nodes, pods: &pods, hash: "1", now: Timestamp::now() };
        let plan = manage(&o);
        assert_eq!(plan.create, ["empty"]);
        assert_eq!(names(&plan.delete), ["b", "c", "e"]);
        let s = status(&o, true, None);
        assert_eq!(
            (s.desired_number_scheduled, s.current_number_scheduled, s.number_misscheduled, s.number_ready),
            (2, 1, 3, 1)
        );
    }

    #[test]
    fn rolls_within_its_limits() {
        let nodes = [node("a", "yes", None), node("b", "yes", None), node("c", "yes", None)];
        let at = |states: [(&str, bool); 3]| -> BTreeMap<String, Vec<Pod>> {
            let all = ["a", "b", "c"].into_iter().zip(states);
            all.map(|(n, (hash, ready))| (n.to_owned(), vec![pod(n, n, hash, ready)])).collect()
        };
        let gentle = set(json!({"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}));
        for (states, want) in [
            ([("1", true), ("1", true), ("1", true)], vec!["a"]),
            ([("2", false), ("1", true), ("1", true)], vec![]),
            ([("2", true), ("1", true), ("1", true)], vec!["b"]),
            ([("1", false), ("1", true), ("1", false)], vec!["a", "c"]),
        ] {
            let pods = at(states);
            let o = Observed { set: &gentle, nodes: &nodes, pods: &pods, hash: "2", now: Timestamp::now() };
            assert_eq!(names(&roll(&o).delete), want, "{states:?}");
        }
        let surge = set(json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 2}}));
        let mut pods = at([("1", true), ("1", true), ("1", true)]);
        pods.get_mut("a").unwrap().push(pod("a2", "a", "2", false));
        let o = Observed { set: &surge, nodes: &nodes, pods: &pods, hash: "2", now: Timestamp::now() };
        let plan = roll(&o);
        assert_eq!((plan.create, plan.delete.len()), (vec!["b".to_owned()], 0));
        assert!(manage(&o).delete.is_empty());
    }
}
