//! Objects the API server makes for itself: roles, namespaces, priorities, flow control, the `kubernetes` service.
//!
//! Everything missing is written at once; the writes of an empty store share the store's group commits. Later only
//! changes wake this up.

pub mod flow_control;
pub mod kubernetes_service;
pub mod rbac;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::clock::Clock;
use apimachinery::status::Status;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::allocators::ServiceAllocators;
use crate::authorization::rbac::GROUP as RBAC;
use crate::seams::{Objects, Writer};

const NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "default"];
const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io";
const ATTEMPTS_MAX: u32 = 10;
/// The least time between two looks at objects that are kept up.
const REST: Duration = Duration::from_secs(1);

/// Names of the checks `/readyz` lists for what this does at start.
pub const READY_CHECKS: [&str; 5] = [
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
];

/// What is made beyond the fixed tables.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients in the cluster reach this server.
    pub advertise_address: IpAddr,
    pub secure_port: u16,
    pub service_cidrs: Vec<ipnet::IpNet>,
    /// Content of kube-system/extension-apiserver-authentication.
    pub extension_authentication: serde_json::Map<String, Value>,
}

pub struct Bootstrap {
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) writer: Arc<dyn Writer>,
    pub(crate) options: Options,
    pub(crate) clock: Clock,
    pub(crate) allocators: Option<Arc<ServiceAllocators>>,
    pub(crate) done: watch::Sender<bool>,
}

struct Item {
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    object: Value,
}

impl Bootstrap {
    pub fn new(
        objects: Arc<dyn Objects>,
        writer: Arc<dyn Writer>,
        options: Options,
        clock: Clock,
    ) -> Bootstrap {
        Bootstrap { objects, writer, options, clock, allocators: None, done: watch::channel(false).0 }
    }

    /// Whose IPAddress objects are repaired at start.
    pub fn with_allocators(mut self, allocators: Arc<ServiceAllocators>) -> Bootstrap {
        self.allocators = Some(allocators);
        self
    }

    /// Becomes true when everything [`READY_CHECKS`] stands for is there.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.done.subscribe()
    }

    /// Makes what is missing, then keeps it. Returns at shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let started = std::time::Instant::now();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = self.make() => {}
        }
        tracing::info!(took_ms = started.elapsed().as_millis() as u64, "default objects are in place");
        self.done.send_replace(true);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn make(&self) {
        let namespaces: Vec<Item> = self.namespaces();
        self.ensure_all(namespaces).await;
        let mut items = Vec::new();
        for default in rbac::defaults() {
            items.push(Item {
                group: RBAC,
                version: "v1",
                resource: default.resource,
                object: default.object,
            });
        }
        for (resource, object) in flow_control::defaults() {
            items.push(Item { group: FLOW_CONTROL, version: "v1", resource, object });
        }
        items.extend(priority_classes());
        items.push(self.service_cidr());
        if !self.options.extension_authentication.is_empty() {
            items.push(self.extension_authentication());
        }
        items.push(self.legacy_token_tracking());
        self.ensure_all(items).await;
        self.service_cidr_status().await;
        if let Some(allocators) = &self.allocators {
            allocators.repair().await;
        }
        self.ensure_kubernetes_service().await;
    }

    fn namespaces(&self) -> Vec<Item> {
        let object =
            |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        NAMESPACES
            .iter()
            .filter(|name| self.objects.get("", "namespaces", "", name).is_none())
            .map(|name| Item { group: "", version: "v1", resource: "namespaces", object: object(name) })
            .collect()
    }

    fn service_cidr(&self) -> Item {
        let cidrs: Vec<String> = self.options.service_cidrs.iter().map(|c| c.trunc().to_string()).collect();
        let object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
        Item { group: "networking.k8s.io", version: "v1", resource: "servicecidrs", object }
    }

    async fn service_cidr_status(&self) {
        let Ok(stored) = self.writer.read("networking.k8s.io", "servicecidrs", "", "kubernetes").await else {
            return;
        };
        let Ok(mut object) = stored.to_value() else { return };
        let ready = object["status"]["conditions"].as_array().into_iter().flatten();
        if ready.into_iter().any(|c| c["type"] == "Ready")
            || !object["metadata"]["deletionTimestamp"].is_null()
        {
            return;
        }
        object["status"] = json!({"conditions": [{
            "type": "Ready",
            "status": "True",
            "reason": "",
            "message": "Kubernetes default Service CIDR is ready",
            "lastTransitionTime": self.clock.now_rfc3339(),
        }]});
        let result = self.writer.update("networking.k8s.io", "v1", "servicecidrs/status", object).await;
        if let Err(error) = result {
            tracing::warn!(%error, "the default ServiceCIDR could not be marked ready");
        }
    }

    fn extension_authentication(&self) -> Item {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": self.options.extension_authentication});
        Item { group: "", version: "v1", resource: "configmaps", object }
    }

    /// Since when uses of tokens in secrets are noted; a day that is there already stays.
    fn legacy_token_tracking(&self) -> Item {
        const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";
        let stored = self.objects.get("", "configmaps", "kube-system", NAME).and_then(|o| o.to_value().ok());
        let since = stored.as_ref().and_then(|o| o["data"]["since"].as_str());
        let since = since.filter(|s| s.parse::<jiff::civil::Date>().is_ok()).map(str::to_owned);
        let since = since.unwrap_or_else(|| self.clock.now().strftime("%Y-%m-%d").to_string());
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": "kube-system"}, "data": {"since": since}});
        Item { group: "", version: "v1", resource: "configmaps", object }
    }

    async fn ensure_all(&self, items: Vec<Item>) {
        let mut pending: FuturesUnordered<_> = items.into_iter().map(|item| self.ensure(item)).collect();
        while pending.next().await.is_some() {}
    }

    /// Creates or reconciles one object, trying again a few times.
    async fn ensure(&self, item: Item) {
        for attempt in 0..ATTEMPTS_MAX {
            match self.try_ensure(&item).await {
                Ok(()) => return,
                Err(error) => {
                    let name = item.object["metadata"]["name"].as_str().unwrap_or_default();
                    tracing::warn!(resource = item.resource, name, %error, "default object not written");
                    tokio::time::sleep(Duration::from_millis(50 << attempt.min(6))).await;
                }
            }
        }
    }

    async fn try_ensure(&self, item: &Item) -> Result<(), Status> {
        let meta = &item.object["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default();
        let stored = self.objects.get(item.group, item.resource, text("namespace"), text("name"));
        let Some(stored) = stored else {
            let created =
                self.writer.create(item.group, item.version, item.resource, item.object.clone()).await;
            return match created {
                Err(status) if status.reason != "AlreadyExists" => Err(status),
                _ => Ok(()),
            };
        };
        let Ok(stored) = stored.to_value() else { return Ok(()) };
        let wanted = match item.group {
            RBAC if stored.get("roleRef").is_some() && !same_role(&stored, &item.object) => {
                self.writer.delete(item.group, item.resource, text("namespace"), text("name")).await?;
                self.writer.create(item.group, item.version, item.resource, item.object.clone()).await?;
                return Ok(());
            }
            RBAC => rbac::reconciled(&stored, &item.object),
            "" if item.resource == "configmaps" => {
                let mut object = stored.clone();
                for (key, value) in item.object["data"].as_object().into_iter().flatten() {
                    object["data"][key] = value.clone();
                }
                (object != stored).then_some(object)
            }
            _ => None,
        };
        match wanted {
            Some(object) => {
                self.writer.update(item.group, item.version, item.resource, object).await.map(|_| ())
            }
            None => Ok(()),
        }
    }

    /// Puts back what is deleted, keeps aggregated roles and the `kubernetes` service up to date.
    async fn keep(&self) {
        let mut namespaces = self.objects.changes("", "namespaces");
        let mut roles = self.objects.changes(RBAC, "clusterroles");
        let mut services = self.objects.changes("", "services");
        let mut slices = self.objects.changes("discovery.k8s.io", "endpointslices");
        let mut endpoints = self.objects.changes("", "endpoints");
        let mut schemas = self.objects.changes(FLOW_CONTROL, "flowschemas");
        let mut levels = self.objects.changes(FLOW_CONTROL, "prioritylevelconfigurations");
        let (mut of_roles, mut of_flows) = (true, true);
        loop {
            if std::mem::take(&mut of_roles) {
                roles.mark_unchanged();
                self.aggregate().await;
            }
            if std::mem::take(&mut of_flows) {
                schemas.mark_unchanged();
                levels.mark_unchanged();
                self.flow_schema_conditions().await;
            }
            let mut missing = self.namespaces();
            missing.push(self.legacy_token_tracking());
            self.ensure_all(missing).await;
            self.ensure_kubernetes_service().await;
            for changes in [&mut namespaces, &mut services, &mut slices, &mut endpoints] {
                changes.mark_unchanged();
            }
            let changed = tokio::select! {
                r = namespaces.changed() => r,
                r = roles.changed() => { of_roles = true; r }
                r = schemas.changed() => { of_flows = true; r }
                r = levels.changed() => { of_flows = true; r }
                r = services.changed() => { tokio::time::sleep(REST).await; r }
                r = slices.changed() => { tokio::time::sleep(REST).await; r }
                r = endpoints.changed() => { tokio::time::sleep(REST).await; r }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn flow_schema_conditions(&self) {
        for schema in self.objects.list(FLOW_CONTROL, "flowschemas", None) {
            let Ok(value) = schema.to_value() else { continue };
            let level = value["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
            let exists = self.objects.get(FLOW_CONTROL, "prioritylevelconfigurations", "", level).is_some();
            let now = self.clock.now_rfc3339();
            if let Some(told) = flow_control::with_condition(&value, exists, &now)
                && let Err(error) = self
                    .writer
                    .apply(FLOW_CONTROL, "v1", "flowschemas/status", told, flow_control::CONDITIONS_MANAGER)
                    .await
            {
                tracing::debug!(%error, "flow schema condition not written; its next change tries again");
            }
        }
    }

    async fn aggregate(&self) {
        let roles: Vec<Value> =
            self.objects.list(RBAC, "clusterroles", None).iter().filter_map(|r| r.to_value().ok()).collect();
        for role in &roles {
            let Some(rules) = rbac::aggregated_rules(role, &roles) else { continue };
            let current = role["rules"].as_array().cloned().unwrap_or_default();
            if Value::Array(current) == rules {
                continue;
            }
            let mut object = role.clone();
            object["rules"] = rules;
            if let Err(error) = self.writer.update(RBAC, "v1", "clusterroles", object).await {
                tracing::debug!(%error, "aggregated role not updated; its next change tries again");
            }
        }
    }
}

fn same_role(a: &Value, b: &Value) -> bool {
    a["roleRef"]["kind"] == b["roleRef"]["kind"] && a["roleRef"]["name"] == b["roleRef"]["name"]
}

fn priority_classes() -> Vec<Item> {
    let class = |name: &str, value: i64, description: &str| Item {
        group: "scheduling.k8s.io",
        version: "v1",
        resource: "priorityclasses",
        object: json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
                       "value": value, "description": description}),
    };
    vec![
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if \
             necessary.",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;

    fn bootstrap(objects: Arc<FakeObjects>) -> Bootstrap {
        let options = Options {
            advertise_address: "192.0.2.1".parse().unwrap(),
            secure_port: 6443,
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            extension_authentication: serde_json::Map::from_iter([("client-ca-file".into(), json!("PEM"))]),
        };
        Bootstrap::new(objects.clone(), objects, options, Clock::system())
    }

    #[tokio::test]
    async fn fills_an_empty_store() {
        let objects = Arc::new(FakeObjects::default());
        bootstrap(objects.clone()).make().await;
        for (group, resource, namespace, name) in [
            ("", "namespaces", "", "kube-node-lease"),
            (RBAC, "clusterroles", "", "cluster-admin"),
            (RBAC, "rolebindings", "kube-public", "system:controller:bootstrap-signer"),
            (FLOW_CONTROL, "flowschemas", "", "catch-all"),
            ("scheduling.k8s.io", "priorityclasses", "", "system-node-critical"),
            ("networking.k8s.io", "servicecidrs", "", "kubernetes"),
            ("", "configmaps", "kube-system", "extension-apiserver-authentication"),
            ("", "services", "default", "kubernetes"),
            ("", "endpoints", "default", "kubernetes"),
            ("discovery.k8s.io", "endpointslices", "default", "kubernetes"),
        ] {
            assert!(objects.get(group, resource, namespace, name).is_some(), "{resource} {name}");
        }
        let before = objects.get(RBAC, "clusterroles", "", "admin").unwrap().resource_version;
        bootstrap(objects.clone()).make().await;
        assert_eq!(objects.get(RBAC, "clusterroles", "", "admin").unwrap().resource_version, before);
    }

    #[tokio::test]
    async fn aggregates_new_roles() {
        let objects = Arc::new(FakeObjects::default());
        let bootstrap = bootstrap(objects.clone());
        bootstrap.make().await;
        let label = "rbac.authorization.k8s.io/aggregate-to-view";
        let rule = json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["widgets"]});
        let role = json!({"metadata": {"name": "w", "labels": {label: "true"}}, "rules": [rule]});
        objects.put(RBAC, "clusterroles", role);
        for _ in 0..3 {
            bootstrap.aggregate().await;
        }
        for name in ["view", "edit", "admin"] {
            let role = objects.get(RBAC, "clusterroles", "", name).unwrap().to_value().unwrap();
            assert!(role["rules"].as_array().unwrap().contains(&rule), "{name}");
        }
    }
}
