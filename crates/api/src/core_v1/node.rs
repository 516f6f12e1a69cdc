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

pub fn defaults(node: &mut Value) {
    if !node.has("status.allocatable") && node.has("status.capacity") {
        let capacity = node.at("status.capacity").clone();
        node.put("status.allocatable", capacity);
    }
    // The one range and the list of ranges agree.
    let one = node.text("spec.podCIDR").to_owned();
    match node.list("spec.podCIDRs").first().and_then(Value::as_str).map(str::to_owned) {
        None if !one.is_empty() => node.put("spec.podCIDRs", vec![one]),
        Some(first) if one.is_empty() => node.put("spec.podCIDR", first),
        _ => {}
    }
    if let Some(ready) = node.find_mut("status.daemonEndpoints.kubeletEndpoint") {
        ready.put_default("Port", 0);
    }
}
