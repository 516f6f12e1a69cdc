//! Matching of nodes and pods against affinity terms.

use std::collections::BTreeMap;

use apimachinery::selector::{LabelSelector, Operator, Requirement};
use k8s_openapi::api::core::v1::{NodeSelectorTerm, PodAffinityTerm, Taint, Toleration};
use serde_json::Value;

use crate::node::Node;
use crate::pod::Pod;

/// Whether a node satisfies one term; a term without expressions matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let holds = |key: &str, operator: &str, values: &Option<Vec<String>>, value: Option<&str>| {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::GreaterThan,
            "Lt" => Operator::LessThan,
            _ => return false,
        };
        Requirement::new(key, operator, values.clone().unwrap_or_default()).is_ok_and(|r| r.matches(value))
    };
    expressions
        .iter()
        .all(|e| holds(&e.key, &e.operator, &e.values, node.labels.get(&e.key).map(String::as_str)))
        && fields.iter().all(|e| {
            e.key == "metadata.name" && holds("name", &e.operator, &e.values, Some(node.name.as_str()))
        })
}

/// `spec.nodeSelector` and required node affinity.
pub fn node_matches(pod: &Pod, node: &Node) -> bool {
    if !pod.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v)) {
        return false;
    }
    let required = pod
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The first taint with one of `effects` that nothing tolerates.
pub fn untolerated<'a>(pod: &Pod, taints: &'a [Taint], effects: &[&str]) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|t| effects.contains(&t.effect.as_str()))
        .find(|taint| !pod.tolerations.iter().any(|t| tolerates(t, taint)))
}

/// A pod (anti-)affinity term, parsed for one owner.
#[derive(Clone, Debug)]
pub struct PodTerm {
    pub selector: LabelSelector,
    /// Empty with `all_namespaces` unset means the owner's own.
    pub namespaces: Vec<String>,
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
    pub weight: i64,
}

impl PodTerm {
    pub fn parse(term: &PodAffinityTerm, weight: i64, owner: &Pod) -> PodTerm {
        let mut selector = serde_json::to_value(&term.label_selector).unwrap_or(Value::Null);
        for key in term.match_label_keys.iter().flatten() {
            if let (Some(value), false) = (owner.labels.get(key), selector.is_null()) {
                selector["matchLabels"][key] = value.as_str().into();
            }
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(owner.namespace.clone());
        }
        PodTerm {
            selector: match selector.is_null() {
                true => LabelSelector::nothing(),
                false => LabelSelector::from_value(&selector).unwrap_or_else(|_| LabelSelector::nothing()),
            },
            namespaces,
            namespace_selector: term.namespace_selector.as_ref().map(|s| {
                LabelSelector::from_value(&serde_json::to_value(s).unwrap_or_default())
                    .unwrap_or_else(|_| LabelSelector::nothing())
            }),
            topology_key: term.topology_key.clone(),
            weight,
        }
    }

    pub fn matches(&self, pod: &Pod, namespace_labels: &BTreeMap<String, BTreeMap<String, String>>) -> bool {
        let namespace = self.namespaces.contains(&pod.namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| {
                s.is_everything()
                    || namespace_labels
                        .get(&pod.namespace)
                        .is_some_and(|labels| s.matches_with(|k| labels.get(k).map(String::as_str)))
            });
        namespace && self.selector.matches_with(|k| pod.labels.get(k).map(String::as_str))
    }
}

/// A pod's terms, by kind.
#[derive(Clone, Debug, Default)]
pub struct PodTerms {
    pub required: Vec<PodTerm>,
    pub required_anti: Vec<PodTerm>,
    pub preferred: Vec<PodTerm>,
    pub preferred_anti: Vec<PodTerm>,
}

impl PodTerms {
    pub fn of(pod: &Pod) -> PodTerms {
        let mut out = PodTerms::default();
        let Some(affinity) = &pod.affinity else { return out };
        if let Some(a) = &affinity.pod_affinity {
            let required =
                a.required_during_scheduling_ignored_during_execution.as_deref().unwrap_or_default();
            out.required = required.iter().map(|t| PodTerm::parse(t, 0, pod)).collect();
            let preferred =
                a.preferred_during_scheduling_ignored_during_execution.as_deref().unwrap_or_default();
            out.preferred = preferred
                .iter()
                .map(|t| PodTerm::parse(&t.pod_affinity_term, t.weight.into(), pod))
                .collect();
        }
        if let Some(a) = &affinity.pod_anti_affinity {
            let required =
                a.required_during_scheduling_ignored_during_execution.as_deref().unwrap_or_default();
            out.required_anti = required.iter().map(|t| PodTerm::parse(t, 0, pod)).collect();
            let preferred =
                a.preferred_during_scheduling_ignored_during_execution.as_deref().unwrap_or_default();
            out.preferred_anti = preferred
                .iter()
                .map(|t| PodTerm::parse(&t.pod_affinity_term, t.weight.into(), pod))
                .collect();
        }
        out
    }
}
