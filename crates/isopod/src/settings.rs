//! The flags of `isopod server` and `isopod up`, and what follows from them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;

const AUDIT: &str = "Audit";

/// A control plane and, unless told otherwise, a node.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerFlags {
    /// Where all state is kept
    #[arg(long, default_value = "/var/lib/isopod", env = "ISOPOD_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Where sockets and pid files are kept
    #[arg(long, default_value = "/run/isopod", env = "ISOPOD_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Address the API server listens on
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port the API server listens on
    #[arg(long, default_value_t = 6443)]
    pub https_listen_port: u16,
    /// Where the administrator's kubeconfig is written (mode 0600)
    #[arg(long, default_value = "/etc/isopod/kubeconfig.yaml")]
    pub write_kubeconfig: PathBuf,
    /// Name of this node [default: the host name]
    #[arg(long)]
    pub node_name: Option<String>,
    /// Address of this node [default: that of the default route's interface]
    #[arg(long)]
    pub node_ip: Option<IpAddr>,
    /// Further names and addresses for the API server's certificate
    #[arg(long, value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Range of pod addresses
    #[arg(long, default_value = "10.244.0.0/16")]
    pub cluster_cidr: IpNet,
    /// Range of service addresses
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cidr: IpNet,
    /// Service address of the cluster's DNS [default: the tenth address of --service-cidr]
    #[arg(long)]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster's names
    #[arg(long, default_value = "cluster.local")]
    pub cluster_domain: String,
    /// CRI socket to use, such as unix:///run/containerd/containerd.sock [default: Isopod starts its own containerd]
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// Image that holds a pod's namespaces [default: one that Isopod carries]
    #[arg(long)]
    pub pod_infra_container_image: Option<String>,
    /// Directory of static pod manifests
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    /// Control group below which those of pods are made [default: the top]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PATH")]
    pub cgroup_root: String,
    /// Network backend between nodes: vxlan or host-gw
    #[arg(long, default_value = "vxlan")]
    pub flannel_backend: String,
    /// Run the control plane alone, without a node
    #[arg(long)]
    pub disable_agent: bool,
    /// Endpoints of an etcd v3 cluster that holds the state [default: Isopod's own store in the data directory]
    #[arg(long, value_delimiter = ',')]
    pub datastore_endpoint: Vec<String>,
    /// Whom the certificates of the datastore must be signed by
    #[arg(long, requires = "datastore_endpoint")]
    pub datastore_cafile: Option<PathBuf>,
    /// Client certificate for the datastore
    #[arg(long, requires = "datastore_keyfile")]
    pub datastore_certfile: Option<PathBuf>,
    /// Key of the client certificate for the datastore
    #[arg(long, requires = "datastore_certfile")]
    pub datastore_keyfile: Option<PathBuf>,
    /// Wait for the disk before a write is acknowledged; off, a power loss may undo the last writes
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub durable_writes: bool,
    #[command(flatten, next_help_heading = "Encryption")]
    pub encryption: kube_apiserver::EncryptionFlags,
    #[command(flatten, next_help_heading = "Authentication")]
    pub authentication: kube_apiserver::AuthenticationFlags,
    #[command(flatten, next_help_heading = "Authorization")]
    pub authorization: kube_apiserver::AuthorizationFlags,
    /// Which requests the audit log tells of, and how much: a Policy of audit.k8s.io/v1
    #[arg(long, help_heading = AUDIT)]
    pub audit_policy_file: Option<PathBuf>,
    /// The audit log; - is standard output
    #[arg(long, requires = "audit_policy_file", help_heading = AUDIT)]
    pub audit_log_path: Option<PathBuf>,
    #[command(flatten, next_help_heading = AUDIT)]
    pub audit_webhook: kube_apiserver::AuditWebhookFlags,
}

impl ServerFlags {
    pub fn node_name(&self) -> Result<String> {
        if let Some(name) = &self.node_name {
            return Ok(name.clone());
        }
        let name = nix::unistd::gethostname().context("read the host name")?;
        Ok(name.to_string_lossy().to_lowercase())
    }

    pub fn node_ip(&self) -> Result<IpAddr> {
        if let Some(address) = self.node_ip {
            return Ok(address);
        }
        default_address().context("find this node's address; name it with --node-ip")
    }

    /// The address of the `kubernetes` service.
    pub fn api_service_ip(&self) -> Result<IpAddr> {
        nth_address(&self.service_cidr, 1)
    }

    pub fn cluster_dns(&self) -> Result<IpAddr> {
        match self.cluster_dns {
            Some(address) => Ok(address),
            None => nth_address(&self.service_cidr, 10),
        }
    }

    pub fn pki_dir(&self) -> PathBuf {
        self.data_dir.join("pki")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join("isopod.pid")
    }

    pub fn log_file(&self) -> PathBuf {
        self.data_dir.join("isopod.log")
    }

    /// What flannel is to do on this node.
    pub fn flannel_config(&self) -> Result<flannel::Config> {
        let IpNet::V4(cluster_cidr) = self.cluster_cidr else {
            bail!(
                "--cluster-cidr {} is no IPv4 range, and flannel serves IPv4 only so far",
                self.cluster_cidr
            )
        };
        let mut config = flannel::Config::new(self.node_name()?, cluster_cidr);
        config.backend = match self.flannel_backend.as_str() {
            "vxlan" => flannel::Backend::default(),
            "host-gw" => flannel::Backend::HostGw,
            other => bail!("--flannel-backend {other}: choose vxlan or host-gw"),
        };
        // A node's address names the network in which the others find it.
        config.iface = self.node_ip.map(|address| address.to_string());
        config.cni_bin_dir = self.data_dir.join("cni/bin");
        config.cni_conf_dir = self.data_dir.join("cni/net.d");
        config.cni_state_dir = self.data_dir.join("cni");
        config.subnet_env = self.run_dir.join("flannel/subnet.env");
        Ok(config)
    }

    /// Where local clients reach the API server.
    pub fn local_url(&self) -> String {
        let host = match self.bind_address {
            address if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            address => address,
        };
        match host {
            IpAddr::V6(v6) => format!("https://[{v6}]:{}", self.https_listen_port),
            v4 => format!("https://{v4}:{}", self.https_listen_port),
        }
    }
}

pub fn nth_address(range: &IpNet, n: u32) -> Result<IpAddr> {
    let address = match range.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) + n).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base) + u128::from(n)).into()),
    };
    if !range.contains(&address) {
        bail!("{range} is too small for a service range");
    }
    Ok(address)
}

/// The address that packets to the outside would carry. Nothing is sent: connecting a datagram socket only asks the
/// routing table.
pub fn default_address() -> Result<IpAddr> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    if socket.connect((Ipv4Addr::new(198, 51, 100, 1), 9)).is_ok() {
        let address = socket.local_addr()?.ip();
        if !address.is_loopback() && !address.is_unspecified() {
            return Ok(address);
        }
    }
    for interface in nix::ifaddrs::getifaddrs()? {
        let address = interface.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip());
        if let Some(address) = address.filter(|a| !a.is_loopback()) {
            return Ok(address.into());
        }
    }
    bail!("no interface has an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_addresses() {
        for (range, n, want) in [
            ("10.96.0.0/16", 1, Some("10.96.0.1")),
            ("10.96.0.0/16", 10, Some("10.96.0.10")),
            ("10.96.0.0/30", 10, None),
            ("fd00::/108", 1, Some("fd00::1")),
        ] {
            let got = nth_address(&range.parse().unwrap(), n).ok().map(|a| a.to_string());
            assert_eq!(got.as_deref(), want, "{range} {n}");
        }
    }
}
