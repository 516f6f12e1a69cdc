//! The cluster as one scheduling decision sees it. Kept up to date incrementally as pods and nodes change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use apimachinery::object::Encoded;

use crate::node::Node;
use crate::pod::Pod;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub nodes: Vec<Node>,
    by_name: HashMap<String, usize>,
    /// Pod uid to node index.
    placed: HashMap<String, usize>,
    /// Pods on nodes that have required anti-affinity, by node index: every decision must look at these.
    pub with_anti_affinity: usize,
    pub namespace_labels: BTreeMap<String, BTreeMap<String, String>>,
    /// Pods that others are evicted for, until they are placed, and the node that is meant for each.
    nominated: Vec<(String, Arc<Pod>)>,
}

impl Snapshot {
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.by_name.get(name).map(|i| &self.nodes[*i])
    }

    /// The pods meant to run on a node once there is room for them.
    pub fn nominated_to(&self, node: &str) -> impl Iterator<Item = &Arc<Pod>> {
        self.nominated.iter().filter(move |(name, _)| name == node).map(|(_, pod)| pod)
    }

    pub fn nomination(&self, uid: &str) -> Option<&str> {
        self.nominated.iter().find(|(_, pod)| pod.uid == uid).map(|(node, _)| node.as_str())
    }

    /// Means `pod` for `node`, or for none if that is empty.
    pub fn nominate(&mut self, pod: Arc<Pod>, node: &str) {
        self.nominated.retain(|(_, other)| other.uid != pod.uid);
        if !node.is_empty() {
            self.nominated.push((node.to_owned(), pod));
        }
    }

    /// The pod was placed or is gone.
    pub fn forget_nomination(&mut self, uid: &str) -> bool {
        let before = self.nominated.len();
        self.nominated.retain(|(_, other)| other.uid != uid);
        self.nominated.len() < before
    }

    pub fn known_nodes(&self) -> usize {
        self.nodes.iter().filter(|n| n.known).count()
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(i) = self.by_name.get(name) {
            return *i;
        }
        self.nodes.push(Node { name: name.to_owned(), ..Node::default() });
        self.by_name.insert(name.to_owned(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    pub fn set_node(&mut self, object: &Encoded) -> Result<(), serde_json::Error> {
        let slot = self.slot(object.name());
        self.nodes[slot].update(object)
    }

    /// The node is gone; pods still assigned to it stay known until they go too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(i) = self.by_name.get(name).copied() {
            let old =
                std::mem::replace(&mut self.nodes[i], Node { name: name.to_owned(), ..Node::default() });
            for pod in old.pods {
                self.nodes[i].add(pod);
            }
            self.sweep(i);
        }
    }

    /// Drops a node that does not exist and holds nothing.
    fn sweep(&mut self, i: usize) {
        if self.nodes[i].known || !self.nodes[i].pods.is_empty() {
            return;
        }
        let gone = self.nodes.swap_remove(i);
        self.by_name.remove(&gone.name);
        if let Some(moved) = self.nodes.get(i) {
            self.by_name.insert(moved.name.clone(), i);
            for pod in &self.nodes[i].pods {
                self.placed.insert(pod.uid.clone(), i);
            }
        }
    }

    /// Puts a pod on its node, replacing what was known of it.
    pub fn place(&mut self, pod: Arc<Pod>) {
        self.displace(&pod.uid);
        let slot = self.slot(&pod.node_name);
        if has_anti_affinity(&pod) {
            self.with_anti_affinity += 1;
        }
        self.placed.insert(pod.uid.clone(), slot);
        self.nodes[slot].add(pod);
    }

    pub fn displace(&mut self, uid: &str) -> bool {
        let Some(slot) = self.placed.remove(uid) else { return false };
        if let Some(pod) = self.nodes[slot].pods.iter().find(|p| p.uid == uid)
            && has_anti_affinity(pod)
        {
            self.with_anti_affinity -= 1;
        }
        self.nodes[slot].remove(uid);
        self.sweep(slot);
        true
    }
}

pub fn has_anti_affinity(pod: &Pod) -> bool {
    pod.affinity.as_ref().and_then(|a| a.pod_anti_affinity.as_ref()).is_some_and(|a| {
        a.required_during_scheduling_ignored_during_execution.as_ref().is_some_and(|t| !t.is_empty())
    })
}
