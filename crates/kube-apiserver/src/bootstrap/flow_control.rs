//! The default priority levels and flow schemas.

use serde_json::{Value, json};

const ANNOTATION: &str = "apf.kubernetes.io/autoupdate-spec";

enum Response {
    Exempt,
    Reject,
    /// Queues and hand size; every queue is 50 long.
    Queue(u32, u32),
}

/// Name, concurrency shares, percentage that may be lent, what happens when it is full.
const LEVELS: [(&str, u32, u32, Response); 8] = [
    ("exempt", 0, 0, Response::Exempt),
    ("catch-all", 5, 0, Response::Reject),
    ("system", 30, 33, Response::Queue(64, 6)),
    ("node-high", 40, 25, Response::Queue(64, 6)),
    ("leader-election", 10, 0, Response::Queue(16, 4)),
    ("workload-high", 40, 50, Response::Queue(128, 6)),
    ("workload-low", 100, 90, Response::Queue(128, 6)),
    ("global-default", 20, 50, Response::Queue(128, 6)),
];

const EVERYBODY: &[&str] = &["group:system:unauthenticated", "group:system:authenticated"];

/// Which requests a schema matches.
#[derive(Clone, Copy)]
enum What {
    All,
    Probes,
    Leases,
    NodesAndLeases,
}

/// Name, level, precedence, distinguisher, subjects, requests.
const SCHEMAS: [(&str, &str, u32, &str, &[&str], What); 11] = [
    ("exempt", "exempt", 1, "", &["group:system:masters"], What::All),
    ("probes", "exempt", 2, "", EVERYBODY, What::Probes),
    (
        "system-leader-election",
        "leader-election",
        100,
        "ByUser",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler", "kube-system"],
        What::Leases,
    ),
    ("system-node-high", "node-high", 400, "ByUser", &["group:system:nodes"], What::NodesAndLeases),
    ("system-nodes", "system", 500, "ByUser", &["group:system:nodes"], What::All),
    (
        "kube-controller-manager",
        "workload-high",
        800,
        "ByNamespace",
        &["user:system:kube-controller-manager"],
        What::All,
    ),
    ("kube-scheduler", "workload-high", 800, "ByNamespace", &["user:system:kube-scheduler"], What::All),
    ("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &["kube-system"], What::All),
    ("service-accounts", "workload-low", 9000, "ByUser", &["group:system:serviceaccounts"], What::All),
    ("global-default", "global-default", 9900, "ByUser", EVERYBODY, What::All),
    ("catch-all", "catch-all", 10000, "ByUser", EVERYBODY, What::All),
];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "annotations": {ANNOTATION: "true"}},
        "spec": spec,
    })
}

fn level(name: &str, shares: u32, lendable: u32, response: &Response) -> Value {
    let share = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable});
    let limited = |response: Value| {
        let mut limited = share.clone();
        limited["limitResponse"] = response;
        json!({"type": "Limited", "limited": limited})
    };
    let spec = match response {
        Response::Exempt => json!({"type": "Exempt", "exempt": share}),
        Response::Reject => limited(json!({"type": "Reject"})),
        Response::Queue(queues, hand) => limited(json!({
            "type": "Queue",
            "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50},
        })),
    };
    object("PriorityLevelConfiguration", name, spec)
}

fn subject(word: &str) -> Value {
    match word.split_once(':') {
        Some(("group", name)) => json!({"kind": "Group", "group": {"name": name}}),
        Some((_, name)) => json!({"kind": "User", "user": {"name": name}}),
        None => json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": word, "name": "*"}}),
    }
}

fn rules(subjects: &[&str], what: What) -> Value {
    let resources = |verbs: &[&str], group: &str, resources: &[&str], cluster: bool| {
        let mut rule =
            json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
        if cluster {
            rule["clusterScope"] = json!(true);
        }
        rule
    };
    let leases = "coordination.k8s.io";
    let (resource_rules, path_rules) = match what {
        What::All => (
            vec![resources(&["*"], "*", &["*"], true)],
            vec![json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
        ),
        What::Probes => {
            (vec![], vec![json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]})])
        }
        What::Leases => (vec![resources(&["get", "create", "update"], leases, &["leases"], false)], vec![]),
        What::NodesAndLeases => (
            vec![
                resources(&["*"], "", &["nodes", "nodes/status"], true),
                resources(&["*"], leases, &["leases"], false),
            ],
            vec![],
        ),
    };
    let subjects: Vec<Value> = subjects.iter().map(|s| subject(s)).collect();
    let mut rule = json!({"subjects": subjects});
    if !resource_rules.is_empty() {
        rule["resourceRules"] = json!(resource_rules);
    }
    if !path_rules.is_empty() {
        rule["nonResourceRules"] = json!(path_rules);
    }
    json!([rule])
}

/// All default objects, with their resource.
pub fn defaults() -> Vec<(&'static str, Value)> {
    let levels = LEVELS.iter().map(|(name, shares, lendable, response)| {
        ("prioritylevelconfigurations", level(name, *shares, *lendable, response))
    });
    let schemas = SCHEMAS.iter().map(|(name, level, precedence, distinguisher, subjects, what)| {
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": level},
            "matchingPrecedence": precedence,
            "rules": rules(subjects, *what),
        });
        if !distinguisher.is_empty() {
            spec["distinguisherMethod"] = json!({"type": distinguisher});
        }
        ("flowschemas", object("FlowSchema", name, spec))
    });
    levels.chain(schemas).collect()
}

/// Who says whether flow schemas lead anywhere.
pub const CONDITIONS_MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";

/// What to apply to a flow schema so that its condition tells whether its priority level exists, or `None` when it does.
pub fn with_condition(schema: &Value, level_exists: bool, now: &str) -> Option<Value> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
    let (status, reason, words) = if level_exists {
        ("False", "Found", "and it exists")
    } else {
        ("True", "NotFound", "but there is no such object")
    };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {words}");
    let mut conditions = schema["status"]["conditions"].as_array().into_iter().flatten();
    if conditions.any(|c| c["type"] == "Dangling" && c["status"] == status && c["reason"] == reason) {
        return None;
    }
    let condition = json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now});
    Some(json!({"apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
        "metadata": {"name": schema["metadata"]["name"]}, "status": {"conditions": [condition]}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_set_once() {
        for (resource, schema) in defaults().into_iter().filter(|(r, _)| *r == "flowschemas") {
            let told = with_condition(&schema, true, "now").unwrap_or_else(|| panic!("{resource}"));
            assert_eq!(told["status"]["conditions"][0]["status"], "False");
            assert!(with_condition(&told, true, "later").is_none());
            let gone = with_condition(&told, false, "later").unwrap();
            assert_eq!(gone["status"]["conditions"].as_array().unwrap().len(), 1);
        }
    }
}
