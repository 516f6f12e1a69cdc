//! Client certificates: common name → user, organizations → groups.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{DistinguishedName, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::metrics::{Families, Timer};

/// How many verified leaves are remembered; the whole memory is dropped when it is full.
const REMEMBERED_MAX: usize = 4096;
const UID_OID: &str = "1.3.6.1.4.1.57683.2";

/// Whom the certificates of CA bundles belong to.
pub fn subjects<'a>(bundles: impl Iterator<Item = &'a [u8]>) -> Vec<DistinguishedName> {
    let mut roots = RootCertStore::empty();
    // What is no certificate is told of where the bundle is put to use.
    roots.add_parsable_certificates(bundles.flat_map(CertificateDer::pem_slice_iter).flatten());
    roots.subjects()
}

/// Verifies chains against one CA bundle.
pub struct Verifier(Arc<dyn ClientCertVerifier>);

impl Verifier {
    pub fn new(ca_pem: &[u8]) -> anyhow::Result<Verifier> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Verifier(verifier))
    }

    pub fn verify(&self, chain: &[Vec<u8>], clock: &Clock) -> Result<(), String> {
        let (leaf, rest) = chain.split_first().ok_or("no certificate")?;
        let intermediates: Vec<CertificateDer<'_>> =
            rest.iter().map(|c| CertificateDer::from(c.as_slice())).collect();
        let now = clock.now().as_second().max(0).unsigned_abs();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        self.0
            .verify_client_cert(&CertificateDer::from(leaf.as_slice()), &intermediates, now)
            .map(|_| ())
            .map_err(|e| e.to_string())
    }
}

struct Remembered {
    user: UserInfo,
    expires: i64,
}

/// Authenticates client certificates signed by the client CA.
pub struct ClientCertificates {
    verifier: Verifier,
    clock: Clock,
    remembered: Mutex<HashMap<[u8; 32], Remembered>>,
    left: Arc<Timer>,
}

/// Upper bounds in seconds: from half an hour to a year.
const LEFT: &[f64] = &[
    0.0, 1800.0, 3600.0, 7200.0, 21600.0, 43200.0, 86400.0, 172800.0, 345600.0, 604800.0, 2592000.0,
    7776000.0, 15552000.0, 31104000.0,
];

impl ClientCertificates {
    pub fn new(ca_pem: &[u8], clock: Clock, families: &Families) -> anyhow::Result<ClientCertificates> {
        let left = families.histogram(
            "apiserver_client_certificate_expiration_seconds",
            "[ALPHA] Seconds that certificates which requests came with are still good for.",
            &[],
            LEFT,
        );
        let left = left.timer(&[]);
        Ok(ClientCertificates { verifier: Verifier::new(ca_pem)?, clock, remembered: Mutex::default(), left })
    }

    pub fn user(&self, chain: &[Vec<u8>]) -> Result<UserInfo, String> {
        let leaf = chain.first().ok_or("no certificate")?;
        let fingerprint = fingerprint(leaf);
        let now = self.clock.now().as_second();
        if let Some(known) = self.remembered.lock().get(&fingerprint)
            && now < known.expires
        {
            self.tell(known.expires - now);
            return Ok(known.user.clone());
        }
        self.verifier.verify(chain, &self.clock)?;
        let (user, expires) = read(leaf, &fingerprint)?;
        self.tell(expires - now);
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(fingerprint, Remembered { user: user.clone(), expires });
        Ok(user)
    }
}

impl ClientCertificates {
    fn tell(&self, seconds_left: i64) {
        self.left.took(std::time::Duration::from_secs(seconds_left.max(0).unsigned_abs()));
    }
}

fn fingerprint(der: &[u8]) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(der).into()
}

/// The user a certificate names, and when it ends (Unix seconds).
fn read(leaf: &[u8], fingerprint: &[u8; 32]) -> Result<(UserInfo, i64), String> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|e| e.to_string())?;
    let subject = certificate.subject();
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_owned();
    let name = subject.iter_common_name().last().map(text).filter(|n| !n.is_empty());
    let name = name.ok_or("the certificate has no common name")?;
    let groups = subject.iter_organization().map(text).collect();
    let uid = subject
        .iter_attributes()
        .find(|a| a.attr_type().to_id_string() == UID_OID)
        .map(text)
        .unwrap_or_default();
    let mut hex = String::with_capacity(64);
    for byte in fingerprint {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
    }
    let extra = BTreeMap::from([(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("X509SHA256={hex}")],
    )]);
    Ok((UserInfo { name, uid, groups, extra }, certificate.validity().not_after.timestamp()))
}

/// A certificate's common name.
pub fn common_name(leaf: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    certificate.subject().iter_common_name().last()?.as_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    fn ca() -> (String, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn leaf(issuer: &Issuer<'static, KeyPair>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.distinguished_name.push(DnType::OrganizationName, "dev");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().to_vec()
    }

    #[test]
    fn reads_the_subject_of_trusted_certificates_only() {
        let (pem, issuer) = ca();
        let certificates =
            ClientCertificates::new(pem.as_bytes(), Clock::system(), &Families::default()).unwrap();
        for _ in 0..2 {
            let user = certificates.user(&[leaf(&issuer)]).unwrap();
            assert_eq!((user.name.as_str(), user.groups), ("alice", vec!["dev".to_owned()]));
        }
        let (_, other) = ca();
        assert!(certificates.user(&[leaf(&other)]).is_err());
        assert!(certificates.user(&[b"junk".to_vec()]).is_err());
        let names = subjects([pem.as_bytes(), b"junk"].into_iter());
        assert_eq!(names.len(), 1);
        assert!(names[0].as_ref().windows(2).any(|w| w == b"ca"));
    }
}
