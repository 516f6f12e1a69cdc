//! What one object counts against resource quotas: admission charges by it, the quota controller counts by it. Pure.

use crate::quantity::{Format, Quantity};
use jiff::Timestamp;
use serde_json::Value;

use crate::pod_resources::{Amounts, amounts, items, with_overhead};

const POD_RESOURCES: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// If a quota tracks one of these, every container must say how much it takes.
const MUST_BE_SET: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// Resources that are also counted under their plain name.
const PLAIN_COUNTS: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";

fn one() -> Quantity {
    Quantity::new(1, Format::DecimalSi)
}

fn count(n: usize) -> Quantity {
    Quantity::new(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSi)
}

/// `count/pods` or `count/deployments.apps`.
pub fn count_name(group: &str, resource: &str) -> String {
    if group.is_empty() { format!("count/{resource}") } else { format!("count/{resource}.{group}") }
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.")
}

/// Whether a quota on `name` counts objects of this resource.
pub fn tracks(group: &str, resource: &str, name: &str) -> bool {
    if name == count_name(group, resource) {
        return true;
    }
    match (group, resource) {
        ("", "pods") => {
            POD_RESOURCES.contains(&name)
                || name.starts_with("hugepages-")
                || name.starts_with("requests.hugepages-")
                || name.starts_with("requests.") && !is_native(name)
        }
        ("", "services") => matches!(name, "services" | "services.nodeports" | "services.loadbalancers"),
        ("", "persistentvolumeclaims") => {
            matches!(name, "persistentvolumeclaims" | "requests.storage") || name.contains(CLASS_SUFFIX)
        }
        ("", other) => PLAIN_COUNTS.contains(&other) && name == other,
        _ => false,
    }
}

/// Whether the object is in one of a quota's scopes (an entry of `scopeSelector.matchExpressions`, or a scope as one
/// with the operator `Exists`).
pub fn in_scope(
    group: &str,
    resource: &str,
    object: &Value,
    scope: &str,
    operator: &str,
    values: &[String],
) -> bool {
    let spec = &object["spec"];
    if (group, resource) == ("", "persistentvolumeclaims") && scope == "VolumeAttributesClass" {
        let class = spec["volumeAttributesClassName"].as_str().filter(|c| !c.is_empty());
        return selected(class, operator, values);
    }
    if (group, resource) != ("", "pods") {
        return false;
    }
    let terminating = spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(spec),
        "NotBestEffort" => !is_best_effort(spec),
        "PriorityClass" => {
            selected(spec["priorityClassName"].as_str().filter(|c| !c.is_empty()), operator, values)
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        _ => false,
    }
}

/// Whether all scopes of a quota hold for the object.
pub fn scopes_match(group: &str, resource: &str, quota: &Value, object: &Value) -> bool {
    let spec = &quota["spec"];
    let plain = items(spec, "scopes")
        .all(|s| in_scope(group, resource, object, s.as_str().unwrap_or_default(), "Exists", &[]));
    plain
        && items(&spec["scopeSelector"], "matchExpressions").all(|e| {
            let text = |field: &str| e[field].as_str().unwrap_or_default();
            let values: Vec<String> =
                items(e, "values").filter_map(|v| v.as_str().map(str::to_owned)).collect();
            in_scope(group, resource, object, text("scopeName"), text("operator"), &values)
        })
}

fn selected(value: Option<&str>, operator: &str, values: &[String]) -> bool {
    let listed = value.is_some_and(|v| values.iter().any(|x| x == v));
    match operator {
        "In" => listed,
        "NotIn" => !listed,
        "DoesNotExist" => value.is_none(),
        _ => value.is_some(),
    }
}

fn is_best_effort(spec: &Value) -> bool {
    let counts = |list: &Value| {
        amounts(list).iter().any(|(name, amount)| (name == "cpu" || name == "memory") && !amount.is_zero())
    };
    let sets = |v: &Value| counts(&v["resources"]["requests"]) || counts(&v["resources"]["limits"]);
    !sets(spec) && !items(spec, "containers").chain(items(spec, "initContainers")).any(sets)
}

fn crosses_namespaces(affinity: &Value) -> bool {
    let crosses =
        |term: &Value| items(term, "namespaces").next().is_some() || !term["namespaceSelector"].is_null();
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &affinity[*kind];
        items(affinity, "requiredDuringSchedulingIgnoredDuringExecution").any(crosses)
            || items(affinity, "preferredDuringSchedulingIgnoredDuringExecution")
                .any(|t| crosses(&t["podAffinityTerm"]))
    })
}

fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut out = Amounts::new();
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = requests.get(name) {
            out.insert(name.to_owned(), *amount);
            out.insert(format!("requests.{name}"), *amount);
        }
        if let Some(amount) = limits.get(name) {
            out.insert(format!("limits.{name}"), *amount);
        }
    }
    for (name, amount) in requests {
        if name.starts_with("hugepages-") {
            out.insert(name.clone(), *amount);
            out.insert(format!("requests.{name}"), *amount);
        }
        if is_extended(name) {
            out.insert(format!("requests.{name}"), *amount);
        }
    }
    out
}

/// Whether a pod still takes resources: it has not ended, and is not long past its deletion.
fn pod_counts(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        return false;
    }
    let meta = &pod["metadata"];
    let deleted = meta["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
    match (deleted, meta["deletionGracePeriodSeconds"].as_i64()) {
        (Some(deleted), Some(grace)) => now.as_second() <= deleted.as_second() + grace,
        _ => true,
    }
}

/// What an object counts, by quota resource name.
pub fn usage(group: &str, resource: &str, object: &Value, now: Timestamp) -> Amounts {
    let mut out = Amounts::from([(count_name(group, resource), one())]);
    let spec = &object["spec"];
    match (group, resource) {
        ("", "pods") if pod_counts(object, now) => {
            out.insert("pods".into(), one());
            out.extend(compute(&with_overhead(spec, "requests"), &with_overhead(spec, "limits")));
        }
        ("", "services") => {
            out.insert("services".into(), one());
            let ports = items(spec, "ports");
            match spec["type"].as_str() {
                Some("NodePort") => {
                    out.insert("services.nodeports".into(), count(ports.len()));
                }
                Some("LoadBalancer") => {
                    let all = spec["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true);
                    let given = |p: &&Value| p["nodePort"].as_u64().is_some_and(|n| n != 0);
                    let ports = if all { ports.len() } else { ports.filter(given).count() };
                    out.insert("services.nodeports".into(), count(ports));
                    out.insert("services.loadbalancers".into(), one());
                }
                _ => {}
            }
        }
        ("", "persistentvolumeclaims") => {
            out.insert("persistentvolumeclaims".into(), one());
            let annotation = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
            let class = annotation.as_str().or_else(|| spec["storageClassName"].as_str()).unwrap_or_default();
            let mut storage = amounts(&spec["resources"]["requests"]).get("storage").copied();
            if let Some(allocated) = amounts(&object["status"]["allocatedResources"]).get("storage") {
                storage = Some(storage.map_or(*allocated, |s| s.max(*allocated)));
            }
            if let Some(storage) = storage {
                out.insert("requests.storage".into(), storage);
            }
            if !class.is_empty() {
                out.insert(format!("{class}{CLASS_SUFFIX}persistentvolumeclaims"), one());
                if let Some(storage) = storage {
                    out.insert(format!("{class}{CLASS_SUFFIX}requests.storage"), storage);
                }
            }
        }
        ("", other) if PLAIN_COUNTS.contains(&other) => {
            out.insert(other.to_owned(), one());
        }
        _ => {}
    }
    out
}

/// What a pod must set because a quota tracks it, and which containers do not.
pub fn missing(group: &str, resource: &str, object: &Value, tracked: &[&str]) -> Option<String> {
    let spec = &object["spec"];
    if (group, resource) != ("", "pods") || spec["resources"].as_object().is_some_and(|r| !r.is_empty()) {
        return None;
    }
    let mut required: Vec<&str> = tracked.iter().copied().filter(|t| MUST_BE_SET.contains(t)).collect();
    required.sort_unstable();
    let mut lines: Vec<String> = Vec::new();
    for name in required {
        let mut without: Vec<&str> = items(spec, "containers")
            .chain(items(spec, "initContainers"))
            .filter(|c| {
                let resources = &c["resources"];
                !compute(&amounts(&resources["requests"]), &amounts(&resources["limits"])).contains_key(name)
            })
            .filter_map(|c| c["name"].as_str())
            .collect();
        if !without.is_empty() {
            without.sort_unstable();
            lines.push(format!("{name} for: {}", without.join(",")));
        }
    }
    (!lines.is_empty()).then(|| format!("must specify {}", lines.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(group: &str, resource: &str, object: Value) -> String {
        let now = "2030-01-01T00:00:00Z".parse().unwrap();
        let usage = usage(group, resource, &object, now);
        usage.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn counts() {
        let container = json!({"resources": {"requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"memory": "1Gi"}}});
        for (group, resource, object, want) in [
            ("apps", "deployments", json!({}), "count/deployments.apps=1"),
            ("", "configmaps", json!({}), "configmaps=1,count/configmaps=1"),
            (
                "",
                "pods",
                json!({"spec": {"containers": [container]}}),
                "count/pods=1,cpu=1,limits.memory=1Gi,pods=1,requests.cpu=1,requests.example.com/gpu=2",
            ),
            ("", "pods", json!({"status": {"phase": "Succeeded"}}), "count/pods=1"),
            (
                "",
                "pods",
                json!({"metadata": {"deletionTimestamp": "2029-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}}),
                "count/pods=1",
            ),
            (
                "",
                "services",
                json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}}),
                "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2",
            ),
            (
                "",
                "services",
                json!({"spec": {"type": "ClusterIP", "ports": [{}]}}),
                "count/services=1,services=1",
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}}),
                "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
              gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi",
            ),
        ] {
            assert_eq!(shown(group, resource, object), want);
        }
    }

    #[test]
    fn scopes() {
        let pod =
            json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high", "containers": [{}]}});
        for (scope, operator, values, want) in [
            ("Terminating", "Exists", vec![], true),
            ("NotTerminating", "Exists", vec![], false),
            ("BestEffort", "Exists", vec![], true),
            ("NotBestEffort", "Exists", vec![], false),
            ("PriorityClass", "Exists", vec![], true),
            ("PriorityClass", "In", vec!["high".to_owned()], true),
            ("PriorityClass", "NotIn", vec!["high".to_owned()], false),
            ("PriorityClass", "DoesNotExist", vec![], false),
            ("CrossNamespacePodAffinity", "Exists", vec![], false),
        ] {
            assert_eq!(in_scope("", "pods", &pod, scope, operator, &values), want, "{scope} {operator}");
        }
        assert!(!in_scope("", "services", &json!({}), "Terminating", "Exists", &[]));
    }

    #[test]
    fn names_what_is_missing() {
        let pod = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}, {"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        assert_eq!(
            missing("", "pods", &pod, &["requests.cpu", "pods", "limits.memory"]).unwrap(),
            "must specify limits.memory for: a,b,c; requests.cpu for: a,b"
        );
        assert!(missing("", "pods", &pod, &["pods"]).is_none());
    }
}
