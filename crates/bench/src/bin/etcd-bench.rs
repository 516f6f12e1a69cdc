//! Loads the distribution's etcd and ours in the same run, one after the other, over the network: throughput, CPU of the server
//! for each operation, and its memory.
//!
//! Usage: etcd-bench [--isopod PROGRAM] [--seconds N] [--clients N] [--connections N] [--fill KEYS] [--only NAME] [--endpoint URL]
//! PROGRAM is the isopod binary (default: `member` beside this program).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench::process;
use bytes::{Buf, BufMut, Bytes};
use clap::Parser;
use etcd::api::{self, compare::TargetUnion, request_op::Request as Op, watch_request::RequestUnion};
use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

#[derive(Clone, Parser)]
struct Options {
    #[arg(long)]
    isopod: Option<PathBuf>,
    /// Load this endpoint only, whoever serves it
    #[arg(long)]
    endpoint: Option<String>,
    /// Whose CPU and memory are told for --endpoint
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 128)]
    clients: usize,
    #[arg(long, default_value_t = 8)]
    connections: usize,
    #[arg(long, default_value_t = 500)]
    watchers: usize,
    /// Keys of 256 B that are put into an empty store before its memory is read
    #[arg(long, default_value_t = 0)]
    fill: usize,
    /// put, compare-and-put, get, range, watch
    #[arg(long)]
    only: Option<String>,
    #[arg(long, default_value_t = 23890)]
    port: u16,
}

/// Messages as bytes: what the load costs must not be decoding.
#[derive(Clone, Copy, Default)]
struct Raw;

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

struct Server {
    name: &'static str,
    pid: Option<u32>,
    channels: Vec<Channel>,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Server {
    async fn reach(
        name: &'static str,
        url: &str,
        connections: usize,
        process: Option<Child>,
        pid: Option<u32>,
    ) -> Result<Server> {
        let endpoint = Endpoint::from_shared(url.to_owned())?
            .tcp_nodelay(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(16 << 20);
        let mut channels = Vec::new();
        let begun = Instant::now();
        while channels.len() < connections {
            match endpoint.connect().await {
                Ok(channel) => channels.push(channel),
                Err(_) if begun.elapsed() < Duration::from_secs(20) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error).context(format!("{name} at {url}")),
            }
        }
        let pid = pid.or(process.as_ref().map(Child::id));
        let server = Server { name, pid, channels, process };
        // A leader must be there.
        let probe =
            Bytes::from(api::RangeRequest { key: "probe".into(), ..Default::default() }.encode_to_vec());
        while call(&server.channels[0], "/etcdserverpb.KV/Range", probe.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(server)
    }

    fn resident_mb(&self) -> f64 {
        self.pid.map_or(0.0, |pid| process::memory_mb(&pid.to_string(), "VmRSS"))
    }

    fn cpu_seconds(&self) -> f64 {
        self.pid.map_or(0.0, |pid| process::cpu_seconds(&pid.to_string()))
    }
}

async fn call(channel: &Channel, path: &'static str, message: Bytes) -> Result<Bytes, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(usize::MAX);
    client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
    let answer = client.unary(Request::new(message), PathAndQuery::from_static(path), Raw).await?;
    Ok(answer.into_inner())
}

/// Prints one line of the table.
fn tell(server: &Server, what: &str, n: u64, seconds: f64, server_cpu: f64, own_cpu: f64) {
    println!(
        "{:<7} {what:<44} {:>9.0}/s   server CPU {:>8.2} µs each ({:>3.0} % of a core; load {:>3.0} %)",
        server.name,
        n as f64 / seconds,
        server_cpu / n.max(1) as f64 * 1e6,
        server_cpu / seconds * 100.0,
        own_cpu / seconds * 100.0
    );
}

/// Runs one kind of call from all clients for the time given. `message` makes a client's next one out of its last answer.
async fn load(
    server: &Server,
    options: &Options,
    what: &str,
    path: &'static str,
    clients: usize,
    message: impl Fn(usize, u64, Option<&Bytes>) -> Bytes + Send + Sync + 'static,
) -> Result<()> {
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let message = Arc::new(message);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let channel = server.channels[client % server.channels.len()].clone();
        let (done, stop, message) = (done.clone(), stop.clone(), message.clone());
        tasks.spawn(async move {
            let (mut i, mut last) = (0, None);
            while !stop.load(Ordering::Relaxed) {
                last = Some(call(&channel, path, message(client, i, last.as_ref())).await?);
                done.fetch_add(1, Ordering::Relaxed);
                i += 1;
            }
            Ok::<_, Status>(())
        });
    }
    // The first moments make connections and caches warm.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begin =
        (Instant::now(), done.load(Ordering::Relaxed), server.cpu_seconds(), process::cpu_seconds("self"));
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let n = done.load(Ordering::Relaxed) - begin.1;
    tell(
        server,
        what,
        n,
        begin.0.elapsed().as_secs_f64(),
        server.cpu_seconds() - begin.2,
        process::cpu_seconds("self") - begin.3,
    );
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended?.map_err(|status| anyhow::anyhow!("{what}: {status}"))?;
    }
    Ok(())
}

fn put(key: String, value: Bytes) -> Bytes {
    api::PutRequest { key: key.into(), value, ..Default::default() }.encode_to_vec().into()
}

async fn puts(server: &Server, options: &Options, clients: usize) -> Result<()> {
    let value = Bytes::from(vec![b'x'; 256]);
    let what = format!("put 256 B, {clients} clients");
    load(server, options, &what, "/etcdserverpb.KV/Put", clients, move |client, i, _| {
        put(format!("/bench/put/{client:04}/{:06}", i % 1000), value.clone())
    })
    .await
}

async fn compare_and_puts(server: &Server, options: &Options) -> Result<()> {
    let value = Bytes::from(vec![b'x'; 1024]);
    let what = format!("compare-and-put 1 KiB, {} clients", options.clients);
    load(server, options, &what, "/etcdserverpb.KV/Txn", options.clients, move |client, _, last| {
        let key = Bytes::from(format!("/bench/cas/{client:04}"));
        // The last answer's revision is the key's; the first write takes whatever is there.
        let revision = last
            .and_then(|bytes| api::TxnResponse::decode(&bytes[..]).ok())
            .filter(|answer| answer.succeeded)
            .and_then(|answer| answer.header)
            .map(|header| header.revision);
        let (result, modified) = match revision {
            Some(revision) => (api::CompareResult::Equal, revision),
            None => (api::CompareResult::Greater, -1),
        };
        let compare = api::Compare {
            result: result as i32,
            target: api::CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(modified)),
            ..Default::default()
        };
        let op = |request| vec![api::RequestOp { request: Some(request) }];
        let success =
            op(Op::Put(api::PutRequest { key: key.clone(), value: value.clone(), ..Default::default() }));
        let failure = op(Op::Range(api::RangeRequest { key, ..Default::default() }));
        api::TxnRequest { compare: vec![compare], success, failure }.encode_to_vec().into()
    })
    .await
}

/// Keys that gets and ranges read.
async fn read_keys(server: &Server) -> Result<()> {
    let value = Bytes::from(vec![b'x'; 256]);
    for i in 0..1000 {
        let message = put(format!("/bench/read/{i:04}"), value.clone());
        call(&server.channels[0], "/etcdserverpb.KV/Put", message).await?;
    }
    Ok(())
}

async fn gets(server: &Server, options: &Options) -> Result<()> {
    let what = format!("linearizable get 256 B, {} clients", options.clients);
    load(server, options, &what, "/etcdserverpb.KV/Range", options.clients, |client, i, _| {
        let key = format!("/bench/read/{:04}", (client as u64 * 31 + i) % 1000).into();
        api::RangeRequest { key, ..Default::default() }.encode_to_vec().into()
    })
    .await
}

async fn ranges(server: &Server, options: &Options) -> Result<()> {
    let clients = options.clients.min(16);
    let what = format!("range of 1,000 keys of 256 B, {clients} clients");
    load(server, options, &what, "/etcdserverpb.KV/Range", clients, |_, _, _| {
        let request = api::RangeRequest {
            key: "/bench/read/".into(),
            range_end: "/bench/read0".into(),
            ..Default::default()
        };
        request.encode_to_vec().into()
    })
    .await
}

/// Every watcher sees every put; what the puts cost without watchers is measured first and taken off.
async fn watches(server: &Server, options: &Options) -> Result<()> {
    let (received, messages) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    let mut keep = Vec::new();
    for watcher in 0..options.watchers {
        let channel = server.channels[watcher % server.channels.len()].clone();
        let create = api::WatchCreateRequest {
            key: "/bench/watch/".into(),
            range_end: "/bench/watch0".into(),
            ..Default::default()
        };
        let request = api::WatchRequest { request_union: Some(RequestUnion::Create(create)) };
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        keep.push(sender);
        let first = futures::stream::iter([Bytes::from(request.encode_to_vec())]);
        let rest = futures::stream::once(receiver).filter_map(|_| async { None });
        let (received, messages) = (received.clone(), messages.clone());
        tasks.spawn(async move {
            let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
            client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let mut answers =
                client.streaming(Request::new(first.chain(rest)), path, Raw).await?.into_inner();
            while let Some(answer) = answers.next().await {
                let events = api::WatchResponse::decode(answer?).map_or(0, |r| r.events.len());
                received.fetch_add(events as u64, Ordering::Relaxed);
                messages.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, Status>(())
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let value = Bytes::from(vec![b'x'; 256]);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let channel = server.channels[writer % server.channels.len()].clone();
        let (stop, value) = (stop.clone(), value.clone());
        writers.spawn(async move {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) {
                call(
                    &channel,
                    "/etcdserverpb.KV/Put",
                    put(format!("/bench/watch/{writer}/{}", i % 100), value.clone()),
                )
                .await?;
                i += 1;
            }
            Ok::<u64, Status>(i)
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begin = (
        Instant::now(),
        received.load(Ordering::Relaxed),
        server.cpu_seconds(),
        process::cpu_seconds("self"),
    );
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let n = received.load(Ordering::Relaxed) - begin.1;
    let what = format!("watch event 256 B, {} watchers (puts included)", options.watchers);
    tell(
        server,
        &what,
        n,
        begin.0.elapsed().as_secs_f64(),
        server.cpu_seconds() - begin.2,
        process::cpu_seconds("self") - begin.3,
    );
    println!(
        "{:<7} events in a message: {:.1}",
        server.name,
        received.load(Ordering::Relaxed) as f64 / messages.load(Ordering::Relaxed).max(1) as f64
    );
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended?.map_err(|status| anyhow::anyhow!("put: {status}"))?;
    }
    drop(keep);
    tasks.shutdown().await;
    Ok(())
}

async fn fill(server: &Server, keys: usize) -> Result<()> {
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..256 {
        let (channel, next) = (server.channels[task % server.channels.len()].clone(), next.clone());
        tasks.spawn(async move {
            let value = Bytes::from(vec![b'x'; 256]);
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= keys as u64 {
                    return Ok::<_, Status>(());
                }
                call(&channel, "/etcdserverpb.KV/Put", put(format!("/bench/fill/{i:09}"), value.clone()))
                    .await?;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    println!(
        "{:<7} {keys} keys of 256 B put in {:.1} s; resident {:.0} MB",
        server.name,
        begun.elapsed().as_secs_f64(),
        server.resident_mb()
    );
    Ok(())
}

async fn measure(server: &Server, options: &Options) -> Result<()> {
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    if wanted("put") {
        puts(server, options, options.clients).await?;
        puts(server, options, 1000).await?;
    }
    if wanted("compare-and-put") {
        compare_and_puts(server, options).await?;
    }
    if wanted("get") || wanted("range") {
        read_keys(server).await?;
    }
    if wanted("get") {
        gets(server, options).await?;
    }
    if wanted("range") {
        ranges(server, options).await?;
    }
    if wanted("watch") {
        watches(server, options).await?;
    }
    println!("{:<7} resident after that: {:.0} MB", server.name, server.resident_mb());
    Ok(())
}

fn start(program: &Path, words: &[&str], directory: &Path, port: u16) -> Result<Child> {
    std::fs::create_dir_all(directory)?;
    let url = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{}", port + 1);
    Command::new(program)
        .args(words)
        .arg("--data-dir")
        .arg(directory)
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--quota-backend-bytes", "8589934592"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", program.display()))
}

/// A program that is measured, in data directories of its own.
struct Candidate {
    name: &'static str,
    program: PathBuf,
    words: &'static [&'static str],
    directory: PathBuf,
    port: u16,
}

impl Candidate {
    async fn start(&self, options: &Options, directory: &str) -> Result<Server> {
        let process = start(&self.program, self.words, &self.directory.join(directory), self.port)?;
        let url = format!("http://127.0.0.1:{}", self.port);
        Server::reach(self.name, &url, options.connections, Some(process), None).await
    }

    async fn measure(&self, options: &Options) -> Result<()> {
        measure(&self.start(options, "load").await?, options).await?;
        if options.fill > 0 {
            // A member of its own: whoever took more writes before has more history to remember.
            fill(&self.start(options, "fill").await?, options.fill).await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(url) = &options.endpoint {
        let server = Server::reach("server", url, options.connections, None, options.pid).await?;
        measure(&server, &options).await?;
        return match options.fill {
            0 => Ok(()),
            keys => fill(&server, keys).await,
        };
    }
    let scratch = bench::Scratch::new()?;
    let etcd = Candidate {
        name: "etcd",
        program: "etcd".into(),
        words: &[],
        directory: scratch.path().join("etcd"),
        port: options.port,
    };
    match Command::new(&etcd.program).arg("--version").stdout(Stdio::null()).status() {
        Ok(_) => etcd.measure(&options).await?,
        Err(error) => println!("the distribution's etcd is not measured: {error:#}"),
    }
    let beside = std::env::current_exe()?.with_file_name("member");
    let (program, words): (PathBuf, &[&str]) = match &options.isopod {
        Some(program) => (program.clone(), &["etcd"]),
        None => (beside, &[]),
    };
    let directory = scratch.path().join("isopod");
    Candidate { name: "isopod", program, words, directory, port: options.port + 2 }.measure(&options).await
}
