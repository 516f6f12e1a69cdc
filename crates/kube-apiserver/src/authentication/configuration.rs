//! `apiserver.config.k8s.io` AuthenticationConfiguration: whose tokens are taken, what is read from them, and who may
//! come without any. Pure.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use apimachinery::field_path::Path;
use apimachinery::status::FieldError;
use apimachinery::validation;
use expression::{Environment, Program, Type};
use regex::Regex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;

use crate::config_file;

const ISSUERS_MAX: usize = 64;

/// The versions that are read; all of one shape.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthenticationConfiguration {
    #[serde(deserialize_with = "null_is_default")]
    pub jwt: Vec<JwtAuthenticator>,
    pub anonymous: Option<Anonymous>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Who may come without credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    /// Where they may go; empty is everywhere.
    pub conditions: Vec<AnonymousCondition>,
}

impl Anonymous {
    /// Whether a request for a path may come without credentials.
    pub fn admits(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnonymousCondition {
    pub path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct JwtAuthenticator {
    pub issuer: Issuer,
    pub claim_validation_rules: Vec<ClaimValidationRule>,
    pub claim_mappings: ClaimMappings,
    pub user_validation_rules: Vec<UserValidationRule>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Issuer {
    pub url: String,
    #[serde(rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    /// PEM; empty means the machine's own.
    pub certificate_authority: String,
    pub audiences: Vec<String>,
    pub audience_match_policy: String,
    pub egress_selector_type: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ClaimValidationRule {
    pub claim: String,
    pub required_value: String,
    pub expression: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClaimMappings {
    pub username: PrefixedClaimOrExpression,
    pub groups: PrefixedClaimOrExpression,
    pub uid: ClaimOrExpression,
    pub extra: Vec<ExtraMapping>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixedClaimOrExpression {
    pub claim: String,
    pub prefix: Option<String>,
    pub expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClaimOrExpression {
    pub claim: String,
    pub expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ExtraMapping {
    pub key: String,
    pub value_expression: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UserValidationRule {
    pub expression: String,
    pub message: String,
}

/// The expressions of a JWT authenticator, ready to run.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    pub username: Option<Arc<Program>>,
    pub groups: Option<Arc<Program>>,
    pub uid: Option<Arc<Program>>,
    pub extra: Vec<(ExtraMapping, Arc<Program>)>,
    /// With the rules' sources and messages.
    pub claim_rules: Vec<(ClaimValidationRule, Arc<Program>)>,
    pub user_rules: Vec<(UserValidationRule, Arc<Program>)>,
}

static CLAIMS: LazyLock<Environment> =
    LazyLock::new(|| Environment::default().variable("claims", Type::map(Type::String, Type::Dyn)));

static USER: LazyLock<Environment> = LazyLock::new(|| {
    let text = json!({"type": "string"});
    let texts = json!({"type": "array", "items": text});
    let user = json!({"type": "object", "properties": {"username": text, "uid": text, "groups": texts,
        "extra": {"type": "object", "additionalProperties": texts}}});
    let declared = expression::schema::declare_plain(&user, "kubernetes.UserInfo");
    Environment::default().variable("user", declared.map_or(Type::Dyn, |d| d.ty()))
});

static HTTP_PATH: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[A-Za-z0-9/\-._~%!$&'()*+,;=:]+$").ok());

impl AuthenticationConfiguration {
    /// Reads a configuration file; what it says is checked by [`AuthenticationConfiguration::validate`].
    pub fn parse(text: &[u8]) -> anyhow::Result<AuthenticationConfiguration> {
        config_file::decode(text, "AuthenticationConfiguration", &VERSIONS)
    }

    /// All that is wrong, as upstream tells it. Issuers of service account tokens cannot be issuers here.
    pub fn validate(&self, disallowed: &[String]) -> Vec<FieldError> {
        let root = Path::new("jwt");
        if self.jwt.len() > ISSUERS_MAX {
            return vec![FieldError::too_many(&root, self.jwt.len(), ISSUERS_MAX)];
        }
        let mut errors = Vec::new();
        let (mut urls, mut discovery_urls) = (HashSet::new(), HashSet::new());
        for (i, jwt) in self.jwt.iter().enumerate() {
            let path = root.index(i);
            compile(jwt, &path, disallowed, &mut errors);
            let issuer = path.child("issuer");
            if !urls.insert(jwt.issuer.url.as_str()) {
                errors.push(FieldError::duplicate(&issuer.child("url"), jwt.issuer.url.as_str()));
            }
            if let Some(url) = jwt.issuer.discovery_url.as_deref().filter(|u| !u.is_empty())
                && !discovery_urls.insert(url)
            {
                errors.push(FieldError::duplicate(&issuer.child("discoveryURL"), url));
            }
        }
        if let Some(anonymous) = &self.anonymous
            && !anonymous.enabled
            && !anonymous.conditions.is_empty()
        {
            let paths: Vec<_> = anonymous.conditions.iter().map(|c| json!({"path": c.path})).collect();
            errors.push(FieldError::invalid(
                &Path::new("anonymous").child("conditions"),
                paths,
                "enabled should be set to true when conditions are defined",
            ));
        }
        errors
    }
}

/// Checks one authenticator and compiles its expressions.
pub fn compile(
    jwt: &JwtAuthenticator,
    path: &Path,
    disallowed: &[String],
    errors: &mut Vec<FieldError>,
) -> Compiled {
    let mut compiled = Compiled::default();
    issuer(&jwt.issuer, &path.child("issuer"), disallowed, errors);
    claim_rules(&jwt.claim_validation_rules, &path.child("claimValidationRules"), &mut compiled, errors);
    claim_mappings(&jwt.claim_mappings, &path.child("claimMappings"), &mut compiled, errors);
    user_rules(&jwt.user_validation_rules, &path.child("userValidationRules"), &mut compiled, errors);
    compiled
}

fn issuer(issuer: &Issuer, path: &Path, disallowed: &[String], errors: &mut Vec<FieldError>) {
    if issuer.url.is_empty() {
        errors.push(FieldError::required(&path.child("url"), ""));
    } else {
        url(&issuer.url, disallowed, &path.child("url"), errors);
    }
    if let Some(discovery) = issuer.discovery_url.as_deref().filter(|u| !u.is_empty()) {
        let path = path.child("discoveryURL");
        if !issuer.url.is_empty() && issuer.url.trim_end_matches('/') == discovery.trim_end_matches('/') {
            errors.push(FieldError::invalid(&path, discovery, "discoveryURL must be different from URL"));
        }
        url(discovery, &[], &path, errors);
    }
    audiences(issuer, path, errors);
    let authority = &issuer.certificate_authority;
    if !authority.is_empty() {
        let path = path.child("certificateAuthority");
        let why = match certificates(authority.as_bytes()) {
            Err(why) => Some(why.to_string()),
            Ok(found) if found.is_empty() => {
                Some("data does not contain any valid RSA or ECDSA certificates".to_owned())
            }
            Ok(_) => None,
        };
        errors.extend(why.map(|why| FieldError::invalid(&path, "<omitted>", why)));
    }
    // Upstream dials through its egress selectors only where an operator turns that on.
    if !issuer.egress_selector_type.is_empty() {
        errors.push(FieldError::invalid(
            &path.child("egressSelectorType"),
            issuer.egress_selector_type.as_str(),
            "egress selector is not supported by this server",
        ));
    }
}

/// The certificates of a PEM bundle.
pub fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    for certificate in &found {
        x509_parser::parse_x509_certificate(certificate).map_err(|e| anyhow::anyhow!("{e}"))?;
    }
    Ok(found)
}

fn url(url: &str, disallowed: &[String], path: &Path, errors: &mut Vec<FieldError>) {
    let mut wrong = |why: String| errors.push(FieldError::invalid(path, url, why));
    if disallowed.iter().any(|d| d == url) {
        let mut all: Vec<&str> = disallowed.iter().map(String::as_str).collect();
        all.sort_unstable();
        wrong(format!("URL must not overlap with disallowed issuers: [{}]", all.join(" ")));
    }
    if url.bytes().any(|b| b.is_ascii_control() || b == b' ') {
        wrong(format!("parse {url:?}: net/url: invalid control character in URL"));
        return;
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    if scheme != "https" {
        wrong("URL scheme must be https".into());
    }
    if !scheme.is_empty() && rest.split('/').next().is_some_and(|authority| authority.contains('@')) {
        wrong("URL must not contain a username or password".into());
    }
    if !query.is_empty() {
        wrong("URL must not contain a query".into());
    }
    if !fragment.is_empty() {
        wrong("URL must not contain a fragment".into());
    }
}

fn audiences(issuer: &Issuer, path: &Path, errors: &mut Vec<FieldError>) {
    let (audiences, policy) = (&issuer.audiences, issuer.audience_match_policy.as_str());
    let (path, policy_path) = (path.child("audiences"), path.child("audienceMatchPolicy"));
    if audiences.is_empty() {
        errors.push(FieldError::required(&path, format!("at least one {path} is required")));
        return;
    }
    let mut seen = HashSet::new();
    for (i, audience) in audiences.iter().enumerate() {
        let path = path.index(i);
        if audience.is_empty() {
            errors.push(FieldError::required(&path, ""));
        }
        if !seen.insert(audience) {
            errors.push(FieldError::duplicate(&path, audience.as_str()));
        }
    }
    let why = match audiences.len() {
        1 if !policy.is_empty() && policy != "MatchAny" => {
            "audienceMatchPolicy must be empty or MatchAny for single audience"
        }
        2.. if policy != "MatchAny" => "audienceMatchPolicy must be MatchAny for multiple audiences",
        _ => return,
    };
    errors.push(FieldError::invalid(&policy_path, policy, why));
}

fn program(
    source: &str,
    environment: &Environment,
    bool_only: bool,
    path: &Path,
    errors: &mut Vec<FieldError>,
) -> Option<Arc<Program>> {
    match Program::compile(source, environment) {
        Err(why) => errors.push(FieldError::invalid(path, source, format!("compilation failed: {why}"))),
        Ok(program) if bool_only && !matches!(program.output(), Type::Bool) => {
            errors.push(FieldError::invalid(path, source, "must evaluate to bool"));
        }
        Ok(program) => return Some(Arc::new(program)),
    }
    None
}

fn claim_rules(
    rules: &[ClaimValidationRule],
    path: &Path,
    compiled: &mut Compiled,
    errors: &mut Vec<FieldError>,
) {
    let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (false, false) => errors.push(FieldError::invalid(
                &path,
                rule.claim.as_str(),
                "claim and expression can't both be set",
            )),
            (true, true) => errors.push(FieldError::required(&path, "claim or expression is required")),
            (false, true) => {
                if !rule.message.is_empty() {
                    let why = "may not be specified when claim is set";
                    errors.push(FieldError::invalid(&path.child("message"), rule.message.as_str(), why));
                }
                if !claims.insert(rule.claim.as_str()) {
                    errors.push(FieldError::duplicate(&path.child("claim"), rule.claim.as_str()));
                }
            }
            (true, false) => {
                if !rule.required_value.is_empty() {
                    let why = "may not be specified when expression is set";
                    let value = rule.required_value.as_str();
                    errors.push(FieldError::invalid(&path.child("requiredValue"), value, why));
                }
                let path = path.child("expression");
                if !expressions.insert(rule.expression.as_str()) {
                    errors.push(FieldError::duplicate(&path, rule.expression.as_str()));
                    continue;
                }
                let program = program(&rule.expression, &CLAIMS, true, &path, errors);
                compiled.claim_rules.extend(program.map(|p| (rule.clone(), p)));
            }
        }
    }
}

fn claim_mappings(
    mappings: &ClaimMappings,
    path: &Path,
    compiled: &mut Compiled,
    errors: &mut Vec<FieldError>,
) {
    compiled.username = prefixed(&mappings.username, true, &path.child("username"), errors);
    compiled.groups = prefixed(&mappings.groups, false, &path.child("groups"), errors);
    let uid = path.child("uid");
    match (mappings.uid.claim.is_empty(), mappings.uid.expression.is_empty()) {
        (false, false) => {
            errors.push(FieldError::invalid(&uid, "", "claim and expression can't both be set"));
        }
        (_, false) => {
            compiled.uid =
                program(&mappings.uid.expression, &CLAIMS, false, &uid.child("expression"), errors);
        }
        _ => {}
    }
    let mut keys = HashSet::new();
    for (i, mapping) in mappings.extra.iter().enumerate() {
        let path = path.child("extra").index(i);
        let (key, key_path) = (mapping.key.as_str(), path.child("key"));
        domain_prefixed(key, &key_path, errors);
        if key != key.to_lowercase() {
            errors.push(FieldError::invalid(&key_path, key, "must be lowercase"));
        }
        if is_reserved(key) {
            let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
            errors.push(FieldError::invalid(&key_path, key, why));
        }
        if !keys.insert(key) {
            errors.push(FieldError::duplicate(&key_path, key));
            continue;
        }
        let path = path.child("valueExpression");
        if mapping.value_expression.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        let program = program(&mapping.value_expression, &CLAIMS, false, &path, errors);
        compiled.extra.extend(program.map(|p| (mapping.clone(), p)));
    }
    let verified = |p: &Program| p.selects("claims", "email_verified");
    let uses_email = compiled.username.as_ref().is_some_and(|p| p.selects("claims", "email"));
    let checks_email = compiled.username.as_deref().is_some_and(verified)
        || compiled.extra.iter().any(|(_, p)| verified(p))
        || compiled.claim_rules.iter().any(|(_, p)| verified(p));
    if uses_email && !checks_email {
        errors.push(FieldError::invalid(
            &path.child("username").child("expression"),
            mappings.username.expression.as_str(),
            "claims.email_verified must be used in claimMappings.username.expression or \
             claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used \
             in claimMappings.username.expression",
        ));
    }
}

fn prefixed(
    mapping: &PrefixedClaimOrExpression,
    required: bool,
    path: &Path,
    errors: &mut Vec<FieldError>,
) -> Option<Arc<Program>> {
    match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
        (false, false) => {
            errors.push(FieldError::invalid(path, "", "claim and expression can't both be set"));
        }
        (true, true) if required => {
            errors.push(FieldError::required(path, "claim or expression is required"));
        }
        (true, true) => {}
        (true, false) => {
            if let Some(prefix) = &mapping.prefix {
                let why = "may not be specified when expression is set";
                errors.push(FieldError::invalid(&path.child("prefix"), prefix.as_str(), why));
            }
            return program(&mapping.expression, &CLAIMS, false, &path.child("expression"), errors);
        }
        (false, true) if mapping.prefix.is_none() => errors.push(FieldError::required(
            &path.child("prefix"),
            "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
        )),
        (false, true) => {}
    }
    None
}

/// Whether a key is of the form `domain/path`.
pub(super) fn domain_prefixed(key: &str, path: &Path, errors: &mut Vec<FieldError>) {
    if key.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let Some((host, rest)) = key.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty())
    else {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        errors.push(FieldError::invalid(path, key, why));
        return;
    };
    errors.extend(
        validation::dns1123_subdomain(host).into_iter().map(|why| FieldError::invalid(path, host, why)),
    );
    if HTTP_PATH.as_ref().is_some_and(|r| !r.is_match(rest)) {
        let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.push(FieldError::invalid(path, rest, why));
    }
}

fn is_reserved(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|own| domain == *own || domain.strip_suffix(own).is_some_and(|rest| rest.ends_with('.')))
}

fn user_rules(
    rules: &[UserValidationRule],
    path: &Path,
    compiled: &mut Compiled,
    errors: &mut Vec<FieldError>,
) {
    let mut expressions = HashSet::new();
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i).child("expression");
        if rule.expression.is_empty() {
            errors.push(FieldError::required(&path, ""));
            continue;
        }
        if !expressions.insert(rule.expression.as_str()) {
            errors.push(FieldError::duplicate(&path, rule.expression.as_str()));
            continue;
        }
        let program = program(&rule.expression, &USER, true, &path, errors);
        compiled.user_rules.extend(program.map(|p| (rule.clone(), p)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_file::aggregate;

    const PLAIN: &str =
        "issuer: {url: https://a, audiences: [x]}, claimMappings: {username: {claim: sub, prefix: ''}}";

    fn told(jwt: &str) -> String {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt: [{jwt}]\n"
        );
        let config = AuthenticationConfiguration::parse(text.as_bytes()).unwrap();
        let errors = config.validate(&["https://own".to_owned()]);
        aggregate(&errors).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn tells_what_is_wrong() {
        let issuer = |issuer: &str| {
            told(&format!("{{issuer: {issuer}, claimMappings: {{username: {{claim: sub, prefix: ''}}}}}}"))
        };
        for (text, want) in [
            ("{url: https://a, audiences: [x]}", ""),
            ("{audiences: [x]}", "jwt[0].issuer.url: Required value"),
            (
                "{url: http://a, audiences: [x]}",
                "jwt[0].issuer.url: Invalid value: \"http://a\": URL scheme must be https",
            ),
            (
                "{url: 'https://u@a?b=c#d', audiences: [x]}",
                "[jwt[0].issuer.url: Invalid value: \"https://u@a?b=c#d\": URL must not contain a username or password, \
                 jwt[0].issuer.url: Invalid value: \"https://u@a?b=c#d\": URL must not contain a query, \
                 jwt[0].issuer.url: Invalid value: \"https://u@a?b=c#d\": URL must not contain a fragment]",
            ),
            (
                "{url: https://own, audiences: [x]}",
                "jwt[0].issuer.url: Invalid value: \"https://own\": URL must not overlap with disallowed issuers: \
                 [https://own]",
            ),
            (
                "{url: https://a, audiences: []}",
                "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
            ),
            (
                "{url: https://a, audiences: [x, z]}",
                "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for \
                 multiple audiences",
            ),
            ("{url: https://a, audiences: [x, z], audienceMatchPolicy: MatchAny}", ""),
            (
                "{url: https://a, audiences: [x], discoveryURL: 'https://a/'}",
                "jwt[0].issuer.discoveryURL: Invalid value: \"https://a/\": discoveryURL must be different from URL",
            ),
            (
                "{url: https://a, audiences: [x], certificateAuthority: abc}",
                "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\": data does not contain any valid RSA \
                 or ECDSA certificates",
            ),
        ] {
            assert_eq!(issuer(text), want, "{text}");
        }
        let rest = |rest: &str| told(&format!("{{issuer: {{url: https://a, audiences: [x]}}, {rest}}}"));
        let user = "claimMappings: {username: {claim: sub, prefix: ''}}";
        for (text, want) in [
            (
                "claimMappings: {}",
                "jwt[0].claimMappings.username: Required value: claim or expression is required",
            ),
            (
                "claimMappings: {username: {claim: sub}}",
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be \
                 set to an empty string to disable prefixing",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: '', expression: claims.sub}}",
                "jwt[0].claimMappings.username: Invalid value: \"\": claim and expression can't both be set",
            ),
            ("claimMappings: {username: {expression: claims.sub}}", ""),
            (
                "claimMappings: {username: {expression: claims.email}}",
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must \
                 be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or \
                 claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            ),
            (
                "claimMappings: {username: {expression: claims.email}}, \
                 claimValidationRules: [{expression: 'claims.?email_verified.orValue(true) == true'}]",
                "",
            ),
            (
                &format!("{user}, claimValidationRules: [{{expression: claims.x}}]"),
                "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.x\": must evaluate to bool",
            ),
            (
                &format!("{user}, claimValidationRules: [{{claim: x}}, {{claim: x, message: m}}, {{}}]"),
                "[jwt[0].claimValidationRules[1].message: Invalid value: \"m\": may not be specified when claim is \
                 set, jwt[0].claimValidationRules[1].claim: Duplicate value: \"x\", \
                 jwt[0].claimValidationRules[2]: Required value: claim or expression is required]",
            ),
            (
                &format!("{user}, userValidationRules: [{{expression: 'user.nothing == 1'}}]"),
                "jwt[0].userValidationRules[0].expression: Invalid value: \"user.nothing == 1\": compilation failed: \
                 ERROR: <input>:1:5: undefined field 'nothing'\n | user.nothing == 1\n | ....^",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}, extra: [{key: 'A.io/b', valueExpression: claims.a}, \
                 {key: x, valueExpression: claims.a}, {key: 'a.k8s.io/b', valueExpression: claims.a}]}",
                "[jwt[0].claimMappings.extra[0].key: Invalid value: \"A.io\": a lowercase RFC 1123 subdomain must \
                 consist of lower case alphanumeric characters, '-' or '.', and must start and end with an \
                 alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*'), \
                 jwt[0].claimMappings.extra[0].key: Invalid value: \"A.io/b\": must be lowercase, \
                 jwt[0].claimMappings.extra[1].key: Invalid value: \"x\": must be a domain-prefixed path (such as \
                 \"acme.io/foo\"), jwt[0].claimMappings.extra[2].key: Invalid value: \"a.k8s.io/b\": k8s.io, \
                 kubernetes.io and their subdomains are reserved for Kubernetes use]",
            ),
        ] {
            assert_eq!(rest(text), want, "{text}");
        }
        assert_eq!(
            told(&format!("{{{PLAIN}}}, {{{PLAIN}}}")),
            "jwt[1].issuer.url: Duplicate value: \"https://a\""
        );
    }

    #[test]
    fn anonymous() {
        let config = |rest: &str| {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: AuthenticationConfiguration\n{rest}"
            );
            AuthenticationConfiguration::parse(text.as_bytes()).unwrap()
        };
        let good = config("anonymous: {enabled: true, conditions: [{path: /livez}]}");
        assert!(good.validate(&[]).is_empty());
        let anonymous = good.anonymous.unwrap();
        assert!(anonymous.admits("/livez") && !anonymous.admits("/livez/ping") && !anonymous.admits("/api"));
        assert!(Anonymous { enabled: true, ..Anonymous::default() }.admits("/api"));
        let errors = config("anonymous: {enabled: false, conditions: [{path: /livez}]}").validate(&[]);
        assert!(errors[0].to_string().starts_with("anonymous.conditions: Invalid value: "), "{}", errors[0]);
    }
}
