//! What the controller manager can be told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// Settings of the controller manager.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of controllers to run: `*` for all that are on by default, `name` for one, `-name` for one not.
    pub controllers: Vec<String>,
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    /// Whether nodes get a pod CIDR out of `cluster_cidrs`.
    pub allocate_node_cidrs: bool,
    pub node_cidr_mask_size: Option<u8>,
    pub node_cidr_mask_size_ipv6: Option<u8>,
    pub leader_elect: bool,
    /// PEM of the CA that pods trust the API server by.
    pub root_ca: Option<String>,
    pub root_ca_file: Option<PathBuf>,
    pub service_account_private_key_file: Option<PathBuf>,
    pub cluster_signing_cert_file: Option<PathBuf>,
    pub cluster_signing_key_file: Option<PathBuf>,
    pub cluster_signing_duration: Duration,
    pub terminated_pod_gc_threshold: i32,
    pub node_monitor_grace_period: Duration,
    pub node_startup_grace_period: Duration,
    pub node_eviction_rate: f32,
    pub concurrent_gc_syncs: usize,
    /// How long a token in a secret, made for its account, may be unused.
    pub legacy_token_clean_up_period: Duration,
    /// Names this process among the candidates for leader.
    pub identity: String,
    /// Gives each controller a client of its own service account, named here without its namespace (kube-system);
    /// `None` lets all act as the controller manager.
    pub credentials: Option<Credentials>,
}

/// From a service account's name to a client that acts as it.
#[derive(Clone)]
pub struct Credentials(pub Arc<dyn Fn(&str) -> client::Client + Send + Sync>);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            controllers: vec!["*".to_owned()],
            cluster_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            allocate_node_cidrs: false,
            node_cidr_mask_size: None,
            node_cidr_mask_size_ipv6: None,
            leader_elect: true,
            root_ca: None,
            root_ca_file: None,
            service_account_private_key_file: None,
            cluster_signing_cert_file: None,
            cluster_signing_key_file: None,
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            terminated_pod_gc_threshold: 12_500,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction_rate: 0.1,
            concurrent_gc_syncs: 20,
            legacy_token_clean_up_period: Duration::from_secs(365 * 24 * 3600),
            identity: format!("{}_{}", hostname(), apimachinery::names::uid()),
            credentials: None,
        }
    }
}

impl Config {
    /// Whether `--controllers` lets a controller run.
    pub(crate) fn enables(&self, name: &str, on_by_default: bool) -> bool {
        let mut star = false;
        for entry in &self.controllers {
            if canonical(entry) == name {
                return true;
            }
            if entry.strip_prefix('-').map(canonical) == Some(name) {
                return false;
            }
            star |= entry == "*";
        }
        star && on_by_default
    }
}

/// A controller's name, from that or one of its older ones.
pub(crate) fn canonical(name: &str) -> &str {
    match name {
        "attachdetach" => "persistentvolume-attach-detach-controller",
        "bootstrapsigner" => "bootstrap-signer-controller",
        "clusterrole-aggregation" => "clusterrole-aggregation-controller",
        "cronjob" => "cronjob-controller",
        "csrapproving" => "certificatesigningrequest-approving-controller",
        "csrcleaner" => "certificatesigningrequest-cleaner-controller",
        "csrsigning" => "certificatesigningrequest-signing-controller",
        "daemonset" => "daemonset-controller",
        "deployment" => "deployment-controller",
        "disruption" => "disruption-controller",
        "endpoint" => "endpoints-controller",
        "endpointslice" => "endpointslice-controller",
        "endpointslicemirroring" => "endpointslice-mirroring-controller",
        "ephemeral-volume" => "ephemeral-volume-controller",
        "garbagecollector" => "garbage-collector-controller",
        "horizontalpodautoscaling" => "horizontal-pod-autoscaler-controller",
        "job" => "job-controller",
        "legacy-service-account-token-cleaner" => "legacy-serviceaccount-token-cleaner-controller",
        "namespace" => "namespace-controller",
        "nodeipam" => "node-ipam-controller",
        "nodelifecycle" => "node-lifecycle-controller",
        "persistentvolume-binder" => "persistentvolume-binder-controller",
        "persistentvolume-expander" => "persistentvolume-expander-controller",
        "podgc" => "pod-garbage-collector-controller",
        "pv-protection" => "persistentvolume-protection-controller",
        "pvc-protection" => "persistentvolumeclaim-protection-controller",
        "replicaset" => "replicaset-controller",
        "replicationcontroller" => "replicationcontroller-controller",
        "resourcequota" => "resourcequota-controller",
        "root-ca-cert-publisher" => "root-ca-certificate-publisher-controller",
        "serviceaccount" => "serviceaccount-controller",
        "statefulset" => "statefulset-controller",
        "tokencleaner" => "token-cleaner-controller",
        "ttl" => "ttl-controller",
        "ttl-after-finished" => "ttl-after-finished-controller",
        same => same,
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|h| h.trim().to_owned())
        .unwrap_or_else(|_| "localhost".to_owned())
}

/// Command-line flags, named as upstream's.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Kubeconfig that says how to reach the API server.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Controllers to run: '*' for the default ones, 'name' for one more, '-name' for one less.
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    pub controllers: Vec<String>,
    /// Range of the pods' addresses.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub cluster_cidr: Vec<IpNet>,
    /// Range of the services' addresses.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    pub service_cluster_ip_range: Vec<IpNet>,
    /// Give each node a part of --cluster-cidr.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// Prefix length of a node's pod CIDR.
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size: Option<u8>,
    /// Prefix length of a node's IPv4 pod CIDR.
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// Prefix length of a node's IPv6 pod CIDR.
    #[arg(long, value_name = "BITS")]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// Work only while holding the lease kube-system/kube-controller-manager.
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    /// CA certificate that pods get to trust the API server by.
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs legacy service account tokens.
    #[arg(long, value_name = "FILE")]
    pub service_account_private_key_file: Option<PathBuf>,
    /// CA certificate that signs certificate requests.
    #[arg(long, value_name = "FILE")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Key of --cluster-signing-cert-file.
    #[arg(long, value_name = "FILE")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// How long signed certificates are valid at most.
    #[arg(long, default_value = "8760h", value_parser = duration, value_name = "DURATION")]
    pub cluster_signing_duration: Duration,
    /// Finished pods beyond this number are deleted, oldest first; 0 turns it off.
    #[arg(long, default_value_t = 12_500, value_name = "N")]
    pub terminated_pod_gc_threshold: i32,
    /// How long a node may be silent before it is unhealthy.
    #[arg(long, default_value = "50s", value_parser = duration, value_name = "DURATION")]
    pub node_monitor_grace_period: Duration,
    /// As --node-monitor-grace-period, for nodes that just started.
    #[arg(long, default_value = "1m0s", value_parser = duration, value_name = "DURATION")]
    pub node_startup_grace_period: Duration,
    /// Objects garbage collected at a time.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub concurrent_gc_syncs: usize,
    /// How long a service account's token in a secret may be unused before it is deleted.
    #[arg(long, default_value = "8760h", value_parser = clean_up_period, value_name = "DURATION")]
    pub legacy_service_account_token_clean_up_period: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    apimachinery::duration::parse(text).ok_or_else(|| format!("{text:?} is not a duration such as 40s"))
}

fn clean_up_period(text: &str) -> Result<Duration, String> {
    duration(text)
        .and_then(|d| if d.is_zero() { Err(format!("invalid CleanUpPeriod: {text}")) } else { Ok(d) })
}

impl From<Flags> for Config {
    fn from(f: Flags) -> Config {
        Config {
            controllers: f.controllers,
            cluster_cidrs: f.cluster_cidr,
            service_cidrs: f.service_cluster_ip_range,
            allocate_node_cidrs: f.allocate_node_cidrs,
            node_cidr_mask_size: f.node_cidr_mask_size_ipv4.or(f.node_cidr_mask_size),
            node_cidr_mask_size_ipv6: f.node_cidr_mask_size_ipv6,
            leader_elect: f.leader_elect,
            root_ca_file: f.root_ca_file,
            service_account_private_key_file: f.service_account_private_key_file,
            cluster_signing_cert_file: f.cluster_signing_cert_file,
            cluster_signing_key_file: f.cluster_signing_key_file,
            cluster_signing_duration: f.cluster_signing_duration,
            terminated_pod_gc_threshold: f.terminated_pod_gc_threshold,
            node_monitor_grace_period: f.node_monitor_grace_period,
            node_startup_grace_period: f.node_startup_grace_period,
            concurrent_gc_syncs: f.concurrent_gc_syncs.max(1),
            legacy_token_clean_up_period: f.legacy_service_account_token_clean_up_period,
            ..Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_controllers_run() {
        for (list, name, default, want) in [
            (&["*"][..], "a", true, true),
            (&["*"], "a", false, false),
            (&["*", "-a"], "a", true, false),
            (&["*", "a"], "a", false, true),
            (&["b"], "a", true, false),
            (&["*", "tokencleaner"], "token-cleaner-controller", false, true),
            (&["*", "-csrsigning"], "certificatesigningrequest-signing-controller", true, false),
        ] {
            let config =
                Config { controllers: list.iter().map(|s| s.to_string()).collect(), ..Config::default() };
            assert_eq!(config.enables(name, default), want, "{list:?}");
        }
    }
}
