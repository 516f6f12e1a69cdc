//! What the daemon is told, and how everything it and the plugins made is taken away again.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Context;
use ipnet::Ipv4Net;
use serde_json::Value;

use crate::netlink::Netlink;
use crate::{backend, files, masquerade, nft};

/// How pods of different nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A VXLAN tunnel: works wherever nodes reach each other by UDP.
    Vxlan { vni: u32, port: u16 },
    /// Plain routes: all nodes in one layer-2 network.
    HostGw,
}

impl Default for Backend {
    fn default() -> Backend {
        Backend::Vxlan { vni: 1, port: 8472 }
    }
}

impl Backend {
    /// The name in the `backend-type` annotation.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Vxlan { .. } => "vxlan",
            Backend::HostGw => "host-gw",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The network all pod addresses are from.
    pub cluster_cidr: Ipv4Net,
    pub backend: Backend,
    /// The interface (name or address) to the other nodes; by default the one of the default route.
    pub iface: Option<String>,
    /// The address other nodes reach this one at; by default the interface's first.
    pub public_ip: Option<Ipv4Addr>,
    /// Masquerade what leaves the pod network.
    pub ip_masq: bool,
    pub cni_conf_dir: PathBuf,
    /// Where links from the plugins' names to this binary are made.
    pub cni_bin_dir: PathBuf,
    pub subnet_env: PathBuf,
    /// Where the plugins keep `networks/` and `flannel/`.
    pub cni_state_dir: PathBuf,
    /// What the plugin links point to; by default the running executable.
    pub plugin_binary: Option<PathBuf>,
}

impl Config {
    pub fn new(node_name: impl Into<String>, cluster_cidr: Ipv4Net) -> Config {
        Config {
            node_name: node_name.into(),
            cluster_cidr,
            backend: Backend::default(),
            iface: None,
            public_ip: None,
            ip_masq: true,
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dir: "/opt/cni/bin".into(),
            subnet_env: "/run/flannel/subnet.env".into(),
            cni_state_dir: "/var/lib/cni".into(),
            plugin_binary: None,
        }
    }
}

/// Flags of the stand-alone daemon, named as flanneld's.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Interface (name or IP) to use for communication between nodes.
    #[arg(long)]
    pub iface: Option<String>,
    /// IP address other nodes reach this one at.
    #[arg(long)]
    pub public_ip: Option<Ipv4Addr>,
    /// Masquerade traffic that leaves the pod network.
    #[arg(long, default_value_t = false)]
    pub ip_masq: bool,
    /// Take the subnet from the Kubernetes node (the only way so far).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub kube_subnet_mgr: bool,
    /// Where to write the lease for the CNI plugin.
    #[arg(long, default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,
    /// The network configuration (net-conf.json).
    #[arg(long, default_value = "/etc/kube-flannel/net-conf.json")]
    pub net_config_path: PathBuf,
    /// Path to a kubeconfig.
    #[arg(long)]
    pub kubeconfig_file: Option<PathBuf>,
    /// Directory for the CNI configuration.
    #[arg(long, default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directory for the CNI plugins.
    #[arg(long, default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
}

impl Flags {
    /// Reads net-conf.json and completes the configuration of node `node_name`.
    pub fn into_config(self, node_name: &str) -> anyhow::Result<Config> {
        anyhow::ensure!(
            self.kube_subnet_mgr,
            "only --kube-subnet-mgr is supported: leases come from the Kubernetes API"
        );
        let path = &self.net_config_path;
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let (cluster_cidr, backend) =
            parse_net_conf(&text).with_context(|| format!("in {}", path.display()))?;
        Ok(Config {
            backend,
            iface: self.iface,
            public_ip: self.public_ip,
            ip_masq: self.ip_masq,
            cni_conf_dir: self.cni_conf_dir,
            cni_bin_dir: self.cni_bin_dir,
            subnet_env: self.subnet_file,
            ..Config::new(node_name, cluster_cidr)
        })
    }
}

fn parse_net_conf(text: &str) -> anyhow::Result<(Ipv4Net, Backend)> {
    let value: Value = serde_json::from_str(text)?;
    let network = value["Network"].as_str().context("no Network")?;
    let network: Ipv4Net = network.parse().with_context(|| format!("Network {network:?}"))?;
    let conf = &value["Backend"];
    let number = |field: &str, default: u64| conf[field].as_u64().filter(|n| *n > 0).unwrap_or(default);
    let backend = match conf["Type"].as_str().unwrap_or("vxlan") {
        "vxlan" => Backend::Vxlan {
            vni: number("VNI", 1).try_into().context("VNI")?,
            port: number("Port", 8472).try_into().context("Port")?,
        },
        "host-gw" => Backend::HostGw,
        other => anyhow::bail!("backend {other:?} is not supported; vxlan and host-gw are"),
    };
    Ok((network.trunc(), backend))
}

/// Removes the bridge with its pods' links, the tunnel, all rules and all state. Safe to repeat; goes on after a
/// failure and reports the first.
pub fn cleanup(config: &Config) -> anyhow::Result<()> {
    let mut first = Ok(());
    let mut keep = |outcome: anyhow::Result<()>| {
        if let Err(e) = outcome {
            tracing::warn!(error = format!("{e:#}"), "cleaning up the pod network");
            if first.is_ok() {
                first = Err(e);
            }
        }
    };
    keep(remove_links());
    for (family, table) in [
        ("ip", masquerade::TABLE),
        ("ip", crate::cni::HOSTPORT_TABLE),
        ("ip6", crate::cni::HOSTPORT_TABLE),
        ("ip", crate::cni::MASQUERADE_TABLE),
        ("ip6", crate::cni::MASQUERADE_TABLE),
    ] {
        keep(nft::delete_table(family, table).with_context(|| format!("removing table {family} {table}")));
    }
    keep(files::remove_all(config));
    first
}

fn remove_links() -> anyhow::Result<()> {
    let mut netlink = Netlink::open().context("opening netlink")?;
    let links = netlink.links().context("listing links")?;
    let bridge = links.iter().find(|l| l.name == backend::BRIDGE && l.kind == "bridge");
    for link in &links {
        let port = link.kind == "veth" && bridge.is_some_and(|b| link.master == Some(b.index));
        // A lone veth of ours: its bridge went first.
        let leftover = link.kind == "veth"
            && link.master.is_none()
            && link.name.len() == 12
            && link.name.starts_with("veth")
            && link.name[4..].bytes().all(|b| b.is_ascii_hexdigit());
        let tunnel = link.kind == "vxlan" && link.name.starts_with("flannel.");
        if port || (leftover && bridge.is_some()) || tunnel || bridge.is_some_and(|b| b.index == link.index) {
            match netlink.delete_link(link.index) {
                Err(e) if e.raw_os_error() != Some(libc::ENODEV) => {
                    return Err(e).with_context(|| format!("deleting link {}", link.name));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The address of an interface option, when it is one.
pub fn iface_address(iface: &str) -> Option<IpAddr> {
    iface.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_net_conf() {
        let (network, backend) =
            parse_net_conf(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789}}"#)
                .unwrap();
        assert_eq!(network.to_string(), "10.244.0.0/16");
        assert_eq!(backend, Backend::Vxlan { vni: 1, port: 4789 });
        assert_eq!(
            parse_net_conf(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"host-gw"}}"#).unwrap().1,
            Backend::HostGw
        );
        for bad in ["{}", r#"{"Network":"x"}"#, r#"{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard"}}"#]
        {
            assert!(parse_net_conf(bad).is_err(), "{bad}");
        }
    }
}
