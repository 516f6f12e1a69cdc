//! Endpoint slices.

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::service;
use crate::meta;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, Rules};
use crate::value::{Read, Write};

pub const GROUP: &str = "discovery.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "endpointslices",
    revalidates: true,
    warnings: crate::advice::of_endpoint_slice,
    validate,
    validate_update,
    prepare_for_create: |slice| {
        drop_topology(slice);
        if slice.has("ports") && slice.list("ports").is_empty() {
            slice.put("ports", Value::Null);
        }
    },
    prepare_for_update: |new, old| {
        if new.at("endpoints") != old.at("endpoints") {
            // Counted before it is seen what remains of the change.
            new.put("metadata.generation", old.int("metadata.generation") + 1);
            drop_topology(new);
        }
    },
    defaults: |slice| {
        for endpoint in slice.list_mut("endpoints") {
            endpoint.put_default("conditions", serde_json::json!({}));
        }
        for port in slice.list_mut("ports") {
            port.put_default("name", "");
            port.put_default("protocol", "TCP");
        }
    },
    generation: &["addressType", "endpoints", "ports", "metadata.labels"],
    ..DEFAULT
}];

/// Topology was a member of older versions: what is written to it is dropped.
fn drop_topology(slice: &mut Value) {
    for endpoint in slice.list_mut("endpoints") {
        endpoint.remove("deprecatedTopology");
    }
}

const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;
const MAX_HINTS: usize = 8;
const MAX_TOPOLOGY: usize = 16;

fn validate(slice: &Value) -> Errors {
    let mut errors = ports_and_family(slice);
    errors.extend(endpoints(slice));
    errors
}

fn ports_and_family(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    let family = slice.text("addressType");
    let path = Path::new("addressType");
    match family {
        "" => errors.required(&path, ""),
        _ => errors.one_of(&path, family, &["FQDN", "IPv4", "IPv6"]),
    }
    let ports = slice.list("ports");
    let list = Path::new("ports");
    if ports.len() > MAX_PORTS {
        errors.too_many(&list, ports.len(), MAX_PORTS);
    }
    let mut names: Vec<&str> = vec![];
    for (i, port) in ports.iter().enumerate() {
        let path = list.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
        }
        if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        }
        names.push(name);
        if port.has("protocol") {
            errors.one_of(&path.child("protocol"), port.text("protocol"), &["SCTP", "TCP", "UDP"]);
        } else {
            errors.required(&path.child("protocol"), "");
        }
        let protocol = port.text("appProtocol");
        if port.has("appProtocol") {
            errors.invalid_each(&path.child("appProtocol"), protocol, check::qualified_name(protocol));
        }
    }
    errors
}

fn endpoints(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    let family = slice.text("addressType");
    let endpoints = slice.list("endpoints");
    let list = Path::new("endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(&list, endpoints.len(), MAX_ENDPOINTS);
        return errors;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        self::endpoint(&mut errors, endpoint, family, &list.index(i));
    }
    errors
}

fn endpoint(errors: &mut Errors, endpoint: &Value, family: &str, path: &Path<'_>) {
    let addresses = endpoint.list("addresses");
    let list = path.child("addresses");
    if addresses.is_empty() {
        errors.required(&list, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        errors.too_many(&list, addresses.len(), MAX_ADDRESSES);
    }
    for (i, address) in addresses.iter().enumerate() {
        let path = list.index(i);
        let text = address.as_str().unwrap_or_default();
        match (family, apimachinery::validation::parse_ip(text)) {
            ("FQDN", _) => check::fully_qualified_name(errors, &path, text, 2),
            ("IPv4", Some(std::net::IpAddr::V6(_))) => errors.invalid(&path, text, "must be an IPv4 address"),
            ("IPv6", Some(std::net::IpAddr::V4(_))) => errors.invalid(&path, text, "must be an IPv6 address"),
            ("IPv4" | "IPv6", _) => service::endpoint_ip(errors, text, &path),
            _ => {}
        }
    }
    if endpoint.has("nodeName") {
        let node = endpoint.text("nodeName");
        errors.invalid_each(&path.child("nodeName"), node, check::dns1123_subdomain(node));
    }
    let topology = endpoint.entries("deprecatedTopology").count();
    if topology > MAX_TOPOLOGY {
        errors.too_many(&path.child("deprecatedTopology"), topology, MAX_TOPOLOGY);
    }
    meta::labels(errors, endpoint.at("deprecatedTopology"), &path.child("deprecatedTopology"));
    if endpoint.has("hostname") {
        let host = endpoint.text("hostname");
        errors.invalid_each(&path.child("hostname"), host, check::dns1123_label(host));
    }
    let hints = path.child("hints");
    for (member, rule) in [
        ("forZones", check::label_value as fn(&str) -> Vec<String>),
        ("forNodes", check::dns1123_subdomain as fn(&str) -> Vec<String>),
    ] {
        let list = hints.child(member);
        let all = endpoint.at("hints").list(member);
        if all.len() > MAX_HINTS {
            errors.too_many(&list, all.len(), MAX_HINTS);
            continue;
        }
        for (i, hint) in all.iter().enumerate() {
            let item = list.index(i);
            let path = item.child("name");
            let name = hint.text("name");
            if all[..i].contains(hint) {
                errors.duplicate(&path, name);
            }
            errors.invalid_each(&path, name, rule(name));
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = ports_and_family(new);
    // What was accepted once is not looked at again.
    if !crate::equality::same_at(new, old, "endpoints") {
        errors.extend(endpoints(new));
    }
    errors.immutable(&Path::new("addressType"), new.at("addressType"), old.at("addressType"));
    errors
}
