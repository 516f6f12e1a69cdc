//! The command line, with upstream's names.

mod audit;
mod authentication;
mod authorization;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ArgAction;
use ipnet::IpNet;

use crate::Config;
use crate::authorization::Mode;
use crate::security;
use crate::{encryption, flow_control};

pub use audit::{AuditFlags, AuditWebhookFlags};
pub use authentication::AuthenticationFlags;
pub use authorization::AuthorizationFlags;

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
    /// Serving certificate chain, PEM; made in --cert-dir when it is not given.
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    #[arg(long, default_value = "/var/run/kubernetes")]
    pub cert_dir: PathBuf,
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
    /// Where in etcd everything is kept.
    #[arg(long, default_value = "/registry")]
    pub etcd_prefix: String,
    /// Where service addresses come from; a second range of the other family makes services dual-stack.
    #[arg(long, value_delimiter = ',', default_value = "10.0.0.0/24")]
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
    #[arg(long)]
    pub service_account_jwks_uri: Option<String>,
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub service_account_extend_token_expiration: bool,
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    #[command(flatten)]
    pub authorization: AuthorizationFlags,
    #[arg(long, value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// Static tokens: a CSV file of token, user, uid, groups.
    #[arg(long)]
    pub token_auth_file: Option<PathBuf>,
    #[arg(long)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// What this server proves itself to extension servers with.
    #[arg(long)]
    pub proxy_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub proxy_client_key_file: Option<PathBuf>,
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
    /// Takes requests without credentials [default: true]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub anonymous_auth: Option<bool>,
    #[command(flatten)]
    pub authentication: AuthenticationFlags,
    /// Makes bootstrap tokens usable.
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub enable_bootstrap_token_auth: bool,
    /// Tells requests apart by flow schemas and priority levels.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub enable_priority_and_fairness: bool,
    /// Requests that read in progress; with the next, the seats that priority levels share.
    #[arg(long, default_value_t = 400)]
    pub max_requests_inflight: u32,
    #[arg(long, default_value_t = 200)]
    pub max_mutating_requests_inflight: u32,
    #[command(flatten)]
    pub encryption: EncryptionFlags,
    #[command(flatten)]
    pub audit: AuditFlags,
    #[command(flatten)]
    pub accepted: Accepted,
}

/// Flags about how resources are kept.
#[derive(Clone, Debug, clap::Args)]
pub struct EncryptionFlags {
    /// Which resources are kept encrypted, and how (`apiserver.config.k8s.io/v1` EncryptionConfiguration)
    #[arg(long)]
    pub encryption_provider_config: Option<PathBuf>,
    /// Follows the file
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub encryption_provider_config_automatic_reload: bool,
}

impl EncryptionFlags {
    pub fn config(&self) -> anyhow::Result<Option<encryption::Config>> {
        let reload = self.encryption_provider_config_automatic_reload;
        let Some(path) = &self.encryption_provider_config else {
            ensure!(
                !reload,
                "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config"
            );
            return Ok(None);
        };
        let text = read_file(path)?;
        Ok(Some(encryption::Config { text, follow: reload.then(|| path.clone()) }))
    }
}

/// Flags that upstream's manifests carry and that change nothing here; [`Flags::validate`] refuses values that would.
#[derive(Clone, Debug, clap::Args)]
pub struct Accepted {
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub allow_privileged: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub profiling: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub contention_profiling: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub service_account_lookup: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub watch_cache: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_garbage_collector: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_aggregator_routing: Option<bool>,
    #[arg(long, hide = true)]
    pub apiserver_count: Option<u32>,
    #[arg(long, hide = true)]
    pub default_watch_cache_size: Option<u32>,
    #[arg(long, hide = true)]
    pub watch_cache_sizes: Option<String>,
    #[arg(long, hide = true)]
    pub delete_collection_workers: Option<u32>,
    #[arg(long, hide = true)]
    pub min_request_timeout: Option<u32>,
    #[arg(long, hide = true)]
    pub http2_max_streams_per_connection: Option<u32>,
    #[arg(long, hide = true, value_parser = ["etcd3"])]
    pub storage_backend: Option<String>,
    #[arg(long, hide = true)]
    pub storage_media_type: Option<String>,
    #[arg(long, hide = true)]
    pub etcd_count_metric_poll_period: Option<String>,
    #[arg(long, hide = true)]
    pub etcd_db_metric_poll_interval: Option<String>,
    #[arg(long, hide = true)]
    pub etcd_healthcheck_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub etcd_readycheck_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub lease_reuse_duration_seconds: Option<i64>,
    #[arg(long, hide = true)]
    pub livez_grace_period: Option<String>,
    #[arg(long, hide = true)]
    pub logging_format: Option<String>,
    #[arg(long, hide = true)]
    pub kubelet_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub feature_gates: Vec<String>,
    #[arg(long, short = 'v', hide = true)]
    pub v: Option<i32>,
}

impl Flags {
    /// What upstream checks before it starts.
    pub fn validate(&self) -> anyhow::Result<()> {
        let mut wrong: Vec<&str> = Vec::new();
        if self.etcd_servers.is_empty() {
            wrong.push("--etcd-servers must be specified");
        }
        if self.service_account_issuer.is_empty() {
            wrong.push("service-account-issuer is a required flag");
        }
        if self.service_account_issuer.is_empty() || self.service_account_signing_key_file.is_none() {
            wrong.push("--service-account-signing-key-file and --service-account-issuer are required flags");
        }
        wrong.extend(self.authentication.problem());
        // Upstream turns something off with these; taking them in silence would say that it is off.
        for (given, flag) in [
            (self.accepted.allow_privileged, "--allow-privileged=false is not supported"),
            (self.accepted.service_account_lookup, "--service-account-lookup=false is not supported"),
            (self.accepted.enable_garbage_collector, "--enable-garbage-collector=false is not supported"),
        ] {
            if given == Some(false) {
                wrong.push(flag);
            }
        }
        match wrong.len() {
            0 => Ok(()),
            1 => bail!("{}", wrong[0]),
            _ => bail!("[{}]", wrong.join(", ")),
        }
    }

    /// Fills in `config`; its store and its serving certificate are the caller's business.
    pub fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        config.bind_address = self.bind_address;
        config.secure_port = self.secure_port;
        config.runtime_config = runtime_config(&self.runtime_config)?;
        config.kubelet.certificate = read(&self.kubelet_client_certificate)?;
        config.kubelet.key = read(&self.kubelet_client_key)?;
        config.kubelet.ca = read(&self.kubelet_certificate_authority)?;
        config.kubelet.address_types = self.kubelet_preferred_address_types.clone();
        config.flow_control = flow_control::Config {
            enabled: self.enable_priority_and_fairness,
            reading_max: self.max_requests_inflight,
            writing_max: self.max_mutating_requests_inflight,
        };
        config.encryption = self.encryption.config()?;
        config.audit = self.audit.config()?;
        self.apply_security(&mut config.security)
    }

    fn apply_security(&self, security: &mut security::Config) -> anyhow::Result<()> {
        security.client_ca = read(&self.client_ca_file)?;
        security.request_header_ca = read(&self.requestheader_client_ca_file)?;
        let header = &mut security.request_header;
        header.allowed_names = self.requestheader_allowed_names.clone();
        for (flag, option) in [
            (&self.requestheader_username_headers, &mut header.username_headers),
            (&self.requestheader_uid_headers, &mut header.uid_headers),
            (&self.requestheader_group_headers, &mut header.group_headers),
            (&self.requestheader_extra_headers_prefix, &mut header.extra_header_prefixes),
        ] {
            if !flag.is_empty() {
                *option = flag.clone();
            }
        }
        security.proxy_client_certificate = read(&self.proxy_client_cert_file)?;
        security.proxy_client_key = read(&self.proxy_client_key_file)?;
        security.tokens = match &self.token_auth_file {
            Some(path) => {
                Some(std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?)
            }
            None => None,
        };
        security.bootstrap_tokens = self.enable_bootstrap_token_auth;
        security.anonymous = self.anonymous_auth.unwrap_or(true);
        self.authentication.apply(self.anonymous_auth, security)?;
        security.service_account_signing_key = read(&self.service_account_signing_key_file)?;
        security.service_account_keys =
            self.service_account_key_file.iter().map(|path| read_file(path)).collect::<Result<_, _>>()?;
        security.service_account_issuers = self.service_account_issuer.clone();
        security.service_account_jwks_uri = self.service_account_jwks_uri.clone();
        security.service_account_extend_token_expiration = self.service_account_extend_token_expiration;
        security.api_audiences = self.api_audiences.clone();
        self.authorization.apply(&["AlwaysAllow"], security)?;
        if security.anonymous
            && security.authorization_file.is_none()
            && security.authorization.modes().contains(&Mode::AlwaysAllow)
        {
            tracing::warn!("AnonymousAuth is not allowed with the AlwaysAllow authorizer: it is turned off");
            security.anonymous = false;
        }
        security.enable_admission_plugins = self.enable_admission_plugins.clone();
        security.disable_admission_plugins = self.disable_admission_plugins.clone();
        security.service_cidrs = self.service_cluster_ip_range.clone();
        security.node_ports = port_range(&self.service_node_port_range)?;
        if let Some(address) = self.advertise_address {
            security.advertise_address = address;
        }
        Ok(())
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    apimachinery::duration::parse(text).ok_or_else(|| format!("time: invalid duration {text:?}"))
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn read(path: &Option<PathBuf>) -> anyhow::Result<Option<Vec<u8>>> {
    path.as_deref().map(read_file).transpose()
}

fn runtime_config(flags: &[String]) -> anyhow::Result<Vec<(String, bool)>> {
    let one = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, "true"));
        let value = value.parse().with_context(|| format!("--runtime-config {text}: say true or false"))?;
        Ok((name.to_owned(), value))
    };
    flags.iter().map(one).collect()
}

/// `first-last`, or `first+more` as upstream also takes it.
fn port_range(text: &str) -> anyhow::Result<RangeInclusive<u16>> {
    let wrong = || format!("--service-node-port-range {text}: expected FIRST-LAST");
    let (first, last) = match (text.split_once('-'), text.split_once('+')) {
        (Some((first, last)), _) => (first.parse().with_context(wrong)?, last.parse().with_context(wrong)?),
        (None, Some((first, more))) => {
            let (first, more): (u16, u16) =
                (first.parse().with_context(wrong)?, more.parse().with_context(wrong)?);
            (first, first.saturating_add(more))
        }
        (None, None) => {
            let one: u16 = text.parse().with_context(wrong)?;
            (one, one)
        }
    };
    ensure!(first <= last, wrong());
    Ok(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    pub fn flags(arguments: &[&str]) -> Flags {
        Command::try_parse_from([&["kube-apiserver"], arguments].concat()).unwrap().flags
    }

    #[test]
    fn says_what_is_missing_as_upstream_does() {
        let text = |arguments: &[&str]| flags(arguments).validate().err().map(|e| e.to_string());
        let issuer = ["--service-account-issuer=https://a", "--service-account-signing-key-file=/k"];
        assert_eq!(text(&issuer).as_deref(), Some("--etcd-servers must be specified"));
        assert_eq!(text(&[&issuer[..], &["--etcd-servers=http://a:1,http://b:1"]].concat()), None);
        assert!(text(&[]).unwrap().starts_with("[--etcd-servers must be specified, service-account-issuer"));
        let off = [&issuer[..], &["--etcd-servers=http://a:1", "--allow-privileged=false"]].concat();
        assert_eq!(text(&off).as_deref(), Some("--allow-privileged=false is not supported"));
    }

    #[test]
    fn takes_the_flags_of_kubeadms_manifest() {
        let given = flags(&[
            "--advertise-address=10.0.0.1",
            "--allow-privileged=true",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--enable-bootstrap-token-auth=true",
            "--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--profiling=false",
        ]);
        let mut security = security::Config::default();
        given.apply_security(&mut security).unwrap();
        assert!(security.bootstrap_tokens);
        assert_eq!(security.request_header.allowed_names, ["front-proxy-client"]);
        assert!(Command::try_parse_from(["kube-apiserver", "--no-such-flag=/x"]).is_err());
    }

    #[test]
    fn port_ranges() {
        assert_eq!(port_range("30000-32767").unwrap(), 30000..=32767);
        assert_eq!(port_range("30000+10").unwrap(), 30000..=30010);
        assert!(port_range("5-1").is_err());
        assert!(port_range("a-b").is_err());
    }
}
