//! serviceaccount-controller: the service account `default` in every namespace.

use client::{Delta, Selection, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;

use crate::Context;
use crate::support::errors::ApiError;

const NAME: &str = "default";

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let queue = WorkQueue::<String>::new();
    let namespaces = ctx.client.informer::<Namespace>();
    let accounts = ctx
        .client
        .informer_selected::<ServiceAccount>(Selection::all().with_fields(format!("metadata.name={NAME}")));
    let q = queue.clone();
    namespaces.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            q.add(delta.object().name().to_owned());
        }
    });
    let q = queue.clone();
    accounts.subscribe(move |delta| {
        if matches!(delta, Delta::Deleted(_)) {
            q.add(delta.object().namespace().to_owned());
        }
    });
    namespaces.synced().await;
    accounts.synced().await;
    run_workers(queue, 1, ctx.shutdown.clone(), move |namespace| {
        let ctx = ctx.clone();
        let wanted = namespaces.get("", &namespace).is_some_and(|n| !n.attributes.deleting)
            && accounts.get(&namespace, NAME).is_none();
        async move {
            if !wanted {
                return Ok(None);
            }
            let account = ServiceAccount {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    namespace: Some(namespace.clone()),
                    ..ObjectMeta::default()
                },
                ..ServiceAccount::default()
            };
            let api = ctx.client.namespaced::<ServiceAccount>(&namespace);
            match api.create(&PostParams::default(), &account).await {
                Err(e) if e.is_already_exists() || e.is_namespace_terminating() || e.is_not_found() => {
                    Ok(None)
                }
                result => result.map(|_| None),
            }
        }
    })
    .await;
    Ok(())
}
