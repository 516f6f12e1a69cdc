//! Which address stands behind a node, pod or service name.

use std::sync::Arc;

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use serde_json::Value;

use super::dial::Target;
use crate::registry::Registry;
use crate::seams::RequestInfo;

async fn read(registry: &Registry, resource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
    let table = registry.table.load_full();
    let entry = table.find("", "v1", resource).ok_or_else(Status::no_such_resource)?;
    let found = registry.read(registry.cache_of(entry)?, &entry.key(namespace, name)).await?;
    let found = found.ok_or_else(|| Status::not_found(resource, "", name))?;
    found.to_value().map_err(Status::internal)
}

/// The pod a request names.
pub async fn pod(registry: &Registry, info: &RequestInfo) -> Result<Value, Status> {
    read(registry, "pods", &info.namespace, &info.name).await
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

/// The container meant: the one named, or the only one.
pub fn container(pod: &Value, named: Option<&str>) -> Result<String, Status> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let (containers, inits, ephemeral) =
        (names(pod, "containers"), names(pod, "initContainers"), names(pod, "ephemeralContainers"));
    if let Some(named) = named {
        let known = [&containers, &inits, &ephemeral].into_iter().any(|l| l.contains(&named));
        return if known {
            Ok(named.to_owned())
        } else {
            Err(Status::bad_request(format!("container {named} is not valid for pod {name}")))
        };
    }
    if let [only] = containers.as_slice() {
        return Ok((*only).to_owned());
    }
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(default) = default.filter(|d| containers.contains(d)) {
        return Ok(default.to_owned());
    }
    let mut message = format!(
        "a container name must be specified for pod {name}, choose one of: [{}]",
        containers.join(" ")
    );
    if !inits.is_empty() {
        message.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
    }
    if !ephemeral.is_empty() {
        message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
    }
    Err(Status::bad_request(message))
}

/// Where the kubelet of a pod's node listens. Upstream tells of a node that is not there as if it were a pod.
pub async fn kubelet_of_pod(registry: &Registry, node: &str, types: &[String]) -> Result<Target, Status> {
    let found = kubelet(registry, node, types).await;
    found.map_err(|status| if status.code == 404 { Status::not_found("pods", "", node) } else { status })
}

/// Where a node's kubelet listens.
pub async fn kubelet(registry: &Registry, node: &str, types: &[String]) -> Result<Target, Status> {
    let node_value = read(registry, "nodes", "", node).await?;
    let addresses = node_value["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let host = types
        .iter()
        .find_map(|t| addresses.iter().find(|a| a["type"] == t.as_str())?["address"].as_str())
        .ok_or_else(|| Status::internal(format!("no preferred addresses found for node {node:?}")))?;
    let port = node_value["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().unwrap_or(10250);
    Ok(Target { tls: true, host: host.to_owned(), port: port as u16 })
}

/// `[scheme:]name[:port]`
fn split(text: &str) -> (Option<&str>, &str, Option<&str>) {
    let parts: Vec<&str> = text.split(':').collect();
    let some = |t: &'_ str| !t.is_empty();
    match parts.as_slice() {
        [name] => (None, name, None),
        [name, port] => (None, name, Some(*port).filter(|p| some(p))),
        [scheme, name, port] => (Some(*scheme).filter(|s| some(s)), name, Some(*port).filter(|p| some(p))),
        _ => (None, text, None),
    }
}

fn number(port: &str) -> Result<u16, Status> {
    port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))
}

pub async fn node(registry: &Registry, info: &RequestInfo, types: &[String]) -> Result<Target, Status> {
    let (scheme, name, port) = split(&info.name);
    let mut target = kubelet(registry, name, types).await?;
    if let Some(port) = port {
        let port = number(port)?;
        target.tls = port == target.port;
        target.port = port;
    }
    if let Some(scheme) = scheme {
        target.tls = scheme == "https";
    }
    Ok(target)
}

pub async fn pod_port(registry: &Registry, info: &RequestInfo) -> Result<Target, Status> {
    let (scheme, name, port) = split(&info.name);
    let pod = read(registry, "pods", &info.namespace, name).await?;
    let declared = || {
        let containers = pod["spec"]["containers"].as_array()?;
        containers.iter().find_map(|c| c["ports"].as_array()?.first()?["containerPort"].as_u64())
    };
    let port = match port {
        Some(port) => number(port)?,
        None => declared().unwrap_or(80) as u16,
    };
    let ip = pod["status"]["podIP"].as_str().filter(|ip| !ip.is_empty());
    let ip = ip.ok_or_else(|| Status::bad_request("address not allowed: the pod has no address yet"))?;
    let ip: std::net::IpAddr = ip.parse().map_err(|_| Status::bad_request("address not allowed"))?;
    if (ip.is_loopback() || ip.is_unspecified()) && pod["spec"]["hostNetwork"] != true {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(Target { tls: scheme == Some("https"), host: ip.to_string(), port })
}

/// A ready endpoint of a service, chosen at random.
pub fn service(registry: &Registry, info: &RequestInfo) -> Result<Target, Status> {
    let (scheme, name, port) = split(&info.name);
    let namespace = &info.namespace;
    let table = registry.table.load_full();
    let services = table.find("", "v1", "services").ok_or_else(Status::no_such_resource)?;
    let service = registry
        .cache_of(services)?
        .get(&services.key(namespace, name))
        .ok_or_else(|| Status::not_found("services", "", name))?
        .to_value()
        .map_err(Status::internal)?;
    let no_endpoints = || Status::service_unavailable(format!("no endpoints available for service {name:?}"));
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    // The port by number or name; without one, the only one or the unnamed one.
    let wanted = match port {
        Some(p) => ports
            .iter()
            .find(|s| s["port"].as_u64().is_some_and(|n| n.to_string() == p) || s["name"] == p)
            .ok_or_else(|| {
                Status::service_unavailable(format!("no service port {p:?} found for service {name:?}"))
            })?,
        None if ports.len() == 1 => &ports[0],
        None => ports
            .iter()
            .find(|s| s["name"].as_str().unwrap_or_default().is_empty())
            .ok_or_else(no_endpoints)?,
    };
    let wanted_name = wanted["name"].as_str().unwrap_or_default();
    let slices = table.find("discovery.k8s.io", "v1", "endpointslices").ok_or_else(no_endpoints)?;
    let of_service = |o: &&Arc<Encoded>| o.attributes.label("kubernetes.io/service-name") == Some(name);
    let all = registry.cache_of(slices)?.snapshot(&format!("{namespace}/"), None).items;
    let mut found = Vec::new();
    for slice in all.iter().filter(of_service) {
        let slice = slice.to_value().map_err(Status::internal)?;
        let port = slice["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|p| p["name"].as_str().unwrap_or_default() == wanted_name)
            .and_then(|p| p["port"].as_u64());
        let Some(port) = port else { continue };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if endpoint["conditions"]["ready"] == false {
                continue;
            }
            if let Some(address) = endpoint["addresses"][0].as_str() {
                found.push((address.to_owned(), port as u16));
            }
        }
    }
    if found.is_empty() {
        return Err(no_endpoints());
    }
    let (host, port) = found.swap_remove(rand::random::<u32>() as usize % found.len());
    Ok(Target { tls: scheme == Some("https"), host, port })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn splits_names() {
        for (text, want) in [
            ("a", (None, "a", None)),
            ("a:80", (None, "a", Some("80"))),
            ("https:a:web", (Some("https"), "a", Some("web"))),
            ("http:a:", (Some("http"), "a", None)),
        ] {
            assert_eq!(split(text), want);
        }
    }

    #[test]
    fn finds_the_container() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&one, None).unwrap(), "a");
        assert_eq!(container(&two, Some("i")).unwrap(), "i");
        assert_eq!(
            container(&two, None).unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&one, Some("x")).unwrap_err().message, "container x is not valid for pod p");
    }
}
