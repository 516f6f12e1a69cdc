//! Watches over HTTP: the present state if asked for, then changes, bookmarks, an end.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::selector::FieldSelector;
use apimachinery::status::Status;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use super::list::{not_a_number, parse_version};
use super::output::{IncludeObject, Show};
use super::selection::Selection;
use super::{Entry, Registry};
use crate::cache::events::write_json_event;
use crate::cache::{EventKind, Frame, Next, Start, Watcher};
use crate::http::Body;
use crate::http::body::BoxError;
use crate::http::negotiation::{Accept, Encoding, View};
use crate::http::request_info::Query;
use crate::http::respond;
use crate::wire;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch whose client names no timeout ends after this, and up to twice as much.
const TIMEOUT_MIN: Duration = Duration::from_secs(1800);
/// Bytes of initial events in one chunk.
const CHUNK_BYTES: usize = 64 << 10;
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// The watch parameters of a request.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    pub resource_version: Option<u64>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout: Option<Duration>,
}

impl WatchOptions {
    pub fn parse(query: &Query) -> Result<WatchOptions, Status> {
        let timeout = query
            .non_empty("timeoutSeconds")
            .map(|t| t.parse::<i64>().map_err(|e| Status::bad_request(not_a_number("ParseInt", t, &e))))
            .transpose()?;
        let resource_version = query
            .non_empty("resourceVersion")
            .map(|t| parse_version(t).map_err(|e| Status::unknown(format!("resourceVersion: {e}"))))
            .transpose()?;
        let send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        Ok(WatchOptions {
            resource_version,
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events,
            timeout: timeout.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0).map(Duration::from_secs),
        })
    }
}

/// How events become bytes for one client.
struct Encoder {
    entry: Arc<Entry>,
    accept: Accept,
    include: IncludeObject,
    verbatim: bool,
    /// Decides on objects in the version of the request.
    selector: Option<FieldSelector>,
    /// The column definitions go out once.
    columns_sent: bool,
    /// Events up to this revision are not meant.
    after: u64,
}

impl Encoder {
    fn show(&self) -> Show<'_> {
        Show { entry: &self.entry, accept: self.accept, include: self.include, now: Timestamp::now() }
    }

    fn selects(&self, object: &Encoded) -> bool {
        match (&self.selector, &self.entry.custom) {
            (Some(selector), Some(custom)) => custom.selects_converted(selector, object),
            _ => true,
        }
    }

    /// What an event is to a client who selects by fields of the version it asks for.
    fn kind_for(&self, kind: EventKind, frame: &Frame) -> Option<EventKind> {
        if self.selector.is_none() {
            return Some(kind);
        }
        let event = &frame.event;
        let previous = event.previous.as_ref().unwrap_or(&event.object);
        let before = kind != EventKind::Added && self.selects(previous);
        let now = kind != EventKind::Deleted && self.selects(&event.object);
        match (before, now) {
            (false, false) => None,
            (false, true) => Some(EventKind::Added),
            (true, true) => Some(EventKind::Modified),
            (true, false) => Some(EventKind::Deleted),
        }
    }

    fn event<'a>(&mut self, kind: EventKind, frame: &'a Frame) -> Option<Cow<'a, Bytes>> {
        if frame.event.revision <= self.after {
            return None;
        }
        let kind = self.kind_for(kind, frame)?;
        if self.verbatim
            && (self.entry.custom.is_none() || self.entry.is_current(&frame.event.object_for(kind)))
        {
            return Some(Cow::Borrowed(frame.json(kind)));
        }
        if self.accept.encoding == Encoding::Protobuf
            && self.accept.view == View::Whole
            // Frames are shared by watchers of all versions, so only what is stored goes into them.
            && let Some(schema) = wire::message_schema(&self.entry)
        {
            let encode = |kind: EventKind, object: &Encoded| {
                wire::protobuf_event(kind.name(), &self.entry, object, schema)
            };
            return frame.protobuf(kind, encode).map(Cow::Borrowed);
        }
        self.object(kind, &frame.event.object_for(kind)).map(Cow::Owned)
    }

    fn object(&mut self, kind: EventKind, object: &Encoded) -> Option<Bytes> {
        if self.verbatim && self.entry.is_current(object) {
            let mut out = Vec::with_capacity(object.body.len() + 96);
            write_json_event(&mut out, kind, object);
            return Some(out.into());
        }
        if self.accept.encoding == Encoding::Protobuf
            && self.accept.view == View::Whole
            && let Some(schema) = wire::message_schema(&self.entry)
        {
            return wire::protobuf_event(kind.name(), &self.entry, object, schema);
        }
        let mut value = match self.show().single(object) {
            Ok(value) => value,
            Err(error) => return wire::encode_event("ERROR", &respond::status_value(&error), self.accept),
        };
        if self.accept.view == View::Table {
            if self.columns_sent {
                value["columnDefinitions"] = Value::Null;
            }
            self.columns_sent = true;
        }
        wire::encode_event(kind.name(), &value, self.accept)
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Option<Bytes> {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if self.accept.view != View::Table {
            metadata["creationTimestamp"] = Value::Null;
        }
        if initial_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.accept.view {
            View::Whole => {
                json!({"kind": self.entry.kind, "apiVersion": self.entry.api_version(), "metadata": metadata})
            }
            View::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            View::Table => {
                let object = json!({"kind": self.entry.kind, "apiVersion": self.entry.api_version(), "metadata": metadata});
                let row = json!({"cells": [], "object": super::output::partial(&object, self.accept.view_version())});
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
                    "metadata": {"resourceVersion": revision.to_string()}, "columnDefinitions": null, "rows": [row]})
            }
        };
        wire::encode_event("BOOKMARK", &object, self.accept)
    }
}

struct Progress {
    watcher: Watcher,
    encoder: Encoder,
    initial: std::vec::IntoIter<Arc<Encoded>>,
    /// The bookmark that ends the initial events is still to be sent.
    initial_end: Option<u64>,
    until: Instant,
    /// Ends when the watch does or a bookmark is due; kept, since setting a timer for every event would cost more than the event.
    timer: Pin<Box<Sleep>>,
    sent: u64,
}

impl Progress {
    /// The next bytes; `None` at the end.
    async fn step(&mut self) -> Option<Bytes> {
        loop {
            if self.initial.len() > 0 {
                let mut out = Vec::new();
                for object in self.initial.by_ref() {
                    if let Some(bytes) = self.encoder.object(EventKind::Added, &object) {
                        out.extend_from_slice(&bytes);
                    }
                    if out.len() >= CHUNK_BYTES {
                        break;
                    }
                }
                return Some(out.into());
            }
            if let Some(revision) = self.initial_end.take() {
                self.sent = revision;
                return self.encoder.bookmark(revision, true);
            }
            let Next { kind, frame, waiting } = tokio::select! {
                biased;
                event = self.watcher.next() => event?,
                () = self.timer.as_mut() => {
                    let now = Instant::now();
                    if now >= self.until {
                        return None;
                    }
                    self.timer.as_mut().reset(self.until.min(now + BOOKMARK_EVERY));
                    let progress = self.watcher.progress();
                    match self.watcher.ready() {
                        Some(event) => event,
                        None if progress > self.sent => {
                            self.sent = progress;
                            return self.encoder.bookmark(progress, false);
                        }
                        None => continue,
                    }
                }
            };
            self.sent = self.sent.max(frame.event.revision);
            let Some(line) = self.encoder.event(kind, frame) else { continue };
            if waiting == 0 {
                return Some(line.into_owned());
            }
            // What waits already goes out in the same write.
            let mut lines = Vec::with_capacity((line.len() * (waiting + 1)).min(2 * CHUNK_BYTES));
            lines.extend_from_slice(&line);
            while lines.len() < CHUNK_BYTES
                && let Some(Next { kind, frame, .. }) = self.watcher.ready()
            {
                self.sent = self.sent.max(frame.event.revision);
                if let Some(line) = self.encoder.event(kind, frame) {
                    lines.extend_from_slice(&line);
                }
            }
            return Some(lines.into());
        }
    }
}

impl Registry {
    pub async fn watch(
        &self,
        entry: &Arc<Entry>,
        selection: &Selection,
        options: &WatchOptions,
        accept: Accept,
        include: IncludeObject,
    ) -> Result<Response<Body>, Status> {
        let cache = self.cache_of(entry)?;
        let initial = options.send_initial_events;
        let start = match (initial, options.resource_version) {
            (Some(true), _) => Start::State,
            (Some(false), None | Some(0)) => Start::Now,
            (None, None | Some(0)) => Start::State,
            (_, Some(version)) => Start::After(version),
        };
        // A state asked for must be the newest one, or at least as new as the client has seen.
        let fresh = match options.resource_version {
            None => self.cache.catch_up().await.map_err(|e| respond::store_error(&e))?,
            // What is to come after a future version can be waited for in the stream.
            Some(_) if matches!(start, Start::After(_)) => true,
            Some(version) => self.cache.wait_for(version, Duration::from_secs(3)).await,
        };
        if !fresh && let Some(version) = options.resource_version {
            return Err(Status::too_large(version, self.cache.revision()));
        }
        let content_type = match accept.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => {
                return Err(Status::not_acceptable(&[
                    "application/json",
                    "application/vnd.kubernetes.protobuf",
                ]));
            }
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        };
        let body = match cache.watch(&selection.prefix(), selection.matcher(), start) {
            Ok(mut watcher) => {
                let timeout = options.timeout.unwrap_or_else(|| {
                    TIMEOUT_MIN
                        + Duration::from_millis(rand::random::<u64>() % TIMEOUT_MIN.as_millis() as u64)
                });
                let revision = watcher.revision;
                let encoder = Encoder {
                    verbatim: Show { entry, accept, include, now: Timestamp::UNIX_EPOCH }.is_verbatim(),
                    entry: entry.clone(),
                    accept,
                    include,
                    selector: selection.converted().cloned(),
                    columns_sent: false,
                    after: if let Start::After(version) = start { version } else { 0 },
                };
                watcher.initial.retain(|object| encoder.selects(object));
                let until = Instant::now() + timeout;
                let bookmark_at = options.bookmarks.then(|| Instant::now() + BOOKMARK_EVERY);
                let progress = Progress {
                    initial: std::mem::take(&mut watcher.initial).into_iter(),
                    initial_end: (initial == Some(true) && options.bookmarks).then_some(revision),
                    timer: Box::pin(tokio::time::sleep_until(bookmark_at.map_or(until, |at| at.min(until)))),
                    until,
                    sent: if start == Start::State {
                        revision
                    } else {
                        options.resource_version.unwrap_or(revision)
                    },
                    watcher,
                    encoder,
                };
                // In a box, since it moves with every event.
                Body::stream(stream::unfold(Box::new(progress), |mut progress| async move {
                    let bytes = progress.step().await?;
                    Some((Ok::<_, BoxError>(bytes), progress))
                }))
            }
            Err(too_old) => {
                let status = Status::too_old(options.resource_version.unwrap_or(0), too_old.oldest);
                Body::full(
                    wire::encode_event("ERROR", &respond::status_value(&status), accept).unwrap_or_default(),
                )
            }
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(response)
    }
}
