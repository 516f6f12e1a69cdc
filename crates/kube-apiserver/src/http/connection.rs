//! TLS connections: accepting, serving HTTP/1.1 and HTTP/2 on them, ending them in order.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Status;
use http::{Method, Request, Uri};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use transport::calls::{Begun, WithCalls};
use transport::gather::{Gather, gathered};
use transport::inbound::Inbound;

use super::body::Body;
use super::filters::{self, Caller};
use super::negotiation::Accept;
use super::respond;
use crate::server::Server;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 20_000;
const H2_STREAMS_MAX: u32 = 250;
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
const H2_SEND_BUFFER: usize = 128 << 10;
/// After so long without a word TCP looks whether the client is still there, as upstream's does.
const QUIET: Duration = Duration::from_secs(180);

/// Accepts until `shutdown`, then lets requests in flight end for at most `grace`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    server: Arc<Server>,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: others must end first.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, server, shutdown, cut) =
            (acceptor.clone(), server.clone(), shutdown.clone(), cut.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = connection(stream, acceptor, server, shutdown) => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::info!(connections = tasks.len(), "ending the remaining connections");
        cut.cancel();
        tasks.wait().await;
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    server: Arc<Server>,
    shutdown: CancellationToken,
) {
    transport::socket::tune(&stream, QUIET);
    let peer = stream.peer_addr().ok();
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, ?peer, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificates: Arc<[Vec<u8>]> = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|certs| certs.iter().map(|c| c.to_vec()).collect())
        .unwrap_or_default();
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, certificates) = (server.clone(), certificates.clone());
        async move {
            let request = request.map(|body| match is_http2 {
                true => Body::Inbound(Inbound::new(body)),
                false => Body::Incoming(body),
            });
            let caller = Caller::Wire { certificates, peer };
            let answer = if is_http2 && takes_long(request.method(), request.uri()) {
                let answering = async move { filters::handle(&server, request, caller).await };
                match AbortOnDropHandle::new(tokio::spawn(answering)).await {
                    Ok(answer) => answer,
                    Err(_) => respond::status(&Status::internal("the server is ending"), Accept::default()),
                }
            } else {
                filters::handle(&server, request, caller).await
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let ended = if is_http2 {
        let begun = Begun::default();
        gathered(Gather::new(stream), |stream| async move {
            let connection = Box::pin(http2(begun.clone()).serve_connection(TokioIo::new(stream), service));
            let mut serving = WithCalls::new(connection, begun);
            tokio::select! {
                ended = &mut serving => ended,
                () = shutdown.cancelled() => {
                    serving.connection.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        })
        .await
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let serving = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        tokio::pin!(serving);
        tokio::select! {
            ended = serving.as_mut() => ended,
            () = shutdown.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, ?peer, "connection ended");
    }
}

/// Whether an answer may be more work than the other calls of its connection should wait for: reading one object, watching and
/// writing are not.
fn takes_long(method: &Method, uri: &Uri) -> bool {
    match *method {
        Method::GET => {}
        Method::DELETE => return true,
        _ => return false,
    }
    if uri.query().is_some_and(|query| query.contains("watch=")) {
        return false;
    }
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
    let versions = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return true,
    };
    let mut parts = parts.skip(versions).peekable();
    let namespaced = parts.peek() == Some(&"namespaces");
    !matches!((namespaced, parts.count()), (_, 2) | (true, 4))
}

fn http2(begun: Begun) -> http2::Builder<Begun> {
    let mut builder = http2::Builder::new(begun);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BUFFER);
    builder
}

/// The TLS configuration: client certificates are asked for, not required; whose they are, authentication decides.
///
/// `authorities` are named to clients, who may have several certificates to choose from.
pub fn tls_config(
    chain: Vec<CertificateDer<'static>>,
    key: rustls_pki_types::PrivateKeyDer<'static>,
    authorities: Vec<DistinguishedName>,
) -> Result<rustls::ServerConfig, rustls::Error> {
    let mut provider = rustls::crypto::ring::default_provider();
    // AES-128 before AES-256, as upstream's: the cheaper of two that are strong enough.
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128_GCM"));
    let provider = Arc::new(provider);
    let verifier = Arc::new(AnyCertificate { provider: provider.clone(), authorities });
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    config.send_tls13_tickets = 1;
    Ok(config)
}

/// Checks that the client holds the key of the certificate it shows; whether to trust that is not decided here.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    authorities: Vec<DistinguishedName>,
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_calls_are_those_about_one_object() {
        for (method, uri, long) in [
            ("GET", "/api/v1/namespaces/a/pods/b", false),
            ("GET", "/api/v1/nodes/b", false),
            ("GET", "/api/v1/namespaces/a", false),
            ("GET", "/apis/apps/v1/namespaces/a/deployments/b", false),
            ("GET", "/api/v1/pods?watch=true&resourceVersion=3", false),
            ("POST", "/api/v1/namespaces/a/pods", false),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/b", false),
            ("GET", "/api/v1/pods", true),
            ("GET", "/api/v1/namespaces/a/pods?limit=500", true),
            ("GET", "/apis/apps/v1/namespaces/a/deployments", true),
            ("GET", "/api/v1/namespaces/a/pods/b/log", true),
            ("GET", "/apis/apps/v1", true),
            ("GET", "/openapi/v2", true),
            ("DELETE", "/api/v1/namespaces/a/pods", true),
        ] {
            assert_eq!(takes_long(&method.parse().unwrap(), &uri.parse().unwrap()), long, "{method} {uri}");
        }
    }
}
