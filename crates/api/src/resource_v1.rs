//! Dynamic resource allocation.

use serde_json::Value;

use crate::strategy::{DEFAULT, FieldLabels, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "resource.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "resourceclaims",
        defaults: |claim| requests(claim, "spec.devices.requests"),
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "resourceclaimtemplates",
        defaults: |t| requests(t, "spec.spec.devices.requests"),
        ..DEFAULT
    },
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

/// A request is for exactly one device, where it does not say how many.
fn requests(holder: &mut Value, path: &str) {
    let count = |request: &mut Value| {
        request.put_default_text("allocationMode", "ExactCount");
        if request.text("allocationMode") == "ExactCount" && request.int("count") == 0 {
            request.put("count", 1);
        }
    };
    for request in holder.list_mut(path) {
        if let Some(exactly) = request.find_mut("exactly") {
            count(exactly);
        }
        request.list_mut("firstAvailable").for_each(count);
    }
}
