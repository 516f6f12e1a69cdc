//! `isopod images`: image archives into and out of the node's runtime.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::preflight::find_program;
use crate::settings::ServerFlags;

/// The namespace in which the CRI keeps its images.
const NAMESPACE: &str = "k8s.io";

/// The runtime's socket as a path.
pub fn socket(flags: &ServerFlags) -> PathBuf {
    match &flags.container_runtime_endpoint {
        Some(endpoint) => endpoint.strip_prefix("unix://").unwrap_or(endpoint).into(),
        None => flags.run_dir.join("containerd/containerd.sock"),
    }
}

fn ctr(socket: &Path) -> Result<Command> {
    let Some(program) = find_program("ctr") else {
        bail!("ctr is missing; it comes with containerd (apt-get install containerd)")
    };
    let mut command = Command::new(program);
    command.arg("--address").arg(socket).arg("--namespace").arg(NAMESPACE);
    command.kill_on_drop(true);
    Ok(command)
}

/// Imports archives as `docker save` and OCI tools write them.
pub async fn import(flags: &ServerFlags, archives: &[PathBuf]) -> Result<()> {
    for archive in archives {
        let output =
            ctr(&socket(flags))?.args(["images", "import"]).arg(archive).output().await.context("run ctr")?;
        if !output.status.success() {
            bail!("import {}: {}", archive.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        print!("{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// Lists what the runtime holds.
pub async fn list(flags: &ServerFlags) -> Result<()> {
    let output = ctr(&socket(flags))?.args(["images", "list", "-q"]).output().await.context("run ctr")?;
    if !output.status.success() {
        bail!("list images: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    for name in String::from_utf8_lossy(&output.stdout).lines().filter(|n| !n.starts_with("sha256:")) {
        println!("{name}");
    }
    Ok(())
}

/// Imports an archive from memory unless an image of that name is there.
pub async fn ensure(socket: &Path, name: &str, archive: impl FnOnce() -> Result<Vec<u8>>) -> Result<()> {
    let filter = format!("name=={name}");
    let listed = ctr(socket)?.args(["images", "list", "-q", &filter]).output().await.context("run ctr")?;
    if String::from_utf8_lossy(&listed.stdout).lines().any(|line| line == name) {
        return Ok(());
    }
    let mut child = ctr(socket)?
        .args(["images", "import", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ctr")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&archive()?).await.context("hand the image to ctr")?;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("import {name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
