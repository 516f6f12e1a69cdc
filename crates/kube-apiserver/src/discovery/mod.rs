//! What is not a resource: discovery, OpenAPI, health, version, metrics.

pub mod groups;
pub mod health;
pub mod openapi;
mod zpages;

use std::sync::Arc;

use apimachinery::status::Status;
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::json;

use crate::http::Body;
use crate::http::negotiation::{self, Encoding};
use crate::http::respond;
use crate::registry::handler::Call;
use crate::server::Server;

pub use groups::Documents;

/// What `/` lists.
fn paths(server: &Server) -> Vec<String> {
    let table = server.registry.table.load();
    let mut paths: Vec<String> = [
        "/api",
        "/apis",
        "/apis/",
        "/flagz",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/openapi/v3/",
        "/openid/v1/jwks",
        "/readyz",
        "/statusz",
        "/version",
        "/.well-known/openid-configuration",
    ]
    .map(str::to_owned)
    .to_vec();
    for (group, versions) in table.groups() {
        let base = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        if !group.is_empty() {
            paths.push(base.clone());
        }
        paths.extend(versions.keys().map(|v| format!("{base}/{v}")));
    }
    paths.extend(health::paths());
    paths.sort();
    paths
}

/// Whether it does not matter to a path with which method it is asked, as upstream has it for all that is not routed
/// by method.
fn takes_any_method(server: &Server, call: &Call) -> bool {
    let parts: Vec<&str> = call.uri.path().split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz" | "metrics" | "statusz" | "flagz", ..]
        | ["openapi", "v2" | "v3", ..]
        | ["apis"] => true,
        ["apis", group] => server.registry.table.load().groups().any(|(known, _)| known == *group),
        _ => false,
    }
}

/// Figures in Prometheus' text form.
fn figures(server: &Server, text: String) -> Response<Body> {
    let kind = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    let mut response = respond::bytes_response(StatusCode::OK, kind, text);
    let began = server.metrics.process.started().as_second();
    response.headers_mut().insert(PROCESS_START.clone(), HeaderValue::from(began));
    response
}

static PROCESS_START: http::HeaderName = http::HeaderName::from_static("process-start-time-unix");

/// Answers a non-resource request.
pub async fn serve(server: &Arc<Server>, call: &mut Call) -> Result<Response<Body>, Status> {
    if call.method != Method::GET && call.method != Method::HEAD && !takes_any_method(server, call) {
        let table = server.registry.table.load();
        let mut parts = call.uri.path().split('/').filter(|p| !p.is_empty());
        return match (parts.next(), parts.next(), parts.next()) {
            (Some("api"), Some(version), _) if table.version("", version).is_none() => {
                Err(Status::no_such_resource())
            }
            (Some("apis"), Some(group), version) => match version {
                _ if !table.groups().any(|(known, _)| known == group) => Ok(no_such_page()),
                Some(version) if table.version(group, version).is_none() => Err(Status::no_such_resource()),
                _ => Err(Status::no_such_method()),
            },
            _ => Err(Status::no_such_method()),
        };
    }
    let path = call.uri.path().trim_end_matches('/').to_owned();
    let exact = ["/statusz", "/flagz", "/metrics", "/metrics/slis"];
    if exact.contains(&path.as_str()) && call.uri.path() != path {
        return Ok(no_such_page());
    }
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        [] => {
            let paths = paths(server);
            let accept = negotiation::Accept { pretty: true, ..Default::default() };
            Ok(respond::value(StatusCode::OK, &json!({"paths": paths}), accept))
        }
        ["api"] | ["apis"] => groups::root(server, call, parts[0] == "apis"),
        ["api", version] => groups::version(server, call, "", version),
        ["apis", group] => groups::group(server, call, group),
        ["apis", group, version] => groups::version(server, call, group, version),
        ["openapi", "v2"] => openapi::v2(server, call),
        ["openapi", "v3"] => {
            call.routed = true;
            Ok(openapi::index(server))
        }
        ["openapi", "v3", rest @ ..] => {
            call.routed = true;
            openapi::v3(server, call, rest)
        }
        ["version"] => {
            let accept = negotiation::Accept { pretty: true, encoding: Encoding::Json, ..Default::default() };
            Ok(respond::value(StatusCode::OK, &version(), accept))
        }
        ["healthz" | "livez" | "readyz", rest @ ..] => {
            let plugins = match &server.encrypted {
                Some(encrypted) => encrypted.health().await,
                None => None,
            };
            call.routed = rest.is_empty();
            Ok(health::serve(server, call, parts[0], rest, plugins))
        }
        ["statusz"] => {
            call.routed = true;
            zpages::statusz(server, call, &paths(server))
        }
        ["flagz"] => {
            call.routed = true;
            zpages::flagz(server, call)
        }
        ["metrics"] | ["metrics", "slis"] if call.method == Method::DELETE => {
            match parts.len() {
                1 => server.metrics.reset(),
                _ => server.metrics.health.reset(),
            }
            Ok(respond::text(StatusCode::OK, "metrics reset\n"))
        }
        ["metrics"] => {
            let mut out = String::new();
            server.metrics.render(&mut out);
            server.flow_control.render(&mut out);
            health::render(server, &mut out);
            Ok(figures(server, out))
        }
        ["metrics", "slis"] => {
            let mut out = String::new();
            server.metrics.health.render(&mut out);
            server.metrics.process.render_start(&mut out);
            Ok(figures(server, out))
        }
        [".well-known", "openid-configuration"] => {
            match server.registry.policy()?.reviews.openid_configuration() {
                Some(value) => Ok(for_an_hour(respond::value(StatusCode::OK, &value, Default::default()))),
                None => Err(Status::no_such_resource()),
            }
        }
        ["openid", "v1", "jwks"]
            if !negotiation::is_routable(&negotiation::accept_header(&call.headers), &[KEY_SET]) =>
        {
            Err(Status::not_routable(&[KEY_SET]))
        }
        ["openid", "v1", "jwks"] => match server.registry.policy()?.reviews.jwks() {
            Some(value) => {
                let bytes = serde_json::to_vec(&value).unwrap_or_default();
                Ok(for_an_hour(respond::bytes_response(StatusCode::OK, KEY_SET, bytes)))
            }
            None => Err(Status::no_such_resource()),
        },
        ["api" | "version", ..] => Err(Status::no_such_resource()),
        _ => Ok(no_such_page()),
    }
}

const KEY_SET: &str = "application/jwk-set+json";

/// What changes so rarely that clients may keep it.
fn for_an_hour(mut response: Response<Body>) -> Response<Body> {
    let header = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, header);
    response
}

/// The answer for a path that no part of the server has claimed.
pub fn no_such_page() -> Response<Body> {
    respond::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// What `/version` says.
pub fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.2+isopod.", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}
