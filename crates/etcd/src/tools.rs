//! What `isopod etcd` does beside serving: saving, reading and restoring snapshots, defragmenting, hashing. Works with any
//! etcd of version 3.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use futures::StreamExt;
use http::uri::PathAndQuery;
use serde_json::json;
use tonic::Request;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::rpc::cluster::Identity;
use crate::{Directory, api, backup, remote};

#[derive(Clone, Debug, Subcommand)]
pub enum Tool {
    /// Save, describe and restore snapshots
    Snapshot {
        #[command(subcommand)]
        command: SnapshotTool,
    },
    /// Give back the space of what was deleted and compacted
    Defrag {
        #[command(flatten)]
        target: Target,
    },
    /// Print the hash of the history up to a revision
    Hashkv {
        #[command(flatten)]
        target: Target,
        /// 0 is the newest
        #[arg(long, default_value_t = 0)]
        rev: i64,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotTool {
    /// Save a snapshot of a running member
    Save {
        #[command(flatten)]
        target: Target,
        path: PathBuf,
    },
    /// Tell what a snapshot holds
    Status {
        path: PathBuf,
        #[arg(long, short, default_value = "simple")]
        write_out: Format,
    },
    /// Make a data directory of a snapshot that this or etcd's tool saved
    Restore(Box<Restore>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Simple,
    Json,
    Table,
}

/// A running member, and who asks.
#[derive(Clone, Debug, Args)]
pub struct Target {
    #[arg(long, env = "ETCDCTL_ENDPOINTS", value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub endpoints: Vec<String>,
    /// Whom the servers' certificates must be signed by
    #[arg(long, env = "ETCDCTL_CACERT")]
    pub cacert: Option<PathBuf>,
    /// Client certificate
    #[arg(long, env = "ETCDCTL_CERT")]
    pub cert: Option<PathBuf>,
    #[arg(long, env = "ETCDCTL_KEY")]
    pub key: Option<PathBuf>,
    /// NAME:PASSWORD
    #[arg(long, env = "ETCDCTL_USER")]
    pub user: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Restore {
    pub path: PathBuf,
    /// Must not exist, or be empty [default: NAME.etcd]
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    #[arg(long, default_value = "default")]
    pub name: String,
    #[arg(long, value_delimiter = ',', default_value = "http://localhost:2380")]
    pub initial_advertise_peer_urls: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    pub initial_cluster: Vec<String>,
    #[arg(long, default_value = "etcd-cluster")]
    pub initial_cluster_token: String,
    /// Needed for a file that was copied out of a data directory
    #[arg(long)]
    pub skip_hash_check: bool,
    /// Go on at a revision that is higher by this
    #[arg(long, default_value_t = 0)]
    pub bump_revision: u64,
    /// Forget all history, so that watchers notice; needs --bump-revision
    #[arg(long, requires = "bump_revision")]
    pub mark_compacted: bool,
}

/// A connection with the caller's token.
struct Client {
    channel: Channel,
    token: Option<tonic::metadata::AsciiMetadataValue>,
}

fn read(path: Option<&Path>) -> Result<Option<Vec<u8>>> {
    path.map(|path| std::fs::read(path).with_context(|| format!("read {}", path.display()))).transpose()
}

impl Target {
    /// One client for each endpoint.
    async fn clients(&self) -> Result<Vec<(String, Client)>> {
        let mut clients = Vec::new();
        for endpoint in &self.endpoints {
            let tls = self.cacert.is_some() || self.cert.is_some();
            let url = match endpoint.contains("://") {
                true => endpoint.clone(),
                false => format!("{}://{endpoint}", if tls { "https" } else { "http" }),
            };
            let options = remote::Options {
                endpoints: vec![url],
                ca: read(self.cacert.as_deref())?,
                certificate: read(self.cert.as_deref())?,
                key: read(self.key.as_deref())?,
                prefix: None,
            };
            let mut client = Client { channel: remote::channel(&options)?, token: None };
            if let Some(user) = &self.user {
                let (name, password) = user.split_once(':').context("--user: expected NAME:PASSWORD")?;
                let request =
                    api::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
                let answer: api::AuthenticateResponse = client
                    .call("/etcdserverpb.Auth/Authenticate", request)
                    .await
                    .with_context(|| format!("authenticate at {endpoint}"))?;
                client.token = Some(answer.token.parse().context("the token")?);
            }
            clients.push((endpoint.clone(), client));
        }
        Ok(clients)
    }
}

impl Client {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    async fn grpc(&self) -> Result<tonic::client::Grpc<Channel>> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.context("connect")?;
        Ok(grpc)
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let request = self.request(message);
        let answer =
            self.grpc().await?.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await;
        Ok(answer.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner())
    }
}

/// Does what the command line says and prints the outcome.
pub async fn run(tool: Tool) -> Result<()> {
    match tool {
        Tool::Snapshot { command: SnapshotTool::Save { target, path } } => save(&target, &path).await,
        Tool::Snapshot { command: SnapshotTool::Status { path, write_out } } => {
            let status = tokio::task::spawn_blocking(move || backup::status(&path)).await??;
            println!("{}", described(&status, write_out));
            Ok(())
        }
        Tool::Snapshot { command: SnapshotTool::Restore(restore) } => {
            tokio::task::spawn_blocking(move || restored(&restore)).await?
        }
        Tool::Defrag { target } => {
            for (endpoint, client) in target.clients().await? {
                let path = "/etcdserverpb.Maintenance/Defragment";
                let _: api::DefragmentResponse = client.call(path, api::DefragmentRequest {}).await?;
                println!("Finished defragmenting etcd member[{endpoint}]");
            }
            Ok(())
        }
        Tool::Hashkv { target, rev } => {
            for (endpoint, client) in target.clients().await? {
                let request = api::HashKvRequest { revision: rev };
                let answer: api::HashKvResponse =
                    client.call("/etcdserverpb.Maintenance/HashKV", request).await?;
                println!("{endpoint}, {}", answer.hash);
            }
            Ok(())
        }
    }
}

fn described(status: &backup::Status, format: Format) -> String {
    let backup::Status { hash, revision, total_key, total_size, version } = status;
    match format {
        Format::Simple => format!("{hash:x}, {revision}, {total_key}, {total_size}, {version}"),
        Format::Json => json!({
            "hash": hash, "revision": revision, "totalKey": total_key, "totalSize": total_size, "version": version,
        })
        .to_string(),
        Format::Table => format!(
            "hash:       {hash:x}\nrevision:   {revision}\ntotal keys: {total_key}\ntotal size: {total_size} B\n\
             version:    {version}"
        ),
    }
}

/// Streams a snapshot into a file, which gets its name when it is whole and its checksum is right.
async fn save(target: &Target, path: &Path) -> Result<()> {
    ensure!(
        target.endpoints.len() == 1,
        "snapshot must be requested to one selected node, not multiple {:?}",
        target.endpoints
    );
    let (_, client) = target.clients().await?.remove(0);
    let part = path.with_extension("part");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .with_context(|| format!("write {}", part.display()))?;
    let request = client.request(api::SnapshotRequest {});
    let codec = ProstCodec::<api::SnapshotRequest, api::SnapshotResponse>::default();
    let route = PathAndQuery::from_static("/etcdserverpb.Maintenance/Snapshot");
    let failed = |status: tonic::Status| anyhow::anyhow!("{}", status.message());
    let mut pieces =
        client.grpc().await?.server_streaming(request, route, codec).await.map_err(failed)?.into_inner();
    while let Some(piece) = pieces.next().await {
        file.write_all(&piece.map_err(failed)?.blob)?;
    }
    file.sync_all()?;
    drop(file);
    let saved = part.clone();
    let status = tokio::task::spawn_blocking(move || backup::status(&saved)).await?;
    let status = status.context("the snapshot did not arrive whole")?;
    std::fs::rename(&part, path).with_context(|| format!("write {}", path.display()))?;
    println!("Snapshot saved at {} (revision {})", path.display(), status.revision);
    Ok(())
}

fn restored(restore: &Restore) -> Result<()> {
    for member in &restore.initial_cluster {
        if !member.starts_with(&format!("{}=", restore.name)) {
            bail!(
                "--initial-cluster names {member} beside {}: replication is not supported yet",
                restore.name
            );
        }
    }
    let data_dir = restore.data_dir.clone().unwrap_or_else(|| format!("{}.etcd", restore.name).into());
    if data_dir.exists() {
        let empty = std::fs::read_dir(&data_dir).is_ok_and(|mut entries| entries.next().is_none());
        ensure!(empty, "data-dir {:?} not empty or could not be read", data_dir.display());
    }
    let options = backup::RestoreOptions {
        identity: Identity::new(
            &restore.name,
            &restore.initial_cluster_token,
            restore.initial_advertise_peer_urls.clone(),
            Vec::new(),
        ),
        skip_hash_check: restore.skip_hash_check,
        bump_revision: restore.bump_revision,
        mark_compacted: restore.mark_compacted,
    };
    let directory = Directory::open(&data_dir).with_context(|| format!("open {}", data_dir.display()))?;
    let header = backup::restore(&restore.path, &directory, &options)?;
    println!(
        "restored snapshot {} into {} (revision {})",
        restore.path.display(),
        data_dir.display(),
        header.revision
    );
    Ok(())
}
