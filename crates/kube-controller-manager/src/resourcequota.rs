//! resourcequota-controller: counts what namespaces use. Admission charges what is made; what is gone is counted here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::pod_resources::{Amounts, add, amounts};
use apimachinery::quantity::{Format, Quantity};
use apimachinery::quota_usage::{count_name, scopes_match, tracks, usage};
use client::{Delta, Informer, Resource, Selection, WorkQueue, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::api::PostParams;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::Context;
use crate::support::discovery::discover;
use crate::support::errors::IgnoreNotFound;

/// Everything is counted again this often, in case a deletion and a charge crossed.
const RECOUNT: Duration = Duration::from_secs(300);
/// Resources that quotas count under names of their own.
const NAMED: [&str; 7] = [
    "pods",
    "services",
    "persistentvolumeclaims",
    "configmaps",
    "secrets",
    "replicationcontrollers",
    "resourcequotas",
];

struct Controller {
    ctx: Context,
    quotas: Informer<ResourceQuota>,
    queue: WorkQueue<String>,
    /// Resources whose deletions we hear of.
    watched: Mutex<HashSet<Resource>>,
}

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let controller = Arc::new(Controller {
        quotas: ctx.client.informer(),
        queue: WorkQueue::new(),
        watched: Mutex::default(),
        ctx: ctx.clone(),
    });
    let c = controller.clone();
    controller.quotas.subscribe(move |delta| {
        let spec = |o: &Encoded| c.quotas.decode(o).map(|q| q.spec);
        match delta {
            // Charges change the status only, and are right already.
            Delta::Updated { old, new } if spec(old) == spec(new) => {}
            Delta::Deleted(_) => {}
            _ => c.queue.add(delta.key()),
        }
    });
    controller.quotas.synced().await;
    let queue = controller.queue.clone();
    run_workers(queue, 5, ctx.shutdown.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
    .await;
    Ok(())
}

impl Controller {
    async fn sync(self: &Arc<Self>, key: &str) -> anyhow::Result<Option<Duration>> {
        let Some(object) = self.quotas.get_key(key) else { return Ok(None) };
        let quota = object.to_value()?;
        let hard = amounts(&quota["spec"]["hard"]);
        let mut used = Amounts::new();
        for resource in self.counted(&hard).await? {
            let informer = self.watch(&resource);
            informer.synced().await;
            let objects = informer.list(Some(object.namespace()));
            add(&mut used, &count(&resource, &quota, &objects, self.ctx.clock.now()));
        }
        let used: serde_json::Map<String, Value> = hard
            .keys()
            .map(|name| {
                let amount = used.get(name).copied().unwrap_or(Quantity::new(0, Format::DecimalSi));
                (name.clone(), json!(amount.to_string()))
            })
            .collect();
        let same = amounts(&quota["status"]["hard"]) == hard
            && amounts(&quota["status"]["used"]) == amounts(&Value::Object(used.clone()));
        if !same {
            let mut wanted: ResourceQuota = object.decode()?;
            let status = json!({"hard": quota["spec"]["hard"], "used": used});
            wanted.status = serde_json::from_value(status)?;
            let api = self.ctx.client.namespaced::<ResourceQuota>(object.namespace());
            api.replace_status(object.name(), &PostParams::default(), &wanted).await.ignore_not_found()?;
        }
        Ok(Some(RECOUNT))
    }

    /// The resources whose objects count against any of these limits.
    async fn counted(&self, hard: &Amounts) -> anyhow::Result<Vec<Resource>> {
        let mut found: Vec<Resource> = Vec::new();
        for name in NAMED {
            if hard.keys().any(|limit| tracks("", name, limit)) {
                found.push(Resource::new("", "v1", name));
            }
        }
        for limit in hard.keys().filter_map(|l| l.strip_prefix("count/")) {
            let (plural, group) = limit.split_once('.').unwrap_or((limit, ""));
            if found.iter().any(|r| r.group == group && r.plural == plural) {
                continue;
            }
            if let Some(info) = apimachinery::resources::find_any_version(group, plural) {
                found.push(Resource::new(group, info.version, plural));
                continue;
            }
            let served = discover(&self.ctx.client.kube()).await?.resources;
            let served = served.into_iter().find(|r| {
                r.resource.group == group && r.resource.plural == plural && r.namespaced && r.can("watch")
            });
            found.extend(served.map(|r| r.resource));
        }
        Ok(found)
    }

    /// Listens for what makes usage go down.
    fn watch(self: &Arc<Self>, resource: &Resource) -> client::RawInformer {
        let informer = self.ctx.client.raw_informer(resource.clone(), Selection::all());
        if self.watched.lock().insert(resource.clone()) {
            let controller = Arc::downgrade(self);
            let kind = resource.clone();
            informer.subscribe(move |delta| {
                let Some(controller) = controller.upgrade() else { return };
                let object = delta.object();
                let matters = match delta {
                    Delta::Added(_) => false,
                    Delta::Deleted(_) => true,
                    Delta::Updated { old, new } => changes_usage(&kind, old, new),
                };
                if matters {
                    for quota in controller.quotas.list(Some(object.namespace())) {
                        controller.queue.add(quota.key());
                    }
                }
            });
        }
        informer
    }
}

/// Whether an update may lower usage, or moves an object between scopes.
fn changes_usage(resource: &Resource, old: &Encoded, new: &Encoded) -> bool {
    if !resource.group.is_empty() {
        return false;
    }
    match resource.plural.as_str() {
        "pods" => {
            let phase = |o: &Encoded| o.attributes.field("status.phase").unwrap_or_default().to_owned();
            let ended = |o: &Encoded| matches!(phase(o).as_str(), "Succeeded" | "Failed");
            let deadline =
                |o: &Encoded| o.to_value().map(|v| v["spec"]["activeDeadlineSeconds"].clone()).ok();
            ended(old) != ended(new)
                || old.attributes.deleting != new.attributes.deleting
                || (old.body.len() != new.body.len() && deadline(old) != deadline(new))
        }
        "services" | "persistentvolumeclaims" => {
            let spec = |o: &Encoded| o.to_value().map(|v| v["spec"].clone()).ok();
            spec(old) != spec(new)
        }
        _ => false,
    }
}

/// What objects of one resource count against a quota. Pure.
fn count(resource: &Resource, quota: &Value, objects: &[Arc<Encoded>], now: Timestamp) -> Amounts {
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    let scoped = quota["spec"]["scopes"].as_array().is_some_and(|s| !s.is_empty())
        || quota["spec"]["scopeSelector"]["matchExpressions"].as_array().is_some_and(|s| !s.is_empty());
    let detailed = group.is_empty() && matches!(plural, "pods" | "services" | "persistentvolumeclaims");
    let mut total = Amounts::new();
    if !detailed && !scoped {
        // One of a kind counts as any other.
        let number = Quantity::new(objects.len() as i64, Format::DecimalSi);
        total.insert(count_name(group, plural), number);
        if group.is_empty() {
            total.insert(plural.to_owned(), number);
        }
        return total;
    }
    for object in objects {
        let Ok(value) = object.to_value() else { continue };
        if scopes_match(group, plural, quota, &value) {
            add(&mut total, &usage(group, plural, &value, now));
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_is_in_scope() {
        let pod = |phase: &str, deadline: Option<i64>| {
            let value = json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": phase}, "spec": {
                "activeDeadlineSeconds": deadline, "containers": [{"resources": {"requests": {"cpu": "500m"}}}]}});
            Arc::new(Encoded::new(value.to_string().into(), 1, |_| vec![]).unwrap())
        };
        let pods = [pod("Running", None), pod("Running", Some(5)), pod("Failed", None)];
        let text = |quota: Value, resource: Resource| {
            let total = count(&resource, &quota, &pods, Timestamp::UNIX_EPOCH);
            total.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
        };
        let core = |plural: &str| Resource::new("", "v1", plural);
        let all = json!({"spec": {}});
        let terminating = json!({"spec": {"scopes": ["Terminating"]}});
        assert_eq!(text(all.clone(), core("pods")), "count/pods=3,cpu=1,pods=2,requests.cpu=1");
        assert_eq!(text(terminating.clone(), core("pods")), "count/pods=1,cpu=500m,pods=1,requests.cpu=500m");
        assert_eq!(text(all.clone(), core("secrets")), "count/secrets=3,secrets=3");
        assert_eq!(text(all, Resource::new("apps", "v1", "deployments")), "count/deployments.apps=3");
        assert_eq!(text(terminating, core("secrets")), "");
    }
}
