//! Rules as text for given services, transactions for changes, and both in network namespaces with real traffic.

mod fake_api;
mod rules;
mod traffic;

use std::time::Instant;

use serde_json::{Value, json};

use crate::categorize::Place;
use crate::model::{Family, Service, Slice};
use crate::ruleset::{Context, LocalTraffic, ServiceRules, service_rules};
use crate::table::{Base, Table};

fn context() -> Context {
    Context {
        place: Place { node: "n1".into(), zone: "a".into() },
        node_ips: vec!["192.0.2.1".parse().unwrap()],
        local_traffic: LocalTraffic::Cidrs(vec!["10.244.0.0/16".parse().unwrap()]),
    }
}

fn base(family: Family) -> Base {
    Base {
        family,
        local_traffic: context().local_traffic,
        masquerade_all: false,
        masquerade_mark: 0x4000,
        node_port_ips: None,
        localhost_node_ports: true,
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
    }
}

/// A service `ns/svc` with one TCP port 80 named `p80`; `spec` and `ingress` on top.
fn service(spec: Value, ingress: Value) -> Service {
    let mut object = json!({
        "metadata": {"namespace": "ns", "name": "svc"},
        "spec": {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{"name": "p80", "protocol": "TCP", "port": 80}]},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    Service::of(&serde_json::from_value(object).unwrap()).unwrap()
}

/// A slice of `(address, node, serving)` endpoints with `port` named `p80`.
fn slice(protocol: &str, port: u16, endpoints: &[(&str, &str)]) -> Slice {
    let v6 = endpoints.first().is_some_and(|(ip, _)| ip.contains(':'));
    let endpoints: Vec<Value> =
        endpoints.iter().map(|(ip, node)| json!({"addresses": [ip], "nodeName": node})).collect();
    let object = json!({"metadata": {"namespace": "ns", "name": "svc-1"}, "addressType": if v6 {"IPv6"} else {"IPv4"},
        "ports": [{"name": "p80", "protocol": protocol, "port": port}], "endpoints": endpoints});
    Slice::of(&serde_json::from_value(object).unwrap(), "n1").unwrap()
}

fn rules(service: &Service, slices: &[Slice]) -> ServiceRules {
    service_rules(service, slices, Family::V4, &context())
}

fn change(table: &mut Table, rules: Option<ServiceRules>) -> String {
    table.update(vec![("ns/svc".into(), rules)], Instant::now())
}
