//! PodSecurity: pods are held to the level their namespace's labels name; templates get warnings.

mod checks;

use apimachinery::status::Status;
use checks::{Level, describe, violations};
use serde_json::Value;

use super::{Context, items, refuse};
use crate::seams::{AdmissionRequest, Operation};
use crate::security::failure;

const PREFIX: &str = "pod-security.kubernetes.io/";
const PODS_CHECKED_MAX: usize = 3000;
/// Subresources through which a pod's spec does not change.
const IGNORED: [&str; 8] = ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// A level and the version of the standards it is taken from. Every version is checked by the present standards.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    level: Level,
    version: String,
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        write!(f, "{level}:{}", self.version)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    enforce: Wanted,
    audit: Wanted,
    warn: Wanted,
}

fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn version_is_known(text: &str) -> bool {
    let minor = text.strip_prefix("v1.");
    text == "latest"
        || minor.is_some_and(|m| !m.is_empty() && m.len() < 6 && m.bytes().all(|b| b.is_ascii_digit()))
}

/// A label that cannot be read: its key, value and what is wrong.
type Problem = (String, String, &'static str);

fn policy<'a>(label: impl Fn(&str) -> Option<&'a str>) -> (Policy, Vec<Problem>) {
    let mut problems: Vec<Problem> = Vec::new();
    let mut read = |mode: &str, otherwise: Level| -> (Wanted, bool, bool) {
        let (level_key, version_key) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        let mut wanted = Wanted { level: Level::Privileged, version: "latest".into() };
        let (mut good_level, mut has_version) = (false, false);
        if let Some(text) = label(&level_key) {
            wanted.level = level(text).unwrap_or(otherwise);
            good_level = level(text).is_some();
            if !good_level {
                let what = "must be one of privileged, baseline, restricted";
                problems.push((level_key, text.to_owned(), what));
            }
        }
        if let Some(text) = label(&version_key) {
            has_version = true;
            if version_is_known(text) {
                wanted.version = text.to_owned();
            } else {
                problems.push((version_key, text.to_owned(), "must be \"latest\" or \"v1.x\""));
            }
        }
        (wanted, good_level, has_version)
    };
    let (enforce, good_enforce, _) = read("enforce", Level::Restricted);
    let (audit, _, _) = read("audit", Level::Privileged);
    let (mut warn, _, has_warn_version) = read("warn", Level::Privileged);
    // Whoever enforces a level wants to hear of templates above it.
    if label(&format!("{PREFIX}warn")).is_none() && good_enforce && enforce.level > warn.level {
        warn.level = enforce.level;
        if !has_warn_version {
            warn.version = enforce.version.clone();
        }
    }
    (Policy { enforce, audit, warn }, problems)
}

fn of_object(object: &Value) -> (Policy, Vec<Problem>) {
    policy(|key| object["metadata"]["labels"][key].as_str())
}

/// Metadata and spec of the pod a workload makes.
fn template<'a>(group: &str, resource: &str, object: &'a Value) -> Option<(&'a Value, &'a Value)> {
    let template = match (group, resource) {
        ("", "podtemplates") => &object["template"],
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    template.is_object().then(|| (&template["metadata"], &template["spec"]))
}

/// Whether an update changes what the checks look at.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let images = |v: &Value, field: &str| -> Vec<Value> {
        items(&v["spec"], field).map(|c| c["image"].clone()).collect()
    };
    ["containers", "initContainers", "ephemeralContainers"].iter().any(|f| images(pod, f) != images(old, f))
}

pub(super) fn validate(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    if request.group.is_empty() && request.resource == "namespaces" {
        return namespace(context, request);
    }
    let is_pod = request.group.is_empty() && request.resource == "pods";
    let ignored =
        if is_pod { IGNORED.contains(&request.subresource) } else { !request.subresource.is_empty() };
    if ignored || !is_pod && template(request.group, request.resource, request.object).is_none() {
        return Ok(());
    }
    let Some(namespace) = context.objects.get("", "namespaces", "", request.namespace) else { return Ok(()) };
    let (policy, problems) = policy(|key| namespace.attributes.label(key));
    let mut annotate = |name: &str, text: String| {
        request.annotations.insert(format!("{PREFIX}{name}"), text);
    };
    let privileged =
        [&policy.enforce, &policy.audit, &policy.warn].iter().all(|w| w.level == Level::Privileged);
    if privileged && problems.is_empty() {
        if is_pod {
            annotate("enforce-policy", "privileged:latest".to_owned());
        }
        return Ok(());
    }
    if is_pod && request.old_object.is_some_and(|old| !is_significant(request.object, old)) {
        return Ok(());
    }
    let (metadata, spec) = if is_pod {
        (&request.object["metadata"], &request.object["spec"])
    } else {
        match template(request.group, request.resource, request.object) {
            Some(parts) => parts,
            None => return Ok(()),
        }
    };
    if !problems.is_empty() {
        annotate("error", format!("Failed to parse policy: {}", together(&problems)));
    }
    let audited = violations(policy.audit.level, metadata, spec);
    if !audited.is_empty() {
        let text = format!("would violate PodSecurity \"{}\": {}", policy.audit, describe(&audited));
        annotate("audit-violations", text);
    }
    if is_pod {
        annotate("enforce-policy", policy.enforce.to_string());
        let found = violations(policy.enforce.level, metadata, spec);
        if !found.is_empty() {
            let text = format!("violates PodSecurity \"{}\": {}", policy.enforce, describe(&found));
            return Err(refuse(request, text));
        }
    }
    let found = violations(policy.warn.level, metadata, spec);
    if !found.is_empty() {
        let text = format!("would violate PodSecurity \"{}\": {}", policy.warn, describe(&found));
        request.warnings.push(text);
    }
    Ok(())
}

/// Problems with labels, in one text.
fn together(problems: &[Problem]) -> String {
    let one =
        |(key, value, what): &Problem| format!("metadata.labels[{key}]: Invalid value: {value:?}: {what}");
    match problems {
        [problem] => one(problem),
        problems => format!("[{}]", problems.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// Labels must be readable; pods above a newly enforced level are told about.
fn namespace(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !request.subresource.is_empty() {
        return Ok(());
    }
    let (new, problems) = of_object(request.object);
    let old = request.old_object.map(of_object);
    let known = old.as_ref().is_some_and(|(_, before)| *before == problems);
    if let Some((key, value, what)) = problems.first().filter(|_| !known) {
        let field = format!("metadata.labels[{key}]");
        let value = format!("{value:?}");
        let name = super::name(request);
        return Err(failure::invalid_field("", "Namespace", name, &field, &value, what));
    }
    let Some((old, _)) = old else { return Ok(()) };
    let stricter = new.enforce != old.enforce
        && new.enforce.level != Level::Privileged
        && (new.enforce.version != old.enforce.version || new.enforce.level > old.enforce.level);
    if !stricter {
        return Ok(());
    }
    let name = super::name(request).to_owned();
    let pods = context.objects.list("", "pods", Some(&name));
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for pod in pods.iter().take(PODS_CHECKED_MAX) {
        let Ok(value) = serde_json::from_slice::<Value>(&pod.body) else { continue };
        let violations = violations(new.enforce.level, &value["metadata"], &value["spec"]);
        if violations.is_empty() {
            continue;
        }
        let reasons = violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ");
        match found.iter_mut().find(|(r, _)| *r == reasons) {
            Some((_, names)) => names.push(pod.name().to_owned()),
            None => found.push((reasons, vec![pod.name().to_owned()])),
        }
    }
    if pods.len() > PODS_CHECKED_MAX {
        request.warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {PODS_CHECKED_MAX} of {} existing pods",
            pods.len()
        ));
    }
    if found.is_empty() {
        return Ok(());
    }
    request.warnings.push(format!(
        "existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{}\"",
        new.enforce
    ));
    let mut lines: Vec<String> = found
        .into_iter()
        .map(|(reasons, mut names)| {
            names.sort();
            match names.as_slice() {
                [one] => format!("{one}: {reasons}"),
                [first, _] => format!("{first} (and 1 other pod): {reasons}"),
                [first, rest @ ..] => format!("{first} (and {} other pods): {reasons}", rest.len()),
                [] => reasons,
            }
        })
        .collect();
    lines.sort();
    request.warnings.extend(lines);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use serde_json::json;
    use std::sync::Arc;

    fn labelled(mode: &str, level: &str) -> Value {
        json!({"kind": "Namespace", "metadata": {"name": "a", "labels": {format!("{PREFIX}{mode}"): level}}})
    }

    #[test]
    fn enforces_and_warns() {
        let pod = json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"hostNetwork": true, "containers": [{"name": "c"}]}});
        let deployment =
            json!({"metadata": {"namespace": "a", "name": "d"}, "spec": {"template": {"spec": pod["spec"]}}});
        for (mode, level, want_refused, want_warned) in [
            ("enforce", "baseline", true, true),
            ("enforce", "privileged", false, false),
            ("warn", "baseline", false, true),
            ("audit", "baseline", false, false),
        ] {
            let objects = Arc::new(FakeObjects::default());
            objects.put("", "namespaces", labelled(mode, level));
            let context = context(&objects);
            let mut request = Request::create("", "pods", pod.clone());
            let got = request.with(|r| validate(&context, r));
            assert_eq!(got.is_err(), want_refused, "{mode} {level}");
            if let Err(status) = got {
                assert_eq!(
                    status.message,
                    "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
                );
            } else {
                assert_eq!(request.warnings.len(), usize::from(want_warned));
            }
            let enforced = if mode == "enforce" { level } else { "privileged" };
            let told = |what: &str| request.annotations.get(&format!("{PREFIX}{what}")).cloned();
            assert_eq!(told("enforce-policy"), Some(format!("{enforced}:latest")));
            assert_eq!(
                told("audit-violations").is_some_and(
                    |t| t.starts_with("would violate PodSecurity \"baseline:latest\": host namespaces")
                ),
                mode == "audit"
            );
            let mut request = Request::create("apps", "deployments", deployment.clone());
            request.with(|r| validate(&context, r)).unwrap();
            assert_eq!(request.warnings.len(), usize::from(want_warned), "{mode} {level}");
        }
    }

    #[test]
    fn namespaces() {
        let objects = Arc::new(FakeObjects::default());
        for name in ["p", "q"] {
            objects.put(
                "",
                "pods",
                json!({"metadata": {"namespace": "a", "name": name}, "spec": {"hostPID": true}}),
            );
        }
        let context = context(&objects);
        let mut bad = Request::create("", "namespaces", labelled("enforce", "strict"));
        assert_eq!(bad.with(|r| validate(&context, r)).unwrap_err().code, 422);
        let mut request = Request::create("", "namespaces", labelled("enforce", "baseline"));
        request.operation = Operation::Update;
        request.old = Some(json!({"kind": "Namespace", "metadata": {"name": "a"}}));
        request.with(|r| validate(&context, r)).unwrap();
        assert_eq!(
            request.warnings,
            [
                "existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "p (and 1 other pod): host namespaces"
            ]
        );
    }
}
