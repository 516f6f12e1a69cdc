//! The filter plugins, in upstream's order, under upstream's names and with its reasons.

use std::collections::{BTreeMap, HashMap};

use crate::affinity::{self, PodTerms};
use crate::node::Node;
use crate::pod::{Pod, SpreadConstraint};
use crate::schedule::Rejection;
use crate::snapshot::{Snapshot, has_anti_affinity};

/// What is computed once per decision and used for every node. A copy in which pods are moved ([`Context::add_pod`],
/// [`Context::remove_pod`]) answers what would be if they were.
#[derive(Clone)]
pub struct Context<'a> {
    pub snapshot: &'a Snapshot,
    pub terms: PodTerms,
    /// Per required affinity term: topology value to number of matching pods; none is zero.
    affinity: Vec<HashMap<String, usize>>,
    anti_affinity: Vec<HashMap<String, usize>>,
    /// (topology key, value) where an existing pod's anti-affinity forbids this pod.
    forbidden: HashMap<(String, String), usize>,
    /// The pod itself satisfies all its required affinity terms.
    self_match: bool,
    pub spread: Vec<SpreadCounts>,
}

/// Matching pods per topology value, for one hard spread constraint.
#[derive(Clone)]
pub struct SpreadCounts {
    pub constraint: SpreadConstraint,
    pub counts: BTreeMap<String, i64>,
    pub self_match: i64,
}

impl SpreadCounts {
    fn least(&self) -> i64 {
        if (self.counts.len() as i64) < self.constraint.min_domains {
            return 0;
        }
        self.counts.values().copied().min().unwrap_or(0)
    }
}

impl<'a> Context<'a> {
    pub fn new(pod: &Pod, snapshot: &'a Snapshot) -> Context<'a> {
        let terms = PodTerms::of(pod);
        let labels = &snapshot.namespace_labels;
        let self_match = !terms.required.is_empty() && terms.required.iter().all(|t| t.matches(pod, labels));
        let hard = pod.spread.iter().filter(|c| c.hard);
        let spread = hard.clone().map(|c| spread_counts(pod, c, snapshot, hard.clone())).collect();
        let mut context = Context {
            affinity: vec![HashMap::new(); terms.required.len()],
            anti_affinity: vec![HashMap::new(); terms.required_anti.len()],
            forbidden: HashMap::new(),
            snapshot,
            terms,
            self_match,
            spread,
        };
        if context.looks_at_pods() || snapshot.with_anti_affinity > 0 {
            for node in &snapshot.nodes {
                for other in &node.pods {
                    context.count_affinity(pod, other, node, true);
                }
            }
        }
        context
    }

    fn looks_at_pods(&self) -> bool {
        !self.terms.required.is_empty() || !self.terms.required_anti.is_empty()
    }

    /// What if `other` ran on `node`?
    pub fn add_pod(&mut self, pod: &Pod, other: &Pod, node: &Node) {
        self.count_affinity(pod, other, node, true);
        self.count_spread(pod, other, node, 1);
    }

    /// What if `other` did not run on `node`?
    pub fn remove_pod(&mut self, pod: &Pod, other: &Pod, node: &Node) {
        self.count_affinity(pod, other, node, false);
        self.count_spread(pod, other, node, -1);
    }

    fn count_affinity(&mut self, pod: &Pod, other: &Pod, node: &Node, add: bool) {
        let labels = &self.snapshot.namespace_labels;
        let terms = &self.terms;
        if !terms.required.is_empty() && terms.required.iter().all(|t| t.matches(other, labels)) {
            for (term, counts) in terms.required.iter().zip(&mut self.affinity) {
                if let Some(value) = node.labels.get(&term.topology_key) {
                    count(counts, value.clone(), add);
                }
            }
        }
        for (term, counts) in terms.required_anti.iter().zip(&mut self.anti_affinity) {
            if let Some(value) = node.labels.get(&term.topology_key)
                && term.matches(other, labels)
            {
                count(counts, value.clone(), add);
            }
        }
        if has_anti_affinity(other) {
            for term in PodTerms::of(other).required_anti {
                if let Some(value) = node.labels.get(&term.topology_key)
                    && term.matches(pod, labels)
                {
                    count(&mut self.forbidden, (term.topology_key, value.clone()), add);
                }
            }
        }
    }

    fn count_spread(&mut self, pod: &Pod, other: &Pod, node: &Node, change: i64) {
        for spread in &mut self.spread {
            if counts_for(pod, &spread.constraint, other)
                && let Some(value) = node.labels.get(&spread.constraint.topology_key)
                && let Some(count) = spread.counts.get_mut(value)
            {
                *count += change;
            }
        }
    }
}

/// One more or one fewer under `key`; a key that counts nothing is not kept.
fn count<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K, add: bool) {
    if add {
        *counts.entry(key).or_default() += 1;
    } else if let std::collections::hash_map::Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

/// Whether `other` is one of those that a constraint of `pod` wants spread.
fn counts_for(pod: &Pod, constraint: &SpreadConstraint, other: &Pod) -> bool {
    !other.deleting
        && other.namespace == pod.namespace
        && constraint.selector.matches_with(|k| other.labels.get(k).map(String::as_str))
}

/// Counts matching pods per topology value over the nodes that take part.
pub fn spread_counts<'c>(
    pod: &Pod,
    constraint: &SpreadConstraint,
    snapshot: &Snapshot,
    all: impl Iterator<Item = &'c SpreadConstraint> + Clone,
) -> SpreadCounts {
    let mut counts = BTreeMap::new();
    for node in snapshot.nodes.iter().filter(|n| n.known) {
        // A node counts only when it has every constraint's key and, unless told otherwise, could take the pod.
        if !all.clone().all(|c| node.labels.contains_key(&c.topology_key))
            || constraint.honor_affinity && !affinity::node_matches(pod, node)
            || constraint.honor_taints
                && affinity::untolerated(pod, &node.taints, &["NoSchedule", "NoExecute"]).is_some()
        {
            continue;
        }
        let Some(value) = node.labels.get(&constraint.topology_key) else { continue };
        let matching = node.pods.iter().filter(|other| counts_for(pod, constraint, other));
        *counts.entry(value.clone()).or_insert(0) += matching.count() as i64;
    }
    let self_match = constraint.selector.matches_with(|k| pod.labels.get(k).map(String::as_str)).into();
    SpreadCounts { constraint: constraint.clone(), counts, self_match }
}

type Verdict = Result<(), Rejection>;

/// Whether `node` can take `pod`, with and without the pods of no less priority that are nominated to run there: it
/// must leave them the room made for them, and may not count on them to come.
pub fn filter(context: &Context<'_>, pod: &Pod, node: &Node) -> Verdict {
    let nominated = context.snapshot.nominated_to(&node.name);
    let mut nominated = nominated.filter(|n| n.priority >= pod.priority && n.uid != pod.uid).peekable();
    if nominated.peek().is_some() {
        let (mut context, mut node) = (context.clone(), node.clone());
        for other in nominated {
            context.add_pod(pod, other, &node);
            node.add(other.clone());
        }
        plugins(&context, pod, &node)?;
    }
    plugins(context, pod, node)
}

/// The first plugin that objects answers.
fn plugins(context: &Context<'_>, pod: &Pod, node: &Node) -> Verdict {
    node_unschedulable(pod, node)?;
    node_name(pod, node)?;
    taint_toleration(pod, node)?;
    node_affinity(pod, node)?;
    node_ports(pod, node)?;
    node_resources_fit(pod, node)?;
    pod_topology_spread(context, node)?;
    inter_pod_affinity(context, node)
}

/// An unschedulable node is taken as one with the taint that goes with it.
fn node_unschedulable(pod: &Pod, node: &Node) -> Verdict {
    if !node.unschedulable {
        return Ok(());
    }
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    };
    match pod.tolerations.iter().any(|t| affinity::tolerates(t, &taint)) {
        true => Ok(()),
        false => Err(Rejection::new("NodeUnschedulable", "node(s) were unschedulable", false)),
    }
}

fn node_name(pod: &Pod, node: &Node) -> Verdict {
    if pod.node_name.is_empty() || pod.node_name == node.name {
        return Ok(());
    }
    Err(Rejection::new("NodeName", "node(s) didn't match the requested node name", false))
}

fn taint_toleration(pod: &Pod, node: &Node) -> Verdict {
    match affinity::untolerated(pod, &node.taints, &["NoSchedule", "NoExecute"]) {
        None => Ok(()),
        Some(_) => Err(Rejection::new("TaintToleration", "node(s) had untolerated taint(s)", false)),
    }
}

fn node_affinity(pod: &Pod, node: &Node) -> Verdict {
    if affinity::node_matches(pod, node) {
        return Ok(());
    }
    Err(Rejection::new("NodeAffinity", "node(s) didn't match Pod's node affinity/selector", false))
}

fn node_ports(pod: &Pod, node: &Node) -> Verdict {
    if pod.host_ports.iter().any(|p| node.ports.iter().any(|used| used.conflicts(p))) {
        let reason = "node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::new("NodePorts", reason, true));
    }
    Ok(())
}

fn node_resources_fit(pod: &Pod, node: &Node) -> Verdict {
    let mut reasons = Vec::new();
    // More than the whole node has cannot be helped by evicting anyone.
    let mut resolvable = true;
    if node.pods.len() as i64 + 1 > node.pods_max {
        reasons.push("Too many pods".to_owned());
    }
    let (want, used, have) = (&pod.requests, &node.requested, &node.allocatable);
    let mut check = |name: &str, want: i64, used: i64, have: i64| {
        if want > 0 && want > have - used {
            reasons.push(format!("Insufficient {name}"));
            resolvable &= want <= have;
        }
    };
    check("cpu", want.milli_cpu, used.milli_cpu, have.milli_cpu);
    check("memory", want.memory, used.memory, have.memory);
    check("ephemeral-storage", want.ephemeral_storage, used.ephemeral_storage, have.ephemeral_storage);
    for (name, amount) in &want.extended {
        let used = used.extended.get(name).copied().unwrap_or(0);
        check(name, *amount, used, have.extended.get(name).copied().unwrap_or(0));
    }
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Rejection { plugin: "NodeResourcesFit", reasons, resolvable })
}

fn pod_topology_spread(context: &Context<'_>, node: &Node) -> Verdict {
    const REASON: &str = "node(s) didn't match pod topology spread constraints";
    for spread in &context.spread {
        let Some(value) = node.labels.get(&spread.constraint.topology_key) else {
            return Err(Rejection::new(
                "PodTopologySpread",
                format!("{REASON} (missing required label)"),
                false,
            ));
        };
        let here = spread.counts.get(value).copied().unwrap_or(0);
        if here + spread.self_match - spread.least() > spread.constraint.max_skew {
            return Err(Rejection::new("PodTopologySpread", REASON, true));
        }
    }
    Ok(())
}

fn inter_pod_affinity(context: &Context<'_>, node: &Node) -> Verdict {
    let value = |key: &str| node.labels.get(key);
    let terms = &context.terms;
    let satisfied = terms.required.iter().zip(&context.affinity).all(|(term, counts)| {
        value(&term.topology_key).is_some_and(|v| counts.get(v).is_some_and(|n| *n > 0))
    });
    if !satisfied {
        // The first of a group that wants to be together may go anywhere the keys exist.
        let first = context.affinity.iter().all(HashMap::is_empty) && context.self_match;
        if !first || !terms.required.iter().all(|t| value(&t.topology_key).is_some()) {
            return Err(Rejection::new("InterPodAffinity", "node(s) didn't match pod affinity rules", false));
        }
    }
    for (term, counts) in terms.required_anti.iter().zip(&context.anti_affinity) {
        if value(&term.topology_key).is_some_and(|v| counts.get(v).is_some_and(|n| *n > 0)) {
            return Err(Rejection::new(
                "InterPodAffinity",
                "node(s) didn't match pod anti-affinity rules",
                true,
            ));
        }
    }
    let forbidden = |(key, v): &(String, String)| value(key) == Some(v);
    if context.forbidden.keys().any(forbidden) {
        let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
        return Err(Rejection::new("InterPodAffinity", reason, true));
    }
    Ok(())
}
