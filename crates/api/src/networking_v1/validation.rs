//! Whether ingresses, network policies, service CIDRs and IP addresses make sense.

use apimachinery::validation::{parse_cidr, parse_ip};
use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::pod::{container, validation};
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

const SPEC: Path<'static> = Path::new("spec");
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

pub fn ingress_create(ingress: &Value) -> Errors {
    let mut errors = ingress_spec(ingress);
    const ANNOTATION: &str = "kubernetes.io/ingress.class";
    let annotated = ingress.at("metadata.annotations").get_or_null(ANNOTATION).as_str();
    if let (Some(annotated), true) = (annotated, ingress.has("spec.ingressClassName"))
        && annotated != ingress.text("spec.ingressClassName")
    {
        let annotations = Path::new("annotations");
        errors.invalid(
            &annotations.child(ANNOTATION),
            annotated,
            "must match `ingressClassName` when both are specified",
        );
    }
    errors
}

pub fn ingress_spec(ingress: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = ingress.at("spec");
    let rules = spec.list("rules");
    if rules.is_empty() && !spec.has("defaultBackend") {
        errors.invalid(&SPEC, Value::Null, "either `defaultBackend` or `rules` must be specified");
    }
    if spec.has("defaultBackend") {
        backend(&mut errors, spec.at("defaultBackend"), &SPEC.child("defaultBackend"));
    }
    for (i, rule) in rules.iter().enumerate() {
        let list = SPEC.child("rules");
        let path = list.index(i);
        let host = rule.text("host");
        if !host.is_empty() {
            let path = path.child("host");
            if check::is_ip(host) {
                errors.invalid(&path, host, "must be a DNS name, not an IP address");
            }
            host_name(&mut errors, host, &path);
        }
        if rule.has("http") {
            let http = path.child("http");
            let path = http.child("paths");
            let paths = rule.list("http.paths");
            if paths.is_empty() {
                errors.required(&path, "");
            }
            for (j, one) in paths.iter().enumerate() {
                http_path(&mut errors, one, &path.index(j));
            }
        }
    }
    for (i, tls) in spec.list("tls").iter().enumerate() {
        let list = SPEC.child("tls");
        let path = list.index(i);
        for (j, host) in tls.list("hosts").iter().enumerate() {
            host_name(&mut errors, host.as_str().unwrap_or_default(), &path.child("hosts").index(j));
        }
        let secret = tls.text("secretName");
        if !secret.is_empty() {
            errors.invalid_each(&path.child("secretName"), secret, check::dns1123_subdomain(secret));
        }
    }
    if spec.has("ingressClassName") {
        let class = spec.text("ingressClassName");
        errors.invalid_each(&SPEC.child("ingressClassName"), class, check::dns1123_subdomain(class));
    }
    errors
}

fn host_name(errors: &mut Errors, host: &str, path: &Path<'_>) {
    let messages = if host.contains('*') {
        check::wildcard_dns1123_subdomain(host)
    } else {
        check::dns1123_subdomain(host)
    };
    errors.invalid_each(path, host, messages);
}

fn http_path(errors: &mut Errors, one: &Value, path: &Path<'_>) {
    let at = one.text("path");
    match one.at("pathType").as_str() {
        None => {
            errors.required(&path.child("pathType"), "pathType must be specified");
            return;
        }
        Some("Exact" | "Prefix") => {
            let path = path.child("path");
            if !at.starts_with('/') {
                errors.invalid(&path, at, "must be an absolute path");
            }
            for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                if at.contains(bad) {
                    errors.invalid(&path, at, format!("must not contain '{bad}'"));
                }
            }
            for bad in ["/..", "/."] {
                if at.ends_with(bad) {
                    errors.invalid(&path, at, format!("cannot end with '{bad}'"));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !at.is_empty() && !at.starts_with('/') {
                errors.invalid(&path.child("path"), at, "must be an absolute path");
            }
        }
        Some(other) => {
            errors.not_supported(
                &path.child("pathType"),
                other,
                &["Exact", "ImplementationSpecific", "Prefix"],
            );
        }
    }
    backend(errors, one.at("backend"), &path.child("backend"));
}

fn backend(errors: &mut Errors, backend: &Value, path: &Path<'_>) {
    match (backend.has("resource"), backend.has("service")) {
        (true, true) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (false, false) => errors.invalid(path, "", "resource or service backend is required"),
        (true, false) => typed_reference(errors, backend.at("resource"), &path.child("resource")),
        (false, true) => {
            let service = path.child("service");
            let name = backend.text("service.name");
            if name.is_empty() {
                errors.required(&service.child("name"), "");
            } else {
                errors.invalid_each(&service.child("name"), name, check::dns1123_label(name));
            }
            let (name, number) = (backend.text("service.port.name"), backend.int("service.port.number"));
            let port = service.child("port");
            match (name.is_empty(), number == 0) {
                (false, false) => errors.invalid(path, "", "cannot set both port name & port number"),
                (true, true) => errors.required(path, "port name or number is required"),
                (false, true) => errors.invalid_each(&port.child("name"), name, check::port_name(name)),
                (true, false) => container::port_number(errors, number, &port.child("number")),
            }
        }
    }
}

fn typed_reference(errors: &mut Errors, reference: &Value, path: &Path<'_>) {
    if reference.has("apiGroup") {
        let group = reference.text("apiGroup");
        errors.invalid_each(&path.child("apiGroup"), group, check::dns1123_subdomain(group));
    }
    for name in ["kind", "name"] {
        let value = reference.text(name);
        if value.is_empty() {
            errors.required(&path.child(name), "");
        } else {
            errors.invalid_each(&path.child(name), value, check::path_segment(value));
        }
    }
}

pub fn ingress_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let balancer = status.child("loadBalancer");
    let list = balancer.child("ingress");
    for (i, one) in new.list("status.loadBalancer.ingress").iter().enumerate() {
        let path = list.index(i);
        if !one.text("ip").is_empty() {
            validation::ip(&mut errors, one.text("ip"), &path.child("ip"));
        }
        let host = one.text("hostname");
        if !host.is_empty() {
            errors.invalid_each(&path.child("hostname"), host, check::dns1123_subdomain(host));
            if check::is_ip(host) {
                errors.invalid(&path.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
    errors
}

pub fn ingress_class(class: &Value) -> Errors {
    const CONTROLLER_MAX_BYTES: usize = 250;
    let mut errors = Errors::new();
    let controller = class.text("spec.controller");
    let path = SPEC.child("controller");
    if controller.len() > CONTROLLER_MAX_BYTES {
        errors.too_long(&path, CONTROLLER_MAX_BYTES);
    }
    if controller.is_empty() {
        errors.required(&path, "");
    } else if !controller.contains('/') || !check::qualified_name(controller).is_empty() {
        let domain = controller.split('/').next().unwrap_or_default();
        if !controller.contains('/') || !check::is_dns1123_subdomain(domain) {
            errors.invalid(&path, controller, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        }
    }
    let parameters = class.at("spec.parameters");
    if !parameters.is_null() {
        let path = SPEC.child("parameters");
        typed_reference(&mut errors, parameters, &path);
        let namespace = parameters.text("namespace");
        match parameters.text("scope") {
            "Namespace" if !parameters.has("namespace") => {
                errors.required(&path.child("namespace"), "`parameters.scope` is set to 'Namespace'");
            }
            "Namespace" => {
                errors.invalid_each(&path.child("namespace"), namespace, check::dns1123_label(namespace));
            }
            "Cluster" if parameters.has("namespace") => {
                errors.forbidden(&path.child("namespace"), "`parameters.scope` is set to 'Cluster'");
            }
            "Cluster" => {}
            "" if !parameters.has("scope") => errors.required(&path.child("scope"), ""),
            other => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]),
        }
    }
    errors
}

pub fn ingress_class_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    errors.immutable_text(&SPEC.child("controller"), new.at("spec.controller"), old.at("spec.controller"));
    errors.extend(ingress_class(new));
    errors
}

pub fn network_policy(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = policy.at("spec");
    meta::label_selector(&mut errors, spec.at("podSelector"), &SPEC.child("podSelector"));
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in spec.list(rules).iter().enumerate() {
            let list = SPEC.child(rules);
            let path = list.index(i);
            for (j, port) in rule.list("ports").iter().enumerate() {
                policy_port(&mut errors, port, &path.child("ports").index(j));
            }
            for (j, peer) in rule.list(peers).iter().enumerate() {
                policy_peer(&mut errors, peer, &path.child(peers).index(j));
            }
        }
    }
    let types = spec.list("policyTypes");
    let path = SPEC.child("policyTypes");
    if types.len() > 2 {
        errors.invalid(&path, types.to_vec(), "may not specify more than two policyTypes");
    } else {
        for (i, kind) in types.iter().enumerate() {
            errors.one_of(&path.index(i), kind.as_str().unwrap_or_default(), &["Ingress", "Egress"]);
        }
    }
    errors
}

fn policy_port(errors: &mut Errors, port: &Value, path: &Path<'_>) {
    if port.has("protocol") {
        errors.one_of(&path.child("protocol"), port.text("protocol"), &["TCP", "UDP", "SCTP"]);
    }
    let end = port.maybe_int("endPort");
    match port.at("port") {
        Value::Null => {
            if let Some(end) = end {
                errors.invalid(
                    &path.child("endPort"),
                    end,
                    "may not be specified when `port` is not specified",
                );
            }
        }
        Value::String(name) => {
            if let Some(end) = end {
                errors.invalid(
                    &path.child("endPort"),
                    end,
                    "may not be specified when `port` is non-numeric",
                );
            }
            errors.invalid_each(&path.child("port"), name, check::port_name(name));
        }
        number => {
            let number = number.as_i64().unwrap_or(0);
            container::port_number(errors, number, &path.child("port"));
            if let Some(end) = end {
                if end < number {
                    errors.invalid(&path.child("endPort"), number, "must be greater than or equal to `port`");
                }
                container::port_number(errors, end, &path.child("endPort"));
            }
        }
    }
}

fn policy_peer(errors: &mut Errors, peer: &Value, path: &Path<'_>) {
    let mut count = 0;
    for name in ["podSelector", "namespaceSelector"] {
        if peer.has(name) {
            count += 1;
            meta::label_selector(errors, peer.at(name), &path.child(name));
        }
    }
    if peer.has("ipBlock") {
        count += 1;
        ip_block(errors, peer.at("ipBlock"), &path.child("ipBlock"));
    }
    if count == 0 {
        errors.required(path, "must specify a peer");
    } else if count > 1 && peer.has("ipBlock") {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(errors: &mut Errors, block: &Value, path: &Path<'_>) {
    let cidr = block.text("cidr");
    if cidr.is_empty() {
        errors.required(&path.child("cidr"), "");
        return;
    }
    let Some(outer) = network(cidr) else {
        errors.invalid(&path.child("cidr"), cidr, CIDR);
        return;
    };
    for (i, except) in block.list("except").iter().enumerate() {
        let text = except.as_str().unwrap_or_default();
        let list = path.child("except");
        match network(text) {
            None => errors.invalid(&list.index(i), text, CIDR),
            Some(inner) => {
                if !outer.contains(&inner.addr()) || outer.prefix_len() >= inner.prefix_len() {
                    errors.invalid(&list.index(i), text, "must be a strict subset of `cidr`");
                }
            }
        }
    }
}

fn network(text: &str) -> Option<ipnet::IpNet> {
    let (address, length) = parse_cidr(text)?;
    ipnet::IpNet::new(address, length).ok()
}

pub fn service_cidr(cidr: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = SPEC.child("cidrs");
    let ranges: Vec<&str> = cidr.list("spec.cidrs").iter().filter_map(Value::as_str).collect();
    match ranges.len() {
        0 => errors.required(&path, "at least one CIDR required"),
        1 | 2 => {
            let readable = ranges.iter().all(|r| network(r).is_some());
            if readable && ranges.len() == 2 && ranges[0].contains(':') == ranges[1].contains(':') {
                errors.invalid(
                    &path,
                    ranges.clone(),
                    "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
                );
            }
        }
        _ => errors.invalid(&path, ranges.clone(), "may only hold up to 2 values"),
    }
    for (i, range) in ranges.iter().enumerate() {
        match network(range) {
            None => errors.invalid(&path.index(i), *range, CIDR),
            Some(net) if net.addr() != net.network() => {
                errors.invalid(&path.index(i), *range, "must not have bits set beyond the prefix length");
            }
            Some(_) => {}
        }
    }
    errors
}

pub fn service_cidr_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (now, was) = (new.list("spec.cidrs"), old.list("spec.cidrs"));
    let path = SPEC.child("cidrs");
    // A second family may be added to the first.
    let upgraded = was.len() == 1 && now.len() == 2;
    if upgraded || now.len() == was.len() {
        for (i, (now, was)) in now.iter().zip(was).enumerate() {
            errors.immutable_text(&path.index(i), now, was);
        }
    } else {
        errors.invalid(&path, new.at("spec.cidrs").clone(), check::IMMUTABLE);
    }
    if upgraded {
        errors.extend(service_cidr(new));
    }
    errors
}

/// IP addresses are named by themselves, in their one canonical form.
pub fn ip_name(name: &str, _: bool) -> Vec<String> {
    match parse_ip(name) {
        None => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
        Some(ip) if ip.to_string() != name => {
            vec![format!("must be in canonical form (\"{ip}\")")]
        }
        Some(_) => vec![],
    }
}

pub fn ip_address(address: &Value) -> Errors {
    let mut errors = Errors::new();
    let parent = address.at("spec.parentRef");
    let path = SPEC.child("parentRef");
    if parent.is_null() {
        errors.required(&path, "");
        return errors;
    }
    let group = parent.text("group");
    if !group.is_empty() {
        errors.invalid_each(&path.child("group"), group, check::dns1123_subdomain(group));
    }
    for name in ["resource", "name", "namespace"] {
        let value = parent.text(name);
        if !value.is_empty() {
            errors.invalid_each(&path.child(name), value, check::path_segment(value));
        } else if name != "namespace" {
            errors.required(&path.child(name), "");
        }
    }
    errors
}

pub fn ip_address_update(new: &Value, old: &Value) -> Errors {
    let mut errors = ip_address(new);
    errors.immutable(&SPEC.child("parentRef"), new.at("spec.parentRef"), old.at("spec.parentRef"));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ingresses() {
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        for (spec, want) in [
            (json!({"defaultBackend": backend}), None),
            (
                json!({}),
                Some("spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"),
            ),
            (
                json!({"rules": [{"http": {"paths": [{"path": "a", "pathType": "Prefix", "backend": backend}]}}]}),
                Some("spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path"),
            ),
            (
                json!({"defaultBackend": {"service": {"name": "s"}}}),
                Some("spec.defaultBackend: Required value: port name or number is required"),
            ),
            (
                json!({"rules": [{"host": "1.2.3.4"}]}),
                Some("spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address"),
            ),
        ] {
            assert_eq!(texts(&ingress_spec(&json!({"spec": spec}))), Vec::from_iter(want));
        }
    }

    #[test]
    fn policies() {
        for (spec, want) in [
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 80, "endPort": 90}]}]}),
                None,
            ),
            (
                json!({"ingress": [{"from": [{}]}]}),
                Some("spec.ingress[0].from[0]: Required value: must specify a peer"),
            ),
            (
                json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}),
                Some(
                    "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                ),
            ),
        ] {
            assert_eq!(texts(&network_policy(&json!({"spec": spec}))), Vec::from_iter(want));
        }
    }

    #[test]
    fn ranges_and_addresses() {
        assert_eq!(ip_name("10.0.0.1", false), Vec::<String>::new());
        assert_eq!(ip_name("2001:DB8::1", false).len(), 1);
        assert_eq!(
            texts(&service_cidr(&json!({"spec": {"cidrs": ["10.0.0.1/24"]}}))),
            [
                "spec.cidrs[0]: Invalid value: \"10.0.0.1/24\": must not have bits set beyond the prefix length"
            ]
        );
        let one = json!({"spec": {"cidrs": ["10.0.0.0/24"]}});
        let two = json!({"spec": {"cidrs": ["10.0.0.0/24", "fd00::/112"]}});
        assert!(service_cidr_update(&two, &one).is_empty());
        assert_eq!(service_cidr_update(&one, &two).len(), 1);
    }
}
