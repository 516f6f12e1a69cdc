//! API services.

use crate::strategy::{Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::Write;

pub const GROUP: &str = "apiregistration.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "apiservices",
    defaults: |service| {
        if let Some(backend) = service.find_mut("spec.service") {
            backend.put_default("port", 443);
        }
    },
    namespaced: false,
    unconditional_update: false,
    status_keeps_metadata: true,
    reset_by_status: SPEC_AND_METADATA,
    ..WITH_STATUS
}];
