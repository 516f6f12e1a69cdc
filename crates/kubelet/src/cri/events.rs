//! What the runtime tells by itself: which containers ended. containerd has its own event stream on the socket that
//! serves CRI; other runtimes may have `GetContainerEvents`; for the rest the caller lists again now and then.

use std::time::Duration;

use prost::Message;
use tokio_util::sync::CancellationToken;

use super::api::*;
use super::{Cri, CriError};

/// Where news come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Containerd,
    Cri,
    /// Nobody tells anything: containers must be listed.
    Listing,
}

#[derive(Debug)]
pub enum Event {
    /// This container or sandbox ended, was killed for memory, or came up.
    Changed(String),
    /// Events may have been missed, or there are none: everything must be looked at.
    Relist,
}

const CONTAINERD: &str = "/containerd.services.events.v1.Events/Subscribe";
const GET_EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";
/// How often to list where no events are to be had.
const LISTING_PERIOD: Duration = Duration::from_secs(1);

/// Follows the runtime until `shutdown`, reconnecting as needed.
pub async fn follow(cri: Cri, shutdown: CancellationToken, tell: impl Fn(Event)) {
    let mut source = Source::Containerd;
    while !shutdown.is_cancelled() {
        let result = tokio::select! {
            _ = shutdown.cancelled() => return,
            r = async { match source {
                Source::Containerd => containerd(&cri, &tell).await,
                Source::Cri => cri_events(&cri, &tell).await,
                Source::Listing => {
                    tokio::time::sleep(LISTING_PERIOD).await;
                    tell(Event::Relist);
                    Ok(())
                }
            } } => r,
        };
        match result {
            Err(CriError::Unimplemented(_)) => {
                source = match source {
                    Source::Containerd => Source::Cri,
                    _ => Source::Listing,
                };
                tracing::info!(?source, "the runtime has no such event stream");
            }
            Err(error) => {
                tracing::warn!(%error, "runtime events interrupted");
                tokio::select! {
                    _ = shutdown.cancelled() => return,
                    _ = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
            }
            Ok(()) => {}
        }
    }
}

async fn containerd(cri: &Cri, tell: &impl Fn(Event)) -> super::Result<()> {
    let filters = ["exit", "oom"].map(|t| format!("namespace==\"k8s.io\",topic==\"/tasks/{t}\"")).to_vec();
    let mut stream =
        cri.stream::<_, Envelope>(CONTAINERD, SubscribeRequest { filters }, Some("k8s.io")).await?;
    tell(Event::Relist);
    while let Some(envelope) = stream.message().await? {
        let Some(any) = envelope.event else { continue };
        if envelope.topic == "/tasks/exit" {
            // Commands run inside a container end under their own id; those are not news.
            match TaskExit::decode(any.value.as_slice()) {
                Ok(exit) if exit.id == exit.container_id => tell(Event::Changed(exit.container_id)),
                _ => {}
            }
        } else if let Ok(oom) = ContainerOnly::decode(any.value.as_slice()) {
            tell(Event::Changed(oom.container_id));
        }
    }
    Err(CriError::Unavailable("event stream ended".into()))
}

async fn cri_events(cri: &Cri, tell: &impl Fn(Event)) -> super::Result<()> {
    let mut stream = cri.stream::<_, ContainerEventResponse>(GET_EVENTS, Empty {}, None).await?;
    tell(Event::Relist);
    while let Some(event) = stream.message().await? {
        tell(Event::Changed(event.container_id));
    }
    Err(CriError::Unavailable("event stream ended".into()))
}
