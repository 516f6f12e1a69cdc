//! EncryptionConfiguration: which resources are kept how.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Result, bail};
use apimachinery::clock::Clock;
use apimachinery::field_path::Path;
use apimachinery::status::FieldError;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Deserializer};

use super::ciphers::Key;
use super::kms::Kms;
use super::kms_api::{self, Plugin};
use super::{ENCRYPTED, Unopened};
use crate::cache::ROOT;
use crate::config_file;
use crate::metrics::Families;
use crate::tasks::Tasks;

/// As Go reads it: bits beyond the last byte are of no matter.
const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
const KMS_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    resources: Vec<ResourceFile>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ResourceFile {
    resources: Vec<String>,
    providers: Vec<ProviderFile>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProviderFile {
    aesgcm: Option<KeysFile>,
    aescbc: Option<KeysFile>,
    secretbox: Option<KeysFile>,
    identity: Option<serde_json::Value>,
    kms: Option<KmsFile>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeysFile {
    keys: Vec<KeyFile>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeyFile {
    name: String,
    secret: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct KmsFile {
    api_version: String,
    name: String,
    #[serde(rename = "cachesize")]
    cache_size: Option<i32>,
    endpoint: String,
    #[serde(deserialize_with = "nanos")]
    timeout: Option<i64>,
}

fn nanos<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let wrong = || serde::de::Error::custom(format!("time: invalid duration {text:?}"));
    apimachinery::duration::parse_nanos(&text).map(Some).ok_or_else(wrong)
}

/// What providers are made of.
#[derive(Clone)]
pub struct Context {
    pub clock: Clock,
    pub families: Families,
    pub tasks: Tasks,
    /// Counts what makes values worth writing again.
    pub epoch: Arc<AtomicU64>,
}

/// A way of keeping values.
enum Provider {
    Identity,
    Keys {
        /// `k8s:enc:<provider>:v1:`
        prefix: String,
        keys: Vec<Key>,
    },
    Kms(Arc<Kms>),
}

/// The resources of one entry and the ways their values may be kept: written the first way, read in any.
pub struct Rule {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

/// A value as it was meant; `None` where it was kept so.
pub struct Opened {
    pub value: Option<Vec<u8>>,
    pub stale: bool,
}

pub struct Rules {
    rules: Vec<Rule>,
    /// Below [`ROOT`], the resources of a prefix: `pods/` is `pods`.
    builtin: HashMap<&'static str, Vec<(&'static str, &'static str)>>,
    /// The KMS providers, in the order they are named in.
    pub plugins: Vec<Arc<Kms>>,
    /// Ends what they do beside.
    tasks: Tasks,
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.tasks.end();
    }
}

impl Rules {
    /// Reads a configuration and sets its providers up; KMS plugins are asked how they are.
    pub async fn start(yaml: &[u8], context: &Context) -> Result<Rules> {
        let file: File = config_file::decode(yaml, "EncryptionConfiguration", &["v1"])?;
        let mut errors = Vec::new();
        validate(&file, &mut errors);
        config_file::aggregate(&errors)?;
        let tasks = context.tasks.child();
        let (mut rules, mut plugins) = (Vec::new(), Vec::new());
        for resource in file.resources {
            masked(&rules, &resource.resources)?;
            rules.push(rule(resource, context, &mut plugins)?);
        }
        let mut builtin: HashMap<_, Vec<_>> = HashMap::new();
        for resource in apimachinery::resources::all() {
            let pair = (resource.resource, resource.group);
            let known = builtin.entry(resource.storage_prefix()).or_default();
            if !known.contains(&pair) {
                known.push(pair);
            }
        }
        let rules = Rules { rules, builtin, plugins, tasks };
        futures::future::join_all(rules.plugins.iter().map(|p| p.start(&rules.tasks))).await;
        Ok(rules)
    }

    /// The rule for what is kept under a key.
    pub fn of(&self, key: &[u8]) -> Option<&Rule> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?;
        let first = rest.find('/')?;
        let second = rest[first + 1..].find('/').map(|i| first + 1 + i);
        let known = second.and_then(|second| self.builtin.get(&rest[..second]));
        if let Some(known) = known.or_else(|| self.builtin.get(&rest[..first])) {
            return self
                .rules
                .iter()
                .find(|r| known.iter().any(|(resource, group)| r.covers(resource, group)));
        }
        let (group, resource) = (&rest[..first], &rest[first + 1..second?]);
        self.rules.iter().find(|r| r.covers(resource, group))
    }
}

fn group_resource(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((name, ""))
}

/// Rules that an earlier one for all resources of a group, or of all, would hide.
fn masked(rules: &[Rule], names: &[String]) -> Result<()> {
    let told = |(resource, group): (&str, &str)| match group {
        "" if resource != "*" => resource.to_owned(),
        group => format!("{resource}.{group}"),
    };
    for name in names {
        let (resource, group) = group_resource(name);
        for wide in [("*", group), ("*", "*")] {
            let hides = rules.iter().any(|r| r.resources.iter().any(|n| group_resource(n) == wide));
            if hides {
                bail!("resource {:?} is masked by earlier rule {:?}", told((resource, group)), told(wide));
            }
        }
    }
    Ok(())
}

fn validate(file: &File, errors: &mut Vec<FieldError>) {
    let root = Path::new("resources");
    let needed = |path: &Path| FieldError::required(path, format!("at least one {path} is required"));
    if file.resources.is_empty() {
        errors.push(needed(&root));
        return;
    }
    let mut kms_names = HashSet::new();
    for (i, entry) in file.resources.iter().enumerate() {
        let (resources, providers) = (root.index(i).child("resources"), root.index(i).child("providers"));
        if entry.resources.is_empty() {
            errors.push(needed(&resources));
        }
        validate_overlap(&entry.resources, &resources, errors);
        for (j, name) in entry.resources.iter().enumerate() {
            let why = resource_problem(name);
            errors.extend(why.map(|why| FieldError::invalid(&resources.index(j), name.as_str(), why)));
        }
        if entry.providers.is_empty() {
            errors.push(needed(&providers));
        }
        for (j, provider) in entry.providers.iter().enumerate() {
            validate_provider(provider, &providers.index(j), &mut kms_names, errors);
        }
    }
}

fn validate_overlap(names: &[String], path: &Path, errors: &mut Vec<FieldError>) {
    let pairs: Vec<(&str, &str)> = names.iter().map(|n| group_resource(n)).collect();
    let (mut duplicate, mut overlap) = (false, false);
    for (i, one) in pairs.iter().enumerate() {
        for other in pairs.iter().skip(i + 1) {
            if one == other {
                duplicate = true;
                continue;
            }
            let everything = *one == ("*", "*") || *other == ("*", "*");
            overlap |= everything || one.1 == other.1 && (one.0 == "*" || other.0 == "*");
        }
    }
    let mut wrong = |is: bool, why: &str| {
        if is {
            errors.push(FieldError::invalid(path, names.to_vec(), why));
        }
    };
    wrong(duplicate, "the same resource cannot be specified multiple times");
    wrong(
        overlap,
        "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be \
         masked",
    );
}

fn resource_problem(name: &str) -> Option<&'static str> {
    let (resource, group) = group_resource(name);
    Some(match name {
        _ if name != name.to_lowercase() => "resource name should not contain capital letters",
        "*" => "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources",
        "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations" => {
            "resources which do not have REST API/s cannot be encrypted"
        }
        _ if group == "events.k8s.io" => {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the \
             config file"
        }
        _ if group == "extensions" => "'extensions' group has been removed and cannot be used for encryption",
        _ if group == "*" && resource != "*" => "encrypting the same resource across groups is not supported",
        _ => return None,
    })
}

fn validate_provider<'f>(
    provider: &'f ProviderFile,
    path: &Path,
    kms_names: &mut HashSet<&'f str>,
    errors: &mut Vec<FieldError>,
) {
    let ProviderFile { aesgcm, aescbc, secretbox, identity, kms } = provider;
    let keyed = [("aesgcm", aesgcm), ("aescbc", aescbc), ("secretbox", secretbox)];
    let found = keyed.iter().filter(|(_, k)| k.is_some()).count()
        + usize::from(identity.is_some())
        + usize::from(kms.is_some());
    let why = match found {
        1 => None,
        0 => Some(
            "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
        ),
        _ => Some(
            "more than one provider specified in a single element, should split into different list elements",
        ),
    };
    errors.extend(why.map(|why| FieldError::invalid(path, serde_json::json!({}), why)));
    if let Some(kms) = kms {
        validate_kms(kms, &path.child("kms"), kms_names, errors);
        kms_names.insert(kms.name.as_str());
    }
    for (name, keys) in keyed {
        let Some(KeysFile { keys }) = keys else { continue };
        let path = path.child(name).child("keys");
        if keys.is_empty() {
            errors.push(FieldError::required(&path, "at least one keys is required"));
        }
        let lengths: &[usize] = if name == "secretbox" { &[32] } else { &[16, 24, 32] };
        for (i, key) in keys.iter().enumerate() {
            validate_key(key, lengths, &path.index(i), errors);
        }
    }
}

fn validate_key(key: &KeyFile, lengths: &[usize], path: &Path, errors: &mut Vec<FieldError>) {
    if key.name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name is a mandatory field for a key"));
    }
    let path = path.child("secret");
    if key.secret.is_empty() {
        errors.push(FieldError::required(&path, "secret is a mandatory field for a key"));
        return;
    }
    let why = match LENIENT.decode(&key.secret) {
        Err(_) => "secrets must be base64 encoded".to_owned(),
        Ok(secret) if lengths.contains(&secret.len()) => return,
        Ok(secret) => {
            let expected: Vec<String> = lengths.iter().map(usize::to_string).collect();
            format!(
                "secret is not of the expected length, got {}, expected one of [{}]",
                secret.len(),
                expected.join(" ")
            )
        }
    };
    errors.push(FieldError::invalid(&path, "REDACTED", why));
}

fn validate_kms(kms: &KmsFile, path: &Path, names: &HashSet<&str>, errors: &mut Vec<FieldError>) {
    let name_path = path.child("name");
    if kms.name.is_empty() {
        errors.push(FieldError::required(&name_path, "name is a mandatory field for a provider"));
    }
    let is_v1 = matches!(kms.api_version.as_str(), "v1" | "");
    if !is_v1 && kms.name.contains(':') {
        let why = format!("invalid KMS provider name {}, must not contain ':'", kms.name);
        errors.push(FieldError::invalid(&name_path, kms.name.as_str(), why));
    }
    if !is_v1 && names.contains(kms.name.as_str()) {
        let why = format!("duplicate KMS provider name {}, names must be unique", kms.name);
        errors.push(FieldError::invalid(&name_path, kms.name.as_str(), why));
    }
    if let Some(nanos) = kms.timeout.filter(|t| *t <= 0) {
        let value = apimachinery::duration::format_nanos(nanos);
        errors.push(FieldError::invalid(&path.child("timeout"), value, "timeout should be a positive value"));
    }
    let endpoint = kms.endpoint.as_str();
    let why = match endpoint.split_once("://") {
        _ if endpoint.is_empty() => Some("endpoint is a mandatory field for a kms".to_owned()),
        Some(("unix", _)) => None,
        other => {
            let scheme = other.map_or("", |(scheme, _)| scheme);
            Some(format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported"))
        }
    };
    errors.extend(why.map(|why| FieldError::invalid(&path.child("endpoint"), endpoint, why)));
    match kms.cache_size {
        Some(size) if !is_v1 => {
            errors.push(FieldError::invalid(
                &path.child("cachesize"),
                size,
                "cachesize is not supported in v2",
            ));
        }
        Some(0) => {
            let why = "cachesize should be a positive value, or negative to disable";
            errors.push(FieldError::invalid(&path.child("cachesize"), 0, why));
        }
        _ => {}
    }
    if !is_v1 && kms.api_version != "v2" {
        let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
        errors.push(FieldError::invalid(&path.child("apiVersion"), kms.api_version.as_str(), why));
    }
}

fn rule(file: ResourceFile, context: &Context, plugins: &mut Vec<Arc<Kms>>) -> Result<Rule> {
    let mut providers = Vec::new();
    for ProviderFile { aesgcm, aescbc, secretbox, kms, .. } in file.providers {
        let keyed_by = [("aesgcm", aesgcm), ("aescbc", aescbc), ("secretbox", secretbox)];
        let keyed_by = keyed_by.into_iter().find_map(|(name, keys)| Some((name, keys?)));
        providers.push(match (keyed_by, kms) {
            (Some((name, keys)), _) => keyed(name, keys)?,
            (None, Some(kms)) => {
                if kms.api_version != "v2" {
                    bail!(
                        "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set \
                         --feature-gates=KMSv1=true to use the deprecated KMSv1 feature."
                    );
                }
                let socket = kms_api::socket(&kms.endpoint).unwrap_or_default();
                let timeout = kms.timeout.map_or(KMS_TIMEOUT, |n| Duration::from_nanos(n.max(0) as u64));
                let plugin = Plugin::new(socket, timeout);
                let kms = Kms::new(
                    &kms.name,
                    plugin,
                    context.clock.clone(),
                    &context.families,
                    context.epoch.clone(),
                );
                plugins.push(kms.clone());
                Provider::Kms(kms)
            }
            (None, None) => Provider::Identity,
        });
    }
    Ok(Rule { resources: file.resources, providers })
}

fn keyed(provider: &str, file: KeysFile) -> Result<Provider> {
    let mut keys: Vec<Key> = Vec::new();
    for KeyFile { name, secret } in file.keys {
        let secret = LENIENT.decode(&secret)?;
        keys.push(Key::new(provider, &name, &secret)?);
    }
    Ok(Provider::Keys { prefix: format!("k8s:enc:{provider}:v1:"), keys })
}

impl Rule {
    fn covers(&self, resource: &str, group: &str) -> bool {
        self.resources.iter().any(|name| {
            let (r, g) = name.split_once('.').unwrap_or((name, ""));
            if r == "*" { g == "*" || g == group } else { r == resource && g == group }
        })
    }

    /// What is written for a value; `None` where it is written as it is.
    pub fn seal(&self, value: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.providers.first() {
            None | Some(Provider::Identity) => Ok(None),
            Some(Provider::Kms(kms)) => Ok(Some([kms.prefix(), &kms.seal(value, key)?].concat())),
            Some(Provider::Keys { prefix, keys }) => {
                let Some(with) = keys.first() else { return Ok(None) };
                let sealed = with.seal(value, key)?;
                Ok(Some([prefix.as_bytes(), with.name.as_bytes(), b":", &sealed].concat()))
            }
        }
    }

    pub async fn open(&self, value: &[u8], key: &[u8]) -> Result<Opened, Unopened> {
        for (i, provider) in self.providers.iter().enumerate() {
            match provider {
                Provider::Identity if value.starts_with(ENCRYPTED) => {}
                Provider::Identity => return Ok(Opened { value: None, stale: i > 0 }),
                Provider::Kms(kms) => {
                    let Some(sealed) = value.strip_prefix(kms.prefix()) else { continue };
                    let (opened, stale) = kms.open(sealed, key).await?;
                    return Ok(Opened { value: Some(opened), stale: stale || i > 0 });
                }
                Provider::Keys { prefix, keys } => {
                    let Some(rest) = value.strip_prefix(prefix.as_bytes()) else { continue };
                    for (k, with) in keys.iter().enumerate() {
                        let sealed =
                            rest.strip_prefix(with.name.as_bytes()).and_then(|r| r.strip_prefix(b":"));
                        let Some(sealed) = sealed else { continue };
                        let opened = with.open(sealed, key);
                        let opened = opened.ok_or_else(|| format!("key {:?} does not fit", with.name))?;
                        return Ok(Opened { value: Some(opened), stale: i > 0 || k > 0 });
                    }
                }
            }
        }
        let why = match value.starts_with(ENCRYPTED) {
            true => "no matching key was found for the provider",
            false => "no matching prefix found",
        };
        Err(why.to_owned().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "{keys: [{name: one, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}";

    fn rules(resources: &str) -> Result<Rules> {
        let context = Context {
            clock: Clock::system(),
            families: Families::default(),
            tasks: Tasks::default(),
            epoch: Arc::default(),
        };
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: {resources}"
        );
        // Nothing here waits for anybody.
        futures::FutureExt::now_or_never(Rules::start(text.as_bytes(), &context)).unwrap()
    }

    fn open(rule: &Rule, value: &[u8], key: &[u8]) -> Result<Opened, Unopened> {
        futures::FutureExt::now_or_never(rule.open(value, key)).unwrap()
    }

    #[test]
    fn covers_what_is_named() {
        for (names, key, want) in [
            ("secrets", "/registry/secrets/a/b", true),
            ("secrets", "/registry/configmaps/a/b", false),
            ("secrets", "/registry/secrets", false),
            ("nodes", "/registry/minions/a", true),
            ("services", "/registry/services/specs/a/b", true),
            ("services", "/registry/services/endpoints/a/b", false),
            ("deployments.apps", "/registry/deployments/a/b", true),
            ("deployments", "/registry/deployments/a/b", false),
            ("'*.apps'", "/registry/deployments/a/b", true),
            ("'*.'", "/registry/pods/a/b", true),
            ("'*.'", "/registry/deployments/a/b", false),
            ("'*.*'", "/registry/example.com/pandas/a/b", true),
            ("pandas.example.com", "/registry/example.com/pandas/a/b", true),
            ("pandas.example.org", "/registry/example.com/pandas/a/b", false),
            ("events", "/registry/events/a/b", true),
        ] {
            let rules =
                rules(&format!("[{{resources: [{names}], providers: [{{identity: {{}}}}]}}]")).unwrap();
            assert_eq!(rules.of(key.as_bytes()).is_some(), want, "{names} {key}");
        }
    }

    #[test]
    fn writes_the_first_way_and_reads_all() {
        let of = |providers: &str| {
            let mut rules = rules(&format!("[{{resources: [secrets], providers: [{providers}]}}]")).unwrap();
            rules.rules.remove(0)
        };
        let key = b"/registry/secrets/a/b";
        let first = of(&format!("{{aescbc: {KEYS}}}, {{identity: {{}}}}"));
        let sealed = first.seal(b"x", key).unwrap().unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aescbc:v1:one:"));
        let opened = open(&first, &sealed, key).unwrap();
        assert_eq!((opened.value, opened.stale), (Some(b"x".to_vec()), false));
        let opened = open(&first, b"x", key).unwrap();
        assert_eq!((opened.value, opened.stale), (None, true));
        let other = of(&format!("{{secretbox: {KEYS}}}, {{aescbc: {KEYS}}}"));
        assert!(open(&other, &sealed, key).unwrap().stale);
        assert!(open(&other, b"x", key).is_err());
        let plain = of("{identity: {}}");
        assert!(plain.seal(b"x", key).unwrap().is_none());
        assert!(open(&plain, &sealed, key).is_err());
    }

    #[test]
    fn refuses_what_is_wrong() {
        let kms = |more: &str| {
            format!(
                "[{{resources: [secrets], providers: [{{kms: {{name: a, endpoint: 'unix:///x', {more}}}}}]}}]"
            )
        };
        for (resources, why) in [
            ("[]", "resources: Required value: at least one resources is required"),
            (
                "[{resources: [secrets], providers: []}]",
                "resources[0].providers: Required value: at least one resources[0].providers is required",
            ),
            (
                "[{resources: [secrets], providers: [{}]}]",
                "provider does not contain any of the expected providers",
            ),
            (
                "[{resources: [secrets], providers: [{identity: {}, aescbc: {keys: []}}]}]",
                "more than one provider specified in a single element",
            ),
            (
                "[{resources: [secrets], providers: [{aescbc: {keys: []}}]}]",
                "resources[0].providers[0].aescbc.keys: Required value: at least one keys is required",
            ),
            (
                "[{resources: [secrets], providers: [{aescbc: {keys: [{name: a, secret: AAAA}]}}]}]",
                "resources[0].providers[0].aescbc.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the \
                 expected length, got 3, expected one of [16 24 32]",
            ),
            (
                "[{resources: [secrets], providers: [{aescbc: {keys: [{name: a, secret: '?'}]}}]}]",
                "secrets must be base64 encoded",
            ),
            ("[{resources: ['*'], providers: [{identity: {}}]}]", "use '*.' to encrypt all the resources"),
            (
                "[{resources: [a.extensions], providers: [{identity: {}}]}]",
                "'extensions' group has been removed",
            ),
            ("[{resources: [events.events.k8s.io], providers: [{identity: {}}]}]", "Use 'events' instead"),
            ("[{resources: [secrets, '*.'], providers: [{identity: {}}]}]", "using overlapping resources"),
            ("[{resources: [a, a], providers: [{identity: {}}]}]", "cannot be specified multiple times"),
            (
                "[{resources: ['*.*'], providers: [{identity: {}}]}, {resources: [secrets], providers: [{identity: {}}]}]",
                "resource \"secrets\" is masked by earlier rule \"*.*\"",
            ),
            ("[{resources: [secrets], provider: []}]", "unknown field"),
            (&kms("apiVersion: v1"), "KMSv1 is deprecated and will only receive security updates"),
            (&kms(""), "KMSv1 is deprecated"),
            (&kms("apiVersion: v2, cachesize: 5"), "cachesize is not supported in v2"),
            (&kms("apiVersion: v3"), "only v1 and v2 are supported"),
            (&kms("apiVersion: v2, timeout: -1s"), "timeout should be a positive value"),
            (
                "[{resources: [secrets], providers: [{kms: {apiVersion: v2, name: 'a:b', endpoint: 'tcp://x'}}]}]",
                "unsupported scheme \"tcp\" for KMS provider, only unix is supported",
            ),
        ] {
            let told = format!("{:#}", rules(resources).err().unwrap());
            assert!(told.contains(why), "{resources}: {told}");
        }
    }
}
