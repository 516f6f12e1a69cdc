//! A small synchronous rtnetlink client: just the links, addresses, routes and neighbours Flannel needs.
//!
//! Synchronous because a CNI plugin is a process that lives for a few milliseconds and enters other network
//! namespaces on threads; an async connection task would cost more than all the requests it carries. A request is
//! one `send` and one `recv`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use ipnet::IpNet;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GBP: u16 = 23;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTNH_F_ONLINK: u32 = 4;
const RT_TABLE_MAIN: u32 = 254;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;
const RTN_UNICAST: u8 = 1;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The stable address of whoever has `ip`: `0a:58` and the last four bytes, so that a reused IP never meets a
    /// stale neighbour entry.
    pub fn from_ip(ip: IpAddr) -> Mac {
        let tail: [u8; 4] = match ip {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => {
                let o = v6.octets();
                [o[12], o[13], o[14], o[15]]
            }
        };
        Mac([0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Mac {
    type Err = String;
    fn from_str(s: &str) -> Result<Mac, String> {
        let mut out = [0; 6];
        let mut parts = s.split([':', '-']);
        for byte in &mut out {
            let part = parts.next().ok_or_else(|| format!("address {s}: invalid MAC address"))?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| format!("address {s}: invalid MAC address"))?;
        }
        match parts.next() {
            None => Ok(Mac(out)),
            Some(_) => Err(format!("address {s}: invalid MAC address")),
        }
    }
}

/// What is known of a link.
#[derive(Clone, Debug, Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub kind: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub master: Option<u32>,
    pub up: bool,
    pub running: bool,
    pub vxlan: Option<Vxlan>,
}

/// The parameters of a VXLAN device that make it ours or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vxlan {
    pub vni: u32,
    pub port: u16,
    pub local: Option<Ipv4Addr>,
    pub device: u32,
    pub learning: bool,
    pub gbp: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    pub dst: IpNet,
    pub gateway: Option<IpAddr>,
    pub device: u32,
    pub onlink: bool,
    pub src: Option<IpAddr>,
    pub scope: u8,
    pub metric: u32,
}

impl Route {
    pub fn via(dst: IpNet, gateway: IpAddr, device: u32) -> Route {
        Route { dst, gateway: Some(gateway), device, onlink: false, src: None, scope: 0, metric: 0 }
    }

    pub fn on_device(dst: IpNet, device: u32) -> Route {
        Route { dst, gateway: None, device, onlink: false, src: None, scope: libc::RT_SCOPE_LINK, metric: 0 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    pub device: u32,
    pub mac: Mac,
    pub ip: IpAddr,
}

struct Message(Vec<u8>);

impl Message {
    fn new() -> Message {
        Message(Vec::with_capacity(256))
    }

    fn link(family: u8, index: u32, flags: u32, change: u32) -> Message {
        let mut m = Message::new();
        m.link_header(family, index, flags, change);
        m
    }

    fn link_header(&mut self, family: u8, index: u32, flags: u32, change: u32) {
        self.0.extend([family, 0, 0, 0]);
        self.0.extend(index.to_ne_bytes());
        self.0.extend(flags.to_ne_bytes());
        self.0.extend(change.to_ne_bytes());
    }

    fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = (4 + value.len()) as u16;
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.pad();
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    fn ip(&mut self, kind: u16, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) => self.attr(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attr(kind, &v6.octets()),
        }
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        fill(self);
        let len = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }
}

fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// Walks the attributes of a message body.
fn attrs(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(data.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = data.get(4..len)?;
        data = data.get((len + 3) & !3..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn as_u32(v: &[u8]) -> u32 {
    v.get(..4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn as_text(v: &[u8]) -> String {
    String::from_utf8_lossy(v.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

fn as_mac(v: &[u8]) -> Option<Mac> {
    v.try_into().ok().map(Mac)
}

fn as_ip(v: &[u8]) -> Option<IpAddr> {
    match v.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(v).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(v).ok()?)),
        _ => None,
    }
}

/// One rtnetlink socket, bound to the network namespace of the thread that opened it.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub fn open() -> io::Result<Netlink> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Netlink { fd, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut out = Vec::with_capacity(16 + body.len());
        out.extend(((16 + body.len()) as u32).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        out.extend(self.sequence.to_ne_bytes());
        out.extend([0; 4]);
        out.extend(body);
        sendto(self.fd.as_raw_fd(), &out, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Sends a request and calls `each` with the answers, up to the acknowledgement or the end of the dump.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.send(kind, flags, body)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let done = loop {
            let n = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => break Err(e.into()),
            };
            match self.read_batch(&buffer[..n], &mut each) {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(e) => break Err(e),
            }
        };
        self.buffer = buffer;
        done
    }

    fn read_batch(&self, mut data: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
        while data.len() >= 16 {
            let len = as_u32(data) as usize;
            if len < 16 || len > data.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message"));
            }
            let kind = u16::from_ne_bytes([data[4], data[5]]);
            let sequence = as_u32(&data[8..]);
            let body = &data[16..len];
            data = data.get((len + 3) & !3..).unwrap_or(&[]);
            if sequence != self.sequence {
                continue;
            }
            match kind {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => match as_u32(body) as i32 {
                    0 => return Ok(true),
                    errno => return Err(io::Error::from_raw_os_error(-errno)),
                },
                _ => each(kind, body),
            }
        }
        Ok(false)
    }

    fn request(&mut self, kind: u16, flags: u16, message: &Message) -> io::Result<()> {
        self.exchange(kind, flags | NLM_F_ACK, &message.0, |_, _| {})
    }

    pub fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut m = Message::link(0, 0, 0, 0);
        m.text(IFLA_IFNAME, name);
        self.one_link(m)
    }

    pub fn link_at(&mut self, index: u32) -> io::Result<Option<Link>> {
        self.one_link(Message::link(0, index, 0, 0))
    }

    fn one_link(&mut self, m: Message) -> io::Result<Option<Link>> {
        let mut found = None;
        match self.exchange(RTM_GETLINK, NLM_F_ACK, &m.0, |kind, body| {
            if kind == RTM_NEWLINK {
                found = Some(parse_link(body));
            }
        }) {
            Ok(()) => Ok(found),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut out = vec![];
        self.exchange(RTM_GETLINK, NLM_F_DUMP, &Message::link(0, 0, 0, 0).0, |kind, body| {
            if kind == RTM_NEWLINK {
                out.push(parse_link(body));
            }
        })?;
        Ok(out)
    }

    pub fn create_bridge(&mut self, name: &str, mtu: u32, mac: Option<Mac>) -> io::Result<()> {
        let mut m = Message::link(0, 0, IFF_UP, IFF_UP);
        m.text(IFLA_IFNAME, name);
        if mtu > 0 {
            m.u32(IFLA_MTU, mtu);
        }
        if let Some(mac) = mac {
            m.attr(IFLA_ADDRESS, &mac.0);
        }
        m.nested(IFLA_LINKINFO, |m| m.text(IFLA_INFO_KIND, "bridge"));
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &m)
    }

    /// Creates a veth pair in one request: `host` here (up, port of `master`), `peer` directly in the namespace of
    /// `netns`, still down.
    pub fn create_veth(
        &mut self,
        host: &str,
        master: Option<u32>,
        mtu: u32,
        peer: &str,
        peer_mac: Option<Mac>,
        netns: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut m = Message::link(0, 0, IFF_UP, IFF_UP);
        m.text(IFLA_IFNAME, host);
        if mtu > 0 {
            m.u32(IFLA_MTU, mtu);
        }
        if let Some(master) = master {
            m.u32(IFLA_MASTER, master);
        }
        m.nested(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "veth");
            m.nested(IFLA_INFO_DATA, |m| {
                m.nested(VETH_INFO_PEER, |m| {
                    m.link_header(0, 0, 0, 0);
                    m.text(IFLA_IFNAME, peer);
                    if mtu > 0 {
                        m.u32(IFLA_MTU, mtu);
                    }
                    if let Some(mac) = peer_mac {
                        m.attr(IFLA_ADDRESS, &mac.0);
                    }
                    m.u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                });
            });
        });
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &m)
    }

    pub fn create_vxlan(&mut self, name: &str, mtu: u32, mac: Option<Mac>, vxlan: &Vxlan) -> io::Result<()> {
        let mut m = Message::link(0, 0, IFF_UP, IFF_UP);
        m.text(IFLA_IFNAME, name);
        m.u32(IFLA_MTU, mtu);
        if let Some(mac) = mac {
            m.attr(IFLA_ADDRESS, &mac.0);
        }
        m.nested(IFLA_LINKINFO, |m| {
            m.text(IFLA_INFO_KIND, "vxlan");
            m.nested(IFLA_INFO_DATA, |m| {
                m.u32(IFLA_VXLAN_ID, vxlan.vni);
                m.attr(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
                m.attr(IFLA_VXLAN_LEARNING, &[vxlan.learning.into()]);
                if vxlan.device != 0 {
                    m.u32(IFLA_VXLAN_LINK, vxlan.device);
                }
                if let Some(local) = vxlan.local {
                    m.attr(IFLA_VXLAN_LOCAL, &local.octets());
                }
                if vxlan.gbp {
                    m.attr(IFLA_VXLAN_GBP, &[]);
                }
            });
        });
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &m)
    }

    pub fn delete_link(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_DELLINK, 0, &Message::link(0, index, 0, 0))
    }

    pub fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_SETLINK, 0, &Message::link(0, index, IFF_UP, IFF_UP))
    }

    pub fn set_down(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_SETLINK, 0, &Message::link(0, index, 0, IFF_UP))
    }

    pub fn set_promiscuous(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_SETLINK, 0, &Message::link(0, index, IFF_PROMISC, IFF_PROMISC))
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let mut m = Message::link(0, index, 0, 0);
        m.u32(IFLA_MTU, mtu);
        self.request(RTM_SETLINK, 0, &m)
    }

    /// Lets a bridge port send a frame back where it came from: a pod reaching itself through its service.
    pub fn set_hairpin(&mut self, port: u32, on: bool) -> io::Result<()> {
        self.set_port(port, IFLA_BRPORT_MODE, on)
    }

    pub fn set_isolated(&mut self, port: u32, on: bool) -> io::Result<()> {
        self.set_port(port, IFLA_BRPORT_ISOLATED, on)
    }

    fn set_port(&mut self, port: u32, option: u16, on: bool) -> io::Result<()> {
        let mut m = Message::link(AF_BRIDGE, port, 0, 0);
        m.nested(IFLA_PROTINFO | NLA_F_NESTED, |m| m.attr(option, &[on.into()]));
        self.request(RTM_SETLINK, 0, &m)
    }

    pub fn addresses(&mut self, index: u32) -> io::Result<Vec<IpNet>> {
        Ok(self.all_addresses()?.into_iter().filter(|(i, _)| *i == index).map(|(_, net)| net).collect())
    }

    /// Every address of the namespace with the index of its link.
    pub fn all_addresses(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let mut out = vec![];
        self.exchange(RTM_GETADDR, NLM_F_DUMP, &[0; 8], |kind, body| {
            if kind != RTM_NEWADDR || body.len() < 8 {
                return;
            }
            let (prefix, index) = (body[1], as_u32(&body[4..]));
            let (mut local, mut address) = (None, None);
            for (kind, value) in attrs(&body[8..]) {
                match kind {
                    IFA_LOCAL => local = as_ip(value),
                    IFA_ADDRESS => address = as_ip(value),
                    _ => {}
                }
            }
            if let Some(net) = local.or(address).and_then(|ip| IpNet::new(ip, prefix).ok()) {
                out.push((index, net));
            }
        })?;
        Ok(out)
    }

    /// Adds an address; one that is there already is fine.
    pub fn add_address(&mut self, index: u32, net: IpNet) -> io::Result<()> {
        let mut m = Message::new();
        m.0.extend([family(net.addr()), net.prefix_len(), 0, 0]);
        m.0.extend(index.to_ne_bytes());
        m.ip(IFA_LOCAL, net.addr());
        m.ip(IFA_ADDRESS, net.addr());
        if net.addr().is_ipv6() {
            m.u32(IFA_FLAGS, IFA_F_NODAD);
        }
        match self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &m) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            r => r,
        }
    }

    pub fn delete_address(&mut self, index: u32, net: IpNet) -> io::Result<()> {
        let mut m = Message::new();
        m.0.extend([family(net.addr()), net.prefix_len(), 0, 0]);
        m.0.extend(index.to_ne_bytes());
        m.ip(IFA_LOCAL, net.addr());
        self.request(RTM_DELADDR, 0, &m)
    }

    fn route_message(route: &Route) -> Message {
        let mut m = Message::new();
        let dst_len = route.dst.prefix_len();
        m.0.extend([family(route.dst.addr()), dst_len, 0, 0]);
        m.0.extend([RT_TABLE_MAIN as u8, libc::RTPROT_BOOT, route.scope, RTN_UNICAST]);
        m.0.extend((if route.onlink { RTNH_F_ONLINK } else { 0 }).to_ne_bytes());
        if dst_len > 0 {
            m.ip(RTA_DST, route.dst.network());
        }
        if let Some(gateway) = route.gateway {
            m.ip(RTA_GATEWAY, gateway);
        }
        if let Some(src) = route.src {
            m.ip(RTA_PREFSRC, src);
        }
        if route.device != 0 {
            m.u32(RTA_OIF, route.device);
        }
        if route.metric != 0 {
            m.u32(RTA_PRIORITY, route.metric);
        }
        m
    }

    /// Adds a route; the same one being there already is fine.
    pub fn add_route(&mut self, route: &Route) -> io::Result<()> {
        match self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &Self::route_message(route)) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            r => r,
        }
    }

    pub fn replace_route(&mut self, route: &Route) -> io::Result<()> {
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &Self::route_message(route))
    }

    /// Removes a route; none being there is fine.
    pub fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        match self.request(RTM_DELROUTE, 0, &Self::route_message(route)) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::ENODEV)) => Ok(()),
            r => r,
        }
    }

    /// The unicast routes of the main table.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut out = vec![];
        self.exchange(RTM_GETROUTE, NLM_F_DUMP, &[0; 12], |kind, body| {
            if kind == RTM_NEWROUTE {
                out.extend(parse_route(body));
            }
        })?;
        Ok(out)
    }

    /// A permanent ARP/ND entry.
    pub fn set_neighbour(&mut self, n: &Neighbour) -> io::Result<()> {
        let m = neighbour_message(n, family(n.ip), 0);
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &m)
    }

    pub fn delete_neighbour(&mut self, n: &Neighbour) -> io::Result<()> {
        gone_is_fine(self.request(RTM_DELNEIGH, 0, &neighbour_message(n, family(n.ip), 0)))
    }

    /// A permanent forwarding entry of a VXLAN device: frames to `mac` go to the tunnel end at `ip`.
    pub fn set_fdb(&mut self, n: &Neighbour) -> io::Result<()> {
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &neighbour_message(n, AF_BRIDGE, NTF_SELF))
    }

    pub fn delete_fdb(&mut self, n: &Neighbour) -> io::Result<()> {
        gone_is_fine(self.request(RTM_DELNEIGH, 0, &neighbour_message(n, AF_BRIDGE, NTF_SELF)))
    }

    /// The forwarding entries (`bridge`) or the permanent ARP entries of a device.
    pub fn neighbours(&mut self, device: u32, bridge: bool) -> io::Result<Vec<Neighbour>> {
        let mut m = Message::new();
        m.0.extend([if bridge { AF_BRIDGE } else { libc::AF_INET as u8 }, 0, 0, 0]);
        m.0.extend([0; 8]);
        if bridge {
            // The bridge family wants an ifinfomsg here on older kernels; zeros are both.
            m.0.extend([0; 4]);
        }
        let mut out = vec![];
        self.exchange(RTM_GETNEIGH, NLM_F_DUMP, &m.0, |kind, body| {
            if kind != RTM_NEWNEIGH || body.len() < 12 || as_u32(&body[4..]) != device {
                return;
            }
            if u16::from_ne_bytes([body[8], body[9]]) & NUD_PERMANENT == 0 {
                return;
            }
            let (mut mac, mut ip) = (None, None);
            for (kind, value) in attrs(&body[12..]) {
                match kind {
                    NDA_LLADDR => mac = as_mac(value),
                    NDA_DST => ip = as_ip(value),
                    _ => {}
                }
            }
            if let (Some(mac), Some(ip)) = (mac, ip) {
                out.push(Neighbour { device, mac, ip });
            }
        })?;
        Ok(out)
    }
}

fn neighbour_message(n: &Neighbour, family: u8, flags: u8) -> Message {
    let mut m = Message::new();
    m.0.extend([family, 0, 0, 0]);
    m.0.extend(n.device.to_ne_bytes());
    m.0.extend(NUD_PERMANENT.to_ne_bytes());
    m.0.extend([flags, RTN_UNICAST]);
    m.ip(NDA_DST, n.ip);
    m.attr(NDA_LLADDR, &n.mac.0);
    m
}

fn gone_is_fine(r: io::Result<()>) -> io::Result<()> {
    match r {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::ENODEV)) => Ok(()),
        r => r,
    }
}

fn parse_link(body: &[u8]) -> Link {
    let mut link = Link::default();
    if body.len() < 16 {
        return link;
    }
    link.index = as_u32(&body[4..]);
    link.up = as_u32(&body[8..]) & IFF_UP != 0;
    for (kind, value) in attrs(&body[16..]) {
        match kind {
            IFLA_IFNAME => link.name = as_text(value),
            IFLA_ADDRESS => link.mac = as_mac(value),
            IFLA_MTU => link.mtu = as_u32(value),
            IFLA_MASTER => link.master = Some(as_u32(value)),
            // IF_OPER_UNKNOWN counts: loopback never says more.
            IFLA_OPERSTATE => link.running = matches!(value.first(), Some(0 | 6)),
            IFLA_LINKINFO => {
                for (kind, value) in attrs(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = as_text(value),
                        IFLA_INFO_DATA if link.kind == "vxlan" => link.vxlan = Some(parse_vxlan(value)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn parse_vxlan(data: &[u8]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for (kind, value) in attrs(data) {
        match kind {
            IFLA_VXLAN_ID => vxlan.vni = as_u32(value),
            IFLA_VXLAN_LINK => vxlan.device = as_u32(value),
            IFLA_VXLAN_PORT => vxlan.port = value.try_into().map_or(0, u16::from_be_bytes),
            IFLA_VXLAN_LEARNING => vxlan.learning = value.first() == Some(&1),
            IFLA_VXLAN_GBP => vxlan.gbp = true,
            IFLA_VXLAN_LOCAL => {
                vxlan.local = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
            }
            _ => {}
        }
    }
    vxlan
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let header = body.get(..12)?;
    let (fam, prefix, scope, kind) = (header[0], header[1], header[6], header[7]);
    let any: IpAddr = match i32::from(fam) {
        libc::AF_INET => IpAddr::from([0; 4]),
        libc::AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let onlink = as_u32(&header[8..]) & RTNH_F_ONLINK != 0;
    let mut table = u32::from(header[4]);
    let mut route = Route {
        dst: IpNet::new(any, 0).ok()?,
        gateway: None,
        device: 0,
        onlink,
        src: None,
        scope,
        metric: 0,
    };
    for (kind, value) in attrs(&body[12..]) {
        match kind {
            RTA_DST => route.dst = IpNet::new(as_ip(value)?, prefix).ok()?,
            RTA_GATEWAY => route.gateway = as_ip(value),
            RTA_OIF => route.device = as_u32(value),
            RTA_PREFSRC => route.src = as_ip(value),
            RTA_PRIORITY => route.metric = as_u32(value),
            RTA_TABLE => table = as_u32(value),
            _ => {}
        }
    }
    (table == RT_TABLE_MAIN && kind == RTN_UNICAST).then_some(route)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints_hardware_addresses() {
        let mac: Mac = "0a:58:0A:f4:00:05".parse().unwrap();
        assert_eq!(mac, Mac::from_ip("10.244.0.5".parse().unwrap()));
        assert_eq!(mac.to_string(), "0a:58:0a:f4:00:05");
        assert!("0a:58".parse::<Mac>().is_err());
        assert!("0a:58:0a:f4:00:05:06".parse::<Mac>().is_err());
    }

    #[test]
    fn attributes_survive_garbage() {
        for bad in [&[][..], &[1], &[3, 0, 1, 0], &[255, 255, 1, 0, 1], &[0, 0, 0, 0, 0]] {
            assert_eq!(attrs(bad).count(), 0);
        }
    }

    #[test]
    fn lists_the_links_of_this_namespace() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap();
        assert_eq!(lo.index, 1);
        assert!(netlink.links().unwrap().iter().any(|l| l.name == "lo"));
        assert!(netlink.link("no-such-link").unwrap().is_none());
    }
}
