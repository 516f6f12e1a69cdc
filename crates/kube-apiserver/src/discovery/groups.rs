//! Which groups, versions and resources there are: one list per group version, or all at once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::status::Status;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::aggregation;
use crate::http::Body;
use crate::http::negotiation::{self, Accept, Encoding};
use crate::http::respond;
use crate::registry::entry::api_version;
use crate::registry::handler::Call;
use crate::registry::{Entry, Table};
use crate::server::Server;

/// Documents made from the table, kept until it changes.
#[derive(Default)]
pub struct Documents {
    aggregated: Mutex<Option<([usize; 2], [Aggregated; 2])>>,
    pub open_api: super::openapi::OpenApi,
}

#[derive(Clone)]
struct Aggregated {
    body: Bytes,
    etag: String,
}

/// Built-in groups in upstream's order of precedence; others follow by name.
const ORDER: [&str; 24] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "storagemigration.k8s.io",
    "metrics.k8s.io",
];

/// Newer and more stable versions first: v2, v1, v1beta2, v1beta1, v1alpha1.
pub fn version_rank(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>, String) {
    let parsed = || -> Option<(u8, u32, u32)> {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u32 = rest[..digits].parse().ok()?;
        let rest = &rest[digits..];
        if rest.is_empty() {
            return Some((0, major, 0));
        }
        if let Some(minor) = rest.strip_prefix("beta") {
            return Some((1, major, minor.parse().ok()?));
        }
        Some((2, major, rest.strip_prefix("alpha")?.parse().ok()?))
    };
    match parsed() {
        Some((stage, major, minor)) => {
            (stage, std::cmp::Reverse(major), std::cmp::Reverse(minor), String::new())
        }
        None => (3, std::cmp::Reverse(0), std::cmp::Reverse(0), version.to_owned()),
    }
}

type Versions<'a> = Vec<(&'a str, &'a BTreeMap<String, Arc<Entry>>)>;

fn ordered(table: &Table) -> Vec<(&str, Versions<'_>)> {
    let mut groups: Vec<(&str, Versions<'_>)> = table
        .groups()
        .map(|(group, versions)| {
            let mut versions: Versions<'_> = versions.iter().map(|(v, r)| (v.as_str(), r)).collect();
            versions.sort_by_cached_key(|(v, _)| version_rank(v));
            (group, versions)
        })
        .collect();
    groups.sort_by_key(|(group, _)| {
        (ORDER.iter().position(|g| g == group).unwrap_or(ORDER.len()), (*group).to_owned())
    });
    groups
}

// Members in upstream's order: there are readers that look for pieces of the text.

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiGroup<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    name: &'a str,
    versions: Vec<GroupVersion<'a>>,
    preferred_version: Option<GroupVersion<'a>>,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersion<'a> {
    group_version: String,
    version: &'a str,
}

impl<'a> ApiGroup<'a> {
    fn new(name: &'a str, versions: &Versions<'a>) -> ApiGroup<'a> {
        let versions: Vec<GroupVersion<'a>> = versions
            .iter()
            .map(|(version, _)| GroupVersion { group_version: api_version(name, version), version })
            .collect();
        let preferred_version = versions.first().cloned();
        ApiGroup { kind: None, api_version: None, name, versions, preferred_version }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiResourceList<'a> {
    kind: &'static str,
    /// Left out of the core group's, which is older than it.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_version: Option<&'static str>,
    group_version: String,
    resources: Vec<ApiResource<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiResource<'a> {
    name: Cow<'a, str>,
    singular_name: &'a str,
    namespaced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    kind: &'a str,
    verbs: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    short_names: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    categories: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_version_hash: Option<String>,
}

fn text(accept: Accept, value: &impl Serialize) -> Result<Response<Body>, Status> {
    if accept.encoding == Encoding::Json && accept.pretty {
        let body = serde_json::to_vec_pretty(value).map_err(Status::internal)?;
        return Ok(respond::bytes_response(StatusCode::OK, Encoding::Json.content_type(), body));
    }
    if accept.encoding == Encoding::Json {
        let mut body = serde_json::to_vec(value).map_err(Status::internal)?;
        body.push(b'\n');
        return Ok(respond::bytes_response(StatusCode::OK, Encoding::Json.content_type(), body));
    }
    let value = serde_json::to_value(value).map_err(Status::internal)?;
    Ok(respond::value(StatusCode::OK, &value, accept))
}

/// `/api` and `/apis`: the groups, or everything when the client knows how to read that.
pub fn root(server: &Server, call: &Call, named_groups: bool) -> Result<Response<Body>, Status> {
    if let Some(version) = aggregated_version(call) {
        return Ok(aggregated(server, call, named_groups, version));
    }
    let table = server.registry.table.load();
    let accept = call.accept(false)?;
    if named_groups {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Row<'a> {
            Local(ApiGroup<'a>),
            Remote(Value),
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct ApiGroupList<'a> {
            kind: &'static str,
            api_version: &'static str,
            groups: Vec<Row<'a>>,
        }
        let mut groups: Vec<Row<'_>> = ordered(&table)
            .iter()
            .filter(|(group, _)| !group.is_empty())
            .map(|(group, versions)| Row::Local(ApiGroup::new(group, versions)))
            .collect();
        let local = |group: &str| table.groups().any(|(g, _)| g == group);
        let remote = aggregation::plain_groups(&server.aggregator.known(), local);
        groups.extend(remote.into_iter().map(Row::Remote));
        text(accept, &ApiGroupList { kind: "APIGroupList", api_version: "v1", groups })
    } else {
        let host = call
            .headers
            .get(header::HOST)
            .and_then(|h| h.to_str().ok())
            .or(call.uri.authority().map(|a| a.as_str()));
        let value = json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": host.unwrap_or_default()}],
        });
        Ok(respond::value(StatusCode::OK, &value, accept))
    }
}

pub fn group(server: &Server, call: &Call, group: &str) -> Result<Response<Body>, Status> {
    let table = server.registry.table.load();
    let groups = ordered(&table);
    let Some((_, versions)) = groups.iter().find(|(g, _)| *g == group && !g.is_empty()) else {
        return Ok(super::no_such_page());
    };
    let mut value = ApiGroup::new(group, versions);
    (value.kind, value.api_version) = (Some("APIGroup"), Some("v1"));
    text(call.accept(false)?, &value)
}

pub fn version(server: &Server, call: &Call, group: &str, version: &str) -> Result<Response<Body>, Status> {
    let table = server.registry.table.load();
    let Some(resources) = table.version(group, version) else { return Err(Status::no_such_resource()) };
    let mut all = Vec::new();
    for entry in resources.values() {
        all.push(ApiResource {
            name: entry.resource.as_str().into(),
            singular_name: &entry.singular,
            namespaced: entry.namespaced,
            group: None,
            version: None,
            kind: &entry.kind,
            verbs: &entry.verbs,
            short_names: &entry.short_names,
            categories: &entry.categories,
            storage_version_hash: entry.cache.is_some().then(|| storage_version_hash(entry)),
        });
        for sub in &entry.subresources {
            let other = sub.group_version.as_ref();
            all.push(ApiResource {
                name: format!("{}/{}", entry.resource, sub.name).into(),
                singular_name: "",
                namespaced: entry.namespaced,
                group: other.map(|(group, _)| group.as_str()),
                version: other.map(|(_, version)| version.as_str()),
                kind: &sub.kind,
                verbs: &sub.verbs,
                short_names: &[],
                categories: &[],
                storage_version_hash: None,
            });
        }
    }
    let list = ApiResourceList {
        kind: "APIResourceList",
        api_version: (!group.is_empty()).then_some("v1"),
        group_version: api_version(group, version),
        resources: all,
    };
    text(call.accept(false)?, &list)
}

fn storage_version_hash(entry: &Entry) -> String {
    use base64::Engine as _;
    let text = format!("{}/{}/{}", entry.storage_group, entry.storage_version, entry.kind);
    base64::prelude::BASE64_STANDARD.encode(&Sha256::digest(text)[..8])
}

/// The version of aggregated discovery the client prefers to the plain lists.
fn aggregated_version(call: &Call) -> Option<&'static str> {
    let accept = negotiation::accept_header(&call.headers);
    negotiation::clauses(&accept).iter().find_map(|clause| {
        let encoding = Encoding::of(clause.media_type)?;
        let wanted = clause.parameter("g") == Some("apidiscovery.k8s.io")
            && clause.parameter("as") == Some("APIGroupDiscoveryList");
        Some(match clause.parameter("v") {
            Some("v2") if wanted && encoding == Encoding::Json => Some("v2"),
            Some("v2beta1") if wanted && encoding == Encoding::Json => Some("v2beta1"),
            _ if wanted => return None,
            _ => None,
        })
    })?
}

fn aggregated(server: &Server, call: &Call, named_groups: bool, version: &'static str) -> Response<Body> {
    let table = server.registry.table.load_full();
    let remote = server.aggregator.known();
    let identity = [Arc::as_ptr(&table) as usize, Arc::as_ptr(&remote) as usize];
    let document = {
        let mut kept = server.documents.aggregated.lock();
        match &*kept {
            Some((of, documents)) if *of == identity => documents[usize::from(named_groups)].clone(),
            _ => {
                let documents = [false, true].map(|named| {
                    let body = serde_json::to_vec(&aggregate(&table, &remote, named)).unwrap_or_default();
                    let etag = format!("\"{}\"", hex(&Sha256::digest(&body)).to_uppercase());
                    Aggregated { body: body.into(), etag }
                });
                let document = documents[usize::from(named_groups)].clone();
                *kept = Some((identity, documents));
                document
            }
        }
    };
    let matches =
        call.headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == document.etag.as_bytes());
    let mut response = if matches {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if version == "v2" {
        respond::bytes_response(
            StatusCode::OK,
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            document.body,
        )
    } else {
        let text = String::from_utf8_lossy(&document.body).replacen(
            "apidiscovery.k8s.io/v2",
            "apidiscovery.k8s.io/v2beta1",
            1,
        );
        respond::bytes_response(
            StatusCode::OK,
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            text,
        )
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&document.etag) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn aggregate(table: &Table, remote: &[aggregation::Version], named_groups: bool) -> Value {
    let mut items: Vec<Value> = ordered(table)
        .into_iter()
        .filter(|(group, _)| group.is_empty() != named_groups)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|(version, resources)| {
                    let resources: Vec<Value> = resources.values().map(|e| aggregate_resource(e)).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    if named_groups {
        let local = |group: &str| table.groups().any(|(g, _)| g == group);
        items.extend(aggregation::discovery_groups(remote, local));
    }
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregate_resource(entry: &Entry) -> Value {
    // Upstream leaves out the version of the core group.
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": if group.is_empty() { "" } else { version }, "kind": kind});
    let mut value = json!({
        "resource": entry.resource,
        "responseKind": kind(&entry.group, &entry.version, &entry.kind),
        "scope": if entry.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": entry.singular,
        "verbs": entry.verbs,
    });
    if !entry.short_names.is_empty() {
        value["shortNames"] = json!(entry.short_names);
    }
    if !entry.categories.is_empty() {
        value["categories"] = json!(entry.categories);
    }
    if !entry.subresources.is_empty() {
        let subs: Vec<Value> = entry
            .subresources
            .iter()
            .map(|sub| {
                let (g, v) = match &sub.group_version {
                    Some((g, v)) => (g.as_str(), v.as_str()),
                    None => (entry.group.as_str(), entry.version.as_str()),
                };
                json!({"subresource": sub.name, "responseKind": kind(g, v, &sub.kind), "verbs": sub.verbs})
            })
            .collect();
        value["subresources"] = subs.into();
    }
    value
}
