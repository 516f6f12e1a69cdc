//! JSON Web Keys (RFC 7517) and the signatures they make (RFC 7518). Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use p521::ecdsa::signature::Verifier as _;
use serde::Deserialize;

/// The algorithms whose signatures are taken, in the order they are told in.
pub const ALGORITHMS: [&str; 9] =
    ["ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"];

/// Keys beyond this of one set are not looked at.
const KEYS_MAX: usize = 256;

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(default)]
struct Parts {
    kty: String,
    kid: String,
    crv: String,
    n: String,
    e: String,
    x: String,
    y: String,
}

impl Default for Parts {
    fn default() -> Parts {
        let none = String::new;
        Parts { kty: none(), kid: none(), crv: none(), n: none(), e: none(), x: none(), y: none() }
    }
}

enum Public {
    Rsa(DecodingKey),
    P256(DecodingKey),
    P384(DecodingKey),
    P521(Box<p521::ecdsa::VerifyingKey>),
}

/// A public key.
pub struct Key {
    pub id: String,
    public: Public,
}

impl Key {
    /// `None` for keys of a kind that signs nothing that is taken here.
    fn parse(value: serde_json::Value) -> Option<Key> {
        let parts: Parts = serde_json::from_value(value).ok()?;
        let elliptic = || DecodingKey::from_ec_components(&parts.x, &parts.y).ok();
        let public = match (parts.kty.as_str(), parts.crv.as_str()) {
            ("RSA", _) => Public::Rsa(DecodingKey::from_rsa_components(&parts.n, &parts.e).ok()?),
            ("EC", "P-256") => Public::P256(elliptic()?),
            ("EC", "P-384") => Public::P384(elliptic()?),
            ("EC", "P-521") => Public::P521(Box::new(p521_key(&parts)?)),
            _ => return None,
        };
        Some(Key { id: parts.kid, public })
    }

    /// Whether it made the signature of `message` by the algorithm.
    pub fn verifies(&self, algorithm: &str, message: &str, signature: &str) -> bool {
        let (key, algorithm) = match (&self.public, algorithm) {
            (Public::Rsa(key), "RS256") => (key, Algorithm::RS256),
            (Public::Rsa(key), "RS384") => (key, Algorithm::RS384),
            (Public::Rsa(key), "RS512") => (key, Algorithm::RS512),
            (Public::Rsa(key), "PS256") => (key, Algorithm::PS256),
            (Public::Rsa(key), "PS384") => (key, Algorithm::PS384),
            (Public::Rsa(key), "PS512") => (key, Algorithm::PS512),
            (Public::P256(key), "ES256") => (key, Algorithm::ES256),
            (Public::P384(key), "ES384") => (key, Algorithm::ES384),
            (Public::P521(key), "ES512") => {
                let signature = URL_SAFE_NO_PAD.decode(signature).ok();
                let signature = signature.and_then(|s| p521::ecdsa::Signature::from_slice(&s).ok());
                return signature.is_some_and(|s| key.verify(message.as_bytes(), &s).is_ok());
            }
            _ => return false,
        };
        jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm).unwrap_or(false)
    }
}

fn p521_key(parts: &Parts) -> Option<p521::ecdsa::VerifyingKey> {
    const FIELD_BYTES: usize = 66;
    let coordinate = |text: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let missing = FIELD_BYTES.checked_sub(bytes.len())?;
        Some([vec![0; missing], bytes].concat())
    };
    let point = [vec![4], coordinate(&parts.x)?, coordinate(&parts.y)?].concat();
    p521::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok()
}

/// Reads a JWK set; keys that are of no use here are left out.
pub fn parse_set(json: &[u8]) -> Result<Vec<Key>, serde_json::Error> {
    let set: Set = serde_json::from_slice(json)?;
    Ok(set.keys.into_iter().take(KEYS_MAX).filter_map(Key::parse).collect())
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// A token in its compact form (RFC 7515), taken apart; nothing of it is to be trusted yet.
#[derive(Debug)]
pub struct Token<'a> {
    pub algorithm: String,
    pub key_id: String,
    /// What is signed.
    message: &'a str,
    signature: &'a str,
    pub payload: Vec<u8>,
}

impl<'a> Token<'a> {
    pub fn parse(token: &'a str) -> Result<Token<'a>, String> {
        let malformed = |why: &dyn std::fmt::Display| format!("oidc: malformed jwt: {why}");
        if token.bytes().filter(|b| *b == b'.').count() > 2 {
            return Err("oidc: malformed jwt".to_owned());
        }
        let parts: Vec<&str> = token.split('.').collect();
        let [header, payload, signature] = parts.as_slice() else {
            return Err(malformed(&"compact JWS format must have three parts"));
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|e| malformed(&e));
        let parsed: Header = serde_json::from_slice(&decode(header)?).map_err(|e| malformed(&e))?;
        decode(signature)?;
        Ok(Token {
            algorithm: parsed.alg,
            key_id: parsed.kid,
            message: &token[..header.len() + 1 + payload.len()],
            signature,
            payload: decode(payload)?,
        })
    }

    /// Whether one of the keys signed it; the one it names, if it names one.
    pub fn is_signed_by(&self, keys: &[Key]) -> bool {
        let named = |key: &&Key| self.key_id.is_empty() || key.id == self.key_id;
        keys.iter().filter(named).any(|key| key.verifies(&self.algorithm, self.message, self.signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authentication::jwt::testing::{Signer, key_set};
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn every_algorithm() {
        for algorithm in ALGORITHMS {
            let (signer, other) = (Signer::new(algorithm, "a"), Signer::new(algorithm, "b"));
            let keys = parse_set(&key_set(&[&signer, &other])).unwrap();
            assert_eq!(keys.len(), 2);
            let text = signer.sign(&json!({"sub": "x"}));
            let token = Token::parse(&text).unwrap();
            assert_eq!(token.algorithm, algorithm);
            assert!(token.is_signed_by(&keys), "{algorithm}");
            assert!(token.is_signed_by(&keys[..1]));
            assert!(!token.is_signed_by(&keys[1..]), "the token names its key");
            // A key that bears the name but did not sign.
            let forger = Signer::new(algorithm, "a");
            assert!(
                !token.is_signed_by(&parse_set(&key_set(&[&forger])).unwrap())
                    || algorithm.starts_with(['R', 'P']),
                "{algorithm}"
            );
            for wrong in ALGORITHMS.iter().filter(|a| **a != algorithm) {
                assert!(!keys[0].verifies(wrong, token.message, token.signature), "{wrong} for {algorithm}");
            }
            let changed = text.replacen('.', ".e", 1);
            assert!(!Token::parse(&changed).is_ok_and(|t| t.is_signed_by(&keys)));
        }
    }

    #[test]
    fn useless_keys_are_left_out() {
        let set = json!({"keys": [{"kty": "oct", "k": "AA"}, {"kty": "EC", "crv": "P-999"}, 5, {"kty": "EC",
            "crv": "P-521", "x": "AA", "y": "AA"}]});
        assert_eq!(parse_set(set.to_string().as_bytes()).unwrap().len(), 0);
        assert!(parse_set(b"{}").is_err());
        for bad in ["", "a", "a.b", "a.b.c", "a.b.c.d", "e30.e30.e30"] {
            assert!(Token::parse(bad).unwrap_err().starts_with("oidc: malformed jwt"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn takes_any_text(token in "[a-zA-Z0-9_.{}\"-]{0,200}", set in proptest::collection::vec(any::<u8>(), 0..200)) {
            let keys = parse_set(&set).unwrap_or_default();
            if let Ok(token) = Token::parse(&token) {
                prop_assert!(!token.is_signed_by(&keys));
            }
        }
    }
}
