//! The container runtime as a program: found, started and stopped.

pub mod containerd;
