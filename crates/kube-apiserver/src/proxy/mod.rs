//! Requests that end at a kubelet, a pod or a service: logs, exec, attach, port-forward, proxying.

pub mod dial;
mod rewrite;
mod target;

use std::sync::Arc;

use apimachinery::status::Status;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::http::Body;
use crate::http::request_info::proxy_tail;
use crate::registry::handler::Call;
use crate::registry::list::not_a_number;
use crate::seams::{AdmissionRequest, Operation};
use crate::server::Server;
use dial::{Dialer, Target};

/// Bytes of a kubelet's error text that are passed on.
const ERROR_TEXT_MAX: usize = 64 << 10;

/// How the server proves itself to kubelets, as PEM.
#[derive(Clone, Debug, Default)]
pub struct KubeletClient {
    pub certificate: Option<Vec<u8>>,
    pub key: Option<Vec<u8>>,
    /// Whom kubelets' certificates must be signed by; without it they are not checked, as upstream's default.
    pub ca: Option<Vec<u8>>,
    /// Which addresses of a node are tried, first to last; empty: internal address, host name, then external ones.
    pub address_types: Vec<String>,
}

/// How the server reaches kubelets, pods and services.
pub struct Kubelets {
    dialer: Dialer,
    address_types: Vec<String>,
    /// Connections and spliced streams in progress.
    pub tasks: TaskTracker,
}

impl Kubelets {
    pub fn new(client: &KubeletClient) -> anyhow::Result<Kubelets> {
        let tasks = TaskTracker::new();
        let usual = ["InternalIP", "Hostname", "InternalDNS", "ExternalIP", "ExternalDNS"];
        let address_types = if client.address_types.is_empty() {
            usual.map(str::to_owned).to_vec()
        } else {
            client.address_types.clone()
        };
        Ok(Kubelets { dialer: Dialer::new(client, tasks.clone())?, address_types, tasks })
    }
}

impl Kubelets {
    /// Asks a server on this host, whoever it proves to be.
    pub async fn ask_this_host(&self, port: u16, path: &str) -> Result<Response<Incoming>, Status> {
        let target = Target { tls: true, host: "127.0.0.1".to_owned(), port };
        let request = Request::get(path).header(header::HOST, target.authority());
        let request = request.body(Body::Empty).map_err(Status::internal)?;
        self.dialer.send(&target, false, request).await
    }

    /// Asks the kubelet of a node.
    pub async fn ask(
        &self,
        registry: &crate::registry::Registry,
        node: &str,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, Status> {
        let target = target::kubelet(registry, node, &self.address_types).await?;
        let host =
            HeaderValue::from_str(&target.authority()).map_err(|e| Status::bad_request(e.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
        self.dialer.send(&target, true, request).await
    }
}

async fn admit(server: &Server, call: &mut Call, kind: &str, mut options: Value) -> Result<(), Status> {
    let policy = server.registry.policy()?;
    let nothing = Value::Null;
    let info = call.info.clone();
    let mut request = AdmissionRequest {
        operation: Operation::Connect,
        group: &info.group,
        version: &info.version,
        kind,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        user: &call.user,
        dry_run: false,
        options: &nothing,
        object: &mut options,
        old_object: None,
        warnings: &mut call.warnings,
        annotations: &mut call.annotations,
        elsewhere: &mut call.elsewhere,
    };
    policy.admission.admit(&mut request).await?;
    policy.admission.validate(&mut request).await
}

/// The options of a connect request as an object, for admission.
fn options_of(call: &Call, kind: &str) -> Value {
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    for name in ["stdin", "stdout", "stderr", "tty"] {
        if call.query.get(name).is_some() {
            options[name] = call.query.flag(name).into();
        }
    }
    if let Some(container) = call.query.non_empty("container") {
        options["container"] = container.into();
    }
    let command: Vec<&str> = call.query.all("command").collect();
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    options
}

fn encode_query(pairs: &[(&str, &str)]) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for (k, v) in pairs {
        out.append_pair(k, v);
    }
    out.finish()
}

fn check_log_options(call: &Call) -> Result<(), Status> {
    use apimachinery::field_path::Path;
    use apimachinery::status::FieldError;
    let number = |name: &str| {
        let parsed = call.query.non_empty(name).map(|text| {
            text.parse::<i64>().map_err(|e| Status::bad_request(not_a_number("ParseInt", text, &e)))
        });
        parsed.transpose()
    };
    let mut errors = Vec::new();
    if let Some(lines) = number("tailLines")?.filter(|n| *n < 0) {
        errors.push(FieldError::invalid(
            &Path::new("tailLines"),
            lines,
            "must be greater than or equal to 0",
        ));
    }
    for name in ["limitBytes", "sinceSeconds"] {
        if let Some(given) = number(name)?.filter(|n| *n < 1) {
            errors.push(FieldError::invalid(&Path::new(name), given, "must be greater than 0"));
        }
    }
    if call.query.non_empty("sinceSeconds").is_some() && call.query.non_empty("sinceTime").is_some() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(FieldError::forbidden(&Path::new("[]"), why));
    }
    if call.query.non_empty("stream").is_some() {
        // Upstream has it behind a gate that is off.
        errors.push(FieldError::forbidden(&Path::new("stream"), "may not be specified"));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("PodLogOptions", "", &call.info.name, errors))
}

/// `pods/log`: the kubelet's answer, as it comes.
pub async fn log(server: &Arc<Server>, call: &mut Call) -> Result<Response<Body>, Status> {
    check_log_options(call)?;
    let pod = target::pod(&server.registry, &call.info).await?;
    let container = target::container(&pod, call.query.non_empty("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Ok(Response::new(Body::Empty));
    }
    let kubelet = target::kubelet_of_pod(&server.registry, node, &server.kubelets.address_types).await?;
    let mut pairs = Vec::new();
    for name in
        ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes", "stream"]
    {
        if let Some(value) = call.query.non_empty(name) {
            pairs.push((name, value));
        }
    }
    let query = encode_query(&pairs);
    let path = format!("/containerLogs/{}/{}/{container}", call.info.namespace, call.info.name);
    let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
    let request = Request::get(uri)
        .header(header::HOST, kubelet.authority())
        .body(Body::Empty)
        .map_err(|e| Status::bad_request(e.to_string()))?;
    let answer = server.kubelets.dialer.send(&kubelet, true, request).await?;
    let answer = checked(answer).await?;
    let mut response = Response::new(Body::Incoming(answer.into_body()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The answer, or the failure it tells of.
async fn checked(answer: Response<Incoming>) -> Result<Response<Incoming>, Status> {
    let code = answer.status();
    if code.as_u16() < 400 {
        return Ok(answer);
    }
    let body = Body::Incoming(answer.into_body()).collect(ERROR_TEXT_MAX).await.unwrap_or_default();
    if let Ok(status) = serde_json::from_slice::<Status>(&body)
        && status.code >= 400
    {
        return Err(status);
    }
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    Err(match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::NOT_FOUND => {
            let mut status = Status::no_such_resource();
            status.message = format!("the server could not find the requested resource ({text})");
            status
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Status::internal(format!("the kubelet refused this server: {code} {text}"))
        }
        _ => Status::internal(text),
    })
}

/// `pods/exec`, `pods/attach`, `pods/portforward`: the client's protocol is the kubelet's, bytes pass both ways.
pub async fn stream(server: &Arc<Server>, call: &mut Call) -> Result<Response<Body>, Status> {
    let kind = match call.info.subresource.as_str() {
        "exec" => "PodExecOptions",
        "attach" => "PodAttachOptions",
        _ => "PodPortForwardOptions",
    };
    let pod = target::pod(&server.registry, &call.info).await?;
    let options = options_of(call, kind);
    admit(server, call, kind, options).await?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", call.info.name)));
    }
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let container = match kind {
        "PodPortForwardOptions" => {
            for port in call.query.all("ports").flat_map(|p| p.split(',')) {
                if let Err(error) = port.parse::<u64>() {
                    let why = crate::registry::list::not_a_number("ParseUint", port, &error);
                    return Err(Status::bad_request(format!("cannot convert to []int32: {why}")));
                }
            }
            String::new()
        }
        _ => target::container(&pod, call.query.non_empty("container"))?,
    };
    let kubelet = target::kubelet_of_pod(&server.registry, node, &server.kubelets.address_types).await?;
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    let path = if kind == "PodPortForwardOptions" {
        pairs.extend(call.query.all("ports").map(|p| ("port", p)));
        format!("/portForward/{namespace}/{name}")
    } else {
        for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
        {
            if call.query.flag(ours) {
                pairs.push((theirs, "1"));
            }
        }
        if kind == "PodExecOptions" {
            pairs.extend(call.query.all("command").map(|c| ("command", c)));
        }
        format!("/{}/{namespace}/{name}/{container}", call.info.subresource)
    };
    let query = encode_query(&pairs);
    let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
    let Some(client) = call.upgrade.take() else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let mut request = Request::new(Body::Empty);
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri.parse().map_err(|_| Status::bad_request("the options make no valid address"))?;
    *request.headers_mut() = call.headers.clone();
    let authority = HeaderValue::from_str(&kubelet.authority()).map_err(Status::internal)?;
    request.headers_mut().insert(header::HOST, authority);
    let answer = server.kubelets.dialer.send(&kubelet, true, request).await?;
    splice(server, client, answer).await
}

/// Passes a 101 on and joins the two connections; any other answer is a failure.
pub async fn splice(
    server: &Arc<Server>,
    client: hyper::upgrade::OnUpgrade,
    mut answer: Response<Incoming>,
) -> Result<Response<Body>, Status> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let answer = checked(answer).await?;
        return Err(Status::internal(format!("unable to upgrade: unexpected response {}", answer.status())));
    }
    let backend = hyper::upgrade::on(&mut answer);
    let ending = server.registry.ending.clone();
    server.kubelets.tasks.spawn(async move {
        let joined = async {
            let (client, backend) = tokio::try_join!(client, backend)?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            // Either side may end in its own way; what was sent has been passed on.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            () = ending.cancelled() => {}
            result = joined => if let Err(error) = result {
                tracing::debug!(%error, "upgrade failed");
            }
        }
    });
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

/// Headers that concern one connection only.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

pub fn without_hops(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    headers
}

/// The `proxy` subresource of nodes, pods and services.
pub async fn forward(server: &Arc<Server>, call: &mut Call) -> Result<Response<Body>, Status> {
    let path = call.uri.path().to_owned();
    let tail = proxy_tail(&path, &call.info).to_owned();
    let kind = match call.info.resource.as_str() {
        "nodes" => "NodeProxyOptions",
        "pods" => "PodProxyOptions",
        _ => "ServiceProxyOptions",
    };
    let options = json!({"kind": kind, "apiVersion": "v1", "path": tail});
    admit(server, call, kind, options).await?;
    let (target, kubelet): (Target, bool) = match call.info.resource.as_str() {
        "nodes" => (target::node(&server.registry, &call.info, &server.kubelets.address_types).await?, true),
        "pods" => (target::pod_port(&server.registry, &call.info).await?, false),
        _ => (target::service(&server.registry, &call.info)?, false),
    };
    if tail.is_empty() && !path.ends_with('/') && matches!(call.method, Method::GET | Method::HEAD) {
        let query = call.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
        let location = HeaderValue::from_str(&format!("{path}/{query}")).map_err(Status::internal)?;
        response.headers_mut().insert(header::LOCATION, location);
        return Ok(response);
    }
    let query = call.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let upgrading = call.headers.contains_key(header::UPGRADE);
    let mut request = Request::new(std::mem::take(&mut call.body));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() =
        format!("/{tail}{query}").parse().map_err(|_| Status::bad_request("the path cannot be proxied"))?;
    *request.headers_mut() = if upgrading { call.headers.clone() } else { without_hops(&call.headers) };
    let headers = request.headers_mut();
    let host = headers.get(header::HOST).cloned();
    headers.insert(header::HOST, HeaderValue::from_str(&target.authority()).map_err(Status::internal)?);
    headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("https"));
    if let Some(host) = host {
        headers.insert(HeaderName::from_static("x-forwarded-host"), host);
    }
    if let Ok(path) = HeaderValue::from_str(&path) {
        headers.insert(HeaderName::from_static("x-forwarded-uri"), path);
    }
    let answer = server.kubelets.dialer.send(&target, kubelet, request).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = call.upgrade.take() else {
            return Err(Status::bad_request("Upgrade request required"));
        };
        return splice(server, client, answer).await;
    }
    let base = path.strip_suffix(&tail).unwrap_or(&path).trim_end_matches('/').to_owned();
    rewrite::response(answer, &base, &target).await
}
