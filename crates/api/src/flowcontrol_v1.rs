//! Flow schemas and priority levels.

use serde_json::Value;

use crate::strategy::{Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "flowschemas",
        defaults: schema_defaults,
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "prioritylevelconfigurations",
        defaults: level_defaults,
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
];

fn schema_defaults(schema: &mut Value) {
    if schema.int("spec.matchingPrecedence") == 0 {
        schema.put("spec.matchingPrecedence", 1000);
    }
}

fn level_defaults(level: &mut Value) {
    for (kind, shares) in [("spec.exempt", 0), ("spec.limited", 30)] {
        if let Some(level) = level.find_mut(kind) {
            level.put_default("nominalConcurrencyShares", shares);
            level.put_default("lendablePercent", 0);
        }
    }
    if let Some(queuing) = level.find_mut("spec.limited.limitResponse.queuing") {
        for (name, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            if queuing.int(name) == 0 {
                queuing.put(name, value);
            }
        }
    }
}
