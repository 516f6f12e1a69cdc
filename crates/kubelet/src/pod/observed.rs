//! What the runtime holds of one pod.

use std::collections::HashMap;
use std::sync::Arc;

use crate::cri::api::{self, container_state};
use crate::cri::{self, Cri};

/// One container of the runtime: a run of a container of the spec.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instance {
    pub id: String,
    pub name: String,
    pub sandbox: String,
    pub restarts: u32,
    /// One of `container_state`.
    pub state: i32,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub image: String,
    pub image_id: String,
    pub reason: String,
    pub message: String,
    pub hash: String,
    pub log_path: String,
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// The stop signal's number in CRI; 0 where the runtime tells none.
    pub stop_signal: i32,
    pub message_path: String,
    pub message_policy: String,
}

impl Instance {
    pub fn running(&self) -> bool {
        self.state == container_state::RUNNING
    }

    pub fn exited(&self) -> bool {
        self.state == container_state::EXITED
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub ready: bool,
    pub attempt: u32,
    pub created_at: i64,
    pub ips: Vec<String>,
}

/// Everything of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<Sandbox>,
    pub instances: Vec<Arc<Instance>>,
}

impl Observed {
    pub fn newest(&self, name: &str) -> Option<&Arc<Instance>> {
        self.instances.iter().find(|i| i.name == name)
    }

    /// The run before the newest.
    pub fn previous(&self, name: &str) -> Option<&Arc<Instance>> {
        self.instances.iter().filter(|i| i.name == name).nth(1)
    }

    pub fn by_id(&self, id: &str) -> Option<&Arc<Instance>> {
        self.instances.iter().find(|i| i.id == id)
    }

    /// The sandbox in which containers can be started.
    pub fn current(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    pub fn running(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.iter().filter(|i| i.running())
    }

    pub fn ips(&self) -> &[String] {
        self.current().map_or(&[], |s| &s.ips)
    }
}

/// Asks the runtime, and remembers what cannot change any more.
#[derive(Default)]
pub struct Observer {
    ended: HashMap<String, Arc<Instance>>,
    addresses: HashMap<String, Vec<String>>,
}

impl Observer {
    pub async fn observe(&mut self, cri: &Cri, uid: &str) -> cri::Result<Observed> {
        let (sandboxes, containers) =
            tokio::try_join!(cri.list_sandboxes(Some(uid)), cri.list_containers(Some(uid)))?;
        let mut observed = Observed::default();
        for sandbox in sandboxes {
            let ready = sandbox.state == api::SANDBOX_READY;
            let known = self.addresses.get(&sandbox.id).filter(|ips| !ips.is_empty()).cloned();
            let ips = match known {
                Some(ips) => ips,
                None if ready => match cri.sandbox_status(&sandbox.id).await {
                    Ok(status) => {
                        let ips = status.network.map(addresses).unwrap_or_default();
                        self.addresses.insert(sandbox.id.clone(), ips.clone());
                        ips
                    }
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                },
                None => vec![],
            };
            observed.sandboxes.push(Sandbox {
                ready,
                attempt: sandbox.metadata.as_ref().map_or(0, |m| m.attempt),
                created_at: sandbox.created_at,
                ips,
                id: sandbox.id,
            });
        }
        observed.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
        for container in containers {
            if let Some(ended) = self.ended.get(&container.id) {
                observed.instances.push(ended.clone());
                continue;
            }
            let status = match cri.container_status(&container.id).await {
                Ok(status) => status,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let mut instance = instance(container, status);
            if instance.exited() {
                read_message(&mut instance).await;
                let instance = Arc::new(instance);
                self.ended.insert(instance.id.clone(), instance.clone());
                observed.instances.push(instance);
            } else {
                observed.instances.push(Arc::new(instance));
            }
        }
        observed.instances.sort_by_key(|i| std::cmp::Reverse(i.created_at));
        self.ended.retain(|id, _| observed.instances.iter().any(|i| i.id == *id));
        self.addresses.retain(|id, _| observed.sandboxes.iter().any(|s| s.id == *id));
        Ok(observed)
    }
}

fn addresses(network: api::PodSandboxNetworkStatus) -> Vec<String> {
    let mut ips = Vec::new();
    if !network.ip.is_empty() {
        ips.push(network.ip);
    }
    ips.extend(network.additional_ips.into_iter().map(|i| i.ip).filter(|i| !i.is_empty()));
    ips
}

fn instance(container: api::Container, status: api::ContainerStatus) -> Instance {
    let annotation = |key: &str| status.annotations.get(key).cloned().unwrap_or_default();
    let name = status
        .labels
        .get(cri::CONTAINER_NAME_LABEL)
        .cloned()
        .or_else(|| status.metadata.as_ref().map(|m| m.name.clone()))
        .unwrap_or_default();
    let image_spec = status.image.clone().unwrap_or_default();
    Instance {
        restarts: annotation(cri::RESTART_COUNT_ANNOTATION)
            .parse()
            .unwrap_or_else(|_| status.metadata.as_ref().map_or(0, |m| m.attempt)),
        hash: annotation(cri::HASH_ANNOTATION),
        message_path: annotation(cri::MESSAGE_PATH_ANNOTATION),
        message_policy: annotation(cri::MESSAGE_POLICY_ANNOTATION),
        name,
        sandbox: container.pod_sandbox_id,
        state: status.state,
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        image: if image_spec.user_specified_image.is_empty() {
            image_spec.image
        } else {
            image_spec.user_specified_image
        },
        image_id: if status.image_ref.is_empty() { status.image_id } else { status.image_ref },
        reason: status.reason,
        message: status.message,
        log_path: status.log_path,
        user: status.user.and_then(|u| u.linux).map(|l| (l.uid, l.gid, l.supplemental_groups)),
        stop_signal: status.stop_signal,
        id: status.id,
    }
}

/// Upstream's bounds on what a container may leave as its last words.
const MESSAGE_BYTES_MAX: usize = 4096;
const MESSAGE_LOG_LINES_MAX: usize = 80;
const MESSAGE_LOG_BYTES_MAX: usize = 2048;

/// Fills the termination message of an ended container: from its file, or where its policy says so and it failed,
/// from the end of its log.
async fn read_message(instance: &mut Instance) {
    let Some(host_path) = message_file(instance) else { return };
    let mut text = Vec::new();
    if let Ok(file) = tokio::fs::File::open(&host_path).await {
        use tokio::io::AsyncReadExt;
        if file.take(MESSAGE_BYTES_MAX as u64).read_to_end(&mut text).await.is_err() {
            text.clear();
        }
    }
    let fallback = instance.message_policy == "FallbackToLogsOnError" && instance.exit_code != 0;
    if text.is_empty() && fallback && !instance.log_path.is_empty() {
        let tail =
            crate::server::logs::tail_text(&instance.log_path, MESSAGE_LOG_LINES_MAX, MESSAGE_LOG_BYTES_MAX)
                .await;
        text = tail.unwrap_or_default();
    }
    if !text.is_empty() {
        instance.message = String::from_utf8_lossy(&text).into_owned();
    }
}

fn message_file(instance: &Instance) -> Option<String> {
    if instance.message_path.is_empty() || instance.log_path.is_empty() {
        return None;
    }
    Some(message_host_path(&instance.log_path))
}

/// Where the file mounted at a container's termination message path lies: beside its log, so that it is found
/// again without knowing the pod.
pub fn message_host_path(log_path: &str) -> String {
    format!("{}.message", log_path.strip_suffix(".log").unwrap_or(log_path))
}
