//! Jobs and cron jobs.

use serde_json::Value;

use crate::strategy::{FieldLabels, GarbageCollection, Rules, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "batch";

const BASE: Rules = Rules { group: GROUP, ..WITH_STATUS };

pub static RULES: &[Rules] = &[
    Rules {
        resource: "jobs",
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
    Rules { resource: "cronjobs", generation: &["spec"], ..BASE },
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
}
