//! The audit log: who asked for what, and what came of it, as events of `audit.k8s.io/v1`.

mod backend;
mod event;
mod log;
mod policy;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use apimachinery::status::Status;
use apimachinery::user::UserInfo;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Response, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use backend::{Batching, Mode, Options, Truncation};
pub use event::Format;
pub use log::LogConfig;
pub use policy::{Decision, Level, Policy};
pub use webhook::WebhookConfig;

use backend::{Backend, Errors, Sink};
use event::Event;

use crate::authorization::reviews::user_json;
use crate::http::Body;
use crate::metrics::{Families, Family};
use crate::seams::RequestInfo;

/// What is told, and where it goes.
#[derive(Clone, Debug)]
pub struct Config {
    /// The policy, as YAML.
    pub policy: Vec<u8>,
    pub log: Option<(LogConfig, Options)>,
    pub webhook: Option<WebhookConfig>,
}

/// A policy and where events go.
pub struct Audit {
    policy: Policy,
    backends: Vec<Backend>,
    events: Arc<AtomicU64>,
    /// Requests by [`Level`].
    levels: [Arc<AtomicU64>; 4],
    rejected: Arc<Family>,
}

/// One audited request.
pub struct Record {
    audit: Arc<Audit>,
    decision: Decision,
    event: Map<String, Value>,
    /// As the client sent it.
    pub request_body: Option<Bytes>,
}

fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// Where a request came from: what proxies tell, then the peer.
fn sources(headers: &HeaderMap, peer: Option<std::net::IpAddr>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        if let Ok(ip) = text.trim().parse::<std::net::IpAddr>()
            && !out.contains(&ip.to_string())
        {
            out.push(ip.to_string());
        }
    };
    header(headers, "x-forwarded-for").into_iter().flat_map(|v| v.split(',')).for_each(&mut add);
    header(headers, "x-real-ip").into_iter().for_each(&mut add);
    peer.into_iter().for_each(|ip| add(&ip.to_canonical().to_string()));
    out
}

impl Audit {
    pub async fn start(config: &Config, families: &Families) -> anyhow::Result<Audit> {
        let errors = Errors::new(families);
        let mut backends = Vec::new();
        if let Some((log, options)) = &config.log {
            let log = log::Log::open(log.clone()).context("--audit-log-path")?;
            backends.push(Backend::start(Sink::Log(log), *options, errors.clone()));
        }
        if let Some(webhook) = &config.webhook {
            let sink = Sink::Webhook(webhook::Webhook::new(webhook).await?);
            backends.push(Backend::start(sink, webhook.options, errors));
        }
        let events = families.counter("apiserver_audit_event_total", "Audit events that were sent.", &[]);
        let levels = families.counter(
            "apiserver_audit_level_total",
            "Requests by the level that the audit policy has for them.",
            &["level"],
        );
        Ok(Audit {
            policy: Policy::parse(&config.policy).context("loading audit policy file")?,
            backends,
            events: events.cell(&[]),
            levels: Level::ALL.map(|level| levels.cell(&[level.name()])),
            rejected: families.counter(
                "apiserver_audit_requests_rejected_total",
                "Requests that failed because the audit log did.",
                &[],
            ),
        })
    }

    /// Sends an event; `false` where the request must not go on without.
    async fn send(&self, event: Event) -> bool {
        self.events.fetch_add(1, Ordering::Relaxed);
        let mut good = true;
        for backend in &self.backends {
            good &= backend.take(&event).await;
        }
        good
    }

    /// Sends what waits, and then no more.
    pub async fn end(&self) {
        futures::future::join_all(self.backends.iter().map(Backend::end)).await;
    }

    /// Begins the record of a request whose user is known, and whom it acts as and by which constraint; `None` where the policy wants nothing told. The error is the
    /// request's.
    pub async fn begin(
        self: &Arc<Self>,
        id: &str,
        uri: &http::Uri,
        headers: &HeaderMap,
        info: &RequestInfo,
        user: &UserInfo,
        impersonated: Option<(&UserInfo, &str)>,
        peer: Option<std::net::IpAddr>,
        received: Timestamp,
    ) -> Result<Option<Record>, NotKept> {
        let decision = self.policy.decide(impersonated.map_or(user, |(other, _)| other), info);
        self.levels[decision.level as usize].fetch_add(1, Ordering::Relaxed);
        if decision.level == Level::None {
            return Ok(None);
        }
        let mut event = Map::new();
        let mut set = |name: &str, value: Value| {
            event.insert(name.to_owned(), value);
        };
        set("kind", "Event".into());
        set("apiVersion", "audit.k8s.io/v1".into());
        set("level", decision.level.name().into());
        set("auditID", id.into());
        set("requestURI", uri.path_and_query().map_or("/", |p| p.as_str()).into());
        set("verb", info.verb.as_str().into());
        set("user", user_json(user));
        if let Some((impersonated, constraint)) = impersonated {
            set("impersonatedUser", user_json(impersonated));
            if !constraint.is_empty() {
                set("authenticationMetadata", json!({"impersonationConstraint": constraint}));
            }
        }
        set("sourceIPs", sources(headers, peer).into());
        if let Some(agent) = header(headers, "user-agent") {
            set("userAgent", agent.into());
        }
        if info.is_resource {
            let mut object = Map::new();
            for (name, value) in [
                ("resource", &info.resource),
                ("namespace", &info.namespace),
                ("name", &info.name),
                ("apiGroup", &info.group),
                ("apiVersion", &info.version),
                ("subresource", &info.subresource),
            ] {
                if !value.is_empty() {
                    object.insert(name.to_owned(), value.as_str().into());
                }
            }
            set("objectRef", object.into());
        }
        set("requestReceivedTimestamp", micro_time(received).into());
        let record = Record { audit: self.clone(), decision, event, request_body: None };
        if let Some(event) = record.event("RequestReceived", received)
            && !self.send(event).await
        {
            self.rejected.inc(&[]);
            return Err(NotKept);
        }
        Ok(Some(record))
    }
}

/// The audit log could not be kept, and the request is not to be answered without.
#[derive(Debug)]
pub struct NotKept;

impl Record {
    pub fn wants_request(&self) -> bool {
        self.decision.level >= Level::Request
    }

    /// The event of a stage, unless the policy wants it left out.
    fn event(&self, stage: &str, at: Timestamp) -> Option<Event> {
        if self.decision.omit_stages.iter().any(|s| s == stage) {
            return None;
        }
        let mut event = self.event.clone();
        event.insert("stage".to_owned(), stage.into());
        event.insert("stageTimestamp".to_owned(), micro_time(at).into());
        Some(Event::new(self.decision.level, event))
    }

    async fn tell(&self, stage: &str) {
        if let Some(event) = self.event(stage, Timestamp::now()) {
            self.audit.send(event).await;
        }
    }

    /// An object as the event shows it.
    fn shown(&self, bytes: &[u8]) -> Option<Value> {
        let mut value: Value = serde_json::from_slice(bytes).ok()?;
        if self.decision.omit_managed_fields {
            let forget = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            forget(&mut value);
            value.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(forget);
        }
        Some(value)
    }

    /// Ends the record with the answer, which may still be on its way: a stream is complete when it ends.
    pub async fn end(
        mut self,
        mut response: Response<Body>,
        failure: Option<&Status>,
        annotations: &BTreeMap<String, String>,
        long: bool,
    ) -> Response<Body> {
        let code = response.status().as_u16();
        let mut status = match failure {
            Some(failure) => {
                let mut status = failure.to_value();
                if let Some(members) = status.as_object_mut() {
                    members.remove("kind");
                    members.remove("apiVersion");
                }
                status
            }
            None => json!({"metadata": {}}),
        };
        status["code"] = code.into();
        self.event.insert("responseStatus".to_owned(), status);
        if self.wants_request()
            && let Some(body) = self.request_body.take()
            && let Some(object) = self.shown(&body)
        {
            self.event.insert("requestObject".to_owned(), object);
        }
        if self.decision.level == Level::RequestResponse
            && let Body::Pieces(pieces) = response.body()
            && header(response.headers(), header::CONTENT_TYPE.as_str())
                .is_some_and(|t| t.starts_with("application/json"))
            && let Some(object) = self.shown(&pieces.iter().flatten().copied().collect::<Vec<u8>>())
        {
            self.event.insert("responseObject".to_owned(), object);
        }
        let mut all = annotations.clone();
        let decided = if failure.is_some_and(|f| f.code == 403 && f.reason == "Forbidden") && all.is_empty() {
            "forbid"
        } else {
            "allow"
        };
        all.entry("authorization.k8s.io/decision".to_owned()).or_insert_with(|| decided.to_owned());
        all.entry("authorization.k8s.io/reason".to_owned()).or_default();
        self.event.insert("annotations".to_owned(), json!(all));
        if !long {
            self.tell("ResponseComplete").await;
            return response;
        }
        self.tell("ResponseStarted").await;
        let ending = Ending(Some(self));
        let body = std::mem::take(response.body_mut());
        *response.body_mut() = match body {
            Body::Stream(stream) => Body::stream(stream.map(move |chunk| {
                // Dropped with the stream.
                let _ = &ending;
                chunk
            })),
            other => other,
        };
        response
    }
}

/// Tells of the end of an answer when it is dropped.
struct Ending(Option<Record>);

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(record) = self.0.take() else { return };
        if record.audit.backends.iter().any(Backend::waits) {
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                // Bounded by the webhook's time to answer.
                runtime.spawn(async move { record.tell("ResponseComplete").await });
            }
            return;
        }
        record.tell("ResponseComplete").now_or_never();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_what_happened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let policy = b"{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: RequestResponse, omitManagedFields: true}]}";
        let config = LogConfig { path: path.clone(), ..LogConfig::default() };
        let config = Config { policy: policy.to_vec(), log: Some((config, Options::log())), webhook: None };
        let audit = Arc::new(Audit::start(&config, &Families::default()).await.unwrap());
        let info = RequestInfo {
            verb: "create".into(),
            is_resource: true,
            version: "v1".into(),
            resource: "configmaps".into(),
            namespace: "a".into(),
            ..RequestInfo::default()
        };
        let mut headers = HeaderMap::new();
        headers.insert("user-agent", "kubectl/v1.36".parse().unwrap());
        headers.insert("x-forwarded-for", "10.0.0.1, 10.0.0.2".parse().unwrap());
        let (user, other) = (UserInfo::new("admin", &["system:masters"]), UserInfo::new("alice", &[]));
        let uri: http::Uri = "/api/v1/namespaces/a/configmaps?x=y".parse().unwrap();
        let received: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let peer = Some("::ffff:192.0.2.1".parse().unwrap());
        let record = audit
            .begin(
                "id",
                &uri,
                &headers,
                &info,
                &user,
                Some((&other, "impersonate:user-info")),
                peer,
                received,
            )
            .await;
        let mut record = record.unwrap().unwrap();
        assert!(record.wants_request());
        record.request_body =
            Some(Bytes::from_static(b"{\"metadata\":{\"name\":\"m\",\"managedFields\":[]}}"));
        let mut response = Response::new(Body::full("{\"kind\":\"ConfigMap\"}"));
        *response.status_mut() = http::StatusCode::CREATED;
        response.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        let annotations = BTreeMap::from([("p/k".to_owned(), "v".to_owned())]);
        record.end(response, None, &annotations, false).await;
        let text = std::fs::read_to_string(path).unwrap();
        let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0]["stage"], "RequestReceived");
        let mut event = events[1].clone();
        event.as_object_mut().unwrap().remove("stageTimestamp");
        assert_eq!(
            event,
            json!({"kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "RequestResponse", "auditID": "id",
                "stage": "ResponseComplete", "requestURI": "/api/v1/namespaces/a/configmaps?x=y", "verb": "create",
                "user": {"username": "admin", "groups": ["system:masters", "system:authenticated"]},
                "impersonatedUser": {"username": "alice", "groups": ["system:authenticated"]},
                "authenticationMetadata": {"impersonationConstraint": "impersonate:user-info"},
                "sourceIPs": ["10.0.0.1", "10.0.0.2", "192.0.2.1"], "userAgent": "kubectl/v1.36",
                "objectRef": {"resource": "configmaps", "namespace": "a", "apiVersion": "v1"},
                "responseStatus": {"metadata": {}, "code": 201},
                "requestObject": {"metadata": {"name": "m"}}, "responseObject": {"kind": "ConfigMap"},
                "requestReceivedTimestamp": "2026-01-01T00:00:00.000000Z",
                "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "", "p/k": "v"}})
        );
    }
}
