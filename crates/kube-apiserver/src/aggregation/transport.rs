//! Connections to extension servers: to a ready endpoint of their service, over TLS with the front-proxy certificate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio_util::task::TaskTracker;

use crate::admission::webhooks::client;
use crate::http::Body;
use crate::seams::Objects;
use crate::server_certificates;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CONFIGS_MAX: usize = 64;

pub struct Transport {
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// By CA bundle; `None` for servers whose certificate is not checked.
    configs: Mutex<HashMap<Option<Vec<u8>>, Arc<ClientConfig>>>,
    tasks: TaskTracker,
}

impl Transport {
    pub fn new(identity: Option<(&[u8], &[u8])>, tasks: TaskTracker) -> anyhow::Result<Transport> {
        let identity = match identity {
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
                Some((chain, PrivateKeyDer::from_pem_slice(key)?))
            }
            None => None,
        };
        Ok(Transport { identity, configs: Mutex::default(), tasks })
    }

    fn config(&self, bundle: Option<Vec<u8>>) -> anyhow::Result<Arc<ClientConfig>> {
        if let Some(known) = self.configs.lock().get(&bundle) {
            return Ok(known.clone());
        }
        let builder = server_certificates::checked_by(bundle.as_deref())?;
        let config = Arc::new(match &self.identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain.clone(), key.clone_key())?,
            None => builder.with_no_client_auth(),
        });
        let mut configs = self.configs.lock();
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        configs.insert(bundle, config.clone());
        Ok(config)
    }

    /// Sends a request to the service of an APIService's spec and returns the head of the answer.
    pub async fn send(
        &self,
        objects: &dyn Objects,
        spec: &Value,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Status> {
        let failed = |why: &dyn std::fmt::Display| {
            Status::service_unavailable(format!("error trying to reach service: {why}"))
        };
        let service = &spec["service"];
        let text = |field: &str| service[field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let port = service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let addresses = client::service_addresses(objects, namespace, name, port).map_err(|e| failed(&e))?;
        let bundle = if spec["insecureSkipTLSVerify"] == true {
            None
        } else {
            let encoded = spec["caBundle"].as_str().unwrap_or_default();
            Some(STANDARD.decode(encoded).map_err(|e| failed(&format!("caBundle: {e}")))?)
        };
        let config = self.config(bundle).map_err(|e| failed(&e))?;
        let host = format!("{name}.{namespace}.svc");
        let authority = HeaderValue::from_str(&format!("{host}:{port}")).map_err(|e| failed(&e))?;
        request.headers_mut().insert(header::HOST, authority);
        let connecting = async {
            let stream = client::connect(&addresses).await.map_err(|e| failed(&e))?;
            let _ = stream.set_nodelay(true);
            let server_name = ServerName::try_from(host).map_err(|e| failed(&e))?;
            let connector = tokio_rustls::TlsConnector::from(config);
            let stream = connector.connect(server_name, stream).await.map_err(|e| failed(&e))?;
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))
        };
        let (mut sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| failed(&"dial tcp: i/o timeout"))??;
        self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to an extension server ended");
            }
        });
        sender.send_request(request).await.map_err(|e| failed(&e))
    }
}
