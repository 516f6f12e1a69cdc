//! The cluster's keys and certificates, made once in the data directory: ECDSA P-256 throughout, files 0600.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// Certificates that run out sooner than this are made anew at start.
const RENEW_DAYS: i64 = 30;

/// A certificate and its key in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// Where the files are and what is in them.
pub struct Pki {
    directory: PathBuf,
    ca: Pair,
    front_proxy_ca: Pair,
}

/// Whom a leaf certificate names and what it is for.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    pub common_name: &'a str,
    pub organizations: &'a [&'a str],
    pub dns_names: &'a [String],
    pub addresses: &'a [IpAddr],
    pub server: bool,
}

impl Pki {
    /// Opens `directory`, making the authorities and the service account key when they are missing.
    pub fn open(directory: &Path) -> Result<Pki> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let ca = authority(directory, "ca", "isopod-ca")?;
        let front_proxy_ca = authority(directory, "front-proxy-ca", "isopod-front-proxy-ca")?;
        let pki = Pki { directory: directory.to_owned(), ca, front_proxy_ca };
        pki.service_account_key()?;
        Ok(pki)
    }

    pub fn ca_certificate(&self) -> &str {
        &self.ca.certificate
    }

    pub fn front_proxy_ca_certificate(&self) -> &str {
        &self.front_proxy_ca.certificate
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The key that signs service account tokens.
    pub fn service_account_key(&self) -> Result<String> {
        let path = self.path("sa.key");
        if let Ok(pem) = std::fs::read_to_string(&path) {
            return Ok(pem);
        }
        let key = KeyPair::generate().context("generate the service account key")?;
        write_private(&self.path("sa.pub"), &key.public_key_pem())?;
        write_private(&path, &key.serialize_pem())?;
        Ok(key.serialize_pem())
    }

    /// The certificate `name`, signed by the cluster's authority; made anew when it is missing, about to run out, or
    /// lacks a name that is now asked for.
    pub fn leaf(&self, name: &str, subject: &Subject<'_>) -> Result<Pair> {
        self.leaf_of(&self.ca, name, subject)
    }

    pub fn front_proxy_client(&self) -> Result<Pair> {
        let subject = Subject { common_name: "front-proxy-client", ..Subject::default() };
        self.leaf_of(&self.front_proxy_ca, "front-proxy-client", &subject)
    }

    fn leaf_of(&self, ca: &Pair, name: &str, subject: &Subject<'_>) -> Result<Pair> {
        let (certificate_path, key_path) =
            (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        if let (Ok(certificate), Ok(key)) =
            (std::fs::read_to_string(&certificate_path), std::fs::read_to_string(&key_path))
            && still_good(&certificate, subject)
        {
            return Ok(Pair { certificate, key });
        }
        let pair = sign(ca, subject).with_context(|| format!("make the certificate {name}"))?;
        write_private(&key_path, &pair.key)?;
        write_private(&certificate_path, &pair.certificate)?;
        Ok(pair)
    }
}

fn sign(ca: &Pair, subject: &Subject<'_>) -> Result<Pair> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let mut params = leaf_params(subject)?;
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A server certificate that no authority stands behind.
pub fn self_signed(common_name: &str, dns_names: &[String], addresses: &[IpAddr]) -> Result<Pair> {
    let subject = Subject { common_name, dns_names, addresses, server: true, ..Subject::default() };
    let key = KeyPair::generate()?;
    let certificate = leaf_params(&subject)?.self_signed(&key)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn leaf_params(subject: &Subject<'_>) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    for organization in subject.organizations {
        name.push(DnType::OrganizationName, *organization);
    }
    name.push(DnType::CommonName, subject.common_name);
    params.distinguished_name = name;
    for dns in subject.dns_names {
        params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into()?));
    }
    for address in subject.addresses {
        params.subject_alt_names.push(SanType::IpAddress(*address));
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![if subject.server {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    validity(&mut params, LEAF_DAYS);
    Ok(params)
}

fn authority(directory: &Path, file: &str, common_name: &str) -> Result<Pair> {
    let (certificate_path, key_path) =
        (directory.join(format!("{file}.crt")), directory.join(format!("{file}.key")));
    if let (Ok(certificate), Ok(key)) =
        (std::fs::read_to_string(&certificate_path), std::fs::read_to_string(&key_path))
    {
        return Ok(Pair { certificate, key });
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_DAYS);
    let key = KeyPair::generate()?;
    let certificate =
        params.self_signed(&key).with_context(|| format!("make the authority {common_name}"))?;
    let pair = Pair { certificate: certificate.pem(), key: key.serialize_pem() };
    write_private(&key_path, &pair.key)?;
    write_private(&certificate_path, &pair.certificate)?;
    Ok(pair)
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    // Some slack for clocks that lag.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(days);
}

/// Whether a certificate lasts long enough and names everything asked for.
fn still_good(certificate: &str, subject: &Subject<'_>) -> bool {
    use x509_parser::prelude::*;
    let Ok((_, pem)) = parse_x509_pem(certificate.as_bytes()) else { return false };
    let Ok(parsed) = pem.parse_x509() else { return false };
    let Ok(extension) = parsed.subject_alternative_name() else { return false };
    let names = extension.map(|e| e.value.general_names.clone()).unwrap_or_default();
    let soon = OffsetDateTime::now_utc() + Duration::days(RENEW_DAYS);
    let common_name = parsed.subject().iter_common_name().next().and_then(|n| n.as_str().ok());
    parsed.validity().not_after.timestamp() > soon.unix_timestamp()
        && common_name == Some(subject.common_name)
        && subject.dns_names.iter().all(|d| names.contains(&GeneralName::DNSName(d)))
        && subject.addresses.iter().all(|a| match a {
            IpAddr::V4(a) => names.contains(&GeneralName::IPAddress(&a.octets())),
            IpAddr::V6(a) => names.contains(&GeneralName::IPAddress(&a.octets())),
        })
}

/// Writes a file that only its owner can read, atomically.
pub fn write_private(path: &Path, contents: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("write {}", temporary.display()))?;
    file.write_all(contents.as_bytes())?;
    drop(file);
    std::fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

/// A kubeconfig for one user with an embedded client certificate.
pub fn kubeconfig(server: &str, ca: &str, user: &str, pair: &Pair) -> String {
    use base64::Engine;
    let encode = |s: &str| base64::engine::general_purpose::STANDARD.encode(s);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: isopod\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\ncontexts:\n- name: isopod\n  context:\n    cluster: isopod\n    user: {user}\n\
         current-context: isopod\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\n",
        encode(ca),
        encode(&pair.certificate),
        encode(&pair.key)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_kept_until_they_lack_a_name() {
        let directory = std::env::temp_dir().join(format!("isopod-pki-{}", std::process::id()));
        let pki = Pki::open(&directory).unwrap();
        let one = ["localhost".to_owned()];
        let subject =
            Subject { common_name: "kube-apiserver", dns_names: &one, server: true, ..Subject::default() };
        let first = pki.leaf("apiserver", &subject).unwrap();
        assert_eq!(pki.leaf("apiserver", &subject).unwrap().certificate, first.certificate);
        let addresses = ["10.96.0.1".parse().unwrap()];
        let wider = Subject { addresses: &addresses, ..subject };
        let second = pki.leaf("apiserver", &wider).unwrap();
        assert_ne!(second.certificate, first.certificate);
        assert_eq!(Pki::open(&directory).unwrap().ca_certificate(), pki.ca_certificate());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
