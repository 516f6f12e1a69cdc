//! The API server: HTTP, authentication, authorization, admission, registry, watch cache, discovery, OpenAPI.
//!
//! A request's path reads as the folder list: `http` (socket, filters), `authentication`, `authorization`,
//! `registry` (with `admission` and `allocators` on the way of a write), `cache`, and the store beneath.

pub mod admission;
pub mod aggregation;
pub mod allocators;
pub mod audit;
pub mod authentication;
pub mod authorization;
pub mod bootstrap;
pub mod cache;
mod config_file;
pub mod custom;
pub mod discovery;
pub mod encryption;
mod file_watch;
mod flags;
pub mod flow_control;
pub mod http;
pub mod metrics;
mod outbound;
pub mod proxy;
pub mod registry;
mod remembered;
pub mod resource_metrics;
pub mod seams;
pub mod security;
pub mod server;
mod server_certificates;
mod server_id;
pub mod tasks;
pub mod tokens;
pub mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::{Request, Response};
use anyhow::Context;
use apimachinery::clock::Clock;
use apimachinery::user::UserInfo;
use futures::Stream;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use storage::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use crate::flags::{AuditWebhookFlags, AuthenticationFlags, AuthorizationFlags, EncryptionFlags, Flags};
pub use crate::http::Body;
pub use crate::registry::access::{SourceEvent, Wanted};
pub use crate::registry::component_status::Component;

use crate::http::filters::{self, Caller};
use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::registry::access::Access;
use crate::server::Server;
use crate::tasks::Tasks;

/// Everything the API server is configured with. PEM is given as content.
#[derive(Clone)]
pub struct Config {
    pub bind_address: IpAddr,
    /// 0 lets the system choose; [`Handle::address`] tells.
    pub secure_port: u16,
    /// Serving certificate chain and key.
    pub tls_certificate: Vec<u8>,
    pub tls_key: Vec<u8>,
    pub store: Arc<dyn Store>,
    /// Identity, policy, service addresses.
    pub security: security::Config,
    /// `group/version` → served or not, over the default of serving what is generally available.
    pub runtime_config: Vec<(String, bool)>,
    pub kubelet: proxy::KubeletClient,
    pub flow_control: flow_control::Config,
    pub audit: Option<audit::Config>,
    /// Which resources are kept encrypted.
    pub encryption: Option<encryption::Config>,
    /// The other parts of the control plane, by name.
    pub components: Vec<(&'static str, Component)>,
    /// What `/flagz` tells: how the server was started, by the names of its flags.
    pub flags: BTreeMap<String, String>,
    pub clock: Clock,
    /// How long requests in flight may take to end on shutdown.
    pub shutdown_grace: Duration,
}

impl Config {
    /// The configuration with upstream's defaults.
    pub fn new(store: Arc<dyn Store>, tls_certificate: Vec<u8>, tls_key: Vec<u8>) -> Config {
        Config {
            bind_address: IpAddr::from([0, 0, 0, 0]),
            secure_port: 6443,
            tls_certificate,
            tls_key,
            store,
            security: security::Config::default(),
            runtime_config: Vec::new(),
            kubelet: proxy::KubeletClient::default(),
            flow_control: flow_control::Config::default(),
            audit: None,
            encryption: None,
            components: registry::component_status::defaults(),
            flags: BTreeMap::new(),
            clock: Clock::system(),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// The server as other parts of the process reach it: no TLS, no HTTP framing.
#[derive(Clone)]
pub struct Handle {
    server: Arc<Server>,
    address: SocketAddr,
}

impl Handle {
    /// Answers a request of an authenticated component.
    pub async fn call(&self, request: Request<Body>, user: UserInfo) -> Response<Body> {
        filters::handle(&self.server, request, Caller::Known(user)).await
    }

    /// The objects `wanted` selects and their changes, for ever; no authorization is asked.
    pub fn list_watch(&self, wanted: Wanted) -> impl Stream<Item = SourceEvent> + Send + 'static + use<> {
        self.server.registry.list_watch(wanted)
    }

    /// Whether `/readyz` would say ok.
    pub fn is_ready(&self) -> bool {
        discovery::health::ready(&self.server)
    }

    /// Waits until the server is ready.
    pub async fn ready(&self) {
        let mut started = self.server.registry.subscribe_started();
        // The sender lives in the registry, which this handle keeps.
        let _ = started.wait_for(|started| *started).await;
        self.server.registry.cache.wait_for(1, Duration::MAX).await;
    }

    /// Tells each time when much memory has been freed, which the allocator then may give back.
    pub fn freed(&self) -> Arc<tokio::sync::Notify> {
        self.server.registry.cache.freed()
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The registry, for tests and tools.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.server.registry
    }
}

/// A server that listens but does not serve yet.
pub struct Prepared {
    server: Arc<Server>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    bootstrap: bootstrap::Bootstrap,
    grace: Duration,
}

/// Sets a server up: everything that can fail for reasons of configuration fails here.
pub async fn prepare(config: Config) -> anyhow::Result<(Handle, Prepared)> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&config.tls_certificate)
        .collect::<Result<_, _>>()
        .context("the serving certificate is not PEM")?;
    let key = PrivateKeyDer::from_pem_slice(&config.tls_key).context("the serving key is not PEM")?;
    let bundles = [&config.security.client_ca, &config.security.request_header_ca];
    let authorities = authentication::x509::subjects(bundles.into_iter().flatten().map(Vec::as_slice));
    let tls = http::connection::tls_config(chain, key, authorities).context("serving certificate and key")?;
    let wanted = SocketAddr::new(config.bind_address, config.secure_port);
    let listener = listen(wanted).with_context(|| format!("cannot listen on {wanted}"))?;
    let address = listener.local_addr()?;
    let enabled = |group_version: &str| {
        let said = |name: &str| config.runtime_config.iter().rev().find(|(k, _)| k == name).map(|(_, v)| *v);
        said(group_version).or_else(|| {
            let stage = ["alpha", "beta"].into_iter().find(|s| group_version.contains(s));
            said(&format!("api/{}", stage.unwrap_or("ga"))).or_else(|| said("api/all"))
        })
    };
    let metrics = Metrics::default();
    let encrypted = match &config.encryption {
        Some(encryption) => {
            let (store, clock) = (config.store.clone(), config.clock.clone());
            let store = encryption::Encrypted::new(store, encryption, clock, &metrics.families).await;
            Some(Arc::new(store.context("the encryption provider configuration")?))
        }
        None => None,
    };
    let store: Arc<dyn Store> = match &encrypted {
        Some(encrypted) => encrypted.clone(),
        None => config.store.clone(),
    };
    let registry = Registry::new(store, config.clock.clone(), &enabled);
    let kubelets = proxy::Kubelets::new(&config.kubelet)?;
    let proxy_client = &config.security;
    let identity =
        proxy_client.proxy_client_certificate.as_deref().zip(proxy_client.proxy_client_key.as_deref());
    let aggregator = aggregation::Aggregator::new(identity, kubelets.tasks.clone(), &metrics.families)
        .context("the front-proxy client certificate and key")?;
    let audit = match &config.audit {
        Some(config) => Some(Arc::new(audit::Audit::start(config, &metrics.families).await?)),
        None => None,
    };
    let server = Server::new(registry.clone(), metrics, kubelets, aggregator, &config, audit, encrypted);
    let access = Arc::new(Access(registry.clone()));
    let mut security = config.security.clone();
    security.secure_port = address.port();
    security.clock = config.clock.clone();
    let tasks = Tasks::new(server.kubelets.tasks.clone(), registry.ending.clone());
    let families = &server.metrics.families;
    let (policy, bootstrap) = security::build(security, access.clone(), access, families, &tasks).await?;
    registry.policy.store(Some(Arc::new(policy)));
    let handle = Handle { server: server.clone(), address };
    let prepared = Prepared { server, listener, tls: Arc::new(tls), bootstrap, grace: config.shutdown_grace };
    Ok((handle, prepared))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

impl Prepared {
    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Prepared { server, listener, tls, bootstrap, grace } = self;
        let registry = server.registry.clone();
        let ending = registry.ending.clone();
        let caches = tokio::spawn(registry.cache.clone().run(ending.clone()));
        let accepting =
            tokio::spawn(http::connection::serve(listener, tls, server.clone(), ending.clone(), grace));
        let mut ready = bootstrap.ready();
        let starting = {
            let (registry, ending, server) = (registry.clone(), ending.clone(), server.clone());
            tokio::spawn(async move {
                // Nothing is written before the caches are filled: bootstrap decides by what is there.
                tokio::select! {
                    () = ending.cancelled() => return,
                    _ = registry.cache.wait_for(1, Duration::MAX) => {}
                }
                let watching = {
                    let registry = registry.clone();
                    async move {
                        if ready.wait_for(|ready| *ready).await.is_ok() {
                            registry.set_started();
                        }
                    }
                };
                let access = Arc::new(Access(registry.clone()));
                let clock = registry.clock.clone();
                let mut local = registry.table.load().group_versions();
                local.push((resource_metrics::GROUP.to_owned(), resource_metrics::VERSION.to_owned()));
                let aggregating =
                    server.aggregator.keep(access.clone(), access, clock, local, ending.clone());
                let compacting = registry::compaction::run(registry.clone(), ending.clone());
                let type_checking = admission::policies::type_checking::run(registry.clone(), ending.clone());
                let definitions = custom::controller::Controller::new(registry).run(ending.clone());
                tokio::join!(
                    bootstrap.run(ending.clone()),
                    definitions,
                    type_checking,
                    watching,
                    aggregating,
                    compacting
                );
            })
        };
        shutdown.cancelled().await;
        ending.cancel();
        let (a, b, c) = tokio::join!(accepting, starting, caches);
        server.kubelets.tasks.close();
        if tokio::time::timeout(grace, server.kubelets.tasks.wait()).await.is_err() {
            tracing::info!("streams to kubelets are still open");
        }
        if let Some(audit) = &server.audit
            && tokio::time::timeout(grace, audit.end()).await.is_err()
        {
            tracing::error!("audit events are still waiting");
        }
        if let Some(encrypted) = &server.encrypted {
            encrypted.end();
        }
        a.and(b).and(c).context("a task of the API server crashed")?;
        Ok(())
    }
}

/// Sets a server up and serves until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (_, prepared) = prepare(config).await?;
    prepared.run(shutdown).await
}
