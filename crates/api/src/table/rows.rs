//! The rows of the built-in resources.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, Table, age, between, instant, name, or, pods, since};
use crate::scale::selector_text;
use crate::value::{Read, quantity};

const fn column(name: &'static str, kind: &'static str, priority: u8) -> Column {
    Column { name, kind, format: "", description: "", priority }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name within its namespace",
    priority: 0,
};
const AGE: Column =
    Column { name: "Age", kind: "string", format: "", description: "Time since it was created", priority: 0 };

const fn text(name: &'static str) -> Column {
    column(name, "string", 0)
}

const fn number(name: &'static str) -> Column {
    column(name, "integer", 0)
}

const fn flag(name: &'static str) -> Column {
    column(name, "boolean", 0)
}

const fn wide(name: &'static str) -> Column {
    column(name, "string", 1)
}

macro_rules! table {
    ([$($column:expr),* $(,)?], $cells:expr) => {{
        static COLUMNS: &[Column] = &[$($column),*];
        static TABLE: Table = Table { columns: COLUMNS, cells: $cells };
        &TABLE
    }};
}

pub(super) fn find(group: &str, resource: &str) -> &'static Table {
    match (group, resource) {
        ("", _) => core(resource),
        ("apps" | "batch", _) => workloads(resource),
        ("events.k8s.io", "events") => core("events"),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            table!([NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")], binding)
        }
        ("networking.k8s.io" | "discovery.k8s.io", _) => networking(resource),
        ("storage.k8s.io", _) => storage(resource),
        ("admissionregistration.k8s.io", _) => admission(resource),
        ("resource.k8s.io", _) => resources(resource),
        _ => others(group, resource),
    }
}

/// For kinds nobody wrote columns for.
fn any() -> &'static Table {
    table!([NAME, column("Created At", "date", 0)], |o, _| {
        vec![name(o), o.at("metadata.creationTimestamp").clone()]
    })
}

fn count(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    }
}

fn containers(template: &Value) -> [Value; 2] {
    let list = |member: &str| -> Value {
        let texts: Vec<&str> = template.list("spec.containers").iter().map(|c| c.text(member)).collect();
        texts.join(",").into()
    };
    [list("name"), list("image")]
}

fn labels(value: &Value) -> Value {
    let text = selector_text(value);
    or(&text, "<none>").into()
}

fn int(object: &Value, path: &str) -> Value {
    object.int(path).into()
}

fn shown(object: &Value, path: &str, otherwise: &str) -> Value {
    let value = object.at(path);
    match value {
        Value::Null => otherwise.into(),
        Value::String(s) => s.as_str().into(),
        other => other.to_string().into(),
    }
}

fn amount(value: &Value) -> String {
    quantity(value).map_or_else(|| "0".to_owned(), |q| q.to_string())
}

/// At most three of many.
fn first_three(items: &[String]) -> String {
    match items.len() {
        0 => "<none>".to_owned(),
        1..=3 => items.join(","),
        n => format!("{} + {} more...", items[..3].join(","), n - 3),
    }
}

fn core(resource: &str) -> &'static Table {
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
            pods::cells
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

fn replicas(o: &Value, now: Timestamp) -> Vec<Value> {
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
fn balanced(o: &Value) -> Vec<&str> {
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

fn workloads(resource: &str) -> &'static Table {
    match resource {
        "deployments" => table!(
            [
                NAME,
                text("Ready"),
                text("Up-to-date"),
                text("Available"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            |o, now| {
                let [names, images] = containers(o.at("spec.template"));
                vec![
                    name(o),
                    format!("{}/{}", o.int("status.readyReplicas"), o.int("spec.replicas")).into(),
                    int(o, "status.updatedReplicas"),
                    int(o, "status.availableReplicas"),
                    age(o, now),
                    names,
                    images,
                    labels(o.at("spec.selector")),
                ]
            }
        ),
        "replicasets" => table!(
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
        "statefulsets" => {
            table!([NAME, text("Ready"), AGE, wide("Containers"), wide("Images")], |o, now| {
                let [names, images] = containers(o.at("spec.template"));
                let ready = format!("{}/{}", o.int("status.readyReplicas"), o.int("spec.replicas"));
                vec![name(o), ready.into(), age(o, now), names, images]
            })
        }
        "daemonsets" => table!(
            [
                NAME,
                number("Desired"),
                number("Current"),
                number("Ready"),
                number("Up-to-date"),
                number("Available"),
                text("Node Selector"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            |o, now| {
                let [names, images] = containers(o.at("spec.template"));
                vec![
                    name(o),
                    int(o, "status.desiredNumberScheduled"),
                    int(o, "status.currentNumberScheduled"),
                    int(o, "status.numberReady"),
                    int(o, "status.updatedNumberScheduled"),
                    int(o, "status.numberAvailable"),
                    labels(o.at("spec.template.spec.nodeSelector")),
                    age(o, now),
                    names,
                    images,
                    labels(o.at("spec.selector")),
                ]
            }
        ),
        "controllerrevisions" => {
            table!([NAME, text("Controller"), text("Revision"), AGE], |o, now| {
                let owner = o.list("metadata.ownerReferences").iter().find(|r| r.flag("controller"));
                let owner = owner.map(|r| {
                    let group = r.text("apiVersion").rsplit_once('/').map_or("", |(g, _)| g);
                    let kind = r.text("kind").to_lowercase();
                    let dot = if group.is_empty() { "" } else { "." };
                    format!("{kind}{dot}{group}/{}", r.text("name"))
                });
                vec![
                    name(o),
                    owner.unwrap_or_else(|| "<none>".to_owned()).into(),
                    int(o, "revision"),
                    age(o, now),
                ]
            })
        }
        "jobs" => table!(
            [
                NAME,
                text("Status"),
                text("Completions"),
                text("Duration"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            job
        ),
        "cronjobs" => table!(
            [
                NAME,
                text("Schedule"),
                text("Timezone"),
                flag("Suspend"),
                number("Active"),
                text("Last Schedule"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            |o, now| {
                let [names, images] = containers(o.at("spec.jobTemplate.spec.template"));
                let last = o.at("status.lastScheduleTime");
                let last = if last.is_null() { "<none>".to_owned() } else { since(last, now) };
                let suspend = match o.at("spec.suspend").as_bool() {
                    Some(true) => "True",
                    Some(false) => "False",
                    None => "<unset>",
                };
                vec![
                    name(o),
                    o.text("spec.schedule").into(),
                    shown(o, "spec.timeZone", "<none>"),
                    suspend.into(),
                    o.list("status.active").len().into(),
                    last.into(),
                    age(o, now),
                    names,
                    images,
                    labels(o.at("spec.jobTemplate.spec.selector")),
                ]
            }
        ),
        _ => any(),
    }
}

fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = o.int("status.succeeded");
    let completions = match (o.maybe_int("spec.completions"), o.int("spec.parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let took = match (instant(o.at("status.startTime")), instant(o.at("status.completionTime"))) {
        (None, _) => String::new(),
        (Some(start), None) => between(start, now),
        (Some(start), Some(end)) => between(start, end),
    };
    let is = |kind: &str| {
        o.list("status.conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
    };
    let status = if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if o.has("metadata.deletionTimestamp") {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|c| is(c)).unwrap_or("Running")
    };
    let [names, images] = containers(o.at("spec.template"));
    vec![
        name(o),
        status.into(),
        completions.into(),
        took.into(),
        age(o, now),
        names,
        images,
        labels(o.at("spec.selector")),
    ]
}

fn binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", o.text("roleRef.kind"), o.text("roleRef.name"));
    let subjects = |kind: &str| -> Value {
        let names: Vec<String> = o
            .list("subjects")
            .iter()
            .filter(|s| s.text("kind") == kind)
            .map(|s| match (kind, s.text("namespace")) {
                ("ServiceAccount", "") | ("User" | "Group", _) => s.text("name").to_owned(),
                (_, namespace) => format!("{namespace}/{}", s.text("name")),
            })
            .collect();
        names.join(", ").into()
    };
    vec![name(o), role.into(), age(o, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
}

fn is_default_class(o: &Value, annotations: &[&str]) -> Value {
    let annotated = o.at("metadata.annotations");
    let default = annotations.iter().any(|a| annotated.get_or_null(a) == "true");
    let name = o.text("metadata.name");
    if default { format!("{name} (default)").into() } else { name.into() }
}

fn networking(resource: &str) -> &'static Table {
    match resource {
        "ingresses" => {
            table!([NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE], |o, now| {
                let rules = o.list("spec.rules");
                let hosts: Vec<&str> =
                    rules.iter().map(|r| r.text("host")).filter(|h| !h.is_empty()).collect();
                let hosts = match hosts.len() {
                    0 => "*".to_owned(),
                    1..=3 => hosts.join(","),
                    _ => format!("{} + {} more...", hosts[..3].join(","), rules.len() - 3),
                };
                let ports = if o.list("spec.tls").is_empty() { "80" } else { "80, 443" };
                vec![
                    name(o),
                    shown(o, "spec.ingressClassName", "<none>"),
                    hosts.into(),
                    balanced(o).join(",").into(),
                    ports.into(),
                    age(o, now),
                ]
            })
        }
        "ingressclasses" => table!([NAME, text("Controller"), text("Parameters"), AGE], |o, now| {
            let parameters = match o.at("spec.parameters") {
                Value::Null => "<none>".to_owned(),
                p => {
                    let dot = if p.has("apiGroup") { "." } else { "" };
                    format!("{}{dot}{}/{}", p.text("kind"), p.text("apiGroup"), p.text("name"))
                }
            };
            vec![
                is_default_class(o, &["ingressclass.kubernetes.io/is-default-class"]),
                o.text("spec.controller").into(),
                parameters.into(),
                age(o, now),
            ]
        }),
        "networkpolicies" => table!([NAME, text("Pod-Selector"), AGE], |o, now| {
            vec![name(o), labels(o.at("spec.podSelector")), age(o, now)]
        }),
        "servicecidrs" => table!([NAME, text("CIDRs"), AGE], |o, now| {
            let cidrs: Vec<&str> = o.list("spec.cidrs").iter().filter_map(Value::as_str).collect();
            vec![name(o), cidrs.join(",").into(), age(o, now)]
        }),
        "ipaddresses" => table!([NAME, text("ParentRef")], |o, _| {
            let parent = match o.at("spec.parentRef") {
                Value::Null => "<none>".to_owned(),
                p => {
                    let group = p.text("group");
                    let dot = if group.is_empty() { "" } else { "." };
                    let mut text = format!("{}{dot}{group}", p.text("resource"));
                    for part in [p.text("namespace"), p.text("name")] {
                        if !part.is_empty() {
                            text = format!("{text}/{part}");
                        }
                    }
                    text
                }
            };
            vec![name(o), parent.into()]
        }),
        "endpointslices" => {
            table!([NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE], |o, now| {
                let ports: Vec<String> = o
                    .list("ports")
                    .iter()
                    .map(|p| match p.maybe_int("port") {
                        Some(port) => port.to_string(),
                        None => p.at("name").as_str().unwrap_or("*").to_owned(),
                    })
                    .collect();
                let addresses: Vec<String> = o
                    .list("endpoints")
                    .iter()
                    .flat_map(|e| e.list("addresses"))
                    .filter_map(|a| a.as_str().map(str::to_owned))
                    .collect();
                let unset = |items: &[String]| -> Value {
                    if items.is_empty() { "<unset>".into() } else { first_three(items).into() }
                };
                vec![name(o), o.text("addressType").into(), unset(&ports), unset(&addresses), age(o, now)]
            })
        }
        _ => any(),
    }
}

fn storage(resource: &str) -> &'static Table {
    match resource {
        "storageclasses" => table!(
            [
                NAME,
                text("Provisioner"),
                text("ReclaimPolicy"),
                text("VolumeBindingMode"),
                text("AllowVolumeExpansion"),
                AGE
            ],
            |o, now| vec![
                is_default_class(
                    o,
                    &[
                        "storageclass.kubernetes.io/is-default-class",
                        "storageclass.beta.kubernetes.io/is-default-class"
                    ]
                ),
                o.text("provisioner").into(),
                shown(o, "reclaimPolicy", "Delete"),
                shown(o, "volumeBindingMode", "Immediate"),
                o.flag("allowVolumeExpansion").into(),
                age(o, now),
            ]
        ),
        "volumeattributesclasses" => table!([NAME, text("DriverName"), AGE], |o, now| {
            let name = is_default_class(o, &["volumeattributesclass.beta.kubernetes.io/is-default-class"]);
            vec![name, o.text("driverName").into(), age(o, now)]
        }),
        "csinodes" => table!([NAME, number("Drivers"), AGE], |o, now| {
            vec![name(o), o.list("spec.drivers").len().into(), age(o, now)]
        }),
        "csidrivers" => table!(
            [
                NAME,
                flag("AttachRequired"),
                flag("PodInfoOnMount"),
                flag("StorageCapacity"),
                text("TokenRequests"),
                flag("RequiresRepublish"),
                text("Modes"),
                AGE
            ],
            |o, now| {
                let tokens = match o.at("spec.tokenRequests") {
                    Value::Null => "<unset>".to_owned(),
                    _ => {
                        let all: Vec<&str> =
                            o.list("spec.tokenRequests").iter().map(|t| t.text("audience")).collect();
                        all.join(",")
                    }
                };
                let modes: Vec<&str> =
                    o.list("spec.volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
                vec![
                    name(o),
                    o.at("spec.attachRequired").as_bool().unwrap_or(true).into(),
                    o.flag("spec.podInfoOnMount").into(),
                    o.flag("spec.storageCapacity").into(),
                    tokens.into(),
                    o.flag("spec.requiresRepublish").into(),
                    or(&modes.join(","), "<none>").into(),
                    age(o, now),
                ]
            }
        ),
        "volumeattachments" => table!(
            [
                NAME,
                Column { format: "name", ..text("Attacher") },
                text("PV"),
                text("Node"),
                flag("Attached"),
                AGE
            ],
            |o, now| vec![
                name(o),
                o.text("spec.attacher").into(),
                o.text("spec.source.persistentVolumeName").into(),
                o.text("spec.nodeName").into(),
                o.flag("status.attached").into(),
                age(o, now),
            ]
        ),
        _ => any(),
    }
}

fn param_kind(o: &Value) -> Value {
    match o.at("spec.paramKind") {
        Value::Null => "<unset>".into(),
        kind => format!("{}/{}", kind.text("apiVersion"), kind.text("kind")).into(),
    }
}

fn policy_binding(o: &Value, now: Timestamp) -> Vec<Value> {
    let reference = match o.at("spec.paramRef") {
        Value::Null => "<unset>".to_owned(),
        r if r.has("selector") => selector_text(r.at("selector")),
        r => match r.text("namespace") {
            "" => format!("*/{}", r.text("name")),
            namespace => format!("{namespace}/{}", r.text("name")),
        },
    };
    vec![name(o), o.text("spec.policyName").into(), reference.into(), age(o, now)]
}

fn admission(resource: &str) -> &'static Table {
    match resource {
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            table!([NAME, number("Webhooks"), AGE], |o, now| {
                vec![name(o), o.list("webhooks").len().into(), age(o, now)]
            })
        }
        "validatingadmissionpolicies" => {
            table!([NAME, number("Validations"), text("ParamKind"), AGE], |o, now| {
                vec![name(o), o.list("spec.validations").len().into(), param_kind(o), age(o, now)]
            })
        }
        "mutatingadmissionpolicies" => {
            table!([NAME, number("Mutations"), text("ParamKind"), AGE], |o, now| {
                vec![name(o), o.list("spec.mutations").len().into(), param_kind(o), age(o, now)]
            })
        }
        "validatingadmissionpolicybindings" | "mutatingadmissionpolicybindings" => {
            table!([NAME, text("PolicyName"), text("ParamRef"), AGE], policy_binding)
        }
        _ => any(),
    }
}

fn resources(resource: &str) -> &'static Table {
    match resource {
        "deviceclasses" | "resourceclaimtemplates" => {
            table!([NAME, AGE], |o, now| vec![name(o), age(o, now)])
        }
        "resourceclaims" => table!([NAME, text("State"), AGE], |o, now| {
            let mut states = vec![];
            if o.has("metadata.deletionTimestamp") {
                states.push("deleted");
            }
            if !o.has("status.allocation") {
                if !o.has("metadata.deletionTimestamp") {
                    states.push("pending");
                }
            } else {
                states.push("allocated");
                if !o.list("status.reservedFor").is_empty() {
                    states.push("reserved");
                }
            }
            vec![name(o), states.join(",").into(), age(o, now)]
        }),
        "resourceslices" => table!([NAME, text("Node"), text("Driver"), text("Pool"), AGE], |o, now| {
            vec![
                name(o),
                o.text("spec.nodeName").into(),
                o.text("spec.driver").into(),
                o.text("spec.pool.name").into(),
                age(o, now),
            ]
        }),
        _ => any(),
    }
}

fn others(group: &str, resource: &str) -> &'static Table {
    match (group, resource) {
        ("policy", "poddisruptionbudgets") => table!(
            [NAME, text("Min Available"), text("Max Unavailable"), number("Allowed Disruptions"), AGE],
            |o, now| vec![
                name(o),
                shown(o, "spec.minAvailable", "N/A"),
                shown(o, "spec.maxUnavailable", "N/A"),
                int(o, "status.disruptionsAllowed"),
                age(o, now),
            ]
        ),
        ("autoscaling", "horizontalpodautoscalers") => table!(
            [
                NAME,
                text("Reference"),
                text("Targets"),
                text("MinPods"),
                text("MaxPods"),
                text("Replicas"),
                AGE
            ],
            autoscaler
        ),
        ("certificates.k8s.io", "certificatesigningrequests") => table!(
            [NAME, AGE, text("SignerName"), text("Requestor"), text("RequestedDuration"), text("Condition")],
            signing_request
        ),
        ("certificates.k8s.io", "clustertrustbundles") => table!([NAME, text("SignerName")], |o, _| {
            vec![name(o), or(o.text("spec.signerName"), "<none>").into()]
        }),
        ("coordination.k8s.io", "leases") => table!([NAME, text("Holder"), AGE], |o, now| {
            vec![name(o), o.text("spec.holderIdentity").into(), age(o, now)]
        }),
        ("coordination.k8s.io", "leasecandidates") => table!(
            [NAME, text("LeaseName"), text("BinaryVersion"), text("EmulationVersion"), AGE],
            |o, now| vec![
                name(o),
                o.text("spec.leaseName").into(),
                o.text("spec.binaryVersion").into(),
                o.text("spec.emulationVersion").into(),
                age(o, now),
            ]
        ),
        ("scheduling.k8s.io", "priorityclasses") => table!(
            [NAME, number("Value"), flag("Global-Default"), AGE, text("PreemptionPolicy")],
            |o, now| vec![
                name(o),
                int(o, "value"),
                o.flag("globalDefault").into(),
                age(o, now),
                o.text("preemptionPolicy").into(),
            ]
        ),
        ("node.k8s.io", "runtimeclasses") => table!([NAME, text("Handler"), AGE], |o, now| {
            vec![name(o), o.text("handler").into(), age(o, now)]
        }),
        ("apiregistration.k8s.io", "apiservices") => {
            table!([NAME, text("Service"), text("Available"), AGE], |o, now| {
                let service = match o.at("spec.service") {
                    Value::Null => "Local".to_owned(),
                    s => format!("{}/{}", s.text("namespace"), s.text("name")),
                };
                let available = o.list("status.conditions").iter().find(|c| c.text("type") == "Available");
                let available = match available {
                    None => "Unknown".to_owned(),
                    Some(c) if c.text("status") == "True" => "True".to_owned(),
                    Some(c) => format!("{} ({})", c.text("status"), c.text("reason")),
                };
                vec![name(o), service.into(), available.into(), age(o, now)]
            })
        }
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => table!(
            [
                NAME,
                text("PriorityLevel"),
                text("MatchingPrecedence"),
                text("DistinguisherMethod"),
                AGE,
                text("MissingPL")
            ],
            |o, now| {
                let dangling = o.list("status.conditions").iter().find(|c| c.text("type") == "Dangling");
                vec![
                    name(o),
                    o.text("spec.priorityLevelConfiguration.name").into(),
                    int(o, "spec.matchingPrecedence"),
                    shown(o, "spec.distinguisherMethod.type", "<none>"),
                    age(o, now),
                    dangling.map_or("?", |c| c.text("status")).into(),
                ]
            }
        ),
        ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => table!(
            [
                NAME,
                text("Type"),
                text("NominalConcurrencyShares"),
                text("Queues"),
                text("HandSize"),
                text("QueueLengthLimit"),
                AGE
            ],
            |o, now| {
                let of = |path: &str| match o.at(path) {
                    Value::Null => Value::from("<none>"),
                    value => value.clone(),
                };
                vec![
                    name(o),
                    o.text("spec.type").into(),
                    of("spec.limited.nominalConcurrencyShares"),
                    of("spec.limited.limitResponse.queuing.queues"),
                    of("spec.limited.limitResponse.queuing.handSize"),
                    of("spec.limited.limitResponse.queuing.queueLengthLimit"),
                    age(o, now),
                ]
            }
        ),
        _ => any(),
    }
}

fn autoscaler(o: &Value, now: Timestamp) -> Vec<Value> {
    let reference = format!("{}/{}", o.text("spec.scaleTargetRef.kind"), o.text("spec.scaleTargetRef.name"));
    vec![
        name(o),
        reference.into(),
        metrics(o).into(),
        shown(o, "spec.minReplicas", "<unset>"),
        int(o, "spec.maxReplicas"),
        int(o, "status.currentReplicas"),
        age(o, now),
    ]
}

/// `current/target` of each metric, at most two.
fn metrics(o: &Value) -> String {
    const SHOWN: usize = 2;
    let specs = o.list("spec.metrics");
    let statuses = o.list("status.currentMetrics");
    let mut all = vec![];
    for (i, spec) in specs.iter().enumerate() {
        let (member, named) = match spec.text("type") {
            "Resource" => ("resource", true),
            "ContainerResource" => ("containerResource", true),
            "Pods" => ("pods", false),
            "Object" => ("object", false),
            "External" => ("external", false),
            _ => {
                all.push("<unknown type>".to_owned());
                continue;
            }
        };
        let target = spec.at(member).at("target");
        let current = statuses.get(i).map(|s| s.at(member).at("current"));
        let quantity_of = |name: &str| match current {
            Some(c) if c.has(name) => amount(c.get_or_null(name)),
            _ => "<unknown>".to_owned(),
        };
        let percent =
            |v: Option<&Value>, otherwise: &str| match v.and_then(|v| v.maybe_int("averageUtilization")) {
                Some(n) => format!("{n}%"),
                None => otherwise.to_owned(),
            };
        let text = if target.has("averageValue") {
            let text = format!("{}/{}", quantity_of("averageValue"), amount(target.at("averageValue")));
            if matches!(member, "object" | "external") { format!("{text} (avg)") } else { text }
        } else if named {
            format!("{}/{}", percent(current, "<unknown>"), percent(Some(target), "<auto>"))
        } else {
            format!("{}/{}", quantity_of("value"), amount(target.at("value")))
        };
        all.push(if named { format!("{}: {text}", spec.at(member).text("name")) } else { text });
    }
    match all.len() {
        0 => "<none>".to_owned(),
        n if n > SHOWN => format!("{} + {} more...", all[..SHOWN].join(", "), n - SHOWN),
        _ => all.join(", "),
    }
}

fn signing_request(o: &Value, now: Timestamp) -> Vec<Value> {
    let has = |kind: &str| o.list("status.conditions").iter().any(|c| c.text("type") == kind);
    let mut status = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !o.text("status.certificate").is_empty() {
        status.push_str(",Issued");
    }
    let duration = match o.maybe_int("spec.expirationSeconds").and_then(|s| u64::try_from(s).ok()) {
        Some(seconds) => apimachinery::duration::human(std::time::Duration::from_secs(seconds)),
        None => "<none>".to_owned(),
    };
    vec![
        name(o),
        age(o, now),
        or(o.text("spec.signerName"), "<none>").into(),
        o.text("spec.username").into(),
        duration.into(),
        status.into(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cell_for_each_column() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        for rules in crate::groups::ALL.iter().flat_map(|g| g.iter()) {
            let table = find(rules.group, rules.resource);
            let cells = (table.cells)(&json!({"metadata": {"name": "x"}}), now);
            assert_eq!(cells.len(), table.columns.len(), "{}/{}", rules.group, rules.resource);
        }
    }

    #[test]
    fn rows() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let meta = json!({"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"node-role.kubernetes.io/control-plane": ""}});
        for (group, resource, object, want) in [
            (
                "",
                "services",
                json!({"spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"], "selector": {"a": "b"},
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
                json!(["x", "NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP", "60m", "a=b"]),
            ),
            (
                "",
                "nodes",
                json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                    "nodeInfo": {"kubeletVersion": "v1.36.2", "kernelVersion": "6.1", "architecture": "amd64"}}}),
                json!([
                    "x",
                    "Ready,SchedulingDisabled",
                    "control-plane",
                    "60m",
                    "v1.36.2",
                    "1.2.3.4",
                    "<none>",
                    "<unknown>",
                    "6.1 (amd64)",
                    "<unknown>"
                ]),
            ),
            (
                "apps",
                "deployments",
                json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec":
                    {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}},
                    "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
                json!(["x", "2/3", 3, 2, "60m", "c,d", "i,j", "a=b"]),
            ),
            (
                "batch",
                "jobs",
                json!({"spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:59:30Z"}}),
                json!(["x", "Running", "1/2", "30s", "60m", "", "", "<none>"]),
            ),
            ("rbac.authorization.k8s.io", "clusterroles", json!({}), json!(["x", "2026-01-01T00:00:00Z"])),
            (
                "autoscaling",
                "horizontalpodautoscalers",
                json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5, "minReplicas": 1,
                    "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}}),
                json!(["x", "Deployment/d", "cpu: <unknown>/80%", "1", 5, 0, "60m"]),
            ),
            (
                "",
                "endpoints",
                json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}], "ports": [{"port": 80}, {"port": 81}]}]}),
                json!(["x", "1.1.1.1:80,1.1.1.2:80,1.1.1.1:81 + 1 more...", "60m"]),
            ),
        ] {
            let mut object = object;
            object["metadata"] = meta.clone();
            assert_eq!(Value::from((find(group, resource).cells)(&object, now)), want, "{resource}");
        }
    }
}
