//! Webhook configurations and admission policies.

use crate::strategy::{DEFAULT, Rules, SPEC_AND_METADATA, STATUS};

pub const GROUP: &str = "admissionregistration.k8s.io";

const BASE: Rules = Rules { group: GROUP, namespaced: false, ..DEFAULT };

pub static RULES: &[Rules] = &[
    Rules { resource: "mutatingwebhookconfigurations", generation: &["webhooks"], ..BASE },
    Rules { resource: "validatingwebhookconfigurations", generation: &["webhooks"], ..BASE },
    Rules {
        resource: "validatingadmissionpolicies",
        generation: &["spec"],
        unconditional_update: false,
        status: true,
        status_keeps_metadata: true,
        reset: STATUS,
        reset_by_status: SPEC_AND_METADATA,
        ..BASE
    },
    Rules {
        resource: "validatingadmissionpolicybindings",
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicies",
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicybindings",
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
];
