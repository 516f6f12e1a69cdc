//! Flannel: a subnet lease per node through the Kubernetes API, VXLAN and host-gw between nodes, and the CNI
//! plugins that connect pods, in the same binary under other names.

mod backend;
pub mod cni;
mod config;
mod daemon;
#[cfg(test)]
mod fake_api;
mod files;
mod lease;
mod masquerade;
mod netlink;
mod nft;
#[cfg(test)]
mod testing;

pub use config::{Backend, Config, Flags, cleanup};
pub use daemon::run;
