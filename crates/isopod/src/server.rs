//! `isopod server`: every component in one process, wired.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use apimachinery::user::{SYSTEM_MASTERS, UserInfo};
use client::{Client, Informers};
use etcd::{Directory, Engine, Options};
use kube_apiserver::Component;
use kube_apiserver::audit::{self, LogConfig};
use storage::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::Told;
use crate::local::Local;
use crate::pki::{self, Pki, Subject};
use crate::settings::ServerFlags;
use crate::supervisor::Supervisor;
use crate::{apiserver, node, preflight, process, residency};

/// Runs until SIGTERM or SIGINT.
pub async fn run(flags: &ServerFlags, told: Told) -> Result<()> {
    let started = Instant::now();
    preflight::check(flags)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    process::write_pid_file(&flags.pid_file())?;
    let outcome = serve(flags, told, started, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await;
    let _ = std::fs::remove_file(flags.pid_file());
    outcome
}

async fn serve(
    flags: &ServerFlags,
    told: Told,
    started: Instant,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let node_ip = flags.node_ip()?;
    let node_name = flags.node_name()?;
    let pki = Pki::open(&flags.pki_dir())?;
    let (store, engine) = open_store(flags).await?;

    let mut config = apiserver_config(flags, &pki, store, node_ip)?;
    config.flags = told;
    let (handle, prepared) = kube_apiserver::prepare(config).await?;
    let apiserver_shutdown = CancellationToken::new();
    let apiserver = tokio::spawn(prepared.run(apiserver_shutdown.clone()));
    let leases = engine.map(|engine| {
        let shutdown = apiserver_shutdown.clone();
        tokio::spawn(async move { engine.run_leases(shutdown.cancelled_owned()).await })
    });
    write_kubeconfig(flags, &pki)?;
    handle.ready().await;
    tracing::info!(address = %handle.address(), ms = started.elapsed().as_millis() as u64, "API server is ready");

    let informers_shutdown = CancellationToken::new();
    let informers = Informers::new(informers_shutdown.clone());
    let local = Local::new(handle.clone(), informers.clone());
    let mut components = Supervisor::default();
    start_control_plane(&mut components, flags, &pki, &local)?;
    if !flags.disable_agent {
        node::start(&mut components, flags, &pki, &local, &node_name, node_ip)?;
    }

    tokio::spawn(residency::keep_small(apiserver_shutdown.clone()));
    tokio::spawn(residency::give_back_freed(handle.freed(), apiserver_shutdown.clone()));

    tokio::pin!(stop);
    let mut apiserver = apiserver;
    let failed = tokio::select! {
        () = &mut stop => None,
        ended = &mut apiserver => Some(ended),
    };
    tracing::info!("stopping");
    components.stop().await;
    informers_shutdown.cancel();
    informers.shutdown(std::time::Duration::from_secs(5)).await;
    apiserver_shutdown.cancel();
    let ended = match failed {
        Some(ended) => ended,
        None => apiserver.await,
    };
    if let Some(leases) = leases {
        let _ = leases.await;
    }
    ended.context("the API server crashed")?
}

/// The store, and the engine where that is in this process.
async fn open_store(flags: &ServerFlags) -> Result<(Arc<dyn Store>, Option<Engine>)> {
    if !flags.datastore_endpoint.is_empty() {
        let options = etcd::remote::Options {
            endpoints: flags.datastore_endpoint.clone(),
            ca: apiserver::read(flags.datastore_cafile.as_deref())?,
            certificate: apiserver::read(flags.datastore_certfile.as_deref())?,
            key: apiserver::read(flags.datastore_keyfile.as_deref())?,
            prefix: None,
        };
        return Ok((Arc::new(etcd::remote::Remote::connect(options).await?), None));
    }
    let store_dir = flags.data_dir.join("etcd");
    let directory = Directory::open(&store_dir).with_context(|| format!("open {}", store_dir.display()))?;
    let options = Options { sync: flags.durable_writes, ..Options::default() };
    let engine = Engine::open(Arc::new(directory), options).context("open the store")?;
    Ok((Arc::new(engine.clone()), Some(engine)))
}

fn apiserver_config(
    flags: &ServerFlags,
    pki: &Pki,
    store: Arc<dyn Store>,
    node_ip: IpAddr,
) -> Result<kube_apiserver::Config> {
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(String::from)
        .to_vec();
    names.push(format!("kubernetes.default.svc.{}", flags.cluster_domain));
    names.push(flags.node_name()?);
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), flags.api_service_ip()?, node_ip];
    if !flags.bind_address.is_unspecified() {
        addresses.push(flags.bind_address);
    }
    for san in &flags.tls_san {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(san.clone()),
        }
    }
    let serving = pki.leaf(
        "apiserver",
        &Subject {
            common_name: "kube-apiserver",
            dns_names: &names,
            addresses: &addresses,
            server: true,
            ..Subject::default()
        },
    )?;
    let kubelet_client = pki.leaf(
        "apiserver-kubelet-client",
        &Subject {
            common_name: "kube-apiserver-kubelet-client",
            organizations: &[SYSTEM_MASTERS],
            ..Subject::default()
        },
    )?;
    let mut config =
        kube_apiserver::Config::new(store, serving.certificate.into_bytes(), serving.key.into_bytes());
    config.bind_address = flags.bind_address;
    config.secure_port = flags.https_listen_port;
    config.components = ["scheduler", "controller-manager"].map(|name| (name, Component::Within)).to_vec();
    let security = &mut config.security;
    security.client_ca = Some(pki.ca_certificate().as_bytes().to_vec());
    security.request_header_ca = Some(pki.front_proxy_ca_certificate().as_bytes().to_vec());
    let front_proxy = pki.front_proxy_client()?;
    security.proxy_client_certificate = Some(front_proxy.certificate.into_bytes());
    security.proxy_client_key = Some(front_proxy.key.into_bytes());
    security.service_account_signing_key = Some(pki.service_account_key()?.into_bytes());
    security.service_account_issuers =
        vec![format!("https://kubernetes.default.svc.{}", flags.cluster_domain)];
    security.service_cidrs = vec![flags.service_cidr];
    security.advertise_address = node_ip;
    flags.authentication.apply(None, security)?;
    flags.authorization.apply(&["Node", "RBAC"], security)?;
    config.kubelet.certificate = Some(kubelet_client.certificate.into_bytes());
    config.kubelet.key = Some(kubelet_client.key.into_bytes());
    config.kubelet.ca = Some(pki.ca_certificate().as_bytes().to_vec());
    config.encryption = flags.encryption.config()?;
    config.audit = audit(flags)?;
    Ok(config)
}

fn audit(flags: &ServerFlags) -> Result<Option<audit::Config>> {
    let log = flags.audit_log_path.clone().map(|path| {
        let log = LogConfig { path, backups_max: 10, megabytes_max: 100, ..LogConfig::default() };
        (log, audit::Options::log())
    });
    let webhook = flags.audit_webhook.config()?;
    let policy = apiserver::read(flags.audit_policy_file.as_deref())?;
    if policy.is_some() != (log.is_some() || webhook.is_some()) {
        bail!(
            "--audit-policy-file is only of use together with --audit-log-path or --audit-webhook-config-file"
        );
    }
    Ok(policy.map(|policy| audit::Config { policy, log, webhook }))
}

fn write_kubeconfig(flags: &ServerFlags, pki: &Pki) -> Result<()> {
    let subject =
        Subject { common_name: "isopod-admin", organizations: &[SYSTEM_MASTERS], ..Subject::default() };
    let admin = pki.leaf("admin", &subject)?;
    let text = pki::kubeconfig(&flags.local_url(), pki.ca_certificate(), "isopod-admin", &admin);
    if let Some(parent) = flags.write_kubeconfig.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    pki::write_private(&flags.write_kubeconfig, &text)
}

pub fn component(local: &Local, user: &str, groups: &[&str], agent: &str) -> Client {
    local.client(UserInfo::new(user, groups), agent)
}

/// Clients that act as service accounts of kube-system.
pub fn service_account_clients(local: &Local) -> impl Fn(&str) -> Client + Send + Sync + use<> {
    let local = local.clone();
    move |account| {
        let user = format!("system:serviceaccount:kube-system:{account}");
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
        component(&local, &user, &groups, account)
    }
}

fn start_control_plane(
    components: &mut Supervisor,
    flags: &ServerFlags,
    pki: &Pki,
    local: &Local,
) -> Result<()> {
    let client = component(local, "system:kube-controller-manager", &[], "kube-controller-manager");
    let config = kube_controller_manager::Config {
        cluster_cidrs: vec![flags.cluster_cidr],
        service_cidrs: vec![flags.service_cidr],
        allocate_node_cidrs: true,
        leader_elect: false,
        root_ca: Some(pki.ca_certificate().to_owned()),
        service_account_private_key_file: Some(pki.path("sa.key")),
        cluster_signing_cert_file: Some(pki.path("ca.crt")),
        cluster_signing_key_file: Some(pki.path("ca.key")),
        credentials: Some(kube_controller_manager::Credentials(Arc::new(service_account_clients(local)))),
        ..Default::default()
    };
    components.keep_running("kube-controller-manager", move |shutdown| {
        kube_controller_manager::run(config.clone(), client.clone(), shutdown)
    });
    let client = component(local, "system:kube-scheduler", &[], "kube-scheduler");
    components.keep_running("kube-scheduler", move |shutdown| {
        kube_scheduler::run(kube_scheduler::Config::default(), client.clone(), shutdown)
    });
    Ok(())
}
