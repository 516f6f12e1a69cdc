//! A member as its clients see it: the distribution's tools, curl's view of the gateway, TLS, restarts.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use etcd::flags::Flags;
use etcd::server::{self, Config};
use etcd::tools::{self, Restore, SnapshotTool, Target, Tool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
}

struct Running {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn config(data_dir: &Path, more: &[&str]) -> Config {
    use clap::Parser;
    let scheme =
        if more.iter().any(|flag| flag.contains("tls") || flag.contains("cert")) { "https" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:0");
    let data_dir = data_dir.to_str().unwrap();
    let mut arguments = vec!["etcd", "--data-dir", data_dir, "--bcrypt-cost=4"];
    arguments.extend(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    arguments.extend(more);
    Arguments::parse_from(arguments).flags.config().unwrap()
}

async fn start(data_dir: &Path, more: &[&str]) -> Running {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let prepared = server::prepare(config(data_dir, more)).await.unwrap();
    let (address, shutdown) = (prepared.addresses()[0], CancellationToken::new());
    let task = tokio::spawn(prepared.run(shutdown.clone()));
    Running { address, shutdown, task }
}

/// Whether the distribution's tools are here. In CI they must be.
fn tools_are_installed() -> bool {
    let found = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let all = found("etcd") && found("etcdctl");
    assert!(
        all || std::env::var("CI").as_deref() != Ok("true"),
        "etcd and etcdctl are not installed, and CI=true"
    );
    if !all {
        eprintln!("NOT RUN: etcd and etcdctl are not installed (scripts/install-dependencies installs them)");
    }
    all
}

async fn etcdctl(endpoint: impl ToString, arguments: &[&str]) -> Output {
    let endpoint = endpoint.to_string();
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    let run = move || {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoint])
            .args(arguments)
            .output()
            .unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn told(address: std::net::SocketAddr, arguments: &[&str]) -> String {
    let output = etcdctl(address, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A plain HTTP request and its answer's status and body.
async fn http(address: std::net::SocketAddr, request: &str, body: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_version_metrics_and_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(&directory.path().join("a"), &[]).await;
    let at = running.address;
    assert_eq!(http(at, "GET /health", "").await, (200, r#"{"health":"true","reason":""}"#.into()));
    assert_eq!(http(at, "GET /livez", "").await, (200, "ok\n".into()));
    assert!(http(at, "GET /readyz?verbose", "").await.1.contains("[+]data_corruption ok\n"));
    assert_eq!(http(at, "GET /readyz/none", "").await.0, 404);
    assert!(http(at, "GET /version", "").await.1.contains("\"etcdserver\""));
    assert_eq!(http(at, "POST /health", "").await.0, 405);
    assert_eq!(http(at, "GET /other", "").await.0, 404);
    let (status, body) = http(at, "POST /v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#).await;
    assert_eq!(status, 200);
    assert!(body.contains(r#""revision":"2""#), "{body}");
    let (_, body) = http(at, "POST /v3/kv/range", r#"{"key":"YQ=="}"#).await;
    assert!(body.contains(r#""kvs":[{"#) && body.contains(r#""value":"MQ==""#), "{body}");
    let refused = http(at, "POST /v3/kv/put", "{}").await;
    assert_eq!(refused, (400, r#"{"code":3,"message":"etcdserver: key is not provided"}"#.into()));
    assert_eq!(http(at, "POST /v3/kv/put", r#"{"kee":"YQ=="}"#).await.0, 400);
    assert_eq!(http(at, "POST /v3/kv/none", "{}").await.0, 404);
    let metrics = http(at, "GET /metrics", "").await.1;
    for name in
        ["etcd_server_has_leader 1", "etcd_mvcc_put_total 1", "etcd_debugging_mvcc_current_revision 2"]
    {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }

    // A watch streams lines until the client goes away.
    let mut stream = tokio::net::TcpStream::connect(at).await.unwrap();
    let body = r#"{"create_request":{"key":"YQ==","start_revision":"2"}}"#;
    let head = format!("POST /v3/watch HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut seen = String::new();
    let mut buffer = vec![0; 4096];
    while !seen.contains(r#""events":[{"kv":"#) {
        let n =
            tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0, "{seen}");
        seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    assert!(seen.contains(r#"{"result":{"created":true"#), "{seen}");
    drop(stream);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_leases_survive_a_restart() {
    if !tools_are_installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("a");
    let running = start(&data, &[]).await;
    let at = running.address;
    for command in [
        "user add root:r",
        "role add reader",
        "role grant-permission reader read k",
        "user add u:p",
        "user grant-role u reader",
        "user grant-role root root",
        "put k v",
        "auth enable",
    ] {
        told(at, &command.split(' ').collect::<Vec<_>>()).await;
    }
    let members = told(at, &["--user", "root:r", "member", "list"]).await;
    running.stop().await;
    let running = start(&data, &[]).await;
    let at = running.address;
    assert!(!etcdctl(at, &["get", "k"]).await.status.success());
    assert_eq!(told(at, &["--user", "u:p", "get", "k", "--print-value-only"]).await, "v\n");
    assert!(!etcdctl(at, &["--user", "u:p", "put", "k", "x"]).await.status.success());
    let id = |list: &str| list.split(',').next().unwrap().to_owned();
    assert_eq!(id(&told(at, &["--user", "root:r", "member", "list"]).await), id(&members));
    running.stop().await;
}

fn target(address: std::net::SocketAddr) -> Target {
    Target { endpoints: vec![address.to_string()], cacert: None, cert: None, key: None, user: None }
}

async fn restore(path: PathBuf, data_dir: PathBuf) -> anyhow::Result<()> {
    let restore = Restore {
        path,
        data_dir: Some(data_dir),
        name: "default".into(),
        initial_advertise_peer_urls: vec!["http://localhost:2380".into()],
        initial_cluster: Vec::new(),
        initial_cluster_token: "etcd-cluster".into(),
        skip_hash_check: false,
        bump_revision: 0,
        mark_compacted: false,
    };
    tools::run(Tool::Snapshot { command: SnapshotTool::Restore(Box::new(restore)) }).await
}

/// What two members must agree in: all keys with their revisions, the hash of the history, the users.
async fn contents(address: std::net::SocketAddr) -> (String, String, String) {
    let keys = told(address, &["get", "", "--from-key", "-w", "fields"]).await;
    let keys = keys.lines().filter(|line| !line.contains("RaftTerm")).collect::<Vec<_>>().join("\n");
    let hash = told(address, &["endpoint", "hashkv"]).await;
    let hash = hash.rsplit(", ").next().unwrap().to_owned();
    (keys, hash, told(address, &["user", "list"]).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_go_both_ways() {
    if !tools_are_installed() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let running = start(&path("a"), &[]).await;
    let at = running.address;
    for i in 0..50 {
        told(at, &["put", &format!("key/{}", i % 20), &"v".repeat(i * 40)]).await;
    }
    for command in ["del key/3", "compact 20", "user add root:r", "role add x", "lease grant 3600"] {
        told(at, &command.split(' ').collect::<Vec<_>>()).await;
    }
    let expected = contents(at).await;

    // Ours, saved by etcdctl; etcd starts from it and agrees.
    let saved = path("ours.db");
    told(at, &["snapshot", "save", saved.to_str().unwrap()]).await;
    let status = told(at, &["snapshot", "status", saved.to_str().unwrap(), "-w", "json"]).await;
    let ours = etcd::backup::status(&saved).unwrap();
    assert!(status.contains(&format!("\"revision\":{}", ours.revision)), "{status} {ours:?}");
    running.stop().await;
    let restored = path("theirs");
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore", saved.to_str().unwrap(), "--data-dir", restored.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (client, peer) = (port(), port());
    let mut theirs = Command::new("etcd")
        .args(["--data-dir", restored.to_str().unwrap(), "--listen-peer-urls", &format!("http://{peer}")])
        .args([
            "--listen-client-urls",
            &format!("http://{client}"),
            "--advertise-client-urls",
            &format!("http://{client}"),
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let work = async {
        for _ in 0..100 {
            if etcdctl(client, &["endpoint", "health"]).await.status.success() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let found = contents(client).await;
        // Its snapshot, saved by our tool.
        let save = SnapshotTool::Save { target: target(client), path: path("theirs.db") };
        tools::run(Tool::Snapshot { command: save }).await.unwrap();
        found
    };
    let found = work.await;
    let _ = theirs.kill();
    let _ = theirs.wait();
    assert_eq!(found, expected);

    // etcd's, restored by our tool; a member starts from it and agrees.
    restore(path("theirs.db"), path("b")).await.unwrap();
    let running = start(&path("b"), &[]).await;
    assert_eq!(contents(running.address).await, expected);
    let leases = told(running.address, &["lease", "list"]).await;
    assert!(leases.starts_with("found 1 leases"), "{leases}");
    told(running.address, &["put", "goes", "on"]).await;
    running.stop().await;
    assert!(restore(path("theirs.db"), path("b")).await.is_err(), "the directory is not empty");

    // A byte of damage is found.
    let mut bytes = std::fs::read(path("theirs.db")).unwrap();
    bytes[9000] ^= 1;
    std::fs::write(path("damaged.db"), bytes).unwrap();
    let refused = restore(path("damaged.db"), path("c")).await.unwrap_err().to_string();
    assert!(refused.contains("expected sha256"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_required_and_reloaded() {
    if !tools_are_installed() {
        return;
    }
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "ca");
    let ca = params.self_signed(&ca_key).unwrap();
    std::fs::write(file("ca"), ca.pem()).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let issue = |name: &str, common_name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(file(&format!("{name}.key")), key.serialize_pem()).unwrap();
        std::fs::write(file(&format!("{name}.crt")), certificate.pem()).unwrap();
        certificate.der().to_vec()
    };
    issue("server", "server");
    issue("root", "root");
    issue("other", "other");
    let flags = [
        format!("--cert-file={}", file("server.crt")),
        format!("--key-file={}", file("server.key")),
        format!("--trusted-ca-file={}", file("ca")),
        "--client-cert-auth".to_owned(),
    ];
    let running = start(&directory.path().join("a"), &flags.each_ref().map(String::as_str)).await;
    let at = running.address;
    let (ca, endpoint) = (file("ca"), format!("https://{at}"));
    let with = |name: &str, command: &str| {
        let (certificate, key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        let mut all =
            vec!["--cacert".to_owned(), ca.clone(), "--cert".into(), certificate, "--key".into(), key];
        all.extend(command.split(' ').map(str::to_owned));
        let endpoint = endpoint.clone();
        async move {
            etcdctl(endpoint, &all.iter().map(String::as_str).collect::<Vec<_>>()).await.status.success()
        }
    };
    let bare = ["--cacert", &ca, "--command-timeout=2s", "--dial-timeout=1s", "get", "a"];
    assert!(!etcdctl(&endpoint, &bare).await.status.success(), "a certificate is required");
    for command in
        ["put a 1", "user add root:r", "user grant-role root root", "user add other:o", "auth enable"]
    {
        assert!(with("root", command).await, "{command}");
    }
    // The common name is the user.
    assert!(with("root", "put a 2").await);
    assert!(!with("other", "put a 3").await);

    // A new certificate is served without a restart.
    let served = async || {
        let mut roots = rustls::RootCertStore::empty();
        use rustls::pki_types::pem::PemObject;
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(file("ca")).unwrap()).unwrap();
        let chain = vec![rustls::pki_types::CertificateDer::from_pem_file(file("root.crt")).unwrap()];
        let key = rustls::pki_types::PrivateKeyDer::from_pem_file(file("root.key")).unwrap();
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let stream = tokio::net::TcpStream::connect(at).await.unwrap();
        let stream = connector.connect("127.0.0.1".try_into().unwrap(), stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let before = served().await;
    let fresh = issue("server", "server");
    assert_ne!(before, fresh);
    let begun = std::time::Instant::now();
    while served().await != fresh {
        assert!(begun.elapsed() < Duration::from_secs(10), "the new certificate is not served");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    running.stop().await;
}

/// What etcd's dashboards and alerts ask for.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_etcds_names() {
    let directory = tempfile::tempdir().unwrap();
    let running = start(&directory.path().join("a"), &[]).await;
    http(running.address, "GET /health", "").await;
    let text = http(running.address, "GET /metrics", "").await.1;
    for line in [
        "# TYPE etcd_disk_wal_fsync_duration_seconds histogram",
        "# TYPE etcd_disk_backend_commit_duration_seconds histogram",
        "# TYPE etcd_network_client_grpc_received_bytes_total counter",
        "# TYPE etcd_network_client_grpc_sent_bytes_total counter",
        "# TYPE grpc_server_started_total counter",
        "# TYPE process_start_time_seconds gauge",
        "etcd_server_has_leader 1",
        "etcd_server_health_success 1",
        "etcd_server_health_failures 0",
        "etcd_server_proposals_pending 0",
        "etcd_server_proposals_failed_total 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let synced = text.lines().find_map(|l| l.strip_prefix("etcd_disk_wal_fsync_duration_seconds_count "));
    assert!(synced.unwrap().parse::<u64>().unwrap() > 0);
    running.stop().await;
}

/// A client that ends its side of a call a little after the message has done nothing wrong. A connection bears only some thousand
/// streams that were reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_end_late_do_not_cost_the_connection() {
    use etcd::api::{RangeRequest, RangeResponse};
    use futures::StreamExt;
    let directory = tempfile::tempdir().unwrap();
    let running = start(&directory.path().join("a"), &[]).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", running.address)).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let asking = (0..64).map(|_| {
        let mut client = tonic::client::Grpc::new(channel.clone());
        async move {
            for _ in 0..100 {
                let message = RangeRequest { key: "k".into(), ..Default::default() };
                let end = futures::stream::once(tokio::time::sleep(Duration::from_millis(1)));
                let body = futures::stream::iter([message]).chain(end.filter_map(|()| async { None }));
                client.ready().await.unwrap();
                let codec = tonic_prost::ProstCodec::<RangeRequest, RangeResponse>::default();
                let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Range");
                client.client_streaming(tonic::Request::new(body), path, codec).await.unwrap();
            }
        }
    });
    futures::future::join_all(asking).await;
    drop(channel);
    running.stop().await;
}
