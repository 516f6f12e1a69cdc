//! One HTTP/1.1 connection to a kubelet or a pod, over TLS or not, for one request.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Status;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::KubeletClient;
use crate::http::Body;
use crate::server_certificates;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub tls: bool,
    pub host: String,
    pub port: u16,
}

impl Target {
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// TLS settings for kubelets (with the server's certificate) and for others (without).
pub struct Dialer {
    kubelet: Arc<rustls::ClientConfig>,
    plain: Arc<rustls::ClientConfig>,
    tasks: TaskTracker,
}

impl Dialer {
    pub fn new(client: &KubeletClient, tasks: TaskTracker) -> anyhow::Result<Dialer> {
        let verified = server_certificates::checked_by(client.ca.as_deref())?;
        let kubelet = match (&client.certificate, &client.key) {
            (Some(certificate), Some(key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
                verified.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
            }
            _ => verified.with_no_client_auth(),
        };
        let plain = server_certificates::checked_by(None)?.with_no_client_auth();
        Ok(Dialer { kubelet: Arc::new(kubelet), plain: Arc::new(plain), tasks })
    }

    /// Sends one request and returns the head of the answer; the connection lives as long as the answer does.
    pub async fn send(
        &self,
        target: &Target,
        kubelet: bool,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Status> {
        let unreachable = |why: &dyn std::fmt::Display| {
            Status::service_unavailable(format!("error trying to reach service: {why}"))
        };
        // Requests in origin form, as servers expect them.
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
        *request.uri_mut() = path.parse::<Uri>().map_err(|e| Status::bad_request(e.to_string()))?;
        let connecting = async {
            let stream = TcpStream::connect((target.host.as_str(), target.port))
                .await
                .map_err(|e| unreachable(&format!("dial tcp {}: {e}", target.authority())))?;
            let _ = stream.set_nodelay(true);
            let wire: Box<dyn Wire> = if target.tls {
                let config = if kubelet { &self.kubelet } else { &self.plain };
                let name = ServerName::try_from(target.host.clone()).map_err(|e| unreachable(&e))?;
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                Box::new(connector.connect(name, stream).await.map_err(|e| unreachable(&e))?)
            } else {
                Box::new(stream)
            };
            hyper::client::conn::http1::handshake(TokioIo::new(wire)).await.map_err(|e| unreachable(&e))
        };
        let (mut sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| unreachable(&format!("dial tcp {}: i/o timeout", target.authority())))??;
        self.tasks.spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "proxied connection ended");
            }
        });
        sender.send_request(request).await.map_err(|e| unreachable(&e))
    }
}
