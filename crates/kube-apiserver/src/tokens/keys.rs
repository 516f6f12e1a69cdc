//! Keys of service account tokens: P-256 (ES256) and RSA (RS256), read from PEM in any of the usual encodings.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};
use x509_parser::public_key::PublicKey;

const EC_OID: &str = "1.2.840.10045.2.1";
const RSA_OID: &str = "1.2.840.113549.1.1.1";
/// SubjectPublicKeyInfo of a P-256 key up to its 65-byte point.
const P256_SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// AlgorithmIdentifier of RSA keys.
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Es256,
    Rs256,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Es256 => "ES256",
            Algorithm::Rs256 => "RS256",
        }
    }
}

/// A key that verifies tokens.
#[derive(Clone, Debug)]
pub struct VerifyingKey {
    pub id: String,
    pub algorithm: Algorithm,
    /// The point of an EC key, or PKCS#1 DER of an RSA key.
    public: Vec<u8>,
    spki: Vec<u8>,
}

impl VerifyingKey {
    fn from_spki(spki: &[u8]) -> anyhow::Result<VerifyingKey> {
        use sha2::Digest as _;
        let (_, info) =
            SubjectPublicKeyInfo::from_der(spki).map_err(|e| anyhow::anyhow!("public key: {e}"))?;
        let algorithm = match info.algorithm.algorithm.to_id_string().as_str() {
            EC_OID => Algorithm::Es256,
            RSA_OID => Algorithm::Rs256,
            other => anyhow::bail!("public key algorithm {other} is not supported (use P-256 or RSA)"),
        };
        let public = info.subject_public_key.data.to_vec();
        anyhow::ensure!(
            algorithm == Algorithm::Rs256 || public.len() == 65,
            "only the P-256 curve is supported for service account keys"
        );
        let id = URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(spki));
        Ok(VerifyingKey { id, algorithm, public, spki: spki.to_vec() })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.algorithm {
            Algorithm::Es256 => UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, &self.public)
                .verify(message, signature),
            Algorithm::Rs256 => UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, &self.public)
                .verify(message, signature),
        }
        .is_ok()
    }

    fn jwk(&self) -> Value {
        let encode = |b: &[u8]| URL_SAFE_NO_PAD.encode(b);
        let mut jwk = json!({"use": "sig", "kid": self.id, "alg": self.algorithm.name()});
        match self.algorithm {
            Algorithm::Es256 => {
                jwk["kty"] = json!("EC");
                jwk["crv"] = json!("P-256");
                jwk["x"] = json!(encode(&self.public[1..33]));
                jwk["y"] = json!(encode(&self.public[33..65]));
            }
            Algorithm::Rs256 => {
                jwk["kty"] = json!("RSA");
                let parsed = SubjectPublicKeyInfo::from_der(&self.spki).ok().map(|(_, info)| info);
                if let Some(PublicKey::RSA(rsa)) = parsed.as_ref().and_then(|i| i.parsed().ok()) {
                    let strip = |b: &[u8]| {
                        let zeros = b.iter().take_while(|x| **x == 0).count();
                        encode(&b[zeros..])
                    };
                    jwk["n"] = json!(strip(rsa.modulus));
                    jwk["e"] = json!(strip(rsa.exponent));
                }
            }
        }
        jwk
    }
}

/// The keys tokens may be signed with.
#[derive(Clone, Debug, Default)]
pub struct KeySet(Vec<VerifyingKey>);

impl KeySet {
    /// Reads every key of every PEM; private keys and certificates give their public half.
    pub fn from_pems<'a>(pems: impl IntoIterator<Item = &'a [u8]>) -> anyhow::Result<KeySet> {
        let mut keys: Vec<VerifyingKey> = Vec::new();
        for pem in pems {
            for block in blocks(pem)? {
                let key = VerifyingKey::from_spki(&block.spki()?)?;
                if !keys.iter().any(|k| k.id == key.id) {
                    keys.push(key);
                }
            }
        }
        Ok(KeySet(keys))
    }

    /// Whether one of the keys (that with the id, if the token names one that is known) made the signature.
    pub fn verifies(&self, algorithm: &str, key_id: Option<&str>, message: &[u8], signature: &[u8]) -> bool {
        let named = self.0.iter().find(|k| Some(k.id.as_str()) == key_id);
        let candidates = match named {
            Some(key) => std::slice::from_ref(key),
            None => self.0.as_slice(),
        };
        candidates.iter().any(|k| k.algorithm.name() == algorithm && k.verifies(message, signature))
    }

    /// As served at `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.0.iter().map(VerifyingKey::jwk).collect::<Vec<_>>()})
    }

    pub fn algorithms(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.0.iter().map(|k| k.algorithm.name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

enum Secret {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

/// The key that signs new tokens.
pub struct SigningKey {
    secret: Secret,
    id: String,
    random: SystemRandom,
}

impl SigningKey {
    pub fn from_pem(pem: &[u8]) -> anyhow::Result<SigningKey> {
        let block = blocks(pem)?
            .into_iter()
            .find(|b| b.label.ends_with("PRIVATE KEY"))
            .ok_or_else(|| anyhow::anyhow!("no private key in the service account signing key file"))?;
        let id = VerifyingKey::from_spki(&block.spki()?)?.id;
        Ok(SigningKey { secret: block.secret()?, id, random: SystemRandom::new() })
    }

    /// The compact form of a JWT with these claims.
    pub fn sign(&self, claims: &Value) -> anyhow::Result<String> {
        let algorithm = match self.secret {
            Secret::Ec(_) => Algorithm::Es256,
            Secret::Rsa(_) => Algorithm::Rs256,
        };
        let header = json!({"alg": algorithm.name(), "kid": self.id});
        let mut token = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header)?);
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(serde_json::to_vec(claims)?));
        let failed = |_| anyhow::anyhow!("signing failed");
        let signature = match &self.secret {
            Secret::Ec(key) => key.sign(&self.random, token.as_bytes()).map_err(failed)?.as_ref().to_vec(),
            Secret::Rsa(key) => {
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &self.random, token.as_bytes(), &mut out)
                    .map_err(failed)?;
                out
            }
        };
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }
}

struct Block {
    label: String,
    der: Vec<u8>,
}

impl Block {
    fn secret(&self) -> anyhow::Result<Secret> {
        let rejected = |e: ring::error::KeyRejected| anyhow::anyhow!("service account key: {e}");
        let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        match self.label.as_str() {
            "EC PRIVATE KEY" => {
                let (private, public) = sec1(&self.der)?;
                let random = SystemRandom::new();
                EcdsaKeyPair::from_private_key_and_public_key(algorithm, &private, &public, &random)
                    .map(Secret::Ec)
                    .map_err(rejected)
            }
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&self.der).map(Secret::Rsa).map_err(rejected),
            "PRIVATE KEY" => match EcdsaKeyPair::from_pkcs8(algorithm, &self.der, &SystemRandom::new()) {
                Ok(key) => Ok(Secret::Ec(key)),
                Err(_) => RsaKeyPair::from_pkcs8(&self.der).map(Secret::Rsa).map_err(rejected),
            },
            other => anyhow::bail!("{other} is not a private key"),
        }
    }

    fn spki(&self) -> anyhow::Result<Vec<u8>> {
        Ok(match self.label.as_str() {
            "PUBLIC KEY" => self.der.clone(),
            "RSA PUBLIC KEY" => rsa_spki(&self.der),
            "CERTIFICATE" => {
                let (_, certificate) =
                    X509Certificate::from_der(&self.der).map_err(|e| anyhow::anyhow!("certificate: {e}"))?;
                certificate.public_key().raw.to_vec()
            }
            _ => match self.secret()? {
                Secret::Ec(key) => [&P256_SPKI_HEAD[..], key.public_key().as_ref()].concat(),
                Secret::Rsa(key) => rsa_spki(key.public_key().as_ref()),
            },
        })
    }
}

fn blocks(pem: &[u8]) -> anyhow::Result<Vec<Block>> {
    let mut out = Vec::new();
    for pem in x509_parser::pem::Pem::iter_from_buffer(pem) {
        let pem = pem.map_err(|e| anyhow::anyhow!("PEM: {e}"))?;
        if pem.label != "EC PARAMETERS" {
            out.push(Block { label: pem.label, der: pem.contents });
        }
    }
    anyhow::ensure!(!out.is_empty(), "no PEM block in the service account key file");
    Ok(out)
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        n @ 0..=127 => out.push(n as u8),
        n @ 128..=255 => out.extend([0x81, n as u8]),
        n => out.extend([0x82, (n >> 8) as u8, n as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn rsa_spki(pkcs1: &[u8]) -> Vec<u8> {
    let bits = der(0x03, &[&[0u8][..], pkcs1].concat());
    der(0x30, &[&RSA_ALGORITHM[..], &bits].concat())
}

/// Private scalar and public point of a SEC 1 P-256 key.
fn sec1(mut der: &[u8]) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let malformed = || anyhow::anyhow!("malformed EC private key");
    let (tag, mut body) = element(&mut der).ok_or_else(malformed)?;
    anyhow::ensure!(tag == 0x30, "malformed EC private key");
    let (mut private, mut public) = (None, None);
    while let Some((tag, content)) = element(&mut body) {
        match tag {
            0x04 => private = Some(content.to_vec()),
            0xa1 => {
                let mut inner = content;
                let (_, bits) = element(&mut inner).ok_or_else(malformed)?;
                public = bits.get(1..).map(<[u8]>::to_vec);
            }
            _ => {}
        }
    }
    Ok((private.ok_or_else(malformed)?, public.ok_or_else(malformed)?))
}

/// Takes one DER element off the front of `input`.
fn element<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        let count = usize::from(first & 0x7f);
        if count > 4 {
            return None;
        }
        length = rest.get(..count)?.iter().fold(0, |n, b| n << 8 | usize::from(*b));
        rest = &rest[count..];
    }
    let content = rest.get(..length)?;
    *input = &rest[length..];
    Some((tag, content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_verifies() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let (private, public) = (pair.serialize_pem(), pair.public_key_pem());
        let key = SigningKey::from_pem(private.as_bytes()).unwrap();
        let token = key.sign(&json!({"a": 1})).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        for (pem, want) in [(&private, true), (&public, true), (&other.public_key_pem(), false)] {
            let set = KeySet::from_pems([pem.as_bytes()]).unwrap();
            assert_eq!(set.verifies("ES256", None, message.as_bytes(), &signature), want);
            assert_eq!(set.verifies("ES256", Some(&key.id), message.as_bytes(), &signature), want);
            assert!(!set.verifies("RS256", None, message.as_bytes(), &signature));
        }
        let jwks = KeySet::from_pems([public.as_bytes()]).unwrap().jwks();
        assert_eq!(jwks["keys"][0]["kid"], json!(key.id));
        assert_eq!(jwks["keys"][0]["crv"], "P-256");
    }
}
