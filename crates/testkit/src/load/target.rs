//! Where the API server is and who we are to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

/// How the API server is named: by a kubeconfig, or by address, CA and token.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Address of the server, such as https://127.0.0.1:6443, instead of a kubeconfig
    #[arg(long)]
    server: Option<String>,
    #[arg(long, requires = "server")]
    certificate_authority: Option<PathBuf>,
    #[arg(long, requires = "server")]
    token: Option<String>,
}

pub struct Target {
    pub host: String,
    pub port: u16,
    pub tls: Arc<rustls::ClientConfig>,
    pub authorization: Option<http::HeaderValue>,
}

#[derive(Default)]
struct Access {
    server: String,
    ca: Option<Vec<u8>>,
    insecure: bool,
    token: Option<String>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Flags {
    pub fn resolve(&self) -> Result<Target> {
        let access = match (&self.server, &self.kubeconfig) {
            (Some(server), _) => Access {
                server: server.clone(),
                ca: self.certificate_authority.as_deref().map(read).transpose()?,
                insecure: self.certificate_authority.is_none(),
                token: self.token.clone(),
                identity: None,
            },
            (None, Some(path)) => from_kubeconfig(path)?,
            (None, None) => bail!("say with --kubeconfig or --server where the API server is"),
        };
        access.target()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn from_kubeconfig(path: &Path) -> Result<Access> {
    let text = String::from_utf8(read(path)?)?;
    let config: Value = serde_saphyr::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let named = |list: &str, name: &Value, part: &str| -> Result<Value> {
        let found = config[list].as_array().into_iter().flatten().find(|e| &e["name"] == name);
        Ok(found.with_context(|| format!("{}: no {part} {name}", path.display()))?[part].clone())
    };
    let context = named("contexts", &config["current-context"], "context")?;
    let cluster = named("clusters", &context["cluster"], "cluster")?;
    let user = named("users", &context["user"], "user")?;
    // Inline data goes before the name of a file, which is relative to the kubeconfig.
    let content = |of: &Value, name: &str| -> Result<Option<Vec<u8>>> {
        if let Some(data) = of[format!("{name}-data")].as_str() {
            return Ok(Some(BASE64_STANDARD.decode(data).with_context(|| format!("{name}-data"))?));
        }
        let base = path.parent().unwrap_or(Path::new("."));
        of[name].as_str().map(|file| read(&base.join(file))).transpose()
    };
    let certificate = content(&user, "client-certificate")?;
    let key = content(&user, "client-key")?;
    Ok(Access {
        server: cluster["server"].as_str().unwrap_or_default().to_owned(),
        ca: content(&cluster, "certificate-authority")?,
        insecure: cluster["insecure-skip-tls-verify"] == true,
        token: user["token"].as_str().map(str::to_owned),
        identity: certificate.zip(key),
    })
}

impl Access {
    fn target(self) -> Result<Target> {
        let uri: http::Uri = self.server.parse().with_context(|| format!("server {:?}", self.server))?;
        let host = uri.host().with_context(|| format!("server {:?} has no host", self.server))?.to_owned();
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?;
        let builder = match &self.ca {
            Some(ca) if !self.insecure => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(ca) {
                    roots.add(certificate.context("certificate authority")?)?;
                }
                builder.with_root_certificates(roots)
            }
            _ => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified)),
        };
        let mut tls = match &self.identity {
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate)
                    .collect::<Result<Vec<_>, _>>()
                    .context("client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key).context("client key")?;
                builder.with_client_auth_cert(chain, key)?
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let authorization =
            self.token.map(|t| http::HeaderValue::from_str(&format!("Bearer {t}"))).transpose()?;
        Ok(Target { host, port: uri.port_u16().unwrap_or(443), tls: Arc::new(tls), authorization })
    }
}

/// For servers whose authority is not known: a load test gives nothing away.
#[derive(Debug)]
struct Unverified;

impl rustls::client::danger::ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
