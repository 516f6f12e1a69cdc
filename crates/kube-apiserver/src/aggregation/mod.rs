//! Extension API servers: groups that an APIService hands to a server in the cluster. Requests are passed on with the
//! client's identity in front-proxy headers; what such servers serve is read for discovery and for the `Available`
//! condition.

mod transport;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::clock::Clock;
use apimachinery::status::Status;
use apimachinery::user::{SYSTEM_MASTERS, UserInfo};
use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::Body;
use crate::metrics::{Families, Family};
use crate::proxy;
use crate::registry::handler::Call;
use crate::resource_metrics;
use crate::seams::{Objects, Writer};
use crate::server::Server;
use transport::Transport;

pub const GROUP: &str = "apiregistration.k8s.io";
/// Extension servers are looked at this often, and whenever what leads to them changes.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_millis(500);
const DISCOVERY_BYTES_MAX: usize = 8 << 20;

/// One version of a group that an extension server serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub group: String,
    pub version: String,
    group_priority: i64,
    version_priority: i64,
    /// The rows of its APIResourceList.
    resources: Vec<Value>,
    available: bool,
    /// This server has it after all, outside its table.
    local: bool,
}

/// Passes requests on, and keeps what is known of the servers behind.
pub struct Aggregator {
    transport: Transport,
    known: ArcSwap<Vec<Version>>,
    unavailable: Arc<Family>,
    became_unavailable: Arc<Family>,
}

impl Aggregator {
    /// `identity` is the front-proxy client certificate chain and key, as PEM.
    pub fn new(
        identity: Option<(&[u8], &[u8])>,
        tasks: TaskTracker,
        families: &Families,
    ) -> anyhow::Result<Aggregator> {
        Ok(Aggregator {
            transport: Transport::new(identity, tasks)?,
            known: ArcSwap::default(),
            unavailable: families.gauge(
                "aggregator_unavailable_apiservice",
                "[ALPHA] Whether an APIService is unavailable.",
                &["name"],
            ),
            became_unavailable: families.counter(
                "aggregator_unavailable_apiservice_total",
                "[ALPHA] How often an APIService became unavailable, and why.",
                &["name", "reason"],
            ),
        })
    }

    /// What extension servers serve; another pointer when it has changed.
    pub fn known(&self) -> Arc<Vec<Version>> {
        self.known.load_full()
    }

    /// Answers a request whose group version is not served here, if an extension server has it.
    pub async fn answer(
        &self,
        server: &Arc<Server>,
        call: &mut Call,
    ) -> Option<Result<Response<Body>, Status>> {
        let (group, version) = {
            let mut parts = call.uri.path().split('/').filter(|p| !p.is_empty());
            let open_api = call.uri.path().starts_with("/openapi/v3/");
            let mut parts = parts.by_ref().skip(if open_api { 2 } else { 0 });
            let (Some("apis"), Some(group)) = (parts.next(), parts.next()) else { return None };
            let version = parts.next();
            if open_api && version.is_none() {
                return None;
            }
            let table = server.registry.table.load();
            let local = match version {
                Some(version) => table.version(group, version).is_some(),
                None => table.groups().any(|(g, _)| g == group),
            };
            if local {
                return None;
            }
            (group.to_owned(), version.map(str::to_owned))
        };
        let Some(version) = version else {
            let group = group_value(&self.known(), &group)?;
            let accept = call.accept(false).unwrap_or_default();
            return Some(Ok(crate::http::respond::value(StatusCode::OK, &group, accept)));
        };
        let objects = crate::registry::access::Access(server.registry.clone());
        let name = format!("{version}.{group}");
        let service = objects.get(GROUP, "apiservices", "", &name)?;
        let service: Value = serde_json::from_slice(&service.body).ok()?;
        if !service["spec"]["service"].is_object() {
            let ours = group == resource_metrics::GROUP && version == resource_metrics::VERSION;
            return if ours && !call.uri.path().starts_with("/openapi/") {
                Some(resource_metrics::serve(server, call).await)
            } else {
                None
            };
        }
        Some(self.pass(server, &objects, &service["spec"], call).await)
    }

    async fn pass(
        &self,
        server: &Arc<Server>,
        objects: &dyn Objects,
        spec: &Value,
        call: &mut Call,
    ) -> Result<Response<Body>, Status> {
        let upgrading = call.headers.contains_key(header::UPGRADE);
        let mut request = Request::new(std::mem::take(&mut call.body));
        *request.method_mut() = call.method.clone();
        let path = call.uri.path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = path.parse().map_err(|_| Status::bad_request("the path cannot be passed on"))?;
        let mut headers = if upgrading { call.headers.clone() } else { proxy::without_hops(&call.headers) };
        identify(&mut headers, &call.user);
        if !upgrading {
            // This server compresses for the client.
            headers.remove(header::ACCEPT_ENCODING);
        }
        *request.headers_mut() = headers;
        let answer = self.transport.send(objects, spec, request).await?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = call.upgrade.take() else {
                return Err(Status::bad_request("Upgrade request required"));
            };
            return proxy::splice(server, client, answer).await;
        }
        let (head, body) = answer.into_parts();
        let mut response = Response::new(Body::Incoming(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = proxy::without_hops(&head.headers);
        Ok(response)
    }

    /// Looks at the extension servers whenever something changes, until the server ends. `local` are the group versions
    /// of this server.
    pub async fn keep(
        &self,
        objects: Arc<dyn Objects>,
        writer: Arc<dyn Writer>,
        clock: Clock,
        local: Vec<(String, String)>,
        ending: CancellationToken,
    ) {
        register_local(&*objects, &*writer, local).await;
        let mut services = objects.changes(GROUP, "apiservices");
        let mut slices = objects.changes("discovery.k8s.io", "endpointslices");
        loop {
            services.mark_unchanged();
            slices.mark_unchanged();
            let remote = self.look(&*objects, &*writer, &clock).await;
            let again = async {
                if !remote {
                    return services.changed().await.is_ok();
                }
                let changed = tokio::select! {
                    r = services.changed() => r.is_ok(),
                    r = slices.changed() => r.is_ok(),
                    () = tokio::time::sleep(LOOK_EVERY) => true,
                };
                tokio::time::sleep(REST).await;
                changed
            };
            tokio::select! {
                () = ending.cancelled() => return,
                go_on = again => if !go_on { return },
            }
        }
    }

    /// Reads what every extension server serves and writes the conditions. Whether there are any.
    async fn look(&self, objects: &dyn Objects, writer: &dyn Writer, clock: &Clock) -> bool {
        let mut found: Vec<Version> = Vec::new();
        let before = self.known();
        let mut seen: HashSet<String> = HashSet::new();
        for object in objects.list(GROUP, "apiservices", None) {
            let Ok(value) = object.to_value() else { continue };
            let spec = &value["spec"];
            let verdict = if spec["service"].is_object() {
                let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
                let mut version = Version {
                    group: text("group"),
                    version: text("version"),
                    group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
                    version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
                    resources: Vec::new(),
                    available: false,
                    local: false,
                };
                let result = match absence(objects, &spec["service"]) {
                    Some((reason, why)) => Err((reason, why)),
                    None => {
                        let found = self.resources(objects, spec, &version).await;
                        found.map_err(|why| ("FailedDiscoveryCheck", why))
                    }
                };
                let verdict = match result {
                    Ok(resources) => {
                        version.resources = resources;
                        version.available = true;
                        ("True", "Passed", "all checks passed".to_owned())
                    }
                    Err((reason, why)) => {
                        // What was known stays listed, as stale.
                        let known =
                            before.iter().find(|v| v.group == version.group && v.version == version.version);
                        version.resources = known.map(|v| v.resources.clone()).unwrap_or_default();
                        ("False", reason, why)
                    }
                };
                found.push(version);
                verdict
            } else {
                if spec["group"] == resource_metrics::GROUP && spec["version"] == resource_metrics::VERSION {
                    found.push(Version {
                        group: resource_metrics::GROUP.to_owned(),
                        version: resource_metrics::VERSION.to_owned(),
                        group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
                        version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
                        resources: resource_metrics::resources(),
                        available: true,
                        local: true,
                    });
                }
                ("True", "Local", "Local APIServices are always available".to_owned())
            };
            let (status, reason, _) = &verdict;
            let lost = *status == "False";
            self.unavailable.set(&[object.name()], f64::from(u8::from(lost)));
            let condition = |c: &Value| c["type"] == "Available" && c["status"] == "False";
            let was_lost = value["status"]["conditions"].as_array().is_some_and(|c| c.iter().any(condition));
            if lost && !was_lost {
                self.became_unavailable.inc(&[object.name(), reason]);
            }
            seen.insert(object.name().to_owned());
            if let Some(told) = with_condition(&value, verdict, &clock.now_rfc3339())
                && let Err(error) = writer.update(GROUP, "v1", "apiservices/status", told).await
            {
                tracing::debug!(%error, "condition of an APIService not written; the next look tries again");
            }
        }
        self.unavailable.forget(|labels| !seen.contains(&labels[0]));
        let remote = found.iter().any(|v| !v.local);
        if *before != found {
            self.known.store(Arc::new(found));
        }
        remote
    }

    async fn resources(
        &self,
        objects: &dyn Objects,
        spec: &Value,
        version: &Version,
    ) -> Result<Vec<Value>, String> {
        let path = format!("/apis/{}/{}", version.group, version.version);
        let mut request = Request::new(Body::Empty);
        *request.uri_mut() = path.parse().map_err(|_| format!("{path} is not a path"))?;
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        identify(request.headers_mut(), &UserInfo::new("system:kube-aggregator", &[SYSTEM_MASTERS]));
        let fetch = async {
            let answer = self.transport.send(objects, spec, request).await.map_err(|e| e.message)?;
            let status = answer.status();
            let body = Body::Incoming(answer.into_body()).collect(DISCOVERY_BYTES_MAX).await;
            let body = body.map_err(|e| e.message)?;
            if !status.is_success() {
                return Err(format!("failing or missing response from {path}: bad status {status}"));
            }
            let list: Value = serde_json::from_slice(&body).map_err(|e| format!("{path}: {e}"))?;
            Ok(list["resources"].as_array().cloned().unwrap_or_default())
        };
        match tokio::time::timeout(LOOK_TIMEOUT, fetch).await {
            Ok(result) => result,
            Err(_) => Err(format!("failing or missing response from {path}: context deadline exceeded")),
        }
    }
}

/// Makes the APIServices of the groups this server serves itself.
/// What is missing of the service an extension server is reached by: why nobody need ask it.
fn absence(objects: &dyn Objects, reference: &Value) -> Option<(&'static str, String)> {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let said = format!("service/{name} in {namespace:?}");
    let service = objects.get("", "services", namespace, name).and_then(|o| o.to_value().ok());
    let Some(service) = service else { return Some(("ServiceNotFound", format!("{said} is not present"))) };
    if service["spec"]["type"].as_str().is_some_and(|kind| kind != "ClusterIP") {
        return None;
    }
    let port = reference["port"].as_u64().unwrap_or(443);
    let ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(listening) = ports.iter().find(|p| p["port"] == port) else {
        return Some(("ServicePortError", format!("{said} is not listening on port {port}")));
    };
    let port_name = listening["name"].as_str().unwrap_or_default();
    let slices: Vec<Value> = objects
        .list("discovery.k8s.io", "endpointslices", Some(namespace))
        .iter()
        .filter(|o| o.attributes.label("kubernetes.io/service-name") == Some(name))
        .filter_map(|o| o.to_value().ok())
        .collect();
    if slices.is_empty() {
        return Some(("EndpointsNotFound", format!("cannot find endpointslices for {said}")));
    }
    let items = |value: &Value, field: &str| value[field].as_array().cloned().unwrap_or_default();
    let serves = |slice: &Value| {
        items(slice, "endpoints").iter().any(|e| e["conditions"]["ready"] != false)
            && items(slice, "ports")
                .iter()
                .any(|p| p["name"].as_str().unwrap_or_default() == port_name && p["port"].is_u64())
    };
    if slices.iter().any(serves) {
        return None;
    }
    let why = format!("endpointslices for {said} have no addresses with port name {port_name:?}");
    Some(("MissingEndpoints", why))
}

async fn register_local(objects: &dyn Objects, writer: &dyn Writer, local: Vec<(String, String)>) {
    for (group, version) in local {
        let name = format!("{version}.{group}");
        if objects.get(GROUP, "apiservices", "", &name).is_some() {
            continue;
        }
        let (group_priority, version_priority) = match group.as_str() {
            "" => (18000, 1),
            "apps" => (17800, 15),
            resource_metrics::GROUP => (100, 100),
            _ => (16000, if version.contains("beta") || version.contains("alpha") { 9 } else { 15 }),
        };
        let object = json!({
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": name, "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": group_priority,
                "versionPriority": version_priority,
            },
        });
        if let Err(error) = writer.create(GROUP, "v1", "apiservices", object).await {
            tracing::debug!(name, %error, "no APIService for a group of this server");
        }
    }
}

/// Tells the server behind who asks, and takes out what only concerned this one.
fn identify(headers: &mut HeaderMap, user: &UserInfo) {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.starts_with("x-remote-") || name.starts_with("impersonate-")
        })
        .cloned()
        .collect();
    for name in ours.into_iter().chain([header::AUTHORIZATION]) {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    user.groups.iter().for_each(|g| add("x-remote-group", g));
    for (key, values) in &user.extra {
        let key = percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC).to_string();
        values.iter().for_each(|v| add(&format!("x-remote-extra-{key}"), v));
    }
}

fn with_condition(service: &Value, verdict: (&str, &str, String), now: &str) -> Option<Value> {
    let (status, reason, message) = verdict;
    let mut conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let old = conditions.iter().position(|c| c["type"] == "Available");
    let mut since = json!(now);
    if let Some(old) = old {
        let old = &conditions[old];
        if old["status"] == status && old["reason"] == reason && old["message"] == message.as_str() {
            return None;
        }
        if old["status"] == status {
            since = old["lastTransitionTime"].clone();
        }
    }
    conditions.retain(|c| c["type"] != "Available");
    conditions.push(json!({"type": "Available", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since}));
    let mut service = service.clone();
    service["status"]["conditions"] = Value::Array(conditions);
    Some(service)
}

/// Groups with their versions, both most important first.
fn grouped(known: &[Version]) -> Vec<(&str, Vec<&Version>)> {
    let mut groups: Vec<(&str, Vec<&Version>)> = Vec::new();
    for version in known {
        match groups.iter_mut().find(|(g, _)| *g == version.group) {
            Some((_, versions)) => versions.push(version),
            None => groups.push((&version.group, vec![version])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by_key(|v| (std::cmp::Reverse(v.version_priority), v.version.clone()));
    }
    groups.sort_by_key(|(name, versions)| {
        (std::cmp::Reverse(versions.iter().map(|v| v.group_priority).max()), (*name).to_owned())
    });
    groups
}

fn plain(group: &str, versions: &[&Version]) -> Value {
    let all: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{group}/{}", v.version), "version": v.version}))
        .collect();
    json!({"name": group, "versions": all, "preferredVersion": all.first()})
}

/// The entries of `/apis` for groups that are not served here.
pub fn plain_groups(known: &[Version], is_local: impl Fn(&str) -> bool) -> Vec<Value> {
    grouped(known).iter().filter(|(g, _)| !is_local(g)).map(|(g, v)| plain(g, v)).collect()
}

fn group_value(known: &[Version], group: &str) -> Option<Value> {
    let groups = grouped(known);
    let (_, versions) = groups.iter().find(|(g, _)| *g == group)?;
    let mut value = plain(group, versions);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

/// Group versions whose server answers.
pub fn available(known: &[Version]) -> Vec<(String, String)> {
    known.iter().filter(|v| v.available && !v.local).map(|v| (v.group.clone(), v.version.clone())).collect()
}

/// The entries of aggregated discovery for groups that are not served here.
pub fn discovery_groups(known: &[Version], is_local: impl Fn(&str) -> bool) -> Vec<Value> {
    let version = |v: &&Version| {
        json!({
            "version": v.version,
            "freshness": if v.available { "Current" } else { "Stale" },
            "resources": discovery_resources(v),
        })
    };
    grouped(known)
        .iter()
        .filter(|(g, _)| !is_local(g))
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions.iter().map(version).collect();
            json!({"metadata": {"name": group}, "versions": versions})
        })
        .collect()
}

/// APIResourceList rows as APIResourceDiscovery entries, subresources inside their resource.
fn discovery_resources(version: &Version) -> Vec<Value> {
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let kind = |row: &Value| {
        let or = |field: &str, own: &str| {
            let given = text(row, field);
            if given.is_empty() { own.to_owned() } else { given }
        };
        json!({"group": or("group", &version.group), "version": or("version", &version.version), "kind": text(row, "kind")})
    };
    let mut out: Vec<Value> = Vec::new();
    for row in version.resources.iter().filter(|r| !text(r, "name").contains('/')) {
        let mut value = json!({
            "resource": row["name"],
            "responseKind": kind(row),
            "scope": if row["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": text(row, "singularName"),
            "verbs": row["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if row[field].is_array() {
                value[field] = row[field].clone();
            }
        }
        let prefix = format!("{}/", text(row, "name"));
        let subs: Vec<Value> = version
            .resources
            .iter()
            .filter_map(|sub| {
                let name = text(sub, "name");
                let name = name.strip_prefix(&prefix)?;
                Some(json!({"subresource": name, "responseKind": kind(sub), "verbs": sub["verbs"]}))
            })
            .collect();
        if !subs.is_empty() {
            value["subresources"] = Value::Array(subs);
        }
        out.push(value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(group: &str, name: &str, priority: i64) -> Version {
        let rows = json!([
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]}]);
        Version {
            group: group.into(),
            version: name.into(),
            group_priority: 10,
            version_priority: priority,
            resources: rows.as_array().unwrap().clone(),
            available: true,
            local: false,
        }
    }

    #[test]
    fn discovery() {
        let known = [
            version("w.example.com", "v1alpha1", 1),
            version("w.example.com", "v1", 5),
            version("local", "v1", 1),
        ];
        let groups = plain_groups(&known, |g| g == "local");
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0]["preferredVersion"]["groupVersion"], "w.example.com/v1");
        let groups = discovery_groups(&known, |g| g == "local");
        let resources = &groups[0]["versions"][0]["resources"];
        assert_eq!(resources.as_array().unwrap().len(), 1);
        assert_eq!(resources[0]["scope"], "Namespaced");
        assert_eq!(resources[0]["subresources"][0]["subresource"], "status");
        assert_eq!(
            resources[0]["responseKind"],
            json!({"group": "w.example.com", "version": "v1", "kind": "Flunder"})
        );
        assert!(group_value(&known, "missing").is_none());
    }

    #[test]
    fn what_is_missing_of_a_service() {
        let objects = crate::security::testing::FakeObjects::default();
        let reference = json!({"namespace": "n", "name": "s", "port": 443});
        let why = |objects: &crate::security::testing::FakeObjects| absence(objects, &reference);
        let of = |reason: &'static str, why: &str| Some((reason, why.to_owned()));
        assert_eq!(why(&objects), of("ServiceNotFound", "service/s in \"n\" is not present"));
        let service = |port: u64| {
            json!({"metadata": {"namespace": "n", "name": "s"},
                "spec": {"type": "ClusterIP", "ports": [{"name": "web", "port": port}]}})
        };
        objects.put("", "services", service(80));
        assert_eq!(why(&objects), of("ServicePortError", "service/s in \"n\" is not listening on port 443"));
        objects.put("", "services", service(443));
        let none = "cannot find endpointslices for service/s in \"n\"";
        assert_eq!(why(&objects), of("EndpointsNotFound", none));
        let slice = |name: &str| {
            json!({"metadata": {"namespace": "n", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
                "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"name": name, "port": 8443}]})
        };
        objects.put("discovery.k8s.io", "endpointslices", slice("other"));
        let missing = "endpointslices for service/s in \"n\" have no addresses with port name \"web\"";
        assert_eq!(why(&objects), of("MissingEndpoints", missing));
        objects.put("discovery.k8s.io", "endpointslices", slice("web"));
        assert_eq!(why(&objects), None);
    }

    #[test]
    fn identity_replaces_what_the_client_claims() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        let mut user = UserInfo::new("alice", &["dev"]);
        user.extra.insert("example.com/Scope".into(), vec!["a".into()]);
        identify(&mut headers, &user);
        assert_eq!(headers["x-remote-user"], "alice");
        assert_eq!(headers.get_all("x-remote-group").iter().count(), 2);
        assert!(headers.keys().any(|k| k.as_str().starts_with("x-remote-extra-example%2ecom")));
        assert!(!headers.contains_key("authorization"));
    }

    #[test]
    fn conditions_change_only_when_the_verdict_does() {
        let verdict = |status: &'static str, message: &str| (status, "Passed", message.to_owned());
        let told = with_condition(&json!({}), verdict("True", "a"), "t1").unwrap();
        assert!(with_condition(&told, verdict("True", "a"), "t2").is_none());
        let other = with_condition(&told, verdict("True", "b"), "t2").unwrap();
        assert_eq!(other["status"]["conditions"][0]["lastTransitionTime"], "t1");
        let gone = with_condition(&told, verdict("False", "b"), "t2").unwrap();
        assert_eq!(gone["status"]["conditions"][0]["lastTransitionTime"], "t2");
    }
}
