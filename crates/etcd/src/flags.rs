//! The command line of `isopod etcd`, with etcd's names; each flag can also be given as `ETCD_NAME` in the environment.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ArgAction;

const HOUR: Duration = Duration::from_secs(3600);

/// Flags of `etcd`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Human-readable name of this member
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    pub name: String,
    /// Where the data is kept [default: NAME.etcd]
    #[arg(long, env = "ETCD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// URLs to serve clients at
    #[arg(long, env = "ETCD_LISTEN_CLIENT_URLS", value_delimiter = ',')]
    pub listen_client_urls: Vec<String>,
    /// URLs that clients are told to come to
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", value_delimiter = ',')]
    pub advertise_client_urls: Vec<String>,
    /// URLs to serve other members at; a single member has no others
    #[arg(
        long,
        env = "ETCD_LISTEN_PEER_URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    pub listen_peer_urls: Vec<String>,
    /// URLs of this member for the rest of the cluster
    #[arg(
        long,
        env = "ETCD_INITIAL_ADVERTISE_PEER_URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    pub initial_advertise_peer_urls: Vec<String>,
    /// Members of a new cluster: NAME=URL,… [default: this member alone]
    #[arg(long, env = "ETCD_INITIAL_CLUSTER", value_delimiter = ',')]
    pub initial_cluster: Vec<String>,
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_STATE", default_value = "new", value_parser = ["new", "existing"])]
    pub initial_cluster_state: String,
    /// Tells clusters apart that have the same URLs
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_TOKEN", default_value = "etcd-cluster")]
    pub initial_cluster_token: String,
    /// URLs to serve /metrics and /health at as well
    #[arg(long, env = "ETCD_LISTEN_METRICS_URLS", value_delimiter = ',')]
    pub listen_metrics_urls: Vec<String>,
    /// Serving certificate chain, PEM; read again when it changes
    #[arg(long, env = "ETCD_CERT_FILE")]
    pub cert_file: Option<PathBuf>,
    #[arg(long, env = "ETCD_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Whom clients' certificates must be signed by
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE")]
    pub trusted_ca_file: Option<PathBuf>,
    /// Require client certificates; their common names are users
    #[arg(long, env = "ETCD_CLIENT_CERT_AUTH", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub client_cert_auth: bool,
    /// Serve https with a certificate that the member makes itself
    #[arg(long, env = "ETCD_AUTO_TLS", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub auto_tls: bool,
    /// Bytes in use past which puts are refused and an alarm is raised (0: 2 GiB; negative: none)
    #[arg(long, env = "ETCD_QUOTA_BACKEND_BYTES", default_value_t = 0, allow_negative_numbers = true)]
    pub quota_backend_bytes: i64,
    /// `periodic` or `revision`
    #[arg(long, env = "ETCD_AUTO_COMPACTION_MODE", default_value = "periodic", value_parser = ["periodic", "revision"])]
    pub auto_compaction_mode: String,
    /// How much history is kept: a duration (or hours), or a number of revisions; 0 keeps all
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0")]
    pub auto_compaction_retention: String,
    #[arg(long, env = "ETCD_MAX_REQUEST_BYTES", default_value_t = 3 << 19)]
    pub max_request_bytes: usize,
    #[arg(long, env = "ETCD_MAX_TXN_OPS", default_value_t = 128)]
    pub max_txn_ops: usize,
    #[arg(long, env = "ETCD_MAX_CONCURRENT_STREAMS", default_value_t = u32::MAX)]
    pub max_concurrent_streams: u32,
    /// How long a connection may be quiet before it is asked whether it lives
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_INTERVAL", default_value = "2h", value_parser = duration)]
    pub grpc_keepalive_interval: Duration,
    #[arg(long, env = "ETCD_GRPC_KEEPALIVE_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub grpc_keepalive_timeout: Duration,
    /// `simple`, or `jwt,sign-method=…,pub-key=…,priv-key=…,ttl=…`
    #[arg(long, env = "ETCD_AUTH_TOKEN", default_value = "simple")]
    pub auth_token: String,
    /// Seconds a simple token is good for after its last use
    #[arg(long, env = "ETCD_AUTH_TOKEN_TTL", default_value_t = 300)]
    pub auth_token_ttl: u64,
    /// Work that hashing a password takes, as a power of two (4 to 31)
    #[arg(long, env = "ETCD_BCRYPT_COST", default_value_t = 10)]
    pub bcrypt_cost: u32,
    /// How often quiet watchers that want it are told how far they are
    #[arg(
        long,
        alias = "experimental-watch-progress-notify-interval",
        env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL",
        default_value = "10m",
        value_parser = duration
    )]
    pub watch_progress_notify_interval: Duration,
    /// Serve the JSON gateway
    #[arg(long, env = "ETCD_ENABLE_GRPC_GATEWAY", default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub enable_grpc_gateway: bool,
    /// Do not wait for the disk: a power loss may undo acknowledged writes
    #[arg(long, env = "ETCD_UNSAFE_NO_FSYNC", default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub unsafe_no_fsync: bool,
    #[command(flatten)]
    pub accepted: Accepted,
}

/// Flags that change nothing here.
#[derive(Clone, Debug, clap::Args)]
pub struct Accepted {
    #[arg(long, hide = true, env = "ETCD_SNAPSHOT_COUNT")]
    pub snapshot_count: Option<u64>,
    #[arg(long, hide = true, env = "ETCD_HEARTBEAT_INTERVAL")]
    pub heartbeat_interval: Option<u64>,
    #[arg(long, hide = true, env = "ETCD_ELECTION_TIMEOUT")]
    pub election_timeout: Option<u64>,
    #[arg(long, hide = true, env = "ETCD_MAX_SNAPSHOTS")]
    pub max_snapshots: Option<u64>,
    #[arg(long, hide = true, env = "ETCD_MAX_WALS")]
    pub max_wals: Option<u64>,
    #[arg(long, hide = true, env = "ETCD_BACKEND_BATCH_LIMIT")]
    pub backend_batch_limit: Option<u64>,
    #[arg(long, hide = true, env = "ETCD_BACKEND_BATCH_INTERVAL")]
    pub backend_batch_interval: Option<String>,
    #[arg(long, hide = true, env = "ETCD_GRPC_KEEPALIVE_MIN_TIME")]
    pub grpc_keepalive_min_time: Option<String>,
    #[arg(long, hide = true, env = "ETCD_LOGGER")]
    pub logger: Option<String>,
    #[arg(long, hide = true, env = "ETCD_LOG_OUTPUTS")]
    pub log_outputs: Option<String>,
    #[arg(long, hide = true, env = "ETCD_METRICS", value_parser = ["basic", "extensive"])]
    pub metrics: Option<String>,
    #[arg(long, hide = true, env = "ETCD_STRICT_RECONFIG_CHECK", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub strict_reconfig_check: Option<bool>,
    #[arg(long, hide = true, env = "ETCD_PRE_VOTE", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub pre_vote: Option<bool>,
    #[arg(long, hide = true, env = "ETCD_INITIAL_ELECTION_TICK_ADVANCE", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub initial_election_tick_advance: Option<bool>,
    #[arg(long, hide = true, env = "ETCD_ENABLE_V2", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_v2: Option<bool>,
    #[arg(long, hide = true, env = "ETCD_INITIAL_CORRUPT_CHECK", alias = "experimental-initial-corrupt-check", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub initial_corrupt_check: Option<bool>,
    #[arg(long, hide = true, env = "ETCD_PEER_CERT_FILE")]
    pub peer_cert_file: Option<PathBuf>,
    #[arg(long, hide = true, env = "ETCD_PEER_KEY_FILE")]
    pub peer_key_file: Option<PathBuf>,
    #[arg(long, hide = true, env = "ETCD_PEER_TRUSTED_CA_FILE")]
    pub peer_trusted_ca_file: Option<PathBuf>,
    #[arg(long, hide = true, env = "ETCD_PEER_CLIENT_CERT_AUTH", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub peer_client_cert_auth: Option<bool>,
    #[arg(long, hide = true, env = "ETCD_PEER_AUTO_TLS", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub peer_auto_tls: Option<bool>,
}

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    Everything,
    Time(Duration),
    Revisions(i64),
}

impl Flags {
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| format!("{}.etcd", self.name).into())
    }

    pub fn retention(&self) -> anyhow::Result<Retention> {
        let text = &self.auto_compaction_retention;
        let wrong = || format!("--auto-compaction-retention {text}");
        if self.auto_compaction_mode == "revision" {
            let n: i64 = text.parse().with_context(wrong)?;
            return Ok(if n > 0 { Retention::Revisions(n) } else { Retention::Everything });
        }
        let period = match text.parse::<u32>() {
            Ok(hours) => HOUR * hours,
            Err(_) => duration(text).map_err(anyhow::Error::msg).with_context(wrong)?,
        };
        Ok(if period.is_zero() { Retention::Everything } else { Retention::Time(period) })
    }

    /// 0: no quota.
    pub fn quota_bytes(&self) -> u64 {
        match self.quota_backend_bytes {
            0 => 2 << 30,
            n => u64::try_from(n).unwrap_or(0),
        }
    }

    /// Where clients are served, and where they are told to come.
    pub fn client_urls(&self) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let usual = || vec!["http://localhost:2379".to_owned()];
        match (self.listen_client_urls.is_empty(), self.advertise_client_urls.is_empty()) {
            (true, true) => Ok((usual(), usual())),
            (true, false) => Ok((usual(), self.advertise_client_urls.clone())),
            (false, true) => {
                bail!("--advertise-client-urls is required when --listen-client-urls is set explicitly")
            }
            (false, false) => Ok((self.listen_client_urls.clone(), self.advertise_client_urls.clone())),
        }
    }

    /// A cluster has one member so far: this one.
    pub fn check_cluster(&self) -> anyhow::Result<()> {
        for member in &self.initial_cluster {
            let (name, url) = member
                .split_once('=')
                .with_context(|| format!("--initial-cluster {member}: expected NAME=URL"))?;
            ensure!(
                name == self.name,
                "--initial-cluster names the member {name} beside {}: replication is not supported yet",
                self.name
            );
            ensure!(
                self.initial_advertise_peer_urls.iter().any(|u| u == url),
                "--initial-cluster has {member} but missing from --initial-advertise-peer-urls={}",
                self.initial_advertise_peer_urls.join(",")
            );
        }
        ensure!((4..=31).contains(&self.bcrypt_cost), "--bcrypt-cost {}: between 4 and 31", self.bcrypt_cost);
        Ok(())
    }
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `300ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 1h30m, 10s or 300ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit_seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let seconds = number.parse::<f64>().map_err(|_| wrong())? * unit_seconds;
        total =
            Duration::try_from_secs_f64(seconds).ok().and_then(|d| total.checked_add(d)).ok_or_else(wrong)?;
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
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

    fn flags(arguments: &[&str]) -> Flags {
        Command::try_parse_from([&["etcd"], arguments].concat()).unwrap().flags
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("1h30m", Some(5400.0)),
            ("1.5s", Some(1.5)),
            ("300ms", Some(0.3)),
            ("0", Some(0.0)),
            ("", None),
            ("5", None),
            ("h", None),
            ("1x", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_secs_f64()), expected, "{text}");
        }
    }

    #[test]
    fn retentions() {
        for (mode, text, expected) in [
            ("periodic", "0", Some(Retention::Everything)),
            ("periodic", "2", Some(Retention::Time(HOUR * 2))),
            ("periodic", "30m", Some(Retention::Time(HOUR / 2))),
            ("periodic", "x", None),
            ("revision", "1000", Some(Retention::Revisions(1000))),
            ("revision", "30m", None),
        ] {
            let given = flags(&["--auto-compaction-mode", mode, "--auto-compaction-retention", text]);
            assert_eq!(given.retention().ok(), expected, "{mode} {text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(flags(&["--listen-client-urls=http://a:1"]).client_urls().is_err());
        assert!(flags(&["--name=a", "--initial-cluster=a=http://localhost:2380"]).check_cluster().is_ok());
        let two = "--initial-cluster=a=http://localhost:2380,b=http://b:1";
        let error = flags(&["--name=a", two]).check_cluster().unwrap_err().to_string();
        assert!(error.contains("replication"), "{error}");
        assert!(Command::try_parse_from(["etcd", "--discovery=x"]).is_err());
        assert!(flags(&["--client-cert-auth", "--name=b"]).client_cert_auth);
        assert_eq!(flags(&["--quota-backend-bytes=-1"]).quota_bytes(), 0);
    }
}
