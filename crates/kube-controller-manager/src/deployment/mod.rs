//! deployment-controller: rolls ReplicaSets over to the deployment's template.

mod controller;
pub(crate) mod math;
mod progress;
mod replica_sets;
pub(crate) mod template;

pub(crate) use controller::run;
