//! Assembles identity and policy for the server.

pub mod failure;
#[cfg(test)]
pub mod testing;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use apimachinery::clock::Clock;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::admission;
use crate::allocators::ServiceAllocators;
use crate::authentication::configuration::{Anonymous, AuthenticationConfiguration};
use crate::authentication::token_cache::TokenCache;
use crate::authentication::{
    self, bootstrap_token, jwt, legacy_token, request_header, service_account, token_file, webhook, x509,
};
use crate::authorization::abac::Policies;
use crate::authorization::configuration::AuthorizationConfiguration;
use crate::authorization::{self, Mode, node::NodeAuthorizer, rbac::Rbac, reviews::Answers};
use crate::bootstrap::{self, Bootstrap};
use crate::metrics::Families;
use crate::seams::{Objects, Policy, Writer};
use crate::tasks::Tasks;
use crate::tokens::{Issuer, KeySet, SigningKey};

/// How long users of tokens of issuers are remembered.
const JWT_CACHE_TTL: Duration = Duration::from_secs(10);

/// Whose tokens are taken, and who may come without.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// A file that was read, and is followed from then on.
    File { path: PathBuf, text: Vec<u8>, config: AuthenticationConfiguration },
    /// What flags say, and the algorithms that tokens may be signed by.
    Fixed { config: AuthenticationConfiguration, algorithms: Vec<String> },
}

/// Everything identity and policy can be configured with. PEM is given as content, not as paths.
#[derive(Clone, Debug)]
pub struct Config {
    pub client_ca: Option<Vec<u8>>,
    pub request_header_ca: Option<Vec<u8>>,
    pub request_header: request_header::Options,
    /// What this server proves itself to extension servers with.
    pub proxy_client_certificate: Option<Vec<u8>>,
    pub proxy_client_key: Option<Vec<u8>>,
    /// Content of the static token file.
    pub tokens: Option<String>,
    pub bootstrap_tokens: bool,
    /// Whether requests without credentials are taken, where `authentication` does not say it.
    pub anonymous: bool,
    pub authentication: Option<Authentication>,
    pub token_webhook: Option<webhook::Config>,
    /// Signs new service account tokens; without it none are issued.
    pub service_account_signing_key: Option<Vec<u8>>,
    /// Further keys that tokens may be signed with.
    pub service_account_keys: Vec<Vec<u8>>,
    /// The first one issues; all are accepted.
    pub service_account_issuers: Vec<String>,
    /// Empty: the issuers.
    pub api_audiences: Vec<String>,
    pub service_account_jwks_uri: Option<String>,
    pub service_account_max_token_expiration_seconds: Option<i64>,
    pub service_account_extend_token_expiration: bool,
    pub authorization: AuthorizationConfiguration,
    /// Where that was read from, to be followed.
    pub authorization_file: Option<(PathBuf, Vec<u8>)>,
    /// The ABAC policy file: its path and what it says.
    pub abac_policies: Option<(String, String)>,
    pub enable_admission_plugins: Vec<String>,
    pub disable_admission_plugins: Vec<String>,
    pub service_cidrs: Vec<IpNet>,
    pub node_ports: RangeInclusive<u16>,
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    pub clock: Clock,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            client_ca: None,
            request_header_ca: None,
            request_header: request_header::Options::default(),
            proxy_client_certificate: None,
            proxy_client_key: None,
            tokens: None,
            bootstrap_tokens: true,
            anonymous: true,
            authentication: None,
            token_webhook: None,
            service_account_signing_key: None,
            service_account_keys: Vec::new(),
            service_account_issuers: vec!["https://kubernetes.default.svc.cluster.local".to_owned()],
            api_audiences: Vec::new(),
            service_account_jwks_uri: None,
            service_account_max_token_expiration_seconds: None,
            service_account_extend_token_expiration: true,
            authorization: AuthorizationConfiguration::of_modes(&[Mode::Node, Mode::Rbac], None),
            authorization_file: None,
            abac_policies: None,
            enable_admission_plugins: Vec::new(),
            disable_admission_plugins: Vec::new(),
            service_cidrs: vec![IpNet::from(ipnet::Ipv4Net::new_assert([10, 96, 0, 0].into(), 12))],
            node_ports: 30000..=32767,
            advertise_address: IpAddr::from([127, 0, 0, 1]),
            secure_port: 6443,
            clock: Clock::system(),
        }
    }
}

/// Builds all of it. `objects` must be filled (or filling) caches; nothing is read from them before the first request.
pub async fn build(
    config: Config,
    objects: Arc<dyn Objects>,
    writer: Arc<dyn Writer>,
    families: &Families,
    tasks: &Tasks,
) -> anyhow::Result<(Policy, Bootstrap)> {
    let clock = config.clock.clone();
    let pems = config.service_account_signing_key.iter().chain(&config.service_account_keys);
    let keys = KeySet::from_pems(pems.map(Vec::as_slice))?;
    let audiences = if config.api_audiences.is_empty() {
        config.service_account_issuers.clone()
    } else {
        config.api_audiences.clone()
    };
    let service_accounts = Arc::new(service_account::ServiceAccounts::new(
        objects.clone(),
        clock.clone(),
        config.service_account_issuers.clone(),
        keys.clone(),
        families,
    ));
    let (issuers, anonymous) = issuers(&config, families, tasks)?;
    let token_webhook = match &config.token_webhook {
        Some(webhook) => {
            Some(webhook::TokenWebhook::new(webhook, &audiences, clock.clone(), families).await?)
        }
        None => None,
    };
    let request_header = match &config.request_header_ca {
        Some(ca) => {
            Some(request_header::RequestHeader::new(ca, config.request_header.clone(), clock.clone())?)
        }
        None => None,
    };
    let x509 = match &config.client_ca {
        Some(ca) => Some(x509::ClientCertificates::new(ca, clock.clone(), families)?),
        None => None,
    };
    let authenticators = Arc::new(authentication::Chain {
        request_header,
        x509,
        token_file: config.tokens.as_deref().map(token_file::TokenFile::parse).transpose()?,
        legacy_tokens: Some(legacy_token::LegacyTokens::new(
            objects.clone(),
            writer.clone(),
            clock.clone(),
            keys.clone(),
            audiences.clone(),
            families,
            tasks.clone(),
        )),
        service_accounts: Some(service_accounts),
        bootstrap_tokens: config
            .bootstrap_tokens
            .then(|| bootstrap_token::BootstrapTokens::new(objects.clone(), clock.clone())),
        jwt: issuers.map(|i| (i, TokenCache::new(JWT_CACHE_TTL, Duration::ZERO, clock.clone(), families))),
        webhook: token_webhook,
        anonymous,
        audiences: audiences.clone(),
    });
    let authorization =
        authorization::Context { clock: clock.clone(), families: families.clone(), tasks: tasks.clone() };
    let policies = config.abac_policies.as_ref().map(|(path, text)| Policies::parse(path, text));
    let authorizers = authorization::Chain::new(
        &config.authorization,
        NodeAuthorizer::new(objects.clone(), bootstrap::rbac::role_rules("system:node")),
        Arc::new(Rbac::new(objects.clone())),
        policies.transpose()?,
        &authorization,
    );
    let authorizers = Arc::new(authorizers.await?);
    if let Some((path, text)) = config.authorization_file.clone() {
        authorizers.follow(path, text, authorization);
    }
    let jwks_uri = config.service_account_jwks_uri.clone().unwrap_or_else(|| {
        let address = std::net::SocketAddr::new(config.advertise_address, config.secure_port);
        format!("https://{address}/openid/v1/jwks")
    });
    let signing_key = config.service_account_signing_key.as_deref().map(SigningKey::from_pem).transpose()?;
    let issuer = Arc::new(Issuer {
        objects: objects.clone(),
        clock: clock.clone(),
        issuers: config.service_account_issuers.clone(),
        audiences,
        key: signing_key,
        keys,
        jwks_uri,
        expiration_seconds_max: config.service_account_max_token_expiration_seconds,
        extend_expiration: config.service_account_extend_token_expiration,
    });
    let admission = admission::Chain::new(
        admission::Context {
            objects: objects.clone(),
            writer: writer.clone(),
            authorizers: authorizers.clone(),
            clock: clock.clone(),
            figures: admission::Figures::new(families),
        },
        &config.enable_admission_plugins,
        &config.disable_admission_plugins,
    );
    let allocators = Arc::new(ServiceAllocators::new(
        objects.clone(),
        writer.clone(),
        &config.service_cidrs,
        &config.node_ports,
    ));
    let options = bootstrap::Options {
        advertise_address: config.advertise_address,
        secure_port: config.secure_port,
        service_cidrs: config.service_cidrs.clone(),
        extension_authentication: extension_authentication(&config),
    };
    let bootstrap =
        Bootstrap::new(objects, writer, options, clock.clone()).with_allocators(allocators.clone());
    let reviews = Answers {
        authenticators: authenticators.clone(),
        authorizers: authorizers.clone(),
        issuer,
        clock,
        families: families.clone(),
    };
    let policy = Policy {
        authenticator: authenticators,
        authorizer: authorizers,
        admission: Arc::new(admission),
        allocators,
        reviews: Arc::new(reviews),
    };
    Ok((policy, bootstrap))
}

/// Issuers of tokens that are not this server's, and who may come without any.
fn issuers(
    config: &Config,
    families: &Families,
    tasks: &Tasks,
) -> anyhow::Result<(Option<Arc<jwt::Reloading>>, Anonymous)> {
    let context = |algorithms: Vec<String>| jwt::Context {
        tasks: tasks.clone(),
        clock: config.clock.clone(),
        families: families.clone(),
        algorithms,
        own_issuers: config.service_account_issuers.clone(),
    };
    let anonymous = Anonymous { enabled: config.anonymous, conditions: Vec::new() };
    let wrong = "invalid authentication configuration";
    Ok(match config.authentication.clone() {
        None => (None, anonymous),
        Some(Authentication::Fixed { config, algorithms }) => {
            (Some(jwt::Reloading::fixed(&config, context(algorithms)).context(wrong)?), anonymous)
        }
        Some(Authentication::File { path, text, config }) => {
            let context = context(jwt::ALGORITHMS.map(str::to_owned).to_vec());
            let issuers = jwt::Reloading::follow(path, text, &config, context).context(wrong)?;
            (Some(issuers), config.anonymous.unwrap_or(anonymous))
        }
    })
}

/// What extension API servers read to trust the same clients.
fn extension_authentication(config: &Config) -> Map<String, Value> {
    let mut data = Map::new();
    let pem = |bytes: &[u8]| json!(String::from_utf8_lossy(bytes));
    if let Some(ca) = &config.client_ca {
        data.insert("client-ca-file".into(), pem(ca));
    }
    if let Some(ca) = &config.request_header_ca {
        let list = |items: &[String]| json!(serde_json::to_string(items).unwrap_or_default());
        let options = &config.request_header;
        data.insert("requestheader-client-ca-file".into(), pem(ca));
        data.insert("requestheader-username-headers".into(), list(&options.username_headers));
        data.insert("requestheader-uid-headers".into(), list(&options.uid_headers));
        data.insert("requestheader-group-headers".into(), list(&options.group_headers));
        data.insert("requestheader-extra-headers-prefix".into(), list(&options.extra_header_prefixes));
        data.insert("requestheader-allowed-names".into(), list(&options.allowed_names));
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seams::{Credentials, Decision, RequestInfo};
    use testing::FakeObjects;

    /// From a token request to an authorized use of the token.
    #[tokio::test]
    async fn a_service_account_works_end_to_end() {
        let objects = Arc::new(FakeObjects::default());
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem().into_bytes();
        let config = Config { service_account_signing_key: Some(key), ..Config::default() };
        let (families, tasks) = (Families::default(), Tasks::default());
        let built = build(config, objects.clone(), objects.clone(), &families, &tasks).await;
        let (policy, bootstrap) = built.unwrap();
        let mut ready = bootstrap.ready();
        let shutdown = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(bootstrap.run(shutdown.clone()));
        ready.wait_for(|r| *r).await.unwrap();
        shutdown.cancel();
        task.await.unwrap();

        let account = json!({"metadata": {"namespace": "kube-system", "name": "job-controller"}});
        objects.put("", "serviceaccounts", account);
        let admin = apimachinery::user::UserInfo::new("admin", &["system:masters"]);
        let answer =
            policy.reviews.request_token(&admin, "kube-system", "job-controller", json!({})).await.unwrap();
        let mut headers = http::HeaderMap::new();
        let bearer = format!("Bearer {}", answer["status"]["token"].as_str().unwrap());
        headers.insert("authorization", bearer.parse().unwrap());
        let credentials = || Credentials { headers: &headers, peer_certificates: &[], path: "/api" };
        let user = policy.authenticator.authenticate(credentials(), &mut Default::default()).await.unwrap();
        assert_eq!(user.name, "system:serviceaccount:kube-system:job-controller");
        let request = |verb: &str, resource: &str| RequestInfo {
            verb: verb.into(),
            is_resource: true,
            group: "batch".into(),
            resource: resource.into(),
            namespace: "default".into(),
            ..RequestInfo::default()
        };
        assert_eq!(policy.authorizer.authorize(&user, &request("list", "jobs")).await, Decision::Allow);
        let denied = policy.authorizer.authorize(&user, &request("delete", "jobs")).await;
        assert!(matches!(denied, Decision::Deny(_)));

        let review =
            json!({"spec": {"resourceAttributes": {"verb": "list", "group": "batch", "resource": "jobs"}}});
        let review = policy.reviews.review(&user, "selfsubjectaccessreviews", "", review).await.unwrap();
        assert_eq!(review["status"]["allowed"], true);
        assert!(policy.reviews.jwks().is_some());
        assert!(objects.get("", "services", "default", "kubernetes").is_some());
    }
}
