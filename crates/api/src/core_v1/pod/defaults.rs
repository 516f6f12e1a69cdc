//! What pods and pod templates say when they do not say it.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use serde_json::{Map, Value, json};

use crate::value::{Read, Write, quantity};

/// Permissions of files in volumes made from API objects: 0644.
const VOLUME_FILE_MODE: i64 = 0o644;

const CONTAINER_LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// A pod: beyond its spec, what templates are not given so that they do not change when these defaults do.
pub fn pod(pod: &mut Value) {
    let Some(spec) = pod.find_mut("spec") else { return };
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in spec.list_mut(list) {
            requests_from_limits(container);
        }
    }
    pod_requests(spec);
    spec.put_default("enableServiceLinks", true);
    // For pods alone: a template keeps what it says, and is warned of it.
    if spec.int("terminationGracePeriodSeconds") < 0 {
        spec.put("terminationGracePeriodSeconds", 1);
    }
    if spec.flag("hostNetwork") {
        for list in ["containers", "initContainers"] {
            for container in spec.list_mut(list) {
                for port in container.list_mut("ports") {
                    if port.int("hostPort") == 0 {
                        port.copy_from(&json!({"hostPort": port.at("containerPort")}), "hostPort");
                    }
                }
            }
        }
    }
    addresses(pod);
}

/// The pod's one address and its list of addresses agree; where they do not, the one address wins.
fn addresses(pod: &mut Value) {
    for (one, many) in [("status.podIP", "status.podIPs"), ("status.hostIP", "status.hostIPs")] {
        let first = pod.list(many).first().map(|ip| ip.text("ip").to_owned());
        let ip = pod.text(one).to_owned();
        match first {
            None if !ip.is_empty() && one == "status.podIP" => pod.put(many, json!([{"ip": ip}])),
            Some(first) if ip.is_empty() => pod.put(one, first),
            Some(first) if first != ip => pod.put(many, json!([{"ip": ip}])),
            _ => {}
        }
    }
}

/// Amounts are kept in thousandths.
fn round_up(container: &mut Value) {
    for path in ["resources.limits", "resources.requests"] {
        if !container.entries(path).any(|(_, v)| v.as_str().is_some_and(|v| v.ends_with(['u', 'n']))) {
            continue;
        }
        for amount in container.object_mut(path).into_iter().flat_map(|map| map.values_mut()) {
            if let Some(q) = quantity(amount).filter(|q| !q.is_whole_milli()) {
                *amount = Quantity::from_milli(q.milli_value(), q.format()).to_string().into();
            }
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    round_up(container);
    let Some(limits) = container.at("resources.limits").as_object().cloned() else { return };
    if let Some(requests) = container.object_mut("resources.requests") {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Requests of the whole pod, where it has limits: what its containers ask for, or else its limits.
fn pod_requests(spec: &mut Value) {
    let Some(limits) = spec.at("resources.limits").as_object().filter(|l| !l.is_empty()).cloned() else {
        return;
    };
    let sums = container_requests(spec);
    if let Some(requests) = spec.object_mut("resources.requests") {
        for (name, sum) in sums {
            if matches!(name.as_str(), "cpu" | "memory") {
                requests.entry(name).or_insert_with(|| sum.to_string().into());
            }
        }
        for (name, limit) in limits {
            if pod_level(&name) {
                requests.entry(name).or_insert(limit);
            }
        }
    }
}

/// What the containers of a pod need together: the sum of those that run at once, or the most that starting needs.
fn container_requests(spec: &Value) -> BTreeMap<String, Quantity> {
    let requests = |container: &Value| -> BTreeMap<String, Quantity> {
        container
            .entries("resources.requests")
            .filter_map(|(name, value)| Some((name.clone(), quantity(value)?)))
            .collect()
    };
    let add = |into: &mut BTreeMap<String, Quantity>, more: BTreeMap<String, Quantity>| {
        for (name, q) in more {
            let sum = match into.get(&name) {
                Some(s) => *s + q,
                None => q,
            };
            into.insert(name, sum);
        }
    };
    let most = |into: &mut BTreeMap<String, Quantity>, other: BTreeMap<String, Quantity>| {
        for (name, q) in other {
            match into.get(&name) {
                Some(s) if *s >= q => {}
                _ => {
                    into.insert(name, q);
                }
            }
        }
    };
    let mut running = BTreeMap::new();
    for container in spec.list("containers") {
        add(&mut running, requests(container));
    }
    let (mut sidecars, mut starting) = (BTreeMap::new(), BTreeMap::new());
    for container in spec.list("initContainers") {
        let own = requests(container);
        if container.text("restartPolicy") == "Always" {
            add(&mut running, own.clone());
            add(&mut sidecars, own);
            most(&mut starting, sidecars.clone());
        } else {
            let mut together = sidecars.clone();
            add(&mut together, own);
            most(&mut starting, together);
        }
    }
    most(&mut running, starting);
    running
}

/// The spec of a pod or of a template.
pub fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    spec.put_default_text("dnsPolicy", "ClusterFirst");
    spec.put_default_text("restartPolicy", "Always");
    spec.put_default("securityContext", json!({}));
    spec.put_default("terminationGracePeriodSeconds", 30);
    spec.put_default_text("schedulerName", "default-scheduler");
    // The account has an old name beside the new one; both are shown.
    let (new, old) = (spec.text("serviceAccountName").to_owned(), spec.text("serviceAccount").to_owned());
    if new.is_empty() && !old.is_empty() {
        spec.put("serviceAccountName", old);
    } else if !new.is_empty() && new != old {
        spec.put("serviceAccount", new);
    }
    for volume in spec.list_mut("volumes") {
        self::volume(volume);
    }
    for list in CONTAINER_LISTS {
        for container in spec.list_mut(list) {
            self::container(container);
        }
    }
}

/// `template` of workloads: metadata and spec.
pub fn template(template: &mut Value) {
    template.put_default("metadata", json!({}));
    if let Some(spec) = template.find_mut("spec") {
        pod_spec(spec);
    }
}

/// The tag an image is named by; `latest` where neither tag nor digest is given.
fn image_tag(image: &str) -> &str {
    if !is_reference(image) {
        return "";
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    let (name, digest) = match name.split_once('@') {
        Some((name, _)) => (name, true),
        None => (name, false),
    };
    match name.split_once(':') {
        Some((_, tag)) => tag,
        None if digest || image.is_empty() => "",
        None => "latest",
    }
}

/// Whether an image's name can be read: a path of words in small letters, behind a registry's address perhaps, then tag
/// and digest.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let is_tag = |tag: &str| {
        let mut bytes = tag.bytes();
        tag.len() <= 128
            && bytes.next().is_some_and(word)
            && bytes.all(|b| word(b) || matches!(b, b'.' | b'-'))
    };
    let is_digest = |digest: &str| {
        digest.split_once(':').is_some_and(|(kind, hex)| {
            kind.starts_with(|c: char| c.is_ascii_alphabetic())
                && hex.len() >= 32
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    // Small letters and digits, with single separators between them.
    let is_part = |part: &str| {
        let small = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let (bytes, mut separator) = (part.as_bytes(), 0);
        bytes.first().is_some_and(|b| small(*b))
            && bytes.last().is_some_and(|b| small(*b))
            && bytes.iter().enumerate().all(|(i, b)| match b {
                _ if small(*b) => {
                    separator = 0;
                    true
                }
                b'-' => {
                    separator += 1;
                    separator == 1 || bytes[i - 1] == b'-'
                }
                b'.' | b'_' => {
                    separator += 1;
                    separator == 1 || (*b == b'_' && separator == 2 && bytes[i - 1] == b'_')
                }
                _ => false,
            })
    };
    let parts = match name.split_once('/') {
        Some((domain, rest)) if domain.contains(['.', ':']) || domain == "localhost" => {
            let (host, port) = domain.split_once(':').unwrap_or((domain, "1"));
            let label = |l: &str| {
                !l.is_empty()
                    && !l.starts_with('-')
                    && !l.ends_with('-')
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            };
            let named =
                host.split('.').all(label) && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
            if !named && !domain.starts_with('[') {
                return false;
            }
            rest
        }
        _ => name,
    };
    name.len() <= 255
        && parts.split('/').all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

fn pull_policy(image: &str) -> &'static str {
    if image_tag(image) == "latest" { "Always" } else { "IfNotPresent" }
}

fn container(container: &mut Value) {
    if container.text("imagePullPolicy").is_empty() {
        let policy = pull_policy(container.text("image"));
        container.put("imagePullPolicy", policy);
    }
    container.put_default_text("terminationMessagePath", "/dev/termination-log");
    container.put_default_text("terminationMessagePolicy", "File");
    container.put_default("resources", json!({}));
    for port in container.list_mut("ports") {
        port.put_default_text("protocol", "TCP");
    }
    for variable in container.list_mut("env") {
        if let Some(field) = variable.find_mut("valueFrom.fieldRef") {
            field.put_default_text("apiVersion", "v1");
        }
        if let Some(resource) = variable.find_mut("valueFrom.resourceFieldRef") {
            resource.put_default("divisor", "0");
        }
        if let Some(file) = variable.find_mut("valueFrom.fileKeyRef") {
            file.put_default("optional", false);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.find_mut(name) {
            self::probe(probe);
        }
    }
    for hook in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if let Some(get) = container.find_mut(hook) {
            http_get(get);
        }
    }
}

fn probe(probe: &mut Value) {
    for (name, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.int(name) == 0 {
            probe.put(name, value);
        }
    }
    if let Some(get) = probe.find_mut("httpGet") {
        http_get(get);
    }
    if let Some(grpc) = probe.find_mut("grpc") {
        grpc.put_default("service", "");
    }
}

fn http_get(get: &mut Value) {
    get.put_default_text("path", "/");
    get.put_default_text("scheme", "HTTP");
}

fn volume(volume: &mut Value) {
    let Some(members) = volume.as_object_mut() else { return };
    if members.iter().all(|(name, value)| name == "name" || value.is_null()) {
        members.insert("emptyDir".to_owned(), Value::Object(Map::new()));
        return;
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.find_mut(name) {
            source.put_default("defaultMode", VOLUME_FILE_MODE);
        }
    }
    downward_items(volume, "downwardAPI.items");
    for source in volume.list_mut("projected.sources") {
        if let Some(token) = source.find_mut("serviceAccountToken") {
            token.put_default("expirationSeconds", 3600);
        }
        downward_items(source, "downwardAPI.items");
    }
    if let Some(path) = volume.find_mut("hostPath") {
        path.put_default("type", "");
    }
    if let Some(image) = volume.find_mut("image")
        && image.text("pullPolicy").is_empty()
    {
        let policy = pull_policy(image.text("reference"));
        image.put("pullPolicy", policy);
    }
    if let Some(template) = volume.find_mut("ephemeral.volumeClaimTemplate") {
        template.put_default("metadata", json!({}));
    }
    if let Some(claim) = volume.find_mut("ephemeral.volumeClaimTemplate.spec") {
        claim.put_default("volumeMode", "Filesystem");
    }
    volume_source(volume);
}

fn downward_items(holder: &mut Value, path: &str) {
    for item in holder.list_mut(path) {
        if let Some(field) = item.find_mut("fieldRef") {
            field.put_default_text("apiVersion", "v1");
        }
        if let Some(resource) = item.find_mut("resourceFieldRef") {
            resource.put_default("divisor", "0");
        }
    }
}

/// Sources that pods and persistent volumes share.
pub fn volume_source(source: &mut Value) {
    for (name, members) in [
        ("iscsi", &[("iscsiInterface", "default")][..]),
        ("rbd", &[("pool", "rbd"), ("user", "admin"), ("keyring", "/etc/ceph/keyring")]),
        ("azureDisk", &[("cachingMode", "ReadWrite"), ("fsType", "ext4"), ("kind", "Shared")]),
        ("scaleIO", &[("storageMode", "ThinProvisioned"), ("fsType", "xfs")]),
    ] {
        if let Some(source) = source.find_mut(name) {
            for (member, text) in members {
                // What is asked for by an empty text is refused, not replaced.
                match name {
                    "azureDisk" => source.put_default(member, *text),
                    _ => source.put_default_text(member, text),
                }
            }
        }
    }
    if let Some(disk) = source.find_mut("azureDisk") {
        disk.put_default("readOnly", false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pod_ends_before_it_is_told_to() {
        for (said, want) in [(-1, 1), (0, 0), (5, 5)] {
            let mut value = json!({"spec": {"containers": [], "terminationGracePeriodSeconds": said}});
            pod(&mut value);
            assert_eq!(value.int("spec.terminationGracePeriodSeconds"), want);
        }
    }

    #[test]
    fn pulls_latest_always() {
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("host:5000/nginx", "Always"),
            ("host:5000/nginx@sha256:aa", "IfNotPresent"),
            ("Nginx", "IfNotPresent"),
            ("nginx:latest@sha256:aa", "IfNotPresent"),
            ("nginx:latest@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "Always"),
            ("a_-b", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn fills_a_pod() {
        let mut got = json!({"spec": {"hostNetwork": true,
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "a"}, {"name": "b", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token"}},
                {"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}},
                {"name": "h", "hostPath": {"path": "/x"}}]}});
        let want = json!({"spec": {"hostNetwork": true, "dnsPolicy": "ClusterFirst", "restartPolicy": "Always",
            "securityContext": {}, "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
            "enableServiceLinks": true,
            "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1", "memory": "1Gi"}},
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"downwardAPI": {"items": [{"path": "p",
                    "fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}]}}]}},
                {"name": "h", "hostPath": {"path": "/x", "type": ""}}]}});
        pod(&mut got);
        assert_eq!(got, want);
        pod(&mut got);
        assert_eq!(got, want);
    }
}
