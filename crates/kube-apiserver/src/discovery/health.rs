//! `/healthz`, `/livez`, `/readyz` and what stands behind them.

use std::fmt::Write;

use http::{HeaderValue, Response, StatusCode, header};

use crate::http::Body;
use crate::http::respond;
use crate::registry::handler::Call;
use crate::server::Server;

/// One part of the server's health: its name and, when something is wrong, what.
type Check = (&'static str, Result<(), String>);

/// What is started with the server, under the names upstream has for it: before and after the store is waited for.
const HOOKS: [&str; 31] = [
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/priority-and-fairness-config-consumer",
    "poststarthook/priority-and-fairness-filter",
    "poststarthook/storage-object-count-tracker-hook",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/peer-endpoint-reconciler-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/start-kube-apiserver-identity-lease-controller",
    "poststarthook/start-kube-apiserver-identity-lease-garbage-collector",
    "poststarthook/storage-readiness",
    "poststarthook/start-legacy-token-tracking-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-wait-for-first-sync",
    "poststarthook/apiservice-discovery-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
    "poststarthook/apiservice-openapiv3-controller",
];

/// The checks of an endpoint, in the order they are told.
fn names(endpoint: &str) -> impl Iterator<Item = &'static str> {
    let (first, last): (&[&str], &[&str]) = match endpoint {
        "readyz" => (&["ping", "log", "informer-sync"], &["shutdown"]),
        _ => (&["ping", "log", "loopback-serving-certificate", "etcd"], &[]),
    };
    first.iter().chain(&HOOKS).chain(last).copied()
}

/// Where the checks are found, for `/`.
pub fn paths() -> Vec<String> {
    let of = |endpoint: &'static str| names(endpoint).map(move |name| format!("/{endpoint}/{name}"));
    ["healthz", "livez", "readyz"].into_iter().flat_map(of).collect()
}

fn checks(server: &Server, endpoint: &str) -> Vec<Check> {
    let synced = server.registry.cache.synced();
    let check = |name: &'static str| {
        let (well, why) = match name {
            "ping" | "log" | "loopback-serving-certificate" => (true, ""),
            "etcd" | "informer-sync" | "poststarthook/storage-readiness" => {
                (synced, "the watch caches are not filled yet")
            }
            "shutdown" => (!server.registry.is_ending(), "process is shutting down"),
            // A server that lives may still be starting.
            _ => (endpoint == "livez" || server.registry.is_started(), "not finished"),
        };
        (name, if well { Ok(()) } else { Err(why.to_owned()) })
    };
    names(endpoint).map(check).collect()
}

/// Whether the server is ready to be asked.
pub fn ready(server: &Server) -> bool {
    checks(server, "readyz").iter().all(|(_, result)| result.is_ok())
}

/// `plugins` is how the KMS plugins are, where there are any.
pub fn serve(
    server: &Server,
    call: &Call,
    endpoint: &str,
    rest: &[&str],
    plugins: Option<Result<(), String>>,
) -> Response<Body> {
    let mut response = told(server, call, endpoint, rest, plugins);
    let sniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, sniff);
    response
}

fn told(
    server: &Server,
    call: &Call,
    endpoint: &str,
    rest: &[&str],
    plugins: Option<Result<(), String>>,
) -> Response<Body> {
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let mut all = checks(server, endpoint);
    all.extend(plugins.map(|health| ("kms-providers", health)));
    if !rest.is_empty() {
        let name = rest.join("/");
        all.retain(|(n, _)| *n == name);
        return match all.first() {
            None => respond::text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Some((_, Ok(()))) => respond::text(StatusCode::OK, "ok"),
            Some((_, Err(why))) => {
                respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
            }
        };
    }
    let mut out = String::new();
    let mut healthy = true;
    for (name, result) in &all {
        if excluded.contains(name) {
            let _ = writeln!(out, "[+]{name} excluded: ok");
            continue;
        }
        observe(server, endpoint, name, result.is_ok());
        match result {
            Ok(()) => {
                let _ = writeln!(out, "[+]{name} ok");
            }
            Err(_) => {
                healthy = false;
                let _ = writeln!(out, "[-]{name} failed: reason withheld");
            }
        }
    }
    if !healthy {
        let _ = writeln!(out, "{endpoint} check failed");
        return respond::text(StatusCode::INTERNAL_SERVER_ERROR, out);
    }
    if call.query.get("verbose").is_none() {
        return respond::text(StatusCode::OK, "ok");
    }
    let _ = writeln!(out, "{endpoint} check passed");
    respond::text(StatusCode::OK, out)
}

/// Counts a check for `/metrics/slis`.
fn observe(server: &Server, endpoint: &str, name: &str, well: bool) {
    let health = &server.metrics.health;
    let result = health.gauge(
        "kubernetes_healthcheck",
        "[STABLE] Result of a health check: 1 is well.",
        &["name", "type"],
    );
    result.set(&[name, endpoint], f64::from(u8::from(well)));
    let labels = &["name", "type", "status"];
    let results =
        health.counter("kubernetes_healthchecks_total", "[STABLE] Results of health checks.", labels);
    results.inc(&[name, endpoint, if well { "success" } else { "error" }]);
}

/// Figures about stored objects, for `/metrics`.
pub fn render(server: &Server, out: &mut String) {
    out.push_str("# HELP apiserver_resource_objects Objects in the watch cache.\n# TYPE apiserver_resource_objects gauge\n");
    for entry in server.registry.table.load().entries() {
        if let Some(cache) = &entry.cache {
            let _ = writeln!(
                out,
                "apiserver_resource_objects{{group={:?},resource={:?}}} {}",
                entry.group,
                entry.resource,
                cache.len()
            );
        }
    }
    let _ = writeln!(
        out,
        "# HELP apiserver_storage_revision Revision the watch cache has reached.\n\
         # TYPE apiserver_storage_revision gauge\napiserver_storage_revision {}",
        server.registry.cache.revision()
    );
}
