//! Webhook configurations and admission policies.

use serde_json::{Value, json};

use crate::strategy::{DEFAULT, Rules, SPEC_AND_METADATA, STATUS};
use crate::value::Write;

pub const GROUP: &str = "admissionregistration.k8s.io";

const BASE: Rules = Rules { group: GROUP, namespaced: false, ..DEFAULT };

pub static RULES: &[Rules] = &[
    Rules {
        resource: "mutatingwebhookconfigurations",
        defaults: |c| webhooks(c, true),
        generation: &["webhooks"],
        ..BASE
    },
    Rules {
        resource: "validatingwebhookconfigurations",
        defaults: |c| webhooks(c, false),
        generation: &["webhooks"],
        ..BASE
    },
    Rules {
        resource: "validatingadmissionpolicies",
        defaults: policy,
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
        defaults: binding,
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicies",
        defaults: policy,
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
    Rules {
        resource: "mutatingadmissionpolicybindings",
        defaults: binding,
        generation: &["spec"],
        unconditional_update: false,
        ..BASE
    },
];

fn webhooks(configuration: &mut Value, mutating: bool) {
    for webhook in configuration.list_mut("webhooks") {
        webhook.put_default("failurePolicy", "Fail");
        matching(webhook);
        webhook.put_default("timeoutSeconds", 10);
        if mutating {
            webhook.put_default("reinvocationPolicy", "Never");
        }
        for rule in webhook.list_mut("rules") {
            rule.put_default("scope", "*");
        }
        if let Some(service) = webhook.find_mut("clientConfig.service") {
            service.put_default("port", 443);
        }
    }
}

fn matching(holder: &mut Value) {
    holder.put_default("matchPolicy", "Equivalent");
    holder.put_default("namespaceSelector", json!({}));
    holder.put_default("objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in holder.list_mut(list) {
            rule.put_default("scope", "*");
        }
    }
}

fn policy(policy: &mut Value) {
    policy.put_default("spec.failurePolicy", "Fail");
    if let Some(constraints) = policy.find_mut("spec.matchConstraints") {
        matching(constraints);
    }
}

fn binding(binding: &mut Value) {
    if let Some(resources) = binding.find_mut("spec.matchResources") {
        matching(resources);
    }
}
