//! The row of a pod: what its containers tell, summed up in a word.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, instant, name, or, since};
use crate::value::Read;

/// What has been gathered from container statuses.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status.int("restartCount");
        self.last = self.last.max(instant(status.at("lastState.terminated.finishedAt")));
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod.list("status.conditions").iter().find(|c| c.text("type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| c.text("status") == "True")
}

/// Why a container ended, in a word.
fn ending(terminated: &Value) -> String {
    match (terminated.text("reason"), terminated.int("signal")) {
        ("", 0) => format!("ExitCode:{}", terminated.int("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn sidecar(pod: &Value, name: &str) -> bool {
    pod.list("spec.initContainers")
        .iter()
        .any(|c| c.text("name") == name && c.text("restartPolicy") == "Always")
}

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let phase = pod.text("status.phase");
    let mut reason = or(pod.text("status.reason"), phase).to_owned();
    if condition(pod, "PodScheduled").is_some_and(|c| c.text("reason") == "SchedulingGated") {
        reason = "SchedulingGated".to_owned();
    }
    let init = pod.list("spec.initContainers");
    let total = pod.list("spec.containers").len()
        + init.iter().filter(|c| c.text("restartPolicy") == "Always").count();
    let mut ready = 0;
    let (mut restarts, mut of_sidecars) = (Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (i, status) in pod.list("status.initContainerStatuses").iter().enumerate() {
        restarts.add(status);
        let sidecar = sidecar(pod, status.text("name"));
        if sidecar {
            of_sidecars.add(status);
        }
        let terminated = status.at("state.terminated");
        if !terminated.is_null() && terminated.int("exitCode") == 0 {
            continue;
        }
        if sidecar && status.flag("started") {
            ready += usize::from(status.flag("ready"));
            continue;
        }
        let waiting = status.text("state.waiting.reason");
        reason = if !terminated.is_null() {
            format!("Init:{}", ending(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", init.len())
        };
        initializing = true;
        break;
    }
    if !initializing || is_true(pod, "Initialized") {
        restarts = of_sidecars;
        let mut running = false;
        let mut failure = String::new();
        for status in pod.list("status.containerStatuses").iter().rev() {
            restarts.add(status);
            let waiting = status.text("state.waiting.reason");
            let terminated = status.at("state.terminated");
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if !terminated.is_null() {
                reason = ending(terminated);
                if terminated.int("exitCode") != 0 {
                    failure.clone_from(&reason);
                }
            } else if status.flag("ready") && status.has("state.running") {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" {
            if running && is_true(pod, "Ready") {
                reason = "Running".to_owned();
            } else if !failure.is_empty() {
                reason = failure;
            } else if running {
                reason = "NotReady".to_owned();
            }
        }
    }
    if pod.has("metadata.deletionTimestamp") {
        if pod.text("status.reason") == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            reason = "Terminating".to_owned();
        }
    }
    let restarted = match restarts.last {
        Some(last) if restarts.count != 0 => {
            format!("{} ({} ago)", restarts.count, since(&last.to_string().into(), now))
        }
        _ => restarts.count.to_string(),
    };
    let address = pod.list("status.podIPs").first().map_or("", |ip| ip.text("ip"));
    vec![
        name(pod),
        format!("{ready}/{total}").into(),
        reason.into(),
        restarted.into(),
        age(pod, now),
        or(address, "<none>").into(),
        or(pod.text("spec.nodeName"), "<none>").into(),
        or(pod.text("status.nominatedNodeName"), "<none>").into(),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod.list("spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|g| is_true(pod, g.text("conditionType"))).count();
    format!("{met}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ready_status_restarts() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let two = json!([{"name": "a"}, {"name": "b"}]);
        for (spec, status, meta, want) in [
            (json!({"containers": two}), json!({"phase": "Pending"}), json!({}), ["0/2", "Pending", "0"]),
            (
                json!({"containers": two}),
                json!({"phase": "Running", "containerStatuses": [
                    {"name": "a", "ready": true, "state": {"running": {}}, "restartCount": 2,
                     "lastState": {"terminated": {"finishedAt": "2026-01-01T00:59:00Z"}}},
                    {"name": "b", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                json!({}),
                ["1/2", "CrashLoopBackOff", "2 (60s ago)"],
            ),
            (
                json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]}),
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"running": {}}, "restartCount": 1}]}),
                json!({}),
                ["0/2", "Init:0/2", "1"],
            ),
            (
                json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]}),
                json!({"phase": "Running", "initContainerStatuses": [
                    {"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                    "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}),
                json!({}),
                ["2/2", "Running", "0"],
            ),
            (
                json!({"containers": [{"name": "a"}]}),
                json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "signal": 9}}}]}),
                json!({}),
                ["0/1", "Signal:9", "0"],
            ),
            (
                json!({"containers": [{"name": "a"}]}),
                json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}),
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
                ["1/1", "Terminating", "0"],
            ),
            (
                json!({"containers": [{"name": "a"}]}),
                json!({"phase": "Succeeded", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                json!({}),
                ["0/1", "Completed", "0"],
            ),
            (
                json!({"containers": two, "schedulingGates": [{"name": "x"}]}),
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
                json!({}),
                ["0/2", "SchedulingGated", "0"],
            ),
        ] {
            let pod = json!({"metadata": meta, "spec": spec, "status": status});
            assert_eq!(cells(&pod, now)[1..4], want.map(Value::from), "{pod}");
        }
    }
}
