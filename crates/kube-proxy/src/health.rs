//! Health: of the proxy itself (`/healthz`, `/livez`), and of services of load balancers that want to know which
//! nodes have endpoints (`healthCheckNodePort`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::{self, Answer, Handler};

/// How long changes may wait for the kernel before the proxy is unhealthy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of the proxy's own health.
pub struct Health {
    eligible: AtomicBool,
    state: Mutex<State>,
}

struct State {
    last_updated: Timestamp,
    /// Since when changes have been waiting.
    behind_since: Option<Instant>,
}

impl Default for Health {
    fn default() -> Health {
        let state = State { last_updated: Timestamp::now(), behind_since: None };
        Health { eligible: AtomicBool::new(true), state: Mutex::new(state) }
    }
}

impl Health {
    pub fn set_eligible(&self, eligible: bool) {
        self.eligible.store(eligible, Ordering::Relaxed);
    }

    pub fn behind(&self) {
        self.state.lock().behind_since.get_or_insert_with(Instant::now);
    }

    pub fn updated(&self) {
        *self.state.lock() = State { last_updated: Timestamp::now(), behind_since: None };
    }

    pub fn is_healthy(&self) -> bool {
        self.state.lock().behind_since.is_none_or(|since| since.elapsed() < PATIENCE)
    }

    pub fn handler(self: &Arc<Health>) -> Handler {
        let health = self.clone();
        Arc::new(move |path| {
            let eligible = health.eligible.load(Ordering::Relaxed);
            let fine = health.is_healthy();
            let ok = match path {
                // A node about to go away should get no new connections, yet is alive.
                "/healthz" => fine && eligible,
                "/livez" => fine,
                _ => return Answer::text(404, "404 page not found\n"),
            };
            let last = health.state.lock().last_updated;
            let mut body = format!("{{\"lastUpdated\": \"{last}\",\"currentTime\": \"{}\"", Timestamp::now());
            if path == "/healthz" {
                body.push_str(&format!(", \"nodeEligible\": {eligible}"));
            }
            body.push('}');
            let status = if ok { 200 } else { 503 };
            Answer { status, content_type: "application/json", headers: vec![], body }
        })
    }
}

struct Server {
    service: String,
    local: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// The health check servers of services, by port.
pub struct ServiceHealth {
    health: Arc<Health>,
    servers: HashMap<u16, Server>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
}

impl ServiceHealth {
    pub fn new(health: Arc<Health>, shutdown: CancellationToken) -> ServiceHealth {
        ServiceHealth { health, servers: HashMap::new(), tasks: JoinSet::new(), shutdown }
    }

    /// Makes the servers be those of `wanted`: (port, service, endpoints here).
    pub async fn set(&mut self, wanted: Vec<(u16, String, usize)>) {
        while self.tasks.try_join_next().is_some() {}
        self.servers.retain(|port, server| {
            let keep = wanted.iter().any(|(p, s, _)| p == port && *s == server.service);
            if !keep {
                server.stop.cancel();
            }
            keep
        });
        for (port, service, local) in wanted {
            if let Some(server) = self.servers.get(&port) {
                server.local.store(local, Ordering::Relaxed);
                continue;
            }
            let listener = match http::bind(SocketAddr::from(([0, 0, 0, 0], port))).await {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::warn!(service, port, %error, "failed to start healthcheck");
                    continue;
                }
            };
            let local = Arc::new(AtomicUsize::new(local));
            let stop = self.shutdown.child_token();
            let handler = service_handler(self.health.clone(), service.clone(), local.clone());
            self.tasks.spawn(http::serve(listener, handler, stop.clone()));
            self.servers.insert(port, Server { service, local, stop });
        }
    }
}

fn service_handler(health: Arc<Health>, service: String, local: Arc<AtomicUsize>) -> Handler {
    Arc::new(move |_| {
        let (namespace, name) = service.split_once('/').unwrap_or(("", &service));
        let (count, healthy) = (local.load(Ordering::Relaxed), health.is_healthy());
        Answer {
            status: if count > 0 && healthy { 200 } else { 503 },
            content_type: "application/json",
            headers: vec![("X-Load-Balancing-Endpoint-Weight", count.to_string())],
            body: format!(
                "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
            ),
        }
    })
}
