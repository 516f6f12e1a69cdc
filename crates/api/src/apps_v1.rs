//! The apps group.

pub(crate) mod validation;

use serde_json::{Value, json};

use crate::core_v1::pod::warnings;
use crate::core_v1::{persistent_volume, pod};
use crate::scale;
use crate::strategy::{DEFAULT, Rules, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "apps";

/// What all but revisions share.
const BASE: Rules = Rules { group: GROUP, ..WITH_STATUS };

pub static RULES: &[Rules] = &[
    Rules {
        resource: "deployments",
        template: "spec.template",
        warnings: |new, old| warnings::of_workload(new, old, "spec.template", true),
        first_status: r#"{}"#,
        defaults: deployment_defaults,
        prepare_for_status_update: |new, old| new.copy_from(old, "metadata.labels"),
        reset_by_status: &[&["spec"], &["metadata", "labels"]],
        validate: validation::deployment,
        validate_update: validation::deployment_update,
        validate_status_update: validation::deployment_status,
        generation: &["spec", "metadata.annotations"],
        scale: Some(&scale::WORKLOAD),
        ..BASE
    },
    Rules {
        resource: "replicasets",
        template: "spec.template",
        warnings: |new, old| warnings::of_workload(new, old, "spec.template", true),
        first_status: r#"{"replicas":0}"#,
        defaults: replica_set_defaults,
        validate: validation::replica_set,
        validate_update: validation::replica_set_update,
        validate_status_update: validation::replica_set_status,
        generation: &["spec"],
        scale: Some(&scale::WORKLOAD),
        ..BASE
    },
    Rules {
        resource: "statefulsets",
        template: "spec.template",
        warnings: crate::advice::of_stateful_set,
        first_status: r#"{"replicas":0,"availableReplicas":0}"#,
        defaults: stateful_set_defaults,
        name: crate::meta::label_name,
        // The feature is off by default.
        prepare_for_create: |set| drop(set.remove("spec.updateStrategy.rollingUpdate.maxUnavailable")),
        prepare_for_update: |new, old| {
            if !old.has("spec.updateStrategy.rollingUpdate.maxUnavailable") {
                new.remove("spec.updateStrategy.rollingUpdate.maxUnavailable");
            }
        },
        validate: validation::stateful_set,
        validate_update: validation::stateful_set_update,
        validate_status_update: validation::stateful_set_status,
        generation: &["spec"],
        scale: Some(&scale::WORKLOAD),
        ..BASE
    },
    Rules {
        resource: "daemonsets",
        template: "spec.template",
        warnings: |new, old| warnings::of_workload(new, old, "spec.template", false),
        first_status: r#"{"currentNumberScheduled":0,"numberMisscheduled":0,"desiredNumberScheduled":0,"numberReady":0}"#,
        defaults: daemon_set_defaults,
        prepare_for_create: |set| set_template_generation(set, 1),
        prepare_for_update: count_template_generation,
        validate: validation::daemon_set,
        validate_update: validation::daemon_set_update,
        validate_status_update: validation::daemon_set_status,
        generation: &["spec"],
        ..BASE
    },
    Rules {
        group: GROUP,
        resource: "controllerrevisions",
        revalidates: true,
        validate: validation::revision,
        validate_update: validation::revision_update,
        ..DEFAULT
    },
];

fn template(object: &mut Value) {
    if let Some(template) = object.find_mut("spec.template") {
        pod::defaults::template(template);
    }
}

fn deployment_defaults(deployment: &mut Value) {
    deployment.put_default("spec.replicas", 1);
    deployment.put_default_text("spec.strategy.type", "RollingUpdate");
    if deployment.text("spec.strategy.type") == "RollingUpdate" {
        deployment.put_default("spec.strategy.rollingUpdate.maxUnavailable", "25%");
        deployment.put_default("spec.strategy.rollingUpdate.maxSurge", "25%");
    }
    deployment.put_default("spec.revisionHistoryLimit", 10);
    deployment.put_default("spec.progressDeadlineSeconds", 600);
    template(deployment);
}

fn replica_set_defaults(set: &mut Value) {
    set.put_default("spec.replicas", 1);
    template(set);
}

fn stateful_set_defaults(set: &mut Value) {
    set.put_default_text("spec.podManagementPolicy", "OrderedReady");
    if set.text("spec.updateStrategy.type").is_empty() {
        set.put("spec.updateStrategy.type", "RollingUpdate");
        set.put_default("spec.updateStrategy.rollingUpdate", json!({}));
    }
    if set.text("spec.updateStrategy.type") == "RollingUpdate" && set.has("spec.updateStrategy.rollingUpdate")
    {
        set.put_default("spec.updateStrategy.rollingUpdate.partition", 0);
    }
    for path in ["whenDeleted", "whenScaled"] {
        set.put_default_text(&format!("spec.persistentVolumeClaimRetentionPolicy.{path}"), "Retain");
    }
    set.put_default("spec.replicas", 1);
    set.put_default("spec.revisionHistoryLimit", 10);
    for claim in set.list_mut("spec.volumeClaimTemplates") {
        // Whatever it says.
        claim.put("kind", "PersistentVolumeClaim");
        claim.put("apiVersion", "v1");
        persistent_volume::claim_defaults(claim);
    }
    template(set);
}

fn daemon_set_defaults(set: &mut Value) {
    set.put_default_text("spec.updateStrategy.type", "RollingUpdate");
    if set.text("spec.updateStrategy.type") == "RollingUpdate" {
        set.put_default("spec.updateStrategy.rollingUpdate.maxUnavailable", 1);
        set.put_default("spec.updateStrategy.rollingUpdate.maxSurge", 0);
    }
    set.put_default("spec.revisionHistoryLimit", 10);
    if set.at("metadata.annotations").get_or_null(TEMPLATE_GENERATION).is_null() {
        set_template_generation(set, 0);
    }
    template(set);
}

/// Where daemon sets show how often their template has changed; older clients look there.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn set_template_generation(set: &mut Value, generation: i64) {
    if let Some(annotations) = set.object_mut("metadata.annotations") {
        annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string().into());
    }
}

fn count_template_generation(new: &mut Value, old: &Value) {
    let was = old.at("metadata.annotations").get_or_null(TEMPLATE_GENERATION).as_str();
    let was = was.and_then(|text| text.parse().ok()).unwrap_or(0);
    let changed = !crate::equality::same_at(new, old, "spec.template");
    set_template_generation(new, was + i64::from(changed));
}
