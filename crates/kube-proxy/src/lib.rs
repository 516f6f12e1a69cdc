//! kube-proxy: services and endpoints become nftables rules.
//!
//! [`ruleset`] is the thinking, a pure function; [`table`] compares with what was applied and writes transactions;
//! [`proxier`] watches and applies.

mod categorize;
mod config;
mod conntrack;
mod health;
mod http;
mod metrics;
mod model;
mod nft;
mod proxier;
mod ruleset;
mod table;
#[cfg(test)]
mod tests;

pub use config::{Config, Flags, cleanup};
pub use proxier::run;
pub use ruleset::LocalTraffic;
pub use table::NodePortAddresses;
