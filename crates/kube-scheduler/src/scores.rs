//! The score plugins with upstream's default weights. Each scores a node 0 to 100.

use std::collections::HashMap;

use crate::affinity;
use crate::filters::{Context, spread_counts};
use crate::node::Node;
use crate::pod::Pod;

const MAX: i64 = 100;

/// Weighted totals, one per candidate.
pub fn score(context: &Context<'_>, pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
    let mut totals = vec![0; nodes.len()];
    let mut add = |weight: i64, scores: Vec<i64>| {
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += weight * score;
        }
    };
    add(3, taint_toleration(pod, nodes));
    add(2, node_affinity(pod, nodes));
    add(2, pod_topology_spread(context, pod, nodes));
    add(2, inter_pod_affinity(context, pod, nodes));
    add(1, nodes.iter().map(|n| least_allocated(pod, n)).collect());
    add(1, nodes.iter().map(|n| balanced_allocation(pod, n)).collect());
    add(1, image_locality(pod, nodes));
    totals
}

/// Scales to 0..=100 by the largest; `reverse` gives the largest the least.
fn normalize(mut scores: Vec<i64>, reverse: bool) -> Vec<i64> {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in &mut scores {
        let scaled = if max == 0 { 0 } else { MAX * *score / max };
        *score = if reverse { MAX - scaled } else { scaled };
    }
    scores
}

fn taint_toleration(pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
    let intolerable = |node: &&Node| {
        let soft = node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
        soft.filter(|taint| !pod.tolerations.iter().any(|t| affinity::tolerates(t, taint))).count() as i64
    };
    normalize(nodes.iter().map(intolerable).collect(), true)
}

fn node_affinity(pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
    let preferred = pod
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default();
    let sum = |node: &&Node| {
        preferred
            .iter()
            .filter(|p| affinity::term_matches(&p.preference, node))
            .map(|p| i64::from(p.weight))
            .sum()
    };
    normalize(nodes.iter().map(sum).collect(), false)
}

fn least_allocated(pod: &Pod, node: &Node) -> i64 {
    let free = |want: i64, used: i64, have: i64| {
        if have == 0 || want + used > have { 0 } else { (have - want - used) * MAX / have }
    };
    let (want, used, have) = (&pod.requests_nonzero, &node.requested_nonzero, &node.allocatable);
    (free(want.milli_cpu, used.milli_cpu, have.milli_cpu) + free(want.memory, used.memory, have.memory)) / 2
}

fn balanced_allocation(pod: &Pod, node: &Node) -> i64 {
    let share = |want: i64, used: i64, have: i64| {
        if have == 0 { 1.0 } else { ((want + used) as f64 / have as f64).min(1.0) }
    };
    let (want, used, have) = (&pod.requests, &node.requested, &node.allocatable);
    let cpu = share(want.milli_cpu, used.milli_cpu, have.milli_cpu);
    let memory = share(want.memory, used.memory, have.memory);
    ((1.0 - (cpu - memory).abs() / 2.0) * MAX as f64) as i64
}

fn image_locality(pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
    const MIN: i64 = 23 << 20;
    const MAX_PER_CONTAINER: i64 = 1000 << 20;
    let max = MAX_PER_CONTAINER * pod.images.len().max(1) as i64;
    let spread = |image: &str| {
        nodes.iter().filter(|n| n.images.contains_key(image)).count() as f64 / nodes.len() as f64
    };
    let shares: Vec<f64> = pod.images.iter().map(|i| spread(i)).collect();
    let sum = |node: &&Node| {
        let bytes: i64 = pod
            .images
            .iter()
            .zip(&shares)
            .filter_map(|(image, share)| Some((*node.images.get(image)? as f64 * share) as i64))
            .sum();
        MAX * (bytes.clamp(MIN, max) - MIN) / (max - MIN)
    };
    nodes.iter().map(sum).collect()
}

fn pod_topology_spread(context: &Context<'_>, pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
    let mut soft: Vec<_> = pod.spread.iter().filter(|c| !c.hard).cloned().collect();
    if pod.spread.is_empty() && pod.controller.is_some() && !pod.labels.is_empty() {
        // Upstream's default constraints for pods that a controller made: apart by host, and further apart by zone.
        // The pod's own labels stand for its controller's selector.
        let labels = pod.labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let selector = apimachinery::selector::LabelSelector::from_pairs(labels);
        for (max_skew, key) in [(3, "kubernetes.io/hostname"), (5, "topology.kubernetes.io/zone")] {
            soft.push(crate::pod::SpreadConstraint {
                max_skew,
                topology_key: key.into(),
                hard: false,
                selector: selector.clone(),
                min_domains: 1,
                honor_affinity: true,
                honor_taints: false,
            });
        }
        soft.retain(|c| nodes.iter().all(|n| n.labels.contains_key(&c.topology_key)));
    }
    if soft.is_empty() {
        return vec![0; nodes.len()];
    }
    let counts: Vec<_> =
        soft.iter().map(|c| (c, spread_counts(pod, c, context.snapshot, std::iter::once(c)))).collect();
    let raw: Vec<Option<f64>> = nodes
        .iter()
        .map(|node| {
            counts
                .iter()
                .map(|(c, counts)| {
                    let value = node.labels.get(&c.topology_key)?;
                    let here = counts.counts.get(value).copied().unwrap_or(0) as f64;
                    let weight = ((counts.counts.len() + 2) as f64).ln();
                    Some(here * weight + (c.max_skew - 1) as f64)
                })
                .sum()
        })
        .collect();
    let known = raw.iter().flatten().map(|s| s.round() as i64);
    let (min, max) = (known.clone().min().unwrap_or(0), known.max().unwrap_or(0));
    raw.iter()
        .map(|s| match s {
            None => 0,
            Some(_) if max == 0 => MAX,
            Some(s) => MAX * (max + min - s.round() as i64) / max,
        })
        .collect()
}

fn inter_pod_affinity(context: &Context<'_>, pod: &Pod, nodes: &[&Node]) -> Vec<i64> {
    let terms = &context.terms;
    if terms.preferred.is_empty() && terms.preferred_anti.is_empty() {
        return vec![0; nodes.len()];
    }
    let labels = &context.snapshot.namespace_labels;
    let mut weights: HashMap<(&str, &str), i64> = HashMap::new();
    for node in &context.snapshot.nodes {
        for other in node.pods.iter().filter(|o| o.uid != pod.uid) {
            let signed =
                terms.preferred.iter().map(|t| (t, 1)).chain(terms.preferred_anti.iter().map(|t| (t, -1)));
            for (term, sign) in signed {
                if let Some(value) = node.labels.get(&term.topology_key)
                    && term.matches(other, labels)
                {
                    *weights.entry((&term.topology_key, value)).or_default() += sign * term.weight;
                }
            }
        }
    }
    let sums: Vec<i64> = nodes
        .iter()
        .map(|n| {
            weights
                .iter()
                .filter(|((k, v), _)| n.labels.get(*k).is_some_and(|l| l == v))
                .map(|(_, w)| w)
                .sum()
        })
        .collect();
    let (min, max) = (sums.iter().copied().min().unwrap_or(0), sums.iter().copied().max().unwrap_or(0));
    sums.iter().map(|s| if max == min { 0 } else { MAX * (s - min) / (max - min) }).collect()
}
