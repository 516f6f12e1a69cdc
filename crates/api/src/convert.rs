//! Versions of one resource, and the groups that share stored objects.

use serde_json::{Value, json};

use crate::value::{Read, Write};

/// The group and version objects of a resource are stored in; `None` where nothing is built in, and for most
/// resources the version served is the version stored.
pub fn storage_version(group: &str, resource: &str) -> Option<(&'static str, &'static str)> {
    Some(match (group, resource) {
        ("events.k8s.io" | "", "events") => ("", "v1"),
        ("autoscaling", "horizontalpodautoscalers") => ("autoscaling", "v2"),
        _ => return None,
    })
}

/// Brings `object` from the group and version it is in into another. Versions that differ in name alone only change
/// `apiVersion`.
pub fn convert(object: &mut Value, to_group: &str, to_version: &str) {
    let wanted = if to_group.is_empty() { to_version.to_owned() } else { format!("{to_group}/{to_version}") };
    let from = object.text("apiVersion").to_owned();
    if from == wanted {
        return;
    }
    let kind = object.text("kind").to_owned();
    match (kind.as_str(), from.as_str(), wanted.as_str()) {
        ("Event", "events.k8s.io/v1", "v1") => rename(object, EVENT, false),
        ("Event", "v1", "events.k8s.io/v1") => rename(object, EVENT, true),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => autoscaler_to_v2(object),
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => autoscaler_to_v1(object),
        _ => {}
    }
    object.put("apiVersion", wanted);
}

/// (core/v1, events.k8s.io/v1)
const EVENT: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: &mut Value, names: &[(&str, &str)], forward: bool) {
    let Some(members) = object.as_object_mut() else { return };
    for (a, b) in names {
        let (from, to) = if forward { (a, b) } else { (b, a) };
        if let Some(value) = members.remove(*from) {
            members.insert((*to).to_owned(), value);
        }
    }
}

/// Annotations in which v1 carries what it has no fields for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn take_annotation(object: &mut Value, name: &str) -> Option<Value> {
    let annotations = object.find_mut("metadata.annotations")?.as_object_mut()?;
    let text = annotations.remove(name)?;
    let empty = annotations.is_empty();
    if empty {
        object.remove("metadata.annotations");
    }
    text.as_str().and_then(|t| serde_json::from_str(t).ok())
}

fn annotate(object: &mut Value, name: &str, value: &Value) {
    if let Some(annotations) = object.object_mut("metadata.annotations") {
        annotations.insert(name.to_owned(), value.to_string().into());
    }
}

fn autoscaler_to_v2(object: &mut Value) {
    let mut metrics: Vec<Value> = vec![];
    if let Some(target) = object.remove("spec.targetCPUUtilizationPercentage").filter(|t| !t.is_null()) {
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": target}}}));
    }
    if let Some(Value::Array(more)) = take_annotation(object, METRICS) {
        metrics.extend(more.into_iter().filter_map(metric_to_v2));
    }
    if !metrics.is_empty() {
        object.put("spec.metrics", metrics);
    }
    if let Some(behavior) = take_annotation(object, BEHAVIOR) {
        object.put("spec.behavior", behavior);
    }
    let mut current: Vec<Value> = vec![];
    if let Some(value) = object.remove("status.currentCPUUtilizationPercentage").filter(|t| !t.is_null()) {
        current.push(json!({"type": "Resource", "resource": {"name": "cpu",
            "current": {"averageUtilization": value}}}));
    }
    if let Some(Value::Array(more)) = take_annotation(object, CURRENT_METRICS) {
        let merged: Vec<Value> = more.into_iter().filter_map(current_to_v2).collect();
        let has_cpu = merged.iter().any(|m| m.text("resource.name") == "cpu");
        if has_cpu {
            current.clear();
        }
        current.extend(merged);
    }
    if !current.is_empty() {
        object.put("status.currentMetrics", current);
    }
    if let Some(conditions) = take_annotation(object, CONDITIONS) {
        object.put("status.conditions", conditions);
    }
}

fn autoscaler_to_v1(object: &mut Value) {
    let is_cpu_utilization = |m: &Value| {
        m.text("type") == "Resource"
            && m.text("resource.name") == "cpu"
            && m.has("resource.target.averageUtilization")
    };
    let mut others: Vec<Value> = vec![];
    if let Some(Value::Array(metrics)) = object.remove("spec.metrics") {
        for metric in metrics {
            if is_cpu_utilization(&metric) && !object.has("spec.targetCPUUtilizationPercentage") {
                object.put(
                    "spec.targetCPUUtilizationPercentage",
                    metric.at("resource.target.averageUtilization").clone(),
                );
            } else {
                others.extend(metric_to_v1(&metric));
            }
        }
    }
    if !others.is_empty() {
        annotate(object, METRICS, &Value::Array(others));
    }
    if let Some(behavior) = object.remove("spec.behavior").filter(|b| !b.is_null()) {
        annotate(object, BEHAVIOR, &behavior);
    }
    if let Some(Value::Array(current)) = object.remove("status.currentMetrics") {
        for metric in &current {
            let value = metric.at("resource.current.averageUtilization");
            if metric.text("resource.name") == "cpu" && !value.is_null() {
                object.put("status.currentCPUUtilizationPercentage", value.clone());
            }
        }
        let all: Vec<Value> = current.iter().filter_map(current_to_v1).collect();
        if !all.is_empty() {
            annotate(object, CURRENT_METRICS, &Value::Array(all));
        }
    }
    if let Some(conditions) = object.remove("status.conditions").filter(|c| !c.is_null()) {
        annotate(object, CONDITIONS, &conditions);
    }
    if object.has("status") {
        object.put_default("status.currentReplicas", 0);
        object.put_default("status.desiredReplicas", 0);
    }
}

/// The member that a metric of a type is described in.
fn member(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return None,
    })
}

/// The flat shape that metrics have in the annotation, into v2's nested one.
fn metric_to_v2(metric: Value) -> Option<Value> {
    let kind = metric.text("type").to_owned();
    let name = member(&kind)?;
    let from = metric.get_or_null(name);
    let mut to = json!({});
    let target = |utilization: &Value, average: &Value, value: &Value| {
        if !utilization.is_null() {
            json!({"type": "Utilization", "averageUtilization": utilization})
        } else if !average.is_null() {
            json!({"type": "AverageValue", "averageValue": average})
        } else {
            json!({"type": "Value", "value": value})
        }
    };
    match name {
        "resource" | "containerResource" => {
            to.copy_from(from, "name");
            to.copy_from(from, "container");
            to.put(
                "target",
                target(
                    from.get_or_null("targetAverageUtilization"),
                    from.get_or_null("targetAverageValue"),
                    &Value::Null,
                ),
            );
        }
        "pods" => {
            to.put("metric.name", from.get_or_null("metricName").clone());
            to.put("target", target(&Value::Null, from.get_or_null("targetAverageValue"), &Value::Null));
        }
        "object" => {
            to.put("metric.name", from.get_or_null("metricName").clone());
            to.put("describedObject", from.get_or_null("target").clone());
            to.put(
                "target",
                target(&Value::Null, from.get_or_null("averageValue"), from.get_or_null("targetValue")),
            );
        }
        _ => {
            to.put("metric.name", from.get_or_null("metricName").clone());
            if from.has("metricSelector") {
                to.put("metric.selector", from.get_or_null("metricSelector").clone());
            }
            to.put(
                "target",
                target(&Value::Null, from.get_or_null("targetAverageValue"), from.get_or_null("targetValue")),
            );
        }
    }
    if matches!(name, "pods" | "object") && from.has("selector") {
        to.put("metric.selector", from.get_or_null("selector").clone());
    }
    Some(json!({"type": kind, name: to}))
}

fn metric_to_v1(metric: &Value) -> Option<Value> {
    let kind = metric.text("type").to_owned();
    let name = member(&kind)?;
    let from = metric.get_or_null(name);
    let mut to = json!({});
    let mut put = |key: &str, path: &str| {
        if from.has(path) {
            to.put(key, from.at(path).clone());
        }
    };
    match name {
        "resource" | "containerResource" => {
            put("name", "name");
            put("container", "container");
            put("targetAverageUtilization", "target.averageUtilization");
            put("targetAverageValue", "target.averageValue");
        }
        "pods" => {
            put("metricName", "metric.name");
            put("targetAverageValue", "target.averageValue");
            put("selector", "metric.selector");
        }
        "object" => {
            put("metricName", "metric.name");
            put("target", "describedObject");
            put("targetValue", "target.value");
            put("averageValue", "target.averageValue");
            put("selector", "metric.selector");
        }
        _ => {
            put("metricName", "metric.name");
            put("metricSelector", "metric.selector");
            put("targetValue", "target.value");
            put("targetAverageValue", "target.averageValue");
        }
    }
    Some(json!({"type": kind, name: to}))
}

fn current_to_v2(metric: Value) -> Option<Value> {
    let kind = metric.text("type").to_owned();
    let name = member(&kind)?;
    let from = metric.get_or_null(name);
    let mut to = json!({});
    let mut put = |path: &str, key: &str| {
        if from.has(key) {
            to.put(path, from.get_or_null(key).clone());
        }
    };
    match name {
        "resource" | "containerResource" => {
            put("name", "name");
            put("container", "container");
            put("current.averageUtilization", "currentAverageUtilization");
            put("current.averageValue", "currentAverageValue");
        }
        _ => {
            put("metric.name", "metricName");
            put("metric.selector", if name == "external" { "metricSelector" } else { "selector" });
            put(
                "current.averageValue",
                if name == "object" { "averageValue" } else { "currentAverageValue" },
            );
            put("current.value", "currentValue");
            if name == "object" {
                put("describedObject", "target");
            }
        }
    }
    to.put_default("current", json!({}));
    Some(json!({"type": kind, name: to}))
}

fn current_to_v1(metric: &Value) -> Option<Value> {
    let kind = metric.text("type").to_owned();
    let name = member(&kind)?;
    let from = metric.get_or_null(name);
    let mut to = json!({});
    let mut put = |key: &str, path: &str| {
        if from.has(path) {
            to.put(key, from.at(path).clone());
        }
    };
    match name {
        "resource" | "containerResource" => {
            put("name", "name");
            put("container", "container");
            put("currentAverageUtilization", "current.averageUtilization");
            put("currentAverageValue", "current.averageValue");
        }
        _ => {
            put("metricName", "metric.name");
            put(if name == "external" { "metricSelector" } else { "selector" }, "metric.selector");
            put(
                if name == "object" { "averageValue" } else { "currentAverageValue" },
                "current.averageValue",
            );
            put("currentValue", "current.value");
            if name == "object" {
                put("target", "describedObject");
            }
        }
    }
    Some(json!({"type": kind, name: to}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for (object, group, version, want) in [
            (
                json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "note": "n", "regarding": {"name": "p"},
                    "reportingController": "c", "deprecatedCount": 2}),
                "",
                "v1",
                json!({"kind": "Event", "apiVersion": "v1", "message": "n", "involvedObject": {"name": "p"},
                    "reportingComponent": "c", "count": 2}),
            ),
            (
                json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1",
                    "spec": {"targetCPUUtilizationPercentage": 70}}),
                "autoscaling",
                "v2",
                json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "spec": {"metrics": [
                    {"type": "Resource", "resource": {"name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": 70}}}]}}),
            ),
            (
                json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": {"name": "a"},
                    "spec": {"metrics": [{"type": "Pods", "pods": {"metric": {"name": "rps"},
                        "target": {"type": "AverageValue", "averageValue": "5"}}}]}}),
                "autoscaling",
                "v1",
                json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1", "metadata": {"name": "a",
                    "annotations": {METRICS:
                        "[{\"pods\":{\"metricName\":\"rps\",\"targetAverageValue\":\"5\"},\"type\":\"Pods\"}]"}},
                    "spec": {}}),
            ),
        ] {
            let (from, mut got) = (object.clone(), object);
            convert(&mut got, group, version);
            assert_eq!(got, want);
            let (group, version) = from.text("apiVersion").rsplit_once('/').unwrap_or(("", "v1"));
            convert(&mut got, group, version);
            assert_eq!(got, from);
        }
    }
}
