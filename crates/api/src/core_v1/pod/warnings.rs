//! Advice about pods and their templates: what is allowed, and likely not what was meant.

use std::collections::HashMap;

use serde_json::Value;

use crate::check;
use crate::path::Path;
use crate::value::{Read, quantity};

/// Labels of nodes that have other names by now.
const NODE_LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

const ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

const VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
const NO_POD: &str = "a null labelSelector results in matching no pod";

/// Advice at a pod's creation; those who change pods are programs.
pub fn of_pod(pod: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return vec![];
    }
    let mut out = vec![];
    name(&mut out, pod, "the Pod's hostname");
    out.extend(of_template(pod, &Path::ROOT));
    out
}

/// Advice about a workload whose pods are made of the template there, at its creation and when its spec changes.
/// `names_pods` says that pods get its name.
pub fn of_workload(object: &Value, old: Option<&Value>, template: &str, names_pods: bool) -> Vec<String> {
    let mut out = vec![];
    match old {
        None if names_pods => name(&mut out, object, "Pod names and hostnames"),
        None => {}
        Some(old) if object.int("metadata.generation") == old.int("metadata.generation") => return out,
        Some(_) => {}
    }
    out.extend(of_template(object.at(template), &Path::new(template)));
    out
}

fn name(out: &mut Vec<String>, object: &Value, what: &str) {
    let messages = check::dns1123_label(object.text("metadata.name"));
    if !messages.is_empty() {
        out.push(format!(
            "metadata.name: this is used in {what}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            messages.join(" ")
        ));
    }
}

pub(crate) fn node_label(key: &str) -> Option<&'static str> {
    NODE_LABELS.iter().find(|(label, _)| *label == key).map(|(_, why)| *why)
}

/// Containers in the order they are looked at.
fn containers<'a>(spec: &'a Value, path: &'a Path<'a>, mut each: impl FnMut(&'a Value, &Path<'_>)) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let at = path.child(list);
        for (i, container) in spec.list(list).iter().enumerate() {
            each(container, &at.index(i));
        }
    }
}

/// What there is to say about metadata and spec of a pod or template at `path`.
fn of_template(template: &Value, root: &Path<'_>) -> Vec<String> {
    let mut out = vec![];
    let (spec, path) = (template.at("spec"), root.child("spec"));
    let (metadata, annotations) = (root.child("metadata"), template.at("metadata.annotations"));
    let annotations_path = metadata.child("annotations");
    let is_pod = root.to_string().is_empty();
    labels(&mut out, spec, &path);
    for (key, why) in ANNOTATIONS.iter().filter(|(key, _)| annotations.get(key).is_some()) {
        out.push(format!("{}: {why}", annotations_path.key(key)));
    }
    let volumes = path.child("volumes");
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        for (kind, why) in VOLUMES.iter().filter(|(kind, _)| volume.has(kind)) {
            let kind = if *kind == "storageos" { "storageOS" } else { kind };
            out.push(format!("{}: {why}", volumes.index(i).child(kind)));
        }
    }
    for volume in spec.list("volumes") {
        for source in volume.list("projected.sources") {
            let kinds = [
                "secret",
                "downwardAPI",
                "configMap",
                "serviceAccountToken",
                "clusterTrustBundle",
                "podCertificate",
            ];
            if !kinds.iter().any(|kind| source.has(kind)) {
                out.push(format!("volume {:?} (Projected) has no sources provided", volume.text("name")));
            }
        }
    }
    for (list, member, what) in [("hostAliases", "ip", "ip"), ("imagePullSecrets", "name", "name")] {
        let at = path.child(list);
        let all = spec.list(list);
        for (i, item) in all.iter().enumerate() {
            let value = item.text(member);
            if all[..i].iter().any(|other| other.text(member) == value) {
                out.push(format!("{}: duplicate {what} {value:?}", at.index(i).child(member)));
            }
        }
    }
    let secrets = path.child("imagePullSecrets");
    for (i, _) in spec.list("imagePullSecrets").iter().enumerate().filter(|(_, s)| s.text("name").is_empty())
    {
        out.push(format!("{}: invalid empty name \"\"", secrets.index(i).child("name")));
    }
    fractions(&mut out, spec.at("overhead"), &path.child("overhead"));
    let seccomp = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    if !spec.has("securityContext.seccompProfile") && annotations.get(SECCOMP_POD).is_some() {
        out.push(format!("{}: {seccomp}", annotations_path.key(SECCOMP_POD)));
    }
    containers(spec, &path, |container, path| {
        let name = container.text("name");
        let key = format!("{SECCOMP_CONTAINER}{name}");
        if !container.has("securityContext.seccompProfile") && annotations.get(&key).is_some() {
            out.push(format!("{}: {seccomp}", annotations_path.key(&key)));
        }
        let key = format!("{APPARMOR_CONTAINER}{name}");
        let has_field =
            container.has("securityContext.appArmorProfile") || spec.has("securityContext.appArmorProfile");
        if !is_pod && !has_field && annotations.get(&key).is_some() {
            let why = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
            out.push(format!("{}: {why}", annotations_path.key(&key)));
        }
        let resources = path.child("resources");
        for kind in ["limits", "requests"] {
            fractions(&mut out, container.at("resources").at(kind), &resources.child(kind));
        }
        variables(&mut out, container.list("env"), &path.child("env"));
    });
    ports(&mut out, spec, &path);
    if spec.has("terminationGracePeriodSeconds") && spec.int("terminationGracePeriodSeconds") < 0 {
        out.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    let affinity = path.child("affinity");
    for kind in ["podAffinity", "podAntiAffinity"] {
        let at = affinity.child(kind);
        for (list, inner) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm"),
        ] {
            let at = at.child(list);
            for (i, term) in spec.at("affinity").at(kind).list(list).iter().enumerate() {
                let (term, dot) = match inner {
                    "" => (term, ""),
                    inner => (term.at(inner), "."),
                };
                if !term.has("labelSelector") {
                    out.push(format!("{}{dot}{inner}.labelSelector: {NO_POD}", at.index(i)));
                }
            }
        }
    }
    out
}

/// Deprecated labels in the expressions of a term that selects nodes.
pub(crate) fn node_labels_of_term(out: &mut Vec<String>, term: &Value, path: &Path<'_>) {
    let path = path.child("matchExpressions");
    for (i, expression) in term.list("matchExpressions").iter().enumerate() {
        let key = expression.text("key");
        if let Some(why) = node_label(key) {
            out.push(format!("{}: {key} is {why}", path.index(i).child("key")));
        }
    }
}

/// Where nodes are chosen by labels.
fn labels(out: &mut Vec<String>, spec: &Value, path: &Path<'_>) {
    let selector = path.child("nodeSelector");
    for (key, _) in spec.entries("nodeSelector") {
        if let Some(why) = node_label(key) {
            out.push(format!("{}: {why}", selector.key(key)));
        }
    }
    let affinity = path.child("affinity");
    let node = affinity.child("nodeAffinity");
    let mut terms = |list: &[Value], path: &Path<'_>, inner: &str| {
        for (i, term) in list.iter().enumerate() {
            let at = path.index(i);
            match inner {
                "" => node_labels_of_term(out, term, &at),
                inner => node_labels_of_term(out, term.at(inner), &at.child(inner)),
            }
        }
    };
    let required = node.child("requiredDuringSchedulingIgnoredDuringExecution");
    let given = spec.at("affinity.nodeAffinity");
    let list = given.list("requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
    terms(list, &required.child("nodeSelectorTerms"), "");
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    terms(given.list(preferred), &node.child(preferred), "preference");
    let spread = path.child("topologySpreadConstraints");
    for (i, constraint) in spec.list("topologySpreadConstraints").iter().enumerate() {
        let key = constraint.text("topologyKey");
        if let Some(why) = node_label(key) {
            out.push(format!("{}: {key} is {why}", spread.index(i).child("topologyKey")));
        }
        if !constraint.has("labelSelector") {
            out.push(format!("{}: {NO_POD}", spread.index(i).child("labelSelector")));
        }
    }
}

/// Parts of bytes.
fn fractions(out: &mut Vec<String>, amounts: &Value, path: &Path<'_>) {
    for resource in ["memory", "ephemeral-storage"] {
        let value = amounts.get_or_null(resource);
        if quantity(value).is_some_and(|q| !q.is_whole()) {
            let value = value.as_str().unwrap_or_default();
            out.push(format!(
                "{}: fractional byte value {value:?} is invalid, must be an integer",
                path.key(resource)
            ));
        }
    }
}

/// Variables that are set twice, unless the second one builds on the first.
fn variables(out: &mut Vec<String>, list: &[Value], path: &Path<'_>) {
    for (i, variable) in list.iter().enumerate() {
        let (name, value) = (variable.text("name"), variable.text("value"));
        if !list[..i].iter().any(|other| other.text("name") == name) {
            continue;
        }
        let reference = format!("$({name})");
        if variable.has("valueFrom") || value == reference || !value.contains(&reference) {
            out.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.index(i)
            ));
        }
    }
}

/// Ports that are said twice, in one container or several.
fn ports(out: &mut Vec<String>, spec: &Value, path: &Path<'_>) {
    let mut seen: HashMap<(i64, String), Vec<(String, String, i64)>> = HashMap::new();
    containers(spec, path, |container, path| {
        let at = path.child("ports");
        for (i, port) in container.list("ports").iter().enumerate() {
            let (host_ip, host_port) = (port.text("hostIP"), port.int("hostPort"));
            let (number, protocol) = (port.int("containerPort"), port.text("protocol"));
            let here = at.index(i).to_string();
            if !host_ip.is_empty() && host_port == 0 {
                out.push(format!(
                    "{here}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{number} \
                     Protocol:{protocol} HostIP:{host_ip}}}",
                    port.text("name")
                ));
            }
            let others = seen.entry((number, protocol.to_owned())).or_default();
            for (there, other_ip, other_port) in others.iter() {
                let what = if host_ip == other_ip && host_port == *other_port {
                    "duplicate"
                } else if host_port == 0 || *other_port == 0 {
                    "overlapping"
                } else if host_port == *other_port && host_ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{here}: {what} port definition with {there}"));
            }
            others.push((here, host_ip.to_owned(), host_port));
        }
    });
    let mut names: HashMap<String, String> = HashMap::new();
    containers(spec, path, |container, path| {
        let at = path.child("ports");
        for (i, port) in container.list("ports").iter().enumerate() {
            let (name, here) = (port.text("name"), at.index(i).to_string());
            if name.is_empty() {
                continue;
            }
            match names.get(name) {
                Some(there) => out.push(format!(
                    "{here}: duplicate port name {name:?} with {there}, services and probes that select ports by name \
                     will use {there}"
                )),
                None => drop(names.insert(name.to_owned(), here)),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn advice_about_pods() {
        let spec = |spec: Value| json!({"metadata": {"name": "p"}, "spec": spec});
        let container = |more: Value| {
            let mut container = json!({"name": "c", "image": "i"});
            for (name, value) in more.as_object().unwrap() {
                container[name] = value.clone();
            }
            spec(json!({"containers": [container]}))
        };
        for (pod, want) in [
            (
                spec(json!({"imagePullSecrets": [{}]})),
                "spec.imagePullSecrets[0].name: invalid empty name \"\"",
            ),
            (
                container(
                    json!({"ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}]}),
                ),
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
            ),
            (
                container(json!({"ports": [{"containerPort": 80, "protocol": "TCP", "hostIP": "x"}]})),
                "spec.containers[0].ports[0]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:80 Protocol:TCP HostIP:x}",
            ),
            (
                spec(json!({"volumes": [{"name": "v", "projected": {"sources": [{}]}}]})),
                "volume \"v\" (Projected) has no sources provided",
            ),
            (
                spec(
                    json!({"topologySpreadConstraints": [{"topologyKey": "z"}], "volumes": [{"name": "v", "rbd": {}}]}),
                ),
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod|spec.volumes[0].rbd: deprecated in v1.28, non-functional in v1.31+",
            ),
            (
                spec(json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}})),
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            ),
            (
                container(
                    json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}, {"name": "A", "value": "3"}]}),
                ),
                "spec.containers[0].env[2]: hides previous definition of \"A\", which may be dropped when using apply",
            ),
            (
                spec(
                    json!({"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"podAffinityTerm": {}}]}}}),
                ),
                "spec.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
            ),
            (
                container(json!({"resources": {"requests": {"memory": "100m"}}})),
                "spec.containers[0].resources.requests[memory]: fractional byte value \"100m\" is invalid, must be an integer",
            ),
        ] {
            assert_eq!(of_pod(&pod, None).join("|"), want, "{pod}");
            assert!(of_pod(&pod, Some(&pod)).is_empty());
        }
    }

    #[test]
    fn advice_about_workloads() {
        let deployment = |generation: i64| {
            json!({"metadata": {"name": "a.b", "generation": generation},
                "spec": {"template": {"spec": {"imagePullSecrets": [{"name": "s"}, {"name": "s"}], "containers": []}}}})
        };
        let (one, two) = (deployment(1), deployment(2));
        let made = of_workload(&one, None, "spec.template", true);
        let twice = "spec.template.spec.imagePullSecrets[1].name: duplicate name \"s\"";
        assert!(made[0].starts_with("metadata.name: this is used in Pod names and hostnames"), "{made:?}");
        assert_eq!(made[1..], [twice]);
        assert_eq!(of_workload(&two, Some(&one), "spec.template", true), [twice]);
        assert!(of_workload(&one, Some(&one), "spec.template", true).is_empty());
    }
}
