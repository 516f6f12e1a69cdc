//! Making and deleting pods for a controller, with the events that tell of it.

use std::future::Future;

use client::EventRecorder;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};

use crate::Context;
use crate::support::errors::{ApiError, message};
use crate::support::ownership::Owner;

/// A pod of `template`, named after and controlled by `owner`.
pub(crate) fn pod_from_template(template: &PodTemplateSpec, owner: &Owner) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut prefix = format!("{}-", owner.name);
    // Names too long to take a suffix are shortened as the API server does.
    prefix.truncate(58);
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix),
            namespace: Some(owner.namespace.clone()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.reference()]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

pub(crate) async fn create_pod(
    ctx: &Context,
    recorder: &EventRecorder,
    regarding: &ObjectReference,
    pod: &Pod,
) -> kube::Result<Pod> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    match ctx.client.namespaced::<Pod>(namespace).create(&PostParams::default(), pod).await {
        Ok(created) => {
            let name = created.metadata.name.as_deref().unwrap_or_default();
            recorder.normal(regarding, "SuccessfulCreate", format!("Created pod: {name}"));
            Ok(created)
        }
        Err(error) => {
            if !error.is_namespace_terminating() {
                recorder.warning(regarding, "FailedCreate", format!("Error creating: {}", message(&error)));
            }
            Err(error)
        }
    }
}

/// Deletes a pod; one that is gone already is an error of code 404.
pub(crate) async fn delete_pod(
    ctx: &Context,
    recorder: &EventRecorder,
    regarding: &ObjectReference,
    namespace: &str,
    name: &str,
) -> kube::Result<()> {
    match ctx.client.namespaced::<Pod>(namespace).delete(name, &DeleteParams::default()).await {
        Ok(_) => {
            recorder.normal(regarding, "SuccessfulDelete", format!("Deleted pod: {name}"));
            Ok(())
        }
        Err(error) => {
            if !error.is_not_found() {
                recorder.warning(regarding, "FailedDelete", format!("Error deleting: {}", message(&error)));
            }
            Err(error)
        }
    }
}

/// Runs `count` calls in batches that double for as long as all succeed, so that what fails for all fails once.
/// Returns how many succeeded, and the first error.
pub(crate) async fn slow_start<F, Fut, E>(count: usize, call: F) -> (usize, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let (mut done, mut size) = (0, 1.min(count));
    while size > 0 {
        let mut batch: FuturesUnordered<Fut> = (done..done + size).map(&call).collect();
        let mut succeeded = 0;
        let mut failure = None;
        while let Some(result) = batch.next().await {
            match result {
                Ok(()) => succeeded += 1,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        done += succeeded;
        if failure.is_some() {
            return (done, failure);
        }
        size = (size * 2).min(count - done);
    }
    (done, None)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn batches_double_until_something_fails() {
        for (count, fails_at, want_calls, want_done) in
            [(10, 99, 10, 10), (10, 0, 1, 0), (10, 2, 3, 2), (0, 0, 0, 0), (100, 5, 7, 6)]
        {
            let calls = RefCell::new(0);
            let (done, error) = slow_start(count, |i| {
                *calls.borrow_mut() += 1;
                async move { if i == fails_at { Err(()) } else { Ok(()) } }
            })
            .await;
            assert_eq!((*calls.borrow(), done), (want_calls, want_done), "{count} {fails_at}");
            assert_eq!(error.is_some(), fails_at < count);
        }
    }
}
