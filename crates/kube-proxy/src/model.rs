//! What the rules are made from: services and endpoints, reduced to what matters here.

use std::net::IpAddr;

use apimachinery::object::Encoded;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;

pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The nftables family and the prefix of its expressions.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    pub fn address_type(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }

    /// Upstream's name, in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: u16,
}

/// A service with a cluster IP, proxied by us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<IpNet>,
    /// Seconds a client stays with its endpoint.
    pub affinity_s: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    pub health_check_port: u16,
    pub ports: Vec<ServicePort>,
}

impl Service {
    /// `None` for services that are not ours to proxy.
    pub fn decode(object: &Encoded) -> Option<Service> {
        if object.attributes.label(PROXY_NAME_LABEL).is_some() {
            return None;
        }
        let typed: core::Service = object
            .decode()
            .map_err(|error| tracing::warn!(service = object.key(), %error, "skipping a service that does not decode"))
            .ok()?;
        Service::of(&typed)
    }

    pub fn of(service: &core::Service) -> Option<Service> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let mut cluster_ips = parse_ips(spec.cluster_ips.as_deref().unwrap_or_default());
        if cluster_ips.is_empty() {
            cluster_ips = parse_ips(spec.cluster_ip.as_slice());
        }
        if cluster_ips.is_empty() {
            return None;
        }
        let ingress = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref())
            .and_then(|l| l.ingress.as_deref())
            .unwrap_or_default();
        let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
        // A load balancer in Proxy mode wants to see the traffic itself.
        let vips = ingress.iter().filter(|i| load_balancer && i.ip_mode.as_deref() != Some("Proxy"));
        let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
        let timeout = spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref())
            .and_then(|c| c.timeout_seconds)
            .unwrap_or(10800);
        let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let ports = spec.ports.as_deref().unwrap_or_default().iter().filter_map(|p| {
            Some(ServicePort {
                name: p.name.clone().unwrap_or_default(),
                protocol: Protocol::parse(p.protocol.as_deref())?,
                port: p.port.try_into().ok()?,
                node_port: p.node_port.unwrap_or(0).try_into().ok()?,
            })
        });
        Some(Service {
            namespace: service.metadata.namespace.clone().unwrap_or_default(),
            name: service.metadata.name.clone().unwrap_or_default(),
            cluster_ips,
            external_ips: parse_ips(spec.external_ips.as_deref().unwrap_or_default()),
            load_balancer_ips: vips.filter_map(|i| i.ip.as_deref()?.parse().ok()).collect(),
            source_ranges: match load_balancer {
                true => spec
                    .load_balancer_source_ranges
                    .iter()
                    .flatten()
                    .filter_map(|r| r.trim().parse::<IpNet>().ok().map(|n| n.trunc()))
                    .collect(),
                false => vec![],
            },
            affinity_s: affinity.then_some(timeout.max(1) as u32),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local,
            health_check_port: match external_local && load_balancer {
                true => spec.health_check_node_port.unwrap_or(0).try_into().unwrap_or(0),
                false => 0,
            },
            ports: ports.collect(),
        })
    }

    pub fn externally_accessible(&self, port: &ServicePort) -> bool {
        port.node_port != 0 || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}

fn parse_ips(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|t| t.parse().ok()).collect()
}

/// One endpoint of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub port: u16,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub local: bool,
    pub zone_hints: Vec<String>,
    pub node_hints: Vec<String>,
}

/// The endpoints of one slice: which ports they have, and the endpoints without them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub family: Family,
    pub ports: Vec<(String, Protocol, u16)>,
    pub endpoints: Vec<Endpoint>,
}

impl Slice {
    pub fn decode(object: &Encoded, node: &str) -> Option<Slice> {
        let typed: EndpointSlice = object
            .decode()
            .map_err(|error| tracing::warn!(slice = object.key(), %error, "skipping an endpoint slice that does not decode"))
            .ok()?;
        Slice::of(&typed, node)
    }

    pub fn of(slice: &EndpointSlice, node: &str) -> Option<Slice> {
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return None,
        };
        let ports = slice.ports.iter().flatten().filter_map(|p| {
            let port = p.port?.try_into().ok()?;
            Some((p.name.clone().unwrap_or_default(), Protocol::parse(p.protocol.as_deref())?, port))
        });
        let endpoints = slice.endpoints.iter().flatten().filter_map(|e| {
            // The first address stands for the endpoint.
            let ip: IpAddr = e.addresses.first()?.parse().ok()?;
            let conditions = e.conditions.as_ref();
            let hints = e.hints.as_ref();
            Some(Endpoint {
                ip,
                port: 0,
                ready: conditions.and_then(|c| c.ready).unwrap_or(true),
                serving: conditions.and_then(|c| c.serving).unwrap_or(true),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                local: e.node_name.as_deref() == Some(node),
                zone_hints: hints
                    .and_then(|h| h.for_zones.as_ref())
                    .map_or(vec![], |z| z.iter().map(|z| z.name.clone()).collect()),
                node_hints: hints
                    .and_then(|h| h.for_nodes.as_ref())
                    .map_or(vec![], |n| n.iter().map(|n| n.name.clone()).collect()),
            })
        });
        let ports = ports.collect();
        Some(Slice { family, ports, endpoints: endpoints.filter(|e| Family::of(e.ip) == family).collect() })
    }
}

/// The endpoints of a service port over all slices, each once: while an endpoint moves from one slice to another it
/// is in both for a moment, and the one that can take traffic counts.
pub fn endpoints_of(slices: &[Slice], family: Family, port: &ServicePort) -> Vec<Endpoint> {
    let mut out: Vec<Endpoint> = vec![];
    for slice in slices.iter().filter(|s| s.family == family) {
        for (name, protocol, number) in &slice.ports {
            if *name != port.name || *protocol != port.protocol {
                continue;
            }
            out.extend(slice.endpoints.iter().map(|e| Endpoint { port: *number, ..e.clone() }));
        }
    }
    out.sort_by_key(|e| (e.ip, e.port, !e.ready, !e.serving));
    out.dedup_by_key(|e| (e.ip, e.port));
    out
}
