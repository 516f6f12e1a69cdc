//! cluster-dns: names for services and pods, and the way out for all other names.
//!
//! [`index`] holds what the API says, [`zone`] answers from it as a pure function, [`server`] speaks the protocol,
//! [`forward`] asks the node's resolvers.

mod forward;
mod http;
mod index;
mod server;
#[cfg(test)]
mod tests;
mod udp;
mod zone;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use client::{Client, Delta, Informer};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::forward::{Forwarder, Upstreams};
use crate::index::Index;
use crate::server::{Counts, Shared};
use crate::zone::Zone;

#[derive(Clone, Debug)]
pub struct Config {
    /// UDP and TCP on each. Unspecified addresses answer from the address they were asked at.
    pub listen: Vec<SocketAddr>,
    pub cluster_domain: String,
    /// The resolvers for all other names; none: those of `resolv_conf`.
    pub upstreams: Vec<SocketAddr>,
    pub resolv_conf: PathBuf,
    /// `/health`, `/ready` and `/metrics`.
    pub http: Option<SocketAddr>,
}

impl Config {
    pub fn new(listen: Vec<SocketAddr>) -> Config {
        Config {
            listen,
            cluster_domain: "cluster.local".into(),
            upstreams: vec![],
            resolv_conf: "/etc/resolv.conf".into(),
            http: None,
        }
    }
}

#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Addresses to answer at, UDP and TCP.
    #[arg(long, value_delimiter = ',', default_value = "0.0.0.0:53")]
    pub listen: Vec<SocketAddr>,
    /// The domain of the cluster.
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Resolvers for other names, instead of those of --resolv-conf.
    #[arg(long, value_delimiter = ',')]
    pub upstream: Vec<SocketAddr>,
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Address of /health, /ready and /metrics.
    #[arg(long)]
    pub http: Option<SocketAddr>,
    /// Path to a kubeconfig.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
}

impl Flags {
    pub fn into_config(self) -> Config {
        Config {
            listen: self.listen,
            cluster_domain: self.cluster_domain,
            upstreams: self.upstream,
            resolv_conf: self.resolv_conf,
            http: self.http,
        }
    }
}

/// Runs until `shutdown`. Names of the cluster are answered once the informers have everything; until then nothing
/// is bound, so that nobody is told that a name does not exist.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let index = Arc::new(RwLock::new(Index::default()));
    let services: Informer<Service> = client.informer();
    let slices: Informer<EndpointSlice> = client.informer();
    let namespaces: Informer<Namespace> = client.informer();
    let exists = |delta: &Delta| !matches!(delta, Delta::Deleted(_));
    let to = index.clone();
    services.subscribe(move |delta| to.write().apply_service(delta.object(), exists(delta)));
    let to = index.clone();
    slices.subscribe(move |delta| to.write().apply_slice(delta.object(), exists(delta)));
    let to = index.clone();
    namespaces.subscribe(move |delta| to.write().put_namespace(delta.object().name(), exists(delta)));

    let shared = Arc::new(shared(&config, index)?);
    let ready = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    if let Some(address) = config.http {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        tasks.spawn(http::serve(listener, shared.clone(), ready.clone(), shutdown.clone()));
    }
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        ((), (), ()) = async { tokio::join!(services.synced(), slices.synced(), namespaces.synced()) } => {}
    }
    serve(&config.listen, shared, &mut tasks, &shutdown).await?;
    ready.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task of cluster-dns panicked")?;
    }
    Ok(())
}

fn shared(config: &Config, index: Arc<RwLock<Index>>) -> anyhow::Result<Shared> {
    let domain = &config.cluster_domain;
    let upstreams = match config.upstreams.is_empty() {
        true => Upstreams::File(config.resolv_conf.clone()),
        false => Upstreams::Fixed(config.upstreams.clone()),
    };
    Ok(Shared {
        zone: Zone::new(domain).with_context(|| format!("cluster domain {domain:?}"))?,
        index,
        forwarder: Forwarder::new(upstreams, config.listen.clone()),
        turn: Default::default(),
        counts: Counts::default(),
    })
}

/// Binds and serves; returns the bound addresses.
async fn serve(
    listen: &[SocketAddr],
    shared: Arc<Shared>,
    tasks: &mut JoinSet<()>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Vec<SocketAddr>> {
    let mut bound = vec![];
    for address in listen {
        let socket =
            udp::Socket::bind(*address).await.with_context(|| format!("listening on {address} (UDP)"))?;
        let address = socket.local_address().unwrap_or(*address);
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("listening on {address} (TCP)"))?;
        tracing::info!(%address, "answering DNS");
        tasks.spawn(server::serve_udp(socket, shared.clone(), shutdown.clone()));
        tasks.spawn(server::serve_tcp(listener, shared.clone(), shutdown.clone()));
        bound.push(address);
    }
    Ok(bound)
}
