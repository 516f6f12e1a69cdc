//! endpointslice-mirroring-controller: slices for the Endpoints that somebody else maintains.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Informer, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};

use crate::Context;
use crate::endpointslice::{MANAGED_BY, SERVICE_NAME};
use crate::support::errors::{ApiError, IgnoreNotFound};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const HEADLESS: &str = "service.kubernetes.io/headless";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const MAX_PER_SUBSET: usize = 1000;
const SERVICE_INDEX: &str = "endpointslice-mirrored";

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let endpoints: Informer<Endpoints> = ctx.client.informer();
    let services: Informer<Service> = ctx.client.informer();
    let slices: Informer<EndpointSlice> = ctx.client.informer();
    slices.add_index(SERVICE_INDEX, |slice| {
        let a = &slice.attributes;
        match (a.label(MANAGED_BY), a.label(SERVICE_NAME)) {
            (Some(MANAGER), Some(service)) => vec![format!("{}/{service}", a.namespace)],
            _ => vec![],
        }
    });
    let queue = WorkQueue::<String>::new();
    let q = queue.clone();
    endpoints.subscribe(move |delta| q.add(delta.key()));
    let q = queue.clone();
    services.subscribe(move |delta| q.add(delta.key()));
    endpoints.synced().await;
    services.synced().await;
    let q = queue.clone();
    slices.subscribe(move |delta| {
        let a = &delta.object().attributes;
        if let (Some(MANAGER), Some(service)) = (a.label(MANAGED_BY), a.label(SERVICE_NAME)) {
            q.add(format!("{}/{service}", a.namespace));
        }
    });
    slices.synced().await;
    let all = Arc::new((endpoints, services, slices));
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let (ctx, all) = (ctx.clone(), all.clone());
        async move {
            let (endpoints, services, slices) = &*all;
            let mirrored = endpoints
                .get_key_typed(&key)
                .filter(|e| services.get_key_typed(&key).is_some_and(|s| should_mirror(e, &s)));
            let present: Vec<EndpointSlice> = slices.by_index_typed(SERVICE_INDEX, &key);
            let wanted = mirrored.as_ref().map(wanted).unwrap_or_default();
            let (namespace, _) = key.split_once('/').unwrap_or_default();
            carry_out(&ctx, namespace, plan(wanted, present)).await
        }
    })
    .await;
    Ok(())
}

/// Endpoints without a selector behind them, which nobody marked as not to be mirrored.
fn should_mirror(endpoints: &Endpoints, service: &Service) -> bool {
    let meta = &endpoints.metadata;
    let skip = meta.labels.as_ref().and_then(|l| l.get(SKIP)).is_some_and(|v| v == "true");
    let leads = meta.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
    let selects = service.spec.as_ref().and_then(|s| s.selector.as_ref()).is_some();
    !skip && !leads && !selects && meta.deletion_timestamp.is_none()
}

/// One slice per subset and address family.
fn wanted(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let meta = &endpoints.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.remove(LAST_APPLIED);
    annotations.remove(TRIGGER_TIME);
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Endpoints".to_owned(),
        name: name.clone(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|p| EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                port: Some(p.port),
                app_protocol: p.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        let mut families: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        for (address, ready) in ready.chain(unready).take(MAX_PER_SUBSET) {
            let family = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            families.entry(family).or_default().push(endpoint(address, ready));
        }
        for (family, list) in families {
            slices.push(EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{name}-")),
                    namespace: meta.namespace.clone(),
                    labels: Some(labels.clone()),
                    annotations: Some(annotations.clone()).filter(|a| !a.is_empty()),
                    owner_references: Some(vec![owner.clone()]),
                    ..ObjectMeta::default()
                },
                address_type: family.to_owned(),
                endpoints: Some(list),
                ports: Some(ports.clone()),
            });
        }
    }
    slices
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), serving: None, terminating: None }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<String>,
}

/// Keeps what is right, rewrites a slice of the same ports and family, makes the rest.
fn plan(wanted: Vec<EndpointSlice>, mut present: Vec<EndpointSlice>) -> Plan {
    let mut plan = Plan::default();
    for slice in wanted {
        let like = |p: &EndpointSlice| p.address_type == slice.address_type && p.ports == slice.ports;
        let Some(at) = present.iter().position(like) else {
            plan.create.push(slice);
            continue;
        };
        let mut kept = present.swap_remove(at);
        let same = kept.endpoints == slice.endpoints
            && kept.metadata.labels == slice.metadata.labels
            && kept.metadata.annotations.as_ref().filter(|a| !a.is_empty())
                == slice.metadata.annotations.as_ref();
        if !same {
            kept.endpoints = slice.endpoints;
            kept.metadata.labels = slice.metadata.labels;
            kept.metadata.annotations = slice.metadata.annotations;
            plan.update.push(kept);
        }
    }
    plan.delete = present.into_iter().filter_map(|p| p.metadata.name).collect();
    plan
}

async fn carry_out(ctx: &Context, namespace: &str, plan: Plan) -> kube::Result<Option<Duration>> {
    let api = ctx.client.namespaced::<EndpointSlice>(namespace);
    for slice in &plan.create {
        match api.create(&PostParams::default(), slice).await {
            Err(error) if error.is_namespace_terminating() => return Ok(None),
            result => result?,
        };
    }
    for slice in &plan.update {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        api.replace(name, &PostParams::default(), slice).await.ignore_not_found()?;
    }
    for name in &plan.delete {
        api.delete(name, &DeleteParams::default()).await.ignore_not_found()?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mirrors_each_subset() {
        let endpoints = |ips: &[&str]| -> Endpoints {
            let addresses: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            serde_json::from_value(
                json!({"metadata": {"name": "e", "namespace": "n", "uid": "u"}, "subsets": [
                {"addresses": addresses, "ports": [{"port": 80, "name": "w"}]}]}),
            )
            .unwrap()
        };
        let mut slices = plan(wanted(&endpoints(&["1.1.1.1", "fd00::1"])), vec![]).create;
        assert_eq!(slices.iter().map(|s| s.address_type.as_str()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        for (i, slice) in slices.iter_mut().enumerate() {
            slice.metadata.name = Some(format!("e-{i}"));
        }
        assert_eq!(plan(wanted(&endpoints(&["1.1.1.1", "fd00::1"])), slices.clone()), Plan::default());
        let next = plan(wanted(&endpoints(&["1.1.1.2"])), slices);
        assert_eq!((next.create.len(), next.update.len(), next.delete), (0, 1, vec!["e-1".to_owned()]));
    }
}
