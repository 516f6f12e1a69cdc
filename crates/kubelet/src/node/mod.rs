//! This machine as a Node: registered, its status and lease kept.

pub mod eviction;
pub mod garbage;
pub mod machine;
mod status;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::kubelet::{Kubelet, api_message};

const LEASE_SECONDS: i32 = 40;
const LEASE_PERIOD: Duration = Duration::from_secs(10);
const STATUS_PERIOD: Duration = Duration::from_secs(300);
/// How soon to look again while the node is not ready.
const RECHECK: Duration = Duration::from_millis(250);
const RECHECK_LATER: Duration = Duration::from_secs(2);

pub fn reference(kubelet: &Kubelet) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(kubelet.config.node_name.clone()),
        uid: Some(kubelet.config.node_name.clone()),
        ..ObjectReference::default()
    }
}

pub async fn run(kubelet: Arc<Kubelet>) {
    kubelet.events.normal(&reference(&kubelet), "Starting", "Starting kubelet.");
    if kubelet.config.register_node && !register(&kubelet).await {
        return;
    }
    let lease = kubelet.tasks.spawn(keep_lease(kubelet.clone()));
    keep_status(&kubelet).await;
    let _ = lease.await;
}

/// Creates the node, or sees to its labels if it is there already. False if stopped before that was done.
async fn register(kubelet: &Arc<Kubelet>) -> bool {
    let nodes = kubelet.client.all::<Node>();
    let node = status::new_node(kubelet);
    loop {
        let result = match nodes.create(&PostParams::default(), &node).await {
            Ok(_) => return true,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = json!({"metadata": {"labels": node.metadata.labels}});
                let params = kube::api::PatchParams::default();
                nodes.patch(&kubelet.config.node_name, &params, &kube::api::Patch::Strategic(patch)).await
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(_) => return true,
            Err(error) => tracing::warn!(error = api_message(&error), "registering the node"),
        }
        if !kubelet.pause(Duration::from_millis(500)).await {
            return false;
        }
    }
}

async fn keep_status(kubelet: &Arc<Kubelet>) {
    let nodes = kubelet.client.all::<Node>();
    let mut sent: Option<Value> = None;
    let mut sent_at: Option<tokio::time::Instant> = None;
    let mut cidr_told = String::new();
    let mut announced = false;
    let mut unready_looks = 0u32;
    loop {
        let old = match (&sent, kubelet.node.get_typed("", &kubelet.config.node_name)) {
            (_, Some(node)) => node,
            _ => match nodes.get_opt(&kubelet.config.node_name).await {
                Ok(node) => node.unwrap_or_default(),
                Err(error) => {
                    tracing::warn!(error = api_message(&error), "reading the node");
                    Node::default()
                }
            },
        };
        if let Some(cidr) = old.spec.as_ref().and_then(|s| s.pod_cidr.clone()).filter(|c| *c != cidr_told) {
            // Runtimes that write their own network configuration want to know; others ignore it.
            let _ = kubelet.cri.update_pod_cidr(cidr.clone()).await;
            cidr_told = cidr;
        }
        let old_status = old.status.clone().unwrap_or_default();
        let (new, ready) = status::compute(kubelet, &old_status).await;
        let comparable = status::comparable(&new);
        let overdue = sent_at.is_none_or(|at| at.elapsed() >= STATUS_PERIOD);
        if overdue || sent.as_ref() != Some(&comparable) {
            match send(kubelet, &old_status, &new).await {
                Ok(()) => {
                    announce(kubelet, &old_status, &new, &mut announced);
                    sent = Some(comparable);
                    sent_at = Some(tokio::time::Instant::now());
                }
                Err(error) => tracing::warn!(error, "telling the node's status"),
            }
        }
        if !ready
            && kubelet.config.container_runtime_endpoint.is_none()
            && kubelet.cri.version().await.is_err()
        {
            // The containerd that is ours has gone: another takes over its shims.
            if let Err(error) = kubelet.config.containerd.ensure().await {
                tracing::warn!(error = format!("{error:#}"), "starting containerd again");
            }
        }
        let settled = sent.is_some() && ready;
        unready_looks = if settled { 0 } else { unready_looks + 1 };
        let pause = if settled {
            STATUS_PERIOD.saturating_sub(sent_at.map_or(Duration::ZERO, |at| at.elapsed()))
        } else if unready_looks < 240 {
            RECHECK
        } else {
            RECHECK_LATER
        };
        tokio::select! {
            _ = kubelet.shutdown.cancelled() => return,
            _ = kubelet.node_changed.notified() => {
                // Changes come in groups: many pods, many images.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            _ = tokio::time::sleep(pause) => {}
        }
    }
}

async fn send(kubelet: &Kubelet, old: &NodeStatus, new: &NodeStatus) -> Result<(), String> {
    let old = serde_json::to_value(old).map_err(|e| e.to_string())?;
    let mut new = serde_json::to_value(new).map_err(|e| e.to_string())?;
    if old["addresses"] != new["addresses"]
        && !old["addresses"].is_null()
        && let Some(list) = new["addresses"].as_array_mut()
    {
        list.push(json!({"$patch": "replace"}));
    }
    let Some(patch) = crate::status_patch::difference(&old, &new) else { return Ok(()) };
    // Heartbeats move in every condition; fields of others are left alone.
    let body = json!({"status": patch});
    let request = http::Request::patch(format!("/api/v1/nodes/{}/status", kubelet.config.node_name))
        .header(http::header::CONTENT_TYPE, "application/strategic-merge-patch+json")
        .body(body.to_string().into_bytes())
        .map_err(|e| e.to_string())?;
    match kubelet.client.kube().request_text(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 && kubelet.config.register_node => {
            // Somebody deleted the node: it is here still.
            let nodes = kubelet.client.all::<Node>();
            nodes
                .create(&PostParams::default(), &status::new_node(kubelet))
                .await
                .map_err(|e| api_message(&e))?;
            Err("the node was gone and has been registered again".into())
        }
        Err(error) => Err(api_message(&error)),
    }
}

fn announce(kubelet: &Kubelet, old: &NodeStatus, new: &NodeStatus, announced: &mut bool) {
    let get = |s: &NodeStatus, kind: &str| {
        s.conditions.iter().flatten().find(|c| c.type_ == kind).map(|c| c.status.clone()).unwrap_or_default()
    };
    let name = &kubelet.config.node_name;
    let reference = reference(kubelet);
    for (kind, yes, no) in [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ("Ready", "NodeReady", "NodeNotReady"),
    ] {
        let (was, is) = (get(old, kind), get(new, kind));
        if was != is || !*announced {
            let event = if is == "True" { yes } else { no };
            kubelet.events.normal(&reference, event, format!("Node {name} status is now: {event}"));
        }
    }
    *announced = true;
}

async fn keep_lease(kubelet: Arc<Kubelet>) {
    let leases = kubelet.client.namespaced::<Lease>("kube-node-lease");
    let name = kubelet.config.node_name.clone();
    let mut held: Option<Lease> = None;
    let mut timer = tokio::time::interval(LEASE_PERIOD);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = kubelet.shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        for attempt in 0..5u32 {
            match renew(&kubelet, &leases, &name, held.take()).await {
                Ok(lease) => {
                    held = Some(lease);
                    break;
                }
                Err(error) => {
                    tracing::debug!(error, "renewing the node's lease");
                    if !kubelet.pause(Duration::from_millis(200 << attempt)).await {
                        return;
                    }
                }
            }
        }
    }
}

async fn renew(
    kubelet: &Kubelet,
    leases: &kube::Api<Lease>,
    name: &str,
    held: Option<Lease>,
) -> Result<Lease, String> {
    let told = |e: kube::Error| api_message(&e);
    let lease = match held {
        Some(lease) => Some(lease),
        None => leases.get_opt(name).await.map_err(told)?,
    };
    let fresh = LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time: Some(MicroTime(Timestamp::now())),
        ..LeaseSpec::default()
    };
    match lease {
        Some(mut lease) => {
            lease.spec = Some(LeaseSpec { ..fresh });
            leases.replace(name, &PostParams::default(), &lease).await.map_err(told)
        }
        None => {
            let owner = kubelet.node.get("", name).map(|node| OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.to_owned(),
                uid: node.uid().to_owned(),
                ..OwnerReference::default()
            });
            let mut lease = Lease { spec: Some(fresh), ..Lease::default() };
            lease.metadata.name = Some(name.to_owned());
            lease.metadata.namespace = Some("kube-node-lease".into());
            lease.metadata.owner_references = owner.map(|o| vec![o]);
            leases.create(&PostParams::default(), &lease).await.map_err(told)
        }
    }
}
