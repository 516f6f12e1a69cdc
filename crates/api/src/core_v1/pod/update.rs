//! What may change while a pod lives.

use serde_json::Value;

use super::scheduling;
use super::validation::{MAX_DEADLINE, MIRROR, annotations, ip, metadata_and_spec};
use crate::check::{self, Report};
use crate::equality;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn update(new: &Value, old: &Value) -> Errors {
    let spec_path = Path::new("spec");
    let (spec, was) = (new.at("spec"), old.at("spec"));
    if spec == was {
        // Most updates touch metadata only.
        let mut errors = Errors::new();
        annotations(&mut errors, new);
        annotations_update(&mut errors, new, old);
        return errors;
    }
    let mut errors = metadata_and_spec(new);
    annotations_update(&mut errors, new, old);
    for list in ["containers", "initContainers"] {
        if spec.list(list).len() != was.list(list).len() {
            errors.forbidden(&spec_path.child(list), "pod updates may not add or remove containers");
            return errors;
        }
    }
    let deadline_path = spec_path.child("activeDeadlineSeconds");
    match (spec.maybe_int("activeDeadlineSeconds"), was.maybe_int("activeDeadlineSeconds")) {
        (Some(now), _) if !(0..=MAX_DEADLINE).contains(&now) => {
            errors.invalid(&deadline_path, now, format!("must be between 0 and {MAX_DEADLINE}, inclusive"));
            return errors;
        }
        (Some(now), Some(before)) if before < now => {
            errors.invalid(&deadline_path, now, "must be less than or equal to previous value");
            return errors;
        }
        (None, Some(_)) => {
            errors.invalid(
                &deadline_path,
                Value::Null,
                "must not update from a positive integer to nil value",
            );
        }
        _ => {}
    }
    scheduling::tolerations_update(
        &mut errors,
        spec.list("tolerations"),
        was.list("tolerations"),
        &spec_path.child("tolerations"),
    );
    let gates = was.list("schedulingGates");
    for (i, gate) in spec.list("schedulingGates").iter().enumerate() {
        if !gates.iter().any(|g| g.text("name") == gate.text("name")) {
            errors.forbidden(
                &spec_path.child("schedulingGates").index(i).child("name"),
                format!("only deletion is allowed, but found new scheduling gate '{}'", gate.text("name")),
            );
        }
    }
    if equality::same(spec, was) {
        return errors;
    }
    let mut munged = spec.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in munged.list_mut(list).zip(was.list(list)) {
            container.copy_from(before, "image");
        }
    }
    for member in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        munged.copy_from(was, member);
    }
    if was.int("terminationGracePeriodSeconds") < 0 && spec.int("terminationGracePeriodSeconds") == 1 {
        munged.copy_from(was, "terminationGracePeriodSeconds");
    }
    if !gates.is_empty() {
        gated_update(&mut errors, &mut munged, was, &spec_path);
    }
    if !equality::same(&munged, was) {
        let changes = difference(was, &munged);
        errors.forbidden(
            &spec_path,
            format!("pod updates may not change fields other than {UPDATABLE}\n{changes}"),
        );
    }
    errors
}

fn annotations_update(errors: &mut Errors, new: &Value, old: &Value) {
    let metadata = Path::new("metadata");
    let path = metadata.child("annotations");
    let (now, before) = (
        new.at("metadata.annotations").get_or_null(MIRROR),
        old.at("metadata.annotations").get_or_null(MIRROR),
    );
    if now != before {
        let text = if now.is_null() {
            "may not remove mirror pod annotation"
        } else if before.is_null() {
            "may not add mirror pod annotation"
        } else {
            "may not update mirror pod annotation"
        };
        errors.forbidden(&path.key(MIRROR), text);
    }
}

/// A gated pod may still become pickier about its node.
fn gated_update(errors: &mut Errors, munged: &mut Value, was: &Value, path: &Path<'_>) {
    let (now, before) = (munged.at("nodeSelector"), was.at("nodeSelector"));
    let kept = before.as_object().into_iter().flatten().all(|(key, value)| now.get_or_null(key) == value);
    if !kept {
        errors.invalid(
            &path.child("nodeSelector"),
            now.clone(),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        );
    }
    munged.copy_from(was, "nodeSelector");
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let (now, before) = (munged.at("affinity.nodeAffinity"), was.at("affinity.nodeAffinity"));
    if !equality::same(now, before) {
        let affinity = path.child("affinity");
        let node = affinity.child("nodeAffinity");
        let path = node.child(REQUIRED);
        let terms = |a: &Value| a.at(REQUIRED).list("nodeSelectorTerms").to_vec();
        let (now_terms, before_terms) = (terms(now), terms(before));
        if !before_terms.is_empty() && now_terms.len() != before_terms.len() {
            errors.invalid(
                &path.child("nodeSelectorTerms"),
                now.at(REQUIRED).at("nodeSelectorTerms").clone(),
                "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
            );
        } else {
            for (i, (now, before)) in now_terms.iter().zip(&before_terms).enumerate() {
                let only_more = ["matchExpressions", "matchFields"]
                    .iter()
                    .all(|list| before.list(list).iter().all(|r| now.list(list).contains(r)));
                if !only_more {
                    errors.invalid(
                        &path.child("nodeSelectorTerms").index(i),
                        now.clone(),
                        "only additions are allowed (no mutations or deletions)",
                    );
                }
            }
        }
        match was.at("affinity.nodeAffinity") {
            Value::Null => {
                munged.remove("affinity.nodeAffinity");
                let empty = munged.at("affinity").as_object().is_some_and(serde_json::Map::is_empty);
                if empty && !was.has("affinity") {
                    munged.remove("affinity");
                }
            }
            before => munged.put("affinity.nodeAffinity", before.clone()),
        }
    }
}

/// The members that differ, one line for each.
fn difference(old: &Value, new: &Value) -> String {
    let mut lines = vec![];
    collect(old, new, String::new(), &mut lines);
    lines.join("\n")
}

fn collect(old: &Value, new: &Value, at: String, lines: &mut Vec<String>) {
    const MAX_LINES: usize = 20;
    if lines.len() >= MAX_LINES || equality::same(old, new) {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let mut names: Vec<&String> = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))).collect();
            names.sort();
            for name in names {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                collect(old.get_or_null(name), new.get_or_null(name), at, lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                collect(a, b, format!("{at}[{i}]"), lines);
            }
        }
        _ => lines.push(format!("{at}: {old} -> {new}")),
    }
}

pub fn status_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    annotations_update(&mut errors, new, old);
    let path = Path::new("status");
    for (i, condition) in new.list("status.conditions").iter().enumerate() {
        let kind = condition.text("type");
        let list = path.child("conditions");
        let path = list.index(i);
        if condition.int("observedGeneration") < 0 {
            errors.invalid(
                &path.child("observedGeneration"),
                condition.int("observedGeneration"),
                "must be a non-negative integer",
            );
        }
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            errors.invalid_each(&path.child("Type"), kind, check::qualified_name(kind));
        }
    }
    let nominated = new.text("status.nominatedNodeName");
    if !nominated.is_empty() && nominated != old.text("status.nominatedNodeName") {
        errors.invalid_each(&path.child("nominatedNodeName"), nominated, check::dns1123_subdomain(nominated));
    }
    if new.int("status.observedGeneration") < 0 {
        errors.invalid(
            &path.child("observedGeneration"),
            new.int("status.observedGeneration"),
            "must be a non-negative integer",
        );
    }
    errors.immutable(&path.child("qosClass"), new.at("status.qosClass"), old.at("status.qosClass"));
    resurrection(&mut errors, new, old, &path.child("containerStatuses"));
    claims_given(&mut errors, new, &path);
    for (list, what) in [("podIPs", "status.podIPs"), ("hostIPs", "status.hostIPs")] {
        let ips: Vec<&str> = new.list(what).iter().map(|ip| ip.text("ip")).collect();
        for (i, text) in ips.iter().enumerate() {
            ip(&mut errors, text, &path.child(list).index(i));
        }
        let six = ips.iter().filter(|ip| ip.contains(':')).count();
        if ips.len() > 2 || (ips.len() == 2 && six != 1) {
            errors.invalid(
                &path.child(list),
                new.at(what).clone(),
                "may specify no more than one IP for each IP family",
            );
        }
    }
    health_of_resources(&mut errors, new, &path);
    errors
}

/// Claims that were made for a pod, by its own name for them or for resources that devices stand for.
fn claims_given(errors: &mut Errors, pod: &Value, path: &Path<'_>) {
    let list = path.child("resourceClaimStatuses");
    let statuses = pod.list("status.resourceClaimStatuses");
    for (i, status) in statuses.iter().enumerate() {
        let path = list.index(i);
        let name = status.text("name");
        if !pod.list("spec.resourceClaims").iter().any(|claim| claim.text("name") == name) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            errors.invalid(&path.child("name"), name, why);
        }
        if statuses[..i].iter().any(|before| before.text("name") == name) {
            errors.duplicate(&path.child("name"), name);
        }
        if status.has("resourceClaimName") {
            let claim = status.text("resourceClaimName");
            errors.invalid_each(&path.child("resourceClaimName"), claim, check::dns1123_subdomain(claim));
        }
    }
    let status = pod.at("status.extendedResourceClaimStatus");
    if status.is_null() {
        return;
    }
    let path = path.child("extendedResourceClaimStatus");
    let (mappings, list) = (status.list("requestMappings"), path.child("requestMappings"));
    if mappings.is_empty() {
        errors.required(&list, "at least one request mapping is required");
    }
    for (i, mapping) in mappings.iter().enumerate() {
        let at = list.index(i);
        let names = ["containerName", "resourceName", "requestName"].map(|name| mapping.text(name));
        let [container, resource, request] = names;
        let mut containers = pod.list("spec.containers").iter().chain(pod.list("spec.initContainers"));
        match containers.find(|c| c.text("name") == container) {
            None => errors.invalid(
                &at.child("containerName"),
                container,
                "must match the name of an entry in spec.initContainers.name or spec.containers.name",
            ),
            Some(found) if found.at("resources.requests").get_or_null(resource).is_null() => errors.invalid(
                &at.child("resourceName"),
                resource,
                "must match the extended resource name of an entry in spec.initContainers.resources.requests or \
                 spec.containers.resources.requests",
            ),
            Some(_) => {}
        }
        errors.invalid_each(&path.child("requestName"), request, check::dns1123_label(request));
        let same = |other: &Value| {
            ["containerName", "resourceName", "requestName"].map(|name| other.text(name)) == names
        };
        if mappings[..i].iter().any(same) {
            for (name, value) in
                [("containerName", container), ("resourceName", resource), ("requestName", request)]
            {
                errors.duplicate(&at.child(name), value);
            }
        }
    }
    let (claim, at) = (status.text("resourceClaimName"), path.child("resourceClaimName"));
    if claim.is_empty() {
        errors.required(&at, "");
    } else {
        errors.invalid_each(&at, claim, check::dns1123_subdomain(claim));
    }
}

/// What containers say of the devices they hold.
fn health_of_resources(errors: &mut Errors, pod: &Value, path: &Path<'_>) {
    const MESSAGE_MAX_BYTES: usize = 256;
    for (statuses, containers) in
        [("containerStatuses", "spec.containers"), ("initContainerStatuses", "spec.initContainers")]
    {
        for (i, status) in pod.at("status").list(statuses).iter().enumerate() {
            let list = path.child(statuses);
            let path = list.index(i);
            let container = pod.list(containers).iter().find(|c| c.text("name") == status.text("name"));
            for (j, resource) in status.list("allocatedResourcesStatus").iter().enumerate() {
                let list = path.child("allocatedResourcesStatus");
                let path = list.index(j);
                let name = resource.text("name");
                if let Some(container) = container {
                    let of_claim = |claim: &Value| match claim.text("request") {
                        "" => format!("claim:{}", claim.text("name")) == name,
                        request => format!("claim:{}/{request}", claim.text("name")) == name,
                    };
                    let (known, why) = if name.starts_with("claim:") {
                        (
                            container.list("resources.claims").iter().any(of_claim),
                            "must match one of the container's resource claims in a format \
                             'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty",
                        )
                    } else {
                        let asked = container.at("resources.requests").get_or_null(name);
                        (!asked.is_null(), "must match one of the container's resource requests")
                    };
                    if !known {
                        errors.invalid(&path.child("name"), name, why);
                    }
                }
                let all = resource.list("resources");
                for (k, one) in all.iter().enumerate() {
                    let list = path.child("resources");
                    let path = list.index(k);
                    let health = one.text("health");
                    errors.one_of(&path.child("health"), health, &["Healthy", "Unhealthy", "Unknown"]);
                    if one.has("message") {
                        match one.text("message").len() {
                            0 => errors.required(&path.child("message"), "must be non-empty if specified"),
                            n if n > MESSAGE_MAX_BYTES => {
                                errors.too_long(&path.child("message"), MESSAGE_MAX_BYTES);
                            }
                            _ => {}
                        }
                    }
                    let id = one.text("resourceID");
                    if all[..k].iter().any(|before| before.text("resourceID") == id) {
                        errors.duplicate(&path.child("resourceID"), id);
                    }
                }
            }
        }
    }
    for (i, status) in pod.list("status.ephemeralContainerStatuses").iter().enumerate() {
        if status.has("allocatedResourcesStatus") {
            let list = path.child("ephemeralContainerStatuses");
            let path = list.index(i);
            errors.forbidden(
                &path.child("allocatedResourcesStatus"),
                "must not be specified in container status",
            );
        }
    }
}

/// A container that ended for good stays ended.
fn resurrection(errors: &mut Errors, new: &Value, old: &Value, path: &Path<'_>) {
    let spec = old.at("spec");
    let restarts = |name: &str, exit_code: i64| {
        let container = spec.list("containers").iter().find(|c| c.text("name") == name);
        let by_rule = container.into_iter().flat_map(|c| c.list("restartPolicyRules")).any(|rule| {
            let listed = rule.list("exitCodes.values").iter().any(|v| v.as_i64() == Some(exit_code));
            listed == (rule.text("exitCodes.operator") == "In")
        });
        let own = container.map_or("", |c| c.text("restartPolicy"));
        let policy = if own.is_empty() { spec.text("restartPolicy") } else { own };
        by_rule || policy == "Always" || (policy == "OnFailure" && exit_code != 0)
    };
    for (i, before) in old.list("status.containerStatuses").iter().enumerate() {
        let ended = before.at("state.terminated");
        let name = before.text("name");
        if ended.is_null() || restarts(name, ended.int("exitCode")) {
            continue;
        }
        let now = new.list("status.containerStatuses").iter().find(|s| s.text("name") == name);
        if now.is_some_and(|s| !s.has("state.terminated")) {
            errors
                .forbidden(&path.index(i).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

pub fn subresource(subresource: &str, new: &Value, old: &Value) -> Errors {
    match subresource {
        "ephemeralcontainers" => ephemeral_containers(new, old),
        "resize" => resize(new, old),
        _ => update(new, old),
    }
}

fn ephemeral_containers(new: &Value, old: &Value) -> Errors {
    let mut errors = metadata_and_spec(new);
    if old.at("metadata.annotations").get(MIRROR).is_some() {
        let mut errors = Errors::new();
        errors.forbidden(&Path::new(""), "static pods do not support ephemeral containers");
        return errors;
    }
    let spec = Path::new("spec");
    let path = spec.child("ephemeralContainers");
    for before in old.list("spec.ephemeralContainers") {
        let name = before.text("name");
        match new.list("spec.ephemeralContainers").iter().find(|c| c.text("name") == name) {
            None => errors
                .forbidden(&path, format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if !equality::same(before, now) => errors.forbidden(
                &path,
                format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    difference(before, now)
                ),
            ),
            Some(_) => {}
        }
    }
    errors
}

fn resize(new: &Value, old: &Value) -> Errors {
    let mut errors = metadata_and_spec(new);
    let path = Path::new("spec");
    let never = if old.at("metadata.annotations").get(MIRROR).is_some() {
        "static pods cannot be resized"
    } else if old.text("spec.os.name") == "windows" {
        "windows pods cannot be resized"
    } else {
        ""
    };
    if !never.is_empty() {
        // No field is to blame, which upstream shows so.
        errors.clear();
        errors.forbidden(&Path::new("[]"), never);
        return errors;
    }
    let was = old.text("status.qosClass");
    if !was.is_empty() && was != super::qos_class(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.invalid(&path, new.text("status.qosClass"), why);
    }
    for list in ["containers", "initContainers"] {
        let (now, before) = (new.at("spec").list(list), old.at("spec").list(list));
        if now.len() != before.len() {
            errors.forbidden(&path.child(list), format!("{list} may not be added or removed on resize"));
            return errors;
        }
        if let Some(i) = now.iter().zip(before).position(|(now, was)| now.text("name") != was.text("name")) {
            errors.forbidden(
                &path.child(list).index(i).child("name"),
                "containers may not be renamed or reordered on resize",
            );
            return errors;
        }
    }
    for list in ["initContainers", "containers"] {
        let (now, before) = (new.at("spec").list(list), old.at("spec").list(list));
        for (i, (now, before)) in now.iter().zip(before).enumerate() {
            let holder = path.child(list);
            let item = holder.index(i);
            let path = item.child("resources");
            for kind in ["requests", "limits"] {
                let after = now.at("resources").at(kind);
                let gone =
                    before.at("resources").entries(kind).any(|(name, _)| after.get_or_null(name).is_null());
                if gone {
                    errors.forbidden(&path.child(kind), format!("resource {kind} cannot be removed"));
                }
            }
        }
    }
    let mut munged = new.at("spec").clone();
    let before = old.at("spec");
    munged.copy_from(before, "resources");
    for list in ["containers", "initContainers"] {
        for (i, (container, was)) in munged.list_mut(list).zip(before.list(list)).enumerate() {
            for kind in ["requests", "limits"] {
                for name in ["cpu", "memory"] {
                    container.copy_from(was, &format!("resources.{kind}.{name}"));
                }
            }
            container.copy_from(was, "resources.claims");
            if equality::same(container, was) {
                continue;
            }
            if list == "containers" {
                errors.forbidden(&path, "only cpu and memory resources are mutable");
            } else {
                let holder = path.child(list);
                let why = "only cpu and memory resources for init or sidecar containers are mutable";
                errors.forbidden(&holder.index(i), why);
            }
        }
    }
    if errors.is_empty() && !equality::same(&munged, before) {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
    errors
}
