//! node-ipam-controller: gives each node a part of the cluster's pod range.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;

use crate::Context;
use crate::support::errors::IgnoreNotFound;

const MASK_IPV4: u8 = 24;
const MASK_IPV6: u8 = 64;

/// Parts of one range, by index. Memory grows with what is in use, not with the range.
struct Range {
    range: IpNet,
    mask: u8,
    /// Part to its user: a node, or nobody's (overlapping the services).
    used: BTreeMap<u128, String>,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

impl Range {
    fn new(range: IpNet, mask: u8) -> anyhow::Result<Range> {
        anyhow::ensure!(
            mask >= range.prefix_len() && mask <= range.max_prefix_len(),
            "node CIDR mask size /{mask} does not fit into cluster CIDR {range}"
        );
        Ok(Range { range: range.trunc(), mask, used: BTreeMap::new() })
    }

    fn width(&self) -> u32 {
        u32::from(self.range.max_prefix_len() - self.mask)
    }

    fn capacity(&self) -> u128 {
        1u128.checked_shl(u32::from(self.mask - self.range.prefix_len())).unwrap_or(u128::MAX)
    }

    /// The part an address lies in.
    fn index(&self, address: IpAddr) -> Option<u128> {
        self.range.contains(&address).then(|| (bits(address) - bits(self.range.network())) >> self.width())
    }

    fn part(&self, index: u128) -> Option<IpNet> {
        let start = bits(self.range.network()) + (index << self.width());
        let address = match self.range {
            IpNet::V4(_) => IpAddr::V4(u32::try_from(start).ok()?.into()),
            IpNet::V6(_) => IpAddr::V6(start.into()),
        };
        IpNet::new(address, self.mask).ok()
    }

    /// Keeps what overlaps `other` from being given out.
    fn exclude(&mut self, other: &IpNet) {
        let (Some(first), Some(last)) = (self.index(other.network()), self.index(other.broadcast())) else {
            return;
        };
        for index in first..=last.min(first + 65_536) {
            self.used.insert(index, String::new());
        }
    }

    fn occupy(&mut self, cidr: &IpNet, node: &str) {
        if let Some(index) = self.index(cidr.network()) {
            self.used.insert(index, node.to_owned());
        }
    }

    fn allocate(&mut self, node: &str) -> Option<IpNet> {
        let mut next = 0;
        for used in self.used.keys() {
            if *used != next {
                break;
            }
            next += 1;
        }
        if next >= self.capacity() {
            return None;
        }
        self.used.insert(next, node.to_owned());
        self.part(next)
    }

    fn release(&mut self, node: &str) {
        self.used.retain(|_, user| user != node);
    }
}

struct Controller {
    ctx: Context,
    nodes: Informer<Node>,
    ranges: Mutex<Vec<Range>>,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    if !ctx.config.allocate_node_cidrs {
        return Ok(());
    }
    anyhow::ensure!(!ctx.config.cluster_cidrs.is_empty(), "--allocate-node-cidrs needs --cluster-cidr");
    let mut ranges = Vec::new();
    for cidr in &ctx.config.cluster_cidrs {
        let mask = match cidr {
            IpNet::V4(_) => ctx.config.node_cidr_mask_size.unwrap_or(MASK_IPV4.max(cidr.prefix_len())),
            IpNet::V6(_) => ctx.config.node_cidr_mask_size_ipv6.unwrap_or(MASK_IPV6.max(cidr.prefix_len())),
        };
        let mut range = Range::new(*cidr, mask)?;
        ctx.config.service_cidrs.iter().for_each(|s| range.exclude(s));
        ranges.push(range);
    }
    let controller = Arc::new(Controller {
        nodes: ctx.client.informer(),
        ranges: Mutex::new(ranges),
        recorder: ctx.client.recorder("cidrAllocator", ""),
        ctx: ctx.clone(),
    });
    let queue = WorkQueue::<String>::new();
    let (c, q) = (controller.clone(), queue.clone());
    controller.nodes.subscribe(move |delta| match delta {
        Delta::Deleted(node) => {
            c.ranges.lock().iter_mut().for_each(|r| r.release(node.name()));
        }
        _ => {
            let Some(node) = c.nodes.decode(delta.object()) else { return };
            let has = pod_cidrs(&node);
            if has.is_empty() {
                q.add(delta.object().name().to_owned());
            }
            let mut ranges = c.ranges.lock();
            for cidr in has {
                ranges.iter_mut().for_each(|r| r.occupy(&cidr, delta.object().name()));
            }
        }
    });
    // Everything in use must be known before anything is given out.
    controller.nodes.synced().await;
    run_workers(queue, 1, ctx.shutdown.clone(), move |name| {
        let controller = controller.clone();
        async move { controller.sync(&name).await }
    })
    .await;
    Ok(())
}

fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let mut all = spec.pod_cidrs.clone().unwrap_or_default();
    if all.is_empty() {
        all.extend(spec.pod_cidr.clone().filter(|c| !c.is_empty()));
    }
    all.iter().filter_map(|c| c.parse().ok()).collect()
}

impl Controller {
    async fn sync(&self, name: &str) -> anyhow::Result<Option<Duration>> {
        let Some(node) = self.nodes.get_typed("", name) else { return Ok(None) };
        if !pod_cidrs(&node).is_empty() || node.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let parts: Option<Vec<IpNet>> = {
            let mut ranges = self.ranges.lock();
            // What an earlier try that failed was given.
            ranges.iter_mut().for_each(|r| r.release(name));
            ranges.iter_mut().map(|r| r.allocate(name)).collect()
        };
        let Some(parts) = parts else {
            self.ranges.lock().iter_mut().for_each(|r| r.release(name));
            let text = format!("Node {name} status is now: CIDRNotAvailable");
            self.recorder.normal(&reference(&node), "CIDRNotAvailable", text);
            anyhow::bail!("no pod CIDR left for node {name}");
        };
        let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        let patch = json!({"spec": {"podCIDR": parts.first(), "podCIDRs": parts}});
        let api = self.ctx.client.all::<Node>();
        api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await.ignore_not_found()?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_out_the_lowest_free_part() {
        let mut range = Range::new("10.244.0.0/22".parse().unwrap(), 24).unwrap();
        range.exclude(&"10.244.1.0/25".parse().unwrap());
        range.occupy(&"10.244.2.0/24".parse().unwrap(), "c");
        let mut next = |node: &str| range.allocate(node).map(|n| n.to_string());
        assert_eq!(next("a").as_deref(), Some("10.244.0.0/24"));
        assert_eq!(next("b").as_deref(), Some("10.244.3.0/24"));
        assert_eq!(next("d"), None);
        range.release("a");
        assert_eq!(range.allocate("d").unwrap().to_string(), "10.244.0.0/24");
        let mut six = Range::new("fd00::/48".parse().unwrap(), 64).unwrap();
        six.allocate("a");
        assert_eq!(six.allocate("b").unwrap().to_string(), "fd00:0:0:1::/64");
        assert!(Range::new("10.0.0.0/24".parse().unwrap(), 16).is_err());
    }
}
