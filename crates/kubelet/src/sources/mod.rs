//! Where pods come from: the API, and manifests on disk or behind a URL.

mod manifests;

use std::collections::HashSet;
use std::sync::Arc;

use apimachinery::object::Encoded;
use client::Delta;
use tokio::sync::mpsc;

use crate::kubelet::Kubelet;
use crate::pods::PodHandle;

/// Pods that wait to be looked at; the informer's callback must not block, so this is as long as a node is large.
const QUEUE: usize = 4096;

enum News {
    Present(Arc<Encoded>),
    Gone(Arc<Encoded>),
}

pub async fn run(kubelet: Arc<Kubelet>) {
    // Variables of services belong into containers from the first one on.
    let ready = async {
        kubelet.services.synced().await;
    };
    tokio::select! {
        _ = kubelet.shutdown.cancelled() => return,
        _ = ready => {}
    }
    let pods = crate::pods_of(&kubelet.client, &kubelet.config.node_name);
    let (queue, mut news) = mpsc::channel(QUEUE);
    pods.subscribe(move |delta| {
        let item = match delta {
            Delta::Added(pod) | Delta::Updated { new: pod, .. } => News::Present(pod.clone()),
            Delta::Deleted(pod) => News::Gone(pod.clone()),
        };
        if queue.try_send(item).is_err() {
            tracing::error!("the queue of pods is full; a change was lost");
        }
    });
    let statics = kubelet.tasks.spawn(manifests::run(kubelet.clone(), pods.clone()));
    let orphans = kubelet.tasks.spawn(orphans(kubelet.clone(), pods.clone()));
    loop {
        let item = tokio::select! {
            _ = kubelet.shutdown.cancelled() => break,
            item = news.recv() => item,
        };
        match item {
            None => break,
            Some(News::Present(pod)) => present(&kubelet, pod),
            Some(News::Gone(pod)) => gone(&kubelet, &pod),
        }
    }
    let _ = statics.await;
    let _ = orphans.await;
}

/// The uid of the static pod that an API object mirrors.
fn mirrored(pod: &Encoded) -> Option<String> {
    let value = pod.to_value().ok()?;
    let hash = value["metadata"]["annotations"][crate::pod::spec::MIRROR_ANNOTATION].as_str()?;
    Some(hash.to_owned())
}

fn present(kubelet: &Arc<Kubelet>, pod: Arc<Encoded>) {
    if let Some(handle) = kubelet.pods.get(pod.uid()) {
        handle.update(pod);
        return;
    }
    if let Some(uid) = mirrored(&pod) {
        if pod.attributes.deleting {
            kubelet.mirror_lost.send_replace(());
        }
        if let Some(handle) = kubelet.pods.get(&uid) {
            handle.set_mirror(Some(pod));
        }
        return;
    }
    kubelet.start_pod(Arc::new(PodHandle::new(pod, false)));
}

fn gone(kubelet: &Arc<Kubelet>, pod: &Arc<Encoded>) {
    if let Some(handle) = kubelet.pods.get(pod.uid()) {
        handle.update(pod.clone());
        handle.set_gone();
    } else if let Some(handle) = mirrored(pod).and_then(|uid| kubelet.pods.get(&uid)) {
        handle.set_mirror(None);
        kubelet.mirror_lost.send_replace(());
    }
}

/// Once, after the pods are known: ends what an earlier kubelet left of pods that are no more.
async fn orphans(kubelet: Arc<Kubelet>, pods: client::Informer<k8s_openapi::api::core::v1::Pod>) {
    let settle = async {
        pods.synced().await;
        // Static pods are read meanwhile, and containers of pods are not to be mistaken for orphans.
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    };
    tokio::select! {
        _ = kubelet.shutdown.cancelled() => return,
        _ = settle => {}
    }
    let Ok(sandboxes) = kubelet.cri.list_sandboxes(None).await else { return };
    let containers = kubelet.cri.list_containers(None).await.unwrap_or_default();
    let label = |labels: &std::collections::BTreeMap<String, String>| {
        labels.get(crate::cri::POD_UID_LABEL).cloned().unwrap_or_default()
    };
    let mut uids: HashSet<String> = HashSet::new();
    for sandbox in sandboxes {
        let uid = label(&sandbox.labels);
        if uid.is_empty() || kubelet.pods.get(&uid).is_some() {
            continue;
        }
        tracing::info!(sandbox = sandbox.id, uid, "removing what is left of a pod that is no more");
        for container in containers.iter().filter(|c| c.pod_sandbox_id == sandbox.id) {
            let _ = kubelet.cri.stop_container(&container.id, 2).await;
            let _ = kubelet.cri.remove_container(&container.id).await;
        }
        let _ = kubelet.cri.stop_sandbox(&sandbox.id).await;
        let _ = kubelet.cri.remove_sandbox(&sandbox.id).await;
        uids.insert(uid);
    }
    let dir = kubelet.config.root_dir.join("pods");
    for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
        uids.insert(entry.file_name().to_string_lossy().into_owned());
    }
    for uid in uids.into_iter().filter(|uid| kubelet.pods.get(uid).is_none()) {
        let root = kubelet.config.root_dir.clone();
        let done = tokio::task::spawn_blocking(move || crate::volumes::tear_down(&root, &uid)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!(%error, "removing an orphaned pod's volumes");
        }
    }
}
