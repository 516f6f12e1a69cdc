//! The two servers under comparison: the distribution's etcd as a process, and ours in this one.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use etcd::api;
use etcd::flags::Retention;
use etcd::rpc::Limits;
use etcd::server::{self, Config};
use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Messages as bytes, so that one client makes every call.
#[derive(Clone, Copy, Default)]
pub struct Raw;

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

/// A server, reached over the network.
pub struct Peer {
    pub name: &'static str,
    channel: Channel,
    /// Tokens by user.
    pub tokens: std::sync::Mutex<std::collections::HashMap<String, String>>,
    _process: Option<Process>,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the distribution's etcd is here. In CI it must be.
pub fn etcd_is_installed() -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    assert!(
        found || std::env::var("CI").as_deref() != Ok("true"),
        "the program etcd is not installed, and CI=true: scripts/install-dependencies installs it"
    );
    if !found {
        eprintln!("NOT RUN: the program etcd is not installed (scripts/install-dependencies installs it)");
    }
    found
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn connect(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let begun = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return channel,
            Err(error) if begun.elapsed() > Duration::from_secs(30) => panic!("{address}: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The distribution's etcd.
pub async fn theirs(directory: &Path) -> Peer {
    let (client, peer) = (free_port(), free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let log = std::fs::File::create(directory.join("etcd.log")).unwrap();
    let process = Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.join("theirs"))
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--initial-cluster", &format!("default={}", url(peer))])
        .args(["--quota-backend-bytes", "16777216"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let channel = connect(&format!("127.0.0.1:{client}")).await;
    let peer = Peer { name: "etcd", channel, tokens: Default::default(), _process: Some(Process(process)) };
    let ready = api::RangeRequest { key: "ready".into(), ..Default::default() };
    let begun = Instant::now();
    while let Err(status) = peer.call("/etcdserverpb.KV/Range", ready.encode_to_vec().into(), None).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "etcd does not become ready: {status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    peer
}

/// A member of ours, in this process until `shutdown`.
pub async fn serve(
    directory: &Path,
    shutdown: CancellationToken,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let config = Config {
        name: "default".into(),
        data_dir: directory.join("ours"),
        sync: true,
        token: "etcd-cluster".into(),
        peer_urls: vec!["http://localhost:2380".into()],
        advertise_client_urls: vec!["http://localhost:2379".into()],
        listen_client_urls: vec!["http://127.0.0.1:0".into()],
        listen_metrics_urls: Vec::new(),
        tls: None,
        gateway: true,
        auth_token: "simple".into(),
        auth_token_ttl: Duration::from_secs(300),
        bcrypt_cost: 4,
        limits: Limits { quota_bytes: 16 << 20, ..Limits::default() },
        retention: Retention::Everything,
        streams_max: u32::MAX,
        keepalive_interval: None,
        keepalive_timeout: Duration::from_secs(20),
    };
    let prepared = server::prepare(config).await.unwrap();
    let address = prepared.addresses()[0];
    (address, tokio::spawn(async move { prepared.run(shutdown).await.unwrap() }))
}

pub async fn ours(address: SocketAddr) -> Peer {
    Peer {
        name: "isopod",
        channel: connect(&address.to_string()).await,
        tokens: Default::default(),
        _process: None,
    }
}

impl Peer {
    fn request<T>(&self, message: T, user: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(user) = user {
            let tokens = self.tokens.lock().unwrap();
            let token = tokens.get(user).cloned().unwrap_or_else(|| user.to_owned());
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    /// Whether this is etcd 3.4.
    pub async fn is_old(&self) -> bool {
        let status = self.call("/etcdserverpb.Maintenance/Status", Bytes::new(), None).await.unwrap();
        api::StatusResponse::decode(status).unwrap().version.starts_with("3.4.")
    }

    /// Makes a call of one message.
    pub async fn call(
        &self,
        path: &str,
        message: Bytes,
        user: Option<&str>,
    ) -> Result<Bytes, (Code, String)> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|e| (Code::Unavailable, e.to_string()))?;
        let path: PathAndQuery = path.parse().unwrap();
        let called = client.unary(self.request(message, user), path, Raw);
        match tokio::time::timeout(Duration::from_secs(30), called).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err((status.code(), status.message().to_owned())),
            Err(_) => panic!("{}: no answer", self.name),
        }
    }

    /// Opens a watch; what is sent to the channel goes out.
    pub async fn watch(
        &self,
        user: Option<&str>,
    ) -> (
        tokio::sync::mpsc::Sender<api::WatchRequest>,
        impl futures::Stream<Item = Result<api::WatchResponse, Status>> + Unpin + use<>,
    ) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<api::WatchRequest>(64);
        let requests = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx))
            .map(|m| Bytes::from(m.encode_to_vec()));
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.unwrap();
        // etcd sends its headers with its first answer, so a first question must be on its way.
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let request = self.request(requests, user);
        let answers = futures::stream::once(async move { client.streaming(request, path, Raw).await })
            .flat_map(|opened| match opened {
                Ok(answers) => answers.into_inner().left_stream(),
                Err(status) => futures::stream::once(async move { Err(status) }).right_stream(),
            })
            .map(|frame| Ok(api::WatchResponse::decode(frame?).unwrap()));
        (sender, Box::pin(answers))
    }
}
