//! Starting the controllers and keeping them.

use std::sync::Arc;

use anyhow::Context as _;
use apimachinery::clock::Clock;
use client::{Client, LeaderElection, LeaderElector};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Config;

/// What every controller gets.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Arc<Config>,
    pub(crate) clock: Clock,
    pub(crate) shutdown: CancellationToken,
}

/// Controllers that run only when they are named.
const ON_REQUEST: [&str; 2] = ["bootstrap-signer-controller", "token-cleaner-controller"];

type Start = fn(Context) -> BoxFuture<'static, anyhow::Result<()>>;

macro_rules! controllers {
    ($($name:literal => $run:path),* $(,)?) => {
        &[$(($name, |ctx| $run(ctx).boxed())),*]
    };
}

/// Upstream's controller names. All but those in [`ON_REQUEST`] are on by default.
const CONTROLLERS: &[(&str, Start)] = controllers! {
    "namespace-controller" => crate::namespace::run,
    "serviceaccount-controller" => crate::serviceaccount::run,
    "serviceaccount-token-controller" => crate::serviceaccount_tokens::run,
    "legacy-serviceaccount-token-cleaner-controller" => crate::serviceaccount_token_cleaner::run,
    "root-ca-certificate-publisher-controller" => crate::root_ca::run,
    "replicaset-controller" => crate::replicaset::run_replica_sets,
    "replicationcontroller-controller" => crate::replicaset::run_replication_controllers,
    "deployment-controller" => crate::deployment::run,
    "garbage-collector-controller" => crate::garbagecollector::run,
    "node-lifecycle-controller" => crate::nodelifecycle::run,
    "node-ipam-controller" => crate::nodeipam::run,
    "taint-eviction-controller" => crate::tainteviction::run,
    "pod-garbage-collector-controller" => crate::podgc::run,
    "daemonset-controller" => crate::daemonset::run,
    "statefulset-controller" => crate::statefulset::run,
    "cronjob-controller" => crate::cronjob::run,
    "job-controller" => crate::job::run,
    "ttl-after-finished-controller" => crate::ttlafterfinished::run,
    "resourcequota-controller" => crate::resourcequota::run,
    "disruption-controller" => crate::disruption::run,
    "clusterrole-aggregation-controller" => crate::clusterroleaggregation::run,
    "persistentvolumeclaim-protection-controller" => crate::volumeprotection::run_claims,
    "persistentvolume-protection-controller" => crate::volumeprotection::run_volumes,
    "volumeattributesclass-protection-controller" => crate::volumeprotection::run_attributes_classes,
    "endpointslice-mirroring-controller" => crate::endpointslicemirroring::run,
    "service-cidr-controller" => crate::servicecidrs::run,
    "persistentvolume-binder-controller" => crate::volumebinder::run,
    "ephemeral-volume-controller" => crate::volumebinder::run_ephemeral,
    "endpoints-controller" => crate::endpoints::run,
    "endpointslice-controller" => crate::endpointslice::run,
    "certificatesigningrequest-signing-controller" => crate::certificates::signing::run,
    "certificatesigningrequest-approving-controller" => crate::certificates::approving::run,
    "certificatesigningrequest-cleaner-controller" => crate::certificates::cleaner::run,
    "bootstrap-signer-controller" => crate::bootstrap_tokens::run_signer,
    "token-cleaner-controller" => crate::bootstrap_tokens::run_cleaner,
};

/// Runs the controllers until `shutdown`; with leader election, while holding the lease. Losing the lease is an
/// error: whoever runs the process decides whether to start over.
pub async fn run(mut config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    for entry in &config.controllers {
        let name = crate::config::canonical(entry.trim_start_matches('-'));
        if name != "*" && !CONTROLLERS.iter().any(|(known, _)| *known == name) {
            tracing::warn!(name, "no controller of this name");
        }
    }
    if let (None, Some(path)) = (&config.root_ca, &config.root_ca_file) {
        let pem = tokio::fs::read_to_string(path).await;
        config.root_ca = Some(pem.with_context(|| format!("--root-ca-file {}", path.display()))?);
    }
    let (leader_elect, identity) = (config.leader_elect, config.identity.clone());
    let ctx = Context {
        client: client.clone(),
        config: Arc::new(config),
        clock: Clock::system(),
        shutdown: shutdown.clone(),
    };
    if !leader_elect {
        run_all(ctx).await;
        return Ok(());
    }
    let election = LeaderElection::new("kube-system", "kube-controller-manager", identity);
    let lost = LeaderElector::new(&client, election)
        .run(shutdown, |leading| run_all(Context { shutdown: leading, ..ctx }))
        .await;
    anyhow::ensure!(!lost, "lost the lease kube-system/kube-controller-manager");
    Ok(())
}

/// The service account in kube-system whose role a controller acts under (upstream's bootstrap policy). Most are
/// named as the controller.
fn service_account(controller: &'static str) -> &'static str {
    match controller {
        "serviceaccount-controller" => "service-account-controller",
        "legacy-serviceaccount-token-cleaner-controller" => "legacy-service-account-token-cleaner",
        "root-ca-certificate-publisher-controller" => "root-ca-cert-publisher",
        "replicationcontroller-controller" => "replication-controller",
        "endpoints-controller" => "endpoint-controller",
        "endpointslice-mirroring-controller" => "endpointslicemirroring-controller",
        "garbage-collector-controller" => "generic-garbage-collector",
        "pod-garbage-collector-controller" => "pod-garbage-collector",
        "node-ipam-controller" | "node-lifecycle-controller" | "taint-eviction-controller" => {
            "node-controller"
        }
        "daemonset-controller" => "daemon-set-controller",
        "horizontal-pod-autoscaler-controller" => "horizontal-pod-autoscaler",
        "persistentvolume-binder-controller" => "persistent-volume-binder",
        "persistentvolumeclaim-protection-controller" => "pvc-protection-controller",
        "persistentvolume-protection-controller" => "pv-protection-controller",
        "service-cidr-controller" => "service-cidrs-controller",
        "persistentvolume-attach-detach-controller" => "attachdetach-controller",
        "persistentvolume-expander-controller" => "expand-controller",
        "certificatesigningrequest-signing-controller"
        | "certificatesigningrequest-approving-controller"
        | "certificatesigningrequest-cleaner-controller" => "certificate-controller",
        "bootstrap-signer-controller" => "bootstrap-signer",
        "token-cleaner-controller" => "token-cleaner",
        same => same,
    }
}

async fn run_all(ctx: Context) {
    let mut running = JoinSet::new();
    for (name, start) in CONTROLLERS {
        if !ctx.config.enables(name, !ON_REQUEST.contains(name)) {
            continue;
        }
        let ctx = match &ctx.config.credentials {
            // It hands out others' credentials, and is no account itself.
            Some(_) if *name == "serviceaccount-token-controller" => ctx.clone(),
            Some(credentials) => Context { client: (credentials.0)(service_account(name)), ..ctx.clone() },
            None => ctx.clone(),
        };
        let controller = start(ctx);
        running.spawn(async move {
            if let Err(error) = controller.await {
                tracing::error!(controller = name, error = format!("{error:#}"), "controller failed");
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller crashed");
        }
    }
}
