//! HTTP and TCP as probes and hooks need them: one request, bounded in time and size, certificates not checked.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a probe reads of an answer.
const BODY_BYTES_MAX: usize = 10 << 10;
const REDIRECTS_MAX: usize = 10;

pub struct Target {
    pub https: bool,
    pub host: String,
    pub port: u16,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub user_agent: String,
}

pub struct Answer {
    pub status: u16,
    pub body: String,
    /// The last redirection led to another host and was not followed.
    pub redirected_away: bool,
}

/// GETs `target`, following redirections within the same host.
pub async fn get(target: &Target, timeout: Duration) -> Result<Answer, String> {
    let work = async {
        let mut path = target.path.clone();
        for _ in 0..=REDIRECTS_MAX {
            let (status, location, body) = once(target, &path).await?;
            let Some(location) = location.filter(|_| (300..400).contains(&status)) else {
                return Ok(Answer { status, body, redirected_away: false });
            };
            match next_path(target, &path, &location) {
                Some(next) => path = next,
                None => return Ok(Answer { status, body, redirected_away: true }),
            }
        }
        Err(format!("stopped after {REDIRECTS_MAX} redirects"))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result,
        Err(_) => Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into()),
    }
}

fn next_path(target: &Target, path: &str, location: &str) -> Option<String> {
    if location.starts_with("//") {
        return None;
    }
    if location.starts_with('/') {
        return Some(location.to_owned());
    }
    let Ok(uri) = location.parse::<http::Uri>() else { return None };
    match uri.host() {
        None => {
            let base = path.rsplit_once('/').map_or("", |(b, _)| b);
            Some(format!("{base}/{location}"))
        }
        Some(host) => {
            let own = target.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case("host"));
            let same = host == target.host || own.is_some_and(|(_, h)| h.split(':').next() == Some(host));
            let same_port = uri.port_u16().is_none_or(|p| p == target.port);
            let same_scheme = uri.scheme_str().is_none_or(|s| (s == "https") == target.https);
            (same && same_port && same_scheme)
                .then(|| uri.path_and_query().map_or("/".into(), |p| p.as_str().to_owned()))
        }
    }
}

pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn once(target: &Target, path: &str) -> Result<(u16, Option<String>, String), String> {
    let address = host_port(&target.host, target.port);
    let tcp = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|e| format!("dial tcp {address}: connect: {}", plain(&e)))?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = http::Request::get(&path)
        .header(http::header::HOST, &address)
        .header(http::header::CONNECTION, "close");
    for (name, value) in &target.headers {
        if name.eq_ignore_ascii_case("host") {
            if let Some(headers) = request.headers_mut()
                && let Ok(value) = value.parse()
            {
                headers.insert(http::header::HOST, value);
            }
        } else {
            request = request.header(name, value);
        }
    }
    if let Some(headers) = request.headers_mut() {
        if !headers.contains_key(http::header::USER_AGENT)
            && let Ok(agent) = target.user_agent.parse()
        {
            headers.insert(http::header::USER_AGENT, agent);
        }
        if !headers.contains_key(http::header::ACCEPT) {
            headers.insert(http::header::ACCEPT, http::HeaderValue::from_static("*/*"));
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    if target.https {
        let name = rustls_pki_types::ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
        let tls = TlsConnector::from(unchecked_tls()).connect(name, tcp).await.map_err(|e| e.to_string())?;
        send(tls, request).await
    } else {
        send(tcp, request).await
    }
}

async fn send<S>(
    stream: S,
    request: http::Request<Empty<Bytes>>,
) -> Result<(u16, Option<String>, String), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let location =
            response.headers().get(http::header::LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        // What does not fit is not read; the status has been seen.
        let body = match Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Err(_) => String::new(),
        };
        Ok((status, location, body))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut open = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            ended = &mut connection, if open => {
                open = false;
                if let Err(error) = ended {
                    tracing::trace!(%error, "probe connection");
                }
            }
        }
    }
}

/// Whether something accepts connections there.
pub async fn connect(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    let address = host_port(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {}", plain(&error))),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".into(),
        _ => error.to_string(),
    }
}

/// TLS that believes any certificate: probes ask whether something answers, not who.
fn unchecked_tls() -> Arc<rustls::ClientConfig> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let verifier = Arc::new(Unchecked(provider.clone()));
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("ring supports the default versions")
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth();
            Arc::new(config)
        })
        .clone()
}

#[derive(Debug)]
struct Unchecked(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
