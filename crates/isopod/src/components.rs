//! Each component alone, under its own name and with upstream's main flags, talking to any API server over HTTPS.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use client::Client;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::Told;
use crate::{apiserver, residency};

/// Where `isopod up` leaves the kubeconfig.
const ADMIN_KUBECONFIG: &str = "/etc/isopod/kubeconfig.yaml";

#[derive(Debug, Subcommand)]
pub enum Component {
    /// Run the API server alone, on any etcd v3
    KubeApiserver(Box<kube_apiserver::Flags>),
    /// Run the key-value store alone, or work on its snapshots
    #[command(args_conflicts_with_subcommands = true)]
    Etcd {
        #[command(flatten)]
        flags: Box<etcd::flags::Flags>,
        #[command(subcommand)]
        tool: Option<etcd::tools::Tool>,
    },
    /// Run the controllers alone
    KubeControllerManager(Box<kube_controller_manager::Flags>),
    /// Run the scheduler alone
    KubeScheduler(Box<kube_scheduler::Flags>),
    /// Run a node's kubelet alone
    Kubelet {
        #[command(flatten)]
        flags: Box<kubelet::Flags>,
        /// Where the kubelet's own containerd and its images are kept, and volumes unless --root-dir says otherwise
        #[arg(long, default_value = "/var/lib/isopod", env = "ISOPOD_DATA_DIR")]
        data_dir: PathBuf,
        /// Where the containerd's sockets are kept
        #[arg(long, default_value = "/run/isopod", env = "ISOPOD_RUN_DIR")]
        run_dir: PathBuf,
    },
    /// Run a node's service proxy alone
    KubeProxy(Box<kube_proxy::Flags>),
    /// Run a node's pod network alone
    Flannel(Box<flannel::Flags>),
    /// Run the cluster's DNS alone
    ClusterDns(Box<cluster_dns::Flags>),
}

/// Runs a component until it is told to end. `told` is what its command line says.
pub async fn run(component: Component, told: Told) -> Result<()> {
    let shutdown = shutdown_on_signal()?;
    tokio::spawn(residency::keep_small(shutdown.clone()));
    match component {
        Component::KubeApiserver(flags) => Box::pin(apiserver::run(&flags, told, shutdown)).await,
        Component::Etcd { tool: Some(tool), .. } => etcd::tools::run(tool).await,
        Component::Etcd { flags, tool: None } => Box::pin(etcd::server::run(flags.config()?, shutdown)).await,
        Component::KubeControllerManager(flags) => {
            let client = connect(flags.kubeconfig.as_deref(), "kube-controller-manager").await?;
            Box::pin(kube_controller_manager::run((*flags).into(), client, shutdown)).await
        }
        Component::KubeScheduler(flags) => {
            let client = connect(flags.kubeconfig.as_deref(), "kube-scheduler").await?;
            Box::pin(kube_scheduler::run(kube_scheduler::Config::default(), client, shutdown)).await
        }
        Component::Kubelet { flags, data_dir, run_dir } => {
            let client = connect(flags.kubeconfig.as_deref(), "kubelet").await?;
            let mut config = kubelet::Config::new(host_name()?, data_dir, run_dir);
            flags.apply(&mut config)?;
            if config.container_runtime_endpoint.is_none() {
                config.on_runtime_ready = Some(crate::pause::importer());
            }
            Box::pin(kubelet::run(config, client, shutdown)).await
        }
        Component::KubeProxy(flags) if flags.cleanup => kube_proxy::cleanup().await,
        Component::KubeProxy(flags) => {
            let client = connect(flags.kubeconfig.as_deref(), "kube-proxy").await?;
            let config = flags.into_config(&host_name()?)?;
            Box::pin(kube_proxy::run(config, client, shutdown)).await
        }
        Component::Flannel(flags) => {
            let client = connect(flags.kubeconfig_file.as_deref(), "flannel").await?;
            let node = std::env::var("NODE_NAME").or_else(|_| host_name())?;
            let config = flags.into_config(&node)?;
            Box::pin(flannel::run(config, client, shutdown)).await
        }
        Component::ClusterDns(flags) => {
            let client = connect(flags.kubeconfig.as_deref(), "cluster-dns").await?;
            Box::pin(cluster_dns::run(flags.into_config(), client, shutdown)).await
        }
    }
}

/// The API server of `--kubeconfig`, of `KUBECONFIG`, or of the cluster that `isopod up` started here.
async fn connect(kubeconfig: Option<&Path>, component: &str) -> Result<Client> {
    let path = match kubeconfig {
        Some(path) => path.to_owned(),
        None => std::env::var_os("KUBECONFIG").map_or_else(|| ADMIN_KUBECONFIG.into(), PathBuf::from),
    };
    if !path.exists() {
        bail!("{} does not exist; say with --kubeconfig how to reach the API server", path.display());
    }
    Ok(Client::from_kubeconfig(path, component).await?)
}

fn host_name() -> Result<String> {
    let name = nix::unistd::gethostname().context("read the host name")?;
    Ok(name.to_string_lossy().to_lowercase())
}

fn shutdown_on_signal() -> Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    // Lives as long as the process does.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(shutdown)
}
