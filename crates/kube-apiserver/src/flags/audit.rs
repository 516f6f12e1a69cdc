//! Flags about the audit log.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::ArgAction;

use super::{duration, read};
use crate::audit::{Batching, Config, Format, LogConfig, Mode, Options, Truncation, WebhookConfig};

const VERSION: &str = "audit.k8s.io/v1";

#[derive(Clone, Debug, clap::Args)]
pub struct AuditFlags {
    /// Which requests are told of in the audit log, and how much (`audit.k8s.io/v1` Policy)
    #[arg(long)]
    pub audit_policy_file: Option<PathBuf>,
    /// The audit log; - is standard output
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    /// Days that audit logs set aside are kept; 0 is for ever
    #[arg(long, default_value_t = 366, allow_negative_numbers = true)]
    pub audit_log_maxage: i64,
    /// How many of them are kept; 0 is all
    #[arg(long, default_value_t = 100, allow_negative_numbers = true)]
    pub audit_log_maxbackup: i64,
    /// Megabytes after which an audit log is set aside; 0 is never
    #[arg(long, default_value_t = 100, allow_negative_numbers = true)]
    pub audit_log_maxsize: i64,
    /// json or legacy
    #[arg(long, default_value = "json")]
    pub audit_log_format: String,
    /// Compresses audit logs that are set aside
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub audit_log_compress: bool,
    #[arg(long, default_value = VERSION)]
    pub audit_log_version: String,
    /// Whether requests wait for their events: batch, blocking or blocking-strict
    #[arg(long, default_value = "blocking")]
    pub audit_log_mode: String,
    /// Events that may wait in mode batch
    #[arg(long, default_value_t = 10_000, allow_negative_numbers = true)]
    pub audit_log_batch_buffer_size: i64,
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    pub audit_log_batch_max_size: i64,
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub audit_log_batch_max_wait: Duration,
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub audit_log_batch_throttle_enable: bool,
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub audit_log_batch_throttle_qps: f32,
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub audit_log_batch_throttle_burst: i64,
    /// Leaves out what requests and answers held where an event is too large
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub audit_log_truncate_enabled: bool,
    #[arg(long, default_value_t = 10 << 20, allow_negative_numbers = true)]
    pub audit_log_truncate_max_batch_size: i64,
    #[arg(long, default_value_t = 100 << 10, allow_negative_numbers = true)]
    pub audit_log_truncate_max_event_size: i64,
    #[command(flatten)]
    pub webhook: AuditWebhookFlags,
}

/// Those about the webhook that events are sent to.
#[derive(Clone, Debug, clap::Args)]
pub struct AuditWebhookFlags {
    /// Kubeconfig of a webhook that audit events are sent to
    #[arg(long)]
    pub audit_webhook_config_file: Option<PathBuf>,
    #[arg(long, default_value = VERSION)]
    pub audit_webhook_version: String,
    /// The pause before events are sent a second time
    #[arg(long, alias = "audit-webhook-batch-initial-backoff", default_value = "10s", value_parser = duration)]
    pub audit_webhook_initial_backoff: Duration,
    /// Whether requests wait for their events: batch, blocking or blocking-strict
    #[arg(long, default_value = "batch")]
    pub audit_webhook_mode: String,
    /// Events that may wait in mode batch
    #[arg(long, default_value_t = 10_000, allow_negative_numbers = true)]
    pub audit_webhook_batch_buffer_size: i64,
    #[arg(long, default_value_t = 400, allow_negative_numbers = true)]
    pub audit_webhook_batch_max_size: i64,
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub audit_webhook_batch_max_wait: Duration,
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub audit_webhook_batch_throttle_enable: bool,
    #[arg(long, default_value_t = 10.0, allow_negative_numbers = true)]
    pub audit_webhook_batch_throttle_qps: f32,
    #[arg(long, default_value_t = 15, allow_negative_numbers = true)]
    pub audit_webhook_batch_throttle_burst: i64,
    /// Leaves out what requests and answers held where an event is too large
    #[arg(long, default_value_t = false, num_args = 0..=1, default_missing_value = "true", require_equals = true, action = ArgAction::Set)]
    pub audit_webhook_truncate_enabled: bool,
    #[arg(long, default_value_t = 10 << 20, allow_negative_numbers = true)]
    pub audit_webhook_truncate_max_batch_size: i64,
    #[arg(long, default_value_t = 100 << 10, allow_negative_numbers = true)]
    pub audit_webhook_truncate_max_event_size: i64,
}

/// The flags that the log and the webhook both have.
struct Common<'a> {
    plugin: &'a str,
    mode: &'a str,
    version: &'a str,
    buffer_size: i64,
    size_max: i64,
    wait_max: Duration,
    throttle: Option<(f32, i64)>,
    truncates: bool,
    batch_bytes_max: i64,
    event_bytes_max: i64,
}

impl Common<'_> {
    fn options(&self) -> anyhow::Result<Options> {
        let plugin = self.plugin;
        let Ok(mode) = self.mode.parse::<Mode>() else {
            bail!(
                "invalid audit {plugin} mode {}, allowed modes are \"batch,blocking,blocking-strict\"",
                self.mode
            );
        };
        if mode == Mode::Batch {
            let positive = |what: &str, value: f64| {
                ensure!(
                    value > 0.0,
                    "invalid audit batch {plugin} {what} {value}, must be a positive number"
                );
                Ok(())
            };
            positive("buffer size", self.buffer_size as f64)?;
            positive("max batch size", self.size_max as f64)?;
            if let Some((rate, burst)) = self.throttle {
                positive("throttle QPS", f64::from(rate))?;
                positive("throttle burst", burst as f64)?;
            }
        }
        let (batch, event) = (self.batch_bytes_max, self.event_bytes_max);
        ensure!(
            event > 0,
            "invalid audit truncate {plugin} max event size {event}, must be a positive number"
        );
        ensure!(
            batch >= event,
            "invalid audit truncate {plugin} max batch size {batch}, must be greater than max event size ({event})"
        );
        ensure!(self.version == VERSION, "invalid group version, allowed versions are [\"{VERSION}\"]");
        let batching = Batching {
            buffer_size: self.buffer_size.max(0) as usize,
            size_max: self.size_max.max(0) as usize,
            wait_max: self.wait_max,
            throttle: self.throttle.map(|(rate, burst)| (rate, burst.max(0) as u32)),
        };
        // What is sent together was weighed before: no batch of such events is too large for its own limit.
        let truncation = self.truncates.then_some(Truncation { event_max: event as usize });
        Ok(Options { mode, batching, truncation })
    }
}

impl AuditFlags {
    /// What the flags say; nothing where there is no policy, or nowhere for events to go.
    pub fn config(&self) -> anyhow::Result<Option<Config>> {
        let log = self.log()?;
        let webhook = self.webhook.config()?;
        let policy = read(&self.audit_policy_file)?;
        Ok(policy.filter(|_| log.is_some() || webhook.is_some()).map(|policy| Config {
            policy,
            log,
            webhook,
        }))
    }

    fn log(&self) -> anyhow::Result<Option<(LogConfig, Options)>> {
        let Some(path) = self.audit_log_path.clone().filter(|p| !p.as_os_str().is_empty()) else {
            return Ok(None);
        };
        let options = Common {
            plugin: "log",
            mode: &self.audit_log_mode,
            version: &self.audit_log_version,
            buffer_size: self.audit_log_batch_buffer_size,
            size_max: self.audit_log_batch_max_size,
            wait_max: self.audit_log_batch_max_wait,
            throttle: self
                .audit_log_batch_throttle_enable
                .then_some((self.audit_log_batch_throttle_qps, self.audit_log_batch_throttle_burst)),
            truncates: self.audit_log_truncate_enabled,
            batch_bytes_max: self.audit_log_truncate_max_batch_size,
            event_bytes_max: self.audit_log_truncate_max_event_size,
        };
        let options = options.options()?;
        let format = match self.audit_log_format.as_str() {
            "json" => Format::Json,
            "legacy" => Format::Legacy,
            other => bail!("invalid audit log format {other}, allowed formats are \"legacy,json\""),
        };
        for (flag, value) in [
            ("maxage", self.audit_log_maxage),
            ("maxbackup", self.audit_log_maxbackup),
            ("maxsize", self.audit_log_maxsize),
        ] {
            ensure!(value >= 0, "--audit-log-{flag} {value} can't be a negative number");
        }
        let config = LogConfig {
            path,
            age_days_max: self.audit_log_maxage as u64,
            backups_max: self.audit_log_maxbackup as usize,
            megabytes_max: self.audit_log_maxsize as u64,
            compress: self.audit_log_compress,
            format,
        };
        Ok(Some((config, options)))
    }
}

impl AuditWebhookFlags {
    pub fn config(&self) -> anyhow::Result<Option<WebhookConfig>> {
        let Some(file) = self.audit_webhook_config_file.clone() else { return Ok(None) };
        let options = Common {
            plugin: "webhook",
            mode: &self.audit_webhook_mode,
            version: &self.audit_webhook_version,
            buffer_size: self.audit_webhook_batch_buffer_size,
            size_max: self.audit_webhook_batch_max_size,
            wait_max: self.audit_webhook_batch_max_wait,
            throttle: self
                .audit_webhook_batch_throttle_enable
                .then_some((self.audit_webhook_batch_throttle_qps, self.audit_webhook_batch_throttle_burst)),
            truncates: self.audit_webhook_truncate_enabled,
            batch_bytes_max: self.audit_webhook_truncate_max_batch_size,
            event_bytes_max: self.audit_webhook_truncate_max_event_size,
        };
        let (options, initial_backoff) = (options.options()?, self.audit_webhook_initial_backoff);
        Ok(Some(WebhookConfig { file, initial_backoff, options }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::flags;
    use super::*;

    #[test]
    fn defaults_are_upstreams() {
        let given = flags(&["--audit-log-path=/a", "--audit-webhook-config-file=/k"]);
        let (log, options) = given.audit.log().unwrap().unwrap();
        assert_eq!(options, Options::log());
        assert_eq!((log.age_days_max, log.backups_max, log.megabytes_max), (366, 100, 100));
        let webhook = given.audit.webhook.config().unwrap().unwrap();
        assert_eq!(webhook.options, Options::webhook());
        assert!(given.audit.config().unwrap().is_none(), "there is no policy");
        let webhook = flags(&["--audit-webhook-config-file=/k", "--audit-webhook-batch-initial-backoff=5s"]);
        assert_eq!(webhook.audit.webhook.config().unwrap().unwrap().initial_backoff, Duration::from_secs(5));
    }

    #[test]
    fn says_what_is_wrong() {
        for (argument, why) in [
            (
                "--audit-log-mode=x",
                "invalid audit log mode x, allowed modes are \"batch,blocking,blocking-strict\"",
            ),
            ("--audit-log-maxage=-1", "--audit-log-maxage -1 can't be a negative number"),
            ("--audit-log-format=x", "invalid audit log format x, allowed formats are \"legacy,json\""),
            (
                "--audit-webhook-batch-buffer-size=0",
                "invalid audit batch webhook buffer size 0, must be a positive number",
            ),
            (
                "--audit-webhook-truncate-max-event-size=99999999",
                "invalid audit truncate webhook max batch size 10485760, must be greater than max event size (99999999)",
            ),
            (
                "--audit-webhook-version=audit.k8s.io/v1beta1",
                "invalid group version, allowed versions are [\"audit.k8s.io/v1\"]",
            ),
        ] {
            let given = flags(&["--audit-log-path=/a", "--audit-webhook-config-file=/k", argument]);
            assert_eq!(given.audit.config().unwrap_err().to_string(), why);
        }
    }
}
