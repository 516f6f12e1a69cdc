//! Whether workloads make sense.

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::{persistent_volume, pod};
use crate::equality;
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

const SPEC: Path<'static> = Path::new("spec");
const STATUS: Path<'static> = Path::new("status");

/// Numbers that are not negative, where they are given.
fn not_negative(errors: &mut Errors, holder: &Value, names: &[&str], path: &Path<'_>) {
    for name in names {
        errors.not_negative(&path.child(name), holder.int(name));
    }
}

/// A selector that must be there, say something and select the template.
fn selector(errors: &mut Errors, spec: &Value, what: &str) {
    let selector = spec.at("selector");
    let path = SPEC.child("selector");
    if selector.is_null() {
        if what != "daemonset" {
            errors.required(&path, "");
        }
    } else {
        meta::label_selector(errors, selector, &path);
        if meta::is_empty_selector(selector) {
            errors.invalid(&path, selector.clone(), format!("empty selector is invalid for {what}"));
            return;
        }
    }
    if !meta::is_readable_selector(selector) {
        match what {
            "daemonset" => {}
            "statefulset" => errors.invalid(&path, selector.clone(), ""),
            _ => errors.invalid(&path, selector.clone(), "invalid label selector"),
        }
        return;
    }
    let labels = spec.at("template.metadata.labels");
    // No selector selects nothing.
    if selector.is_null() || !meta::selects(selector, labels) {
        let template = SPEC.child("template");
        errors.invalid(
            &template.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
}

/// The template of pods that always restart and have no deadline.
fn template(errors: &mut Errors, template: &Value, what: &str) {
    let path = SPEC.child("template");
    pod::validation::template(errors, template, &path);
    let path = path.child("spec");
    let policy = template.text("spec.restartPolicy");
    if policy != "Always" {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if template.has("spec.activeDeadlineSeconds") {
        errors.forbidden(
            &path.child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {what} is not Supported"),
        );
    }
}

/// A number, or percent of something.
pub fn number_or_percent(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    match value {
        Value::String(text) => errors.invalid_each(path, text, check::percent(text)),
        value => errors.not_negative(path, value.as_i64().unwrap_or(0)),
    }
}

fn amount(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.strip_suffix('%').and_then(|n| n.parse().ok()).unwrap_or(0),
        value => value.as_i64().unwrap_or(0),
    }
}

pub fn at_most_all(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    if value.is_string() && amount(value) > 100 {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

pub fn deployment(deployment: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = deployment.at("spec");
    not_negative(&mut errors, spec, &["replicas"], &SPEC);
    selector(&mut errors, spec, "deployment");
    template(&mut errors, spec.at("template"), "ReplicaSet");
    let path = SPEC.child("strategy");
    let rolling = spec.at("strategy.rollingUpdate");
    match spec.text("strategy.type") {
        "Recreate" => {
            if !rolling.is_null() {
                errors.forbidden(
                    &path.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            number_or_percent(&mut errors, unavailable, &path.child("maxUnavailable"));
            number_or_percent(&mut errors, surge, &path.child("maxSurge"));
            if amount(unavailable) == 0 && amount(surge) == 0 {
                errors.invalid(
                    &path.child("maxUnavailable"),
                    unavailable.clone(),
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            at_most_all(&mut errors, unavailable, &path.child("maxUnavailable"));
        }
        _ => errors.not_supported(&path, spec.at("strategy").clone(), &["Recreate", "RollingUpdate"]),
    }
    not_negative(
        &mut errors,
        spec,
        &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
        &SPEC,
    );
    if let Some(deadline) = spec.maybe_int("progressDeadlineSeconds")
        && deadline <= spec.int("minReadySeconds")
    {
        errors.invalid(
            &SPEC.child("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        );
    }
    errors
}

pub fn deployment_update(new: &Value, old: &Value) -> Errors {
    let mut errors = if new.at("spec") == old.at("spec") { Errors::new() } else { deployment(new) };
    errors.immutable(&SPEC.child("selector"), new.at("spec.selector"), old.at("spec.selector"));
    errors
}

/// Counters of a status that are not negative and at most another; `bounds` are (smaller, larger, how it is said).
fn counters(new: &Value, old: &Value, names: &[&str], bounds: &[(&str, &str, &str)]) -> Errors {
    let mut errors = Errors::new();
    let status = new.at("status");
    not_negative(&mut errors, status, names, &STATUS);
    for (small, large, said) in bounds {
        if status.int(small) > status.int(large) {
            errors.invalid(&STATUS.child(small), status.int(small), format!("cannot be greater than {said}"));
        }
    }
    if status.int("collisionCount") < old.int("status.collisionCount") {
        errors.invalid(
            &STATUS.child("collisionCount"),
            status.int("collisionCount"),
            "cannot be decremented",
        );
    }
    errors
}

pub fn deployment_status(new: &Value, old: &Value) -> Errors {
    counters(
        new,
        old,
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "collisionCount",
        ],
        &[
            ("updatedReplicas", "replicas", "status.replicas"),
            ("readyReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "readyReplicas", "readyReplicas"),
        ],
    )
}

pub fn replica_set(set: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = set.at("spec");
    not_negative(&mut errors, spec, &["replicas", "minReadySeconds"], &SPEC);
    selector(&mut errors, spec, "deployment");
    template(&mut errors, spec.at("template"), "ReplicaSet");
    errors
}

pub fn replica_set_update(new: &Value, old: &Value) -> Errors {
    let mut errors = if new.at("spec") == old.at("spec") { Errors::new() } else { replica_set(new) };
    errors.immutable(&SPEC.child("selector"), new.at("spec.selector"), old.at("spec.selector"));
    errors
}

pub fn replica_set_status(new: &Value, old: &Value) -> Errors {
    counters(
        new,
        old,
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
            "terminatingReplicas",
        ],
        &[
            ("fullyLabeledReplicas", "replicas", "status.replicas"),
            ("readyReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "readyReplicas", "readyReplicas"),
        ],
    )
}

pub fn stateful_set(set: &Value) -> Errors {
    let mut errors = stateful_set_spec(set);
    let spec = set.at("spec");
    for (i, claim) in spec.list("volumeClaimTemplates").iter().enumerate() {
        let list = SPEC.child("volumeClaimTemplates");
        persistent_volume::claim_spec(&mut errors, claim.at("spec"), &list.index(i).child("spec"));
    }
    let service = spec.text("serviceName");
    if !service.is_empty() {
        errors.invalid_each(&SPEC.child("serviceName"), service, check::dns1123_label(service));
    }
    errors
}

fn stateful_set_spec(set: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = set.at("spec");
    match spec.text("podManagementPolicy") {
        "" => errors.required(&SPEC.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => {
            errors.invalid(&SPEC.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'");
        }
    }
    let strategy = SPEC.child("updateStrategy");
    let path = strategy.child("rollingUpdate");
    let rolling = spec.at("updateStrategy.rollingUpdate");
    match spec.text("updateStrategy.type") {
        "" => errors.required(&strategy, ""),
        "OnDelete" => {
            if !rolling.is_null() {
                errors.invalid(&path, rolling.clone(), "only allowed for updateStrategy 'RollingUpdate'");
            }
        }
        "RollingUpdate" => {
            not_negative(&mut errors, rolling, &["partition"], &path);
        }
        _ => errors.invalid(
            &strategy,
            spec.at("updateStrategy").clone(),
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    for name in ["whenDeleted", "whenScaled"] {
        let policy = spec.at("persistentVolumeClaimRetentionPolicy").text(name);
        let path = SPEC.child("persistentVolumeClaimRetentionPolicy");
        errors.one_of(&path.child(name), policy, &["Retain", "Delete"]);
    }
    not_negative(&mut errors, spec, &["replicas", "minReadySeconds"], &SPEC);
    errors.not_negative(&SPEC.child("ordinals.start"), spec.int("ordinals.start"));
    selector(&mut errors, spec, "statefulset");
    // Mounts may name the claims, which become volumes of the pods.
    let mut pods = spec.at("template").clone();
    pods.remove("spec.hostname");
    pods.remove("spec.subdomain");
    let claims = spec.list("volumeClaimTemplates");
    if !claims.is_empty() {
        let mut volumes: Vec<Value> = claims
            .iter()
            .map(|c| {
                let name = c.text("metadata.name");
                serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}})
            })
            .collect();
        let own = pods.list("spec.volumes");
        let own = own.iter().filter(|v| !claims.iter().any(|c| c.text("metadata.name") == v.text("name")));
        volumes.extend(own.cloned());
        pods.put("spec.volumes", volumes);
    }
    template(&mut errors, &pods, "StatefulSet");
    errors
}

pub fn stateful_set_update(new: &Value, old: &Value) -> Errors {
    if new.at("spec") == old.at("spec") {
        return Errors::new();
    }
    let mut errors = stateful_set_spec(new);
    let mut spec = new.at("spec").clone();
    for name in [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ] {
        spec.copy_from(old.at("spec"), name);
    }
    if !equality::same(&spec, old.at("spec")) {
        errors.forbidden(
            &SPEC,
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
    errors
}

pub fn stateful_set_status(new: &Value, old: &Value) -> Errors {
    counters(
        new,
        old,
        &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ],
        &[
            ("readyReplicas", "replicas", "status.replicas"),
            ("currentReplicas", "replicas", "status.replicas"),
            ("updatedReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "replicas", "status.replicas"),
            ("availableReplicas", "readyReplicas", "status.readyReplicas"),
        ],
    )
}

pub fn daemon_set(set: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = set.at("spec");
    selector(&mut errors, spec, "daemonset");
    template(&mut errors, spec.at("template"), "DaemonSet");
    not_negative(&mut errors, spec, &["minReadySeconds", "revisionHistoryLimit"], &SPEC);
    let path = SPEC.child("updateStrategy");
    match spec.text("updateStrategy.type") {
        "OnDelete" => {}
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let rolling = spec.at("updateStrategy.rollingUpdate");
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            for (name, value) in [("maxUnavailable", unavailable), ("maxSurge", surge)] {
                number_or_percent(&mut errors, value, &path.child(name));
                at_most_all(&mut errors, value, &path.child(name));
            }
            match (amount(unavailable) != 0, amount(surge) != 0) {
                (true, true) => errors.invalid(
                    &path.child("maxSurge"),
                    surge.clone(),
                    "may not be set when maxUnavailable is non-zero",
                ),
                (false, false) => {
                    errors.required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0");
                }
                _ => {}
            }
        }
        _ => errors.not_supported(&path, spec.at("updateStrategy").clone(), &["RollingUpdate", "OnDelete"]),
    }
    errors
}

pub fn daemon_set_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if new.at("spec") != old.at("spec") {
        errors.immutable(&SPEC.child("selector"), new.at("spec.selector"), old.at("spec.selector"));
        errors.extend(daemon_set(new));
    }
    errors
}

pub fn daemon_set_status(new: &Value, old: &Value) -> Errors {
    counters(
        new,
        old,
        &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ],
        &[],
    )
}

pub fn revision(revision: &Value) -> Errors {
    let mut errors = Errors::new();
    errors.not_negative(&Path::new("revision"), revision.int("revision"));
    match revision.at("data") {
        Value::Null => errors.required(&Path::new("data"), "data is mandatory"),
        Value::Object(_) => {}
        _ => errors.required(&Path::new("data"), "data must be a valid JSON object"),
    }
    errors
}

pub fn revision_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    errors.not_negative(&Path::new("revision"), new.int("revision"));
    if new.at("data") != old.at("data") {
        errors.invalid(&Path::new("data"), new.at("data").clone(), check::IMMUTABLE);
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::strategy;

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn workload(resource: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut object = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        change(&mut object);
        strategy("apps", resource).defaults(&mut object);
        object
    }

    #[test]
    fn what_is_wrong_with_workloads() {
        type Change = fn(&mut Value);
        let cases: Vec<(&str, Change, &[&str])> = vec![
            ("deployments", |_| {}, &[]),
            ("replicasets", |_| {}, &[]),
            ("daemonsets", |_| {}, &[]),
            ("statefulsets", |_| {}, &[]),
            (
                "deployments",
                |d| d["spec"]["selector"]["matchLabels"]["a"] = json!("c"),
                &[
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
                ],
            ),
            (
                "deployments",
                |d| d["spec"]["template"]["spec"]["restartPolicy"] = json!("Never"),
                &[
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                ],
            ),
            (
                "deployments",
                |d| {
                    d["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}})
                },
                &[
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                "statefulsets",
                |d| {
                    d["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}}}}]);
                    d["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
                        json!([{"name": "v", "mountPath": "/v"}]);
                },
                &[],
            ),
            (
                "daemonsets",
                |d| d["spec"]["selector"] = Value::Null,
                &[
                    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template \
                     `labels`",
                ],
            ),
        ];
        for (resource, change, want) in cases {
            let object = workload(resource, change);
            assert_eq!(texts(&strategy("apps", resource).validate(&object)), want, "{resource} {object}");
        }
    }

    #[test]
    fn what_may_change() {
        let old = workload("statefulsets", |_| {});
        let mut new = old.clone();
        new["spec"]["replicas"] = json!(7);
        assert_eq!(texts(&stateful_set_update(&new, &old)), Vec::<String>::new());
        new["spec"]["serviceName"] = json!("x");
        assert_eq!(stateful_set_update(&new, &old).len(), 1);
        let old = workload("deployments", |_| {});
        let mut new = old.clone();
        new["spec"]["selector"]["matchLabels"] = json!({"c": "d"});
        new["spec"]["template"]["metadata"]["labels"] = json!({"c": "d"});
        assert_eq!(
            texts(&deployment_update(&new, &old)),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"c\":\"d\"}}: field is immutable"]
        );
    }
}
