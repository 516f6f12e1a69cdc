//! The container runtime as seen through CRI v1 over a unix socket.

pub mod api;
pub mod events;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use api::*;

/// Labels under which the kubelet finds its containers again; their names are shared with every other kubelet.
pub const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
pub const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME_LABEL: &str = "io.kubernetes.container.name";

pub const RESTART_COUNT_ANNOTATION: &str = "io.kubernetes.container.restartCount";
pub const HASH_ANNOTATION: &str = "io.kubernetes.container.hash";
pub const MESSAGE_PATH_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
pub const MESSAGE_POLICY_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const PRE_STOP_ANNOTATION: &str = "io.kubernetes.container.preStopHandler";
pub const PORTS_ANNOTATION: &str = "io.kubernetes.container.ports";
pub const GRACE_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";

const SNAPSHOTS: &str = "containerd.services.snapshots.v1.Snapshots";

/// The longest a call without its own time limit may take. Image pulls have none; the caller bounds them.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Logs and command output may come in one message.
const MAX_MESSAGE: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CriError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("command timed out: {0}")]
    Timeout(String),
    #[error("the container runtime does not answer: {0}")]
    Unavailable(String),
    #[error("{0}")]
    Failed(String),
}

impl CriError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, CriError::NotFound(_))
    }
}

impl From<tonic::Status> for CriError {
    fn from(status: tonic::Status) -> CriError {
        let message = status.message().to_owned();
        match status.code() {
            tonic::Code::NotFound => CriError::NotFound(message),
            tonic::Code::Unimplemented => CriError::Unimplemented(message),
            tonic::Code::DeadlineExceeded => CriError::Timeout(message),
            tonic::Code::Unavailable => CriError::Unavailable(message),
            code => CriError::Failed(format!("rpc error: code = {code:?} desc = {message}")),
        }
    }
}

pub type Result<T> = std::result::Result<T, CriError>;

/// A connection to the runtime. Cheap to clone; reconnects by itself.
#[derive(Clone)]
pub struct Cri {
    channel: Channel,
    socket: PathBuf,
}

impl Cri {
    /// Connects on first use.
    pub fn new(endpoint: &str) -> Cri {
        let socket = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
        let path = socket.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is never resolved: the connector above goes to the socket.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector);
        Cri { channel, socket }
    }

    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    async fn call<Req, Resp>(
        &self,
        service: &'static str,
        method: &'static str,
        request: Req,
        timeout: Option<Duration>,
    ) -> Result<Resp>
    where
        Req: prost::Message + Send + Sync + 'static,
        Resp: prost::Message + Default + Send + Sync + 'static,
    {
        let work = async {
            let mut grpc =
                tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
            grpc.ready().await.map_err(|e| CriError::Unavailable(e.to_string()))?;
            let path = http::uri::PathAndQuery::try_from(format!("/{service}/{method}"))
                .map_err(|e| CriError::Failed(e.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Req, Resp>::default();
            let mut request = tonic::Request::new(request);
            if service.starts_with("containerd.") {
                let namespace = tonic::metadata::MetadataValue::from_static("k8s.io");
                request.metadata_mut().insert("containerd-namespace", namespace);
            }
            Ok(grpc.unary(request, path, codec).await?.into_inner())
        };
        match timeout {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work)
                .await
                .unwrap_or_else(|_| Err(CriError::Timeout(format!("{method} took longer than {limit:?}")))),
        }
    }

    async fn runtime<Req, Resp>(&self, method: &'static str, request: Req) -> Result<Resp>
    where
        Req: prost::Message + Send + Sync + 'static,
        Resp: prost::Message + Default + Send + Sync + 'static,
    {
        self.call("runtime.v1.RuntimeService", method, request, Some(CALL_TIMEOUT)).await
    }

    async fn image<Req, Resp>(&self, method: &'static str, request: Req) -> Result<Resp>
    where
        Req: prost::Message + Send + Sync + 'static,
        Resp: prost::Message + Default + Send + Sync + 'static,
    {
        self.call("runtime.v1.ImageService", method, request, Some(CALL_TIMEOUT)).await
    }

    async fn stream<Req, Resp>(
        &self,
        path: &'static str,
        request: Req,
        namespace: Option<&'static str>,
    ) -> Result<tonic::Streaming<Resp>>
    where
        Req: prost::Message + Send + Sync + 'static,
        Resp: prost::Message + Default + Send + Sync + 'static,
    {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|e| CriError::Unavailable(e.to_string()))?;
        let mut request = tonic::Request::new(request);
        if let Some(namespace) = namespace {
            request
                .metadata_mut()
                .insert("containerd-namespace", tonic::metadata::MetadataValue::from_static(namespace));
        }
        let codec = tonic_prost::ProstCodec::<Req, Resp>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
    }

    pub async fn version(&self) -> Result<VersionResponse> {
        self.call(
            "runtime.v1.RuntimeService",
            "Version",
            VersionRequest { version: "v1".into() },
            Some(Duration::from_secs(5)),
        )
        .await
    }

    pub async fn status(&self, verbose: bool) -> Result<StatusResponse> {
        self.runtime("Status", StatusRequest { verbose }).await
    }

    pub async fn update_pod_cidr(&self, pod_cidr: String) -> Result<()> {
        let config = RuntimeConfig { network_config: Some(NetworkConfig { pod_cidr }) };
        self.runtime::<_, Empty>(
            "UpdateRuntimeConfig",
            UpdateRuntimeConfigRequest { runtime_config: Some(config) },
        )
        .await?;
        Ok(())
    }

    pub async fn run_sandbox(&self, config: PodSandboxConfig, runtime_handler: String) -> Result<String> {
        let response: RunPodSandboxResponse = self
            .call(
                "runtime.v1.RuntimeService",
                "RunPodSandbox",
                RunPodSandboxRequest { config: Some(config), runtime_handler },
                Some(Duration::from_secs(240)),
            )
            .await?;
        Ok(response.pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.runtime::<_, Empty>("StopPodSandbox", PodSandboxIdRequest { pod_sandbox_id: id.into() }).await?;
        Ok(())
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.runtime::<_, Empty>("RemovePodSandbox", PodSandboxIdRequest { pod_sandbox_id: id.into() })
            .await?;
        Ok(())
    }

    pub async fn sandbox_status(&self, id: &str) -> Result<PodSandboxStatus> {
        let response: PodSandboxStatusResponse = self
            .runtime(
                "PodSandboxStatus",
                PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false },
            )
            .await?;
        response.status.ok_or_else(|| CriError::NotFound(format!("sandbox {id} has no status")))
    }

    /// All sandboxes, or those of one pod.
    pub async fn list_sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<PodSandbox>> {
        let filter = pod_uid.map(|uid| PodSandboxFilter { id: String::new(), label_selector: by_uid(uid) });
        let response: ListPodSandboxResponse =
            self.runtime("ListPodSandbox", ListPodSandboxRequest { filter }).await?;
        Ok(response.items)
    }

    pub async fn create_container(
        &self,
        sandbox: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let response: ContainerIdResponse = self
            .runtime(
                "CreateContainer",
                CreateContainerRequest {
                    pod_sandbox_id: sandbox.into(),
                    config: Some(config),
                    sandbox_config: Some(sandbox_config),
                },
            )
            .await?;
        Ok(response.container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.runtime::<_, Empty>("StartContainer", ContainerIdRequest { container_id: id.into() }).await?;
        Ok(())
    }

    /// Returns once the container has ended, at the latest some time after `grace` seconds.
    pub async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let grace = grace.max(0);
        let limit = Duration::from_secs(grace as u64) + CALL_TIMEOUT;
        self.call::<_, Empty>(
            "runtime.v1.RuntimeService",
            "StopContainer",
            StopContainerRequest { container_id: id.into(), timeout: grace },
            Some(limit),
        )
        .await?;
        Ok(())
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        self.runtime::<_, Empty>("RemoveContainer", ContainerIdRequest { container_id: id.into() }).await?;
        Ok(())
    }

    /// All containers, or those of one pod.
    pub async fn list_containers(&self, pod_uid: Option<&str>) -> Result<Vec<Container>> {
        let filter = pod_uid.map(|uid| ContainerFilter {
            id: String::new(),
            pod_sandbox_id: String::new(),
            label_selector: by_uid(uid),
        });
        let response: ListContainersResponse =
            self.runtime("ListContainers", ListContainersRequest { filter }).await?;
        Ok(response.containers)
    }

    pub async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        let response: ContainerStatusResponse = self
            .runtime("ContainerStatus", ContainerStatusRequest { container_id: id.into(), verbose: false })
            .await?;
        response.status.ok_or_else(|| CriError::NotFound(format!("container {id} has no status")))
    }

    pub async fn update_resources(&self, id: &str, linux: LinuxContainerResources) -> Result<()> {
        let request = UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(linux),
            annotations: BTreeMap::new(),
        };
        self.runtime::<_, Empty>("UpdateContainerResources", request).await?;
        Ok(())
    }

    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        self.runtime::<_, Empty>("ReopenContainerLog", ContainerIdRequest { container_id: id.into() })
            .await?;
        Ok(())
    }

    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecSyncResponse> {
        // The runtime kills the command at its own limit; ours comes a little later, for a runtime that hangs.
        let seconds = timeout.map_or(0, |t| t.as_secs().max(1) as i64);
        let limit = timeout.map(|t| t + Duration::from_secs(5));
        self.call(
            "runtime.v1.RuntimeService",
            "ExecSync",
            ExecSyncRequest { container_id: id.into(), cmd, timeout: seconds },
            limit,
        )
        .await
    }

    pub async fn exec(&self, request: ExecRequest) -> Result<String> {
        Ok(self.runtime::<_, UrlResponse>("Exec", request).await?.url)
    }

    pub async fn attach(&self, request: AttachRequest) -> Result<String> {
        Ok(self.runtime::<_, UrlResponse>("Attach", request).await?.url)
    }

    pub async fn port_forward(&self, request: PortForwardRequest) -> Result<String> {
        Ok(self.runtime::<_, UrlResponse>("PortForward", request).await?.url)
    }

    pub async fn container_stats(&self) -> Result<Vec<ContainerStats>> {
        let response: ListContainerStatsResponse =
            self.runtime("ListContainerStats", ListContainerStatsRequest { filter: None }).await?;
        Ok(response.stats)
    }

    pub async fn list_images(&self) -> Result<Vec<Image>> {
        let response: ListImagesResponse =
            self.image("ListImages", ListImagesRequest { filter: None }).await?;
        Ok(response.images)
    }

    pub async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let response: ImageStatusResponse = self
            .image("ImageStatus", ImageStatusRequest { image: Some(image_spec(image)), verbose: false })
            .await?;
        Ok(response.image.filter(|i| !i.id.is_empty()))
    }

    /// What the snapshotter knows an image's files by.
    pub async fn image_chain(&self, image: &str) -> Result<String> {
        let response: ImageStatusResponse = self
            .image("ImageStatus", ImageStatusRequest { image: Some(image_spec(image)), verbose: true })
            .await?;
        let info = response.info.get("info").and_then(|i| serde_json::from_str::<serde_json::Value>(i).ok());
        info.and_then(|i| i["chainID"].as_str().map(str::to_owned)).ok_or_else(|| {
            CriError::Failed(format!("the runtime does not tell where image {image} is unpacked"))
        })
    }

    /// Makes a read-only view of a snapshot of containerd's, or finds the one made before.
    pub async fn view_snapshot(&self, key: &str, parent: &str) -> Result<Vec<SnapshotMount>> {
        let request = ViewSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: key.into(),
            parent: parent.into(),
            // Nobody else refers to it; it must not be collected.
            labels: BTreeMap::from([("containerd.io/gc.root".to_owned(), "isopod".to_owned())]),
        };
        let made: Result<SnapshotMounts> = self.call(SNAPSHOTS, "View", request, Some(CALL_TIMEOUT)).await;
        match made {
            Ok(made) => Ok(made.mounts),
            Err(_) => {
                let request = SnapshotRequest { snapshotter: "overlayfs".into(), key: key.into() };
                let found: SnapshotMounts =
                    self.call(SNAPSHOTS, "Mounts", request, Some(CALL_TIMEOUT)).await?;
                Ok(found.mounts)
            }
        }
    }

    pub async fn remove_snapshot(&self, key: &str) -> Result<()> {
        let request = SnapshotRequest { snapshotter: "overlayfs".into(), key: key.into() };
        self.call::<_, Empty>(SNAPSHOTS, "Remove", request, Some(CALL_TIMEOUT)).await?;
        Ok(())
    }

    /// Takes as long as it takes; returns the reference under which the image is known.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<AuthConfig>,
        sandbox_config: Option<PodSandboxConfig>,
    ) -> Result<String> {
        let response: PullImageResponse = self
            .call(
                "runtime.v1.ImageService",
                "PullImage",
                PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config },
                None,
            )
            .await?;
        Ok(response.image_ref)
    }

    pub async fn remove_image(&self, image: &str) -> Result<()> {
        self.image::<_, Empty>("RemoveImage", RemoveImageRequest { image: Some(image_spec(image)) }).await?;
        Ok(())
    }

    pub async fn image_fs_info(&self) -> Result<ImageFsInfoResponse> {
        self.image("ImageFsInfo", Empty {}).await
    }
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), ..Default::default() }
}

fn by_uid(uid: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(POD_UID_LABEL.to_owned(), uid.to_owned())])
}
