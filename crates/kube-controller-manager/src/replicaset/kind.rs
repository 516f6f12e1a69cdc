//! ReplicaSets and ReplicationControllers as one thing.

use std::fmt::Debug;

use apimachinery::selector::LabelSelector;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::support::selectors;

/// What the controller writes of either kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Status {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    /// Only ReplicaSets tell.
    pub(crate) terminating: Option<i32>,
    pub(crate) observed_generation: i64,
    pub(crate) conditions: Vec<ReplicaSetCondition>,
}

pub(crate) trait Replicated:
    kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + DeserializeOwned
    + Serialize
    + Clone
    + Debug
    + Send
    + Sync
    + 'static
{
    /// The source of its events.
    const COMPONENT: &str;
    const TELLS_TERMINATING: bool;
    fn replicas(&self) -> i32;
    fn min_ready_seconds(&self) -> i32;
    fn selector(&self) -> LabelSelector;
    fn template(&self) -> PodTemplateSpec;
    fn status(&self) -> Status;
    fn set_status(&mut self, status: Status);
}

impl Replicated for ReplicaSet {
    const COMPONENT: &str = "replicaset-controller";
    const TELLS_TERMINATING: bool = true;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> LabelSelector {
        selectors::from_optional(self.spec.as_ref().map(|s| &s.selector))
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn status(&self) -> Status {
        let s = self.status.clone().unwrap_or_default();
        Status {
            replicas: s.replicas,
            fully_labeled: s.fully_labeled_replicas.unwrap_or(0),
            ready: s.ready_replicas.unwrap_or(0),
            available: s.available_replicas.unwrap_or(0),
            terminating: s.terminating_replicas,
            observed_generation: s.observed_generation.unwrap_or(0),
            conditions: s.conditions.unwrap_or_default(),
        }
    }

    fn set_status(&mut self, s: Status) {
        self.status = Some(ReplicaSetStatus {
            replicas: s.replicas,
            fully_labeled_replicas: Some(s.fully_labeled),
            ready_replicas: Some(s.ready),
            available_replicas: Some(s.available),
            terminating_replicas: s.terminating,
            observed_generation: Some(s.observed_generation),
            conditions: Some(s.conditions),
        });
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &str = "replication-controller";
    const TELLS_TERMINATING: bool = false;

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn selector(&self) -> LabelSelector {
        match self.spec.as_ref().and_then(|s| s.selector.as_ref()) {
            Some(map) if !map.is_empty() => selectors::from_map(map),
            _ => LabelSelector::nothing(),
        }
    }

    fn template(&self) -> PodTemplateSpec {
        self.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default()
    }

    fn status(&self) -> Status {
        let s = self.status.clone().unwrap_or_default();
        let condition = |c: ReplicationControllerCondition| ReplicaSetCondition {
            last_transition_time: c.last_transition_time,
            message: c.message,
            reason: c.reason,
            status: c.status,
            type_: c.type_,
        };
        Status {
            replicas: s.replicas,
            fully_labeled: s.fully_labeled_replicas.unwrap_or(0),
            ready: s.ready_replicas.unwrap_or(0),
            available: s.available_replicas.unwrap_or(0),
            terminating: None,
            observed_generation: s.observed_generation.unwrap_or(0),
            conditions: s.conditions.unwrap_or_default().into_iter().map(condition).collect(),
        }
    }

    fn set_status(&mut self, s: Status) {
        let condition = |c: ReplicaSetCondition| ReplicationControllerCondition {
            last_transition_time: c.last_transition_time,
            message: c.message,
            reason: c.reason,
            status: c.status,
            type_: c.type_,
        };
        self.status = Some(ReplicationControllerStatus {
            replicas: s.replicas,
            fully_labeled_replicas: Some(s.fully_labeled),
            ready_replicas: Some(s.ready),
            available_replicas: Some(s.available),
            observed_generation: Some(s.observed_generation),
            conditions: Some(s.conditions.into_iter().map(condition).collect()),
        });
    }
}
