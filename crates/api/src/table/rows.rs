//! Which table a built-in resource has, and what all tables are made of.

use serde_json::Value;

use super::{Column, Table, core, name, or, others, workloads};
use crate::scale::selector_text;
use crate::value::{Read, quantity};

pub(super) const fn column(name: &'static str, kind: &'static str, priority: u8) -> Column {
    Column { name, kind, format: "", priority }
}

pub(super) const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
pub(super) const AGE: Column = Column { name: "Age", kind: "string", format: "", priority: 0 };

pub(super) const fn text(name: &'static str) -> Column {
    column(name, "string", 0)
}

pub(super) const fn number(name: &'static str) -> Column {
    column(name, "integer", 0)
}

pub(super) const fn flag(name: &'static str) -> Column {
    column(name, "boolean", 0)
}

pub(super) const fn wide(name: &'static str) -> Column {
    column(name, "string", 1)
}

macro_rules! table {
    ([$($column:expr),* $(,)?], $cells:expr) => {{
        static COLUMNS: &[Column] = &[$($column),*];
        static TABLE: Table = Table { columns: COLUMNS, cells: $cells };
        &TABLE
    }};
}
pub(super) use table;

pub(super) fn find(group: &str, resource: &str) -> &'static Table {
    match (group, resource) {
        ("", _) => core::find(resource),
        ("apps" | "batch", _) => workloads::find(resource),
        ("events.k8s.io", "events") => core::find("events"),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            table!(
                [NAME, text("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")],
                others::binding
            )
        }
        ("networking.k8s.io" | "discovery.k8s.io", _) => others::networking(resource),
        ("storage.k8s.io", _) => others::storage(resource),
        ("admissionregistration.k8s.io", _) => others::admission(resource),
        ("resource.k8s.io", _) => others::resources(resource),
        _ => others::find(group, resource),
    }
}

/// For kinds nobody wrote columns for.
pub(super) fn any() -> &'static Table {
    table!([NAME, column("Created At", "date", 0)], |o, _| {
        vec![name(o), o.at("metadata.creationTimestamp").clone()]
    })
}

pub(super) fn count(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    }
}

pub(super) fn containers(template: &Value) -> [Value; 2] {
    let list = |member: &str| -> Value {
        let texts: Vec<&str> = template.list("spec.containers").iter().map(|c| c.text(member)).collect();
        texts.join(",").into()
    };
    [list("name"), list("image")]
}

pub(super) fn labels(value: &Value) -> Value {
    let text = selector_text(value);
    or(&text, "<none>").into()
}

pub(super) fn int(object: &Value, path: &str) -> Value {
    object.int(path).into()
}

pub(super) fn shown(object: &Value, path: &str, otherwise: &str) -> Value {
    let value = object.at(path);
    match value {
        Value::Null => otherwise.into(),
        Value::String(s) => s.as_str().into(),
        other => other.to_string().into(),
    }
}

pub(super) fn amount(value: &Value) -> String {
    quantity(value).map_or_else(|| "0".to_owned(), |q| q.to_string())
}

/// At most three of many.
pub(super) fn first_three(items: &[String]) -> String {
    match items.len() {
        0 => "<none>".to_owned(),
        1..=3 => items.join(","),
        n => format!("{} + {} more...", items[..3].join(","), n - 3),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cell_for_each_column() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        for rules in crate::groups::ALL.iter().flat_map(|g| g.iter()) {
            let table = find(rules.group, rules.resource);
            let cells = (table.cells)(&json!({"metadata": {"name": "x"}}), now);
            // Upstream's one row with a cell too many.
            let more = usize::from(rules.resource == "ipaddresses");
            assert_eq!(cells.len(), table.columns.len() + more, "{}/{}", rules.group, rules.resource);
        }
    }

    #[test]
    fn rows() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let meta = json!({"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"node-role.kubernetes.io/control-plane": ""}});
        for (group, resource, object, want) in [
            (
                "",
                "services",
                json!({"spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"], "selector": {"a": "b"},
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
                json!(["x", "NodePort", "10.0.0.1", "<none>", "80:30080/TCP,53/UDP", "60m", "a=b"]),
            ),
            (
                "",
                "nodes",
                json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                    "nodeInfo": {"kubeletVersion": "v1.36.2", "kernelVersion": "6.1", "architecture": "amd64"}}}),
                json!([
                    "x",
                    "Ready,SchedulingDisabled",
                    "control-plane",
                    "60m",
                    "v1.36.2",
                    "1.2.3.4",
                    "<none>",
                    "<unknown>",
                    "6.1 (amd64)",
                    "<unknown>"
                ]),
            ),
            (
                "apps",
                "deployments",
                json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": {"spec":
                    {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}}},
                    "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
                json!(["x", "2/3", 3, 2, "60m", "c,d", "i,j", "a=b"]),
            ),
            (
                "batch",
                "jobs",
                json!({"spec": {"completions": 2}, "status": {"succeeded": 1, "startTime": "2026-01-01T00:59:30Z"}}),
                json!(["x", "Running", "1/2", "30s", "60m", "", "", "<none>"]),
            ),
            ("rbac.authorization.k8s.io", "clusterroles", json!({}), json!(["x", "2026-01-01T00:00:00Z"])),
            (
                "autoscaling",
                "horizontalpodautoscalers",
                json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5, "minReplicas": 1,
                    "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}}),
                json!(["x", "Deployment/d", "cpu: <unknown>/80%", "1", 5, 0, "60m"]),
            ),
            (
                "",
                "endpoints",
                json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "1.1.1.2"}], "ports": [{"port": 80}, {"port": 81}]}]}),
                json!(["x", "1.1.1.1:80,1.1.1.2:80,1.1.1.1:81 + 1 more...", "60m"]),
            ),
        ] {
            let mut object = object;
            object["metadata"] = meta.clone();
            assert_eq!(Value::from((find(group, resource).cells)(&object, now)), want, "{resource}");
        }
    }
}
