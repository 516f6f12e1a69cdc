//! Loads an API server over HTTPS and tells what each operation cost it: operations per second, server CPU per
//! operation, latency. Works on any Kubernetes API server; CPU and memory are read from `/proc`, so the server runs on
//! this machine.

mod connection;
mod process;
mod report;
mod target;
mod watchers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use connection::{Connection, JSON, MERGE_PATCH, PROTOBUF};
use process::Usage;
use report::Row;
pub use target::Target;

/// What to do, how often, and how much of it at a time.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    #[command(flatten)]
    pub target: target::Flags,
    /// Processes whose CPU and memory are told (API server, and etcd where it is one of its own)
    #[arg(long, value_delimiter = ',')]
    pub server_pid: Vec<u32>,
    /// HTTP/2 connections that requests are spread over
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// Requests waiting for their answer at any time
    #[arg(long, default_value_t = 64)]
    pub in_flight: usize,
    #[arg(long, default_value_t = 20_000)]
    pub configmaps: usize,
    #[arg(long, default_value_t = 10_000)]
    pub pods: usize,
    #[arg(long, default_value_t = 1_000)]
    pub leases: usize,
    /// Merge patches of leases
    #[arg(long, default_value_t = 20_000)]
    pub patches: usize,
    #[arg(long, default_value_t = 20_000)]
    pub gets: usize,
    /// Containers of each pod
    #[arg(long, default_value_t = 1)]
    pub containers: usize,
    /// Pods of one container with a name and an image, and nothing more
    #[arg(long, conflicts_with = "containers")]
    pub bare_pods: bool,
    /// Full lists of all pods, in each encoding
    #[arg(long, default_value_t = 20)]
    pub lists: usize,
    #[arg(long, default_value_t = 500)]
    pub watchers: usize,
    /// Connections the watchers are spread over
    #[arg(long, default_value_t = 10)]
    pub watch_connections: usize,
    /// Changes that every watcher is told
    #[arg(long, default_value_t = 2_000)]
    pub events: usize,
    /// Namespace to work in; it is made, and deleted at the end
    #[arg(long, default_value = "load")]
    pub namespace: String,
    /// Leave the objects there
    #[arg(long)]
    pub keep: bool,
}

/// Runs all phases and prints the table.
pub async fn run(flags: Flags) -> Result<()> {
    ensure!(flags.connections > 0 && flags.in_flight > 0, "--connections and --in-flight must be positive");
    let target = flags.target.resolve()?;
    let load = Load::new(&flags, &target).await?;
    load.prepare().await?;
    report::heading(&flags);
    let outcome = load.phases(&target).await;
    if !flags.keep {
        load.clean().await;
    }
    outcome
}

struct Load<'a> {
    flags: &'a Flags,
    connections: Vec<Connection>,
}

/// One request of a phase.
struct Request {
    method: Method,
    path: String,
    content_type: &'static str,
    accept: &'static str,
    /// What programs of client-go ask for.
    gzip: bool,
    body: Bytes,
}

impl Request {
    fn get(path: String, accept: &'static str) -> Request {
        Request { method: Method::GET, path, content_type: JSON, accept, gzip: false, body: Bytes::new() }
    }

    fn create(path: String, body: &Value) -> Request {
        let body = body.to_string().into();
        Request { method: Method::POST, path, content_type: JSON, accept: JSON, gzip: false, body }
    }

    fn patch(path: String, body: &Value) -> Request {
        let body = body.to_string().into();
        Request { method: Method::PATCH, path, content_type: MERGE_PATCH, accept: JSON, gzip: false, body }
    }
}

/// No pod is shorter than this in JSON.
const POD_BYTES_MIN: usize = 1000;

impl<'a> Load<'a> {
    async fn new(flags: &'a Flags, target: &Target) -> Result<Load<'a>> {
        let mut connections = Vec::with_capacity(flags.connections);
        for _ in 0..flags.connections {
            connections.push(Connection::open(target).await?);
        }
        Ok(Load { flags, connections })
    }

    /// The namespace and, where no controller makes one, the service account that pods need.
    async fn prepare(&self) -> Result<()> {
        let namespace = &self.flags.namespace;
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        self.make("/api/v1/namespaces".into(), &object).await?;
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        for _ in 0..20 {
            let (code, _) =
                self.connections[0].send(Request::get(format!("{accounts}/default"), JSON)).await?;
            if code == StatusCode::OK {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.make(
            accounts,
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}),
        )
        .await
    }

    /// Creates what need not be new.
    async fn make(&self, path: String, object: &Value) -> Result<()> {
        let (code, body) = self.connections[0].send(Request::create(path, object)).await?;
        if !code.is_success() && code != StatusCode::CONFLICT {
            bail!("{code}: {}", String::from_utf8_lossy(&body));
        }
        Ok(())
    }

    async fn phases(&self, target: &Target) -> Result<()> {
        let flags = self.flags;
        let in_namespace = format!("/api/v1/namespaces/{}", flags.namespace);
        let configmaps = format!("{in_namespace}/configmaps");
        let pods = format!("{in_namespace}/pods");
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", flags.namespace);
        self.phase("create configmap", flags.configmaps, |i| {
            Request::create(configmaps.clone(), &configmap(i))
        })
        .await?;
        self.phase("create pod", flags.pods, |i| {
            let pod = if flags.bare_pods { bare_pod(i) } else { pod(i, flags.containers) };
            Request::create(pods.clone(), &pod)
        })
        .await?;
        self.phase("create lease", flags.leases, |i| Request::create(leases.clone(), &lease(i))).await?;
        if flags.leases > 0 {
            self.phase("merge-patch lease", flags.patches, |i| {
                // What a kubelet's heartbeat changes.
                let time = format!("2030-01-01T00:00:00.{:06}Z", i % 1_000_000);
                let path = format!("{leases}/lease-{}", i % flags.leases);
                Request::patch(path, &json!({"spec": {"renewTime": time}}))
            })
            .await?;
        }
        if flags.configmaps > 0 {
            self.phase("get configmap", flags.gets, |i| {
                Request::get(format!("{configmaps}/configmap-{}", i % flags.configmaps), JSON)
            })
            .await?;
        }
        if flags.lists > 0 {
            self.all_there(&pods).await?;
        }
        self.some_at_once(2)
            .phase("list pods, JSON", flags.lists, |_| Request::get(pods.clone(), JSON))
            .await?;
        self.some_at_once(2)
            .phase("list pods, protobuf", flags.lists, |_| Request::get(pods.clone(), PROTOBUF))
            .await?;
        self.some_at_once(2)
            .phase("list pods, JSON, gzip", flags.lists, |_| Request {
                gzip: true,
                ..Request::get(pods.clone(), JSON)
            })
            .await?;
        if flags.watchers > 0 && flags.events > 0 {
            watchers::phase(self, target).await?;
        }
        report::memory(&flags.server_pid)
    }

    /// Makes sure that the lists hold what was made: a figure for a list of something else would say nothing.
    async fn all_there(&self, pods: &str) -> Result<()> {
        let (code, length, _) =
            self.connections[0].send_counting(Request::get(pods.to_owned(), JSON)).await?;
        if !code.is_success() || length < self.flags.pods * POD_BYTES_MIN {
            bail!("{code}: {length} bytes are no list of {} pods", self.flags.pods);
        }
        Ok(())
    }

    /// The same load with fewer requests at a time.
    fn some_at_once(&self, in_flight: usize) -> Narrow<'_> {
        Narrow { load: self, in_flight: in_flight.min(self.flags.in_flight) }
    }

    async fn phase(&self, what: &str, count: usize, request: impl Fn(usize) -> Request) -> Result<()> {
        Narrow { load: self, in_flight: self.flags.in_flight }.phase(what, count, request).await
    }

    async fn clean(&self) {
        let (namespace, none) = (&self.flags.namespace, Bytes::new());
        for path in [
            format!("/api/v1/namespaces/{namespace}/pods?gracePeriodSeconds=0"),
            format!("/api/v1/namespaces/{namespace}/configmaps"),
            format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
            format!("/api/v1/namespaces/{namespace}"),
        ] {
            let request = Request {
                method: Method::DELETE,
                path,
                content_type: JSON,
                accept: JSON,
                gzip: false,
                body: none.clone(),
            };
            if let Err(error) = self.connections[0].send(request).await {
                eprintln!("could not clean up: {error:#}");
            }
        }
    }
}

struct Narrow<'a> {
    load: &'a Load<'a>,
    in_flight: usize,
}

impl Narrow<'_> {
    /// Sends `count` requests, some at a time, and prints what they cost.
    async fn phase(&self, what: &str, count: usize, request: impl Fn(usize) -> Request) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let next = Arc::new(AtomicUsize::new(0));
        let mut requests: Vec<Request> = (0..count).map(&request).collect();
        requests.reverse();
        let requests = Arc::new(std::sync::Mutex::new(requests));
        let before = Usage::of(&self.load.flags.server_pid)?;
        let started = Instant::now();
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..self.in_flight {
            let connection = self.load.connections[worker % self.load.connections.len()].clone();
            let (next, requests) = (next.clone(), requests.clone());
            workers.spawn(async move {
                let mut took = Vec::new();
                let mut bytes = 0;
                while next.fetch_add(1, Ordering::Relaxed) < count {
                    let Some(request) = requests.lock().expect("nobody panics with it").pop() else { break };
                    let path = request.path.clone();
                    let begun = Instant::now();
                    let (code, length, body) = connection.send_counting(request).await?;
                    if !code.is_success() {
                        bail!("{path}: {code}: {}", String::from_utf8_lossy(&body));
                    }
                    took.push(begun.elapsed());
                    bytes += length;
                }
                Ok((took, bytes))
            });
        }
        let (mut took, mut bytes) = (Vec::with_capacity(count), 0);
        while let Some(worker) = workers.join_next().await {
            let (more, length) = worker.context("a worker ended early")??;
            took.extend(more);
            bytes += length;
        }
        let elapsed = started.elapsed();
        let used = Usage::of(&self.load.flags.server_pid)?.since(&before);
        let (resident, _) = process::resident(&self.load.flags.server_pid)?;
        Row { what, count, elapsed, used, took, bytes, resident }.print();
        Ok(())
    }
}

fn configmap(i: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("configmap-{i}"), "labels": {"app": format!("app-{}", i % 100)}},
        "data": {"config.yaml": "listen: 0.0.0.0:8080\nlog_level: info\nupstreams:\n- http://one.example.com\n- http://two.example.com\n",
            "feature": "on", "number": i.to_string()}})
}

fn lease(i: usize) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": format!("lease-{i}")},
        "spec": {"holderIdentity": format!("node-{i}"), "leaseDurationSeconds": 40,
            "renewTime": "2029-01-01T00:00:00.000000Z"}})
}

/// A pod of some 3 KB when it is stored with its defaults and managed fields. Its scheduler is nobody, and it has no owner
/// whose absence the garbage collector would notice, so that only the API server has work.
fn pod(i: usize, containers: usize) -> Value {
    let container = |n: usize| {
        let name = if n == 0 { "web".to_owned() } else { format!("sidecar-{n}") };
        json!({
            "name": name, "image": format!("registry.example.com/team/{name}:1.2.3"),
            "args": ["--listen=0.0.0.0:8080", "--config=/etc/config/config.yaml"],
            "env": [{"name": "REGION", "value": "eu-west-1"},
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "ports": [{"name": format!("{name}-http"), "containerPort": 8080}],
            "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}]
        })
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{i}"),
            "labels": {"app": format!("app-{}", i % 100), "pod-template-hash": "6f5c7d8b9"}},
        "spec": {"schedulerName": "nobody", "serviceAccountName": "default", "automountServiceAccountToken": false,
            "containers": (0..containers).map(container).collect::<Vec<_>>(),
            "volumes": [{"name": "config", "configMap": {"name": "web"}}]}
    })
}

/// The least that is a pod to run, for the same scheduler; some 1.5 KB as it is stored.
fn bare_pod(i: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("pod-{i}")},
        "spec": {"schedulerName": "nobody", "automountServiceAccountToken": false,
            "containers": [{"name": "web", "image": "registry.example.com/team/web:1.2.3"}]}
    })
}
