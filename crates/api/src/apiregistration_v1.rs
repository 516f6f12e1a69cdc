//! API services.

use crate::strategy::{Rules, SPEC_AND_METADATA, WITH_STATUS};

pub const GROUP: &str = "apiregistration.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "apiservices",
    namespaced: false,
    unconditional_update: false,
    status_keeps_metadata: true,
    reset_by_status: SPEC_AND_METADATA,
    ..WITH_STATUS
}];
