//! legacy-serviceaccount-token-cleaner-controller: tokens that the control plane once put into secrets for service accounts, and that
//! nobody has used for long, are first marked invalid and later deleted (KEP-2799).
//!
//! Only secrets that their account lists are looked at: the others were made by somebody. The API server notes in a secret on which
//! day its token was used last, and in a config map since when it does so.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use client::{Informer, Selection};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use crate::Context;
use crate::support::errors::ApiError;

const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// What is to be done about a secret.
#[derive(Debug, PartialEq)]
enum Plan {
    Keep,
    /// Nobody uses its token; from this day on nobody can.
    Invalidate(Date),
    Delete,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let of_type = Selection::all().with_fields(format!("type={TYPE}"));
    let secrets: Informer<Secret> = ctx.client.informer_selected(of_type);
    let accounts: Informer<ServiceAccount> = ctx.client.informer();
    let pods: Informer<Pod> = ctx.client.informer();
    secrets.synced().await;
    accounts.synced().await;
    pods.synced().await;
    let work = async {
        loop {
            if let Err(error) = sweep(&ctx, &secrets, &accounts, &pods).await {
                tracing::error!(error = format!("{error:#}"), "looking for unused service account tokens");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::select! {
        () = ctx.shutdown.cancelled() => {}
        () = work => {}
    }
    Ok(())
}

async fn sweep(
    ctx: &Context,
    secrets: &Informer<Secret>,
    accounts: &Informer<ServiceAccount>,
    pods: &Informer<Pod>,
) -> anyhow::Result<()> {
    if secrets.is_empty() {
        return Ok(());
    }
    let now = ctx.clock.now();
    let period = ctx.config.legacy_token_clean_up_period;
    let tracking = ctx.client.namespaced::<ConfigMap>("kube-system").get(TRACKING).await?;
    let since = tracking.data.as_ref().and_then(|d| d.get("since")).map(String::as_str).unwrap_or_default();
    let since: Date = since
        .parse()
        .map_err(|e| anyhow::anyhow!("the day since which tokens are tracked: {since:?}: {e}"))?;
    if !is_tracked_long_enough(since, now, period) {
        return Ok(());
    }
    let mut mounted: HashMap<String, HashSet<String>> = HashMap::new();
    for secret in secrets.list_typed(None) {
        let (Some(namespace), Some(name)) = (&secret.metadata.namespace, &secret.metadata.name) else {
            continue;
        };
        let account = accounts.get_typed(namespace, annotation(&secret, ACCOUNT_NAME));
        if plan(&secret, account.as_ref(), now, period) == Plan::Keep {
            continue;
        }
        let used = mounted.entry(namespace.clone()).or_insert_with(|| {
            let mut used = HashSet::new();
            for pod in pods.list(Some(namespace)) {
                if let Ok(pod) = pod.to_value() {
                    secret_names(&pod["spec"], &mut used);
                }
            }
            used
        });
        if used.contains(name) {
            continue;
        }
        let api = ctx.client.namespaced::<Secret>(namespace);
        let done = match plan(&secret, account.as_ref(), now, period) {
            Plan::Keep => continue,
            Plan::Invalidate(day) => {
                tracing::info!(namespace, name, %day, "marks an unused service account token as invalid");
                let metadata =
                    json!({"uid": secret.metadata.uid, "labels": {INVALID_SINCE: day.to_string()}});
                let patch = Patch::Merge(json!({"metadata": metadata}));
                api.patch(name, &PatchParams::default(), &patch).await.map(drop)
            }
            Plan::Delete => {
                tracing::info!(namespace, name, "deletes an unused service account token");
                let resource_version = secret.metadata.resource_version.clone();
                let preconditions = Some(Preconditions { uid: None, resource_version });
                let params = DeleteParams { preconditions, ..DeleteParams::default() };
                api.delete(name, &params).await.map(drop)
            }
        };
        match done {
            Err(error) if !error.is_not_found() && !error.is_conflict() => {
                tracing::error!(namespace, name, %error, "cleaning up a service account token");
            }
            _ => {}
        }
    }
    Ok(())
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|a| a.get(name)).map(String::as_str).unwrap_or_default()
}

/// Whether uses have been noted for a whole period: since the day after the one on which that began.
fn is_tracked_long_enough(since: Date, now: Timestamp, period: Duration) -> bool {
    let began = since.tomorrow().and_then(|day| day.to_zoned(TimeZone::UTC));
    began.is_ok_and(|began| began.timestamp() + period <= now)
}

/// What to do about a secret, unless a pod uses it. `account` is the one it names.
fn plan(secret: &Secret, account: Option<&ServiceAccount>, now: Timestamp, period: Duration) -> Plan {
    let metadata = &secret.metadata;
    let limit = now - period;
    let day_of = |at: Timestamp| at.to_zoned(TimeZone::UTC).date();
    let is_new = metadata.creation_timestamp.as_ref().is_none_or(|created| created.0 >= limit);
    if secret.type_.as_deref() != Some(TYPE) || is_new || metadata.deletion_timestamp.is_some() {
        return Plan::Keep;
    }
    let label = |name: &str| metadata.labels.as_ref().and_then(|l| l.get(name)).map(String::as_str);
    // A token without the label has not been used since uses are noted.
    if let Some(used) = label(LAST_USED) {
        match used.parse::<Date>() {
            Ok(day) if day < day_of(limit) => {}
            // Used since, or nobody knows when.
            _ => return Plan::Keep,
        }
    }
    let uid = annotation(secret, ACCOUNT_UID);
    let lists_it = |account: &&ServiceAccount| {
        let same = uid.is_empty() || account.metadata.uid.as_deref() == Some(uid);
        same && account.secrets.iter().flatten().any(|s| s.name == metadata.name)
    };
    if annotation(secret, ACCOUNT_NAME).is_empty() || account.filter(lists_it).is_none() {
        return Plan::Keep;
    }
    match label(INVALID_SINCE).and_then(|day| day.parse::<Date>().ok()) {
        None => Plan::Invalidate(day_of(now)),
        Some(day) if day < day_of(limit) => Plan::Delete,
        Some(_) => Plan::Keep,
    }
}

/// The names of all secrets that a pod's spec mentions.
fn secret_names(spec: &Value, names: &mut HashSet<String>) {
    fn take(names: &mut HashSet<String>, name: &Value) {
        names.extend(name.as_str().map(str::to_owned));
    }
    match spec {
        Value::Object(members) => {
            for (name, value) in members {
                match name.as_str() {
                    "secretKeyRef" | "secretRef" | "nodePublishSecretRef" => take(names, &value["name"]),
                    "secret" => {
                        take(names, &value["secretName"]);
                        take(names, &value["name"]);
                    }
                    "azureFile" => take(names, &value["secretName"]),
                    "imagePullSecrets" => {
                        value.as_array().into_iter().flatten().for_each(|s| take(names, &s["name"]));
                    }
                    _ => secret_names(value, names),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| secret_names(item, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn what_becomes_of_unused_tokens() {
        let now = at("2030-06-01T12:00:00Z");
        let account: ServiceAccount = serde_json::from_value(json!({
            "metadata": {"name": "robot", "namespace": "n", "uid": "u"}, "secrets": [{"name": "s"}]}))
        .unwrap();
        let old = "2028-01-01T00:00:00Z";
        let made = Plan::Invalidate("2030-06-01".parse().unwrap());
        for (created, labels, uid, name, want) in [
            (old, json!({}), "u", "s", made),
            ("2030-01-01T00:00:00Z", json!({}), "u", "s", Plan::Keep),
            (old, json!({LAST_USED: "2029-06-01"}), "u", "s", Plan::Keep),
            (old, json!({LAST_USED: "then"}), "u", "s", Plan::Keep),
            (old, json!({LAST_USED: "2029-05-31"}), "", "s", Plan::Invalidate("2030-06-01".parse().unwrap())),
            (old, json!({}), "another", "s", Plan::Keep),
            // Somebody's own.
            (old, json!({}), "u", "t", Plan::Keep),
            (old, json!({INVALID_SINCE: "2029-06-01"}), "u", "s", Plan::Keep),
            (old, json!({INVALID_SINCE: "2029-05-31"}), "u", "s", Plan::Delete),
            (old, json!({INVALID_SINCE: "once"}), "u", "s", Plan::Invalidate("2030-06-01".parse().unwrap())),
        ] {
            let annotations = json!({ACCOUNT_NAME: "robot", ACCOUNT_UID: uid});
            let secret: Secret = serde_json::from_value(json!({"type": TYPE, "metadata": {"name": name,
                "namespace": "n", "creationTimestamp": created, "labels": labels, "annotations": annotations}}))
            .unwrap();
            assert_eq!(plan(&secret, Some(&account), now, YEAR), want, "{labels} {uid} {name}");
            assert_eq!(plan(&secret, None, now, YEAR), Plan::Keep);
        }
    }

    #[test]
    fn uses_must_have_been_noted_for_a_period() {
        let since = "2029-06-01".parse().unwrap();
        assert!(!is_tracked_long_enough(since, at("2030-06-01T23:59:59Z"), YEAR));
        assert!(is_tracked_long_enough(since, at("2030-06-02T00:00:00Z"), YEAR));
    }

    #[test]
    fn secrets_that_pods_use() {
        let spec = json!({
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "v", "secret": {"secretName": "volume"}},
                {"name": "p", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "all"}}]}],
            "containers": [{"name": "c", "env": [{"name": "e", "valueFrom": {"secretKeyRef": {"name": "one", "key": "k"}}}]}],
        });
        let mut names = HashSet::new();
        secret_names(&spec, &mut names);
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["all", "csi", "one", "projected", "pull", "volume"]);
    }
}
