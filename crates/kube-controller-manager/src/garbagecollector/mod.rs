//! garbage-collector-controller: deletes what its owners leave behind, in the order they ask for.
//!
//! There is no graph beside the informers: their owner index answers who depends on an object, their objects answer
//! whether an owner exists, and what they do not know is asked live before anything is deleted.

mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use client::{Delta, EventRecorder, RawInformer, Resource, Selection, WorkQueue, run_workers};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::json;

use crate::Context;
use crate::support::discovery::{Discovered, discover};
use crate::support::dynamic;
use crate::support::errors::ApiError;
use plan::{Action, Observed, OwnerState, plan};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";
/// Owners known to be gone; bounds how often the same absence is asked about.
const ABSENT_REMEMBERED: usize = 500;
/// Discovery lags behind a changed CRD, so it is asked again after this.
const REDISCOVER_AFTER: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(4)];

/// An object to look at.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Item {
    resource: Resource,
    namespace: String,
    name: String,
    uid: String,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.resource, self.namespace, self.name)
    }
}

struct Watched {
    found: Discovered,
    informer: RawInformer,
}

struct Collector {
    ctx: Context,
    /// By group and resource.
    watched: RwLock<HashMap<(String, String), Arc<Watched>>>,
    queue: WorkQueue<Item>,
    absent: Mutex<HashSet<String>>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let collector = Arc::new(Collector {
        watched: RwLock::default(),
        queue: WorkQueue::new(),
        absent: Mutex::default(),
        recorder: ctx.client.recorder("garbage-collector-controller", ""),
        ctx: ctx.clone(),
    });
    // One key: discovery is one piece of work.
    let rediscover = WorkQueue::<()>::new();
    for (group, resource) in
        [("apiextensions.k8s.io", "customresourcedefinitions"), ("apiregistration.k8s.io", "apiservices")]
    {
        let informer = ctx.client.raw_informer(Resource::new(group, "v1", resource), Selection::all());
        let queue = rediscover.clone();
        informer.synced().await;
        informer.subscribe(move |_| queue.add_after((), REDISCOVER_AFTER[0]));
    }
    let c = collector.clone();
    rediscover.add(());
    let discovering = {
        let (queue, shutdown) = (rediscover.clone(), ctx.shutdown.clone());
        let mut last = Vec::new();
        async move {
            while let Some(Some(())) = shutdown.run_until_cancelled(queue.next()).await {
                let found = c.refresh().await;
                queue.done(&());
                match found {
                    Ok(found) => {
                        queue.forget(&());
                        if found != last {
                            queue.add_after((), REDISCOVER_AFTER[1]);
                            last = found;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(error = format!("{error:#}"), "discovery failed");
                        queue.add_after((), REDISCOVER_AFTER[1]);
                    }
                }
            }
        }
    };
    let workers = {
        let (queue, shutdown) = (collector.queue.clone(), ctx.shutdown.clone());
        let collector = collector.clone();
        run_workers(queue, ctx.config.concurrent_gc_syncs, shutdown, move |item| {
            let collector = collector.clone();
            async move { collector.sync(item).await }
        })
    };
    tokio::join!(discovering, workers);
    Ok(())
}

impl Collector {
    /// Watches what is served now, and no longer what is not. Returns the resources.
    async fn refresh(self: &Arc<Self>) -> anyhow::Result<Vec<(String, String)>> {
        let discovery = discover(&self.ctx.client.kube()).await?;
        let wanted: HashMap<(String, String), Discovered> = discovery
            .resources
            .into_iter()
            .filter(|r| ["delete", "list", "watch"].iter().all(|v| r.can(v)))
            .filter(|r| r.resource.plural != "events")
            .map(|r| ((r.resource.group.clone(), r.resource.plural.clone()), r))
            .collect();
        let mut keys: Vec<_> = wanted.keys().cloned().collect();
        keys.sort();
        if discovery.failures.is_empty() {
            let gone: Vec<_> = {
                let mut watched = self.watched.write();
                let gone: Vec<_> = watched.keys().filter(|k| !wanted.contains_key(*k)).cloned().collect();
                gone.into_iter().filter_map(|k| watched.remove(&k)).collect()
            };
            for watched in gone {
                self.ctx.client.informers().stop(&watched.found.resource, &Selection::all());
            }
        }
        for (key, found) in wanted {
            if self.watched.read().contains_key(&key) {
                continue;
            }
            let informer = self.ctx.client.raw_informer(found.resource.clone(), Selection::all());
            let watched = Arc::new(Watched { found, informer: informer.clone() });
            self.watched.write().insert(key, watched.clone());
            let collector = Arc::downgrade(self);
            informer.subscribe(move |delta| {
                if let Some(collector) = collector.upgrade() {
                    collector.changed(&watched.found.resource, delta);
                }
            });
        }
        Ok(keys)
    }

    fn changed(&self, resource: &Resource, delta: &Delta) {
        let object = delta.object();
        match delta {
            Delta::Added(_) => {
                if !object.attributes.owners.is_empty() || object.attributes.deleting {
                    self.queue.add(item(resource, object));
                }
            }
            Delta::Updated { old, new } => {
                if new.attributes.deleting || old.attributes.owners != new.attributes.owners {
                    self.queue.add(item(resource, new));
                }
                self.wake_owners(old);
            }
            Delta::Deleted(_) => {
                self.note_absent(object.uid());
                for (dependent, resource) in self.dependents(object.uid()) {
                    self.queue.add(item(&resource, &dependent));
                }
                self.wake_owners(object);
            }
        }
    }

    /// Owners that wait for their dependents may go on once one is gone or no longer blocks them.
    fn wake_owners(&self, object: &Encoded) {
        for owner in &object.attributes.owners {
            if let Some(watched) = self.by_kind(group_of(&owner.api_version), &owner.kind) {
                let namespace = if watched.found.namespaced { object.namespace() } else { "" };
                let owner = watched.informer.get(namespace, &owner.name);
                if let Some(owner) = owner.filter(|o| o.attributes.deleting) {
                    self.queue.add(item(&watched.found.resource, &owner));
                }
            }
        }
    }

    fn note_absent(&self, uid: &str) {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT_REMEMBERED {
            absent.clear();
        }
        absent.insert(uid.to_owned());
    }

    fn by_kind(&self, group: &str, kind: &str) -> Option<Arc<Watched>> {
        let watched = self.watched.read();
        watched.values().find(|w| w.found.kind == kind && w.found.resource.group == group).cloned()
    }

    fn dependents(&self, uid: &str) -> Vec<(Arc<Encoded>, Resource)> {
        let watched: Vec<Arc<Watched>> = self.watched.read().values().cloned().collect();
        let of = |w: &Arc<Watched>| {
            let resource = w.found.resource.clone();
            w.informer.by_owner(uid).into_iter().map(move |o| (o, resource.clone()))
        };
        watched.iter().flat_map(of).collect()
    }

    async fn sync(&self, item: Item) -> anyhow::Result<Option<Duration>> {
        let key = (item.resource.group.clone(), item.resource.plural.clone());
        let Some(watched) = self.watched.read().get(&key).cloned() else { return Ok(None) };
        let Some(object) = watched.informer.get(&item.namespace, &item.name) else { return Ok(None) };
        if object.uid() != item.uid {
            return Ok(None);
        }
        if !self.all_synced() {
            return Ok(Some(Duration::from_millis(200)));
        }
        let finalizers = if object.attributes.deleting { finalizers(&object) } else { Vec::new() };
        if finalizers.iter().any(|f| f == ORPHAN) {
            self.orphan(&item).await?;
            return Ok(None);
        }
        let waits = finalizers.iter().any(|f| f == FOREGROUND);
        if object.attributes.deleting && !waits {
            return Ok(None);
        }
        if waits {
            return self.wait_for_dependents(&item).await;
        }
        if object.attributes.owners.iter().all(|o| self.is_cached(&object, o)) {
            return Ok(None);
        }
        self.collect(&item).await
    }

    fn all_synced(&self) -> bool {
        // A resource that cannot be listed must not stop the others for good: its objects are asked for live.
        let watched = self.watched.read();
        let waiting = watched.values().filter(|w| !w.informer.has_synced()).count();
        !watched.is_empty() && (waiting == 0 || waiting * 20 < watched.len())
    }

    /// Whether an owner is there and stays, as far as the informers know.
    fn is_cached(&self, object: &Encoded, owner: &apimachinery::object::Owner) -> bool {
        let Some(watched) = self.by_kind(group_of(&owner.api_version), &owner.kind) else { return false };
        let namespace = if watched.found.namespaced { object.namespace() } else { "" };
        watched
            .informer
            .get(namespace, &owner.name)
            .is_some_and(|o| o.uid() == &*owner.uid && !o.attributes.deleting)
    }

    async fn collect(&self, item: &Item) -> anyhow::Result<Option<Duration>> {
        let kube = self.ctx.client.kube();
        let Some(live) = dynamic::get(&kube, &item.resource, &item.namespace, &item.name).await? else {
            return Ok(None);
        };
        if live.uid.as_deref() != Some(&item.uid) || live.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let owners = live.owner_references.clone().unwrap_or_default();
        let mut states = Vec::with_capacity(owners.len());
        for owner in &owners {
            states.push(self.owner_state(item, owner).await?);
        }
        let dependents = self.dependents(&item.uid);
        let observed = Observed {
            finalizers: live.finalizers.as_deref().unwrap_or_default(),
            owners: &owners,
            states: &states,
            has_dependents: !dependents.is_empty(),
            // Two that wait for each other would wait for ever.
            circle: dependents
                .iter()
                .any(|(d, _)| d.attributes.deleting && finalizers(d).iter().any(|f| f == FOREGROUND)),
        };
        match plan(&observed) {
            Action::Keep => {}
            Action::DropOwners(rest) => {
                let patch = json!({"metadata": {"uid": item.uid, "resourceVersion": live.resource_version,
                    "ownerReferences": rest}});
                dynamic::merge(&kube, &item.resource, &item.namespace, &item.name, patch).await?;
            }
            Action::UnblockAndDelete => {
                let owners: Vec<OwnerReference> = owners
                    .iter()
                    .map(|o| OwnerReference { block_owner_deletion: Some(false), ..o.clone() })
                    .collect();
                let patch = json!({"metadata": {"uid": item.uid, "resourceVersion": live.resource_version,
                    "ownerReferences": owners}});
                dynamic::merge(&kube, &item.resource, &item.namespace, &item.name, patch).await?;
                let preconditions = json!({"uid": item.uid});
                dynamic::delete(
                    &kube,
                    &item.resource,
                    &item.namespace,
                    &item.name,
                    preconditions,
                    "Foreground",
                )
                .await?;
            }
            Action::Delete(propagation) => {
                tracing::debug!(?item, propagation, "deleting");
                let preconditions = json!({"uid": item.uid, "resourceVersion": live.resource_version});
                dynamic::delete(
                    &kube,
                    &item.resource,
                    &item.namespace,
                    &item.name,
                    preconditions,
                    propagation,
                )
                .await?;
            }
        }
        Ok(None)
    }

    async fn owner_state(&self, item: &Item, owner: &OwnerReference) -> anyhow::Result<OwnerState> {
        let group = group_of(&owner.api_version);
        let watched = self.by_kind(group, &owner.kind);
        // Kinds that are served and not watched cannot be told from kinds that are not served; either way nothing
        // is deleted on a guess.
        let Some(watched) = watched else {
            tracing::debug!(?item, kind = owner.kind, "owner of an unknown kind");
            return Ok(OwnerState::Present);
        };
        if watched.found.namespaced && item.namespace.is_empty() {
            self.recorder.warning(
                &ObjectReference {
                    kind: self.kind_of(item),
                    api_version: Some(item.resource.api_version()),
                    name: Some(item.name.clone()),
                    uid: Some(item.uid.clone()),
                    ..ObjectReference::default()
                },
                "OwnerRefInvalidNamespace",
                format!(
                    "ownerRef [{}/{}, namespace: , name: {}, uid: {}] does not exist in namespace \"\"",
                    owner.api_version, owner.kind, owner.name, owner.uid
                ),
            );
            return Ok(OwnerState::Present);
        }
        if self.absent.lock().contains(&owner.uid) {
            return Ok(OwnerState::Absent);
        }
        let namespace = if watched.found.namespaced { item.namespace.as_str() } else { "" };
        let live =
            dynamic::get(&self.ctx.client.kube(), &watched.found.resource, namespace, &owner.name).await?;
        let Some(live) = live.filter(|l| l.uid.as_deref() == Some(&owner.uid)) else {
            self.note_absent(&owner.uid);
            return Ok(OwnerState::Absent);
        };
        let waits =
            live.deletion_timestamp.is_some() && live.finalizers.iter().flatten().any(|f| f == FOREGROUND);
        Ok(if waits { OwnerState::WaitsForDependents } else { OwnerState::Present })
    }

    fn kind_of(&self, item: &Item) -> Option<String> {
        let key = (item.resource.group.clone(), item.resource.plural.clone());
        self.watched.read().get(&key).map(|w| w.found.kind.clone())
    }

    /// An object deleted in the foreground goes once nothing that blocks it is left.
    async fn wait_for_dependents(&self, item: &Item) -> anyhow::Result<Option<Duration>> {
        let dependents = self.dependents(&item.uid);
        if !dependents.iter().any(|(d, _)| blocks(d, &item.uid)) {
            self.remove_finalizer(item, FOREGROUND).await?;
        }
        for (dependent, resource) in dependents {
            if !dependent.attributes.deleting {
                self.queue.add(self::item(&resource, &dependent));
            }
        }
        // The last one's deletion brings us back.
        Ok(None)
    }

    async fn orphan(&self, item: &Item) -> anyhow::Result<()> {
        let kube = self.ctx.client.kube();
        let released = futures::stream::iter(self.dependents(&item.uid))
            .map(|(dependent, resource)| {
                let kube = kube.clone();
                async move { release(&kube, &resource, &dependent, &item.uid).await }
            })
            .buffer_unordered(8)
            .collect::<Vec<_>>()
            .await;
        for result in released {
            result?;
        }
        self.remove_finalizer(item, ORPHAN).await
    }

    async fn remove_finalizer(&self, item: &Item, finalizer: &str) -> anyhow::Result<()> {
        let kube = self.ctx.client.kube();
        for _ in 0..5 {
            let Some(live) = dynamic::get(&kube, &item.resource, &item.namespace, &item.name).await? else {
                return Ok(());
            };
            let mut finalizers = live.finalizers.clone().unwrap_or_default();
            if live.uid.as_deref() != Some(&item.uid) || !finalizers.iter().any(|f| f == finalizer) {
                return Ok(());
            }
            finalizers.retain(|f| f != finalizer);
            let patch =
                json!({"metadata": {"resourceVersion": live.resource_version, "finalizers": finalizers}});
            match dynamic::merge(&kube, &item.resource, &item.namespace, &item.name, patch).await {
                Err(error) if error.is_conflict() => continue,
                result => return Ok(result?),
            }
        }
        anyhow::bail!("{item:?} changes too fast to remove its finalizer {finalizer}")
    }
}

/// Takes the reference to `owner` out of a dependent.
async fn release(
    kube: &kube::Client,
    resource: &Resource,
    dependent: &Encoded,
    owner: &str,
) -> anyhow::Result<()> {
    for _ in 0..5 {
        let live = dynamic::get(kube, resource, dependent.namespace(), dependent.name()).await?;
        let Some(live) = live.filter(|l| l.uid.as_deref() == Some(dependent.uid())) else { return Ok(()) };
        let mut owners = live.owner_references.clone().unwrap_or_default();
        owners.retain(|o| o.uid != owner);
        let patch = json!({"metadata": {"uid": live.uid, "resourceVersion": live.resource_version,
            "ownerReferences": owners}});
        match dynamic::merge(kube, resource, dependent.namespace(), dependent.name(), patch).await {
            Err(error) if error.is_conflict() => continue,
            result => return Ok(result?),
        }
    }
    anyhow::bail!("{} changes too fast to be orphaned", dependent.key())
}

fn item(resource: &Resource, object: &Encoded) -> Item {
    Item {
        resource: resource.clone(),
        namespace: object.namespace().to_owned(),
        name: object.name().to_owned(),
        uid: object.uid().to_owned(),
    }
}

fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[derive(Deserialize)]
struct Partial {
    #[serde(default)]
    metadata: ObjectMeta,
}

fn metadata(object: &Encoded) -> ObjectMeta {
    object.decode::<Partial>().map(|p| p.metadata).unwrap_or_default()
}

fn finalizers(object: &Encoded) -> Vec<String> {
    metadata(object).finalizers.unwrap_or_default()
}

fn blocks(dependent: &Encoded, owner: &str) -> bool {
    let owners = metadata(dependent).owner_references.unwrap_or_default();
    owners.iter().any(|o| o.uid == owner && o.block_owner_deletion == Some(true))
}
