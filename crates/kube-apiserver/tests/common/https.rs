//! A small HTTPS server for what the server under test asks of others.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What was asked.
pub struct Asked {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

pub struct Answer {
    pub code: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(value: &serde_json::Value) -> Answer {
        let headers = vec![("content-type", "application/json".to_owned())];
        Answer { code: 200, headers, body: value.to_string().into_bytes() }
    }

    pub fn code(code: u16) -> Answer {
        Answer { code, headers: Vec::new(), body: b"no".to_vec() }
    }
}

pub struct Https {
    pub url: String,
    /// PEM of whom to trust.
    pub authority: String,
    _stop: DropGuard,
}

impl Https {
    pub async fn serve(answer: impl Fn(Asked) -> Answer + Send + Sync + 'static) -> Https {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (answer, stop) = (Arc::new(answer), CancellationToken::new());
        let ending = stop.clone();
        tokio::spawn(ending.run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                        let answer = answer.clone();
                        async move {
                            let (head, body) = request.into_parts();
                            let asked = Asked {
                                method: head.method.to_string(),
                                path: head.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
                                headers: head.headers,
                                body: body.collect().await.map(|b| b.to_bytes().to_vec()).unwrap_or_default(),
                            };
                            let answer = answer(asked);
                            let mut response = http::Response::new(Full::new(Bytes::from(answer.body)));
                            *response.status_mut() = http::StatusCode::from_u16(answer.code).unwrap();
                            for (name, value) in answer.headers {
                                response.headers_mut().insert(name, value.parse().unwrap());
                            }
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
        Https { url, authority: certificate.pem(), _stop: stop.drop_guard() }
    }

    /// A kubeconfig for what is at a path of it.
    pub fn kubeconfig(&self, path: &str) -> String {
        use base64::Engine;
        let authority = base64::engine::general_purpose::STANDARD.encode(&self.authority);
        format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{}{path}', \
             certificate-authority-data: {authority}}}}}]\nusers: [{{name: u, user: {{token: hook}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.url
        )
    }
}
