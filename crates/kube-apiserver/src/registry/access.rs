//! The registry for the server's own use: reads from the caches, writes below admission, streams for informers.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use apimachinery::user::{SYSTEM_MASTERS, UserInfo};
use async_trait::async_trait;
use futures::Stream;
use futures::stream;
use serde_json::Value;
use tokio::sync::watch;

use super::delete::DeleteOptions;
use super::selection::Selection;
use super::write::{Change, Write};
use super::{Entry, Registry, meta};
use crate::cache::{EventKind, Next, ResourceCache, Start, Watcher};
use crate::seams::{Objects, Writer};

/// In-process streams tell how far they are at least this often, when there is something to tell.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
const RELIST_PAUSE: Duration = Duration::from_millis(100);

/// The registry as the server's own parts see it.
#[derive(Clone)]
pub struct Access(pub Arc<Registry>);

impl Access {
    fn cache(&self, group: &str, resource: &str) -> Option<Arc<ResourceCache>> {
        self.0.table.load().find_any(group, resource)?.cache.clone()
    }

    fn entry(&self, group: &str, version: &str, resource: &str) -> Result<Arc<Entry>, Status> {
        let table = self.0.table.load();
        let found = if version.is_empty() {
            table.find_any(group, resource)
        } else {
            table.find(group, version, resource)
        };
        found.cloned().ok_or_else(Status::no_such_resource)
    }
}

impl Objects for Access {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Encoded>> {
        self.cache(group, resource)?.get(&apimachinery::object::object_key(namespace, name))
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Encoded>> {
        let prefix = namespace.map_or_else(String::new, |n| format!("{n}/"));
        self.cache(group, resource).map(|c| c.snapshot(&prefix, None).items).unwrap_or_default()
    }

    fn revision(&self, group: &str, resource: &str) -> u64 {
        let table = self.0.table.load();
        let entry = table.find_any(group, resource);
        entry.and_then(|entry| entry.cache.as_ref()).map_or(0, |cache| cache.changed())
    }

    fn changes(&self, group: &str, resource: &str) -> watch::Receiver<u64> {
        match self.cache(group, resource) {
            Some(cache) => cache.changes(),
            None => watch::Sender::new(0).subscribe(),
        }
    }
}

fn own_user() -> UserInfo {
    UserInfo::new("system:apiserver", &[SYSTEM_MASTERS])
}

#[async_trait]
impl Writer for Access {
    async fn create(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        mut object: Value,
    ) -> Result<Arc<Encoded>, Status> {
        let (entry, user) = (self.entry(group, version, resource)?, own_user());
        crate::wire::complete(&mut object, &entry)?;
        super::output::to_working(&entry, &mut object);
        let namespace = meta::text(&object, "namespace").to_owned();
        Write::own(&self.0, &entry, &user).create(&namespace, object).await.map(|w| w.object)
    }

    async fn update(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        mut object: Value,
    ) -> Result<Arc<Encoded>, Status> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (entry, user) = (self.entry(group, version, resource)?, own_user());
        crate::wire::complete(&mut object, &entry)?;
        super::output::to_working(&entry, &mut object);
        let (namespace, name) =
            (meta::text(&object, "namespace").to_owned(), meta::text(&object, "name").to_owned());
        let mut write = Write { subresource, ..Write::own(&self.0, &entry, &user) };
        write.update(&namespace, &name, Change::Replace(object)).await.map(|w| w.object)
    }

    async fn apply(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        config: Value,
        manager: &str,
    ) -> Result<Arc<Encoded>, Status> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (entry, user) = (self.entry(group, version, resource)?, own_user());
        let (namespace, name) =
            (meta::text(&config, "namespace").to_owned(), meta::text(&config, "name").to_owned());
        let own = Write::own(&self.0, &entry, &user);
        let mut write = Write { subresource, manager: manager.to_owned(), ..own };
        write.update(&namespace, &name, Change::Apply { config, force: true }).await.map(|w| w.object)
    }

    async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Encoded>, Status> {
        let entry = self.entry(group, "", resource)?;
        let found = self.0.read(self.0.cache_of(&entry)?, &entry.key(namespace, name)).await?;
        found.ok_or_else(|| Status::not_found(resource, group, name))
    }

    async fn delete(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Result<(), Status> {
        let (entry, user) = (self.entry(group, "", resource)?, own_user());
        let mut write = Write::own(&self.0, &entry, &user);
        write.delete(namespace, name, &DeleteOptions::default()).await.map(|_| ())
    }
}

/// What in-process informers are fed.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// The whole state; whatever was known before is void.
    Replace {
        items: Vec<Arc<Encoded>>,
        resource_version: u64,
    },
    Applied(Arc<Encoded>),
    Deleted(Arc<Encoded>),
    Bookmark(u64),
}

/// Which objects of which resource an informer wants.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub group: String,
    pub version: String,
    pub resource: String,
    /// Empty means all.
    pub namespace: String,
    pub labels: String,
    pub fields: String,
}

enum Position {
    Begin,
    Following(Box<Watcher>),
}

impl Registry {
    /// The objects `wanted` selects, then their changes, for ever: a stream that lost its place begins anew with a
    /// [`SourceEvent::Replace`].
    pub fn list_watch(
        self: &Arc<Self>,
        wanted: Wanted,
    ) -> impl Stream<Item = SourceEvent> + Send + 'static + use<> {
        let registry = self.clone();
        stream::unfold(Position::Begin, move |position| {
            let (registry, wanted) = (registry.clone(), wanted.clone());
            async move {
                let mut watcher = match position {
                    Position::Following(watcher) => watcher,
                    Position::Begin => return Some(registry.begin_anew(&wanted).await),
                };
                let told = watcher.cached();
                loop {
                    let next = match tokio::time::timeout(BOOKMARK_EVERY, watcher.next()).await {
                        Ok(next) => next,
                        Err(_) => {
                            let progress = watcher.progress();
                            match watcher.ready() {
                                // It came in the same moment, and is older than the progress.
                                Some(next) => Some(next),
                                None if progress > told => {
                                    let event = SourceEvent::Bookmark(progress);
                                    return Some((event, Position::Following(watcher)));
                                }
                                None => continue,
                            }
                        }
                    };
                    let Some(Next { kind, frame, .. }) = next else {
                        drop(watcher);
                        return Some(registry.begin_anew(&wanted).await);
                    };
                    let object = frame.event.object_for(kind);
                    let event = match kind {
                        EventKind::Deleted => SourceEvent::Deleted(object),
                        EventKind::Added | EventKind::Modified => SourceEvent::Applied(object),
                    };
                    return Some((event, Position::Following(watcher)));
                }
            }
        })
    }

    async fn begin_anew(&self, wanted: &Wanted) -> (SourceEvent, Position) {
        let mut watcher = self.begin(wanted).await;
        let items = std::mem::take(&mut watcher.initial);
        let event = SourceEvent::Replace { items, resource_version: watcher.revision };
        (event, Position::Following(watcher))
    }

    /// Waits until the resource is there and its cache filled, then begins a watch with the present state.
    async fn begin(&self, wanted: &Wanted) -> Box<Watcher> {
        loop {
            self.cache.wait_for(1, Duration::from_secs(3600)).await;
            let entry = self.table.load().find(&wanted.group, &wanted.version, &wanted.resource).cloned();
            if let Some(entry) = entry
                && let Some(cache) = &entry.cache
            {
                match Selection::parse(&entry, &wanted.namespace, Some(&wanted.labels), Some(&wanted.fields))
                {
                    Ok(selection) => {
                        let started = cache.watch(&selection.prefix(), selection.matcher(), Start::State);
                        if let Ok(watcher) = started {
                            return Box::new(watcher);
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, resource = wanted.resource, "selection of an informer")
                    }
                }
            }
            // A resource that is not served may come (custom resources); this is the rare case.
            tokio::time::sleep(RELIST_PAUSE * 10).await;
        }
    }
}
