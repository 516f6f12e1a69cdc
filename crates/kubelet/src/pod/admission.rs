//! Whether a pod that was bound to this node fits it. The scheduler saw to that; pods bound by others, or by a
//! scheduler that knew less, are refused here and fail.

use k8s_openapi::api::core::v1::Pod;

use super::spec;
use crate::cgroup::pod_totals;
use crate::quantity::{self, Resources};

/// The system that this kubelet runs containers of.
const OS: &str = "linux";

/// What an admitted pod takes up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    /// Protocol, address (empty for all) and number.
    ports: Vec<(String, String, i32)>,
    cpu_milli: i64,
    memory_bytes: i64,
}

/// Why a pod is refused.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    pub reason: String,
    pub message: String,
}

pub fn claims(pod: &Pod) -> Claims {
    let sidecars = spec::init_containers(pod).iter().filter(|c| spec::is_sidecar(c));
    let ports = spec::spec(pod)
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|n| *n > 0)?;
            let ip =
                p.host_ip.clone().filter(|ip| !matches!(ip.as_str(), "0.0.0.0" | "::")).unwrap_or_default();
            Some((p.protocol.clone().unwrap_or_else(|| "TCP".into()), ip, port))
        })
        .collect();
    let totals = pod_totals(pod);
    Claims { ports, cpu_milli: totals.cpu_request, memory_bytes: totals.memory_request }
}

fn conflict(a: &Claims, b: &Claims) -> bool {
    a.ports.iter().any(|(protocol, ip, port)| {
        b.ports.iter().any(|(other_protocol, other_ip, other_port)| {
            port == other_port
                && protocol == other_protocol
                && (ip == other_ip || ip.is_empty() || other_ip.is_empty())
        })
    })
}

/// Checks a pod against the node and the pods admitted before it.
pub fn admit(
    pod: &Pod,
    wanted: &Claims,
    others: &[Claims],
    allocatable: &Resources,
    node_labels: Option<&std::collections::BTreeMap<String, String>>,
) -> Result<(), Refusal> {
    let refuse = |reason: &str, message: String| {
        Err(Refusal { reason: reason.into(), message: format!("Pod was rejected: {message}") })
    };
    // What no other pod's end would change comes first.
    let system = pod.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/os"));
    if system.is_some_and(|name| name != OS) {
        let text = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return refuse("PodOSSelectorNodeLabelDoesNotMatch", text.into());
    }
    if spec::spec(pod).os.as_ref().is_some_and(|os| os.name != OS) {
        let text = "Failed to admit pod as the OS field doesn't match node OS";
        return refuse("PodOSNotSupported", text.into());
    }
    let room = quantity::of(Some(allocatable), "pods").unwrap_or(i64::MAX);
    let count = others.len() as i64;
    if count + 1 > room {
        return refuse(
            "OutOfpods",
            format!("Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {room}"),
        );
    }
    let cpu = quantity::milli_of(Some(allocatable), "cpu").unwrap_or(i64::MAX);
    let memory = quantity::of(Some(allocatable), "memory").unwrap_or(i64::MAX);
    let used = |f: fn(&Claims) -> i64| others.iter().map(f).sum::<i64>();
    for (name, asked, used, capacity) in [
        ("cpu", wanted.cpu_milli, used(|c| c.cpu_milli), cpu),
        ("memory", wanted.memory_bytes, used(|c| c.memory_bytes), memory),
    ] {
        if asked > 0 && used + asked > capacity {
            let text = format!(
                "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
            );
            return refuse(&format!("OutOf{name}"), text);
        }
    }
    if others.iter().any(|o| conflict(wanted, o)) {
        let text = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return refuse("NodePorts", text.into());
    }
    if let Some(labels) = node_labels {
        let selector = spec::spec(pod).node_selector.iter().flatten();
        if selector.into_iter().any(|(key, value)| labels.get(key) != Some(value)) {
            let text = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
            return refuse("NodeAffinity", text.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(port: i32, ip: &str, cpu: &str) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{
            "name": "a", "ports": [{"containerPort": 1, "hostPort": port, "hostIP": ip}],
            "resources": {"requests": {"cpu": cpu}},
        }]}}))
        .unwrap()
    }

    #[test]
    fn who_fits() {
        let allocatable: Resources = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")]
            .map(|(k, v)| (k.to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity(v.into())))
            .into();
        let check = |p: &Pod, others: &[&Pod]| {
            let others: Vec<Claims> = others.iter().map(|o| claims(o)).collect();
            admit(p, &claims(p), &others, &allocatable, None).map_err(|r| r.reason)
        };
        let one = pod(80, "", "1");
        assert_eq!(check(&one, &[]), Ok(()));
        assert_eq!(check(&one, &[&pod(81, "", "1")]), Ok(()));
        assert_eq!(check(&one, &[&pod(81, "", "1100m")]), Err("OutOfcpu".into()));
        assert_eq!(check(&one, &[&pod(80, "1.2.3.4", "0")]), Err("NodePorts".into()));
        assert_eq!(check(&pod(80, "4.3.2.1", "0"), &[&pod(80, "1.2.3.4", "0")]), Ok(()));
        for (os, label, want) in [
            ("linux", "linux", Ok(())),
            ("windows", "linux", Err("PodOSNotSupported".into())),
            ("windows", "windows", Err("PodOSSelectorNodeLabelDoesNotMatch".into())),
        ] {
            let mut one = one.clone();
            one.metadata.labels = Some([("kubernetes.io/os".to_owned(), label.to_owned())].into());
            one.spec.as_mut().unwrap().os = Some(k8s_openapi::api::core::v1::PodOS { name: os.to_owned() });
            assert_eq!(check(&one, &[]), want);
        }
        let none = pod(0, "", "0");
        assert_eq!(check(&none, &[&none, &none, &none]), Err("OutOfpods".into()));
    }
}
