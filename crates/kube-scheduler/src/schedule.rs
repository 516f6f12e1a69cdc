//! One decision: which node a pod goes to, or why none will do. Pure.

use std::collections::BTreeMap;

use crate::filters::{self, Context};
use crate::node::Node;
use crate::pod::Pod;
use crate::scores;
use crate::snapshot::Snapshot;

/// Why a node will not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub plugin: &'static str,
    pub reasons: Vec<String>,
    /// Whether evicting pods could change it.
    pub resolvable: bool,
}

impl Rejection {
    pub fn new(plugin: &'static str, reason: impl Into<String>, resolvable: bool) -> Rejection {
        Rejection { plugin, reasons: vec![reason.into()], resolvable }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Node(String),
    Unschedulable(Unschedulable),
}

/// Why no node will do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unschedulable {
    pub nodes: usize,
    /// Node index and why not.
    pub rejections: Vec<(usize, Rejection)>,
    /// A reason that holds for every node.
    pub everywhere: Option<String>,
    /// What preemption had to say.
    pub preemption: String,
}

impl Unschedulable {
    /// Upstream's FitError text.
    pub fn message(&self) -> String {
        let mut text = match self.nodes {
            0 => return "no nodes available to schedule pods".into(),
            n => format!("0/{n} nodes are available:"),
        };
        if let Some(reason) = &self.everywhere {
            text += &format!(" {reason}.");
        } else {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for reason in self.rejections.iter().flat_map(|(_, r)| &r.reasons) {
                *counts.entry(reason).or_default() += 1;
            }
            let mut reasons: Vec<String> =
                counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            reasons.sort();
            if !reasons.is_empty() {
                text += &format!(" {}.", reasons.join(", "));
            }
        }
        if !self.preemption.is_empty() {
            text += &format!(" {}", self.preemption);
        }
        text
    }

    /// The plugins that said no.
    pub fn plugins(&self) -> std::collections::BTreeSet<&'static str> {
        self.rejections.iter().map(|(_, r)| r.plugin).collect()
    }
}

/// Decides for one pod. `tie` breaks ties between equally good nodes.
pub fn schedule(pod: &Pod, snapshot: &Snapshot, tie: u64) -> Decision {
    let context = Context::new(pod, snapshot);
    let mut feasible: Vec<usize> = Vec::new();
    let mut rejections = Vec::new();
    let mut nodes = 0;
    // Others were evicted there for this pod.
    if let Some(nominated) = snapshot.nomination(&pod.uid).and_then(|name| snapshot.node(name))
        && nominated.known
        && filters::filter(&context, pod, nominated).is_ok()
    {
        return Decision::Node(nominated.name.clone());
    }
    for (i, node) in snapshot.nodes.iter().enumerate().filter(|(_, n)| n.known) {
        nodes += 1;
        match filters::filter(&context, pod, node) {
            Ok(()) => feasible.push(i),
            Err(rejection) => rejections.push((i, rejection)),
        }
    }
    match feasible[..] {
        [] => Decision::Unschedulable(Unschedulable { nodes, rejections, ..Unschedulable::default() }),
        [only] => Decision::Node(snapshot.nodes[only].name.clone()),
        _ => {
            let candidates: Vec<&Node> = feasible.iter().map(|i| &snapshot.nodes[*i]).collect();
            let totals = scores::score(&context, pod, &candidates);
            let best = totals.iter().copied().max().unwrap_or_default();
            let winners: Vec<usize> = (0..totals.len()).filter(|i| totals[*i] == best).collect();
            let winner = winners[(tie % winners.len() as u64) as usize];
            Decision::Node(candidates[winner].name.clone())
        }
    }
}
