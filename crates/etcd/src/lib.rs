//! The key-value store that holds a cluster's state: etcd's v3 model on an append-only log with group commit, with a
//! multi-version index in memory and the values on disk; leases, history for watchers, checkpoints, cleaning of files
//! and crash recovery.
//!
//! The engine is a state machine ([`state::State`], pure) fed by a log of [`command::Command`]s; [`engine::Engine`]
//! puts a single-member log between proposing and applying.
//!
//! # Sketch
//!
//! Memory: about 200 B and the key for each version; of values, only a bounded cache of those written or read last
//! (8 MiB), which shares its bytes with writers and watchers. Disk: a put is written once, in the log, with about 25 B
//! beside key and value, and its value stays there; when half of it is wasted, what is left of files is copied together,
//! so disk is at most about twice what is in use, and 200 MB. One sync for all writers waiting. A start reads the newest checkpoint (the index without
//! values, about 25 B and the key for each version) and the log after it (16 to 64 MiB, or the size of the
//! checkpoint); a million keys take about half a second. Nothing is done under the state's lock for longer than a few
//! milliseconds: checkpoints, cleaning, sweeping after compaction and backups all go in small steps.
//!
//! # Data directory, version 2
//!
//! - `VERSION` holds `2`. A directory of another version is refused.
//! - `LOCK` keeps a second process out.
//! - `log-<file>-<first index>`: [`frame`]s of commands, in the order of the log. Also where their values stay.
//! - `data-<file>`: frames of puts, whose values the cleaner copied out of other files.
//! - `checkpoint-<index>`: the state after the log entry with that index, without the values ([`checkpoint`]).
//!
//! `<file>` is a running number that is never used again; all numbers are hexadecimal. Frames carry checksums, and so
//! does every value, which is checked when it is read from disk.

pub mod api;
pub mod auth;
pub mod backup;
pub mod bolt;
pub(crate) mod checkpoint;
pub(crate) mod cleaner;
pub mod command;
pub mod disk;
pub mod durations;
pub mod engine;
pub(crate) mod files;
pub mod flags;
pub mod frame;
pub(crate) mod leases;
pub(crate) mod log;
pub mod record;
pub(crate) mod recovery;
pub mod remote;
pub mod request;
pub mod rpc;
pub mod server;
pub mod snapshot;
pub mod state;
pub mod tools;

pub use disk::Directory;
pub use engine::{Engine, HashKv, LeaseGrant, LeaseStatus, Options, Size};
pub use request::{
    Alarm, AlarmKind, Compare, CompareOp, CompareTarget, DeleteRange, Op, OpOutcome, Put, Query, Sort,
    SortTarget, Txn, TxnOutcome, key_range,
};
pub use snapshot::{Snapshot, Version, restore};
pub use state::{EventsMax, Header};
