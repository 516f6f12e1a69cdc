//! Changed resources of running containers.

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::quantity::{self, Resources};

const RESIZABLE: [&str; 2] = ["cpu", "memory"];

fn same(a: Option<&Resources>, b: Option<&Resources>, name: &str) -> bool {
    quantity::milli_of(a, name) == quantity::milli_of(b, name)
}

/// Whether two lists of processor time and memory say different things.
pub fn differs(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    RESIZABLE.iter().any(|name| changes(a, b, name))
}

fn changes(a: &ResourceRequirements, b: &ResourceRequirements, name: &str) -> bool {
    !same(a.limits.as_ref(), b.limits.as_ref(), name) || !same(a.requests.as_ref(), b.requests.as_ref(), name)
}

/// Whether the container wants to be restarted for what changes.
pub fn restarts(container: &Container, old: &ResourceRequirements, new: &ResourceRequirements) -> bool {
    let policies = container.resize_policy.as_deref().unwrap_or_default();
    policies.iter().any(|p| p.restart_policy == "RestartContainer" && changes(old, new, &p.resource_name))
}

/// Why the pod would never fit this node.
pub fn infeasible(pod: &Pod, allocatable: &Resources) -> Option<String> {
    let totals = crate::cgroup::pod_totals(pod);
    let cpu = quantity::milli_of(Some(allocatable), "cpu").unwrap_or(0);
    let memory = quantity::of(Some(allocatable), "memory").unwrap_or(0);
    for (what, asked, there) in [("cpu", totals.cpu_request, cpu), ("memory", totals.memory_request, memory)]
    {
        if asked > there {
            return Some(format!(
                "Node didn't have enough capacity: {what}, requested: {asked}, capacity: {there}"
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ContainerResizePolicy;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn limits(cpu: &str, memory: &str) -> ResourceRequirements {
        let list = [("cpu", cpu), ("memory", memory)].map(|(k, v)| (k.to_owned(), Quantity(v.to_owned())));
        ResourceRequirements { limits: Some(list.into()), ..ResourceRequirements::default() }
    }

    #[test]
    fn what_changes() {
        assert!(!differs(&limits("1", "1Gi"), &limits("1000m", "1024Mi")));
        assert!(differs(&limits("1", "1Gi"), &limits("2", "1Gi")));
        let policy = ContainerResizePolicy {
            resource_name: "memory".into(),
            restart_policy: "RestartContainer".into(),
        };
        let container = Container { resize_policy: Some(vec![policy]), ..Container::default() };
        assert!(!restarts(&container, &limits("1", "1Gi"), &limits("2", "1Gi")));
        assert!(restarts(&container, &limits("1", "1Gi"), &limits("1", "2Gi")));
    }
}
