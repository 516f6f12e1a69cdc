//! Leases as they stand on nodes: the pod CIDR in the spec, how to get there in the annotations. Names and values
//! are upstream's, so that nodes of both kinds form one network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use apimachinery::object::Encoded;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Backend;
use crate::netlink::Mac;

const PREFIX: &str = "flannel.alpha.coreos.com";

/// What is read of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Vec<Address>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Serialize, Deserialize)]
struct VxlanData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

/// How to reach the pods of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub subnet: Ipv4Net,
    pub public_ip: Ipv4Addr,
    /// The address of the node's tunnel end, for VXLAN.
    pub mac: Option<Mac>,
}

impl Node {
    pub fn decode(object: &Encoded) -> Option<Node> {
        serde_json::from_slice(&object.body).ok()
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.get(&format!("{PREFIX}/{name}")).map(String::as_str)
    }

    /// The IPv4 pod CIDR.
    pub fn subnet(&self) -> Option<Ipv4Net> {
        let all = self.spec.pod_cidrs.iter().chain([&self.spec.pod_cidr]);
        all.filter_map(|c| c.parse::<IpNet>().ok()).find_map(|c| match c {
            IpNet::V4(v4) => Some(v4.trunc()),
            IpNet::V6(_) => None,
        })
    }

    pub fn internal_ip(&self) -> Option<IpAddr> {
        let internal = self.status.addresses.iter().filter(|a| a.kind == "InternalIP");
        internal.filter_map(|a| a.address.parse().ok()).find(|ip: &IpAddr| ip.is_ipv4())
    }

    /// The address an administrator set for this node, whatever its interfaces say.
    pub fn public_ip_overwrite(&self) -> Option<Ipv4Addr> {
        self.annotation("public-ip-overwrite")?.parse().ok()
    }

    /// How to reach this node's pods over `backend`; `None` while it has no lease of that kind.
    pub fn peer(&self, backend: Backend) -> Option<Peer> {
        if self.annotation("kube-subnet-manager") != Some("true")
            || self.annotation("backend-type") != Some(backend.name())
        {
            return None;
        }
        let mac = match backend {
            Backend::HostGw => None,
            Backend::Vxlan { vni, .. } => {
                let data: VxlanData = serde_json::from_str(self.annotation("backend-data")?).ok()?;
                if data.vni != vni {
                    return None;
                }
                Some(data.vtep_mac.parse().ok()?)
            }
        };
        Some(Peer { subnet: self.subnet()?, public_ip: self.annotation("public-ip")?.parse().ok()?, mac })
    }

    /// The patch of the node's status that makes it say `own` and that its network is up; `None` when it does.
    pub fn patch(&self, backend: Backend, own: &Peer, now: &str) -> Option<Value> {
        let data = match (backend, own.mac) {
            (Backend::Vxlan { vni, .. }, Some(mac)) => {
                serde_json::to_string(&VxlanData { vni, vtep_mac: mac.to_string() }).unwrap_or_default()
            }
            _ => "null".to_owned(),
        };
        let wanted = [
            ("backend-data", data),
            ("backend-type", backend.name().to_owned()),
            ("kube-subnet-manager", "true".to_owned()),
            ("public-ip", own.public_ip.to_string()),
        ];
        let mut patch = json!({});
        for (name, value) in wanted {
            if self.annotation(name) != Some(&value) {
                patch["metadata"]["annotations"][format!("{PREFIX}/{name}")] = json!(value);
            }
        }
        let up = self.status.conditions.iter().any(|c| c.kind == "NetworkUnavailable" && c.status == "False");
        if !up {
            patch["status"]["conditions"] = json!([{
                "type": "NetworkUnavailable",
                "status": "False",
                "reason": "FlannelIsUp",
                "message": "Flannel is running on this node",
                "lastTransitionTime": now,
                "lastHeartbeatTime": now,
            }]);
        }
        (patch != json!({})).then_some(patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    const VXLAN: Backend = Backend::Vxlan { vni: 1, port: 8472 };

    #[test]
    fn a_node_says_how_to_reach_its_pods() {
        let mut value = json!({"metadata": {"name": "n2", "annotations": {
            "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"0e:11:22:33:44:55\"}",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": "192.0.2.2"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}});
        let peer = node(value.clone()).peer(VXLAN).unwrap();
        assert_eq!(peer.public_ip.to_string(), "192.0.2.2");
        assert_eq!(peer.mac.unwrap().to_string(), "0e:11:22:33:44:55");
        assert_eq!(node(value.clone()).peer(Backend::HostGw), None);
        assert_eq!(node(value.clone()).peer(Backend::Vxlan { vni: 2, port: 8472 }), None);
        value["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"] = json!("nonsense");
        assert_eq!(node(value.clone()).peer(VXLAN), None);
        value["spec"] = json!({});
        assert_eq!(node(value).peer(VXLAN), None);
    }

    #[test]
    fn what_we_write_is_what_we_read_and_is_written_once() {
        let own = Peer {
            subnet: "10.244.1.0/24".parse().unwrap(),
            public_ip: "192.0.2.1".parse().unwrap(),
            mac: Some("0e:11:22:33:44:55".parse().unwrap()),
        };
        let bare = json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"conditions": [{"type": "NetworkUnavailable", "status": "True"}]}});
        let patch = node(bare.clone()).patch(VXLAN, &own, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(
            patch["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"],
            r#"{"VNI":1,"VtepMAC":"0e:11:22:33:44:55"}"#
        );
        assert_eq!(patch["status"]["conditions"][0]["reason"], "FlannelIsUp");
        let mut after = bare;
        after["metadata"]["annotations"] = patch["metadata"]["annotations"].clone();
        after["status"] = patch["status"].clone();
        assert_eq!(node(after.clone()).peer(VXLAN), Some(own.clone()));
        assert_eq!(node(after).patch(VXLAN, &own, ""), None);
    }
}
