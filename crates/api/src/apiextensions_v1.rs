//! Custom resource definitions.

mod schema;
mod validation;

use serde_json::Value;

use crate::strategy::{Rules, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "apiextensions.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "customresourcedefinitions",
    warnings: |new, old| {
        let before = old.map(schema::unknown_formats).unwrap_or_default();
        let mut formats = schema::unknown_formats(new);
        formats.retain(|format| !before.contains(format));
        formats.into_iter().map(|format| format!("unrecognized format {format:?}")).collect()
    },
    validate: validation::definition,
    validate_update: validation::definition_update,
    validate_status_update: validation::status,
    defaults,
    namespaced: false,
    unconditional_update: false,
    generation: &["spec"],
    first_status: r#"{"acceptedNames":{"kind":"","plural":""},"conditions":null}"#,
    prepare_for_create: add_stored_version,
    prepare_for_update: |new, _| add_stored_version(new),
    ..WITH_STATUS
}];

/// The version objects are stored in is among those that may be found in storage, from now on.
fn add_stored_version(definition: &mut Value) {
    let storage = definition.list("spec.versions").iter().find(|v| v.flag("storage"));
    let Some(name) = storage.map(|v| v.at("name").clone()) else { return };
    let mut stored = definition.list("status.storedVersions").to_vec();
    if !stored.contains(&name) {
        stored.push(name);
        definition.put("status.storedVersions", stored);
    }
}

fn defaults(definition: &mut Value) {
    let kind = definition.text("spec.names.kind").to_owned();
    if !kind.is_empty() {
        definition.put_default_text("spec.names.singular", &kind.to_lowercase());
        definition.put_default_text("spec.names.listKind", &format!("{kind}List"));
    }
    definition.put_default("spec.conversion.strategy", "None");
    if let Some(service) = definition.find_mut("spec.conversion.webhook.clientConfig.service") {
        service.put_default("port", 443);
    }
    if definition.list("status.storedVersions").is_empty() {
        add_stored_version(definition);
    }
}
