//! Objects of any resource, by their metadata.

use client::Resource;
use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::support::errors::IgnoreNotFound;

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

#[derive(Deserialize)]
struct Partial {
    #[serde(default)]
    metadata: ObjectMeta,
}

fn path(resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{}/{name}", resource.path(Some(namespace).filter(|n| !n.is_empty())))
}

/// Reads an object's metadata live.
pub(crate) async fn get(
    kube: &kube::Client,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> kube::Result<Option<ObjectMeta>> {
    let request = Request::get(path(resource, namespace, name))
        .header(http::header::ACCEPT, METADATA)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    Ok(kube.request::<Partial>(request).await.ignore_not_found()?.map(|p| p.metadata))
}

/// Deletes an object if it is still the one meant; one that is gone is fine.
pub(crate) async fn delete(
    kube: &kube::Client,
    resource: &Resource,
    namespace: &str,
    name: &str,
    preconditions: Value,
    propagation: &str,
) -> kube::Result<()> {
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation,
        "preconditions": preconditions});
    let request = Request::delete(path(resource, namespace, name))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(options.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    kube.request::<IgnoredAny>(request).await.ignore_not_found()?;
    Ok(())
}

/// Merges `patch` into an object; one that is gone is fine.
pub(crate) async fn merge(
    kube: &kube::Client,
    resource: &Resource,
    namespace: &str,
    name: &str,
    patch: Value,
) -> kube::Result<()> {
    let request = Request::patch(path(resource, namespace, name))
        .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
        .header(http::header::ACCEPT, METADATA)
        .body(patch.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    kube.request::<IgnoredAny>(request).await.ignore_not_found()?;
    Ok(())
}
