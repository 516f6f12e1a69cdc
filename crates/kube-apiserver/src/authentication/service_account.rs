//! Service account tokens: the signature is checked once, what the token is bound to on every request.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;
use parking_lot::Mutex;
use sha2::Digest as _;

use super::token_cache::Outcome;
use crate::metrics::Families;
use crate::seams::{Notes, Objects};
use crate::tokens::claims::Reference;
use crate::tokens::{Claims, KeySet};

/// How many verified tokens are remembered; the whole memory is dropped when it is full.
const REMEMBERED_MAX: usize = 10_000;
/// Clocks may differ by this much, and what is being deleted keeps its tokens this long.
const LEEWAY_SECONDS: i64 = 60;

pub struct ServiceAccounts {
    objects: Arc<dyn Objects>,
    clock: Clock,
    issuers: Vec<String>,
    keys: KeySet,
    verified: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
    valid: Arc<AtomicU64>,
    stale: Arc<AtomicU64>,
}

impl ServiceAccounts {
    pub fn new(
        objects: Arc<dyn Objects>,
        clock: Clock,
        issuers: Vec<String>,
        keys: KeySet,
        families: &Families,
    ) -> ServiceAccounts {
        let counter = |name, help| families.counter(name, help, &[]).cell(&[]);
        ServiceAccounts {
            objects,
            clock,
            issuers,
            keys,
            verified: Mutex::default(),
            valid: counter(
                "serviceaccount_valid_tokens_total",
                "[ALPHA] Uses of tokens that are not due to be replaced.",
            ),
            stale: counter(
                "serviceaccount_stale_tokens_total",
                "[ALPHA] Uses of tokens that should have been replaced already.",
            ),
        }
    }

    /// The account a token is for and those of `audiences` it is good for; `None` for tokens of other issuers.
    pub fn authenticate(&self, token: &str, audiences: &[String], notes: &mut Notes) -> Outcome {
        let digest: [u8; 32] = sha2::Sha256::digest(token.as_bytes()).into();
        let known = self.verified.lock().get(&digest).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let Some(claims) = Claims::verify(token, &self.issuers, &self.keys)? else { return Ok(None) };
                let claims = Arc::new(claims);
                let mut verified = self.verified.lock();
                if verified.len() >= REMEMBERED_MAX {
                    verified.clear();
                }
                verified.insert(digest, claims.clone());
                claims
            }
        };
        let matching: Vec<String> = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if matching.is_empty() {
            return Err(format!(
                "token audiences {} is invalid for the target audiences {}",
                quoted(&claims.aud),
                quoted(audiences)
            ));
        }
        let user = self.check(&claims)?;
        self.note_age(&claims, notes);
        Ok(Some((user, matching)))
    }

    fn check(&self, claims: &Claims) -> Result<UserInfo, String> {
        let now = self.clock.now().as_second();
        if now > claims.exp + LEEWAY_SECONDS {
            return Err("service account token has expired".to_owned());
        }
        if now + LEEWAY_SECONDS < claims.nbf || now + LEEWAY_SECONDS < claims.iat {
            return Err("service account token is not valid yet".to_owned());
        }
        self.account(claims, now).ok_or_else(|| "service account token has been invalidated".to_owned())
    }

    /// Tells the audit log of a token that should have been replaced.
    fn note_age(&self, claims: &Claims, notes: &mut Notes) {
        let Some(warn_after) = claims.kubernetes.warnafter.filter(|w| *w != 0) else { return };
        let late = self.clock.now().as_second() - warn_after;
        if late <= 0 {
            self.valid.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.stale.fetch_add(1, Ordering::Relaxed);
        let said = format!("subject: {}, seconds after warning threshold: {late}", claims.sub);
        notes.annotations.insert("authentication.k8s.io/stale-token".to_owned(), said);
    }

    /// The account, if it and all that the token is bound to are there still.
    fn account(&self, claims: &Claims, now: i64) -> Option<UserInfo> {
        let private = &claims.kubernetes;
        let namespace = private.namespace.as_str();
        let account = &private.serviceaccount;
        if namespace.is_empty() || claims.sub != format!("system:serviceaccount:{namespace}:{}", account.name)
        {
            return None;
        }
        self.alive("serviceaccounts", namespace, account, now)?;
        let mut extra = BTreeMap::new();
        let mut note = |key: &str, value: &str| {
            if !value.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        if !claims.jti.is_empty() {
            note("credential-id", &format!("JTI={}", claims.jti));
        }
        if let Some(secret) = &private.secret {
            self.alive("secrets", namespace, secret, now)?;
        }
        if let Some(pod) = &private.pod {
            self.alive("pods", namespace, pod, now)?;
            note("pod-name", &pod.name);
            note("pod-uid", &pod.uid);
        }
        if let Some(node) = &private.node {
            if private.pod.is_none() {
                self.alive("nodes", "", node, now)?;
            }
            note("node-name", &node.name);
            note("node-uid", &node.uid);
        }
        Some(UserInfo {
            name: claims.sub.clone(),
            uid: account.uid.clone(),
            groups: vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
            extra,
        })
    }

    /// Whether the object exists, is the one meant, and was not deleted long ago.
    fn alive(&self, resource: &str, namespace: &str, meant: &Reference, now: i64) -> Option<()> {
        let object = self.objects.get("", resource, namespace, &meant.name)?;
        if object.uid() != meant.uid {
            return None;
        }
        if object.attributes.deleting {
            let value: serde_json::Value = serde_json::from_slice(&object.body).ok()?;
            let deleted: jiff::Timestamp = value["metadata"]["deletionTimestamp"].as_str()?.parse().ok()?;
            if deleted.as_second() < now - LEEWAY_SECONDS {
                return None;
            }
        }
        Some(())
    }
}

/// Texts as Go quotes a list of them.
fn quoted(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|t| format!("{t:?}")).collect();
    format!("[{}]", quoted.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;
    use crate::tokens::{Issuer, SigningKey};
    use serde_json::{Value, json};

    const ISSUER: &str = "https://kubernetes.default.svc";

    fn issuer(objects: Arc<FakeObjects>, clock: Clock) -> (Issuer, ServiceAccounts) {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let keys = KeySet::from_pems([pem.as_bytes()]).unwrap();
        let names = vec![ISSUER.to_owned()];
        let issuer = Issuer {
            objects: objects.clone(),
            clock: clock.clone(),
            issuers: names.clone(),
            audiences: names.clone(),
            key: Some(SigningKey::from_pem(pem.as_bytes()).unwrap()),
            keys: keys.clone(),
            jwks_uri: "https://10.0.0.1/openid/v1/jwks".into(),
            expiration_seconds_max: None,
            extend_expiration: true,
        };
        (issuer, ServiceAccounts::new(objects, clock, names, keys, &Families::default()))
    }

    #[test]
    fn issues_what_it_accepts() {
        let objects = Arc::new(FakeObjects::default());
        objects.put("", "serviceaccounts", json!({"metadata": {"namespace": "a", "name": "default"}}));
        objects.put("", "nodes", json!({"metadata": {"name": "n1"}}));
        let pod = json!({"metadata": {"namespace": "a", "name": "p"},
                         "spec": {"serviceAccountName": "default", "nodeName": "n1"}});
        objects.put("", "pods", pod);
        let now: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let (issuer, accounts) = issuer(objects.clone(), Clock::from_fn(move || now));
        let own = vec![ISSUER.to_owned()];
        let issue = |spec: Value| issuer.issue("a", "default", json!({"spec": spec}));
        let token = |answer: &Value| answer["status"]["token"].as_str().unwrap().to_owned();

        let answer = issue(json!({})).unwrap();
        assert_eq!(answer["status"]["expirationTimestamp"], "2030-01-01T01:00:00Z");
        let (user, _) = accounts.authenticate(&token(&answer), &own, &mut Notes::default()).unwrap().unwrap();
        assert_eq!(user.name, "system:serviceaccount:a:default");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:a"]);

        let foreign = issue(json!({"audiences": ["vault"]})).unwrap();
        assert!(accounts.authenticate(&token(&foreign), &own, &mut Notes::default()).is_err());
        assert!(
            accounts.authenticate(&token(&foreign), &["vault".to_owned()], &mut Notes::default()).is_ok()
        );

        let bound = json!({"expirationSeconds": 3607,
                           "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-p"}});
        let bound = token(&issue(bound).unwrap());
        let (user, _) = accounts.authenticate(&bound, &own, &mut Notes::default()).unwrap().unwrap();
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["uid-n1"]);
        objects.put("", "pods", json!({"metadata": {"namespace": "a", "name": "p", "uid": "another"}}));
        let gone = accounts.authenticate(&bound, &own, &mut Notes::default()).unwrap_err();
        assert_eq!(gone, "service account token has been invalidated", "bound to the pod that is gone");

        for (spec, code) in [
            (json!({"expirationSeconds": 10}), 422),
            (json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "q"}}), 404),
            (json!({"boundObjectRef": {"apiVersion": "v1", "kind": "ConfigMap", "name": "q"}}), 400),
            (json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "x"}}), 409),
        ] {
            assert_eq!(issue(spec.clone()).unwrap_err().code, code, "{spec}");
        }
        let mut forged = token(&answer);
        forged.pop();
        assert_eq!(accounts.authenticate(&forged, &own, &mut Notes::default()), Ok(None));
        assert_eq!(accounts.authenticate("a.e30.b", &own, &mut Notes::default()), Ok(None));
    }
}
