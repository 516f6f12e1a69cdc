//! root-ca-certificate-publisher-controller: the configmap kube-root-ca.crt in every namespace.

use std::collections::BTreeMap;
use std::time::Duration;

use client::{Delta, Selection, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;

use crate::Context;
use crate::support::errors::ApiError;

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let Some(root_ca) = ctx.config.root_ca.clone() else {
        tracing::info!("no --root-ca-file: {NAME} is not published");
        return Ok(());
    };
    let queue = WorkQueue::<String>::new();
    let namespaces = ctx.client.informer::<Namespace>();
    let published = ctx
        .client
        .informer_selected::<ConfigMap>(Selection::all().with_fields(format!("metadata.name={NAME}")));
    let q = queue.clone();
    namespaces.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) && !delta.object().attributes.deleting {
            q.add(delta.object().name().to_owned());
        }
    });
    let q = queue.clone();
    published.subscribe(move |delta| {
        if !matches!(delta, Delta::Added(_)) {
            q.add(delta.object().namespace().to_owned());
        }
    });
    namespaces.synced().await;
    published.synced().await;
    run_workers(queue, 2, ctx.shutdown.clone(), move |namespace| {
        let (ctx, namespaces, root_ca) = (ctx.clone(), namespaces.clone(), root_ca.clone());
        let present = published.get_typed(&namespace, NAME);
        async move {
            if namespaces.get("", &namespace).is_none_or(|n| n.attributes.deleting) {
                return Ok(None);
            }
            publish(&ctx, &namespace, present, &root_ca).await
        }
    })
    .await;
    Ok(())
}

/// The configmap as it should be, unless it is.
fn plan(namespace: &str, present: Option<&ConfigMap>, root_ca: &str) -> Option<ConfigMap> {
    let data = BTreeMap::from([(KEY.to_owned(), root_ca.to_owned())]);
    let described = |c: &ConfigMap| {
        c.metadata.annotations.as_ref().and_then(|a| a.get(DESCRIPTION.0)).is_some_and(|d| !d.is_empty())
    };
    if present.is_some_and(|c| c.data.as_ref() == Some(&data) && described(c)) {
        return None;
    }
    let mut wanted = present.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    });
    wanted.data = Some(data);
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    annotations.insert(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned());
    Some(wanted)
}

async fn publish(
    ctx: &Context,
    namespace: &str,
    present: Option<ConfigMap>,
    root_ca: &str,
) -> kube::Result<Option<Duration>> {
    let Some(wanted) = plan(namespace, present.as_ref(), root_ca) else { return Ok(None) };
    let api = ctx.client.namespaced::<ConfigMap>(namespace);
    let result = match present {
        Some(_) => api.replace(NAME, &PostParams::default(), &wanted).await,
        None => api.create(&PostParams::default(), &wanted).await,
    };
    match result {
        Err(e) if e.is_namespace_terminating() || e.is_already_exists() || e.is_not_found() => Ok(None),
        result => result.map(|_| None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_what_was_changed() {
        let wanted = plan("n", None, "PEM").unwrap();
        assert_eq!(wanted.data.as_ref().unwrap()[KEY], "PEM");
        assert_eq!(plan("n", Some(&wanted), "PEM"), None);
        assert!(plan("n", Some(&wanted), "NEW").is_some());
        let mut changed = wanted.clone();
        changed.data.as_mut().unwrap().insert("x".into(), "y".into());
        assert_eq!(plan("n", Some(&changed), "PEM").unwrap().data, wanted.data);
    }
}
