//! Who may ask the kubelet, and for what: certificates of the cluster's authority and bearer tokens say who, the API
//! server decides what.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::{Request, Response, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use super::{Body, text};
use crate::kubelet::{Kubelet, api_message};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// The server's TLS, with a certificate of its own making where none is given.
pub fn tls(kubelet: &Kubelet) -> Result<Arc<rustls::ServerConfig>> {
    let config = &kubelet.config;
    let (chain, key) = match &config.tls {
        Some((cert, key)) => {
            let chain = CertificateDer::pem_file_iter(cert)
                .and_then(|i| i.collect::<Result<Vec<_>, _>>())
                .with_context(|| format!("reading {}", cert.display()))?;
            let key =
                PrivateKeyDer::from_pem_file(key).with_context(|| format!("reading {}", key.display()))?;
            (chain, key)
        }
        None => {
            let mut names = vec![config.node_name.clone(), "localhost".to_owned()];
            names.extend(kubelet.host_ips.iter().cloned());
            let made = rcgen::generate_simple_self_signed(names).context("making a certificate")?;
            let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
                .map_err(|e| anyhow::anyhow!("the key of a new certificate: {e}"))?;
            (vec![made.cert.der().clone()], key)
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &config.client_ca_file {
        Some(path) => {
            let mut roots = rustls::RootCertStore::empty();
            for cert in
                CertificateDer::pem_file_iter(path).with_context(|| format!("reading {}", path.display()))?
            {
                roots.add(cert?)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut tls = builder.with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// Whom the client's certificate names; it has been verified.
pub fn certificate_user(connection: &rustls::ServerConnection) -> Option<User> {
    let cert = connection.peer_certificates()?.first()?;
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let subject = cert.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(User { name, groups })
}

const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
const CACHED_MAX: usize = 1000;

type Tokens = HashMap<[u8; 32], (Option<User>, Instant)>;
type Decisions = HashMap<(User, String, String), (bool, Instant)>;

#[derive(Default)]
pub struct Auth {
    tokens: Mutex<Tokens>,
    decisions: Mutex<Decisions>,
}

impl Auth {
    pub async fn check<B>(
        &self,
        kubelet: &Kubelet,
        request: &Request<B>,
        certificate: Option<User>,
    ) -> Result<(), Response<Body>> {
        let user = match certificate {
            Some(user) => user,
            None => self.bearer(kubelet, request).await?,
        };
        if user.groups.iter().any(|g| g == "system:masters") {
            return Ok(());
        }
        let verb = match request.method().as_str() {
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" => "delete",
            _ => "get",
        };
        let path = request.uri().path().trim_start_matches('/');
        let top = path.split('/').next().unwrap_or_default();
        // The newer, finer permissions first; each of these is also covered by the old one.
        let subresources: &[&str] = match top {
            "stats" => &["stats"],
            "metrics" => &["metrics"],
            "logs" => &["log"],
            "spec" => &["spec"],
            "checkpoint" => &["checkpoint"],
            "pods" | "runningpods" => &["pods", "proxy"],
            "healthz" | "livez" | "readyz" => &["healthz", "proxy"],
            "configz" => &["configz", "proxy"],
            _ => &["proxy"],
        };
        for subresource in subresources {
            if self.allowed(kubelet, &user, verb, subresource).await? {
                return Ok(());
            }
        }
        let message = format!(
            "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            subresources.join(" ")
        );
        Err(text(StatusCode::FORBIDDEN, message))
    }

    async fn bearer<B>(&self, kubelet: &Kubelet, request: &Request<B>) -> Result<User, Response<Body>> {
        let token = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.strip_prefix("Bearer "))
            .map(str::trim);
        let refused = || text(StatusCode::UNAUTHORIZED, "Unauthorized");
        let Some(token) = token else {
            if kubelet.config.anonymous_auth {
                return Ok(User {
                    name: "system:anonymous".into(),
                    groups: vec!["system:unauthenticated".into()],
                });
            }
            return Err(refused());
        };
        let hash: [u8; 32] = Sha256::digest(token).into();
        let known = self.tokens.lock().get(&hash).filter(|(_, until)| *until > Instant::now()).cloned();
        if let Some((user, _)) = known {
            return user.ok_or_else(refused);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let answer = kubelet
            .client
            .all::<TokenReview>()
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| text(StatusCode::UNAUTHORIZED, api_message(&e)))?;
        let status = answer.status.unwrap_or_default();
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|u| User { name: u.username.unwrap_or_default(), groups: u.groups.unwrap_or_default() });
        let mut tokens = self.tokens.lock();
        if tokens.len() >= CACHED_MAX {
            tokens.clear();
        }
        tokens.insert(hash, (user.clone(), Instant::now() + TOKEN_TTL));
        user.ok_or_else(refused)
    }

    async fn allowed(
        &self,
        kubelet: &Kubelet,
        user: &User,
        verb: &str,
        subresource: &str,
    ) -> Result<bool, Response<Body>> {
        let key = (user.clone(), verb.to_owned(), subresource.to_owned());
        let known = self.decisions.lock().get(&key).filter(|(_, until)| *until > Instant::now()).map(|d| d.0);
        if let Some(known) = known {
            return Ok(known);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(kubelet.config.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = kubelet
            .client
            .all::<SubjectAccessReview>()
            .create(&PostParams::default(), &review)
            .await
            .map_err(|e| {
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("Authorization error: {}", api_message(&e)))
            })?;
        let allowed = answer.status.is_some_and(|s| s.allowed);
        let mut decisions = self.decisions.lock();
        if decisions.len() >= CACHED_MAX {
            decisions.clear();
        }
        let ttl = if allowed { ALLOWED_TTL } else { DENIED_TTL };
        decisions.insert(key, (allowed, Instant::now() + ttl));
        Ok(allowed)
    }
}
