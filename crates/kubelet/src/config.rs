//! What a kubelet is told: flags, the configuration file, and the resulting `Config`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Taint;

/// Called with the runtime's endpoint before the first pod starts; the place to import images.
pub type RuntimeReady = Arc<dyn Fn(String) -> BoxFuture<'static, Result<()>> + Send + Sync>;

#[derive(Clone)]
pub struct Config {
    pub node_name: String,
    /// Empty: found out from the default route.
    pub node_ips: Vec<IpAddr>,
    /// Pods' volumes and state.
    pub root_dir: PathBuf,
    /// Where containers' logs lie.
    pub pod_logs_dir: PathBuf,
    /// None: an own containerd, described by `containerd`.
    pub container_runtime_endpoint: Option<String>,
    pub containerd: crate::runtime::containerd::Containerd,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    pub systemd_cgroup: bool,
    /// Path of the control group below which those of pods are made; empty for the top.
    pub cgroup_root: String,
    pub port: u16,
    pub address: IpAddr,
    pub register_node: bool,
    pub taints: Vec<Taint>,
    pub labels: BTreeMap<String, String>,
    pub manifest_path: Option<PathBuf>,
    pub manifest_url: Option<String>,
    pub provider_id: Option<String>,
    /// Who may call the kubelet's server with a certificate; none: nobody.
    pub client_ca_file: Option<PathBuf>,
    /// Certificate and key of the server; made up where absent.
    pub tls: Option<(PathBuf, PathBuf)>,
    pub serve: bool,
    pub anonymous_auth: bool,
    pub container_log_max_size: u64,
    pub container_log_max_files: u32,
    pub eviction_hard: BTreeMap<String, String>,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
    pub image_minimum_gc_age: Duration,
    pub serialize_image_pulls: bool,
    pub on_runtime_ready: Option<RuntimeReady>,
}

impl Config {
    /// A node that keeps its state under `data_dir`, and sockets and other short-lived things under `run_dir`.
    pub fn new(
        node_name: impl Into<String>,
        data_dir: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
    ) -> Config {
        let (data_dir, run_dir) = (data_dir.into(), run_dir.into());
        Config {
            node_name: node_name.into(),
            node_ips: vec![],
            root_dir: data_dir.join("kubelet"),
            pod_logs_dir: "/var/log/pods".into(),
            container_runtime_endpoint: None,
            containerd: crate::runtime::containerd::Containerd {
                root: data_dir.join("containerd"),
                state: run_dir.join("containerd"),
                sandbox_image: "isopod.local/pause:1".into(),
                cni_bin_dir: data_dir.join("cni/bin"),
                cni_conf_dir: data_dir.join("cni/net.d"),
                registry_dir: data_dir.join("containerd/registries"),
                systemd_cgroup: false,
            },
            cluster_dns: vec![],
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            systemd_cgroup: false,
            cgroup_root: String::new(),
            port: 10250,
            address: IpAddr::from([0, 0, 0, 0]),
            register_node: true,
            taints: vec![],
            labels: BTreeMap::new(),
            manifest_path: None,
            manifest_url: None,
            provider_id: None,
            client_ca_file: None,
            tls: None,
            serve: true,
            anonymous_auth: false,
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            eviction_hard: [
                ("memory.available", "100Mi"),
                ("nodefs.available", "10%"),
                ("nodefs.inodesFree", "5%"),
                ("imagefs.available", "15%"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            image_minimum_gc_age: Duration::from_secs(120),
            serialize_image_pulls: true,
            on_runtime_ready: None,
        }
    }
}

/// The kubelet's flags, named as upstream's.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// How to reach the API server and who this node is to it.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// A KubeletConfiguration; flags override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of the node instead of the host's.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Address of the node instead of that of the default route; two for dual stack.
    #[arg(long, value_delimiter = ',', value_name = "IP")]
    pub node_ip: Vec<IpAddr>,
    /// Directory (or file) of static pods.
    #[arg(long, value_name = "PATH")]
    pub pod_manifest_path: Option<PathBuf>,
    /// URL of static pods.
    #[arg(long, value_name = "URL")]
    pub manifest_url: Option<String>,
    /// Socket of a CRI runtime; an own containerd is started when absent.
    #[arg(long, value_name = "unix://PATH")]
    pub container_runtime_endpoint: Option<String>,
    /// Addresses of the cluster's DNS.
    #[arg(long, value_delimiter = ',', value_name = "IP")]
    pub cluster_dns: Vec<IpAddr>,
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// The resolver configuration that pods inherit.
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    #[arg(long, value_name = "N")]
    pub max_pods: Option<u32>,
    /// cgroupfs or systemd.
    #[arg(long, value_name = "DRIVER")]
    pub cgroup_driver: Option<String>,
    /// The control group below which those of pods are made.
    #[arg(long, value_name = "PATH")]
    pub cgroup_root: Option<String>,
    /// Directory of the pods' volumes and state.
    #[arg(long, value_name = "DIR")]
    pub root_dir: Option<PathBuf>,
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// key=value:Effect, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "TAINTS")]
    pub register_with_taints: Vec<String>,
    #[arg(long, value_name = "BOOL")]
    pub register_node: Option<bool>,
    /// key=value, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "LABELS")]
    pub node_labels: Vec<String>,
    #[arg(long, value_name = "ID")]
    pub provider_id: Option<String>,
    /// Certificate authorities of those who may call this kubelet.
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// signal<quantity, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "THRESHOLDS")]
    pub eviction_hard: Vec<String>,
    #[arg(long, value_delimiter = ',', value_name = "RESOURCES")]
    pub system_reserved: Vec<String>,
    #[arg(long, value_delimiter = ',', value_name = "RESOURCES")]
    pub kube_reserved: Vec<String>,
    #[arg(long, value_name = "BOOL")]
    pub serialize_image_pulls: Option<bool>,
}

impl Flags {
    /// Lays the configuration file and then the flags over `config`.
    pub fn apply(&self, config: &mut Config) -> Result<()> {
        if let Some(path) = &self.config {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            apply_file(&text, config).with_context(|| format!("in {}", path.display()))?;
        }
        macro_rules! set {
            ($($from:ident => $to:ident),*) => { $(if let Some(v) = &self.$from { config.$to = v.clone().into(); })* };
        }
        set!(hostname_override => node_name, cluster_domain => cluster_domain, resolv_conf => resolv_conf,
            max_pods => max_pods, root_dir => root_dir, port => port, address => address,
            register_node => register_node, pod_manifest_path => manifest_path, manifest_url => manifest_url,
            provider_id => provider_id, client_ca_file => client_ca_file,
            container_runtime_endpoint => container_runtime_endpoint,
            serialize_image_pulls => serialize_image_pulls, cgroup_root => cgroup_root);
        if !self.node_ip.is_empty() {
            config.node_ips = self.node_ip.clone();
        }
        if !self.cluster_dns.is_empty() {
            config.cluster_dns = self.cluster_dns.clone();
        }
        if let Some(driver) = &self.cgroup_driver {
            config.systemd_cgroup = parse_driver(driver)?;
        }
        for taint in &self.register_with_taints {
            config.taints.push(parse_taint(taint)?);
        }
        for pair in &self.node_labels {
            let (key, value) =
                pair.split_once('=').with_context(|| format!("--node-labels: {pair:?} is not key=value"))?;
            config.labels.insert(key.into(), value.into());
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert_file, &self.tls_private_key_file) {
            config.tls = Some((cert.clone(), key.clone()));
        }
        if !self.eviction_hard.is_empty() {
            config.eviction_hard = pairs(&self.eviction_hard, '<')?;
        }
        if !self.system_reserved.is_empty() {
            config.system_reserved = pairs(&self.system_reserved, '=')?;
        }
        if !self.kube_reserved.is_empty() {
            config.kube_reserved = pairs(&self.kube_reserved, '=')?;
        }
        config.containerd.systemd_cgroup = config.systemd_cgroup;
        Ok(())
    }
}

fn pairs(items: &[String], separator: char) -> Result<BTreeMap<String, String>> {
    items
        .iter()
        .map(|i| {
            let (k, v) = i.split_once(separator).with_context(|| format!("{i:?} has no {separator:?}"))?;
            Ok((k.trim().to_owned(), v.trim().to_owned()))
        })
        .collect()
}

fn parse_driver(driver: &str) -> Result<bool> {
    match driver {
        "cgroupfs" => Ok(false),
        "systemd" => Ok(true),
        other => bail!("cgroup driver {other:?}: must be cgroupfs or systemd"),
    }
}

fn parse_taint(text: &str) -> Result<Taint> {
    let (rest, effect) = text.rsplit_once(':').with_context(|| format!("taint {text:?} has no effect"))?;
    let (key, value) = rest.split_once('=').map_or((rest, None), |(k, v)| (k, Some(v.to_owned())));
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("taint {text:?}: unknown effect {effect:?}");
    }
    Ok(Taint { key: key.into(), value, effect: effect.into(), ..Taint::default() })
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FileConfig {
    kind: String,
    static_pod_path: Option<PathBuf>,
    #[serde(rename = "staticPodURL")]
    static_pod_url: Option<String>,
    address: Option<IpAddr>,
    port: Option<u16>,
    tls_cert_file: Option<PathBuf>,
    tls_private_key_file: Option<PathBuf>,
    authentication: Option<FileAuthentication>,
    cluster_domain: Option<String>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Option<Vec<IpAddr>>,
    max_pods: Option<u32>,
    cgroup_driver: Option<String>,
    cgroup_root: Option<String>,
    resolv_conf: Option<PathBuf>,
    register_node: Option<bool>,
    register_with_taints: Option<Vec<Taint>>,
    container_runtime_endpoint: Option<String>,
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
    eviction_hard: Option<BTreeMap<String, String>>,
    system_reserved: Option<BTreeMap<String, String>>,
    kube_reserved: Option<BTreeMap<String, String>>,
    container_log_max_files: Option<u32>,
    container_log_max_size: Option<String>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high: Option<u8>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low: Option<u8>,
    serialize_image_pulls: Option<bool>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct FileAuthentication {
    anonymous: Option<FileSwitch>,
    x509: Option<FileX509>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct FileSwitch {
    enabled: Option<bool>,
}

#[derive(serde::Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FileX509 {
    client_ca_file: Option<PathBuf>,
    #[serde(rename = "clientCAFile")]
    client_ca_file_upper: Option<PathBuf>,
}

fn apply_file(text: &str, config: &mut Config) -> Result<()> {
    let file: FileConfig = serde_saphyr::from_str(text)?;
    if file.kind != "KubeletConfiguration" {
        bail!("kind is {:?}, not KubeletConfiguration", file.kind);
    }
    macro_rules! set {
        ($($from:ident => $to:ident),*) => { $(if let Some(v) = file.$from { config.$to = v.into(); })* };
    }
    set!(static_pod_path => manifest_path, static_pod_url => manifest_url, address => address, port => port,
        cluster_domain => cluster_domain, cluster_dns => cluster_dns, max_pods => max_pods,
        resolv_conf => resolv_conf, register_node => register_node, register_with_taints => taints,
        container_runtime_endpoint => container_runtime_endpoint, provider_id => provider_id,
        eviction_hard => eviction_hard, system_reserved => system_reserved, kube_reserved => kube_reserved,
        container_log_max_files => container_log_max_files, image_gc_high => image_gc_high_percent,
        image_gc_low => image_gc_low_percent, serialize_image_pulls => serialize_image_pulls);
    if let Some(root) = file.cgroup_root {
        config.cgroup_root = root;
    }
    if let Some(driver) = file.cgroup_driver {
        config.systemd_cgroup = parse_driver(&driver)?;
    }
    if let (Some(cert), Some(key)) = (file.tls_cert_file, file.tls_private_key_file) {
        config.tls = Some((cert, key));
    }
    if let Some(size) = file.container_log_max_size {
        config.container_log_max_size =
            crate::quantity::value(&size).with_context(|| format!("containerLogMaxSize {size:?}"))? as u64;
    }
    if let Some(authentication) = file.authentication {
        if let Some(x509) = authentication.x509
            && let Some(ca) = x509.client_ca_file_upper.or(x509.client_ca_file)
        {
            config.client_ca_file = Some(ca);
        }
        if let Some(enabled) = authentication.anonymous.and_then(|a| a.enabled) {
            config.anonymous_auth = enabled;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_then_flags() {
        let mut config = Config::new("n", "/d", "/r");
        apply_file(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 20\nclusterDNS: [10.0.0.10]\ncontainerLogMaxSize: 5Mi\nauthentication: {x509: {clientCAFile: /ca}}\n",
            &mut config,
        )
        .unwrap();
        assert_eq!((config.max_pods, config.container_log_max_size), (20, 5 << 20));
        assert_eq!(config.client_ca_file, Some("/ca".into()));
        let flags = Flags {
            max_pods: Some(7),
            register_with_taints: vec!["a=b:NoSchedule".into(), "c:NoExecute".into()],
            ..Flags::default()
        };
        flags.apply(&mut config).unwrap();
        assert_eq!(config.max_pods, 7);
        assert_eq!(config.taints[0].value.as_deref(), Some("b"));
        assert_eq!(config.taints[1].value, None);
    }
}
