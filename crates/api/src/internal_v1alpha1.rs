//! Storage versions and their migrations.

use crate::strategy::{Rules, WITH_STATUS};

pub const GROUP: &str = "internal.apiserver.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "storageversions",
        namespaced: false,
        unconditional_update: false,
        status_keeps_metadata: true,
        ..WITH_STATUS
    },
    Rules {
        group: "storagemigration.k8s.io",
        resource: "storageversionmigrations",
        namespaced: false,
        status_keeps_metadata: true,
        ..WITH_STATUS
    },
];
