//! Who is asking: front-proxy headers, client certificates, then bearer tokens; without credentials, anonymous.

pub mod bootstrap_token;
pub mod configuration;
pub mod impersonation;
pub mod jwt;
pub mod legacy_token;
pub mod request_header;
pub mod service_account;
pub mod token_cache;
pub mod token_file;
pub mod webhook;
pub mod x509;

use std::sync::Arc;

use apimachinery::status::Status;
use apimachinery::user::{ALL_AUTHENTICATED, UserInfo};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;

use crate::seams::{Authenticator, Credentials, Notes};
use crate::security::failure;
use token_cache::{Outcome, TokenCache};

const WEBSOCKET_TOKEN_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Asks each method in turn; the first that recognizes the credentials answers.
pub struct Chain {
    pub request_header: Option<request_header::RequestHeader>,
    pub x509: Option<x509::ClientCertificates>,
    pub token_file: Option<token_file::TokenFile>,
    pub legacy_tokens: Option<legacy_token::LegacyTokens>,
    pub service_accounts: Option<Arc<service_account::ServiceAccounts>>,
    pub bootstrap_tokens: Option<bootstrap_token::BootstrapTokens>,
    pub jwt: Option<(Arc<jwt::Reloading>, TokenCache)>,
    pub webhook: Option<webhook::TokenWebhook>,
    pub anonymous: configuration::Anonymous,
    /// What this server answers to.
    pub audiences: Vec<String>,
}

impl Chain {
    /// The user a bearer token stands for and those of `audiences` it is good for, or why nobody accepts it.
    pub async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
        notes: &mut Notes,
    ) -> Result<(UserInfo, Vec<String>), String> {
        // Tokens that know no audience are good for this server alone.
        let own: Vec<String> = audiences.iter().filter(|a| self.audiences.contains(a)).cloned().collect();
        if let Some(user) = self.token_file.as_ref().and_then(|t| t.user(token))
            && !own.is_empty()
        {
            return Ok((user, own));
        }
        let mut errors: Vec<String> = Vec::new();
        let mut take = |outcome: Outcome| match outcome {
            Ok(found) => found,
            Err(why) => {
                if !errors.contains(&why) {
                    errors.push(why);
                }
                None
            }
        };
        if let Some(found) =
            self.legacy_tokens.as_ref().and_then(|l| take(l.authenticate(token, audiences, notes)))
        {
            return Ok(found);
        }
        if let Some(found) =
            self.service_accounts.as_ref().and_then(|s| take(s.authenticate(token, audiences, notes)))
        {
            return Ok(found);
        }
        if let Some(user) = self.bootstrap_tokens.as_ref().and_then(|b| b.user(token))
            && !own.is_empty()
        {
            return Ok((user, own));
        }
        // Those that may have to ask others come last.
        if let Some((issuers, cache)) = &self.jwt
            && !own.is_empty()
        {
            let look_up = || {
                let (issuers, token, own) = (issuers.clone(), token.to_owned(), own.clone());
                async move { Ok(issuers.authenticate(&token).await?.map(|user| (user, own))) }.boxed()
            };
            if let Some(found) = take(cache.get(token, &own, look_up).await) {
                return Ok(found);
            }
        }
        if let Some(webhook) = &self.webhook
            && let Some(found) = take(webhook.authenticate(token, audiences).await)
        {
            return Ok(found);
        }
        Err(match errors.len() {
            0 => "invalid bearer token".to_owned(),
            1 => errors.swap_remove(0),
            _ => format!("[{}]", errors.join(", ")),
        })
    }
}

fn bearer_token(headers: &http::HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned());
    }
    // Browsers cannot set headers on WebSockets; they put the token among the subprotocols.
    let protocols = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL);
    protocols.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).find_map(|protocol| {
        let encoded = protocol.trim().strip_prefix(WEBSOCKET_TOKEN_PREFIX)?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
        String::from_utf8(bytes).ok().filter(|t| !t.is_empty())
    })
}

/// Adds the group every authenticated user is in.
pub fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(ALL_AUTHENTICATED) && user.name != apimachinery::user::ANONYMOUS {
        user.groups.push(ALL_AUTHENTICATED.to_owned());
    }
    user
}

#[async_trait]
impl Authenticator for Chain {
    async fn authenticate(
        &self,
        credentials: Credentials<'_>,
        notes: &mut Notes,
    ) -> Result<UserInfo, Status> {
        let mut rejected = false;
        if let Some(request_header) = &self.request_header {
            match request_header.user(&credentials) {
                Ok(Some(user)) => return Ok(authenticated(user)),
                Ok(None) => {}
                Err(request_header::NotAllowed) => rejected = true,
            }
        }
        if let Some(x509) = &self.x509
            && !credentials.peer_certificates.is_empty()
        {
            match x509.user(credentials.peer_certificates) {
                Ok(user) => return Ok(authenticated(user)),
                Err(why) => {
                    tracing::debug!(%why, "client certificate not accepted");
                    rejected = true;
                }
            }
        }
        if let Some(token) = bearer_token(credentials.headers) {
            return match self.authenticate_token(&token, &self.audiences, notes).await {
                Ok((user, _)) => Ok(authenticated(user)),
                Err(why) => {
                    tracing::debug!(%why, "Unable to authenticate the request");
                    Err(failure::unauthorized())
                }
            };
        }
        if rejected || !self.anonymous.admits(credentials.path) {
            return Err(failure::unauthorized());
        }
        Ok(UserInfo::anonymous())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_bearer_tokens() {
        for (name, value, want) in [
            ("authorization", "Bearer abc", Some("abc")),
            ("authorization", "bearer  abc ", Some("abc")),
            ("authorization", "Basic abc", None),
            ("authorization", "Bearer ", None),
            (
                "sec-websocket-protocol",
                "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj",
                Some("abc"),
            ),
            ("sec-websocket-protocol", "v5.channel.k8s.io", None),
        ] {
            let mut headers = http::HeaderMap::new();
            headers.insert(http::HeaderName::from_static(name), value.parse().unwrap());
            assert_eq!(bearer_token(&headers).as_deref(), want, "{value}");
        }
    }
}
