//! `/statusz` and `/flagz`: what the server is and how it was started, for people who look for faults (KEP-4827, KEP-4828).

use std::fmt::Write;

use apimachinery::status::Status;
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::http::Body;
use crate::http::negotiation::{self, Accept, Encoding};
use crate::http::respond;
use crate::registry::handler::Call;
use crate::server::Server;

const NAME: &str = "apiserver";
const GROUP: &str = "config.k8s.io";
const ACCEPTED: [&str; 3] = ["application/json", "application/yaml", "text/plain"];
const BINARY_VERSION: &str = "1.36.2";
const EMULATED_VERSION: &str = "1.36";
const CAUTION: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// In which form a page is asked for.
#[derive(Debug, PartialEq)]
enum Form {
    Text,
    /// An object of this version.
    Object(Encoding, &'static str),
}

/// `kind` is the page's, as an object. An object is only told where group, version and kind are named.
fn form(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    negotiation::clauses(accept).iter().find_map(|clause| {
        let said = |name: &str| clause.parameter(name);
        if said("stream").is_some() || said("sv").is_some() {
            return None;
        }
        let version = ["v1alpha1", "v1beta1"].into_iter().find(|v| Some(*v) == said("v"));
        let named = version.filter(|_| said("g") == Some(GROUP) && said("as") == Some(kind));
        let plain = ["g", "v", "as"].iter().all(|name| said(name).is_none());
        let (json, yaml) = match clause.media_type {
            "*/*" | "application/*" => (true, false),
            other => (other == "application/json", other == "application/yaml"),
        };
        match named {
            Some(version) if json => Some(Form::Object(Encoding::Json, version)),
            Some(version) if yaml => Some(Form::Object(Encoding::Yaml, version)),
            None if plain && matches!(clause.media_type, "*/*" | "text/*" | "text/plain") => Some(Form::Text),
            _ => None,
        }
    })
}

fn page(
    call: &mut Call,
    kind: &str,
    text: impl FnOnce() -> String,
    body: impl FnOnce() -> Value,
) -> Result<Response<Body>, Status> {
    let name = kind.to_ascii_lowercase();
    let accept = negotiation::accept_header(&call.headers);
    let (encoding, version) = match form(&accept, kind) {
        None => return Err(Status::not_acceptable(&ACCEPTED)),
        Some(Form::Text) => {
            return Ok(respond::text(StatusCode::OK, format!("\n{NAME} {name}\n{CAUTION}\n{}", text())));
        }
        Some(Form::Object(encoding, version)) => (encoding, version),
    };
    if version == "v1alpha1" {
        let warning =
            format!("This version of the {name} endpoint is deprecated. Please use a newer version.");
        call.warnings.push(warning);
    }
    let mut object = body();
    object["kind"] = kind.into();
    object["apiVersion"] = format!("{GROUP}/{version}").into();
    object["metadata"] = json!({"name": NAME});
    let pretty = call.accept(false).is_ok_and(|a| a.pretty);
    let mut response =
        respond::value(StatusCode::OK, &object, Accept { encoding, pretty, ..Accept::default() });
    let content_type = format!("{};g={GROUP};v={version};as={kind}", encoding.content_type());
    if let Ok(content_type) = HeaderValue::from_str(&content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    Ok(response)
}

/// The first parts of `paths` that are there for those who run the server, rather than for clients.
fn debugging(paths: &[String]) -> Vec<String> {
    let first = |path: &String| path.split('/').nth(1).unwrap_or_default().to_owned();
    let mut all: Vec<String> = paths
        .iter()
        .map(first)
        .filter(|p| !matches!(p.as_str(), "" | "api" | "apis" | "openid" | "openapi" | ".well-known"))
        .map(|p| format!("/{p}"))
        .collect();
    all.sort();
    all.dedup();
    all
}

/// `paths` is all that the server answers.
pub fn statusz(server: &Server, call: &mut Call, paths: &[String]) -> Result<Response<Body>, Status> {
    let started = server.metrics.process.started();
    let up = Timestamp::now().duration_since(started).as_secs().max(0);
    let paths = debugging(paths);
    let language = super::version()["goVersion"].as_str().unwrap_or_default().to_owned();
    let text = || {
        let date = started.to_zoned(TimeZone::UTC).strftime("%a %b %e %H:%M:%S UTC %Y").to_string();
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        format!(
            "\nStarted: {date}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nGo version: {language}\n\
             Binary version: {BINARY_VERSION}\nEmulation version: {EMULATED_VERSION}\nPaths: {}\n",
            paths.join(" ")
        )
    };
    let body = || {
        json!({
            "startTime": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "uptimeSeconds": up,
            "goVersion": &language,
            "binaryVersion": BINARY_VERSION,
            "emulationVersion": EMULATED_VERSION,
            "paths": &paths,
        })
    };
    page(call, "Statusz", text, body)
}

pub fn flagz(server: &Server, call: &mut Call) -> Result<Response<Body>, Status> {
    let text = || {
        let mut out = String::new();
        for (name, value) in &server.flags {
            let _ = writeln!(out, "{name}: {value}");
        }
        out
    };
    page(call, "Flagz", text, || json!({"flags": server.flags}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_told_where_they_are_named() {
        let json = |version| Some(Form::Object(Encoding::Json, version));
        for (accept, want) in [
            ("", Some(Form::Text)),
            ("text/plain", Some(Form::Text)),
            ("*/*", Some(Form::Text)),
            ("text/*", Some(Form::Text)),
            ("application/json", None),
            ("text/html", None),
            ("text/plain;as=Statusz;v=v1beta1;g=config.k8s.io", None),
            ("application/json;as=Statusz;v=v1beta1;g=config.k8s.io", json("v1beta1")),
            ("application/*;as=Statusz;v=v1alpha1;g=config.k8s.io", json("v1alpha1")),
            ("application/json;as=Flagz;v=v1beta1;g=config.k8s.io", None),
            ("application/json;as=Flagz;v=v1beta1;g=config.k8s.io, text/plain;q=0.1", Some(Form::Text)),
            (
                "application/yaml;as=Statusz;v=v1beta1;g=config.k8s.io",
                Some(Form::Object(Encoding::Yaml, "v1beta1")),
            ),
        ] {
            assert_eq!(form(accept, "Statusz"), want, "{accept}");
        }
    }

    #[test]
    fn paths_of_those_who_run_the_server() {
        let paths = ["/", "/api", "/apis/apps", "/readyz/ping", "/readyz", "/metrics", "/openapi/v2"];
        assert_eq!(debugging(&paths.map(str::to_owned)), ["/metrics", "/readyz"]);
    }
}
