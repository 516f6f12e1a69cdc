//! endpoints-controller: the Endpoints object of every service with a selector.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, EventRecorder, Informer, Selection, WorkQueue, reference, run_workers};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound, message};
use crate::support::services::{PodView, ServiceSelectors, has_address, selector, view};

const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const HEADLESS: &str = "service.kubernetes.io/headless";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MAX_ADDRESSES: usize = 1000;
/// Endpoints that serve as leases of old leader elections are left alone.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

struct Controller {
    ctx: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    selectors: ServiceSelectors,
    recorder: EventRecorder,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        services: ctx.client.informer(),
        pods: ctx.client.informer(),
        endpoints: ctx.client.informer_selected(Selection::all()),
        selectors: ServiceSelectors::default(),
        recorder: ctx.client.recorder("endpoint-controller", ""),
        ctx: ctx.clone(),
    });
    let queue = WorkQueue::<String>::new();
    let (c, q) = (controller.clone(), queue.clone());
    controller.services.subscribe(move |delta| {
        c.selectors.observe(&c.services, delta);
        q.add(delta.key());
    });
    controller.services.synced().await;
    let (c, q) = (controller.clone(), queue.clone());
    controller.pods.subscribe(move |delta| c.selectors.enqueue(&c.pods, delta, &q));
    controller.pods.synced().await;
    let q = queue.clone();
    controller.endpoints.subscribe(move |delta| match delta {
        // What the service's own sync did not delete is made again; leftovers of deleted services go.
        Delta::Added(_) | Delta::Deleted(_) => q.add(delta.key()),
        Delta::Updated { .. } => {}
    });
    controller.endpoints.synced().await;
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

impl Controller {
    async fn sync(&self, key: &str) -> anyhow::Result<Option<Duration>> {
        let (namespace, name) = key.split_once('/').unwrap_or_default();
        let api = self.ctx.client.namespaced::<Endpoints>(namespace);
        let present = self.endpoints.get_key_typed(key);
        let Some(service) = self.services.get_key_typed(key) else {
            if let Some(present) = present
                && is_ours(&present)
            {
                api.delete(name, &DeleteParams::default()).await.ignore_not_found()?;
            }
            return Ok(None);
        };
        let Some(selector) = service.spec.as_ref().and_then(selector) else { return Ok(None) };
        let pods: Vec<PodView> = self
            .pods
            .list(Some(namespace))
            .iter()
            .filter(|p| selector.matches(&p.attributes))
            .filter_map(|p| view(&self.pods, p))
            .collect();
        let Some(wanted) = plan(&service, &pods, present.as_ref()) else { return Ok(None) };
        let result = match present {
            Some(_) => api.replace(name, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match result {
            Err(error) if error.is_namespace_terminating() => Ok(None),
            Err(error) => {
                if !error.is_conflict() {
                    let (reason, what) = match present {
                        Some(_) => ("FailedToUpdateEndpoint", "update endpoint"),
                        None => ("FailedToCreateEndpoint", "create endpoint for service"),
                    };
                    let text = format!("Failed to {what} {key}: {}", message(&error));
                    self.recorder.warning(&reference(&wanted), reason, text);
                }
                Err(error.into())
            }
            Ok(_) => Ok(None),
        }
    }
}

fn is_ours(endpoints: &Endpoints) -> bool {
    let leads = endpoints.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    let ours = endpoints.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY.0)).map(String::as_str);
    !leads && ours == Some(MANAGED_BY.1)
}

/// The object as it should be, unless it is.
fn plan(service: &Service, pods: &[PodView], present: Option<&Endpoints>) -> Option<Endpoints> {
    let spec = service.spec.clone().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if !has_address(&spec) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let mut subsets = subsets(service, pods);
    let truncated = truncate(&mut subsets);
    let mut wanted = present.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    wanted.metadata.labels = Some(labels);
    wanted.subsets = Some(subsets).filter(|s| !s.is_empty());
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    match truncated {
        true => annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned()),
        false => annotations.remove(OVER_CAPACITY),
    };
    if annotations.is_empty() {
        wanted.metadata.annotations = None;
    }
    if let Some(present) = present {
        let bare = |e: &Endpoints| {
            let subsets = e.subsets.clone().filter(|s| !s.is_empty());
            let annotations = e.metadata.annotations.clone().filter(|a| !a.is_empty());
            (subsets, e.metadata.labels.clone(), annotations)
        };
        if bare(present) == bare(&wanted) {
            return None;
        }
    }
    Some(wanted)
}

/// Ports in an order that can be compared.
type Ports = Vec<(String, String, i32, Option<String>)>;

/// Pods with the same ports make one subset.
fn subsets(service: &Service, pods: &[PodView]) -> Vec<EndpointSubset> {
    let spec = service.spec.clone().unwrap_or_default();
    let publish_unready = spec.publish_not_ready_addresses.unwrap_or(false);
    let ipv6 = spec.ip_families.as_ref().and_then(|f| f.first()).is_some_and(|f| f == "IPv6");
    let service_ports = spec.ports.clone().unwrap_or_default();
    let mut by_ports: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in pods.iter().filter(|p| p.is_endpoint(publish_unready)) {
        let Some(ip) = pod.addresses().find(|ip| ip.contains(':') == ipv6) else { continue };
        let mut ports: Ports = service_ports
            .iter()
            .filter_map(|p| {
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                Some((p.name.clone().unwrap_or_default(), protocol, pod.port(p)?, p.app_protocol.clone()))
            })
            .collect();
        if ports.is_empty() && (!service_ports.is_empty() || has_address(&spec)) {
            continue;
        }
        ports.sort();
        ports.dedup();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: pod.hostname_for(name).map(str::to_owned),
            node_name: Some(pod.spec.node_name.clone()).filter(|n| !n.is_empty()),
            target_ref: Some(ObjectReference {
                kind: Some("Pod".to_owned()),
                namespace: Some(pod.metadata.namespace.clone()),
                name: Some(pod.metadata.name.clone()),
                uid: Some(pod.metadata.uid.clone()),
                ..ObjectReference::default()
            }),
        };
        let subset = by_ports.entry(ports).or_default();
        match publish_unready || pod.is_ready() {
            true => subset.0.push(address),
            false => subset.1.push(address),
        }
    }
    by_ports
        .into_iter()
        .map(|(ports, (mut ready, mut unready))| {
            let order = |a: &EndpointAddress, b: &EndpointAddress| a.ip.cmp(&b.ip);
            ready.sort_by(order);
            unready.sort_by(order);
            let ports: Vec<EndpointPort> = ports
                .into_iter()
                .map(|(name, protocol, port, app_protocol)| EndpointPort {
                    name: Some(name).filter(|n| !n.is_empty()),
                    protocol: Some(protocol),
                    port,
                    app_protocol,
                })
                .collect();
            EndpointSubset {
                addresses: Some(ready).filter(|a| !a.is_empty()),
                not_ready_addresses: Some(unready).filter(|a| !a.is_empty()),
                ports: Some(ports).filter(|p| !p.is_empty()),
            }
        })
        .collect()
}

/// Keeps the object within bounds, ready addresses first. Returns whether anything was dropped.
fn truncate(subsets: &mut Vec<EndpointSubset>) -> bool {
    let (mut left, mut dropped) = (MAX_ADDRESSES, false);
    let mut take = |list: &mut Option<Vec<EndpointAddress>>| {
        if let Some(addresses) = list {
            dropped |= addresses.len() > left;
            addresses.truncate(left);
            left -= addresses.len();
        }
    };
    subsets.iter_mut().for_each(|s| take(&mut s.addresses));
    subsets.iter_mut().for_each(|s| take(&mut s.not_ready_addresses));
    let any = |l: &Option<Vec<EndpointAddress>>| l.as_ref().is_some_and(|l| !l.is_empty());
    subsets.retain(|s| any(&s.addresses) || any(&s.not_ready_addresses));
    dropped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> PodView {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n", "uid": name},
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}}))
        .unwrap()
    }

    fn service(spec: serde_json::Value) -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "s", "namespace": "n", "labels": {"a": "b"}}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn groups_pods_by_their_ports() {
        let s = service(
            json!({"clusterIP": "10.0.0.1", "ports": [{"name": "w", "port": 80, "targetPort": "http"}]}),
        );
        let pods = [
            pod("a", "1.1.1.1", true, 8080),
            pod("b", "1.1.1.2", false, 8080),
            pod("c", "1.1.1.3", true, 9090),
        ];
        let endpoints = plan(&s, &pods, None).unwrap();
        let got: Vec<_> = endpoints
            .subsets
            .iter()
            .flatten()
            .map(|s| {
                let n = |l: &Option<Vec<EndpointAddress>>| l.as_ref().map_or(0, Vec::len);
                (s.ports.as_ref().unwrap()[0].port, n(&s.addresses), n(&s.not_ready_addresses))
            })
            .collect();
        assert_eq!(got, [(8080, 1, 1), (9090, 1, 0)]);
        assert_eq!(plan(&s, &pods, Some(&endpoints)), None);
        assert!(plan(&s, &pods[1..], Some(&endpoints)).is_some());
    }

    #[test]
    fn headless_services_need_no_ports() {
        let pods = [pod("a", "1.1.1.1", true, 1)];
        let headless = plan(&service(json!({"clusterIP": "None"})), &pods, None).unwrap();
        assert_eq!(headless.subsets.unwrap()[0].ports, None);
        assert!(headless.metadata.labels.unwrap().contains_key(HEADLESS));
        assert_eq!(plan(&service(json!({"clusterIP": "10.0.0.1"})), &pods, None).unwrap().subsets, None);
    }

    #[test]
    fn truncates_unready_first() {
        let s = service(json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}));
        let pods: Vec<PodView> = (0..1200)
            .map(|i| pod(&i.to_string(), &format!("1.1.{}.{}", i / 250, i % 250), i % 2 == 0, 1))
            .collect();
        let endpoints = plan(&s, &pods, None).unwrap();
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        assert_eq!(subset.addresses.as_ref().unwrap().len(), 600);
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 400);
        assert_eq!(endpoints.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
    }
}
