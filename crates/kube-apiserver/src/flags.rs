//! The command line, with upstream's names.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// Flags of `kube-apiserver`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Address other members of the cluster reach this server at.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Serving certificate chain, PEM.
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// Clients whose certificate this signed are who it says.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Endpoints of an etcd v3 cluster.
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    /// Where service addresses come from; a second range of the other family makes services dual-stack.
    #[arg(long, value_delimiter = ',', default_value = "10.96.0.0/12")]
    pub service_cluster_ip_range: Vec<IpNet>,
    #[arg(long, default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// Issuer of service account tokens; given again, further ones that are accepted.
    #[arg(long)]
    pub service_account_issuer: Vec<String>,
    /// Keys that service account tokens may be signed with.
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    /// Key that signs service account tokens.
    #[arg(long)]
    pub service_account_signing_key_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "Node,RBAC")]
    pub authorization_mode: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// Static tokens: a CSV file of token, user, uid, groups.
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_client_certificate: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_client_key: Option<PathBuf>,
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    pub kubelet_preferred_address_types: Vec<String>,
    /// `group/version=true|false`, `api/all`, `api/beta`, `api/alpha`.
    #[arg(long, value_delimiter = ',')]
    pub runtime_config: Vec<String>,
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub anonymous_auth: bool,
    /// Makes bootstrap tokens usable.
    #[arg(long)]
    pub enable_bootstrap_token_auth: bool,
}
