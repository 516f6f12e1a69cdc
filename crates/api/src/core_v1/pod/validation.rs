//! Whether a pod makes sense, and what may change while it lives.

use serde_json::{Value, json};

use super::container::{self, Context};
use super::{scheduling, volume};
use crate::check::{self, Report};
use crate::core_v1::resources;
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

pub(super) const MAX_DEADLINE: i64 = i32::MAX as i64;
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

pub fn create(pod: &Value) -> Errors {
    let mut errors = metadata_and_spec(pod);
    let path = Path::new("spec");
    let spec = pod.at("spec");
    if !spec.list("ephemeralContainers").is_empty() {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.text("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
        errors
            .forbidden(&path.child("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
    errors
}

pub(super) fn metadata_and_spec(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = pod.at("spec");
    annotations(&mut errors, pod);
    self::spec(&mut errors, spec, pod.text("metadata.name"), true, &path);
    if spec.text("serviceAccountName").is_empty() {
        for (i, volume) in spec.list("volumes").iter().enumerate() {
            for (j, source) in volume.list("projected.sources").iter().enumerate() {
                if source.has("serviceAccountToken") {
                    let volumes = path.child("volumes");
                    let volume = volumes.index(i);
                    errors.forbidden(
                        &volume.child("projected").child("sources").index(j).child("serviceAccountToken"),
                        "must not be specified when serviceAccountName is not set",
                    );
                }
            }
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in spec.list(list).iter().enumerate() {
            let image = container.text("image");
            if image.trim() != image {
                errors.invalid(
                    &path.child(list).index(i).child("image"),
                    image,
                    "must not have leading or trailing whitespace",
                );
            }
        }
    }
    errors
}

pub(super) fn annotations(errors: &mut Errors, pod: &Value) {
    let annotations = pod.at("metadata.annotations");
    let metadata = Path::new("metadata");
    let path = metadata.child("annotations");
    if let Some(value) = annotations.get(MIRROR)
        && pod.text("spec.nodeName").is_empty()
    {
        errors.invalid(
            &path.key(MIRROR),
            value.clone(),
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(cost) = annotations.get(COST).and_then(Value::as_str) {
        let plain = cost == "0" || !cost.trim_start_matches('-').starts_with('0');
        if !plain || cost.starts_with('+') || cost.parse::<i32>().is_err() {
            errors.invalid(&path.key(COST), cost, "must be a 32bit integer");
        }
    }
}

/// The spec of a pod, or (`is_pod` false) of a template.
pub fn spec(errors: &mut Errors, spec: &Value, pod_name: &str, is_pod: bool, path: &Path<'_>) {
    let grace_period = spec.maybe_int("terminationGracePeriodSeconds");
    if grace_period.is_none() {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let host_users = spec.at("hostUsers").as_bool().unwrap_or(true);
    let volumes = volume::validate(errors, spec.list("volumes"), pod_name, is_pod, &path.child("volumes"));
    let context = Context {
        volumes,
        claims: spec.list("resourceClaims").iter().map(|c| c.text("name")).collect(),
        restart_policy: spec.text("restartPolicy"),
        grace_period,
        host_users,
    };
    resource_claims(errors, spec, &path.child("resourceClaims"));
    let containers = spec.list("containers");
    container::regular(errors, containers, &context, &path.child("containers"));
    container::init(errors, spec.list("initContainers"), containers, &context, &path.child("initContainers"));
    container::ephemeral(errors, spec, &context, &path.child("ephemeralContainers"));
    file_volumes(errors, spec, path);
    pod_resources(errors, spec, path);
    if spec.flag("hostNetwork") {
        for (i, container) in containers.iter().enumerate() {
            for (j, port) in container.list("ports").iter().enumerate() {
                let (host, own) = (port.int("hostPort"), port.int("containerPort"));
                if (is_pod || host != 0) && host != own {
                    let list = path.child("containers");
                    let container = list.index(i);
                    errors.invalid(
                        &container.child("ports").index(j).child("hostPort"),
                        host,
                        "must match `containerPort` when `hostNetwork` is true",
                    );
                }
            }
        }
    }
    container::choice(errors, spec, "restartPolicy", &["Always", "OnFailure", "Never"], path);
    container::choice(
        errors,
        spec,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        path,
    );
    meta::labels(errors, spec.at("nodeSelector"), &path.child("nodeSelector"));
    security(errors, spec, &path.child("securityContext"));
    scheduling::affinity(errors, spec.at("affinity"), &path.child("affinity"));
    dns(errors, spec, &path.child("dnsConfig"));
    for (i, gate) in spec.list("readinessGates").iter().enumerate() {
        let name = gate.text("conditionType");
        let list = path.child("readinessGates");
        errors.invalid_each(&list.index(i).child("conditionType"), name, check::qualified_name(name));
    }
    let mut gates: Vec<&str> = vec![];
    for (i, gate) in spec.list("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        let list = path.child("schedulingGates");
        errors.invalid_each(&list.index(i), name, check::qualified_name(name));
        if gates.contains(&name) {
            errors.duplicate(&list.index(i), name);
        }
        gates.push(name);
    }
    scheduling::spread(
        errors,
        spec.list("topologySpreadConstraints"),
        &path.child("topologySpreadConstraints"),
    );
    if !host_users {
        for (name, shown) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
        {
            if spec.flag(name) {
                errors.forbidden(&path.child(shown), "when `hostUsers` is false");
            }
        }
        for list in ["initContainers", "containers"] {
            let list_path = path.child(list);
            for (i, container) in spec.list(list).iter().enumerate() {
                if !container.list("volumeDevices").is_empty() {
                    let path = list_path.index(i);
                    errors.forbidden(&path.child("volumeDevices"), "when `hostUsers` is false");
                }
            }
        }
    }
    names(errors, spec, path);
    if let Some(deadline) = spec.maybe_int("activeDeadlineSeconds")
        && !(1..=MAX_DEADLINE).contains(&deadline)
    {
        errors.invalid(
            &path.child("activeDeadlineSeconds"),
            deadline,
            format!("must be between 1 and {MAX_DEADLINE}, inclusive"),
        );
    }
    scheduling::tolerations(errors, spec.list("tolerations"), &path.child("tolerations"));
    for (i, alias) in spec.list("hostAliases").iter().enumerate() {
        let list = path.child("hostAliases");
        let path = list.index(i);
        ip(errors, alias.text("ip"), &path.child("ip"));
        for (j, name) in alias.list("hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.invalid_each(&path.child("hostnames").index(j), name, check::dns1123_subdomain(name));
        }
    }
    if spec.has("preemptionPolicy") {
        container::choice(errors, spec, "preemptionPolicy", &["PreemptLowerPriority", "Never"], path);
    }
    if spec.has("overhead") {
        let overhead = json!({"limits": spec.at("overhead")});
        resources::requirements(errors, &overhead, &[], false, &path.child("overhead"));
    }
    host_process(errors, spec, path);
    if spec.has("os") {
        match spec.text("os.name") {
            "" => errors.required(&path.child("os").child("name"), ""),
            "linux" => not_of_system(errors, spec, path, &[], &["windowsOptions"], LINUX),
            "windows" => {
                for name in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
                    if spec.has(name) {
                        errors.forbidden(&path.child(name), WINDOWS);
                    }
                }
                not_of_system(errors, spec, path, &OF_LINUX_PODS, &OF_LINUX_CONTAINERS, WINDOWS);
                if spec.has("resources") {
                    errors.forbidden(&path.child("resources"), "may not be set for a windows pod");
                }
            }
            name => errors.one_of(&path.child("os"), name, &["linux", "windows"]),
        }
    }
}

const LINUX: &str = "windows options cannot be set for a linux pod";
const WINDOWS: &str = "cannot be set for a windows pod";
const OF_LINUX_PODS: [&str; 11] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "seLinuxChangePolicy",
];
const OF_LINUX_CONTAINERS: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// Refuses what the security contexts ask of another operating system than the pod's.
fn not_of_system(
    errors: &mut Errors,
    spec: &Value,
    path: &Path<'_>,
    of_pod: &[&str],
    of_containers: &[&str],
    why: &str,
) {
    let mut refuse = |context: &Value, path: &Path<'_>, names: &[&str]| {
        for name in names {
            if context.has(name) {
                errors.forbidden(&path.child("securityContext").child(name), why);
            }
        }
    };
    let of_pod = if of_pod.is_empty() { of_containers } else { of_pod };
    refuse(spec.at("securityContext"), path, of_pod);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let list_path = path.child(list);
        for (i, container) in spec.list(list).iter().enumerate() {
            refuse(container.at("securityContext"), &list_path.index(i), of_containers);
        }
    }
}

pub fn ip(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if !check::is_ip(text) {
        errors.invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn names(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    type Rule = fn(&str) -> Vec<String>;
    let rules: [(&str, Rule); 7] = [
        ("hostnameOverride", check::dns1123_subdomain),
        ("serviceAccountName", check::dns1123_subdomain),
        ("nodeName", check::dns1123_subdomain),
        ("hostname", check::dns1123_label),
        ("subdomain", check::dns1123_label),
        ("priorityClassName", check::dns1123_subdomain),
        ("runtimeClassName", check::dns1123_subdomain),
    ];
    if spec.has("hostnameOverride") {
        let path = path.child("hostnameOverride");
        if spec.flag("setHostnameAsFQDN") {
            errors.forbidden(&path, "may not be specified when setHostnameAsFQDN is true");
        }
        if spec.flag("hostNetwork") {
            errors.forbidden(&path, "may not be specified when hostNetwork is true");
        }
        if spec.text("hostnameOverride").is_empty() {
            errors.invalid_each(&path, "", check::dns1123_subdomain(""));
        }
        if spec.text("hostnameOverride").len() > 64 {
            errors.too_long(&path, 64);
        }
    }
    for (name, rule) in rules {
        let value = spec.text(name);
        // Of these only the class may be an empty text and not absent.
        if !value.is_empty() || name == "runtimeClassName" && spec.has(name) {
            errors.invalid_each(&path.child(name), value, rule(value));
        }
    }
}

/// Containers that run as processes of a Windows host: all of a pod's, or none.
fn host_process(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let of = |holder: &Value| holder.at("securityContext.windowsOptions.hostProcess").as_bool();
    let whole = of(spec);
    let (mut all, mut chosen) = (0, 0);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let list_path = path.child(list);
        for (i, container) in spec.list(list).iter().enumerate() {
            let own = of(container);
            all += 1;
            chosen += usize::from(own.or(whole).unwrap_or_default());
            if let (Some(own), Some(whole)) = (own, whole)
                && own != whole
            {
                let container_path = list_path.index(i);
                let context = container_path.child("securityContext");
                let options = context.child("windowsOptions");
                errors.invalid(
                    &options.child("hostProcess"),
                    own,
                    format!("pod hostProcess value must be identical if both are specified, was {whole}"),
                );
            }
        }
    }
    if chosen == 0 {
        return;
    }
    if chosen != all {
        let why =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid(path, "", why);
    }
    if !spec.flag("hostNetwork") {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&path.child("hostNetwork"), false, why);
    }
}

/// Files that variables are read from are in volumes the pod makes for itself.
fn file_volumes(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let list_path = path.child(list);
        for (i, container) in spec.list(list).iter().enumerate() {
            let container_path = list_path.index(i);
            let env = container_path.child("env");
            for (j, variable) in container.list("env").iter().enumerate() {
                if !variable.has("valueFrom.fileKeyRef") {
                    continue;
                }
                let name = variable.text("valueFrom.fileKeyRef.volumeName");
                let variable_path = env.index(j);
                let from = variable_path.child("valueFrom");
                let file = from.child("fileKeyRef");
                let path = file.child("volumeName");
                match spec.list("volumes").iter().rev().find(|volume| volume.text("name") == name) {
                    None => errors.not_found(&path, name),
                    Some(volume) if !volume.has("emptyDir") => {
                        errors.invalid(&path, name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn resource_claims(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let mut names: Vec<&str> = vec![];
    for (i, claim) in spec.list("resourceClaims").iter().enumerate() {
        let path = path.index(i);
        let name = claim.text("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
            names.push(name);
        }
        match (claim.has("resourceClaimName"), claim.has("resourceClaimTemplateName")) {
            (true, true) => errors.invalid(
                &path,
                json!({"Name": claim.at("name"), "ResourceClaimName": claim.at("resourceClaimName"),
                    "ResourceClaimTemplateName": claim.at("resourceClaimTemplateName")}),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (false, false) => errors.invalid(
                &path,
                json!({"Name": claim.at("name"), "ResourceClaimName": null, "ResourceClaimTemplateName": null}),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            _ => {}
        }
        for name in ["resourceClaimName", "resourceClaimTemplateName"] {
            if claim.has(name) {
                let value = claim.text(name);
                errors.invalid_each(&path.child(name), value, check::dns1123_subdomain(value));
            }
        }
    }
}

/// Resources of the pod as a whole.
fn pod_resources(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let own = spec.at("resources");
    if own.is_null() {
        return;
    }
    let path = path.child("resources");
    if own.has("claims") {
        errors.forbidden(&path.child("claims"), "claims may not be set for Resources at pod-level");
    }
    let claims: Vec<&str> = spec.list("resourceClaims").iter().map(|c| c.text("name")).collect();
    resources::requirements(errors, own, &claims, true, &path);
}

fn security(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let context = spec.at("securityContext");
    for name in ["fsGroup", "runAsUser", "runAsGroup"] {
        container::user_id(errors, context.get_or_null(name), &path.child(name));
    }
    for (i, group) in context.list("supplementalGroups").iter().enumerate() {
        container::user_id(errors, group, &path.child("supplementalGroups").index(i));
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        errors.invalid(
            &path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(errors, spec, &path.child("sysctls"));
    for (name, supported) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
    ] {
        if context.has(name) {
            errors.one_of(&path.child(name), context.text(name), &supported);
        }
    }
    if context.has("seLinuxChangePolicy") {
        let policy = context.text("seLinuxChangePolicy");
        errors.one_of(&path.child("seLinuxChangePolicy"), policy, &["Recursive"]);
    }
    container::profiles(errors, context, path);
}

const SEARCH_DOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";

fn is_sysctl(name: &str) -> bool {
    let part = |part: &str| {
        let b = part.as_bytes();
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        !b.is_empty()
            && plain(b[0])
            && plain(b[b.len() - 1])
            && b.iter().all(|&c| plain(c) || matches!(c, b'-' | b'_'))
    };
    name.len() <= 253 && name.split(['.', '/']).all(part)
}

fn sysctls(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let mut seen: Vec<&str> = vec![];
    for (i, sysctl) in spec.list("securityContext.sysctls").iter().enumerate() {
        let item = path.index(i);
        let path = item.child("name");
        let name = sysctl.text("name");
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl(name) {
            errors.invalid(
                &path,
                name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if seen.contains(&name) {
            errors.duplicate(&path, name);
        }
        seen.push(name);
        let dotted = name.replace('/', ".");
        if spec.flag("hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(&path, name, "may not be specified when 'hostNetwork' is true");
        }
        let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| dotted.starts_with(p))
            || dotted == "kernel.sem";
        if spec.flag("hostIPC") && ipc {
            errors.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
    }
}

fn dns(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    const NAMESERVERS: usize = 3;
    const SEARCHES: usize = 32;
    const SEARCH_BYTES: usize = 2048;
    let config = spec.at("dnsConfig");
    let servers = config.list("nameservers");
    if spec.text("dnsPolicy") == "None" {
        if config.is_null() {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.is_empty() {
            errors.required(
                &path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
            return;
        }
    }
    if servers.len() > NAMESERVERS {
        errors.invalid(
            &path.child("nameservers"),
            servers.to_vec(),
            format!("must not have more than {NAMESERVERS} nameservers"),
        );
    }
    for (i, server) in servers.iter().enumerate() {
        ip(errors, server.as_str().unwrap_or_default(), &path.child("nameservers").index(i));
    }
    let searches: Vec<&str> = config.list("searches").iter().filter_map(Value::as_str).collect();
    let path_searches = path.child("searches");
    if searches.len() > SEARCHES {
        errors.invalid(
            &path_searches,
            searches.clone(),
            format!("must not have more than {SEARCHES} search paths"),
        );
    }
    if searches.join(" ").len() > SEARCH_BYTES {
        errors.invalid(
            &path_searches,
            searches.clone(),
            format!(
                "must not have more than {SEARCH_BYTES} characters (including spaces) in the search list"
            ),
        );
    }
    for (i, search) in searches.iter().enumerate() {
        if *search != "." {
            let name = search.strip_suffix('.').unwrap_or(search);
            // Underscores are for service records.
            if !check::dns1123_subdomain(&name.replace('_', "a")).is_empty() {
                errors.invalid(&path_searches.index(i), name, SEARCH_DOMAIN);
            }
        }
    }
    for (i, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errors.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

pub fn pod_template(object: &Value) -> Errors {
    let mut errors = Errors::new();
    template(&mut errors, object.at("template"), &Path::new("template"));
    errors
}

/// `spec.template` of a workload (or `template` of a PodTemplate).
pub fn template(errors: &mut Errors, template: &Value, path: &Path<'_>) {
    meta::labels(errors, template.at("metadata.labels"), &path.child("labels"));
    meta::annotations(errors, template.at("metadata.annotations"), &path.child("annotations"));
    spec(errors, template.at("spec"), "", false, &path.child("spec"));
    if !template.list("spec.ephemeralContainers").is_empty() {
        errors.forbidden(
            &path.child("spec").child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"},
            "spec": {"serviceAccountName": "default", "containers": [{"name": "c", "image": "i"}]}});
        change(&mut pod);
        super::super::defaults::pod(&mut pod);
        pod
    }

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wrong_with_pods() {
        type Change = fn(&mut Value);
        let cases: Vec<(Change, &[&str])> = vec![
            (|_| {}, &[]),
            (|p| p["spec"]["containers"] = json!([]), &["spec.containers: Required value"]),
            (
                |p| p["spec"]["containers"][0]["name"] = json!("C"),
                &[
                    "spec.containers[0].name: Invalid value: \"C\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                |p| p["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/x"}]),
                &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
            ),
            (
                |p| {
                    p["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]);
                },
                &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                |p| {
                    p["spec"]["containers"][0]["resources"] =
                        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}})
                },
                &[
                    "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                ],
            ),
            (
                |p| p["spec"]["containers"][0]["livenessProbe"] = json!({}),
                &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
            ),
            (
                |p| {
                    p["spec"]["initContainers"] =
                        json!([{"name": "c", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}])
                },
                &[
                    "spec.initContainers[0].name: Duplicate value: \"c\"",
                    "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
                ],
            ),
            (
                |p| p["spec"]["restartPolicy"] = json!("x"),
                &[
                    "spec.restartPolicy: Unsupported value: \"x\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                ],
            ),
            (
                |p| p["spec"]["securityContext"] = json!({"sysctls": [{"name": "foo-", "value": "1"}]}),
                &[
                    "spec.securityContext.sysctls[0].name: Invalid value: \"foo-\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
                ],
            ),
            (
                |p| p["spec"]["tolerations"] = json!([{"operator": "Equal"}]),
                &[
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                ],
            ),
            (
                |p| {
                    p["spec"]["containers"][0]["env"] =
                        json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}}])
                },
                &[
                    "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.hostname\": error converting fieldPath: field label not supported: spec.hostname",
                ],
            ),
            (
                |p| p["spec"]["activeDeadlineSeconds"] = json!(0),
                &[
                    "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
                ],
            ),
            (
                |p| {
                    p["spec"]["topologySpreadConstraints"] =
                        json!([{"maxSkew": 0, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}]);
                },
                &["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero"],
            ),
        ];
        for (change, want) in cases {
            let pod = pod(change);
            assert_eq!(texts(&create(&pod)), want, "{pod}");
        }
    }

    #[test]
    fn what_may_change() {
        let old = pod(|p| p["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]));
        type Change = fn(&mut Value);
        let cases: Vec<(Change, Option<&str>)> = vec![
            (|p| p["spec"]["containers"][0]["image"] = json!("j"), None),
            (|p| p["spec"]["activeDeadlineSeconds"] = json!(5), None),
            (
                |p| {
                    p["spec"]["tolerations"] =
                        json!([{"key": "a", "operator": "Exists"}, {"operator": "Exists"}])
                },
                None,
            ),
            (
                |p| p["spec"]["tolerations"] = json!([]),
                Some(
                    "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
                ),
            ),
            (
                |p| p["spec"]["nodeName"] = json!("m"),
                Some(
                    "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\nnodeName: null -> \"m\"",
                ),
            ),
            (
                |p| {
                    p["spec"]["containers"] =
                        json!([{"name": "a", "image": "b"}, {"name": "c", "image": "d"}])
                },
                Some("spec.containers: Forbidden: pod updates may not add or remove containers"),
            ),
        ];
        for (change, want) in cases {
            let mut new = old.clone();
            change(&mut new);
            super::super::defaults::pod(&mut new);
            assert_eq!(
                texts(&super::super::update::update(&new, &old)),
                Vec::from_iter(want.map(str::to_owned))
            );
        }
    }

    #[test]
    fn what_has_ended_stays_ended() {
        for (policy, code, ok) in
            [("Never", 1, false), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Always", 0, true)]
        {
            let old = json!({"spec": {"restartPolicy": policy, "containers": [{"name": "c"}]}, "status": {"containerStatuses": [
                {"name": "c", "state": {"terminated": {"exitCode": code}}}]}});
            let mut new = old.clone();
            new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
            assert_eq!(super::super::update::status_update(&new, &old).is_empty(), ok, "{policy} {code}");
        }
    }
}
