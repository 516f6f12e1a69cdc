//! Rows of workloads, jobs and cron jobs.

use jiff::Timestamp;
use serde_json::Value;

use super::rows::{AGE, NAME, any, containers, flag, int, labels, number, shown, table, text, wide};
use super::{Column, Table, age, between, instant, name, since};
use crate::value::Read;

pub(super) fn find(resource: &str) -> &'static Table {
    match resource {
        "deployments" => table!(
            [
                NAME,
                text("Ready"),
                text("Up-to-date"),
                text("Available"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            |o, now| {
                let [names, images] = containers(o.at("spec.template"));
                vec![
                    name(o),
                    format!("{}/{}", o.int("status.readyReplicas"), o.int("spec.replicas")).into(),
                    int(o, "status.updatedReplicas"),
                    int(o, "status.availableReplicas"),
                    age(o, now),
                    names,
                    images,
                    labels(o.at("spec.selector")),
                ]
            }
        ),
        "replicasets" => table!(
            [
                NAME,
                number("Desired"),
                number("Current"),
                number("Ready"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            super::core::replicas
        ),
        "statefulsets" => {
            table!([NAME, text("Ready"), AGE, wide("Containers"), wide("Images")], |o, now| {
                let [names, images] = containers(o.at("spec.template"));
                let ready = format!("{}/{}", o.int("status.readyReplicas"), o.int("spec.replicas"));
                vec![name(o), ready.into(), age(o, now), names, images]
            })
        }
        "daemonsets" => table!(
            [
                NAME,
                number("Desired"),
                number("Current"),
                number("Ready"),
                number("Up-to-date"),
                number("Available"),
                text("Node Selector"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            |o, now| {
                let [names, images] = containers(o.at("spec.template"));
                vec![
                    name(o),
                    int(o, "status.desiredNumberScheduled"),
                    int(o, "status.currentNumberScheduled"),
                    int(o, "status.numberReady"),
                    int(o, "status.updatedNumberScheduled"),
                    int(o, "status.numberAvailable"),
                    labels(o.at("spec.template.spec.nodeSelector")),
                    age(o, now),
                    names,
                    images,
                    labels(o.at("spec.selector")),
                ]
            }
        ),
        "controllerrevisions" => {
            table!([NAME, text("Controller"), text("Revision"), AGE], |o, now| {
                let owner = o.list("metadata.ownerReferences").iter().find(|r| r.flag("controller"));
                let owner = owner.map(|r| {
                    let group = r.text("apiVersion").rsplit_once('/').map_or("", |(g, _)| g);
                    let kind = r.text("kind").to_lowercase();
                    let dot = if group.is_empty() { "" } else { "." };
                    format!("{kind}{dot}{group}/{}", r.text("name"))
                });
                vec![
                    name(o),
                    owner.unwrap_or_else(|| "<none>".to_owned()).into(),
                    int(o, "revision"),
                    age(o, now),
                ]
            })
        }
        "jobs" => table!(
            [
                NAME,
                text("Status"),
                text("Completions"),
                text("Duration"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            job
        ),
        "cronjobs" => table!(
            [
                NAME,
                text("Schedule"),
                text("Timezone"),
                flag("Suspend"),
                number("Active"),
                text("Last Schedule"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector")
            ],
            |o, now| {
                let [names, images] = containers(o.at("spec.jobTemplate.spec.template"));
                let last = o.at("status.lastScheduleTime");
                let last = if last.is_null() { "<none>".to_owned() } else { since(last, now) };
                let suspend = match o.at("spec.suspend").as_bool() {
                    Some(true) => "True",
                    Some(false) => "False",
                    None => "<unset>",
                };
                vec![
                    name(o),
                    o.text("spec.schedule").into(),
                    shown(o, "spec.timeZone", "<none>"),
                    suspend.into(),
                    o.list("status.active").len().into(),
                    last.into(),
                    age(o, now),
                    names,
                    images,
                    labels(o.at("spec.jobTemplate.spec.selector")),
                ]
            }
        ),
        _ => any(),
    }
}

fn job(o: &Value, now: Timestamp) -> Vec<Value> {
    let succeeded = o.int("status.succeeded");
    let completions = match (o.maybe_int("spec.completions"), o.int("spec.parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let took = match (instant(o.at("status.startTime")), instant(o.at("status.completionTime"))) {
        (None, _) => String::new(),
        (Some(start), None) => between(start, now),
        (Some(start), Some(end)) => between(start, end),
    };
    let is = |kind: &str| {
        o.list("status.conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
    };
    let status = if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if o.has("metadata.deletionTimestamp") {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"].into_iter().find(|c| is(c)).unwrap_or("Running")
    };
    let [names, images] = containers(o.at("spec.template"));
    vec![
        name(o),
        status.into(),
        completions.into(),
        took.into(),
        age(o, now),
        names,
        images,
        labels(o.at("spec.selector")),
    ]
}
