//! Events sent to a webhook, as an EventList of `audit.k8s.io/v1`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::backend::Options;
use super::event::Event;
use crate::outbound::{Backoff, Service};

/// Where events are sent.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// A kubeconfig.
    pub file: PathBuf,
    /// The pause before a batch is sent a second time.
    pub initial_backoff: Duration,
    pub options: Options,
}

pub struct Webhook {
    service: Service,
    backoff: Backoff,
}

impl Webhook {
    pub async fn new(config: &WebhookConfig) -> anyhow::Result<Webhook> {
        let service = Service::from_kubeconfig(&config.file).await.context("initializing audit webhook")?;
        Ok(Webhook { service, backoff: Backoff { initial: config.initial_backoff, ..Backoff::default() } })
    }

    /// Sends events until they are taken. Whatever goes wrong may be better the next time.
    pub async fn send(&self, events: &[Event]) -> Result<(), String> {
        let mut body =
            br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
        for (i, event) in events.iter().enumerate() {
            if i > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&event.json);
        }
        body.extend_from_slice(b"]}");
        let body = bytes::Bytes::from(body);
        let sent = self.backoff.retry_if(|| self.service.deliver(body.clone()), |_| true).await;
        sent.map_err(|e| e.to_string())
    }
}
