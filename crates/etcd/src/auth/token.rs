//! Tokens that `Authenticate` hands out: simple ones, which this member remembers, and signed ones (JWT).

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;

const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const SIMPLE_LETTERS: usize = 16;
const JWT_TTL: Duration = Duration::from_secs(300);
/// Expired tokens are dropped when this many are held, and then at every doubling.
const SWEEP_AT: usize = 1024;

/// Whose a token is, and at which revision of the users and roles it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub user: String,
    pub revision: u64,
}

pub enum Tokens {
    Simple(Simple),
    Jwt(Box<Jwt>),
}

impl Tokens {
    /// `simple`, or `jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…`.
    pub fn new(spec: &str, simple_ttl: Duration) -> anyhow::Result<Tokens> {
        let mut parts = spec.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options = HashMap::new();
        for part in parts {
            let (name, value) = part.split_once('=').context("auth: invalid auth options")?;
            ensure!(
                !value.contains('=') && options.insert(name, value).is_none(),
                "auth: invalid auth options"
            );
        }
        match kind {
            "simple" | "" => Ok(Tokens::Simple(Simple { ttl: simple_ttl, held: Mutex::default() })),
            "jwt" => Ok(Tokens::Jwt(Box::new(Jwt::new(&options)?))),
            _ => bail!("auth: invalid auth options"),
        }
    }

    /// A new token for `user`; `index` is the log's, which makes simple tokens unique.
    pub fn assign(&self, user: &str, revision: u64, index: u64) -> Result<String, String> {
        match self {
            Tokens::Simple(simple) => Ok(simple.assign(user, index)),
            Tokens::Jwt(jwt) => jwt.assign(user, revision),
        }
    }

    /// The holder of a valid token; `revision` is the present one.
    pub fn holder(&self, token: &str, revision: u64) -> Option<Holder> {
        match self {
            Tokens::Simple(simple) => simple.user(token).map(|user| Holder { user, revision }),
            Tokens::Jwt(jwt) => jwt.holder(token),
        }
    }

    pub fn forget_user(&self, user: &str) {
        if let Tokens::Simple(simple) = self {
            simple.held.lock().by_token.retain(|_, (holder, _)| holder != user);
        }
    }

    pub fn forget_all(&self) {
        if let Tokens::Simple(simple) = self {
            *simple.held.lock() = Held::default();
        }
    }
}

/// Random tokens; each use of one prolongs it.
pub struct Simple {
    ttl: Duration,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_token: HashMap<String, (String, Instant)>,
    sweep_at: usize,
}

impl Simple {
    fn assign(&self, user: &str, index: u64) -> String {
        let mut random = rand::rng();
        let letters = (0..SIMPLE_LETTERS).map(|_| LETTERS[random.random_range(0..LETTERS.len())] as char);
        let token = format!("{}.{index}", letters.collect::<String>());
        let now = Instant::now();
        let mut held = self.held.lock();
        if held.by_token.len() >= held.sweep_at.max(SWEEP_AT) {
            held.by_token.retain(|_, (_, until)| *until > now);
            held.sweep_at = 2 * held.by_token.len();
        }
        held.by_token.insert(token.clone(), (user.to_owned(), now + self.ttl));
        token
    }

    fn user(&self, token: &str) -> Option<String> {
        let now = Instant::now();
        let mut held = self.held.lock();
        let (user, until) = held.by_token.get_mut(token)?;
        if *until <= now {
            held.by_token.remove(token);
            return None;
        }
        *until = now + self.ttl;
        Some(user.clone())
    }
}

/// Signed tokens, which any member with the key can check.
pub struct Jwt {
    algorithm: Algorithm,
    ttl: Duration,
    /// Without it tokens can be checked but not made.
    sign: Option<EncodingKey>,
    verify: DecodingKey,
}

impl Jwt {
    fn new(options: &HashMap<&str, &str>) -> anyhow::Result<Jwt> {
        let file = |name: &str| -> anyhow::Result<Option<Vec<u8>>> {
            match options.get(name) {
                Some(path) => {
                    Ok(Some(std::fs::read(path).with_context(|| format!("--auth-token: read {path}"))?))
                }
                None => Ok(None),
            }
        };
        let method = options.get("sign-method").copied().unwrap_or_default();
        let algorithm: Algorithm = if method == "EdDSA" {
            Algorithm::EdDSA
        } else {
            method.parse().ok().context("auth: invalid auth signature method")?
        };
        let ttl = match options.get("ttl") {
            Some(text) => {
                crate::flags::duration(text).map_err(|e| anyhow::anyhow!("--auth-token: ttl: {e}"))?
            }
            None => JWT_TTL,
        };
        let (public, private) = (file("pub-key")?, file("priv-key")?);
        let public = match (&public, &private) {
            (Some(public), _) => Some(public.clone()),
            (None, Some(private)) => public_key(private),
            (None, None) => bail!("auth: missing key data"),
        };
        let need = "auth: missing key data";
        let (sign, verify) = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                let secret = private.context(need)?;
                (Some(EncodingKey::from_secret(&secret)), DecodingKey::from_secret(&secret))
            }
            Algorithm::ES256 | Algorithm::ES384 => (
                private.as_deref().map(EncodingKey::from_ec_pem).transpose()?,
                DecodingKey::from_ec_pem(&public.context(need)?)?,
            ),
            Algorithm::EdDSA => (
                private.as_deref().map(EncodingKey::from_ed_pem).transpose()?,
                DecodingKey::from_ed_pem(&public.context(need)?)?,
            ),
            _ => (
                private.as_deref().map(EncodingKey::from_rsa_pem).transpose()?,
                DecodingKey::from_rsa_pem(&public.context(need)?)?,
            ),
        };
        let jwt = Jwt { algorithm, ttl, sign, verify };
        if jwt.sign.is_some() {
            let probe = jwt.assign("", 1).map_err(anyhow::Error::msg)?;
            ensure!(jwt.holder(&probe).is_some(), "auth: public and private keys don't match");
        }
        Ok(jwt)
    }

    fn assign(&self, user: &str, revision: u64) -> Result<String, String> {
        let sign = self.sign.as_ref().ok_or("auth: token signing attempted with verify-only key")?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = json!({"username": user, "revision": revision, "exp": (now + self.ttl).as_secs()});
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, sign).map_err(|e| e.to_string())
    }

    fn holder(&self, token: &str) -> Option<Holder> {
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = 0;
        validation.required_spec_claims.clear();
        validation.validate_aud = false;
        let claims = jsonwebtoken::decode::<Value>(token, &self.verify, &validation).ok()?.claims;
        Some(Holder {
            user: claims["username"].as_str()?.to_owned(),
            revision: claims["revision"]
                .as_u64()
                .or_else(|| claims["revision"].as_f64().map(|f| f as u64))?,
        })
    }
}

/// The public half of a private key in PEM, where the library can tell it.
fn public_key(private: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(private).ok()?;
    rcgen::KeyPair::from_pem(text).ok().map(|pair| rcgen::PublicKeyData::subject_public_key_info(&pair)).map(
        |der| {
            use base64::Engine;
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n").into_bytes()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simple_tokens_last_as_long_as_they_are_used() {
        let tokens = Tokens::new("simple", Duration::from_secs(300)).unwrap();
        let token = tokens.assign("alice", 4, 17).unwrap();
        assert!(token.ends_with(".17"));
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(200)).await;
            assert_eq!(tokens.holder(&token, 9), Some(Holder { user: "alice".into(), revision: 9 }));
        }
        tokio::time::advance(Duration::from_secs(301)).await;
        assert_eq!(tokens.holder(&token, 9), None);
        let token = tokens.assign("bob", 4, 18).unwrap();
        tokens.forget_user("bob");
        assert_eq!(tokens.holder(&token, 9), None);
        assert_eq!(tokens.holder("made.up", 9), None);
    }

    #[test]
    fn signed_tokens_carry_user_and_revision() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(&path, key.serialize_pem()).unwrap();
        let spec = format!("jwt,sign-method=ES256,priv-key={},ttl=1m", path.display());
        let tokens = Tokens::new(&spec, Duration::ZERO).unwrap();
        let token = tokens.assign("alice", 4, 0).unwrap();
        assert_eq!(tokens.holder(&token, 9), Some(Holder { user: "alice".into(), revision: 4 }));
        let mut forged = token.clone();
        forged.replace_range(..10, "abcdefghij");
        assert_eq!(tokens.holder(&forged, 9), None);
        assert!(Tokens::new("jwt,sign-method=none", Duration::ZERO).is_err());
        assert!(Tokens::new("jwt,sign-method=ES256", Duration::ZERO).is_err());
        assert!(Tokens::new("other", Duration::ZERO).is_err());
    }
}
