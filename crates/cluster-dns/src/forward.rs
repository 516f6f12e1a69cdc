//! Names that are not ours: asked of the node's resolvers, remembered for a little while.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

const TRY_FOR: Duration = Duration::from_secs(2);
const TRIES: usize = 3;
/// Questions under way at once; more are refused.
const UNDER_WAY_MAX: usize = 256;
const CACHE_ENTRIES_MAX: usize = 1024;
const CACHE_RECORDS_MAX: usize = 40;
const CACHE_FOR_MAX: Duration = Duration::from_secs(30);
pub const PAYLOAD: u16 = 1232;
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// Where the resolvers are listed.
#[derive(Clone, Debug)]
pub enum Upstreams {
    Fixed(Vec<SocketAddr>),
    /// A resolv.conf, read again when it changes.
    File(PathBuf),
}

struct Known {
    addresses: Arc<[SocketAddr]>,
    modified: Option<SystemTime>,
    checked: Instant,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct CacheKey {
    name: Name,
    kind: RecordType,
    dnssec: bool,
}

struct Cached {
    reply: Arc<Message>,
    since: Instant,
    until: Instant,
}

pub struct Forwarder {
    upstreams: Upstreams,
    /// Our own addresses, not to ask ourselves.
    own: Vec<SocketAddr>,
    known: Mutex<Option<Known>>,
    /// The upstream that answered last.
    good: AtomicUsize,
    cache: Mutex<HashMap<CacheKey, Cached>>,
    under_way: Semaphore,
    random: RandomState,
}

impl Forwarder {
    pub fn new(upstreams: Upstreams, own: Vec<SocketAddr>) -> Forwarder {
        Forwarder {
            upstreams,
            own,
            known: Mutex::default(),
            good: AtomicUsize::new(0),
            cache: Mutex::default(),
            under_way: Semaphore::new(UNDER_WAY_MAX),
            random: RandomState::new(),
        }
    }

    /// A remembered answer, its lifetimes shortened by its age.
    pub fn remembered(&self, query: &Query, dnssec: bool) -> Option<Message> {
        let key = cache_key(query, dnssec);
        let (reply, age) = {
            let mut cache = self.cache.lock();
            let cached = cache.get(&key)?;
            if cached.until <= Instant::now() {
                cache.remove(&key);
                return None;
            }
            (cached.reply.clone(), cached.since.elapsed().as_secs() as u32)
        };
        let mut reply = (*reply).clone();
        for record in reply.answers.iter_mut().chain(&mut reply.authorities).chain(&mut reply.additionals) {
            record.ttl = record.ttl.saturating_sub(age).max(1);
        }
        Some(reply)
    }

    /// Asks upstream. An error is the response code for the client.
    pub async fn resolve(&self, query: &Query, dnssec: bool, tcp: bool) -> Result<Message, ResponseCode> {
        if let Some(reply) = self.remembered(query, dnssec) {
            return Ok(reply);
        }
        let Ok(_permit) = self.under_way.try_acquire() else { return Err(ResponseCode::ServFail) };
        let upstreams = self.addresses();
        let first = self.good.load(Ordering::Relaxed);
        for attempt in 0..TRIES.max(upstreams.len()).min(2 * upstreams.len()) {
            let at = (first + attempt) % upstreams.len();
            let mut question = Message::new(self.random_id(), MessageType::Query, OpCode::Query);
            question.metadata.recursion_desired = true;
            question.add_query(query.clone());
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            edns.set_dnssec_ok(dnssec);
            question.set_edns(edns);
            let Ok(bytes) = question.to_vec() else { return Err(ResponseCode::ServFail) };
            let asked = async {
                match tcp {
                    true => ask_tcp(upstreams[at], &bytes).await,
                    false => ask_udp(upstreams[at], &bytes, &question).await,
                }
            };
            let reply = match tokio::time::timeout(TRY_FOR, asked).await {
                Ok(Ok(reply)) if answers(&reply, &question) => reply,
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => {
                    tracing::debug!(upstream = %upstreams[at], %error, "a resolver failed");
                    continue;
                }
                Err(_) => {
                    tracing::debug!(upstream = %upstreams[at], "a resolver did not answer in time");
                    continue;
                }
            };
            // Another one may know better.
            if matches!(reply.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused)
                && attempt + 1 < upstreams.len()
            {
                continue;
            }
            self.good.store(at, Ordering::Relaxed);
            self.remember(query, dnssec, &reply);
            return Ok(reply);
        }
        Err(ResponseCode::ServFail)
    }

    fn random_id(&self) -> u16 {
        let mut hasher = self.random.build_hasher();
        Instant::now().hash_into(&mut hasher);
        hasher.finish() as u16
    }

    fn remember(&self, query: &Query, dnssec: bool, reply: &Message) {
        let count = reply.answers.len() + reply.authorities.len() + reply.additionals.len();
        if reply.metadata.truncation || count > CACHE_RECORDS_MAX {
            return;
        }
        let seconds = match reply.metadata.response_code {
            ResponseCode::NoError if !reply.answers.is_empty() => {
                reply.answers.iter().map(|r| r.ttl).min().unwrap_or(0)
            }
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let soa = reply.authorities.iter().find_map(|r| match &r.data {
                    RData::SOA(soa) => Some(soa.minimum.min(r.ttl)),
                    _ => None,
                });
                soa.unwrap_or(0)
            }
            _ => 0,
        };
        let keep = Duration::from_secs(seconds.into()).min(CACHE_FOR_MAX);
        if keep.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.retain(|_, c| c.until > now);
            if cache.len() >= CACHE_ENTRIES_MAX {
                // All fresh: whoever comes first in no order goes.
                if let Some(victim) = cache.keys().next().cloned() {
                    cache.remove(&victim);
                }
            }
        }
        let cached = Cached { reply: Arc::new(reply.clone()), since: now, until: now + keep };
        cache.insert(cache_key(query, dnssec), cached);
    }

    fn addresses(&self) -> Arc<[SocketAddr]> {
        let path = match &self.upstreams {
            Upstreams::Fixed(addresses) => return addresses.clone().into(),
            Upstreams::File(path) => path,
        };
        let mut known = self.known.lock();
        if let Some(known) = &*known
            && known.checked.elapsed() < RELOAD_EVERY
        {
            return known.addresses.clone();
        }
        let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
        match &mut *known {
            Some(known) if known.modified == modified => known.checked = Instant::now(),
            _ => {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                let addresses = parse_resolv_conf(&text, &self.own).into();
                *known = Some(Known { addresses, modified, checked: Instant::now() });
            }
        }
        known.as_ref().map_or_else(|| [].into(), |k| k.addresses.clone())
    }
}

trait HashInto {
    fn hash_into(&self, hasher: &mut impl Hasher);
}

impl HashInto for Instant {
    fn hash_into(&self, hasher: &mut impl Hasher) {
        std::hash::Hash::hash(self, hasher);
    }
}

fn cache_key(query: &Query, dnssec: bool) -> CacheKey {
    CacheKey { name: query.name.to_lowercase(), kind: query.query_type, dnssec }
}

/// Whether `reply` answers `question`: anybody can send a datagram.
fn answers(reply: &Message, question: &Message) -> bool {
    reply.metadata.message_type == MessageType::Response
        && reply.metadata.id == question.metadata.id
        && reply.queries.first().is_none_or(|q| {
            question
                .queries
                .first()
                .is_some_and(|asked| q.name == asked.name && q.query_type == asked.query_type)
        })
}

async fn ask_udp(upstream: SocketAddr, bytes: &[u8], question: &Message) -> std::io::Result<Message> {
    let any: IpAddr = if upstream.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if let Ok(reply) = Message::from_vec(&buffer[..n])
            && answers(&reply, question)
        {
            return Ok(reply);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, bytes: &[u8]) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend(bytes);
    stream.write_all(&framed).await?;
    let mut reply = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut reply).await?;
    Message::from_vec(&reply).map_err(std::io::Error::other)
}

/// The resolvers of a resolv.conf, ourselves left out.
fn parse_resolv_conf(text: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut out = vec![];
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let ip = words.next().and_then(|w| w.split('%').next()).and_then(|w| w.parse::<IpAddr>().ok());
        let Some(address) = ip.map(|ip| SocketAddr::new(ip, 53)) else { continue };
        let ourselves = own.iter().any(|o| {
            o.port() == 53
                && (o.ip() == address.ip() || o.ip().is_unspecified() && address.ip().is_loopback())
        });
        if !ourselves && !out.contains(&address) {
            out.push(address);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolvers() {
        let text = "# x\nsearch a.b\nnameserver 192.0.2.3\nnameserver 127.0.0.53 # y\nnameserver 10.0.0.1\noptions ndots:5\nnameserver bad\nnameserver fe80::1%eth0\nnameserver 192.0.2.3\n";
        let own = ["10.0.0.1:53".parse().unwrap(), "10.0.0.2:10053".parse().unwrap()];
        let have: Vec<String> = parse_resolv_conf(text, &own).iter().map(ToString::to_string).collect();
        assert_eq!(have, ["192.0.2.3:53", "127.0.0.53:53", "[fe80::1]:53"]);
    }
}
