//! `isopod status`: what runs, as the API tells it.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::process;
use crate::settings::ServerFlags;

/// A client with the administrator's kubeconfig.
pub async fn client(flags: &ServerFlags) -> Result<kube::Client> {
    let path = &flags.write_kubeconfig;
    let kubeconfig = Kubeconfig::read_from(path).with_context(|| {
        format!("read {}; is the cluster up, and are you allowed to read it? (isopod up)", path.display())
    })?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

pub async fn run(flags: &ServerFlags) -> Result<()> {
    match process::running(&flags.pid_file()) {
        Some(pid) => println!("server      running (process {pid}, {} MB resident)", resident_mb(pid)),
        None => println!("server      not running (start it with isopod up)"),
    }
    let client = client(flags).await?;
    let version = client.apiserver_version().await.context("ask the API server for its version")?;
    println!("API server  {} at {}", version.git_version, flags.local_url());
    let ready = client.request_text(http::Request::get("/readyz").body(Vec::new())?).await;
    println!("readyz      {}", ready.unwrap_or_else(|e| e.to_string()).trim());
    for node in kube::Api::<Node>::all(client.clone()).list(&Default::default()).await?.items {
        let state = if is_ready(&node) { "Ready" } else { "NotReady" };
        println!("node        {} {state}", node.metadata.name.unwrap_or_default());
    }
    let pods = kube::Api::<Pod>::all(client).list(&Default::default()).await?.items;
    let running =
        pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")).count();
    println!("pods        {} ({running} running)", pods.len());
    println!("kubeconfig  {}", flags.write_kubeconfig.display());
    Ok(())
}

fn resident_mb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}
