//! Which pods have to go so that a more important one finds a node: upstream's DefaultPreemption. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::object::Encoded;
use apimachinery::selector::LabelSelector;
use serde::Deserialize;

use crate::filters::{self, Context};
use crate::node::Node;
use crate::pod::Pod;
use crate::schedule::{Rejection, Unschedulable};
use crate::snapshot::Snapshot;

/// As many nodes are tried out as make this share of those in question, in percent, and no fewer than the least.
const CANDIDATES_PERCENT: usize = 10;
const CANDIDATES_LEAST: usize = 100;

/// What a PodDisruptionBudget still allows.
#[derive(Clone, Debug)]
pub struct Budget {
    pub namespace: String,
    pub selector: LabelSelector,
    pub disruptions_allowed: i32,
    /// Names of pods whose eviction is already counted.
    pub disrupted: BTreeSet<String>,
}

impl Budget {
    pub fn decode(object: &Encoded) -> Result<Budget, serde_json::Error> {
        let raw: RawBudget = apimachinery::object::read(&object.body)?;
        let selector = match raw.spec.selector {
            None => LabelSelector::nothing(),
            Some(value) => match LabelSelector::from_value(&value) {
                Ok(selector) if !selector.is_everything() => selector,
                // Here, unlike elsewhere, the empty selector selects nothing.
                _ => LabelSelector::nothing(),
            },
        };
        Ok(Budget {
            namespace: object.namespace().to_owned(),
            selector,
            disruptions_allowed: raw.status.disruptions_allowed,
            disrupted: raw.status.disrupted_pods.into_keys().collect(),
        })
    }

    fn covers(&self, pod: &Pod) -> bool {
        self.namespace == pod.namespace
            && !pod.labels.is_empty()
            && self.selector.matches_with(|k| pod.labels.get(k).map(String::as_str))
            && !self.disrupted.contains(&pod.name)
    }
}

#[derive(Deserialize)]
struct RawBudget {
    #[serde(default)]
    spec: RawBudgetSpec,
    #[serde(default)]
    status: RawBudgetStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawBudgetSpec {
    selector: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawBudgetStatus {
    disruptions_allowed: i32,
    disrupted_pods: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
}

/// A node that could take the pod if the victims were gone.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub node: String,
    /// Most important first; never empty.
    pub victims: Vec<Arc<Pod>>,
    /// Victims that a disruption budget would spare.
    pub violations: usize,
}

#[derive(Clone, Debug)]
pub enum Preemption {
    /// Evict these and mean the pod for their node.
    Evict(Candidate),
    /// The pod may not preempt, or those it preempted are still going; a node that is meant for it stays so.
    NotEligible(&'static str),
    /// Evictions do not help; says why. No node is meant for the pod any more.
    NoHelp(String),
}

/// Looks for victims for a pod that found no node. `offset` says at which node to begin.
pub fn preempt(
    pod: &Pod,
    snapshot: &Snapshot,
    refusal: &Unschedulable,
    budgets: &[Budget],
    offset: u64,
) -> Preemption {
    if let Some(reason) = ineligible(pod, snapshot, refusal) {
        return Preemption::NotEligible(reason);
    }
    let potential: Vec<&(usize, Rejection)> =
        refusal.rejections.iter().filter(|(_, r)| r.resolvable).collect();
    let context = Context::new(pod, snapshot);
    let enough = (potential.len() * CANDIDATES_PERCENT / 100).max(CANDIDATES_LEAST).min(potential.len());
    let (mut sparing, mut violating) = (Vec::new(), Vec::new());
    let mut rejections: Vec<(usize, Rejection)> = Vec::new();
    for i in 0..potential.len() {
        let slot = potential[(offset as usize).wrapping_add(i) % potential.len()].0;
        match victims_on(pod, &context, &snapshot.nodes[slot], budgets) {
            Ok(candidate) if candidate.violations == 0 => sparing.push(candidate),
            Ok(candidate) => violating.push(candidate),
            Err(rejection) => rejections.push((slot, rejection)),
        }
        if !sparing.is_empty() && sparing.len() + violating.len() >= enough {
            break;
        }
    }
    sparing.append(&mut violating);
    if let Some(best) = best(sparing) {
        return Preemption::Evict(best);
    }
    let hopeless = refusal.rejections.iter().filter(|(_, r)| !r.resolvable);
    rejections.extend(hopeless.map(|(slot, _)| {
        (*slot, Rejection::new("DefaultPreemption", "Preemption is not helpful for scheduling", false))
    }));
    Preemption::NoHelp(
        Unschedulable { nodes: refusal.nodes, rejections, ..Unschedulable::default() }.message(),
    )
}

fn ineligible(pod: &Pod, snapshot: &Snapshot, refusal: &Unschedulable) -> Option<&'static str> {
    if !pod.preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = snapshot.nomination(&pod.uid)?;
    let hopeless = |(slot, r): &(usize, Rejection)| !r.resolvable && snapshot.nodes[*slot].name == nominated;
    if refusal.rejections.iter().any(hopeless) {
        return None;
    }
    let going = |other: &Arc<Pod>| other.deleting && other.preempted && other.priority < pod.priority;
    snapshot
        .node(nominated)?
        .pods
        .iter()
        .any(going)
        .then_some("not eligible due to a terminating pod on the nominated node.")
}

/// The fewest and least important pods of `node` whose going makes room for `pod`; those that a budget protects go last.
fn victims_on(
    pod: &Pod,
    context: &Context<'_>,
    node: &Node,
    budgets: &[Budget],
) -> Result<Candidate, Rejection> {
    let mut lesser: Vec<Arc<Pod>> = node.pods.iter().filter(|p| p.priority < pod.priority).cloned().collect();
    if lesser.is_empty() {
        let reason = "No preemption victims found for incoming pod";
        return Err(Rejection::new("DefaultPreemption", reason, false));
    }
    let (mut context, mut node) = (context.clone(), node.clone());
    for victim in &lesser {
        node.remove(&victim.uid);
        context.remove_pod(pod, victim, &node);
    }
    filters::filter(&context, pod, &node)?;
    lesser.sort_by(|a, b| importance(a).cmp(&importance(b)));
    let mut allowed: Vec<i32> = budgets.iter().map(|b| b.disruptions_allowed).collect();
    let (protected, free): (Vec<_>, Vec<_>) = lesser.into_iter().partition(|victim| {
        let mut violated = false;
        for (_, allowed) in budgets.iter().zip(&mut allowed).filter(|(b, _)| b.covers(victim)) {
            *allowed -= 1;
            violated |= *allowed < 0;
        }
        violated
    });
    let mut victims = Vec::new();
    let mut violations = 0;
    for (victim, violating) in protected.into_iter().map(|v| (v, 1)).chain(free.into_iter().map(|v| (v, 0))) {
        context.add_pod(pod, &victim, &node);
        node.add(victim.clone());
        if filters::filter(&context, pod, &node).is_err() {
            node.remove(&victim.uid);
            context.remove_pod(pod, &victim, &node);
            violations += violating;
            victims.push(victim);
        }
    }
    victims.sort_by(|a, b| importance(a).cmp(&importance(b)));
    Ok(Candidate { node: node.name, victims, violations })
}

/// Orders pods, the most important first: higher priority, then longer running; one not started is the youngest.
fn importance(pod: &Pod) -> (std::cmp::Reverse<i32>, bool, &str) {
    (std::cmp::Reverse(pod.priority), pod.started.is_empty(), &pod.started)
}

/// Fewest violated budgets, then the lowest highest priority, the least sum of priorities, the fewest victims, and the
/// latest start of the earliest started among those of highest priority; of equals the first.
fn best(candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().filter(|c| !c.victims.is_empty()).min_by(|a, b| {
        let cost = |c: &Candidate| {
            let highest = c.victims[0].priority;
            // Lifted above zero, so that many pods of negative priority cost more than few.
            let sum: i64 = c.victims.iter().map(|p| i64::from(p.priority) + (1 << 31)).sum();
            (c.violations, highest, sum, c.victims.len())
        };
        let earliest = |c: &Candidate| {
            let first = &c.victims[0];
            (first.started.is_empty(), first.started.clone())
        };
        cost(a).cmp(&cost(b)).then_with(|| earliest(b).cmp(&earliest(a)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Resources;
    use crate::schedule::{Decision, schedule};

    fn pod(name: &str, priority: i32, cpu: i64, started: &str) -> Pod {
        Pod {
            namespace: "default".into(),
            name: name.into(),
            uid: name.into(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            priority,
            preempts: true,
            requests: Resources { milli_cpu: cpu, ..Resources::default() },
            started: started.into(),
            ..Pod::default()
        }
    }

    fn cluster(nodes: &[(&str, i64, &[Pod])]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, cpu, pods) in nodes {
            let body = serde_json::json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": format!("{cpu}m"), "pods": "10"}},
            });
            snapshot.set_node(&encoded(&body)).unwrap();
            for pod in *pods {
                snapshot.place(Arc::new(Pod { node_name: (*name).into(), ..pod.clone() }));
            }
        }
        snapshot
    }

    fn encoded(value: &serde_json::Value) -> Encoded {
        Encoded::new(serde_json::to_vec(value).unwrap().into(), 1, |_| vec![]).unwrap()
    }

    fn budget(app: &str, allowed: i32) -> Budget {
        Budget {
            namespace: "default".into(),
            selector: LabelSelector::from_pairs([("app", app)]),
            disruptions_allowed: allowed,
            disrupted: BTreeSet::new(),
        }
    }

    fn run(snapshot: &Snapshot, pod: &Pod, budgets: &[Budget]) -> Preemption {
        match schedule(pod, snapshot, 0) {
            Decision::Node(node) => panic!("{} fits on {node}", pod.name),
            Decision::Unschedulable(why) => preempt(pod, snapshot, &why, budgets, 0),
        }
    }

    fn evicted(preemption: Preemption) -> String {
        match preemption {
            Preemption::Evict(c) => {
                let names: Vec<_> = c.victims.iter().map(|v| v.name.as_str()).collect();
                format!("{}: {}", c.node, names.join(" "))
            }
            Preemption::NotEligible(why) => why.into(),
            Preemption::NoHelp(why) => why,
        }
    }

    #[test]
    fn victims_are_few_and_unimportant() {
        let low = pod("low", 1, 400, "2026-01-01T00:00:00Z");
        let low_later = pod("low-later", 1, 400, "2026-01-01T01:00:00Z");
        let medium = pod("medium", 100, 400, "2026-01-01T00:00:00Z");
        let high = pod("high", 1000, 400, "");
        let cases: &[(&str, &[(&str, i64, &[Pod])], i64, &[Budget], &str)] = &[
            ("the lower of two", &[("a", 1000, &[low.clone(), medium.clone()])], 400, &[], "a: low"),
            (
                "as many as it takes",
                &[("a", 1000, &[low.clone(), medium.clone()])],
                900,
                &[],
                "a: medium low",
            ),
            (
                "the younger of equals",
                &[("a", 1000, &[low.clone(), low_later.clone()])],
                400,
                &[],
                "a: low-later",
            ),
            (
                "the node with the least important victim",
                &[("a", 500, std::slice::from_ref(&medium)), ("b", 500, std::slice::from_ref(&low))],
                400,
                &[],
                "b: low",
            ),
            (
                "the node whose victim started last",
                &[("a", 500, std::slice::from_ref(&low)), ("b", 500, std::slice::from_ref(&low_later))],
                400,
                &[],
                "b: low-later",
            ),
            (
                "a budget spares the less important",
                &[("a", 1000, &[low.clone(), medium.clone()])],
                400,
                &[budget("low", 0)],
                "a: medium",
            ),
            (
                "a budget is broken where nothing else helps",
                &[("a", 500, std::slice::from_ref(&low))],
                400,
                &[budget("low", 0)],
                "a: low",
            ),
            (
                "a node without broken budgets is better",
                &[("a", 500, std::slice::from_ref(&low)), ("b", 500, std::slice::from_ref(&medium))],
                400,
                &[budget("low", 0)],
                "b: medium",
            ),
            (
                "nobody is less important",
                &[("a", 500, std::slice::from_ref(&high))],
                400,
                &[],
                "0/1 nodes are available: 1 No preemption victims found for incoming pod.",
            ),
            (
                "the node is too small",
                &[("a", 500, std::slice::from_ref(&low))],
                600,
                &[],
                "0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
            ),
        ];
        for (what, nodes, cpu, budgets, expected) in cases {
            let preemptor = pod("preemptor", 1000, *cpu, "");
            assert_eq!(evicted(run(&cluster(nodes), &preemptor, budgets)), *expected, "{what}");
        }
    }

    #[test]
    fn never_preempts_if_told_so() {
        let snapshot = cluster(&[("a", 500, &[pod("low", 1, 400, "")])]);
        let preemptor = Pod { preempts: false, ..pod("polite", 1000, 400, "") };
        assert_eq!(evicted(run(&snapshot, &preemptor, &[])), "not eligible due to preemptionPolicy=Never.");
    }

    #[test]
    fn waits_for_those_it_preempted() {
        let going = Pod { deleting: true, preempted: true, ..pod("low", 1, 400, "") };
        let mut snapshot = cluster(&[("a", 500, &[going])]);
        let preemptor = pod("preemptor", 1000, 400, "");
        snapshot.nominate(Arc::new(preemptor.clone()), "a");
        assert_eq!(
            evicted(run(&snapshot, &preemptor, &[])),
            "not eligible due to a terminating pod on the nominated node."
        );
    }

    #[test]
    fn room_made_for_one_is_not_taken_by_a_lesser() {
        let mut snapshot = cluster(&[("a", 500, &[])]);
        let first = pod("first", 100, 400, "");
        snapshot.nominate(Arc::new(first.clone()), "a");
        assert!(matches!(schedule(&pod("lesser", 1, 400, ""), &snapshot, 0), Decision::Unschedulable(_)));
        assert!(matches!(schedule(&pod("equal", 100, 400, ""), &snapshot, 0), Decision::Unschedulable(_)));
        assert_eq!(schedule(&first, &snapshot, 0), Decision::Node("a".into()));
        assert_eq!(schedule(&pod("greater", 1000, 400, ""), &snapshot, 0), Decision::Node("a".into()));
    }

    #[test]
    fn goes_to_the_node_meant_for_it() {
        let mut snapshot = cluster(&[("a", 500, &[]), ("b", 5000, &[])]);
        let preemptor = pod("preemptor", 1000, 400, "");
        snapshot.nominate(Arc::new(preemptor.clone()), "a");
        assert_eq!(schedule(&preemptor, &snapshot, 0), Decision::Node("a".into()));
    }

    #[test]
    fn makes_room_by_anti_affinity() {
        let affinity = serde_json::from_value(serde_json::json!({"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {"app": "low"}}, "topologyKey": "kubernetes.io/hostname"}]}}))
        .unwrap();
        let snapshot = cluster(&[("a", 1000, &[pod("low", 1, 100, ""), pod("other", 1, 100, "")])]);
        let preemptor = Pod { affinity: Some(affinity), ..pod("preemptor", 1000, 100, "") };
        assert_eq!(evicted(run(&snapshot, &preemptor, &[])), "a: low");
    }

    #[test]
    fn an_empty_selector_protects_nothing() {
        let object = encoded(&serde_json::json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "all", "namespace": "default"}, "spec": {"selector": {}},
            "status": {"disruptionsAllowed": 0, "disruptedPods": {"low": "2026-01-01T00:00:00Z"}},
        }));
        let budget = Budget::decode(&object).unwrap();
        assert!(!budget.covers(&pod("low", 1, 1, "")));
        assert!(budget.disrupted.contains("low"));
    }
}
