//! serviceaccount-token-controller: fills secrets of type `kubernetes.io/service-account-token`, and deletes them with their account.
//!
//! Such tokens do not expire. Pods have had bound ones instead since Kubernetes 1.24; a secret like this is made by whoever wants it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{Delta, Informer, Selection, WorkQueue, run_workers};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams, Preconditions};
use sha2::Digest as _;

use crate::Context;
use crate::support::errors::ApiError;

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const TOKEN: &str = "token";
const ROOT_CA: &str = "ca.crt";
const NAMESPACE: &str = "namespace";
const ISSUER: &str = "kubernetes/serviceaccount";

/// What tokens are signed with.
struct Signer {
    header: Header,
    key: EncodingKey,
}

impl Signer {
    /// Takes a P-256 key in PKCS#8, or an RSA key in PKCS#1 or PKCS#8.
    fn from_pem(pem: &str) -> anyhow::Result<Signer> {
        let (algorithm, key) = match EncodingKey::from_ec_pem(pem.as_bytes()) {
            Ok(key) => (Algorithm::ES256, key),
            Err(_) => (Algorithm::RS256, EncodingKey::from_rsa_pem(pem.as_bytes())?),
        };
        let mut header = Header::new(algorithm);
        header.typ = None;
        // As the API server names its keys. Without a name it tries all it has.
        header.kid = rcgen::KeyPair::from_pem(pem).ok().map(|key| {
            let info = rcgen::PublicKeyData::subject_public_key_info(&key);
            URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(info))
        });
        Ok(Signer { header, key })
    }

    fn token(&self, namespace: &str, secret: &str, account: &str, uid: &str) -> anyhow::Result<String> {
        let claims = serde_json::json!({
            "iss": ISSUER,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": uid,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
        });
        Ok(jsonwebtoken::encode(&self.header, &claims, &self.key)?)
    }
}

/// What is to be done about a secret.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Fill(Box<Secret>),
    /// Its account is not there.
    Delete,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let Some(path) = ctx.config.service_account_private_key_file.clone() else {
        tracing::info!("no --service-account-private-key-file: secrets get no tokens");
        return Ok(());
    };
    let pem = tokio::fs::read_to_string(&path).await;
    let pem = pem.with_context(|| format!("--service-account-private-key-file {}", path.display()))?;
    let signer = Signer::from_pem(&pem).with_context(|| format!("the key in {}", path.display()))?;
    let signer = Arc::new(signer);
    let queue = WorkQueue::<String>::new();
    let of_type = Selection::all().with_fields(format!("type={TYPE}"));
    let secrets: Informer<Secret> = ctx.client.informer_selected(of_type);
    let accounts: Informer<ServiceAccount> = ctx.client.informer();
    let q = queue.clone();
    secrets.subscribe(move |delta| q.add(delta.object().key()));
    let (q, all) = (queue.clone(), secrets.clone());
    accounts.subscribe(move |delta| {
        if matches!(delta, Delta::Updated { .. }) {
            return;
        }
        // Accounts come and go seldom, and few of their namespace's objects are such secrets.
        for secret in all.list(Some(delta.object().namespace())) {
            q.add(secret.key());
        }
    });
    secrets.synced().await;
    accounts.synced().await;
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let (ctx, signer, accounts) = (ctx.clone(), signer.clone(), accounts.clone());
        let secret = secrets.get_key_typed(&key);
        async move {
            match secret {
                Some(secret) => sync(&ctx, &signer, &accounts, secret).await,
                None => forget(&ctx, &accounts, &key).await,
            }
        }
    })
    .await;
    Ok(())
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str).unwrap_or_default()
}

/// `account` is the one that the secret names, if it is there.
fn plan(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    root_ca: Option<&str>,
    signer: &Signer,
) -> anyhow::Result<Plan> {
    let uid_wanted = annotation(secret, ACCOUNT_UID);
    let uid_of = |account: &ServiceAccount| account.metadata.uid.clone().unwrap_or_default();
    let Some(account) = account.filter(|a| uid_wanted.is_empty() || uid_of(a) == uid_wanted) else {
        return Ok(Plan::Delete);
    };
    let (namespace, name) = (
        secret.metadata.namespace.as_deref().unwrap_or_default(),
        secret.metadata.name.as_deref().unwrap_or_default(),
    );
    let mut wanted = secret.clone();
    let data = wanted.data.get_or_insert_default();
    let held = |data: &std::collections::BTreeMap<String, ByteString>, key: &str| {
        data.get(key).is_some_and(|v| !v.0.is_empty())
    };
    if let Some(root_ca) = root_ca
        && data.get(ROOT_CA).is_none_or(|v| v.0 != root_ca.as_bytes())
    {
        data.insert(ROOT_CA.to_owned(), ByteString(root_ca.as_bytes().to_vec()));
    }
    if !held(data, NAMESPACE) {
        data.insert(NAMESPACE.to_owned(), ByteString(namespace.as_bytes().to_vec()));
    }
    if !held(data, TOKEN) {
        let account_name = account.metadata.name.as_deref().unwrap_or_default();
        let token = signer.token(namespace, name, account_name, &uid_of(account))?;
        data.insert(TOKEN.to_owned(), ByteString(token.into_bytes()));
    }
    if wanted.data == secret.data {
        return Ok(Plan::Nothing);
    }
    wanted.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.to_owned(), uid_of(account));
    Ok(Plan::Fill(Box::new(wanted)))
}

async fn sync(
    ctx: &Context,
    signer: &Signer,
    accounts: &Informer<ServiceAccount>,
    secret: Secret,
) -> anyhow::Result<Option<Duration>> {
    let (Some(namespace), Some(name)) = (&secret.metadata.namespace, &secret.metadata.name) else {
        return Ok(None);
    };
    let account = annotation(&secret, ACCOUNT_NAME).to_owned();
    if account.is_empty() || secret.type_.as_deref() != Some(TYPE) {
        return Ok(None);
    }
    let root_ca = ctx.config.root_ca.as_deref();
    let api = ctx.client.namespaced::<Secret>(namespace);
    let mut planned = plan(&secret, accounts.get_typed(namespace, &account).as_ref(), root_ca, signer)?;
    if planned == Plan::Delete {
        // What the informer has not seen yet must not cost a token.
        let present = ctx.client.namespaced::<ServiceAccount>(namespace).get_opt(&account).await?;
        planned = plan(&secret, present.as_ref(), root_ca, signer)?;
    }
    let done = match planned {
        Plan::Nothing => return Ok(None),
        Plan::Fill(wanted) => api.replace(name, &PostParams::default(), &wanted).await.map(drop),
        Plan::Delete => {
            let preconditions = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            api.delete(name, &params).await.map(drop)
        }
    };
    match done {
        Err(e) if e.is_not_found() => Ok(None),
        result => Ok(result.map(|()| None)?),
    }
}

/// Takes a deleted secret out of the lists of the accounts that name it.
async fn forget(
    ctx: &Context,
    accounts: &Informer<ServiceAccount>,
    key: &str,
) -> anyhow::Result<Option<Duration>> {
    let Some((namespace, name)) = key.split_once('/') else { return Ok(None) };
    let api = ctx.client.namespaced::<ServiceAccount>(namespace);
    for encoded in accounts.list(Some(namespace)) {
        // Nearly no account names secrets: those that cannot are not decoded.
        if memchr::memmem::find(&encoded.body, name.as_bytes()).is_none() {
            continue;
        }
        let Some(mut account) = accounts.decode(&encoded) else { continue };
        let named = account.secrets.get_or_insert_default();
        let before = named.len();
        named.retain(|reference| reference.name.as_deref() != Some(name));
        if named.len() == before {
            continue;
        }
        match api.replace(encoded.name(), &PostParams::default(), &account).await {
            Err(e) if e.is_not_found() => {}
            result => drop(result?),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn secret(uid: &str) -> Secret {
        let mut annotations = BTreeMap::from([(ACCOUNT_NAME.to_owned(), "robot".to_owned())]);
        if !uid.is_empty() {
            annotations.insert(ACCOUNT_UID.to_owned(), uid.to_owned());
        }
        Secret {
            metadata: ObjectMeta {
                name: Some("s".into()),
                namespace: Some("n".into()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.into()),
            ..Secret::default()
        }
    }

    fn account(uid: &str) -> ServiceAccount {
        ServiceAccount {
            metadata: ObjectMeta {
                name: Some("robot".into()),
                namespace: Some("n".into()),
                uid: Some(uid.into()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        }
    }

    #[test]
    fn fills_what_is_missing_and_deletes_what_has_no_account() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let signer = Signer::from_pem(&pem).unwrap();
        let of = |secret: &Secret, account: Option<&ServiceAccount>, ca: &str| {
            plan(secret, account, Some(ca), &signer).unwrap()
        };
        let robot = account("u1");
        let Plan::Fill(filled) = of(&secret(""), Some(&robot), "CA") else { panic!("not filled") };
        assert_eq!(annotation(&filled, ACCOUNT_UID), "u1");
        let data = filled.data.clone().unwrap();
        assert_eq!((&data[ROOT_CA].0[..], &data[NAMESPACE].0[..]), (&b"CA"[..], &b"n"[..]));
        let token = String::from_utf8(data[TOKEN].0.clone()).unwrap();
        let parts: Vec<Vec<u8>> =
            token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).unwrap()).collect();
        let header: serde_json::Value = serde_json::from_slice(&parts[0]).unwrap();
        assert!(
            header["alg"] == "ES256" && header["kid"].as_str().is_some_and(|id| id.len() == 43),
            "{header}"
        );
        let claims: serde_json::Value = serde_json::from_slice(&parts[1]).unwrap();
        assert_eq!(claims["sub"], "system:serviceaccount:n:robot");
        assert_eq!(claims["kubernetes.io/serviceaccount/secret.name"], "s");

        assert_eq!(of(&filled, Some(&robot), "CA"), Plan::Nothing);
        let Plan::Fill(renewed) = of(&filled, Some(&robot), "NEW") else { panic!("not filled") };
        assert_eq!(renewed.data.as_ref().unwrap()[TOKEN], data[TOKEN]);
        assert_eq!(of(&filled, Some(&account("u2")), "CA"), Plan::Delete);
        assert_eq!(of(&secret(""), None, "CA"), Plan::Delete);
    }
}
