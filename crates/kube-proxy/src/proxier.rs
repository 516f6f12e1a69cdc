//! The loop: changed services in, transactions out.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use apimachinery::object::Encoded;
use client::{Client, Informer, Selection};
use k8s_openapi::api::core::v1::{Node, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::categorize::Place;
use crate::config::Config;
use crate::conntrack;
use crate::health::{Health, ServiceHealth};
use crate::http;
use crate::metrics::Metrics;
use crate::model::{Family, SERVICE_NAME_LABEL, Service, Slice};
use crate::nft;
use crate::ruleset::{Context, UdpService, service_rules};
use crate::table::{Base, NodePortAddresses, Table};

const SERVICE_INDEX: &str = "service";
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Services whose rules may have changed. As many as there are services at most.
#[derive(Default)]
struct Dirty {
    keys: Mutex<HashSet<String>>,
    node: std::sync::atomic::AtomicBool,
    wake: Notify,
}

impl Dirty {
    fn add(&self, key: String) {
        self.keys.lock().insert(key);
        self.wake.notify_one();
    }

    fn node(&self) {
        self.node.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn is_empty(&self) -> bool {
        self.keys.lock().is_empty() && !self.node.load(Ordering::Acquire)
    }
}

fn service_of_slice(slice: &Encoded) -> Option<String> {
    let name = slice.attributes.label(SERVICE_NAME_LABEL)?;
    Some(format!("{}/{name}", slice.namespace()))
}

/// Runs until `shutdown`. The rules stay, so that traffic goes on; see [`crate::cleanup`].
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::default()));
    let mut servers = JoinSet::new();
    for (address, handler) in
        [(config.healthz_bind_address, health.handler()), (config.metrics_bind_address, metrics.handler())]
    {
        if let Some(address) = address {
            // Somebody else having the port is no reason to proxy nothing.
            match http::bind(address).await {
                Ok(listener) => {
                    servers.spawn(http::serve(listener, handler, shutdown.clone()));
                }
                Err(error) => tracing::warn!(%error, "going on without"),
            }
        }
    }
    prepare_kernel(&config);

    let dirty = Arc::new(Dirty::default());
    let services: Informer<ApiService> = client.informer();
    let slices: Informer<EndpointSlice> = client.informer();
    let own = Selection::all().with_fields(format!("metadata.name={}", config.node_name));
    let nodes: Informer<Node> = client.informer_selected(own);
    slices.add_index(SERVICE_INDEX, |slice| service_of_slice(slice).into_iter().collect());
    let (queue, counts) = (dirty.clone(), metrics.clone());
    services.subscribe(move |delta| {
        counts.service_changes.fetch_add(1, Ordering::Relaxed);
        queue.add(delta.key());
    });
    let (queue, counts) = (dirty.clone(), metrics.clone());
    slices.subscribe(move |delta| {
        counts.endpoint_changes.fetch_add(1, Ordering::Relaxed);
        let before = delta.old().and_then(|o| service_of_slice(o));
        let after = service_of_slice(delta.object());
        if before != after {
            before.into_iter().for_each(|key| queue.add(key));
        }
        after.into_iter().for_each(|key| queue.add(key));
    });
    let queue = dirty.clone();
    nodes.subscribe(move |_| queue.node());
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        ((), (), ()) = async { tokio::join!(services.synced(), slices.synced(), nodes.synced()) } => {}
    }

    let service_health = ServiceHealth::new(health.clone(), shutdown.clone());
    let mut proxier = Proxier {
        context: Context {
            place: Place::default(),
            node_ips: vec![],
            local_traffic: config.local_traffic.clone(),
        },
        tables: vec![],
        full: HashSet::new(),
        config,
        services,
        slices,
        nodes,
        dirty,
        health,
        metrics,
        service_health,
    };
    proxier.dirty.node();
    proxier.run(shutdown).await;
    while servers.join_next().await.is_some() {}
    Ok(())
}

/// Kernel settings the rules rely on. What cannot be set is logged: most of it matters to few.
fn prepare_kernel(config: &Config) {
    let set = |key: &str, value: &str| {
        if let Err(error) = std::fs::write(format!("/proc/sys/{key}"), value) {
            tracing::warn!(key, value, %error, "could not set a kernel parameter");
        }
    };
    if config.localhost_node_ports {
        set("net/ipv4/conf/all/route_localnet", "1");
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let wanted = config.conntrack_min.max(config.conntrack_max_per_core.saturating_mul(cpus));
    let have = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    let have: u32 = have.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(u32::MAX);
    if config.conntrack_max_per_core > 0 && have < wanted {
        set("net/netfilter/nf_conntrack_max", &wanted.to_string());
    }
}

struct Proxier {
    config: Config,
    services: Informer<ApiService>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
    dirty: Arc<Dirty>,
    context: Context,
    tables: Vec<(Family, Table)>,
    /// Tables to be replaced as a whole: at first, and after a failure.
    full: HashSet<Family>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    service_health: ServiceHealth,
}

impl Proxier {
    async fn run(&mut self, shutdown: CancellationToken) {
        let mut retry = RETRY_MIN;
        loop {
            let begin = Instant::now();
            let fine = tokio::select! {
                () = shutdown.cancelled() => return,
                fine = self.sync() => fine,
            };
            let pause = if fine {
                retry = RETRY_MIN;
                // A transaction that takes long leaves the CPU to others for as long again.
                begin.elapsed().clamp(self.config.min_sync_period, Duration::from_secs(1))
            } else {
                let pause = retry;
                retry = (retry * 2).min(RETRY_MAX);
                pause
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if !fine {
                continue;
            }
            while self.dirty.is_empty() {
                let due = self.tables.iter().filter_map(|(_, t)| t.next_sweep()).min();
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.dirty.wake.notified() => {}
                    () = sleep_until(due) => self.sweep().await,
                }
            }
        }
    }

    /// Brings the kernel to where the informers are. `false`: to be tried again.
    async fn sync(&mut self) -> bool {
        let begin = Instant::now();
        let node_changed = self.dirty.node.swap(false, Ordering::AcqRel) && self.look_at_node();
        let mut keys = std::mem::take(&mut *self.dirty.keys.lock());
        if node_changed {
            keys.extend(self.services.list(None).iter().map(|s| s.key()));
        }
        let mut changes: Vec<(String, Option<(Service, Vec<Slice>)>)> = Vec::with_capacity(keys.len());
        for key in keys {
            let service = self.services.get_key(&key).and_then(|o| Service::decode(&o));
            let state = service.map(|service| {
                let slices = self.slices.by_index(SERVICE_INDEX, &key);
                let node = &self.config.node_name;
                let slices = slices.iter().filter_map(|s| Slice::decode(s, node)).collect();
                (service, slices)
            });
            changes.push((key, state));
        }
        self.health.behind();
        let mut fine = true;
        for family in [Family::V4, Family::V6] {
            fine &= self.sync_family(family, &changes, begin).await;
        }
        if fine {
            self.health.updated();
        }
        self.report().await;
        fine
    }

    async fn sync_family(
        &mut self,
        family: Family,
        changes: &[(String, Option<(Service, Vec<Slice>)>)],
        begin: Instant,
    ) -> bool {
        let base = self.base(family);
        let at = match self.tables.iter().position(|(f, _)| *f == family) {
            Some(at) => at,
            None => {
                // A cluster without IPv6 services has no table for them.
                let used = |state: &Option<(Service, Vec<Slice>)>| {
                    state
                        .as_ref()
                        .is_some_and(|(s, _)| s.cluster_ips.iter().any(|ip| Family::of(*ip) == family))
                };
                if family == Family::V6 && !changes.iter().any(|(_, state)| used(state)) {
                    return true;
                }
                self.tables.push((family, Table::new(base.clone())));
                self.full.insert(family);
                self.tables.len() - 1
            }
        };
        let table = &mut self.tables[at].1;
        if table.set_base(base) {
            self.full.insert(family);
        }
        let mut udp: BTreeSet<UdpService> = BTreeSet::new();
        let mut updates = Vec::with_capacity(changes.len());
        for (key, state) in changes {
            let rules = state.as_ref().map(|(s, slices)| service_rules(s, slices, family, &self.context));
            let old = table.services().get(key);
            if let Some(new) = &rules {
                let known = |u: &&UdpService| !old.is_some_and(|o| o.udp.contains(*u));
                udp.extend(new.udp.iter().filter(known).cloned());
            }
            if let Some(old) = old {
                // An address the service no longer has: no endpoint is right.
                let kept = |u: &UdpService| {
                    rules.as_ref().is_some_and(|r| r.udp.iter().any(|n| (n.ip, n.port) == (u.ip, u.port)))
                };
                let gone = old.udp.iter().filter(|u| !kept(u));
                udp.extend(gone.map(|u| UdpService { endpoints: BTreeSet::new(), ..u.clone() }));
            }
            updates.push((key.clone(), rules));
        }
        let partial = table.update(updates, begin);
        let mut full = self.full.contains(&family);
        let mut script = if full { table.full() } else { partial };
        if script.is_empty() {
            return true;
        }
        let mut outcome = nft::apply(&script).await;
        if !full && let Err(error) = &outcome {
            // Somebody changed our table. Replace it.
            self.metrics.sync_failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(family = family.label(), %error, "a transaction failed; replacing the whole table");
            full = true;
            script = self.tables[at].1.full();
            outcome = nft::apply(&script).await;
        }
        match outcome {
            Ok(()) => {
                self.full.remove(&family);
                self.metrics.synced(begin.elapsed(), full);
                tracing::debug!(family = family.label(), full, bytes = script.len(), took = ?begin.elapsed(), "rules applied");
                self.forget_stale(family, udp).await;
                true
            }
            Err(error) => {
                self.full.insert(family);
                self.metrics.sync_failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(family = family.label(), %error, "the rules could not be applied; will be retried");
                false
            }
        }
    }

    async fn forget_stale(&self, family: Family, udp: BTreeSet<UdpService>) {
        if udp.is_empty() {
            return;
        }
        let services: Vec<UdpService> = udp.into_iter().collect();
        let node_ips = self.context.node_ips.clone();
        let outcome =
            tokio::task::spawn_blocking(move || conntrack::forget_stale(family, &services, &node_ips)).await;
        match outcome {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(flows)) => tracing::debug!(flows, "ended stale UDP flows"),
            Ok(Err(error)) => tracing::warn!(%error, "could not end stale UDP flows"),
        }
    }

    async fn sweep(&mut self) {
        for (_, table) in &mut self.tables {
            let script = table.sweep(Instant::now());
            if !script.is_empty()
                && let Err(error) = nft::apply(&script).await
            {
                // They are empty and nobody goes there; the next full transaction takes them along.
                self.metrics.cleanup_failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "could not delete stale chains");
            }
        }
    }

    /// Takes in the node object; whether anything that rules depend on changed.
    fn look_at_node(&mut self) -> bool {
        let node = self.nodes.get_typed("", &self.config.node_name);
        let mut place = Place { node: self.config.node_name.clone(), zone: String::new() };
        let mut node_ips: Vec<IpAddr> = self.config.node_ip.into_iter().collect();
        let mut eligible = true;
        if let Some(node) = node {
            let labels = node.metadata.labels.unwrap_or_default();
            place.zone = labels.get("topology.kubernetes.io/zone").cloned().unwrap_or_default();
            let addresses = node.status.and_then(|s| s.addresses).unwrap_or_default();
            if node_ips.is_empty() {
                let ips = addresses.iter().filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP");
                node_ips.extend(ips.filter_map(|a| a.address.parse::<IpAddr>().ok()));
            }
            let taints = node.spec.and_then(|s| s.taints).unwrap_or_default();
            eligible =
                node.metadata.deletion_timestamp.is_none() && !taints.iter().any(|t| t.key == DELETION_TAINT);
        }
        self.health.set_eligible(eligible);
        let context = Context { place, node_ips, local_traffic: self.config.local_traffic.clone() };
        let changed = context != self.context;
        self.context = context;
        changed
    }

    fn base(&self, family: Family) -> Base {
        let of_family = |ips: Vec<IpAddr>| ips.into_iter().filter(|ip| Family::of(*ip) == family).collect();
        Base {
            family,
            local_traffic: self.config.local_traffic.clone(),
            masquerade_all: self.config.masquerade_all,
            masquerade_mark: 0x4000,
            node_port_ips: match &self.config.node_port_addresses {
                NodePortAddresses::All => None,
                NodePortAddresses::Primary => Some(of_family(self.context.node_ips.clone())),
                NodePortAddresses::Cidrs(cidrs) => Some(of_family(
                    local_ips().into_iter().filter(|ip| cidrs.iter().any(|c| c.contains(ip))).collect(),
                )),
            },
            localhost_node_ports: self.config.localhost_node_ports,
            service_cidrs: self.config.service_cidrs.clone(),
        }
    }

    /// Health checks and counts that follow from the applied rules.
    async fn report(&mut self) {
        let (mut checks, mut internal, mut external) = (std::collections::BTreeMap::new(), 0, 0);
        for (_, table) in &self.tables {
            for (key, rules) in table.services() {
                internal += u64::from(rules.no_local.internal);
                external += u64::from(rules.no_local.external);
                if rules.health_check_port != 0 {
                    let local = checks.entry((rules.health_check_port, key.clone())).or_insert(0);
                    *local = rules.local_ready.max(*local);
                }
            }
        }
        self.metrics.no_local_internal.store(internal, Ordering::Relaxed);
        self.metrics.no_local_external.store(external, Ordering::Relaxed);
        let checks = checks.into_iter().map(|((port, key), local)| (port, key, local)).collect();
        self.service_health.set(checks).await;
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The addresses of this node, loopback left out.
fn local_ips() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return vec![] };
    let ips = interfaces.filter_map(|i| {
        let address = i.address?;
        if let Some(v4) = address.as_sockaddr_in() {
            return Some(IpAddr::V4(v4.ip()));
        }
        address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
    });
    ips.filter(|ip| !ip.is_loopback()).collect()
}
