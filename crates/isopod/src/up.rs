//! `isopod up`: starts a server in the background and returns when its node is Ready.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Node;

use crate::process;
use crate::settings::ServerFlags;

const READY_WITHIN: Duration = Duration::from_secs(120);

/// Starts `isopod server` with `arguments`, the same flags as were given to `up`.
pub async fn run(flags: &ServerFlags, arguments: &[String]) -> Result<()> {
    if let Some(pid) = process::running(&flags.pid_file()) {
        println!("isopod is running already (process {pid})");
        return wait_ready(flags, pid, Instant::now(), 0).await;
    }
    crate::preflight::check(flags)?;
    let started = Instant::now();
    let log_path = flags.log_file();
    std::fs::create_dir_all(&flags.data_dir)
        .with_context(|| format!("create {}", flags.data_dir.display()))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log_path)
        .with_context(|| format!("open {}", log_path.display()))?;
    let log_begins = log.metadata()?.len();
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command
        .arg("server")
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    // SAFETY: setsid is async-signal-safe and touches nothing of the parent's.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    let child = command.spawn().context("start the server")?;
    println!("starting isopod (process {}, log {})", child.id(), log_path.display());
    wait_ready(flags, child.id() as i32, started, log_begins).await
}

async fn wait_ready(flags: &ServerFlags, pid: i32, started: Instant, log_begins: u64) -> Result<()> {
    let progress = |what: &str| println!("  {:>6.2} s  {what}", started.elapsed().as_secs_f64());
    let deadline = started + READY_WITHIN;
    let alive = |what: &str| -> Result<()> {
        if !process::alive(pid) {
            bail!("the server ended while {what}:\n{}", log_tail(&flags.log_file(), log_begins));
        }
        if Instant::now() > deadline {
            bail!(
                "gave up after {} s while {what}; the server goes on. Look into {}",
                READY_WITHIN.as_secs(),
                flags.log_file().display()
            );
        }
        Ok(())
    };
    let client = loop {
        alive("starting the API server")?;
        if let Ok(client) = crate::status::client(flags).await
            && client.apiserver_version().await.is_ok()
        {
            break client;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    progress("API server answers");
    if !flags.disable_agent {
        let name = flags.node_name()?;
        let nodes: kube::Api<Node> = kube::Api::all(client);
        let mut registered = false;
        loop {
            alive("waiting for the node to become Ready")?;
            if let Ok(Some(node)) = nodes.get_opt(&name).await {
                if !registered {
                    progress(&format!("node {name} registered"));
                    registered = true;
                }
                if crate::status::is_ready(&node) {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        progress(&format!("node {name} is Ready"));
    }
    println!("\nThe cluster is up. Reach it with:\n  export KUBECONFIG={}", flags.write_kubeconfig.display());
    println!("  kubectl get nodes");
    Ok(())
}

fn log_tail(path: &Path, from: u64) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes.get(from as usize..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
