//! Roles and bindings.

use serde_json::Value;

use crate::meta;
use crate::strategy::{DEFAULT, Rules};
use crate::value::{Read, Write};

pub const GROUP: &str = "rbac.authorization.k8s.io";

const BASE: Rules = Rules { group: GROUP, create_on_update: true, name: meta::path_segment_name, ..DEFAULT };

pub static RULES: &[Rules] = &[
    Rules { resource: "roles", ..BASE },
    Rules { resource: "rolebindings", defaults: binding_defaults, ..BASE },
    Rules { resource: "clusterroles", namespaced: false, ..BASE },
    Rules { resource: "clusterrolebindings", namespaced: false, defaults: binding_defaults, ..BASE },
];

fn binding_defaults(binding: &mut Value) {
    binding.put_default_text("roleRef.apiGroup", GROUP);
    for subject in binding.list_mut("subjects") {
        if matches!(subject.text("kind"), "User" | "Group") {
            subject.put_default_text("apiGroup", GROUP);
        }
    }
}
