//! Leases.

use serde_json::Value;

use crate::check::Report;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, Rules};
use crate::value::{Read, Write};

pub const GROUP: &str = "coordination.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "leases",
        // Coordinated leader election is off by default.
        prepare_for_create: drop_coordination,
        prepare_for_update: |new, old| {
            if !old.has("spec.strategy") && !old.has("spec.preferredHolder") {
                drop_coordination(new);
            }
        },
        validate,
        validate_update: |new, _| validate(new),
        create_on_update: true,
        unconditional_update: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "leasecandidates",
        create_on_update: true,
        unconditional_update: false,
        ..DEFAULT
    },
];

fn drop_coordination(lease: &mut Value) {
    lease.remove("spec.strategy");
    lease.remove("spec.preferredHolder");
}

fn validate(lease: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = lease.at("spec");
    if let Some(seconds) = spec.maybe_int("leaseDurationSeconds").filter(|s| *s <= 0) {
        errors.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    errors.not_negative(&path.child("leaseTransitions"), spec.int("leaseTransitions"));
    errors
}
