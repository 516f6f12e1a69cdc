//! Values reserved outside objects: cluster IPs and node ports.
//!
//! What is taken lives in memory, filled from the services at start. Every taken cluster IP also has an IPAddress
//! object. A service that gives a value up by an update keeps it until somebody else wants it and the stored service is
//! seen without it; so an update that fails loses nothing.

pub mod band;
mod service;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use apimachinery::status::Status;
use async_trait::async_trait;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::seams::{Allocators, Objects, Reservation, Writer};
use band::{Band, Taken};

const NETWORKING: &str = "networking.k8s.io";

/// An IP family with its service range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub net: IpNet,
    pub band: Band,
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::from(number as u32)) } else { IpAddr::V6(Ipv6Addr::from(number)) }
}

impl Range {
    /// The usable addresses of a CIDR: without its first, and for IPv4 without its last.
    pub fn new(net: IpNet) -> Range {
        let net = net.trunc();
        let v4 = matches!(net, IpNet::V4(_));
        let first = number(net.network()).saturating_add(1);
        let mut last = number(net.broadcast());
        if v4 {
            last = last.saturating_sub(1);
        }
        let last = last.max(first);
        // As upstream: min(max(16, size / 16), 256), and nothing in ranges too small for two parts.
        let size = last - first + 1;
        let static_part = if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size) };
        Range { net, band: Band { first, last, static_part } }
    }

    pub fn family(&self) -> &'static str {
        if matches!(self.net, IpNet::V4(_)) { "IPv4" } else { "IPv6" }
    }
}

fn port_band(ports: &RangeInclusive<u16>) -> Band {
    let (first, last) = (u128::from(*ports.start()), u128::from(*ports.end()));
    let size = (last + 1).saturating_sub(first);
    // As upstream: min(max(16, size / 32), 128).
    let static_part = if size < 16 { 0 } else { (size / 32).clamp(16, 128).min(size) };
    Band { first, last, static_part }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub addresses: Taken<IpAddr>,
    pub ports: Taken<u16>,
    seeded: bool,
}

pub struct ServiceAllocators {
    objects: Arc<dyn Objects>,
    writer: Arc<dyn Writer>,
    ranges: Vec<Range>,
    ports: Band,
    state: Mutex<State>,
}

impl ServiceAllocators {
    pub fn new(
        objects: Arc<dyn Objects>,
        writer: Arc<dyn Writer>,
        cidrs: &[IpNet],
        ports: &RangeInclusive<u16>,
    ) -> ServiceAllocators {
        ServiceAllocators {
            objects,
            writer,
            ranges: cidrs.iter().map(|c| Range::new(*c)).collect(),
            ports: port_band(ports),
            state: Mutex::default(),
        }
    }

    /// The configured ranges and those of further ServiceCIDR objects.
    fn all_ranges(&self) -> Vec<Range> {
        let mut ranges = self.ranges.clone();
        for object in self.objects.list(NETWORKING, "servicecidrs", None) {
            if object.attributes.deleting || object.name() == "kubernetes" {
                continue;
            }
            let Ok(value) = object.to_value() else { continue };
            for cidr in value["spec"]["cidrs"].as_array().into_iter().flatten() {
                if let Some(net) = cidr.as_str().and_then(|c| c.parse::<IpNet>().ok())
                    && !ranges.iter().any(|r| r.net == net.trunc())
                {
                    ranges.push(Range::new(net));
                }
            }
        }
        ranges
    }

    fn stored(&self, key: &str) -> Option<Value> {
        let (namespace, name) = key.split_once('/')?;
        self.objects.get("", "services", namespace, name)?.to_value().ok()
    }

    /// Fills the tables from the services, once.
    fn seed(&self, state: &mut State) {
        if std::mem::replace(&mut state.seeded, true) {
            return;
        }
        for object in self.objects.list("", "services", None) {
            let Ok(service) = object.to_value() else { continue };
            let values = service::values(&service);
            let key = object.key();
            values.addresses.iter().for_each(|ip| state.addresses.take(*ip, &key));
            values.node_ports.iter().for_each(|port| state.ports.take(*port, &key));
        }
    }

    /// Frees what services gave up and are seen without.
    fn sweep(&self, state: &mut State) {
        for (ip, key) in state.addresses.given_up() {
            if !self.stored(&key).is_some_and(|s| service::values(&s).addresses.contains(&ip)) {
                state.addresses.free(ip);
            }
        }
        for (port, key) in state.ports.given_up() {
            if !self.stored(&key).is_some_and(|s| service::values(&s).node_ports.contains(&port)) {
                state.ports.free(port);
            }
        }
    }

    async fn create_address(&self, ip: IpAddr, namespace: &str, name: &str) {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let object = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "IPAddress",
            "metadata": {
                "name": ip.to_string(),
                "labels": {
                    "ipaddress.kubernetes.io/ip-family": family,
                    "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
                },
            },
            "spec": {"parentRef": {"group": "", "resource": "services", "namespace": namespace, "name": name}},
        });
        match self.writer.create(NETWORKING, "v1", "ipaddresses", object).await {
            Err(status) if status.reason != "AlreadyExists" => {
                tracing::warn!(%ip, error = %status, "no IPAddress object for a cluster IP");
            }
            _ => {}
        }
    }

    async fn delete_address(&self, ip: IpAddr) {
        match self.writer.delete(NETWORKING, "ipaddresses", "", &ip.to_string()).await {
            Err(status) if status.code != 404 => {
                tracing::warn!(%ip, error = %status, "the IPAddress object of a released cluster IP stays");
            }
            _ => {}
        }
    }

    /// Makes the IPAddress objects that services lack.
    pub async fn repair(&self) {
        for object in self.objects.list("", "services", None) {
            let Ok(service) = object.to_value() else { continue };
            for ip in service::values(&service).addresses {
                if self.objects.get(NETWORKING, "ipaddresses", "", &ip.to_string()).is_none() {
                    self.create_address(ip, object.namespace(), object.name()).await;
                }
            }
        }
    }
}

#[async_trait]
impl Allocators for ServiceAllocators {
    async fn reserve(&self, service: &mut Value, old: Option<&Value>) -> Result<Reservation, Status> {
        let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let namespace = service["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let ranges = self.all_ranges();
        let reservation = {
            let mut state = self.state.lock();
            self.seed(&mut state);
            self.sweep(&mut state);
            service::reserve(service, old, &ranges, self.ranges.len(), self.ports, &mut state)?
        };
        for ip in &reservation.addresses {
            self.create_address(*ip, &namespace, &name).await;
        }
        if let Some(old) = old {
            // An address given up has no object any more, though its number is still held until the update is stored.
            let kept = service::values(service).addresses;
            for ip in service::values(old).addresses {
                if !kept.contains(&ip) {
                    self.delete_address(ip).await;
                }
            }
        }
        Ok(reservation)
    }

    async fn release(&self, reservation: Reservation) {
        {
            let mut state = self.state.lock();
            reservation.addresses.iter().for_each(|ip| state.addresses.free(*ip));
            reservation.node_ports.iter().for_each(|(_, port)| state.ports.free(*port));
        }
        for ip in reservation.addresses {
            self.delete_address(ip).await;
        }
    }

    async fn service_deleted(&self, service: &Value) {
        let meta = &service["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default();
        let key = apimachinery::object::object_key(text("namespace"), text("name"));
        let values = service::values(service);
        {
            let mut state = self.state.lock();
            values.addresses.iter().for_each(|ip| state.addresses.free_from(*ip, &key));
            values.node_ports.iter().for_each(|port| state.ports.free_from(*port, &key));
        }
        for ip in values.addresses {
            self.delete_address(ip).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;

    fn allocators() -> (Arc<FakeObjects>, ServiceAllocators) {
        let objects = Arc::new(FakeObjects::default());
        let cidr = ["10.96.0.0/16".parse().unwrap()];
        let allocators = ServiceAllocators::new(objects.clone(), objects.clone(), &cidr, &(30000..=32767));
        (objects, allocators)
    }

    fn service(name: &str, spec: Value) -> Value {
        json!({"metadata": {"namespace": "a", "name": name}, "spec": spec})
    }

    #[tokio::test]
    async fn keeps_and_frees() {
        let (objects, allocators) = allocators();
        let mut first = service("s", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100}]}));
        let reservation = allocators.reserve(&mut first, None).await.unwrap();
        let ip = first["spec"]["clusterIP"].as_str().unwrap().to_owned();
        assert_eq!(first["spec"]["clusterIPs"], json!([ip]));
        assert_eq!(first["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(first["spec"]["ipFamilyPolicy"], "SingleStack");
        assert!(objects.get(NETWORKING, "ipaddresses", "", &ip).is_some());

        let mut second =
            service("t", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100}]}));
        let error = allocators.reserve(&mut second, None).await.unwrap_err();
        assert_eq!(
            error.message,
            "Service \"t\" is invalid: spec.ports[0].nodePort: Invalid value: 30100: provided port is already \
             allocated"
        );
        allocators.release(reservation).await;
        assert!(objects.get(NETWORKING, "ipaddresses", "", &ip).is_none());
        let mut second =
            service("t", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100}]}));
        allocators.reserve(&mut second, None).await.unwrap();
        objects.put("", "services", second.clone());

        // A plain ClusterIP service no longer holds the port once that is stored.
        let mut plain = second.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        plain["spec"]["ports"][0].as_object_mut().unwrap().remove("nodePort");
        allocators.reserve(&mut plain, Some(&second)).await.unwrap();
        let again = || service("u", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100}]}));
        assert!(allocators.reserve(&mut again(), None).await.is_err());
        objects.put("", "services", plain.clone());
        allocators.reserve(&mut again(), None).await.unwrap();
        assert_eq!(plain["spec"]["clusterIP"], second["spec"]["clusterIP"]);

        allocators.service_deleted(&plain).await;
        let mut same = service("v", json!({"clusterIP": plain["spec"]["clusterIP"]}));
        allocators.reserve(&mut same, None).await.unwrap();
    }

    #[test]
    fn parts_of_ranges() {
        for (cidr, first, last, static_part) in [
            ("10.96.0.0/16", "10.96.0.1", "10.96.255.254", 256),
            ("10.96.0.0/24", "10.96.0.1", "10.96.0.254", 16),
            ("10.96.0.0/28", "10.96.0.1", "10.96.0.14", 0),
            ("fd00::/112", "fd00::1", "fd00::ffff", 256),
        ] {
            let band = Range::new(cidr.parse().unwrap()).band;
            let n = |s: &str| number(s.parse().unwrap());
            assert_eq!((band.first, band.last, band.static_part), (n(first), n(last), static_part), "{cidr}");
        }
        assert_eq!(port_band(&(30000..=32767)).static_part, 86);
    }
}
