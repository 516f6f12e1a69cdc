//! Containers of pods: regular, init, sidecar and ephemeral ones.

use apimachinery::validation::user_or_group_id;
use serde_json::Value;

use super::volume;
use crate::check::{self, Report};
use crate::core_v1::resources;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

/// What containers are checked against.
pub struct Context<'a> {
    pub volumes: Vec<&'a Value>,
    pub claims: Vec<&'a str>,
    pub restart_policy: &'a str,
    pub grace_period: Option<i64>,
    /// The pod shares the host's users.
    pub host_users: bool,
}

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

pub fn regular(errors: &mut Errors, containers: &[Value], context: &Context<'_>, path: &Path<'_>) {
    if containers.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut names: Vec<&str> = vec![];
    let mut ports = vec![];
    for (i, container) in containers.iter().enumerate() {
        let path = path.index(i);
        common(errors, container, context, &path);
        unique_name(errors, container, &mut names, &path);
        running(errors, container, context, &path);
        restart_policy(errors, container, &path);
        host_ports(errors, container, &mut ports, &path);
    }
}

pub fn init(
    errors: &mut Errors,
    containers: &[Value],
    regular: &[Value],
    context: &Context<'_>,
    path: &Path<'_>,
) {
    let mut names: Vec<&str> = regular.iter().map(|c| c.text("name")).collect();
    for (i, container) in containers.iter().enumerate() {
        let path = path.index(i);
        common(errors, container, context, &path);
        restart_policy(errors, container, &path);
        unique_name(errors, container, &mut names, &path);
        host_ports(errors, container, &mut vec![], &path);
        if container.text("restartPolicy") == "Always" {
            running(errors, container, context, &path);
        } else {
            for name in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if container.has(name) {
                    errors.forbidden(
                        &path.child(name),
                        "may not be set for init containers without restartPolicy=Always",
                    );
                }
            }
            for (j, policy) in container.list("resizePolicy").iter().enumerate() {
                if policy.text("restartPolicy") == "RestartContainer" {
                    errors.invalid(
                        &path.child("resizePolicy").index(j).child("restartPolicy"),
                        "RestartContainer",
                        "must not be set to 'RestartContainer' for non-sidecar initContainers",
                    );
                }
            }
        }
    }
}

pub fn ephemeral(errors: &mut Errors, spec: &Value, context: &Context<'_>, path: &Path<'_>) {
    let others: Vec<&str> =
        spec.list("containers").iter().chain(spec.list("initContainers")).map(|c| c.text("name")).collect();
    let mut names = others.clone();
    for (i, container) in spec.list("ephemeralContainers").iter().enumerate() {
        let path = path.index(i);
        common(errors, container, context, &path);
        unique_name(errors, container, &mut names, &path);
        let target = container.text("targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        const REFUSED: &str = "cannot be set for an Ephemeral Container";
        for name in [
            "ports",
            "resources",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
            "resizePolicy",
            "restartPolicy",
            "restartPolicyRules",
        ] {
            let set = match container.get_or_null(name) {
                Value::Null => false,
                Value::Array(items) => !items.is_empty(),
                Value::Object(members) => !members.is_empty(),
                _ => true,
            };
            if set {
                errors.forbidden(&path.child(name), REFUSED);
            }
        }
        for (j, mount) in container.list("volumeMounts").iter().enumerate() {
            for name in ["subPath", "subPathExpr"] {
                if !mount.text(name).is_empty() {
                    errors.forbidden(&path.child("volumeMounts").index(j).child(name), REFUSED);
                }
            }
        }
    }
}

fn unique_name<'a>(errors: &mut Errors, container: &'a Value, names: &mut Vec<&'a str>, path: &Path<'_>) {
    let name = container.text("name");
    if names.contains(&name) {
        errors.duplicate(&path.child("name"), name);
    } else if !name.is_empty() {
        names.push(name);
    }
}

fn host_ports(errors: &mut Errors, container: &Value, taken: &mut Vec<String>, path: &Path<'_>) {
    let path = path.child("ports");
    for (i, port) in container.list("ports").iter().enumerate() {
        let host = port.int("hostPort");
        if host == 0 {
            continue;
        }
        let key = format!("{}/{}/{host}", port.text("protocol"), port.text("hostIP"));
        if taken.contains(&key) {
            errors.duplicate(&path.index(i).child("hostPort"), key);
        } else {
            taken.push(key);
        }
    }
}

fn common(errors: &mut Errors, container: &Value, context: &Context<'_>, path: &Path<'_>) {
    let name = container.text("name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
    }
    if container.text("image").is_empty() {
        errors.required(&path.child("image"), "");
    }
    choice(errors, container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path);
    ports(errors, container.list("ports"), &path.child("ports"));
    env(errors, container.list("env"), &path.child("env"));
    env_from(errors, container.list("envFrom"), &path.child("envFrom"));
    mounts(errors, container, &context.volumes, &path.child("volumeMounts"));
    devices(errors, container, &context.volumes, &path.child("volumeDevices"));
    choice(errors, container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path);
    resources::requirements(
        errors,
        container.at("resources"),
        &context.claims,
        false,
        &path.child("resources"),
    );
    resize_policy(
        errors,
        container.list("resizePolicy"),
        context.restart_policy,
        &path.child("resizePolicy"),
    );
    security(errors, container.at("securityContext"), context.host_users, &path.child("securityContext"));
}

/// A member that must be one of a few.
pub fn choice(errors: &mut Errors, holder: &Value, name: &str, supported: &[&str], path: &Path<'_>) {
    match holder.text(name) {
        "" => errors.required(&path.child(name), ""),
        value => errors.one_of(&path.child(name), value, supported),
    }
}

fn ports(errors: &mut Errors, ports: &[Value], path: &Path<'_>) {
    let mut names: Vec<&str> = vec![];
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            let messages = check::port_name(name);
            if !messages.is_empty() {
                errors.invalid_each(&path.child("name"), name, messages);
            } else if names.contains(&name) {
                errors.duplicate(&path.child("name"), name);
            } else {
                names.push(name);
            }
        }
        match port.int("containerPort") {
            0 => errors.required(&path.child("containerPort"), ""),
            number => port_number(errors, number, &path.child("containerPort")),
        }
        match port.int("hostPort") {
            0 => {}
            number => port_number(errors, number, &path.child("hostPort")),
        }
        choice(errors, port, "protocol", &PROTOCOLS, &path);
    }
}

pub fn port_number(errors: &mut Errors, number: i64, path: &Path<'_>) {
    if let Some(message) = check::port_number(number) {
        errors.invalid(path, number, message);
    }
}

/// A port by number or by name.
pub fn port_reference(errors: &mut Errors, port: &Value, path: &Path<'_>) {
    match port.as_str() {
        Some(name) => errors.invalid_each(path, name, check::port_name(name)),
        None => port_number(errors, port.as_i64().unwrap_or(0), path),
    }
}

fn env(errors: &mut Errors, variables: &[Value], path: &Path<'_>) {
    for (i, variable) in variables.iter().enumerate() {
        let path = path.index(i);
        let name = variable.text("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            errors.invalid_each(&path.child("name"), name, check::env_var_name(name));
        }
        let from = variable.at("valueFrom");
        if from.is_null() {
            continue;
        }
        let path = path.child("valueFrom");
        let mut sources = 0;
        for source in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
            let reference = from.get_or_null(source);
            if reference.is_null() {
                continue;
            }
            sources += 1;
            let path = path.child(source);
            match source {
                "fieldRef" => volume::field_reference(errors, reference, &ENV_FIELDS, &path),
                "resourceFieldRef" => volume::resource_reference(errors, reference, false, &path),
                "fileKeyRef" => file_key(errors, reference, &path),
                _ => config_key(errors, reference, &path),
            }
        }
        if sources == 0 {
            errors.invalid(
                &path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            );
        } else if !variable.text("value").is_empty() {
            errors.invalid(&path, "", "may not be specified when `value` is not empty");
        } else if sources > 1 {
            errors.invalid(&path, "", "may not have more than one field specified at a time");
        }
    }
}

fn config_key(errors: &mut Errors, reference: &Value, path: &Path<'_>) {
    let (name, key) = (reference.text("name"), reference.text("key"));
    errors.invalid_each(&path.child("name"), name, check::dns1123_subdomain(name));
    if key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        errors.invalid_each(&path.child("key"), key, check::config_map_key(key));
    }
}

fn file_key(errors: &mut Errors, reference: &Value, path: &Path<'_>) {
    for name in ["key", "volumeName", "path"] {
        let value = reference.text(name);
        let path = path.child(name);
        match name {
            _ if value.is_empty() => errors.required(&path, ""),
            "key" => errors.invalid_each(&path, value, check::env_var_name(value)),
            "volumeName" => errors.invalid_each(&path, value, check::dns1123_label(value)),
            _ => volume::no_backsteps(errors, value, &path),
        }
    }
}

fn env_from(errors: &mut Errors, sources: &[Value], path: &Path<'_>) {
    for (i, source) in sources.iter().enumerate() {
        let item = path.index(i);
        let prefix = source.text("prefix");
        if !prefix.is_empty() {
            errors.invalid_each(&item.child("prefix"), prefix, check::env_var_name(prefix));
        }
        let mut count = 0;
        for kind in ["configMapRef", "secretRef"] {
            let Some(reference) = source.get(kind).filter(|r| !r.is_null()) else { continue };
            count += 1;
            let path = item.child(kind);
            let name = reference.text("name");
            if name.is_empty() {
                errors.required(&path.child("name"), "");
            } else {
                errors.invalid_each(&path.child("name"), name, check::dns1123_subdomain(name));
            }
        }
        if count == 0 {
            errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if count > 1 {
            errors.invalid(path, "", "may not have more than one field specified at a time");
        }
    }
}

fn mounts(errors: &mut Errors, container: &Value, volumes: &[&Value], path: &Path<'_>) {
    let devices = container.list("volumeDevices");
    let mut points: Vec<&str> = vec![];
    for (i, mount) in container.list("volumeMounts").iter().enumerate() {
        let item = path.index(i);
        let (name, point) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errors.required(&item.child("name"), "");
        }
        if !volumes.iter().any(|v| v.text("name") == name) {
            errors.not_found(&item.child("name"), name);
        }
        if point.is_empty() {
            errors.required(&item.child("mountPath"), "");
        }
        if points.contains(&point) {
            errors.invalid(&item.child("mountPath"), point, "must be unique");
        }
        points.push(point);
        if devices.iter().any(|d| d.text("name") == name) {
            errors.invalid(&item.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.text("devicePath") == point) {
            errors.invalid(
                &item.child("mountPath"),
                point,
                "must not already exist as a path in volumeDevices",
            );
        }
        let (sub, expression) = (mount.text("subPath"), mount.text("subPathExpr"));
        if !sub.is_empty() {
            volume::descending_path(errors, sub, &path.child("subPath"));
        }
        if !expression.is_empty() {
            if !sub.is_empty() {
                errors.invalid(
                    &item.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            volume::descending_path(errors, expression, &path.child("subPathExpr"));
        }
        let propagation = mount.text("mountPropagation");
        if mount.has("mountPropagation") {
            let path = path.child("mountPropagation");
            errors.one_of(&path, propagation, &["Bidirectional", "HostToContainer", "None"]);
            if propagation == "Bidirectional" && !container.flag("securityContext.privileged") {
                errors.forbidden(
                    &path,
                    "Bidirectional mount propagation is available only to privileged containers",
                );
            }
        }
        if mount.has("recursiveReadOnly") {
            let path = path.child("recursiveReadOnly");
            match mount.text("recursiveReadOnly") {
                "Disabled" => {}
                "Enabled" | "IfPossible" => {
                    if !mount.flag("readOnly") {
                        errors.forbidden(&path, "may only be specified when readOnly is true");
                    }
                    if mount.has("mountPropagation") && propagation != "None" {
                        errors.forbidden(
                            &path,
                            "may only be specified when mountPropagation is None or not specified",
                        );
                    }
                }
                other => errors.not_supported(&path, other, &["Disabled", "Enabled", "IfPossible"]),
            }
        }
    }
}

fn devices(errors: &mut Errors, container: &Value, volumes: &[&Value], path: &Path<'_>) {
    let mounts = container.list("volumeMounts");
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (vec![], vec![]);
    for (i, device) in container.list("volumeDevices").iter().enumerate() {
        let item = path.index(i);
        let (name, at) = (device.text("name"), device.text("devicePath"));
        if name.is_empty() {
            errors.required(&item.child("name"), "");
        }
        if names.contains(&name) {
            errors.invalid(&item.child("name"), name, "must be unique");
        }
        match volumes.iter().find(|v| v.text("name") == name) {
            None => errors.not_found(&item.child("name"), name),
            Some(v) if !v.has("persistentVolumeClaim") && !v.has("ephemeral") => errors.invalid(
                &item.child("name"),
                name,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            Some(_) => {}
        }
        if at.is_empty() {
            errors.required(&item.child("devicePath"), "");
        }
        if paths.contains(&at) {
            errors.invalid(&item.child("devicePath"), at, "must be unique");
        }
        if at.split('/').any(|part| part == "..") {
            errors.invalid(&item.child("devicePath"), at, "can not contain backsteps ('..')");
        } else {
            paths.push(at);
        }
        if mounts.iter().any(|m| m.text("name") == name) {
            errors.invalid(&item.child("name"), name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.text("mountPath") == at) {
            errors.invalid(&item.child("devicePath"), at, "must not already exist as a path in volumeMounts");
        }
        names.push(name);
    }
}

fn resize_policy(errors: &mut Errors, policies: &[Value], pod_policy: &str, path: &Path<'_>) {
    let mut seen: Vec<&str> = vec![];
    for (i, policy) in policies.iter().enumerate() {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        if seen.contains(&resource) {
            errors.duplicate(&path.index(i), resource);
        }
        seen.push(resource);
        for (value, supported) in
            [(resource, ["cpu", "memory"]), (restart, ["NotRequired", "RestartContainer"])]
        {
            if value.is_empty() {
                errors.required(path, "");
            } else {
                errors.one_of(path, value, &supported);
            }
        }
        if pod_policy == "Never" && restart != "NotRequired" {
            errors.invalid(path, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn restart_policy(errors: &mut Errors, container: &Value, path: &Path<'_>) {
    let rules = container.list("restartPolicyRules");
    if !container.has("restartPolicy") {
        if !rules.is_empty() {
            errors.required(
                &path.child("restartPolicy"),
                "must specify restartPolicy when restart rules are used",
            );
        }
    } else {
        let policy = container.text("restartPolicy");
        errors.one_of(&path.child("restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.too_many(&path, rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        errors.one_of(&path.child("action"), rule.text("action"), &["Restart", "RestartAllContainers"]);
        let path = path.child("exitCodes");
        if rule.has("exitCodes") {
            errors.one_of(&path.child("operator"), rule.text("exitCodes.operator"), &["In", "NotIn"]);
            let values = rule.list("exitCodes.values").len();
            if values > 255 {
                errors.too_many(&path.child("values"), values, 255);
            }
        } else {
            errors.required(&path, "must be specified");
        }
    }
}

/// Hooks and probes of what keeps running.
fn running(errors: &mut Errors, container: &Value, context: &Context<'_>, path: &Path<'_>) {
    let lifecycle = container.at("lifecycle");
    for name in ["postStart", "preStop"] {
        let hook = lifecycle.get_or_null(name);
        if !hook.is_null() {
            handler(errors, hook, context.grace_period, &path.child("lifecycle").child(name));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.get_or_null(name);
        if probe.is_null() {
            continue;
        }
        let path = path.child(name);
        handler(errors, probe, context.grace_period, &path);
        for number in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            errors.not_negative(&path.child(number), probe.int(number));
        }
        let grace = probe.maybe_int("terminationGracePeriodSeconds");
        if grace.is_some_and(|g| g <= 0) {
            errors.invalid(&path.child("terminationGracePeriodSeconds"), grace, "must be greater than 0");
        }
        if name == "readinessProbe" {
            if grace.is_some() {
                errors.invalid(
                    &path.child("terminationGracePeriodSeconds"),
                    grace,
                    "must not be set for readinessProbes",
                );
            }
        } else if probe.int("successThreshold") != 1 {
            errors.invalid(&path.child("successThreshold"), probe.int("successThreshold"), "must be 1");
        }
    }
}

fn handler(errors: &mut Errors, handler: &Value, grace_period: Option<i64>, path: &Path<'_>) {
    let mut count = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = handler.get_or_null(kind);
        if action.is_null() {
            continue;
        }
        let path = path.child(kind);
        count += 1;
        if count > 1 {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match kind {
            "exec" => {
                if action.list("command").is_empty() {
                    errors.required(&path.child("command"), "");
                }
            }
            "httpGet" => {
                if action.text("path").is_empty() {
                    errors.required(&path.child("path"), "");
                }
                port_reference(errors, action.at("port"), &path.child("port"));
                errors.one_of(&path.child("scheme"), action.text("scheme"), &["HTTP", "HTTPS"]);
                for header in action.list("httpHeaders") {
                    let name = header.text("name");
                    errors.invalid_each(&path.child("httpHeaders"), name, check::http_header_name(name));
                }
            }
            "sleep" => {
                let seconds = action.int("seconds");
                if let Some(grace) = grace_period.filter(|g| seconds < 0 || seconds > *g) {
                    errors.invalid(
                        &path,
                        seconds,
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
                    );
                }
            }
            _ => port_reference(errors, action.at("port"), &path.child("port")),
        }
    }
    if count == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn security(errors: &mut Errors, context: &Value, host_users: bool, path: &Path<'_>) {
    if context.is_null() {
        return;
    }
    for name in ["runAsUser", "runAsGroup"] {
        user_id(errors, context.get_or_null(name), &path.child(name));
    }
    if context.has("procMount") {
        let mount = context.text("procMount");
        let path = path.child("procMount");
        errors.one_of(&path, mount, &["Default", "Unmasked"]);
        if host_users && mount == "Unmasked" {
            errors.invalid(&path, mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    profiles(errors, context, path);
    if context.at("allowPrivilegeEscalation") == false {
        if context.flag("privileged") {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if context.list("capabilities.add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
}

pub fn user_id(errors: &mut Errors, id: &Value, path: &Path<'_>) {
    if let Some(id) = id.as_i64() {
        for message in user_or_group_id(id) {
            errors.invalid(path, id, message);
        }
    }
}

/// Seccomp and AppArmor, of pods and containers.
/// What Windows knows of a container or pod.
pub fn windows_options(errors: &mut Errors, options: &Value, path: &Path<'_>) {
    const SPEC_MAX_BYTES: usize = 64 * 1024;
    const DOMAIN_MAX: usize = 256;
    const USER_MAX: usize = 104;
    if options.has("gmsaCredentialSpecName") {
        let name = options.text("gmsaCredentialSpecName");
        errors.invalid_each(&path.child("gmsaCredentialSpecName"), name, check::dns1123_subdomain(name));
    }
    if options.has("gmsaCredentialSpec") {
        let (spec, path) = (options.text("gmsaCredentialSpec"), path.child("gmsaCredentialSpec"));
        if spec.is_empty() {
            errors.invalid(&path, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > SPEC_MAX_BYTES {
            errors.invalid(&path, spec, "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if !options.has("runAsUserName") {
        return;
    }
    let (name, path) = (options.text("runAsUserName"), path.child("runAsUserName"));
    let mut wrong = |why: &str| errors.invalid(&path, name, format!("runAsUserName{why}"));
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        _ if name.is_empty() => return wrong(" cannot be an empty string"),
        _ if name.chars().any(|c| c.is_ascii_control()) => {
            return wrong(" cannot contain control characters");
        }
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return wrong(" cannot contain more than one backslash"),
    };
    if let Some(domain) = domain {
        if domain.len() >= DOMAIN_MAX {
            wrong("'s Domain length must be under 256 characters");
        }
        let net_bios = (1..=15).contains(&domain.chars().count())
            && !domain.starts_with('.')
            && !domain.contains(|c| "\\/:*?\"<>|".contains(c));
        if !net_bios && !check::is_dns1123_subdomain(&domain.to_lowercase()) {
            wrong("'s Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        wrong("'s User cannot be empty");
    } else if user.len() > USER_MAX {
        wrong("'s User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        wrong("'s User cannot contain only periods or spaces");
    }
    if user.contains(|c| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        wrong("'s User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

pub fn profiles(errors: &mut Errors, context: &Value, path: &Path<'_>) {
    for (name, what) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let profile = context.get_or_null(name);
        if profile.is_null() {
            continue;
        }
        let path = path.child(name);
        match profile.text("type") {
            "" => errors.required(&path.child("type"), format!("type is required when {name} is set")),
            kind => errors.one_of(&path.child("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]),
        }
        let (local, kind) = (profile.text("localhostProfile"), profile.text("type"));
        let path = path.child("localhostProfile");
        if kind == "Localhost" {
            if !profile.has("localhostProfile") || local.is_empty() && what == "AppArmor" {
                errors.required(&path, format!("must be set when {what} type is Localhost"));
            } else if what == "seccomp" {
                volume::descending_path(errors, local, &path);
            } else if local.trim() != local {
                errors.invalid(&path, local, "must not be padded with whitespace");
            }
        } else if profile.has("localhostProfile")
            && (what == "seccomp" || matches!(kind, "RuntimeDefault" | "Unconfined"))
        {
            errors.invalid(&path, local, format!("can only be set when {what} type is Localhost"));
        }
    }
    windows_options(errors, context.at("windowsOptions"), &path.child("windowsOptions"));
}
