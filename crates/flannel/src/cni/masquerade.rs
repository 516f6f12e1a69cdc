//! `ipMasq` of the bridge plugin when nobody masquerades for the whole node: one set element per attachment.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::types::{Doing, Error};
use crate::nft;

pub const TABLE: &str = "isopod-cni-masquerade";

fn family(ip: IpAddr) -> (&'static str, &'static str) {
    if ip.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") }
}

/// Masquerades what leaves `address` for anywhere but its own network.
pub fn add(address: IpNet, owner: &str) -> Result<(), Error> {
    let (family, kind) = family(address.addr());
    let multicast = if address.addr().is_ipv4() { "224.0.0.0/4" } else { "ff00::/8" };
    let network = address.trunc();
    let ip = address.addr();
    nft::apply(&format!(
        "table {family} {TABLE} {{
            set local {{ type {kind} . {kind}; flags interval; }}
            map pods {{ type {kind} : verdict; }}
            chain leaving {{ }}
            chain postrouting {{ type nat hook postrouting priority srcnat; }}
        }}
        flush chain {family} {TABLE} leaving
        flush chain {family} {TABLE} postrouting
        add rule {family} {TABLE} leaving {family} saddr . {family} daddr @local return
        add rule {family} {TABLE} leaving {family} daddr {multicast} return
        add rule {family} {TABLE} leaving masquerade
        add rule {family} {TABLE} postrouting {family} saddr vmap @pods
        add element {family} {TABLE} local {{ {ip} . {network} comment \"{owner}\" }}
        add element {family} {TABLE} pods {{ {ip} comment \"{owner}\" : goto leaving }}
        "
    ))
    .doing(|| format!("failed to masquerade for {ip}"))
}

/// Removes what `keep` does not want kept.
pub fn retain(keep: impl Fn(&str) -> bool) -> Result<(), Error> {
    for family in ["ip", "ip6"] {
        let Some(table) = nft::table(family, TABLE).doing(|| format!("failed to list {TABLE}"))? else {
            continue;
        };
        let script = super::portmap::stale_elements(&table, family, TABLE, &keep);
        if !script.is_empty() {
            nft::apply(&script).doing(|| format!("failed to clean {TABLE}"))?;
        }
    }
    Ok(())
}

pub fn wanted(config: &Value) -> bool {
    config["ipMasq"].as_bool().unwrap_or(false)
}
