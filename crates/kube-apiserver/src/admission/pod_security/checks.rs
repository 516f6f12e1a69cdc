//! The pod security standards: what the levels baseline and restricted forbid. Pure functions of the pod.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::admission::items;

/// Why a pod is above a level: a short reason and the fields at fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

impl Violation {
    fn new(reason: &str, detail: String) -> Option<Violation> {
        Some(Violation { reason: reason.to_owned(), detail })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

type Check = fn(&Value, &Value) -> Option<Violation>;

const BASELINE: [Check; 10] = [
    app_armor,
    host_namespaces,
    host_paths,
    host_ports,
    host_probes,
    privileged,
    proc_mount,
    selinux,
    sysctls,
    windows_host_process,
];
/// Baseline checks that restricted ones replace.
const BASELINE_REPLACED: [Check; 2] = [capabilities_baseline, seccomp_baseline];
const RESTRICTED: [Check; 6] = [
    privilege_escalation,
    capabilities_restricted,
    volumes,
    run_as_non_root,
    run_as_user,
    seccomp_restricted,
];

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
const SELINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
const RESTRICTED_VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// All violations of a level.
pub fn violations(level: Level, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let run = |checks: &[Check]| -> Vec<Violation> {
        checks.iter().filter_map(|check| check(metadata, spec)).collect()
    };
    match level {
        Level::Privileged => Vec::new(),
        Level::Baseline => {
            let mut found = run(&BASELINE[..1]);
            found.extend(run(&BASELINE_REPLACED[..1]));
            found.extend(run(&BASELINE[1..8]));
            found.extend(run(&BASELINE_REPLACED[1..]));
            found.extend(run(&BASELINE[8..]));
            found
        }
        Level::Restricted => {
            // Forbidden host paths are among the restricted volumes already.
            let mut found = run(&BASELINE);
            found.retain(|v| v.reason != "hostPath volumes");
            found.extend(run(&RESTRICTED));
            found
        }
    }
}

/// `reason (detail), reason (detail)`.
pub fn describe(violations: &[Violation]) -> String {
    let one = |v: &Violation| {
        if v.detail.is_empty() { v.reason.clone() } else { format!("{} ({})", v.reason, v.detail) }
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|field| items(spec, field))
}

fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

fn quoted<T: AsRef<str>>(list: impl IntoIterator<Item = T>) -> String {
    list.into_iter().map(|s| format!("{:?}", s.as_ref())).collect::<Vec<_>>().join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

fn named(list: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", list.len()), quoted(list))
}

/// `pod and container "a"`: who set something bad.
fn setters(pod: bool, bad: &[&str]) -> String {
    let mut parts: Vec<String> = Vec::new();
    if pod {
        parts.push("pod".into());
    }
    if !bad.is_empty() {
        parts.push(named(bad));
    }
    parts.join(" and ")
}

fn is_windows(spec: &Value) -> bool {
    spec["os"]["name"] == "windows"
}

fn has_user_namespace(spec: &Value) -> bool {
    spec["hostUsers"] == false
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<Violation> {
    let allowed = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let mut values: BTreeSet<String> = BTreeSet::new();
    let mut bad = |context: &Value| match context["appArmorProfile"]["type"].as_str() {
        Some(kind) if !allowed(kind) => {
            values.insert(kind.to_owned());
            true
        }
        _ => false,
    };
    let pod = bad(&spec["securityContext"]);
    let listed: Vec<&str> = containers(spec).filter(|c| bad(&c["securityContext"])).map(name).collect();
    let mut annotations: Vec<String> = metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .filter_map(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            let fine = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
            (!fine).then(|| format!("{key}={value:?}"))
        })
        .collect();
    annotations.sort();
    let mut who = setters(pod, &listed);
    if !annotations.is_empty() {
        if !who.is_empty() {
            who.push_str(" and ");
        }
        who.push_str(plural("annotation", "annotations", annotations.len()));
    }
    if who.is_empty() {
        return None;
    }
    let all: Vec<String> = values.into_iter().chain(annotations).collect();
    Violation::new(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", all.len()),
        format!("{who} must not set AppArmor profile type to {}", quoted(&all)),
    )
}

fn added(container: &Value) -> impl Iterator<Item = &str> {
    items(&container["securityContext"]["capabilities"], "add").filter_map(Value::as_str)
}

fn capabilities_baseline(_: &Value, spec: &Value) -> Option<Violation> {
    let foreign = |c: &&str| !CAPABILITIES.contains(c);
    let listed: Vec<&str> = containers(spec).filter(|c| added(c).any(|a| foreign(&a))).map(name).collect();
    let values: BTreeSet<&str> = containers(spec).flat_map(added).filter(foreign).collect();
    if listed.is_empty() {
        return None;
    }
    Violation::new(
        "non-default capabilities",
        format!("{} must not include {} in securityContext.capabilities.add", named(&listed), quoted(values)),
    )
}

fn capabilities_restricted(_: &Value, spec: &Value) -> Option<Violation> {
    if is_windows(spec) {
        return None;
    }
    let drops_all = |c: &&Value| items(&c["securityContext"]["capabilities"], "drop").any(|d| d == "ALL");
    let keeping: Vec<&str> = containers(spec).filter(|c| !drops_all(c)).map(name).collect();
    let foreign = |c: &&str| *c != "NET_BIND_SERVICE";
    let adding: Vec<&str> = containers(spec).filter(|c| added(c).any(|a| foreign(&a))).map(name).collect();
    let values: BTreeSet<&str> = containers(spec).flat_map(added).filter(foreign).collect();
    let mut details: Vec<String> = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeping)));
    }
    if !adding.is_empty() {
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            named(&adding),
            quoted(values)
        ));
    }
    if details.is_empty() {
        return None;
    }
    Violation::new("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(_: &Value, spec: &Value) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|f| spec[**f] == true)
        .map(|f| format!("{f}=true"))
        .collect();
    if set.is_empty() { None } else { Violation::new("host namespaces", set.join(", ")) }
}

fn host_paths(_: &Value, spec: &Value) -> Option<Violation> {
    let listed: Vec<&str> = items(spec, "volumes").filter(|v| !v["hostPath"].is_null()).map(name).collect();
    if listed.is_empty() {
        return None;
    }
    let detail = format!("{} {}", plural("volume", "volumes", listed.len()), quoted(&listed));
    Violation::new("hostPath volumes", detail)
}

fn host_ports(_: &Value, spec: &Value) -> Option<Violation> {
    let ports = |c: &Value| -> Vec<u64> {
        items(c, "ports").filter_map(|p| p["hostPort"].as_u64()).filter(|p| *p != 0).collect()
    };
    let listed: Vec<&str> = containers(spec).filter(|c| !ports(c).is_empty()).map(name).collect();
    let values: BTreeSet<String> = containers(spec).flat_map(ports).map(|p| p.to_string()).collect();
    if listed.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {}",
        named(&listed),
        plural("uses", "use", listed.len()),
        plural("hostPort", "hostPorts", values.len()),
        values.into_iter().collect::<Vec<_>>().join(", ")
    );
    Violation::new("hostPort", detail)
}

fn host_probes(_: &Value, spec: &Value) -> Option<Violation> {
    fn hosts(container: &Value) -> Vec<&str> {
        let lifecycle = &container["lifecycle"];
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &lifecycle["postStart"],
            &lifecycle["preStop"],
        ];
        let of =
            |h: &'_ &Value, kind: &str| h[kind]["host"].as_str().map(str::len).filter(|l| *l > 0).is_some();
        handlers
            .iter()
            .flat_map(|h| {
                ["httpGet", "tcpSocket"]
                    .into_iter()
                    .filter(|k| of(h, k))
                    .filter_map(|k| h[k]["host"].as_str())
            })
            .collect()
    }
    let listed: BTreeSet<&str> = containers(spec).filter(|c| !hosts(c).is_empty()).map(name).collect();
    let values: BTreeSet<&str> = containers(spec).flat_map(hosts).collect();
    if listed.is_empty() {
        return None;
    }
    let listed: Vec<&str> = listed.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        named(&listed),
        plural("uses", "use", listed.len()),
        plural("probe or lifecycle host", "probe or lifecycle hosts", values.len()),
        quoted(values)
    );
    Violation::new("probe or lifecycle host", detail)
}

fn privileged(_: &Value, spec: &Value) -> Option<Violation> {
    let listed: Vec<&str> =
        containers(spec).filter(|c| c["securityContext"]["privileged"] == true).map(name).collect();
    if listed.is_empty() {
        return None;
    }
    Violation::new("privileged", format!("{} must not set securityContext.privileged=true", named(&listed)))
}

fn proc_mount(_: &Value, spec: &Value) -> Option<Violation> {
    if has_user_namespace(spec) {
        return None;
    }
    fn bad(c: &Value) -> Option<&str> {
        c["securityContext"]["procMount"].as_str().filter(|p| *p != "Default")
    }
    let listed: Vec<&str> = containers(spec).filter(|c| bad(c).is_some()).map(name).collect();
    let values: BTreeSet<&str> = containers(spec).filter_map(bad).collect();
    if listed.is_empty() {
        return None;
    }
    Violation::new(
        "procMount",
        format!("{} must not set securityContext.procMount to {}", named(&listed), quoted(values)),
    )
}

fn selinux(_: &Value, spec: &Value) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut bad = |context: &Value| {
        let options = &context["seLinuxOptions"];
        if !options.is_object() {
            return false;
        }
        let text = |field: &str| options[field].as_str().unwrap_or_default().to_owned();
        let kind = text("type");
        let (wrong_type, has_user, has_role) =
            (!SELINUX_TYPES.contains(&kind.as_str()), !text("user").is_empty(), !text("role").is_empty());
        if wrong_type {
            types.insert(kind);
        }
        user |= has_user;
        role |= has_role;
        wrong_type || has_user || has_role
    };
    let pod = bad(&spec["securityContext"]);
    let listed: Vec<&str> = containers(spec).filter(|c| bad(&c["securityContext"])).map(name).collect();
    let who = setters(pod, &listed);
    if who.is_empty() {
        return None;
    }
    let mut what: Vec<String> = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural("type", "types", types.len()), quoted(&types)));
    }
    if user {
        what.push("user may not be set".into());
    }
    if role {
        what.push("role may not be set".into());
    }
    let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; "));
    Violation::new("seLinuxOptions", detail)
}

fn sysctls(_: &Value, spec: &Value) -> Option<Violation> {
    let names = items(&spec["securityContext"], "sysctls").map(name);
    let bad: Vec<&str> = names.filter(|n| !SYSCTLS.contains(n)).collect();
    if bad.is_empty() { None } else { Violation::new("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(_: &Value, spec: &Value) -> Option<Violation> {
    let set = |v: &Value| v["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let listed: Vec<&str> = containers(spec).filter(|c| set(c)).map(name).collect();
    let who = setters(set(spec), &listed);
    if who.is_empty() {
        return None;
    }
    let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
    Violation::new("hostProcess", detail)
}

fn privilege_escalation(_: &Value, spec: &Value) -> Option<Violation> {
    if is_windows(spec) {
        return None;
    }
    let listed: Vec<&str> = containers(spec)
        .filter(|c| c["securityContext"]["allowPrivilegeEscalation"] != false)
        .map(name)
        .collect();
    if listed.is_empty() {
        return None;
    }
    Violation::new(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&listed)),
    )
}

fn volumes(_: &Value, spec: &Value) -> Option<Violation> {
    fn kind(volume: &Value) -> Option<&str> {
        let members = volume.as_object().into_iter().flatten();
        members.filter(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key.as_str()).next()
    }
    let bad = |v: &Value| kind(v).filter(|k| !RESTRICTED_VOLUMES.contains(k)).map(str::to_owned);
    let listed: Vec<&str> = items(spec, "volumes").filter(|v| bad(v).is_some()).map(name).collect();
    let kinds: BTreeSet<String> = items(spec, "volumes").filter_map(bad).collect();
    if listed.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", listed.len()),
        quoted(&listed),
        plural("uses", "use", listed.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(kinds)
    );
    Violation::new("restricted volume types", detail)
}

fn run_as_non_root(_: &Value, spec: &Value) -> Option<Violation> {
    if has_user_namespace(spec) {
        return None;
    }
    let set = |v: &Value| v["securityContext"]["runAsNonRoot"].as_bool();
    let reason = "runAsNonRoot != true";
    let listed: Vec<&str> = containers(spec).filter(|c| set(c) == Some(false)).map(name).collect();
    let who = setters(set(spec) == Some(false), &listed);
    if !who.is_empty() {
        return Violation::new(reason, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let unset: Vec<&str> = containers(spec).filter(|c| set(c).is_none()).map(name).collect();
    if set(spec) == Some(true) || unset.is_empty() {
        return None;
    }
    Violation::new(reason, format!("pod or {} must set securityContext.runAsNonRoot=true", named(&unset)))
}

fn run_as_user(_: &Value, spec: &Value) -> Option<Violation> {
    if has_user_namespace(spec) {
        return None;
    }
    let root = |v: &Value| v["securityContext"]["runAsUser"] == 0;
    let listed: Vec<&str> = containers(spec).filter(|c| root(c)).map(name).collect();
    let who = setters(root(spec), &listed);
    if who.is_empty() {
        return None;
    }
    Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

fn seccomp_type(v: &Value) -> Option<&str> {
    v["securityContext"]["seccompProfile"].as_object()?.get("type").and_then(Value::as_str).or(Some(""))
}

fn good_seccomp(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

fn seccomp_baseline(_: &Value, spec: &Value) -> Option<Violation> {
    fn bad(v: &Value) -> Option<&str> {
        seccomp_type(v).filter(|k| !good_seccomp(k))
    }
    let listed: Vec<&str> = containers(spec).filter(|c| bad(c).is_some()).map(name).collect();
    let who = setters(bad(spec).is_some(), &listed);
    if who.is_empty() {
        return None;
    }
    let values: BTreeSet<&str> = bad(spec).into_iter().chain(containers(spec).filter_map(bad)).collect();
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values));
    Violation::new("seccompProfile", detail)
}

fn seccomp_restricted(metadata: &Value, spec: &Value) -> Option<Violation> {
    if is_windows(spec) {
        return None;
    }
    if let Some(found) = seccomp_baseline(metadata, spec) {
        return Some(found);
    }
    if seccomp_type(spec).is_some_and(good_seccomp) {
        return None;
    }
    let unset: Vec<&str> = containers(spec).filter(|c| seccomp_type(c).is_none()).map(name).collect();
    if unset.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        named(&unset)
    );
    Violation::new("seccompProfile", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn says_what_is_forbidden() {
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        for (level, spec, want) in [
            (Level::Restricted, good, ""),
            (Level::Baseline, json!({"containers": [{"name": "c"}]}), ""),
            (
                Level::Restricted,
                json!({"containers": [{"name": "c"}]}),
                "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false), \
              unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
              runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
              seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            ),
            (
                Level::Baseline,
                json!({"hostNetwork": true, "hostPID": true, "containers": []}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}, {"name": "b", "securityContext": {"privileged": true}}]}),
                "privileged (containers \"a\", \"b\" must not set securityContext.privileged=true)",
            ),
            (
                Level::Baseline,
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volume \"v\")",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}),
                "hostPort (container \"c\" uses hostPort 80)",
            ),
            (
                Level::Baseline,
                json!({"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}),
                "non-default capabilities (container \"c\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                Level::Baseline,
                json!({"securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
            ),
            (Level::Privileged, json!({"hostNetwork": true}), ""),
        ] {
            assert_eq!(describe(&violations(level, &json!({}), &spec)), want);
        }
    }
}
