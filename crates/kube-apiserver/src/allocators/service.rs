//! What a service needs reserved, decided on its spec.

use std::collections::HashMap;
use std::net::IpAddr;

use apimachinery::status::Status;
use serde_json::{Value, json};

use super::band::Band;
use super::{Range, State, address, number};
use crate::seams::Reservation;
use crate::security::failure;

/// The values a service holds.
#[derive(Debug, Default)]
pub struct Values {
    pub addresses: Vec<IpAddr>,
    pub node_ports: Vec<u16>,
}

fn kind(service: &Value) -> &str {
    service["spec"]["type"].as_str().filter(|t| !t.is_empty()).unwrap_or("ClusterIP")
}

fn port_number(value: &Value) -> u16 {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn needs_node_ports(service: &Value) -> bool {
    match kind(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"].as_bool().unwrap_or(true),
        _ => false,
    }
}

fn may_have_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

fn needs_health_check(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIP"] == "None" || service["spec"]["clusterIPs"][0] == "None"
}

pub fn values(service: &Value) -> Values {
    let spec = &service["spec"];
    let mut out = Values::default();
    if kind(service) != "ExternalName" && !is_headless(service) {
        let mut ips = texts(&spec["clusterIPs"]);
        ips.extend(spec["clusterIP"].as_str().map(str::to_owned));
        for ip in ips.iter().filter_map(|ip| ip.parse().ok()) {
            if !out.addresses.contains(&ip) {
                out.addresses.push(ip);
            }
        }
    }
    if may_have_node_ports(service) {
        for port in spec["ports"].as_array().into_iter().flatten() {
            let port = port_number(&port["nodePort"]);
            if port != 0 && !out.node_ports.contains(&port) {
                out.node_ports.push(port);
            }
        }
    }
    let health = port_number(&spec["healthCheckNodePort"]);
    if needs_health_check(service) && health != 0 {
        out.node_ports.push(health);
    }
    out
}

fn invalid(service: &Value, field: &str, value: &Value, detail: &str) -> Status {
    let name = service["metadata"]["name"].as_str().unwrap_or_default();
    failure::invalid_field("", "Service", name, field, &value.to_string(), detail)
}

/// Fills in what an update left out but the service has, so that sending the original manifest again works.
fn adopt(service: &mut Value, old: &Value) {
    let ips = |s: &Value| kind(s) != "ExternalName";
    if ips(service) && ips(old) {
        let empty = |v: &Value| v.as_str().is_none_or(str::is_empty);
        if empty(&service["spec"]["clusterIP"]) && !empty(&old["spec"]["clusterIP"]) {
            service["spec"]["clusterIP"] = old["spec"]["clusterIP"].clone();
        }
        if texts(&service["spec"]["clusterIPs"]).is_empty() && !texts(&old["spec"]["clusterIPs"]).is_empty() {
            service["spec"]["clusterIPs"] = old["spec"]["clusterIPs"].clone();
        }
    }
    if needs_node_ports(service) && needs_node_ports(old) {
        let list = |s: &Value| s["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let in_use = |ports: &[Value]| -> Vec<u16> {
            ports.iter().map(|p| port_number(&p["nodePort"])).filter(|p| *p != 0).collect()
        };
        let (old_ports, new_ports) = (list(old), list(service));
        let new_numbers = in_use(&new_ports);
        let both: Vec<u16> = in_use(&old_ports).into_iter().filter(|p| new_numbers.contains(p)).collect();
        let by_name: HashMap<String, u16> = old_ports
            .iter()
            .map(|p| (p["name"].as_str().unwrap_or_default().to_owned(), port_number(&p["nodePort"])))
            .collect();
        for port in service["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            let known = by_name.get(port["name"].as_str().unwrap_or_default()).copied().unwrap_or_default();
            if port_number(&port["nodePort"]) == 0 && known != 0 && !both.contains(&known) {
                port["nodePort"] = json!(known);
            }
        }
    }
    if needs_health_check(service)
        && needs_health_check(old)
        && port_number(&service["spec"]["healthCheckNodePort"]) == 0
        && port_number(&old["spec"]["healthCheckNodePort"]) != 0
    {
        service["spec"]["healthCheckNodePort"] = old["spec"]["healthCheckNodePort"].clone();
    }
}

/// Clears what the new type of an updated service cannot have, where the update just carried it along.
fn drop_dependent(service: &mut Value, old: &Value) {
    let same_ip = service["spec"]["clusterIP"] == old["spec"]["clusterIP"]
        && service["spec"]["clusterIPs"] == old["spec"]["clusterIPs"];
    let had_ip = kind(old) != "ExternalName";
    let dropped_ports = may_have_node_ports(old) && !may_have_node_ports(service);
    let dropped_health = needs_health_check(old) && !needs_health_check(service);
    let same_health = service["spec"]["healthCheckNodePort"] == old["spec"]["healthCheckNodePort"];
    let to_name = kind(service) == "ExternalName";
    let old_ports = values(old).node_ports;
    let Some(spec) = service["spec"].as_object_mut() else { return };
    if had_ip && to_name && same_ip {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
    if dropped_ports {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if old_ports.contains(&port_number(&port["nodePort"]))
                && let Some(port) = port.as_object_mut()
            {
                port.remove("nodePort");
            }
        }
    }
    if dropped_health && same_health {
        spec.remove("healthCheckNodePort");
    }
}

/// Sets `ipFamilies` and `ipFamilyPolicy` where they are not given. `configured` ranges are the cluster's own.
fn families(
    service: &mut Value,
    old: Option<&Value>,
    ranges: &[Range],
    configured: usize,
) -> Result<(), Status> {
    let available: Vec<&str> = ranges[..configured.min(ranges.len())].iter().map(Range::family).collect();
    let selectorless = service["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    let special = is_headless(service) && selectorless;
    if service["spec"]["ipFamilyPolicy"].as_str().is_none_or(str::is_empty) {
        let inherited = old.and_then(|o| o["spec"]["ipFamilyPolicy"].as_str());
        service["spec"]["ipFamilyPolicy"] = json!(match inherited {
            Some(policy) => policy,
            None if special => "RequireDualStack",
            None => "SingleStack",
        });
    }
    let policy = service["spec"]["ipFamilyPolicy"].as_str().unwrap_or_default().to_owned();
    let single = policy == "SingleStack";
    let mut ips = texts(&service["spec"]["clusterIPs"]);
    let mut wanted = texts(&service["spec"]["ipFamilies"]);
    let given_policy = service["spec"]["ipFamilyPolicy"].clone();
    if let Some(old) = old
        && single
    {
        if ips.len() > 1 && service["spec"]["clusterIPs"] == old["spec"]["clusterIPs"] {
            ips.truncate(1);
            service["spec"]["clusterIPs"] = json!(ips);
        }
        if wanted.len() > 1 && service["spec"]["ipFamilies"] == old["spec"]["ipFamilies"] {
            wanted.truncate(1);
        }
    }
    if single && (ips.len() == 2 || wanted.len() == 2) {
        let what = if ips.len() == 2 { "cluster IPs" } else { "IP families" };
        let detail =
            format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
        return Err(invalid(service, "spec.ipFamilyPolicy", &given_policy, &detail));
    }
    for (i, ip) in ips.iter().enumerate().skip(wanted.len()) {
        let Ok(ip) = ip.parse::<IpAddr>() else { break };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if !available.contains(&family) {
            let detail = format!("{family} is not configured on this cluster");
            return Err(invalid(service, &format!("spec.clusterIPs[{i}]"), &json!(ips), &detail));
        }
        wanted.push(family.to_owned());
    }
    let other = |family: &str| if family == "IPv4" { "IPv6".to_owned() } else { "IPv4".to_owned() };
    let first = available.first().copied().unwrap_or("IPv4").to_owned();
    if special {
        if wanted.is_empty() {
            wanted.push(first);
        }
        if wanted.len() < 2 && !single {
            wanted.push(other(&wanted[0]));
        }
        service["spec"]["ipFamilies"] = json!(wanted);
        return Ok(());
    }
    if policy == "RequireDualStack" && available.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        return Err(invalid(service, "spec.ipFamilyPolicy", &given_policy, detail));
    }
    for (i, family) in wanted.iter().enumerate() {
        if !available.contains(&family.as_str()) {
            let field = format!("spec.ipFamilies[{i}]");
            return Err(invalid(service, &field, &json!(family), "not configured on this cluster"));
        }
    }
    if wanted.is_empty() {
        wanted.push(first);
    }
    if !single && wanted.len() == 1 && available.len() == 2 {
        wanted.push(other(&wanted[0]));
    }
    service["spec"]["ipFamilies"] = json!(wanted);
    Ok(())
}

struct Work<'a> {
    key: String,
    ranges: &'a [Range],
    ports: Band,
    state: &'a mut State,
    reservation: Reservation,
}

impl Work<'_> {
    fn take_address(&mut self, service: &Value, asked: &str, family: &str) -> Result<IpAddr, Status> {
        let name = service["metadata"]["name"].as_str().unwrap_or_default();
        let ip = if asked.is_empty() {
            let taken = |v4: bool, n: u128| self.state.addresses.has(address(n, v4));
            let v4 = family == "IPv4";
            let mut ranges = self.ranges.iter().filter(|r| r.family() == family);
            let picked = ranges.find_map(|r| r.band.pick(|n| taken(v4, n)));
            address(
                picked.ok_or_else(|| {
                    failure::internal(format!(
                        "failed to allocate a serviceIP for Service {name:?}: range is full"
                    ))
                })?,
                v4,
            )
        } else {
            let list = json!([asked]);
            let fail = |why: &str| {
                invalid(service, "spec.clusterIPs", &list, &format!("failed to allocate IP {asked}: {why}"))
            };
            let ip: IpAddr = asked.parse().map_err(|_| fail("not an IP address"))?;
            let in_family = self.ranges.iter().filter(|r| r.family() == family);
            let known = in_family.clone().any(|r| r.net.contains(&ip) && r.band.contains(number(ip)));
            if !known {
                let cidrs: Vec<String> = in_family.map(|r| r.net.to_string()).collect();
                return Err(fail(&format!(
                    "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                    cidrs.join(",")
                )));
            }
            if self.state.addresses.has(ip) {
                return Err(fail("provided IP is already allocated"));
            }
            ip
        };
        self.state.addresses.take(ip, &self.key);
        self.reservation.addresses.push(ip);
        Ok(ip)
    }

    fn take_port(&mut self, port: u16, protocol: &str) -> Result<(), String> {
        if !self.ports.contains(u128::from(port)) {
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.first, self.ports.last
            ));
        }
        if self.state.ports.has(port) {
            return Err("provided port is already allocated".into());
        }
        self.state.ports.take(port, &self.key);
        self.reservation.node_ports.push((protocol.to_owned(), port));
        Ok(())
    }

    fn any_port(&mut self, protocol: &str) -> Result<u16, Status> {
        let picked = self.ports.pick(|n| self.state.ports.has(n as u16));
        let port = picked.ok_or_else(|| failure::internal("failed to allocate a nodePort: range is full"))?;
        let port = port as u16;
        self.state.ports.take(port, &self.key);
        self.reservation.node_ports.push((protocol.to_owned(), port));
        Ok(port)
    }

    fn addresses(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if kind(service) == "ExternalName" || is_headless(service) {
            return Ok(());
        }
        let held = old.map(|o| values(o).addresses).unwrap_or_default();
        let families = texts(&service["spec"]["ipFamilies"]);
        let asked = texts(&service["spec"]["clusterIPs"]);
        let mut ips = Vec::new();
        for (i, family) in families.iter().enumerate() {
            let asked = asked.get(i).map(String::as_str).unwrap_or_default();
            let ip = match asked.parse::<IpAddr>() {
                Ok(ip) if held.contains(&ip) => ip,
                _ => self.take_address(service, asked, family)?,
            };
            ips.push(ip.to_string());
        }
        if let Some(first) = ips.first() {
            service["spec"]["clusterIP"] = json!(first);
        }
        service["spec"]["clusterIPs"] = json!(ips);
        Ok(())
    }

    fn node_ports(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if !may_have_node_ports(service) {
            return Ok(());
        }
        let held = old.map(|o| values(o).node_ports).unwrap_or_default();
        let allocate = needs_node_ports(service);
        let mut ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        // TCP and UDP on the same port of one service share a node port, on creation.
        let mut by_port: HashMap<u64, u16> = HashMap::new();
        if old.is_none() {
            for port in &ports {
                let node_port = port_number(&port["nodePort"]);
                if node_port != 0 {
                    by_port.entry(port["port"].as_u64().unwrap_or_default()).or_insert(node_port);
                }
            }
        }
        let mut taken_here: Vec<u16> = Vec::new();
        for (i, port) in ports.iter_mut().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let asked = port_number(&port["nodePort"]);
            if asked == 0 {
                if !allocate {
                    continue;
                }
                let number = port["port"].as_u64().unwrap_or_default();
                let node_port = match by_port.get(&number) {
                    Some(known) if taken_here.contains(known) => *known,
                    Some(known) => {
                        let known = *known;
                        self.take_port(known, &protocol).map_err(|why| {
                            invalid(service, &format!("spec.ports[{i}].nodePort"), &json!(known), &why)
                        })?;
                        known
                    }
                    None => self.any_port(&protocol)?,
                };
                if old.is_none() {
                    by_port.insert(number, node_port);
                }
                taken_here.push(node_port);
                port["nodePort"] = json!(node_port);
            } else if !held.contains(&asked) && !taken_here.contains(&asked) {
                self.take_port(asked, &protocol).map_err(|why| {
                    invalid(service, &format!("spec.ports[{i}].nodePort"), &json!(asked), &why)
                })?;
                taken_here.push(asked);
            }
        }
        service["spec"]["ports"] = Value::Array(ports);
        Ok(())
    }

    fn health_check(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        if !needs_health_check(service) || old.is_some_and(needs_health_check) {
            return Ok(());
        }
        let asked = port_number(&service["spec"]["healthCheckNodePort"]);
        if asked == 0 {
            service["spec"]["healthCheckNodePort"] = json!(self.any_port("TCP")?);
            return Ok(());
        }
        self.take_port(asked, "TCP").map_err(|why| {
            failure::internal(format!("failed to allocate requested HealthCheck NodePort {asked}: {why}"))
        })
    }

    fn undo(self) {
        self.reservation.addresses.iter().for_each(|ip| self.state.addresses.free(*ip));
        self.reservation.node_ports.iter().for_each(|(_, port)| self.state.ports.free(*port));
    }
}

/// Fills and reserves the values of a created or updated service. On failure nothing stays reserved.
pub(super) fn reserve(
    service: &mut Value,
    old: Option<&Value>,
    ranges: &[Range],
    configured: usize,
    ports: Band,
    state: &mut State,
) -> Result<Reservation, Status> {
    if !service["spec"].is_object() {
        return Ok(Reservation::default());
    }
    if let Some(old) = old {
        adopt(service, old);
        drop_dependent(service, old);
    } else if texts(&service["spec"]["clusterIPs"]).is_empty()
        && let Some(ip) = service["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty())
    {
        service["spec"]["clusterIPs"] = json!([ip]);
    }
    if kind(service) != "ExternalName" {
        families(service, old, ranges, configured)?;
    }
    let meta = &service["metadata"];
    let text = |field: &str| meta[field].as_str().unwrap_or_default();
    let key = apimachinery::object::object_key(text("namespace"), text("name"));
    let mut work = Work { key, ranges, ports, state, reservation: Reservation::default() };
    let result = work
        .addresses(service, old)
        .and_then(|()| work.node_ports(service, old))
        .and_then(|()| work.health_check(service, old));
    if let Err(status) = result {
        work.undo();
        return Err(status);
    }
    if let Some(old) = old {
        let (before, after) = (values(old), values(service));
        for ip in before.addresses.iter().filter(|ip| !after.addresses.contains(ip)) {
            work.state.addresses.give_up(*ip, &work.key);
        }
        for port in before.node_ports.iter().filter(|port| !after.node_ports.contains(port)) {
            work.state.ports.give_up(*port, &work.key);
        }
    }
    Ok(work.reservation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(spec: Value, old: Option<Value>) -> Result<Value, String> {
        let ranges = [Range::new("10.0.0.0/24".parse().unwrap())];
        let ports = Band { first: 30000, last: 30099, static_part: 16 };
        let object = |spec| json!({"metadata": {"namespace": "a", "name": "s"}, "spec": spec});
        let mut service = object(spec);
        let mut state = State::default();
        if let Some(old) = &old {
            for ip in values(&object(old.clone())).addresses {
                state.addresses.take(ip, "a/s");
            }
            for port in values(&object(old.clone())).node_ports {
                state.ports.take(port, "a/s");
            }
        }
        state.ports.take(30001, "a/other");
        reserve(&mut service, old.map(object).as_ref(), &ranges, 1, ports, &mut state)
            .map(|_| service["spec"].clone())
            .map_err(|e| e.message)
    }

    #[test]
    fn shapes() {
        let headless = run(json!({"clusterIP": "None"}), None).unwrap();
        assert_eq!(headless["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(headless["ipFamilyPolicy"], "RequireDualStack");
        let headless = run(json!({"clusterIP": "None", "selector": {"a": "b"}}), None).unwrap();
        assert_eq!((&headless["ipFamilies"], &headless["clusterIPs"]), (&json!(["IPv4"]), &json!(["None"])));
        let name = run(json!({"type": "ExternalName", "externalName": "x.y"}), None).unwrap();
        assert!(name.get("clusterIP").is_none() && name.get("ipFamilies").is_none());
        let plain = run(json!({"ports": [{"port": 80}]}), None).unwrap();
        assert!(plain["clusterIP"].as_str().unwrap().starts_with("10.0.0."));
        assert!(plain["ports"][0].get("nodePort").is_none());
        let both = json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]});
        let both = run(both, None).unwrap();
        assert_eq!(both["ports"][0]["nodePort"], both["ports"][1]["nodePort"]);
        let local =
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        assert!(run(local, None).unwrap()["healthCheckNodePort"].as_u64().unwrap() >= 30000);
        let none =
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
        assert!(run(none, None).unwrap()["ports"][0].get("nodePort").is_none());
    }

    #[test]
    fn refusals() {
        for (spec, want) in [
            (
                json!({"clusterIP": "192.168.0.1"}),
                "is not in the valid range. The range of valid IPs is 10.0.0.0/24",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "this cluster is not configured for dual-stack services",
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 20}]}),
                "provided port is not in the valid range. The range of valid ports is 30000-30099",
            ),
            (
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}),
                "provided port is already allocated",
            ),
        ] {
            let got = run(spec, None).unwrap_err();
            assert!(got.contains(want), "{got}");
        }
    }

    #[test]
    fn updates() {
        let old = json!({"type": "NodePort", "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "nodePort": 30050}]});
        let manifest = json!({"type": "NodePort", "ports": [{"port": 81}]});
        let again = run(manifest, Some(old.clone())).unwrap();
        assert_eq!(
            (&again["clusterIP"], &again["ports"][0]["nodePort"]),
            (&json!("10.0.0.9"), &json!(30050))
        );
        let mut name = old.clone();
        name["type"] = json!("ExternalName");
        let name = run(name, Some(old.clone())).unwrap();
        assert!(name.get("clusterIP").is_none() && name["ports"][0].get("nodePort").is_none());
        let back = run(json!({"type": "ClusterIP"}), Some(json!({"type": "ExternalName"}))).unwrap();
        assert!(back["clusterIP"].is_string());
    }
}
