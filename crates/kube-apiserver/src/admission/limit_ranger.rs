//! LimitRanger: default and bounded resources per container, pod and claim of a namespace.

use apimachinery::quantity::Quantity;
use apimachinery::status::Status;
use serde_json::{Value, json};

use super::pod_resources::{Amounts, amounts, of_pod};
use super::{Context, items, object, refuse};
use crate::seams::{AdmissionRequest, Operation};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn concerns(request: &AdmissionRequest<'_>) -> bool {
    let deleting = request.old_object.is_some_and(|o| !o["metadata"]["deletionTimestamp"].is_null());
    let known = match (request.group, request.resource, request.subresource) {
        ("", "pods", "") => request.operation == Operation::Create,
        ("", "pods", "resize") => request.operation == Operation::Update,
        ("", "persistentvolumeclaims", "") => {
            matches!(request.operation, Operation::Create | Operation::Update)
        }
        _ => false,
    };
    known && !deleting
}

fn limits(context: &Context, namespace: &str) -> Vec<Value> {
    let ranges = context.objects.list("", "limitranges", Some(namespace));
    ranges
        .iter()
        .filter_map(|r| serde_json::from_slice::<Value>(&r.body).ok())
        .flat_map(|r| items(&r["spec"], "limits").cloned().collect::<Vec<_>>())
        .collect()
}

pub(super) fn admit(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if concerns(request) && request.resource == "pods" {
        for limit in limits(context, request.namespace).iter().filter(|l| l["type"] == "Container") {
            apply_defaults(request.object, limit);
        }
    }
    Ok(())
}

/// Gives containers the requests and limits they lack, and notes that in an annotation.
fn apply_defaults(pod: &mut Value, limit: &Value) {
    let mut notes: Vec<String> = Vec::new();
    for (field, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"].get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (field, source, kind) in
                [("requests", "defaultRequest", "request"), ("limits", "default", "limit")]
            {
                let mut set: Vec<String> = Vec::new();
                for (resource, value) in limit[source].as_object().into_iter().flatten() {
                    if container["resources"][field].get(resource).is_none() {
                        object(container, "resources");
                        object(&mut container["resources"], field).insert(resource.clone(), value.clone());
                        set.push(resource.clone());
                    }
                }
                if !set.is_empty() {
                    set.sort();
                    notes.push(format!("{} {kind} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        object(pod, "metadata");
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        object(&mut pod["metadata"], "annotations").insert(ANNOTATION.to_owned(), json!(text));
    }
}

pub(super) fn validate(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !concerns(request) {
        return Ok(());
    }
    let mut problems: Vec<String> = Vec::new();
    for limit in limits(context, request.namespace) {
        check(request.resource, request.object, &limit, &mut problems);
    }
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(refuse(request, one)),
        many => Err(refuse(request, format!("[{}]", many.join(", ")))),
    }
}

fn check(resource: &str, object: &Value, limit: &Value, problems: &mut Vec<String>) {
    let kind = limit["type"].as_str().unwrap_or_default();
    let spec = &object["spec"];
    let list = |field: &str, v: &Value| amounts(&v["resources"][field]);
    match (resource, kind) {
        ("pods", "Container") => {
            for container in items(spec, "containers").chain(items(spec, "initContainers")) {
                bounds(kind, limit, &list("requests", container), &list("limits", container), problems);
            }
        }
        ("pods", "Pod") => {
            bounds(kind, limit, &of_pod(spec, "requests"), &of_pod(spec, "limits"), problems);
        }
        ("persistentvolumeclaims", "PersistentVolumeClaim") => {
            let requests = list("requests", spec);
            for (name, min) in amounts(&limit["min"]) {
                problems.extend(minimum(kind, &name, min, requests.get(&name), None));
            }
            for (name, max) in amounts(&limit["max"]) {
                let text = format!("maximum {name} usage per {kind} is {max}");
                match requests.get(&name) {
                    None => problems.push(format!("{text}.  No request is specified")),
                    Some(r) if *r > max => problems.push(format!("{text}, but request is {r}")),
                    Some(_) => {}
                }
            }
        }
        _ => {}
    }
}

fn bounds(kind: &str, limit: &Value, requests: &Amounts, limits: &Amounts, problems: &mut Vec<String>) {
    for (name, min) in amounts(&limit["min"]) {
        problems.extend(minimum(kind, &name, min, requests.get(&name), limits.get(&name)));
    }
    for (name, max) in amounts(&limit["max"]) {
        problems.extend(maximum(kind, &name, max, requests.get(&name), limits.get(&name)));
    }
    for (name, ratio) in amounts(&limit["maxLimitRequestRatio"]) {
        problems.extend(limit_request_ratio(kind, &name, ratio, requests.get(&name), limits.get(&name)));
    }
}

fn minimum(
    kind: &str,
    name: &str,
    min: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let text = format!("minimum {name} usage per {kind} is {min}");
    match (request, limit) {
        (None, _) => Some(format!("{text}.  No request is specified")),
        (Some(r), _) if *r < min => Some(format!("{text}, but request is {r}")),
        (_, Some(l)) if *l < min => Some(format!("{text}, but limit is {l}")),
        _ => None,
    }
}

fn maximum(
    kind: &str,
    name: &str,
    max: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let text = format!("maximum {name} usage per {kind} is {max}");
    match (request, limit) {
        (_, None) => Some(format!("{text}.  No limit is specified")),
        (_, Some(l)) if *l > max => Some(format!("{text}, but limit is {l}")),
        (Some(r), _) if *r > max => Some(format!("{text}, but request is {r}")),
        _ => None,
    }
}

fn limit_request_ratio(
    kind: &str,
    name: &str,
    max: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let text = format!("{name} max limit to request ratio per {kind} is {max}");
    let Some(request) = request.filter(|r| !r.is_zero()) else {
        return Some(format!("{text}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|l| !l.is_zero()) else {
        return Some(format!("{text}, but no limit is specified or limit is 0"));
    };
    let ratio = limit.as_f64() / request.as_f64();
    (ratio > max.as_f64()).then(|| format!("{text}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_gaps() {
        let limit = json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "100m"}});
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "2"}}}]}});
        apply_defaults(&mut pod, &limit);
        let resources = |i: usize| &pod["spec"]["containers"][i]["resources"];
        assert_eq!(resources(0), &json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}}));
        assert_eq!(resources(1), &json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}));
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu limit for container a; cpu limit for container b"
        );
    }

    #[test]
    fn bounds_are_kept() {
        let pod = |request: &str, limit: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": request}, "limits": {"cpu": limit}}}]}});
        for (kind, limit, object, want) in [
            (
                "pods",
                json!({"type": "Container", "min": {"cpu": "1"}}),
                pod("500m", "2"),
                vec!["minimum cpu usage per Container is 1, but request is 500m"],
            ),
            (
                "pods",
                json!({"type": "Container", "max": {"cpu": "1"}}),
                pod("500m", "2"),
                vec!["maximum cpu usage per Container is 1, but limit is 2"],
            ),
            (
                "pods",
                json!({"type": "Pod", "max": {"memory": "1Gi"}}),
                pod("500m", "2"),
                vec!["maximum memory usage per Pod is 1Gi.  No limit is specified"],
            ),
            (
                "pods",
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod("500m", "2"),
                vec!["cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000"],
            ),
            (
                "pods",
                json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "4"}}),
                pod("500m", "2"),
                vec![],
            ),
            (
                "persistentvolumeclaims",
                json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}),
                json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}),
                vec!["maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"],
            ),
        ] {
            let mut problems = Vec::new();
            check(kind, &object, &limit, &mut problems);
            assert_eq!(problems, want);
        }
    }
}
