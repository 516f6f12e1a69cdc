//! Disruption budgets.

use crate::strategy::{Rules, WITH_STATUS};

pub const GROUP: &str = "policy";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "poddisruptionbudgets",
    generation: &["spec"],
    unconditional_update: false,
    ..WITH_STATUS
}];
