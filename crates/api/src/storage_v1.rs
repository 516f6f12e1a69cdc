//! Storage classes and what CSI drivers say of themselves.

use serde_json::Value;

use crate::strategy::{DEFAULT, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "storage.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "storageclasses",
        defaults: class_defaults,
        namespaced: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "csidrivers",
        defaults: driver_defaults,
        namespaced: false,
        unconditional_update: false,
        ..DEFAULT
    },
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

fn class_defaults(class: &mut Value) {
    class.put_default("reclaimPolicy", "Delete");
    class.put_default("volumeBindingMode", "Immediate");
}

fn driver_defaults(driver: &mut Value) {
    for (name, value) in [
        ("attachRequired", true),
        ("podInfoOnMount", false),
        ("storageCapacity", false),
        ("requiresRepublish", false),
        ("seLinuxMount", false),
    ] {
        driver.put_default(&format!("spec.{name}"), value);
    }
    driver.put_default("spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
    if driver.list("spec.volumeLifecycleModes").is_empty() {
        driver.put("spec.volumeLifecycleModes", vec!["Persistent"]);
    }
}
