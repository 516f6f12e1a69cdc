//! Dynamic resource allocation.

use crate::strategy::{DEFAULT, FieldLabels, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::Read;

pub const GROUP: &str = "resource.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "resourceclaims",
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules { group: GROUP, resource: "resourceclaimtemplates", ..DEFAULT },
    Rules { group: GROUP, resource: "deviceclasses", namespaced: false, generation: &["spec"], ..DEFAULT },
    Rules {
        group: GROUP,
        resource: "devicetaintrules",
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "resourceslices",
        namespaced: false,
        generation: &["spec"],
        fields: |slice| ["spec.nodeName", "spec.driver"].map(|p| (p, slice.text(p).to_owned())).into(),
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["spec.nodeName", "spec.driver"],
            error: |version, label| {
                let version = version.replacen('/', "/", 1);
                format!("field label not supported for {version}, Kind=ResourceSlice: {label}")
            },
        },
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "resourcepoolstatusrequests",
        namespaced: false,
        unconditional_update: false,
        status_keeps_metadata: true,
        ..WITH_STATUS
    },
];
