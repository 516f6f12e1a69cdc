//! What several controllers share.

pub(crate) mod discovery;
pub(crate) mod dynamic;
pub(crate) mod errors;
pub(crate) mod expectations;
pub(crate) mod node_affinity;
pub(crate) mod ownership;
pub(crate) mod pod_control;
pub(crate) mod pods;
pub(crate) mod revisions;
pub(crate) mod selectors;
pub(crate) mod services;
