//! Services and endpoints.

use serde_json::{Value, json};

use crate::check::{self, Report};
use crate::core_v1::pod::{self, container};
use crate::equality;
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
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
    let needs_node_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    // A client that leaves the addresses out means the ones it has.
    if needs_cluster_ip(&was) && needs_cluster_ip(&is) {
        if new.text("spec.clusterIP").is_empty() {
            new.copy_from(old, "spec.clusterIP");
        }
        if new.list("spec.clusterIPs").is_empty() && !old.list("spec.clusterIPs").is_empty() {
            new.copy_from(old, "spec.clusterIPs");
        }
    }
    agree_on_addresses(new, Some(old));
    if needs_cluster_ip(&was) && needs_cluster_ip(&is) {
        if !new.has("spec.ipFamilyPolicy") {
            new.copy_from(old, "spec.ipFamilyPolicy");
        }
        if new.list("spec.ipFamilies").is_empty() {
            new.copy_from(old, "spec.ipFamilies");
        }
    }
    if needs_node_ports(&was) && needs_node_ports(&is) {
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
    if needs_node_ports(&was) && !needs_node_ports(&is) && same_node_ports(new, old) {
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

/// The one cluster IP and the list of them agree; where only one was changed, the other follows.
pub fn agree_on_addresses(new: &mut Value, old: Option<&Value>) {
    let one = new.text("spec.clusterIP").to_owned();
    let first = new.list("spec.clusterIPs").first().and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(old) = old else {
        if !one.is_empty() && first.is_empty() {
            new.put("spec.clusterIPs", vec![one]);
        }
        return;
    };
    let same_list = equality::same_at(new, old, "spec.clusterIPs");
    if one != old.text("spec.clusterIP") && same_list && one != first {
        if one.is_empty() {
            new.remove("spec.clusterIPs");
        } else {
            new.put("spec.clusterIPs", vec![one]);
        }
    }
}

const SPEC: Path<'static> = Path::new("spec");

fn headless(service: &Value) -> bool {
    service.text("spec.clusterIP") == "None"
        || service.list("spec.clusterIPs").first().is_some_and(|ip| ip == "None")
}

fn externally_accessible(service: &Value) -> bool {
    matches!(service.text("spec.type"), "NodePort" | "LoadBalancer")
        || (service.text("spec.type") == "ClusterIP" && !service.list("spec.externalIPs").is_empty())
}

fn checks_health(service: &Value) -> bool {
    service.text("spec.type") == "LoadBalancer" && service.text("spec.externalTrafficPolicy") == "Local"
}

pub fn validate(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = service.at("spec");
    let kind = spec.text("type");
    let ports = spec.list("ports");
    let ports_path = SPEC.child("ports");
    if ports.is_empty() && !headless(service) && kind != "ExternalName" {
        errors.required(&ports_path, "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless(service) => errors.invalid(
            &SPEC.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {kind} services"),
        ),
        "ExternalName" => {
            for name in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let set = match spec.at(name) {
                    Value::Array(items) => !items.is_empty(),
                    value => !value.is_null(),
                };
                if set {
                    errors.forbidden(&SPEC.child(name), "may not be set for ExternalName services");
                }
            }
            let name = spec.text("externalName").trim_end_matches('.');
            if name.is_empty() {
                errors.required(&SPEC.child("externalName"), "");
            } else {
                errors.invalid_each(&SPEC.child("externalName"), name, check::dns1123_subdomain(name));
            }
        }
        _ => {}
    }
    self::ports(&mut errors, ports, &ports_path);
    meta::labels(&mut errors, spec.at("selector"), &SPEC.child("selector"));
    affinity(&mut errors, spec);
    addresses(&mut errors, service);
    for (i, ip) in spec.list("externalIPs").iter().enumerate() {
        let list = SPEC.child("externalIPs");
        endpoint_ip(&mut errors, ip.as_str().unwrap_or_default(), &list.index(i));
    }
    match kind {
        "" => errors.required(&SPEC.child("type"), ""),
        _ => errors.one_of(
            &SPEC.child("type"),
            kind,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        ),
    }
    let mut node_ports: Vec<(&str, i64)> = vec![];
    let mut numbers: Vec<(&str, i64)> = vec![];
    for (i, port) in ports.iter().enumerate() {
        let path = ports_path.index(i);
        let (protocol, node) = (port.text("protocol"), port.int("nodePort"));
        if node != 0 {
            if kind == "ClusterIP" {
                errors.forbidden(&path.child("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            if node_ports.contains(&(protocol, node)) {
                errors.duplicate(&path.child("nodePort"), node);
            }
            node_ports.push((protocol, node));
        }
        let number = (protocol, port.int("port"));
        if numbers.contains(&number) {
            errors.duplicate(&path, json!({"protocol": number.0, "port": number.1}));
        }
        numbers.push(number);
    }
    balancer(&mut errors, spec);
    traffic(&mut errors, service);
    errors
}

fn ports(errors: &mut Errors, ports: &[Value], path: &Path<'_>) {
    let mut names: Vec<&str> = vec![];
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
            if names.contains(&name) {
                errors.duplicate(&path.child("name"), name);
            }
            names.push(name);
        } else if ports.len() > 1 {
            errors.required(&path.child("name"), "");
        }
        container::port_number(errors, port.int("port"), &path.child("port"));
        container::choice(errors, port, "protocol", &["SCTP", "TCP", "UDP"], &path);
        container::port_reference(errors, port.at("targetPort"), &path.child("targetPort"));
        let protocol = port.text("appProtocol");
        if port.has("appProtocol") {
            errors.invalid_each(&path.child("appProtocol"), protocol, check::qualified_name(protocol));
        }
    }
}

fn affinity(errors: &mut Errors, spec: &Value) {
    const MAX_SECONDS: i64 = 86400;
    let affinity = spec.text("sessionAffinity");
    let config = SPEC.child("sessionAffinityConfig");
    match affinity {
        "" => errors.required(&SPEC.child("sessionAffinity"), ""),
        "None" => {
            if spec.has("sessionAffinityConfig") {
                errors.forbidden(&config, "must not be set when session affinity is None");
            }
        }
        "ClientIP" => {
            let client = config.child("clientIP");
            let path = client.child("timeoutSeconds");
            match spec.maybe_int("sessionAffinityConfig.clientIP.timeoutSeconds") {
                None => errors.required(&config, "when session affinity type is ClientIP"),
                Some(seconds) if seconds <= 0 || seconds > MAX_SECONDS => errors.invalid(
                    &path,
                    seconds,
                    format!("must be greater than 0 and less than {MAX_SECONDS}"),
                ),
                Some(_) => {}
            }
        }
        other => errors.not_supported(&SPEC.child("sessionAffinity"), other, &["ClientIP", "None"]),
    }
}

fn addresses(errors: &mut Errors, service: &Value) {
    let spec = service.at("spec");
    if spec.text("type") == "ExternalName" {
        return;
    }
    let path = SPEC.child("clusterIPs");
    let list = spec.list("clusterIPs");
    let ips: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    let one = spec.text("clusterIP");
    if one.is_empty() {
        if !ips.is_empty() {
            errors.invalid(&path, list.to_vec(), "must be empty when `clusterIP` is not specified");
        }
    } else if ips.is_empty() {
        errors.required(&path, "");
    } else if ips[0] != one {
        errors.invalid(&path, list.to_vec(), "first value must match `clusterIP`");
    }
    let families: Vec<&str> = spec.list("ipFamilies").iter().filter_map(Value::as_str).collect();
    for (i, family) in families.iter().enumerate() {
        let path = SPEC.child("ipFamilies");
        errors.one_of(&path.index(i), family, &["IPv4", "IPv6"]);
        if families[..i].contains(family) {
            errors.duplicate(&path.index(i), *family);
        }
    }
    if spec.has("ipFamilyPolicy") {
        errors.one_of(
            &SPEC.child("ipFamilyPolicy"),
            spec.text("ipFamilyPolicy"),
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
        );
    }
    let before = errors.len();
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                errors.invalid(&path, list.to_vec(), "'None' must be the first and only value");
            }
        } else {
            pod::validation::ip(errors, ip, &path.index(i));
        }
    }
    let bad = errors.len() > before;
    if ips.len() > 2 {
        errors.invalid(&path, list.to_vec(), "may only hold up to 2 values");
    }
    if bad || headless(service) {
        return;
    }
    if ips.len() > 1 && ips[0].contains(':') == ips[1].contains(':') {
        errors.invalid(&path, list.to_vec(), "may specify no more than one IP for each IP family");
    }
    for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
        if (*family == "IPv6") != ip.contains(':') {
            errors.invalid(
                &path.index(i),
                *ip,
                format!("expected an {family} value as indicated by `ipFamilies[{i}]`"),
            );
        }
    }
}

fn balancer(errors: &mut Errors, spec: &Value) {
    let is = spec.text("type") == "LoadBalancer";
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let ranges = spec.list("loadBalancerSourceRanges");
    let path = SPEC.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() && !is {
        errors.forbidden(&path, ONLY);
    }
    for (i, range) in ranges.iter().enumerate() {
        let range = range.as_str().unwrap_or_default().trim();
        if apimachinery::validation::parse_cidr(range).is_none() {
            errors.invalid(
                &path.index(i),
                range,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
    for name in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if spec.has(name) && !is {
            errors.forbidden(&SPEC.child(name), ONLY);
        }
    }
    if is && spec.has("loadBalancerClass") {
        let class = spec.text("loadBalancerClass");
        errors.invalid_each(&SPEC.child("loadBalancerClass"), class, check::qualified_name(class));
    }
}

fn traffic(errors: &mut Errors, service: &Value) {
    let spec = service.at("spec");
    let policy = spec.text("externalTrafficPolicy");
    let path = SPEC.child("externalTrafficPolicy");
    if !externally_accessible(service) {
        if !policy.is_empty() {
            errors.invalid(&path, policy, "may only be set for externally-accessible services");
        }
    } else if policy.is_empty() {
        errors.required(&path, "");
    } else {
        errors.one_of(&path, policy, &["Cluster", "Local"]);
    }
    let health = spec.int("healthCheckNodePort");
    let path = SPEC.child("healthCheckNodePort");
    if !checks_health(service) {
        if health != 0 {
            errors.invalid(
                &path,
                health,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    } else if health != 0 {
        container::port_number(errors, health, &path);
    }
    let path = SPEC.child("internalTrafficPolicy");
    if spec.has("internalTrafficPolicy") {
        errors.one_of(&path, spec.text("internalTrafficPolicy"), &["Cluster", "Local"]);
    } else if spec.text("type") != "ExternalName" {
        errors.required(&path, "");
    }
    if spec.has("trafficDistribution") {
        errors.one_of(
            &SPEC.child("trafficDistribution"),
            spec.text("trafficDistribution"),
            &["PreferClose", "PreferSameZone", "PreferSameNode"],
        );
    }
}

pub fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    // Upstream asks this before it allocates, and goes no further.
    addresses(&mut errors, new);
    if !errors.is_empty() {
        return errors;
    }
    let external = |s: &Value| s.text("spec.type") == "ExternalName";
    let both_headless = headless(new) && headless(old);
    if !external(new) && !external(old) && !both_headless {
        let (now, was) = (new.list("spec.clusterIPs"), old.list("spec.clusterIPs"));
        let path = SPEC.child("clusterIPs");
        if !was.is_empty() {
            match now.first() {
                None => {
                    errors.invalid(&path.index(0), now.to_vec(), "primary clusterIP can not be unset");
                }
                Some(first) if *first != was[0] => {
                    errors.invalid(&path.index(0), now.to_vec(), "may not change once set");
                }
                Some(_) => {}
            }
            if now.len() > 1 && was.len() > 1 && now[1] != was[1] {
                errors.invalid(&path.index(1), now.to_vec(), "may not change once set");
            }
            if was.len() > 1 && now.len() == 1 && new.text("spec.ipFamilyPolicy") != "SingleStack" {
                errors.invalid(
                    &SPEC.child("ipFamilyPolicy"),
                    new.at("spec.ipFamilyPolicy").clone(),
                    "must be set to 'SingleStack' when releasing the secondary clusterIP",
                );
            }
        }
        let (now, was) = (new.list("spec.ipFamilies"), old.list("spec.ipFamilies"));
        if let (Some(a), Some(b)) = (now.first(), was.first())
            && a != b
        {
            errors.invalid(&SPEC.child("ipFamilies").index(0), now.to_vec(), "may not change once set");
        }
    }
    let balanced = |s: &Value| s.text("spec.type") == "LoadBalancer";
    if balanced(new) && balanced(old) && new.at("spec.loadBalancerClass") != old.at("spec.loadBalancerClass")
    {
        errors.invalid(
            &SPEC.child("loadBalancerClass"),
            new.at("spec.loadBalancerClass").clone(),
            "may not change once set",
        );
    }
    if checks_health(new)
        && checks_health(old)
        && new.int("spec.healthCheckNodePort") != old.int("spec.healthCheckNodePort")
    {
        errors.forbidden(&SPEC.child("healthCheckNodePort"), "field is immutable");
    }
    errors.extend(validate(new));
    errors
}

pub fn validate_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let balancer = status.child("loadBalancer");
    let list = balancer.child("ingress");
    let ingress = new.list("status.loadBalancer.ingress");
    if !ingress.is_empty() && new.text("spec.type") != "LoadBalancer" {
        errors.forbidden(&list, "may only be used when `spec.type` is 'LoadBalancer'");
        return errors;
    }
    for (i, one) in ingress.iter().enumerate() {
        let path = list.index(i);
        let (mode, at) = (one.text("ipMode"), path.child("ipMode"));
        match (!one.text("ip").is_empty(), one.has("ipMode")) {
            (true, has_mode) => {
                pod::validation::ip(&mut errors, one.text("ip"), &path.child("ip"));
                if has_mode {
                    errors.one_of(&at, mode, &["Proxy", "VIP"]);
                } else {
                    errors.required(&at, "must be specified when `ip` is set");
                }
            }
            (false, true) => errors.forbidden(&at, "may not be specified when `ip` is not set"),
            (false, false) => {}
        }
        let name = one.text("hostname");
        if !name.is_empty() {
            errors.invalid_each(&path.child("hostname"), name, check::dns1123_subdomain(name));
            if check::is_ip(name) {
                errors.invalid(&path.child("hostname"), name, "must be a DNS name, not an IP address");
            }
        }
    }
    errors
}

/// An address that traffic can be sent to.
pub fn endpoint_ip(errors: &mut Errors, text: &str, path: &Path<'_>) {
    let Some(ip) = apimachinery::validation::parse_ip(text) else {
        pod::validation::ip(errors, text, path);
        return;
    };
    let link_local = match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        std::net::IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        std::net::IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    if ip.is_unspecified() {
        errors.invalid(path, text, format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        errors.invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        errors.invalid(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

pub fn validate_endpoints(endpoints: &Value) -> Errors {
    let mut errors = Errors::new();
    for (i, subset) in endpoints.list("subsets").iter().enumerate() {
        let list = Path::new("subsets");
        let path = list.index(i);
        if subset.list("addresses").is_empty() && subset.list("notReadyAddresses").is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for name in ["addresses", "notReadyAddresses"] {
            for (j, address) in subset.list(name).iter().enumerate() {
                let list = path.child(name);
                let path = list.index(j);
                let (ip, at) = (address.text("ip"), path.child("ip"));
                endpoint_ip(&mut errors, ip, &at);
                if !check::is_ip(ip) {
                    errors.invalid(&at, ip, "must be a valid IP address");
                }
                let host = address.text("hostname");
                if !host.is_empty() {
                    errors.invalid_each(&path.child("hostname"), host, check::dns1123_label(host));
                }
                if address.has("nodeName") {
                    let node = address.text("nodeName");
                    errors.invalid_each(&path.child("nodeName"), node, check::dns1123_subdomain(node));
                }
            }
        }
        let ports = subset.list("ports");
        for (j, port) in ports.iter().enumerate() {
            let list = path.child("ports");
            let path = list.index(j);
            let name = port.text("name");
            if name.is_empty() {
                if ports.len() > 1 {
                    errors.required(&path.child("name"), "");
                }
            } else {
                errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
            }
            container::port_number(&mut errors, port.int("port"), &path.child("port"));
            container::choice(&mut errors, port, "protocol", &["SCTP", "TCP", "UDP"], &path);
            let protocol = port.text("appProtocol");
            if port.has("appProtocol") {
                errors.invalid_each(&path.child("appProtocol"), protocol, check::qualified_name(protocol));
            }
        }
    }
    errors
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
    fn what_is_wrong_with_services() {
        for (spec, want) in [
            (json!({"ports": [{"port": 80}]}), None),
            (json!({"clusterIP": "None"}), None),
            (json!({}), Some("spec.ports: Required value")),
            (
                json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
                Some("spec.ports[0].name: Required value"),
            ),
            (
                json!({"type": "ExternalName", "externalName": "a_b"}),
                Some(
                    "spec.externalName: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                ),
            ),
            (
                json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
                Some(
                    "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
                ),
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                Some("spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"),
            ),
        ] {
            let mut service = json!({"spec": spec});
            defaults(&mut service);
            agree_on_addresses(&mut service, None);
            let got: Vec<String> = validate(&service).iter().map(ToString::to_string).collect();
            assert_eq!(got, Vec::from_iter(want), "{service}");
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
