//! The node's own rules: what leaves the pod network takes the node's address.

use ipnet::Ipv4Net;

use crate::nft;

pub const TABLE: &str = "isopod-flannel";

/// The mark of packets kube-proxy takes care of itself.
const KUBE_PROXY_MARK: &str = "0x4000";

fn script(cluster: Ipv4Net, lease: Ipv4Net) -> String {
    format!(
        "table ip {TABLE} {{
            chain postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
        }}
        flush chain ip {TABLE} postrouting
        table ip {TABLE} {{
            chain postrouting {{
                meta mark & {KUBE_PROXY_MARK} == {KUBE_PROXY_MARK} return
                ip saddr {lease} ip daddr {cluster} return
                ip saddr {cluster} ip daddr {lease} return
                ip saddr != {cluster} ip daddr {lease} return
                ip saddr {cluster} ip daddr != 224.0.0.0/4 masquerade fully-random
                ip saddr != {cluster} ip daddr {cluster} masquerade fully-random
            }}
        }}
        "
    )
}

pub fn apply(cluster: Ipv4Net, lease: Ipv4Net) -> std::io::Result<()> {
    nft::apply(&script(cluster, lease))
}
