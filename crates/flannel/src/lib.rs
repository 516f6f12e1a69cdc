//! Flannel: subnet leases, VXLAN and host-gw backends, and the CNI plugins.
pub mod cni;
mod netlink;
mod nft;
#[cfg(test)]
mod testing;
