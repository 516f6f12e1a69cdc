//! What is told of tokens of issuers, under upstream's names.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{Families, Family, hash};

const BOUNDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The figures of one issuer.
pub struct Metrics {
    latency: Arc<Family>,
    fetched_at: Arc<Family>,
    key_set: Arc<Family>,
    issuer: String,
    server: String,
}

impl Metrics {
    /// `server` names this server, as a digest.
    pub fn new(families: &Families, issuer: &str, server: &str) -> Metrics {
        Metrics {
            latency: families.histogram(
                "apiserver_authentication_jwt_authenticator_latency_seconds",
                "Time spent on a JWT that was not remembered, in seconds.",
                &["result", "jwt_issuer_hash"],
                BOUNDS,
            ),
            fetched_at: families.gauge(
                "apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds",
                "When the keys of an issuer were last fetched, or fetching failed.",
                &["result", "jwt_issuer_hash", "apiserver_id_hash"],
            ),
            key_set: families.gauge(
                "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info",
                "The keys of an issuer that were last fetched, as a digest.",
                &["jwt_issuer_hash", "apiserver_id_hash", "hash"],
            ),
            issuer: hash(issuer.as_bytes()),
            server: server.to_owned(),
        }
    }

    pub fn authenticated(&self, succeeded: bool, took: Duration) {
        let result = if succeeded { "success" } else { "failure" };
        self.latency.took(&[result, &self.issuer], took);
    }

    pub fn fetched(&self, digest: &str) {
        self.key_set.forget(|labels| labels[0] == self.issuer);
        self.key_set.set(&[&self.issuer, &self.server, digest], 1.0);
        self.fetched_at.set_to_now(&["success", &self.issuer, &self.server]);
    }

    pub fn fetch_failed(&self) {
        self.fetched_at.set_to_now(&["failure", &self.issuer, &self.server]);
    }

    /// The issuer is not configured any more.
    pub fn forget(&self) {
        self.key_set.forget(|labels| labels[0] == self.issuer);
        self.fetched_at.forget(|labels| labels[1] == self.issuer);
    }
}
