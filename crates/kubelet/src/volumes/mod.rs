//! A pod's volumes: directories made, filled, kept up to date, and removed.

pub mod atomic;
pub mod host_path;
pub mod image;
pub mod objects;
pub mod subpath;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, PersistentVolume, PersistentVolumeClaim, Pod, ProjectedVolumeSource,
    Volume,
};
use nix::mount::{MsFlags, mount, umount2};

use crate::kubelet::Kubelet;
use crate::pod::{env, spec};
use crate::pods::PodHandle;
use crate::quantity;
use atomic::{File, Payload};
use objects::{Data, Kind};

/// Where a volume is on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
}

/// Why a volume could not be set up.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub volume: String,
    pub message: String,
}

struct Token {
    text: String,
    refresh_at: Timestamp,
}

/// The volumes of one pod.
#[derive(Default)]
pub struct PodVolumes {
    mounted: HashMap<String, Mounted>,
    /// By volume and path.
    tokens: HashMap<(String, String), Token>,
}

const TMPFS: &str = "tmpfs";

pub fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

fn volume_dir(root: &Path, uid: &str, plugin: &str, name: &str) -> PathBuf {
    pod_dir(root, uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
}

impl PodVolumes {
    pub fn mounted(&self) -> &HashMap<String, Mounted> {
        &self.mounted
    }

    /// When a token has to be renewed.
    pub fn refresh_at(&self) -> Option<Timestamp> {
        self.tokens.values().map(|t| t.refresh_at).min()
    }

    /// Sets up what is missing and brings the rest up to date.
    pub async fn sync(
        &mut self,
        kubelet: &Arc<Kubelet>,
        handle: &Arc<PodHandle>,
        pod: &Pod,
        pod_ips: &[String],
    ) -> Result<(), Vec<Failure>> {
        let mut failures = Vec::new();
        for volume in spec::spec(pod).volumes.iter().flatten() {
            let mut setup = Setup { kubelet, handle, pod, pod_ips, tokens: &mut self.tokens };
            match setup.volume(volume).await {
                Ok(mounted) => {
                    self.mounted.insert(volume.name.clone(), mounted);
                }
                Err(message) => failures.push(Failure { volume: volume.name.clone(), message }),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }
}

/// Unmounts and removes everything of a pod, logs excepted.
pub fn tear_down(root: &Path, uid: &str) -> std::io::Result<()> {
    let dir = pod_dir(root, uid);
    if !dir.exists() {
        return Ok(());
    }
    let mut mounts: Vec<String> = fs::read_to_string("/proc/self/mountinfo")?
        .lines()
        .filter_map(|l| l.split(' ').nth(4).map(unescape))
        .filter(|p| Path::new(p).starts_with(&dir))
        .collect();
    mounts.sort_by_key(|m| std::cmp::Reverse(m.len()));
    for target in mounts {
        if let Err(error) = umount2(target.as_str(), nix::mount::MntFlags::MNT_DETACH) {
            // Whatever is mounted there must not be deleted along with the directory.
            return Err(std::io::Error::other(format!("unmounting {target}: {error}")));
        }
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// mountinfo writes blanks and the like as octal.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        match octal.and_then(|o| std::str::from_utf8(o).ok()).and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub fn is_mount_point(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|t| t.lines().any(|l| l.split(' ').nth(4).map(unescape).as_deref() == path.to_str()))
}

struct Setup<'a> {
    kubelet: &'a Arc<Kubelet>,
    handle: &'a Arc<PodHandle>,
    pod: &'a Pod,
    pod_ips: &'a [String],
    tokens: &'a mut HashMap<(String, String), Token>,
}

type Outcome = Result<Mounted, String>;

impl Setup<'_> {
    fn fs_group(&self) -> Option<u32> {
        let context = spec::spec(self.pod).security_context.as_ref()?;
        context.fs_group.and_then(|g| u32::try_from(g).ok())
    }

    fn dir(&self, plugin: &str, name: &str) -> PathBuf {
        volume_dir(&self.kubelet.config.root_dir, spec::uid(self.pod), plugin, name)
    }

    async fn volume(&mut self, volume: &Volume) -> Outcome {
        let name = &volume.name;
        let writable = |path: PathBuf| Ok(Mounted { path, read_only: false });
        if let Some(source) = &volume.empty_dir {
            let path = self.dir("empty-dir", name);
            let size = source.size_limit.as_ref().and_then(|q| quantity::value(&q.0)).filter(|s| *s > 0);
            empty_dir(&path, source.medium.as_deref() == Some("Memory"), size, self.fs_group())
                .map_err(|e| e.to_string())?;
            return writable(path);
        }
        if let Some(source) = &volume.host_path {
            let path = PathBuf::from(&source.path);
            host_path::check(&path, source.type_.as_deref().unwrap_or_default())?;
            return writable(path);
        }
        if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(0o644);
            let mut payload = Payload::new();
            let items = source.items.as_deref();
            self.object(Kind::ConfigMap, &source.name, items, mode, source.optional, &mut payload).await?;
            return self.write("configmap", name, payload);
        }
        if let Some(source) = &volume.secret {
            let mode = source.default_mode.unwrap_or(0o644);
            let mut payload = Payload::new();
            let secret = source.secret_name.as_deref().unwrap_or_default();
            let items = source.items.as_deref();
            self.object(Kind::Secret, secret, items, mode, source.optional, &mut payload).await?;
            return self.write("secret", name, payload);
        }
        if let Some(source) = &volume.downward_api {
            let mut payload = Payload::new();
            let mode = source.default_mode.unwrap_or(0o644);
            self.downward(source.items.as_deref().unwrap_or_default(), mode, &mut payload)?;
            return self.write("downward-api", name, payload);
        }
        if let Some(source) = &volume.projected {
            let payload = self.projected(name, source).await?;
            return self.write("projected", name, payload);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            let mut mounted = self.claim(&source.claim_name).await?;
            mounted.read_only |= source.read_only.unwrap_or(false);
            return Ok(mounted);
        }
        if volume.ephemeral.is_some() {
            return self.claim(&format!("{}-{name}", spec::name(self.pod))).await;
        }
        if let Some(source) = &volume.image {
            let path = self.dir("image", name);
            image::set_up(self.kubelet, self.pod, name, source, &path).await?;
            return Ok(Mounted { path, read_only: true });
        }
        Err("this kind of volume is not supported by this kubelet".into())
    }

    fn write(&self, plugin: &str, name: &str, payload: Payload) -> Outcome {
        let path = self.dir(plugin, name);
        let group = self.fs_group();
        let fresh = !path.exists();
        let secret = plugin == "secret" || plugin == "projected";
        fs::create_dir_all(&path).map_err(|e| e.to_string())?;
        if fresh && secret {
            // Secrets stay off the disk.
            let size: Option<&str> = None;
            if let Err(error) =
                mount(Some(TMPFS), &path, Some(TMPFS), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, size)
            {
                tracing::warn!(path = %path.display(), %error, "no tmpfs for a secret");
            }
        }
        if fresh {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(|e| e.to_string())?;
            if let Some(group) = group {
                std::os::unix::fs::chown(&path, None, Some(group)).map_err(|e| e.to_string())?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o2777)).map_err(|e| e.to_string())?;
            }
        }
        atomic::write(&path, &payload, group).map_err(|e| e.to_string())?;
        Ok(Mounted { path, read_only: true })
    }

    async fn object(
        &self,
        kind: Kind,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: i32,
        optional: Option<bool>,
        payload: &mut Payload,
    ) -> Result<(), String> {
        let namespace = spec::namespace(self.pod);
        let optional = optional.unwrap_or(false);
        let data = match self.kubelet.objects.watch(self.handle, kind, namespace, name).await? {
            Some(data) => data,
            None if optional => Data::new(),
            None => return Err(format!("{} \"{name}\" not found", kind.name())),
        };
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            for (key, data) in data {
                payload.insert(key, File { data, mode: mode as u32, owner: None });
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(data) => {
                    let mode = item.mode.unwrap_or(mode) as u32;
                    payload.insert(item.path.clone(), File { data: data.clone(), mode, owner: None });
                }
                None if optional => {}
                None => return Err(format!("references non-existent {} key: {}", kind.name(), item.key)),
            }
        }
        Ok(())
    }

    fn downward(
        &self,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
        payload: &mut Payload,
    ) -> Result<(), String> {
        let allocatable = self.kubelet.allocatable();
        let facts =
            env::Facts { host_ips: &self.kubelet.host_ips, pod_ips: self.pod_ips, allocatable: &allocatable };
        for item in items {
            let text = if let Some(field) = &item.field_ref {
                env::field(self.pod, &field.field_path, &facts)
                    .ok_or_else(|| format!("unsupported field path {:?}", field.field_path))?
            } else if let Some(r) = &item.resource_field_ref {
                let name = r.container_name.as_deref().unwrap_or_default();
                let (_, container) =
                    spec::find(self.pod, name).ok_or_else(|| format!("container {name} not found"))?;
                let divisor = r.divisor.as_ref().map(|d| d.0.as_str());
                env::resource(&container, &r.resource, divisor, &facts)
                    .ok_or_else(|| format!("unsupported container resource : {}", r.resource))?
            } else {
                continue;
            };
            let mode = item.mode.unwrap_or(mode) as u32;
            payload.insert(item.path.clone(), File { data: text.into_bytes(), mode, owner: None });
        }
        Ok(())
    }

    async fn projected(&mut self, volume: &str, source: &ProjectedVolumeSource) -> Result<Payload, String> {
        let mut payload = Payload::new();
        let mode = source.default_mode.unwrap_or(0o644);
        for part in source.sources.iter().flatten() {
            if let Some(s) = &part.config_map {
                self.object(Kind::ConfigMap, &s.name, s.items.as_deref(), mode, s.optional, &mut payload)
                    .await?;
            } else if let Some(s) = &part.secret {
                self.object(Kind::Secret, &s.name, s.items.as_deref(), mode, s.optional, &mut payload)
                    .await?;
            } else if let Some(s) = &part.downward_api {
                self.downward(s.items.as_deref().unwrap_or_default(), mode, &mut payload)?;
            } else if let Some(s) = &part.service_account_token {
                let text = self
                    .token(volume, &s.path, s.audience.as_deref().unwrap_or_default(), s.expiration_seconds)
                    .await?;
                let owner = common_user(self.pod);
                let mode = if owner.is_some() || self.fs_group().is_some() { 0o600 } else { mode as u32 };
                payload.insert(s.path.clone(), File { data: text.into_bytes(), mode, owner });
            } else if part.cluster_trust_bundle.is_some() {
                return Err("projected clusterTrustBundle is not supported by this kubelet".into());
            } else if part.pod_certificate.is_some() {
                return Err("projected podCertificate is not supported by this kubelet".into());
            }
        }
        Ok(payload)
    }

    async fn token(
        &mut self,
        volume: &str,
        path: &str,
        audience: &str,
        expiration: Option<i64>,
    ) -> Result<String, String> {
        let key = (volume.to_owned(), path.to_owned());
        let now = Timestamp::now();
        if let Some(token) = self.tokens.get(&key).filter(|t| t.refresh_at > now) {
            return Ok(token.text.clone());
        }
        let account = spec::spec(self.pod).service_account_name.as_deref().unwrap_or("default");
        let namespace = spec::namespace(self.pod);
        let seconds = expiration.unwrap_or(3600);
        let audiences: Vec<&str> = if audience.is_empty() { vec![] } else { vec![audience] };
        let body = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod", "name": spec::name(self.pod), "uid": spec::uid(self.pod),
                },
            },
        });
        let uri = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = http::Request::post(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|e| e.to_string())?;
        let answer: serde_json::Value = self
            .kubelet
            .client
            .kube()
            .request(request)
            .await
            .map_err(|e| format!("failed to fetch token: {}", crate::kubelet::api_message(&e)))?;
        let text = answer["status"]["token"].as_str().ok_or("the token request has no token")?.to_owned();
        let expires: Timestamp = answer["status"]["expirationTimestamp"]
            .as_str()
            .and_then(|t| t.parse().ok())
            .unwrap_or(now + SignedDuration::from_secs(seconds));
        // Renewed when a fifth of the time is left, and once a day in any case.
        let life = expires.duration_since(now);
        let refresh_at =
            now + (life * 4 / 5).min(SignedDuration::from_hours(24)).max(SignedDuration::from_secs(10));
        self.tokens.insert(key, Token { text: text.clone(), refresh_at });
        Ok(text)
    }

    async fn claim(&self, name: &str) -> Outcome {
        let namespace = spec::namespace(self.pod);
        let told = |e: kube::Error| crate::kubelet::api_message(&e);
        let claim: PersistentVolumeClaim =
            self.kubelet.client.namespaced(namespace).get(name).await.map_err(told)?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| !v.is_empty());
        let Some(volume) = volume.filter(|_| bound) else {
            return Err(format!("PVC {namespace}/{name} is not bound"));
        };
        let volume: PersistentVolume = self.kubelet.client.all().get(&volume).await.map_err(told)?;
        let spec = volume.spec.unwrap_or_default();
        if spec.volume_mode.as_deref() == Some("Block") {
            return Err("block volumes are not supported by this kubelet".into());
        }
        if let Some(source) = &spec.host_path {
            let path = PathBuf::from(&source.path);
            let kind = source.type_.as_deref().filter(|t| !t.is_empty()).unwrap_or("DirectoryOrCreate");
            host_path::check(&path, kind)?;
            return Ok(Mounted { path, read_only: false });
        }
        if let Some(source) = &spec.local {
            let path = PathBuf::from(&source.path);
            host_path::check(&path, "Directory")?;
            if let Some(group) = self.fs_group() {
                own_by_group(&path, group).map_err(|e| e.to_string())?;
            }
            return Ok(Mounted { path, read_only: false });
        }
        Err("this kind of persistent volume is not supported by this kubelet".into())
    }
}

/// The user every container runs as, if it is one and the same.
fn common_user(pod: &Pod) -> Option<u32> {
    let of_pod = spec::spec(pod).security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = spec::init_containers(pod)
        .iter()
        .chain(&spec::spec(pod).containers)
        .map(|c| c.security_context.as_ref().and_then(|c| c.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn empty_dir(path: &Path, memory: bool, size: Option<i64>, group: Option<u32>) -> std::io::Result<()> {
    let fresh = !path.exists();
    fs::create_dir_all(path)?;
    if memory && !is_mount_point(path) {
        let options = size.map(|s| format!("size={s}"));
        mount(Some(TMPFS), path, Some(TMPFS), MsFlags::empty(), options.as_deref())
            .map_err(std::io::Error::from)?;
    }
    if fresh {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o2777))?;
        }
    }
    Ok(())
}

/// Gives a tree to a group, which may then read and write it.
fn own_by_group(path: &Path, group: u32) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.file_type().is_symlink() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, None, Some(group))?;
    let mode = meta.permissions().mode() & 0o7777;
    let extra = if meta.is_dir() { 0o2070 } else { 0o060 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode | extra))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)?.flatten() {
            own_by_group(&entry.path(), group)?;
        }
    }
    Ok(())
}
