//! Datagrams and streams in, answers out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record};
use parking_lot::RwLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::forward::{Forwarder, PAYLOAD};
use crate::index::Index;
use crate::udp::{Peer, Socket};
use crate::zone::{Answer, Lookup, Zone};

const CHASES_MAX: usize = 8;
/// Datagrams that wait for upstream at once, per socket.
const WAITING_MAX: usize = 512;
const CONNECTIONS_MAX: usize = 128;
/// The encoder panics beyond what two bytes can point at.
const MESSAGE_BYTES_MAX: usize = 60_000;
const IDLE_MAX: Duration = Duration::from_secs(10);

/// What everybody who answers shares.
pub struct Shared {
    pub zone: Zone,
    pub index: Arc<RwLock<Index>>,
    pub forwarder: Forwarder,
    pub turn: AtomicUsize,
    pub counts: Counts,
}

#[derive(Default)]
pub struct Counts {
    pub requests: AtomicU64,
    pub forwarded: AtomicU64,
    pub no_error: AtomicU64,
    pub nx_domain: AtomicU64,
    pub serv_fail: AtomicU64,
    pub other: AtomicU64,
}

/// What came of looking at a request.
enum First {
    Reply(Vec<u8>),
    /// Needs upstream.
    Wait(Box<Pending>),
    /// Not worth an answer.
    Nothing,
}

struct Pending {
    request: Request,
    query: Query,
    /// What is answered already.
    records: Vec<Record>,
    authoritative: bool,
}

/// What an answer takes over from its request.
struct Request {
    id: u16,
    recursion_desired: bool,
    query: Option<Query>,
    edns: bool,
    dnssec: bool,
    size_max: usize,
}

impl Shared {
    fn serial(&self) -> u32 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as u32
    }

    fn reply(&self, request: &Request, code: ResponseCode) -> Message {
        let mut reply = Message::new(request.id, MessageType::Response, OpCode::Query);
        reply.metadata.response_code = code;
        reply.metadata.recursion_desired = request.recursion_desired;
        reply.metadata.recursion_available = true;
        if let Some(query) = &request.query {
            reply.add_query(query.clone());
        }
        if request.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            edns.set_dnssec_ok(request.dnssec);
            reply.set_edns(edns);
        }
        reply
    }

    /// Encodes within the size the client takes: additional records go first, then answers, with the flag that
    /// tells the client to come back over TCP.
    fn encode(&self, request: &Request, mut reply: Message) -> Option<Vec<u8>> {
        let counter = match reply.metadata.response_code {
            ResponseCode::NoError => &self.counts.no_error,
            ResponseCode::NXDomain => &self.counts.nx_domain,
            ResponseCode::ServFail => &self.counts.serv_fail,
            _ => &self.counts.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        bound(&mut reply);
        let mut bytes = reply.to_vec().ok()?;
        if bytes.len() > request.size_max && !reply.additionals.is_empty() {
            reply.additionals.clear();
            bytes = reply.to_vec().ok()?;
        }
        while bytes.len() > request.size_max {
            reply.metadata.truncation = true;
            if reply.answers.is_empty() {
                reply.authorities.clear();
                return reply.to_vec().ok().filter(|b| b.len() <= request.size_max);
            }
            // In proportion, so that a long answer takes few rounds.
            let keep = reply.answers.len() * request.size_max / bytes.len();
            reply.answers.truncate(keep.min(reply.answers.len() - 1));
            bytes = reply.to_vec().ok()?;
        }
        Some(bytes)
    }

    /// Answers what can be answered at once.
    fn first(&self, bytes: &[u8], stream: bool) -> First {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let encode =
            |request: &Request, reply| self.encode(request, reply).map_or(First::Nothing, First::Reply);
        let message = match Message::from_vec(bytes) {
            Ok(message) => message,
            Err(_) => {
                // Only what has a header can be told that it is wrong; an answer is none of our business.
                let Some(&[a, b, flags]) = bytes.get(..3).filter(|_| bytes.len() >= 12) else {
                    return First::Nothing;
                };
                if flags & 0x80 != 0 {
                    return First::Nothing;
                }
                let id = u16::from_be_bytes([a, b]);
                let request = Request {
                    id,
                    recursion_desired: false,
                    query: None,
                    edns: false,
                    dnssec: false,
                    size_max: 512,
                };
                return encode(&request, self.reply(&request, ResponseCode::FormErr));
            }
        };
        if message.metadata.message_type == MessageType::Response {
            return First::Nothing;
        }
        let edns = message.edns.as_ref();
        let request = Request {
            id: message.metadata.id,
            recursion_desired: message.metadata.recursion_desired,
            query: message.queries.first().cloned(),
            edns: edns.is_some(),
            dnssec: edns.is_some_and(|e| e.flags().dnssec_ok),
            size_max: match stream {
                true => usize::from(u16::MAX),
                false => edns.map_or(512, |e| usize::from(e.max_payload()).clamp(512, 4096)),
            },
        };
        let refuse = |code| encode(&request, self.reply(&request, code));
        if message.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [query] = message.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        if edns.is_some_and(|e| e.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if query.query_class != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let query = query.clone();
        self.local(request, query, vec![], false)
    }

    /// Answers from the index; what it does not know is left pending.
    fn local(
        &self,
        request: Request,
        mut query: Query,
        mut records: Vec<Record>,
        mut authoritative: bool,
    ) -> First {
        let encode =
            |request: &Request, reply| self.encode(request, reply).map_or(First::Nothing, First::Reply);
        for _ in 0..CHASES_MAX {
            let (turn, serial) = (self.turn.fetch_add(1, Ordering::Relaxed), self.serial());
            let found = {
                let index = self.index.read();
                self.zone.lookup(&index, &query.name, query.query_type, serial, turn)
            };
            let code = match found {
                Lookup::Found(Answer { records: more, additionals, chase }) => {
                    authoritative = true;
                    records.extend(more);
                    if let Some(target) = chase {
                        query.set_name(target);
                        continue;
                    }
                    let mut reply = self.reply(&request, ResponseCode::NoError);
                    reply.metadata.authoritative = true;
                    reply.insert_answers(records);
                    reply.insert_additionals(additionals);
                    return encode(&request, reply);
                }
                Lookup::Foreign => {
                    return First::Wait(Box::new(Pending { request, query, records, authoritative }));
                }
                Lookup::NoData => ResponseCode::NoError,
                Lookup::NxDomain => ResponseCode::NXDomain,
            };
            let mut reply = self.reply(&request, code);
            reply.metadata.authoritative = true;
            reply.insert_answers(records);
            reply.add_authorities(self.zone.soa(serial));
            return encode(&request, reply);
        }
        encode(&request, self.reply(&request, ResponseCode::ServFail))
    }

    /// Asks upstream for what is pending.
    async fn finish(&self, pending: Pending, stream: bool) -> Option<Vec<u8>> {
        let Pending { request, query, mut records, authoritative } = pending;
        self.counts.forwarded.fetch_add(1, Ordering::Relaxed);
        let chased = !records.is_empty();
        let reply = match self.forwarder.resolve(&query, request.dnssec, stream).await {
            Ok(theirs) => {
                let mut reply = self.reply(&request, theirs.metadata.response_code);
                reply.metadata.authoritative = authoritative && chased;
                reply.metadata.truncation = theirs.metadata.truncation;
                reply.metadata.authentic_data = theirs.metadata.authentic_data && !chased;
                records.extend(theirs.answers);
                reply.insert_answers(records);
                reply.insert_authorities(theirs.authorities);
                reply.insert_additionals(theirs.additionals);
                reply
            }
            // The alias is known even where its target is not.
            Err(_) if chased => {
                let mut reply = self.reply(&request, ResponseCode::NoError);
                reply.insert_answers(records);
                reply
            }
            Err(code) => self.reply(&request, code),
        };
        self.encode(&request, reply)
    }
}

/// Cuts what could not be encoded into one message whatever its names compress to.
fn bound(reply: &mut Message) {
    let size = |r: &Record| {
        let data = match &r.data {
            RData::A(_) => 4,
            RData::AAAA(_) => 16,
            RData::SRV(srv) => 6 + srv.target.len(),
            RData::CNAME(name) => name.len(),
            RData::PTR(name) => name.len(),
            _ => 1024,
        };
        r.name.len() + 12 + data
    };
    let mut room = MESSAGE_BYTES_MAX;
    let mut fits = |records: &[Record]| {
        records
            .iter()
            .take_while(|r| room.checked_sub(size(r)).inspect(|left| room = *left).is_some())
            .count()
    };
    let (answers, authorities) = (fits(&reply.answers), fits(&reply.authorities));
    let additionals = fits(&reply.additionals);
    reply.metadata.truncation |= answers < reply.answers.len();
    reply.answers.truncate(answers);
    reply.authorities.truncate(authorities);
    reply.additionals.truncate(additionals);
}

/// Serves one UDP socket until `shutdown`.
pub async fn serve_udp(socket: Socket, shared: Arc<Shared>, shutdown: CancellationToken) {
    let socket = Arc::new(socket);
    let mut waiting: JoinSet<()> = JoinSet::new();
    let mut buffer = vec![0; 4096];
    loop {
        let (n, peer): (usize, Peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = waiting.join_next() => continue,
            received = socket.receive(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    // A client's closed port comes back as an error of ours.
                    tracing::trace!(%error, "receiving");
                    continue;
                }
            },
        };
        match shared.first(&buffer[..n], false) {
            First::Nothing => {}
            First::Reply(reply) => {
                let _ = socket.send(&reply, &peer).await;
            }
            First::Wait(pending) if waiting.len() < WAITING_MAX => {
                let (shared, socket) = (shared.clone(), socket.clone());
                waiting.spawn(async move {
                    if let Some(reply) = shared.finish(*pending, false).await {
                        let _ = socket.send(&reply, &peer).await;
                    }
                });
            }
            First::Wait(pending) => {
                let reply = shared.reply(&pending.request, ResponseCode::ServFail);
                if let Some(reply) = shared.encode(&pending.request, reply) {
                    let _ = socket.send(&reply, &peer).await;
                }
            }
        }
    }
    waiting.shutdown().await;
}

/// Serves one TCP listener until `shutdown`.
pub async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut connections: JoinSet<()> = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    let shared = shared.clone();
                    connections.spawn(async move {
                        let _ = converse(stream, shared).await;
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
        }
    }
    connections.shutdown().await;
}

async fn converse(mut stream: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    loop {
        let request = tokio::time::timeout(IDLE_MAX, async {
            let mut request = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut request).await?;
            std::io::Result::Ok(request)
        });
        let Ok(request) = request.await else { return Ok(()) };
        let reply = match shared.first(&request?, true) {
            First::Nothing => None,
            First::Reply(reply) => Some(reply),
            First::Wait(pending) => shared.finish(*pending, true).await,
        };
        let Some(reply) = reply else { return Ok(()) };
        let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
        framed.extend(reply);
        let sent = tokio::time::timeout(IDLE_MAX, stream.write_all(&framed));
        match sent.await {
            Ok(sent) => sent?,
            Err(_) => return Ok(()),
        }
    }
}
