//! The files the daemon leaves for the runtime and the plugins: the lease, the CNI configuration, the plugin links.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ipnet::Ipv4Net;
use serde_json::json;

use crate::cni::PLUGINS;
use crate::config::Config;

const CONFLIST: &str = "10-flannel.conflist";
const NETWORK: &str = "cbr0";

/// Replaces a file in one step, unless it already says the same.
fn write_atomically(path: &Path, content: &str) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|have| have == content.as_bytes()) {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        // Not ending in .conf: a runtime watching the directory must not read it half written.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dir.join(format!(".{name}.tmp"));
        let mut file = fs::File::create(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// `subnet.env`: the first address of the lease is the node's gateway.
pub fn write_subnet_env(config: &Config, lease: Ipv4Net, mtu: u32) -> anyhow::Result<()> {
    let gateway = std::net::Ipv4Addr::from(u32::from(lease.network()) + 1);
    let content = format!(
        "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={gateway}/{}\nFLANNEL_MTU={mtu}\nFLANNEL_IPMASQ={}\n",
        config.cluster_cidr,
        lease.prefix_len(),
        config.ip_masq
    );
    write_atomically(&config.subnet_env, &content)
}

fn conflist(config: &Config) -> String {
    let conflist = json!({
        "name": NETWORK,
        "cniVersion": "1.0.0",
        "plugins": [
            {
                "type": "flannel",
                "subnetFile": config.subnet_env,
                "dataDir": config.cni_state_dir.join("flannel"),
                "ipam": { "dataDir": config.cni_state_dir.join("networks") },
                // A node that comes back with another subnet takes the bridge along.
                "delegate": { "hairpinMode": true, "isDefaultGateway": true, "forceAddress": true },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    format!("{conflist:#}\n")
}

pub fn write_conflist(config: &Config) -> anyhow::Result<()> {
    write_atomically(&config.cni_conf_dir.join(CONFLIST), &conflist(config))
}

/// Links every plugin name to this binary. A file of that name that is no link of ours belongs to somebody else and
/// stays.
pub fn link_plugins(config: &Config) -> anyhow::Result<()> {
    let target = binary(config)?;
    let dir = &config.cni_bin_dir;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    for plugin in PLUGINS {
        let link = dir.join(plugin);
        match fs::symlink_metadata(&link) {
            Ok(meta) if meta.is_symlink() => {
                if fs::read_link(&link).is_ok_and(|to| to == target) {
                    continue;
                }
            }
            Ok(_) => continue,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("looking at {}", link.display())),
        }
        let temporary = dir.join(format!(".{plugin}.tmp"));
        let _ = fs::remove_file(&temporary);
        std::os::unix::fs::symlink(&target, &temporary)
            .and_then(|()| fs::rename(&temporary, &link))
            .with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(())
}

fn binary(config: &Config) -> anyhow::Result<PathBuf> {
    match &config.plugin_binary {
        Some(path) => Ok(path.clone()),
        None => std::env::current_exe().context("finding the running executable"),
    }
}

pub fn remove_all(config: &Config) -> anyhow::Result<()> {
    let gone = |outcome: std::io::Result<()>, path: &Path| match outcome {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    };
    for file in [config.cni_conf_dir.join(CONFLIST), config.subnet_env.clone()] {
        gone(fs::remove_file(&file), &file)?;
    }
    for dir in [config.cni_state_dir.join("networks").join(NETWORK), config.cni_state_dir.join("flannel")] {
        gone(fs::remove_dir_all(&dir), &dir)?;
    }
    let target = binary(config)?;
    for plugin in PLUGINS {
        let link = config.cni_bin_dir.join(plugin);
        if fs::read_link(&link).is_ok_and(|to| to == target) {
            gone(fs::remove_file(&link), &link)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let config = Config {
            cni_conf_dir: at("net.d"),
            cni_bin_dir: at("bin"),
            subnet_env: at("run/subnet.env"),
            cni_state_dir: at("state"),
            plugin_binary: Some(at("isopod")),
            ..Config::new("n1", "10.244.0.0/16".parse().unwrap())
        };
        for _ in 0..2 {
            write_subnet_env(&config, "10.244.3.0/24".parse().unwrap(), 1450).unwrap();
            write_conflist(&config).unwrap();
            link_plugins(&config).unwrap();
        }
        assert_eq!(
            fs::read_to_string(&config.subnet_env).unwrap(),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        );
        assert_eq!(fs::read_link(at("bin/host-local")).unwrap(), at("isopod"));
        let list: serde_json::Value =
            serde_json::from_slice(&fs::read(at("net.d/10-flannel.conflist")).unwrap()).unwrap();
        assert_eq!(list["plugins"][1]["capabilities"]["portMappings"], true);
        // Somebody's own plugin stays.
        fs::remove_file(at("bin/bridge")).unwrap();
        fs::write(at("bin/bridge"), "theirs").unwrap();
        link_plugins(&config).unwrap();
        remove_all(&config).unwrap();
        remove_all(&config).unwrap();
        assert!(!config.subnet_env.exists() && !at("net.d/10-flannel.conflist").exists());
        let left: Vec<_> = fs::read_dir(at("bin")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["bridge"]);
    }
}
