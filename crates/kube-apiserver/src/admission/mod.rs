//! Admission: what may be written, and what is filled in before it is.
//!
//! Plugins run in upstream's order. Most are plain functions over the request and the caches; the few that wait for
//! something are called by name in [`Chain`].

mod authorizer_value;
mod certificates;
mod conditions;
mod defaults;
mod figures;
mod limit_ranger;
pub mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod owner_references;
pub use apimachinery::pod_resources;
mod pod_security;
pub mod policies;
mod priority;
pub mod quota;
mod service_account;
pub mod webhooks;

use hashbrown::HashSet;
use std::sync::Arc;
use std::time::Instant;

use apimachinery::clock::Clock;
use apimachinery::status::Status;
use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::authorization;
use crate::seams::{Admission, AdmissionRequest, Objects, Operation, Writer};
use crate::security::failure;
use figures::Step;

pub use figures::Figures;

/// What plugins may look at.
pub struct Context {
    pub objects: Arc<dyn Objects>,
    pub writer: Arc<dyn Writer>,
    pub authorizers: Arc<authorization::Chain>,
    pub clock: Clock,
    pub figures: Figures,
}

type Plugin = fn(&Context, &mut AdmissionRequest<'_>) -> Result<(), Status>;

const WRITES: &[Operation] = &[Operation::Create, Operation::Update];
const CREATES: &[Operation] = &[Operation::Create];
const UPDATES: &[Operation] = &[Operation::Update];
const CHANGES: &[Operation] = &[Operation::Create, Operation::Update, Operation::Delete];

/// Plugins by upstream's name, in upstream's order, with the operations they are for.
const MUTATING: &[(&str, &[Operation], Plugin)] = &[
    ("NodeRestriction", CHANGES, node_restriction::admit),
    ("TaintNodesByCondition", CREATES, defaults::taint_new_nodes),
    ("Priority", WRITES, priority::admit),
    ("DefaultTolerationSeconds", WRITES, defaults::toleration_seconds),
    ("DefaultStorageClass", CREATES, defaults::storage_class),
    ("StorageObjectInUseProtection", CREATES, defaults::protection_finalizers),
    ("RuntimeClass", CREATES, defaults::runtime_class),
    ("DefaultIngressClass", CREATES, defaults::ingress_class),
    ("PodTopologyLabels", CREATES, defaults::topology_labels),
];

const VALIDATING: &[(&str, &[Operation], Plugin)] = &[
    ("LimitRanger", WRITES, limit_ranger::validate),
    ("PodSecurity", WRITES, pod_security::validate),
    ("Priority", WRITES, priority::validate),
    ("OwnerReferencesPermissionEnforcement", WRITES, owner_references::validate),
    ("PersistentVolumeClaimResize", UPDATES, defaults::claim_resize),
    ("RuntimeClass", CREATES, defaults::runtime_overhead),
    ("CertificateApproval", UPDATES, certificates::approval),
    ("CertificateSigning", UPDATES, certificates::signing),
    ("ClusterTrustBundleAttest", WRITES, certificates::attest),
    ("CertificateSubjectRestriction", CREATES, certificates::subject_restriction),
];

/// Plugins that run unless they are disabled.
pub const DEFAULT_PLUGINS: &[&str] = &[
    "NamespaceLifecycle",
    "LimitRanger",
    "ServiceAccount",
    "NodeRestriction",
    "TaintNodesByCondition",
    "PodSecurity",
    "Priority",
    "DefaultTolerationSeconds",
    "DefaultStorageClass",
    "StorageObjectInUseProtection",
    "PersistentVolumeClaimResize",
    "RuntimeClass",
    "CertificateApproval",
    "CertificateSigning",
    "ClusterTrustBundleAttest",
    "CertificateSubjectRestriction",
    "DefaultIngressClass",
    "PodTopologyLabels",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
];

pub struct Chain {
    context: Context,
    enabled: HashSet<String>,
    quotas: quota::Quotas,
    webhooks: webhooks::Webhooks,
    policies: policies::Policies,
}

impl Chain {
    pub fn new(context: Context, enable: &[String], disable: &[String]) -> Chain {
        let mut enabled: HashSet<String> = DEFAULT_PLUGINS.iter().map(|p| (*p).to_owned()).collect();
        enabled.extend(enable.iter().cloned());
        disable.iter().for_each(|p| {
            enabled.remove(p);
        });
        Chain {
            context,
            enabled,
            quotas: quota::Quotas::default(),
            webhooks: webhooks::Webhooks::default(),
            policies: policies::Policies::default(),
        }
    }

    fn on(&self, plugin: &str) -> bool {
        self.enabled.contains(plugin)
    }

    fn mutating_policies(&self, request: &mut AdmissionRequest<'_>, second: bool) -> Result<bool, Status> {
        const NAME: &str = "MutatingAdmissionPolicy";
        if !self.on(NAME) {
            return Ok(false);
        }
        let began = Instant::now();
        let outcome = self.policies.mutate(&self.context, request, second);
        self.took(NAME, Step::Admit, request.operation, &outcome, began);
        outcome
    }

    /// The plugins that change objects by themselves.
    async fn fill_in(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        self.run(Step::Admit, &[("LimitRanger", WRITES, limit_ranger::admit)], request)?;
        if self.on("ServiceAccount") && WRITES.contains(&request.operation) {
            let began = Instant::now();
            let outcome = service_account::admit(&self.context, request).await;
            self.took("ServiceAccount", Step::Admit, request.operation, &outcome, began);
            outcome?;
        }
        self.run(Step::Admit, MUTATING, request)
    }

    fn run(
        &self,
        step: Step,
        plugins: &[(&'static str, &[Operation], Plugin)],
        request: &mut AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let operation = request.operation;
        let mut began = Instant::now();
        for (name, operations, plugin) in plugins {
            if !operations.contains(&operation) || !self.on(name) {
                continue;
            }
            let outcome = plugin(&self.context, request);
            // The next begins where this one ends: reading the clock takes as long as most of them.
            began = self.took(name, step, operation, &outcome, began);
            outcome?;
        }
        Ok(())
    }

    fn took<T>(
        &self,
        plugin: &'static str,
        step: Step,
        operation: Operation,
        outcome: &Result<T, Status>,
        began: Instant,
    ) -> Instant {
        let now = Instant::now();
        self.context.figures.plugin(plugin, step, operation, outcome.is_err(), now - began);
        now
    }

    async fn mutating_webhooks(
        &self,
        request: &mut AdmissionRequest<'_>,
        round: &mut webhooks::Round,
        second: bool,
    ) -> Result<(), Status> {
        const NAME: &str = "MutatingAdmissionWebhook";
        if !self.on(NAME) {
            return Ok(());
        }
        let began = Instant::now();
        let outcome = self.webhooks.mutate(&self.context, request, round, second).await;
        self.took(NAME, Step::Admit, request.operation, &outcome, began);
        outcome
    }

    async fn change(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let operation = request.operation;
        if self.on("NamespaceLifecycle") && CHANGES.contains(&operation) {
            let began = Instant::now();
            let outcome = namespace_lifecycle::admit(&self.context, request).await;
            self.took("NamespaceLifecycle", Step::Admit, operation, &outcome, began);
            outcome?;
        }
        self.fill_in(request).await?;
        let by_policy = self.mutating_policies(request, false)?;
        let mut round = webhooks::Round::default();
        self.mutating_webhooks(request, &mut round, false).await?;
        if !by_policy && !round.changed {
            return Ok(());
        }
        // What was added from outside may need filling in, and what that changes may concern webhooks and policies: once
        // more, no further.
        let before = request.object.clone();
        self.fill_in(request).await?;
        self.mutating_policies(request, true)?;
        if *request.object != before {
            round.plugins_changed();
        }
        self.mutating_webhooks(request, &mut round, true).await
    }

    async fn check(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let operation = request.operation;
        conditions::check_configuration(&self.context, request)?;
        authorization::escalation::check(&self.context.authorizers, request)?;
        let account: Plugin = |_, request| service_account::validate(request);
        self.run(Step::Validate, &[("ServiceAccount", WRITES, account)], request)?;
        self.run(Step::Validate, VALIDATING, request)?;
        if self.on("ValidatingAdmissionPolicy") {
            let began = Instant::now();
            let outcome = self.policies.validate(&self.context, request);
            self.took("ValidatingAdmissionPolicy", Step::Validate, operation, &outcome, began);
            outcome?;
        }
        if self.on("ValidatingAdmissionWebhook") {
            let began = Instant::now();
            let outcome = self.webhooks.validate(&self.context, request).await;
            self.took("ValidatingAdmissionWebhook", Step::Validate, operation, &outcome, began);
            outcome?;
        }
        if self.on("ResourceQuota") && WRITES.contains(&operation) {
            let began = Instant::now();
            let outcome = self.quotas.validate(&self.context, request).await;
            self.took("ResourceQuota", Step::Validate, operation, &outcome, began);
            outcome?;
        }
        Ok(())
    }
}

#[async_trait]
impl Admission for Chain {
    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let began = Instant::now();
        let outcome = self.change(request).await;
        self.context.figures.step(Step::Admit, request.operation, outcome.is_err(), began.elapsed());
        outcome
    }

    fn shows_objects(&self) -> bool {
        self.webhooks.any(&self.context) || self.policies.any(&self.context)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let began = Instant::now();
        let outcome = self.check(request).await;
        self.context.figures.step(Step::Validate, request.operation, outcome.is_err(), began.elapsed());
        outcome
    }
}

/// Whether the request writes (creates, updates) this resource itself, not a subresource.
pub(crate) fn writes(request: &AdmissionRequest<'_>, group: &str, resource: &str) -> bool {
    matches!(request.operation, Operation::Create | Operation::Update)
        && request.group == group
        && request.resource == resource
        && request.subresource.is_empty()
}

pub(crate) fn creates(request: &AdmissionRequest<'_>, group: &str, resource: &str) -> bool {
    request.operation == Operation::Create && writes(request, group, resource)
}

/// The name for messages: that of the request or, before one is generated, of the object.
pub(crate) fn name<'a>(request: &'a AdmissionRequest<'_>) -> &'a str {
    if !request.name.is_empty() {
        return request.name;
    }
    let meta = &request.object["metadata"];
    let text = |field: &str| meta[field].as_str().filter(|s| !s.is_empty());
    text("name").or_else(|| text("generateName")).unwrap_or_default()
}

/// A refusal of this request.
pub(crate) fn refuse(request: &AdmissionRequest<'_>, message: impl std::fmt::Display) -> Status {
    failure::forbidden(request.group, request.resource, name(request), message)
}

/// The member as an object, made empty where it is missing or of another kind.
pub(crate) fn object<'a>(value: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let member = &mut value[field];
    if !member.is_object() {
        *member = Value::Object(Map::new());
    }
    match member {
        Value::Object(map) => map,
        _ => unreachable!("just made an object"),
    }
}

/// The member as an array, made empty where it is missing or of another kind.
pub(crate) fn array<'a>(value: &'a mut Value, field: &str) -> &'a mut Vec<Value> {
    let member = &mut value[field];
    if !member.is_array() {
        *member = Value::Array(Vec::new());
    }
    match member {
        Value::Array(items) => items,
        _ => unreachable!("just made an array"),
    }
}

/// The items of an array member; none where there is no array.
pub(crate) fn items<'a>(value: &'a Value, field: &str) -> std::slice::Iter<'a, Value> {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

pub(crate) fn is_mirror_pod(pod: &Value) -> bool {
    !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::authorization::{Mode, node::NodeAuthorizer, rbac::Rbac};
    use crate::security::testing::FakeObjects;
    use apimachinery::user::UserInfo;

    pub fn context(objects: &Arc<FakeObjects>) -> Context {
        let node = NodeAuthorizer::new(objects.clone(), vec![]);
        let authorizers =
            authorization::Chain::of_modes(&[Mode::Rbac], node, Arc::new(Rbac::new(objects.clone())));
        Context {
            objects: objects.clone(),
            writer: objects.clone(),
            authorizers: Arc::new(authorizers),
            clock: Clock::system(),
            figures: Figures::new(&Default::default()),
        }
    }

    /// A request as its parts, to be borrowed.
    pub struct Request {
        pub operation: Operation,
        pub group: &'static str,
        pub resource: &'static str,
        pub subresource: &'static str,
        pub user: UserInfo,
        pub object: Value,
        pub old: Option<Value>,
        pub warnings: Vec<String>,
        pub annotations: std::collections::BTreeMap<String, String>,
        pub options: Value,
        pub elsewhere: std::time::Duration,
    }

    impl Request {
        pub fn create(group: &'static str, resource: &'static str, object: Value) -> Request {
            Request {
                operation: Operation::Create,
                group,
                resource,
                subresource: "",
                user: UserInfo::new("alice", &[]),
                object,
                old: None,
                warnings: vec![],
                annotations: Default::default(),
                options: Value::Null,
                elsewhere: Default::default(),
            }
        }

        pub fn with<T>(&mut self, f: impl FnOnce(&mut AdmissionRequest<'_>) -> T) -> T {
            let source = if self.object.is_null() {
                self.old.clone().unwrap_or_default()
            } else {
                self.object.clone()
            };
            let text = |field: &str| source["metadata"][field].as_str().unwrap_or_default().to_owned();
            let (namespace, name, kind) =
                (text("namespace"), text("name"), source["kind"].as_str().unwrap_or_default().to_owned());
            f(&mut AdmissionRequest {
                operation: self.operation,
                group: self.group,
                version: "v1",
                kind: &kind,
                resource: self.resource,
                subresource: self.subresource,
                namespace: &namespace,
                name: &name,
                user: &self.user,
                dry_run: false,
                options: &self.options,
                object: &mut self.object,
                old_object: self.old.as_ref(),
                warnings: &mut self.warnings,
                annotations: &mut self.annotations,
                elsewhere: &mut self.elsewhere,
            })
        }
    }
}
