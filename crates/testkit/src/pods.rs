//! How long pods take to become Ready on a cluster that runs: one after another, and many of one Deployment at once.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// How to reach the cluster
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Image of the pods; it must be on the node
    #[arg(long, default_value = "isopod.local/pause:1")]
    image: String,
    /// Only wait for a first pod, and print the seconds since this moment (of the Unix epoch)
    #[arg(long)]
    first_since: Option<f64>,
    /// Pods made one after another
    #[arg(long, default_value_t = 20)]
    single: usize,
    /// Replicas of the Deployment
    #[arg(long, default_value_t = 60)]
    replicas: usize,
}

pub async fn run(flags: Flags) -> Result<()> {
    let client = connect(&flags.kubeconfig).await?;
    if let Some(since) = flags.first_since {
        one(&client, &flags.image, "first").await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        println!("exec to the first pod Ready: {:.3} s", now - since);
        return Ok(());
    }
    let mut times = Vec::with_capacity(flags.single);
    for i in 0..flags.single {
        times.push(one(&client, &flags.image, &format!("single-{i}")).await?);
    }
    times.sort();
    if let (Some(fastest), Some(slowest)) = (times.first(), times.last()) {
        let median = times[times.len() / 2];
        println!(
            "one pod to Ready: {fastest:.0?} fastest, {median:.0?} median, {slowest:.0?} slowest of {}",
            times.len()
        );
    }
    many(&client, &flags.image, flags.replicas).await
}

/// Waits for a server that may just be starting.
pub(crate) async fn connect(path: &PathBuf) -> Result<Client> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(kubeconfig) = Kubeconfig::read_from(path) {
            let config =
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            let client = Client::try_from(config)?;
            if client.apiserver_version().await.is_ok() {
                return Ok(client);
            }
        }
        if Instant::now() > deadline {
            bail!("no server answers as {} says", path.display());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Makes a pod, waits until it is Ready, deletes it. The time from the request to the event.
async fn one(client: &Client, image: &str, name: &str) -> Result<Duration> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image}]},
    }))?;
    let deadline = Instant::now() + PATIENCE;
    let (began, made) = loop {
        let began = Instant::now();
        match pods.create(&PostParams::default(), &pod).await {
            Ok(made) => break (began, made),
            // The namespace's service account may not be there yet.
            Err(kube::Error::Api(status)) if status.code == 403 && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => return Err(error).context("create a pod"),
        }
    };
    let version = made.metadata.resource_version.unwrap_or_default();
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(290);
    let mut events = pods.watch(&parameters, &version).await?.boxed();
    while let Some(event) = events.try_next().await? {
        if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event
            && ready(&pod)
        {
            let took = began.elapsed();
            pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
            return Ok(took);
        }
    }
    bail!("pod {name} did not become Ready")
}

async fn many(client: &Client, image: &str, replicas: usize) -> Result<()> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let deployment: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "many"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "many"}},
            "template": {
                "metadata": {"labels": {"app": "many"}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image}]},
            },
        },
    }))?;
    let began = Instant::now();
    let made = deployments.create(&PostParams::default(), &deployment).await?;
    let version = made.metadata.resource_version.unwrap_or_default();
    let parameters = WatchParams::default().fields("metadata.name=many").timeout(290);
    let mut events = deployments.watch(&parameters, &version).await?.boxed();
    while let Some(event) = events.try_next().await? {
        let WatchEvent::Modified(deployment) = event else { continue };
        if deployment.status.and_then(|s| s.ready_replicas) == Some(replicas as i32) {
            let took = began.elapsed().as_secs_f64();
            println!(
                "{replicas} pods of one Deployment to Ready: {took:.2} s, {:.1} pods/s",
                replicas as f64 / took
            );
            deployments.delete("many", &DeleteParams::foreground()).await?;
            return Ok(());
        }
    }
    bail!("{replicas} replicas did not become Ready")
}
