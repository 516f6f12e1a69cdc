//! Tokens a webhook knows: each is sent to it as a TokenReview.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;
use futures::FutureExt;
use serde_json::{Value, json};

use super::token_cache::{Outcome, TokenCache};
use crate::metrics::Families;
use crate::outbound::{Backoff, Service, TIMEOUT};

/// How the webhook is reached and how long its answers are remembered.
#[derive(Clone, Debug)]
pub struct Config {
    /// A kubeconfig.
    pub file: PathBuf,
    /// Of TokenReview: `v1` or `v1beta1`.
    pub version: String,
    pub cache_ttl: Duration,
}

pub struct TokenWebhook {
    client: Arc<Client>,
    cache: TokenCache,
}

struct Client {
    service: Service,
    api_version: String,
    /// Whom tokens are for that no audience is told of.
    implicit: Vec<String>,
    backoff: Backoff,
}

impl TokenWebhook {
    pub async fn new(
        config: &Config,
        audiences: &[String],
        clock: Clock,
        families: &Families,
    ) -> anyhow::Result<TokenWebhook> {
        if !matches!(config.version.as_str(), "v1" | "v1beta1") {
            bail!(
                "unsupported authentication webhook version {:?}, supported versions are \"v1\", \"v1beta1\"",
                config.version
            );
        }
        let client = Client {
            service: service(&config.file).await?,
            api_version: format!("authentication.k8s.io/{}", config.version),
            implicit: audiences.to_vec(),
            backoff: Backoff::default(),
        };
        let cache = TokenCache::new(config.cache_ttl, config.cache_ttl, clock, families);
        Ok(TokenWebhook { client: Arc::new(client), cache })
    }

    pub async fn authenticate(&self, token: &str, audiences: &[String]) -> Outcome {
        let look_up = || {
            let (client, token, audiences) = (self.client.clone(), token.to_owned(), audiences.to_vec());
            async move { client.review(&token, &audiences).await }.boxed()
        };
        self.cache.get(token, audiences, look_up).await
    }
}

async fn service(path: &Path) -> anyhow::Result<Service> {
    Service::from_kubeconfig(path).await.with_context(|| path.display().to_string())
}

impl Client {
    async fn review(&self, token: &str, audiences: &[String]) -> Outcome {
        let review = json!({"kind": "TokenReview", "apiVersion": self.api_version,
            "metadata": {}, "spec": {"token": token, "audiences": audiences}, "status": {"user": {}}});
        let answer = self.backoff.retry(|| self.service.post(&review, TIMEOUT)).await;
        let answer = answer.map_err(|failure| {
            tracing::error!(%failure, "Failed to make webhook authenticator request");
            failure.to_string()
        })?;
        read(&answer, &self.api_version, audiences, &self.implicit)
    }
}

/// What an answer says of a token for `audiences`.
fn read(answer: &Value, api_version: &str, audiences: &[String], implicit: &[String]) -> Outcome {
    if answer["kind"] != "TokenReview" || answer["apiVersion"] != api_version {
        let said = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
        return Err(format!(
            "the webhook answered with {:?} of {:?}, not with a TokenReview of {api_version:?}",
            said("kind"),
            said("apiVersion")
        ));
    }
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let status = &answer["status"];
    let told = texts(&status["audiences"]);
    let good_for = if told.is_empty() { implicit.to_vec() } else { told };
    let good_for: Vec<String> = audiences.iter().filter(|a| good_for.contains(a)).cloned().collect();
    if good_for.is_empty() && !audiences.is_empty() {
        return Ok(None);
    }
    if status["authenticated"] != true {
        return match status["error"].as_str().unwrap_or_default() {
            "" => Ok(None),
            error => Err(error.to_owned()),
        };
    }
    let (user, text) = (&status["user"], |value: &Value| value.as_str().unwrap_or_default().to_owned());
    let extra = user["extra"].as_object().into_iter().flatten();
    let user = UserInfo {
        name: text(&user["username"]),
        uid: text(&user["uid"]),
        groups: texts(&user["groups"]),
        extra: extra.map(|(k, v)| (k.clone(), texts(v))).collect(),
    };
    Ok(Some((user, good_for)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_answers() {
        let api = "authentication.k8s.io/v1";
        let ours = vec!["api".to_owned()];
        let of = |status: Value, audiences: &[&str]| {
            let audiences: Vec<String> = audiences.iter().map(|a| (*a).to_owned()).collect();
            read(&json!({"kind": "TokenReview", "apiVersion": api, "status": status}), api, &audiences, &ours)
        };
        let user = json!({"username": "u", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}});
        let jane = UserInfo {
            name: "u".into(),
            uid: "1".into(),
            groups: vec!["g".into()],
            extra: [("k".to_owned(), vec!["v".to_owned()])].into(),
        };
        let good = |audiences: &[&str]| {
            Ok(Some((jane.clone(), audiences.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())))
        };
        for (status, audiences, want) in [
            (json!({"authenticated": true, "user": user}), &["api"] as &[&str], good(&["api"])),
            (json!({"authenticated": true, "user": user}), &["other"], Ok(None)),
            (json!({"authenticated": true, "user": user, "audiences": ["other"]}), &["api"], Ok(None)),
            (
                json!({"authenticated": true, "user": user, "audiences": ["other", "api"]}),
                &["api", "other"],
                good(&["api", "other"]),
            ),
            (json!({"authenticated": false}), &["api"], Ok(None)),
            (json!({"authenticated": false, "error": "expired"}), &["api"], Err("expired".to_owned())),
        ] {
            assert_eq!(of(status.clone(), audiences), want, "{status} {audiences:?}");
        }
        let other =
            json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1beta1", "status": {}});
        assert!(read(&other, api, &ours, &ours).is_err());
    }
}
