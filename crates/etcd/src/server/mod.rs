//! `isopod etcd`: a member as a process of its own.

mod compaction;
mod gateway;
mod http;
mod tls;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use ::http::{Request, Response, StatusCode};
use anyhow::{Context, Result, bail, ensure};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use transport::calls::{Begun, WithCalls};
use transport::gather::{Gather, gathered};

use crate::auth::Auth;
use crate::auth::token::Tokens;
use crate::flags::{Flags, Retention};
use crate::rpc::cluster::Identity;
use crate::rpc::grpc::Body;
use crate::rpc::{Limits, Member};
use crate::{Directory, Engine, Options};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 50_000;
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;
const H2_SEND_BUFFER: usize = 1 << 20;
/// What `--grpc-keepalive-interval` is when nobody sets it: too long to be worth the cost of HTTP/2's own pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2 * 60 * 60);
/// After so long without a word TCP looks whether the client is still there, as etcd's does.
const QUIET: Duration = Duration::from_secs(30);
/// How long calls in flight may take to end on shutdown.
const GRACE: Duration = Duration::from_secs(5);
/// Shortest lease: one and a half election timeouts of one second, rounded up.
const LEASE_SECONDS_MIN: i64 = 2;

/// Everything a member is configured with.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    pub sync: bool,
    pub token: String,
    pub peer_urls: Vec<String>,
    pub advertise_client_urls: Vec<String>,
    pub listen_client_urls: Vec<String>,
    pub listen_metrics_urls: Vec<String>,
    pub tls: Option<Tls>,
    pub gateway: bool,
    pub auth_token: String,
    pub auth_token_ttl: Duration,
    pub bcrypt_cost: u32,
    pub limits: Limits,
    pub retention: Retention,
    pub streams_max: u32,
    /// HTTP/2 pings; without, TCP alone looks for peers that are gone.
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Duration,
}

/// Where the certificates are.
#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Clients must show a certificate that one of these has signed.
    pub client_ca: Option<PathBuf>,
}

impl Flags {
    pub fn config(&self) -> Result<Config> {
        self.check_cluster()?;
        let (listen_client_urls, advertise_client_urls) = self.client_urls()?;
        let data_dir = self.data_dir();
        let tls = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some(Tls {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: self.trusted_ca_file.clone(),
            }),
            (None, None) if self.auto_tls => Some(self_signed(&data_dir, &listen_client_urls)?),
            (None, None) => None,
            _ => bail!("--cert-file and --key-file are only of use together"),
        };
        ensure!(
            !self.client_cert_auth || tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
            "--client-cert-auth needs --cert-file, --key-file and --trusted-ca-file"
        );
        let limits = Limits {
            request_bytes_max: self.max_request_bytes,
            txn_ops_max: self.max_txn_ops,
            quota_bytes: self.quota_bytes(),
            progress_interval: self.watch_progress_notify_interval.max(Duration::from_millis(100)),
            certificate_users: self.client_cert_auth,
        };
        Ok(Config {
            name: self.name.clone(),
            data_dir,
            sync: !self.unsafe_no_fsync,
            token: self.initial_cluster_token.clone(),
            peer_urls: self.initial_advertise_peer_urls.clone(),
            advertise_client_urls,
            listen_client_urls,
            listen_metrics_urls: self.listen_metrics_urls.clone(),
            tls,
            gateway: self.enable_grpc_gateway,
            auth_token: self.auth_token.clone(),
            auth_token_ttl: Duration::from_secs(self.auth_token_ttl),
            bcrypt_cost: self.bcrypt_cost,
            limits,
            retention: self.retention()?,
            streams_max: self.max_concurrent_streams,
            keepalive_interval: Some(self.grpc_keepalive_interval)
                .filter(|&after| after < KEEPALIVE_INTERVAL),
            keepalive_timeout: self.grpc_keepalive_timeout,
        })
    }
}

/// The certificate in the data directory, made there when it is missing.
fn self_signed(data_dir: &Path, urls: &[String]) -> Result<Tls> {
    let directory = data_dir.join("fixtures/client");
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    if !certificate.exists() || !key.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        names.extend(urls.iter().filter_map(|url| host_of(url)));
        let pair = rcgen::generate_simple_self_signed(names)?;
        std::fs::write(&key, pair.signing_key.serialize_pem())?;
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        std::fs::write(&certificate, pair.cert.pem())?;
    }
    Ok(Tls { certificate, key, client_ca: None })
}

fn host_of(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
    Some(host.trim_matches(['[', ']']).to_owned())
}

/// A member that listens but does not serve yet.
pub struct Prepared {
    member: Arc<Member>,
    config: Config,
    listeners: Vec<Listening>,
}

struct Listening {
    listener: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
    /// Serves health and metrics only.
    metrics_only: bool,
}

/// Opens the data and the sockets: what can fail for reasons of configuration fails here.
pub async fn prepare(config: Config) -> Result<Prepared> {
    let directory =
        Directory::open(&config.data_dir).with_context(|| format!("open {}", config.data_dir.display()))?;
    let given = Identity::new(
        &config.name,
        &config.token,
        config.peer_urls.clone(),
        config.advertise_client_urls.clone(),
    );
    let options = Options {
        sync: config.sync,
        quota_bytes: config.limits.quota_bytes,
        member_id: given.member_id,
        lease_ttl_seconds_min: LEASE_SECONDS_MIN,
        // History goes when somebody compacts, as in etcd.
        history_events_max: 0,
        ..Options::default()
    };
    let engine = Engine::open(Arc::new(directory), options).context("open the store")?;
    let identity = match Identity::read(&engine) {
        Some(there) => {
            Identity { name: config.name.clone(), client_urls: config.advertise_client_urls.clone(), ..there }
        }
        None => given,
    };
    if Identity::read(&engine).as_ref() != Some(&identity) {
        identity.write(&engine).await.context("write the member's record")?;
    }
    let tokens = Tokens::new(&config.auth_token, config.auth_token_ttl).context("--auth-token")?;
    let auth =
        Auth::open(engine.clone(), tokens, config.bcrypt_cost).await.context("open users and roles")?;
    let tls = match &config.tls {
        Some(tls) => {
            let config = tls::config(&tls.certificate, &tls.key, tls.client_ca.as_deref())?;
            Some(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
        }
        None => None,
    };
    let mut listeners = Vec::new();
    let urls = config.listen_client_urls.iter().map(|url| (url, false));
    for (url, metrics_only) in urls.chain(config.listen_metrics_urls.iter().map(|url| (url, true))) {
        let tls = match url.split_once("://") {
            Some(("http", _)) => None,
            Some(("https", _)) => {
                Some(tls.clone().with_context(|| format!("{url} needs --cert-file and --key-file"))?)
            }
            _ => bail!("{url}: expected http://HOST:PORT or https://HOST:PORT"),
        };
        let authority = &url[url.find("://").map_or(0, |at| at + 3)..];
        let listener = listen(authority).await.with_context(|| format!("listen on {url}"))?;
        listeners.push(Listening { listener, tls, metrics_only });
    }
    let member = Member::new(
        engine,
        auth,
        identity,
        config.limits.clone(),
        config.data_dir.clone(),
        CancellationToken::new(),
    );
    Ok(Prepared { member, config, listeners })
}

async fn listen(authority: &str) -> Result<TcpListener> {
    let authority = authority.trim_end_matches('/');
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(authority).await?.collect();
    let address = *addresses.iter().find(|a| a.is_ipv4()).or(addresses.first()).context("no such host")?;
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(4096)?)
}

impl Prepared {
    /// Where clients are served, in the order of the URLs.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|l| l.listener.local_addr().ok()).collect()
    }

    pub fn member(&self) -> Arc<Member> {
        self.member.clone()
    }

    /// Serves until `shutdown`, then lets calls in flight end.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        let Prepared { member, config, listeners } = self;
        tracing::info!(
            name = %config.name,
            member = format!("{:x}", member.header.member_id),
            revision = member.engine.current_revision(),
            urls = %config.listen_client_urls.join(","),
            "serving client traffic"
        );
        let ending = member.shutdown.clone();
        let background = TaskTracker::new();
        {
            let (engine, ending) = (member.engine.clone(), ending.clone());
            background.spawn(async move { engine.run_leases(ending.cancelled_owned()).await });
        }
        {
            let (feed, ending) = (member.feed.clone(), ending.clone());
            background.spawn(async move { feed.run(ending.cancelled_owned()).await });
        }
        {
            let (engine, ending, retention) = (member.engine.clone(), ending.clone(), config.retention);
            background.spawn(async move {
                tokio::select! {
                    () = ending.cancelled() => {}
                    () = compaction::run(engine, retention) => {}
                }
            });
        }
        let serving = TaskTracker::new();
        let cut = CancellationToken::new();
        let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
        let config = Arc::new(config);
        for listening in listeners {
            let front = Front {
                member: member.clone(),
                config: config.clone(),
                metrics_only: listening.metrics_only,
            };
            let accepting =
                accept(listening, front, serving.clone(), shutdown.clone(), cut.clone(), slots.clone());
            serving.spawn(accepting);
        }
        serving.close();
        shutdown.cancelled().await;
        ending.cancel();
        if tokio::time::timeout(GRACE, serving.wait()).await.is_err() {
            cut.cancel();
            serving.wait().await;
        }
        background.close();
        background.wait().await;
        // The log's thread lets go of the data directory, which the next to open it must not find taken.
        let mut applied = member.engine.subscribe();
        drop(member);
        let ended = async { while applied.changed().await.is_ok() {} };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("the store is still in use");
        }
        Ok(())
    }
}

/// Runs a member until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    prepare(config).await?.run(shutdown).await
}

async fn accept(
    listening: Listening,
    front: Front,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    cut: CancellationToken,
    slots: Arc<tokio::sync::Semaphore>,
) {
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listening.listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: others must end first.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (tls, front, shutdown, cut) =
            (listening.tls.clone(), front.clone(), shutdown.clone(), cut.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = cut.cancelled() => {}
                () = front.connection(stream, tls, shutdown) => {}
            }
            drop(slot);
        });
    }
}

/// What a connection needs to be served.
#[derive(Clone)]
struct Front {
    member: Arc<Member>,
    config: Arc<Config>,
    metrics_only: bool,
}

impl Front {
    async fn connection(
        self,
        stream: TcpStream,
        tls: Option<tokio_rustls::TlsAcceptor>,
        shutdown: CancellationToken,
    ) {
        transport::socket::tune(&stream, QUIET);
        let Some(acceptor) = tls else { return self.serve(stream, None, shutdown).await };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let shown =
                    stream.get_ref().1.peer_certificates().and_then(|certificates| certificates.first());
                let common_name = shown.and_then(|certificate| tls::common_name(certificate));
                self.serve(stream, common_name, shutdown).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => {}
        }
    }

    async fn serve<S>(self, stream: S, common_name: Option<Arc<str>>, shutdown: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let begun = Begun::default();
        let mut builder = auto::Builder::new(begun.clone());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.config.streams_max)
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_send_buf_size(H2_SEND_BUFFER)
            .auto_date_header(false)
            .keep_alive_interval(self.config.keepalive_interval)
            .keep_alive_timeout(self.config.keepalive_timeout);
        let service = Service { front: self, common_name };
        let ended = gathered(Gather::new(stream), |stream| async move {
            let connection = Box::pin(builder.serve_connection(TokioIo::new(stream), service));
            let mut serving = WithCalls::new(connection, begun);
            tokio::select! {
                ended = &mut serving => ended,
                () = shutdown.cancelled() => {
                    serving.connection.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        })
        .await;
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn plain(self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let query = parts.uri.query().unwrap_or_default();
        if let Some(response) = http::answer(&self.member, &parts.method, path, query).await {
            return response;
        }
        match path.strip_prefix("/v3/") {
            Some(path) if self.config.gateway && !self.metrics_only => {
                gateway::answer(&self.member, &parts.method, path, &parts.headers, body).await
            }
            _ => http::text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n"),
        }
    }
}

struct Service {
    front: Front,
    common_name: Option<Arc<str>>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if is_grpc && !self.front.metrics_only {
            let (member, common_name) = (self.front.member.clone(), self.common_name.clone());
            // Made within the box: it is large, and moving it costs.
            return Box::pin(async move { Ok(member.call(request, common_name).await) });
        }
        let front = self.front.clone();
        Box::pin(async move { Ok(front.plain(request).await) })
    }
}
