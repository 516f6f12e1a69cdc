//! Whether a pod may be on a node, as far as affinity, selectors and taints say.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::tainteviction::tolerates;

fn meets(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|v| values.iter().any(|w| w == v));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(v, limit)| v > limit),
        "Lt" => numbers().is_some_and(|(v, limit)| v < limit),
        _ => false,
    }
}

fn matches_term(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| meets(r, labels.get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && meets(r, Some(name)))
}

/// Node selector and required node affinity.
pub(crate) fn matches(spec: &PodSpec, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| matches_term(t, name, labels)))
}

pub(crate) fn tolerates_all(tolerations: &[Toleration], taints: &[Taint], effects: &[&str]) -> bool {
    taints
        .iter()
        .filter(|t| effects.contains(&t.effect.as_str()))
        .all(|t| tolerations.iter().any(|toleration| tolerates(toleration, t)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terms() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a", "cpus": "8"}}}))
                .unwrap();
        for (selector, terms, want) in [
            (json!({}), json!(null), true),
            (json!({"zone": "a"}), json!(null), true),
            (json!({"zone": "b"}), json!(null), false),
            (
                json!({}),
                json!([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]),
                true,
            ),
            (
                json!({}),
                json!([{"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["8"]}]}]),
                false,
            ),
            (
                json!({}),
                json!([{"matchExpressions": [{"key": "x", "operator": "Exists"}]},
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]),
                true,
            ),
            (json!({}), json!([{}]), false),
        ] {
            let affinity = match terms.is_null() {
                true => json!(null),
                false => {
                    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
                }
            };
            let spec: PodSpec = serde_json::from_value(
                json!({"containers": [], "nodeSelector": selector, "affinity": affinity}),
            )
            .unwrap();
            assert_eq!(matches(&spec, &node), want, "{spec:?}");
        }
    }
}
