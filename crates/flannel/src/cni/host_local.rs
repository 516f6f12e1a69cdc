//! `host-local`: addresses from ranges, allocated on this host's disk in the layout of the reference plugin:
//! one file per address named after it, holding the container and interface; `last_reserved_ip.<n>`; `lock`.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Request;
use super::types::{Address, Doing, Error, Route, Success, lower_keys};

const DATA_DIR: &str = "/var/lib/cni/networks";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipam {
    #[serde(flatten)]
    range: RangeConfig,
    ranges: Vec<Vec<RangeConfig>>,
    routes: Vec<Route>,
    data_dir: String,
    resolv_conf: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RangeConfig {
    subnet: Option<IpNet>,
    #[serde(alias = "rangestart")]
    range_start: Option<IpAddr>,
    #[serde(alias = "rangeend")]
    range_end: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

struct Plan {
    /// One address is taken from each set.
    sets: Vec<Vec<Range>>,
    wanted: Vec<IpAddr>,
    dir: PathBuf,
    ipam: Ipam,
}

fn to_u128(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn offset(ip: IpAddr, by: u128) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).wrapping_add(by as u32).into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).wrapping_add(by).into()),
    }
}

impl RangeConfig {
    fn complete(&self) -> Result<Range, Error> {
        let subnet = self.subnet.ok_or_else(|| Error::config("missing subnet in host-local range"))?;
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(Error::config(format!("network {subnet} too small to allocate from")));
        }
        if subnet.addr() != subnet.network() {
            let trunc = subnet.trunc();
            return Err(Error::config(format!(
                "network has host bits set. For a subnet mask of length {} the network address is {}",
                subnet.prefix_len(),
                trunc.network()
            )));
        }
        let last = match subnet {
            // The broadcast address is not for hosts.
            IpNet::V4(v4) => offset(IpAddr::V4(v4.broadcast()), u128::MAX),
            IpNet::V6(v6) => IpAddr::V6(v6.broadcast()),
        };
        let range = Range {
            subnet,
            start: self.range_start.unwrap_or_else(|| offset(subnet.network(), 1)),
            end: self.range_end.unwrap_or(last),
            gateway: self.gateway.unwrap_or_else(|| offset(subnet.network(), 1)),
        };
        for (what, ip) in [("RangeStart", range.start), ("RangeEnd", range.end)] {
            if !subnet.contains(&ip) {
                return Err(Error::config(format!("{what} {ip} not in network {subnet}")));
            }
        }
        if to_u128(range.start) > to_u128(range.end) {
            return Err(Error::config(format!("RangeStart {} is after RangeEnd {}", range.start, range.end)));
        }
        Ok(range)
    }
}

impl Range {
    fn contains(&self, ip: IpAddr) -> bool {
        self.subnet.contains(&ip) && (to_u128(self.start)..=to_u128(self.end)).contains(&to_u128(ip))
    }

    fn len(&self) -> u128 {
        to_u128(self.end) - to_u128(self.start) + 1
    }
}

fn plan(request: &Request) -> Result<Plan, Error> {
    let value = &request.config["ipam"];
    if !value.is_object() {
        return Err(Error::config("IPAM config missing 'ipam' key"));
    }
    let ipam: Ipam = serde_json::from_value(value.clone())
        .map_err(|e| Error::config(format!("failed to read the host-local configuration: {e}")))?;
    let mut sets = vec![];
    if ipam.range.subnet.is_some() {
        sets.push(vec![ipam.range.complete()?]);
    }
    for set in &ipam.ranges {
        sets.push(set.iter().map(RangeConfig::complete).collect::<Result<_, _>>()?);
    }
    // What the runtime asks for comes on top of, and before, what is configured.
    if let Some(value) = request.config["runtimeConfig"].get("ipRanges") {
        let dynamic: Vec<Vec<RangeConfig>> = serde_json::from_value(lower_keys(value))
            .map_err(|e| Error::config(format!("failed to read runtimeConfig.ipRanges: {e}")))?;
        for (at, set) in dynamic.iter().filter(|s| !s.is_empty()).enumerate() {
            sets.insert(at, set.iter().map(RangeConfig::complete).collect::<Result<_, _>>()?);
        }
    }
    sets.retain(|set: &Vec<Range>| !set.is_empty());
    if sets.is_empty() {
        return Err(Error::config("no IP ranges specified"));
    }
    for (i, set) in sets.iter().enumerate() {
        if set.iter().any(|r| r.subnet.addr().is_ipv4() != set[0].subnet.addr().is_ipv4()) {
            return Err(Error::config(format!("range set {i} has mixed address families")));
        }
        for (j, other) in sets.iter().enumerate().skip(i + 1) {
            if set.iter().any(|a| other.iter().any(|b| b.contains(a.start) || a.contains(b.start))) {
                return Err(Error::config(format!("range set {i} overlaps with {j}")));
            }
        }
    }
    let mut wanted = vec![];
    let asked = request.args.get("IP").into_iter().flat_map(|ips| ips.split(',')).map(str::to_owned);
    let from_json = |v: &Value| -> Vec<String> {
        v.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let asked = asked
        .chain(from_json(&request.config["args"]["cni"]["ips"]))
        .chain(from_json(&request.config["runtimeConfig"]["ips"]));
    for text in asked {
        let ip = text.split('/').next().unwrap_or_default();
        wanted.push(ip.parse().map_err(|_| Error::config(format!("invalid IP address {text:?}")))?);
    }
    let base = if ipam.data_dir.is_empty() { DATA_DIR } else { &ipam.data_dir };
    let dir = Path::new(base).join(request.network());
    Ok(Plan { sets, wanted, dir, ipam })
}

/// The allocations of one network, locked.
struct Store {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    fn open(dir: &Path) -> Result<Store, Error> {
        fs::create_dir_all(dir).doing(|| format!("failed to create {}", dir.display()))?;
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .doing(|| format!("failed to open {}", path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| e)
            .doing(|| format!("failed to lock {}", path.display()))?;
        Ok(Store { dir: dir.to_owned(), _lock: lock })
    }

    /// Every allocation: the address and whose it is.
    fn entries(&self) -> Result<Vec<(IpAddr, String)>, Error> {
        let what = || format!("failed to read {}", self.dir.display());
        let mut out = vec![];
        for entry in fs::read_dir(&self.dir).doing(what)? {
            let entry = entry.doing(what)?;
            let Some(ip) = entry.file_name().to_str().and_then(|n| n.replace('_', ":").parse().ok()) else {
                continue;
            };
            match fs::read_to_string(entry.path()) {
                Ok(owner) => out.push((ip, owner.trim().to_owned())),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e).doing(what),
            }
        }
        Ok(out)
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }

    fn reserve(&self, ip: IpAddr, owner: &str, set: usize) -> Result<bool, Error> {
        let path = self.path(ip);
        let mut file = match OpenOptions::new().create_new(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(e) => return Err(e).doing(|| format!("failed to create {}", path.display())),
        };
        if let Err(e) = file.write_all(owner.as_bytes()) {
            let _ = fs::remove_file(&path);
            return Err(e).doing(|| format!("failed to write {}", path.display()));
        }
        let last = self.last_path(set);
        fs::write(&last, ip.to_string()).doing(|| format!("failed to write {}", last.display()))?;
        Ok(true)
    }

    fn last_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }

    fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.last_path(set)).ok()?.trim().parse().ok()
    }

    fn release(&self, ip: IpAddr) -> Result<(), Error> {
        match fs::remove_file(self.path(ip)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e).doing(|| format!("failed to release {ip}")),
            _ => Ok(()),
        }
    }

    /// Takes the next free address of a set, in turn, so that a released one rests for as long as possible.
    fn allocate(&self, set: &[Range], index: usize, owner: &str) -> Result<Address, Error> {
        let last = self.last(index).and_then(|ip| Some((set.iter().position(|r| r.contains(ip))?, ip)));
        let (first, from) = match last {
            Some((at, ip)) => (at, to_u128(ip) - to_u128(set[at].start) + 1),
            None => (0, 0),
        };
        // The range of the last one is visited twice: its rest first, its beginning at the end.
        for step in 0..=set.len() {
            let range = &set[(first + step) % set.len()];
            let span = match step {
                0 => from..range.len(),
                s if s == set.len() => 0..from,
                _ => 0..range.len(),
            };
            for n in span {
                let ip = offset(range.start, n);
                if ip != range.gateway && self.reserve(ip, owner, index)? {
                    return Ok(range.address(ip));
                }
            }
        }
        let names: Vec<String> = set.iter().map(|r| format!("{}-{}", r.start, r.end)).collect();
        Err(Error::generic(format!("no IP addresses available in range set: {}", names.join(","))))
    }
}

impl Range {
    fn address(&self, ip: IpAddr) -> Address {
        let address = IpNet::new(ip, self.subnet.prefix_len()).unwrap_or(self.subnet);
        Address { interface: None, address, gateway: Some(self.gateway) }
    }
}

fn owner_of(request: &Request) -> String {
    format!("{}\r\n{}", request.container_id, request.ifname)
}

pub fn add(request: &Request) -> Result<Success, Error> {
    let plan = plan(request)?;
    let store = Store::open(&plan.dir)?;
    let owner = owner_of(request);
    let mine: Vec<(IpAddr, String)> = store.entries()?.into_iter().filter(|(_, o)| *o == owner).collect();
    let mut taken = vec![];
    let mut wanted = plan.wanted.clone();
    let outcome = plan.sets.iter().enumerate().try_for_each(|(index, set)| {
        let held = mine.iter().find(|(ip, _)| set.iter().any(|r| r.contains(*ip)));
        if let Some((ip, _)) = held {
            let msg = format!(
                "failed to allocate for range {index}: {ip} has been allocated to {}, duplicate allocation is not allowed",
                request.container_id
            );
            return Err(Error::generic(msg));
        }
        let asked = wanted.iter().position(|ip| set.iter().any(|r| r.contains(*ip)));
        let address = match asked.map(|at| wanted.remove(at)) {
            None => store.allocate(set, index, &owner)?,
            Some(ip) => {
                let range = set.iter().find(|r| r.contains(ip)).unwrap_or(&set[0]);
                if ip == range.gateway {
                    let msg = format!("requested ip {ip} is subnet's gateway");
                    return Err(Error::generic(format!("failed to allocate for range {index}: {msg}")));
                }
                if !store.reserve(ip, &owner, index)? {
                    let msg = format!("requested IP address {ip} is not available in range set");
                    return Err(Error::generic(format!("failed to allocate for range {index}: {msg}")));
                }
                range.address(ip)
            }
        };
        taken.push(address);
        Ok(())
    });
    let outcome = outcome.and_then(|()| match wanted.is_empty() {
        true => Ok(()),
        false => Err(Error::generic(format!("failed to allocate all requested IPs: {wanted:?}"))),
    });
    if let Err(e) = outcome {
        for address in &taken {
            store.release(address.address.addr())?;
        }
        return Err(e);
    }
    let dns = if plan.ipam.resolv_conf.is_empty() { Map::new() } else { read_dns(&plan.ipam.resolv_conf)? };
    Ok(Success { ips: taken, routes: plan.ipam.routes, dns, ..Default::default() })
}

pub fn del(request: &Request) -> Result<(), Error> {
    let plan = plan(request)?;
    if !plan.dir.exists() {
        return Ok(());
    }
    let store = Store::open(&plan.dir)?;
    let owner = owner_of(request);
    for (ip, holder) in store.entries()? {
        // Allocations from before interfaces were noted name the container alone.
        if holder == owner || holder == request.container_id {
            store.release(ip)?;
        }
    }
    Ok(())
}

pub fn check(request: &Request) -> Result<(), Error> {
    let plan = plan(request)?;
    let store = Store::open(&plan.dir)?;
    let owner = owner_of(request);
    if store.entries()?.iter().any(|(_, holder)| *holder == owner || *holder == request.container_id) {
        return Ok(());
    }
    Err(Error::generic(format!(
        "host-local: Failed to find address added by container {}",
        request.container_id
    )))
}

pub fn gc(request: &Request) -> Result<(), Error> {
    let plan = plan(request)?;
    if !plan.dir.exists() {
        return Ok(());
    }
    let valid: BTreeSet<String> =
        request.valid_attachments().into_iter().map(|(id, ifname)| format!("{id}\r\n{ifname}")).collect();
    let store = Store::open(&plan.dir)?;
    for (ip, holder) in store.entries()? {
        if !valid.contains(&holder) {
            store.release(ip)?;
        }
    }
    Ok(())
}

fn read_dns(path: &str) -> Result<Map<String, Value>, Error> {
    let text = fs::read_to_string(path).doing(|| format!("failed to read {path}"))?;
    let mut dns = Map::new();
    let mut push = |key: &str, values: Vec<&str>| {
        let list = dns.entry(key).or_insert_with(|| Value::Array(vec![]));
        if let Value::Array(list) = list {
            list.extend(values.into_iter().map(Value::from));
        }
    };
    let mut domain = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => push("nameservers", words.take(1).collect()),
            Some("search") => push("search", words.collect()),
            Some("options") => push("options", words.collect()),
            Some("domain") => domain = words.next(),
            _ => {}
        }
    }
    if let Some(domain) = domain {
        dns.insert("domain".into(), domain.into());
    }
    Ok(dns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(dir: &Path, id: &str, ipam: Value) -> Request {
        let mut ipam = ipam;
        ipam["type"] = json!("host-local");
        ipam["dataDir"] = json!(dir.to_str());
        Request {
            container_id: id.into(),
            netns: String::new(),
            ifname: "eth0".into(),
            args: Default::default(),
            raw_args: String::new(),
            path: vec![],
            config: json!({"cniVersion": "1.0.0", "name": "net", "ipam": ipam}),
        }
    }

    #[test]
    fn hands_out_addresses_in_turn_and_takes_them_back() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = json!({"subnet": "10.1.2.0/29", "routes": [{"dst": "10.0.0.0/8"}]});
        let get = |id: &str| add(&request(dir.path(), id, ipam.clone()));
        let ip = |id: &str| get(id).unwrap().ips[0].address.to_string();
        assert_eq!(ip("a"), "10.1.2.2/29");
        assert_eq!(ip("b"), "10.1.2.3/29");
        assert_eq!(std::fs::read_to_string(dir.path().join("net/10.1.2.2")).unwrap(), "a\r\neth0");
        assert_eq!(std::fs::read_to_string(dir.path().join("net/last_reserved_ip.0")).unwrap(), "10.1.2.3");
        assert!(get("a").unwrap_err().msg.contains("duplicate allocation is not allowed"));
        check(&request(dir.path(), "a", ipam.clone())).unwrap();
        del(&request(dir.path(), "a", ipam.clone())).unwrap();
        del(&request(dir.path(), "a", ipam.clone())).unwrap();
        assert!(check(&request(dir.path(), "a", ipam.clone())).is_err());
        // A released address is the last to come back.
        assert_eq!(
            ["c", "d", "e", "f"].map(ip),
            ["10.1.2.4/29", "10.1.2.5/29", "10.1.2.6/29", "10.1.2.2/29"]
        );
        assert!(get("g").unwrap_err().msg.contains("no IP addresses available"));
        let mut sweep = request(dir.path(), "", ipam.clone());
        sweep.config["cni.dev/valid-attachments"] = json!([{"containerID": "b", "ifname": "eth0"}]);
        gc(&sweep).unwrap();
        assert!(check(&request(dir.path(), "b", ipam.clone())).is_ok());
        assert!(check(&request(dir.path(), "c", ipam.clone())).is_err());
    }

    #[test]
    fn one_address_per_range_set() {
        let dir = tempfile::tempdir().unwrap();
        let ipam = json!({"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.9"},
            {"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]]});
        let ips = |id: &str| -> Vec<String> {
            let success = add(&request(dir.path(), id, ipam.clone())).unwrap();
            success.ips.iter().map(|a| a.address.to_string()).collect()
        };
        assert_eq!(ips("a"), ["10.1.0.9/24", "fd00::2/64"]);
        assert_eq!(ips("b"), ["10.2.0.2/24", "fd00::3/64"]);
    }

    #[test]
    fn a_requested_address_is_given_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ask = |id: &str, ip: &str| {
            let mut r = request(dir.path(), id, json!({"subnet": "10.1.2.0/24"}));
            r.args.insert("IP".into(), ip.into());
            add(&r)
        };
        assert_eq!(ask("a", "10.1.2.77").unwrap().ips[0].address.to_string(), "10.1.2.77/24");
        for (ip, why) in [
            ("10.1.2.77", "is not available"),
            ("10.1.2.1", "is subnet's gateway"),
            ("10.9.9.9", "failed to allocate all requested IPs"),
        ] {
            assert!(ask("b", ip).unwrap_err().msg.contains(why), "{ip}");
        }
    }

    #[test]
    fn refuses_impossible_ranges() {
        let dir = tempfile::tempdir().unwrap();
        for (ipam, why) in [
            (json!({}), "no IP ranges specified"),
            (json!({"subnet": "10.0.0.0/31"}), "too small"),
            (json!({"subnet": "10.0.0.5/24"}), "host bits set"),
            (json!({"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"}), "not in network"),
            (
                json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}),
                "mixed address families",
            ),
            (json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}), "overlaps"),
        ] {
            let e = add(&request(dir.path(), "a", ipam)).unwrap_err();
            assert!(e.msg.contains(why), "{} lacks {why}", e.msg);
        }
    }
}
