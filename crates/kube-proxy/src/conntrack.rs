//! UDP flows that still go to where a service no longer is.
//!
//! UDP has no end the kernel could see: a client that keeps sending keeps its flow, and with it the endpoint chosen
//! when the flow began, or none if there was none then. TCP and SCTP notice by themselves.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};

use crate::model::Family;
use crate::ruleset::UdpService;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const CTNETLINK: u16 = 1 << 8;
const CT_NEW: u16 = CTNETLINK;
const CT_GET: u16 = CTNETLINK | 1;
const CT_DELETE: u16 = CTNETLINK | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// What identifies a flow, and how to name it to the kernel.
#[derive(Debug)]
struct Flow {
    destination: (IpAddr, u16),
    answered_by: (IpAddr, u16),
    /// The attributes of its deletion, as they came.
    attributes: Vec<u8>,
}

/// The services whose flows are looked at.
struct Wanted<'a> {
    by_address: HashMap<(IpAddr, u16), &'a UdpService>,
    by_node_port: HashMap<u16, &'a UdpService>,
    node_ips: &'a [IpAddr],
}

impl Wanted<'_> {
    fn is_stale(&self, flow: &Flow) -> bool {
        if let Some(service) = self.by_address.get(&flow.destination) {
            return !service.endpoints.contains(&flow.answered_by);
        }
        let Some(service) = self.by_node_port.get(&flow.destination.1) else { return false };
        // A port of that number on somebody else's address is nobody's node port.
        let redirected = flow.destination != flow.answered_by;
        let here = self.node_ips.contains(&flow.destination.0) || flow.destination.0.is_loopback();
        (redirected || here) && !service.endpoints.contains(&flow.answered_by)
    }
}

/// Ends the UDP flows to `services` that go elsewhere than to their endpoints. Returns how many.
pub fn forget_stale(family: Family, services: &[UdpService], node_ips: &[IpAddr]) -> io::Result<usize> {
    let mut wanted = Wanted { by_address: HashMap::new(), by_node_port: HashMap::new(), node_ips };
    for service in services {
        match service.ip {
            Some(ip) => wanted.by_address.insert((ip, service.port), service),
            None => wanted.by_node_port.insert(service.port, service),
        };
    }
    let mut conntrack = Conntrack::open()?;
    let stale = conntrack.udp_flows(family, |flow| wanted.is_stale(flow))?;
    for flow in &stale {
        conntrack.delete(family, flow)?;
    }
    Ok(stale.len())
}

struct Conntrack {
    fd: OwnedFd,
    sequence: u32,
}

fn header(family: Family) -> [u8; 4] {
    let family = match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    };
    [family, 0, 0, 0]
}

impl Conntrack {
    fn open() -> io::Result<Conntrack> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Conntrack { fd, sequence: 0 })
    }

    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let mut out = Vec::with_capacity(16 + body.len());
        out.extend(((16 + body.len()) as u32).to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        out.extend(self.sequence.to_ne_bytes());
        out.extend([0; 4]);
        out.extend(body);
        sendto(self.fd.as_raw_fd(), &out, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let mut data = &buffer[..n];
            while let Some(head) = data.get(..16) {
                let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
                let kind = u16::from_ne_bytes([head[4], head[5]]);
                let Some(body) = data.get(16..len) else {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message"));
                };
                data = data.get((len + 3) & !3..).unwrap_or(&[]);
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code =
                            body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(kind, body),
                }
            }
        }
    }

    fn udp_flows(&mut self, family: Family, keep: impl Fn(&Flow) -> bool) -> io::Result<Vec<Flow>> {
        let mut out = vec![];
        self.exchange(CT_GET, NLM_F_DUMP, &header(family), |kind, body| {
            if kind == CT_NEW
                && let Some(flow) = body.get(4..).and_then(parse)
                && keep(&flow)
            {
                out.push(flow);
            }
        })?;
        Ok(out)
    }

    fn delete(&mut self, family: Family, flow: &Flow) -> io::Result<()> {
        let mut body = header(family).to_vec();
        body.extend(&flow.attributes);
        match self.exchange(CT_DELETE, NLM_F_ACK, &body, |_, _| {}) {
            // It ended by itself.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            r => r,
        }
    }
}

fn attributes(mut data: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(data.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = data.get(4..len)?;
        data = data.get((len + 3) & !3..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A UDP flow out of the attributes of a conntrack message.
fn parse(data: &[u8]) -> Option<Flow> {
    let (mut original, mut reply, mut out) = (None, None, vec![]);
    for (kind, value) in attributes(data) {
        match kind {
            CTA_TUPLE_ORIG => original = Some(tuple(value)?),
            CTA_TUPLE_REPLY => reply = Some(tuple(value)?),
            CTA_ID | CTA_ZONE => {}
            _ => continue,
        }
        if kind != CTA_TUPLE_REPLY {
            let nested = if kind == CTA_TUPLE_ORIG { NLA_F_NESTED } else { 0 };
            out.extend(((value.len() + 4) as u16).to_ne_bytes());
            out.extend((kind | nested).to_ne_bytes());
            out.extend(value);
            out.resize(out.len().next_multiple_of(4), 0);
        }
    }
    Some(Flow { destination: original?.1, answered_by: reply?.0, attributes: out })
}

/// Source and destination of a UDP tuple.
fn tuple(data: &[u8]) -> Option<((IpAddr, u16), (IpAddr, u16))> {
    let (mut src, mut dst, mut ports, mut protocol) = (None, None, [0u16; 2], 0);
    for (kind, value) in attributes(data) {
        for (inner, value) in attributes(value) {
            match (kind, inner) {
                (CTA_TUPLE_IP, 1 | 3) => src = ip(value),
                (CTA_TUPLE_IP, 2 | 4) => dst = ip(value),
                (CTA_TUPLE_PROTO, 1) => protocol = *value.first()?,
                (CTA_TUPLE_PROTO, 2) => ports[0] = u16::from_be_bytes(value.try_into().ok()?),
                (CTA_TUPLE_PROTO, 3) => ports[1] = u16::from_be_bytes(value.try_into().ok()?),
                _ => {}
            }
        }
    }
    (i32::from(protocol) == libc::IPPROTO_UDP).then_some(((src?, ports[0]), (dst?, ports[1])))
}

fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(<[u8; 4]>::try_from(value).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(value).ok()?.into()),
        _ => None,
    }
}
