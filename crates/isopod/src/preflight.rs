//! What must be there before a server starts, checked first, with the remedy in the message.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::settings::ServerFlags;

pub fn check(flags: &ServerFlags) -> Result<()> {
    let mut problems = Vec::new();
    let address = SocketAddr::new(flags.bind_address, flags.https_listen_port);
    if let Err(error) = TcpListener::bind(address) {
        problems.push(format!(
            "cannot listen on {address}: {error}. Stop what uses the port, or choose another with --https-listen-port"
        ));
    }
    if !flags.disable_agent {
        node(flags, &mut problems);
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("this machine is not ready for Isopod:\n  - {}", problems.join("\n  - "))
}

fn node(flags: &ServerFlags, problems: &mut Vec<String>) {
    if !nix::unistd::geteuid().is_root() {
        problems.push(
            "a node needs root. Run it with sudo, or start the control plane alone with --disable-agent"
                .into(),
        );
    }
    if flags.container_runtime_endpoint.is_none() {
        for (program, package) in [("containerd", "containerd"), ("runc", "runc")] {
            if find_program(program).is_none() {
                problems.push(format!(
                    "{program} is missing. Install it (apt-get install {package}), or name a running runtime with \
                     --container-runtime-endpoint"
                ));
            }
        }
    }
    if find_program("nft").is_none() {
        problems.push("nft is missing. Install it (apt-get install nftables)".into());
    }
    let cgroups = Path::new("/sys/fs/cgroup");
    let v2 = cgroups.join("cgroup.controllers").exists();
    if !v2 && !["cpu", "memory", "pids"].iter().all(|c| cgroups.join(c).join("cgroup.procs").exists()) {
        problems.push(
            "the cpu, memory and pids cgroup controllers are not mounted below /sys/fs/cgroup. Mount cgroup v2 \
             (mount -t cgroup2 none /sys/fs/cgroup), or run on a host where it is"
                .into(),
        );
    }
}

/// Looks a program up on PATH and in the usual system directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        .filter(|d| !d.is_empty())
        .map(|d| Path::new(d).join(name))
        .find(|p| p.is_file())
}
