//! Advice to clients, sent as Warning headers: what is allowed, and deprecated or likely not what was meant. Pods and
//! their templates have more of it: [`crate::core_v1::pod::warnings`].

use std::net::IpAddr;

use apimachinery::validation::{parse_cidr, parse_ip};
use base64::Engine;
use serde_json::Value;

use crate::core_v1::pod::warnings::{node_label, node_labels_of_term, of_workload};
use crate::path::Path;
use crate::value::{Read, quantity};

/// An address that is read, though not written as it should be.
fn ip(out: &mut Vec<String>, path: &Path<'_>, text: &str) {
    let Some(address) = parse_ip(text) else { return };
    let canonical = address.to_canonical();
    if canonical != address || text.parse::<IpAddr>().is_err() {
        out.push(format!("{path}: non-standard IP address {text:?} is invalid: use \"{canonical}\""));
    } else if address.is_ipv6() && address.to_string() != text {
        out.push(format!(
            "{path}: IPv6 address {text:?} should be in RFC 5952 canonical format (\"{address}\")"
        ));
    }
}

/// A range that is read, though not written as it should be.
fn cidr(out: &mut Vec<String>, path: &Path<'_>, text: &str) {
    let Some((address, prefix)) = parse_cidr(text) else { return };
    let Ok(net) = ipnet::IpNet::new(address, prefix) else { return };
    let canonical = address.to_canonical();
    let mapped = canonical != address;
    // A mapped range is shown as the IPv4 one it stands for.
    let network = match mapped && prefix >= 96 {
        true => ipnet::IpNet::new(canonical, prefix - 96).map_or(net, |n| n.trunc()),
        false => net.trunc(),
    };
    let before = out.len();
    if net.addr() != net.trunc().addr() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        out.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be \"{network}\" or \"{canonical}/{bits}\"?)"
        ));
    }
    let strict = text.split_once('/').is_some_and(|(address, prefix)| {
        address.parse::<IpAddr>().is_ok() && (prefix == "0" || !prefix.starts_with('0'))
    });
    if !strict || mapped {
        out.push(format!("{path}: non-standard CIDR value {text:?} is invalid: use \"{network}\""));
    } else if out.len() == before && address.is_ipv6() && net.to_string() != text {
        out.push(format!(
            "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format (\"{net}\")"
        ));
    }
}

/// Addresses that status updates tell of.
pub fn of_status(object: &Value) -> Vec<String> {
    let mut out = vec![];
    let status = Path::new("status");
    for list in ["podIPs", "hostIPs"] {
        let path = status.child(list);
        for (i, entry) in object.at("status").list(list).iter().enumerate() {
            ip(&mut out, &path.index(i).child("ip"), entry.text("ip"));
        }
    }
    let balancer = status.child("loadBalancer");
    let path = balancer.child("ingress");
    for (i, entry) in object.list("status.loadBalancer.ingress").iter().enumerate() {
        ip(&mut out, &path.index(i), entry.text("ip"));
    }
    out
}

pub fn of_service(service: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    let spec = Path::new("spec");
    let get = |name: &str| service.at("spec").text(name);
    let kind = get("type");
    if service.at("metadata.annotations").get("service.kubernetes.io/topology-aware-hints").is_some() {
        out.push(
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
             service.kubernetes.io/topology-mode instead"
                .to_owned(),
        );
    }
    let addresses = |out: &mut Vec<String>, list: &str| {
        let path = spec.child(list);
        for (i, address) in service.at("spec").list(list).iter().enumerate() {
            ip(out, &path.index(i), address.as_str().unwrap_or_default());
        }
    };
    let headless = kind == "ClusterIP" && get("clusterIP") == "None";
    let external = !service.list("spec.externalIPs").is_empty();
    if !matches!(get("clusterIP"), "" | "None") {
        addresses(&mut out, "clusterIPs");
    }
    if headless {
        if !get("loadBalancerIP").is_empty() {
            out.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if external {
            out.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if get("sessionAffinity") != "None" {
            out.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    addresses(&mut out, "externalIPs");
    if external && !headless && kind != "ExternalName" {
        out.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    ip(&mut out, &spec.child("loadBalancerIP"), get("loadBalancerIP"));
    let ranges = spec.child("loadBalancerSourceRanges");
    for (i, range) in service.list("spec.loadBalancerSourceRanges").iter().enumerate() {
        cidr(&mut out, &ranges.index(i), range.as_str().unwrap_or_default());
    }
    if kind == "ExternalName" && external {
        out.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !get("externalName").is_empty() {
        out.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if get("trafficDistribution") == "PreferClose" {
        out.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
    out
}

pub fn of_endpoints(endpoints: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    let labels = endpoints.at("metadata.labels");
    if labels.get_or_null("endpoints.kubernetes.io/managed-by") == "endpoint-controller" {
        return out;
    }
    let root = Path::new("subsets");
    for (i, subset) in endpoints.list("subsets").iter().enumerate() {
        let here = root.index(i);
        for list in ["addresses", "notReadyAddresses"] {
            let path = here.child(list);
            for (j, address) in subset.list(list).iter().enumerate() {
                ip(&mut out, &path.index(j).child("ip"), address.text("ip"));
            }
        }
    }
    out
}

pub fn of_endpoint_slice(slice: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    if old.is_none() && slice.text("addressType") == "FQDN" {
        out.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
    }
    let manager = slice.at("metadata.labels").get_or_null("endpointslice.kubernetes.io/managed-by");
    if manager == "endpointslice-controller.k8s.io" || manager == "endpointslicemirroring-controller.k8s.io" {
        return out;
    }
    let root = Path::new("endpoints");
    for (i, endpoint) in slice.list("endpoints").iter().enumerate() {
        let here = root.index(i);
        let path = here.child("addresses");
        for (j, address) in endpoint.list("addresses").iter().enumerate() {
            ip(&mut out, &path.index(j), address.as_str().unwrap_or_default());
        }
    }
    out
}

pub fn of_network_policy(policy: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    let spec = Path::new("spec");
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = spec.child(direction);
        for (i, rule) in policy.at("spec").list(direction).iter().enumerate() {
            let rule_path = rules.index(i);
            let list = rule_path.child(peers);
            for (j, peer) in rule.list(peers).iter().enumerate() {
                let peer_path = list.index(j);
                let block = peer_path.child("ipBlock");
                cidr(&mut out, &block.child("cidr"), peer.text("ipBlock.cidr"));
                let except = block.child("except");
                for (k, range) in peer.list("ipBlock.except").iter().enumerate() {
                    cidr(&mut out, &except.index(k), range.as_str().unwrap_or_default());
                }
            }
        }
    }
    out
}

pub fn of_ingress(ingress: &Value, old: Option<&Value>) -> Vec<String> {
    let annotated = ingress.at("metadata.annotations").get("kubernetes.io/ingress.class").is_some();
    if old.is_none() && annotated && !ingress.has("spec.ingressClassName") {
        let why = "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead";
        return vec![why.to_owned()];
    }
    vec![]
}

pub fn of_node(node: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    if node.has("spec.configSource") {
        out.push("spec.configSource: the feature is removed".to_owned());
    }
    if !node.text("spec.externalID").is_empty() {
        out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
    }
    let spec = Path::new("spec");
    let path = spec.child("podCIDRs");
    for (i, range) in node.list("spec.podCIDRs").iter().enumerate() {
        cidr(&mut out, &path.index(i), range.as_str().unwrap_or_default());
    }
    out
}

const VOLUMES: [(&str, &str, &str); 6] = [
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

const STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn storage_class_annotation(out: &mut Vec<String>, object: &Value) {
    if object.at("metadata.annotations").get(STORAGE_CLASS).is_some() {
        out.push(format!(
            "metadata.annotations[{STORAGE_CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
}

pub fn of_volume(volume: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    storage_class_annotation(&mut out, volume);
    if volume.at("metadata.annotations").get("volume.beta.kubernetes.io/mount-options").is_some() {
        out.push(
            "metadata.annotations[volume.beta.kubernetes.io/mount-options]: deprecated since v1.31; use \
             \"mountOptions\" attribute instead"
                .to_owned(),
        );
    }
    if volume.text("spec.persistentVolumeReclaimPolicy") == "Recycle" {
        out.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended \
             approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let path = Path::new("spec.nodeAffinity.required.nodeSelectorTerms");
    for (i, term) in volume.list("spec.nodeAffinity.required.nodeSelectorTerms").iter().enumerate() {
        node_labels_of_term(&mut out, term, &path.index(i));
    }
    let spec = volume.at("spec");
    out.extend(
        VOLUMES
            .iter()
            .filter(|(kind, ..)| spec.has(kind))
            .map(|(_, name, why)| format!("spec.{name}: {why}")),
    );
    out
}

pub fn of_claim(claim: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    storage_class_annotation(&mut out, claim);
    of_claim_spec(&mut out, claim.at("spec"), &Path::new("spec"));
    out
}

pub fn of_claim_spec(out: &mut Vec<String>, spec: &Value, path: &Path<'_>) {
    let resources = path.child("resources");
    for list in ["requests", "limits"] {
        let amount = spec.at("resources").at(list).get_or_null("storage");
        if quantity(amount).is_some_and(|q| !q.is_whole()) {
            out.push(format!(
                "{}: fractional byte value {:?} is invalid, must be an integer",
                resources.child(list).key("storage"),
                amount.as_str().unwrap_or_default()
            ));
        }
    }
}

pub fn of_stateful_set(set: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = of_workload(set, old, "spec.template", false);
    let root = Path::new("spec.volumeClaimTemplates");
    for (i, claim) in set.list("spec.volumeClaimTemplates").iter().enumerate() {
        let path = root.index(i);
        match old {
            None => of_claim_spec(&mut out, claim.at("spec"), &path),
            Some(_) => of_claim_spec(&mut out, claim.at("spec"), &path.child("Spec")),
        }
    }
    if set.int("spec.revisionHistoryLimit") < 0 {
        let why = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is \
                   recommended";
        out.push(why.to_owned());
    }
    out
}

/// Advice about a job, or the jobs of a cron job, whose spec is at that path.
fn of_job_spec(out: &mut Vec<String>, spec: &Value, path: &str) {
    let many = spec.int("completions") > 100_000 && spec.int("parallelism") > 10_000;
    if many && spec.text("completionMode") == "Indexed" {
        out.push(format!(
            "{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
             Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
}

pub fn of_job(job: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    if old.is_none_or(|old| old.int("metadata.generation") != job.int("metadata.generation")) {
        of_job_spec(&mut out, job.at("spec"), "spec");
    }
    out.extend(of_workload(job, old, "spec.template", true));
    out
}

pub fn of_cron_job(cron_job: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    if old.is_none_or(|old| old.int("metadata.generation") != cron_job.int("metadata.generation")) {
        of_job_spec(&mut out, cron_job.at("spec.jobTemplate.spec"), "spec.jobTemplate.spec");
    }
    out.extend(of_workload(cron_job, old, "spec.jobTemplate.spec.template", true));
    if old.is_some() && cron_job.text("spec.schedule").contains("TZ") {
        let why = "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
                   https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";
        out.push(why.to_owned());
    }
    out
}

pub fn of_quota(quota: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    let hard = quota.at("spec.hard");
    for name in ["cpu", "memory", "storage", "ephemeral-storage"].into_iter().filter(|_| old.is_none()) {
        let requests = format!("requests.{name}");
        let request = match hard.get_or_null(&requests) {
            Value::Null if matches!(name, "cpu" | "memory") => (name, hard.get_or_null(name)),
            value => (requests.as_str(), value),
        };
        let limits = format!("limits.{name}");
        let limit = hard.get_or_null(&limits);
        if let (Some(a), Some(b)) = (quantity(request.1), quantity(limit))
            && a > b
        {
            out.push(format!("ResourceQuota {} ({a}) should be less than {limits} ({b})", request.0));
        }
    }
    out
}

pub fn of_service_account(account: &Value, old: Option<&Value>) -> Vec<String> {
    let key = "kubernetes.io/enforce-mountable-secrets";
    let has = |account: &Value| account.at("metadata.annotations").get(key).is_some();
    if has(account) && !old.is_some_and(has) {
        return vec![format!(
            "metadata.annotations[{key}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted \
             secrets"
        )];
    }
    vec![]
}

pub fn of_storage_class(class: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    for (i, topology) in class.list("allowedTopologies").iter().enumerate() {
        for (j, expression) in topology.list("matchLabelExpressions").iter().enumerate() {
            if let Some(why) = node_label(expression.text("key")) {
                out.push(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {why}"));
            }
        }
    }
    out
}

pub fn of_storage_capacity(capacity: &Value, _: Option<&Value>) -> Vec<String> {
    let mut out = vec![];
    node_labels_of_term(&mut out, capacity.at("nodeTopology"), &Path::new("nodeTopology"));
    for (label, _) in capacity.entries("nodeTopology.matchLabels") {
        if let Some(why) = node_label(label) {
            out.push(format!("nodeTopology.matchLabels.{label}: {why}"));
        }
    }
    out
}

pub fn of_runtime_class(class: &Value, _: Option<&Value>) -> Vec<String> {
    let labels = class.entries("scheduling.nodeSelector").filter_map(|(key, _)| node_label(key));
    labels.map(|why| format!("scheduling.nodeSelector: {why}")).collect()
}

pub fn of_driver(driver: &Value, old: Option<&Value>) -> Vec<String> {
    let tokens = driver.list("spec.tokenRequests");
    let changed = old.is_none_or(|old| old.list("spec.tokenRequests") != tokens);
    if changed && !tokens.is_empty() && !driver.has("spec.serviceAccountTokenInSecrets") {
        let why = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent \
                   possible logging of tokens in volume attributes";
        return vec![why.to_owned()];
    }
    vec![]
}

pub fn of_resource_slice(slice: &Value, _: Option<&Value>) -> Vec<String> {
    let driver = slice.text("spec.driver");
    if driver.chars().any(char::is_uppercase) {
        return vec![format!(
            "spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters"
        )];
    }
    vec![]
}

/// A TLS secret whose certificate or key cannot be read.
pub fn of_secret(secret: &Value, _: Option<&Value>) -> Vec<String> {
    if secret.text("type") != "kubernetes.io/tls" {
        return vec![];
    }
    let data = |name: &str| {
        let text = secret.at("data").get_or_null(name).as_str().unwrap_or_default();
        base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
    };
    key_pair(&data("tls.crt"), &data("tls.key")).err().into_iter().collect()
}

fn key_pair(certificate: &[u8], key: &[u8]) -> Result<(), String> {
    let blocks = |bytes: &[u8]| -> Vec<_> {
        x509_parser::pem::Pem::iter_from_buffer(bytes).filter_map(Result::ok).collect()
    };
    let labels = |blocks: &[x509_parser::pem::Pem]| {
        blocks.iter().map(|b| b.label.as_str()).collect::<Vec<_>>().join(" ")
    };
    let (certificates, keys) = (blocks(certificate), blocks(key));
    let Some(leaf) = certificates.iter().find(|b| b.label == "CERTIFICATE") else {
        return Err(match certificates.as_slice() {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [one] if one.label.ends_with("PRIVATE KEY") => {
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs \
                 may have been switched"
                    .to_owned()
            }
            all => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
                 following types: [{}]",
                labels(all)
            ),
        });
    };
    let is_key = |b: &x509_parser::pem::Pem| b.label == "PRIVATE KEY" || b.label.ends_with(" PRIVATE KEY");
    if !keys.iter().any(is_key) {
        return Err(match keys.as_slice() {
            [] => "tls: failed to find any PEM data in key input".to_owned(),
            [one] if one.label == "CERTIFICATE" => {
                "tls: found a certificate rather than a key in the PEM for the private key".to_owned()
            }
            all => format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM \
                 blocks of the following types: [{}]",
                labels(all)
            ),
        });
    }
    leaf.parse_x509().map(drop).map_err(|_| "x509: malformed certificate".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_and_ranges() {
        let path = Path::new("f");
        for (text, want) in [
            ("1.2.3.4", ""),
            ("1.2.3.04", "f: non-standard IP address \"1.2.3.04\" is invalid: use \"1.2.3.4\""),
            ("::ffff:1.2.3.4", "f: non-standard IP address \"::ffff:1.2.3.4\" is invalid: use \"1.2.3.4\""),
            (
                "2001:DB8::1",
                "f: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")",
            ),
            ("2001:db8::1", ""),
            ("x", ""),
        ] {
            let mut out = vec![];
            ip(&mut out, &path, text);
            assert_eq!(out.join("|"), want, "{text}");
        }
        for (text, want) in [
            ("10.0.0.0/8", ""),
            (
                "10.1.0.0/8",
                "f: CIDR value \"10.1.0.0/8\" is ambiguous in this context (should be \"10.0.0.0/8\" or \"10.1.0.0/32\"?)",
            ),
            ("10.0.0.0/08", "f: non-standard CIDR value \"10.0.0.0/08\" is invalid: use \"10.0.0.0/8\""),
            (
                "2001:DB8::/64",
                "f: IPv6 CIDR value \"2001:DB8::/64\" should be in RFC 5952 canonical format (\"2001:db8::/64\")",
            ),
            (
                "::ffff:1.2.3.0/120",
                "f: non-standard CIDR value \"::ffff:1.2.3.0/120\" is invalid: use \"1.2.3.0/24\"",
            ),
        ] {
            let mut out = vec![];
            cidr(&mut out, &path, text);
            assert_eq!(out.join("|"), want, "{text}");
        }
    }

    #[test]
    fn advice() {
        let none: fn(&Value, Option<&Value>) -> Vec<String> = of_service;
        for (of, object, want) in [
            (
                none,
                json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP"}}),
                "spec.SessionAffinity is ignored for headless services",
            ),
            (
                of_service,
                json!({"spec": {"type": "ClusterIP", "externalName": "a.b", "externalIPs": ["1.2.3.4"]}}),
                "spec.externalIPs is deprecated and may no longer be implemented in some clusters|\
                 spec.externalName is ignored when spec.type is not \"ExternalName\"",
            ),
            (
                of_endpoint_slice,
                json!({"addressType": "FQDN"}),
                "spec.addressType: FQDN endpoints are deprecated",
            ),
            (
                of_volume,
                json!({"spec": {"storageos": {}, "persistentVolumeReclaimPolicy": "Delete"}}),
                "spec.storageOS: deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                of_claim,
                json!({"spec": {"resources": {"requests": {"storage": "1500m"}}}}),
                "spec.resources.requests[storage]: fractional byte value \"1500m\" is invalid, must be an integer",
            ),
            (
                of_quota,
                json!({"spec": {"hard": {"cpu": "2", "limits.cpu": "1"}}}),
                "ResourceQuota cpu (2) should be less than limits.cpu (1)",
            ),
            (
                of_secret,
                json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "eA==", "tls.key": ""}}),
                "tls: failed to find any PEM data in certificate input",
            ),
            (of_node, json!({"spec": {"configSource": {}}}), "spec.configSource: the feature is removed"),
        ] {
            assert_eq!(of(&object, None).join("|"), want, "{object}");
        }
    }
}
