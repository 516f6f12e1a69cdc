//! What the proxy is told, and how everything it made is taken away again.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;

use crate::nft;
use crate::ruleset::LocalTraffic;
use crate::table::{NodePortAddresses, TABLE};

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// How traffic of pods is told from other traffic, which is masqueraded on its way to a cluster IP.
    pub local_traffic: LocalTraffic,
    /// The networks cluster IPs are from; traffic to one nobody has is dropped.
    pub service_cidrs: Vec<IpNet>,
    pub masquerade_all: bool,
    pub node_port_addresses: NodePortAddresses,
    /// Node ports answer on 127.0.0.1 too (IPv4).
    pub localhost_node_ports: bool,
    pub healthz_bind_address: Option<SocketAddr>,
    pub metrics_bind_address: Option<SocketAddr>,
    /// The least time between two transactions. The first change after a quiet time is never delayed.
    pub min_sync_period: Duration,
    /// The address of this node, where the node object is not to say.
    pub node_ip: Option<IpAddr>,
    /// The conntrack table holds at least this many flows, and this many per CPU; 0 leaves it alone.
    pub conntrack_min: u32,
    pub conntrack_max_per_core: u32,
}

impl Config {
    pub fn new(node_name: impl Into<String>, cluster_cidrs: Vec<IpNet>, service_cidrs: Vec<IpNet>) -> Config {
        Config {
            node_name: node_name.into(),
            local_traffic: match cluster_cidrs.is_empty() {
                true => LocalTraffic::Unknown,
                false => LocalTraffic::Cidrs(cluster_cidrs),
            },
            service_cidrs,
            masquerade_all: false,
            node_port_addresses: NodePortAddresses::All,
            localhost_node_ports: true,
            healthz_bind_address: Some(SocketAddr::from(([0, 0, 0, 0], 10256))),
            metrics_bind_address: Some(SocketAddr::from(([127, 0, 0, 1], 10249))),
            min_sync_period: Duration::from_millis(50),
            node_ip: None,
            conntrack_min: 131_072,
            conntrack_max_per_core: 32_768,
        }
    }
}

/// Flags of the stand-alone proxy, named as upstream's.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Path to a kubeconfig.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The name of the node this runs on, where it is not the host's.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// The CIDR ranges of pods.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNet>,
    /// The CIDR ranges of cluster IPs.
    #[arg(long, value_delimiter = ',')]
    pub service_cidr: Vec<IpNet>,
    /// How traffic of pods is recognized: ClusterCIDR, BridgeInterface or InterfaceNamePrefix.
    #[arg(long, default_value = "ClusterCIDR")]
    pub detect_local_mode: String,
    /// The bridge of pods, for BridgeInterface.
    #[arg(long)]
    pub pod_bridge_interface: Option<String>,
    /// The beginning of pod interfaces' names, for InterfaceNamePrefix.
    #[arg(long)]
    pub pod_interface_name_prefix: Option<String>,
    /// Masquerade everything sent to cluster IPs.
    #[arg(long)]
    pub masquerade_all: bool,
    /// CIDR ranges whose local addresses accept node ports, or "primary".
    #[arg(long, value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// The proxy mode: nftables.
    #[arg(long, default_value = "nftables")]
    pub proxy_mode: String,
    /// This node's address, where the node object is not to say.
    #[arg(long)]
    pub bind_address: Option<IpAddr>,
    #[arg(long, default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: String,
    #[arg(long, default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: String,
    #[arg(long, default_value_t = 32_768)]
    pub conntrack_max_per_core: u32,
    #[arg(long, default_value_t = 131_072)]
    pub conntrack_min: u32,
    /// Remove everything the proxy made, and exit.
    #[arg(long)]
    pub cleanup: bool,
}

impl Flags {
    pub fn into_config(self, host_name: &str) -> anyhow::Result<Config> {
        let mode = self.proxy_mode.as_str();
        anyhow::ensure!(matches!(mode, "" | "nftables"), "proxy mode {mode:?} is not supported; nftables is");
        let local_traffic = match self.detect_local_mode.as_str() {
            "ClusterCIDR" if self.cluster_cidr.is_empty() => LocalTraffic::Unknown,
            "ClusterCIDR" => LocalTraffic::Cidrs(self.cluster_cidr),
            "BridgeInterface" => {
                LocalTraffic::Bridge(interface(self.pod_bridge_interface, "pod-bridge-interface")?)
            }
            "InterfaceNamePrefix" => LocalTraffic::InterfacePrefix(interface(
                self.pod_interface_name_prefix,
                "pod-interface-name-prefix",
            )?),
            other => anyhow::bail!("--detect-local-mode {other:?} is not supported"),
        };
        let node_port_addresses = match self.nodeport_addresses.as_slice() {
            [] => NodePortAddresses::All,
            [one] if one == "primary" => NodePortAddresses::Primary,
            cidrs => {
                let cidrs: Result<Vec<IpNet>, _> = cidrs.iter().map(|c| c.parse()).collect();
                NodePortAddresses::Cidrs(cidrs.context("--nodeport-addresses")?)
            }
        };
        let address = |text: &str, flag: &str| -> anyhow::Result<Option<SocketAddr>> {
            match text {
                "" => Ok(None),
                text => text.parse().map(Some).with_context(|| format!("--{flag} {text:?}")),
            }
        };
        Ok(Config {
            local_traffic,
            masquerade_all: self.masquerade_all,
            localhost_node_ports: node_port_addresses == NodePortAddresses::All,
            node_port_addresses,
            healthz_bind_address: address(&self.healthz_bind_address, "healthz-bind-address")?,
            metrics_bind_address: address(&self.metrics_bind_address, "metrics-bind-address")?,
            node_ip: self.bind_address.filter(|ip| !ip.is_unspecified()),
            conntrack_min: self.conntrack_min,
            conntrack_max_per_core: self.conntrack_max_per_core,
            ..Config::new(self.hostname_override.as_deref().unwrap_or(host_name), vec![], self.service_cidr)
        })
    }
}

/// An interface name ends up in a rule.
fn interface(name: Option<String>, flag: &str) -> anyhow::Result<String> {
    let name = name.with_context(|| format!("--{flag} is required"))?;
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@'));
    anyhow::ensure!(plain && !name.is_empty() && name.len() < 16, "--{flag} {name:?} is no interface name");
    Ok(name)
}

/// Removes the proxy's tables. Safe to repeat.
pub async fn cleanup() -> anyhow::Result<()> {
    for family in ["ip", "ip6"] {
        nft::apply(&format!("add table {family} {TABLE}\ndelete table {family} {TABLE}\n"))
            .await
            .with_context(|| format!("removing table {family} {TABLE}"))?;
    }
    Ok(())
}
