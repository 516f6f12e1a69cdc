//! `isopod down`: ends everything that `up` began and removes what it left on the machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::settings::ServerFlags;
use crate::{leftovers, process};

const SERVER_ENDS_WITHIN: Duration = Duration::from_secs(40);

pub async fn run(flags: &ServerFlags, purge: bool) -> Result<()> {
    if let Some(pid) = process::running(&flags.pid_file()) {
        println!("ending the server (process {pid})");
        process::end(pid, SERVER_ENDS_WITHIN).await?;
    }
    if !flags.disable_agent {
        end_node(flags).await?;
    }
    if purge {
        for directory in [&flags.data_dir, &flags.run_dir] {
            remove_directory(directory)?;
        }
        match std::fs::remove_file(&flags.write_kubeconfig) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", flags.write_kubeconfig.display()));
            }
            _ => {}
        }
        println!("deleted {}", flags.data_dir.display());
    }
    println!("the cluster is down");
    Ok(())
}

async fn end_node(flags: &ServerFlags) -> Result<()> {
    if flags.container_runtime_endpoint.is_none() {
        let node = kubelet::Config::new(flags.node_name()?, &flags.data_dir, &flags.run_dir);
        println!("ending pods and the runtime");
        node.containerd.stop().await.context("end the runtime")?;
    }
    kube_proxy::cleanup().await.context("remove kube-proxy's rules")?;
    flannel::cleanup(&flags.flannel_config()?).context("remove flannel's network")?;
    let kept = leftovers::unmount_below(&[&flags.data_dir, &flags.run_dir]);
    for path in kept {
        eprintln!("isopod: {} could not be unmounted", path.display());
    }
    leftovers::remove_cgroups(&flags.cgroup_root);
    Ok(())
}

fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", path.display()))
        }
        _ => Ok(()),
    }
}
