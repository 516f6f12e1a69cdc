//! Leases.

use crate::strategy::{DEFAULT, Rules};

pub const GROUP: &str = "coordination.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "leases",
        create_on_update: true,
        unconditional_update: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "leasecandidates",
        create_on_update: true,
        unconditional_update: false,
        ..DEFAULT
    },
];
