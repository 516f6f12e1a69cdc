//! endpointslice-controller: the slices of every service with a selector.

mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, WorkQueue, reference, run_workers};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound, message};
use crate::support::services::{PodView, ServiceSelectors, selector, view};

pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Index by `namespace/service`, of slices this controller manages.
const SERVICE_INDEX: &str = "endpointslice-service";

struct Controller {
    ctx: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    selectors: ServiceSelectors,
    written: Written,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        services: ctx.client.informer(),
        pods: ctx.client.informer(),
        nodes: ctx.client.informer(),
        slices: ctx.client.informer(),
        selectors: ServiceSelectors::default(),
        written: Written::default(),
        recorder: ctx.client.recorder("endpoint-slice-controller", ""),
        ctx: ctx.clone(),
    });
    controller.slices.add_index(SERVICE_INDEX, |slice| {
        let a = &slice.attributes;
        match (a.label(MANAGED_BY), a.label(SERVICE_NAME)) {
            (Some(MANAGER), Some(service)) => vec![format!("{}/{service}", a.namespace)],
            _ => vec![],
        }
    });
    let queue = WorkQueue::<String>::new();
    let (c, q) = (controller.clone(), queue.clone());
    controller.services.subscribe(move |delta| {
        c.selectors.observe(&c.services, delta);
        if matches!(delta, Delta::Deleted(_)) {
            c.written.forget(&delta.key());
        }
        q.add(delta.key());
    });
    controller.services.synced().await;
    let (c, q) = (controller.clone(), queue.clone());
    controller.pods.subscribe(move |delta| c.selectors.enqueue(&c.pods, delta, &q));
    controller.pods.synced().await;
    controller.nodes.synced().await;
    let q = queue.clone();
    controller.slices.subscribe(move |delta| {
        for slice in [Some(delta.object()), delta.old()].into_iter().flatten() {
            let a = &slice.attributes;
            if let (Some(MANAGER), Some(service)) = (a.label(MANAGED_BY), a.label(SERVICE_NAME)) {
                q.add(format!("{}/{service}", a.namespace));
            }
        }
    });
    controller.slices.synced().await;
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

impl Controller {
    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(service) = self.services.get_key_typed(key) else { return Ok(None) };
        let Some(selector) = service.spec.as_ref().and_then(selector) else { return Ok(None) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let (namespace, _) = key.split_once('/').unwrap_or_default();
        let mut slices: Vec<EndpointSlice> = self.slices.by_index_typed(SERVICE_INDEX, key);
        if !self.written.seen(key, &mut slices) {
            // The informer's events bring us back; the timer only serves writes whose events never come.
            return Ok(Some(Duration::from_secs(5)));
        }
        let pods: Vec<PodView> = self
            .pods
            .list(Some(namespace))
            .iter()
            .filter(|p| selector.matches(&p.attributes))
            .filter_map(|p| view(&self.pods, p))
            .collect();
        let zone = |node: &str| {
            let node = self.nodes.get("", node)?;
            node.attributes.label(ZONE).filter(|z| !z.is_empty()).map(str::to_owned)
        };
        let plan = plan::plan(&service, &pods, &slices, zone);
        let api: Api<EndpointSlice> = self.ctx.client.namespaced(namespace);
        for slice in &plan.create {
            match api.create(&PostParams::default(), slice).await {
                Ok(made) => self.written.wrote(key, &made),
                Err(error) if error.is_namespace_terminating() => return Ok(None),
                Err(error) => return Err(self.failed(&service, "FailedToUpdateEndpointSlices", error)),
            }
        }
        for slice in &plan.update {
            let name = slice.metadata.name.as_deref().unwrap_or_default();
            match api.replace(name, &PostParams::default(), slice).await {
                Ok(made) => self.written.wrote(key, &made),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(self.failed(&service, "FailedToUpdateEndpointSlices", error)),
            }
        }
        for name in &plan.delete {
            self.written.deleted(key, name);
            api.delete(name, &DeleteParams::default()).await.ignore_not_found()?;
        }
        Ok(None)
    }

    fn failed(&self, service: &Service, reason: &str, error: kube::Error) -> anyhow::Error {
        if !error.is_conflict() {
            let (ns, name) = (&service.metadata.namespace, &service.metadata.name);
            let (ns, name) = (ns.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default());
            let text = format!("Error updating Endpoint Slices for Service {ns}/{name}: {}", message(&error));
            self.recorder.warning(&reference(service), reason, text);
        }
        error.into()
    }
}

/// Our own writes that the informer may not have seen yet: planning on a state older than them would make
/// slices twice.
#[derive(Default)]
struct Written {
    by_service: Mutex<HashMap<String, Writes>>,
}

#[derive(Default)]
struct Writes {
    /// Slice to the revision we wrote, and when.
    revisions: HashMap<String, (u64, Instant)>,
    deleted: HashSet<String>,
}

fn revision(slice: &EndpointSlice) -> u64 {
    slice.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl Written {
    fn wrote(&self, service: &str, slice: &EndpointSlice) {
        let name = slice.metadata.name.clone().unwrap_or_default();
        let mut all = self.by_service.lock();
        let writes = all.entry(service.to_owned()).or_default();
        writes.revisions.insert(name, (revision(slice), Instant::now()));
    }

    fn deleted(&self, service: &str, slice: &str) {
        let mut all = self.by_service.lock();
        all.entry(service.to_owned()).or_default().deleted.insert(slice.to_owned());
    }

    fn forget(&self, service: &str) {
        self.by_service.lock().remove(service);
    }

    /// Whether `slices` include all our writes. Takes out those we deleted.
    fn seen(&self, service: &str, slices: &mut Vec<EndpointSlice>) -> bool {
        let mut all = self.by_service.lock();
        let Some(writes) = all.get_mut(service) else { return true };
        let present: HashMap<String, u64> =
            slices.iter().map(|s| (s.metadata.name.clone().unwrap_or_default(), revision(s))).collect();
        writes.deleted.retain(|name| present.contains_key(name));
        slices.retain(|s| !s.metadata.name.as_ref().is_some_and(|n| writes.deleted.contains(n)));
        writes.revisions.retain(|name, (wrote, at)| {
            let fresh = present.get(name).is_some_and(|seen| seen >= wrote);
            // Made and gone again before we looked.
            !fresh && at.elapsed() < Duration::from_secs(5)
        });
        writes.revisions.is_empty()
    }
}
