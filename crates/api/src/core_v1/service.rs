//! Services and endpoints.

use serde_json::{Value, json};

use crate::value::{Read, Write};

pub fn defaults(service: &mut Value) {
    service.put_default_text("spec.sessionAffinity", "None");
    match service.text("spec.sessionAffinity") {
        "None" => {
            service.remove("spec.sessionAffinityConfig");
        }
        "ClientIP" if !service.has("spec.sessionAffinityConfig.clientIP.timeoutSeconds") => {
            service.put("spec.sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
        }
        _ => {}
    }
    service.put_default_text("spec.type", "ClusterIP");
    for port in service.list_mut("spec.ports") {
        port.put_default_text("protocol", "TCP");
        let target = port.at("targetPort");
        if target.is_null() || target == 0 || target == "" {
            let number = port.at("port").clone();
            port.put("targetPort", number);
        }
    }
    let kind = service.text("spec.type").to_owned();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !service.list("spec.externalIPs").is_empty());
    if external {
        service.put_default_text("spec.externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        service.put_default("spec.internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        service.put_default("spec.allocateLoadBalancerNodePorts", true);
        for ingress in service.list_mut("status.loadBalancer.ingress") {
            if !ingress.text("ip").is_empty() {
                ingress.put_default("ipMode", "VIP");
            }
        }
    }
    service.put_default("status.loadBalancer", json!({}));
}

/// A service that changes its kind gives up what only the old kind has, where the client did not change it too.
pub fn prepare_for_update(new: &mut Value, old: &Value) {
    let (was, is) = (old.text("spec.type").to_owned(), new.text("spec.type").to_owned());
    let needs_cluster_ip = |kind: &str| kind != "ExternalName";
    let needs_node_ports = |kind: &str, service: &Value| {
        kind == "NodePort"
            || (kind == "LoadBalancer"
                && service.at("spec.allocateLoadBalancerNodePorts").as_bool().unwrap_or(true))
    };
    // A client that leaves the addresses out means the ones it has.
    if needs_cluster_ip(&was) && needs_cluster_ip(&is) {
        if new.text("spec.clusterIP").is_empty() && new.list("spec.clusterIPs").is_empty() {
            new.copy_from(old, "spec.clusterIP");
            new.copy_from(old, "spec.clusterIPs");
        } else if new.list("spec.clusterIPs").is_empty()
            && new.text("spec.clusterIP") == old.text("spec.clusterIP")
        {
            new.copy_from(old, "spec.clusterIPs");
        }
        if !new.has("spec.ipFamilyPolicy") {
            new.copy_from(old, "spec.ipFamilyPolicy");
        }
        if new.list("spec.ipFamilies").is_empty() {
            new.copy_from(old, "spec.ipFamilies");
        }
    }
    if needs_node_ports(&was, old) && needs_node_ports(&is, new) {
        keep_node_ports(new, old);
    }
    let health = |service: &Value| {
        service.text("spec.type") == "LoadBalancer" && service.text("spec.externalTrafficPolicy") == "Local"
    };
    if health(old) && health(new) && new.int("spec.healthCheckNodePort") == 0 {
        new.copy_from(old, "spec.healthCheckNodePort");
    }

    let unchanged = |path: &str, new: &Value| new.at(path) == old.at(path);
    if needs_cluster_ip(&was) && !needs_cluster_ip(&is) && unchanged("spec.clusterIP", new) {
        new.remove("spec.clusterIP");
        new.remove("spec.clusterIPs");
        new.remove("spec.ipFamilies");
        new.remove("spec.ipFamilyPolicy");
    }
    if needs_node_ports(&was, old) && !needs_node_ports(&is, new) && same_node_ports(new, old) {
        for port in new.list_mut("spec.ports") {
            port.remove("nodePort");
        }
    }
    if health(old) && !health(new) && unchanged("spec.healthCheckNodePort", new) {
        new.remove("spec.healthCheckNodePort");
    }
    if was == "LoadBalancer" && is != "LoadBalancer" {
        for path in ["spec.allocateLoadBalancerNodePorts", "spec.loadBalancerClass"] {
            if unchanged(path, new) {
                new.remove(path);
            }
        }
    }
    let external = |service: &Value| {
        matches!(service.text("spec.type"), "NodePort" | "LoadBalancer")
            || (service.text("spec.type") == "ClusterIP" && !service.list("spec.externalIPs").is_empty())
    };
    if external(old) && !external(new) && unchanged("spec.externalTrafficPolicy", new) {
        new.remove("spec.externalTrafficPolicy");
    }
    if was != "ExternalName" && is == "ExternalName" && unchanged("spec.internalTrafficPolicy", new) {
        new.remove("spec.internalTrafficPolicy");
    }
}

/// The old node port of a port (by name, or by protocol and number) the client gave none for.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let taken: Vec<i64> = new.list("spec.ports").iter().map(|p| p.int("nodePort")).collect();
    for port in new.list_mut("spec.ports") {
        if port.int("nodePort") != 0 {
            continue;
        }
        let before = old
            .list("spec.ports")
            .iter()
            .find(|o| o.int("port") == port.int("port") && o.text("protocol") == port.text("protocol"));
        if let Some(node_port) = before.map(|o| o.int("nodePort")).filter(|n| *n != 0 && !taken.contains(n)) {
            port.put("nodePort", node_port);
        }
    }
}

fn same_node_ports(new: &Value, old: &Value) -> bool {
    let ports = |service: &Value| {
        let mut ports: Vec<i64> =
            service.list("spec.ports").iter().map(|p| p.int("nodePort")).filter(|p| *p != 0).collect();
        ports.sort_unstable();
        ports
    };
    ports(new).iter().all(|p| ports(old).contains(p))
}

pub fn endpoints_defaults(endpoints: &mut Value) {
    for subset in endpoints.list_mut("subsets") {
        for port in subset.list_mut("ports") {
            port.put_default_text("protocol", "TCP");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_services() {
        for (mut service, want) in [
            (
                json!({"spec": {"ports": [{"port": 80}]}}),
                json!({"spec": {"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}], "type": "ClusterIP",
                    "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}, "status": {"loadBalancer": {}}}),
            ),
            (
                json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}),
                json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                    "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
                    "allocateLoadBalancerNodePorts": true}, "status": {"loadBalancer": {}}}),
            ),
        ] {
            defaults(&mut service);
            assert_eq!(service, want);
        }
    }

    #[test]
    fn gives_up_what_the_old_kind_had() {
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}]}});
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        prepare_for_update(&mut new, &old);
        assert_eq!(
            new,
            json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                "ports": [{"port": 80, "protocol": "TCP"}]}})
        );
        let mut bare = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        prepare_for_update(&mut bare, &old);
        assert_eq!(bare.int("spec.ports"), 0);
        assert_eq!(bare["spec"]["ports"][0]["nodePort"], 30000);
        assert_eq!(bare["spec"]["clusterIP"], "10.0.0.1");
    }
}
