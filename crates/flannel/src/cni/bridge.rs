//! `bridge`: a veth pair between the pod and a bridge of the host, addresses and routes inside the pod, the gateway
//! address on the bridge.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::os::fd::AsFd;

use ipnet::IpNet;

use super::types::{Address, Doing, Error, Interface, Route as ResultRoute, Success, UNSUPPORTED_FIELD};
use super::{Command, Request, ipam, masquerade, netns, sysctl};
use crate::netlink::{Link, Mac, Netlink, Route};

struct Conf {
    bridge: String,
    is_gateway: bool,
    default_gateway: bool,
    force_address: bool,
    masquerade: bool,
    hairpin: bool,
    promiscuous: bool,
    isolated: bool,
    disable_interface: bool,
    mtu: u32,
    mac: Option<Mac>,
}

fn read(request: &Request) -> Result<Conf, Error> {
    for field in ["vlan", "vlanTrunk", "macspoofchk"] {
        let value = &request.config[field];
        let off =
            value.is_null() || value == 0 || value == false || value.as_array().is_some_and(Vec::is_empty);
        if !off {
            return Err(Error::new(UNSUPPORTED_FIELD, format!("bridge: {field} is not supported")));
        }
    }
    let mac = [
        request.config["runtimeConfig"]["mac"].as_str(),
        request.config["args"]["cni"]["mac"].as_str(),
        request.args.get("MAC").map(String::as_str),
        request.config["mac"].as_str(),
    ];
    let mac = mac.into_iter().flatten().find(|m| !m.is_empty());
    let conf = Conf {
        bridge: match request.text("bridge") {
            "" => "cni0".into(),
            name => name.into(),
        },
        is_gateway: request.flag("isGateway") || request.flag("isDefaultGateway"),
        default_gateway: request.flag("isDefaultGateway"),
        force_address: request.flag("forceAddress"),
        masquerade: masquerade::wanted(&request.config),
        hairpin: request.flag("hairpinMode"),
        promiscuous: request.flag("promiscMode"),
        isolated: request.flag("portIsolation"),
        disable_interface: request.flag("disableContainerInterface"),
        mtu: request.config["mtu"].as_u64().unwrap_or(0) as u32,
        mac: mac.map(|m| m.parse().map_err(Error::config)).transpose()?,
    };
    if conf.hairpin && conf.promiscuous {
        return Err(Error::config("cannot set hairpin mode and promiscuous mode at the same time."));
    }
    if conf.bridge.len() > 15 || conf.bridge.contains(['/', ' ', ':']) {
        return Err(Error::config(format!("invalid bridge name {:?}", conf.bridge)));
    }
    Ok(conf)
}

/// The first address of the network, by convention the gateway's.
fn first_address(net: IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + 1).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + 1).into()),
    }
}

fn default_route(v4: bool) -> IpNet {
    let any: IpAddr = if v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    IpNet::from(any).supernet_to(0)
}

trait Supernet {
    fn supernet_to(self, prefix: u8) -> IpNet;
}

impl Supernet for IpNet {
    fn supernet_to(self, prefix: u8) -> IpNet {
        IpNet::new(self.addr(), prefix).map_or(self, |n| n.trunc())
    }
}

/// Completes what IPAM gave: gateways, and the default route where the bridge is to be it.
fn complete(conf: &Conf, success: &mut Success) {
    for ip in &mut success.ips {
        ip.interface = Some(2);
        if conf.is_gateway && ip.gateway.is_none() {
            ip.gateway = Some(first_address(ip.address));
        }
    }
    if !conf.default_gateway {
        return;
    }
    for v4 in [true, false] {
        let default = default_route(v4);
        let gateway =
            success.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4).and_then(|ip| ip.gateway);
        if gateway.is_some() && !success.routes.iter().any(|r| r.dst == default) {
            success.routes.push(ResultRoute { dst: default, gw: gateway, rest: Default::default() });
        }
    }
}

fn random_mac() -> Mac {
    let [a, b, c, d, e, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
    // Locally administered, unicast.
    Mac([0x02, a, b, c, d, e])
}

fn ensure_bridge(netlink: &mut Netlink, conf: &Conf, gateway: Option<IpAddr>) -> Result<Link, Error> {
    let name = &conf.bridge;
    let find = |netlink: &mut Netlink| netlink.link(name).doing(|| format!("failed to find bridge {name:?}"));
    let link = match find(netlink)? {
        Some(link) => link,
        None => {
            // With an address of its own the bridge does not take the lowest of its ports', which would change as
            // pods come and go.
            let mac = gateway.map_or_else(random_mac, Mac::from_ip);
            match netlink.create_bridge(name, conf.mtu, Some(mac)) {
                Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
                    return Err(e).doing(|| format!("could not add {name:?}"));
                }
                _ => {}
            }
            if gateway.is_some_and(|g| g.is_ipv6()) {
                let _ = sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
            }
            find(netlink)?.ok_or_else(|| Error::generic(format!("bridge {name:?} disappeared")))?
        }
    };
    if link.kind != "bridge" {
        return Err(Error::generic(format!("{name:?} already exists but is not a bridge")));
    }
    if !link.up {
        netlink.set_up(link.index).doing(|| format!("failed to set bridge {name:?} up"))?;
    }
    if conf.promiscuous {
        netlink
            .set_promiscuous(link.index)
            .doing(|| format!("could not set promiscuous mode on {name:?}"))?;
    }
    Ok(link)
}

fn ensure_gateway(netlink: &mut Netlink, conf: &Conf, bridge: &Link, ip: &Address) -> Result<(), Error> {
    let Some(gateway) = ip.gateway else { return Ok(()) };
    let Ok(wanted) = IpNet::new(gateway, ip.address.prefix_len()) else { return Ok(()) };
    let name = &conf.bridge;
    for have in netlink.addresses(bridge.index).doing(|| format!("could not get addresses of {name:?}"))? {
        if have == wanted {
            return Ok(());
        }
        let same_family = have.addr().is_ipv4() == wanted.addr().is_ipv4();
        let overlap = have.contains(&wanted.network()) || wanted.contains(&have.network());
        if same_family && (wanted.addr().is_ipv4() || overlap) {
            if !conf.force_address {
                let msg = format!(
                    "failed to set bridge addr: {name:?} already has an IP address different from {wanted}"
                );
                return Err(Error::generic(msg));
            }
            netlink
                .delete_address(bridge.index, have)
                .doing(|| format!("could not remove IP address from {name:?}"))?;
        }
    }
    netlink.add_address(bridge.index, wanted).doing(|| format!("could not add IP address to {name:?}"))
}

/// Everything inside the pod: addresses, link up, routes. Returns the link.
fn configure_pod(request: &Request, ns: &File, success: &Success, up: bool) -> Result<Link, Error> {
    let ifname = &request.ifname;
    netns::within(ns, &request.netns, |netlink| {
        let link = netlink
            .link(ifname)
            .doing(|| format!("failed to look up {ifname:?}"))?
            .ok_or_else(|| Error::generic(format!("failed to look up {ifname:?}: Link not found")))?;
        if !up {
            return Ok(link);
        }
        if success.ips.iter().any(|ip| ip.address.addr().is_ipv6()) {
            for scope in ["all", "default", "lo", ifname] {
                let _ = sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0");
            }
        }
        // Tell the neighbours whose address this is now.
        let _ = sysctl(&format!("net/ipv4/conf/{ifname}/arp_notify"), "1");
        for ip in &success.ips {
            netlink
                .add_address(link.index, ip.address)
                .doing(|| format!("failed to add IP addr {} to {ifname:?}", ip.address))?;
        }
        netlink.set_up(link.index).doing(|| format!("failed to set {ifname:?} UP"))?;
        for route in &success.routes {
            let v4 = route.dst.addr().is_ipv4();
            let gateway = route.gw.or_else(|| {
                success.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4).and_then(|ip| ip.gateway)
            });
            let new = match gateway {
                Some(gateway) => Route::via(route.dst, gateway, link.index),
                None => Route::on_device(route.dst, link.index),
            };
            netlink
                .add_route(&new)
                .doing(|| format!("failed to add route '{} via {gateway:?} dev {ifname}'", route.dst))?;
        }
        Ok(link)
    })
}

pub fn add(request: &Request) -> Result<Success, Error> {
    let conf = read(request)?;
    let layer3 = request.config["ipam"]["type"].as_str().is_some_and(|t| !t.is_empty());
    if layer3 && conf.disable_interface {
        return Err(Error::config("cannot use IPAM when DisableContainerInterface flag is set"));
    }
    let ns = netns::open(&request.netns)?
        .ok_or_else(|| Error::generic(format!("failed to open netns {:?}: no such file", request.netns)))?;
    let mut success = match layer3 {
        true => ipam(Command::Add, request)?.unwrap_or_default(),
        false => Success::default(),
    };
    let attached = (|| {
        if layer3 && success.ips.is_empty() {
            return Err(Error::generic("IPAM plugin returned missing IP config"));
        }
        complete(&conf, &mut success);
        attach(request, &conf, &ns, success.clone())
    })();
    if attached.is_err() {
        if layer3 {
            let _ = ipam(Command::Del, request);
        }
        let _ = remove_link(request);
    }
    attached
}

fn attach(request: &Request, conf: &Conf, ns: &File, mut success: Success) -> Result<Success, Error> {
    let mut netlink = Netlink::open().doing(|| "failed to open netlink".into())?;
    let gateway = success.ips.iter().find_map(|ip| ip.gateway).filter(|_| conf.is_gateway);
    let bridge = ensure_bridge(&mut netlink, conf, gateway)?;
    let mac = conf.mac.or_else(|| success.ips.first().map(|ip| Mac::from_ip(ip.address.addr())));
    let host = create_pair(&mut netlink, request, conf, &bridge, mac, ns)?;
    if conf.hairpin {
        netlink
            .set_hairpin(host.index, true)
            .doing(|| format!("failed to setup hairpin mode for {}", host.name))?;
    }
    if conf.isolated {
        netlink
            .set_isolated(host.index, true)
            .doing(|| format!("failed to set isolated on for {}", host.name))?;
    }
    let pod = configure_pod(request, ns, &success, !conf.disable_interface)?;
    if conf.is_gateway {
        for ip in &success.ips {
            ensure_gateway(&mut netlink, conf, &bridge, ip)?;
            let key = if ip.address.addr().is_ipv4() {
                "net/ipv4/ip_forward"
            } else {
                "net/ipv6/conf/all/forwarding"
            };
            sysctl(key, "1")?;
        }
    }
    if conf.masquerade {
        for ip in &success.ips {
            masquerade::add(ip.address, &owner_of(request))?;
        }
    }
    let show = |mac: Option<Mac>| mac.map(|m| m.to_string()).unwrap_or_default();
    success.interfaces = vec![
        Interface { name: bridge.name.clone(), mac: show(bridge.mac), ..Default::default() },
        Interface { name: host.name.clone(), mac: show(host.mac), ..Default::default() },
        Interface {
            name: request.ifname.clone(),
            mac: show(pod.mac),
            sandbox: request.netns.clone(),
            ..Default::default()
        },
    ];
    if success.dns.is_empty()
        && let Some(dns) = request.config["dns"].as_object()
    {
        success.dns = dns.clone();
    }
    Ok(success)
}

fn create_pair(
    netlink: &mut Netlink,
    request: &Request,
    conf: &Conf,
    bridge: &Link,
    mac: Option<Mac>,
    ns: &File,
) -> Result<Link, Error> {
    let mtu = if conf.mtu > 0 { conf.mtu } else { bridge.mtu };
    for _ in 0..10 {
        let name = format!("veth{:08x}", RandomState::new().build_hasher().finish() as u32);
        match netlink.create_veth(&name, Some(bridge.index), mtu, &request.ifname, mac, ns.as_fd()) {
            Ok(()) => {
                return netlink
                    .link(&name)
                    .doing(|| format!("failed to look up {name:?}"))?
                    .ok_or_else(|| Error::generic(format!("veth {name} disappeared")));
            }
            // The name may be taken on either side; only on this one does another help.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let there = netns::within(ns, &request.netns, |pod| {
                    pod.link(&request.ifname).doing(|| "failed to list links".into())
                })?;
                if there.is_some() {
                    let msg = format!("container veth name {:?} already exists", request.ifname);
                    return Err(Error::generic(msg));
                }
            }
            Err(e) => return Err(e).doing(|| "failed to make veth pair".into()),
        }
    }
    Err(Error::generic("failed to find a unique veth name"))
}

fn owner_of(request: &Request) -> String {
    let id: String = request.container_id.chars().take(64).collect();
    let network: String = request.network().chars().take(40).collect();
    format!("{network}/{id}/{}", request.ifname)
}

fn remove_link(request: &Request) -> Result<(), Error> {
    let Some(ns) = netns::open(&request.netns)? else { return Ok(()) };
    let ifname = &request.ifname;
    netns::within(&ns, &request.netns, |netlink| {
        let Some(link) = netlink.link(ifname).doing(|| format!("failed to lookup {ifname:?}"))? else {
            return Ok(());
        };
        match netlink.delete_link(link.index) {
            Err(e) if e.raw_os_error() != Some(libc::ENODEV) => {
                Err(e).doing(|| format!("failed to delete {ifname:?}"))
            }
            _ => Ok(()),
        }
    })
}

pub fn del(request: &Request) -> Result<(), Error> {
    let conf = read(request)?;
    ipam(Command::Del, request)?;
    // A namespace that is gone took the pair with it. One that cannot be entered is as good as gone.
    match remove_link(request) {
        Err(e)
            if netns::open(&request.netns).is_ok_and(|ns| ns.is_some()) && !e.msg.contains("enter netns") =>
        {
            return Err(e);
        }
        _ => {}
    }
    if conf.masquerade {
        let owner = owner_of(request);
        masquerade::retain(|o| o != owner)?;
    }
    Ok(())
}

pub fn check(request: &Request) -> Result<(), Error> {
    let conf = read(request)?;
    ipam(Command::Check, request)?;
    let Some(previous) = request.previous()? else {
        return Err(Error::config("Required prevResult missing"));
    };
    let mut netlink = Netlink::open().doing(|| "failed to open netlink".into())?;
    let bridge = match netlink.link(&conf.bridge).doing(|| "failed to find the bridge".into())? {
        Some(link) if link.kind == "bridge" => link,
        Some(link) => {
            return Err(Error::generic(format!("Interface {} does not exist as a bridge", link.name)));
        }
        None => return Err(Error::generic(format!("Interface {} not found", conf.bridge))),
    };
    let in_pod = |i: &&Interface| i.sandbox == request.netns && i.name == request.ifname;
    let Some(want) = previous.interfaces.iter().find(in_pod) else {
        let msg = format!("Sandbox in prevResult doesn't match configured netns: {}", request.netns);
        return Err(Error::generic(msg));
    };
    for interface in previous.interfaces.iter().filter(|i| i.sandbox.is_empty() && i.name != conf.bridge) {
        match netlink.link(&interface.name).doing(|| "failed to find a link".into())? {
            Some(link) if link.master == Some(bridge.index) => {}
            Some(_) => {
                let msg = format!("{} is not a port of {}", interface.name, conf.bridge);
                return Err(Error::generic(msg));
            }
            None => return Err(Error::generic(format!("Interface {} not found", interface.name))),
        }
    }
    let ns = netns::open(&request.netns)?
        .ok_or_else(|| Error::generic(format!("failed to open netns {:?}: no such file", request.netns)))?;
    netns::within(&ns, &request.netns, |netlink| {
        let ifname = &request.ifname;
        let link =
            netlink.link(ifname).doing(|| "failed to find the pod's link".into())?.ok_or_else(|| {
                Error::generic(format!("Container Interface name in prevResult: {ifname} not found"))
            })?;
        if !want.mac.is_empty() && link.mac.is_some_and(|m| !m.to_string().eq_ignore_ascii_case(&want.mac)) {
            let msg =
                format!("Interface {ifname} Mac {:?} doesn't match container Mac: {}", link.mac, want.mac);
            return Err(Error::generic(msg));
        }
        let have = netlink.addresses(link.index).doing(|| "failed to list addresses".into())?;
        if let Some(lost) = previous.ips.iter().find(|ip| !have.contains(&ip.address)) {
            return Err(Error::generic(format!(
                "Failed to match addr {} on interface {ifname}",
                lost.address
            )));
        }
        let have = netlink.routes().doing(|| "failed to list routes".into())?;
        let missing = previous.routes.iter().find(|want| {
            !have.iter().any(|r| r.dst == want.dst && (want.gw.is_none() || r.gateway == want.gw))
        });
        match missing {
            Some(route) => {
                Err(Error::generic(format!("Expected Route {} not found in routing table", route.dst)))
            }
            None => Ok(()),
        }
    })
}

pub fn gc(request: &Request) -> Result<(), Error> {
    ipam(Command::Gc, request)?;
    if !masquerade::wanted(&request.config) {
        return Ok(());
    }
    let valid: Vec<String> = request
        .valid_attachments()
        .into_iter()
        .map(|(container_id, ifname)| owner_of(&Request { container_id, ifname, ..request.clone() }))
        .collect();
    let prefix: String = request.network().chars().take(40).chain(['/']).collect();
    masquerade::retain(|o| !o.starts_with(&prefix) || valid.iter().any(|v| v == o))
}

pub fn status(request: &Request) -> Result<(), Error> {
    read(request)?;
    ipam(Command::Status, request).map(|_| ())
}
