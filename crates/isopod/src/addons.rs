//! Objects the server itself keeps in the cluster: the service through which pods reach the DNS of this process.

use std::net::IpAddr;

use anyhow::{Context, Result};
use client::Client;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NAMESPACE: &str = "kube-system";
const MANAGER: &str = "isopod";

/// Where the DNS server of this process listens; the cluster's port 53 leads there.
pub const DNS_PORT: u16 = 10053;

async fn apply<K>(api: Api<K>, name: &str, object: Value) -> Result<()>
where
    K: DeserializeOwned + Clone + std::fmt::Debug,
{
    let params = PatchParams::apply(MANAGER).force();
    api.patch(name, &params, &Patch::Apply(object)).await.with_context(|| format!("apply {name}"))?;
    Ok(())
}

/// The account, and what it may do, that cluster DNS and flannel run under.
pub async fn apply_accounts(admin: &Client) -> Result<()> {
    let rules = [
        (
            "cluster-dns",
            "system:cluster-dns",
            json!([
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces", "endpoints", "nodes"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ]),
        ),
        (
            "flannel",
            "system:flannel",
            json!([
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["patch", "update"]},
                {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
            ]),
        ),
    ];
    for (account, role, rules) in rules {
        let labels = json!({"app.kubernetes.io/managed-by": MANAGER});
        let object = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": NAMESPACE, "labels": labels}});
        apply(admin.namespaced::<ServiceAccount>(NAMESPACE), account, object).await?;
        let object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": role, "labels": labels}, "rules": rules});
        apply(admin.all::<ClusterRole>(), role, object).await?;
        let object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": role, "labels": labels},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]});
        apply(admin.all::<ClusterRoleBinding>(), role, object).await?;
    }
    Ok(())
}

/// The service `kube-system/kube-dns` at `service_ip`, leading to this node.
pub async fn apply_dns(admin: &Client, service_ip: IpAddr, node_ip: IpAddr) -> Result<()> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS",
        "kubernetes.io/cluster-service": "true", "app.kubernetes.io/managed-by": MANAGER});
    let ports = |own: &str, port: u16| json!([{"name": "dns", own: port, "protocol": "UDP"}, {"name": "dns-tcp", own: port, "protocol": "TCP"}]);
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": NAMESPACE, "labels": labels},
        "spec": {"clusterIP": service_ip.to_string(), "ports": ports("port", 53)}});
    apply(admin.namespaced::<Service>(NAMESPACE), "kube-dns", service).await?;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-isopod", "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": MANAGER}},
        "addressType": if node_ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [node_ip.to_string()], "conditions": {"ready": true, "serving": true, "terminating": false}}],
        "ports": ports("port", DNS_PORT)});
    apply(admin.namespaced::<EndpointSlice>(NAMESPACE), "kube-dns-isopod", slice).await
}
