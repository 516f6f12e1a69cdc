//! Routes to the pods of other nodes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};

use crate::config::{Backend, Config, iface_address};
use crate::lease::{Node, Peer};
use crate::netlink::{Link, Mac, Neighbour, Netlink, Route, Vxlan};

/// The bridge the plugins attach pods to.
pub const BRIDGE: &str = "cni0";
const VXLAN_OVERHEAD: u32 = 50;

/// The interface to the other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub ip: Ipv4Addr,
}

/// Finds it: as configured, else where the default route goes, else what carries the node's address, else the first
/// interface with an address others could reach.
pub fn find_external(netlink: &mut Netlink, config: &Config, node: &Node) -> anyhow::Result<External> {
    let links = netlink.links().context("listing links")?;
    let addresses = netlink.all_addresses().context("listing addresses")?;
    let first_of = |index: u32| {
        addresses.iter().find_map(|(i, net)| match net.addr() {
            IpAddr::V4(v4) if *i == index && !v4.is_loopback() && !v4.is_link_local() => Some(v4),
            _ => None,
        })
    };
    let carrier = |ip: IpAddr| addresses.iter().find(|(_, net)| net.addr() == ip).map(|(index, _)| *index);
    let chosen: (u32, Option<Ipv4Addr>) = match &config.iface {
        Some(iface) => match iface_address(iface) {
            Some(ip) => {
                let index = carrier(ip).with_context(|| format!("no interface has the address {ip}"))?;
                (index, if let IpAddr::V4(v4) = ip { Some(v4) } else { None })
            }
            None => {
                let link = links.iter().find(|l| l.name == *iface);
                (link.with_context(|| format!("no interface is called {iface}"))?.index, None)
            }
        },
        None => {
            let routes = netlink.routes().context("listing routes")?;
            let mut defaults: Vec<&Route> = routes
                .iter()
                .filter(|r| r.dst.prefix_len() == 0 && r.dst.addr().is_ipv4() && r.device != 0)
                .collect();
            defaults.sort_by_key(|r| r.metric);
            let by_route = defaults.first().map(|r| (r.device, None));
            let by_node = node.internal_ip().and_then(|ip| Some((carrier(ip)?, None)));
            let any = links.iter().find(|l| l.up && !is_ours(l) && first_of(l.index).is_some());
            by_route
                .or(by_node)
                .or(any.map(|l| (l.index, None)))
                .context("found no interface to the other nodes; set one")?
        }
    };
    let link = links.iter().find(|l| l.index == chosen.0).context("the interface disappeared")?;
    // The node's own address, where this interface has it, is what the other nodes know.
    let internal = node.internal_ip().and_then(|ip| match ip {
        IpAddr::V4(v4) if carrier(ip) == Some(link.index) => Some(v4),
        _ => None,
    });
    let ip = chosen.1.or(internal).or_else(|| first_of(link.index));
    let ip = ip.or(config.public_ip).with_context(|| format!("{} has no IPv4 address", link.name))?;
    Ok(External { index: link.index, name: link.name.clone(), mtu: link.mtu, ip })
}

fn is_ours(link: &Link) -> bool {
    link.name == BRIDGE || link.name.starts_with("flannel.") || link.kind == "veth" && link.master.is_some()
}

/// The kernel's side of a backend.
pub struct Network {
    netlink: Netlink,
    backend: Backend,
    device: u32,
    pub external: External,
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// What is in the kernel, by node.
    peers: HashMap<String, Peer>,
}

impl Network {
    /// Makes the tunnel device where there is to be one.
    pub fn start(
        mut netlink: Netlink,
        backend: Backend,
        external: External,
        lease: Ipv4Net,
    ) -> anyhow::Result<Network> {
        let (device, mac, mtu) = match backend {
            Backend::HostGw => (external.index, None, external.mtu),
            Backend::Vxlan { vni, port } => {
                let wanted = Vxlan {
                    vni,
                    port,
                    local: Some(external.ip),
                    device: external.index,
                    learning: false,
                    gbp: false,
                };
                let mtu = external.mtu.saturating_sub(VXLAN_OVERHEAD).max(576);
                let link = ensure_vxlan(&mut netlink, &format!("flannel.{vni}"), mtu, &wanted)?;
                give_address(&mut netlink, link.index, lease)?;
                (link.index, link.mac, mtu)
            }
        };
        Ok(Network { netlink, backend, device, external, mac, mtu, peers: HashMap::new() })
    }

    /// Makes the way to `node` what `peer` says; `None` takes it away. No change costs nothing.
    pub fn set(&mut self, node: &str, peer: Option<Peer>) -> anyhow::Result<()> {
        if self.peers.get(node) == peer.as_ref() {
            return Ok(());
        }
        if let Some(old) = self.peers.get(node).cloned() {
            // The same subnet under another name is no longer this node's to remove.
            let taken = self.peers.iter().any(|(n, p)| n != node && p.subnet == old.subnet);
            let same = peer.as_ref().is_some_and(|p| p.subnet == old.subnet);
            if !taken {
                self.remove(&old, same).with_context(|| format!("removing the way to {node}"))?;
            }
            self.peers.remove(node);
        }
        if let Some(peer) = peer {
            self.add(&peer).with_context(|| format!("adding the way to {node}"))?;
            tracing::info!(node, subnet = %peer.subnet, via = %peer.public_ip, "pods of a node are reachable");
            self.peers.insert(node.to_owned(), peer);
        }
        Ok(())
    }

    fn route(&self, peer: &Peer) -> Route {
        let via = match self.backend {
            Backend::Vxlan { .. } => peer.subnet.network(),
            Backend::HostGw => peer.public_ip,
        };
        let mut route = Route::via(IpNet::V4(peer.subnet), via.into(), self.device);
        route.onlink = matches!(self.backend, Backend::Vxlan { .. });
        route
    }

    /// The neighbour and forwarding entries of a tunnel's far end.
    fn entries(&self, peer: &Peer) -> Option<(Neighbour, Neighbour)> {
        let mac = peer.mac?;
        let arp = Neighbour { device: self.device, mac, ip: peer.subnet.network().into() };
        let fdb = Neighbour { device: self.device, mac, ip: peer.public_ip.into() };
        Some((arp, fdb))
    }

    fn add(&mut self, peer: &Peer) -> std::io::Result<()> {
        if let Some((arp, fdb)) = self.entries(peer) {
            self.netlink.set_neighbour(&arp)?;
            self.netlink.set_fdb(&fdb)?;
        }
        let route = self.route(peer);
        self.netlink.replace_route(&route)
    }

    fn remove(&mut self, peer: &Peer, keep_route: bool) -> std::io::Result<()> {
        if !keep_route {
            let route = self.route(peer);
            self.netlink.delete_route(&route)?;
        }
        if let Some((arp, fdb)) = self.entries(peer) {
            self.netlink.delete_neighbour(&arp)?;
            self.netlink.delete_fdb(&fdb)?;
        }
        Ok(())
    }

    /// Removes what an earlier life left in the kernel for nodes that are gone.
    pub fn sweep(&mut self, cluster: Ipv4Net) -> anyhow::Result<()> {
        let wanted: Vec<Peer> = self.peers.values().cloned().collect();
        let routes: Vec<Route> = wanted.iter().map(|p| self.route(p)).collect();
        for have in self.netlink.routes().context("listing routes")? {
            let ours = have.device == self.device
                && have.gateway.is_some()
                && matches!(have.dst, IpNet::V4(v4) if cluster.contains(&v4) && v4 != cluster);
            if ours && !routes.iter().any(|r| r.dst == have.dst) {
                self.netlink
                    .delete_route(&have)
                    .with_context(|| format!("removing the route to {}", have.dst))?;
            }
        }
        if !matches!(self.backend, Backend::Vxlan { .. }) {
            return Ok(());
        }
        let entries: Vec<(Neighbour, Neighbour)> = wanted.iter().filter_map(|p| self.entries(p)).collect();
        for have in self.netlink.neighbours(self.device, false).context("listing neighbours")? {
            if !entries.iter().any(|(arp, _)| *arp == have) {
                self.netlink.delete_neighbour(&have).context("removing a neighbour")?;
            }
        }
        for have in self.netlink.neighbours(self.device, true).context("listing forwarding entries")? {
            if !entries.iter().any(|(_, fdb)| *fdb == have) {
                self.netlink.delete_fdb(&have).context("removing a forwarding entry")?;
            }
        }
        Ok(())
    }

    pub fn into_netlink(self) -> Netlink {
        self.netlink
    }
}

/// Keeps a device that fits, with its address that other nodes know; replaces one that does not.
fn ensure_vxlan(netlink: &mut Netlink, name: &str, mtu: u32, wanted: &Vxlan) -> anyhow::Result<Link> {
    if let Some(link) = netlink.link(name).with_context(|| format!("looking up {name}"))? {
        if link.vxlan.as_ref() == Some(wanted) {
            if link.mtu != mtu {
                netlink.set_mtu(link.index, mtu).with_context(|| format!("setting the MTU of {name}"))?;
            }
            if !link.up {
                netlink.set_up(link.index).with_context(|| format!("setting {name} up"))?;
            }
            return Ok(link);
        }
        netlink.delete_link(link.index).with_context(|| format!("replacing {name}"))?;
    }
    netlink.create_vxlan(name, mtu, None, wanted).with_context(|| format!("creating {name}"))?;
    netlink.link(name)?.with_context(|| format!("{name} disappeared"))
}

/// The tunnel's end has the first address of the lease, alone.
fn give_address(netlink: &mut Netlink, device: u32, lease: Ipv4Net) -> anyhow::Result<()> {
    let wanted = IpNet::V4(Ipv4Net::new(lease.network(), 32)?);
    for have in netlink.addresses(device).context("listing the tunnel's addresses")? {
        if have.addr().is_ipv4() && have != wanted {
            netlink
                .delete_address(device, have)
                .with_context(|| format!("removing {have} from the tunnel"))?;
        }
    }
    netlink.add_address(device, wanted).with_context(|| format!("giving the tunnel {wanted}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::testing::{Namespace, privileged};

    struct TestNode {
        namespace: Namespace,
        index: usize,
    }

    impl TestNode {
        fn lease(index: usize) -> Ipv4Net {
            format!("10.244.{index}.0/24").parse().unwrap()
        }

        /// A node with `eth0` at 192.0.2.<index> and one of its pods' addresses on `cni0`.
        fn new(index: usize) -> TestNode {
            TestNode { namespace: Namespace::new(), index }
        }

        fn wire(&self, other: &TestNode) {
            let (path, a, b) = (other.namespace.path.clone(), self.index, other.index);
            self.namespace.run(move || {
                let ns = std::fs::File::open(path).unwrap();
                let mut netlink = Netlink::open().unwrap();
                netlink.create_veth("eth0", None, 1500, "eth0", None, std::os::fd::AsFd::as_fd(&ns)).unwrap();
                configure(&mut netlink, a);
            });
            other.namespace.run(move || configure(&mut Netlink::open().unwrap(), b));
        }

        fn start(&self, backend: Backend) -> Network {
            let index = self.index;
            self.namespace.run(move || {
                let mut netlink = Netlink::open().unwrap();
                let config = Config::new("n", "10.244.0.0/16".parse().unwrap());
                let external = find_external(&mut netlink, &config, &Node::default()).unwrap();
                assert_eq!(external.ip.to_string(), format!("192.0.2.{index}"));
                Network::start(netlink, backend, external, TestNode::lease(index)).unwrap()
            })
        }

        fn peer(&self, network: &Network) -> Peer {
            Peer { subnet: TestNode::lease(self.index), public_ip: network.external.ip, mac: network.mac }
        }
    }

    fn configure(netlink: &mut Netlink, index: usize) {
        let eth0 = netlink.link("eth0").unwrap().unwrap().index;
        netlink.add_address(eth0, format!("192.0.2.{index}/24").parse().unwrap()).unwrap();
        netlink.set_up(eth0).unwrap();
        netlink.create_bridge("cni0", 1450, None).unwrap();
        let bridge = netlink.link("cni0").unwrap().unwrap().index;
        netlink.add_address(bridge, format!("10.244.{index}.1/24").parse().unwrap()).unwrap();
    }

    fn talk(from: &Namespace, to: &Namespace, address: &'static str) -> bool {
        talk_within(from, to, address, Duration::from_secs(5))
    }

    fn talk_within(from: &Namespace, to: &Namespace, address: &'static str, patience: Duration) -> bool {
        let listener = to.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let server = std::thread::spawn(move || {
            if let Ok((mut stream, _)) = listener.accept() {
                stream.write_all(&[7; 100_000]).unwrap();
            }
        });
        let reached = from.run(move || {
            let Ok(mut stream) = TcpStream::connect_timeout(&address.parse().unwrap(), patience) else {
                return false;
            };
            let mut all = vec![];
            stream.read_to_end(&mut all).unwrap();
            all.len() == 100_000
        });
        if !reached {
            // Lets the server go.
            to.run(|| drop(TcpStream::connect("127.0.0.1:80")));
        }
        let _ = server.join();
        reached
    }

    #[test]
    fn nodes_reach_each_others_pods() {
        if !privileged("nodes_reach_each_others_pods") {
            return;
        }
        for backend in [Backend::default(), Backend::HostGw] {
            let (a, b) = (TestNode::new(1), TestNode::new(2));
            a.wire(&b);
            let (mut na, mut nb) = (a.start(backend), b.start(backend));
            let (pa, pb) = (a.peer(&na), b.peer(&nb));
            na.set("b", Some(pb.clone())).unwrap();
            nb.set("a", Some(pa.clone())).unwrap();
            assert!(talk(&a.namespace, &b.namespace, "10.244.2.1:80"), "{backend:?}");
            assert_eq!(na.mtu, if backend == Backend::HostGw { 1500 } else { 1450 });

            // A second life finds the device as it was, and sweeps what is no longer wanted.
            let mut again = a.start(backend);
            assert_eq!(again.mac, na.mac);
            again.set("b", Some(pb.clone())).unwrap();
            again.sweep("10.244.0.0/16".parse().unwrap()).unwrap();
            assert!(talk(&a.namespace, &b.namespace, "10.244.2.1:80"), "{backend:?}");
            let mut third = a.start(backend);
            third.sweep("10.244.0.0/16".parse().unwrap()).unwrap();
            let moment = Duration::from_millis(700);
            assert!(!talk_within(&a.namespace, &b.namespace, "10.244.2.1:80", moment), "{backend:?}");
            // A node under a new name with the old one's subnet, then the old one's removal.
            third.set("b2", Some(pb.clone())).unwrap();
            third.set("b", Some(pb.clone())).unwrap();
            third.set("b", None).unwrap();
            assert!(talk(&a.namespace, &b.namespace, "10.244.2.1:80"), "{backend:?}");
        }
    }

    #[test]
    fn cleaning_up_removes_links_and_rules() {
        if !privileged("cleaning_up_removes_links_and_rules") {
            return;
        }
        let (a, b) = (TestNode::new(1), TestNode::new(2));
        a.wire(&b);
        a.start(Backend::default());
        a.namespace.run(|| {
            crate::masquerade::apply("10.244.0.0/16".parse().unwrap(), TestNode::lease(1)).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let config = Config {
                cni_conf_dir: dir.path().into(),
                cni_bin_dir: dir.path().into(),
                subnet_env: dir.path().join("e"),
                cni_state_dir: dir.path().join("s"),
                ..Config::new("n", "10.244.0.0/16".parse().unwrap())
            };
            crate::cleanup(&config).unwrap();
            crate::cleanup(&config).unwrap();
            let mut netlink = Netlink::open().unwrap();
            let left: Vec<String> = netlink.links().unwrap().into_iter().map(|l| l.name).collect();
            assert!(!left.iter().any(|n| n == "cni0" || n.starts_with("flannel")), "{left:?}");
            assert!(left.iter().any(|n| n == "eth0"));
            assert!(crate::nft::table("ip", crate::masquerade::TABLE).unwrap().is_none());
        });
    }
}
