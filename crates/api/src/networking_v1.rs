//! Ingresses, network policies, service CIDRs and IP addresses.

mod validation;

use serde_json::Value;

use crate::strategy::{DEFAULT, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "networking.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "ingresses",
        revalidates: true,
        warnings: crate::advice::of_ingress,
        validate: validation::ingress_create,
        validate_update: |new, _| validation::ingress_spec(new),
        validate_status_update: validation::ingress_status,
        generation: &["spec"],
        prepare_for_create: |ingress| ingress.put("status", serde_json::json!({"loadBalancer": {}})),
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "ingressclasses",
        revalidates: true,
        validate: validation::ingress_class,
        validate_update: validation::ingress_class_update,
        defaults: ingress_class_defaults,
        namespaced: false,
        generation: &["spec"],
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "networkpolicies",
        warnings: crate::advice::of_network_policy,
        validate: validation::network_policy,
        validate_update: |new, _| validation::network_policy(new),
        defaults: network_policy_defaults,
        generation: &["spec"],
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "servicecidrs",
        first_status: "{}",
        validate: validation::service_cidr,
        validate_update: validation::service_cidr_update,
        namespaced: false,
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "ipaddresses",
        revalidates: true,
        name: validation::ip_name,
        validate: validation::ip_address,
        validate_update: validation::ip_address_update,
        namespaced: false,
        ..DEFAULT
    },
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
