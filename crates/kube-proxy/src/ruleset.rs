//! The rules of services as data: elements of the table's sets and maps, chains, affinity sets. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::categorize::{Choice, Place, categorize};
use crate::model::{Endpoint, Family, Service, ServicePort, Slice, endpoints_of};

pub const CLUSTER_IPS: &str = "cluster-ips";
pub const SERVICE_IPS: &str = "service-ips";
pub const NODE_PORTS: &str = "service-nodeports";
pub const NO_ENDPOINT_IPS: &str = "no-endpoint-services";
pub const NO_ENDPOINT_NODE_PORTS: &str = "no-endpoint-nodeports";
pub const FIREWALL_IPS: &str = "firewall-ips";
pub const HAIRPINS: &str = "hairpin-connections";
pub const MARK_CHAIN: &str = "mark-for-masquerade";
pub const REJECT_CHAIN: &str = "reject-chain";

/// How traffic of pods of this cluster is told from other traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalTraffic {
    #[default]
    Unknown,
    Cidrs(Vec<IpNet>),
    Bridge(String),
    InterfacePrefix(String),
}

impl LocalTraffic {
    pub fn matches(&self, family: Family) -> Option<String> {
        self.expression(family, "")
    }

    pub fn does_not_match(&self, family: Family) -> Option<String> {
        self.expression(family, "!= ")
    }

    fn expression(&self, family: Family, not: &str) -> Option<String> {
        match self {
            LocalTraffic::Unknown => None,
            LocalTraffic::Cidrs(all) => {
                let mine: Vec<String> =
                    all.iter().filter(|c| Family::of(c.addr()) == family).map(|c| c.to_string()).collect();
                if mine.is_empty() {
                    return None;
                }
                Some(format!("{} saddr {not}{{ {} }}", family.name(), mine.join(", ")))
            }
            LocalTraffic::Bridge(name) => Some(format!("iifname {not}\"{name}\"")),
            LocalTraffic::InterfacePrefix(prefix) => Some(format!("iifname {not}\"{prefix}*\"")),
        }
    }
}

/// What all rules of a node have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub place: Place,
    pub node_ips: Vec<IpAddr>,
    pub local_traffic: LocalTraffic,
}

/// Everything the table holds for one service in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// (set or map, key) to the verdict, where it is a map.
    pub elements: BTreeMap<(&'static str, String), Option<String>>,
    /// Chains with their rules.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Affinity sets with their timeout in seconds.
    pub affinity_sets: BTreeMap<String, u32>,
    /// UDP endpoints by service address, for stale flows.
    pub udp: BTreeSet<UdpService>,
    /// Ready endpoints on this node, for the load balancer's health check.
    pub local_ready: usize,
    pub health_check_port: u16,
    pub no_local: NoLocal,
}

/// Whether a traffic policy Local leaves the service without endpoints here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocal {
    pub internal: u32,
    pub external: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UdpService {
    /// `None` for a node port.
    pub ip: Option<IpAddr>,
    pub port: u16,
    pub endpoints: BTreeSet<(IpAddr, u16)>,
}

/// The rules for one service.
pub fn service_rules(service: &Service, slices: &[Slice], family: Family, context: &Context) -> ServiceRules {
    let mut rules = ServiceRules::default();
    let Some(cluster_ip) = service.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family) else {
        return rules;
    };
    let mut local = BTreeSet::new();
    for port in &service.ports {
        let endpoints = endpoints_of(slices, family, port);
        local.extend(endpoints.iter().filter(|e| e.local && e.ready).map(|e| e.ip));
        let choice = categorize(&endpoints, service, port, &context.place);
        Port { service, port, cluster_ip, family, context, choice, rules: &mut rules }.write();
    }
    rules.local_ready = local.len();
    rules.health_check_port = service.health_check_port;
    rules
}

/// One service port being written.
struct Port<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    cluster_ip: IpAddr,
    family: Family,
    context: &'a Context,
    choice: Choice<'a>,
    rules: &'a mut ServiceRules,
}

fn hash(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest[..4].iter().map(|b| format!("{b:02x}")).collect()
}

impl Port<'_> {
    /// `service-<hash>-ns/name/tcp/port`: readable, and unlike other kinds' names whatever the names are.
    fn chain(&self, kind: &str) -> String {
        let Service { namespace, name, .. } = self.service;
        let (protocol, port) = (self.port.protocol.name(), &self.port.name);
        let text = format!("{namespace}/{name}/{protocol}/{port}");
        format!("{kind}-{}-{}", hash(&text), text.trim_end_matches('/'))
    }

    fn endpoint_name(&self, kind: &str, e: &Endpoint) -> String {
        let ip = e.ip.to_string().replace(':', ".");
        let suffix = format!("__{ip}/{}", e.port);
        let base = self.chain(kind);
        format!("{}{suffix}", base.replacen(&hash_of(&base), &hash(&format!("{base}{suffix}")), 1))
    }

    fn key(&self, ip: IpAddr) -> String {
        format!("{ip} . {} . {}", self.port.protocol.name(), self.port.port)
    }

    fn put(&mut self, set: &'static str, key: String, verdict: Option<String>) {
        self.rules.elements.insert((set, key), verdict);
    }

    fn write(mut self) {
        let service = self.service;
        let protocol = self.port.protocol.name();
        let external = service.externally_accessible(self.port);
        let (cluster_chain, local_chain) = (self.chain("service"), self.chain("local"));
        let (external_chain, firewall_chain) = (self.chain("external"), self.chain("firewall"));
        let any = self.choice.any;
        let internal_any = any && !(service.internal_local && self.choice.local.is_empty());
        let external_any = any && !(service.external_local && self.choice.local.is_empty());
        let internal_chain = if service.internal_local { &local_chain } else { &cluster_chain };
        let policy_chain = if service.external_local { &local_chain } else { &cluster_chain };
        self.rules.no_local.internal += u32::from(any && !internal_any);
        self.rules.no_local.external += u32::from(any && external && !external_any);

        // Nobody anywhere: say so. Nobody here, where the policy wants one here: say nothing, so that clients try
        // another node.
        let refusal = if any { "drop".to_owned() } else { format!("goto {REJECT_CHAIN}") };

        self.put(CLUSTER_IPS, self.cluster_ip.to_string(), None);
        let key = self.key(self.cluster_ip);
        match internal_any {
            true => self.put(SERVICE_IPS, key, Some(format!("goto {internal_chain}"))),
            false => self.put(NO_ENDPOINT_IPS, key, Some(refusal.clone())),
        }
        let mine = |ips: &[IpAddr]| -> Vec<IpAddr> {
            ips.iter().copied().filter(|ip| Family::of(*ip) == self.family).collect()
        };
        let (external_ips, vips) = (mine(&service.external_ips), mine(&service.load_balancer_ips));
        for ip in external_ips.iter().chain(&vips) {
            let key = self.key(*ip);
            if any {
                self.put(SERVICE_IPS, key.clone(), Some(format!("goto {external_chain}")));
            }
            if !external_any {
                self.put(NO_ENDPOINT_IPS, key, Some(refusal.clone()));
            }
        }
        let node_port = self.port.node_port;
        if node_port != 0 {
            let key = format!("{protocol} . {node_port}");
            if any {
                self.put(NODE_PORTS, key.clone(), Some(format!("goto {external_chain}")));
            }
            if !external_any {
                self.put(NO_ENDPOINT_NODE_PORTS, key, Some(refusal.clone()));
            }
        }
        if any && external {
            let rules = self.external_rules(&cluster_chain, external_any.then_some(policy_chain));
            self.rules.chains.insert(external_chain, rules);
        }
        self.firewall(&vips, firewall_chain);
        let reachable = self.choice.reachable();
        for e in reachable.iter().filter(|e| e.local) {
            self.put(HAIRPINS, format!("{0} . {0} . {protocol} . {1}", e.ip, e.port), None);
        }
        let (cluster, local) =
            (std::mem::take(&mut self.choice.cluster), std::mem::take(&mut self.choice.local));
        if !cluster.is_empty() {
            self.balance(cluster_chain, &cluster);
        }
        if !local.is_empty() {
            self.balance(local_chain, &local);
        }
        if let Some(timeout) = service.affinity_s {
            for e in &reachable {
                let set = self.endpoint_name("affinity", e);
                let saddr = format!("{} saddr", self.family.name());
                let rules = vec![
                    format!("update @{set} {{ {saddr} }}"),
                    format!("meta l4proto {protocol} dnat to {}", socket(e.ip, e.port)),
                ];
                self.rules.affinity_sets.insert(set, timeout);
                self.rules.chains.insert(self.endpoint_name("endpoint", e), rules);
            }
        }
        if self.port.protocol == crate::model::Protocol::Udp {
            let endpoints: BTreeSet<_> = reachable.iter().map(|e| (e.ip, e.port)).collect();
            let ips = std::iter::once(&self.cluster_ip).chain(&external_ips).chain(&vips);
            for ip in ips {
                let (ip, port) = (Some(*ip), self.port.port);
                self.rules.udp.insert(UdpService { ip, port, endpoints: endpoints.clone() });
            }
            if node_port != 0 {
                self.rules.udp.insert(UdpService { ip: None, port: node_port, endpoints });
            }
        }
    }

    /// What happens to traffic to an address outside the cluster network.
    fn external_rules(&self, cluster_chain: &str, policy_chain: Option<&String>) -> Vec<String> {
        let mut rules = vec![];
        if !self.service.external_local {
            // The endpoint may be elsewhere, and must answer through us.
            rules.push(format!("jump {MARK_CHAIN}"));
        } else if !self.choice.cluster.is_empty() {
            // Pods and this node may use any endpoint, as they would through the cluster IP.
            if let Some(pods) = self.context.local_traffic.matches(self.family) {
                rules.push(format!("{pods} goto {cluster_chain}"));
            }
            rules.push(format!("fib saddr type local jump {MARK_CHAIN}"));
            rules.push(format!("fib saddr type local goto {cluster_chain}"));
        }
        rules.extend(policy_chain.map(|chain| format!("goto {chain}")));
        rules
    }

    fn firewall(&mut self, vips: &[IpAddr], chain: String) {
        if vips.is_empty() || self.service.source_ranges.is_empty() {
            return;
        }
        let ranges = self.service.source_ranges.iter().filter(|r| Family::of(r.addr()) == self.family);
        let mut sources: Vec<IpNet> = ranges.copied().collect();
        // A node allowed to connect may do so with the load balancer's address as its own source.
        if sources.iter().any(|r| self.context.node_ips.iter().any(|ip| r.contains(ip))) {
            sources.extend(vips.iter().map(|ip| IpNet::from(*ip)));
        }
        let sources: Vec<String> = IpNet::aggregate(&sources).iter().map(ToString::to_string).collect();
        let rule = match sources.is_empty() {
            true => "drop".to_owned(),
            false => format!("{} saddr != {{ {} }} drop", self.family.name(), sources.join(", ")),
        };
        for ip in vips {
            let key = self.key(*ip);
            self.put(FIREWALL_IPS, key, Some(format!("goto {chain}")));
        }
        self.rules.chains.insert(chain, vec![rule]);
    }

    /// A chain that picks one of `endpoints`, the client's own one first where affinity is asked for.
    fn balance(&mut self, chain: String, endpoints: &[&Endpoint]) {
        let (family, protocol, n) = (self.family.name(), self.port.protocol.name(), endpoints.len());
        let mut rules = vec![];
        if self.service.affinity_s.is_some() {
            let mut choices = vec![];
            for (i, e) in endpoints.iter().enumerate() {
                let (set, target) = (self.endpoint_name("affinity", e), self.endpoint_name("endpoint", e));
                rules.push(format!("{family} saddr @{set} goto {target}"));
                choices.push(format!("{i} : goto {target}"));
            }
            rules.push(format!("numgen random mod {n} vmap {{ {} }}", choices.join(", ")));
        } else if let [e] = endpoints {
            rules.push(format!("meta l4proto {protocol} dnat to {}", socket(e.ip, e.port)));
        } else {
            let choices: Vec<String> =
                endpoints.iter().enumerate().map(|(i, e)| format!("{i} : {} . {}", e.ip, e.port)).collect();
            rules.push(format!(
                "meta l4proto {protocol} dnat {family} to numgen random mod {n} map {{ {} }}",
                choices.join(", ")
            ));
        }
        self.rules.chains.insert(chain, rules);
    }
}

fn hash_of(chain: &str) -> String {
    chain.split('-').nth(1).unwrap_or_default().to_owned()
}

fn socket(ip: IpAddr, port: u16) -> std::net::SocketAddr {
    std::net::SocketAddr::new(ip, port)
}
