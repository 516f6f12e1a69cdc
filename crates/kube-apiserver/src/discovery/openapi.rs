//! OpenAPI documents: made when first asked for, kept compressed until the resources they describe change.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::Arc;

use apimachinery::openapi::{self, CustomResource};
use apimachinery::status::Status;
use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::http::Body;
use crate::http::compression;
use crate::http::negotiation;
use crate::http::respond;
use crate::registry::Table;
use crate::registry::handler::Call;
use crate::server::Server;

/// A document under the fingerprint of what it was made from.
#[derive(Clone)]
struct Document {
    fingerprint: String,
    /// gzip
    body: Bytes,
}

/// The documents made so far, by path.
#[derive(Default)]
pub struct OpenApi {
    made: Mutex<HashMap<String, Document>>,
}

fn customs<'a>(
    table: &'a Table,
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = CustomResource> + 'a {
    let resources = table.version(group, version);
    resources.into_iter().flatten().filter_map(|(_, e)| e.custom.as_ref().map(|c| c.open_api(e)))
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// What identifies the content of a group version's document without making it.
fn fingerprint(table: &Table, group: &str, version: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(path_of(group, version));
    for entry in table.version(group, version).into_iter().flatten().map(|(_, e)| e) {
        hash.update(&entry.resource);
        if let Some(custom) = &entry.custom {
            hash.update(custom.fingerprint());
        }
    }
    super::groups::hex(&hash.finalize()).to_uppercase()
}

impl OpenApi {
    fn document(
        &self,
        path: &str,
        fingerprint: &str,
        make: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Option<Document> {
        if let Some(there) = self.made.lock().get(path).filter(|d| d.fingerprint == fingerprint) {
            return Some(there.clone());
        }
        let document = Document { fingerprint: fingerprint.to_owned(), body: compression::gzip(&make()?) };
        self.made.lock().insert(path.to_owned(), document.clone());
        Some(document)
    }
}

fn send(call: &Call, document: Document, content_type: &'static str, immutable: bool) -> Response<Body> {
    let etag = format!("\"{}\"", document.fingerprint);
    let unchanged = call.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == etag.as_bytes());
    let mut response = if unchanged {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if negotiation::gzip(&call.headers) {
        let mut response = respond::bytes_response(StatusCode::OK, content_type, document.body);
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut plain = Vec::new();
        // The bytes are of our own making.
        let _ = GzDecoder::new(&document.body[..]).read_to_end(&mut plain);
        respond::bytes_response(StatusCode::OK, content_type, plain)
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if immutable {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    response
}

/// The documents of groups and of the server itself.
fn others_paths(table: &Table) -> Vec<String> {
    let own = ["api", "apis", "version", ".well-known/openid-configuration", "openid/v1/jwks"];
    let groups = table.groups().map(|(group, _)| group).filter(|g| !g.is_empty());
    own.iter().map(|p| (*p).to_owned()).chain(groups.map(|g| format!("apis/{g}"))).collect()
}

fn others_fingerprint(table: &Table) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(others_paths(table).join(" "));
    super::groups::hex(&hash.finalize()).to_uppercase()
}

/// `/openapi/v3`: where the documents are.
pub fn index(server: &Server) -> Response<Body> {
    let table = server.registry.table.load();
    let mut paths: BTreeMap<String, Value> = BTreeMap::new();
    let hash = others_fingerprint(&table);
    for path in others_paths(&table) {
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    for (group, versions) in table.groups() {
        for version in versions.keys() {
            let (path, hash) = (path_of(group, version), fingerprint(&table, group, version));
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    for (group, version) in crate::aggregation::available(&server.aggregator.known()) {
        let path = path_of(&group, &version);
        let url = format!("/openapi/v3/{path}");
        paths.entry(path).or_insert_with(|| json!({"serverRelativeURL": url}));
    }
    let paths: Map<String, Value> = paths.into_iter().collect();
    respond::value(StatusCode::OK, &json!({"paths": paths}), Default::default())
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/apps/v1`, `/openapi/v3/apis/apps`, `/openapi/v3/version`.
pub fn v3(server: &Arc<Server>, call: &Call, parts: &[&str]) -> Result<Response<Body>, Status> {
    let table = server.registry.table.load_full();
    let path = parts.join("/");
    let version = match parts {
        ["api", version] => Some(("", *version)),
        ["apis", group, version] => Some((*group, *version)),
        _ => None,
    };
    let fingerprint = match version {
        Some((group, version)) if table.version(group, version).is_some() => {
            fingerprint(&table, group, version)
        }
        _ if others_paths(&table).contains(&path) => others_fingerprint(&table),
        _ => {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    if let Some(wanted) = call.query.non_empty("hash")
        && wanted != fingerprint
    {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let location = format!("/openapi/v3/{path}?hash={fingerprint}");
        let location = HeaderValue::from_str(&location).map_err(Status::internal)?;
        response.headers_mut().insert(header::LOCATION, location);
        return Ok(response);
    }
    let document = server.documents.open_api.document(&path, &fingerprint, || {
        let Some((group, version)) = version else {
            let groups: Vec<&str> = table.groups().map(|(group, _)| group).collect();
            return openapi::v3_others(&groups).into_iter().find(|(at, _)| *at == path).map(|(_, d)| d);
        };
        let customs: Vec<CustomResource> = customs(&table, group, version).collect();
        if customs.is_empty() {
            openapi::v3_for_group(group, version)
        } else {
            Some(openapi::v3_for_custom(group, version, &customs))
        }
    });
    let document = document.ok_or_else(Status::no_such_resource)?;
    Ok(send(call, document, "application/json", call.query.non_empty("hash").is_some()))
}

/// `/openapi/v2`: everything in one document.
pub fn v2(server: &Arc<Server>, call: &Call) -> Result<Response<Body>, Status> {
    let accept = negotiation::accept_header(&call.headers);
    let Some(form) = FormV2::chosen(&accept) else {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
        return Ok(response);
    };
    let table = server.registry.table.load_full();
    let mut hash = Sha256::new();
    let mut all = Vec::new();
    for (group, versions) in table.groups() {
        for version in versions.keys() {
            hash.update(fingerprint(&table, group, version));
            all.extend(customs(&table, group, version));
        }
    }
    let fingerprint = super::groups::hex(&hash.finalize()).to_uppercase();
    let is_served = |group: &str, version: &str| table.version(group, version).is_some();
    let make = || match form {
        FormV2::Json => openapi::v2(&all, &is_served),
        FormV2::Protobuf => openapi::v2_protobuf(&all, &is_served),
    };
    let document = server
        .documents
        .open_api
        .document(form.key(), &fingerprint, || Some(make()))
        .ok_or_else(Status::no_such_resource)?;
    Ok(send(call, document, form.content_type(), false))
}

/// The forms of version 2. Go clients ask for protobuf alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FormV2 {
    Json,
    Protobuf,
}

impl FormV2 {
    fn chosen(accept: &str) -> Option<FormV2> {
        if accept.is_empty() {
            return Some(FormV2::Json);
        }
        negotiation::clauses(accept).iter().find_map(|clause| match clause.media_type {
            "application/json" | "application/*" | "*/*" => Some(FormV2::Json),
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
            | "application/com.github.proto-openapi.spec.v2@v1.0+protobuf" => Some(FormV2::Protobuf),
            _ => None,
        })
    }

    fn key(self) -> &'static str {
        match self {
            FormV2::Json => "v2",
            FormV2::Protobuf => "v2 protobuf",
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            FormV2::Json => "application/json",
            FormV2::Protobuf => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FormV2;

    #[test]
    fn forms_of_version_2() {
        const OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        const NEW: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
        for (accept, want) in [
            ("", Some(FormV2::Json)),
            ("*/*", Some(FormV2::Json)),
            ("application/json", Some(FormV2::Json)),
            (OLD, Some(FormV2::Protobuf)),
            (NEW, Some(FormV2::Protobuf)),
            ("text/plain, application/json;q=0.5", Some(FormV2::Json)),
            ("application/yaml", None),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(FormV2::chosen(accept), want, "{accept}");
        }
    }
}
