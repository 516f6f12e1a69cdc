//! kube-controller-manager: one module per controller. Each is a function from what the informers hold to what
//! should be done, with a thin layer around it that reads keys from a queue and carries the plan out.

mod bootstrap_tokens;
mod certificates;
mod clusterroleaggregation;
mod config;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslicemirroring;
mod garbagecollector;
mod job;
mod manager;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod podgc;
mod replicaset;
mod resourcequota;
mod root_ca;
mod serviceaccount;
mod serviceaccount_token_cleaner;
mod serviceaccount_tokens;
mod servicecidrs;
mod statefulset;
mod support;
mod tainteviction;
mod ttlafterfinished;
mod volumebinder;
mod volumeprotection;

pub use config::{Config, Credentials, Flags};
pub(crate) use manager::Context;
pub use manager::run;
