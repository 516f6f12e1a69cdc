//! The built-in groups, a module each: defaults, create and update strategy, validation, printer columns and
//! conversions between versions. Objects are JSON values in the version they are stored in. Pure: nothing here does
//! I/O or reads a clock.

pub mod admissionregistration_v1;
pub mod advice;
pub mod apiextensions_v1;
pub mod apiregistration_v1;
pub mod apps_v1;
pub mod autoscaling_v2;
pub mod batch_v1;
pub mod certificates_v1;
pub mod check;
pub mod convert;
pub mod coordination_v1;
pub mod core_v1;
pub mod discovery_v1;
pub mod equality;
pub mod events_v1;
pub mod flowcontrol_v1;
pub mod groups;
pub mod internal_v1alpha1;
pub mod meta;
pub mod networking_v1;
pub mod node_v1;
pub mod path;
pub mod policy_v1;
pub mod rbac_v1;
pub mod resource_v1;
pub mod scale;
pub mod scheduling_v1;
pub mod storage_v1;
pub mod strategy;
pub mod table;
pub mod value;

pub use strategy::{Strategy, strategy};
