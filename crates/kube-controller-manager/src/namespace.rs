//! namespace-controller: empties namespaces that are being deleted, pods first, then lets them go.

use std::collections::BTreeMap;
use std::time::Duration;

use client::{Delta, Resource, WorkQueue, run_workers};
use futures::{StreamExt, TryStreamExt};
use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};
use serde::Deserialize;

use crate::Context;
use crate::support::discovery::{Discovered, discover};
use crate::support::errors::{ApiError, IgnoreNotFound, message};

const FINALIZER: &str = "kubernetes";
/// How long finalizers of the content are thought to take.
const FINALIZER_ESTIMATE_SECONDS: i64 = 15;
/// Resources emptied at a time.
const CONCURRENCY: usize = 8;
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let queue = WorkQueue::<String>::new();
    let namespaces = ctx.client.informer::<Namespace>();
    let q = queue.clone();
    namespaces.subscribe(move |delta| {
        if delta.object().attributes.deleting {
            q.add(delta.object().name().to_owned());
        }
    });
    // The last pod leaving is what most namespaces wait for.
    let (q, known) = (queue.clone(), namespaces.clone());
    ctx.client.informer::<Pod>().subscribe(move |delta| {
        if let Delta::Deleted(pod) = delta
            && known.get("", pod.namespace()).is_some_and(|n| n.attributes.deleting)
        {
            q.add(pod.namespace().to_owned());
        }
    });
    namespaces.synced().await;
    run_workers(queue, 5, ctx.shutdown.clone(), move |name| {
        let (ctx, known) = (ctx.clone(), namespaces.get("", &name).is_some());
        async move { if known { sync(&ctx, &name).await } else { Ok(None) } }
    })
    .await;
    Ok(())
}

/// What is left in a namespace.
#[derive(Clone, Debug, Default, PartialEq)]
struct Remains {
    /// `resource.group` to objects left.
    objects: BTreeMap<String, usize>,
    /// Finalizer to objects that carry it.
    finalizers: BTreeMap<String, usize>,
    /// Why resources could not be emptied.
    failures: Vec<String>,
    discovery_failures: Vec<String>,
    estimate_seconds: i64,
}

impl Remains {
    fn merge(&mut self, other: Remains) {
        for (k, n) in other.objects {
            *self.objects.entry(k).or_default() += n;
        }
        for (k, n) in other.finalizers {
            *self.finalizers.entry(k).or_default() += n;
        }
        self.failures.extend(other.failures);
        self.estimate_seconds = self.estimate_seconds.max(other.estimate_seconds);
    }

    fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.failures.is_empty() && self.discovery_failures.is_empty()
    }
}

/// The conditions that tell of `remains`: (type, status, reason, message).
fn conditions(remains: &Remains) -> [(&'static str, bool, &'static str, String); 5] {
    let listed = |of: &BTreeMap<String, usize>, verb: &str| {
        of.iter().map(|(k, n)| format!("{k} {verb} {n} resource instances")).collect::<Vec<_>>().join(", ")
    };
    let mut failures = remains.failures.clone();
    failures.sort();
    let row = |kind, bad: bool, reason: (&'static str, &'static str), text: String, ok: &str| {
        if bad { (kind, true, reason.0, text) } else { (kind, false, reason.1, ok.to_owned()) }
    };
    [
        row(
            "NamespaceDeletionDiscoveryFailure",
            !remains.discovery_failures.is_empty(),
            ("DiscoveryFailed", "ResourcesDiscovered"),
            format!(
                "Discovery failed for some groups, {} failing: unable to retrieve the complete list of server APIs: {}",
                remains.discovery_failures.len(),
                remains.discovery_failures.join(", ")
            ),
            "All resources successfully discovered",
        ),
        row(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("GroupVersionParsingFailed", "ParsedGroupVersions"),
            String::new(),
            "All legacy kube types successfully parsed",
        ),
        row(
            "NamespaceDeletionContentFailure",
            !failures.is_empty(),
            ("ContentDeletionFailed", "ContentDeleted"),
            format!(
                "Failed to delete all resource types, {} remaining: {}",
                failures.len(),
                failures.join(", ")
            ),
            "All content successfully deleted, may be waiting on finalization",
        ),
        row(
            "NamespaceContentRemaining",
            !remains.objects.is_empty(),
            ("SomeResourcesRemain", "ContentRemoved"),
            format!("Some resources are remaining: {}", listed(&remains.objects, "has")),
            "All content successfully removed",
        ),
        row(
            "NamespaceFinalizersRemaining",
            !remains.finalizers.is_empty(),
            ("SomeFinalizersRemain", "ContentHasNoFinalizers"),
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                listed(&remains.finalizers, "in")
            ),
            "All content-preserving finalizers finished",
        ),
    ]
}

/// Brings the namespace's conditions up to date; returns whether anything changed.
fn update_conditions(namespace: &mut Namespace, remains: &Remains, now: Timestamp) -> bool {
    let status = namespace.status.get_or_insert_default();
    let list = status.conditions.get_or_insert_default();
    let mut changed = false;
    for (kind, bad, reason, message) in conditions(remains) {
        let wanted = if bad { "True" } else { "False" };
        let old = list.iter().position(|c| c.type_ == kind);
        let at = match old {
            Some(i) if list[i].status == wanted => {
                if list[i].reason.as_deref() == Some(reason) && list[i].message.as_deref() == Some(&message) {
                    continue;
                }
                list[i].last_transition_time.clone()
            }
            _ => Some(Time(now)),
        };
        let condition = NamespaceCondition {
            type_: kind.to_owned(),
            status: wanted.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: at,
        };
        match old {
            Some(i) => list[i] = condition,
            None => list.push(condition),
        }
        changed = true;
    }
    changed
}

async fn sync(ctx: &Context, name: &str) -> anyhow::Result<Option<Duration>> {
    let api: Api<Namespace> = ctx.client.all();
    let Some(mut namespace) = api.get_opt(name).await? else { return Ok(None) };
    let Some(deleted_at) = namespace.metadata.deletion_timestamp.clone() else { return Ok(None) };
    if namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating") {
        namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
        let Some(updated) =
            api.replace_status(name, &PostParams::default(), &namespace).await.ignore_not_found()?
        else {
            return Ok(None);
        };
        namespace = updated;
    }
    let ours = |n: &Namespace| {
        n.spec.as_ref().and_then(|s| s.finalizers.as_ref()).is_some_and(|f| f.iter().any(|f| f == FINALIZER))
    };
    if !ours(&namespace) {
        return Ok(None);
    }
    let remains = empty(ctx, name, deleted_at.0).await?;
    if update_conditions(&mut namespace, &remains, ctx.clock.now()) {
        match api.replace_status(name, &PostParams::default(), &namespace).await.ignore_not_found()? {
            Some(updated) => namespace = updated,
            None => return Ok(None),
        }
    }
    if remains.estimate_seconds > 0 {
        return Ok(Some(Duration::from_secs(remains.estimate_seconds as u64 / 2 + 1)));
    }
    anyhow::ensure!(
        remains.is_empty(),
        "namespace {name} is not empty: {:?} {:?}",
        remains.objects,
        remains.failures
    );
    finalize(ctx, namespace).await?;
    Ok(None)
}

async fn finalize(ctx: &Context, mut namespace: Namespace) -> anyhow::Result<()> {
    let name = namespace.metadata.name.clone().unwrap_or_default();
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        finalizers.retain(|f| f != FINALIZER);
    }
    let request = Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(&namespace)?)?;
    ctx.client.kube().request::<serde_json::Value>(request).await.ignore_not_found()?;
    Ok(())
}

/// Deletes all content and says what is left. Pods go first: what they need must outlive them.
async fn empty(ctx: &Context, namespace: &str, deleted_at: Timestamp) -> anyhow::Result<Remains> {
    let discovery = discover(&ctx.client.kube()).await?;
    let mut remains = Remains { discovery_failures: discovery.failures, ..Remains::default() };
    let (pods, others): (Vec<_>, Vec<_>) = discovery
        .resources
        .into_iter()
        .filter(|r| r.namespaced && r.can("delete") && r.can("list"))
        .partition(|r| r.resource.group.is_empty() && r.resource.plural == "pods");
    for resources in [pods, others] {
        let part = futures::stream::iter(resources)
            .map(|resource| async move { empty_resource(ctx, namespace, &resource, deleted_at).await })
            .buffer_unordered(CONCURRENCY)
            .fold(Remains::default(), |mut all, one| async move {
                all.merge(one);
                all
            })
            .await;
        let stop = !part.objects.is_empty() || !part.failures.is_empty();
        remains.merge(part);
        if stop {
            break;
        }
    }
    Ok(remains)
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Option<Vec<Item>>,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemMeta {
    name: String,
    #[serde(default)]
    finalizers: Option<Vec<String>>,
    #[serde(default)]
    deletion_grace_period_seconds: Option<i64>,
}

async fn list(ctx: &Context, resource: &Resource, namespace: &str) -> kube::Result<Vec<ItemMeta>> {
    let request = Request::get(resource.path(Some(namespace)))
        .header(http::header::ACCEPT, METADATA_LIST)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    let list: List = ctx.client.kube().request(request).await?;
    Ok(list.items.unwrap_or_default().into_iter().map(|i| i.metadata).collect())
}

async fn delete(ctx: &Context, path: String) -> kube::Result<()> {
    let options =
        serde_json::json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    let request = Request::delete(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(options.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    ctx.client.kube().request::<serde::de::IgnoredAny>(request).await.map(|_| ())
}

async fn empty_resource(
    ctx: &Context,
    namespace: &str,
    found: &Discovered,
    deleted_at: Timestamp,
) -> Remains {
    match try_empty_resource(ctx, namespace, found, deleted_at).await {
        Ok(remains) => remains,
        // The resource itself is gone, or cannot be used this way.
        Err(error) if error.is_not_found() || error.code() == 405 => Remains::default(),
        Err(error) => {
            let resource = &found.resource;
            let failure = format!(
                "unexpected items still remain in namespace: {namespace} for gvr: {}/{}, {}: {}",
                resource.group,
                resource.version,
                resource.plural,
                message(&error)
            );
            Remains { failures: vec![failure], ..Remains::default() }
        }
    }
}

async fn try_empty_resource(
    ctx: &Context,
    namespace: &str,
    found: &Discovered,
    deleted_at: Timestamp,
) -> kube::Result<Remains> {
    let resource = &found.resource;
    let present = list(ctx, resource, namespace).await?;
    if present.is_empty() {
        return Ok(Remains::default());
    }
    let path = resource.path(Some(namespace));
    if found.can("deletecollection") {
        delete(ctx, path).await?;
    } else {
        futures::stream::iter(present)
            .map(|item| {
                let path = format!("{path}/{}", item.name);
                async move { delete(ctx, path).await.ignore_not_found() }
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect::<Vec<_>>()
            .await?;
    }
    let left = list(ctx, resource, namespace).await?;
    Ok(remains(resource, &left, deleted_at, ctx.clock.now()))
}

fn remains(resource: &Resource, left: &[ItemMeta], deleted_at: Timestamp, now: Timestamp) -> Remains {
    let mut remains = Remains::default();
    if left.is_empty() {
        return remains;
    }
    remains.objects.insert(format!("{}.{}", resource.plural, resource.group), left.len());
    let mut finalizers = false;
    for finalizer in left.iter().flat_map(|i| i.finalizers.iter().flatten()) {
        *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
        finalizers = true;
    }
    let grace = left.iter().filter_map(|i| i.deletion_grace_period_seconds).max().unwrap_or(0);
    if grace > 0 && now.duration_since(deleted_at).as_secs() <= grace {
        remains.estimate_seconds = grace;
    } else if finalizers {
        remains.estimate_seconds = FINALIZER_ESTIMATE_SECONDS;
    } else {
        // Deletions of what nobody holds back take a moment.
        remains.estimate_seconds = 1;
    }
    remains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_remains() {
        let mut namespace = Namespace::default();
        let resource = Resource::new("apps", "v1", "deployments");
        let item = |finalizers: &[&str]| ItemMeta {
            name: "x".into(),
            finalizers: Some(finalizers.iter().map(|s| s.to_string()).collect()),
            deletion_grace_period_seconds: None,
        };
        let now = Timestamp::UNIX_EPOCH;
        let left = remains(&resource, &[item(&["a/b"]), item(&["a/b"])], now, now);
        assert_eq!(left.estimate_seconds, 15);
        assert!(update_conditions(&mut namespace, &left, now));
        assert!(!update_conditions(&mut namespace, &left, now));
        let text = |n: &Namespace, i: usize| {
            let c = &n.status.as_ref().unwrap().conditions.as_ref().unwrap()[i];
            (c.status.clone(), c.message.clone().unwrap())
        };
        assert_eq!(
            text(&namespace, 3),
            ("True".into(), "Some resources are remaining: deployments.apps has 2 resource instances".into())
        );
        assert_eq!(
            text(&namespace, 4),
            (
                "True".into(),
                "Some content in the namespace has finalizers remaining: a/b in 2 resource instances".into()
            )
        );
        assert!(update_conditions(&mut namespace, &Remains::default(), now));
        assert_eq!(text(&namespace, 3), ("False".into(), "All content successfully removed".into()));
    }

    #[test]
    fn waits_for_graceful_deletion() {
        let resource = Resource::new("", "v1", "pods");
        let item = ItemMeta { name: "x".into(), finalizers: None, deletion_grace_period_seconds: Some(30) };
        let then = Timestamp::UNIX_EPOCH;
        assert_eq!(remains(&resource, std::slice::from_ref(&item), then, then).estimate_seconds, 30);
        assert_eq!(remains(&resource, &[item], then, then + Duration::from_secs(31)).estimate_seconds, 1);
    }
}
