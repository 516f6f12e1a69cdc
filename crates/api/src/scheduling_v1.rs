//! Priority classes.

use crate::strategy::{DEFAULT, Rules, WITH_STATUS};
use crate::value::Write;

pub const GROUP: &str = "scheduling.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "priorityclasses",
        defaults: |class| class.put_default("preemptionPolicy", "PreemptLowerPriority"),
        namespaced: false,
        generation: &["value"],
        ..DEFAULT
    },
    Rules { group: GROUP, resource: "workloads", ..DEFAULT },
    Rules { group: GROUP, resource: "podgroups", status_keeps_metadata: true, ..WITH_STATUS },
];
