//! The pods of this node: a handle per pod, through which everybody reaches its worker.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apimachinery::object::Encoded;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::pod::admission::{self, Claims, Refusal};
use crate::pod::observed::Observed;
use crate::pod::status::Verdict;

/// A pod as the rest of the kubelet sees it.
pub struct PodHandle {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub is_static: bool,
    state: Mutex<State>,
    wake: Notify,
    /// The runtime has news of this pod.
    pub stirred: AtomicBool,
    /// Something a volume shows has changed.
    pub objects_stirred: AtomicBool,
}

#[derive(Clone)]
struct State {
    pod: Arc<Encoded>,
    gone: bool,
    verdict: Option<(Verdict, Option<i64>)>,
    observed: Arc<Observed>,
    /// The pod's status as last computed, as JSON.
    status: Option<Arc<serde_json::Value>>,
    /// The API's counterpart of a static pod.
    mirror: Option<Arc<Encoded>>,
    ended: Vec<String>,
    /// What the pod takes up, from its admission until it has ended.
    claims: Option<Claims>,
}

/// What a worker works on.
pub struct Update {
    pub pod: Arc<Encoded>,
    pub gone: bool,
    pub verdict: Option<(Verdict, Option<i64>)>,
    pub mirror: Option<Arc<Encoded>>,
    /// Containers and sandboxes the runtime says have ended.
    pub ended: Vec<String>,
}

impl PodHandle {
    pub fn new(pod: Arc<Encoded>, is_static: bool) -> PodHandle {
        PodHandle {
            uid: pod.uid().to_owned(),
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            is_static,
            state: Mutex::new(State {
                pod,
                gone: false,
                verdict: None,
                observed: Arc::default(),
                status: None,
                mirror: None,
                ended: vec![],
                claims: None,
            }),
            wake: Notify::new(),
            stirred: AtomicBool::new(true),
            objects_stirred: AtomicBool::new(false),
        }
    }

    pub fn notify(&self) {
        self.wake.notify_one();
    }

    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    pub fn take(&self) -> Update {
        let mut state = self.state.lock();
        Update {
            pod: state.pod.clone(),
            gone: state.gone,
            verdict: state.verdict.clone(),
            mirror: state.mirror.clone(),
            ended: std::mem::take(&mut state.ended),
        }
    }

    /// A newer revision; an older one is ignored.
    pub fn update(&self, pod: Arc<Encoded>) {
        let mut state = self.state.lock();
        if self.is_static || pod.resource_version >= state.pod.resource_version {
            state.pod = pod;
            drop(state);
            self.notify();
        }
    }

    /// As [`Self::update`], for what the worker itself just wrote.
    pub fn written(&self, pod: Arc<Encoded>) {
        let mut state = self.state.lock();
        if self.is_static {
            state.mirror = Some(pod);
        } else if pod.resource_version >= state.pod.resource_version {
            state.pod = pod;
        }
    }

    pub fn set_mirror(&self, mirror: Option<Arc<Encoded>>) {
        self.state.lock().mirror = mirror;
        self.notify();
    }

    /// What the pod took up is free for others.
    pub fn release_claims(&self) {
        self.state.lock().claims = None;
    }

    pub fn set_gone(&self) {
        self.state.lock().gone = true;
        self.notify();
    }

    pub fn set_verdict(&self, verdict: Verdict, grace: Option<i64>) {
        self.state.lock().verdict.get_or_insert((verdict, grace));
        self.notify();
    }

    pub fn runtime_event(&self, id: &str) {
        self.state.lock().ended.push(id.to_owned());
        self.stir();
    }

    /// The runtime has to be asked again.
    pub fn stir(&self) {
        self.stirred.store(true, Ordering::Release);
        self.notify();
    }

    pub fn objects_changed(&self) {
        self.objects_stirred.store(true, Ordering::Release);
        self.notify();
    }

    pub fn set_observed(&self, observed: Arc<Observed>) {
        self.state.lock().observed = observed;
    }

    pub fn observed(&self) -> Arc<Observed> {
        self.state.lock().observed.clone()
    }

    /// Returns the status before it.
    pub fn set_status(&self, status: Arc<serde_json::Value>) -> Option<Arc<serde_json::Value>> {
        self.state.lock().status.replace(status)
    }

    pub fn status(&self) -> Option<Arc<serde_json::Value>> {
        self.state.lock().status.clone()
    }

    pub fn encoded(&self) -> Arc<Encoded> {
        self.state.lock().pod.clone()
    }

    pub fn decode(&self) -> Option<Pod> {
        self.encoded().decode().ok()
    }
}

/// All pods by uid, and whose a container of the runtime is.
#[derive(Default)]
pub struct Pods {
    by_uid: RwLock<HashMap<String, Arc<PodHandle>>>,
    owners: RwLock<HashMap<String, Arc<PodHandle>>>,
    /// What ended before anybody knew whose it was: containers may be quicker than their makers.
    strays: Mutex<VecDeque<String>>,
    /// One pod after the other.
    admission: Mutex<()>,
}

const STRAYS_MAX: usize = 512;

impl Pods {
    pub fn get(&self, uid: &str) -> Option<Arc<PodHandle>> {
        self.by_uid.read().get(uid).cloned()
    }

    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodHandle>> {
        let pods = self.by_uid.read();
        let mut found = pods.values().filter(|p| p.namespace == namespace && p.name == name);
        // One that is gone may still be ending while its successor runs.
        let first = found.next()?;
        let live = std::iter::once(first).chain(found).find(|p| !p.state.lock().gone);
        Some(live.unwrap_or(first).clone())
    }

    pub fn list(&self) -> Vec<Arc<PodHandle>> {
        self.by_uid.read().values().cloned().collect()
    }

    pub fn insert(&self, handle: Arc<PodHandle>) {
        self.by_uid.write().insert(handle.uid.clone(), handle);
    }

    pub fn remove(&self, uid: &str) {
        self.by_uid.write().remove(uid);
        self.owners.write().retain(|_, h| h.uid != uid);
    }

    /// Lets a pod in if it fits beside those that are in. One that ran before is in already.
    pub fn admit(
        &self,
        handle: &PodHandle,
        pod: &Pod,
        runs: bool,
        allocatable: &crate::quantity::Resources,
        node_labels: Option<&std::collections::BTreeMap<String, String>>,
    ) -> Result<(), Refusal> {
        let _turn = self.admission.lock();
        let wanted = admission::claims(pod);
        if !runs {
            let others: Vec<Claims> = self
                .list()
                .iter()
                .filter(|other| other.uid != handle.uid)
                .filter_map(|other| other.state.lock().claims.clone())
                .collect();
            admission::admit(pod, &wanted, &others, allocatable, node_labels)?;
        }
        handle.state.lock().claims = Some(wanted);
        Ok(())
    }

    /// Remembers the containers and sandboxes of a pod, so that the runtime's news find it.
    pub fn own(&self, handle: &Arc<PodHandle>, observed: &Observed) {
        let ids = || observed.sandboxes.iter().map(|s| &s.id).chain(observed.instances.iter().map(|i| &i.id));
        let mut owners = self.owners.write();
        let known = owners.values().filter(|h| h.uid == handle.uid).count();
        if known == ids().count() && ids().all(|id| owners.contains_key(id)) {
            return;
        }
        owners.retain(|_, h| h.uid != handle.uid);
        for id in ids() {
            owners.insert(id.clone(), handle.clone());
        }
        drop(owners);
        let mut strays = self.strays.lock();
        strays.retain(|stray| {
            let found = ids().any(|id| id == stray);
            if found {
                handle.runtime_event(stray);
            }
            !found
        });
    }

    /// The runtime says that a container or sandbox ended.
    pub fn ended(&self, id: String) {
        if let Some(handle) = self.owner(&id) {
            handle.runtime_event(&id);
            return;
        }
        let mut strays = self.strays.lock();
        // It may have become known between the two looks.
        if let Some(handle) = self.owner(&id) {
            handle.runtime_event(&id);
            return;
        }
        if strays.len() >= STRAYS_MAX {
            strays.pop_front();
        }
        strays.push_back(id);
    }

    fn owner(&self, id: &str) -> Option<Arc<PodHandle>> {
        self.owners.read().get(id).cloned()
    }
}
