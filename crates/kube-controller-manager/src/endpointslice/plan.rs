//! Which slices a service should have. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{MANAGED_BY, MANAGER, SERVICE_NAME};
use crate::support::services::{PodView, has_address};

const MAX_PER_SLICE: usize = 100;
const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    /// Names.
    pub(super) delete: Vec<String>,
}

/// Ports in an order that can be compared: (name, protocol, port, application protocol).
type Ports = Vec<(String, String, i32, Option<String>)>;

fn key_of(ports: Option<&Vec<EndpointPort>>) -> Ports {
    let mut key: Ports = ports
        .into_iter()
        .flatten()
        .map(|p| {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            (text(&p.name), text(&p.protocol), p.port.unwrap_or(0), p.app_protocol.clone())
        })
        .collect();
    key.sort();
    key
}

fn slice_ports(key: &Ports) -> Vec<EndpointPort> {
    key.iter()
        .map(|(name, protocol, port, app_protocol)| EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: Some(*port),
            app_protocol: app_protocol.clone(),
        })
        .collect()
}

pub(super) fn plan(
    service: &Service,
    pods: &[PodView],
    present: &[EndpointSlice],
    zone: impl Fn(&str) -> Option<String>,
) -> Plan {
    let spec = service.spec.clone().unwrap_or_default();
    let families = families(&spec);
    let mut plan = Plan::default();
    for slice in present {
        if !families.contains(&slice.address_type.as_str()) {
            plan.delete.push(slice.metadata.name.clone().unwrap_or_default());
        }
    }
    for family in families {
        let mut wanted: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
        for pod in pods.iter().filter(|p| p.is_endpoint(true)) {
            let Some(ports) = ports(&spec, pod) else { continue };
            if let Some(endpoint) = endpoint(service, &spec, pod, family, &zone) {
                wanted.entry(ports).or_default().push(endpoint);
            }
        }
        let here: Vec<&EndpointSlice> = present.iter().filter(|s| s.address_type == family).collect();
        plan_family(service, &spec, family, wanted, &here, &mut plan);
    }
    plan
}

fn families(spec: &ServiceSpec) -> Vec<&'static str> {
    let told: Vec<&'static str> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|f| match f.as_str() {
            "IPv4" => Some("IPv4"),
            "IPv6" => Some("IPv6"),
            _ => None,
        })
        .collect();
    match &spec.cluster_ip {
        _ if !told.is_empty() => told,
        Some(ip) if has_address(spec) => vec![if ip.contains(':') { "IPv6" } else { "IPv4" }],
        _ => vec!["IPv4", "IPv6"],
    }
}

/// The ports a pod offers for the service; `None` where it is no endpoint because it has none of them.
fn ports(spec: &ServiceSpec, pod: &PodView) -> Option<Ports> {
    let service_ports = spec.ports.as_deref().unwrap_or_default();
    let mut ports: Ports = service_ports
        .iter()
        .filter_map(|p| {
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((p.name.clone().unwrap_or_default(), protocol, pod.port(p)?, p.app_protocol.clone()))
        })
        .collect();
    ports.sort();
    // Headless services need no ports.
    (!ports.is_empty() || service_ports.is_empty() || !has_address(spec)).then_some(ports)
}

fn endpoint(
    service: &Service,
    spec: &ServiceSpec,
    pod: &PodView,
    family: &str,
    zone: &impl Fn(&str) -> Option<String>,
) -> Option<Endpoint> {
    let addresses: Vec<String> =
        pod.addresses().filter(|ip| ip.contains(':') == (family == "IPv6")).map(str::to_owned).collect();
    if addresses.is_empty() {
        return None;
    }
    let (serving, terminating) = (pod.is_ready(), pod.metadata.deletion_timestamp);
    let ready = spec.publish_not_ready_addresses.unwrap_or(false) || (serving && !terminating);
    let node = Some(pod.spec.node_name.clone()).filter(|n| !n.is_empty());
    let zone = node.as_deref().and_then(zone);
    let for_zone = || zone.clone().map(|name| vec![ForZone { name }]);
    let hints = match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") if zone.is_some() && ready => {
            Some(EndpointHints { for_zones: for_zone(), for_nodes: None })
        }
        Some("PreferSameNode") if ready => Some(EndpointHints {
            for_zones: for_zone(),
            for_nodes: node.clone().map(|name| vec![ForNode { name }]),
        }),
        _ => None,
    };
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: pod.hostname_for(service.metadata.name.as_deref().unwrap_or_default()).map(str::to_owned),
        node_name: node,
        zone,
        hints,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.metadata.namespace.clone()),
            name: Some(pod.metadata.name.clone()),
            uid: Some(pod.metadata.uid.clone()),
            ..ObjectReference::default()
        }),
        deprecated_topology: None,
    })
}

/// Which pod an endpoint stands for.
fn identity(endpoint: &Endpoint) -> (Option<&str>, &[String]) {
    (endpoint.target_ref.as_ref().and_then(|r| r.uid.as_deref()), &endpoint.addresses)
}

fn plan_family(
    service: &Service,
    spec: &ServiceSpec,
    family: &str,
    wanted: BTreeMap<Ports, Vec<Endpoint>>,
    present: &[&EndpointSlice],
    plan: &mut Plan,
) {
    let labels = labels(service, spec);
    let mut by_ports: BTreeMap<Ports, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in present {
        by_ports.entry(key_of(slice.ports.as_ref())).or_default().push(slice);
    }
    let (created, deleted) = (plan.create.len(), plan.delete.len());
    let mut spare: Vec<&EndpointSlice> = Vec::new();
    for (ports, slices) in &by_ports {
        if !wanted.contains_key(ports) {
            spare.extend(slices);
        }
    }
    for (ports, endpoints) in wanted {
        let slices = by_ports.remove(&ports).unwrap_or_default();
        fill(service, family, &labels, &ports, endpoints, slices, plan);
    }
    // A service without endpoints keeps one empty slice, so that consumers can tell it from one not yet seen.
    let created = plan.create.len() - created;
    let kept = present.len() - spare.len() - (plan.delete.len() - deleted);
    if created + kept == 0 {
        match spare.iter().position(|s| is_placeholder(s)) {
            Some(at) => {
                let slice = spare.remove(at);
                if slice.metadata.labels.as_ref() != Some(&labels) {
                    let mut updated = slice.clone();
                    updated.metadata.labels = Some(labels);
                    plan.update.push(updated);
                }
            }
            None => plan.create.push(new_slice(service, family, &labels, &Vec::new(), Vec::new())),
        }
    }
    plan.delete.extend(spare.iter().map(|s| s.metadata.name.clone().unwrap_or_default()));
}

fn is_placeholder(slice: &EndpointSlice) -> bool {
    slice.endpoints.as_ref().is_none_or(Vec::is_empty) && slice.ports.as_ref().is_none_or(Vec::is_empty)
}

/// Distributes the endpoints of one set of ports: what is in a slice stays there, new ones go into slices that
/// change anyway, then into those with room, then into new ones.
fn fill(
    service: &Service,
    family: &str,
    labels: &BTreeMap<String, String>,
    ports: &Ports,
    mut left: Vec<Endpoint>,
    slices: Vec<&EndpointSlice>,
    plan: &mut Plan,
) {
    let mut touched: Vec<(EndpointSlice, bool)> = Vec::new();
    for slice in slices {
        let mut kept = Vec::new();
        let mut changed = slice.metadata.labels.as_ref() != Some(labels);
        for old in slice.endpoints.iter().flatten() {
            match left.iter().position(|e| identity(e) == identity(old)) {
                Some(at) => {
                    let new = left.swap_remove(at);
                    changed |= new != *old;
                    kept.push(new);
                }
                None => changed = true,
            }
        }
        if kept.is_empty() {
            // May be refilled below; deleted otherwise.
            changed = true;
        }
        let mut updated = slice.clone();
        updated.endpoints = Some(kept);
        updated.metadata.labels = Some(labels.clone());
        touched.push((updated, changed));
    }
    left.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    // Changing slices first, fullest first.
    touched
        .sort_by_key(|(s, changed)| (!changed, std::cmp::Reverse(s.endpoints.as_ref().map_or(0, Vec::len))));
    for (slice, changed) in &mut touched {
        let endpoints = slice.endpoints.get_or_insert_default();
        let room = MAX_PER_SLICE.saturating_sub(endpoints.len()).min(left.len());
        if room > 0 {
            endpoints.extend(left.drain(..room));
            *changed = true;
        }
    }
    for (slice, changed) in touched {
        if slice.endpoints.as_ref().is_none_or(Vec::is_empty) {
            plan.delete.push(slice.metadata.name.unwrap_or_default());
        } else if changed {
            plan.update.push(slice);
        }
    }
    while !left.is_empty() {
        let part = left.drain(..left.len().min(MAX_PER_SLICE)).collect();
        plan.create.push(new_slice(service, family, labels, ports, part));
    }
}

fn labels(service: &Service, spec: &ServiceSpec) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if !has_address(spec) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(
    service: &Service,
    family: &str,
    labels: &BTreeMap<String, String>,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name,
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(slice_ports(ports)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(i: usize, ready: bool, deleting: bool) -> PodView {
        let ip = format!("10.0.{}.{}", i / 250, i % 250);
        let mut value = json!({"metadata": {"name": format!("p{i}"), "namespace": "n", "uid": format!("u{i}")},
            "spec": {"nodeName": "node", "containers": []},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}});
        if deleting {
            value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(value).unwrap()
    }

    fn service(extra: serde_json::Value) -> Service {
        let mut spec = json!({"clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"], "ports": [{"port": 80}]});
        for (k, v) in extra.as_object().unwrap() {
            spec[k] = v.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n", "uid": "s"}, "spec": spec}))
            .unwrap()
    }

    fn no_zone(_: &str) -> Option<String> {
        None
    }

    /// The slices after carrying out a plan.
    fn apply(mut present: Vec<EndpointSlice>, plan: Plan) -> Vec<EndpointSlice> {
        present.retain(|s| !plan.delete.contains(s.metadata.name.as_ref().unwrap()));
        for updated in plan.update {
            let slot = present.iter_mut().find(|s| s.metadata.name == updated.metadata.name);
            *slot.unwrap() = updated;
        }
        for (i, mut made) in plan.create.into_iter().enumerate() {
            made.metadata.name = Some(format!("s-{}-{i}", present.len()));
            present.push(made);
        }
        present
    }

    fn sizes(slices: &[EndpointSlice]) -> Vec<usize> {
        slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect()
    }

    #[test]
    fn conditions_of_endpoints() {
        for (ready, deleting, publish, want) in [
            (true, false, false, (true, true, false)),
            (false, false, false, (false, false, false)),
            (true, true, false, (false, true, true)),
            (false, false, true, (true, false, false)),
        ] {
            let s = service(json!({"publishNotReadyAddresses": publish}));
            let plan = plan(&s, &[pod(0, ready, deleting)], &[], no_zone);
            let c = plan.create[0].endpoints.as_ref().unwrap()[0].conditions.clone().unwrap();
            assert_eq!((c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()), want);
        }
    }

    #[test]
    fn a_placeholder_until_there_are_endpoints() {
        let s = service(json!({}));
        let empty = apply(vec![], plan(&s, &[], &[], no_zone));
        assert_eq!(sizes(&empty), [0]);
        assert_eq!(plan(&s, &[], &empty, no_zone), Plan::default());
        let one = apply(empty.clone(), plan(&s, &[pod(0, true, false)], &empty, no_zone));
        assert_eq!(sizes(&one), [1]);
        assert_eq!(plan(&s, &[pod(0, true, false)], &one, no_zone), Plan::default());
        let none = apply(one.clone(), plan(&s, &[], &one, no_zone));
        assert_eq!(sizes(&none), [0]);
    }

    #[test]
    fn slices_are_bounded_and_stable() {
        let s = service(json!({}));
        let pods: Vec<PodView> = (0..250).map(|i| pod(i, true, false)).collect();
        let slices = apply(vec![], plan(&s, &pods, &[], no_zone));
        assert_eq!(sizes(&slices), [100, 100, 50]);
        assert_eq!(plan(&s, &pods, &slices, no_zone), Plan::default());
        // One pod more changes one slice only.
        let more: Vec<PodView> = (0..251).map(|i| pod(i, true, false)).collect();
        let step = plan(&s, &more, &slices, no_zone);
        assert_eq!((step.create.len(), step.update.len(), step.delete.len()), (0, 1, 0));
        assert_eq!(sizes(&apply(slices.clone(), step)), [100, 100, 51]);
        // Fewer pods empty slices rather than shuffle.
        let fewer = plan(&s, &pods[..10], &slices, no_zone);
        assert_eq!(sizes(&apply(slices, fewer)).iter().sum::<usize>(), 10);
    }

    #[test]
    fn both_families() {
        let s = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
        let mut p = pod(0, true, false);
        p.status.pod_ips.push(crate::support::services::IpView { ip: "fd00::1".into() });
        let slices = apply(vec![], plan(&s, &[p.clone()], &[], no_zone));
        let families: Vec<_> = slices.iter().map(|s| s.address_type.as_str()).collect();
        assert_eq!(families, ["IPv4", "IPv6"]);
        let single = plan(&service(json!({})), &[p], &slices, no_zone);
        assert_eq!((single.create.len(), single.update.len(), single.delete.len()), (0, 0, 1));
    }
}
