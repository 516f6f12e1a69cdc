//! What is asked over plain HTTP: health, version, metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use crate::rpc::grpc::Body;
use crate::rpc::{CLUSTER_VERSION, Member, VERSION};
use crate::{AlarmKind, Query};
use storage::KeyRange;

pub fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Answers `GET path`; `None` when there is nothing of that name.
pub async fn answer(
    member: &Arc<Member>,
    method: &Method,
    path: &str,
    query: &str,
) -> Option<Response<Body>> {
    let known = matches!(path, "/health" | "/livez" | "/readyz" | "/version" | "/metrics")
        || path.starts_with("/livez/")
        || path.starts_with("/readyz/");
    if !known {
        return None;
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "Method Not Allowed\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return Some(response);
    }
    Some(match path {
        "/version" => {
            let body =
                json!({"etcdserver": VERSION, "etcdcluster": CLUSTER_VERSION, "storage": CLUSTER_VERSION});
            text(StatusCode::OK, JSON, body.to_string())
        }
        "/metrics" => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", member.metrics_text()),
        "/health" => {
            let reason = unhealthy(member, &parameters(query, "exclude")).await;
            if reason.is_empty() {
                member.metrics.healthy.add(1)
            } else {
                member.metrics.unhealthy.add(1)
            }
            let status = if reason.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let body = json!({"health": if reason.is_empty() { "true" } else { "false" }, "reason": reason});
            text(status, JSON, body.to_string())
        }
        _ => checks(member, path, query).await,
    })
}

fn parameters<'a>(query: &'a str, name: &str) -> Vec<&'a str> {
    query.split('&').filter_map(|p| p.split_once('=')).filter(|(n, _)| *n == name).map(|(_, v)| v).collect()
}

/// Why the member is not healthy; empty when it is.
async fn unhealthy(member: &Member, exclude: &[&str]) -> String {
    for alarm in member.engine.alarms() {
        let name = match alarm.kind {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
        };
        if !exclude.contains(&name) {
            return format!("ALARM {name}");
        }
    }
    match readable(member).await {
        Ok(()) => String::new(),
        Err(error) => format!("QGET ERROR:{error}"),
    }
}

async fn readable(member: &Member) -> Result<(), String> {
    let query = Query { limit: 1, count_only: true, ..Query::new(KeyRange::key("health")) };
    member.engine.query(&query).await.map(drop).map_err(|e| e.to_string())
}

/// `/livez` and `/readyz`: named checks, one by one with a path, listed with `verbose`.
async fn checks(member: &Member, path: &str, query: &str) -> Response<Body> {
    let (probe, only) = match path[1..].split_once('/') {
        Some((probe, only)) => (probe, Some(only)),
        None => (&path[1..], None),
    };
    let mut checks = vec![("serializable_read", readable(member).await)];
    if probe == "readyz" {
        let corrupt = member.engine.alarms().iter().any(|alarm| alarm.kind == AlarmKind::Corrupt);
        checks
            .push(("data_corruption", if corrupt { Err("alarm activated: CORRUPT".into()) } else { Ok(()) }));
        checks.push(("linearizable_read", readable(member).await));
        let defragmenting = member.defragmenting.load(Ordering::Relaxed);
        checks.push(("non_learner", Ok(())));
        if defragmenting {
            checks.push(("defragmentation", Ok(())));
        }
    }
    let exclude = parameters(query, "exclude");
    checks.retain(|(name, _)| only.is_none_or(|only| only == *name) && !exclude.contains(name));
    if let Some(only) = only
        && checks.is_empty()
    {
        return text(StatusCode::NOT_FOUND, PLAIN, format!("no check {only}\n"));
    }
    let failed = checks.iter().any(|(_, result)| result.is_err());
    let mut body = String::new();
    let verbose = query.split('&').any(|p| p == "verbose" || p.starts_with("verbose="));
    if verbose || failed {
        for (name, result) in &checks {
            match result {
                Ok(()) => body.push_str(&format!("[+]{name} ok\n")),
                Err(error) => body.push_str(&format!("[-]{name} failed: {error}\n")),
            }
        }
    }
    if failed {
        return text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, body);
    }
    body.push_str("ok\n");
    text(StatusCode::OK, PLAIN, body)
}
