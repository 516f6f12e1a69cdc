//! What a node's conditions mean for its taints, and what silence means for its conditions. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, its status, the taint that follows.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// `True`, `False` or `Unknown`.
pub(super) fn ready(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |c| &c.status)
}

/// The conditions of a node that was not heard of for too long; `None` where they say so already.
pub(super) fn silence(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions = node.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let before = conditions.clone();
    for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(c) if c.status == "Unknown" => {}
            Some(c) => {
                c.status = "Unknown".to_owned();
                c.reason = Some("NodeStatusUnknown".to_owned());
                c.message = Some("Kubelet stopped posting node status.".to_owned());
                c.last_transition_time = Some(Time(now));
            }
            None => conditions.push(NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some("NodeStatusNeverUpdated".to_owned()),
                message: Some("Kubelet never posted node status.".to_owned()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    (conditions != before).then_some(conditions)
}

/// The taints a node should have; `None` where it has them. `evict` lets pods be driven off.
pub(super) fn taints(node: &Node, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let present = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, status, key) in BY_CONDITION {
        if condition(node, kind).is_some_and(|c| c.status == status) {
            wanted.push((key, "NoSchedule"));
            if kind == "Ready" && evict {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Taint| match t.effect.as_str() {
        "NoSchedule" => t.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, key)| *key == t.key),
        "NoExecute" => t.key == NOT_READY || t.key == UNREACHABLE,
        _ => false,
    };
    let is = |t: &Taint, w: &(&str, &str)| t.key == w.0 && t.effect == w.1;
    let mut taints: Vec<Taint> =
        present.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, w))).cloned().collect();
    for w in wanted {
        if !taints.iter().any(|t| is(t, &w)) {
            taints.push(Taint {
                key: w.0.to_owned(),
                effect: w.1.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (taints != present).then_some(taints)
}

/// Whether the node should have a NoExecute taint it does not have yet.
pub(super) fn begins_eviction(node: &Node) -> bool {
    let key = match condition(node, "Ready").map(|c| c.status.as_str()) {
        Some("False") => NOT_READY,
        Some("Unknown") => UNREACHABLE,
        _ => return false,
    };
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    !taints.any(|t| t.key == key && t.effect == "NoExecute")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(conditions: serde_json::Value, taints: serde_json::Value, unschedulable: bool) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"},
            "spec": {"taints": taints, "unschedulable": unschedulable}, "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn keys(taints: Option<Vec<Taint>>) -> Option<Vec<String>> {
        let short = |t: &Taint| {
            let key = t.key.rsplit('/').next().unwrap_or_default();
            format!("{key}:{}", &t.effect[2..3])
        };
        taints.map(|t| t.iter().map(short).collect())
    }

    #[test]
    fn taints_follow_conditions() {
        let now = Timestamp::UNIX_EPOCH;
        let is = |s: &str| json!([{"type": "Ready", "status": s}]);
        let initial =
            json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoExecute"}]);
        for (conditions, taints_before, unschedulable, evict, want) in [
            (is("True"), json!([]), false, true, None),
            (is("True"), initial.clone(), false, true, Some(vec!["mine:E"])),
            (is("False"), initial.clone(), false, true, Some(vec!["not-ready:S", "mine:E", "not-ready:E"])),
            (is("False"), initial, false, false, None),
            (is("Unknown"), json!([]), false, true, Some(vec!["unreachable:S", "unreachable:E"])),
            (is("True"), json!([]), true, true, Some(vec!["unschedulable:S"])),
            (
                json!([{"type": "MemoryPressure", "status": "True"}]),
                json!([]),
                false,
                true,
                Some(vec!["memory-pressure:S"]),
            ),
        ] {
            let n = node(conditions, taints_before, unschedulable);
            let want = want.map(|w| w.iter().map(|s| s.to_string()).collect::<Vec<_>>());
            assert_eq!(keys(taints(&n, evict, now)), want, "{n:?}");
        }
    }

    #[test]
    fn silence_makes_conditions_unknown() {
        let now = Timestamp::UNIX_EPOCH;
        let mut n = node(json!([{"type": "Ready", "status": "True"}]), json!([]), false);
        let conditions = silence(&n, now).unwrap();
        let reasons: Vec<_> = conditions.iter().map(|c| c.reason.as_deref().unwrap()).collect();
        assert_eq!(
            reasons,
            [
                "NodeStatusUnknown",
                "NodeStatusNeverUpdated",
                "NodeStatusNeverUpdated",
                "NodeStatusNeverUpdated"
            ]
        );
        n.status.as_mut().unwrap().conditions = Some(conditions);
        assert_eq!(silence(&n, now), None);
        assert_eq!(ready(&n), "Unknown");
    }
}
