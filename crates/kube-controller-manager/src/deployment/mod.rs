//! deployment-controller: rolls ReplicaSets over to the deployment's template.

mod controller;
mod math;
mod progress;
mod replica_sets;
mod template;

pub(crate) use controller::run;
