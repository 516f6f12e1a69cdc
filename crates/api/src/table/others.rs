//! Rows of the other groups.

use jiff::Timestamp;
use serde_json::Value;

use super::rows::{AGE, NAME, amount, any, first_three, flag, int, labels, number, shown, table, text};
use super::{Column, Table, age, name, or};
use crate::scale::selector_text;
use crate::value::Read;

pub(super) fn binding(o: &Value, now: Timestamp) -> Vec<Value> {
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

pub(super) fn networking(resource: &str) -> &'static Table {
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
                    super::core::balanced(o).join(",").into(),
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
        // Upstream shows the age without a column for it.
        "ipaddresses" => table!([NAME, text("ParentRef")], |o, now| {
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
            vec![name(o), parent.into(), age(o, now)]
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

pub(super) fn storage(resource: &str) -> &'static Table {
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

pub(super) fn admission(resource: &str) -> &'static Table {
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

pub(super) fn resources(resource: &str) -> &'static Table {
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

pub(super) fn find(group: &str, resource: &str) -> &'static Table {
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
