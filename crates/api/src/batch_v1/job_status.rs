//! What may be said of a job's progress.

use serde_json::Value;

use super::validation::indexes;
use crate::check::Report;
use crate::equality;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::Read;

const STATUS: Path<'static> = Path::new("status");

fn is(job: &Value, condition: &str) -> bool {
    job.list("status.conditions").iter().any(|c| c.text("type") == condition && c.text("status") == "True")
}

/// Which indexes are done, or failed, as `1,3-5`.
fn told_indexes(errors: &mut Errors, new: &Value, old: &Value) {
    let (spec, status) = (new.at("spec"), new.at("status"));
    let changed = |name: &str| status.at(name) != old.at("status").at(name);
    let (done, failed) = (status.text("completedIndexes"), status.text("failedIndexes"));
    let (done_path, failed_path) = (STATUS.child("completedIndexes"), STATUS.child("failedIndexes"));
    let per_index = spec.has("backoffLimitPerIndex");
    let completions = spec.maybe_int("completions");
    if let Some(completions) = completions {
        if changed("completedIndexes")
            && let Err(why) = indexes(done, completions)
        {
            errors.invalid(&done_path, done, format!("error parsing completedIndexes: {why}"));
        }
        if per_index
            && changed("failedIndexes")
            && status.has("failedIndexes")
            && let Err(why) = indexes(failed, completions)
        {
            errors.invalid(&failed_path, failed, format!("error parsing failedIndexes: {why}"));
        }
    }
    if changed("completedIndexes") && !done.is_empty() && spec.text("completionMode") != "Indexed" {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.invalid(&done_path, done, why);
    }
    if changed("failedIndexes") && status.has("failedIndexes") && !per_index {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.invalid(&failed_path, failed, why);
    }
    if (changed("failedIndexes") || changed("completedIndexes"))
        && let Some(both) = completions.and_then(|completions| overlap(done, failed, completions))
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {both}");
        errors.invalid(&failed_path, failed, why);
    }
}

/// The first index in both; what cannot be read is passed over.
fn overlap(done: &str, failed: &str, completions: i64) -> Option<i64> {
    let parts = |text: &str| -> Vec<(i64, i64)> {
        let read = |part: &str| {
            indexes(part, completions).ok().filter(|_| !part.is_empty())?;
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            Some((low.parse().ok()?, high.parse().ok()?))
        };
        text.split(',').filter_map(read).collect()
    };
    let (done, failed) = (parts(done), parts(failed));
    let (mut d, mut f) = (0, 0);
    while let (Some(a), Some(b)) = (done.get(d), failed.get(f)) {
        if a.0 <= b.1 && b.0 <= a.1 {
            return Some(a.0.max(b.0));
        }
        if a.0 <= b.0 {
            d += 1;
        } else {
            f += 1;
        }
    }
    None
}

/// A pod is counted once, and named.
fn uncounted(errors: &mut Errors, pods: &Value) {
    let path = STATUS.child("uncountedTerminatedPods");
    let mut seen: Vec<&str> = Vec::new();
    for name in ["succeeded", "failed"] {
        let list = path.child(name);
        for (i, uid) in pods.list(name).iter().enumerate() {
            let uid = uid.as_str().unwrap_or_default();
            if uid.is_empty() {
                errors.invalid(&list.index(i), uid, "must not be empty");
            } else if seen.contains(&uid) {
                errors.duplicate(&list.index(i), uid);
            } else {
                seen.push(uid);
            }
        }
    }
}

pub fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = new.at("status");
    let changed = |name: &str| !equality::same(status.at(name), old.at("status").at(name));
    let turned = |condition: &str| is(new, condition) != is(old, condition);
    let finished = |job: &Value| is(job, "Complete") || is(job, "Failed");
    let ended = finished(new) != finished(old);
    let conditions = STATUS.child("conditions");
    let refuse = |errors: &mut Errors, when: bool, said: &str| {
        if when {
            let kind = apimachinery::status::FieldErrorKind::Invalid;
            errors.report(kind, &conditions, None, said.to_owned());
        }
    };
    for name in ["active", "succeeded", "failed", "ready", "terminating"] {
        errors.not_negative(&STATUS.child(name), status.int(name));
    }
    uncounted(&mut errors, status.at("uncountedTerminatedPods"));
    let clash = is(new, "Complete") && is(new, "Failed") && (turned("Complete") || turned("Failed"));
    refuse(&mut errors, clash, "cannot set Complete=True and Failed=true conditions");
    let clash =
        is(new, "Complete") && is(new, "FailureTarget") && (turned("Complete") || turned("FailureTarget"));
    refuse(&mut errors, clash, "cannot set Complete=True and FailureTarget=true conditions");
    let completion = STATUS.child("completionTime");
    let (start, end) = (status.at("startTime"), status.at("completionTime"));
    if turned("Complete") || changed("completionTime") {
        if !end.is_null() && !is(new, "Complete") {
            let why = "cannot set completionTime when there is no Complete=True condition";
            errors.invalid(&completion, end.clone(), why);
        }
        if end.is_null() && is(new, "Complete") {
            errors.required(&completion, "completionTime is required for Complete jobs");
        }
    }
    if (changed("startTime") || changed("completionTime"))
        && let (Some(from), Some(to)) = (start.as_str(), end.as_str())
        && to < from
    {
        errors.invalid(&completion, to, "must be equal to or after `startTime`");
    }
    let lacks =
        is(new, "Failed") && !is(new, "FailureTarget") && (turned("Failed") || changed("failedIndexes"));
    refuse(&mut errors, lacks, "cannot set Failed=True condition without the FailureTarget=true condition");
    let lacks = is(new, "Complete")
        && !is(new, "SuccessCriteriaMet")
        && (turned("Complete") || turned("SuccessCriteriaMet"));
    refuse(
        &mut errors,
        lacks,
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    );
    let busy = |name: &str| status.int(name) > 0 && finished(new) && (ended || changed(name));
    if busy("active") {
        let why = "active>0 is invalid for finished job";
        errors.invalid(&STATUS.child("active"), status.int("active"), why);
    }
    let suspended_with_none = new.flag("spec.suspend") && new.maybe_int("spec.completions") == Some(0);
    if start.is_null() && finished(new) && (ended || changed("startTime")) && !suspended_with_none {
        errors.required(&STATUS.child("startTime"), "startTime is required for finished job");
    }
    let left = status.at("uncountedTerminatedPods");
    if finished(new)
        && (ended || changed("uncountedTerminatedPods"))
        && ["failed", "succeeded"].iter().any(|name| !left.list(name).is_empty())
    {
        let path = STATUS.child("uncountedTerminatedPods");
        errors.invalid(&path, left.clone(), "must be empty for finished job");
    }
    told_indexes(&mut errors, new, old);
    if busy("terminating") {
        let why = "terminating>0 is invalid for finished job";
        errors.invalid(&STATUS.child("terminating"), status.int("terminating"), why);
    }
    if (changed("ready") || changed("active")) && status.int("ready") > status.int("active") {
        let why = "cannot set more ready pods than active";
        errors.invalid(&STATUS.child("ready"), status.int("ready"), why);
    }
    let met = is(new, "SuccessCriteriaMet");
    let clash = met && is(new, "Failed");
    refuse(&mut errors, clash, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    let clash = met && is(new, "FailureTarget");
    refuse(&mut errors, clash, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    let lacks = new.has("spec.successPolicy") && !met && is(new, "Complete");
    let said = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
    refuse(&mut errors, lacks, said);
    changes(&mut errors, new, old);
    errors
}

/// What a status cannot take back.
fn changes(errors: &mut Errors, new: &Value, old: &Value) {
    let (status, was) = (new.at("status"), old.at("status"));
    let conditions = STATUS.child("conditions");
    let refuse = |errors: &mut Errors, when: bool, said: &str| {
        if when {
            let kind = apimachinery::status::FieldErrorKind::Invalid;
            errors.report(kind, &conditions, None, said.to_owned());
        }
    };
    for kind in ["Failed", "Complete", "FailureTarget"] {
        let gone = is(old, kind) && !is(new, kind);
        refuse(errors, gone, &format!("cannot disable the terminal {kind}=True condition"));
    }
    if status.int("failed") < was.int("failed") {
        errors.invalid(&STATUS.child("failed"), status.int("failed"), "cannot decrease the failed counter");
    }
    let scales = new.text("spec.completionMode") == "Indexed"
        && new.at("spec.completions") == new.at("spec.parallelism");
    if !scales && status.int("succeeded") < was.int("succeeded") {
        let why = "cannot decrease the succeeded counter";
        errors.invalid(&STATUS.child("succeeded"), status.int("succeeded"), why);
    }
    if was.has("completionTime") && status.has("completionTime") {
        let path = STATUS.child("completionTime");
        errors.immutable(&path, status.at("completionTime"), was.at("completionTime"));
    }
    let runs = |c: &Value| c.text("type") == "Suspended" && c.text("status") == "False";
    let resuming = is(old, "Suspended") && status.list("conditions").iter().any(runs);
    if was.has("startTime")
        && !equality::same_at(status, was, "startTime")
        && !new.flag("spec.suspend")
        && !resuming
    {
        let why = "field is immutable for unsuspended job once set";
        errors.invalid(&STATUS.child("startTime"), status.at("startTime").clone(), why);
    }
    let (met, was_met) = (is(new, "SuccessCriteriaMet"), is(old, "SuccessCriteriaMet"));
    refuse(errors, was_met && !met, "cannot disable the SuccessCriteriaMet=True condition");
    let late = is(old, "Complete") && !was_met && met;
    let said = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
    refuse(errors, late, said);
}
