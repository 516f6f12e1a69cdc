//! A certificate request (PKCS #10), and whether a signer of kubernetes.io takes it.

use anyhow::Context as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, ParsedCriAttribute};

use super::{CLIENT, CLIENT_KUBELET, KUBELET_SERVING, LEGACY};

/// What a request asks for.
#[derive(Debug, Default)]
pub struct Request {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// As they stand in the request.
    pub subject: Vec<u8>,
    pub public_key: Vec<u8>,
    /// The extension with alternative names: whether it is critical, and its value.
    pub names: Option<(bool, Vec<u8>)>,
    dns: usize,
    ips: usize,
    emails: usize,
    uris: usize,
}

impl Request {
    pub fn parse(pem: &[u8]) -> anyhow::Result<Request> {
        let (_, block) =
            x509_parser::pem::parse_x509_pem(pem).context("PEM block type must be CERTIFICATE REQUEST")?;
        anyhow::ensure!(block.label == "CERTIFICATE REQUEST", "PEM block type must be CERTIFICATE REQUEST");
        let (_, request) =
            X509CertificationRequest::from_der(&block.contents).context("not a certificate request")?;
        let info = &request.certification_request_info;
        let text =
            |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_owned();
        let mut out = Request {
            common_name: info.subject.iter_common_name().last().map(text).unwrap_or_default(),
            organizations: info.subject.iter_organization().map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Request::default()
        };
        for attribute in info.iter_attributes() {
            let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
                continue;
            };
            for extension in &requested.extensions {
                let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
                    continue;
                };
                out.names = Some((extension.critical, extension.value.to_vec()));
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(_) => out.dns += 1,
                        GeneralName::IPAddress(_) => out.ips += 1,
                        GeneralName::RFC822Name(_) => out.emails += 1,
                        GeneralName::URI(_) => out.uris += 1,
                        _ => {}
                    }
                }
            }
        }
        Ok(out)
    }

    /// Whether a signer takes the request for these usages; `None` for signers not known here.
    pub fn fits(&self, signer: &str, usages: &[String]) -> Option<Result<(), String>> {
        Some(match signer {
            KUBELET_SERVING => self.kubelet_serving(usages),
            CLIENT_KUBELET => self.kubelet_client(usages),
            CLIENT => client_usages(usages),
            LEGACY => Ok(()),
            _ => return None,
        })
    }

    fn of_node(&self) -> Result<(), String> {
        if self.organizations != ["system:nodes"] {
            return Err("subject organization is not system:nodes".into());
        }
        Ok(())
    }

    fn named_as_node(&self) -> Result<(), String> {
        if !self.common_name.starts_with("system:node:") {
            return Err("subject common name does not begin with system:node:".into());
        }
        Ok(())
    }

    fn kubelet_serving(&self, usages: &[String]) -> Result<(), String> {
        self.of_node()?;
        if self.dns == 0 && self.ips == 0 {
            return Err("DNS or IP subjectAltName is required".into());
        }
        for (count, what) in [(self.emails, "Email"), (self.uris, "URI")] {
            none(count, what)?;
        }
        exactly(usages, "server auth")?;
        self.named_as_node()
    }

    fn kubelet_client(&self, usages: &[String]) -> Result<(), String> {
        self.of_node()?;
        for (count, what) in [(self.dns, "DNS"), (self.emails, "Email"), (self.ips, "IP"), (self.uris, "URI")]
        {
            none(count, what)?;
        }
        self.named_as_node()?;
        exactly(usages, "client auth")
    }
}

fn none(count: usize, what: &str) -> Result<(), String> {
    if count > 0 { Err(format!("{what} subjectAltNames are not allowed")) } else { Ok(()) }
}

/// Key encipherment is for RSA keys only, so it may be missing.
fn exactly(usages: &[String], auth: &str) -> Result<(), String> {
    let has = |usage: &str| usages.iter().any(|u| u == usage);
    let known = ["digital signature", "key encipherment", auth];
    if has("digital signature") && has(auth) && usages.iter().all(|u| known.contains(&u.as_str())) {
        return Ok(());
    }
    let mut known = known;
    known.sort_unstable();
    Err(format!("usages did not match [{}]", known.join(" ")))
}

fn client_usages(usages: &[String]) -> Result<(), String> {
    let other = usages
        .iter()
        .find(|u| !matches!(u.as_str(), "digital signature" | "key encipherment" | "client auth"));
    if let Some(other) = other {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.iter().any(|u| u == "client auth") {
        return Err("missing required usage for client certificate: client auth".into());
    }
    Ok(())
}
