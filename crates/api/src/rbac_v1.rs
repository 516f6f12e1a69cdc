//! Roles and bindings.

use crate::meta;
use crate::strategy::{DEFAULT, Rules};

pub const GROUP: &str = "rbac.authorization.k8s.io";

const BASE: Rules = Rules { group: GROUP, create_on_update: true, name: meta::path_segment_name, ..DEFAULT };

pub static RULES: &[Rules] = &[
    Rules { resource: "roles", ..BASE },
    Rules { resource: "rolebindings", ..BASE },
    Rules { resource: "clusterroles", namespaced: false, ..BASE },
    Rules { resource: "clusterrolebindings", namespaced: false, ..BASE },
];
