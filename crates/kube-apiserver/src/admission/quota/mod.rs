//! ResourceQuota: a write is admitted when every quota it falls under has room, and is charged at once.
//!
//! Charging is an optimistic update of the quota's status. Requests of one namespace take turns, and remember what they
//! wrote until the cache shows it, so conflicts are rare.

use apimachinery::quota_usage::{self as usage, scopes_match};

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::object::{Encoded, object_key};
use apimachinery::quantity::Quantity;
use apimachinery::status::Status;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::pod_resources::{Amounts, add, amounts};
use super::{Context, refuse};
use crate::seams::{AdmissionRequest, Operation};

const ATTEMPTS: u32 = 4;
/// How many namespaces' turns are kept; those nobody waits for are dropped beyond it.
const TURNS_MAX: usize = 256;
const WRITTEN_MAX: usize = 1024;

#[derive(Default)]
pub struct Quotas {
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Quotas as last written here, by key, until the cache catches up.
    written: Mutex<HashMap<String, Arc<Encoded>>>,
}

/// Whether this kind of request can change any quota's usage.
fn concerns(request: &AdmissionRequest<'_>) -> bool {
    if request.namespace.is_empty() || (request.group.is_empty() && request.resource == "namespaces") {
        return false;
    }
    if request.resource == "events" && matches!(request.group, "" | "events.k8s.io") {
        return false;
    }
    let deadline = |v: &Value| v["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0);
    match (request.group, request.resource, request.subresource, request.operation) {
        ("", "pods", "", Operation::Update) => {
            request.old_object.is_some_and(|old| deadline(old) != deadline(request.object))
        }
        ("", "pods", "resize", Operation::Update) => true,
        ("", "services" | "persistentvolumeclaims", "", Operation::Update) => true,
        (_, _, "", Operation::Create) => true,
        _ => false,
    }
}

fn pretty(amounts: &Amounts) -> String {
    amounts.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

fn mask(amounts: &Amounts, keep: impl Fn(&str) -> bool) -> Amounts {
    amounts.iter().filter(|(name, _)| keep(name)).map(|(k, v)| (k.clone(), *v)).collect()
}

/// A quota's new `status.used` if it admits the object: `Ok(None)` when it is not concerned, `Err` why it refuses.
pub fn charge(
    group: &str,
    resource: &str,
    quota: &Value,
    object: &Value,
    old: Option<&Value>,
    now: Timestamp,
) -> Result<Option<Amounts>, String> {
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    let hard = amounts(&quota["status"]["hard"]);
    let used = amounts(&quota["status"]["used"]);
    let tracked: Vec<&str> =
        hard.keys().map(String::as_str).filter(|n| usage::tracks(group, resource, n)).collect();
    if tracked.is_empty() || !scopes_match(group, resource, quota, object) {
        return Ok(None);
    }
    if let Some(missing) = usage::missing(group, resource, object, &tracked) {
        return Err(format!("failed quota: {name}: {missing}"));
    }
    let unknown: Vec<&str> = tracked.iter().copied().filter(|n| !used.contains_key(*n)).collect();
    if !unknown.is_empty() {
        return Err(format!("status unknown for quota: {name}, resources: {}", tracked.join(",")));
    }
    let mut delta = usage::usage(group, resource, object, now);
    let negative: Vec<&str> = delta.iter().filter(|(_, v)| v.sign() < 0).map(|(k, _)| k.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    if let Some(old) = old
        && scopes_match(group, resource, quota, old)
    {
        for (resource_name, before) in usage::usage(group, resource, old, now) {
            if let Some(amount) = delta.get_mut(&resource_name) {
                let less = *amount - before;
                *amount = if less.sign() < 0 { Quantity::new(0, less.format()) } else { less };
            }
        }
    }
    let requested = mask(&delta, |n| hard.contains_key(n) && !delta[n].is_zero());
    if requested.is_empty() {
        return Ok(None);
    }
    let mut total = used.clone();
    add(&mut total, &requested);
    let exceeds = |n: &str| -> bool {
        let (Some(total), Some(hard)): (Option<&Quantity>, Option<&Quantity>) = (total.get(n), hard.get(n))
        else {
            return false;
        };
        requested.contains_key(n) && total > hard
    };
    if requested.keys().any(|n| exceeds(n)) {
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            pretty(&mask(&requested, exceeds)),
            pretty(&mask(&used, exceeds)),
            pretty(&mask(&hard, exceeds))
        ));
    }
    Ok(Some(total))
}

impl Quotas {
    fn turn(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock();
        if turns.len() >= TURNS_MAX {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        turns.entry(namespace.to_owned()).or_default().clone()
    }

    /// The quotas of a namespace, newer than the cache where this server just wrote them.
    fn current(&self, context: &Context, namespace: &str) -> Vec<Arc<Encoded>> {
        let mut written = self.written.lock();
        let mut quotas = context.objects.list("", "resourcequotas", Some(namespace));
        for quota in &mut quotas {
            let key = quota.key();
            if let Some(own) = written.get(&key) {
                if own.uid() == quota.uid() && own.resource_version > quota.resource_version {
                    *quota = own.clone();
                } else {
                    written.remove(&key);
                }
            }
        }
        quotas
    }

    pub async fn validate(&self, context: &Context, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        if !concerns(request)
            || context.objects.list("", "resourcequotas", Some(request.namespace)).is_empty()
        {
            return Ok(());
        }
        let turn = self.turn(request.namespace);
        let _turn = turn.lock().await;
        let mut charged: Vec<String> = Vec::new();
        for attempt in 1..=ATTEMPTS {
            match self.attempt(context, request, &mut charged).await {
                Err(status) if status.reason == "Conflict" && attempt < ATTEMPTS => {}
                other => return other,
            }
        }
        Ok(())
    }

    async fn attempt(
        &self,
        context: &Context,
        request: &AdmissionRequest<'_>,
        charged: &mut Vec<String>,
    ) -> Result<(), Status> {
        let now = context.clock.now();
        let mut updates: Vec<(Arc<Encoded>, Value)> = Vec::new();
        for quota in self.current(context, request.namespace) {
            if charged.contains(&quota.key()) {
                continue;
            }
            let Ok(mut value) = quota.to_value() else { continue };
            let total = charge(
                request.group,
                request.resource,
                &value,
                request.object,
                request.old_object.filter(|_| request.operation == Operation::Update),
                now,
            )
            .map_err(|why| refuse(request, why))?;
            if let Some(total) = total {
                let used: serde_json::Map<String, Value> =
                    total.iter().map(|(k, v)| (k.clone(), json!(v.to_string()))).collect();
                value["status"]["used"] = Value::Object(used);
                updates.push((quota, value));
            }
        }
        if request.dry_run {
            return Ok(());
        }
        for (quota, value) in updates {
            match context.writer.update("", "v1", "resourcequotas/status", value).await {
                Ok(stored) => {
                    charged.push(quota.key());
                    let mut written = self.written.lock();
                    if written.len() >= WRITTEN_MAX {
                        written.clear();
                    }
                    written.insert(stored.key(), stored);
                }
                Err(status) if status.reason == "Conflict" => {
                    // Somebody else counted meanwhile; look again at what is stored.
                    if let Ok(stored) =
                        context.writer.read("", "resourcequotas", quota.namespace(), quota.name()).await
                    {
                        let key = object_key(stored.namespace(), stored.name());
                        self.written.lock().insert(key, stored);
                    }
                    return Err(status);
                }
                Err(status) if status.code == 404 => charged.push(quota.key()),
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"namespace": "a", "name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    #[test]
    fn charging() {
        let pod = |cpu: &str| json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        let now = Timestamp::UNIX_EPOCH;
        let run = |quota: &Value, object: &Value, old: Option<&Value>| {
            charge("", "pods", quota, object, old, now).map(|a| a.map(|a| pretty(&a)))
        };
        let cpu =
            quota(json!({"requests.cpu": "2", "pods": "5"}), json!({"requests.cpu": "1500m", "pods": "1"}));
        assert_eq!(run(&cpu, &pod("500m"), None), Ok(Some("pods=2,requests.cpu=2".into())));
        assert_eq!(
            run(&cpu, &pod("1"), None),
            Err("exceeded quota: q, requested: requests.cpu=1, used: requests.cpu=1500m, limited: requests.cpu=2".into())
        );
        assert_eq!(run(&cpu, &pod("600m"), Some(&pod("500m"))), Ok(Some("pods=1,requests.cpu=1600m".into())));
        assert_eq!(run(&cpu, &pod("400m"), Some(&pod("500m"))), Ok(None));
        let bare = json!({"spec": {"containers": [{"name": "c"}]}});
        assert_eq!(run(&cpu, &bare, None), Err("failed quota: q: must specify requests.cpu for: c".into()));
        let unknown = quota(json!({"pods": "5"}), json!({}));
        assert_eq!(run(&unknown, &bare, None), Err("status unknown for quota: q, resources: pods".into()));
        let services = quota(json!({"services": "5"}), json!({"services": "5"}));
        assert_eq!(run(&services, &bare, None), Ok(None));
        let mut scoped = quota(json!({"pods": "0"}), json!({"pods": "0"}));
        scoped["spec"]["scopes"] = json!(["Terminating"]);
        assert_eq!(run(&scoped, &bare, None), Ok(None));
    }

    #[tokio::test]
    async fn charges_in_turn() {
        let objects = Arc::new(FakeObjects::default());
        objects.put("", "resourcequotas", quota(json!({"configmaps": "2"}), json!({"configmaps": "0"})));
        let context = context(&objects);
        let quotas = Quotas::default();
        for want in [true, true, false] {
            let object = json!({"metadata": {"namespace": "a", "name": "c"}});
            let mut request = Request::create("", "configmaps", object);
            let mut object = request.object.clone();
            let (user, options) = (request.user.clone(), Value::Null);
            let admission = AdmissionRequest {
                operation: Operation::Create,
                group: "",
                version: "v1",
                kind: "ConfigMap",
                resource: "configmaps",
                subresource: "",
                namespace: "a",
                name: "c",
                user: &user,
                dry_run: false,
                options: &options,
                object: &mut object,
                old_object: None,
                warnings: &mut request.warnings,
                annotations: &mut request.annotations,
                elsewhere: &mut request.elsewhere,
            };
            let got = quotas.validate(&context, &admission).await;
            assert_eq!(got.is_ok(), want, "{got:?}");
        }
    }
}
