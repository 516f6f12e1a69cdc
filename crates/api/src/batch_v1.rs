//! Jobs and cron jobs.

mod job_status;
mod validation;

use serde_json::Value;

use crate::core_v1::pod;
use crate::strategy::{FieldLabels, GarbageCollection, Rules, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "batch";

const BASE: Rules = Rules { group: GROUP, ..WITH_STATUS };

pub static RULES: &[Rules] = &[
    Rules {
        resource: "jobs",
        revalidates: true,
        template: "spec.template",
        warnings: crate::advice::of_job,
        first_status: r#"{}"#,
        defaults: job_defaults,
        validate: validation::job,
        validate_update: validation::job_update,
        validate_status_update: job_status::validate,
        generation: &["spec"],
        garbage_collection: GarbageCollection::OrphanDependents,
        prepare_for_create: prepare_job,
        fields: |job| vec![("status.successful", job.int("status.succeeded").to_string())],
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["metadata.namespace", "status.successful"],
            error: |_, label| format!("field label {label:?} not supported for Job"),
        },
        ..BASE
    },
    Rules {
        resource: "cronjobs",
        template: "spec.jobTemplate.spec.template",
        warnings: crate::advice::of_cron_job,
        first_status: r#"{}"#,
        defaults: cron_job_defaults,
        validate: validation::cron_job,
        validate_update: validation::cron_job_update,
        generation: &["spec"],
        ..BASE
    },
];

/// Labels by which the pods of a job are found, with and without the group's prefix.
const JOB_NAME: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];
const CONTROLLER_UID: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];

/// Gives a job its selector, unless its maker chose one by hand.
fn prepare_job(job: &mut Value) {
    if job.flag("spec.manualSelector") {
        return;
    }
    let (name, uid) = (job.text("metadata.name").to_owned(), job.text("metadata.uid").to_owned());
    // Labels that were the template's stay the template's.
    let shared =
        job.has("metadata.labels") && job.at("metadata.labels") == job.at("spec.template.metadata.labels");
    if let Some(labels) = job.object_mut("spec.template.metadata.labels") {
        for (keys, value) in [(JOB_NAME, &name), (CONTROLLER_UID, &uid)] {
            for key in keys {
                labels.entry(key).or_insert_with(|| value.as_str().into());
            }
        }
    }
    if let Some(selected) = job.object_mut("spec.selector.matchLabels") {
        selected.entry(CONTROLLER_UID[0]).or_insert_with(|| uid.as_str().into());
    }
    if shared {
        job.remove("metadata.labels");
    }
    label_as_template(job);
}

fn job_defaults(job: &mut Value) {
    if !job.has("spec.completions") && !job.has("spec.parallelism") {
        job.put("spec.completions", 1);
    }
    job.put_default("spec.parallelism", 1);
    let retries = if job.has("spec.backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    job.put_default("spec.backoffLimit", retries);
    label_as_template(job);
    job.put_default("spec.completionMode", "NonIndexed");
    job.put_default("spec.suspend", false);
    let replacement = if job.has("spec.podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    job.put_default("spec.podReplacementPolicy", replacement);
    job.put_default("spec.manualSelector", false);
    if let Some(spec) = job.find_mut("spec") {
        job_spec_defaults(spec);
    }
}

/// A job without labels has those of its pods.
fn label_as_template(job: &mut Value) {
    let labels = job.at("spec.template.metadata.labels").clone();
    if labels.is_object() && job.at("metadata.labels").as_object().is_none_or(serde_json::Map::is_empty) {
        job.put("metadata.labels", labels);
    }
}

/// What jobs share with the templates of cron jobs.
fn job_spec_defaults(spec: &mut Value) {
    for rule in spec.list_mut("podFailurePolicy.rules") {
        for condition in rule.list_mut("onPodConditions") {
            condition.put_default_text("status", "True");
        }
    }
    if let Some(template) = spec.find_mut("template") {
        pod::defaults::template(template);
    }
}

fn cron_job_defaults(job: &mut Value) {
    job.put_default_text("spec.concurrencyPolicy", "Allow");
    job.put_default("spec.suspend", false);
    job.put_default("spec.successfulJobsHistoryLimit", 3);
    job.put_default("spec.failedJobsHistoryLimit", 1);
    if let Some(template) = job.find_mut("spec.jobTemplate") {
        template.put_default("metadata", serde_json::json!({}));
    }
    if let Some(spec) = job.find_mut("spec.jobTemplate.spec") {
        job_spec_defaults(spec);
    }
}
