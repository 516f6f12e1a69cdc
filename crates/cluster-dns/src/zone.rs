//! Answers about the cluster's own names: a pure function of the index.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::index::{Endpoint, Index, Kind, Port};

pub const TTL_S: u32 = 5;
/// The version of the DNS-based service discovery specification.
const DNS_VERSION: &str = "1.1.0";
const WEIGHT: usize = 100;

#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub records: Vec<Record>,
    pub additionals: Vec<Record>,
    /// A name outside that the records point to and that is to be resolved for the client as well.
    pub chase: Option<Name>,
}

#[derive(Debug, PartialEq)]
pub enum Lookup {
    Found(Answer),
    /// The name exists; it has nothing of the type.
    NoData,
    NxDomain,
    /// Not a name of ours.
    Foreign,
}

/// The cluster's domain.
#[derive(Clone, Debug)]
pub struct Zone {
    origin: Name,
    text: String,
}

/// A name below `svc`.
struct ServiceName<'a> {
    namespace: &'a str,
    service: &'a str,
    /// `_port._proto`, without underscores.
    port: Option<(&'a str, &'a str)>,
    endpoint: Option<&'a str>,
}

impl Zone {
    pub fn new(domain: &str) -> Result<Zone, hickory_proto::ProtoError> {
        let text = domain.trim_matches('.').to_ascii_lowercase();
        let mut origin = Name::from_ascii(&text)?;
        origin.set_fqdn(true);
        Ok(Zone { origin, text })
    }

    pub fn contains(&self, name: &Name) -> bool {
        self.origin.zone_of(name)
    }

    fn name(&self, below: &str) -> Option<Name> {
        let mut name = Name::from_ascii(format!("{below}.{}", self.text)).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    /// The start of authority, which goes with every negative answer.
    pub fn soa(&self, serial: u32) -> Option<Record> {
        let (ns, mailbox) = (self.name("ns.dns")?, self.name("hostmaster")?);
        let soa = SOA::new(ns, mailbox, serial, 7200, 1800, 86400, TTL_S);
        Some(Record::from_rdata(self.origin.clone(), TTL_S, RData::SOA(soa)))
    }

    /// Looks `name` up. `serial` is for the SOA, `turn` rotates what has several records.
    pub fn lookup(&self, index: &Index, name: &Name, kind: RecordType, serial: u32, turn: usize) -> Lookup {
        if !self.contains(name) {
            return self.reverse(index, name, kind);
        }
        let lower = name.to_lowercase().to_ascii();
        let below = lower.trim_end_matches('.').strip_suffix(&self.text).unwrap_or_default();
        let labels: Vec<&str> = below.trim_end_matches('.').rsplit('.').filter(|l| !l.is_empty()).collect();
        match labels.as_slice() {
            [] => self.apex(name, kind, serial),
            ["dns-version"] => match kind {
                RecordType::TXT => one(name, RData::TXT(TXT::new(vec![DNS_VERSION.to_owned()]))),
                _ => Lookup::NoData,
            },
            ["dns"] | ["svc"] | ["pod"] => Lookup::NoData,
            ["dns", "ns"] => Lookup::NoData,
            ["svc" | "pod", namespace] => match index.has_namespace(namespace) {
                true => Lookup::NoData,
                false => Lookup::NxDomain,
            },
            ["pod", namespace, pod] if index.has_namespace(namespace) => pod_record(name, pod, kind),
            ["svc", namespace, service, rest @ ..] => {
                let mut parts = ServiceName { namespace, service, port: None, endpoint: None };
                match *rest {
                    [] => {}
                    [protocol, port] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                        (Some(port), Some(protocol)) => parts.port = Some((port, protocol)),
                        _ => return Lookup::NxDomain,
                    },
                    [endpoint] => parts.endpoint = Some(endpoint),
                    _ => return Lookup::NxDomain,
                }
                self.service(index, name, &parts, kind, turn)
            }
            _ => Lookup::NxDomain,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType, serial: u32) -> Lookup {
        let data = match kind {
            RecordType::SOA => self.soa(serial).map(|r| r.data),
            RecordType::NS => self.name("ns.dns").map(|n| RData::NS(NS(n))),
            _ => None,
        };
        data.map_or(Lookup::NoData, |data| one(name, data))
    }

    fn service(
        &self,
        index: &Index,
        name: &Name,
        parts: &ServiceName<'_>,
        kind: RecordType,
        turn: usize,
    ) -> Lookup {
        let Some(service) = index.service(parts.namespace, parts.service) else { return Lookup::NxDomain };
        if let Kind::ExternalName(target) = &service.kind {
            if parts.port.is_some() || parts.endpoint.is_some() {
                return Lookup::NxDomain;
            }
            return external(name, target, kind);
        }
        let wanted = |port: &Port| parts.port.is_none_or(|(n, p)| *port.name == *n && *port.protocol == *p);
        // Where traffic goes: (name below the zone for SRV, address, port).
        let mut targets: Vec<(String, IpAddr, Option<u16>)> = vec![];
        let own = format!("{}.{}.svc", parts.service, parts.namespace);
        match &service.kind {
            Kind::ClusterIp(ips) if parts.endpoint.is_none() => {
                for port in service.ports.iter().filter(|p| wanted(p)) {
                    targets.extend(ips.iter().map(|ip| (own.clone(), *ip, Some(port.port))));
                }
                if service.ports.is_empty() && parts.port.is_none() {
                    targets.extend(ips.iter().map(|ip| (own.clone(), *ip, None)));
                }
            }
            _ => {
                for slice in index.slices(parts.namespace, parts.service) {
                    let mine = |e: &&Endpoint| parts.endpoint.is_none_or(|label| e.label() == label);
                    for e in slice.endpoints.iter().filter(mine) {
                        let target = format!("{}.{own}", e.label());
                        for port in slice.ports.iter().filter(|p| wanted(p)) {
                            targets.push((target.clone(), e.ip, Some(port.port)));
                        }
                        if slice.ports.is_empty() && parts.port.is_none() {
                            targets.push((target, e.ip, None));
                        }
                    }
                }
            }
        }
        if targets.is_empty() {
            return Lookup::NxDomain;
        }
        match kind {
            RecordType::SRV => self.srv(name, targets),
            _ => addresses(name, targets.into_iter().map(|(_, ip, _)| ip), kind, turn),
        }
    }

    fn srv(&self, name: &Name, targets: Vec<(String, IpAddr, Option<u16>)>) -> Lookup {
        let mut answer = Answer::default();
        let mut pairs: Vec<(&str, u16)> = vec![];
        let mut hosts: Vec<(&str, IpAddr)> = vec![];
        for (target, ip, port) in &targets {
            let Some(port) = port else { continue };
            if !pairs.contains(&(target, *port)) {
                pairs.push((target, *port));
            }
            if !hosts.contains(&(target, *ip)) {
                hosts.push((target, *ip));
            }
        }
        let weight = (WEIGHT / pairs.len().max(1)).max(1) as u16;
        for (target, port) in pairs {
            let Some(target) = self.name(target) else { continue };
            let data = RData::SRV(SRV::new(0, weight, port, target));
            answer.records.push(Record::from_rdata(name.clone(), TTL_S, data));
        }
        for (target, ip) in hosts {
            let Some(target) = self.name(target) else { continue };
            answer.additionals.push(Record::from_rdata(target, TTL_S, address(ip)));
        }
        if answer.records.is_empty() { Lookup::NoData } else { Lookup::Found(answer) }
    }

    /// Names of cluster IPs and of endpoints.
    fn reverse(&self, index: &Index, name: &Name, kind: RecordType) -> Lookup {
        let Some(ip) = reverse_address(name) else { return Lookup::Foreign };
        let mut names = vec![];
        if let Some((namespace, service)) = index.by_cluster_ip(ip) {
            names.push(format!("{service}.{namespace}.svc"));
        } else {
            for (namespace, service) in index.by_endpoint_ip(ip) {
                // Endpoints of other services have no name of their own there that anybody asked for.
                let headless = index.service(namespace, service).is_some_and(|s| s.kind == Kind::Headless);
                let slices = index.slices(namespace, service);
                let endpoint = slices.flat_map(|s| s.endpoints.iter()).find(|e| e.ip == ip);
                if let Some(endpoint) = endpoint
                    && (headless || endpoint.hostname.is_some())
                {
                    let full = format!("{}.{service}.{namespace}.svc", endpoint.label());
                    if !names.contains(&full) {
                        names.push(full);
                    }
                }
            }
        }
        if names.is_empty() {
            return Lookup::Foreign;
        }
        if kind != RecordType::PTR {
            return Lookup::NoData;
        }
        let names = names.iter().filter_map(|n| self.name(n));
        let records = names.map(|n| Record::from_rdata(name.clone(), TTL_S, RData::PTR(PTR(n)))).collect();
        Lookup::Found(Answer { records, ..Answer::default() })
    }
}

fn one(name: &Name, data: RData) -> Lookup {
    let records = vec![Record::from_rdata(name.clone(), TTL_S, data)];
    Lookup::Found(Answer { records, ..Answer::default() })
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn addresses(name: &Name, ips: impl Iterator<Item = IpAddr>, kind: RecordType, turn: usize) -> Lookup {
    let mut wanted: Vec<IpAddr> = ips
        .filter(|ip| match kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        })
        .collect();
    wanted.sort();
    wanted.dedup();
    if wanted.is_empty() {
        return Lookup::NoData;
    }
    let by = turn % wanted.len();
    wanted.rotate_left(by);
    let records = wanted.into_iter().map(|ip| Record::from_rdata(name.clone(), TTL_S, address(ip))).collect();
    Lookup::Found(Answer { records, ..Answer::default() })
}

/// `10-244-0-5` is an address by itself.
fn pod_record(name: &Name, pod: &str, kind: RecordType) -> Lookup {
    let v4 = (pod.bytes().filter(|b| *b == b'-').count() == 3)
        .then(|| pod.replace('-', ".").parse().ok())
        .flatten();
    let v6 = || pod.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    match v4.map(IpAddr::V4).or_else(v6) {
        Some(ip) => addresses(name, std::iter::once(ip), kind, 0),
        None => Lookup::NxDomain,
    }
}

fn external(name: &Name, target: &str, kind: RecordType) -> Lookup {
    // An address is no name; such a service resolves to nothing.
    if target.parse::<IpAddr>().is_ok() {
        return Lookup::NoData;
    }
    let Ok(mut target) = Name::from_str_relaxed(target) else { return Lookup::NxDomain };
    target.set_fqdn(true);
    let record = Record::from_rdata(name.clone(), TTL_S, RData::CNAME(CNAME(target.clone())));
    let chase = (kind != RecordType::CNAME).then_some(target);
    Lookup::Found(Answer { records: vec![record], additionals: vec![], chase })
}

/// The address a name under `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let text = name.to_lowercase().to_ascii();
    let text = text.trim_end_matches('.');
    if let Some(digits) = text.strip_suffix(".in-addr.arpa") {
        let mut bytes = [0u8; 4];
        let mut labels = digits.rsplit('.');
        for byte in &mut bytes {
            *byte = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| IpAddr::V4(Ipv4Addr::from(bytes)));
    }
    let nibbles = text.strip_suffix(".ip6.arpa")?;
    let mut value = 0u128;
    let mut count = 0;
    for label in nibbles.rsplit('.') {
        value = (value << 4) | u128::from(u8::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)?);
        count += 1;
        if count > 32 {
            return None;
        }
    }
    (count == 32).then(|| IpAddr::V6(value.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::index::{Service, Slice};

    fn index() -> Index {
        let mut index = Index::default();
        for ns in ["default", "kube-system", "empty"] {
            index.put_namespace(ns, true);
        }
        let mut service = |name: &str, spec: Value| {
            let body = serde_json::to_vec(&json!({ "spec": spec })).unwrap();
            index.put_service("default", name, Service::decode(&body));
        };
        let http = json!([{"name": "http", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]);
        service(
            "web",
            json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ports": http}),
        );
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}));
        service("bare", json!({"clusterIP": "None"}));
        service("idle", json!({"clusterIP": "None", "ports": [{"port": 1}]}));
        service("ext", json!({"type": "ExternalName", "externalName": "example.com."}));
        let mut slice = |name: &str, service: &str, value: Value| {
            let body = serde_json::to_vec(&value).unwrap();
            index.put_slice("default", name, Some((service, Slice::decode(&body).unwrap())));
        };
        slice(
            "db-1",
            "db",
            json!({"ports": [{"name": "sql", "port": 5432}], "endpoints": [
                {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.6"]},
                {"addresses": ["10.244.0.7"], "conditions": {"ready": false}}]}),
        );
        slice("bare-1", "bare", json!({"ports": null, "endpoints": [{"addresses": ["10.244.0.9"]}]}));
        slice("web-1", "web", json!({"ports": [], "endpoints": [{"addresses": ["10.244.0.8"]}]}));
        index
    }

    fn ask(name: &str, kind: RecordType) -> String {
        let zone = Zone::new("cluster.local").unwrap();
        let mut name = Name::from_ascii(name).unwrap();
        name.set_fqdn(true);
        match zone.lookup(&index(), &name, kind, 1, 0) {
            Lookup::Found(answer) => {
                let show = |r: &Record| format!("{}", r.data);
                let mut out: Vec<String> = answer.records.iter().map(show).collect();
                out.extend(answer.additionals.iter().map(|r| format!("+{} {}", r.name, r.data)));
                out.extend(answer.chase.map(|n| format!("-> {n}")));
                out.join(", ")
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn answers_as_the_specification_says() {
        use RecordType::*;
        let cases = [
            ("web.default.svc.cluster.local", A, "10.96.0.7"),
            ("WEB.Default.svc.Cluster.local", A, "10.96.0.7"),
            ("web.default.svc.cluster.local", AAAA, "fd00::7"),
            ("web.default.svc.cluster.local", MX, "NoData"),
            ("_http._tcp.web.default.svc.cluster.local", A, "10.96.0.7"),
            (
                "_http._tcp.web.default.svc.cluster.local",
                SRV,
                "0 100 80 web.default.svc.cluster.local., +web.default.svc.cluster.local. 10.96.0.7, +web.default.svc.cluster.local. fd00::7",
            ),
            ("_http._udp.web.default.svc.cluster.local", SRV, "NxDomain"),
            ("http.tcp.web.default.svc.cluster.local", SRV, "NxDomain"),
            ("db.default.svc.cluster.local", A, "10.244.0.5, 10.244.0.6"),
            ("db.default.svc.cluster.local", AAAA, "NoData"),
            ("db-0.db.default.svc.cluster.local", A, "10.244.0.5"),
            ("10-244-0-6.db.default.svc.cluster.local", A, "10.244.0.6"),
            ("10-244-0-7.db.default.svc.cluster.local", A, "NxDomain"),
            (
                "_sql._tcp.db.default.svc.cluster.local",
                SRV,
                "0 50 5432 db-0.db.default.svc.cluster.local., 0 50 5432 10-244-0-6.db.default.svc.cluster.local., +db-0.db.default.svc.cluster.local. 10.244.0.5, +10-244-0-6.db.default.svc.cluster.local. 10.244.0.6",
            ),
            ("bare.default.svc.cluster.local", A, "10.244.0.9"),
            ("bare.default.svc.cluster.local", SRV, "NoData"),
            ("idle.default.svc.cluster.local", A, "NxDomain"),
            ("ext.default.svc.cluster.local", A, "example.com., -> example.com."),
            ("ext.default.svc.cluster.local", CNAME, "example.com."),
            ("_a._tcp.ext.default.svc.cluster.local", SRV, "NxDomain"),
            ("nobody.default.svc.cluster.local", A, "NxDomain"),
            ("default.svc.cluster.local", A, "NoData"),
            ("nowhere.svc.cluster.local", A, "NxDomain"),
            ("svc.cluster.local", A, "NoData"),
            ("cluster.local", A, "NoData"),
            ("cluster.local", NS, "ns.dns.cluster.local."),
            ("what.cluster.local", A, "NxDomain"),
            ("a.b.c.web.default.svc.cluster.local", A, "NxDomain"),
            ("dns-version.cluster.local", TXT, "1.1.0"),
            ("dns-version.cluster.local", A, "NoData"),
            ("10-244-0-5.default.pod.cluster.local", A, "10.244.0.5"),
            ("fd00--5.default.pod.cluster.local", AAAA, "fd00::5"),
            ("10-244-0-5.nowhere.pod.cluster.local", A, "NxDomain"),
            ("10-244-0.default.pod.cluster.local", A, "NxDomain"),
            ("example.com", A, "Foreign"),
            ("7.0.96.10.in-addr.arpa", PTR, "web.default.svc.cluster.local."),
            ("5.0.244.10.in-addr.arpa", PTR, "db-0.db.default.svc.cluster.local."),
            ("6.0.244.10.in-addr.arpa", PTR, "10-244-0-6.db.default.svc.cluster.local."),
            ("8.0.244.10.in-addr.arpa", PTR, "Foreign"),
            ("1.1.1.1.in-addr.arpa", PTR, "Foreign"),
            (
                "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                PTR,
                "web.default.svc.cluster.local.",
            ),
        ];
        for (name, kind, want) in cases {
            assert_eq!(ask(name, kind), want, "{name} {kind}");
        }
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut index = index();
        index.put_service("default", "web", None);
        index.put_slice("default", "db-1", None);
        assert!(index.by_cluster_ip("10.96.0.7".parse().unwrap()).is_none());
        assert_eq!(index.by_endpoint_ip("10.244.0.5".parse().unwrap()).count(), 0);
        assert_eq!(index.slices("default", "db").count(), 0);
    }
}
