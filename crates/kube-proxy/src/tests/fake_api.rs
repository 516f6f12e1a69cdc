//! A stand-in for the API: objects put in come out of informers; patches are kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apimachinery::object::Encoded;
use bytes::Bytes;
use client::{Client, Informers, Resource, Selection, SourceEvent, WatchSource};
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Kind {
    objects: HashMap<(String, String), Arc<Encoded>>,
    events: Option<broadcast::Sender<SourceEvent>>,
}

#[derive(Default)]
pub struct FakeApi {
    kinds: Mutex<HashMap<String, Kind>>,
    version: AtomicU64,
    /// Path and body of every patch.
    pub patches: Mutex<Vec<(String, Value)>>,
}

impl FakeApi {
    pub fn put(&self, plural: &str, object: &Value) {
        let version = self.version.fetch_add(1, Ordering::Relaxed) + 1;
        let body = Bytes::from(object.to_string());
        let object = Arc::new(Encoded::new(body, version, |_| vec![]).unwrap());
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry(plural.to_owned()).or_default();
        kind.objects.insert((object.namespace().into(), object.name().into()), object.clone());
        if let Some(events) = &kind.events {
            let _ = events.send(SourceEvent::Applied(object));
        }
    }

    #[allow(dead_code)]
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut kinds = self.kinds.lock();
        let kind = kinds.entry(plural.to_owned()).or_default();
        if let Some(object) = kind.objects.remove(&(namespace.to_owned(), name.to_owned()))
            && let Some(events) = &kind.events
        {
            let _ = events.send(SourceEvent::Deleted(object));
        }
    }

    pub fn client(self: &Arc<FakeApi>, stop: &CancellationToken) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let api = api.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                api.patches.lock().push((path, serde_json::from_slice(&body).unwrap_or_default()));
                let reply =
                    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}}).to_string();
                Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(reply))))
            }
        });
        let kube = kube::Client::new(service, "default");
        Client::new(kube, Arc::new(Source(self.clone())), Informers::new(stop.clone()), "test")
    }
}

struct Source(Arc<FakeApi>);

impl WatchSource for Source {
    fn list_watch(&self, resource: &Resource, selection: &Selection) -> BoxStream<'static, SourceEvent> {
        let name =
            selection.fields.as_deref().and_then(|f| f.strip_prefix("metadata.name=")).map(str::to_owned);
        let wanted = move |o: &Encoded| name.as_deref().is_none_or(|n| n == o.name());
        let mut kinds = self.0.kinds.lock();
        let kind = kinds.entry(resource.plural.clone()).or_default();
        let events = kind.events.get_or_insert_with(|| broadcast::channel(1000).0).subscribe();
        let items = kind.objects.values().filter(|o| wanted(o)).cloned().collect();
        let resource_version = self.0.version.load(Ordering::Relaxed);
        let events = BroadcastStream::new(events).filter_map(move |event| {
            let event = event.ok().filter(|event| match event {
                SourceEvent::Applied(o) | SourceEvent::Deleted(o) => wanted(o),
                _ => true,
            });
            async move { event }
        });
        futures::stream::iter([SourceEvent::Replace { items, resource_version }]).chain(events).boxed()
    }
}
