//! EncryptionConfiguration: which resources are kept how.

use std::collections::HashMap;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::ENCRYPTED;
use super::ciphers::Key;
use crate::cache::ROOT;

/// As Go reads it: bits beyond the last byte are of no matter.
const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    resources: Vec<ResourceFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceFile {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<ProviderFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderFile {
    aesgcm: Option<KeysFile>,
    aescbc: Option<KeysFile>,
    secretbox: Option<KeysFile>,
    identity: Option<serde_json::Value>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    #[serde(default)]
    keys: Vec<KeyFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

/// A way of keeping values.
enum Provider {
    Identity,
    Keys {
        /// `k8s:enc:<provider>:v1:`
        prefix: String,
        keys: Vec<Key>,
    },
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
}

impl Rules {
    pub fn parse(yaml: &[u8]) -> Result<Rules> {
        let (json, _) = apimachinery::codec::yaml::to_json(yaml).map_err(|e| anyhow!("{e}"))?;
        let file: File = serde_json::from_slice(&json).context("EncryptionConfiguration")?;
        ensure!(
            file.api_version == "apiserver.config.k8s.io/v1" && file.kind == "EncryptionConfiguration",
            "{}, {} is no EncryptionConfiguration",
            file.api_version,
            file.kind
        );
        ensure!(
            !file.resources.is_empty(),
            "resources: Required value: encryption config must have at least one resource"
        );
        let rules = file.resources.into_iter().enumerate();
        let rules =
            rules.map(|(i, r)| rule(r).with_context(|| format!("resources[{i}]"))).collect::<Result<_>>()?;
        let mut builtin: HashMap<_, Vec<_>> = HashMap::new();
        for resource in apimachinery::resources::all() {
            let pair = (resource.resource, resource.group);
            let known = builtin.entry(resource.storage_prefix()).or_default();
            if !known.contains(&pair) {
                known.push(pair);
            }
        }
        Ok(Rules { rules, builtin })
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

fn rule(file: ResourceFile) -> Result<Rule> {
    ensure!(!file.resources.is_empty(), "resources: Required value: at least one resource must be named");
    ensure!(!file.providers.is_empty(), "providers: Required value: at least one provider must be named");
    for resource in &file.resources {
        ensure!(
            !resource.is_empty() && resource != "*" && *resource == resource.to_lowercase(),
            "resources: Invalid value: {resource:?}"
        );
    }
    let mut providers = Vec::new();
    for provider in file.providers {
        let ProviderFile { aesgcm, aescbc, secretbox, identity, kms } = provider;
        let mut named = Vec::new();
        for (name, keys) in [("aesgcm", aesgcm), ("aescbc", aescbc), ("secretbox", secretbox)] {
            if let Some(keys) = keys {
                named.push(keyed(name, keys).with_context(|| name.to_owned())?);
            }
        }
        if identity.is_some() {
            named.push(Provider::Identity);
        }
        ensure!(kms.is_none(), "kms: Unsupported value: this server has no KMS plugins");
        let count = named.len();
        match named.pop() {
            Some(one) if count == 1 => providers.push(one),
            _ => {
                bail!("providers: Invalid value: a provider is one of aesgcm, aescbc, secretbox and identity")
            }
        }
    }
    Ok(Rule { resources: file.resources, providers })
}

fn keyed(provider: &str, file: KeysFile) -> Result<Provider> {
    ensure!(!file.keys.is_empty(), "keys: Required value: at least one key must be given");
    let mut keys: Vec<Key> = Vec::new();
    for KeyFile { name, secret } in file.keys {
        ensure!(
            !name.is_empty() && !name.contains(':'),
            "keys: Invalid value: a key needs a name without colons"
        );
        ensure!(keys.iter().all(|k| k.name != name), "keys: Duplicate value: {name:?}");
        let secret = LENIENT.decode(secret.trim());
        let secret = secret.map_err(|_| anyhow!("the secret of key {name:?} must be base64 encoded"))?;
        keys.push(Key::new(provider, &name, &secret).with_context(|| format!("key {name:?}"))?);
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
        let Some(Provider::Keys { prefix, keys }) = self.providers.first() else { return Ok(None) };
        let Some(with) = keys.first() else { return Ok(None) };
        let sealed = with.seal(value, key)?;
        Ok(Some([prefix.as_bytes(), with.name.as_bytes(), b":", &sealed].concat()))
    }

    pub fn open(&self, value: &[u8], key: &[u8]) -> Result<Opened> {
        for (i, provider) in self.providers.iter().enumerate() {
            match provider {
                Provider::Identity if value.starts_with(ENCRYPTED) => {}
                Provider::Identity => return Ok(Opened { value: None, stale: i > 0 }),
                Provider::Keys { prefix, keys } => {
                    let Some(rest) = value.strip_prefix(prefix.as_bytes()) else { continue };
                    for (k, with) in keys.iter().enumerate() {
                        let sealed =
                            rest.strip_prefix(with.name.as_bytes()).and_then(|r| r.strip_prefix(b":"));
                        let Some(sealed) = sealed else { continue };
                        let opened = with.open(sealed, key);
                        let opened = opened.ok_or_else(|| anyhow!("key {:?} does not fit", with.name))?;
                        return Ok(Opened { value: Some(opened), stale: i > 0 || k > 0 });
                    }
                }
            }
        }
        if value.starts_with(ENCRYPTED) {
            bail!("no matching key was found for the provider")
        }
        bail!("no matching prefix found")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "{keys: [{name: one, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}]}";

    fn rules(resources: &str) -> Result<Rules> {
        Rules::parse(
            format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: {resources}")
                .as_bytes(),
        )
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
            ("events.events.k8s.io", "/registry/events/a/b", true),
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
        let opened = first.open(&sealed, key).unwrap();
        assert_eq!((opened.value, opened.stale), (Some(b"x".to_vec()), false));
        let opened = first.open(b"x", key).unwrap();
        assert_eq!((opened.value, opened.stale), (None, true));
        let other = of(&format!("{{secretbox: {KEYS}}}, {{aescbc: {KEYS}}}"));
        assert!(other.open(&sealed, key).unwrap().stale);
        assert!(other.open(b"x", key).is_err());
        let plain = of("{identity: {}}");
        assert!(plain.seal(b"x", key).unwrap().is_none());
        assert!(plain.open(&sealed, key).is_err());
    }

    #[test]
    fn refuses_what_is_wrong() {
        for (resources, why) in [
            ("[]", "at least one resource"),
            ("[{resources: [secrets], providers: []}]", "at least one provider"),
            ("[{resources: [secrets], providers: [{}]}]", "a provider is one of"),
            ("[{resources: [secrets], providers: [{kms: {}}]}]", "no KMS plugins"),
            ("[{resources: [secrets], providers: [{aescbc: {keys: []}}]}]", "at least one key"),
            (
                "[{resources: [secrets], providers: [{aescbc: {keys: [{name: a, secret: AAAA}]}}]}]",
                "got 3, expected one of [16 24 32]",
            ),
            (
                "[{resources: [secrets], providers: [{aescbc: {keys: [{name: a, secret: '?'}]}}]}]",
                "must be base64 encoded",
            ),
            ("[{resources: ['*'], providers: [{identity: {}}]}]", "Invalid value"),
            ("[{resources: [secrets], provider: []}]", "unknown field"),
        ] {
            let told = format!("{:#}", rules(resources).err().unwrap());
            assert!(told.contains(why), "{resources}: {told}");
        }
    }
}
