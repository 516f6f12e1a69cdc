//! Recording core/v1 Events.

use apimachinery::object::Encoded;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::event_correlation::{Correlator, Occurrence, Verdict};

/// Events that wait to be written; more are dropped.
const QUEUE: usize = 1000;
/// What an Event's message may measure.
const MESSAGE_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// The reference an Event carries to a typed object.
pub fn reference<K: kube::Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference { resource_version: object.meta().resource_version.clone(), ..object.object_ref(&()) }
}

/// The reference an Event carries to an object whose kind the caller knows.
pub fn reference_to(object: &Encoded, api_version: &str, kind: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(object.namespace().to_owned()).filter(|n| !n.is_empty()),
        name: Some(object.name().to_owned()),
        uid: Some(object.uid().to_owned()),
        resource_version: Some(object.resource_version.to_string()),
        field_path: None,
    }
}

struct Record {
    regarding: ObjectReference,
    event_type: EventType,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Writes Events in the background, deduplicated and rate limited. Cheap to clone; never blocks its caller.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Record>,
}

impl EventRecorder {
    pub(crate) fn start(
        kube: kube::Client,
        component: String,
        host: String,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> EventRecorder {
        let (queue, records) = mpsc::channel(QUEUE);
        let writer = Writer { kube, component, host, correlator: Correlator::default() };
        tasks.spawn(async move {
            shutdown.run_until_cancelled(writer.run(records)).await;
        });
        EventRecorder { queue }
    }

    /// A recorder that records nothing, for tests.
    pub fn discarding() -> EventRecorder {
        EventRecorder { queue: mpsc::channel(1).0 }
    }

    pub fn event(
        &self,
        regarding: &ObjectReference,
        event_type: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut message: String = message.into();
        if message.len() > MESSAGE_BYTES_MAX {
            let mut end = MESSAGE_BYTES_MAX - 4;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push_str(" ...");
        }
        let record = Record {
            regarding: regarding.clone(),
            event_type,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        };
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue.try_send(record) {
            tracing::debug!(reason, "too many events wait to be written; one dropped");
        }
    }

    pub fn normal(&self, regarding: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(regarding, EventType::Normal, reason, message);
    }

    pub fn warning(&self, regarding: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(regarding, EventType::Warning, reason, message);
    }
}

struct Writer {
    kube: kube::Client,
    component: String,
    host: String,
    correlator: Correlator,
}

impl Writer {
    async fn run(mut self, mut records: mpsc::Receiver<Record>) {
        while let Some(record) = records.recv().await {
            self.write(record).await;
        }
    }

    async fn write(&mut self, record: Record) {
        let occurrence = occurrence(&record);
        let namespace = record.regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let events: Api<Event> = Api::namespaced(self.kube.clone(), &namespace);
        let message = match self.correlator.judge(&occurrence, record.at) {
            Verdict::Drop => return,
            Verdict::Create { message } => message,
            Verdict::Count { name, count, message } => {
                let patch = json!({"count": count, "message": message, "lastTimestamp": Time(whole_seconds(record.at))});
                match events.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    Ok(_) => return,
                    Err(kube::Error::Api(status)) if status.is_not_found() => {
                        self.correlator.lost(&occurrence, &message);
                        message
                    }
                    Err(error) => {
                        tracing::debug!(%error, reason = record.reason, "an event could not be counted");
                        return;
                    }
                }
            }
        };
        let event = self.event(&record, &namespace, &message);
        let name = event.metadata.name.clone().unwrap_or_default();
        match events.create(&PostParams::default(), &event).await {
            Ok(_) => self.correlator.created(&occurrence, &message, name, record.at),
            // Namespaces that are going away take no more events.
            Err(error) => tracing::debug!(%error, reason = record.reason, "an event could not be written"),
        }
    }

    fn event(&self, record: &Record, namespace: &str, message: &str) -> Event {
        let object = record.regarding.name.clone().unwrap_or_default();
        let at = Some(Time(whole_seconds(record.at)));
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:x}", record.at.as_nanosecond())),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: record.regarding.clone(),
            reason: Some(record.reason.clone()),
            message: Some(message.to_owned()),
            type_: Some(record.event_type.as_str().to_owned()),
            first_timestamp: at.clone(),
            last_timestamp: at,
            count: Some(1),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(self.host.clone()).filter(|h| !h.is_empty()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }
    }
}

fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn occurrence(record: &Record) -> Occurrence {
    let r = &record.regarding;
    let parts = [&r.kind, &r.namespace, &r.name, &r.uid, &r.api_version, &r.field_path];
    Occurrence {
        object: parts.map(|p| p.as_deref().unwrap_or_default()).join("/"),
        event_type: record.event_type.as_str().to_owned(),
        reason: record.reason.clone(),
        message: record.message.clone(),
    }
}
