//! List and watch over HTTPS.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{AsyncBufReadExt, FutureExt, StreamExt};
use http::Request;
use kube::core::Status;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::{Resource, Selection, SourceEvent, WatchSource};

/// Objects per page of a list.
const PAGE: u32 = 500;
const BACKOFF_MIN: Duration = Duration::from_millis(800);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Events read ahead of the informer.
const AHEAD: usize = 64;

/// A [`WatchSource`] over a client's connection.
pub struct RemoteSource {
    kube: kube::Client,
}

impl RemoteSource {
    pub fn new(kube: kube::Client) -> RemoteSource {
        RemoteSource { kube }
    }
}

impl WatchSource for RemoteSource {
    fn list_watch(&self, resource: &Resource, selection: &Selection) -> BoxStream<'static, SourceEvent> {
        let reflector = Reflector {
            kube: self.kube.clone(),
            path: resource.path(selection.namespace.as_deref()),
            pods: resource.group.is_empty() && resource.plural == "pods",
            api_version: resource.api_version(),
            selection: selection.clone(),
            backoff: BACKOFF_MIN,
        };
        let (sender, receiver) = mpsc::channel(AHEAD);
        // The stream owns the work: dropping it drops the future with it.
        let work = async move { reflector.run(sender).await }.boxed();
        let events = futures::stream::unfold((receiver, work), |(mut receiver, mut work)| async move {
            tokio::select! {
                biased;
                event = receiver.recv() => event.map(|e| (e, (receiver, work))),
                () = &mut work => None,
            }
        });
        events.boxed()
    }
}

struct Reflector {
    kube: kube::Client,
    path: String,
    pods: bool,
    api_version: String,
    selection: Selection,
    backoff: Duration,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The history we wanted is gone: list again.
    #[error("expired")]
    Expired,
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Body(#[from] serde_json::Error),
    #[error("{0}")]
    Read(#[from] std::io::Error),
    #[error("{0}")]
    Request(#[from] http::Error),
    #[error("the informer is gone")]
    Stopped,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    continue_token: Option<String>,
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

impl Reflector {
    async fn run(mut self, events: mpsc::Sender<SourceEvent>) {
        let mut at: Option<u64> = None;
        loop {
            let result = match at {
                None => self.list(&events).await.map(|rv| at = Some(rv)),
                Some(_) => self.watch(&mut at, &events).await,
            };
            match result {
                Ok(()) => self.backoff = BACKOFF_MIN,
                Err(Failure::Stopped) => return,
                Err(Failure::Expired) => {
                    at = None;
                    self.pause().await;
                }
                Err(error) => {
                    tracing::debug!(path = self.path, %error, "list or watch failed; will be retried");
                    if matches!(&error, Failure::Api(kube::Error::Api(_))) {
                        at = None;
                    }
                    self.pause().await;
                }
            }
        }
    }

    async fn pause(&mut self) {
        let jitter = 1.0 + rand::random::<f64>();
        tokio::time::sleep(self.backoff.mul_f64(jitter)).await;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    fn url(&self, parameters: &[(&str, &str)]) -> String {
        let mut url = format!("{}?", self.path);
        let selectors =
            [("labelSelector", &self.selection.labels), ("fieldSelector", &self.selection.fields)];
        let selectors = selectors.iter().filter_map(|(k, v)| v.as_deref().map(|v| (*k, v)));
        for (i, (key, value)) in parameters.iter().copied().chain(selectors).enumerate() {
            if i > 0 {
                url.push('&');
            }
            url.push_str(key);
            url.push('=');
            percent_encode(value, &mut url);
        }
        url
    }

    async fn list(&mut self, events: &mpsc::Sender<SourceEvent>) -> Result<u64, Failure> {
        let mut items = Vec::new();
        let mut token: Option<String> = None;
        let limit = PAGE.to_string();
        loop {
            let mut parameters = vec![("limit", limit.as_str())];
            match &token {
                Some(token) => parameters.push(("continue", token)),
                None => parameters.push(("resourceVersion", "0")),
            }
            let request = Request::get(self.url(&parameters)).body(Vec::new())?;
            let body = match self.kube.request_text(request).await {
                Err(kube::Error::Api(status)) if is_expired(&status) => return Err(Failure::Expired),
                body => body?,
            };
            let list: List<'_> = serde_json::from_str(&body)?;
            let kind = list.kind.strip_suffix("List").unwrap_or_default();
            for item in list.items.unwrap_or_default() {
                items.push(self.encode(item, kind)?);
            }
            token = list.metadata.continue_token.filter(|t| !t.is_empty());
            if token.is_none() {
                let resource_version = list.metadata.resource_version.parse().unwrap_or(0);
                let replace = SourceEvent::Replace { items, resource_version };
                events.send(replace).await.map_err(|_| Failure::Stopped)?;
                return Ok(resource_version);
            }
        }
    }

    /// Watches until the server ends it, moving `at` on.
    async fn watch(
        &mut self,
        at: &mut Option<u64>,
        events: &mpsc::Sender<SourceEvent>,
    ) -> Result<(), Failure> {
        let from = at.unwrap_or(0).to_string();
        // Spread over time so that many watches do not all end together.
        let timeout = (300 + rand::random::<u32>() % 300).to_string();
        let url = self.url(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &from),
            ("timeoutSeconds", &timeout),
        ]);
        let stream = match self.kube.request_stream(Request::get(url).body(Vec::new())?).await {
            Err(kube::Error::Api(status)) if is_expired(&status) => return Err(Failure::Expired),
            stream => stream?,
        };
        let mut stream = Box::pin(stream);
        let mut line = Vec::new();
        let began = tokio::time::Instant::now();
        let mut heard = false;
        loop {
            line.clear();
            if stream.read_until(b'\n', &mut line).await? == 0 {
                break;
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let frame: Frame<'_> = serde_json::from_slice(&line)?;
            if frame.kind == "ERROR" {
                let status: Status = serde_json::from_str(frame.object.get())?;
                if is_expired(&status) {
                    return Err(Failure::Expired);
                }
                return Err(kube::Error::Api(Box::new(status)).into());
            }
            heard = true;
            let object = self.encode(frame.object, "")?;
            *at = Some(object.resource_version.max(at.unwrap_or(0)));
            let event = match frame.kind {
                "ADDED" | "MODIFIED" => SourceEvent::Applied(object),
                "DELETED" => SourceEvent::Deleted(object),
                "BOOKMARK" => SourceEvent::Bookmark(object.resource_version),
                _ => continue,
            };
            events.send(event).await.map_err(|_| Failure::Stopped)?;
        }
        // A server that ends watches as soon as they begin must not be asked in a tight loop.
        if !heard && began.elapsed() < Duration::from_secs(1) {
            self.pause().await;
        }
        Ok(())
    }

    /// Takes the resource version out of the bytes; gives items of a list the kind and version that upstream leaves
    /// to the list.
    fn encode(&self, item: &RawValue, kind: &str) -> Result<Arc<Encoded>, Failure> {
        let mut value: Value = serde_json::from_str(item.get())?;
        let resource_version = value["metadata"]
            .as_object_mut()
            .and_then(|m| m.remove("resourceVersion"))
            .and_then(|v| v.as_str().and_then(|s| s.parse().ok()))
            .unwrap_or(0);
        if let Some(object) = value.as_object_mut().filter(|_| !kind.is_empty()) {
            object.entry("kind").or_insert_with(|| kind.into());
            object.entry("apiVersion").or_insert_with(|| self.api_version.clone().into());
        }
        let body = Bytes::from(serde_json::to_vec(&value)?);
        let fields = if self.pods { pod_fields(&value) } else { Vec::new() };
        Ok(Arc::new(Encoded::with_value(body, resource_version, &value, fields)))
    }
}

/// The selectable fields of pods that readers of informers ask for.
fn pod_fields(pod: &Value) -> Vec<(&'static str, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    vec![("spec.nodeName", text(&pod["spec"]["nodeName"])), ("status.phase", text(&pod["status"]["phase"]))]
}

fn is_expired(status: &Status) -> bool {
    status.code == 410 || status.reason == "Expired" || status.reason == "Gone"
}

fn percent_encode(value: &str, out: &mut String) {
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}
