//! The daemon: takes the node's pod CIDR as its lease, announces it, prepares the node, follows the other nodes.

use anyhow::Context;
use client::{Client, Delta, Informer, WorkQueue};
use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::api::{Api, Patch, PatchParams};
use tokio_util::sync::CancellationToken;

use crate::backend::{self, Network};
use crate::config::Config;
use crate::files;
use crate::lease::{Node, Peer};
use crate::masquerade;
use crate::netlink::Netlink;

/// Runs until `shutdown`. What it made stays, so that pods keep their network; see [`crate::cleanup`].
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let nodes: Informer<ApiNode> = client.informer();
    let queue: WorkQueue<String> = WorkQueue::new();
    let enqueue = queue.clone();
    nodes.subscribe(move |delta| {
        // Heartbeats change a node all the time; what is read of it rarely does.
        if let Delta::Updated { old, new } = delta
            && old.body == new.body
        {
            return;
        }
        enqueue.add(delta.object().name().to_owned());
    });
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = nodes.synced() => {}
    }
    files::link_plugins(&config)?;
    let mut daemon = Daemon { api: client.all(), config, nodes, network: None };
    daemon.catch_up().await;
    loop {
        let key = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            key = queue.next() => key,
        };
        let Some(name) = key else { return Ok(()) };
        match daemon.look_at(&name).await {
            Ok(()) => queue.forget(&name),
            Err(error) => {
                tracing::warn!(node = name, error = format!("{error:#}"), "will be retried");
                queue.add_rate_limited(name.clone());
            }
        }
        queue.done(&name);
    }
}

struct Daemon {
    config: Config,
    api: Api<ApiNode>,
    nodes: Informer<ApiNode>,
    network: Option<(ipnet::Ipv4Net, Network)>,
}

impl Daemon {
    fn node(&self, name: &str) -> Option<Node> {
        self.nodes.get("", name).and_then(|o| Node::decode(&o))
    }

    async fn look_at(&mut self, name: &str) -> anyhow::Result<()> {
        if name == self.config.node_name {
            return self.look_at_own().await;
        }
        let peer = self.node(name).and_then(|n| n.peer(self.config.backend));
        match &mut self.network {
            Some((_, network)) => network.set(name, peer),
            // Looked at again once the own lease is there.
            None => Ok(()),
        }
    }

    /// All nodes as they stand, own node first.
    async fn catch_up(&mut self) {
        if let Err(error) = self.look_at_own().await {
            // It is in the queue as well and will be retried from there.
            tracing::warn!(error = format!("{error:#}"), "the network of this node is not up yet");
        }
    }

    async fn look_at_own(&mut self) -> anyhow::Result<()> {
        let Some(node) = self.node(&self.config.node_name) else { return Ok(()) };
        let Some(lease) = node.subnet() else {
            tracing::debug!("this node has no podCIDR yet");
            return Ok(());
        };
        if self.network.as_ref().is_none_or(|(have, _)| *have != lease) {
            self.prepare(&node, lease).await?;
        }
        let Some((_, network)) = &self.network else { return Ok(()) };
        let public_ip = node.public_ip_overwrite().or(self.config.public_ip).unwrap_or(network.external.ip);
        let own = Peer { subnet: lease, public_ip, mac: network.mac };
        let now = k8s_openapi::jiff::Timestamp::now();
        let now = k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
        if let Some(patch) = node.patch(self.config.backend, &own, &now) {
            self.api
                .patch_status(&self.config.node_name, &PatchParams::default(), &Patch::Strategic(&patch))
                .await
                .context("announcing the lease on the node")?;
        }
        Ok(())
    }

    /// Everything on this node that depends on its lease.
    async fn prepare(&mut self, node: &Node, lease: ipnet::Ipv4Net) -> anyhow::Result<()> {
        let config = self.config.clone();
        let mut netlink = match self.network.take() {
            Some((_, network)) => network.into_netlink(),
            None => Netlink::open().context("opening netlink")?,
        };
        let external = backend::find_external(&mut netlink, &config, node)?;
        forward()?;
        let mut network = Network::start(netlink, config.backend, external, lease)?;
        for other in self.nodes.list(None) {
            if other.name() == config.node_name {
                continue;
            }
            let peer = Node::decode(&other).and_then(|n| n.peer(config.backend));
            network.set(other.name(), peer)?;
        }
        network.sweep(config.cluster_cidr)?;
        if config.ip_masq {
            let cluster = config.cluster_cidr;
            tokio::task::spawn_blocking(move || masquerade::apply(cluster, lease))
                .await?
                .context("applying the masquerading rules")?;
        }
        files::write_subnet_env(&config, lease, network.mtu)?;
        // Last: with this file the runtime calls the network ready.
        files::write_conflist(&config)?;
        tracing::info!(%lease, backend = config.backend.name(), interface = network.external.name, "the pod network is up");
        self.network = Some((lease, network));
        Ok(())
    }
}

/// Lets the node route, and lets what stays on a bridge be seen by the rules for services.
fn forward() -> anyhow::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("enabling IP forwarding")?;
    for key in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("/proc/sys/net/bridge/{key}");
        if let Err(error) = std::fs::write(&path, "1") {
            tracing::warn!(path, %error, "pods on one node may not reach each other through services");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::fake_api::FakeApi;
    use crate::testing::{Namespace, privileged};

    #[test]
    fn takes_its_lease_and_follows_the_others() {
        if !privileged("takes_its_lease_and_follows_the_others") {
            return;
        }
        let (node, dir) = (Namespace::new(), tempfile::tempdir().unwrap());
        let wire = Namespace::new();
        let far = wire.path.clone();
        node.run(move || {
            let ns = std::fs::File::open(far).unwrap();
            let mut netlink = Netlink::open().unwrap();
            netlink.create_veth("eth0", None, 1500, "eth0", None, std::os::fd::AsFd::as_fd(&ns)).unwrap();
            let eth0 = netlink.link("eth0").unwrap().unwrap().index;
            netlink.add_address(eth0, "192.0.2.1/24".parse().unwrap()).unwrap();
        });
        let at = |name: &str| dir.path().join(name);
        let config = Config {
            cni_conf_dir: at("net.d"),
            cni_bin_dir: at("bin"),
            subnet_env: at("subnet.env"),
            cni_state_dir: at("state"),
            ..Config::new("n1", "10.244.0.0/16".parse().unwrap())
        };
        let api = Arc::new(FakeApi::default());
        let own = |cidr: Option<&str>| {
            json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": cidr}, "status": {
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
        };
        let other = |subnet: &str| {
            json!({"metadata": {"name": "n2", "annotations": {
                "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"0e:11:22:33:44:55\"}",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/public-ip": "192.0.2.2"}}, "spec": {"podCIDR": subnet}})
        };
        api.put("nodes", &own(None));
        api.put("nodes", &other("10.244.2.0/24"));
        let stop = CancellationToken::new();
        let (daemon_api, daemon_stop, daemon_config) = (api.clone(), stop.clone(), config.clone());
        let daemon = node.run(move || {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let client = daemon_api.client(&daemon_stop);
                    run(daemon_config, client, daemon_stop).await.unwrap();
                });
            })
        });
        let eventually = |what: &str, check: &dyn Fn() -> bool| {
            let begin = Instant::now();
            while !check() {
                assert!(begin.elapsed() < Duration::from_secs(5), "{what}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let routes = || -> Vec<String> {
            let all = node.run(|| Netlink::open().unwrap().routes().unwrap());
            all.iter().filter(|r| r.gateway.is_some()).map(|r| r.dst.to_string()).collect()
        };
        eventually("plugin links", &|| at("bin/flannel").is_symlink());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!at("net.d/10-flannel.conflist").exists(), "ready without a lease");
        api.put("nodes", &own(Some("10.244.1.0/24")));
        eventually("the CNI configuration", &|| at("net.d/10-flannel.conflist").exists());
        eventually("the announcement", &|| !api.patches.lock().is_empty());
        let (path, patch) = api.patches.lock()[0].clone();
        assert_eq!(path, "/api/v1/nodes/n1/status");
        assert_eq!(patch["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip"], "192.0.2.1");
        assert_eq!(patch["status"]["conditions"][0]["status"], "False");
        assert!(std::fs::read_to_string(at("subnet.env")).unwrap().contains("FLANNEL_SUBNET=10.244.1.1/24"));
        assert_eq!(routes(), ["10.244.2.0/24"]);
        // The other node gets another subnet, then leaves.
        api.put("nodes", &other("10.244.7.0/24"));
        eventually("the new route", &|| routes() == ["10.244.7.0/24"]);
        api.delete("nodes", "", "n2");
        eventually("no route", &|| routes().is_empty());
        // This node gets another lease.
        api.put("nodes", &own(Some("10.244.9.0/24")));
        eventually("the new lease", &|| {
            std::fs::read_to_string(at("subnet.env")).unwrap().contains("FLANNEL_SUBNET=10.244.9.1/24")
        });
        stop.cancel();
        daemon.join().unwrap();
    }
}
