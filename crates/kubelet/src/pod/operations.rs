//! The steps of a plan carried out: everything here talks to the runtime and takes its time, so each runs as a task
//! of its pod's worker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio::time::Instant;

use super::observed::{Instance, Observed, Observer, message_host_path};
use super::spec::{self, Kind};
use super::starts::Starts;
use super::{container, env, lifecycle, network, sandbox};
use crate::cri::api::{Mount, PodSandboxConfig, propagation};
use crate::events::{container_reference, pod_reference};
use crate::kubelet::Kubelet;
use crate::pods::PodHandle;
use crate::volumes::objects::Kind as ObjectKind;
use crate::volumes::{self, PodVolumes, subpath};

/// Why a container did not start, as its waiting reason.
#[derive(Clone, Debug, PartialEq)]
pub struct StartError {
    pub reason: &'static str,
    pub message: String,
    pub retry_at: Timestamp,
}

/// What a failed step waits before it is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(10);
/// However long the hook before it took, a container has this long to end by itself.
const GRACE_AFTER_HOOK_SECONDS: i64 = 2;

pub type Volumes = Arc<tokio::sync::Mutex<PodVolumes>>;

/// Everything a step needs to know of its pod.
#[derive(Clone)]
pub struct Scene {
    pub kubelet: Arc<Kubelet>,
    pub handle: Arc<PodHandle>,
    pub pod: Arc<Pod>,
    pub volumes: Volumes,
    pub starts: Starts,
}

impl Scene {
    fn warn(&self, reason: &str, message: impl Into<String>) {
        self.kubelet.events.warning(&pod_reference(&self.pod), reason, message);
    }

    fn pod_ips(&self, seen: &Observed) -> Vec<String> {
        if spec::host_network(&self.pod) { self.kubelet.host_ips.clone() } else { seen.ips().to_vec() }
    }

    pub async fn sync_volumes(&self, seen: &Observed) -> Result<(), String> {
        let ips = self.pod_ips(seen);
        let result = self.volumes.lock().await.sync(&self.kubelet, &self.handle, &self.pod, &ips).await;
        result.map_err(|failures| {
            let mut texts = Vec::new();
            for f in failures {
                let text = format!("MountVolume.SetUp failed for volume \"{}\" : {}", f.volume, f.message);
                self.warn("FailedMount", text.clone());
                texts.push(text);
            }
            texts.join("; ")
        })
    }

    async fn runtime_handler(&self) -> Result<String, String> {
        let Some(class) = spec::spec(&self.pod).runtime_class_name.as_deref().filter(|c| !c.is_empty())
        else {
            return Ok(String::new());
        };
        let class: k8s_openapi::api::node::v1::RuntimeClass = self
            .kubelet
            .client
            .all()
            .get(class)
            .await
            .map_err(|e| format!("failed to get RuntimeClass: {}", crate::kubelet::api_message(&e)))?;
        Ok(class.handler)
    }

    /// Volumes, directories, control group, and then the sandbox itself.
    pub async fn create_sandbox(&self, attempt: u32, seen: &Observed) -> Result<(), String> {
        if attempt > 0 {
            for old in &seen.sandboxes {
                // Its network has to be given back before the new one asks for one.
                if let Err(error) = self.kubelet.cri.stop_sandbox(&old.id).await {
                    tracing::debug!(sandbox = %old.id, %error, "stopping an old sandbox");
                }
            }
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.kubelet.events.normal(&pod_reference(&self.pod), "SandboxChanged", text);
        }
        check_sysctls(&self.pod)?;
        let dir = sandbox::log_dir(&self.kubelet.config, &self.pod);
        tokio::fs::create_dir_all(&dir).await.map_err(|e| format!("{}: {e}", dir.display()))?;
        self.kubelet.cgroups.make_pod(&self.pod).map_err(|e| {
            let text = format!("unable to ensure pod container exists: {e}");
            self.warn("FailedCreatePodContainer", text.clone());
            text
        })?;
        self.sync_volumes(seen).await?;
        let config = sandbox::config(&self.pod, attempt, &self.kubelet.config, &self.kubelet.cgroups);
        let fail = |text: String| {
            let text = format!("Failed to create pod sandbox: {text}");
            self.warn("FailedCreatePodSandBox", text.clone());
            text
        };
        let handler = self.runtime_handler().await.map_err(fail)?;
        self.kubelet.cri.run_sandbox(config, handler).await.map_err(|e| fail(e.to_string()))?;
        Ok(())
    }

    /// Ends what runs in sandboxes that are not usable.
    pub async fn reset(&self, seen: &Observed) {
        for instance in seen.running() {
            if let Err(error) = self.kubelet.cri.stop_container(&instance.id, 0).await {
                tracing::debug!(container = %instance.id, %error, "stopping");
            }
        }
        for sandbox in &seen.sandboxes {
            if let Err(error) = self.kubelet.cri.stop_sandbox(&sandbox.id).await {
                tracing::debug!(sandbox = %sandbox.id, %error, "stopping");
            }
        }
    }

    async fn pull_credentials(&self, image: &str) -> Vec<crate::cri::api::AuthConfig> {
        let mut out = Vec::new();
        for reference in spec::spec(&self.pod).image_pull_secrets.iter().flatten() {
            let secrets = self.kubelet.client.namespaced::<Secret>(spec::namespace(&self.pod));
            match secrets.get_opt(&reference.name).await {
                Ok(Some(secret)) => {
                    let data = secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect();
                    out.extend(crate::images::credentials(&data, image));
                }
                Ok(None) => {
                    let text = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.warn("FailedToRetrieveImagePullSecret", text);
                }
                Err(error) => tracing::debug!(%error, secret = reference.name, "image pull secret"),
            }
        }
        out
    }

    async fn environment(
        &self,
        container: &Container,
        pod_ips: &[String],
    ) -> Result<Vec<(String, String)>, String> {
        let namespace = spec::namespace(&self.pod);
        let (maps, secrets) = env::needed(container);
        let mut sources = env::Sources::default();
        for (kind, names) in [(ObjectKind::ConfigMap, maps), (ObjectKind::Secret, secrets)] {
            for (name, optional) in names {
                let data = match self.kubelet.objects.get(kind, namespace, &name).await? {
                    Some(data) => data,
                    None if optional => continue,
                    None => return Err(format!("{} \"{name}\" not found", kind.name())),
                };
                match kind {
                    ObjectKind::ConfigMap => sources.config_maps.insert(name, data),
                    ObjectKind::Secret => sources.secrets.insert(name, data),
                };
            }
        }
        let services = self
            .kubelet
            .service_variables(namespace, spec::spec(&self.pod).enable_service_links.unwrap_or(true));
        let allocatable = self.kubelet.allocatable();
        let facts = env::Facts { host_ips: &self.kubelet.host_ips, pod_ips, allocatable: &allocatable };
        env::variables(&self.pod, container, &services, &sources, &facts)
    }

    async fn mounts(
        &self,
        container: &Container,
        restarts: u32,
        pod_ips: &[String],
        env: &[(String, String)],
    ) -> Result<Vec<Mount>, String> {
        let config = &self.kubelet.config;
        let uid = spec::uid(&self.pod);
        let volumes = self.volumes.lock().await.mounted().clone();
        let mut mounts = Vec::new();
        for (n, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = volumes.get(&mount.name).ok_or_else(|| {
                format!("volume {:?} of container {} is not mounted", mount.name, container.name)
            })?;
            let mut host_path = volume.path.clone();
            let part = match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
                (Some(part), _) if !part.is_empty() => part.to_owned(),
                (_, Some(text)) if !text.is_empty() => {
                    let mut missing = false;
                    let known = |name: &str| {
                        env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()).filter(|v| !v.is_empty())
                    };
                    let missing_in = std::cell::Cell::new(false);
                    let part = env::expand(text, |name| {
                        let value = known(name);
                        missing_in.set(missing_in.get() || value.is_none());
                        value
                    });
                    missing |= missing_in.get();
                    if missing {
                        return Err(format!("missing value for subPathExpr {text:?}"));
                    }
                    if part.starts_with('/') || part.split('/').any(|p| p == "..") {
                        return Err(format!(
                            "subPathExpr {text:?}: {part:?} must be a path inside the volume"
                        ));
                    }
                    part
                }
                _ => String::new(),
            };
            if !part.is_empty() {
                let place = volumes::pod_dir(&config.root_dir, uid)
                    .join("volume-subpaths")
                    .join(&mount.name)
                    .join(&container.name)
                    .join(n.to_string());
                host_path = subpath::bind(&volume.path, &part, &place)?;
            }
            mounts.push(Mount {
                container_path: if mount.mount_path.starts_with('/') {
                    mount.mount_path.clone()
                } else {
                    format!("/{}", mount.mount_path)
                },
                host_path: host_path.to_string_lossy().into_owned(),
                readonly: mount.read_only.unwrap_or(false) || volume.read_only,
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => propagation::HOST_TO_CONTAINER,
                    Some("Bidirectional") => propagation::BIDIRECTIONAL,
                    _ => propagation::PRIVATE,
                },
                ..Mount::default()
            });
        }
        let mounted_at = |mounts: &[Mount], path: &str| {
            mounts.iter().any(|m| m.container_path.trim_end_matches('/') == path)
        };
        if !mounted_at(&mounts, "/etc/hosts") {
            let path = self.hosts_file(pod_ips).await?;
            mounts.push(Mount {
                container_path: "/etc/hosts".into(),
                host_path: path.to_string_lossy().into_owned(),
                ..Mount::default()
            });
        }
        if let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) {
            let log =
                sandbox::log_dir(config, &self.pod).join(container::log_name(&container.name, restarts));
            let file = message_host_path(&log.to_string_lossy());
            if let Some(parent) = PathBuf::from(&file).parent() {
                tokio::fs::create_dir_all(parent).await.map_err(|e| e.to_string())?;
            }
            tokio::fs::write(&file, b"").await.map_err(|e| format!("{file}: {e}"))?;
            // Whoever the container runs as has to be able to write it.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
            tokio::fs::set_permissions(&file, mode).await.map_err(|e| e.to_string())?;
            mounts.push(Mount { container_path: path.to_owned(), host_path: file, ..Mount::default() });
        }
        Ok(mounts)
    }

    async fn hosts_file(&self, pod_ips: &[String]) -> Result<PathBuf, String> {
        let dir = volumes::pod_dir(&self.kubelet.config.root_dir, spec::uid(&self.pod));
        tokio::fs::create_dir_all(&dir).await.map_err(|e| e.to_string())?;
        let path = dir.join("etc-hosts");
        let (name, domain) = network::hostname(&self.pod, &self.kubelet.config.cluster_domain);
        let host = spec::host_network(&self.pod);
        let of_host =
            if host { std::fs::read_to_string("/etc/hosts").unwrap_or_default() } else { String::new() };
        let aliases = spec::spec(&self.pod).host_aliases.as_deref().unwrap_or_default();
        let text = network::hosts_file(host, &of_host, pod_ips, &name, &domain, aliases);
        tokio::fs::write(&path, text).await.map_err(|e| e.to_string())?;
        Ok(path)
    }

    /// From image to running container, hook included.
    pub async fn start(
        &self,
        kind: Kind,
        name: &str,
        restarts: u32,
        seen: &Observed,
    ) -> Result<(), StartError> {
        let kubelet = &self.kubelet;
        let now = Timestamp::now();
        let error = |reason, message: String| StartError { reason, message, retry_at: now + RETRY };
        let Some((_, spec_container)) = spec::find(&self.pod, name) else {
            return Err(error("CreateContainerConfigError", format!("container {name} is not in the pod")));
        };
        let container = &spec_container;
        let Some(current) = seen.current() else {
            return Err(error("CreateContainerConfigError", "the pod has no sandbox".into()));
        };
        let reference = container_reference(&self.pod, kind, name);
        let sandbox_config: PodSandboxConfig =
            sandbox::config(&self.pod, current.attempt, &kubelet.config, &kubelet.cgroups);
        let auths = self.pull_credentials(container.image.as_deref().unwrap_or_default()).await;
        let image = kubelet
            .images
            .ensure(&self.pod, container, &reference, auths, sandbox_config.clone())
            .await
            .map_err(|e| StartError { reason: e.reason, message: e.message, retry_at: e.retry_at })?;
        let pod_ips = self.pod_ips(seen);
        let config_error = |text: String| {
            kubelet.events.warning(&reference, "Failed", format!("Error: {text}"));
            error("CreateContainerConfigError", text)
        };
        let image_user = match (&image.uid, image.username.as_str()) {
            (Some(uid), _) => (Some(uid.value), String::new()),
            (None, "") => (Some(0), String::new()),
            (None, name) => (None, name.to_owned()),
        };
        container::check_non_root(&self.pod, container, &image_user).map_err(config_error)?;
        let env = self.environment(container, &pod_ips).await.map_err(config_error)?;
        let mounts = self.mounts(container, restarts, &pod_ips, &env).await.map_err(config_error)?;
        let log = sandbox::log_dir(&kubelet.config, &self.pod).join(name);
        tokio::fs::create_dir_all(&log).await.map_err(|e| config_error(e.to_string()))?;
        let target_id = spec::ephemeral_containers(&self.pod)
            .iter()
            .find(|e| e.name == name)
            .and_then(|e| e.target_container_name.as_deref())
            .and_then(|target| seen.newest(target))
            .map(|i| i.id.clone());
        let config = container::config(
            container::Parts {
                pod: &self.pod,
                container,
                restarts,
                image: image.id.clone(),
                image_user,
                env,
                mounts,
                target_id,
            },
            &kubelet.config,
            &kubelet.cgroups,
        );
        let id = kubelet.cri.create_container(&current.id, config, sandbox_config).await.map_err(|e| {
            kubelet.events.warning(&reference, "Failed", format!("Error: {e}"));
            error("CreateContainerError", e.to_string())
        })?;
        kubelet.events.normal(&reference, "Created", "Container created");
        let (own, started) = (kubelet.clone(), id.clone());
        let start = async move { own.cri.start_container(&started).await.map_err(|e| e.to_string()) };
        if let Err(text) = self.starts.run(start).await.unwrap_or_else(|| Err("the call failed".into())) {
            kubelet.events.warning(&reference, "Failed", format!("Error: {text}"));
            return Err(error("RunContainerError", text));
        }
        kubelet.events.normal(&reference, "Started", "Container started");
        if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
            self.handle.stir();
            let ip = pod_ips.first().map(String::as_str);
            if let Err(text) = lifecycle::run(&kubelet.cri, &id, container, ip, hook).await {
                tracing::info!(
                    pod = self.handle.name,
                    container = name,
                    error = text,
                    "postStart hook failed"
                );
                kubelet.events.warning(&reference, "FailedPostStartHook", "PostStartHook failed");
                let instance = Instance { id, name: name.to_owned(), ..Instance::default() };
                let text_kill = "FailedPostStartHook".to_owned();
                self.kill(&instance, &text_kill, None, None).await;
                return Err(error("PostStartHookError", text));
            }
        }
        Ok(())
    }

    /// Gives a running container the resources of its spec, and the pod as a whole what it needs for that.
    pub async fn resize(&self, id: &str, container: &Container) -> Result<(), String> {
        // The pod's own group last when it shrinks and first when it grows; doing both serves either.
        let grown = self.kubelet.cgroups.make_pod(&self.pod);
        let resources = self.kubelet.cgroups.container_resources(&self.pod, container);
        self.kubelet.cri.update_resources(id, resources).await.map_err(|e| e.to_string())?;
        match grown {
            Ok(()) => Ok(()),
            Err(_) => self.kubelet.cgroups.make_pod(&self.pod).map_err(|e| e.to_string()),
        }
    }

    /// Stops a container: hook, signal, and in the end force.
    pub async fn kill(
        &self,
        instance: &Instance,
        message: &str,
        grace: Option<i64>,
        deadline: Option<Instant>,
    ) {
        let kubelet = &self.kubelet;
        let found = spec::find(&self.pod, &instance.name);
        let kind = found.as_ref().map_or(Kind::Main, |(k, _)| *k);
        let reference = container_reference(&self.pod, kind, &instance.name);
        let mut left = grace.unwrap_or_else(|| spec::grace_seconds(&self.pod)).max(0);
        if let Some(deadline) = deadline {
            left = left.min(deadline.saturating_duration_since(Instant::now()).as_secs_f64().ceil() as i64);
        }
        let text = if message.is_empty() {
            format!("Stopping container {}", instance.name)
        } else {
            message.to_owned()
        };
        kubelet.events.normal(&reference, "Killing", text);
        if let Some((_, container)) = &found
            && let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())
            && left > 0
        {
            let begun = Instant::now();
            let seen = self.handle.observed();
            let ips = self.pod_ips(&seen);
            let ip = ips.first().map(String::as_str);
            let limit = Duration::from_secs(left as u64);
            let hook = lifecycle::run(&kubelet.cri, &instance.id, container, ip, hook);
            match tokio::time::timeout(limit, hook).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::info!(
                        pod = self.handle.name,
                        container = instance.name,
                        error,
                        "preStop hook failed"
                    );
                    kubelet.events.warning(&reference, "FailedPreStopHook", "PreStopHook failed");
                }
                Err(_) => {
                    tracing::info!(
                        pod = self.handle.name,
                        container = instance.name,
                        "preStop hook took the whole grace period"
                    );
                }
            }
            left -= begun.elapsed().as_secs() as i64;
            left = left.max(GRACE_AFTER_HOOK_SECONDS);
        }
        if let Err(error) = kubelet.cri.stop_container(&instance.id, left).await
            && !error.is_not_found()
        {
            tracing::warn!(pod = self.handle.name, container = instance.id, %error, "stopping a container");
        }
        self.handle.stir();
    }

    /// Ends the whole pod: the main containers together, then the sidecars from the last to the first, then the
    /// sandboxes.
    pub async fn terminate(&self, seen: &Observed, grace: i64) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(grace.max(0) as u64);
        let running: Vec<Arc<Instance>> = seen.instances.iter().filter(|i| !i.exited()).cloned().collect();
        let sidecars: Vec<&str> = spec::init_containers(&self.pod)
            .iter()
            .filter(|c| spec::is_sidecar(c))
            .map(|c| c.name.as_str())
            .collect();
        let mains = running.iter().filter(|i| !sidecars.contains(&i.name.as_str()));
        futures::future::join_all(mains.map(|i| self.kill(i, "", Some(grace), Some(deadline)))).await;
        for name in sidecars.iter().rev() {
            for instance in running.iter().filter(|i| i.name == *name) {
                self.kill(instance, "", Some(grace), Some(deadline)).await;
            }
        }
        for sandbox in &seen.sandboxes {
            match self.kubelet.cri.stop_sandbox(&sandbox.id).await {
                Err(error) if !error.is_not_found() => {
                    let text = format!("error killing pod: {error}");
                    self.warn("FailedKillPod", text.clone());
                    return Err(text);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes everything of a pod that the runtime and the disk still hold.
    pub async fn remove(&self) -> Result<(), String> {
        let seen = Observer::default()
            .observe(&self.kubelet.cri, &self.handle.uid)
            .await
            .map_err(|e| e.to_string())?;
        for instance in &seen.instances {
            self.kubelet.cri.remove_container(&instance.id).await.or_else(ignore_missing)?;
        }
        for sandbox in &seen.sandboxes {
            self.kubelet.cri.stop_sandbox(&sandbox.id).await.or_else(ignore_missing)?;
            self.kubelet.cri.remove_sandbox(&sandbox.id).await.or_else(ignore_missing)?;
        }
        let dir = sandbox::log_dir(&self.kubelet.config, &self.pod);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// Unmounts and removes the volumes and the control group.
    pub async fn clean(&self) -> Result<(), String> {
        let _volumes = self.volumes.lock().await;
        let root = self.kubelet.config.root_dir.clone();
        let uid = self.handle.uid.clone();
        let done = tokio::task::spawn_blocking(move || volumes::tear_down(&root, &uid)).await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        }
        for volume in spec::spec(&self.pod).volumes.iter().flatten().filter(|v| v.image.is_some()) {
            volumes::image::release(&self.kubelet, &self.handle.uid, &volume.name).await;
        }
        self.kubelet.objects.release(&self.handle.uid);
        self.kubelet.cgroups.remove_pod(&self.pod);
        Ok(())
    }
}

fn ignore_missing(error: crate::cri::CriError) -> Result<(), String> {
    if error.is_not_found() { Ok(()) } else { Err(error.to_string()) }
}

/// Kernel parameters that are a pod's own business; any other would be everybody's.
const SAFE_SYSCTLS: [&str; 9] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
];

/// The first forbidden kernel parameter a pod asks for.
pub fn forbidden_sysctl(pod: &Pod) -> Option<String> {
    let context = spec::spec(pod).security_context.as_ref();
    let more = ["net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"];
    context
        .and_then(|c| c.sysctls.as_ref())
        .into_iter()
        .flatten()
        .map(|s| s.name.replace('/', "."))
        .find(|name| !SAFE_SYSCTLS.contains(&name.as_str()) && !more.contains(&name.as_str()))
}

fn check_sysctls(pod: &Pod) -> Result<(), String> {
    match forbidden_sysctl(pod) {
        Some(name) => Err(format!("forbidden sysctl: \"{name}\" not allowlisted")),
        None => Ok(()),
    }
}
