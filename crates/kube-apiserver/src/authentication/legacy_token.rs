//! Service account tokens that are kept in secrets: they are good while the secret holds them, and the secret is marked with
//! the day of their last use.

use std::sync::Arc;

use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::bootstrap_token;
use super::token_cache::Outcome;
use crate::metrics::{Families, Family};
use crate::seams::{Notes, Objects, Writer};
use crate::tasks::Tasks;
use crate::tokens::{KeySet, LegacyClaims};

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

/// What users of tokens that nobody made by hand are told.
const USE_OTHERS: &str = "Use tokens from the TokenRequest API or manually created secret-based tokens instead of \
                          auto-generated secret-based tokens.";

pub struct LegacyTokens {
    objects: Arc<dyn Objects>,
    writer: Arc<dyn Writer>,
    clock: Clock,
    tasks: Tasks,
    keys: KeySet,
    audiences: Vec<String>,
    used: Arc<Family>,
    invalid: Arc<Family>,
    generated: Arc<Family>,
    manual: Arc<Family>,
}

impl LegacyTokens {
    pub fn new(
        objects: Arc<dyn Objects>,
        writer: Arc<dyn Writer>,
        clock: Clock,
        keys: KeySet,
        audiences: Vec<String>,
        families: &Families,
        tasks: Tasks,
    ) -> LegacyTokens {
        let counter = |name, help| families.counter(name, help, &[]);
        LegacyTokens {
            objects,
            writer,
            clock,
            tasks,
            keys,
            audiences,
            used: counter("serviceaccount_legacy_tokens_total", "Uses of tokens that are kept in secrets."),
            invalid: counter(
                "serviceaccount_invalid_legacy_auto_token_uses_total",
                "Uses of tokens in secrets that were marked invalid.",
            ),
            generated: counter(
                "serviceaccount_legacy_auto_token_uses_total",
                "Uses of tokens in secrets that service accounts name.",
            ),
            manual: counter(
                "serviceaccount_legacy_manual_token_uses_total",
                "Uses of tokens in secrets that somebody made.",
            ),
        }
    }

    /// The account a token is for; `None` for tokens of other issuers.
    pub fn authenticate(&self, token: &str, audiences: &[String], notes: &mut Notes) -> Outcome {
        let Some(claims) = LegacyClaims::verify(token, &self.keys)? else { return Ok(None) };
        self.used.inc(&[]);
        // They name no audience, and are good for this server alone.
        let own: Vec<String> = audiences.iter().filter(|a| self.audiences.contains(a)).cloned().collect();
        if own.is_empty() && !self.audiences.is_empty() {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {audiences:?}",
                self.audiences
            ));
        }
        if let Some(why) = claims.problem() {
            return Err(why.to_owned());
        }
        self.check(token, &claims, notes)?;
        let LegacyClaims { sub, namespace, account_uid, .. } = claims;
        let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        Ok(Some((UserInfo { name: sub, uid: account_uid, groups, ..UserInfo::default() }, own)))
    }

    fn check(&self, token: &str, claims: &LegacyClaims, notes: &mut Notes) -> Result<(), String> {
        let LegacyClaims { namespace, secret: name, account, account_uid, .. } = claims;
        let gone = || "Token has been invalidated".to_owned();
        let secret = self.objects.get("", "secrets", namespace, name).ok_or_else(gone)?;
        if secret.attributes.deleting {
            return Err(gone());
        }
        let value = secret.to_value().map_err(|e| e.to_string())?;
        let kept = value["data"]["token"].as_str().and_then(|t| STANDARD.decode(t).ok()).unwrap_or_default();
        if !bootstrap_token::same(&kept, token.as_bytes()) {
            return Err("Token does not match server's copy".to_owned());
        }
        let Some(found) = self.objects.get("", "serviceaccounts", namespace, account) else {
            return Err(format!("serviceaccount {account:?} not found"));
        };
        if found.attributes.deleting {
            return Err(format!("ServiceAccount {namespace}/{account} has been deleted"));
        }
        if found.uid() != account_uid {
            return Err(format!("ServiceAccount UID ({}) does not match claim ({account_uid})", found.uid()));
        }
        let mut note = |key: &str, value: String| {
            notes.annotations.insert(format!("authentication.k8s.io/{key}"), value);
        };
        let invalid = value["metadata"]["labels"][INVALID_SINCE].as_str().unwrap_or_default();
        self.mark(&value);
        if !invalid.is_empty() {
            self.invalid.inc(&[]);
            note("legacy-token-invalidated", format!("{name}/{namespace}"));
            return Err(format!(
                "the token in secret {namespace}/{name} for service account {namespace}/{account} has been marked invalid. \
                 Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
                 '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ));
        }
        let account = found.to_value().map_err(|e| e.to_string())?;
        let names = account["secrets"].as_array().into_iter().flatten();
        if names.into_iter().any(|s| s["name"] == name.as_str()) {
            note("legacy-token-autogenerated-secret", name.clone());
            notes.warnings.push(USE_OTHERS.to_owned());
            self.generated.inc(&[]);
        } else {
            note("legacy-token-manual-secret", name.clone());
            self.manual.inc(&[]);
        }
        Ok(())
    }

    /// Notes the day in the secret, once a day.
    fn mark(&self, secret: &Value) {
        let day = |days: i64| {
            let at = self.clock.now() + jiff::SignedDuration::from_hours(24 * days);
            at.strftime("%Y-%m-%d").to_string()
        };
        let (today, tomorrow) = (day(0), day(1));
        let last = secret["metadata"]["labels"][LAST_USED].as_str().unwrap_or_default();
        // Another server's clock may be ahead.
        if last == today || last == tomorrow {
            return;
        }
        let (writer, mut secret) = (self.writer.clone(), secret.clone());
        self.tasks.spawn(async move {
            if !secret["metadata"]["labels"].is_object() {
                secret["metadata"]["labels"] = json!({});
            }
            secret["metadata"]["labels"][LAST_USED] = json!(today);
            // Whoever changed the secret meanwhile is not undone; the next use tries again.
            if let Err(error) = writer.update("", "v1", "secrets", secret).await {
                tracing::warn!(%error, "Failed to label legacy service account token with last-used date");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;
    use crate::tokens::{LEGACY_ISSUER, SigningKey};

    #[tokio::test]
    async fn tokens_in_secrets() {
        let objects = Arc::new(FakeObjects::default());
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        let keys = KeySet::from_pems([pem.as_bytes()]).unwrap();
        let now: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::from_fn(move || now);
        let (families, tasks, ours) = (Families::default(), Tasks::default(), vec!["api".to_owned()]);
        let tokens =
            LegacyTokens::new(objects.clone(), objects.clone(), clock, keys, ours.clone(), &families, tasks);
        let claims = LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            sub: "system:serviceaccount:a:robot".into(),
            namespace: "a".into(),
            secret: "s".into(),
            account: "robot".into(),
            account_uid: "uid-robot".into(),
        };
        let token = key.sign(&serde_json::to_value(&claims).unwrap()).unwrap();
        let secret = |labels: Value, token: &str| json!({"metadata": {"namespace": "a", "name": "s", "labels": labels}, "data": {"token": STANDARD.encode(token)}});
        let of = || tokens.authenticate(&token, &ours, &mut Notes::default());
        assert_eq!(of().unwrap_err(), "Token has been invalidated");
        objects.put("", "secrets", secret(json!({}), "another"));
        assert_eq!(of().unwrap_err(), "Token does not match server's copy");
        objects.put("", "secrets", secret(json!({}), &token));
        assert_eq!(of().unwrap_err(), "serviceaccount \"robot\" not found");
        objects.put(
            "",
            "serviceaccounts",
            json!({"metadata": {"namespace": "a", "name": "robot", "uid": "x"}}),
        );
        assert!(of().unwrap_err().contains("does not match claim"));
        objects.put("", "serviceaccounts", json!({"metadata": {"namespace": "a", "name": "robot"}}));
        let mut changes = objects.changes("", "secrets");
        changes.mark_unchanged();
        let (user, _) = of().unwrap().unwrap();
        assert_eq!(user.name, "system:serviceaccount:a:robot");
        assert_eq!(user.groups[1], "system:serviceaccounts:a");
        changes.changed().await.unwrap();
        let stored = objects.get("", "secrets", "a", "s").unwrap().to_value().unwrap();
        assert_eq!(stored["metadata"]["labels"][LAST_USED], "2030-01-01");
        of().unwrap().unwrap();
        tokio::task::yield_now().await;
        assert!(!changes.has_changed().unwrap(), "once a day is enough");
        objects.put(
            "",
            "secrets",
            secret(json!({INVALID_SINCE: "2029-01-01", LAST_USED: "2030-01-02"}), &token),
        );
        assert!(of().unwrap_err().contains("has been marked invalid"));
        let mut notes = Notes::default();
        let _ = tokens.authenticate(&token, &ours, &mut notes);
        assert_eq!(notes.annotations["authentication.k8s.io/legacy-token-invalidated"], "s/a");
        assert!(tokens.authenticate(&token, &["vault".to_owned()], &mut Notes::default()).is_err());
        assert_eq!(families.counter("serviceaccount_legacy_manual_token_uses_total", "", &[]).get(&[]), 2.0);
    }
}
