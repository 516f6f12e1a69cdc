//! NodeRestriction: a kubelet writes its own node, its own pods, and nothing else.

use apimachinery::status::Status;
use serde_json::Value;

use super::{Context, is_mirror_pod, items, refuse};
use crate::authorization::node::node_name;
use crate::seams::{AdmissionRequest, Operation, RequestInfo};
use crate::security::failure;

const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Labels of the kubernetes.io and k8s.io domains that kubelets set.
const KUBELET_LABELS: [&str; 14] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "node.kubernetes.io/exclude-from-external-load-balancers",
];
const KUBELET_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) fn admit(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let Some(node) = node_name(request.user).map(str::to_owned) else { return Ok(()) };
    if node.is_empty() {
        let text = format!("could not determine node from user {:?}", request.user.name);
        return Err(refuse(request, text));
    }
    decide(context, &node, request)
}

fn decide(context: &Context, node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let operation = request.operation;
    let say = |text: String| Err(refuse(request, text));
    let pod_on_node = |name: &str| -> Result<bool, Status> {
        let pod = context.objects.get("", "pods", request.namespace, name);
        let pod = pod.ok_or_else(|| failure::not_found("", "pods", name))?;
        Ok(pod.attributes.field("spec.nodeName") == Some(node))
    };
    match (request.group, request.resource, request.subresource) {
        ("", "pods", "") => match operation {
            Operation::Create => pod_create(context, node, request),
            Operation::Delete => {
                if pod_on_node(request.name)? {
                    return Ok(());
                }
                say(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
            }
            _ => say(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                super::matching::operation_name(operation)
            )),
        },
        ("", "pods", "status") => pod_status(node, request),
        ("", "pods", "eviction") => {
            let name = if request.name.is_empty() { super::name(request) } else { request.name };
            if pod_on_node(name)? {
                return Ok(());
            }
            say(format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        ("", "pods", other) => {
            say(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        }
        ("", "nodes", _) => own_node(node, request),
        ("", "persistentvolumeclaims", "status") if operation == Operation::Update => {
            claim_status(node, request)
        }
        ("", "persistentvolumeclaims", _) => say("may only update PVC status".into()),
        ("", "serviceaccounts", "token") if operation == Operation::Create => token(context, node, request),
        ("coordination.k8s.io", "leases", _) => {
            if request.namespace != "kube-node-lease" {
                return say(format!(
                    "can only access leases in the \"kube-node-lease\" system namespace, not {:?}",
                    request.namespace
                ));
            }
            if operation == Operation::Create && super::name(request) != node {
                return say("can only access node lease with the same name as the requesting node".into());
            }
            Ok(())
        }
        ("storage.k8s.io", "csinodes", _) => {
            if operation == Operation::Create && super::name(request) != node {
                return say("can only access CSINode with the same name as the requesting node".into());
            }
            Ok(())
        }
        ("resource.k8s.io", "resourceslices", _) => {
            if operation == Operation::Create && request.object["spec"]["nodeName"] != node {
                return say(
                    "can only create ResourceSlice with the same NodeName as the requesting node".into()
                );
            }
            Ok(())
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") if operation == Operation::Create => {
            certificate_request(node, request)
        }
        _ => Ok(()),
    }
}

fn pod_create(context: &Context, node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let pod = &*request.object;
    let say = |text: String| Err(refuse(request, text));
    if !is_mirror_pod(pod) {
        return say(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return say(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners: Vec<&Value> = items(&pod["metadata"], "ownerReferences").collect();
    let owner = match owners.as_slice() {
        [] => {
            return say(format!("node {node:?} can only create pods with an owner reference set to itself"));
        }
        [one] => *one,
        _ => {
            return say(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return say(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner["controller"] != true {
        return say(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return say(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let own = context.objects.get("", "nodes", "", node);
    let own = own.ok_or_else(|| failure::not_found("", "nodes", node))?;
    let uid = owner["uid"].as_str().unwrap_or_default();
    if uid != own.uid() {
        return say(format!("node {node} UID mismatch: expected {uid} got {}", own.uid()));
    }
    Ok(())
}

fn pod_status(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let old = request.old_object.unwrap_or(&Value::Null);
    let say = |text: String| Err(refuse(request, text));
    if old["spec"]["nodeName"] != node {
        return say(format!(
            "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let labels = |v: &Value| v["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    if labels(old) != labels(request.object) {
        return say(format!("node {node:?} cannot update labels through pod status"));
    }
    let claims = |v: &Value| v["status"]["resourceClaimStatuses"].as_array().cloned().unwrap_or_default();
    if claims(old) != claims(request.object) {
        return say(format!("node {node:?} cannot update resource claim statues"));
    }
    Ok(())
}

fn is_kubernetes_domain(domain: &str) -> bool {
    ["kubernetes.io", "k8s.io"].iter().any(|d| domain == *d || domain.ends_with(&format!(".{d}")))
}

fn may_label(key: &str) -> bool {
    let domain = key.split_once('/').map(|(d, _)| d).unwrap_or_default();
    let within = |d: &str| domain == d || domain.ends_with(&format!(".{d}"));
    if within(RESTRICTED) {
        return false;
    }
    !is_kubernetes_domain(domain)
        || KUBELET_LABELS.contains(&key)
        || KUBELET_DOMAINS.iter().any(|d| within(d))
}

fn own_node(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let say = |text: String| Err(refuse(request, text));
    let asked = super::name(request);
    if asked != node {
        return say(format!("node {node:?} is not allowed to modify node {asked:?}"));
    }
    let empty = Value::Null;
    let old = match request.operation {
        Operation::Create => &empty,
        Operation::Update => request.old_object.unwrap_or(&empty),
        _ => return Ok(()),
    };
    let labels = |v: &Value| v["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let (new_labels, old_labels) = (labels(request.object), labels(old));
    let mut changed: Vec<&str> = new_labels
        .keys()
        .chain(old_labels.keys())
        .filter(|k| new_labels.get(*k) != old_labels.get(*k))
        .map(String::as_str)
        .filter(|k| !may_label(k))
        .collect();
    changed.sort_unstable();
    changed.dedup();
    if request.operation == Operation::Create {
        if !changed.is_empty() {
            return say(format!(
                "node {node:?} is not allowed to set the following labels: {}",
                changed.join(", ")
            ));
        }
        return Ok(());
    }
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    if list(&request.object["spec"]["taints"]) != list(&old["spec"]["taints"]) {
        return say(format!("node {node:?} is not allowed to modify taints"));
    }
    if list(&request.object["metadata"]["ownerReferences"]) != list(&old["metadata"]["ownerReferences"]) {
        return say(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    if !changed.is_empty() {
        return say(format!("is not allowed to modify labels: {}", changed.join(", ")));
    }
    Ok(())
}

fn claim_status(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let without = |v: &Value| {
        let mut v = v.clone();
        for (part, fields) in [
            ("metadata", &["resourceVersion", "managedFields"][..]),
            ("status", &["capacity", "conditions", "allocatedResourceStatuses", "allocatedResources"][..]),
        ] {
            if let Some(part) = v[part].as_object_mut() {
                fields.iter().for_each(|f| {
                    part.remove(*f);
                });
            }
        }
        v
    };
    if request.old_object.map(without) == Some(without(request.object)) {
        return Ok(());
    }
    Err(refuse(
        request,
        format!(
            "node {node:?} is not allowed to update fields other than status.quantity and status.conditions"
        ),
    ))
}

fn token(context: &Context, node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let say = |text: &str| Err(refuse(request, text));
    let spec = &request.object["spec"];
    let bound = &spec["boundObjectRef"];
    let text = |field: &str| bound[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return say("node requested token not bound to a pod");
    }
    if text("uid").is_empty() {
        return say("node requested token with a pod binding without a uid");
    }
    let pod = context.objects.get("", "pods", request.namespace, text("name"));
    let pod = pod.ok_or_else(|| failure::not_found("", "pods", text("name")))?;
    if pod.uid() != text("uid") {
        return say(&format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            text("uid")
        ));
    }
    if pod.attributes.field("spec.nodeName") != Some(node) {
        return say("node requested token bound to a pod scheduled on a different node");
    }
    let audiences: Vec<&str> = items(spec, "audiences").filter_map(Value::as_str).collect();
    let audience = match audiences.as_slice() {
        [] => "",
        [one] => one,
        _ => return say("node may only request 0 or 1 audiences"),
    };
    let pod: Value = serde_json::from_slice(&pod.body).unwrap_or_default();
    if refers_to_audience(context, &pod, audience) {
        return Ok(());
    }
    let asks = RequestInfo {
        verb: "request-serviceaccounts-token-audience".into(),
        is_resource: true,
        version: "v1".into(),
        resource: audience.into(),
        namespace: request.namespace.into(),
        name: request.name.into(),
        ..RequestInfo::default()
    };
    if context.authorizers.decide_now(request.user, &asks).is_allowed() {
        return Ok(());
    }
    say(&format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        request.user.name
    ))
}

/// Whether a volume of the pod wants tokens for the audience.
fn refers_to_audience(context: &Context, pod: &Value, audience: &str) -> bool {
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    items(&pod["spec"], "volumes").any(|volume| {
        let projected = items(&volume["projected"], "sources").any(|source| {
            let token = &source["serviceAccountToken"];
            token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
        });
        let claim = if volume["ephemeral"].is_object() {
            Some(format!("{pod_name}-{}", volume["name"].as_str().unwrap_or_default()))
        } else {
            volume["persistentVolumeClaim"]["claimName"].as_str().map(str::to_owned)
        };
        let driver = match claim {
            Some(claim) => claim_driver(context, namespace, &claim),
            None => volume["csi"]["driver"].as_str().map(str::to_owned),
        };
        projected || driver.is_some_and(|d| driver_wants(context, &d, audience))
    })
}

fn claim_driver(context: &Context, namespace: &str, claim: &str) -> Option<String> {
    let get = |resource: &str, namespace: &str, name: &str| -> Option<Value> {
        let object = context.objects.get("", resource, namespace, name)?;
        serde_json::from_slice(&object.body).ok()
    };
    let claim = get("persistentvolumeclaims", namespace, claim)?;
    let volume = get("persistentvolumes", "", claim["spec"]["volumeName"].as_str()?)?;
    volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
}

fn driver_wants(context: &Context, driver: &str, audience: &str) -> bool {
    let driver = context.objects.get("storage.k8s.io", "csidrivers", "", driver);
    let driver = driver.and_then(|d| serde_json::from_slice::<Value>(&d.body).ok()).unwrap_or_default();
    items(&driver["spec"], "tokenRequests").any(|t| t["audience"].as_str().unwrap_or_default() == audience)
}

/// A kubelet asks for certificates in its own name only.
fn certificate_request(node: &str, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let signer = request.object["spec"]["signerName"].as_str().unwrap_or_default();
    if !matches!(signer, "kubernetes.io/kubelet-serving" | "kubernetes.io/kube-apiserver-client-kubelet") {
        return Ok(());
    }
    let Some(subject) = super::certificates::subject(request.object) else {
        return Err(refuse(request, "unable to parse csr: the request is not a PEM certificate request"));
    };
    if subject.common_name != format!("system:node:{node}") {
        return Err(refuse(request, format!("can only create a node CSR with CN=system:node:{node}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use apimachinery::user::UserInfo;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn nodes_keep_to_themselves() {
        let objects = Arc::new(FakeObjects::default());
        objects.put("", "nodes", json!({"metadata": {"name": "n1"}}));
        let volumes = json!([{"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]);
        objects.put("", "pods", json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {"nodeName": "n1", "volumes": volumes}}));
        let context = context(&objects);
        let node = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}});
        let mirror = |uid: &str| {
            json!({"metadata": {"namespace": "a", "name": "m",
            "annotations": {"kubernetes.io/config.mirror": "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": uid, "controller": true}]},
            "spec": {"nodeName": "n1"}})
        };
        let token = |uid: &str, audiences: Value| {
            json!({"metadata": {"namespace": "a", "name": "default"}, "spec": {
            "audiences": audiences, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}})
        };
        for (resource, sub, object, want) in [
            ("nodes", "", node(json!({"kubernetes.io/hostname": "n1", "mine": "x"})), ""),
            (
                "nodes",
                "",
                node(json!({"node-role.kubernetes.io/master": ""})),
                "not allowed to set the following labels",
            ),
            ("nodes", "", node(json!({"a.node-restriction.kubernetes.io/x": ""})), "not allowed to set"),
            ("nodes", "", json!({"metadata": {"name": "n2"}}), "is not allowed to modify node \"n2\""),
            ("pods", "", mirror("uid-n1"), ""),
            ("pods", "", mirror("other"), "UID mismatch"),
            ("pods", "", json!({"metadata": {"namespace": "a", "name": "m"}}), "can only create mirror pods"),
            ("serviceaccounts", "token", token("uid-p", json!([])), ""),
            (
                "serviceaccounts",
                "token",
                token("uid-p", json!(["vault"])),
                "not authorized to request tokens",
            ),
            ("serviceaccounts", "token", token("x", json!([])), "does not match the UID in record"),
            ("serviceaccounts", "token", json!({"metadata": {"namespace": "a"}}), "not bound to a pod"),
        ] {
            let mut request = Request::create("", resource, object);
            request.subresource = sub;
            request.user = UserInfo::new("system:node:n1", &["system:nodes"]);
            let got = request.with(|r| admit(&context, r)).map_err(|s| s.message);
            match want {
                "" => assert_eq!(got, Ok(())),
                text => assert!(got.clone().unwrap_err().contains(text), "{got:?}"),
            }
        }
    }
}
