//! Endpoint slices.

use crate::strategy::{DEFAULT, Rules};

pub const GROUP: &str = "discovery.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "endpointslices",
    generation: &["addressType", "endpoints", "ports", "metadata.labels"],
    ..DEFAULT
}];
