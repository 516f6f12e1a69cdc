//! `apiserver.config.k8s.io` AuthorizationConfiguration: which authorizers are asked, in which order, and how webhooks
//! among them are. Pure, but for a look at whether kubeconfig files are there.

use std::collections::HashSet;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context as _, bail};
use apimachinery::field_path::Path;
use apimachinery::status::FieldError;
use apimachinery::validation;
use expression::{Environment, Program, Type};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::Mode;
use crate::config_file;

const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const CONDITIONS_MAX: usize = 64;
const TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// What the webhook that flags name is called.
const FLAGS_WEBHOOK: &str = "default";

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthorizationConfiguration {
    pub authorizers: Vec<AuthorizerConfiguration>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthorizerConfiguration {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub webhook: Option<WebhookConfiguration>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct WebhookConfiguration {
    /// In nanoseconds, since what is negative is complained of.
    #[serde(rename = "authorizedTTL", deserialize_with = "nanos")]
    pub authorized_ttl: i64,
    pub cache_authorized_requests: bool,
    #[serde(rename = "unauthorizedTTL", deserialize_with = "nanos")]
    pub unauthorized_ttl: i64,
    pub cache_unauthorized_requests: bool,
    #[serde(deserialize_with = "nanos")]
    pub timeout: i64,
    pub subject_access_review_version: String,
    pub match_condition_subject_access_review_version: String,
    pub failure_policy: String,
    pub connection_info: ConnectionInfo,
    pub match_conditions: Vec<MatchCondition>,
}

impl Default for WebhookConfiguration {
    fn default() -> WebhookConfiguration {
        WebhookConfiguration {
            authorized_ttl: Duration::from_secs(300).as_nanos() as i64,
            cache_authorized_requests: true,
            unauthorized_ttl: Duration::from_secs(30).as_nanos() as i64,
            cache_unauthorized_requests: true,
            timeout: 0,
            subject_access_review_version: String::new(),
            match_condition_subject_access_review_version: String::new(),
            failure_policy: String::new(),
            connection_info: ConnectionInfo::default(),
            match_conditions: Vec::new(),
        }
    }
}

impl WebhookConfiguration {
    pub fn timeout(&self) -> Duration {
        Duration::from_nanos(self.timeout.max(0) as u64)
    }

    /// How long answers are remembered: of what is allowed, and of all else.
    pub fn ttls(&self) -> (Duration, Duration) {
        let of =
            |nanos: i64, cached: bool| Duration::from_nanos(if cached { nanos.max(0) as u64 } else { 0 });
        (
            of(self.authorized_ttl, self.cache_authorized_requests),
            of(self.unauthorized_ttl, self.cache_unauthorized_requests),
        )
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ConnectionInfo {
    #[serde(rename = "type")]
    pub kind: String,
    pub kube_config_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MatchCondition {
    pub expression: String,
}

fn nanos<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || serde::de::Error::custom(format!("time: invalid duration {text:?}"));
    apimachinery::duration::parse_nanos(&text).ok_or_else(wrong)
}

/// What the flags say of the one webhook they can name.
#[derive(Clone, Debug)]
pub struct WebhookFlags {
    pub file: Option<PathBuf>,
    pub version: String,
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
}

/// What a request looks like to match conditions.
static CONDITIONS: LazyLock<Environment> = LazyLock::new(|| {
    let text = json!({"type": "string"});
    let texts = json!({"type": "array", "items": text});
    let object = |properties: Value| json!({"type": "object", "properties": properties});
    let requirement = object(json!({"key": text, "operator": text, "values": texts}));
    let selector =
        object(json!({"rawSelector": text, "requirements": {"type": "array", "items": requirement}}));
    let request = object(json!({
        "resourceAttributes": object(json!({"namespace": text, "verb": text, "group": text, "version": text,
            "resource": text, "subresource": text, "name": text, "fieldSelector": selector, "labelSelector": selector})),
        "nonResourceAttributes": object(json!({"path": text, "verb": text})),
        "user": text, "groups": texts, "uid": text, "extra": {"type": "object", "additionalProperties": texts},
    }));
    let declared = expression::schema::declare_plain(&request, "kubernetes.SubjectAccessReviewSpec");
    Environment::default().variable("request", declared.map_or(Type::Dyn, |d| d.ty()))
});

impl AuthorizationConfiguration {
    /// Reads a configuration file and checks it.
    pub fn parse(text: &[u8]) -> anyhow::Result<AuthorizationConfiguration> {
        let config: AuthorizationConfiguration =
            config_file::decode(text, "AuthorizationConfiguration", &VERSIONS)
                .context("failed to load AuthorizationConfiguration from file")?;
        config_file::aggregate(&config.validate())?;
        let mut wrong: Vec<String> = Vec::new();
        for authorizer in config.authorizers.iter().filter(|a| a.kind != "Webhook") {
            let expected = authorizer.kind.to_lowercase();
            if authorizer.name != expected {
                wrong.push(format!(
                    "expected name {expected} for authorizer {} instead of {}",
                    authorizer.kind, authorizer.name
                ));
            }
        }
        match wrong.as_slice() {
            [] => Ok(config),
            [one] => bail!("{one}"),
            many => bail!("[{}]", many.join(", ")),
        }
    }

    /// What modes stand for.
    pub fn of_modes(modes: &[Mode], webhook: Option<&WebhookFlags>) -> AuthorizationConfiguration {
        let of = |mode: &Mode| {
            let kind = mode.name();
            let webhook = webhook.filter(|_| *mode == Mode::Webhook);
            AuthorizerConfiguration {
                kind: kind.to_owned(),
                name: if webhook.is_some() { FLAGS_WEBHOOK.to_owned() } else { kind.to_lowercase() },
                webhook: webhook.map(|flags| WebhookConfiguration {
                    authorized_ttl: flags.authorized_ttl.as_nanos() as i64,
                    cache_authorized_requests: !flags.authorized_ttl.is_zero(),
                    unauthorized_ttl: flags.unauthorized_ttl.as_nanos() as i64,
                    cache_unauthorized_requests: !flags.unauthorized_ttl.is_zero(),
                    timeout: TIMEOUT_MAX.as_nanos() as i64,
                    failure_policy: "NoOpinion".to_owned(),
                    subject_access_review_version: flags.version.clone(),
                    connection_info: ConnectionInfo {
                        kind: "KubeConfigFile".to_owned(),
                        kube_config_file: flags.file.clone(),
                    },
                    ..WebhookConfiguration::default()
                }),
            }
        };
        AuthorizationConfiguration { authorizers: modes.iter().map(of).collect() }
    }

    /// The modes in their order.
    pub fn modes(&self) -> Vec<Mode> {
        self.authorizers.iter().filter_map(|a| a.kind.parse().ok()).collect()
    }

    /// All that is wrong, as upstream tells it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let root = Path::new("authorizers");
        if self.authorizers.is_empty() {
            errors.push(FieldError::required(&root, "at least one authorization mode must be defined"));
        }
        let (mut kinds, mut names) = (HashSet::new(), HashSet::new());
        for (i, authorizer) in self.authorizers.iter().enumerate() {
            let path = root.index(i);
            let (kind, name) = (authorizer.kind.as_str(), authorizer.name.as_str());
            let kind_path = path.child("type");
            if kind.is_empty() {
                errors.push(FieldError::required(&kind_path, ""));
                continue;
            }
            if kind.parse::<Mode>().is_err() {
                let mut known = Mode::ALL.map(Mode::name);
                known.sort_unstable();
                errors.push(FieldError::not_supported(&kind_path, kind, &known));
                continue;
            }
            if !kinds.insert(kind) && kind != "Webhook" {
                errors.push(FieldError::duplicate(&kind_path, kind));
                continue;
            }
            let name_path = path.child("name");
            let malformed = validation::dns1123_subdomain(name);
            if name.is_empty() {
                errors.push(FieldError::required(&name_path, ""));
            } else if names.contains(name) {
                errors.push(FieldError::duplicate(&name_path, name));
            } else if !malformed.is_empty() {
                let why = format!("authorizer name is invalid: {}", malformed.join(", "));
                errors.push(FieldError::invalid(&name_path, name, why));
            }
            names.insert(name);
            let webhook_path = path.child("webhook");
            match (&authorizer.webhook, kind) {
                (None, "Webhook") => {
                    errors.push(FieldError::required(&webhook_path, "required when type=Webhook"));
                }
                // As upstream has it, without the name of the field in between.
                (Some(webhook), "Webhook") => validate_webhook(webhook, &path, &mut errors),
                (Some(_), _) => {
                    let why = "may only be specified when type=Webhook";
                    errors.push(FieldError::invalid(&webhook_path, "non-null", why));
                }
                (None, _) => {}
            }
        }
        errors
    }
}

fn validate_webhook(config: &WebhookConfiguration, path: &Path, errors: &mut Vec<FieldError>) {
    let max = TIMEOUT_MAX.as_nanos() as i64;
    for (name, nanos, max, why) in [
        ("timeout", config.timeout, max, "must be > 0s and <= 30s"),
        ("authorizedTTL", config.authorized_ttl, i64::MAX, "must be > 0s"),
        ("unauthorizedTTL", config.unauthorized_ttl, i64::MAX, "must be > 0s"),
    ] {
        let path = path.child(name);
        if nanos == 0 {
            errors.push(FieldError::required(&path, ""));
        } else if nanos < 0 || nanos > max {
            errors.push(FieldError::invalid(&path, apimachinery::duration::format_nanos(nanos), why));
        }
    }
    let version = config.subject_access_review_version.as_str();
    let version_path = path.child("subjectAccessReviewVersion");
    match version {
        "" => errors.push(FieldError::required(&version_path, "")),
        "v1" | "v1beta1" => {}
        other => errors.push(FieldError::not_supported(&version_path, other, &["v1", "v1beta1"])),
    }
    let version = config.match_condition_subject_access_review_version.as_str();
    let version_path = path.child("matchConditionSubjectAccessReviewVersion");
    match version {
        "" if !config.match_conditions.is_empty() => {
            errors.push(FieldError::required(&version_path, "required if match conditions are specified"));
        }
        "" | "v1" => {}
        other => errors.push(FieldError::not_supported(&version_path, other, &["v1"])),
    }
    let policy_path = path.child("failurePolicy");
    match config.failure_policy.as_str() {
        "" => errors.push(FieldError::required(&policy_path, "")),
        "NoOpinion" | "Deny" => {}
        other => errors.push(FieldError::not_supported(&policy_path, other, &["NoOpinion", "Deny"])),
    }
    let connection = path.child("connectionInfo");
    let (kind_path, file_path) = (connection.child("type"), connection.child("kubeConfigFile"));
    let file = config.connection_info.kube_config_file.as_deref();
    match config.connection_info.kind.as_str() {
        "" => errors.push(FieldError::required(&kind_path, "")),
        "KubeConfigFile" => match file.filter(|f| !f.as_os_str().is_empty()) {
            None => errors.push(FieldError::required(&file_path, "")),
            Some(file) => {
                let why = file_problem(file);
                errors.extend(why.map(|w| FieldError::invalid(&file_path, file.display().to_string(), w)));
            }
        },
        "InClusterConfig" => {
            if let Some(file) = file {
                let why = "can only be set when type=KubeConfigFile";
                errors.push(FieldError::invalid(&file_path, file.display().to_string(), why));
            }
            // It is for servers that run as pods of the cluster they ask.
            errors.push(FieldError::invalid(
                &kind_path,
                "InClusterConfig",
                "cannot be used by the API server itself",
            ));
        }
        other => {
            errors.push(FieldError::not_supported(&kind_path, other, &["InClusterConfig", "KubeConfigFile"]));
        }
    }
    compile(&config.match_conditions, path, errors);
}

fn file_problem(file: &FilePath) -> Option<String> {
    if !file.is_absolute() {
        return Some("must be an absolute path".to_owned());
    }
    match std::fs::metadata(file) {
        Err(error) => Some(format!("error loading file: stat {}: {error}", file.display())),
        Ok(metadata) => (!metadata.is_file()).then(|| "must be a regular file".to_owned()),
    }
}

/// A match condition, ready to run, with its source.
pub type Compiled = Vec<(String, Arc<Program>)>;

/// Checks match conditions and compiles them.
pub fn compile(conditions: &[MatchCondition], path: &Path, errors: &mut Vec<FieldError>) -> Compiled {
    let path = path.child("matchConditions");
    let mut compiled = Vec::new();
    if conditions.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(&path, conditions.len(), CONDITIONS_MAX));
        return compiled;
    }
    let mut seen = HashSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let (path, source) = (path.index(i).child("expression"), condition.expression.as_str());
        if source.trim().is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        if !seen.insert(source) {
            errors.push(FieldError::duplicate(&path, source));
            continue;
        }
        match Program::compile(source, &CONDITIONS) {
            Err(why) => errors.push(FieldError::invalid(&path, source, format!("compilation failed: {why}"))),
            Ok(program) if !matches!(program.output(), Type::Bool) => {
                let why = format!("must evaluate to bool but got {}", program.output());
                errors.push(FieldError::invalid(&path, source, why));
            }
            Ok(program) => compiled.push((source.to_owned(), Arc::new(program))),
        }
    }
    compiled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(authorizers: &str) -> String {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: [{authorizers}]\n"
        );
        AuthorizationConfiguration::parse(text.as_bytes()).err().map(|e| format!("{e:#}")).unwrap_or_default()
    }

    #[test]
    fn tells_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        std::fs::write(&file, "").unwrap();
        let good = format!(
            "timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny, connectionInfo: {{type: KubeConfigFile, \
             kubeConfigFile: {}}}",
            file.display()
        );
        let hook = |more: &str| format!("{{type: Webhook, name: a, webhook: {{{good}{more}}}}}");
        for (authorizers, want) in [
            ("", "authorizers: Required value: at least one authorization mode must be defined".to_owned()),
            ("{type: Node, name: node}, {type: RBAC, name: rbac}", String::new()),
            ("{name: x}", "authorizers[0].type: Required value".to_owned()),
            (
                "{type: X, name: x}",
                "authorizers[0].type: Unsupported value: \"X\": supported values: \"ABAC\", \"AlwaysAllow\", \
                 \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\""
                    .to_owned(),
            ),
            (
                "{type: Node, name: node}, {type: Node, name: b}",
                "authorizers[1].type: Duplicate value: \"Node\"".to_owned(),
            ),
            ("{type: Node, name: x}", "expected name node for authorizer Node instead of x".to_owned()),
            ("{type: Webhook, name: a}", "authorizers[0].webhook: Required value: required when type=Webhook".to_owned()),
            (
                "{type: Node, name: node, webhook: {}}",
                "authorizers[0].webhook: Invalid value: \"non-null\": may only be specified when type=Webhook".to_owned(),
            ),
            (&hook(""), String::new()),
            (&hook(", authorizedTTL: 1m, cacheAuthorizedRequests: false"), String::new()),
            (
                &hook(", matchConditions: [{expression: request.user}]"),
                "[authorizers[0].matchConditionSubjectAccessReviewVersion: Required value: required if match \
                 conditions are specified, authorizers[0].matchConditions[0].expression: Invalid value: \
                 \"request.user\": must evaluate to bool but got string]"
                    .to_owned(),
            ),
            (
                &hook(", matchConditionSubjectAccessReviewVersion: v1, matchConditions: [{expression: 'request.user == \"a\"'}, \
                       {expression: 'has(request.resourceAttributes) && request.resourceAttributes.labelSelector.requirements.size() > 0'}]"),
                String::new(),
            ),
            (
                "{type: Webhook, name: a, webhook: {timeout: 31s, subjectAccessReviewVersion: v2, failurePolicy: x, \
                 connectionInfo: {type: KubeConfigFile, kubeConfigFile: x}}}",
                "[authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s, \
                 authorizers[0].subjectAccessReviewVersion: Unsupported value: \"v2\": supported values: \"v1\", \
                 \"v1beta1\", authorizers[0].failurePolicy: Unsupported value: \"x\": supported values: \"NoOpinion\", \
                 \"Deny\", authorizers[0].connectionInfo.kubeConfigFile: Invalid value: \"x\": must be an absolute path]"
                    .to_owned(),
            ),
        ] {
            assert_eq!(told(authorizers), want, "{authorizers}");
        }
    }
}
