//! All built-in resources.

use crate::strategy::Rules;

pub static ALL: &[&[Rules]] = &[
    crate::admissionregistration_v1::RULES,
    crate::apiextensions_v1::RULES,
    crate::apiregistration_v1::RULES,
    crate::apps_v1::RULES,
    crate::autoscaling_v2::RULES,
    crate::batch_v1::RULES,
    crate::certificates_v1::RULES,
    crate::coordination_v1::RULES,
    crate::core_v1::RULES,
    crate::discovery_v1::RULES,
    crate::events_v1::RULES,
    crate::flowcontrol_v1::RULES,
    crate::internal_v1alpha1::RULES,
    crate::networking_v1::RULES,
    crate::node_v1::RULES,
    crate::policy_v1::RULES,
    crate::rbac_v1::RULES,
    crate::resource_v1::RULES,
    crate::scheduling_v1::RULES,
    crate::storage_v1::RULES,
];
