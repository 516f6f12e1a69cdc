//! Tokens of issuers elsewhere (OpenID Connect): JWTs whose issuer is configured, whose signature one of the issuer's keys
//! made, and whose claims say who it is.

mod keys;
mod mapping;
mod metrics;
mod provider;
mod reload;
#[cfg(test)]
pub mod testing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::clock::Clock;
use apimachinery::field_path::Path;
use apimachinery::user::UserInfo;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::configuration::{self, AuthenticationConfiguration, Compiled, JwtAuthenticator};
use crate::config_file;
use crate::tasks::Tasks;
use keys::Token;
use mapping::Claims;
use metrics::Metrics;
use provider::{Reach, RemoteKeys};

pub use keys::ALGORITHMS;
pub use reload::Reloading;

/// Issuers that cannot be reached are asked again this often.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Clocks of issuers may be ahead by this much.
const NOT_BEFORE_LEEWAY_SECONDS: f64 = 60.0;
/// Issuers of distributed claims that are remembered.
const CLAIM_ISSUERS_MAX: usize = 64;
/// Google's tokens name their issuer without its scheme.
const GOOGLE: (&str, &str) = ("accounts.google.com", "https://accounts.google.com");

/// What all issuers share.
#[derive(Clone)]
pub struct Context {
    pub tasks: Tasks,
    pub clock: Clock,
    pub families: crate::metrics::Families,
    /// Algorithms that tokens may be signed by.
    pub algorithms: Vec<String>,
    /// Issuers of service account tokens, which no others may pose as.
    pub own_issuers: Vec<String>,
}

/// One issuer, and how its tokens are read.
struct Issuer {
    config: JwtAuthenticator,
    compiled: Compiled,
    reach: Reach,
    clock: Clock,
    algorithms: Vec<String>,
    metrics: Metrics,
    /// Absent until the issuer was reached.
    keys: ArcSwapOption<RemoteKeys>,
    /// Why it was not.
    health: watch::Sender<Option<String>>,
    /// Those who vouch for claims that lie elsewhere.
    claim_issuers: Mutex<HashMap<String, Arc<RemoteKeys>>>,
}

/// The issuers of one configuration.
pub struct Issuers {
    issuers: Vec<Arc<Issuer>>,
    tasks: Tasks,
}

#[derive(Deserialize)]
struct Untrusted {
    #[serde(default)]
    iss: String,
}

/// Whom a token says it is from; not to be trusted.
fn untrusted_issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload, _, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    let issuer = serde_json::from_slice::<Untrusted>(&payload).ok()?.iss;
    Some(if issuer == GOOGLE.0 { GOOGLE.1.to_owned() } else { issuer })
}

impl Issuers {
    /// Checks the configuration and begins to reach its issuers.
    pub fn start(config: &AuthenticationConfiguration, context: &Context) -> anyhow::Result<Issuers> {
        config_file::aggregate(&config.validate(&context.own_issuers))?;
        let tasks = context.tasks.child();
        let mut issuers = Vec::new();
        for jwt in &config.jwt {
            let compiled = configuration::compile(jwt, &Path::root(), &context.own_issuers, &mut Vec::new());
            let url = &jwt.issuer.url;
            let issuer = Arc::new(Issuer {
                compiled,
                reach: Reach::new(&jwt.issuer.certificate_authority)?,
                clock: context.clock.clone(),
                algorithms: context.algorithms.clone(),
                metrics: Metrics::new(&context.families, url, crate::server_id::hash()),
                keys: ArcSwapOption::empty(),
                health: watch::Sender::new(Some(format!(
                    "oidc: authenticator for issuer {url:?} is not initialized"
                ))),
                claim_issuers: Mutex::default(),
                config: jwt.clone(),
            });
            tasks.spawn(issuer.clone().reach());
            issuers.push(issuer);
        }
        Ok(Issuers { issuers, tasks })
    }

    /// The user of a token of one of the issuers; `None` where it is of none.
    pub async fn authenticate(&self, token: &str) -> Result<Option<UserInfo>, String> {
        let Some(from) = untrusted_issuer(token) else { return Ok(None) };
        let Some(issuer) = self.issuers.iter().find(|i| i.config.issuer.url == from) else { return Ok(None) };
        let started = Instant::now();
        let outcome = issuer.authenticate(token).await;
        issuer.metrics.authenticated(outcome.is_ok(), started.elapsed());
        outcome.map(Some)
    }

    /// Waits until all issuers were reached; the error says which were not.
    async fn ready(&self, patience: Duration) -> Result<(), String> {
        let all = async {
            for issuer in &self.issuers {
                // The sender lives in the issuer.
                let _ = issuer.health.subscribe().wait_for(Option::is_none).await;
            }
        };
        if tokio::time::timeout(patience, all).await.is_ok() {
            return Ok(());
        }
        let unwell = self.issuers.iter().filter_map(|i| {
            let why = i.health.borrow().clone()?;
            Some(format!("oidc: authenticator for issuer {:?} is not healthy: {why}", i.config.issuer.url))
        });
        let unwell: Vec<String> = unwell.chain(["context deadline exceeded".to_owned()]).collect();
        Err(format!("[{}]", unwell.join(", ")))
    }

    fn urls(&self) -> impl Iterator<Item = &str> {
        self.issuers.iter().map(|i| i.config.issuer.url.as_str())
    }
}

impl Drop for Issuers {
    fn drop(&mut self) {
        self.tasks.end();
    }
}

impl Issuer {
    /// Asks for the place of the issuer's keys until it is told.
    async fn reach(self: Arc<Self>) {
        let issuer = &self.config.issuer;
        loop {
            match self.reach.discover(&issuer.url, issuer.discovery_url.as_deref()).await {
                Ok(keys) => {
                    self.keys.store(Some(Arc::new(keys)));
                    self.health.send_replace(None);
                    return;
                }
                Err(why) => {
                    tracing::error!(issuer = issuer.url, %why, "an issuer of tokens cannot be reached");
                    self.health.send_replace(Some(why));
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn authenticate(&self, token: &str) -> Result<UserInfo, String> {
        let keys = self.keys.load_full().ok_or("oidc: authenticator not initialized")?;
        let claims = self.verify(&keys, &self.config.issuer.url, token).await;
        let mut claims = claims.map_err(|e| format!("oidc: verify token: {e}"))?;
        let claim = &self.config.claim_mappings.groups.claim;
        if !claim.is_empty() {
            self.expand(claim, &mut claims)
                .await
                .map_err(|e| format!("oidc: could not expand distributed claims: {e}"))?;
        }
        mapping::user(&self.config, &self.compiled, &claims)
    }

    /// The claims of a token of `issuer` that one of `keys` signed, for an audience of this server, valid now.
    async fn verify(&self, keys: &RemoteKeys, issuer: &str, text: &str) -> Result<Claims, String> {
        let token = Token::parse(text)?;
        if !self.algorithms.contains(&token.algorithm) {
            return Err(format!(
                "oidc: id token signed with unsupported algorithm, expected {} got {:?}",
                list(&self.algorithms),
                token.algorithm
            ));
        }
        keys.check(&token, &self.clock, &self.metrics).await?;
        let claims: Map<String, Value> = serde_json::from_slice(&token.payload)
            .map_err(|e| format!("oidc: failed to unmarshal claims: {e}"))?;
        check(&claims, issuer, &self.config.issuer.audiences, self.clock.now())?;
        Ok(claims)
    }

    /// Fetches a claim that the token only points at (OpenID Connect Core 1.0, section 5.6.2).
    async fn expand(&self, claim: &str, claims: &mut Claims) -> Result<(), String> {
        let Some((url, bearer)) = distributed(claim, claims)? else { return Ok(()) };
        let told = |why: &dyn std::fmt::Display| format!("while getting distributed claim {claim:?}: {why}");
        let token = self.reach.fetch(&url, bearer.as_deref()).await.map_err(|e| told(&e))?;
        let from = untrusted_issuer(&token).ok_or_else(|| {
            format!(
                "getting untrusted issuer from endpoint {url} failed for claim {claim:?}: malformed token"
            )
        })?;
        let keys = self.claim_issuer(&from).await;
        let keys = keys.map_err(|e| format!("verifying untrusted issuer {from} failed: {e}"))?;
        let found = self.verify(&keys, &from, &token).await;
        let mut found = found.map_err(|e| format!("verify distributed claim token: {e}"))?;
        let value = found.remove(claim).ok_or_else(|| {
            format!("jwt returned by distributed claim endpoint {url:?} did not contain claim: {claim}")
        })?;
        claims.insert(claim.to_owned(), value);
        Ok(())
    }

    async fn claim_issuer(&self, issuer: &str) -> Result<Arc<RemoteKeys>, String> {
        if let Some(known) = self.claim_issuers.lock().get(issuer) {
            return Ok(known.clone());
        }
        let own = &self.config.issuer;
        let discovery = own.discovery_url.as_deref().filter(|_| own.url == issuer);
        let keys = Arc::new(self.reach.discover(issuer, discovery).await?);
        let mut known = self.claim_issuers.lock();
        if known.len() >= CLAIM_ISSUERS_MAX {
            known.clear();
        }
        known.insert(issuer.to_owned(), keys.clone());
        Ok(keys)
    }
}

/// Where a claim lies that is not among the claims, and what opens the door.
fn distributed(claim: &str, claims: &Claims) -> Result<Option<(String, Option<String>)>, String> {
    if claims.contains_key(claim) {
        return Ok(None);
    }
    let Some(names) = claims.get("_claim_names") else { return Ok(None) };
    let names = names.as_object().ok_or("oidc: error parsing distributed claim names: not an object")?;
    let sources = claims.get("_claim_sources").ok_or("oidc: no claim sources")?;
    let sources = sources.as_object().ok_or("oidc: could not parse claim sources: not an object")?;
    let Some(source) = names.get(claim).and_then(Value::as_str) else { return Ok(None) };
    let Some(endpoint) = sources.get(source) else {
        return Err(format!("id token _claim_names contained a source {source} missing in _claims_sources"));
    };
    let text = |name: &str| endpoint[name].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    Ok(text("endpoint").map(|url| (url, text("access_token"))))
}

/// Texts as Go quotes a list of them.
fn list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

/// Whether verified claims are from whom they should be, for us, and valid now.
fn check(claims: &Claims, issuer: &str, audiences: &[String], now: Timestamp) -> Result<(), String> {
    let from = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    if from != issuer && (from, issuer) != GOOGLE {
        return Err(format!(
            "oidc: id token issued by a different provider, expected {issuer:?} got {from:?}"
        ));
    }
    let meant: Vec<String> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(|a| a.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    if !audiences.iter().any(|a| meant.contains(a)) {
        let wanted = match audiences {
            [one] => format!("{one:?}"),
            many => {
                let mut many = many.to_vec();
                many.sort();
                format!("in {}", list(&many))
            }
        };
        return Err(format!("oidc: expected audience {wanted} got {}", list(&meant)));
    }
    let seconds = |name: &str| claims.get(name).and_then(Value::as_f64);
    let at = |seconds: f64| {
        let time = Timestamp::from_second(seconds as i64).unwrap_or(Timestamp::MIN);
        time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()
    };
    let present = now.as_duration().as_secs_f64();
    match seconds("exp") {
        Some(expiry) if expiry >= present => {}
        Some(expiry) => return Err(format!("oidc: token is expired (Token Expiry: {})", at(expiry))),
        None => return Err("oidc: token is expired (Token Expiry: 0001-01-01 00:00:00 +0000 UTC)".to_owned()),
    }
    match seconds("nbf") {
        Some(from) if present + NOT_BEFORE_LEEWAY_SECONDS < from => {
            Err(format!("oidc: current time {} before the nbf (not before) time: {}", at(present), at(from)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_checked() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let present = now.as_second();
        let one = vec!["x".to_owned()];
        let two = vec!["y".to_owned(), "x".to_owned()];
        for (claims, audiences, why) in [
            (json!({"iss": "https://a", "aud": "x", "exp": present + 1}), &one, ""),
            (
                json!({"iss": "https://a", "aud": ["z", "y"], "exp": present as f64 + 0.5, "nbf": present + 60}),
                &two,
                "",
            ),
            (
                json!({"iss": "https://b", "aud": "x", "exp": present + 1}),
                &one,
                "oidc: id token issued by a different provider, expected \"https://a\" got \"https://b\"",
            ),
            (
                json!({"iss": "https://a", "aud": "z", "exp": present + 1}),
                &one,
                "oidc: expected audience \"x\" got [\"z\"]",
            ),
            (
                json!({"iss": "https://a", "exp": present + 1}),
                &two,
                "oidc: expected audience in [\"x\" \"y\"] got []",
            ),
            (
                json!({"iss": "https://a", "aud": "x", "exp": present - 1}),
                &one,
                "oidc: token is expired (Token Expiry: 2029-12-31 23:59:59 +0000 UTC)",
            ),
            (
                json!({"iss": "https://a", "aud": "x"}),
                &one,
                "oidc: token is expired (Token Expiry: 0001-01-01 00:00:00 +0000 UTC)",
            ),
            (
                json!({"iss": "https://a", "aud": "x", "exp": present + 100, "nbf": present + 61}),
                &one,
                "oidc: current time 2030-01-01 00:00:00 +0000 UTC before the nbf (not before) time: 2030-01-01 00:01:01 \
                 +0000 UTC",
            ),
        ] {
            let got = check(claims.as_object().unwrap(), "https://a", audiences, now);
            assert_eq!(got.err().unwrap_or_default(), why, "{claims}");
        }
        let google = json!({"iss": "accounts.google.com", "aud": "x", "exp": present + 1});
        assert!(check(google.as_object().unwrap(), GOOGLE.1, &one, now).is_ok());
    }

    #[test]
    fn claims_that_lie_elsewhere() {
        let of = |claims: Value| distributed("groups", claims.as_object().unwrap());
        let names = json!({"groups": "s"});
        for (claims, want) in [
            (json!({"groups": [], "_claim_names": names}), Ok(None)),
            (json!({}), Ok(None)),
            (json!({"_claim_names": names}), Err("oidc: no claim sources")),
            (json!({"_claim_names": {}, "_claim_sources": {}}), Ok(None)),
            (
                json!({"_claim_names": names, "_claim_sources": {}}),
                Err("id token _claim_names contained a source s missing in _claims_sources"),
            ),
            (json!({"_claim_names": names, "_claim_sources": {"s": {"JWT": "x"}}}), Ok(None)),
            (
                json!({"_claim_names": names, "_claim_sources": {"s": {"endpoint": "https://b/g", "access_token": "t"}}}),
                Ok(Some(("https://b/g".to_owned(), Some("t".to_owned())))),
            ),
        ] {
            assert_eq!(of(claims.clone()), want.map_err(str::to_owned), "{claims}");
        }
    }
}
