//! service-cidr-controller: service ranges say when they are ready, and stay while addresses need them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Delta, Informer, WorkQueue, run_workers};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::Context;
use crate::support::errors::IgnoreNotFound;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Allocators may not know of a deletion yet for this long.
const GRACE: Duration = Duration::from_secs(10);
const BLOCKED: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let ranges: Informer<ServiceCIDR> = ctx.client.informer();
    let addresses: Informer<IPAddress> = ctx.client.informer();
    let queue = WorkQueue::<String>::new();
    let (q, all) = (queue.clone(), ranges.clone());
    // Only those that wait to go depend on others.
    let wake = move || {
        all.list(None).iter().filter(|r| r.attributes.deleting).for_each(|r| q.add(r.name().to_owned()))
    };
    let (q, woken) = (queue.clone(), wake.clone());
    ranges.subscribe(move |delta| {
        q.add(delta.object().name().to_owned());
        woken();
    });
    addresses.subscribe(move |delta| {
        if matches!(delta, Delta::Deleted(_)) {
            wake();
        }
    });
    ranges.synced().await;
    addresses.synced().await;
    let all = Arc::new((ranges, addresses));
    run_workers(queue, 1, ctx.shutdown.clone(), move |name| {
        let (ctx, all) = (ctx.clone(), all.clone());
        async move { sync(&ctx, &all.0, &all.1, &name).await }
    })
    .await;
    Ok(())
}

fn prefixes(range: &ServiceCIDR) -> Vec<IpNet> {
    range.spec.iter().flat_map(|s| s.cidrs.iter().flatten()).filter_map(|c| c.parse().ok()).collect()
}

/// Whether every address stays within some other range. `others` are the ranges that stay.
fn may_go(going: &[IpNet], others: &[IpNet], addresses: &[IpAddr]) -> bool {
    going.iter().all(|g| others.iter().any(|o| o.contains(g)))
        || !addresses
            .iter()
            .any(|a| going.iter().any(|g| g.contains(a)) && !others.iter().any(|o| o.contains(a)))
}

async fn sync(
    ctx: &Context,
    ranges: &Informer<ServiceCIDR>,
    addresses: &Informer<IPAddress>,
    name: &str,
) -> anyhow::Result<Option<Duration>> {
    let Some(range) = ranges.get_typed("", name) else { return Ok(None) };
    let now = ctx.clock.now();
    let finalizers = range.metadata.finalizers.clone().unwrap_or_default();
    let ours = finalizers.iter().any(|f| f == FINALIZER);
    let Some(deleted) = range.metadata.deletion_timestamp.clone() else {
        if !ours {
            let wanted: Vec<String> = finalizers.into_iter().chain([FINALIZER.to_owned()]).collect();
            set_finalizers(ctx, &range, name, wanted).await?;
        }
        set_ready(ctx, range, "True", "", "Kubernetes Service CIDR is ready", now).await?;
        return Ok(None);
    };
    if !ours {
        return Ok(None);
    }
    let others: Vec<IpNet> = ranges
        .list_typed(None)
        .iter()
        .filter(|r| r.metadata.name.as_deref() != Some(name))
        .flat_map(prefixes)
        .collect();
    let used: Vec<IpAddr> = addresses.list(None).iter().filter_map(|a| a.name().parse().ok()).collect();
    if !may_go(&prefixes(&range), &others, &used) {
        set_ready(ctx, range, "False", "Terminating", BLOCKED, now).await?;
        return Ok(None);
    }
    let left = Duration::try_from((deleted.0 + GRACE).duration_since(now)).unwrap_or_default();
    if !left.is_zero() {
        return Ok(Some(left));
    }
    set_finalizers(ctx, &range, name, finalizers.into_iter().filter(|f| f != FINALIZER).collect()).await?;
    Ok(None)
}

async fn set_finalizers(
    ctx: &Context,
    range: &ServiceCIDR,
    name: &str,
    wanted: Vec<String>,
) -> kube::Result<()> {
    let patch = json!({"metadata": {"uid": range.metadata.uid, "finalizers": wanted}});
    let api = ctx.client.all::<ServiceCIDR>();
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.ignore_not_found()?;
    Ok(())
}

async fn set_ready(
    ctx: &Context,
    mut range: ServiceCIDR,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> kube::Result<()> {
    let name = range.metadata.name.clone().unwrap_or_default();
    let api = ctx.client.all::<ServiceCIDR>();
    let conditions = range.status.get_or_insert_default().conditions.get_or_insert_default();
    if conditions.iter().any(|c| c.type_ == "Ready" && c.status == status) {
        return Ok(());
    }
    conditions.retain(|c| c.type_ != "Ready");
    conditions.push(Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: Time(now),
        observed_generation: None,
    });
    // What was just written may have moved on.
    range.metadata.resource_version = None;
    if let Some(live) = api.get_opt(&name).await? {
        range.metadata = live.metadata;
        api.replace_status(&name, &PostParams::default(), &range).await.ignore_not_found()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_use_stay() {
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        for (others, addresses, want) in [
            (vec![], vec![], true),
            (vec![], vec!["10.1.0.1"], false),
            (vec![], vec!["10.2.0.1"], true),
            (vec!["10.0.0.0/8"], vec!["10.1.0.1"], true),
            (vec!["10.1.0.0/24"], vec!["10.1.0.1"], true),
            (vec!["10.1.0.0/24"], vec!["10.1.1.1"], false),
        ] {
            let used: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(
                may_go(&nets(&["10.1.0.0/16"]), &nets(&others), &used),
                want,
                "{others:?} {addresses:?}"
            );
        }
    }
}
