//! The table as it stands in the kernel, and the transactions that move it on.
//!
//! A change of one service adds, rewrites and removes that service's own elements and chains; what other services
//! have is neither listed nor touched. Several services may want the same element (one endpoint behind two services);
//! it stays until the last of them lets go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::model::Family;
use crate::ruleset::*;

pub const TABLE: &str = "kube-proxy";

/// How many elements go into one statement.
const BATCH: usize = 500;

/// Where node ports answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The addresses the node object names.
    Primary,
    Cidrs(Vec<IpNet>),
    /// Every address of this node.
    All,
}

/// What the part of the table that no service owns depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub family: Family,
    pub local_traffic: LocalTraffic,
    pub masquerade_all: bool,
    pub masquerade_mark: u32,
    /// `None`: all local addresses.
    pub node_port_ips: Option<Vec<IpAddr>>,
    /// Node ports on 127.0.0.1 as well.
    pub localhost_node_ports: bool,
    pub service_cidrs: Vec<IpNet>,
}

/// (set or map, key).
type ElementKey = (&'static str, String);

/// One desired table with what has been applied of it.
pub struct Table {
    base: Base,
    services: BTreeMap<String, ServiceRules>,
    /// Who wants an element and with which verdict; the first has it.
    claims: HashMap<ElementKey, BTreeMap<String, Option<String>>>,
    /// Chains out of use, to be deleted after a moment: a kernel before 6.2 counts a map element's reference until some time
    /// after its removal.
    stale: BTreeMap<String, Instant>,
}

const STALE_FOR: Duration = Duration::from_secs(1);

impl Table {
    pub fn new(base: Base) -> Table {
        Table { base, services: BTreeMap::new(), claims: HashMap::new(), stale: BTreeMap::new() }
    }

    pub fn services(&self) -> &BTreeMap<String, ServiceRules> {
        &self.services
    }

    /// Returns whether the base changed, which takes a full transaction.
    pub fn set_base(&mut self, base: Base) -> bool {
        let changed = self.base != base;
        self.base = base;
        changed
    }

    fn name(&self) -> String {
        format!("{} {TABLE}", self.base.family.name())
    }

    /// Takes in new rules of services and returns the transaction that brings the kernel there; empty when nothing
    /// changes.
    pub fn update(&mut self, changes: Vec<(String, Option<ServiceRules>)>, now: Instant) -> String {
        let table = self.name();
        let (mut chains, mut rules, mut sets) = (String::new(), String::new(), String::new());
        let mut touched: BTreeMap<ElementKey, Option<Option<String>>> = BTreeMap::new();
        for (service, new) in changes {
            let old = self.services.remove(&service).unwrap_or_default();
            let wanted = new.unwrap_or_default();
            for (name, body) in &wanted.chains {
                self.stale.remove(name);
                if old.chains.get(name) == Some(body) {
                    continue;
                }
                let _ = writeln!(chains, "add chain {table} {name}\nflush chain {table} {name}");
                for rule in body {
                    let _ = writeln!(rules, "add rule {table} {name} {rule}");
                }
            }
            for name in old.chains.keys().filter(|n| !wanted.chains.contains_key(*n)) {
                let _ = writeln!(chains, "flush chain {table} {name}");
                self.stale.insert(name.clone(), now);
            }
            for (name, timeout) in &wanted.affinity_sets {
                match old.affinity_sets.get(name) {
                    Some(have) if have == timeout => {}
                    have => {
                        if have.is_some() {
                            // A set's timeout is fixed: another one, and clients choose anew. Its users were flushed
                            // above only if their text changed, so they are rewritten here.
                            self.rewrite_users(&wanted, name, &mut chains, &mut rules);
                            let _ = writeln!(sets, "delete set {table} {name}");
                        }
                        sets.push_str(&self.affinity_set(name, *timeout));
                    }
                }
            }
            for (key, verdict) in &old.elements {
                if wanted.elements.get(key) != Some(verdict) {
                    self.remember(&mut touched, key);
                    self.release(key, &service);
                }
            }
            for (key, verdict) in &wanted.elements {
                if old.elements.get(key) != Some(verdict) {
                    self.remember(&mut touched, key);
                    self.claims.entry(key.clone()).or_default().insert(service.clone(), verdict.clone());
                }
            }
            for name in old.affinity_sets.keys().filter(|n| !wanted.affinity_sets.contains_key(*n)) {
                // Its users are in chains flushed above.
                let _ = writeln!(rules, "delete set {table} {name}");
            }
            if wanted != ServiceRules::default() {
                self.services.insert(service, wanted);
            }
        }
        let (mut gone, mut come): (Vec<(ElementKey, Option<String>)>, Vec<_>) = (vec![], vec![]);
        for (key, before) in touched {
            let after = self.active(&key);
            if before == after {
                continue;
            }
            if let Some(verdict) = before {
                gone.push((key.clone(), verdict));
            }
            if let Some(verdict) = after {
                come.push((key, verdict));
            }
        }
        let mut out = chains;
        out.push_str(&sets);
        out.push_str(&rules);
        self.write_elements(&mut out, "delete", &gone);
        self.write_elements(&mut out, "add", &come);
        out
    }

    fn rewrite_users(&self, wanted: &ServiceRules, set: &str, chains: &mut String, rules: &mut String) {
        let (table, reference) = (self.name(), format!("@{set} "));
        for (chain, body) in &wanted.chains {
            let line = format!("flush chain {table} {chain}\n");
            if !body.iter().any(|r| r.contains(&reference)) || chains.contains(&line) {
                continue;
            }
            chains.push_str(&line);
            for rule in body {
                let _ = writeln!(rules, "add rule {table} {chain} {rule}");
            }
        }
    }

    fn active(&self, key: &ElementKey) -> Option<Option<String>> {
        self.claims.get(key)?.values().next().cloned()
    }

    /// Notes what the kernel has for `key` before the first change of it.
    fn remember(&self, touched: &mut BTreeMap<ElementKey, Option<Option<String>>>, key: &ElementKey) {
        if !touched.contains_key(key) {
            touched.insert(key.clone(), self.active(key));
        }
    }

    fn release(&mut self, key: &ElementKey, service: &str) {
        if let Some(claims) = self.claims.get_mut(key) {
            claims.remove(service);
            if claims.is_empty() {
                self.claims.remove(key);
            }
        }
    }

    fn affinity_set(&self, name: &str, timeout: u32) -> String {
        let kind = self.base.family.address_type();
        format!(
            "add set {} {name} {{ type {kind}; flags dynamic,timeout; timeout {timeout}s; }}\n",
            self.name()
        )
    }

    fn write_elements(&self, out: &mut String, verb: &str, elements: &[(ElementKey, Option<String>)]) {
        let mut by_set: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ((set, key), verdict) in elements {
            let text = match verdict {
                Some(verdict) if verb == "add" => format!("{key} : {verdict}"),
                _ => key.clone(),
            };
            by_set.entry(set).or_default().push(text);
        }
        for (set, keys) in by_set {
            for batch in keys.chunks(BATCH) {
                let _ = writeln!(out, "{verb} element {} {set} {{ {} }}", self.name(), batch.join(", "));
            }
        }
    }

    /// When the oldest stale chain may be deleted.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.stale.values().min().map(|t| *t + STALE_FOR)
    }

    /// The transaction deleting chains that have been out of use for long enough.
    pub fn sweep(&mut self, now: Instant) -> String {
        let due: Vec<String> =
            self.stale.iter().filter(|(_, t)| **t + STALE_FOR <= now).map(|(name, _)| name.clone()).collect();
        let mut out = String::new();
        for name in due {
            self.stale.remove(&name);
            let _ = writeln!(out, "delete chain {} {name}", self.name());
        }
        out
    }

    /// The transaction that replaces whatever is there by the whole table, with no moment in between.
    pub fn full(&mut self) -> String {
        self.stale.clear();
        let table = self.name();
        let mut out = format!("add table {table}\ndelete table {table}\n");
        out.push_str(&self.base.render());
        let mut sets = BTreeSet::new();
        for rules in self.services.values() {
            for name in rules.chains.keys() {
                let _ = writeln!(out, "add chain {table} {name}");
            }
            for (name, timeout) in &rules.affinity_sets {
                if sets.insert(name) {
                    out.push_str(&self.affinity_set(name, *timeout));
                }
            }
        }
        for rules in self.services.values() {
            for (name, body) in &rules.chains {
                for rule in body {
                    let _ = writeln!(out, "add rule {table} {name} {rule}");
                }
            }
        }
        let mut all: Vec<(ElementKey, Option<String>)> = self
            .claims
            .iter()
            .filter_map(|(key, claims)| Some((key.clone(), claims.values().next()?.clone())))
            .collect();
        all.sort();
        self.write_elements(&mut out, "add", &all);
        out
    }
}

impl Base {
    fn render(&self) -> String {
        let (ip, kind) = (self.family.name(), self.family.address_type());
        let mark = self.masquerade_mark;
        let no_localhost = match (self.family, self.localhost_node_ports) {
            (Family::V4, true) => "",
            (Family::V4, false) => "ip daddr != 127.0.0.0/8 ",
            (Family::V6, _) => "ip6 daddr != ::1 ",
        };
        let (node_port_set, node_port_match) = match &self.node_port_ips {
            None => (String::new(), format!("fib daddr type local {no_localhost}")),
            Some(ips) => {
                let mut ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
                if self.localhost_node_ports && self.family == Family::V4 {
                    ips.push("127.0.0.1".into());
                }
                let elements = if ips.is_empty() {
                    String::new()
                } else {
                    format!("elements = {{ {} }}; ", ips.join(", "))
                };
                (
                    format!("set nodeport-ips {{ type {kind}; {elements}}}"),
                    format!("{ip} daddr @nodeport-ips "),
                )
            }
        };
        let masquerade_cluster_ips = if self.masquerade_all {
            format!("{ip} daddr @{CLUSTER_IPS} jump {MARK_CHAIN}")
        } else if let Some(foreign) = self.local_traffic.does_not_match(self.family) {
            format!("{ip} daddr @{CLUSTER_IPS} {foreign} jump {MARK_CHAIN}")
        } else {
            String::new()
        };
        let cidrs: Vec<String> = self
            .service_cidrs
            .iter()
            .filter(|c| Family::of(c.addr()) == self.family)
            .map(ToString::to_string)
            .collect();
        let drop_unallocated = match cidrs.is_empty() {
            true => String::new(),
            false => format!("{ip} daddr {{ {} }} drop", cidrs.join(", ")),
        };
        // With route_localnet somebody on the wire could address our loopback.
        let guard_loopback = match self.localhost_node_ports && self.family == Family::V4 {
            true => "ip daddr 127.0.0.0/8 iifname != \"lo\" ct status & dnat == 0 ct state new drop",
            false => "",
        };
        format!(
            "table {ip} {TABLE} {{
    comment \"rules for kube-proxy\"
    set {CLUSTER_IPS} {{ type {kind}; }}
    set {HAIRPINS} {{ type {kind} . {kind} . inet_proto . inet_service; }}
    map {SERVICE_IPS} {{ type {kind} . inet_proto . inet_service : verdict; }}
    map {NODE_PORTS} {{ type inet_proto . inet_service : verdict; }}
    map {NO_ENDPOINT_IPS} {{ type {kind} . inet_proto . inet_service : verdict; }}
    map {NO_ENDPOINT_NODE_PORTS} {{ type inet_proto . inet_service : verdict; }}
    map {FIREWALL_IPS} {{ type {kind} . inet_proto . inet_service : verdict; }}
    {node_port_set}
    chain {MARK_CHAIN} {{
        meta mark set meta mark or {mark:#x}
    }}
    chain {REJECT_CHAIN} {{
        reject
    }}
    chain service-endpoints-check {{
        {ip} daddr . meta l4proto . th dport vmap @{NO_ENDPOINT_IPS}
    }}
    chain nodeport-endpoints-check {{
        {node_port_match}meta l4proto . th dport vmap @{NO_ENDPOINT_NODE_PORTS}
    }}
    chain firewall-check {{
        {ip} daddr . meta l4proto . th dport vmap @{FIREWALL_IPS}
    }}
    chain cluster-ips-check {{
        {ip} daddr @{CLUSTER_IPS} reject
        {drop_unallocated}
    }}
    chain services {{
        {masquerade_cluster_ips}
        {ip} daddr . meta l4proto . th dport vmap @{SERVICE_IPS}
        {node_port_match}meta l4proto . th dport vmap @{NODE_PORTS}
    }}
    chain masquerading {{
        meta mark & {mark:#x} != 0 meta mark set meta mark xor {mark:#x} masquerade fully-random
        ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @{HAIRPINS} masquerade fully-random
    }}
    chain filter-prerouting {{
        type filter hook prerouting priority -110; policy accept;
        ct state new jump firewall-check
    }}
    chain filter-input {{
        type filter hook input priority -110; policy accept;
        {guard_loopback}
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }}
    chain filter-forward {{
        type filter hook forward priority -110; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }}
    chain filter-output {{
        type filter hook output priority -110; policy accept;
        ct state new jump service-endpoints-check
        ct state new jump firewall-check
    }}
    chain filter-output-post-dnat {{
        type filter hook output priority -90; policy accept;
        ct state new jump cluster-ips-check
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority -100; policy accept;
        jump services
    }}
    chain nat-output {{
        type nat hook output priority -100; policy accept;
        jump services
    }}
    chain nat-postrouting {{
        type nat hook postrouting priority 100; policy accept;
        jump masquerading
    }}
}}
"
        )
    }
}
