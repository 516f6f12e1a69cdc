//! What a service account token says.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::KeySet;

/// An object a token names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reference {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Private {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Private,
    pub nbf: i64,
    pub sub: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(s) => vec![s],
        OneOrMany::Many(v) => v,
    })
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
}

impl Claims {
    /// The claims of a token that one of `issuers` issued and one of `keys` signed; `None` for tokens of others. Times
    /// and objects are not checked.
    pub fn verify(token: &str, issuers: &[String], keys: &KeySet) -> Result<Option<Claims>, String> {
        verified(token, |issuer| issuers.iter().any(|i| i == issuer), keys)
    }
}

/// Issuer of tokens that are kept in secrets.
pub const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// The claims of a token that is kept in a secret, and that never expires.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LegacyClaims {
    pub iss: String,
    pub sub: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    pub namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    pub secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    pub account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    pub account_uid: String,
}

impl LegacyClaims {
    /// As [`Claims::verify`]; whether the secret still holds the token is not checked.
    pub fn verify(token: &str, keys: &KeySet) -> Result<Option<LegacyClaims>, String> {
        verified(token, |issuer| issuer == LEGACY_ISSUER, keys)
    }

    /// What is wrong with them.
    pub fn problem(&self) -> Option<&'static str> {
        for (claim, why) in [
            (&self.sub, "sub claim is missing"),
            (&self.namespace, "namespace claim is missing"),
            (&self.secret, "secretName claim is missing"),
            (&self.account, "serviceAccountName claim is missing"),
            (&self.account_uid, "serviceAccountUID claim is missing"),
        ] {
            if claim.is_empty() {
                return Some(why);
            }
        }
        let user = format!("system:serviceaccount:{}:{}", self.namespace, self.account);
        (self.sub != user).then_some("sub claim is invalid")
    }
}

fn verified<T: serde::de::DeserializeOwned>(
    token: &str,
    is_issuer: impl Fn(&str) -> bool,
    keys: &KeySet,
) -> Result<Option<T>, String> {
    let Some(parts) = Parts::of(token) else { return Ok(None) };
    let issuer = serde_json::from_slice::<Issued>(&parts.payload).ok().map(|i| i.iss);
    if !issuer.is_some_and(|i| is_issuer(&i)) {
        return Ok(None);
    }
    let claims = serde_json::from_slice(&parts.payload).map_err(|e| e.to_string())?;
    let Header { alg, kid } = parts.header;
    if keys.verifies(&alg, kid.as_deref(), parts.message.as_bytes(), &parts.signature) {
        Ok(Some(claims))
    } else {
        Err("go-jose/go-jose: error in cryptographic primitive".to_owned())
    }
}

#[derive(Deserialize)]
struct Issued {
    #[serde(default)]
    iss: String,
}

/// A token taken apart.
struct Parts<'a> {
    header: Header,
    payload: Vec<u8>,
    message: &'a str,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn of(token: &'a str) -> Option<Parts<'a>> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        Some(Parts {
            header: serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?,
            payload: URL_SAFE_NO_PAD.decode(payload).ok()?,
            message,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }
}
