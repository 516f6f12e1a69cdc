//! Static pods: manifests in a directory or behind a URL. Each runs whether or not there is an API server; where
//! there is one, a mirror of it is kept there.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use client::Informer;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, PostParams};
use nix::sys::inotify::AddWatchFlags;
use sha2::{Digest, Sha256};

use crate::inotify::Watcher;
use crate::kubelet::Kubelet;
use crate::pod::spec;
use crate::pods::PodHandle;

const URL_PERIOD: Duration = Duration::from_secs(20);
/// How soon a mirror that could not be made is tried again.
const MIRROR_RETRY: Duration = Duration::from_secs(2);

pub async fn run(kubelet: Arc<Kubelet>, pods: Informer<Pod>) {
    let (path, url) = (kubelet.config.manifest_path.clone(), kubelet.config.manifest_url.clone());
    if path.is_none() && url.is_none() {
        return;
    }
    let watch = path.as_deref().and_then(|p| match watch(p) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(path = %p.display(), %error, "static pods cannot be watched; they are read now and then");
            None
        }
    });
    let mut mirror_lost = kubelet.mirror_lost.subscribe();
    let mut known: HashMap<String, Arc<PodHandle>> = HashMap::new();
    loop {
        let mut found: BTreeMap<String, Pod> = BTreeMap::new();
        if let Some(path) = &path {
            for (name, text) in read_all(path) {
                add(&kubelet, &mut found, &text, "file", &name);
            }
        }
        if let Some(url) = &url {
            match fetch(url).await {
                Ok(text) => add(&kubelet, &mut found, &text, "http", url),
                Err(error) => tracing::warn!(url, error, "reading static pods"),
            }
        }
        known.retain(|uid, handle| {
            let keep = found.contains_key(uid);
            if !keep {
                handle.set_gone();
            }
            keep
        });
        for (uid, pod) in &found {
            if known.contains_key(uid) {
                continue;
            }
            // A changed manifest is another pod of the same name: it has to wait for the one before.
            let same_name = kubelet
                .pods
                .list()
                .iter()
                .any(|p| p.is_static && p.name == spec::name(pod) && p.namespace == spec::namespace(pod));
            if same_name {
                continue;
            }
            let Ok(text) = serde_json::to_string(pod) else { continue };
            let Ok(encoded) = crate::kubelet::encoded(&text) else { continue };
            let handle = Arc::new(PodHandle::new(Arc::new(encoded), true));
            known.insert(uid.clone(), handle.clone());
            kubelet.start_pod(handle);
        }
        let waiting = found.len() > known.len();
        let mut incomplete = false;
        pods.synced().await;
        for (uid, handle) in &known {
            incomplete |= !mirror(&kubelet, handle, &found[uid], &pods).await;
        }
        sweep(&kubelet, &found, &pods).await;
        let pause = if waiting || incomplete {
            MIRROR_RETRY
        } else if url.is_some() || watch.is_none() {
            URL_PERIOD
        } else {
            Duration::from_secs(300)
        };
        tokio::select! {
            _ = kubelet.shutdown.cancelled() => return,
            _ = tokio::time::sleep(pause) => {}
            _ = changed(watch.as_ref()) => {}
            _ = mirror_lost.changed() => {}
        }
    }
}

fn watch(path: &Path) -> std::io::Result<Watcher> {
    if !path.exists() {
        std::fs::create_dir_all(path)?;
    }
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ATTRIB;
    let watcher = Watcher::new()?;
    watcher.add(path, flags)?;
    Ok(watcher)
}

async fn changed(watch: Option<&Watcher>) {
    let Some(watch) = watch else { return std::future::pending().await };
    watch.changed().await;
    // Editors write in several steps.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn read_all(path: &Path) -> Vec<(String, String)> {
    let files: Vec<_> = if path.is_dir() {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path()).collect()
    } else {
        vec![path.to_path_buf()]
    };
    files
        .into_iter()
        .filter(|p| p.is_file() && !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')))
        .filter_map(|p| Some((p.to_string_lossy().into_owned(), std::fs::read_to_string(&p).ok()?)))
        .collect()
}

async fn fetch(url: &str) -> Result<String, String> {
    let uri: http::Uri = url.parse().map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let https = uri.scheme_str() == Some("https");
    let target = crate::net::Target {
        https,
        host: uri.host().unwrap_or_default().to_owned(),
        port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }),
        path: uri.path_and_query().map_or("/".into(), |p| p.as_str().to_owned()),
        headers: vec![],
        user_agent: "kubelet".into(),
    };
    let answer = crate::net::get(&target, Duration::from_secs(10)).await?;
    if answer.status == 200 { Ok(answer.body) } else { Err(format!("status {}", answer.status)) }
}

fn add(kubelet: &Kubelet, found: &mut BTreeMap<String, Pod>, text: &str, source: &str, origin: &str) {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        Many { items: Vec<Pod> },
        One(Box<Pod>),
    }
    let parsed: Result<serde_json::Value, _> = serde_saphyr::from_str(text);
    let parsed = parsed.map_err(|e| e.to_string()).and_then(|v| {
        if v.is_null() {
            return Ok(vec![]);
        }
        match serde_json::from_value::<OneOrMany>(v).map_err(|e| e.to_string())? {
            OneOrMany::Many { items } => Ok(items),
            OneOrMany::One(pod) => Ok(vec![*pod]),
        }
    });
    match parsed {
        Ok(pods) => {
            for pod in pods {
                match settle(pod, &kubelet.config.node_name, source, origin) {
                    Some(pod) => {
                        found.insert(spec::uid(&pod).to_owned(), pod);
                    }
                    None => tracing::warn!(origin, "a static pod has no name or no containers"),
                }
            }
        }
        Err(error) => tracing::warn!(origin, error, "a manifest cannot be read"),
    }
}

/// Gives a manifest what the API server would have given it: name, uid, defaults.
fn settle(mut pod: Pod, node: &str, source: &str, origin: &str) -> Option<Pod> {
    let base = pod.metadata.name.clone().filter(|n| !n.is_empty())?;
    let digest = Sha256::digest(format!("{node}\0{origin}\0{}", serde_json::to_string(&pod).ok()?));
    let uid: String = digest[..16].iter().map(|b| format!("{b:02x}")).collect();
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{base}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid.get_or_insert(uid);
    let uid = meta.uid.clone()?;
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/config.source".into(), source.into());
    annotations.insert("kubernetes.io/config.hash".into(), uid);
    annotations.insert("kubernetes.io/config.seen".into(), jiff::Timestamp::now().to_string());
    let spec = pod.spec.as_mut()?;
    if spec.containers.is_empty() {
        return None;
    }
    spec.node_name = Some(node.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    // Static pods stay whatever taint may come.
    let tolerations = spec.tolerations.get_or_insert_default();
    tolerations.push(k8s_openapi::api::core::v1::Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Default::default()
    });
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
        container.termination_message_policy.get_or_insert_with(|| "File".into());
        // Where only limits are given, as much is requested.
        if let Some(resources) = &mut container.resources
            && let Some(limits) = resources.limits.clone()
        {
            let requests = resources.requests.get_or_insert_default();
            for (name, value) in limits {
                requests.entry(name).or_insert(value);
            }
        }
    }
    Some(pod)
}

/// Keeps the API's mirror of a static pod. True if it is as it should be.
async fn mirror(kubelet: &Kubelet, handle: &Arc<PodHandle>, pod: &Pod, pods: &Informer<Pod>) -> bool {
    let api = kubelet.client.namespaced::<Pod>(&handle.namespace);
    if let Some(existing) = pods.raw().get(&handle.namespace, &handle.name) {
        if super::mirrored(&existing).as_deref() == Some(&handle.uid) && !existing.attributes.deleting {
            handle.set_mirror(Some(existing));
            return true;
        }
        remove_mirror(kubelet, &existing).await;
        return false;
    }
    let mut mirror = pod.clone();
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    mirror
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(spec::MIRROR_ANNOTATION.into(), handle.uid.clone());
    if let Some(node) = kubelet.node.get("", &kubelet.config.node_name) {
        mirror.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.name().to_owned(),
            uid: node.uid().to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        }]);
    }
    match api.create(&PostParams::default(), &mirror).await {
        Ok(_) => true,
        Err(error) => {
            let text = crate::kubelet::api_message(&error);
            tracing::debug!(pod = handle.name, error = text, "no mirror of a static pod");
            false
        }
    }
}

/// Removes mirrors of static pods that are no more.
async fn sweep(kubelet: &Kubelet, found: &BTreeMap<String, Pod>, pods: &Informer<Pod>) {
    for pod in pods.raw().list(None) {
        if let Some(uid) = super::mirrored(&pod)
            && !found.contains_key(&uid)
        {
            remove_mirror(kubelet, &pod).await;
        }
    }
}

async fn remove_mirror(kubelet: &Kubelet, mirror: &Encoded) {
    let api = kubelet.client.namespaced::<Pod>(mirror.namespace());
    let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    if let Err(error) = api.delete(mirror.name(), &params).await {
        tracing::debug!(pod = mirror.name(), %error, "removing a mirror");
    }
}
