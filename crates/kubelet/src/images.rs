//! Images: present or pulled, with back-off per image.

use std::collections::HashMap;
use std::time::Instant;

use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use parking_lot::Mutex;

use crate::cri::Cri;
use crate::cri::api::{AuthConfig, Image, PodSandboxConfig};
use crate::events::go_duration;

const BACKOFF_FIRST: SignedDuration = SignedDuration::from_secs(10);
const BACKOFF_MAX: SignedDuration = SignedDuration::from_mins(5);

/// Why there is no image, as a container's waiting reason.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageError {
    pub reason: &'static str,
    pub message: String,
    pub retry_at: Timestamp,
}

struct Failed {
    delay: SignedDuration,
    until: Timestamp,
    message: String,
}

pub struct Images {
    cri: Cri,
    events: client::EventRecorder,
    failed: Mutex<HashMap<String, Failed>>,
    /// One pull after the other, where so configured.
    serial: tokio::sync::Semaphore,
    /// When an image was last asked for, which decides what is collected first.
    pub used: Mutex<HashMap<String, Timestamp>>,
}

/// Containers may wait for an own pull at most this many at a time.
const PARALLEL_PULLS: usize = 8;

impl Images {
    pub fn new(cri: Cri, events: client::EventRecorder, serialize: bool) -> Images {
        Images {
            cri,
            events,
            failed: Mutex::default(),
            serial: tokio::sync::Semaphore::new(if serialize { 1 } else { PARALLEL_PULLS }),
            used: Mutex::default(),
        }
    }

    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        reference: &ObjectReference,
        auths: Vec<AuthConfig>,
        sandbox: PodSandboxConfig,
    ) -> Result<Image, ImageError> {
        let wanted = container.image.as_deref().unwrap_or_default();
        let now = Timestamp::now();
        let error = |reason, message, retry_at| ImageError { reason, message, retry_at };
        let Some(name) = normalize(wanted) else {
            let message = format!(
                "Failed to apply default image tag \"{wanted}\": couldn't parse image name \"{wanted}\": invalid reference format"
            );
            self.events.warning(reference, "InspectFailed", message.clone());
            return Err(error("InvalidImageName", message, now + BACKOFF_FIRST));
        };
        let policy = container
            .image_pull_policy
            .as_deref()
            .unwrap_or_else(|| if name.ends_with(":latest") { "Always" } else { "IfNotPresent" });
        let present = match self.cri.image_status(&name).await {
            Ok(image) => image,
            Err(e) => {
                let message = format!("Failed to inspect image \"{name}\": {e}");
                self.events.warning(reference, "InspectFailed", message.clone());
                return Err(error("ImageInspectError", message, now + BACKOFF_FIRST));
            }
        };
        if policy != "Always" {
            if let Some(image) = present {
                let message = format!(
                    "Container image \"{wanted}\" already present on machine and can be accessed by the pod"
                );
                self.events.normal(reference, "Pulled", message);
                self.used.lock().insert(image.id.clone(), now);
                return Ok(image);
            }
            if policy == "Never" {
                let message =
                    format!("Container image \"{wanted}\" is not present with pull policy of Never");
                self.events.warning(reference, "ErrImageNeverPull", message.clone());
                return Err(error("ErrImageNeverPull", message, now + BACKOFF_FIRST));
            }
        }
        let key = format!("{}/{name}", crate::pod::spec::uid(pod));
        if let Some(failed) = self.failed.lock().get(&key).filter(|f| f.until > now) {
            let message = format!("Back-off pulling image \"{wanted}\"");
            self.events.normal(reference, "BackOff", message.clone());
            return Err(error("ImagePullBackOff", format!("{message}: {}", failed.message), failed.until));
        }
        self.events.normal(reference, "Pulling", format!("Pulling image \"{wanted}\""));
        let asked = Instant::now();
        let result = {
            let _turn = self.serial.acquire().await;
            let begun = Instant::now();
            let mut result = Err(crate::cri::CriError::Failed("no credentials to try".into()));
            let attempts = auths.into_iter().map(Some).chain(std::iter::once(None));
            for auth in attempts {
                result = self.cri.pull_image(&name, auth, Some(sandbox.clone())).await;
                if result.is_ok() {
                    break;
                }
            }
            result.map(|r| (r, begun.elapsed()))
        };
        let pulled = match result {
            Ok((pulled, took)) => match self.cri.image_status(&pulled).await.ok().flatten() {
                Some(image) => Ok((image, took)),
                None => Err(format!("image {pulled} is not there after it was pulled")),
            },
            Err(e) => Err(e.to_string()),
        };
        let span = |d: std::time::Duration| {
            let ms = SignedDuration::from_millis(d.as_millis() as i64);
            go_duration(ms)
        };
        match pulled {
            Ok((image, took)) => {
                self.failed.lock().remove(&key);
                self.events.normal(
                    reference,
                    "Pulled",
                    format!(
                        "Successfully pulled image \"{wanted}\" in {} ({} including waiting). Image size: {} bytes.",
                        span(took),
                        span(asked.elapsed()),
                        image.size
                    ),
                );
                self.used.lock().insert(image.id.clone(), Timestamp::now());
                Ok(image)
            }
            Err(message) => {
                let now = Timestamp::now();
                let full = format!("failed to pull image \"{wanted}\": {message}");
                self.events.warning(
                    reference,
                    "Failed",
                    format!("Failed to pull image \"{wanted}\": {message}"),
                );
                self.events.warning(reference, "Failed", "Error: ErrImagePull");
                let mut failed = self.failed.lock();
                let delay = failed.get(&key).map_or(BACKOFF_FIRST, |f| (f.delay * 2).min(BACKOFF_MAX));
                failed.insert(
                    key,
                    Failed { delay, until: now + delay, message: format!("ErrImagePull: {full}") },
                );
                // Asked again soon, so that the back-off shows.
                Err(error("ErrImagePull", full, now + SignedDuration::from_secs(2)))
            }
        }
    }

    /// Forgets what failed for a pod.
    pub fn forget(&self, uid: &str) {
        self.failed.lock().retain(|key, _| !key.starts_with(uid));
    }
}

/// The full name of an image: with its registry and tag. `None` if it is no image name.
pub fn normalize(image: &str) -> Option<String> {
    if image.is_empty() || image.len() > 512 {
        return None;
    }
    let (name, digest) = match image.split_once('@') {
        Some((n, d)) => (n, Some(d)),
        None => (image, None),
    };
    let (path, tag) = match name.rsplit_once(':') {
        Some((p, t)) if !t.contains('/') => (p, Some(t)),
        _ => (name, None),
    };
    let tag_ok = |t: &str| {
        !t.is_empty() && t.len() <= 128 && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    if tag.is_some_and(|t| !tag_ok(t)) || digest.is_some_and(|d| !d.contains(':')) {
        return None;
    }
    let (registry, rest) = match path.split_once('/') {
        Some((r, rest)) if r.contains(['.', ':']) || r == "localhost" => (r, rest.to_owned()),
        Some(_) => ("docker.io", path.to_owned()),
        None => ("docker.io", format!("library/{path}")),
    };
    let part_ok = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b))
            && p.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && p.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    if !rest.split('/').all(part_ok) {
        return None;
    }
    Some(match (tag, digest) {
        (_, Some(d)) => format!("{registry}/{rest}@{d}"),
        (Some(t), None) => format!("{registry}/{rest}:{t}"),
        (None, None) => format!("{registry}/{rest}:latest"),
    })
}

/// Credentials for `image` in a docker configuration (`.dockerconfigjson`, or `.dockercfg` with its bare map).
pub fn credentials(data: &crate::volumes::objects::Data, image: &str) -> Vec<AuthConfig> {
    let Some(name) = normalize(image) else { return vec![] };
    let parse = |key: &str| data.get(key).and_then(|d| serde_json::from_slice::<serde_json::Value>(d).ok());
    let map = parse(".dockerconfigjson").map(|v| v["auths"].clone()).or_else(|| parse(".dockercfg"));
    let Some(serde_json::Value::Object(map)) = map else { return vec![] };
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for (server, entry) in &map {
        let host = server.trim_start_matches("https://").trim_start_matches("http://");
        let host = host.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        if name != host && !name.starts_with(&format!("{host}/")) {
            continue;
        }
        let text = |k: &str| entry[k].as_str().unwrap_or_default().to_owned();
        let (mut username, mut password) = (text("username"), text("password"));
        let auth = text("auth");
        if username.is_empty()
            && let Ok(plain) = base64::engine::general_purpose::STANDARD.decode(&auth)
            && let Some((u, p)) = String::from_utf8_lossy(&plain).split_once(':')
        {
            (username, password) = (u.to_owned(), p.to_owned());
        }
        found.push((host.len(), AuthConfig { username, password, ..AuthConfig::default() }));
    }
    found.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    found.into_iter().map(|(_, a)| a).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (image, want) in [
            ("nginx", Some("docker.io/library/nginx:latest")),
            ("a/b:1", Some("docker.io/a/b:1")),
            ("localhost:5000/x", Some("localhost:5000/x:latest")),
            ("r.io/x@sha256:ab", Some("r.io/x@sha256:ab")),
            ("Bad Image", None),
            ("", None),
            ("x:", None),
            ("registry.k8s.io/e2e/A:1", None),
        ] {
            assert_eq!(normalize(image).as_deref(), want, "{image}");
        }
    }
}
