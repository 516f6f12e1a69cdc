//! `componentstatuses`: whether the other parts of the control plane are well, found out for each request.

use std::time::Duration;

use apimachinery::object::Attributes;
use apimachinery::status::Status;
use futures::future::join_all;
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};

use super::Entry;
use super::selection::Selection;
use crate::server::Server;

const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 10 << 10;

/// How one finds out about a part of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Component {
    /// It runs in this process and is as well as that.
    Within,
    /// By `/healthz` over TLS at this port of this host.
    Port(u16),
}

/// The parts that are asked where nothing else is said: at upstream's ports.
pub fn defaults() -> Vec<(&'static str, Component)> {
    vec![("scheduler", Component::Port(10259)), ("controller-manager", Component::Port(10257))]
}

enum Found {
    Healthy(String),
    Unhealthy(String),
    /// Nothing was found out, for this reason.
    Unknown(String),
}

fn object(name: &str, found: Found) -> Value {
    let mut condition = json!({"type": "Healthy"});
    let (status, member, text) = match found {
        Found::Healthy(message) => ("True", "message", message),
        Found::Unhealthy(message) => ("False", "message", message),
        Found::Unknown(error) => ("Unknown", "error", error),
    };
    condition["status"] = status.into();
    if !text.is_empty() {
        condition[member] = text.into();
    }
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]})
}

async fn check(server: &Server, component: &Component) -> Found {
    let port = match component {
        Component::Within => return Found::Healthy("ok".to_owned()),
        Component::Port(port) => *port,
    };
    let failed = |why: &str| Found::Unhealthy(format!("Get \"https://127.0.0.1:{port}/healthz\": {why}"));
    let asking = async {
        let answer = match server.kubelets.ask_this_host(port, "/healthz").await {
            Ok(answer) => answer,
            Err(status) => {
                return failed(status.message.trim_start_matches("error trying to reach service: "));
            }
        };
        let code = answer.status();
        let body = match Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Err(why) => return Found::Unknown(why.to_string()),
        };
        if code.is_success() || code.is_redirection() {
            Found::Healthy(body)
        } else {
            Found::Unhealthy(format!("HTTP probe failed with statuscode: {}", code.as_u16()))
        }
    };
    tokio::time::timeout(PROBE_TIMEOUT, asking).await.unwrap_or_else(|_| failed("context deadline exceeded"))
}

async fn check_store(server: &Server) -> Found {
    match server.registry.store.revision().await {
        Ok(_) => Found::Healthy("ok".to_owned()),
        Err(why) => Found::Unhealthy(why.to_string()),
    }
}

const STORE: &str = "etcd-0";

pub async fn get(server: &Server, name: &str) -> Result<Value, Status> {
    if name == STORE {
        return Ok(object(STORE, check_store(server).await));
    }
    let known = server.components.iter().find(|(known, _)| *known == name);
    let (name, component) = known.ok_or_else(|| Status::not_found("componentstatus", "", name))?;
    Ok(object(name, check(server, component).await))
}

pub async fn list(
    server: &Server,
    entry: &Entry,
    labels: Option<&str>,
    fields: Option<&str>,
) -> Result<Vec<Value>, Status> {
    let matcher = Selection::parse(entry, "", labels, fields)?.matcher();
    let selected = |name: &str| {
        let attributes = Attributes { name: name.into(), ..Attributes::default() };
        matcher.as_ref().is_none_or(|matches| matches(&attributes))
    };
    let parts = server.components.iter().filter(|(name, _)| selected(name));
    let mut found =
        join_all(parts.map(async |(name, component)| object(name, check(server, component).await))).await;
    if selected(STORE) {
        found.push(object(STORE, check_store(server).await));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_component() {
        for (found, want) in [
            (Found::Healthy("ok".into()), json!({"type": "Healthy", "status": "True", "message": "ok"})),
            (Found::Unhealthy("x".into()), json!({"type": "Healthy", "status": "False", "message": "x"})),
            (Found::Unknown("y".into()), json!({"type": "Healthy", "status": "Unknown", "error": "y"})),
        ] {
            assert_eq!(object("scheduler", found)["conditions"], json!([want]));
        }
    }
}
