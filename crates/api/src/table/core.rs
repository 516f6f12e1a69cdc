//! Rows of the core group.

use jiff::Timestamp;
use serde_json::Value;

use super::rows::{
    AGE, NAME, amount, any, containers, count, first_three, int, labels, number, shown, table, text, wide,
};
use super::{Column, Table, age, name, or, since};
use crate::value::Read;

pub(super) fn find(resource: &str) -> &'static Table {
    match resource {
        "pods" => table!(
            [
                NAME,
                text("Ready"),
                text("Status"),
                text("Restarts"),
                AGE,
                wide("IP"),
                wide("Node"),
                wide("Nominated Node"),
                wide("Readiness Gates")
            ],
            super::pods::cells
        ),
        "podtemplates" => {
            table!([NAME, text("Containers"), text("Images"), text("Pod Labels")], |o, _| {
                let [names, images] = containers(o.at("template"));
                vec![name(o), names, images, labels(o.at("template.metadata.labels"))]
            })
        }
        "replicationcontrollers" => table!(
            [
                NAME,
                number("Desired"),
                number("Current"),
                number("Ready"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            replicas
        ),
        "services" => table!(
            [
                NAME,
                text("Type"),
                text("Cluster-IP"),
                text("External-IP"),
                text("Port(s)"),
                AGE,
                wide("Selector")
            ],
            service
        ),
        "endpoints" => table!([NAME, text("Endpoints"), AGE], |o, now| {
            vec![name(o), endpoints(o).into(), age(o, now)]
        }),
        "nodes" => table!(
            [
                NAME,
                text("Status"),
                text("Roles"),
                AGE,
                text("Version"),
                wide("Internal-IP"),
                wide("External-IP"),
                wide("OS-Image"),
                wide("Kernel-Version"),
                wide("Container-Runtime")
            ],
            node
        ),
        "events" => table!(
            [
                text("Last Seen"),
                text("Type"),
                text("Reason"),
                text("Object"),
                wide("Subobject"),
                wide("Source"),
                text("Message"),
                wide("First Seen"),
                wide("Count"),
                Column { priority: 1, ..NAME }
            ],
            event
        ),
        "namespaces" => table!([NAME, text("Status"), AGE], |o, now| {
            vec![name(o), o.text("status.phase").into(), age(o, now)]
        }),
        "secrets" => table!([NAME, text("Type"), text("Data"), AGE], |o, now| {
            vec![name(o), o.text("type").into(), count(o.at("data")).into(), age(o, now)]
        }),
        "configmaps" => table!([NAME, text("Data"), AGE], |o, now| {
            vec![name(o), (count(o.at("data")) + count(o.at("binaryData"))).into(), age(o, now)]
        }),
        "serviceaccounts" => table!([NAME, AGE], |o, now| vec![name(o), age(o, now)]),
        "persistentvolumes" => table!(
            [
                NAME,
                text("Capacity"),
                text("Access Modes"),
                text("Reclaim Policy"),
                text("Status"),
                text("Claim"),
                text("StorageClass"),
                text("VolumeAttributesClass"),
                text("Reason"),
                AGE,
                wide("VolumeMode")
            ],
            persistent_volume
        ),
        "persistentvolumeclaims" => table!(
            [
                NAME,
                text("Status"),
                text("Volume"),
                text("Capacity"),
                text("Access Modes"),
                text("StorageClass"),
                text("VolumeAttributesClass"),
                AGE,
                wide("VolumeMode")
            ],
            claim
        ),
        "componentstatuses" => {
            table!([NAME, text("Status"), text("Message"), text("Error")], |o, _| {
                let healthy = o.list("conditions").iter().find(|c| c.text("type") == "Healthy");
                let status = match healthy.map(|c| c.text("status")) {
                    None => "Unknown",
                    Some("True") => "Healthy",
                    Some(_) => "Unhealthy",
                };
                let of = |m: &str| -> Value { healthy.map_or("", |c| c.text(m)).into() };
                vec![name(o), status.into(), of("message"), of("error")]
            })
        }
        "resourcequotas" => table!([NAME, text("Request"), text("Limit"), AGE], quota),
        _ => any(),
    }
}

pub(super) fn replicas(o: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(o.at("spec.template"));
    vec![
        name(o),
        int(o, "spec.replicas"),
        int(o, "status.replicas"),
        int(o, "status.readyReplicas"),
        age(o, now),
        names,
        images,
        labels(o.at("spec.selector")),
    ]
}

/// Addresses (or host names) that a load balancer is reached at.
pub(super) fn balanced(o: &Value) -> Vec<&str> {
    let mut all: Vec<&str> = o
        .list("status.loadBalancer.ingress")
        .iter()
        .map(|i| or(i.text("ip"), i.text("hostname")))
        .filter(|a| !a.is_empty())
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn service(o: &Value, now: Timestamp) -> Vec<Value> {
    let mut external: Vec<&str> = o.list("spec.externalIPs").iter().filter_map(Value::as_str).collect();
    let kind = o.text("spec.type");
    let external = match kind {
        "ExternalName" => o.text("spec.externalName").to_owned(),
        "ClusterIP" | "NodePort" => or(&external.join(","), "<none>").to_owned(),
        "LoadBalancer" => {
            let mut all = balanced(o);
            all.append(&mut external);
            or(&all.join(","), "<pending>").to_owned()
        }
        _ => "<unknown>".to_owned(),
    };
    let ports: Vec<String> = o
        .list("spec.ports")
        .iter()
        .map(|p| {
            let (port, protocol) = (p.int("port"), p.text("protocol"));
            match p.int("nodePort") {
                0 => format!("{port}/{protocol}"),
                node => format!("{port}:{node}/{protocol}"),
            }
        })
        .collect();
    let cluster = o.list("spec.clusterIPs").first().and_then(Value::as_str).unwrap_or("<none>");
    vec![
        name(o),
        kind.into(),
        cluster.into(),
        external.into(),
        or(&ports.join(","), "<none>").into(),
        age(o, now),
        labels(o.at("spec.selector")),
    ]
}

fn endpoints(o: &Value) -> String {
    let mut all = vec![];
    for subset in o.list("subsets") {
        let ports = subset.list("ports");
        for address in subset.list("addresses") {
            let ip = address.text("ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
        }
        for port in ports {
            for address in subset.list("addresses") {
                let ip = address.text("ip");
                all.push(if ip.contains(':') {
                    format!("[{ip}]:{}", port.int("port"))
                } else {
                    format!("{ip}:{}", port.int("port"))
                });
            }
        }
    }
    if all.is_empty() && !o.list("subsets").is_empty() { String::new() } else { first_three(&all) }
}

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

fn node(o: &Value, now: Timestamp) -> Vec<Value> {
    let ready = o.list("status.conditions").iter().find(|c| c.text("type") == "Ready");
    let mut status = match ready.map(|c| c.text("status")) {
        None => "Unknown",
        Some("True") => "Ready",
        Some(_) => "NotReady",
    }
    .to_owned();
    if o.flag("spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = o
        .entries("metadata.labels")
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let address = |kind: &str| -> Value {
        let found = o.list("status.addresses").iter().find(|a| a.text("type") == kind);
        found.map_or("<none>", |a| a.text("address")).into()
    };
    let info = |member: &str| or(o.at("status.nodeInfo").text(member), "<unknown>").to_owned();
    let architecture = o.text("status.nodeInfo.architecture");
    let mut kernel = info("kernelVersion");
    if !architecture.is_empty() {
        kernel = format!("{kernel} ({architecture})");
    }
    vec![
        name(o),
        status.into(),
        or(&roles.join(","), "<none>").into(),
        age(o, now),
        o.text("status.nodeInfo.kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage").into(),
        kernel.into(),
        info("containerRuntimeVersion").into(),
    ]
}

/// Events of either group.
fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let either = |a: &'static str, b: &'static str| if o.has(a) { o.at(a) } else { o.at(b) };
    let first = either("firstTimestamp", "deprecatedFirstTimestamp");
    let first = since(if first.is_null() { o.at("eventTime") } else { first }, now);
    let last = either("lastTimestamp", "deprecatedLastTimestamp");
    let mut last = if last.is_null() { first.clone() } else { since(last, now) };
    let mut count = either("count", "deprecatedCount").as_i64().unwrap_or(0);
    if o.has("series") {
        last = since(o.at("series.lastObservedTime"), now);
        count = o.int("series.count");
    } else if count == 0 {
        count = 1;
    }
    let about = either("involvedObject", "regarding");
    let kind = about.text("kind").to_lowercase();
    let target = match about.text("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let source = either("source", "deprecatedSource");
    let controller = either("reportingComponent", "reportingController").as_str().unwrap_or_default();
    let component = or(source.text("component"), controller);
    let instance = or(source.text("host"), o.text("reportingInstance"));
    let source = if instance.is_empty() { component.to_owned() } else { format!("{component}, {instance}") };
    let message = either("message", "note").as_str().unwrap_or_default();
    vec![
        last.into(),
        o.text("type").into(),
        o.text("reason").into(),
        target.into(),
        about.text("fieldPath").into(),
        source.into(),
        message.trim().into(),
        first.into(),
        count.into(),
        name(o),
    ]
}

fn access_modes(modes: &[Value]) -> String {
    let all = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let short: Vec<&str> =
        all.iter().filter(|(m, _)| modes.iter().any(|v| v == m)).map(|(_, s)| *s).collect();
    short.join(",")
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

fn class(o: &Value) -> Value {
    let annotated = o.at("metadata.annotations").get_or_null(CLASS_ANNOTATION);
    annotated.as_str().unwrap_or_else(|| o.text("spec.storageClassName")).into()
}

fn phase(o: &Value) -> Value {
    if o.has("metadata.deletionTimestamp") { "Terminating".into() } else { o.text("status.phase").into() }
}

fn persistent_volume(o: &Value, now: Timestamp) -> Vec<Value> {
    let claim = match o.at("spec.claimRef") {
        Value::Null => String::new(),
        claim => format!("{}/{}", claim.text("namespace"), claim.text("name")),
    };
    vec![
        name(o),
        amount(o.at("spec.capacity.storage")).into(),
        access_modes(o.list("spec.accessModes")).into(),
        o.text("spec.persistentVolumeReclaimPolicy").into(),
        phase(o),
        claim.into(),
        class(o),
        shown(o, "spec.volumeAttributesClassName", "<unset>"),
        o.text("status.reason").into(),
        age(o, now),
        shown(o, "spec.volumeMode", "<unset>"),
    ]
}

fn claim(o: &Value, now: Timestamp) -> Vec<Value> {
    let bound = !o.text("spec.volumeName").is_empty();
    let when_bound = |text: String| -> Value { if bound { text.into() } else { "".into() } };
    vec![
        name(o),
        phase(o),
        o.text("spec.volumeName").into(),
        when_bound(amount(o.at("status.capacity.storage"))),
        when_bound(access_modes(o.list("status.accessModes"))),
        class(o),
        shown(o, "spec.volumeAttributesClassName", "<unset>"),
        age(o, now),
        shown(o, "spec.volumeMode", "<unset>"),
    ]
}

fn quota(o: &Value, now: Timestamp) -> Vec<Value> {
    let (mut requests, mut limits) = (vec![], vec![]);
    let mut hard: Vec<(&String, &Value)> = o.entries("status.hard").collect();
    hard.sort_by_key(|(name, _)| *name);
    for (resource, hard) in hard {
        let used = amount(o.at("status.used").get_or_null(resource));
        let text = format!("{resource}: {used}/{}", amount(hard));
        if resource.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(o), requests.join(", ").into(), limits.join(", ").into(), age(o, now)]
}
