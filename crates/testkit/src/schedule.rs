//! How soon pods are bound to nodes, on a control plane whose nodes exist by name only.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(300);
const IN_FLIGHT: usize = 64;

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// How to reach the cluster
    #[arg(long)]
    kubeconfig: PathBuf,
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    #[arg(long, default_value_t = 5000)]
    pods: usize,
}

pub async fn run(flags: Flags) -> Result<()> {
    let client = crate::pods::connect(&flags.kubeconfig).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client);
    let made = stream::iter((0..flags.nodes).map(Ok)).try_for_each_concurrent(IN_FLIGHT, |i| {
        let nodes = &nodes;
        async move { nodes.create(&PostParams::default(), &node(i)?).await.map(drop).context("create a node") }
    });
    made.await?;
    // A new node is tainted until the node controller has seen that it is Ready.
    let tainted = || async {
        let all = nodes.list(&ListParams::default()).await?;
        anyhow::Ok(all.items.iter().filter(|n| n.spec.as_ref().is_some_and(|s| s.taints.is_some())).count())
    };
    none_left("nodes are tainted", tainted).await?;
    let began = Instant::now();
    let bodies: Vec<Pod> = (0..flags.pods).map(pod).collect::<Result<_>>()?;
    let parameters = PostParams::default();
    let made = stream::iter(&bodies).map(|body| pods.create(&parameters, body));
    made.buffer_unordered(IN_FLIGHT).try_for_each(|_| async { Ok(()) }).await.context("create a pod")?;
    let created = began.elapsed();
    let unbound = || async {
        let some = ListParams::default().fields("spec.nodeName=").limit(1);
        let found = pods.list_metadata(&some).await?;
        anyhow::Ok(found.items.len() + found.metadata.remaining_item_count.unwrap_or(0) as usize)
    };
    none_left("pods have no node", unbound).await?;
    let took = began.elapsed().as_secs_f64();
    println!(
        "{} pods on {} nodes, create to bind: {took:.2} s, {:.0} pods/s (created within {:.2} s)",
        flags.pods,
        flags.nodes,
        flags.pods as f64 / took,
        created.as_secs_f64()
    );
    Ok(())
}

/// Asks until nothing is left.
async fn none_left<F: Future<Output = Result<usize>>>(what: &str, mut left: impl FnMut() -> F) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = left().await?;
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{left} {what} after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn node(i: usize) -> Result<Node> {
    let now = k8s_openapi::jiff::Timestamp::now();
    let resources = json!({"cpu": "32", "memory": "256Gi", "pods": "110"});
    Ok(serde_json::from_value(json!({
        "metadata": {"name": format!("node-{i}"), "labels": {"kubernetes.io/hostname": format!("node-{i}"),
            "topology.kubernetes.io/zone": format!("zone-{}", i % 3)}},
        "status": {"capacity": resources, "allocatable": resources, "conditions": [{"type": "Ready", "status": "True",
            "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}]},
    }))?)
}

fn pod(i: usize) -> Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": format!("pod-{i}"), "labels": {"app": "scheduled"}},
        "spec": {"containers": [{"name": "c", "image": "pause",
            "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}}}]},
    }))?)
}
