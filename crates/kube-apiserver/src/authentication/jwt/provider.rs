//! An issuer as it is reached: its discovery document (OpenID Connect Discovery 1.0) and its keys, fetched when they are
//! needed and kept.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::clock::Clock;
use arc_swap::ArcSwap;
use http::{HeaderMap, Uri, header};
use jiff::Timestamp;
use serde::Deserialize;

use super::keys::{self, Key, Token};
use super::metrics::Metrics;
use crate::authentication::configuration;
use crate::outbound::Service;

/// Keys are renewed this long before the issuer says they expire.
const RENEW_EARLY: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Discovery {
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
}

/// Reaches whatever an issuer points at, with the authorities configured for it.
#[derive(Clone)]
pub struct Reach {
    authorities: Option<Vec<Vec<u8>>>,
}

impl Reach {
    /// `authority` is PEM; empty means the machine's own.
    pub fn new(authority: &str) -> anyhow::Result<Reach> {
        let authorities = match authority {
            "" => None,
            pem => Some(configuration::certificates(pem.as_bytes())?.iter().map(|c| c.to_vec()).collect()),
        };
        Ok(Reach { authorities })
    }

    fn at(&self, url: &str) -> Result<(Service, String), String> {
        let uri: Uri = url.parse().map_err(|e| format!("parse {url:?}: {e}"))?;
        let target = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let service = Service::at(&uri, self.authorities.clone()).map_err(|e| format!("{e:#}"))?;
        Ok((service, target))
    }

    /// Fetches a claim that lies elsewhere.
    pub async fn fetch(&self, url: &str, bearer: Option<&str>) -> Result<String, String> {
        let (service, target) = self.at(url)?;
        let answer = service.get(&target, bearer).await.map_err(|e| e.to_string())?;
        String::from_utf8(answer.body.to_vec())
            .map_err(|_| "could not decode distributed claim response".to_owned())
    }

    /// Asks an issuer for the place of its keys.
    pub async fn discover(&self, issuer: &str, discovery_url: Option<&str>) -> Result<RemoteKeys, String> {
        let well_known = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let url = discovery_url.filter(|u| !u.is_empty()).unwrap_or(&well_known);
        let (service, target) = self.at(url)?;
        let answer = service.get(&target, None).await.map_err(|e| e.to_string())?;
        let discovery: Discovery = serde_json::from_slice(&answer.body)
            .map_err(|e| format!("oidc: failed to decode provider discovery object: {e}"))?;
        if discovery.issuer != issuer {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {issuer:?} got {:?}",
                discovery.issuer
            ));
        }
        if discovery.jwks_uri.is_empty() {
            return Err("provider did not return JWKS URL".to_owned());
        }
        let (service, target) = self.at(&discovery.jwks_uri)?;
        Ok(RemoteKeys { service, target, kept: ArcSwap::default(), fetching: tokio::sync::Mutex::default() })
    }
}

/// Keys as they were last fetched, and until when they need not be fetched again.
#[derive(Default)]
struct Kept {
    keys: Vec<Key>,
    fresh_until: Option<Timestamp>,
    generation: u64,
}

/// The keys of one issuer.
pub struct RemoteKeys {
    service: Service,
    target: String,
    kept: ArcSwap<Kept>,
    fetching: tokio::sync::Mutex<()>,
}

impl RemoteKeys {
    /// Whether one of the issuer's keys signed the token. Keys that are not known are asked for.
    pub async fn check(&self, token: &Token<'_>, clock: &Clock, metrics: &Metrics) -> Result<(), String> {
        let kept = self.kept.load_full();
        if token.is_signed_by(&kept.keys) {
            return Ok(());
        }
        let failed = || Err("failed to verify signature: failed to verify id token signature".to_owned());
        if kept.fresh_until.is_some_and(|until| clock.now() + RENEW_EARLY <= until) {
            return failed();
        }
        let fresh = self.renew(kept.generation, clock, metrics).await;
        let fresh = fresh.map_err(|e| format!("failed to verify signature: fetching keys {e}"))?;
        if token.is_signed_by(&fresh.keys) { Ok(()) } else { failed() }
    }

    /// Fetches the keys, once for all who wait.
    async fn renew(&self, seen: u64, clock: &Clock, metrics: &Metrics) -> Result<Arc<Kept>, String> {
        let _fetching = self.fetching.lock().await;
        let kept = self.kept.load_full();
        if kept.generation != seen {
            return Ok(kept);
        }
        let fetched = self.fetch(clock).await;
        match fetched {
            Ok((keys, fresh_until, digest)) => {
                metrics.fetched(&digest);
                let fresh = Arc::new(Kept { keys, fresh_until, generation: seen + 1 });
                self.kept.store(fresh.clone());
                Ok(fresh)
            }
            Err(why) => {
                metrics.fetch_failed();
                Err(why)
            }
        }
    }

    async fn fetch(&self, clock: &Clock) -> Result<(Vec<Key>, Option<Timestamp>, String), String> {
        let answer = self.service.get(&self.target, None).await;
        let answer = answer.map_err(|e| format!("oidc: get keys failed {e}"))?;
        let keys = keys::parse_set(&answer.body).map_err(|e| {
            format!("oidc: failed to decode keys: {e} {}", String::from_utf8_lossy(&answer.body))
        })?;
        let digest = crate::metrics::hash(&answer.body);
        Ok((keys, max_age(&answer.headers).map(|age| clock.now() + age), digest))
    }
}

/// How long an answer may be kept (RFC 9111, section 5.2), by a cache that several share.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|v| v.to_str().ok());
    let directives: Vec<String> =
        values.flat_map(|v| v.split(',')).map(|d| d.trim().to_ascii_lowercase()).collect();
    if directives.iter().any(|d| matches!(d.as_str(), "no-store" | "no-cache" | "private")) {
        return None;
    }
    let seconds = |name: &str| {
        let given = directives.iter().find_map(|d| d.strip_prefix(name)?.strip_prefix('='));
        given.and_then(|s| s.trim_matches('"').parse::<u32>().ok())
    };
    seconds("s-maxage")
        .or_else(|| seconds("max-age"))
        .filter(|s| *s > 0)
        .map(|s| Duration::from_secs(s.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (value, want) in [
            ("max-age=60", Some(60)),
            ("public, max-age=60, s-maxage=\"30\"", Some(30)),
            ("no-store, max-age=60", None),
            ("private, max-age=60", None),
            ("max-age=0", None),
            ("max-age=x", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("cache-control", value.parse().unwrap());
            assert_eq!(max_age(&headers).map(|a| a.as_secs()), want, "{value}");
        }
    }
}
