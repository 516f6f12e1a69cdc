//! The core group.

use serde_json::Value;

use crate::advice;
use crate::meta;
use crate::scale;
use crate::strategy::{
    DEFAULT, FieldLabels, GarbageCollection, Rules, SPEC, STATUS, WITH_STATUS, label_not_supported,
};
use crate::value::{Read, Write};

pub mod config;
pub mod event;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod pod;
pub mod replication_controller;
pub mod resources;
pub mod service;

/// A label of the form `said` that is stored under the same name.
macro_rules! labels {
    ($($label:literal),* $(,)?) => { &[$(($label, $label)),*] };
}
pub(crate) use labels;

fn replicas(object: &Value) -> Vec<(&'static str, String)> {
    vec![("status.replicas", object.int("status.replicas").to_string())]
}

pub static RULES: &[Rules] = &[
    Rules {
        resource: "pods",
        revalidates: true,
        defaults: pod::defaults::pod,
        validate: pod::validation::create,
        validate_update: pod::update::update,
        validate_status_update: pod::update::status_update,
        validate_subresource: Some(pod::update::subresource),
        warnings: pod::warnings::of_pod,
        generation: &["spec"],
        prepare_for_create: pod::prepare_for_create,
        prepare_for_update: |new, _| new.find_mut("spec").into_iter().for_each(pod::drop_disabled),
        prepare_for_status_update: pod::prepare_for_status_update,
        prepare_for_subresource: Some(pod::prepare_for_subresource),
        graceful_deletion: pod::graceful_deletion,
        fields: pod::fields,
        field_labels: FieldLabels {
            labels: &[
                ("metadata.namespace", "metadata.namespace"),
                ("spec.nodeName", "spec.nodeName"),
                ("spec.restartPolicy", "spec.restartPolicy"),
                ("spec.schedulerName", "spec.schedulerName"),
                ("spec.serviceAccountName", "spec.serviceAccountName"),
                ("spec.hostNetwork", "spec.hostNetwork"),
                ("status.phase", "status.phase"),
                ("status.podIP", "status.podIP"),
                ("status.podIPs", "status.podIPs"),
                ("status.nominatedNodeName", "status.nominatedNodeName"),
                ("spec.host", "spec.nodeName"),
            ],
            error: label_not_supported,
        },
        reset_by_status: &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]],
        ..WITH_STATUS
    },
    Rules {
        resource: "podtemplates",
        template: "template",
        warnings: |new, old| pod::warnings::of_workload(new, old, "template", false),
        generation: &["template"],
        defaults: |template| {
            if let Some(template) = template.find_mut("template") {
                pod::defaults::template(template);
            }
        },
        validate: pod::validation::pod_template,
        validate_update: |new, _| pod::validation::pod_template(new),
        ..DEFAULT
    },
    Rules {
        resource: "replicationcontrollers",
        template: "spec.template",
        warnings: |new, old| pod::warnings::of_workload(new, old, "spec.template", true),
        first_status: r#"{"replicas":0}"#,
        defaults: replication_controller::defaults,
        validate: replication_controller::validate,
        validate_update: |new, _| replication_controller::validate(new),
        generation: &["spec"],
        garbage_collection: GarbageCollection::OrphanDependents,
        scale: Some(&scale::WORKLOAD),
        fields: replicas,
        field_labels: FieldLabels {
            labels: labels!["metadata.namespace", "status.replicas"],
            error: label_not_supported,
        },
        ..WITH_STATUS
    },
    Rules {
        resource: "services",
        warnings: advice::of_service,
        defaults: service::defaults,
        validate: service::validate,
        validate_update: service::validate_update,
        validate_status_update: service::validate_status,
        prepare_for_create: |service| {
            service.put("status", serde_json::json!({"loadBalancer": {}}));
            service::agree_on_addresses(service, None);
        },
        prepare_for_update: service::prepare_for_update,
        name: meta::label_name,
        create_on_update: true,
        fields: |s| {
            vec![
                ("spec.clusterIP", s.text("spec.clusterIP").to_owned()),
                ("spec.type", s.text("spec.type").to_owned()),
            ]
        },
        field_labels: FieldLabels {
            labels: labels!["metadata.namespace", "spec.clusterIP", "spec.type"],
            error: label_not_supported,
        },
        ..WITH_STATUS
    },
    Rules {
        resource: "endpoints",
        revalidates: true,
        warnings: advice::of_endpoints,
        create_on_update: true,
        defaults: service::endpoints_defaults,
        validate: service::validate_endpoints,
        validate_update: |new, _| service::validate_endpoints(new),
        ..DEFAULT
    },
    Rules {
        resource: "nodes",
        revalidates: true,
        warnings: advice::of_node,
        defaults: node::defaults,
        validate: node::validate,
        validate_update: node::validate_update,
        validate_status_update: node::validate_status,
        // The feature is removed.
        prepare_for_status_update: |new, old| {
            if !old.has("status.config") {
                new.remove("status.config");
            }
        },
        namespaced: false,
        status_on_create: true,
        prepare_for_create: node::prepare_for_create,
        prepare_for_update: node::prepare_for_update,
        fields: |n| vec![("spec.unschedulable", n.flag("spec.unschedulable").to_string())],
        field_labels: FieldLabels { labels: labels!["spec.unschedulable"], error: label_not_supported },
        ..WITH_STATUS
    },
    Rules {
        resource: "namespaces",
        revalidates: true,
        defaults: namespace::defaults,
        validate: namespace::validate,
        validate_update: |new, _| namespace::validate(new),
        validate_status_update: namespace::validate_status,
        validate_subresource: Some(|_, new, _| namespace::validate_finalize(new)),
        namespaced: false,
        name: meta::label_name,
        prepare_for_create: namespace::prepare_for_create,
        prepare_for_update: namespace::prepare_for_update,
        prepare_for_subresource: Some(namespace::prepare_for_subresource),
        fields: |n| {
            vec![
                ("status.phase", n.text("status.phase").to_owned()),
                ("name", n.text("metadata.name").to_owned()),
            ]
        },
        field_labels: FieldLabels { labels: labels!["status.phase", "name"], error: label_not_supported },
        reset: STATUS,
        reset_by_status: SPEC,
        ..WITH_STATUS
    },
    Rules {
        resource: "events",
        name: crate::meta::path_segment_name,
        defaults: event::defaults,
        validate: event::validate,
        validate_update: |new, _| event::validate(new),
        create_on_update: true,
        garbage_collection: GarbageCollection::Unsupported,
        fields: event::fields,
        field_labels: FieldLabels { labels: event::LABELS, error: label_not_supported },
        ..DEFAULT
    },
    Rules {
        resource: "secrets",
        revalidates: true,
        warnings: advice::of_secret,
        defaults: config::secret_defaults,
        validate: config::validate_secret,
        validate_update: config::validate_secret_update,
        fields: |s| vec![("type", s.text("type").to_owned())],
        field_labels: FieldLabels {
            labels: labels!["metadata.namespace", "type"],
            error: label_not_supported,
        },
        ..DEFAULT
    },
    Rules {
        resource: "configmaps",
        revalidates: true,
        validate: config::validate_config_map,
        validate_update: config::validate_config_map_update,
        ..DEFAULT
    },
    Rules {
        resource: "serviceaccounts",
        revalidates: true,
        warnings: advice::of_service_account,
        prepare_for_create: config::bare_references,
        prepare_for_update: |new, _| config::bare_references(new),
        ..DEFAULT
    },
    Rules {
        resource: "limitranges",
        revalidates: true,
        create_on_update: true,
        defaults: config::limit_range_defaults,
        validate: config::validate_limit_range,
        validate_update: |new, _| config::validate_limit_range(new),
        ..DEFAULT
    },
    Rules {
        resource: "resourcequotas",
        warnings: advice::of_quota,
        first_status: r#"{}"#,
        validate: config::validate_quota,
        validate_update: config::validate_quota_update,
        validate_status_update: config::validate_quota_status,
        ..WITH_STATUS
    },
    Rules {
        resource: "persistentvolumes",
        revalidates: true,
        warnings: advice::of_volume,
        defaults: persistent_volume::defaults,
        stamp: Some(persistent_volume::stamp_phase),
        validate: persistent_volume::validate_volume,
        validate_update: persistent_volume::validate_volume_update,
        prepare_for_create: persistent_volume::prepare_for_create,
        namespaced: false,
        ..WITH_STATUS
    },
    Rules {
        resource: "persistentvolumeclaims",
        revalidates: true,
        warnings: advice::of_claim,
        defaults: persistent_volume::claim_defaults,
        validate: persistent_volume::validate_claim,
        validate_update: persistent_volume::validate_claim_update,
        validate_status_update: persistent_volume::validate_claim_status,
        prepare_for_create: |claim| {
            persistent_volume::drop_other_sources(claim);
            persistent_volume::prepare_claim(claim);
            claim.put("status.phase", "Pending");
        },
        prepare_for_update: |new, old| {
            if !old.has("spec.dataSource") && !old.has("spec.dataSourceRef") {
                persistent_volume::drop_other_sources(new);
            }
            persistent_volume::prepare_claim(new);
        },
        ..WITH_STATUS
    },
    Rules { resource: "bindings", ..DEFAULT },
    Rules { resource: "componentstatuses", namespaced: false, ..DEFAULT },
];
