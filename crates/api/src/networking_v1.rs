//! Ingresses, network policies, service CIDRs and IP addresses.

use crate::strategy::{DEFAULT, Rules, WITH_STATUS};

pub const GROUP: &str = "networking.k8s.io";

pub static RULES: &[Rules] = &[
    Rules { group: GROUP, resource: "ingresses", generation: &["spec"], ..WITH_STATUS },
    Rules { group: GROUP, resource: "ingressclasses", namespaced: false, generation: &["spec"], ..DEFAULT },
    Rules { group: GROUP, resource: "networkpolicies", generation: &["spec"], ..DEFAULT },
    Rules {
        group: GROUP,
        resource: "servicecidrs",
        namespaced: false,
        status_keeps_metadata: true,
        ..WITH_STATUS
    },
    Rules { group: GROUP, resource: "ipaddresses", namespaced: false, ..DEFAULT },
];
