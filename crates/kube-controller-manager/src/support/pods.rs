//! Questions about pods.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub(crate) fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor going away.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod is ready, if it is and tells.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

/// How long until the pod counts as available: zero when it is, `None` while it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let at = ready_since(pod)? + Duration::from_secs(min_ready_seconds as u64);
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

pub(crate) fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_in(pod, min_ready_seconds, now).is_some_and(|d| d.is_zero())
}

pub(crate) fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.map(|s| s.iter().map(|c| c.restart_count).max().unwrap_or(0)).unwrap_or(0)
}

pub(crate) fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get(DELETION_COST));
    cost.and_then(|c| c.parse().ok()).unwrap_or(0)
}

/// Index by the node a pod is on.
pub(crate) const NODE_INDEX: &str = "pod-node";

/// Makes `by_index(NODE_INDEX, node)` possible on an informer of pods.
pub(crate) fn index_by_node(pods: &client::RawInformer) {
    pods.add_index(NODE_INDEX, |pod| {
        let node = pod.attributes.field("spec.nodeName").filter(|n| !n.is_empty());
        node.map(|n| vec![n.to_owned()]).unwrap_or_default()
    });
}

/// Adds or changes one condition of a pod by patch.
pub(crate) async fn patch_condition(
    ctx: &crate::Context,
    pod: &apimachinery::object::Encoded,
    mut status: serde_json::Value,
    condition: (&str, &str, &str, &str),
) -> kube::Result<()> {
    use crate::support::errors::IgnoreNotFound;
    use kube::api::{Patch, PatchParams};
    let (kind, value, reason, message) = condition;
    status["conditions"] = serde_json::json!([{"type": kind, "status": value, "reason": reason, "message": message,
        "lastTransitionTime": ctx.clock.now_rfc3339()}]);
    let patch = serde_json::json!({"metadata": {"uid": pod.uid()}, "status": status});
    let api = ctx.client.namespaced::<Pod>(pod.namespace());
    api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .ignore_not_found()?;
    Ok(())
}
