//! What every request passes: identification, authentication, impersonation, limits, authorization, and the form of
//! the answer.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::status::Status;
use apimachinery::user::UserInfo;
use futures::{FutureExt, StreamExt};
use http::{HeaderName, HeaderValue, Method, Request, Response, header};
use jiff::Timestamp;

use super::body::Body;
use super::negotiation::{self, Accept};
use super::request_info::{self, Query};
use super::{compression, respond, websocket};
use crate::audit;
use crate::discovery;
use crate::flow_control::Permit;
use crate::metrics::requests::{self, Asked};
use crate::registry::handler::{self, Call};
use crate::seams::{Credentials, Decision, Notes, RequestInfo};
use crate::security::failure;
use crate::server::Server;

/// Requests that do not stream are given up after this.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request waits for its turn when the server is full.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(15);

static AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
static FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
static PRIORITY_LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Who sent a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// A component in this process.
    Known(UserInfo),
    /// Somebody on a connection, to be authenticated.
    Wire { certificates: Arc<[Vec<u8>]>, peer: Option<SocketAddr> },
}

/// Answers a request; never fails, and a panic while answering is a 500.
pub async fn handle(server: &Arc<Server>, request: Request<Body>, caller: Caller) -> Response<Body> {
    let started = Instant::now();
    let (mut parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query());
    let info = request_info::parse(&parts.method, parts.uri.path(), &query);
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let audit_id = audit_id(&parts.headers);
    // What others stream through this server must reach the client as it comes, and an encoder holds bytes back.
    let live = info.verb == "watch"
        || matches!(info.subresource.as_str(), "log" | "proxy" | "exec" | "attach" | "portforward");
    let compress = negotiation::gzip(&parts.headers) && parts.method == Method::GET && !live;
    let mut call = Call {
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        info,
        query,
        user: UserInfo::default(),
        body,
        upgrade,
        warnings: Vec::new(),
        annotations: Default::default(),
        record: None,
        flow: None,
        routed: false,
        deprecated: false,
        elsewhere: Duration::ZERO,
    };
    let answered = AssertUnwindSafe(answer(server, &mut call, caller, &audit_id)).catch_unwind().await;
    let result = answered.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        tracing::error!(path = call.uri.path(), panic = what, "a request handler panicked");
        Err(Status::internal("This request caused apiserver to panic. Look in the logs for details."))
    });
    let (mut response, failure) = match result {
        Ok(response) => (response, None),
        Err(status) => {
            let accept = call.accept(false).unwrap_or_default();
            (respond::status(&status, Accept { view: Default::default(), ..accept }), Some(status))
        }
    };
    if let Some(record) = call.record.take() {
        response = record.end(response, failure.as_ref(), &call.annotations, is_long(&call.info)).await;
    }
    let streams = call.info.verb == "watch" || call.info.resource == "pods" && call.info.subresource == "log";
    if streams
        && response.status().is_success()
        && websocket::asked_for(&call.headers)
        && let Some(upgrade) = call.upgrade.take()
    {
        let (tasks, ending) = (&server.kubelets.tasks, server.registry.ending.clone());
        let watch = call.info.verb == "watch";
        response = websocket::carry(&call.headers, upgrade, response, watch, tasks, ending)
            .unwrap_or_else(|status| respond::status(&status, Accept::default()));
    } else if compress {
        response = compression::compress(response);
    }
    let headers = response.headers_mut();
    headers.insert(AUDIT_ID.clone(), audit_id);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
    if let Some(ids) = call.flow.take() {
        headers.insert(FLOW_SCHEMA.clone(), ids.schema);
        headers.insert(PRIORITY_LEVEL.clone(), ids.level);
    }
    for (i, warning) in call.warnings.iter().enumerate() {
        // Each is said once.
        if call.warnings[..i].contains(warning) {
            continue;
        }
        if let Ok(value) = HeaderValue::from_str(&warning_value(warning)) {
            headers.append(header::WARNING, value);
        }
    }
    if call.deprecated {
        server.metrics.deprecated(&call.asked());
    }
    if call.routed { counted(server, call, response, started) } else { response }
}

/// A request that is being answered; told of in the figures when it is dropped.
struct Answering {
    server: Arc<Server>,
    method: Method,
    headers: http::HeaderMap,
    query: Query,
    info: RequestInfo,
    code: u16,
    started: Instant,
    elsewhere: Duration,
    size: Option<u64>,
    lasts: bool,
}

impl Answering {
    fn asked(&self) -> Asked<'_> {
        Asked::new(&self.method, &self.headers, &self.query, &self.info)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let asked = self.asked();
        let took = self.started.elapsed();
        let answer = requests::Answer { code: self.code, took, elsewhere: self.elsewhere, size: self.size };
        self.server.metrics.requests.answered(asked, &answer);
        if self.lasts {
            self.server.metrics.lasting(&asked, -1.0);
        }
    }
}

/// Tells of the request when its answer has been sent: what is streamed has not been yet.
fn counted(server: &Arc<Server>, call: Call, response: Response<Body>, started: Instant) -> Response<Body> {
    let Call { method, headers, query, info, elsewhere, .. } = call;
    let code = response.status().as_u16();
    let size = http_body::Body::size_hint(response.body()).exact();
    let lasts = matches!(response.body(), Body::Stream(_)) && is_long(&info);
    let server = server.clone();
    let mut answering =
        Answering { server, method, headers, query, info, code, started, elsewhere, size, lasts };
    let (parts, body) = response.into_parts();
    let body = match body {
        Body::Stream(stream) => {
            if lasts {
                answering.server.metrics.lasting(&answering.asked(), 1.0);
            }
            answering.size = Some(0);
            Body::stream(stream.inspect(move |piece| {
                if let (Some(size), Ok(piece)) = (&mut answering.size, piece) {
                    *size += piece.len() as u64;
                }
            }))
        }
        other => other,
    };
    Response::from_parts(parts, body)
}

fn audit_id(headers: &http::HeaderMap) -> HeaderValue {
    headers
        .get(&AUDIT_ID)
        .filter(|v| v.len() <= 64)
        .cloned()
        .or_else(|| HeaderValue::from_str(&apimachinery::names::uid()).ok())
        .unwrap_or(HeaderValue::from_static("unknown"))
}

/// `299 - "text"`, with quotes escaped and line ends taken out.
fn warning_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 10);
    out.push_str("299 - \"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

async fn answer(
    server: &Arc<Server>,
    call: &mut Call,
    caller: Caller,
    audit_id: &HeaderValue,
) -> Result<Response<Body>, Status> {
    let (received, started) = (Timestamp::now(), Instant::now());
    let trusted = matches!(caller, Caller::Known(_));
    let unguarded = is_health(call.uri.path());
    let policy = match server.registry.policy() {
        Ok(policy) => policy,
        // Health is told before there is a policy.
        Err(_) if unguarded => return discovery::serve(server, call).await,
        Err(status) => return Err(status),
    };
    let peer = match &caller {
        Caller::Wire { peer, .. } => peer.map(|p| p.ip()),
        Caller::Known(_) => None,
    };
    let limit = match time_limit(call) {
        Ok(limit) => limit,
        Err(status) => {
            return match record(server, call, None, audit_id, peer, received).await {
                Some(response) => Ok(response),
                None => Err(status),
            };
        }
    };
    let mut impersonator = None;
    call.user = match caller {
        Caller::Known(user) => user,
        Caller::Wire { certificates, .. } => {
            let credentials = Credentials {
                headers: &call.headers,
                peer_certificates: &certificates,
                path: call.uri.path(),
            };
            let mut notes = Notes::default();
            let began = Instant::now();
            let user = policy.authenticator.authenticate(credentials, &mut notes).await;
            let name = user.as_ref().ok().map(|u| u.name.as_str());
            let with_credentials =
                !certificates.is_empty() || call.headers.contains_key(header::AUTHORIZATION);
            server.metrics.access.authenticated(name, with_credentials, began.elapsed());
            call.warnings.append(&mut notes.warnings);
            call.annotations.append(&mut notes.annotations);
            let user = user?;
            match policy.reviews.impersonate(&user, &call.headers, &call.info).await? {
                Some(other) => {
                    impersonator = Some((user, other.constraint));
                    other.user
                }
                None => user,
            }
        }
    };
    call.headers.remove(header::AUTHORIZATION);
    if let Some(response) = record(server, call, impersonator.as_ref(), audit_id, peer, received).await {
        return Ok(response);
    }
    let long = is_long(&call.info);
    let (mut _slot, mut _permit) = (None, None);
    if !long && !trusted {
        if server.flow_control.is_on() {
            let objects = objects_of(server, &call.info);
            let (ids, permit) = server.flow_control.admit(&call.user, &call.info, objects).await;
            call.flow = ids;
            let permit = permit.inspect_err(|_| call.turned_away(server))?;
            call.elsewhere += permit.as_ref().map_or(Duration::ZERO, Permit::waited);
            _permit = permit;
        } else {
            let slot = slot(server, &call.info).await;
            _slot = Some(slot.inspect_err(|_| call.turned_away(server))?);
        }
    }
    let _at_work = (!long).then(|| {
        let reads = matches!(call.info.verb.as_str(), "get" | "list" | "watch" | "head");
        server.metrics.at_work(reads)
    });
    let open = unguarded && call.user.name == apimachinery::user::ANONYMOUS;
    let began = Instant::now();
    let decision = policy.authorizer.authorize(&call.user, &call.info).await;
    server.metrics.access.authorized(&decision, began.elapsed());
    match decision {
        Decision::Allow => {}
        _ if open => {}
        Decision::Deny(reason) => return Err(failure::access_denied(&call.user, &call.info, &reason)),
        Decision::Failed(why) => return Ok(broken(call, &why)),
    }
    if long {
        return dispatch(server, call).await;
    }
    match tokio::time::timeout(limit.saturating_sub(started.elapsed()), dispatch(server, call)).await {
        Ok(result) => result,
        Err(_) => {
            server.metrics.terminated(&call.asked(), 504);
            Err(Status::timeout("request did not complete within the allotted timeout", 0))
        }
    }
}

/// How long the request may take: what `timeout` says in its query, up to [`TIMEOUT`].
fn time_limit(call: &Call) -> Result<Duration, Status> {
    let Some(text) = call.query.non_empty("timeout").filter(|_| !is_long(&call.info)) else {
        return Ok(TIMEOUT);
    };
    let nanos = apimachinery::duration::read(text).map_err(|why| {
        Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))
    })?;
    Ok(match u64::try_from(nanos) {
        Ok(nanos) if nanos > 0 => TIMEOUT.min(Duration::from_nanos(nanos)),
        _ => TIMEOUT,
    })
}

/// Begins the request's audit record, if there is to be one. An answer where it could not be kept.
async fn record(
    server: &Server,
    call: &mut Call,
    impersonator: Option<&(UserInfo, String)>,
    audit_id: &HeaderValue,
    peer: Option<std::net::IpAddr>,
    received: Timestamp,
) -> Option<Response<Body>> {
    let audit = server.audit.as_ref()?;
    let id = audit_id.to_str().unwrap_or_default();
    let (user, other) = match impersonator {
        Some((user, constraint)) => (user, Some((&call.user, constraint.as_str()))),
        None => (&call.user, None),
    };
    match audit.begin(id, &call.uri, &call.headers, &call.info, user, other, peer, received).await {
        Ok(record) => {
            call.record = record.map(Box::new);
            None
        }
        Err(audit::NotKept) => Some(broken(call, "failed to store audit event")),
    }
}

/// The answer where something that has to work before a request is looked at does not.
fn broken(call: &Call, why: &str) -> Response<Body> {
    let uri = call.uri.path_and_query().map_or("/", |p| p.as_str());
    let text = failure::for_browsers(&format!("Internal Server Error: {uri:?}: {why}\n"));
    respond::text(http::StatusCode::INTERNAL_SERVER_ERROR, text)
}

async fn dispatch(server: &Arc<Server>, call: &mut Call) -> Result<Response<Body>, Status> {
    if (call.uri.path().starts_with("/apis/") || call.uri.path().starts_with("/openapi/v3/apis/"))
        && let Some(answer) = Box::pin(server.aggregator.answer(server, call)).await
    {
        return answer;
    }
    if call.info.is_resource {
        Box::pin(handler::serve(server, call)).await
    } else {
        Box::pin(discovery::serve(server, call)).await
    }
}

fn is_health(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    matches!(first, "healthz" | "livez" | "readyz")
}

/// Requests that last as long as the client likes: they hold no slot and have no deadline.
fn is_long(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

/// How many objects a request may have to look at.
fn objects_of(server: &Server, info: &RequestInfo) -> usize {
    if info.verb != "list" && info.verb != "deletecollection" {
        return 1;
    }
    let table = server.registry.table.load();
    let entry = table.find(&info.group, &info.version, &info.resource);
    entry.and_then(|e| server.registry.cache_of(e).ok()).map_or(1, |cache| cache.len())
}

async fn slot(server: &Server, info: &RequestInfo) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
    let slots = match info.verb.as_str() {
        "get" | "list" => &server.reading,
        _ => &server.writing,
    };
    let busy = || Status::too_many_requests("Too many requests, please try again later.", 1);
    if let Ok(slot) = slots.clone().try_acquire_owned() {
        return Ok(slot);
    }
    match tokio::time::timeout(QUEUE_TIME_MAX, slots.clone().acquire_owned()).await {
        Ok(Ok(slot)) => Ok(slot),
        _ => Err(busy()),
    }
}
