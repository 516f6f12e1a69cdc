//! What documents say of built-in types beyond the schema tables: descriptions, enumerations, defaults of zero.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/openapi.json.gz"));

/// Unpacked only while a document is made.
#[derive(Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Facts(HashMap<String, HashMap<String, Fact>>);

#[derive(Default, Deserialize)]
pub(super) struct Fact {
    #[serde(default, rename = "d")]
    pub(super) description: String,
    #[serde(default, rename = "e")]
    pub(super) values: Vec<String>,
    #[serde(rename = "z")]
    pub(super) default: Option<Value>,
    #[serde(rename = "u")]
    pub(super) unions: Option<Value>,
}

impl Facts {
    pub(super) fn load() -> Facts {
        let mut text = Vec::with_capacity(1 << 20);
        // What build.rs has packed unpacks.
        let _ = GzDecoder::new(PACKED).read_to_end(&mut text);
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Of a field, or of the type itself where `field` is empty.
    pub(super) fn of(&self, name: &str, field: &str) -> Option<&Fact> {
        self.0.get(name)?.get(field)
    }

    pub(super) fn description(&self, name: &str, field: &str) -> &str {
        self.of(name, field).map_or("", |f| &f.description)
    }
}
