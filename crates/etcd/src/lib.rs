//! The key-value store that holds a cluster's state: an append-only log with group commit under an in-memory
//! multi-version map, with leases, history for watchers, snapshots and crash recovery.
//!
//! The engine is a state machine ([`state::State`], pure) fed by a log of [`command::Command`]s; [`engine::Engine`]
//! puts a single-member log between proposing and applying.
//!
//! Data directory, version 1: `log-<first index>` segments and `snapshot-<index>-<revision>` files of checksummed
//! [`frame`]s; `LOCK` keeps a second process out.

pub mod api;
pub mod command;
pub mod disk;
pub mod engine;
pub mod frame;
pub mod recovery;
pub mod remote;
pub mod snapshot;
pub mod state;

pub use disk::Directory;
pub use engine::{Engine, Options};
