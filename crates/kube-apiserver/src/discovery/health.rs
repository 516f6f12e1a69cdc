//! `/healthz`, `/livez`, `/readyz` and what stands behind them.

use std::fmt::Write;

use http::{Response, StatusCode};

use crate::http::Body;
use crate::http::respond;
use crate::registry::handler::Call;
use crate::server::Server;

/// One part of the server's health: its name and, when something is wrong, what.
type Check = (&'static str, Result<(), String>);

fn checks(server: &Server, endpoint: &str) -> Vec<Check> {
    let synced = || {
        if server.registry.cache.synced() {
            Ok(())
        } else {
            Err("the watch caches are not filled yet".to_owned())
        }
    };
    let started = || {
        if server.registry.is_started() { Ok(()) } else { Err("not finished".to_owned()) }
    };
    let mut all = vec![("ping", Ok(())), ("log", Ok(())), ("etcd", synced())];
    if endpoint == "readyz" {
        all.push(("etcd-readiness", synced()));
        all.push(("informer-sync", synced()));
    }
    if endpoint != "livez" {
        all.push(("poststarthook/rbac/bootstrap-roles", started()));
        all.push(("poststarthook/scheduling/bootstrap-system-priority-classes", started()));
        all.push(("poststarthook/start-system-namespaces-controller", started()));
    }
    if endpoint == "readyz" {
        let ending = server.registry.is_ending();
        all.push(("shutdown", if ending { Err("process is shutting down".to_owned()) } else { Ok(()) }));
    }
    all
}

/// Whether the server is ready to be asked.
pub fn ready(server: &Server) -> bool {
    checks(server, "readyz").iter().all(|(_, result)| result.is_ok())
}

pub fn serve(server: &Server, call: &Call, endpoint: &str, rest: &[&str]) -> Response<Body> {
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    let mut all = checks(server, endpoint);
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
