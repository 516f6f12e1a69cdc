//! Whether jobs and cron jobs make sense.

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::pod;
use crate::equality;
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

const SPEC: Path<'static> = Path::new("spec");
const MAX_PARALLELISM_INDEXED: i64 = 100_000;
const MAX_FAILED_INDEXES: i64 = 100_000;
const MANY_COMPLETIONS: i64 = 100_000;
const LIMIT_FOR_MANY: i64 = 10_000;
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

pub fn job(job: &Value) -> Errors {
    let mut errors = Errors::new();
    generated_selector(&mut errors, job);
    let spec = job.at("spec");
    job_spec(&mut errors, spec, &SPEC);
    let selector = spec.at("selector");
    if selector.is_null() {
        errors.required(&SPEC.child("selector"), "");
        errors.invalid(
            &SPEC.child("template").child("metadata").child("labels"),
            Value::Null,
            "`selector` does not match template `labels`",
        );
    } else {
        meta::label_selector(&mut errors, selector, &SPEC.child("selector"));
        let labels = spec.at("template.metadata.labels");
        if meta::is_readable_selector(selector) && !meta::selects(selector, labels) {
            let template = SPEC.child("template");
            errors.invalid(
                &template.child("metadata").child("labels"),
                labels.clone(),
                "`selector` does not match template `labels`",
            );
        }
    }
    let completions = spec.int("completions");
    if spec.text("completionMode") == "Indexed" && completions > 0 {
        let name = job.text("metadata.name");
        let last = format!("{name}-{}", completions - 1);
        if !check::is_dns1123_label(&last) {
            let metadata = Path::new("metadata");
            errors.invalid(
                &metadata.child("name"),
                name,
                format!("will not able to create pod with invalid DNS label: {last}"),
            );
        }
    }
    errors
}

fn generated_selector(errors: &mut Errors, job: &Value) {
    if job.flag("spec.manualSelector") || !job.has("spec.selector") {
        return;
    }
    let (name, uid) = (job.text("metadata.name"), job.text("metadata.uid"));
    if uid.is_empty() {
        let metadata = Path::new("metadata");
        errors.required(&metadata.child("uid"), "");
    }
    let labels = job.at("spec.template.metadata.labels");
    let template = SPEC.child("template");
    let metadata = template.child("metadata");
    let path = metadata.child("labels");
    let mut expected = serde_json::Map::new();
    // The names without a domain are the older ones.
    for age in [1, 0] {
        for (keys, value) in [(super::CONTROLLER_UID, uid), (super::JOB_NAME, name)] {
            let key = keys[age];
            match labels.get_or_null(key).as_str() {
                None => errors.required(&path.key(key), format!("must be '{value}'")),
                Some(actual) if actual != value => {
                    errors.invalid(&path.key(key), labels.clone(), format!("must be '{value}'"));
                }
                Some(_) => {}
            }
            expected.insert(key.to_owned(), value.into());
        }
    }
    if !meta::selects(job.at("spec.selector"), &Value::Object(expected)) {
        errors.invalid(
            &SPEC.child("selector"),
            job.at("spec.selector").clone(),
            "`selector` not auto-generated",
        );
    }
}

fn job_spec(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    for name in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        errors.not_negative(&path.child(name), spec.int(name));
    }
    if spec.has("maxFailedIndexes") && !spec.has("backoffLimitPerIndex") {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if spec.has("managedBy") {
        let by = spec.text("managedBy");
        if by.is_empty() {
            errors.required(&path.child("managedBy"), "");
        } else if !by.contains('/') || !check::qualified_name(by).is_empty() {
            errors.invalid(
                &path.child("managedBy"),
                by,
                "must be a domain-prefixed path (such as \"acme.io/foo\")",
            );
        }
        if by.len() > 63 {
            errors.too_long(&path.child("managedBy"), 63);
        }
    }
    let mode = spec.text("completionMode");
    if spec.has("completionMode") {
        errors.one_of(&path.child("completionMode"), mode, &["NonIndexed", "Indexed"]);
    }
    if mode == "Indexed" {
        indexed(errors, spec, path);
    } else if mode == "NonIndexed" || !spec.has("completionMode") {
        for name in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(value) = spec.maybe_int(name) {
                errors.invalid(&path.child(name), value, "requires indexed completion mode");
            }
        }
    }
    if spec.has("podFailurePolicy") {
        failure_policy(errors, spec, &path.child("podFailurePolicy"));
    }
    if spec.has("successPolicy") {
        let path = path.child("successPolicy");
        if mode == "Indexed" {
            success_policy(errors, spec, &path);
        } else {
            errors.invalid(&path, spec.at("successPolicy").clone(), "requires indexed completion mode");
        }
    }
    if spec.has("podReplacementPolicy") {
        let both: &[&str] =
            if spec.has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        errors.one_of(&path.child("podReplacementPolicy"), spec.text("podReplacementPolicy"), both);
    }
    let template = path.child("template");
    pod::validation::template(errors, spec.at("template"), &template);
    let pod = template.child("spec");
    let at = pod.child("restartPolicy");
    match spec.text("template.spec.restartPolicy") {
        "Always" | "" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if spec.has("podFailurePolicy") => {
            errors.invalid(&at, "OnFailure", "only \"Never\" is supported when podFailurePolicy is specified")
        }
        "OnFailure" | "Never" => {}
        other => errors.not_supported(&at, other, &["OnFailure", "Never"]),
    }
}

fn indexed(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let completions = spec.maybe_int("completions");
    let (parallelism, failed) = (spec.int("parallelism"), spec.maybe_int("maxFailedIndexes"));
    if completions.is_none() {
        errors.required(&path.child("completions"), "when completion mode is Indexed");
    }
    if parallelism > MAX_PARALLELISM_INDEXED {
        errors.invalid(
            &path.child("parallelism"),
            parallelism,
            format!(
                "must be less than or equal to {MAX_PARALLELISM_INDEXED} when completion mode is Indexed"
            ),
        );
    }
    if let (Some(failed), Some(completions)) = (failed, completions)
        && failed > completions
    {
        errors.invalid(&path.child("maxFailedIndexes"), failed, "must be less than or equal to completions");
    }
    if let Some(failed) = failed.filter(|f| *f > MAX_FAILED_INDEXES) {
        errors.invalid(
            &path.child("maxFailedIndexes"),
            failed,
            format!("must be less than or equal to {MAX_FAILED_INDEXES}"),
        );
    }
    if completions.is_some_and(|c| c > MANY_COMPLETIONS) && spec.has("backoffLimitPerIndex") {
        let said = format!(
            "must be less than or equal to {LIMIT_FOR_MANY} when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
        );
        match failed {
            None => errors.required(
                &path.child("maxFailedIndexes"),
                format!("must be specified when completions is above {MANY_COMPLETIONS}"),
            ),
            Some(failed) if failed > LIMIT_FOR_MANY => {
                errors.invalid(&path.child("maxFailedIndexes"), failed, said.clone());
            }
            Some(_) => {}
        }
        if parallelism > LIMIT_FOR_MANY {
            errors.invalid(&path.child("parallelism"), parallelism, said);
        }
    }
}

fn failure_policy(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let path = path.child("rules");
    let rules = spec.list("podFailurePolicy.rules");
    if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let action = rule.text("action");
        let supported = ["Count", "FailIndex", "FailJob", "Ignore"];
        match action {
            "" => errors.required(
                &path.child("action"),
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            ),
            "FailIndex" if !spec.has("backoffLimitPerIndex") => {
                errors.invalid(&path.child("action"), action, "requires the backoffLimitPerIndex to be set")
            }
            _ => errors.one_of(&path.child("action"), action, &supported),
        }
        let conditions = rule.list("onPodConditions");
        if rule.has("onExitCodes") {
            exit_codes(errors, rule.at("onExitCodes"), spec, &path.child("onExitCodes"));
        }
        let list = path.child("onPodConditions");
        if conditions.len() > MAX_RULES {
            errors.too_many(&list, conditions.len(), MAX_RULES);
        }
        for (j, condition) in conditions.iter().enumerate() {
            let path = list.index(j);
            let kind = condition.text("type");
            errors.invalid_each(&path.child("type"), kind, check::qualified_name(kind));
            errors.one_of(&path.child("status"), condition.text("status"), &["False", "True", "Unknown"]);
        }
        let said = match (rule.has("onExitCodes"), conditions.is_empty()) {
            (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        errors.report(apimachinery::status::FieldErrorKind::Invalid, &path, None, said.to_owned());
    }
}

fn exit_codes(errors: &mut Errors, requirement: &Value, spec: &Value, path: &Path<'_>) {
    let operator = requirement.text("operator");
    match operator {
        "" => errors.required(&path.child("operator"), "valid values: [\"In\" \"NotIn\"]"),
        _ => errors.one_of(&path.child("operator"), operator, &["In", "NotIn"]),
    }
    if requirement.has("containerName") {
        let name = requirement.text("containerName");
        let known = ["template.spec.containers", "template.spec.initContainers"]
            .iter()
            .any(|list| spec.list(list).iter().any(|c| c.text("name") == name));
        if !known {
            errors.invalid(
                &path.child("containerName"),
                name,
                "must be one of the container or initContainer names in the pod template",
            );
        }
    }
    let path = path.child("values");
    let values: Vec<i64> = requirement.list("values").iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        errors.invalid(&path, requirement.at("values").clone(), "at least one value is required");
    } else if values.len() > MAX_EXIT_CODES {
        errors.too_many(&path, values.len(), MAX_EXIT_CODES);
    }
    for (i, value) in values.iter().enumerate() {
        if operator == "In" && *value == 0 {
            errors.invalid(&path.index(i), 0, "must not be 0 for the In operator");
        }
        if values[..i].contains(value) {
            errors.duplicate(&path.index(i), *value);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&path, values, "must be ordered");
    }
}

fn success_policy(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let path = path.child("rules");
    let rules = spec.list("successPolicy.rules");
    if rules.is_empty() {
        errors.required(&path, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > MAX_RULES {
        errors.too_many(&path, rules.len(), MAX_RULES);
    }
    let completions = spec.int("completions");
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        if !rule.has("succeededCount") && !rule.has("succeededIndexes") {
            errors.required(&path, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut count_max = completions;
        if rule.has("succeededIndexes") {
            let text = rule.text("succeededIndexes");
            match indexes(text, completions) {
                Ok(total) => count_max = total,
                Err(why) => {
                    count_max = 0;
                    errors.invalid(
                        &path.child("succeededIndexes"),
                        text,
                        format!("error parsing succeededIndexes: {why}"),
                    );
                }
            }
        }
        if let Some(count) = rule.maybe_int("succeededCount") {
            let path = path.child("succeededCount");
            errors.not_negative(&path, count);
            if count > completions {
                errors.invalid(
                    &path,
                    count,
                    format!(
                        "must be less than or equal to {completions} (the number of specified completions)"
                    ),
                );
            }
            if rule.has("succeededIndexes") && count > count_max {
                errors.invalid(
                    &path,
                    count,
                    format!(
                        "must be less than or equal to {count_max} (the number of indexes in the specified succeededIndexes field)"
                    ),
                );
            }
        }
    }
}

/// How many indexes a text such as `1,3-5,7` names, in order and below `completions`.
pub fn indexes(text: &str, completions: i64) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    let (mut total, mut last) = (0, None);
    for part in text.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| -> Result<i64, String> {
            let n =
                text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
            if n >= completions {
                return Err(format!("too large index: {text:?}"));
            }
            Ok(n)
        };
        let (low, high) = (number(low)?, number(high)?);
        if last.is_some_and(|l| low <= l) {
            return Err(format!("non-increasing order, previous: {}, current: {low}", last.unwrap_or(0)));
        }
        if part.contains('-') && high <= low {
            return Err(format!("non-increasing order, previous: {low}, current: {high}"));
        }
        total += high - low + 1;
        last = Some(high);
    }
    Ok(total)
}

pub fn job_update(new: &Value, old: &Value) -> Errors {
    if new.at("spec") == old.at("spec") {
        return Errors::new();
    }
    let mut errors = job(new);
    let (spec, was) = (new.at("spec"), old.at("spec"));
    let completions = SPEC.child("completions");
    if spec.text("completionMode") == "Indexed" {
        let now = spec.at("completions");
        if !equality::same(now, was.at("completions")) && !now.is_null() && now != spec.at("parallelism") {
            errors.invalid(&completions, now.clone(), "can only be modified in tandem with spec.parallelism");
        }
    } else {
        errors.immutable(&completions, spec.at("completions"), was.at("completions"));
    }
    errors.immutable(&SPEC.child("selector"), spec.at("selector"), was.at("selector"));
    // A job that does not run may be fitted to where it will.
    let halted = |c: &Value| c.text("type") == "Suspended" && c.text("status") == "True";
    let suspended = was.flag("suspend")
        && old.int("status.active") == 0
        && (!old.has("status.startTime") || old.list("status.conditions").iter().any(halted));
    let mut before = was.at("template").clone();
    if suspended {
        let now = spec.at("template");
        for path in [
            "spec.affinity.nodeAffinity",
            "spec.nodeSelector",
            "spec.tolerations",
            "spec.schedulingGates",
            "metadata.annotations",
            "metadata.labels",
        ] {
            before.copy_from(now, path);
        }
        for list in ["spec.containers", "spec.initContainers"] {
            for (container, now) in before.list_mut(list).zip(now.list(list)) {
                if container.text("name") == now.text("name") {
                    container.copy_from(now, "resources");
                }
            }
        }
    }
    let template = SPEC.child("template");
    if suspended {
        let template = template.child("spec");
        errors.immutable(&template, spec.at("template.spec"), before.at("spec"));
    } else {
        errors.immutable(&template, spec.at("template"), &before);
    }
    for name in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        errors.immutable(&SPEC.child(name), spec.at(name), was.at(name));
    }
    errors
}

pub fn cron_job(job: &Value) -> Errors {
    let mut errors = cron_job_spec(job, None);
    let name = job.text("metadata.name");
    if name.len() > 52 {
        let metadata = Path::new("metadata");
        errors.invalid(&metadata.child("name"), name, "must be no more than 52 characters");
    }
    errors
}

pub fn cron_job_update(new: &Value, old: &Value) -> Errors {
    cron_job_spec(new, Some(old))
}

fn cron_job_spec(job: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Errors::new();
    let spec = job.at("spec");
    let (schedule, path) = (spec.text("schedule"), SPEC.child("schedule"));
    if schedule.is_empty() {
        errors.required(&path, "");
    } else {
        if let Err(why) = parse_schedule(schedule) {
            errors.invalid(&path, schedule, why);
        }
        let had_zone = old.is_some_and(|o| o.text("spec.schedule").contains("TZ"));
        if schedule.contains("TZ") {
            if !had_zone {
                errors.invalid(
                    &path,
                    schedule,
                    "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                );
            } else if spec.has("timeZone") {
                errors.invalid(
                    &path,
                    schedule,
                    "cannot use both timeZone field and TZ or CRON_TZ in schedule",
                );
            }
        }
    }
    errors.not_negative(&SPEC.child("startingDeadlineSeconds"), spec.int("startingDeadlineSeconds"));
    if spec.has("timeZone") && old.is_none_or(|o| o.at("spec.timeZone") != spec.at("timeZone")) {
        let zone = spec.text("timeZone");
        let path = SPEC.child("timeZone");
        if zone.is_empty() {
            errors.invalid(&path, zone, "timeZone must be nil or non-empty string");
        } else if zone.eq_ignore_ascii_case("local") {
            errors.invalid(
                &path,
                zone,
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            );
        } else if !zone.split('/').all(is_zone_part) || !known_zone(zone) {
            errors.invalid(&path, zone, format!("unknown time zone {zone}"));
        }
    }
    pod::container::choice(&mut errors, spec, "concurrencyPolicy", &["Allow", "Forbid", "Replace"], &SPEC);
    let template = SPEC.child("jobTemplate");
    let path = template.child("spec");
    let inner = spec.at("jobTemplate.spec");
    job_spec(&mut errors, inner, &path);
    if inner.has("selector") {
        errors.invalid(
            &path.child("selector"),
            inner.at("selector").clone(),
            "`selector` will be auto-generated",
        );
    }
    if inner.flag("manualSelector") {
        errors.not_supported(&path.child("manualSelector"), true, &["nil", "false"]);
    }
    for name in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        errors.not_negative(&SPEC.child(name), spec.int(name));
    }
    errors
}

fn is_zone_part(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('-')
        && part.len() <= 14
        && part != "."
        && part != ".."
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'+'))
}

/// A name the time zone database knows.
fn known_zone(zone: &str) -> bool {
    zone == "UTC" || apimachinery::clock::time_zone(zone).is_some()
}

/// Whether a schedule can be read: five fields of numbers, names, ranges, lists and steps, or a name such as `@daily`.
fn parse_schedule(schedule: &str) -> Result<(), String> {
    let text = schedule.trim();
    let text = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
        Some(rest) => rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim()),
        None => text,
    };
    if let Some(name) = text.strip_prefix('@') {
        return match name {
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => Ok(()),
            _ => match name.strip_prefix("every ") {
                Some(every) if apimachinery::duration::parse(every).is_some() => Ok(()),
                Some(_) => Err(format!("failed to parse duration {text}")),
                None => Err(format!("unrecognized descriptor: {text}")),
            },
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        let shown: Vec<&str> = fields.clone();
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), shown.join(" ")));
    }
    let months = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(i64, i64, &[&str], i64); 5] =
        [(0, 59, &[], 0), (0, 23, &[], 0), (1, 31, &[], 0), (1, 12, &months, 1), (0, 6, &days, 0)];
    for (field, (low, high, names, first)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            schedule_range(part, low, high, names, first)?;
        }
    }
    Ok(())
}

fn number_error(text: &str) -> String {
    format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
}

fn schedule_range(part: &str, low: i64, high: i64, names: &[&str], first: i64) -> Result<(), String> {
    let number = |text: &str| -> Result<i64, String> {
        if let Some(i) = names.iter().position(|n| n.eq_ignore_ascii_case(text)) {
            return Ok(i as i64 + first);
        }
        text.parse().map_err(|_| number_error(text))
    };
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    let (start, end) = if matches!(range, "*" | "?") {
        (low, high)
    } else {
        match range.split_once('-') {
            Some((a, b)) => (number(a)?, number(b)?),
            None => {
                let n = number(range)?;
                (n, if step.is_some() { high } else { n })
            }
        }
    };
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {part}"));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {part}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {part}"));
    }
    if let Some(step) = step {
        match step.parse::<u32>() {
            Ok(0) => return Err(format!("step of range should be a positive number: {part}")),
            Ok(_) => {}
            Err(_) => return Err(number_error(step)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::strategy;

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    fn made(change: impl FnOnce(&mut Value)) -> Value {
        let mut job = json!({"metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": {"template": {"spec":
            {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        change(&mut job);
        let jobs = strategy("batch", "jobs");
        jobs.defaults(&mut job);
        jobs.prepare_for_create(&mut job);
        job
    }

    #[test]
    fn jobs_get_their_selector() {
        let job = made(|_| {});
        assert_eq!(texts(&strategy("batch", "jobs").validate(&job)), Vec::<String>::new());
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    }

    #[test]
    fn what_is_wrong_with_jobs() {
        type Change = fn(&mut Value);
        let cases: Vec<(Change, &[&str])> = vec![
            (
                |j| {
                    j["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
                },
                &["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""],
            ),
            (|j| j["spec"]["completionMode"] = json!("Indexed"), &[]),
            (
                |j| j["spec"]["podFailurePolicy"] = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [0]}}]}),
                &[
                    "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
                ],
            ),
        ];
        for (change, want) in cases {
            assert_eq!(texts(&job(&made(change))), want);
        }
    }

    #[test]
    fn schedules() {
        for (text, good) in [
            ("*/5 * * * *", true),
            ("0 0 1 JAN mon-fri", true),
            ("@daily", true),
            ("@every 1h", true),
            ("* * * *", false),
            ("60 * * * *", false),
            ("* * * * 7", false),
            ("*/0 * * * *", false),
            ("@sometimes", false),
        ] {
            assert_eq!(parse_schedule(text).is_ok(), good, "{text}");
        }
        assert_eq!(indexes("1,3-5", 6), Ok(4));
        assert!(indexes("3,1", 6).is_err() && indexes("7", 6).is_err());
    }
}
