//! taint-eviction-controller: deletes pods that do not tolerate their node's NoExecute taints, or not any longer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::api::{DeleteParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use crate::Context;
use crate::support::errors::IgnoreNotFound;
use crate::support::pods;

struct Controller {
    ctx: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    /// NoExecute taints of the nodes that have any.
    taints: Mutex<HashMap<String, Vec<Taint>>>,
    /// Pods (by UID) on tainted nodes, since when.
    since: Mutex<HashMap<String, Instant>>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        nodes: ctx.client.informer(),
        pods: ctx.client.informer(),
        queue: WorkQueue::new(),
        taints: Mutex::default(),
        since: Mutex::default(),
        recorder: ctx.client.recorder("taint-eviction-controller", ""),
        ctx: ctx.clone(),
    });
    pods::index_by_node(&controller.pods);
    controller.pods.synced().await;
    let c = controller.clone();
    controller.nodes.subscribe(move |delta| c.node_changed(delta));
    controller.nodes.synced().await;
    let c = controller.clone();
    controller.pods.subscribe(move |delta| {
        let pod = delta.object();
        if let Delta::Deleted(_) = delta {
            c.since.lock().remove(pod.uid());
            return;
        }
        let node = pod.attributes.field("spec.nodeName").unwrap_or_default();
        if !node.is_empty() && c.taints.lock().contains_key(node) {
            c.queue.add(pod.key());
        }
    });
    let queue = controller.queue.clone();
    run_workers(queue, 8, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

/// What is to become of a pod under taints.
#[derive(Debug, PartialEq)]
enum Verdict {
    Stay,
    /// This long after the taints came.
    LeaveAfter(Duration),
}

pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match text(&toleration.operator).as_str() {
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        operator @ ("Lt" | "Gt") => {
            let number = |t: &Option<String>| text(t).parse::<i64>().ok();
            match (number(&taint.value), number(&toleration.value)) {
                (Some(taint), Some(limit)) if operator == "Lt" => taint < limit,
                (Some(taint), Some(limit)) => taint > limit,
                _ => false,
            }
        }
        _ => false,
    }
}

fn judge(taints: &[Taint], tolerations: &[Toleration]) -> Verdict {
    let mut seconds: Option<i64> = None;
    for taint in taints {
        let mut tolerated = false;
        for toleration in tolerations.iter().filter(|t| tolerates(t, taint)) {
            tolerated = true;
            if let Some(limit) = toleration.toleration_seconds {
                seconds = Some(seconds.map_or(limit, |s| s.min(limit)));
            }
        }
        if !tolerated {
            return Verdict::LeaveAfter(Duration::ZERO);
        }
    }
    match seconds {
        Some(seconds) => Verdict::LeaveAfter(Duration::from_secs(seconds.max(0) as u64)),
        None => Verdict::Stay,
    }
}

impl Controller {
    fn node_changed(&self, delta: &Delta) {
        let object = delta.object();
        let taints: Vec<Taint> = match delta {
            Delta::Deleted(_) => Vec::new(),
            _ => self
                .nodes
                .decode(object)
                .and_then(|n| n.spec?.taints)
                .unwrap_or_default()
                .into_iter()
                .filter(|t| t.effect == "NoExecute")
                .collect(),
        };
        let changed = {
            let mut all = self.taints.lock();
            match taints.is_empty() {
                true => all.remove(object.name()).is_some(),
                false => all.insert(object.name().to_owned(), taints.clone()).as_ref() != Some(&taints),
            }
        };
        if changed {
            for pod in self.pods.by_index(pods::NODE_INDEX, object.name()) {
                self.queue.add(pod.key());
            }
        }
    }

    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(object) = self.pods.get_key(key) else { return Ok(None) };
        let Some(pod) = self.pods.decode(&object) else { return Ok(None) };
        if pods::is_deleting(&pod) {
            return Ok(None);
        }
        let taints = self.taints.lock().get(pods::node_name(&pod)).cloned().unwrap_or_default();
        let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.clone()).unwrap_or_default();
        let verdict = judge(&taints, &tolerations);
        let Verdict::LeaveAfter(delay) = verdict else {
            if self.since.lock().remove(object.uid()).is_some() {
                let text = format!("Cancelling deletion of Pod {key}");
                self.recorder.normal(&reference(&pod), "TaintManagerEviction", text);
            }
            return Ok(None);
        };
        let since = *self.since.lock().entry(object.uid().to_owned()).or_insert_with(Instant::now);
        let left = delay.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Some(left));
        }
        self.recorder.normal(
            &reference(&pod),
            "TaintManagerEviction",
            format!("Marking for deletion Pod {key}"),
        );
        let condition = (
            "DisruptionTarget",
            "True",
            "DeletionByTaintManager",
            "Taint manager: deleting due to NoExecute taint",
        );
        pods::patch_condition(&self.ctx, &object, json!({}), condition).await?;
        let delete = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(object.uid().to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let api = self.ctx.client.namespaced::<Pod>(object.namespace());
        api.delete(object.name(), &delete).await.ignore_not_found()?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_stay_and_how_long() {
        let taint = |key: &str, value: &str| Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: "NoExecute".into(),
            time_added: None,
        };
        let toleration = |key: &str, operator: &str, value: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: None,
            toleration_seconds: seconds,
        };
        let leave = |s| Verdict::LeaveAfter(Duration::from_secs(s));
        for (taints, tolerations, want) in [
            (vec![], vec![], Verdict::Stay),
            (vec![taint("a", "1")], vec![], leave(0)),
            (vec![taint("a", "1")], vec![toleration("a", "Equal", "1", None)], Verdict::Stay),
            (vec![taint("a", "1")], vec![toleration("a", "Equal", "2", None)], leave(0)),
            (vec![taint("a", "1")], vec![toleration("", "Exists", "", None)], Verdict::Stay),
            (vec![taint("a", "1")], vec![toleration("a", "Exists", "", Some(7))], leave(7)),
            (
                vec![taint("a", "1"), taint("b", "1")],
                vec![toleration("a", "Exists", "", Some(7)), toleration("b", "Exists", "", Some(3))],
                leave(3),
            ),
            (vec![taint("a", "1"), taint("b", "1")], vec![toleration("a", "Exists", "", Some(7))], leave(0)),
        ] {
            assert_eq!(judge(&taints, &tolerations), want, "{taints:?} {tolerations:?}");
        }
    }
}
