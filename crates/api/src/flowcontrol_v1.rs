//! Flow schemas and priority levels.

use crate::strategy::{Rules, SPEC_AND_METADATA, WITH_STATUS};

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "flowschemas",
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "prioritylevelconfigurations",
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
];
