//! Calls webhooks over HTTPS: one connection per call, certificates checked against the configured bundle.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::admission::items;
use crate::seams::Objects;
use crate::server_certificates;

const ANSWER_BYTES_MAX: usize = 16 << 20;
const CONFIGS_MAX: usize = 256;

/// Where a webhook listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    url: String,
    /// Sent as the Host header.
    authority: String,
    /// Whom the certificate must be for.
    server_name: String,
    path: String,
    addresses: Addresses,
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    Known(Vec<SocketAddr>),
    Lookup(String, u16),
}

/// Calls webhooks; keeps what their certificates are checked with.
#[derive(Default)]
pub struct Client {
    configs: Mutex<HashMap<Vec<u8>, Arc<ClientConfig>>>,
}

impl Client {
    /// Posts a review and returns the answer. The error says what failed, starting with the request as upstream
    /// prints it.
    pub async fn post(
        &self,
        objects: &dyn Objects,
        client_config: &Value,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, String> {
        let target = target(objects, client_config, timeout)?;
        let post = format!("Post {:?}", target.url);
        let bundle = client_config["caBundle"].as_str().unwrap_or_default();
        let bundle = STANDARD.decode(bundle).map_err(|e| format!("{post}: caBundle: {e}"))?;
        let tls = self.tls(bundle).map_err(|e| format!("{post}: {e}"))?;
        let body = serde_json::to_vec(review).map_err(|e| format!("{post}: {e}"))?;
        match tokio::time::timeout(timeout, exchange(&target, tls, body)).await {
            Err(_) => Err(format!("{post}: context deadline exceeded")),
            Ok(Err(why)) => Err(format!("{post}: {why}")),
            Ok(Ok(answer)) => Ok(answer),
        }
    }

    fn tls(&self, bundle: Vec<u8>) -> Result<Arc<ClientConfig>, String> {
        if let Some(config) = self.configs.lock().get(&bundle) {
            return Ok(config.clone());
        }
        let config = server_certificates::checked_by(Some(&bundle))
            .map_err(|e| format!("caBundle: {e}"))?
            .with_no_client_auth();
        let config = Arc::new(config);
        let mut configs = self.configs.lock();
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        configs.insert(bundle, config.clone());
        Ok(config)
    }
}

fn target(objects: &dyn Objects, config: &Value, timeout: Duration) -> Result<Target, String> {
    let timeout = format!("timeout={}s", timeout.as_secs().max(1));
    let with_timeout = |path: &str| {
        let separator = if path.contains('?') { '&' } else { '?' };
        format!("{path}{separator}{timeout}")
    };
    if let Some(url) = config["url"].as_str() {
        let uri: http::Uri = url.parse().map_err(|e| format!("Post {url:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("Post {url:?}: no host in URL"))?.to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let path = uri.path_and_query().map(|p| p.as_str()).unwrap_or("/");
        let path = with_timeout(path);
        let authority = uri.authority().map(|a| a.to_string()).unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        return Ok(Target {
            url: format!("https://{authority}{path}"),
            authority,
            server_name: bare.clone(),
            path,
            addresses: Addresses::Lookup(bare, port),
        });
    }
    let service = &config["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
    let path = with_timeout(if text("path").is_empty() { "/" } else { text("path") });
    let server_name = format!("{name}.{namespace}.svc");
    let url = format!("https://{server_name}:{port}{path}");
    let addresses =
        service_addresses(objects, namespace, name, port).map_err(|e| format!("Post {url:?}: {e}"))?;
    Ok(Target { url, authority: format!("{server_name}:{port}"), server_name, path, addresses })
}

/// Ready endpoints behind a port of a service. This server need not run where cluster IPs work.
pub fn service_addresses(
    objects: &dyn Objects,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<Addresses, String> {
    let service = objects.get("", "services", namespace, name);
    let service = service.and_then(|s| serde_json::from_slice::<Value>(&s.body).ok());
    let service = service.ok_or_else(|| format!("service {name:?} not found"))?;
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        let host = spec["externalName"].as_str().unwrap_or_default().to_owned();
        return Ok(Addresses::Lookup(host, port));
    }
    let service_port = items(spec, "ports")
        .find(|p| p["port"] == u64::from(port))
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let port_name = service_port["name"].as_str().unwrap_or_default();
    let mut found: Vec<SocketAddr> = Vec::new();
    for slice in objects.list("discovery.k8s.io", "endpointslices", Some(namespace)) {
        if slice.attributes.label("kubernetes.io/service-name") != Some(name) {
            continue;
        }
        let Ok(slice) = serde_json::from_slice::<Value>(&slice.body) else { continue };
        let number = items(&slice, "ports")
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
            .and_then(|p| p["port"].as_u64())
            .and_then(|p| u16::try_from(p).ok());
        let Some(number) = number else { continue };
        for endpoint in items(&slice, "endpoints").filter(|e| e["conditions"]["ready"] != false) {
            let addresses = items(endpoint, "addresses").filter_map(|a| a.as_str()?.parse::<IpAddr>().ok());
            found.extend(addresses.map(|ip| SocketAddr::new(ip, number)));
        }
    }
    if found.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    let start = rand::Rng::random_range(&mut rand::rng(), 0..found.len());
    found.rotate_left(start);
    Ok(Addresses::Known(found))
}

/// Connects to the first address that answers.
pub async fn connect(addresses: &Addresses) -> Result<TcpStream, String> {
    let addresses: Vec<SocketAddr> = match addresses {
        Addresses::Known(addresses) => addresses.clone(),
        Addresses::Lookup(host, port) => tokio::net::lookup_host((host.as_str(), *port))
            .await
            .map_err(|e| format!("dial tcp: lookup {host}: {e}"))?
            .collect(),
    };
    let mut last = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("dial tcp {address}: connect: {error}"),
        }
    }
    Err(last)
}

async fn exchange(target: &Target, tls: Arc<ClientConfig>, body: Vec<u8>) -> Result<Value, String> {
    let stream = connect(&target.addresses).await?;
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from(target.server_name.clone()).map_err(|e| e.to_string())?;
    let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let request = http::Request::post(&target.path)
        .header("host", &target.authority)
        .header("content-type", "application/json")
        .header("accept", "application/json")
        .header("user-agent", "kube-apiserver-admission")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let call = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body[..body.len().min(512)]).trim().to_owned();
            return Err(format!("the server answered {status}: {text}"));
        }
        serde_json::from_slice(&body).map_err(|e| format!("the answer is not JSON: {e}"))
    };
    tokio::pin!(call);
    // The connection lives as long as the call; nothing stays behind.
    tokio::select! {
        answer = &mut call => answer,
        ended = connection => match ended {
            Ok(()) => call.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;
    use serde_json::json;

    #[test]
    fn targets() {
        let objects = Arc::new(FakeObjects::default());
        objects.put(
            "",
            "services",
            json!({"metadata": {"namespace": "a", "name": "hook"},
            "spec": {"ports": [{"name": "x", "port": 443}]}}),
        );
        objects.put("discovery.k8s.io", "endpointslices", json!({
            "metadata": {"namespace": "a", "name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
            "ports": [{"name": "x", "port": 8443}],
            "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": false}}, {"addresses": ["10.0.0.3"]}]}));
        let objects: &dyn Objects = &*objects;
        let timeout = Duration::from_secs(5);
        let service = json!({"service": {"namespace": "a", "name": "hook", "path": "/v"}});
        let found = target(objects, &service, timeout).unwrap();
        assert_eq!(found.url, "https://hook.a.svc:443/v?timeout=5s");
        assert_eq!(found.addresses, Addresses::Known(vec!["10.0.0.3:8443".parse().unwrap()]));
        let url = target(objects, &json!({"url": "https://[::1]:99/x?y=z"}), timeout).unwrap();
        assert_eq!(url.url, "https://[::1]:99/x?y=z&timeout=5s");
        assert_eq!(url.addresses, Addresses::Lookup("::1".into(), 99));
        let missing = json!({"service": {"namespace": "a", "name": "none"}});
        let error = target(objects, &missing, timeout).unwrap_err();
        assert_eq!(error, r#"Post "https://none.a.svc:443/?timeout=5s": service "none" not found"#);
    }
}
