//! Runtime classes.

use crate::strategy::{DEFAULT, Rules};

pub const GROUP: &str = "node.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "runtimeclasses",
    namespaced: false,
    create_on_update: true,
    unconditional_update: false,
    ..DEFAULT
}];
