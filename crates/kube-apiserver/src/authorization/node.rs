//! The Node authorizer: a kubelet may read what the pods on its node need, and no more.
//!
//! There is no stored graph. Pods carry `spec.nodeName` among their attributes, so the pods of one node in one
//! namespace are found without decoding the others, and a kubelet reads each secret and config map rarely.

use std::sync::Arc;

use apimachinery::object::Encoded;
use apimachinery::user::UserInfo;
use serde_json::Value;

use super::rule::PolicyRule;
use crate::seams::{Objects, RequestInfo};

const NODE_USER_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// The node a user is the kubelet of.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(NODE_USER_PREFIX)?;
    user.in_group(NODES_GROUP).then_some(name)
}

/// What the pods of a node refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
    Pod,
}

pub struct NodeAuthorizer {
    objects: Arc<dyn Objects>,
    /// What every node may do: the rules of the role `system:node`.
    rules: Vec<PolicyRule>,
}

impl NodeAuthorizer {
    pub fn new(objects: Arc<dyn Objects>, rules: Vec<PolicyRule>) -> NodeAuthorizer {
        NodeAuthorizer { objects, rules }
    }

    /// `None`: not a node. `Some(Err(reason))`: no opinion.
    pub fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Option<Result<(), String>> {
        let node = node_name(user)?;
        if node.is_empty() {
            return Some(Err(format!("unknown node for user {:?}", user.name)));
        }
        Some(self.decide(node, request))
    }

    fn decide(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        let verb = request.verb.as_str();
        let sub = request.subresource.as_str();
        let no = |reason: &str| Err(reason.to_owned());
        let group_resource = (request.group.as_str(), request.resource.as_str());
        if !request.is_resource {
            return self.by_rules(request);
        }
        match group_resource {
            ("", "secrets" | "configmaps") => {
                let kind = if request.resource == "secrets" { Kind::Secret } else { Kind::ConfigMap };
                self.read(node, kind, request)
            }
            ("", "persistentvolumeclaims") if sub == "status" => match verb {
                "update" | "patch" => self.related(node, Kind::Claim, request),
                _ => no("can only get/update/patch this type"),
            },
            ("", "persistentvolumeclaims") => self.get(node, Kind::Claim, request),
            ("resource.k8s.io", "resourceclaims") => self.get(node, Kind::ResourceClaim, request),
            ("", "persistentvolumes") => {
                only_get(request)?;
                named(request)?;
                self.volume_related(node, request).then_some(()).ok_or_else(|| unrelated(node))
            }
            ("storage.k8s.io", "volumeattachments") => {
                only_get(request)?;
                named(request)?;
                let found = self.objects.get("storage.k8s.io", "volumeattachments", "", &request.name);
                let on_node = found.as_deref().and_then(value).is_some_and(|v| v["spec"]["nodeName"] == node);
                on_node.then_some(()).ok_or_else(|| unrelated(node))
            }
            ("", "serviceaccounts") => {
                if verb == "get" && sub.is_empty() {
                    return self.read(node, Kind::ServiceAccount, request);
                }
                if verb != "create" || request.name.is_empty() {
                    return no("can only create tokens for individual service accounts");
                }
                if sub != "token" {
                    return no("can only create token subresource of serviceaccount");
                }
                self.related(node, Kind::ServiceAccount, request)
            }
            ("coordination.k8s.io", "leases") => {
                if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
                    return no("can only get, create, update, patch, or delete a node lease");
                }
                if request.namespace != "kube-node-lease" {
                    return no(r#"can only access leases in the "kube-node-lease" system namespace"#);
                }
                if verb != "create" && request.name != node {
                    return no("can only access node lease with the same name as the requesting node");
                }
                Ok(())
            }
            ("storage.k8s.io", "csinodes") => {
                if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
                    return no("can only get, create, update, patch, or delete a CSINode");
                }
                if !sub.is_empty() {
                    return no("cannot authorize CSINode subresources");
                }
                if verb != "create" && request.name != node {
                    return no("can only access CSINode with the same name as the requesting node");
                }
                Ok(())
            }
            ("resource.k8s.io", "resourceslices") => self.resource_slice(node, request),
            ("", "nodes") => node_object(node, request),
            ("", "pods") => self.pod(node, request),
            _ => self.by_rules(request),
        }
    }

    fn by_rules(&self, request: &RequestInfo) -> Result<(), String> {
        if self.rules.iter().any(|r| r.allows(request)) { Ok(()) } else { Err(String::new()) }
    }

    fn get(&self, node: &str, kind: Kind, request: &RequestInfo) -> Result<(), String> {
        only_get(request)?;
        self.related(node, kind, request)
    }

    fn read(&self, node: &str, kind: Kind, request: &RequestInfo) -> Result<(), String> {
        if !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return Err("can only read resources of this type".into());
        }
        if !request.subresource.is_empty() {
            return Err("cannot read subresource".into());
        }
        if request.namespace.is_empty() {
            return Err("can only read namespaced object of this type".into());
        }
        self.related(node, kind, request)
    }

    fn related(&self, node: &str, kind: Kind, request: &RequestInfo) -> Result<(), String> {
        named(request)?;
        let name = single_name(request);
        if self.pods_refer(node, kind, &request.namespace, name) { Ok(()) } else { Err(unrelated(node)) }
    }

    fn pods(&self, node: &str, namespace: &str) -> impl Iterator<Item = Arc<Encoded>> {
        let pods = self.objects.list("", "pods", Some(namespace));
        let node = node.to_owned();
        pods.into_iter().filter(move |p| p.attributes.field("spec.nodeName") == Some(&node))
    }

    fn pods_refer(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        if kind == Kind::Pod {
            let pod = self.objects.get("", "pods", namespace, name);
            return pod.is_some_and(|p| p.attributes.field("spec.nodeName") == Some(node));
        }
        let direct = self
            .pods(node, namespace)
            .filter_map(|p| value(&p))
            .any(|pod| references(&pod).any(|(k, n)| k == kind && n == name));
        direct || kind == Kind::Secret && self.volume_secret(node, namespace, name)
    }

    /// Whether a volume that a pod of the node uses is a persistent one whose driver needs this secret.
    fn volume_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.objects.list("", "persistentvolumes", None).iter().filter_map(|v| value(v)).any(|volume| {
            let spec = &volume["spec"];
            let claim_namespace = spec["claimRef"]["namespace"].as_str().unwrap_or_default();
            let sources = spec.as_object().into_iter().flatten().map(|(_, source)| source);
            let needs = sources.filter(|s| s.is_object()).any(|source| {
                let refs = source.as_object().into_iter().flatten();
                refs.filter(|(key, _)| key.ends_with("ecretRef")).any(|(_, r)| {
                    r["name"] == name && r["namespace"].as_str().unwrap_or(claim_namespace) == namespace
                })
            });
            needs && self.claim_on_node(node, spec)
        })
    }

    fn claim_on_node(&self, node: &str, volume_spec: &Value) -> bool {
        let claim = &volume_spec["claimRef"];
        match (claim["namespace"].as_str(), claim["name"].as_str()) {
            (Some(namespace), Some(name)) => self.pods_refer(node, Kind::Claim, namespace, name),
            _ => false,
        }
    }

    fn volume_related(&self, node: &str, request: &RequestInfo) -> bool {
        let volume = self.objects.get("", "persistentvolumes", "", &request.name);
        volume.as_deref().and_then(value).is_some_and(|v| self.claim_on_node(node, &v["spec"]))
    }

    fn pod(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.related(node, Kind::Pod, request),
            ("", "list" | "watch") => {
                if selects(request, "spec.nodeName", node) {
                    return Ok(());
                }
                if !request.name.is_empty() {
                    return self.related(node, Kind::Pod, request);
                }
                Err("can only list/watch pods with spec.nodeName field selector".into())
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(String::new()),
        }
    }

    fn resource_slice(&self, node: &str, request: &RequestInfo) -> Result<(), String> {
        if !request.subresource.is_empty() {
            return Err("cannot authorize ResourceSlice subresources".into());
        }
        match request.verb.as_str() {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                named(request)?;
                let slice = self.objects.get("resource.k8s.io", "resourceslices", "", &request.name);
                let own = slice.as_deref().and_then(value).is_some_and(|s| s["spec"]["nodeName"] == node);
                own.then_some(()).ok_or_else(|| unrelated(node))
            }
            "watch" | "list" | "deletecollection" if selects(request, "spec.nodeName", node) => Ok(()),
            "watch" | "list" | "deletecollection" => {
                Err("can only list/watch/deletecollection resourceslices with nodeName field selector".into())
            }
            _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, \
                      patch, delete, deletecollection"
                .into()),
        }
    }
}

fn value(object: &Encoded) -> Option<Value> {
    serde_json::from_slice(&object.body).ok()
}

fn unrelated(node: &str) -> String {
    format!("no relationship found between node '{node}' and this object")
}

fn only_get(request: &RequestInfo) -> Result<(), String> {
    if request.verb != "get" {
        return Err("can only get individual resources of this type".into());
    }
    if !request.subresource.is_empty() {
        return Err("cannot get subresource".into());
    }
    Ok(())
}

fn named(request: &RequestInfo) -> Result<(), String> {
    if single_name(request).is_empty() { Err("No Object name found".into()) } else { Ok(()) }
}

/// The object a request is about: named in its path, or by a field selector on its name.
fn single_name(request: &RequestInfo) -> &str {
    if !request.name.is_empty() {
        return &request.name;
    }
    let selector = request.field_selector.as_deref().unwrap_or_default();
    selector.split(',').find_map(|part| equals(part, "metadata.name")).unwrap_or_default()
}

fn equals<'a>(part: &'a str, field: &str) -> Option<&'a str> {
    let rest = part.strip_prefix(field)?;
    rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))
}

fn selects(request: &RequestInfo, field: &str, want: &str) -> bool {
    let selector = request.field_selector.as_deref().unwrap_or_default();
    selector.split(',').any(|part| equals(part, field) == Some(want))
}

fn node_object(node: &str, request: &RequestInfo) -> Result<(), String> {
    match (request.subresource.as_str(), request.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") => match single_name(request) {
            name if name == node => Ok(()),
            "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => Err(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => Err(String::new()),
    }
}

/// Everything in its own namespace that a pod refers to.
fn references(pod: &Value) -> impl Iterator<Item = (Kind, String)> {
    let mut out: Vec<(Kind, String)> = Vec::new();
    let spec = &pod["spec"];
    let meta = &pod["metadata"];
    // Mirror pods are made by the kubelet itself; they must not widen what it may read.
    if !meta["annotations"][MIRROR_ANNOTATION].is_null() {
        return out.into_iter();
    }
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|n| !n.is_empty()) {
            out.push((kind, name.to_owned()));
        }
    };
    let list = |v: &'_ Value| v.as_array().cloned().unwrap_or_default();
    add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    for secret in list(&spec["imagePullSecrets"]) {
        add(Kind::Secret, &secret["name"]);
    }
    for field in ["containers", "initContainers", "ephemeralContainers"] {
        for container in list(&spec[field]) {
            for env in list(&container["env"]) {
                add(Kind::Secret, &env["valueFrom"]["secretKeyRef"]["name"]);
                add(Kind::ConfigMap, &env["valueFrom"]["configMapKeyRef"]["name"]);
            }
            for env in list(&container["envFrom"]) {
                add(Kind::Secret, &env["secretRef"]["name"]);
                add(Kind::ConfigMap, &env["configMapRef"]["name"]);
            }
        }
    }
    let pod_name = meta["name"].as_str().unwrap_or_default();
    for volume in list(&spec["volumes"]) {
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        if !volume["ephemeral"].is_null() {
            let name = format!("{pod_name}-{}", volume["name"].as_str().unwrap_or_default());
            add(Kind::Claim, &Value::String(name));
        }
        for source in list(&volume["projected"]["sources"]) {
            add(Kind::Secret, &source["secret"]["name"]);
            add(Kind::ConfigMap, &source["configMap"]["name"]);
        }
        for (_, source) in volume.as_object().into_iter().flatten() {
            for reference in ["secretRef", "nodePublishSecretRef"] {
                add(Kind::Secret, &source[reference]["name"]);
            }
        }
        add(Kind::Secret, &volume["azureFile"]["secretName"]);
    }
    for claim in list(&spec["resourceClaims"]) {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in list(&pod["status"]["resourceClaimStatuses"]) {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    out.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;
    use serde_json::json;

    #[test]
    fn allows_what_the_nodes_pods_need() {
        let objects = FakeObjects::default();
        objects.put(
            "",
            "pods",
            json!({"metadata": {"namespace": "a", "name": "p"}, "spec": {
                "nodeName": "n1", "serviceAccountName": "sa",
                "containers": [{"envFrom": [{"configMapRef": {"name": "cm"}}]}],
                "volumes": [{"secret": {"secretName": "s"}}, {"persistentVolumeClaim": {"claimName": "c"}}]}}),
        );
        let volume = json!({"metadata": {"name": "v"}, "spec": {
            "claimRef": {"namespace": "a", "name": "c"},
            "csi": {"nodePublishSecretRef": {"namespace": "k", "name": "driver"}}}});
        objects.put("", "persistentvolumes", volume);
        let authorizer = NodeAuthorizer::new(Arc::new(objects), vec![]);
        let user = |node: &str| UserInfo::new(format!("system:node:{node}"), &["system:nodes"]);
        for (node, verb, resource, sub, ns, name, want) in [
            ("n1", "get", "secrets", "", "a", "s", true),
            ("n1", "get", "secrets", "", "a", "other", false),
            ("n1", "get", "secrets", "", "b", "s", false),
            ("n2", "get", "secrets", "", "a", "s", false),
            ("n1", "get", "secrets", "", "k", "driver", true),
            ("n1", "update", "secrets", "", "a", "s", false),
            ("n1", "list", "secrets", "", "a", "", false),
            ("n1", "watch", "configmaps", "", "a", "cm", true),
            ("n1", "get", "persistentvolumeclaims", "", "a", "c", true),
            ("n1", "get", "persistentvolumes", "", "", "v", true),
            ("n2", "get", "persistentvolumes", "", "", "v", false),
            ("n1", "create", "serviceaccounts", "token", "a", "sa", true),
            ("n1", "create", "serviceaccounts", "token", "a", "default", false),
            ("n1", "get", "nodes", "", "", "n1", true),
            ("n1", "get", "nodes", "", "", "n2", false),
            ("n1", "patch", "nodes", "status", "", "n1", true),
            ("n1", "get", "pods", "", "a", "p", true),
            ("n2", "get", "pods", "", "a", "p", false),
            ("n1", "list", "pods", "", "", "", false),
        ] {
            let request = RequestInfo {
                verb: verb.into(),
                is_resource: true,
                resource: resource.into(),
                subresource: sub.into(),
                namespace: ns.into(),
                name: name.into(),
                ..RequestInfo::default()
            };
            let got = authorizer.authorize(&user(node), &request).unwrap();
            assert_eq!(got.is_ok(), want, "{node} {verb} {resource}/{sub} {ns}/{name}: {got:?}");
        }
        let request = RequestInfo {
            verb: "list".into(),
            is_resource: true,
            resource: "pods".into(),
            field_selector: Some("spec.nodeName=n1".into()),
            ..RequestInfo::default()
        };
        assert!(authorizer.authorize(&user("n1"), &request).unwrap().is_ok());
        assert!(authorizer.authorize(&user("n2"), &request).unwrap().is_err());
        assert!(authorizer.authorize(&UserInfo::new("x", &[]), &request).is_none());
    }
}
