//! persistentvolumeclaim-protection-controller, persistentvolume-protection-controller and
//! volumeattributesclass-protection-controller: claims, volumes and classes in use outlive their deletion.

use std::sync::Arc;
use std::time::Duration;

use client::{Delta, Informer, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::PostParams;

use crate::Context;
use crate::support::errors::IgnoreNotFound;
use crate::support::pods;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const CLASS: &str = "kubernetes.io/vac-protection";

/// What the finalizers should be, unless they are: present while the object lives, absent once it may go.
fn plan(finalizers: &[String], ours: &str, deleting: bool, in_use: bool) -> Option<Vec<String>> {
    let has = finalizers.iter().any(|f| f == ours);
    match (deleting, has) {
        (false, false) => Some(finalizers.iter().cloned().chain([ours.to_owned()]).collect()),
        (true, true) if !in_use => Some(finalizers.iter().filter(|f| *f != ours).cloned().collect()),
        _ => None,
    }
}

/// Claims a pod uses, those of its generic ephemeral volumes included.
fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|v| match (&v.persistent_volume_claim, &v.ephemeral) {
            (Some(claim), _) => Some(claim.claim_name.clone()),
            (None, Some(_)) => Some(format!("{}-{}", pods::name(pod), v.name)),
            _ => None,
        })
        .collect()
}

pub(crate) async fn run_claims(ctx: Context) -> anyhow::Result<()> {
    let claims: Informer<PersistentVolumeClaim> = ctx.client.informer();
    let all: Informer<Pod> = ctx.client.informer();
    let queue = WorkQueue::<String>::new();
    let q = queue.clone();
    claims.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            q.add(delta.key());
        }
    });
    claims.synced().await;
    let (q, known, decoder) = (queue.clone(), claims.clone(), all.clone());
    all.subscribe(move |delta| {
        // Nobody waits for a pod where there are no claims.
        let pod = delta.object();
        let ended = matches!(delta, Delta::Deleted(_))
            || matches!(pod.attributes.field("status.phase"), Some("Succeeded" | "Failed"));
        if !ended || known.is_empty() {
            return;
        }
        for claim in decoder.decode(pod).iter().flat_map(claims_of) {
            q.add(format!("{}/{claim}", pod.namespace()));
        }
    });
    all.synced().await;
    run_workers(queue, 2, ctx.shutdown.clone(), move |key| {
        let (ctx, claims, all) = (ctx.clone(), claims.clone(), all.clone());
        async move {
            let Some(claim) = claims.get_key_typed(&key) else { return Ok(None) };
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            let deleting = claim.metadata.deletion_timestamp.is_some();
            let uses = |p: &Pod| !pods::is_terminal(p) && claims_of(p).iter().any(|c| c == name);
            let in_use = deleting && all.list_typed(Some(namespace)).iter().any(uses);
            let finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
            if let Some(wanted) = plan(&finalizers, CLAIM, deleting, in_use) {
                let mut claim = claim;
                claim.metadata.finalizers = Some(wanted);
                let api = ctx.client.namespaced::<PersistentVolumeClaim>(namespace);
                api.replace(name, &PostParams::default(), &claim).await.ignore_not_found()?;
            }
            Ok::<_, kube::Error>(None::<Duration>)
        }
    })
    .await;
    Ok(())
}

pub(crate) async fn run_volumes(ctx: Context) -> anyhow::Result<()> {
    let volumes: Informer<PersistentVolume> = ctx.client.informer();
    let queue = WorkQueue::<String>::new();
    let q = queue.clone();
    volumes.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            q.add(delta.key());
        }
    });
    volumes.synced().await;
    let volumes = Arc::new(volumes);
    run_workers(queue, 1, ctx.shutdown.clone(), move |name| {
        let (ctx, volumes) = (ctx.clone(), volumes.clone());
        async move {
            let Some(volume) = volumes.get_typed("", &name) else { return Ok(None) };
            let deleting = volume.metadata.deletion_timestamp.is_some();
            let bound = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
            let finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
            if let Some(wanted) = plan(&finalizers, VOLUME, deleting, bound) {
                let mut volume = volume;
                volume.metadata.finalizers = Some(wanted);
                let api = ctx.client.all::<PersistentVolume>();
                api.replace(&name, &PostParams::default(), &volume).await.ignore_not_found()?;
            }
            Ok::<_, kube::Error>(None::<Duration>)
        }
    })
    .await;
    Ok(())
}

/// The attributes classes a claim has, had or is to have.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
    let current = status.and_then(|s| s.current_volume_attributes_class_name.clone());
    let target =
        status.and_then(|s| s.modify_volume_status.as_ref()?.target_volume_attributes_class_name.clone());
    [wanted, current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

fn class_of_volume(volume: &PersistentVolume) -> Option<String> {
    volume.spec.as_ref()?.volume_attributes_class_name.clone().filter(|name| !name.is_empty())
}

pub(crate) async fn run_attributes_classes(ctx: Context) -> anyhow::Result<()> {
    let classes: Informer<VolumeAttributesClass> = ctx.client.informer();
    let claims: Informer<PersistentVolumeClaim> = ctx.client.informer();
    let volumes: Informer<PersistentVolume> = ctx.client.informer();
    let queue = WorkQueue::<String>::new();
    let q = queue.clone();
    classes.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            q.add(delta.key());
        }
    });
    classes.synced().await;
    // Who let go of a class may have been the last.
    let (q, known, decoder) = (queue.clone(), classes.clone(), claims.clone());
    claims.subscribe(move |delta| {
        let before = match delta {
            Delta::Added(_) => return,
            Delta::Updated { old, .. } | Delta::Deleted(old) => old,
        };
        if !known.is_empty() {
            decoder.decode(before).iter().flat_map(classes_of_claim).for_each(|name| q.add(name));
        }
    });
    claims.synced().await;
    let (q, known, decoder) = (queue.clone(), classes.clone(), volumes.clone());
    volumes.subscribe(move |delta| {
        let before = match delta {
            Delta::Added(_) => return,
            Delta::Updated { old, .. } | Delta::Deleted(old) => old,
        };
        if !known.is_empty() {
            decoder.decode(before).iter().filter_map(class_of_volume).for_each(|name| q.add(name));
        }
    });
    volumes.synced().await;
    run_workers(queue, 1, ctx.shutdown.clone(), move |name| {
        let (ctx, classes, claims, volumes) = (ctx.clone(), classes.clone(), claims.clone(), volumes.clone());
        async move {
            let Some(mut class) = classes.get_typed("", &name) else { return Ok(None) };
            let deleting = class.metadata.deletion_timestamp.is_some();
            let in_use = deleting
                && (volumes.list_typed(None).iter().any(|v| class_of_volume(v).as_ref() == Some(&name))
                    || claims.list_typed(None).iter().any(|c| classes_of_claim(c).contains(&name)));
            let finalizers = class.metadata.finalizers.clone().unwrap_or_default();
            if let Some(wanted) = plan(&finalizers, CLASS, deleting, in_use) {
                class.metadata.finalizers = Some(wanted);
                let api = ctx.client.all::<VolumeAttributesClass>();
                api.replace(&name, &PostParams::default(), &class).await.ignore_not_found()?;
            }
            Ok::<_, kube::Error>(None::<Duration>)
        }
    })
    .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finalizers_come_and_go() {
        let list = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        for (present, deleting, in_use, want) in [
            (list(&["x"]), false, false, Some(list(&["x", CLAIM]))),
            (list(&[CLAIM]), false, true, None),
            (list(&[CLAIM, "x"]), true, true, None),
            (list(&[CLAIM, "x"]), true, false, Some(list(&["x"]))),
            (list(&["x"]), true, false, None),
        ] {
            assert_eq!(plan(&present, CLAIM, deleting, in_use), want);
        }
    }

    #[test]
    fn claims_hold_the_classes_they_pass_through() {
        let claim: PersistentVolumeClaim = serde_json::from_value(serde_json::json!({
            "spec": {"volumeAttributesClassName": "new"},
            "status": {"currentVolumeAttributesClassName": "old",
                "modifyVolumeStatus": {"status": "InProgress", "targetVolumeAttributesClassName": "next"}}}))
        .unwrap();
        assert_eq!(classes_of_claim(&claim), ["new", "old", "next"]);
        assert!(classes_of_claim(&PersistentVolumeClaim::default()).is_empty());
    }
}
