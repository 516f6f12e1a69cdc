//! A certificate authority: its certificate and key, and the certificates it makes.

use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use rcgen::{KeyPair, SigningKey as _};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::der::{self, extension, oid, positive, sequence, tlv};
use super::request::Request;

/// Certificates begin to be valid so much before they are made, since clocks differ; unless they are short-lived.
const BACKDATE: Duration = Duration::from_secs(5 * 60);
const SHORT: Duration = Duration::from_secs(8 * 3600);
const DURATION_MIN: Duration = Duration::from_secs(10 * 60);

pub struct Authority {
    subject: Vec<u8>,
    key_id: Vec<u8>,
    not_after: Timestamp,
    key: KeyPair,
    algorithm: Vec<u8>,
}

impl Authority {
    pub fn new(certificate_pem: &[u8], key_pem: &[u8]) -> anyhow::Result<Authority> {
        let der =
            CertificateDer::from_pem_slice(certificate_pem).context("the signing certificate is not PEM")?;
        let (_, certificate) = X509Certificate::from_der(&der).context("the signing certificate")?;
        let key_id = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        let key = key_pair(key_pem)?;
        let algorithm = algorithm(&key)?;
        Ok(Authority {
            subject: certificate.subject().as_raw().to_vec(),
            key_id: key_id.unwrap_or_default(),
            not_after: Timestamp::from_second(certificate.validity().not_after.timestamp())?,
            key,
            algorithm,
        })
    }

    /// A certificate, as PEM, for a request and its usages; valid for what it asks, at most for `most`.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        asked: Option<Duration>,
        most: Duration,
        now: Timestamp,
    ) -> anyhow::Result<Vec<u8>> {
        let lasting = asked.map_or(most, |asked| if asked > most { most } else { asked.max(DURATION_MIN) });
        let not_before = now - BACKDATE;
        // Short certificates last as long as they were asked for; of the others the backdating is a part.
        let not_after = if lasting < SHORT { now + lasting } else { not_before + lasting };
        let not_after = not_after.min(self.not_after);
        if not_after <= now {
            bail!("the signer has expired: NotAfter={}", self.not_after);
        }
        let mut serial = [0u8; 16];
        rand::fill(&mut serial);
        serial[0] &= 0x7f;
        let extensions: Vec<u8> = self.extensions(request, usages)?.concat();
        let tbs = sequence(&[
            &tlv(0xa0, &tlv(der::INTEGER, &[2])),
            &positive(&serial),
            &self.algorithm,
            &self.subject,
            &sequence(&[&der::time(not_before), &der::time(not_after)]),
            &request.subject,
            &request.public_key,
            &tlv(0xa3, &tlv(der::SEQUENCE, &extensions)),
        ]);
        let signature = self.key.sign(&tbs).context("signing")?;
        let signature = [&[0u8][..], &signature].concat();
        let certificate = sequence(&[&tbs, &self.algorithm, &tlv(der::BIT_STRING, &signature)]);
        Ok(pem(&certificate))
    }

    fn extensions(&self, request: &Request, usages: &[String]) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut bits = 0u16;
        let mut extended: Vec<u8> = Vec::new();
        for usage in usages {
            match (key_usage(usage), extended_usage(usage)) {
                (Some(bit), _) => bits |= 1 << bit,
                (_, Some(id)) => extended.extend(oid(id)),
                _ => bail!("unrecognized usage values: [{usage:?}]"),
            }
        }
        let mut out = Vec::new();
        if bits != 0 {
            // The first usage is the highest bit of the first byte.
            let mut bytes = [(bits as u8).reverse_bits(), ((bits >> 8) as u8).reverse_bits()].to_vec();
            if bytes[1] == 0 {
                bytes.pop();
            }
            let unused = bytes.last().map_or(0, |b| b.trailing_zeros() as u8);
            bytes.insert(0, unused);
            out.push(extension(&[2, 5, 29, 15], true, &tlv(der::BIT_STRING, &bytes)));
        }
        if !extended.is_empty() {
            out.push(extension(&[2, 5, 29, 37], false, &tlv(der::SEQUENCE, &extended)));
        }
        out.push(extension(&[2, 5, 29, 19], true, &sequence(&[])));
        if !self.key_id.is_empty() {
            out.push(extension(&[2, 5, 29, 35], false, &sequence(&[&tlv(0x80, &self.key_id)])));
        }
        if let Some((critical, names)) = &request.names {
            out.push(extension(&[2, 5, 29, 17], *critical, names));
        }
        Ok(out)
    }
}

fn pem(der: &[u8]) -> Vec<u8> {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out.into_bytes()
}

const EC_PUBLIC_KEY: &[u64] = &[1, 2, 840, 10045, 2, 1];
const RSA_ENCRYPTION: &[u64] = &[1, 2, 840, 113549, 1, 1, 1];

/// A key in any of the usual wrappings (PKCS #8, PKCS #1, SEC 1).
fn key_pair(pem: &[u8]) -> anyhow::Result<KeyPair> {
    let key = PrivateKeyDer::from_pem_slice(pem).context("the signing key is not PEM")?;
    let wrapped = |algorithm: Vec<u8>, der: &[u8]| {
        sequence(&[&tlv(der::INTEGER, &[0]), &algorithm, &tlv(der::OCTET_STRING, der)])
    };
    let pkcs8 = match &key {
        PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der().to_vec(),
        PrivateKeyDer::Pkcs1(key) => {
            wrapped(sequence(&[&oid(RSA_ENCRYPTION), &[0x05, 0x00]]), key.secret_pkcs1_der())
        }
        PrivateKeyDer::Sec1(key) => {
            let der = key.secret_sec1_der();
            let p384 = oid(&[1, 3, 132, 0, 34]);
            let curve = if der.windows(p384.len()).any(|w| w == p384) {
                p384
            } else {
                oid(&[1, 2, 840, 10045, 3, 1, 7])
            };
            wrapped(sequence(&[&oid(EC_PUBLIC_KEY), &curve]), der)
        }
        _ => bail!("the signing key is of an unknown kind"),
    };
    let pkcs8 = rustls_pki_types::PrivatePkcs8KeyDer::from(pkcs8);
    KeyPair::try_from(&pkcs8).context("the signing key")
}

/// The AlgorithmIdentifier of the signatures a key makes.
fn algorithm(key: &KeyPair) -> anyhow::Result<Vec<u8>> {
    let algorithm = key.algorithm();
    let with_null = |id: &[u64]| sequence(&[&oid(id), &[0x05, 0x00]]);
    let plain = |id: &[u64]| sequence(&[&oid(id)]);
    Ok(if algorithm == &rcgen::PKCS_ECDSA_P256_SHA256 {
        plain(&[1, 2, 840, 10045, 4, 3, 2])
    } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
        plain(&[1, 2, 840, 10045, 4, 3, 3])
    } else if algorithm == &rcgen::PKCS_ED25519 {
        plain(&[1, 3, 101, 112])
    } else if algorithm == &rcgen::PKCS_RSA_SHA256 {
        with_null(&[1, 2, 840, 113549, 1, 1, 11])
    } else {
        bail!("keys of this algorithm do not sign certificates")
    })
}

fn key_usage(usage: &str) -> Option<u32> {
    Some(match usage {
        "signing" | "digital signature" => 0,
        "content commitment" => 1,
        "key encipherment" => 2,
        "data encipherment" => 3,
        "key agreement" => 4,
        "cert sign" => 5,
        "crl sign" => 6,
        "encipher only" => 7,
        "decipher only" => 8,
        _ => return None,
    })
}

fn extended_usage(usage: &str) -> Option<&'static [u64]> {
    Some(match usage {
        "any" => &[2, 5, 29, 37, 0],
        "server auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 1],
        "client auth" => &[1, 3, 6, 1, 5, 5, 7, 3, 2],
        "code signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 3],
        "email protection" | "s/mime" => &[1, 3, 6, 1, 5, 5, 7, 3, 4],
        "ipsec end system" => &[1, 3, 6, 1, 5, 5, 7, 3, 5],
        "ipsec tunnel" => &[1, 3, 6, 1, 5, 5, 7, 3, 6],
        "ipsec user" => &[1, 3, 6, 1, 5, 5, 7, 3, 7],
        "timestamping" => &[1, 3, 6, 1, 5, 5, 7, 3, 8],
        "ocsp signing" => &[1, 3, 6, 1, 5, 5, 7, 3, 9],
        "microsoft sgc" => &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3],
        "netscape sgc" => &[2, 16, 840, 1, 113730, 4, 1],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::{CLIENT_KUBELET, KUBELET_SERVING};
    use rcgen::{CertificateParams, DnType, IsCa, SanType};

    fn request(common_name: &str, organizations: &[&str], names: Vec<SanType>) -> Request {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        for organization in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *organization);
        }
        params.subject_alt_names = names;
        Request::parse(params.serialize_request(&key).unwrap().pem().unwrap().as_bytes()).unwrap()
    }

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| (*u).to_owned()).collect()
    }

    #[test]
    fn signs_what_is_asked() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let ca = params.self_signed(&key).unwrap();
        let authority = Authority::new(ca.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let name = SanType::DnsName("n.example.com".try_into().unwrap());
        let request = request("system:node:n", &["system:nodes"], vec![name]);
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let day = Duration::from_secs(24 * 3600);
        let usages = usages(&["digital signature", "key encipherment", "server auth"]);
        let pem = authority.sign(&request, &usages, Some(day * 400), day * 365, now).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let certificate = block.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "CN=system:node:n, O=system:nodes");
        assert_eq!(certificate.issuer(), ca_subject(&ca.pem()).subject());
        assert_eq!(certificate.validity().not_before.timestamp(), now.as_second() - 300);
        assert_eq!(certificate.validity().not_after.timestamp(), now.as_second() - 300 + 365 * 24 * 3600);
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && !extended.client_auth);
        assert!(!certificate.is_ca());
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
        // Whoever trusts the authority trusts the certificate.
        let public = ring::signature::UnparsedPublicKey::new(
            &ring::signature::ECDSA_P256_SHA256_ASN1,
            ca_subject(&ca.pem()).public_key().subject_public_key.data.to_vec(),
        );
        public.verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data).unwrap();
        // A short life is as long as was asked.
        let pem = authority.sign(&request, &usages, Some(Duration::from_secs(60)), day, now).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        assert_eq!(block.parse_x509().unwrap().validity().not_after.timestamp(), now.as_second() + 600);
    }

    fn ca_subject(pem: &str) -> X509Certificate<'static> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let block: &'static x509_parser::pem::Pem = Box::leak(Box::new(block));
        block.parse_x509().unwrap()
    }

    #[test]
    fn signers_take_what_they_are_for() {
        let name = || vec![SanType::DnsName("n.example.com".try_into().unwrap())];
        let client = ["digital signature", "client auth"];
        let server = ["digital signature", "key encipherment", "server auth"];
        for (signer, common_name, organization, names, list, want) in [
            (CLIENT_KUBELET, "system:node:n", "system:nodes", vec![], &client[..], ""),
            (
                CLIENT_KUBELET,
                "n",
                "system:nodes",
                vec![],
                &client,
                "subject common name does not begin with system:node:",
            ),
            (
                CLIENT_KUBELET,
                "system:node:n",
                "other",
                vec![],
                &client,
                "subject organization is not system:nodes",
            ),
            (
                CLIENT_KUBELET,
                "system:node:n",
                "system:nodes",
                name(),
                &client,
                "DNS subjectAltNames are not allowed",
            ),
            (
                CLIENT_KUBELET,
                "system:node:n",
                "system:nodes",
                vec![],
                &server,
                "usages did not match [client auth digital signature key encipherment]",
            ),
            (KUBELET_SERVING, "system:node:n", "system:nodes", name(), &server, ""),
            (
                KUBELET_SERVING,
                "system:node:n",
                "system:nodes",
                vec![],
                &server,
                "DNS or IP subjectAltName is required",
            ),
            (super::super::CLIENT, "x", "y", vec![], &client, ""),
            (
                super::super::CLIENT,
                "x",
                "y",
                vec![],
                &server,
                "invalid usage for client certificate: server auth",
            ),
            (super::super::LEGACY, "x", "y", name(), &server, ""),
        ] {
            let got = request(common_name, &[organization], names).fits(signer, &usages(list)).unwrap();
            assert_eq!(got.err().unwrap_or_default(), want, "{signer} {common_name} {organization}");
        }
        assert!(request("x", &["y"], vec![]).fits("example.com/other", &[]).is_none());
    }
}
