//! What a job's policies say about failed pods and finished indexes. Pure.

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy,
};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::{self, Indexes};
use crate::support::pods;

/// What a failed pod means.
#[derive(Debug, PartialEq)]
pub(super) enum Failure {
    Count,
    Ignore,
    FailIndex,
    /// Fails the job, for this reason.
    FailJob(String),
}

pub(super) fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Failure {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    for (index, rule) in policy.iter().flat_map(|p| &p.rules).enumerate() {
        let (what, action) = if let Some(codes) = &rule.on_exit_codes {
            let Some((container, code)) = exit_code(pod, codes) else { continue };
            let name = pods::name(pod);
            (
                format!("Container {container} for pod {namespace}/{name} failed with exit code {code}"),
                &rule.action,
            )
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            let matched = conditions.into_iter().find(|c| {
                patterns
                    .iter()
                    .any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status)
            });
            let Some(condition) = matched else { continue };
            (format!("Pod {namespace}/{} has condition {}", pods::name(pod), condition.type_), &rule.action)
        };
        return match action.as_str() {
            "Ignore" => Failure::Ignore,
            "FailIndex" => Failure::FailIndex,
            "FailJob" => Failure::FailJob(format!("{what} matching {action} rule at index {index}")),
            _ => Failure::Count,
        };
    }
    Failure::Count
}

fn exit_code<'a>(pod: &'a Pod, codes: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let find = |list: &'a Option<Vec<ContainerStatus>>| {
        list.iter().flatten().find_map(|c| {
            let code = c.state.as_ref()?.terminated.as_ref()?.exit_code;
            let named = codes.container_name.as_ref().is_none_or(|n| *n == c.name);
            let listed = codes.values.contains(&code);
            let matched = match codes.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            };
            (named && code != 0 && matched).then_some((c.name.as_str(), code))
        })
    };
    find(&status.container_statuses).or_else(|| find(&status.init_container_statuses))
}

/// The message of the success rule that is met, if one is.
pub(super) fn success(
    policy: Option<&SuccessPolicy>,
    completions: i32,
    succeeded: &Indexes,
) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let rules = policy?.rules.iter().enumerate();
    rules.into_iter().find_map(|(at, rule)| {
        let met = match (&rule.succeeded_indexes, rule.succeeded_count) {
            (Some(wanted), count) => {
                let wanted = indexes::parse(wanted, completions);
                let done = wanted.intersection(succeeded).count();
                !wanted.is_empty() && done >= count.map_or(wanted.len(), |c| c.max(0) as usize)
            }
            (None, Some(count)) => succeeded.len() >= count.max(0) as usize,
            (None, None) => false,
        };
        met.then(|| format!("Matched rules at index {at}"))
    })
}

/// Whether pods are replaced only once they have failed, not while they terminate.
pub(super) fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// Whether a pod counts as failed.
pub(super) fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        // Pods that are deleted may never get to tell how they ended.
        _ => !replaces_only_failed(spec) && pods::is_deleting(pod),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_in_order() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"containerName": "c", "operator": "NotIn", "values": [1]}}]}))
        .unwrap();
        let pod = |code: i32, disrupted: bool| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Failed",
                "conditions": if disrupted {json!([{"type": "DisruptionTarget", "status": "True"}])} else {json!([])},
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]}}))
            .unwrap()
        };
        let message = "Container c for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        for (pod, want) in [
            (pod(42, true), Failure::Ignore),
            (pod(42, false), Failure::FailJob(message.into())),
            (pod(3, false), Failure::FailIndex),
            (pod(1, false), Failure::Count),
        ] {
            assert_eq!(judge(Some(&policy), &pod), want);
            assert_eq!(judge(None, &pod), Failure::Count);
        }
    }

    #[test]
    fn success_rules() {
        let policy: SuccessPolicy = serde_json::from_value(json!({"rules": [
            {"succeededIndexes": "0,2-3"}, {"succeededCount": 4}, {"succeededIndexes": "5-9", "succeededCount": 1}]}))
        .unwrap();
        let met = |text: &str| success(Some(&policy), 10, &indexes::parse(text, 10));
        assert_eq!(met("0,2"), None);
        assert_eq!(met("0,2,3").as_deref(), Some("Matched rules at index 0"));
        assert_eq!(met("0,1,4,2").as_deref(), Some("Matched rules at index 1"));
        assert_eq!(met("7").as_deref(), Some("Matched rules at index 2"));
        assert_eq!(met(""), None);
    }
}
