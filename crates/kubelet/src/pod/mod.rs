//! One pod: what it asks for, what there is of it, what to do, and what to tell.

pub mod admission;
pub mod container;
pub mod env;
pub mod lifecycle;
pub mod network;
pub mod observed;
pub mod operations;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod resize;
pub mod sandbox;
pub mod spec;
pub mod starts;
pub mod status;
pub mod worker;
