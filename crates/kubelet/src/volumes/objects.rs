//! Config maps and secrets that pods refer to. Those in volumes are watched one by one for as long as some pod uses
//! them, since a node may see no others; a change wakes the pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use client::{Client, RawInformer, Resource, Selection};
use parking_lot::Mutex;

use crate::pods::PodHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        }
    }

    fn resource(self) -> Resource {
        let plural = match self {
            Kind::ConfigMap => "configmaps",
            Kind::Secret => "secrets",
        };
        Resource::new("", "v1", plural)
    }
}

pub type Data = BTreeMap<String, Vec<u8>>;
type Key = (Kind, String, String);
type Users = Arc<Mutex<HashMap<String, Weak<PodHandle>>>>;

struct Watched {
    informer: RawInformer,
    users: Users,
}

pub struct Objects {
    client: Client,
    watched: Mutex<HashMap<Key, Watched>>,
}

/// The longest to wait for an object's first listing.
const SYNC_PATIENCE: Duration = Duration::from_secs(20);

impl Objects {
    pub fn new(client: Client) -> Objects {
        Objects { client, watched: Mutex::new(HashMap::new()) }
    }

    fn selection(namespace: &str, name: &str) -> Selection {
        Selection::namespace(namespace).with_fields(format!("metadata.name={name}"))
    }

    /// What the object holds now; `None` where there is no such object. From now on `pod` is woken when it changes.
    pub async fn watch(
        &self,
        pod: &Arc<PodHandle>,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Data>, String> {
        let informer = {
            let mut watched = self.watched.lock();
            let key = (kind, namespace.to_owned(), name.to_owned());
            let entry = watched.entry(key).or_insert_with(|| {
                let informer = self.client.raw_informer(kind.resource(), Self::selection(namespace, name));
                let users: Users = Arc::default();
                let told = users.clone();
                informer.subscribe(move |_| {
                    for user in told.lock().values().filter_map(Weak::upgrade) {
                        user.objects_changed();
                    }
                });
                Watched { informer, users }
            });
            entry.users.lock().insert(pod.uid.clone(), Arc::downgrade(pod));
            entry.informer.clone()
        };
        if tokio::time::timeout(SYNC_PATIENCE, informer.synced()).await.is_err() {
            return Err(format!(
                "failed to sync {} cache: timed out waiting for {namespace}/{name}",
                kind.name()
            ));
        }
        match informer.get(namespace, name) {
            Some(object) => decode(&object.body).map(Some),
            None => Ok(None),
        }
    }

    /// What the object holds now, asked for once.
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Data>, String> {
        let known = self
            .watched
            .lock()
            .get(&(kind, namespace.to_owned(), name.to_owned()))
            .map(|w| w.informer.clone())
            .filter(RawInformer::has_synced);
        if let Some(informer) = known
            && let Some(object) = informer.get(namespace, name)
        {
            return decode(&object.body).map(Some);
        }
        let path = format!("{}/{name}", kind.resource().path(Some(namespace)));
        let request = http::Request::get(path).body(vec![]).map_err(|e| e.to_string())?;
        match self.client.kube().request_text(request).await {
            Ok(text) => decode(text.as_bytes()).map(Some),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Forgets that the pod uses anything.
    pub fn release(&self, uid: &str) {
        self.watched.lock().retain(|(kind, namespace, name), watched| {
            let mut users = watched.users.lock();
            users.remove(uid);
            if users.is_empty() {
                self.client.informers().stop(&kind.resource(), &Self::selection(namespace, name));
            }
            !users.is_empty()
        });
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    kind: Option<String>,
    data: Option<BTreeMap<String, String>>,
    binary_data: Option<BTreeMap<String, String>>,
}

fn decode(body: &[u8]) -> Result<Data, String> {
    let wire: Wire = apimachinery::object::read(body).map_err(|e| e.to_string())?;
    let secret = wire.kind.as_deref() == Some("Secret");
    let bytes = |text: String| BASE64.decode(text).map_err(|e| e.to_string());
    let mut data = Data::new();
    for (key, value) in wire.data.into_iter().flatten() {
        data.insert(key, if secret { bytes(value)? } else { value.into_bytes() });
    }
    for (key, value) in wire.binary_data.into_iter().flatten() {
        data.insert(key, bytes(value)?);
    }
    Ok(data)
}
