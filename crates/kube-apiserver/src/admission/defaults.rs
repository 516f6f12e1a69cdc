//! Small plugins that fill something in: taints of new nodes, tolerations, default classes, protection finalizers,
//! the overhead and placement of a runtime class, topology labels.

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use serde_json::{Value, json};

use super::pod_resources::amounts;
use super::{Context, array, creates, items, object, refuse, writes};
use crate::seams::{AdmissionRequest, Operation};

const STORAGE: &str = "storage.k8s.io";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const TOLERATION_SECONDS: i64 = 300;

/// A new node is not ready until the node controller has seen it ready.
pub(super) fn taint_new_nodes(_: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !creates(request, "", "nodes") {
        return Ok(());
    }
    object(request.object, "spec");
    let taints = array(&mut request.object["spec"], "taints");
    if !taints.iter().any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule") {
        taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
    }
    Ok(())
}

/// Pods stay five minutes on a node that stopped answering.
pub(super) fn toleration_seconds(_: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !writes(request, "", "pods") || !request.object["spec"].is_object() {
        return Ok(());
    }
    let spec = &mut request.object["spec"];
    for key in [NOT_READY, UNREACHABLE] {
        let tolerated = items(spec, "tolerations").any(|t| {
            let (k, effect) =
                (t["key"].as_str().unwrap_or_default(), t["effect"].as_str().unwrap_or_default());
            (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            array(spec, "tolerations").push(json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
    Ok(())
}

/// The newest of the objects marked as default by one of the annotations; the first by name among equally new ones.
fn marked_default(context: &Context, group: &str, resource: &str, annotations: &[&str]) -> Option<Value> {
    let decode = |o: &std::sync::Arc<Encoded>| serde_json::from_slice::<Value>(&o.body).ok();
    let mut marked: Vec<Value> = context
        .objects
        .list(group, resource, None)
        .iter()
        .filter_map(decode)
        .filter(|o| annotations.iter().any(|a| o["metadata"]["annotations"][*a] == "true"))
        .collect();
    let text = |o: &Value, field: &str| o["metadata"][field].as_str().unwrap_or_default().to_owned();
    marked.sort_by(|a, b| {
        let newer = text(b, "creationTimestamp").cmp(&text(a, "creationTimestamp"));
        newer.then_with(|| text(a, "name").cmp(&text(b, "name")))
    });
    marked.into_iter().next()
}

pub(super) fn storage_class(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    const BETA: &str = "volume.beta.kubernetes.io/storage-class";
    let claim = &*request.object;
    let given =
        !claim["spec"]["storageClassName"].is_null() || !claim["metadata"]["annotations"][BETA].is_null();
    if !creates(request, "", "persistentvolumeclaims") || given || !claim["spec"].is_object() {
        return Ok(());
    }
    let annotations =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if let Some(class) = marked_default(context, STORAGE, "storageclasses", &annotations) {
        request.object["spec"]["storageClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

pub(super) fn ingress_class(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    const GROUP: &str = "networking.k8s.io";
    let ingress = &*request.object;
    let given = !ingress["spec"]["ingressClassName"].is_null()
        || !ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_null();
    if !creates(request, GROUP, "ingresses") || given || !ingress["spec"].is_object() {
        return Ok(());
    }
    let annotation = ["ingressclass.kubernetes.io/is-default-class"];
    if let Some(class) = marked_default(context, GROUP, "ingressclasses", &annotation) {
        request.object["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
    }
    Ok(())
}

/// What is in use is deleted only when its users are gone.
pub(super) fn protection_finalizers(_: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let finalizer = match (request.group, request.resource) {
        ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
        ("", "persistentvolumes") => "kubernetes.io/pv-protection",
        (STORAGE, "volumeattributesclasses") => "kubernetes.io/vac-protection",
        _ => return Ok(()),
    };
    if request.operation != Operation::Create || !request.subresource.is_empty() {
        return Ok(());
    }
    object(request.object, "metadata");
    let finalizers = array(&mut request.object["metadata"], "finalizers");
    if !finalizers.iter().any(|f| f == finalizer) {
        finalizers.push(json!(finalizer));
    }
    Ok(())
}

/// Claims grow only when they are bound and their class allows it.
pub(super) fn claim_resize(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let Some(old) = request.old_object else { return Ok(()) };
    if !writes(request, "", "persistentvolumeclaims") {
        return Ok(());
    }
    let size = |claim: &Value| amounts(&claim["spec"]["resources"]["requests"]).get("storage").copied();
    match (size(request.object), size(old)) {
        (Some(new), Some(old)) if new > old => {}
        _ => return Ok(()),
    }
    if old["status"]["phase"] != "Bound" {
        return Err(refuse(request, "Only bound persistent volume claims can be expanded"));
    }
    let annotation = &request.object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let class = annotation.as_str().or_else(|| request.object["spec"]["storageClassName"].as_str());
    let class = class.and_then(|name| context.objects.get(STORAGE, "storageclasses", "", name));
    let allows = class.and_then(|c| serde_json::from_slice::<Value>(&c.body).ok());
    if allows.is_some_and(|c| c["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(refuse(
        request,
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
         resize",
    ))
}

/// The runtime class that a pod names.
fn class_of(context: &Context, request: &AdmissionRequest<'_>) -> Result<Option<Value>, Status> {
    let name = request.object["spec"]["runtimeClassName"].as_str().filter(|name| !name.is_empty());
    let Some(name) = name else { return Ok(None) };
    let class = context.objects.get("node.k8s.io", "runtimeclasses", "", name);
    match class.and_then(|c| serde_json::from_slice(&c.body).ok()) {
        Some(class) => Ok(Some(class)),
        None => Err(refuse(request, format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

/// A pod's overhead is what its class says, and nothing where that says nothing.
pub(super) fn runtime_overhead(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !creates(request, "", "pods") {
        return Ok(());
    }
    let given = &request.object["spec"]["overhead"];
    // Most pods have neither.
    if given.is_null() && request.object["spec"]["runtimeClassName"].is_null() {
        return Ok(());
    }
    let class = class_of(context, request)?;
    let fixed = class.as_ref().map_or(&Value::Null, |class| &class["overhead"]);
    if fixed.is_null() && !given.is_null() {
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return Err(refuse(request, why));
    }
    if !fixed.is_null() && amounts(&fixed["podFixed"]) != amounts(given) {
        return Err(refuse(
            request,
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ));
    }
    Ok(())
}

pub(super) fn runtime_class(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !creates(request, "", "pods") {
        return Ok(());
    }
    let spec = &request.object["spec"];
    let overhead = spec["overhead"].as_object().filter(|o| !o.is_empty()).cloned();
    let Some(class) = class_of(context, request)? else { return Ok(()) };
    let fixed = class["overhead"]["podFixed"].as_object().filter(|o| !o.is_empty()).cloned();
    match (fixed, overhead) {
        (Some(fixed), None) => request.object["spec"]["overhead"] = Value::Object(fixed),
        (Some(fixed), Some(given)) if fixed != given => {
            return Err(refuse(
                request,
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ));
        }
        _ => {}
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let given = &request.object["spec"]["nodeSelector"][key];
        if !given.is_null() && given != value {
            return Err(refuse(
                request,
                format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    value.as_str().unwrap_or_default(),
                    given.as_str().unwrap_or_default()
                ),
            ));
        }
        object(&mut request.object["spec"], "nodeSelector").insert(key.clone(), value.clone());
    }
    for toleration in items(scheduling, "tolerations") {
        let tolerations = array(&mut request.object["spec"], "tolerations");
        if !tolerations.contains(toleration) {
            tolerations.push(toleration.clone());
        }
    }
    Ok(())
}

/// A binding carries the zone and region of its node to the pod.
pub(super) fn topology_labels(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let binding = request.group.is_empty()
        && (request.resource == "bindings" || request.resource == "pods" && request.subresource == "binding");
    if !binding || request.operation != Operation::Create {
        return Ok(());
    }
    let target = &request.object["target"];
    if target["kind"].as_str().is_some_and(|k| k != "Node" && !k.is_empty()) {
        return Ok(());
    }
    let node = target["name"].as_str().unwrap_or_default();
    let Some(node) = context.objects.get("", "nodes", "", node) else { return Ok(()) };
    for key in ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"] {
        if let Some(value) = node.attributes.label(key) {
            object(request.object, "metadata");
            object(&mut request.object["metadata"], "labels").insert(key.to_owned(), json!(value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use std::sync::Arc;

    #[test]
    fn tolerations_are_added_unless_given() {
        let context = context(&Arc::new(FakeObjects::default()));
        for (given, want) in [
            (json!([]), 2),
            (json!([{"operator": "Exists"}]), 1),
            (json!([{"key": NOT_READY, "effect": "NoExecute", "tolerationSeconds": 1}]), 2),
            (json!([{"key": NOT_READY, "effect": "NoSchedule"}]), 3),
        ] {
            let pod = json!({"metadata": {"name": "p"}, "spec": {"tolerations": given}});
            let mut request = Request::create("", "pods", pod);
            request.with(|r| toleration_seconds(&context, r)).unwrap();
            assert_eq!(request.object["spec"]["tolerations"].as_array().unwrap().len(), want);
        }
    }

    #[test]
    fn default_classes() {
        let objects = Arc::new(FakeObjects::default());
        let class = |name: &str, at: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": at,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}})
        };
        objects.put(STORAGE, "storageclasses", class("old", "2020-01-01T00:00:00Z"));
        objects.put(STORAGE, "storageclasses", class("new", "2021-01-01T00:00:00Z"));
        let context = context(&objects);
        for (spec, want) in [(json!({}), "new"), (json!({"storageClassName": ""}), "")] {
            let claim = json!({"metadata": {"name": "c"}, "spec": spec});
            let mut request = Request::create("", "persistentvolumeclaims", claim);
            request.with(|r| storage_class(&context, r)).unwrap();
            request.with(|r| protection_finalizers(&context, r)).unwrap();
            assert_eq!(request.object["spec"]["storageClassName"], want);
            assert_eq!(request.object["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
        }
    }

    #[test]
    fn runtime_classes() {
        let objects = Arc::new(FakeObjects::default());
        objects.put(
            "node.k8s.io",
            "runtimeclasses",
            json!({"metadata": {"name": "r"}, "overhead": {"podFixed": {"cpu": "1"}},
                   "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "t"}]}}),
        );
        let context = context(&objects);
        let run = |spec: Value| {
            let mut request = Request::create("", "pods", json!({"metadata": {"name": "p"}, "spec": spec}));
            request
                .with(|r| runtime_class(&context, r).and_then(|()| runtime_overhead(&context, r)))
                .map(|()| request.object["spec"].clone())
        };
        let spec = run(json!({"runtimeClassName": "r"})).unwrap();
        assert_eq!(spec["overhead"], json!({"cpu": "1"}));
        assert_eq!(
            (&spec["nodeSelector"], &spec["tolerations"]),
            (&json!({"a": "b"}), &json!([{"key": "t"}]))
        );
        for spec in [
            json!({"runtimeClassName": "missing"}),
            json!({"overhead": {"cpu": "1"}}),
            json!({"runtimeClassName": "r", "overhead": {"cpu": "2"}}),
            json!({"runtimeClassName": "r", "nodeSelector": {"a": "c"}}),
        ] {
            assert_eq!(run(spec.clone()).unwrap_err().code, 403, "{spec}");
        }
    }

    #[test]
    fn new_nodes_are_tainted() {
        let context = context(&Arc::new(FakeObjects::default()));
        let mut request = Request::create("", "nodes", json!({"metadata": {"name": "n"}}));
        request.with(|r| taint_new_nodes(&context, r)).unwrap();
        assert_eq!(request.object["spec"]["taints"][0]["key"], NOT_READY);
    }
}
