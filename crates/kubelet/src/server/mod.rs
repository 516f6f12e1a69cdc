//! The kubelet's own server: pods, logs, streams and statistics, for the API server and whoever it lets.

mod auth;
pub mod logs;
mod spdy;
mod stats;
mod streaming;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::cri::api::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::kubelet::Kubelet;
use crate::pods::PodHandle;
use streaming::{Session, Streams};

pub type Body = BoxBody<Bytes, std::io::Error>;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

pub fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(message.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn as_json(value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Connections served at the same time; more wait.
const CONNECTIONS_MAX: usize = 1024;

pub fn listen(kubelet: &Kubelet) -> Result<TcpListener> {
    let address = std::net::SocketAddr::from((kubelet.config.address, kubelet.config.port));
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("the kubelet's server on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

pub async fn serve(kubelet: Arc<Kubelet>, listener: TcpListener) {
    let tls = match auth::tls(&kubelet) {
        Ok(tls) => TlsAcceptor::from(tls),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the kubelet's server cannot start");
            return;
        }
    };
    let auth = Arc::new(auth::Auth::default());
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            _ = kubelet.shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    if !kubelet.pause(Duration::from_millis(100)).await {
                        return;
                    }
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let (kubelet, auth, tls) = (kubelet.clone(), auth.clone(), tls.clone());
        let tasks = kubelet.tasks.clone();
        tasks.spawn(async move {
            let _slot = slot;
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await else {
                return;
            };
            let user = auth::certificate_user(stream.get_ref().1);
            let stop = kubelet.shutdown.clone();
            let service = service_fn(move |request| {
                let (kubelet, auth, user) = (kubelet.clone(), auth.clone(), user.clone());
                async move {
                    let response = match auth.check(&kubelet, &request, user).await {
                        Ok(()) => Box::pin(route(kubelet, request)).await,
                        Err(refusal) => refusal,
                    };
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::select! {
                _ = stop.cancelled() => {}
                result = connection => if let Err(error) = result {
                    tracing::debug!(%error, "a connection to the kubelet ended");
                }
            }
        });
    }
}

type Query = Vec<(String, String)>;

fn get<'a>(query: &'a Query, key: &str) -> Option<&'a str> {
    query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
}

fn flag(query: &Query, names: &[&str]) -> bool {
    names
        .iter()
        .any(|n| get(query, n).is_some_and(|v| matches!(v, "1" | "true" | "True" | "TRUE" | "t" | "T" | "")))
}

async fn route(kubelet: Arc<Kubelet>, request: Request<Incoming>) -> Response<Body> {
    let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let query: Query =
        form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    let result = match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] | ["healthz", "ping" | "log" | "syncloop"] => {
            Ok(text(StatusCode::OK, "ok"))
        }
        ["pods"] | ["runningpods"] => Ok(as_json(&pod_list(&kubelet))),
        ["configz"] => Ok(as_json(&configz(&kubelet))),
        ["metrics"] => Ok(text(StatusCode::OK, stats::metrics(&kubelet))),
        ["metrics", "resource"] => {
            stats::resource_metrics(&kubelet).await.map_err(Box::new).map(|t| text(StatusCode::OK, t))
        }
        ["metrics", "cadvisor"] => {
            stats::cadvisor_metrics(&kubelet).await.map_err(Box::new).map(|t| text(StatusCode::OK, t))
        }
        ["metrics", "probes"] => Ok(text(StatusCode::OK, "")),
        ["stats", "summary"] | ["stats"] => {
            stats::summary(&kubelet).await.map_err(Box::new).map(|v| as_json(&v))
        }
        ["logs", rest @ ..] if reading => host_logs(rest),
        ["containerLogs", namespace, pod, container] if reading => {
            container_logs(&kubelet, namespace, pod, container, &query)
        }
        ["exec", namespace, pod, rest @ ..] if matches!(rest.len(), 1 | 2) => {
            return exec(&kubelet, request, namespace, pod, rest[rest.len() - 1], &query).await;
        }
        ["attach", namespace, pod, rest @ ..] if matches!(rest.len(), 1 | 2) => {
            return attach(&kubelet, request, namespace, pod, rest[rest.len() - 1], &query).await;
        }
        ["portForward", namespace, pod, ..] => {
            return port_forward(&kubelet, request, namespace, pod, &query).await;
        }
        ["run", namespace, pod, rest @ ..] if matches!(rest.len(), 1 | 2) && !reading => {
            run(&kubelet, namespace, pod, rest[rest.len() - 1], &query).await
        }
        _ => return text(StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    result.unwrap_or_else(|refusal| *refusal)
}

/// A refusal is boxed: it is rare, and large.
type Answer = Result<Response<Body>, Box<Response<Body>>>;

fn refuse(status: StatusCode, message: impl Into<String>) -> Box<Response<Body>> {
    Box::new(text(status, message))
}

fn failed(error: impl std::fmt::Display) -> Box<Response<Body>> {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn find_pod(kubelet: &Kubelet, namespace: &str, name: &str) -> Result<Arc<PodHandle>, Box<Response<Body>>> {
    kubelet
        .pods
        .find(namespace, name)
        .ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("pod \"{name}_{namespace}\" does not exist")))
}

/// The id of a container that runs.
fn running(
    kubelet: &Kubelet,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<String, Box<Response<Body>>> {
    let handle = find_pod(kubelet, namespace, pod)?;
    let observed = handle.observed();
    match observed.newest(container).filter(|i| i.running()) {
        Some(instance) => Ok(instance.id.clone()),
        None => Err(refuse(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")"))),
    }
}

/// A pod as the API shows it, with the status this kubelet knows.
fn pod_list(kubelet: &Kubelet) -> Value {
    let mut items = Vec::new();
    for handle in kubelet.pods.list() {
        let Ok(mut pod) = handle.encoded().to_value() else { continue };
        if let Some(status) = handle.status() {
            pod["status"] = (*status).clone();
        }
        items.push(pod);
    }
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

fn configz(kubelet: &Kubelet) -> Value {
    let c = &kubelet.config;
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "enableServer": c.serve,
        "staticPodPath": c.manifest_path,
        "address": c.address,
        "port": c.port,
        "clusterDomain": c.cluster_domain,
        "clusterDNS": c.cluster_dns,
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "nodeLeaseDurationSeconds": 40,
        "cgroupDriver": if c.systemd_cgroup { "systemd" } else { "cgroupfs" },
        "cgroupsPerQOS": true,
        "maxPods": c.max_pods,
        "resolvConf": c.resolv_conf,
        "registerNode": c.register_node,
        "serializeImagePulls": c.serialize_image_pulls,
        "evictionHard": c.eviction_hard,
        "systemReserved": c.system_reserved,
        "kubeReserved": c.kube_reserved,
        "containerLogMaxSize": c.container_log_max_size.to_string(),
        "containerLogMaxFiles": c.container_log_max_files,
        "imageGCHighThresholdPercent": c.image_gc_high_percent,
        "imageGCLowThresholdPercent": c.image_gc_low_percent,
        "containerRuntimeEndpoint": format!("unix://{}", kubelet.cri.socket().display()),
    }})
}

fn number(query: &Query, key: &str) -> Result<Option<u64>, Box<Response<Body>>> {
    match get(query, key) {
        None => Ok(None),
        Some(text_) => text_.parse().map(Some).map_err(|_| {
            refuse(StatusCode::BAD_REQUEST, format!("{key} must be a number that is not negative"))
        }),
    }
}

fn container_logs(
    kubelet: &Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Answer {
    let handle = find_pod(kubelet, namespace, pod)?;
    let observed = handle.observed();
    let previous = flag(query, &["previous"]) && get(query, "previous").is_some();
    let known = handle.decode().is_some_and(|p| crate::pod::spec::find(&p, container).is_some());
    if !known {
        let message = format!("container {container:?} not found in pod \"{pod}_{namespace}\"");
        return Err(refuse(StatusCode::NOT_FOUND, message));
    }
    let newest = observed.newest(container);
    let wanted = if previous {
        observed.previous(container).or_else(|| {
            // While the container waits to run again, the run that ended is the previous one.
            newest.filter(|i| i.exited() && i.restarts > 0)
        })
    } else {
        newest
    };
    let Some(instance) = wanted else {
        let message = if previous {
            format!("previous terminated container {container:?} in pod \"{pod}\" not found")
        } else {
            let reason = waiting_reason(&handle, container).unwrap_or_else(|| "ContainerCreating".into());
            format!("container {container:?} in pod {pod:?} is waiting to start: {reason}")
        };
        return Err(refuse(StatusCode::BAD_REQUEST, message));
    };
    let since = match (number(query, "sinceSeconds")?, get(query, "sinceTime")) {
        (Some(seconds), _) => Some(Timestamp::now() - SignedDuration::from_secs(seconds.min(1 << 40) as i64)),
        (None, Some(time)) => {
            Some(time.parse().map_err(|e| refuse(StatusCode::BAD_REQUEST, format!("sinceTime: {e}")))?)
        }
        (None, None) => None,
    };
    let options = logs::Options {
        follow: flag(query, &["follow"]) && get(query, "follow").is_some(),
        tail: number(query, "tailLines")?,
        since,
        timestamps: flag(query, &["timestamps"]) && get(query, "timestamps").is_some(),
        limit: number(query, "limitBytes")?,
        patience: patience(instance),
        stream: match get(query, "stream") {
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            _ => None,
        },
    };
    let (sink, source) = mpsc::channel(4);
    let following = options.follow.then(|| (handle.clone(), instance.id.clone()));
    let path = std::path::PathBuf::from(&instance.log_path);
    let stop = kubelet.shutdown.clone();
    kubelet.tasks.spawn(async move {
        tokio::select! {
            _ = stop.cancelled() => {}
            _ = Box::pin(logs::send(path, options, following, sink)) => {}
        }
    });
    let stream = tokio_stream::wrappers::ReceiverStream::new(source);
    let frames = futures::StreamExt::map(stream, |part| part.map(Frame::data));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Those who ask at once want to know what a container says first.
fn patience(instance: &crate::pod::observed::Instance) -> Duration {
    const FIRST_WORDS: SignedDuration = SignedDuration::from_millis(500);
    let left =
        FIRST_WORDS - Timestamp::now().duration_since(crate::pod::plan::timestamp(instance.started_at));
    Duration::try_from(left.min(FIRST_WORDS)).unwrap_or_default()
}

/// Why a container does not run, as its status says.
fn waiting_reason(handle: &PodHandle, container: &str) -> Option<String> {
    let status = handle.status()?;
    ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]
        .iter()
        .flat_map(|list| status[*list].as_array().into_iter().flatten())
        .find(|s| s["name"] == container)
        .and_then(|s| s["state"]["waiting"]["reason"].as_str().map(str::to_owned))
}

fn commands(query: &Query) -> Vec<String> {
    query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect()
}

fn streams(query: &Query) -> Streams {
    let has = |names: [&str; 2]| names.iter().any(|n| get(query, n).is_some_and(|v| v == "1" || v == "true"));
    Streams {
        stdin: has(["input", "stdin"]),
        stdout: has(["output", "stdout"]),
        stderr: has(["error", "stderr"]),
        tty: has(["tty", "tty"]),
    }
}

async fn exec(
    kubelet: &Kubelet,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let streams = streams(query);
    let id = match running(kubelet, namespace, pod, container) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    let asked = ExecRequest {
        container_id: id,
        cmd: commands(query),
        tty: streams.tty,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr && !streams.tty,
    };
    match kubelet.cri.exec(asked).await {
        Ok(url) => streaming::connect(kubelet, request, &url, Session::Command(streams)).await,
        Err(error) => *failed(error),
    }
}

async fn attach(
    kubelet: &Kubelet,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let mut streams = streams(query);
    let id = match running(kubelet, namespace, pod, container) {
        Ok(id) => id,
        Err(refusal) => return *refusal,
    };
    // Whether there is a terminal was decided when the container was made.
    let pod = find_pod(kubelet, namespace, pod).ok().and_then(|h| h.decode());
    if let Some((_, c)) = pod.as_ref().and_then(|p| crate::pod::spec::find(p, container)) {
        streams.tty = c.tty.unwrap_or(false);
    }
    let asked = AttachRequest {
        container_id: id,
        stdin: streams.stdin,
        tty: streams.tty,
        stdout: streams.stdout,
        stderr: streams.stderr && !streams.tty,
    };
    match kubelet.cri.attach(asked).await {
        Ok(url) => streaming::connect(kubelet, request, &url, Session::Command(streams)).await,
        Err(error) => *failed(error),
    }
}

async fn port_forward(
    kubelet: &Kubelet,
    request: Request<Incoming>,
    namespace: &str,
    pod: &str,
    query: &Query,
) -> Response<Body> {
    let handle = match find_pod(kubelet, namespace, pod) {
        Ok(handle) => handle,
        Err(refusal) => return *refusal,
    };
    let Some(sandbox) = handle.observed().current().map(|s| s.id.clone()) else {
        return text(StatusCode::NOT_FOUND, format!("sandbox of pod \"{pod}_{namespace}\" does not run"));
    };
    let ports = query
        .iter()
        .filter(|(k, _)| k == "port" || k == "ports")
        .flat_map(|(_, v)| v.split(','))
        .filter_map(|p| p.parse().ok())
        .collect();
    match kubelet.cri.port_forward(PortForwardRequest { pod_sandbox_id: sandbox, port: ports }).await {
        Ok(url) => streaming::connect(kubelet, request, &url, Session::PortForward).await,
        Err(error) => *failed(error),
    }
}

async fn run(kubelet: &Kubelet, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let id = running(kubelet, namespace, pod, container)?;
    let command: Vec<String> =
        get(query, "cmd").map(|c| c.split(' ').map(str::to_owned).collect()).unwrap_or_default();
    let limit = Duration::from_secs(60);
    let answer = kubelet.cri.exec_sync(&id, command, Some(limit)).await.map_err(failed)?;
    let mut output = answer.stdout;
    output.extend(answer.stderr);
    Ok(text(StatusCode::OK, String::from_utf8_lossy(&output).into_owned()))
}

/// Files beneath /var/log, as a listing or as they are.
fn host_logs(parts: &[&str]) -> Answer {
    const SHOWN_BYTES_MAX: u64 = 16 << 20;
    if parts.iter().any(|p| *p == ".." || p.is_empty() && parts.len() > 1) {
        return Err(refuse(StatusCode::BAD_REQUEST, "invalid path"));
    }
    let base = std::path::Path::new("/var/log");
    let path = parts.iter().fold(base.to_path_buf(), |p, part| p.join(part));
    let real = path.canonicalize().map_err(|_| refuse(StatusCode::NOT_FOUND, "404 page not found\n"))?;
    if !real.starts_with(base) {
        return Err(refuse(StatusCode::FORBIDDEN, "outside of /var/log"));
    }
    if real.is_dir() {
        let mut names: BTreeMap<String, ()> = BTreeMap::new();
        for entry in std::fs::read_dir(&real).map_err(failed)?.flatten() {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            names.insert(format!("{}{slash}", entry.file_name().to_string_lossy()), ());
        }
        let lines: String = names.keys().map(|n| format!("<a href=\"{n}\">{n}</a>\n")).collect();
        return Ok(text(StatusCode::OK, format!("<pre>\n{lines}</pre>\n")));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&real).map_err(failed)?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, SHOWN_BYTES_MAX), &mut bytes)
        .map_err(failed)?;
    Ok(text(StatusCode::OK, String::from_utf8_lossy(&bytes).into_owned()))
}
