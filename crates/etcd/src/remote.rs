//! The store's trait over etcd's v3 API: any etcd from 3.4 on, by several endpoints, with TLS.
//!
//! Progress: a watcher of one range learns nothing of writes elsewhere, yet a consistent read of a cache asks whether all
//! up to the store's revision has arrived. Asking for the revision therefore also asks the watches for their progress.
//! Servers before 3.4.25 and 3.5.8 may answer that before they sent the events; on those, watches cover the whole key
//! space and drop what is not theirs, so that every revision shows itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use storage::{
    Change, Error, Event, EventBatch, Expect, KeyRange, KeyValue, LeaseId, RangeRequest, RangeResponse,
    Revision, Store, WatchStream, WriteOutcome, WriteRequest,
};
use tokio::sync::mpsc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::api;

/// Where the API server keeps everything unless told otherwise.
const ROOT: &[u8] = b"/registry";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a start waits for the store, and how often it asks meanwhile.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const START_RETRY: Duration = Duration::from_millis(100);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Keys in one answer; more are read page by page at one revision.
const PAGE_KEYS: usize = 10_000;
/// Requests to one watch that wait to be sent.
const WATCH_REQUESTS_MAX: usize = 8;

/// How to reach the store. PEM is given as content.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `http://host:port` or `https://host:port`; of several, any that answers is used.
    pub endpoints: Vec<String>,
    /// Whom the servers' certificates must be signed by.
    pub ca: Option<Vec<u8>>,
    pub certificate: Option<Vec<u8>>,
    pub key: Option<Vec<u8>>,
    /// Where the store keeps what the API server calls `/registry`.
    pub prefix: Option<String>,
}

/// An etcd reached over the network. Clones share its connections.
#[derive(Clone)]
pub struct Remote {
    channel: Channel,
    prefix: Option<Bytes>,
    watches: Arc<Mutex<Vec<mpsc::Sender<api::WatchRequest>>>>,
    /// The newest revision that a watch has told.
    seen: Arc<AtomicU64>,
    whole_watches: bool,
}

impl Remote {
    /// Connects, and learns the server's version.
    pub async fn connect(options: Options) -> anyhow::Result<Remote> {
        let channel = channel(&options)?;
        let prefix = options.prefix.map(|p| format!("/{}", p.trim_matches('/')).into_bytes());
        let mut remote = Remote {
            channel,
            prefix: prefix.filter(|p| p != ROOT).map(Bytes::from),
            watches: Arc::default(),
            seen: Arc::default(),
            whole_watches: false,
        };
        let status = remote.first_answer(&options.endpoints).await?;
        remote.whole_watches = !progress_is_ordered(&status.version);
        tracing::info!(version = %status.version, endpoints = %options.endpoints.join(","), "using etcd");
        Ok(remote)
    }

    /// Store and server may be started together, so the first answer may take a while.
    async fn first_answer(&self, endpoints: &[String]) -> anyhow::Result<api::StatusResponse> {
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        loop {
            match self.call("/etcdserverpb.Maintenance/Status", api::StatusRequest {}).await {
                Ok(status) => return Ok(status),
                Err(Error::Unavailable(why)) if tokio::time::Instant::now() < deadline => {
                    tracing::debug!(why, "etcd does not answer yet");
                    tokio::time::sleep(START_RETRY).await;
                }
                Err(error) => anyhow::bail!("reach etcd at {}: {error}", endpoints.join(",")),
            }
        }
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Error>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let mut request = Request::new(message);
        request.set_timeout(CALL_TIMEOUT);
        let one = async {
            let mut client = self.client();
            client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            client.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await
        };
        match tokio::time::timeout(CALL_TIMEOUT, one).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(error(&status)),
            Err(_) => Err(Error::Unavailable(format!("no answer within {CALL_TIMEOUT:?}"))),
        }
    }

    fn client(&self) -> tonic::client::Grpc<Channel> {
        tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn outward(&self, key: &Bytes) -> Bytes {
        match (&self.prefix, key.strip_prefix(ROOT)) {
            (Some(prefix), Some(rest)) => [prefix, rest].concat().into(),
            _ => key.clone(),
        }
    }

    fn inward(&self, key: &[u8]) -> Bytes {
        match self.prefix.as_ref().and_then(|prefix| key.strip_prefix(&prefix[..])) {
            Some(rest) => [ROOT, rest].concat().into(),
            None => Bytes::copy_from_slice(key),
        }
    }

    /// etcd's two ends of a range.
    fn ends(&self, range: &KeyRange) -> (Bytes, Bytes) {
        let start =
            if range.start.is_empty() { Bytes::from_static(b"\0") } else { self.outward(&range.start) };
        let end = match &range.end {
            None => Bytes::from_static(b"\0"),
            // The end of a prefix: `/registry0` has no `/registry` of its own to be replaced.
            Some(end) => match &self.prefix {
                Some(_) if end.starts_with(ROOT) => self.outward(end),
                _ => end.clone(),
            },
        };
        (start, end)
    }

    fn key_value(&self, kv: &api::KeyValue) -> Arc<KeyValue> {
        // Copied, for what was decoded holds the whole answer's memory.
        Arc::new(KeyValue {
            key: self.inward(&kv.key),
            value: Bytes::copy_from_slice(&kv.value),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        })
    }

    fn batch(&self, range: &KeyRange, answer: &api::WatchResponse) -> EventBatch {
        // The header may be ahead of what has been sent.
        let revision = match answer.events.last().and_then(|e| e.kv.as_ref()) {
            Some(kv) => kv.mod_revision,
            None => answer.header.as_ref().map_or(0, |h| h.revision),
        };
        let event = |event: &api::Event| {
            let kv = event.kv.as_ref()?;
            let key = self.inward(&kv.key);
            if !range.contains(&key) {
                return None;
            }
            let previous = event.prev_kv.as_ref().map(|kv| self.key_value(kv));
            Some(if event.r#type == api::EventType::Delete as i32 {
                Event::Delete { key, revision: kv.mod_revision, previous }
            } else {
                Event::Put { kv: self.key_value(kv), previous }
            })
        };
        EventBatch { events: answer.events.iter().filter_map(event).collect(), revision }
    }
}

/// A channel to whichever endpoint answers; it connects when it is first used.
pub fn channel(options: &Options) -> anyhow::Result<Channel> {
    anyhow::ensure!(!options.endpoints.is_empty(), "no endpoint is given");
    let mut endpoints = Vec::new();
    for text in &options.endpoints {
        endpoints.push(endpoint(text, options)?);
    }
    Ok(match <[Endpoint; 1]>::try_from(endpoints) {
        Ok([one]) => one.connect_lazy(),
        Err(several) => Channel::balance_list(several.into_iter()),
    })
}

fn endpoint(text: &str, options: &Options) -> anyhow::Result<Endpoint> {
    let wrong = |e: tonic::transport::Error| anyhow::anyhow!("etcd endpoint {text}: {e}");
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let mut endpoint = Endpoint::from_shared(url.clone())
        .map_err(wrong)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    if url.starts_with("https://") {
        let mut tls = ClientTlsConfig::new();
        if let Some(ca) = &options.ca {
            tls = tls.ca_certificate(Certificate::from_pem(ca));
        }
        match (&options.certificate, &options.key) {
            (Some(certificate), Some(key)) => tls = tls.identity(Identity::from_pem(certificate, key)),
            (None, None) => {}
            _ => anyhow::bail!("a client certificate and its key are only of use together"),
        }
        endpoint = endpoint.tls_config(tls).map_err(wrong)?;
    }
    Ok(endpoint)
}

/// Whether progress that was asked for comes after all events it covers.
fn progress_is_ordered(version: &str) -> bool {
    let mut parts = version.split(['.', '-', '+']).map(|p| p.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 25,
        (3, 5, patch) => patch >= 8,
        (major, minor, _) => (major, minor) > (3, 5),
    }
}

/// What etcd's error means to a caller.
fn error(status: &Status) -> Error {
    let text = status.message();
    if text.contains("required revision has been compacted") {
        return Error::Compacted { compacted: 0 };
    }
    if text.contains("required revision is a future revision") {
        return Error::FutureRevision { requested: 0, current: 0 };
    }
    if text.contains("requested lease not found") {
        return Error::LeaseNotFound;
    }
    if text.contains("database space exceeded") {
        return Error::NoSpace;
    }
    if text.contains("corrupt cluster") {
        return Error::Corrupt(text.to_owned());
    }
    Error::Unavailable(format!("{}: {text}", status.code()))
}

fn revision_of(header: &Option<api::ResponseHeader>) -> Revision {
    header.as_ref().map_or(0, |h| h.revision)
}

fn operation(request: api::request_op::Request) -> api::RequestOp {
    api::RequestOp { request: Some(request) }
}

#[async_trait]
impl Store for Remote {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let (start, end) = self.ends(&request.range);
        let mut ask = api::RangeRequest {
            key: start,
            range_end: end,
            revision: request.revision.unwrap_or(0),
            keys_only: request.keys_only,
            count_only: request.count_only,
            ..Default::default()
        };
        let mut response = RangeResponse::default();
        loop {
            let left = if request.limit == 0 {
                PAGE_KEYS
            } else {
                (request.limit - response.kvs.len()).min(PAGE_KEYS)
            };
            ask.limit = left as i64;
            let answer: api::RangeResponse = self.call("/etcdserverpb.KV/Range", ask.clone()).await?;
            let revision = revision_of(&answer.header);
            if response.revision == 0 {
                response.revision = revision;
                response.count = answer.count as usize;
            }
            response.kvs.extend(answer.kvs.iter().map(|kv| self.key_value(kv)));
            response.more = answer.more;
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else { break };
            if response.kvs.len() == request.limit {
                break;
            }
            ask.key = [&last.key[..], b"\0"].concat().into();
            if ask.revision == 0 {
                ask.revision = revision;
            }
        }
        Ok(response)
    }

    async fn write(&self, request: WriteRequest) -> Result<WriteOutcome, Error> {
        use api::{request_op, response_op};
        let key = self.outward(&request.key);
        let change = match request.change {
            Change::Put { value, lease } => request_op::Request::Put(api::PutRequest {
                key: key.clone(),
                value,
                lease,
                ..Default::default()
            }),
            Change::Delete => request_op::Request::DeleteRange(api::DeleteRangeRequest {
                key: key.clone(),
                ..Default::default()
            }),
        };
        let required = match request.expect {
            Expect::Anything => None,
            Expect::Absent => Some(0),
            Expect::ModRevision(revision) => Some(revision),
        };
        let compare = required.map(|revision| api::Compare {
            result: api::CompareResult::Equal as i32,
            target: api::CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(api::compare::TargetUnion::ModRevision(revision)),
            ..Default::default()
        });
        let read = request_op::Request::Range(api::RangeRequest { key, ..Default::default() });
        let txn = api::TxnRequest {
            compare: compare.into_iter().collect(),
            success: vec![operation(change)],
            failure: vec![operation(read)],
        };
        let answer: api::TxnResponse = self.call("/etcdserverpb.KV/Txn", txn).await?;
        let revision = revision_of(&answer.header);
        match answer.responses.into_iter().next().and_then(|r| r.response) {
            Some(response_op::Response::Put(_)) => Ok(WriteOutcome::Written { revision }),
            Some(response_op::Response::DeleteRange(deleted)) if deleted.deleted > 0 => {
                Ok(WriteOutcome::Written { revision })
            }
            Some(response_op::Response::DeleteRange(_)) => {
                Ok(WriteOutcome::Unmet { current: None, revision })
            }
            Some(response_op::Response::Range(found)) => {
                Ok(WriteOutcome::Unmet { current: found.kvs.first().map(|kv| self.key_value(kv)), revision })
            }
            _ => Err(Error::Unavailable("etcd answered a transaction without its results".into())),
        }
    }

    async fn watch(&self, range: KeyRange, from: Revision) -> Result<WatchStream, Error> {
        let (start, end) = if self.whole_watches {
            (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))
        } else {
            self.ends(&range)
        };
        let create = api::WatchCreateRequest {
            key: start,
            range_end: end,
            start_revision: from,
            progress_notify: true,
            ..Default::default()
        };
        let create = api::watch_request::RequestUnion::Create(create);
        let (sender, receiver) = mpsc::channel(WATCH_REQUESTS_MAX);
        let _ = sender.try_send(api::WatchRequest { request_union: Some(create) });
        let requests = tokio_stream(receiver);
        let mut client = self.client();
        client.ready().await.map_err(|e| Error::Unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::<api::WatchRequest, api::WatchResponse>::default();
        let answers = client
            .streaming(Request::new(requests), path, codec)
            .await
            .map_err(|status| error(&status))?
            .into_inner();
        {
            let mut watches = self.watches.lock();
            watches.retain(|w| !w.is_closed());
            // The sender also keeps the stream open.
            watches.push(sender.clone());
        }
        let remote = self.clone();
        let state = (answers, sender, false);
        Ok(Box::pin(futures::stream::unfold(Some(state), move |state| {
            let (remote, range) = (remote.clone(), range.clone());
            async move {
                let (mut answers, sender, mut begun) = state?;
                loop {
                    let answer = match answers.next().await? {
                        Ok(answer) => answer,
                        Err(status) => return Some((Err(error(&status)), None)),
                    };
                    if answer.canceled {
                        let failed = match answer.compact_revision {
                            0 => {
                                Error::Unavailable(format!("etcd ended the watch: {}", answer.cancel_reason))
                            }
                            compacted if !begun => Error::Compacted { compacted },
                            _ => Error::TooSlow,
                        };
                        return Some((Err(failed), None));
                    }
                    if answer.created {
                        continue;
                    }
                    begun = true;
                    let batch = remote.batch(&range, &answer);
                    remote.seen.fetch_max(batch.revision as u64, Ordering::Relaxed);
                    return Some((Ok(batch), Some((answers, sender, begun))));
                }
            }
        })))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let ask = api::RangeRequest { key: Bytes::from_static(b"\0"), limit: 1, ..Default::default() };
        let answer: api::RangeResponse = self.call("/etcdserverpb.KV/Range", ask).await?;
        let revision = revision_of(&answer.header);
        if !self.whole_watches && self.seen.load(Ordering::Relaxed) < revision as u64 {
            let progress = api::watch_request::RequestUnion::Progress(api::WatchProgressRequest {});
            let ask = api::WatchRequest { request_union: Some(progress) };
            // A full queue has requests for progress in it.
            self.watches
                .lock()
                .retain(|w| !matches!(w.try_send(ask.clone()), Err(mpsc::error::TrySendError::Closed(_))));
        }
        Ok(revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let ask = api::CompactionRequest { revision, physical: false };
        self.call::<_, api::CompactionResponse>("/etcdserverpb.KV/Compact", ask).await.map(drop)
    }

    async fn lease_grant(&self, ttl_seconds: i64) -> Result<LeaseId, Error> {
        let ask = api::LeaseGrantRequest { ttl: ttl_seconds, id: 0 };
        let answer: api::LeaseGrantResponse = self.call("/etcdserverpb.Lease/LeaseGrant", ask).await?;
        Ok(answer.id)
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        let ask = futures::stream::iter([api::LeaseKeepAliveRequest { id: lease }]);
        let one = async {
            let mut client = self.client();
            client.ready().await.map_err(|e| Error::Unavailable(e.to_string()))?;
            let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
            let codec = ProstCodec::<api::LeaseKeepAliveRequest, api::LeaseKeepAliveResponse>::default();
            let answers = client.streaming(Request::new(ask), path, codec).await.map_err(|s| error(&s))?;
            match answers.into_inner().next().await {
                Some(Ok(answer)) if answer.ttl > 0 => Ok(()),
                Some(Ok(_)) => Err(Error::LeaseNotFound),
                Some(Err(status)) => Err(error(&status)),
                None => Err(Error::Unavailable("etcd did not answer the keep-alive".into())),
            }
        };
        let late = |_| Error::Unavailable(format!("no answer within {CALL_TIMEOUT:?}"));
        tokio::time::timeout(CALL_TIMEOUT, one).await.map_err(late)?
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let ask = api::LeaseRevokeRequest { id: lease };
        self.call::<_, api::LeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", ask).await.map(drop)
    }

    async fn size_bytes(&self) -> Result<u64, Error> {
        let answer: api::StatusResponse =
            self.call("/etcdserverpb.Maintenance/Status", api::StatusRequest {}).await?;
        Ok(answer.db_size.max(0) as u64)
    }
}

fn tokio_stream<T: Send + 'static>(
    receiver: mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_where_progress_is_ordered() {
        for (version, ordered) in [
            ("3.4.23", false),
            ("3.4.25", true),
            ("3.5.7", false),
            ("3.5.8", true),
            ("3.6.0-rc.1", true),
            ("4.0.0", true),
            ("", false),
        ] {
            assert_eq!(progress_is_ordered(version), ordered, "{version}");
        }
    }
}
