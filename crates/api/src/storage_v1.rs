//! Storage classes and what CSI drivers say of themselves.

use crate::strategy::{DEFAULT, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::Write;

pub const GROUP: &str = "storage.k8s.io";

pub static RULES: &[Rules] = &[
    Rules { group: GROUP, resource: "storageclasses", namespaced: false, ..DEFAULT },
    Rules { group: GROUP, resource: "csidrivers", namespaced: false, unconditional_update: false, ..DEFAULT },
    Rules { group: GROUP, resource: "csinodes", namespaced: false, unconditional_update: false, ..DEFAULT },
    Rules { group: GROUP, resource: "csistoragecapacities", unconditional_update: false, ..DEFAULT },
    Rules { group: GROUP, resource: "volumeattributesclasses", namespaced: false, ..DEFAULT },
    Rules {
        group: GROUP,
        resource: "volumeattachments",
        namespaced: false,
        status_on_create: true,
        status_keeps_metadata: true,
        unconditional_update: false,
        prepare_for_create: |attachment| {
            attachment.remove("status");
            attachment.put("status.attached", false);
        },
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
];
