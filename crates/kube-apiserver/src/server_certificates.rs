//! How the certificates of those this server connects to are checked.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WantsClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// TLS settings that check certificates against the authorities of a bundle (PEM); without one any holder of a certificate's
/// key is accepted, as upstream does for kubelets without a configured authority.
pub fn checked_by(bundle: Option<&[u8]>) -> anyhow::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let listed = match bundle {
        None => None,
        Some(pem) => Some(CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?),
    };
    let authorities = match &listed {
        Some(listed) if !listed.is_empty() => {
            let mut roots = RootCertStore::empty();
            for certificate in listed {
                roots.add(certificate.clone())?;
            }
            Some(WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?)
        }
        _ => None,
    };
    let verifier = Arc::new(Verifier { listed, authorities, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier))
}

#[derive(Debug)]
struct Verifier {
    /// What the bundle holds; none where there is no bundle.
    listed: Option<Vec<CertificateDer<'static>>>,
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(listed) = &self.listed else { return Ok(ServerCertVerified::assertion()) };
        let Some(authorities) = &self.authorities else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        match authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // A certificate that is in the bundle itself may be one for authorities, as `openssl req -x509` makes them: Go asks no
            // more of it than to be in time and for that name.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if listed.iter().any(|listed| listed == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                let (_, certificate) =
                    X509Certificate::from_der(end_entity).map_err(|_| CertificateError::BadEncoding)?;
                let now = i64::try_from(now.as_secs())
                    .ok()
                    .and_then(|now| ASN1Time::from_timestamp(now).ok())
                    .ok_or(Error::FailedToGetCurrentTime)?;
                let validity = certificate.validity();
                if now < validity.not_before {
                    return Err(CertificateError::NotValidYet.into());
                }
                if now > validity.not_after {
                    return Err(CertificateError::Expired.into());
                }
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    /// A certificate of its own for `server.test`, for an authority or not, and its key.
    fn certificate(authority: bool, name: &str, expired: bool) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        if expired {
            params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap(), key)
    }

    async fn connects(bundle: Option<&str>, served: &(rcgen::Certificate, KeyPair)) -> Result<(), String> {
        let key = rustls_pki_types::PrivateKeyDer::try_from(served.1.serialize_der()).unwrap();
        let server =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![served.0.der().clone()], key)
                .unwrap();
        let client = checked_by(bundle.map(str::as_bytes)).unwrap().with_no_client_auth();
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("server.test").unwrap();
        let (client, server) = tokio::join!(
            TlsConnector::from(Arc::new(client)).connect(name, near),
            TlsAcceptor::from(Arc::new(server)).accept(far),
        );
        drop(server);
        client.map(drop).map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn whom_to_trust() {
        let plain = certificate(false, "server.test", false);
        let authority = certificate(true, "server.test", false);
        let elsewhere = certificate(true, "other.test", false);
        let expired = certificate(true, "server.test", true);
        let unknown = "invalid peer certificate: UnknownIssuer";
        for (bundle, served, refused) in [
            (None, &plain, ""),
            (Some(&plain), &plain, ""),
            (Some(&authority), &authority, ""),
            (Some(&plain), &authority, "invalid peer certificate: Other"),
            (Some(&authority), &plain, "invalid peer certificate"),
            (
                Some(&elsewhere),
                &elsewhere,
                "invalid peer certificate: certificate not valid for name \"server.test\"",
            ),
            (Some(&expired), &expired, "invalid peer certificate: certificate expired"),
        ] {
            let bundle = bundle.map(|(certificate, _)| certificate.pem());
            let answer = connects(bundle.as_deref(), served).await;
            match refused {
                "" => assert_eq!(answer, Ok(())),
                refused => {
                    assert!(answer.clone().is_err_and(|e| e.starts_with(refused)), "{answer:?}: {refused}")
                }
            }
        }
        assert!(connects(Some(""), &plain).await.is_err_and(|e| e == unknown));
    }
}
