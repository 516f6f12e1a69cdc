//! Configuration files with a kind and a version, read strictly.

use std::sync::Arc;

use anyhow::{Result, anyhow, bail, ensure};
use apimachinery::status::FieldError;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::metrics::{Families, Family, hash};

pub const GROUP: &str = "apiserver.config.k8s.io";

/// Reads a YAML or JSON document of `kind` in one of `versions` of [`GROUP`]. What it does not know is an error.
pub fn decode<T: DeserializeOwned>(text: &[u8], kind: &str, versions: &[&str]) -> Result<T> {
    ensure!(!text.is_empty(), "empty config data");
    let (json, repeated) = apimachinery::codec::yaml::to_json(text).map_err(|e| anyhow!("{}", e.message))?;
    let mut value: Value = serde_json::from_slice(&json)?;
    let Some(members) = value.as_object_mut() else {
        bail!("couldn't get version/kind; json parse error: the document is not an object")
    };
    let mut take = |name: &str| match members.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (version, said) = (take("apiVersion"), take("kind"));
    ensure!(!said.is_empty(), "Object 'Kind' is missing in '{}'", String::from_utf8_lossy(&json));
    ensure!(!version.is_empty(), "Object 'apiVersion' is missing in '{}'", String::from_utf8_lossy(&json));
    let known = version.strip_prefix(GROUP).and_then(|v| v.strip_prefix('/'));
    if said != kind || !known.is_some_and(|v| versions.contains(&v)) {
        bail!("no kind {said:?} is registered for version {version:?}");
    }
    if let Some(first) = repeated.first() {
        bail!("strict decoding error: {first}");
    }
    serde_json::from_value(value).map_err(|error| {
        let text = error.to_string();
        match text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
            Some(field) => anyhow!("strict decoding error: unknown field {field:?}"),
            None => anyhow!("{text}"),
        }
    })
}

/// What is wrong, as upstream tells several errors in one; nothing where nothing is.
pub fn aggregate(errors: &[FieldError]) -> Result<()> {
    let mut texts: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [] => Ok(()),
        [one] => bail!("{one}"),
        many => bail!("[{}]", many.join(", ")),
    }
}

/// What is told of a file that is read again when it changes.
pub struct Reloads {
    total: Arc<Family>,
    last: Arc<Family>,
    info: Arc<Family>,
}

impl Reloads {
    /// The names of the counter of reloads, of the time of the last one, and of what is in force, which is `text`.
    pub fn new(families: &Families, names: [&'static str; 3], text: &[u8]) -> Reloads {
        let [total, last, info] = names;
        let reloads = Reloads {
            total: families.counter(
                total,
                "Automatic reloads of the configuration.",
                &["status", "apiserver_id_hash"],
            ),
            last: families.gauge(
                last,
                "When the configuration was last reloaded, in seconds since 1970.",
                &["status", "apiserver_id_hash"],
            ),
            info: families.gauge(
                info,
                "The configuration in force, as a digest.",
                &["apiserver_id_hash", "hash"],
            ),
        };
        reloads.in_force(text);
        reloads
    }

    fn in_force(&self, text: &[u8]) {
        self.info.forget(|_| true);
        self.info.set(&[crate::server_id::hash(), &hash(text)], 1.0);
    }

    fn count(&self, status: &str) {
        let server = crate::server_id::hash();
        self.total.inc(&[status, server]);
        self.last.set_to_now(&[status, server]);
    }

    pub fn failed(&self) {
        self.count("failure");
    }

    pub fn succeeded(&self, text: &[u8]) {
        self.count("success");
        self.in_force(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Thing {
        a: i32,
    }

    #[test]
    fn reads_strictly() {
        let read = |text: &str| {
            decode::<Thing>(text.as_bytes(), "Thing", &["v1", "v1beta1"])
                .map(|t| t.a)
                .map_err(|e| e.to_string())
        };
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: Thing\n";
        assert_eq!(read(&format!("{head}a: 1")), Ok(1));
        for (text, why) in [
            ("", "empty config data"),
            ("a: 1", "Object 'Kind' is missing"),
            ("kind: Thing", "Object 'apiVersion' is missing"),
            (
                "kind: Thing\napiVersion: apiserver.config.k8s.io/v2",
                "no kind \"Thing\" is registered for version",
            ),
            ("kind: Other\napiVersion: apiserver.config.k8s.io/v1", "no kind \"Other\" is registered"),
            (&format!("{head}a: 1\nb: 2"), "strict decoding error: unknown field \"b\""),
            (&format!("{head}a: 1\na: 2"), "strict decoding error"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
