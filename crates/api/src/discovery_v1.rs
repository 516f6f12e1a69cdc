//! Endpoint slices.

use crate::strategy::{DEFAULT, Rules};
use crate::value::Write;

pub const GROUP: &str = "discovery.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "endpointslices",
    defaults: |slice| {
        for port in slice.list_mut("ports") {
            port.put_default("name", "");
            port.put_default("protocol", "TCP");
        }
    },
    generation: &["addressType", "endpoints", "ports", "metadata.labels"],
    ..DEFAULT
}];
