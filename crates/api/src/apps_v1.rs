//! The apps group.

use crate::scale;
use crate::strategy::{DEFAULT, FieldLabels, METADATA_LABELS, Rules, WITH_STATUS};

pub const GROUP: &str = "apps";

/// What all but revisions share.
const BASE: Rules = Rules { group: GROUP, ..WITH_STATUS };

pub static RULES: &[Rules] = &[
    Rules {
        resource: "deployments",
        generation: &["spec", "metadata.annotations"],
        scale: Some(&scale::WORKLOAD),
        ..BASE
    },
    Rules {
        resource: "replicasets",
        generation: &["spec"],
        scale: Some(&scale::WORKLOAD),
        fields: crate::core_v1::replicas_field,
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["metadata.namespace", "status.replicas"],
            ..METADATA_LABELS
        },
        ..BASE
    },
    Rules { resource: "statefulsets", generation: &["spec"], scale: Some(&scale::WORKLOAD), ..BASE },
    Rules { resource: "daemonsets", generation: &["spec"], ..BASE },
    Rules { group: GROUP, resource: "controllerrevisions", ..DEFAULT },
];
