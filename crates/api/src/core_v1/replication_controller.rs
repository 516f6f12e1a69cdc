//! Replication controllers.

use serde_json::Value;

use crate::core_v1::pod;
use crate::value::{Read, Write};

/// The selector and the labels are those of the template, where none are given.
pub fn defaults(controller: &mut Value) {
    controller.put_default("spec.replicas", 1);
    let labels = controller.at("spec.template.metadata.labels").clone();
    if labels.is_object() {
        for path in ["spec.selector", "metadata.labels"] {
            if controller.at(path).as_object().is_none_or(serde_json::Map::is_empty) {
                controller.put(path, labels.clone());
            }
        }
    }
    if let Some(template) = controller.find_mut("spec.template") {
        pod::defaults::template(template);
    }
}
