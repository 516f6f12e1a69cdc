//! Flags about who may do what.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{duration, read_file};
use crate::authorization::Mode;
use crate::authorization::configuration::{AuthorizationConfiguration, WebhookFlags};
use crate::security;

/// Flags about who may do what.
#[derive(Clone, Debug, clap::Args)]
pub struct AuthorizationFlags {
    /// Authorizers, asked in this order: AlwaysAllow, AlwaysDeny, ABAC, Webhook, RBAC, Node
    #[arg(long, value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    /// Authorizers in their order (`apiserver.config.k8s.io` AuthorizationConfiguration), instead of the flags
    #[arg(long)]
    pub authorization_config: Option<PathBuf>,
    /// Policies of mode ABAC, a JSON object a line
    #[arg(long)]
    pub authorization_policy_file: Option<PathBuf>,
    /// Kubeconfig of the webhook of mode Webhook
    #[arg(long)]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReview it is sent [default: v1beta1]
    #[arg(long)]
    pub authorization_webhook_version: Option<String>,
    /// How long it is remembered that it allowed a request [default: 5m]
    #[arg(long, value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long, that it did not [default: 30s]
    #[arg(long, value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
}

impl AuthorizationFlags {
    fn problems(&self, modes: &[&str]) -> Vec<String> {
        let mut wrong = Vec::new();
        for mode in modes {
            match mode.parse::<Mode>() {
                Err(why) => wrong.push(why),
                Ok(Mode::Abac) if self.authorization_policy_file.is_none() => {
                    wrong.push("authorization-mode ABAC's authorization policy file not passed".to_owned());
                }
                Ok(Mode::Webhook) if self.authorization_webhook_config_file.is_none() => {
                    wrong
                        .push("authorization-mode Webhook's authorization config file not passed".to_owned());
                }
                Ok(_) => {}
            }
        }
        if self.authorization_policy_file.is_some() && !modes.contains(&"ABAC") {
            wrong.push("cannot specify --authorization-policy-file without mode ABAC".to_owned());
        }
        if self.authorization_webhook_config_file.is_some() && !modes.contains(&"Webhook") {
            wrong.push("cannot specify --authorization-webhook-config-file without mode Webhook".to_owned());
        }
        let mut distinct = modes.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() != modes.len() {
            let quoted: Vec<String> = modes.iter().map(|m| format!("{m:?}")).collect();
            wrong
                .push(format!("authorization-mode [{}] has mode specified more than once", quoted.join(" ")));
        }
        wrong
    }

    /// Fills in `security`; `default` are the modes where no flag says any.
    pub fn apply(&self, default: &[&str], security: &mut security::Config) -> anyhow::Result<()> {
        let legacy = !self.authorization_mode.is_empty()
            || self.authorization_webhook_config_file.is_some()
            || self.authorization_webhook_version.is_some()
            || self.authorization_webhook_cache_authorized_ttl.is_some()
            || self.authorization_webhook_cache_unauthorized_ttl.is_some();
        if let Some(path) = &self.authorization_policy_file {
            let text = String::from_utf8(read_file(path)?).context("--authorization-policy-file")?;
            security.abac_policies = Some((path.display().to_string(), text));
        }
        if let Some(path) = &self.authorization_config {
            ensure!(
                !legacy,
                "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* \
                 flags are defined"
            );
            let text = read_file(path)?;
            security.authorization = AuthorizationConfiguration::parse(&text)?;
            security.authorization_file = Some((path.clone(), text));
            return Ok(());
        }
        let given: Vec<&str> = self.authorization_mode.iter().map(String::as_str).collect();
        let modes = if given.is_empty() { default } else { &given };
        match self.problems(modes).as_slice() {
            [] => {}
            [one] => bail!("{one}"),
            many => bail!("[{}]", many.join(", ")),
        }
        let modes: Vec<Mode> = modes.iter().filter_map(|m| m.parse().ok()).collect();
        let webhook = WebhookFlags {
            file: self.authorization_webhook_config_file.clone(),
            version: self.authorization_webhook_version.clone().unwrap_or_else(|| "v1beta1".to_owned()),
            authorized_ttl: self
                .authorization_webhook_cache_authorized_ttl
                .unwrap_or(Duration::from_secs(300)),
            unauthorized_ttl: self
                .authorization_webhook_cache_unauthorized_ttl
                .unwrap_or(Duration::from_secs(30)),
        };
        security.authorization = AuthorizationConfiguration::of_modes(&modes, Some(&webhook));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::flags;
    use super::*;

    #[test]
    fn flags_stand_for_authorizers() {
        let of = |arguments: &[&str]| {
            let mut security = security::Config::default();
            let applied = flags(arguments).authorization.apply(&["AlwaysAllow"], &mut security);
            applied.map(|()| security.authorization.modes()).map_err(|e| e.to_string())
        };
        assert_eq!(of(&[]).unwrap(), [Mode::AlwaysAllow]);
        let all = [
            "--authorization-mode=Node,Webhook,RBAC",
            "--authorization-webhook-config-file=/k",
            "--authorization-webhook-cache-authorized-ttl=0s",
        ];
        assert_eq!(of(&all).unwrap(), [Mode::Node, Mode::Webhook, Mode::Rbac]);
        for (arguments, why) in [
            (&["--authorization-mode=X"] as &[&str], "authorization-mode \"X\" is not a valid mode"),
            (
                &["--authorization-mode=ABAC"],
                "authorization-mode ABAC's authorization policy file not passed",
            ),
            (
                &["--authorization-mode=Webhook"],
                "authorization-mode Webhook's authorization config file not passed",
            ),
            (
                &["--authorization-mode=RBAC", "--authorization-webhook-config-file=/k"],
                "cannot specify --authorization-webhook-config-file without mode Webhook",
            ),
            (
                &["--authorization-mode=RBAC,RBAC"],
                "authorization-mode [\"RBAC\" \"RBAC\"] has mode specified more than once",
            ),
            (
                &["--authorization-config=/x", "--authorization-mode=RBAC"],
                "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags \
                 are defined",
            ),
        ] {
            assert_eq!(of(arguments).unwrap_err(), why);
        }
    }
}
