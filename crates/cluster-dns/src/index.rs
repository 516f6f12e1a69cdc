//! What can be asked for: services and endpoints, reduced to names, addresses and ports.
//!
//! Sketch: a service costs some 150 B, an endpoint some 60 B. A question is one or two hash lookups.

use std::net::IpAddr;

use apimachinery::object::Encoded;
use hashbrown::{HashMap, HashSet};
use serde::Deserialize;

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: Box<str>,
    /// Lower case.
    pub protocol: Box<str>,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterIp(Box<[IpAddr]>),
    Headless,
    ExternalName(Box<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub kind: Kind,
    pub ports: Box<[Port]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub ip: IpAddr,
    pub hostname: Option<Box<str>>,
}

impl Endpoint {
    /// The label it answers to under its service: its host name, or its address with dashes.
    pub fn label(&self) -> String {
        match &self.hostname {
            Some(hostname) => hostname.to_string(),
            None => self.ip.to_string().replace(['.', ':'], "-"),
        }
    }
}

/// The ready endpoints of one slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    pub endpoints: Box<[Endpoint]>,
    /// Empty: the service has no ports.
    pub ports: Box<[Port]>,
}

/// `namespace/name`.
type Key = Box<str>;

#[derive(Default)]
pub struct Index {
    services: HashMap<Key, Service>,
    slices: HashMap<Key, Vec<(Box<str>, Slice)>>,
    /// Which service a slice belongs to, by the slice's key.
    slice_owner: HashMap<Key, Key>,
    cluster_ips: HashMap<IpAddr, Key>,
    /// Services an address is an endpoint of.
    endpoint_ips: HashMap<IpAddr, Vec<Key>>,
    namespaces: HashSet<Box<str>>,
}

#[derive(Deserialize)]
struct RawPort {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    port: Option<u16>,
}

impl RawPort {
    fn read(self) -> Option<Port> {
        Some(Port {
            name: self.name.unwrap_or_default().to_ascii_lowercase().into(),
            protocol: self.protocol.unwrap_or_else(|| "TCP".into()).to_ascii_lowercase().into(),
            port: self.port?,
        })
    }
}

#[derive(Deserialize)]
struct RawService {
    #[serde(default)]
    spec: RawSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Vec<String>,
    external_name: String,
    ports: Vec<RawPort>,
}

impl Service {
    pub fn decode(body: &[u8]) -> Option<Service> {
        let spec = apimachinery::object::read::<RawService>(body).ok()?.spec;
        let kind = if spec.kind == "ExternalName" {
            Kind::ExternalName(spec.external_name.trim_end_matches('.').into())
        } else if spec.cluster_ip == "None" {
            Kind::Headless
        } else {
            let mut ips: Vec<IpAddr> = spec.cluster_ips.iter().filter_map(|ip| ip.parse().ok()).collect();
            if ips.is_empty() {
                ips.extend(spec.cluster_ip.parse::<IpAddr>().ok());
            }
            if ips.is_empty() {
                return None;
            }
            Kind::ClusterIp(ips.into())
        };
        Some(Service { kind, ports: spec.ports.into_iter().filter_map(RawPort::read).collect() })
    }
}

#[derive(Deserialize)]
struct RawSlice {
    #[serde(default)]
    endpoints: Option<Vec<RawEndpoint>>,
    #[serde(default)]
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RawEndpoint {
    addresses: Vec<String>,
    conditions: RawConditions,
    hostname: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawConditions {
    ready: Option<bool>,
}

impl Slice {
    pub fn decode(body: &[u8]) -> Option<Slice> {
        let raw: RawSlice = apimachinery::object::read(body).ok()?;
        let mut endpoints = vec![];
        for e in raw.endpoints.unwrap_or_default() {
            if e.conditions.ready == Some(false) {
                continue;
            }
            let hostname: Option<Box<str>> =
                e.hostname.filter(|h| !h.is_empty()).map(|h| h.to_ascii_lowercase().into());
            let ips = e.addresses.iter().filter_map(|ip| ip.parse().ok());
            endpoints.extend(ips.map(|ip| Endpoint { ip, hostname: hostname.clone() }));
        }
        let ports = raw.ports.unwrap_or_default().into_iter().filter_map(RawPort::read).collect();
        Some(Slice { endpoints: endpoints.into(), ports })
    }
}

fn key(namespace: &str, name: &str) -> Key {
    format!("{namespace}/{name}").into()
}

impl Index {
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&*key(namespace, name))
    }

    pub fn slices(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Slice> {
        self.slices.get(&*key(namespace, name)).into_iter().flatten().map(|(_, slice)| slice)
    }

    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The service (namespace, name) that has `ip`.
    pub fn by_cluster_ip(&self, ip: IpAddr) -> Option<(&str, &str)> {
        self.cluster_ips.get(&ip)?.split_once('/')
    }

    /// The services (namespace, name) `ip` is an endpoint of.
    pub fn by_endpoint_ip(&self, ip: IpAddr) -> impl Iterator<Item = (&str, &str)> {
        self.endpoint_ips.get(&ip).into_iter().flatten().filter_map(|k| k.split_once('/'))
    }

    pub fn put_service(&mut self, namespace: &str, name: &str, service: Option<Service>) {
        let key = key(namespace, name);
        if let Some(Service { kind: Kind::ClusterIp(ips), .. }) = self.services.remove(&key) {
            for ip in ips {
                if self.cluster_ips.get(&ip) == Some(&key) {
                    self.cluster_ips.remove(&ip);
                }
            }
        }
        if let Some(service) = service {
            if let Kind::ClusterIp(ips) = &service.kind {
                self.cluster_ips.extend(ips.iter().map(|ip| (*ip, key.clone())));
            }
            self.services.insert(key, service);
        }
    }

    /// `of`: the service the slice belongs to and what is in it.
    pub fn put_slice(&mut self, namespace: &str, name: &str, of: Option<(&str, Slice)>) {
        let slice_key = key(namespace, name);
        if let Some(owner) = self.slice_owner.remove(&slice_key)
            && let Some(slices) = self.slices.get_mut(&owner)
        {
            if let Some(at) = slices.iter().position(|(n, _)| **n == *name) {
                let (_, old) = slices.swap_remove(at);
                for endpoint in old.endpoints.iter() {
                    if let Some(owners) = self.endpoint_ips.get_mut(&endpoint.ip) {
                        if let Some(at) = owners.iter().position(|o| *o == owner) {
                            owners.swap_remove(at);
                        }
                        if owners.is_empty() {
                            self.endpoint_ips.remove(&endpoint.ip);
                        }
                    }
                }
            }
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        if let Some((service, slice)) = of {
            let owner = key(namespace, service);
            for endpoint in slice.endpoints.iter() {
                self.endpoint_ips.entry(endpoint.ip).or_default().push(owner.clone());
            }
            self.slices.entry(owner.clone()).or_default().push((name.into(), slice));
            self.slice_owner.insert(slice_key, owner);
        }
    }

    pub fn put_namespace(&mut self, name: &str, exists: bool) {
        if exists {
            self.namespaces.insert(name.into());
        } else {
            self.namespaces.remove(name);
        }
    }

    pub fn apply_service(&mut self, object: &Encoded, exists: bool) {
        let service = if exists { Service::decode(&object.body) } else { None };
        self.put_service(object.namespace(), object.name(), service);
    }

    pub fn apply_slice(&mut self, object: &Encoded, exists: bool) {
        let owner = object.attributes.label(SERVICE_NAME_LABEL).filter(|_| exists);
        let of = owner.and_then(|service| Some((service, Slice::decode(&object.body)?)));
        self.put_slice(object.namespace(), object.name(), of);
    }
}
