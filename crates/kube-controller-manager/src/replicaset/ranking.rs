//! Which pods go first when there are too many.

use std::cmp::Ordering;
use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::support::pods;

/// What the order is decided by.
struct Rank<'a> {
    pod: &'a Pod,
    /// Active related pods on the same node.
    crowd: usize,
}

/// The `count` pods to delete, those that are missed least.
pub(crate) fn choose(active: &[Pod], related: &[Pod], count: usize) -> Vec<Pod> {
    if count >= active.len() {
        return active.to_vec();
    }
    let mut crowds: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|p| pods::is_active(p)) {
        *crowds.entry(pods::node_name(pod)).or_default() += 1;
    }
    let mut ranks: Vec<Rank<'_>> = active
        .iter()
        .map(|pod| Rank { pod, crowd: crowds.get(pods::node_name(pod)).copied().unwrap_or(0) })
        .collect();
    ranks.sort_by(order);
    ranks.into_iter().take(count).map(|r| r.pod.clone()).collect()
}

fn phase_order(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn order(a: &Rank<'_>, b: &Rank<'_>) -> Ordering {
    let assigned = |r: &Rank<'_>| !pods::node_name(r.pod).is_empty();
    let both_ready = pods::is_ready(a.pod) && pods::is_ready(b.pod);
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_order(a.pod).cmp(&phase_order(b.pod)))
        .then_with(|| pods::is_ready(a.pod).cmp(&pods::is_ready(b.pod)))
        .then_with(|| pods::deletion_cost(a.pod).cmp(&pods::deletion_cost(b.pod)))
        .then_with(|| b.crowd.cmp(&a.crowd))
        .then_with(|| match both_ready {
            true => younger_first(pods::ready_since(a.pod), pods::ready_since(b.pod)),
            false => Ordering::Equal,
        })
        .then_with(|| pods::restarts(b.pod).cmp(&pods::restarts(a.pod)))
        .then_with(|| younger_first(created(a.pod), created(b.pod)))
        .then_with(|| pods::uid(a.pod).cmp(pods::uid(b.pod)))
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

fn younger_first(a: Option<Timestamp>, b: Option<Timestamp>) -> Ordering {
    // Unknown counts as just now.
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, _) => Ordering::Less,
        (_, None) => Ordering::Greater,
        (Some(a), Some(b)) => b.cmp(&a),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn least_missed_first() {
        let pod =
            |name: &str, node: &str, phase: &str, ready: Option<&str>, cost: i32, created: &str| -> Pod {
                serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "creationTimestamp": created,
                    "annotations": {pods::DELETION_COST: cost.to_string()}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": ready.map(|at| vec![
                    json!({"type": "Ready", "status": "True", "lastTransitionTime": at})])}}))
                .unwrap()
            };
        let t = |s: u32| format!("2026-01-01T00:00:{s:02}Z");
        let all = [
            pod("old", "n1", "Running", Some(&t(1)), 0, &t(0)),
            pod("costly", "n2", "Running", Some(&t(1)), 9, &t(9)),
            pod("young", "n1", "Running", Some(&t(5)), 0, &t(4)),
            pod("crowded", "n3", "Running", Some(&t(1)), 0, &t(0)),
            pod("unready", "n1", "Running", None, 0, &t(0)),
            pod("pending", "n1", "Pending", None, 0, &t(0)),
            pod("unassigned", "", "Pending", None, 0, &t(0)),
        ];
        let crowd: Vec<Pod> =
            (0..9).map(|i| pod(&format!("r{i}"), "n3", "Running", Some(&t(1)), 0, &t(0))).collect();
        let names: Vec<String> = choose(&all, &crowd, 6).iter().map(|p| pods::name(p).to_owned()).collect();
        assert_eq!(names, ["unassigned", "pending", "unready", "crowded", "young", "old"]);
    }
}
