//! The service `default/kubernetes` and the endpoints behind it: this server.

use std::net::IpAddr;

use apimachinery::status::Status;
use serde_json::{Value, json};

use super::{Bootstrap, Options};

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";

/// The address of the service: the first of the service range.
pub fn cluster_ip(options: &Options) -> Option<IpAddr> {
    options.service_cidrs.first().and_then(|cidr| cidr.hosts().next())
}

fn service(options: &Options) -> Option<Value> {
    Some(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"provider": "kubernetes", "component": "apiserver"},
        },
        "spec": {
            "clusterIP": cluster_ip(options)?.to_string(),
            "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None",
            "type": "ClusterIP",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": options.secure_port}],
        },
    }))
}

fn port(options: &Options) -> Value {
    json!({"name": "https", "port": options.secure_port, "protocol": "TCP"})
}

fn endpoints(options: &Options) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{"addresses": [{"ip": options.advertise_address.to_string()}], "ports": [port(options)]}],
    })
}

fn endpoint_slice(options: &Options) -> Value {
    let family = if options.advertise_address.is_ipv4() { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": NAME},
        },
        "addressType": family,
        "endpoints": [{"addresses": [options.advertise_address.to_string()], "conditions": {"ready": true}}],
        "ports": [port(options)],
    })
}

/// The stored object with the wanted members, or `None` when it has them.
fn changed(stored: &Value, wanted: &Value, members: &[&str]) -> Option<Value> {
    let mut object = stored.clone();
    for member in members {
        object[*member] = wanted[*member].clone();
    }
    for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
        if !object["metadata"]["labels"].is_object() {
            object["metadata"]["labels"] = json!({});
        }
        object["metadata"]["labels"][key] = value.clone();
    }
    (object != *stored).then_some(object)
}

impl Bootstrap {
    pub(super) async fn ensure_kubernetes_service(&self) {
        for result in [self.ensure_service().await, self.ensure_endpoints().await] {
            if let Err(error) = result {
                tracing::warn!(%error, "the kubernetes service is not up to date");
            }
        }
    }

    async fn ensure_service(&self) -> Result<(), Status> {
        if self.objects.get("", "services", NAMESPACE, NAME).is_some() {
            return Ok(());
        }
        let Some(service) = service(&self.options) else { return Ok(()) };
        ignore_existing(self.writer.create("", "v1", "services", service).await)
    }

    async fn ensure_endpoints(&self) -> Result<(), Status> {
        let objects: [(&str, &str, Value, &[&str]); 2] = [
            ("", "endpoints", endpoints(&self.options), &["subsets"]),
            (
                "discovery.k8s.io",
                "endpointslices",
                endpoint_slice(&self.options),
                &["addressType", "endpoints", "ports"],
            ),
        ];
        for (group, resource, wanted, members) in objects {
            match self.objects.get(group, resource, NAMESPACE, NAME).and_then(|o| o.to_value().ok()) {
                None => ignore_existing(self.writer.create(group, "v1", resource, wanted).await)?,
                Some(stored) => {
                    if let Some(object) = changed(&stored, &wanted, members) {
                        self.writer.update(group, "v1", resource, object).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn ignore_existing<T>(result: Result<T, Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.reason != "AlreadyExists" => Err(status),
        _ => Ok(()),
    }
}
