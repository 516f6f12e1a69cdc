//! persistentvolume-binder-controller: brings claims and volumes together, and tells what became of either.
//! ephemeral-volume-controller: claims for the generic ephemeral volumes of pods.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound};
use crate::support::ownership::Owner;
use crate::support::selectors;

const BOUND: &str = "pv.kubernetes.io/bind-completed";
const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(String),
    Volume(String),
}

struct Controller {
    ctx: Context,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    queue: WorkQueue<Key>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        claims: ctx.client.informer(),
        volumes: ctx.client.informer(),
        classes: ctx.client.informer(),
        queue: WorkQueue::new(),
        recorder: ctx.client.recorder("persistentvolume-controller", ""),
        ctx: ctx.clone(),
    });
    let c = controller.clone();
    controller.volumes.subscribe(move |delta| {
        c.queue.add(Key::Volume(delta.object().name().to_owned()));
        // Any claim that waits may want it.
        for claim in c.claims.list(None) {
            c.queue.add(Key::Claim(claim.key()));
        }
    });
    controller.volumes.synced().await;
    controller.classes.synced().await;
    let c = controller.clone();
    controller.claims.subscribe(move |delta| {
        let claim = delta.object();
        c.queue.add(Key::Claim(claim.key()));
        if matches!(delta, Delta::Deleted(_))
            && let Some(volume) = c.claims.decode(claim).and_then(|c| c.spec?.volume_name)
        {
            c.queue.add(Key::Volume(volume));
        }
    });
    controller.claims.synced().await;
    let queue = controller.queue.clone();
    // One at a time: two claims must not be promised the same volume.
    run_workers(queue, 1, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move {
            match key {
                Key::Claim(key) => controller.sync_claim(&key).await,
                Key::Volume(name) => controller.sync_volume(&name).await,
            }
        }
    })
    .await;
    Ok(())
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn storage(
    amounts: Option<
        &std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
    >,
) -> Option<Quantity> {
    Quantity::parse(&amounts?.get("storage")?.0).ok()
}

fn refers(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (reference.uid.as_deref().unwrap_or_default().is_empty() || reference.uid == claim.metadata.uid)
}

/// The volume that suits a claim best: one reserved for it, or the smallest that is large enough.
fn find<'a>(claim: &PersistentVolumeClaim, volumes: &'a [PersistentVolume]) -> Option<&'a PersistentVolume> {
    let wanted = claim.spec.as_ref()?;
    let size = storage(wanted.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let selector = wanted.selector.as_ref().map(selectors::from_typed);
    let fits = |volume: &&PersistentVolume| {
        let Some(spec) = &volume.spec else { return false };
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let mode = |m: &Option<String>| m.clone().unwrap_or_else(|| "Filesystem".to_owned());
        let enough = match (size, storage(spec.capacity.as_ref())) {
            (Some(size), Some(capacity)) => capacity >= size,
            (None, _) => true,
            _ => false,
        };
        enough
            && volume.metadata.deletion_timestamp.is_none()
            && mode(&spec.volume_mode) == mode(&wanted.volume_mode)
            && wanted.access_modes.iter().flatten().all(|m| modes.contains(m))
    };
    let reserved = |v: &&PersistentVolume| {
        v.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some_and(|r| refers(r, claim))
    };
    if let Some(volume) = volumes.iter().filter(reserved).find(fits) {
        return Some(volume);
    }
    let class = |c: &Option<String>| c.clone().unwrap_or_default();
    let free = |v: &&PersistentVolume| {
        let Some(spec) = &v.spec else { return false };
        let phase = v.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        spec.claim_ref.is_none()
            && matches!(phase, "" | "Pending" | "Available")
            && class(&spec.storage_class_name) == class(&wanted.storage_class_name)
            && selector.as_ref().is_none_or(|s| selectors::matches(s, v.metadata.labels.as_ref()))
    };
    volumes.iter().filter(fits).filter(free).min_by(|a, b| {
        let capacity = |v: &PersistentVolume| storage(v.spec.as_ref().and_then(|s| s.capacity.as_ref()));
        let by_size = capacity(a).partial_cmp(&capacity(b)).unwrap_or(std::cmp::Ordering::Equal);
        by_size.then_with(|| a.metadata.name.cmp(&b.metadata.name))
    })
}

/// Merges `changes` into the live object and updates it: the controller's role allows updates, not patches. An object
/// that is gone, or another of the same name by now, is left alone.
async fn change<K>(api: &Api<K>, name: &str, changes: Value, status: bool) -> kube::Result<()>
where
    K: kube::Resource<DynamicType = ()>
        + serde::de::DeserializeOwned
        + serde::Serialize
        + Clone
        + std::fmt::Debug,
{
    let Some(live) = api.get_opt(name).await? else { return Ok(()) };
    let uid = changes["metadata"]["uid"].as_str();
    if uid.is_some_and(|uid| live.meta().uid.as_deref() != Some(uid)) {
        return Ok(());
    }
    let mut wanted = serde_json::to_value(&live).map_err(kube::Error::SerdeError)?;
    merge(&mut wanted, &changes);
    let wanted: K = serde_json::from_value(wanted).map_err(kube::Error::SerdeError)?;
    let result = match status {
        true => api.replace_status(name, &PostParams::default(), &wanted).await,
        false => api.replace(name, &PostParams::default(), &wanted).await,
    };
    result.ignore_not_found()?;
    Ok(())
}

fn merge(value: &mut Value, changes: &Value) {
    match (value, changes) {
        (Value::Object(map), Value::Object(changes)) => {
            for (key, change) in changes {
                match change {
                    Value::Null => {
                        map.remove(key);
                    }
                    _ => merge(map.entry(key.clone()).or_insert_with(|| json!({})), change),
                }
            }
        }
        (value, changes) => *value = changes.clone(),
    }
}

impl Controller {
    async fn sync_claim(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(claim) = self.claims.get_key_typed(key) else { return Ok(None) };
        let spec = claim.spec.clone().unwrap_or_default();
        let name = spec.volume_name.clone().unwrap_or_default();
        if annotation(&claim.metadata, BOUND).is_some() {
            let volume = self.volumes.get_typed("", &name);
            let ours = volume.as_ref().and_then(|v| v.spec.as_ref()?.claim_ref.as_ref());
            match (&volume, ours) {
                (Some(volume), Some(r)) if refers(r, &claim) => self.bind(&claim, volume).await?,
                (Some(volume), None) => self.bind(&claim, volume).await?,
                _ => {
                    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
                    if phase != Some("Lost") {
                        let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                        self.recorder.warning(&reference(&claim), "ClaimLost", text);
                        self.set_claim_status(&claim, json!({"phase": "Lost"})).await?;
                    }
                }
            }
            return Ok(None);
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let volume = if name.is_empty() {
            let volumes = self.volumes.list_typed(None);
            match find(&claim, &volumes) {
                Some(volume) if !self.waits_for_consumer(&claim, volume) => Some(volume.clone()),
                _ => {
                    self.provision(&claim).await?;
                    None
                }
            }
        } else {
            let volume = self.volumes.get_typed("", &name);
            let taken = volume.as_ref().and_then(|v| v.spec.as_ref()?.claim_ref.as_ref());
            if taken.is_some_and(|r| !refers(r, &claim)) {
                let text = format!("volume {name:?} already bound to a different claim.");
                self.recorder.warning(&reference(&claim), "FailedBinding", text);
                None
            } else {
                volume
            }
        };
        match volume {
            Some(volume) => self.bind(&claim, &volume).await?,
            None => {
                if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Pending") {
                    self.set_claim_status(&claim, json!({"phase": "Pending"})).await?;
                }
            }
        }
        Ok(None)
    }

    fn class(&self, claim: &PersistentVolumeClaim) -> Option<StorageClass> {
        let name = claim.spec.as_ref()?.storage_class_name.as_deref().filter(|n| !n.is_empty())?;
        self.classes.get_typed("", name)
    }

    /// Claims of such classes are bound once the scheduler has chosen a node.
    fn waits_for_consumer(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
        let reserved = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).is_some();
        let late =
            self.class(claim).and_then(|c| c.volume_binding_mode).as_deref() == Some("WaitForFirstConsumer");
        late && !reserved && annotation(&claim.metadata, SELECTED_NODE).is_none()
    }

    /// Says who should make a volume for the claim, or that nobody will.
    async fn provision(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<()> {
        let regarding = reference(claim);
        let named = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
        let Some(class) = self.class(claim) else {
            match named.is_empty() {
                true => self.recorder.normal(
                    &regarding,
                    "FailedBinding",
                    "no persistent volumes available for this claim and no storage class is set",
                ),
                false => {
                    let text = format!("storageclass.storage.k8s.io {named:?} not found");
                    self.recorder.warning(&regarding, "ProvisioningFailed", text);
                }
            }
            return Ok(());
        };
        let late = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
        if late && annotation(&claim.metadata, SELECTED_NODE).is_none() {
            let text = "waiting for first consumer to be created before binding";
            self.recorder.normal(&regarding, "WaitForFirstConsumer", text);
            return Ok(());
        }
        if class.provisioner == NO_PROVISIONER {
            let text = "no volume plugin matched name: kubernetes.io/no-provisioner";
            self.recorder.warning(&regarding, "ProvisioningFailed", text);
            return Ok(());
        }
        if annotation(&claim.metadata, PROVISIONER) != Some(&class.provisioner) {
            let patch = json!({"metadata": {"annotations": {PROVISIONER: class.provisioner, PROVISIONER_BETA: class.provisioner}}});
            self.patch_claim(claim, patch).await?;
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
            class.provisioner
        );
        self.recorder.normal(&regarding, "ExternalProvisioning", text);
        Ok(())
    }

    async fn patch_claim(&self, claim: &PersistentVolumeClaim, mut patch: Value) -> kube::Result<()> {
        let meta = &claim.metadata;
        patch["metadata"]["uid"] = json!(meta.uid);
        let api = self
            .ctx
            .client
            .namespaced::<PersistentVolumeClaim>(meta.namespace.as_deref().unwrap_or_default());
        let name = meta.name.as_deref().unwrap_or_default();
        change(&api, name, patch, false).await
    }

    async fn set_claim_status(&self, claim: &PersistentVolumeClaim, status: Value) -> kube::Result<()> {
        let meta = &claim.metadata;
        let patch = json!({"metadata": {"uid": meta.uid}, "status": status});
        let api = self
            .ctx
            .client
            .namespaced::<PersistentVolumeClaim>(meta.namespace.as_deref().unwrap_or_default());
        let name = meta.name.as_deref().unwrap_or_default();
        change(&api, name, patch, true).await
    }

    async fn set_volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: &str,
    ) -> kube::Result<()> {
        let status = volume.status.clone().unwrap_or_default();
        if status.phase.as_deref() == Some(phase) && status.message.as_deref().unwrap_or_default() == message
        {
            return Ok(());
        }
        let mut wanted = json!({"phase": phase, "message": Some(message).filter(|m| !m.is_empty())});
        if status.phase.as_deref() != Some(phase) {
            wanted["lastPhaseTransitionTime"] = json!(self.ctx.clock.now_rfc3339());
        }
        let patch = json!({"metadata": {"uid": volume.metadata.uid}, "status": wanted});
        let api = self.ctx.client.all::<PersistentVolume>();
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        change(&api, name, patch, true).await
    }

    /// Writes both ends of a binding, the volume's first: only one claim can win that.
    async fn bind(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> anyhow::Result<()> {
        let spec = volume.spec.clone().unwrap_or_default();
        let meta = &claim.metadata;
        let name = volume.metadata.name.clone().unwrap_or_default();
        let bound_to = spec.claim_ref.as_ref().and_then(|r| r.uid.clone());
        if bound_to != meta.uid || bound_to.is_none() {
            let mut patch = json!({"metadata": {"resourceVersion": volume.metadata.resource_version},
                "spec": {"claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": meta.namespace,
                    "name": meta.name, "uid": meta.uid, "resourceVersion": meta.resource_version}}});
            if spec.claim_ref.is_none() {
                patch["metadata"]["annotations"] = json!({BY_CONTROLLER: "yes"});
            }
            let api = self.ctx.client.all::<PersistentVolume>();
            change(&api, &name, patch, false).await?;
        }
        self.set_volume_phase(volume, "Bound", "").await?;
        let unnamed =
            claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default().is_empty();
        if annotation(meta, BOUND).is_none() || unnamed {
            let mut annotations = json!({BOUND: "yes"});
            if unnamed {
                annotations[BY_CONTROLLER] = json!("yes");
            }
            let patch = json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": name}});
            self.patch_claim(claim, patch).await?;
        }
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
            let status =
                json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
            self.set_claim_status(claim, status).await?;
        }
        Ok(())
    }

    async fn sync_volume(&self, name: &str) -> anyhow::Result<Option<Duration>> {
        let Some(volume) = self.volumes.get_typed("", name) else { return Ok(None) };
        let spec = volume.spec.clone().unwrap_or_default();
        let claimed = spec.claim_ref.as_ref().filter(|r| r.uid.as_deref().is_some_and(|u| !u.is_empty()));
        let Some(claim_ref) = claimed else {
            // Free, or reserved for a claim still to come.
            self.set_volume_phase(&volume, "Available", "").await?;
            return Ok(None);
        };
        let namespace = claim_ref.namespace.as_deref().unwrap_or_default();
        let claim_name = claim_ref.name.as_deref().unwrap_or_default();
        let mut claim = self.claims.get_typed(namespace, claim_name);
        if claim.is_none() {
            claim =
                self.ctx.client.namespaced::<PersistentVolumeClaim>(namespace).get_opt(claim_name).await?;
        }
        if claim.is_some_and(|c| c.metadata.uid == claim_ref.uid) {
            self.queue.add(Key::Claim(format!("{namespace}/{claim_name}")));
            return Ok(None);
        }
        let phase = volume.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let provisioned = annotation(&volume.metadata, "pv.kubernetes.io/provisioned-by").is_some();
        if spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") && !provisioned {
            if phase != "Failed" {
                let text =
                    "error getting deleter volume plugin for volume: no deletable volume plugin matched";
                self.recorder.warning(&reference(&volume), "VolumeFailedDelete", text);
                self.set_volume_phase(&volume, "Failed", text).await?;
            }
        } else {
            self.set_volume_phase(&volume, "Released", "").await?;
        }
        Ok(None)
    }
}

pub(crate) async fn run_ephemeral(ctx: Context) -> anyhow::Result<()> {
    let all: Informer<Pod> = ctx.client.informer();
    let claims: Informer<PersistentVolumeClaim> = ctx.client.informer();
    let recorder = ctx.client.recorder("ephemeral-volume-controller", "");
    let queue = WorkQueue::<String>::new();
    claims.synced().await;
    let q = queue.clone();
    all.subscribe(move |delta| {
        // Cheap enough to tell without decoding: few pods have such volumes.
        let pod = delta.object();
        if !matches!(delta, Delta::Deleted(_))
            && !pod.attributes.deleting
            && memchr::memmem::find(&pod.body, b"\"volumeClaimTemplate\"").is_some()
        {
            q.add(pod.key());
        }
    });
    run_workers(queue, 2, ctx.shutdown.clone(), move |key| {
        let (ctx, pod, claims, recorder) =
            (ctx.clone(), all.get_key_typed(&key), claims.clone(), recorder.clone());
        async move {
            let Some(pod) = pod else { return Ok(None) };
            let owner = Owner::of(&pod);
            for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
                let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.clone())
                else {
                    continue;
                };
                let name = format!("{}-{}", owner.name, volume.name);
                if let Some(present) = claims.get(&owner.namespace, &name) {
                    let ours = present.attributes.owners.iter().any(|o| *o.uid == *owner.uid);
                    anyhow::ensure!(ours, "PVC {name} was not created for pod {}", owner.name);
                    continue;
                }
                let meta = template.metadata.unwrap_or_default();
                let claim = PersistentVolumeClaim {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(owner.namespace.clone()),
                        labels: meta.labels,
                        annotations: meta.annotations,
                        owner_references: Some(vec![owner.reference()]),
                        ..ObjectMeta::default()
                    },
                    spec: Some(template.spec),
                    status: None,
                };
                let api = ctx.client.namespaced::<PersistentVolumeClaim>(&owner.namespace);
                match api.create(&PostParams::default(), &claim).await {
                    Err(error) if error.is_already_exists() || error.is_namespace_terminating() => {}
                    Err(error) => {
                        let text = format!("ephemeral volume controller: create PVC {name}: {error}");
                        recorder.warning(&reference(&pod), "FailedBinding", text);
                        return Err(error.into());
                    }
                    Ok(_) => {}
                }
            }
            Ok::<_, anyhow::Error>(None)
        }
    })
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits() {
        let volume = |name: &str, size: &str, class: &str, claim: Value| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce"], "storageClassName": class, "claimRef": claim}}))
            .unwrap()
        };
        let claim = |size: &str, class: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": size}}}}))
            .unwrap()
        };
        let mut volumes = vec![
            volume("large", "10Gi", "", Value::Null),
            volume("small", "1Gi", "", Value::Null),
            volume("fast", "2Gi", "fast", Value::Null),
            volume("taken", "2Gi", "", json!({"name": "other", "namespace": "n", "uid": "x"})),
        ];
        let name = |size: &str, class: &str, volumes: &[PersistentVolume]| {
            find(&claim(size, class), volumes).and_then(|v| v.metadata.name.clone())
        };
        assert_eq!(name("500Mi", "", &volumes).as_deref(), Some("small"));
        assert_eq!(name("2Gi", "", &volumes).as_deref(), Some("large"));
        assert_eq!(name("1Gi", "fast", &volumes).as_deref(), Some("fast"));
        assert_eq!(name("20Gi", "", &volumes), None);
        volumes.push(volume("reserved", "5Gi", "", json!({"name": "c", "namespace": "n"})));
        assert_eq!(name("500Mi", "", &volumes).as_deref(), Some("reserved"));
    }
}
