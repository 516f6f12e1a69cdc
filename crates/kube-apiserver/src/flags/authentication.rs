//! Flags about tokens of others.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::{duration, read, read_file};
use crate::authentication::configuration::{
    AuthenticationConfiguration, ClaimValidationRule, JwtAuthenticator, PrefixedClaimOrExpression,
};
use crate::authentication::{jwt, webhook};
use crate::security;

/// Flags about tokens of others.
#[derive(Clone, Debug, clap::Args)]
pub struct AuthenticationFlags {
    /// Whose tokens are taken, and who may come without (`apiserver.config.k8s.io` AuthenticationConfiguration)
    #[arg(long)]
    pub authentication_config: Option<PathBuf>,
    /// Kubeconfig of a webhook that tells whose tokens are
    #[arg(long)]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReview it is sent
    #[arg(long, default_value = "v1beta1")]
    pub authentication_token_webhook_version: String,
    /// How long its answers are remembered
    #[arg(long, default_value = "2m", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// Issuer whose tokens are taken
    #[arg(long)]
    pub oidc_issuer_url: Option<String>,
    /// Audience that they must be for
    #[arg(long)]
    pub oidc_client_id: Option<String>,
    /// Who signs the issuer's certificate [default: the machine's authorities]
    #[arg(long)]
    pub oidc_ca_file: Option<PathBuf>,
    /// Claim that holds the user's name [default: sub]
    #[arg(long)]
    pub oidc_username_claim: Option<String>,
    /// What names are prefixed with; - for nothing [default: the issuer and #, for claims other than email]
    #[arg(long)]
    pub oidc_username_prefix: Option<String>,
    /// Claim that holds the user's groups
    #[arg(long)]
    pub oidc_groups_claim: Option<String>,
    #[arg(long)]
    pub oidc_groups_prefix: Option<String>,
    /// Algorithms that tokens may be signed by [default: RS256]
    #[arg(long, value_delimiter = ',')]
    pub oidc_signing_algs: Vec<String>,
    /// `claim=value` that tokens must hold; may be repeated
    #[arg(long)]
    pub oidc_required_claim: Vec<String>,
}

impl AuthenticationFlags {
    fn uses_oidc(&self) -> bool {
        [
            &self.oidc_issuer_url,
            &self.oidc_client_id,
            &self.oidc_username_claim,
            &self.oidc_username_prefix,
            &self.oidc_groups_claim,
            &self.oidc_groups_prefix,
        ]
        .iter()
        .any(|f| f.is_some())
            || self.oidc_ca_file.is_some()
            || !self.oidc_signing_algs.is_empty()
            || !self.oidc_required_claim.is_empty()
    }

    pub(super) fn problem(&self) -> Option<&'static str> {
        let given = |flag: &Option<String>| flag.as_ref().is_some_and(|f| !f.is_empty());
        if !self.uses_oidc() {
            return None;
        }
        if self.authentication_config.is_some() {
            return Some("authentication-config file and oidc-* flags are mutually exclusive");
        }
        (!given(&self.oidc_issuer_url) || !given(&self.oidc_client_id)).then_some(
            "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set",
        )
    }

    /// The configuration that the `--oidc-*` flags stand for, and the algorithms.
    fn oidc(&self) -> anyhow::Result<Option<security::Authentication>> {
        let (Some(url), Some(client)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            return Ok(None);
        };
        let mut jwt = JwtAuthenticator::default();
        jwt.issuer.url = url.clone();
        jwt.issuer.audiences = vec![client.clone()];
        if let Some(authority) = read(&self.oidc_ca_file)? {
            jwt.issuer.certificate_authority = String::from_utf8(authority).context("--oidc-ca-file")?;
        }
        let claim = self.oidc_username_claim.clone().unwrap_or_else(|| "sub".to_owned());
        let prefix = match self.oidc_username_prefix.as_deref().unwrap_or_default() {
            "-" => String::new(),
            "" if claim != "email" => format!("{url}#"),
            prefix => prefix.to_owned(),
        };
        jwt.claim_mappings.username =
            PrefixedClaimOrExpression { claim, prefix: Some(prefix), ..Default::default() };
        if let Some(claim) = self.oidc_groups_claim.clone().filter(|c| !c.is_empty()) {
            let prefix = Some(self.oidc_groups_prefix.clone().unwrap_or_default());
            jwt.claim_mappings.groups = PrefixedClaimOrExpression { claim, prefix, ..Default::default() };
        }
        for required in &self.oidc_required_claim {
            let (claim, value) = required
                .split_once('=')
                .with_context(|| format!("malformed pair, expect string=string, not {required:?}"))?;
            let rule = ClaimValidationRule {
                claim: claim.trim().to_owned(),
                required_value: value.trim().to_owned(),
                ..Default::default()
            };
            jwt.claim_validation_rules.push(rule);
        }
        let algorithms = match self.oidc_signing_algs.as_slice() {
            [] => vec!["RS256".to_owned()],
            given => given.to_vec(),
        };
        if let Some(other) = algorithms.iter().find(|a| !jwt::ALGORITHMS.contains(&a.as_str())) {
            bail!("oidc: unsupported signing alg: {other:?}");
        }
        let config = AuthenticationConfiguration { jwt: vec![jwt], anonymous: None };
        Ok(Some(security::Authentication::Fixed { config, algorithms }))
    }

    /// Fills in `security`; `anonymous` is the flag that says who may come without a token.
    pub fn apply(&self, anonymous: Option<bool>, security: &mut security::Config) -> anyhow::Result<()> {
        if let Some(problem) = self.problem() {
            bail!(problem);
        }
        security.authentication = match &self.authentication_config {
            None => self.oidc()?,
            Some(path) => {
                let text = read_file(path)?;
                let config = AuthenticationConfiguration::parse(&text).with_context(|| {
                    format!(
                        "failed to load authentication configuration from file {:?}",
                        path.display().to_string()
                    )
                })?;
                ensure!(
                    config.anonymous.is_none() || anonymous.is_none(),
                    "anonymous: Forbidden: --anonymous-auth flag cannot be set when anonymous field is configured in \
                     authentication configuration file"
                );
                Some(security::Authentication::File { path: path.clone(), text, config })
            }
        };
        security.token_webhook =
            self.authentication_token_webhook_config_file.clone().map(|file| webhook::Config {
                file,
                version: self.authentication_token_webhook_version.clone(),
                cache_ttl: self.authentication_token_webhook_cache_ttl,
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::flags;
    use super::*;

    #[test]
    fn flags_stand_for_an_issuer() {
        let of = |arguments: &[&str]| {
            let mut security = security::Config::default();
            flags(arguments)
                .apply_security(&mut security)
                .map(|()| security.authentication)
                .map_err(|e| e.to_string())
        };
        assert!(of(&[]).unwrap().is_none());
        let base = ["--oidc-issuer-url=https://a", "--oidc-client-id=x"];
        for (more, prefix, algorithms) in [
            (&[] as &[&str], "https://a#", "RS256"),
            (&["--oidc-username-prefix=-"], "", "RS256"),
            (&["--oidc-username-claim=email", "--oidc-signing-algs=ES256,PS512"], "", "ES256,PS512"),
            (&["--oidc-username-prefix=p:"], "p:", "RS256"),
        ] {
            let Some(security::Authentication::Fixed { config, algorithms: got }) =
                of(&[&base[..], more].concat()).unwrap()
            else {
                panic!("{more:?}")
            };
            assert!(config.validate(&[]).is_empty());
            assert_eq!(config.jwt[0].claim_mappings.username.prefix.as_deref(), Some(prefix), "{more:?}");
            assert_eq!(got.join(","), algorithms);
        }
        let claims = ["--oidc-groups-claim=g", "--oidc-groups-prefix=q:", "--oidc-required-claim=a=b=c"];
        let Some(security::Authentication::Fixed { config, .. }) =
            of(&[&base[..], &claims].concat()).unwrap()
        else {
            panic!()
        };
        assert_eq!(config.jwt[0].claim_mappings.groups.prefix.as_deref(), Some("q:"));
        assert_eq!(config.jwt[0].claim_validation_rules[0].required_value, "b=c");
        assert!(
            of(&[&base[..], &["--oidc-signing-algs=HS256"]].concat())
                .unwrap_err()
                .contains("unsupported signing alg")
        );
        let problem = |arguments: &[&str]| flags(arguments).authentication.problem().unwrap_or_default();
        assert!(problem(&["--oidc-groups-claim=g"]).starts_with("oidc-issuer-url and oidc-client-id"));
        assert!(problem(&["--authentication-config=/x", base[0], base[1]]).ends_with("mutually exclusive"));
        assert_eq!(problem(&base), "");
    }
}
