//! Signers of tokens, for tests.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, KeyPair as _};
use serde_json::{Value, json};

/// An RSA key made once for tests: making one takes long.
const RSA: &str = include_str!("testing_rsa.pem");

enum Secret {
    Rsa(ring::signature::RsaKeyPair),
    Ecdsa(ring::signature::EcdsaKeyPair),
    P521(Box<p521::ecdsa::SigningKey>),
}

pub struct Signer {
    algorithm: &'static str,
    id: &'static str,
    secret: Secret,
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn elliptic(algorithm: &'static signature::EcdsaSigningAlgorithm) -> Secret {
    let random = SystemRandom::new();
    let document = signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    Secret::Ecdsa(signature::EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap())
}

impl Signer {
    pub fn new(algorithm: &'static str, id: &'static str) -> Signer {
        let secret = match algorithm {
            "ES256" => elliptic(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => elliptic(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            "ES512" => {
                let mut bytes = [0u8; 66];
                rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes[2..]);
                Secret::P521(Box::new(p521::ecdsa::SigningKey::from_slice(&bytes).unwrap()))
            }
            _ => {
                let pem = x509_parser::pem::Pem::iter_from_buffer(RSA.as_bytes()).next().unwrap().unwrap();
                Secret::Rsa(signature::RsaKeyPair::from_pkcs8(&pem.contents).unwrap())
            }
        };
        Signer { algorithm, id, secret }
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm, "kid": self.id, "typ": "JWT"});
        let message =
            format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let random = SystemRandom::new();
        let signature = match &self.secret {
            Secret::Ecdsa(key) => key.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Secret::P521(key) => {
                use p521::ecdsa::signature::Signer as _;
                let signature: p521::ecdsa::Signature = key.sign(message.as_bytes());
                signature.to_bytes().to_vec()
            }
            Secret::Rsa(key) => {
                let padding: &dyn signature::RsaEncoding = match self.algorithm {
                    "RS256" => &signature::RSA_PKCS1_SHA256,
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    _ => &signature::RSA_PSS_SHA512,
                };
                let mut out = vec![0; key.public().modulus_len()];
                key.sign(padding, &random, message.as_bytes(), &mut out).unwrap();
                out
            }
        };
        format!("{message}.{}", encode(&signature))
    }

    pub fn jwk(&self) -> Value {
        let mut jwk = json!({"use": "sig", "kid": self.id, "alg": self.algorithm});
        let mut set = |name: &str, bytes: &[u8]| jwk[name] = json!(encode(bytes));
        let (kind, curve) = match &self.secret {
            Secret::Rsa(key) => {
                let components = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(key.public());
                set("n", &components.n);
                set("e", &components.e);
                ("RSA", None)
            }
            Secret::Ecdsa(key) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                set("x", x);
                set("y", y);
                ("EC", Some(if x.len() == 32 { "P-256" } else { "P-384" }))
            }
            Secret::P521(key) => {
                let point = p521::ecdsa::VerifyingKey::from(&**key).to_encoded_point(false);
                set("x", point.x().unwrap());
                set("y", point.y().unwrap());
                ("EC", Some("P-521"))
            }
        };
        jwk["kty"] = json!(kind);
        if let Some(curve) = curve {
            jwk["crv"] = json!(curve);
        }
        jwk
    }
}

/// A JWK set of the signers' keys.
pub fn key_set(signers: &[&Signer]) -> Vec<u8> {
    json!({"keys": signers.iter().map(|s| s.jwk()).collect::<Vec<_>>()}).to_string().into_bytes()
}
