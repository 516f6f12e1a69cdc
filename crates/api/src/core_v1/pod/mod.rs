//! Pods.

pub mod container;
pub mod defaults;
pub mod scheduling;
pub mod update;
pub mod validation;
pub mod volume;
pub mod warnings;

use apimachinery::quantity::Quantity;
use serde_json::{Value, json};

use crate::equality;
use crate::value::{Read, Write, quantity};

pub fn prepare_for_create(pod: &mut Value) {
    let qos = qos_class(pod);
    pod.put("status", json!({"phase": "Pending", "qosClass": qos}));
    if !pod.list("spec.schedulingGates").is_empty() {
        pod.put(
            "status.conditions",
            json!([{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
                "lastTransitionTime": pod.at("metadata.creationTimestamp"),
                "message": "Scheduling is blocked due to non-empty scheduling gates"}]),
        );
    }
    if let Some(spec) = pod.find_mut("spec") {
        drop_disabled(spec);
    }
    resolve_label_keys(pod);
}

/// Features that are off by default: nobody sees what was asked.
pub fn drop_disabled(spec: &mut Value) {
    spec.remove("schedulingGroup");
    for volume in spec.list_mut("volumes") {
        for source in volume.list_mut("projected.sources") {
            source.remove("clusterTrustBundle");
            source.remove("podCertificate");
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.list_mut(list) {
            if container.remove("lifecycle.stopSignal").is_some()
                && container.at("lifecycle").as_object().is_some_and(|l| l.is_empty())
            {
                container.remove("lifecycle");
            }
        }
    }
}

/// Writes the values that `matchLabelKeys` and `mismatchLabelKeys` stand for into the selectors beside them.
fn resolve_label_keys(pod: &mut Value) {
    let labels = pod.at("metadata.labels").clone();
    for kind in ["podAffinity", "podAntiAffinity"] {
        let required = format!("spec.affinity.{kind}.requiredDuringSchedulingIgnoredDuringExecution");
        for term in pod.list_mut(&required) {
            resolve_term(term, &labels);
        }
        let preferred = format!("spec.affinity.{kind}.preferredDuringSchedulingIgnoredDuringExecution");
        for weighted in pod.list_mut(&preferred) {
            if let Some(term) = weighted.find_mut("podAffinityTerm") {
                resolve_term(term, &labels);
            }
        }
    }
    for constraint in pod.list_mut("spec.topologySpreadConstraints") {
        resolve_term(constraint, &labels);
    }
}

fn resolve_term(term: &mut Value, labels: &Value) {
    if !term.has("labelSelector") {
        return;
    }
    let mut added = vec![];
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term.list(list).iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                added.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if !added.is_empty() {
        let mut all = term.list("labelSelector.matchExpressions").to_vec();
        // Run twice (defaults after admission), it must not add twice.
        added.retain(|a| !all.contains(a));
        all.extend(added);
        term.put("labelSelector.matchExpressions", all);
    }
}

pub fn prepare_for_status_update(new: &mut Value, old: &Value) {
    new.remove("metadata.deletionTimestamp");
    new.copy_from(old, "metadata.deletionTimestamp");
    new.copy_from(old, "metadata.ownerReferences");
    if new.text("status.qosClass").is_empty() {
        new.copy_from(old, "status.qosClass");
    }
    if new.int("status.observedGeneration") == 0 {
        new.copy_from(old, "status.observedGeneration");
    }
    keep_condition_generations(new, old);
}

/// Conditions sent without an observed generation keep the one they had: older clients do not know the field.
fn keep_condition_generations(new: &mut Value, old: &Value) {
    let mut known: Vec<(&str, i64)> =
        old.list("status.conditions").iter().map(|c| (c.text("type"), c.int("observedGeneration"))).collect();
    for condition in new.list_mut("status.conditions") {
        let kind = condition.text("type");
        let Some(at) = known.iter().position(|(t, _)| *t == kind) else { continue };
        let (_, generation) = known.remove(at);
        if generation != 0 && condition.int("observedGeneration") == 0 {
            condition.put("observedGeneration", generation);
        }
    }
}

/// `ephemeralcontainers` changes nothing but those, `resize` nothing but resources.
pub fn prepare_for_subresource(subresource: &str, new: &mut Value, old: &Value) {
    let asked = new.at("spec").clone();
    match subresource {
        "ephemeralcontainers" => {
            new.copy_from(old, "spec");
            new.copy_from(
                &json!({"spec": {"ephemeralContainers": asked.at("ephemeralContainers")}}),
                "spec.ephemeralContainers",
            );
        }
        "resize" => {
            let same_shape = ["containers", "initContainers"].iter().all(|list| {
                let (a, b) = (asked.list(list), old.at("spec").list(list));
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.text("name") == b.text("name"))
            });
            // Anything else is left for validation to refuse.
            if same_shape {
                new.copy_from(old, "spec");
                new.copy_from(&json!({"spec": {"resources": asked.at("resources")}}), "spec.resources");
                for list in ["containers", "initContainers"] {
                    let path = format!("spec.{list}");
                    for (container, asked) in new.list_mut(&path).zip(asked.list(list)) {
                        container.copy_from(asked, "resources");
                        container.copy_from(asked, "resizePolicy");
                    }
                }
            }
        }
        _ => {}
    }
    if let Some(spec) = new.find_mut("spec") {
        drop_disabled(spec);
    }
    new.copy_from(old, "status");
    for path in [
        "metadata.selfLink",
        "metadata.deletionTimestamp",
        "metadata.labels",
        "metadata.annotations",
        "metadata.finalizers",
        "metadata.ownerReferences",
    ] {
        new.copy_from(old, path);
    }
}

pub fn graceful_deletion(pod: &Value, requested: Option<i64>) -> Option<i64> {
    let period = requested.unwrap_or_else(|| pod.int("spec.terminationGracePeriodSeconds"));
    let unscheduled = pod.text("spec.nodeName").is_empty();
    let finished = matches!(pod.text("status.phase"), "Failed" | "Succeeded");
    Some(match period {
        _ if unscheduled || finished => 0,
        p if p < 0 => 1,
        p => p,
    })
}

pub fn fields(pod: &Value) -> Vec<(&'static str, String)> {
    let addresses: Vec<&str> = pod.list("status.podIPs").iter().map(|ip| ip.text("ip")).collect();
    let mut fields: Vec<(&'static str, String)> = [
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ]
    .into_iter()
    .map(|path| (path, pod.text(path).to_owned()))
    .collect();
    if fields[5].1.is_empty() {
        fields[5].1 = addresses.first().copied().unwrap_or_default().to_owned();
    }
    fields.push(("spec.hostNetwork", pod.flag("spec.hostNetwork").to_string()));
    fields
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the cpu and memory of all containers (or of the pod, when it says).
pub fn qos_class(pod: &Value) -> &'static str {
    if pod.has("spec.resources") {
        return class(std::iter::once(pod.at("spec.resources")));
    }
    let containers = pod.list("spec.containers").iter().chain(pod.list("spec.initContainers"));
    class(containers.map(|c| c.at("resources")))
}

fn positive(value: &Value) -> Option<Quantity> {
    quantity(value).filter(|q| q.sign() > 0)
}

fn class<'a>(resources: impl Iterator<Item = &'a Value>) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    let mut requests = [None::<Quantity>, None];
    let mut limits = [None::<Quantity>, None];
    for r in resources {
        for (i, name) in ["cpu", "memory"].into_iter().enumerate() {
            let request = positive(r.at("requests").get_or_null(name));
            let limit = positive(r.at("limits").get_or_null(name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some();
            for (sum, q) in [(&mut requests[i], request), (&mut limits[i], limit)] {
                if let Some(q) = q {
                    *sum = Some(match sum.take() {
                        Some(s) => s + q,
                        None => q,
                    });
                }
            }
        }
    }
    match (any, guaranteed && requests.iter().zip(&limits).all(|(r, l)| r.is_none() || r == l)) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Whether nothing but what `paths` name differs between two specs.
pub fn same_but(new: &Value, old: &Value, paths: &[&str]) -> bool {
    let mut new = new.clone();
    for path in paths {
        new.copy_from(old, path);
    }
    equality::same(&new, old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let spec = |containers: Value| json!({"spec": {"containers": containers}});
        let full =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        for (pod, want) in [
            (spec(json!([{}])), "BestEffort"),
            (spec(json!([{"resources": {"requests": {"cpu": "0"}}}])), "BestEffort"),
            (spec(json!([{"resources": full}])), "Guaranteed"),
            (spec(json!([{"resources": full}, {}])), "Burstable"),
            (spec(json!([{"resources": {"requests": {"memory": "1"}}}])), "Burstable"),
            (spec(json!([{"resources": {"limits": {"nvidia.com/gpu": "1"}}}])), "BestEffort"),
        ] {
            assert_eq!(qos_class(&pod), want, "{pod}");
        }
    }

    #[test]
    fn subresources_change_only_theirs() {
        let old = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}});
        let mut new = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"nodeName": "m",
            "containers": [{"name": "c", "image": "j", "resources": {"limits": {"cpu": "1"}}}],
            "ephemeralContainers": [{"name": "e"}]}});
        let mut resized = new.clone();
        prepare_for_subresource("resize", &mut resized, &old);
        assert_eq!(
            resized,
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n",
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}]}, "status": {"phase": "Running"}})
        );
        prepare_for_subresource("ephemeralcontainers", &mut new, &old);
        assert_eq!(new.list("spec.ephemeralContainers").len(), 1);
        assert_eq!(new.text("spec.nodeName"), "n");
    }
}
