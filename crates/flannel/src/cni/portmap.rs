//! `portmap`: host ports, as elements of nftables maps; an element carries its attachment as its comment, so that
//! DEL needs nothing but the names it is given. Looking a port up costs the same however many there are.

use std::fmt::Write;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::types::{Doing, Error, INVALID_CONFIG, PortMapping, Success, lower_keys};
use super::{Request, sysctl};
use crate::netlink::Netlink;
use crate::nft;

pub const TABLE: &str = "isopod-hostport";

fn owner_of(request: &Request) -> String {
    // The longest comment nftables keeps is 128 bytes.
    let id: String = request.container_id.chars().take(64).collect();
    let network: String = request.network().chars().take(40).collect();
    format!("{network}/{id}/{}", request.ifname)
}

fn mappings(request: &Request) -> Result<Vec<PortMapping>, Error> {
    let value = &request.config["runtimeConfig"]["portMappings"];
    if value.is_null() {
        return Ok(vec![]);
    }
    let mut mappings: Vec<PortMapping> = Vec::deserialize(lower_keys(value))
        .map_err(|e| Error::config(format!("failed to parse config: invalid portMappings: {e}")))?;
    mappings.retain(|m| m.host_port != 0);
    for m in &mut mappings {
        m.protocol.make_ascii_lowercase();
        if m.protocol.is_empty() {
            m.protocol = "tcp".into();
        }
        if !["tcp", "udp", "sctp"].contains(&m.protocol.as_str()) {
            return Err(Error::config(format!("unknown protocol {}", m.protocol)));
        }
        if m.container_port == 0 {
            return Err(Error::config(format!("Invalid container port number: {}", m.container_port)));
        }
        if !m.host_ip.is_empty() && m.host_ip.parse::<IpAddr>().is_err() {
            return Err(Error::config(format!("Invalid hostIP: {}", m.host_ip)));
        }
    }
    Ok(mappings)
}

/// The transaction that publishes `mappings` of the pod at `pod`. `masquerade` is `snat` of the configuration:
/// whether answers to this host's own loopback and to the pod itself find their way back.
fn script(mappings: &[PortMapping], pod: IpAddr, owner: &str, masquerade: bool) -> String {
    let (family, kind, loopback) = match pod {
        IpAddr::V4(_) => ("ip", "ipv4_addr", "127.0.0.0/8"),
        IpAddr::V6(_) => ("ip6", "ipv6_addr", "::1"),
    };
    let mut out = format!(
        "table {family} {TABLE} {{
            map ports {{ type inet_proto . inet_service : {kind} . inet_service; }}
            map address-ports {{ type {kind} . inet_proto . inet_service : {kind} . inet_service; }}
            set hairpin {{ type {kind} . {kind}; }}
            chain publish {{ }}
            chain prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
            chain output {{ type nat hook output priority -100; policy accept; }}
            chain postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
        }}
        flush chain {family} {TABLE} publish
        flush chain {family} {TABLE} prerouting
        flush chain {family} {TABLE} output
        flush chain {family} {TABLE} postrouting
        add rule {family} {TABLE} publish dnat {family} to {family} daddr . meta l4proto . th dport map @address-ports
        add rule {family} {TABLE} publish dnat {family} to meta l4proto . th dport map @ports
        add rule {family} {TABLE} prerouting fib daddr type local jump publish
        add rule {family} {TABLE} output fib daddr type local jump publish
        add rule {family} {TABLE} postrouting {family} saddr . {family} daddr @hairpin masquerade
        add rule {family} {TABLE} postrouting {family} saddr {loopback} ct status dnat masquerade
        "
    );
    for m in mappings {
        let (protocol, port, to) = (&m.protocol, m.host_port, m.container_port);
        let host: Option<IpAddr> = m.host_ip.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified());
        let _ = match host {
            Some(ip) if ip.is_ipv4() != pod.is_ipv4() => continue,
            Some(ip) => writeln!(
                out,
                "add element {family} {TABLE} address-ports {{ {ip} . {protocol} . {port} comment \"{owner}\" : {pod} . {to} }}"
            ),
            None => writeln!(
                out,
                "add element {family} {TABLE} ports {{ {protocol} . {port} comment \"{owner}\" : {pod} . {to} }}"
            ),
        };
    }
    if masquerade {
        let _ = writeln!(out, "add element {family} {TABLE} hairpin {{ {pod} . {pod} comment \"{owner}\" }}");
    }
    out
}

pub fn add(request: &Request) -> Result<Success, Error> {
    let Some(previous) = request.previous()? else {
        return Err(Error::new(INVALID_CONFIG, "must be called as chained plugin"));
    };
    let mappings = mappings(request)?;
    if mappings.is_empty() {
        return Ok(previous);
    }
    let owner = owner_of(request);
    // Addresses of the sandbox, or all where the chain does not say.
    let mut done = (false, false);
    for ip in &previous.ips {
        let in_pod = ip.interface.is_none_or(|i| {
            previous.interfaces.get(i).is_some_and(|interface| !interface.sandbox.is_empty())
        });
        let pod = ip.address.addr();
        let seen = if pod.is_ipv4() { &mut done.0 } else { &mut done.1 };
        if !in_pod || std::mem::replace(seen, true) {
            continue;
        }
        let snat = request.config["snat"].as_bool().unwrap_or(true);
        // What an earlier attachment of the same name left behind would shadow the new one.
        let family = if pod.is_ipv4() { "ip" } else { "ip6" };
        let result = remove(family, &|o| o != owner).and_then(|()| {
            nft::apply(&script(&mappings, pod, &owner, snat)).doing(|| "failed to publish host ports".into())
        });
        if let Err(e) = result {
            let _ = remove(family, &|o| o != owner);
            return Err(e);
        }
        if snat && pod.is_ipv4() {
            allow_loopback_sources(&previous);
        }
        forget_udp_flows(&mappings);
    }
    Ok(previous)
}

/// Lets packets from 127.0.0.1 be routed to the pod: `localhost:hostPort`.
fn allow_loopback_sources(previous: &Success) {
    let Ok(mut netlink) = Netlink::open() else { return };
    for interface in previous.interfaces.iter().filter(|i| i.sandbox.is_empty()) {
        let Ok(Some(link)) = netlink.link(&interface.name) else { continue };
        if link.master.is_none() {
            let _ = sysctl(&format!("net/ipv4/conf/{}/route_localnet", link.name), "1");
        }
    }
}

/// A UDP client that already talks to the port would stay with whoever answered it before.
fn forget_udp_flows(mappings: &[PortMapping]) {
    for m in mappings.iter().filter(|m| m.protocol == "udp") {
        let port = m.host_port.to_string();
        // The tool is optional: without it such flows end by their timeout.
        let _ = std::process::Command::new("conntrack")
            .args(["-D", "-p", "udp", "--dport", &port])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status();
    }
}

pub fn del(request: &Request) -> Result<(), Error> {
    // The runtime passes the mappings it added; none means nothing was ever published.
    if request.config["runtimeConfig"]["portMappings"].as_array().is_none_or(Vec::is_empty) {
        return Ok(());
    }
    let owner = owner_of(request);
    remove("ip", &|o| o != owner)?;
    remove("ip6", &|o| o != owner)
}

pub fn check(request: &Request) -> Result<(), Error> {
    let Some(previous) = request.previous()? else {
        return Err(Error::new(INVALID_CONFIG, "Required prevResult missing"));
    };
    let mappings = mappings(request)?;
    if mappings.is_empty() {
        return Ok(());
    }
    let owner = owner_of(request);
    let v4 = previous.ips.iter().any(|ip| ip.address.addr().is_ipv4());
    let family = if v4 { "ip" } else { "ip6" };
    let table = nft::table(family, TABLE).doing(|| "failed to list host ports".into())?;
    let found = table.iter().flat_map(elements).filter(|e| e.comment == owner && e.set != "hairpin").count();
    if found < mappings.len() {
        return Err(Error::generic(format!("host ports of {} are not published", request.container_id)));
    }
    Ok(())
}

pub fn gc(request: &Request) -> Result<(), Error> {
    let prefix: String = request.network().chars().take(40).chain(['/']).collect();
    let valid: Vec<String> = request
        .valid_attachments()
        .into_iter()
        .map(|(container_id, ifname)| owner_of(&Request { container_id, ifname, ..request.clone() }))
        .collect();
    let keep = |owner: &str| !owner.starts_with(&prefix) || valid.iter().any(|v| v == owner);
    remove("ip", &keep)?;
    remove("ip6", &keep)
}

pub fn status() -> Result<(), Error> {
    nft::table("ip", TABLE).map(|_| ()).map_err(|e| Error::new(super::types::NOT_AVAILABLE, e.to_string()))
}

fn remove(family: &str, keep: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    let Some(table) = nft::table(family, TABLE).doing(|| "failed to list host ports".into())? else {
        return Ok(());
    };
    let script = stale_elements(&table, family, TABLE, keep);
    if script.is_empty() {
        return Ok(());
    }
    nft::apply(&script).doing(|| "failed to remove host ports".into())
}

struct Element {
    set: String,
    key: String,
    comment: String,
}

/// The commented elements of all sets and maps in `nft -j list table`.
fn elements(table: &Value) -> Vec<Element> {
    let mut out = vec![];
    for object in table["nftables"].as_array().into_iter().flatten() {
        let set = if object["map"].is_object() { &object["map"] } else { &object["set"] };
        for element in set["elem"].as_array().into_iter().flatten() {
            // A map's element is [key, value]; the comment sits with the key.
            let key = if element.is_array() { &element[0] } else { element };
            let Some(comment) = key["elem"]["comment"].as_str() else { continue };
            out.push(Element {
                set: set["name"].as_str().unwrap_or_default().to_owned(),
                key: render(&key["elem"]["val"]),
                comment: comment.to_owned(),
            });
        }
    }
    out
}

fn render(key: &Value) -> String {
    match key {
        Value::String(s) => s.clone(),
        Value::Object(map) if map.contains_key("concat") => {
            let parts = map["concat"].as_array().into_iter().flatten();
            parts.map(render).collect::<Vec<_>>().join(" . ")
        }
        Value::Object(map) if map.contains_key("prefix") => {
            let prefix = &map["prefix"];
            format!("{}/{}", render(&prefix["addr"]), prefix["len"])
        }
        other => other.to_string(),
    }
}

/// A transaction deleting the commented elements whose owner `keep` does not keep; empty when there are none.
pub fn stale_elements(table: &Value, family: &str, name: &str, keep: &dyn Fn(&str) -> bool) -> String {
    let mut out = String::new();
    for e in elements(table).iter().filter(|e| !keep(&e.comment)) {
        let _ = writeln!(out, "delete element {family} {name} {} {{ {} }}", e.set, e.key);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(mappings: Value) -> Request {
        Request {
            container_id: "c1".into(),
            netns: String::new(),
            ifname: "eth0".into(),
            args: Default::default(),
            raw_args: String::new(),
            path: vec![],
            config: json!({"cniVersion": "1.0.0", "name": "n", "runtimeConfig": {"portMappings": mappings}}),
        }
    }

    #[test]
    fn mappings_become_elements() {
        let mappings = mappings(&request(json!([
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"},
            {"HostPort": 53, "ContainerPort": 5353, "Protocol": "udp", "HostIP": "10.0.0.9"},
            {"HostPort": 53, "ContainerPort": 5353, "Protocol": "udp", "HostIP": "fd00::1"},
            {"hostPort": 0, "containerPort": 1}
        ])))
        .unwrap();
        let text = script(&mappings, "10.244.0.5".parse().unwrap(), "n/c1/eth0", true);
        let added: Vec<&str> = text.lines().map(str::trim).filter(|l| l.contains("add element")).collect();
        assert_eq!(
            added,
            [
                r#"add element ip isopod-hostport ports { tcp . 8080 comment "n/c1/eth0" : 10.244.0.5 . 80 }"#,
                r#"add element ip isopod-hostport address-ports { 10.0.0.9 . udp . 53 comment "n/c1/eth0" : 10.244.0.5 . 5353 }"#,
                r#"add element ip isopod-hostport hairpin { 10.244.0.5 . 10.244.0.5 comment "n/c1/eth0" }"#,
            ]
        );
    }

    #[test]
    fn refuses_bad_mappings() {
        for bad in [
            json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
            json!([{"hostPort": 1, "containerPort": 0}]),
            json!([{"hostPort": 1, "containerPort": 1, "hostIP": "x; flush ruleset"}]),
            json!([{"hostPort": 99999, "containerPort": 1}]),
            json!({}),
        ] {
            assert_eq!(mappings(&request(bad)).unwrap_err().code, INVALID_CONFIG);
        }
    }

    #[test]
    fn finds_the_elements_of_an_owner() {
        let table = json!({"nftables": [{"map": {"name": "ports", "elem": [
            [{"elem": {"val": {"concat": ["tcp", 80]}, "comment": "a"}}, {"concat": ["10.0.0.1", 80]}],
            [{"elem": {"val": {"concat": ["tcp", 81]}, "comment": "b"}}, {"concat": ["10.0.0.1", 80]}]
        ]}}, {"set": {"name": "hairpin", "elem": [
            {"elem": {"val": {"concat": ["10.0.0.1", {"prefix": {"addr": "10.0.0.0", "len": 24}}]}, "comment": "a"}}
        ]}}]});
        assert_eq!(
            stale_elements(&table, "ip", "t", &|o| o != "a"),
            "delete element ip t ports { tcp . 80 }\ndelete element ip t hairpin { 10.0.0.1 . 10.0.0.0/24 }\n"
        );
    }
}
