//! Ingresses, network policies, service CIDRs and IP addresses.

use serde_json::Value;

use crate::strategy::{DEFAULT, Rules, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "networking.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "ingresses",
        generation: &["spec"],
        prepare_for_create: |ingress| ingress.put("status", serde_json::json!({"loadBalancer": {}})),
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "ingressclasses",
        defaults: ingress_class_defaults,
        namespaced: false,
        generation: &["spec"],
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "networkpolicies",
        defaults: network_policy_defaults,
        generation: &["spec"],
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "servicecidrs",
        namespaced: false,
        status_keeps_metadata: true,
        ..WITH_STATUS
    },
    Rules { group: GROUP, resource: "ipaddresses", namespaced: false, ..DEFAULT },
];

fn ingress_class_defaults(class: &mut Value) {
    if let Some(parameters) = class.find_mut("spec.parameters") {
        parameters.put_default("scope", "Cluster");
    }
}

fn network_policy_defaults(policy: &mut Value) {
    for rules in ["spec.ingress", "spec.egress"] {
        for rule in policy.list_mut(rules) {
            for port in rule.list_mut("ports") {
                port.put_default("protocol", "TCP");
            }
        }
    }
    if policy.list("spec.policyTypes").is_empty() {
        let egress = !policy.list("spec.egress").is_empty();
        let types = if egress { vec!["Ingress", "Egress"] } else { vec!["Ingress"] };
        policy.put("spec.policyTypes", types);
    }
}
