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
    let table = server.registry.table.load();
    let mut counted: Vec<(&str, &str, usize)> = table
        .entries()
        .filter_map(|e| Some((e.group.as_str(), e.resource.as_str(), e.cache.as_ref()?.len())))
        .collect();
    counted.sort_unstable();
    // What is served in several versions is kept once.
    counted.dedup_by_key(|(group, resource, _)| (*group, *resource));
    let revision = server.registry.cache.revision() % 1_000_000_000_000_000;
    let families: [(&str, &str, &dyn Fn(usize) -> u64); 3] = [
        ("apiserver_resource_objects", "Objects that are stored, by resource.", &|n| n as u64),
        (
            "apiserver_watch_cache_resource_version",
            "Resource version that the watch cache has reached; the last 15 digits.",
            &|_| revision,
        ),
        ("watch_cache_capacity", "Events that the watch cache keeps at most.", &|_| {
            crate::cache::resource::RING_EVENTS_MAX as u64
        }),
    ];
    for (name, help, value) in families {
        let _ = writeln!(out, "# HELP {name} [ALPHA] {help}\n# TYPE {name} gauge");
        for (group, resource, objects) in &counted {
            let _ = writeln!(out, "{name}{{group={group:?},resource={resource:?}}} {}", value(*objects));
        }
    }
    let name = "apiserver_storage_objects";
    let help = "[STABLE] (Deprecated since 1.34.0) Objects that are stored; see apiserver_resource_objects.";
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (group, resource, objects) in &counted {
        let dot = if group.is_empty() { "" } else { "." };
        let _ = writeln!(out, "{name}{{resource=\"{resource}{dot}{group}\"}} {objects}");
    }
    let name = "kubernetes_build_info";
    let version = super::version();
    let labels: Vec<String> = [
        ("build_date", "buildDate"),
        ("compiler", "compiler"),
        ("git_commit", "gitCommit"),
        ("git_tree_state", "gitTreeState"),
        ("git_version", "gitVersion"),
        ("go_version", "goVersion"),
        ("major", "major"),
        ("minor", "minor"),
        ("platform", "platform"),
    ]
    .iter()
    .map(|(label, field)| format!("{label}={}", version[field]))
    .collect();
    let _ = writeln!(
        out,
        "# HELP {name} [ALPHA] Always 1; the labels say what was built.\n# TYPE {name} gauge\n{name}{{{}}} 1",
        labels.join(",")
    );
}
