//! Serving certificates that may change on disk, and clients' certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// How often the files are looked at, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The configuration for a certificate and, where clients must show theirs, the authorities of those.
pub fn config(certificate: &Path, key: &Path, client_ca: Option<&Path>) -> Result<rustls::ServerConfig> {
    let reloaded = Reloaded::new(certificate, key)?;
    let provider = Arc::new(default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match client_ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let certificates =
                CertificateDer::pem_file_iter(path).with_context(|| format!("read {}", path.display()))?;
            for certificate in certificates {
                roots.add(certificate?).with_context(|| format!("read {}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .with_context(|| format!("use {} for client certificates", path.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(reloaded));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The common name of a certificate.
pub fn common_name(certificate: &[u8]) -> Option<Arc<str>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok()).map(Arc::from)
}

/// A certificate that is read again when its files change.
#[derive(Debug)]
struct Reloaded {
    certificate: PathBuf,
    key: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    pair: Arc<CertifiedKey>,
    modified: [Option<SystemTime>; 2],
    looked: Instant,
}

impl Reloaded {
    fn new(certificate: &Path, key: &Path) -> Result<Reloaded> {
        let pair = load(certificate, key)?;
        let held = Held { pair, modified: [modified(certificate), modified(key)], looked: Instant::now() };
        Ok(Reloaded { certificate: certificate.to_owned(), key: key.to_owned(), held: Mutex::new(held) })
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn load(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>> {
    let named = |path: &Path| format!("read {}", path.display());
    let chain = CertificateDer::pem_file_iter(certificate)
        .with_context(|| named(certificate))?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| named(certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| named(key))?;
    let pair =
        CertifiedKey::from_der(chain, key, &default_provider()).context("certificate and key do not fit")?;
    Ok(Arc::new(pair))
}

impl ResolvesServerCert for Reloaded {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut held = self.held.lock();
        if held.looked.elapsed() >= LOOK_INTERVAL {
            held.looked = Instant::now();
            let now = [modified(&self.certificate), modified(&self.key)];
            if now != held.modified {
                match load(&self.certificate, &self.key) {
                    Ok(pair) => {
                        held.pair = pair;
                        held.modified = now;
                        tracing::info!(certificate = %self.certificate.display(), "serving a new certificate");
                    }
                    // The two files change one after the other.
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the new certificate cannot be used yet")
                    }
                }
            }
        }
        Some(held.pair.clone())
    }
}
