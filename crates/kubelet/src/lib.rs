//! The kubelet: keeps the pods of one node running through a CRI runtime, and tells the API how they are.
//!
//! One worker per pod ([`pod::worker`]) looks at what the runtime holds, plans ([`pod::plan`], pure), carries out and
//! tells ([`pod::status`], pure). Workers sleep until something happens: the API's or a manifest's change, the
//! runtime's event, a probe's verdict, or a deadline of their own.

pub mod cgroup;
pub mod config;
pub mod cri;
pub mod events;
mod images;
mod inotify;
mod kubelet;
mod net;
mod node;
mod pod;
mod pods;
mod probes;
pub mod quantity;
pub mod runtime;
mod server;
mod sources;
mod status_patch;
mod terminations;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use client::{Client, Selection};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, Flags, RuntimeReady};

use crate::kubelet::Kubelet;

/// Runs a kubelet until `shutdown`. Pods go on running; the next kubelet takes them over.
pub async fn run(mut config: Config, client: Client, shutdown: CancellationToken) -> Result<()> {
    let endpoint = match &config.container_runtime_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => {
            config.containerd.systemd_cgroup = config.systemd_cgroup;
            config.containerd.ensure().await?;
            config.containerd.endpoint()
        }
    };
    let cri = cri::Cri::new(&endpoint);
    let version = wait_for_runtime(&cri, &endpoint, &shutdown).await?;
    if let Some(ready) = config.on_runtime_ready.clone() {
        ready(endpoint.clone()).await.context("preparing the container runtime")?;
    }
    let machine = node::machine::Machine::detect(&config)?;
    if config.node_ips.is_empty() {
        config.node_ips = node::machine::default_addresses();
    }
    for dir in [&config.root_dir, &config.pod_logs_dir] {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let cgroups =
        cgroup::Cgroups::detect(config.systemd_cgroup, &config.cgroup_root, machine.memory_bytes as i64);
    cgroups.prepare(machine.cpus as i64 * 1000);
    let events = client.recorder("kubelet", config.node_name.clone());
    let own_node = Selection::all().with_fields(format!("metadata.name={}", config.node_name));
    let kubelet = Arc::new(Kubelet {
        host_ips: config.node_ips.iter().map(ToString::to_string).collect(),
        images: images::Images::new(cri.clone(), events.clone(), config.serialize_image_pulls),
        objects: volumes::objects::Objects::new(client.clone()),
        pods: pods::Pods::default(),
        services: client.informer::<Service>(),
        node: client.informer_selected::<Node>(own_node),
        runtime_name: version.runtime_name,
        runtime_version: version.runtime_version,
        started_at: jiff::Timestamp::now(),
        terminations: Default::default(),
        mirror_lost: tokio::sync::watch::Sender::new(()),
        shutdown: shutdown.clone(),
        tasks: TaskTracker::new(),
        node_changed: tokio::sync::Notify::new(),
        config,
        cri,
        client,
        events,
        cgroups,
        machine,
    });
    let tasks = kubelet.tasks.clone();
    let own = |f: fn(Arc<Kubelet>) -> futures::future::BoxFuture<'static, ()>| {
        tasks.spawn(f(kubelet.clone()));
    };
    own(|k| Box::pin(node::run(k)));
    if kubelet.config.serve {
        let listener = server::listen(&kubelet)?;
        tasks.spawn(Box::pin(server::serve(kubelet.clone(), listener)));
    }
    own(|k| Box::pin(runtime_events(k)));
    own(|k| Box::pin(sources::run(k)));
    own(|k| Box::pin(node::eviction::run(k)));
    own(|k| Box::pin(node::garbage::run(k)));
    shutdown.cancelled().await;
    tasks.close();
    if tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.is_err() {
        tracing::warn!("some of the kubelet's tasks did not end in time");
    }
    Ok(())
}

async fn wait_for_runtime(
    cri: &cri::Cri,
    endpoint: &str,
    shutdown: &CancellationToken,
) -> Result<cri::api::VersionResponse> {
    let mut told = false;
    loop {
        match cri.version().await {
            Ok(version) => return Ok(version),
            Err(error) if !told => {
                told = true;
                tracing::warn!(endpoint, %error, "waiting for the container runtime");
            }
            Err(_) => {}
        }
        tokio::select! {
            _ = shutdown.cancelled() => anyhow::bail!("stopped while waiting for the container runtime"),
            _ = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}

/// Passes on what the runtime tells to the pods it is about.
async fn runtime_events(kubelet: Arc<Kubelet>) {
    let told = kubelet.clone();
    cri::events::follow(kubelet.cri.clone(), kubelet.shutdown.clone(), move |event| match event {
        cri::events::Event::Changed(id) => told.pods.ended(id),
        cri::events::Event::Relist => {
            for pod in told.pods.list() {
                pod.stir();
            }
            told.node_changed.notify_one();
        }
    })
    .await;
}

/// The pods of a node, as its kubelet may see them.
fn pods_of(client: &Client, node: &str) -> client::Informer<Pod> {
    client.informer_selected::<Pod>(Selection::all().with_fields(format!("spec.nodeName={node}")))
}
