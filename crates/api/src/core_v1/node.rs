//! Nodes.

use serde_json::Value;

use crate::value::{Read, Write};

/// Configuration through the API is gone; its fields are dropped where they were not in use.
pub fn prepare_for_create(node: &mut Value) {
    node.remove("spec.configSource");
    node.remove("status.config");
}

pub fn prepare_for_update(new: &mut Value, old: &Value) {
    if !old.has("spec.configSource") {
        new.remove("spec.configSource");
    }
}
