//! bootstrap-signer-controller and token-cleaner-controller: `cluster-info`, signed with every bootstrap token that may
//! sign it, and an end for tokens whose time is up.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{Delta, Selection, WorkQueue, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams, Preconditions};
use ring::hmac;

use crate::Context;
use crate::support::errors::{ApiError as _, IgnoreNotFound as _};

const TOKENS: &str = "kube-system";
const INFO: (&str, &str) = ("kube-public", "cluster-info");
const SIGNATURE: &str = "jws-kubeconfig-";

fn field<'a>(secret: &'a Secret, name: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(name)?.0).ok()
}

fn token_secrets() -> Selection {
    Selection::namespace(TOKENS).with_fields("type=bootstrap.kubernetes.io/token")
}

/// When a token ends; `None` where it never does. One that cannot be read has ended.
fn ends(secret: &Secret, now: Timestamp) -> Option<Timestamp> {
    let text = field(secret, "expiration").filter(|t| !t.is_empty())?;
    Some(text.parse().unwrap_or(now))
}

/// The token's id and secret, when it may sign.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let (id, key) = (field(secret, "token-id")?, field(secret, "token-secret")?);
    let named = secret.metadata.name.as_deref() == Some(&format!("bootstrap-token-{id}"));
    let live = ends(secret, now).is_none_or(|end| end > now);
    let signs = field(secret, "usage-bootstrap-signing") == Some("true");
    (named && live && signs && !key.is_empty()).then(|| (id.to_owned(), key.to_owned()))
}

/// A signature of `content` apart from it (RFC 7515, appendix F).
fn detached(content: &str, id: &str, key: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), signed.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag))
}

/// The data `cluster-info` should have; `None` where it has it, or nothing to sign.
fn plan(data: &BTreeMap<String, String>, tokens: &[(String, String)]) -> Option<BTreeMap<String, String>> {
    let content = data.get("kubeconfig")?;
    let mut wanted: BTreeMap<String, String> =
        data.iter().filter(|(k, _)| !k.starts_with(SIGNATURE)).map(|(k, v)| (k.clone(), v.clone())).collect();
    for (id, key) in tokens {
        wanted.insert(format!("{SIGNATURE}{id}"), detached(content, id, key));
    }
    (wanted != *data).then_some(wanted)
}

pub(crate) async fn run_signer(ctx: Context) -> anyhow::Result<()> {
    let queue = WorkQueue::<()>::new();
    let selection = Selection::namespace(INFO.0).with_fields(format!("metadata.name={}", INFO.1));
    let info = ctx.client.informer_selected::<ConfigMap>(selection);
    let secrets = ctx.client.informer_selected::<Secret>(token_secrets());
    let q = queue.clone();
    info.subscribe(move |_| q.add(()));
    let q = queue.clone();
    secrets.subscribe(move |_| q.add(()));
    info.synced().await;
    secrets.synced().await;
    run_workers(queue, 1, ctx.shutdown.clone(), move |()| {
        let (ctx, present) = (ctx.clone(), info.get_typed(INFO.0, INFO.1));
        let secrets = secrets.list_typed(None);
        async move {
            let Some(mut info) = present else { return Ok(None) };
            let now = ctx.clock.now();
            let tokens: Vec<(String, String)> =
                secrets.iter().filter_map(|s| signing_token(s, now)).collect();
            if let Some(data) = plan(&info.data.clone().unwrap_or_default(), &tokens) {
                info.data = Some(data);
                match ctx
                    .client
                    .namespaced::<ConfigMap>(INFO.0)
                    .replace(INFO.1, &PostParams::default(), &info)
                    .await
                {
                    Err(e) if e.is_conflict() || e.is_not_found() => {}
                    result => drop(result?),
                }
            }
            // A token that ends takes its signature along.
            let next = secrets.iter().filter_map(|s| ends(s, now)).filter(|end| *end > now).min();
            Ok::<_, kube::Error>(next.and_then(|end| Duration::try_from(end.duration_since(now)).ok()))
        }
    })
    .await;
    Ok(())
}

pub(crate) async fn run_cleaner(ctx: Context) -> anyhow::Result<()> {
    let queue = WorkQueue::<String>::new();
    let secrets = ctx.client.informer_selected::<Secret>(token_secrets());
    let q = queue.clone();
    secrets.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            q.add(delta.key());
        }
    });
    secrets.synced().await;
    run_workers(queue, 1, ctx.shutdown.clone(), move |key| {
        let (ctx, secret) = (ctx.clone(), secrets.get_key_typed(&key));
        async move {
            let now = ctx.clock.now();
            let Some((secret, end)) = secret.and_then(|s| ends(&s, now).map(|end| (s, end))) else {
                return Ok(None);
            };
            let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
            if !left.is_zero() {
                return Ok(Some(left));
            }
            let delete = DeleteParams {
                preconditions: Some(Preconditions { uid: secret.metadata.uid, resource_version: None }),
                ..DeleteParams::default()
            };
            let name = secret.metadata.name.unwrap_or_default();
            ctx.client.namespaced::<Secret>(TOKENS).delete(&name, &delete).await.ignore_not_found()?;
            Ok::<_, kube::Error>(None)
        }
    })
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(fields: &[(&str, &str)]) -> Secret {
        let data = fields.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec()))).collect();
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.name = Some("bootstrap-token-abcdef".into());
        secret
    }

    #[test]
    fn who_signs() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let usual = [("token-id", "abcdef"), ("token-secret", "s"), ("usage-bootstrap-signing", "true")];
        let with =
            |more: &[(&str, &str)]| signing_token(&secret(&[&usual[..], more].concat()), now).is_some();
        assert!(with(&[]));
        assert!(with(&[("expiration", "2026-01-01T00:00:01Z")]));
        assert!(!with(&[("expiration", "2025-12-31T00:00:00Z")]));
        assert!(!with(&[("expiration", "soon")]));
        assert!(!with(&[("usage-bootstrap-signing", "false")]));
        assert!(!with(&[("token-id", "other0")]));
    }

    #[test]
    fn signatures_come_and_go() {
        let data = BTreeMap::from([("kubeconfig".to_owned(), "content".to_owned())]);
        let tokens = [("abcdef".to_owned(), "key".to_owned())];
        let signed = plan(&data, &tokens).unwrap();
        let jws = &signed["jws-kubeconfig-abcdef"];
        // {"alg":"HS256","kid":"abcdef"}
        assert!(jws.starts_with("eyJhbGciOiJIUzI1NiIsImtpZCI6ImFiY2RlZiJ9.."), "{jws}");
        assert_eq!(plan(&signed, &tokens), None);
        assert_eq!(plan(&signed, &[]).unwrap(), data);
        assert_eq!(plan(&BTreeMap::new(), &tokens), None);
    }
}
