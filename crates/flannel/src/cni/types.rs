//! What the CNI specification puts on the wire: results, errors, versions.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Versions of the specification these plugins speak, oldest first.
pub const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

pub const INCOMPATIBLE_VERSION: u32 = 1;
pub const UNSUPPORTED_FIELD: u32 = 2;
pub const INVALID_ENVIRONMENT: u32 = 4;
pub const IO_FAILURE: u32 = 5;
pub const DECODING: u32 = 6;
pub const INVALID_CONFIG: u32 = 7;
pub const TRY_AGAIN: u32 = 11;
pub const NOT_AVAILABLE: u32 = 50;
pub const GENERIC: u32 = 100;

/// The error object of the specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Error {
    pub code: u32,
    pub msg: String,
    pub details: String,
}

impl Error {
    pub fn new(code: u32, msg: impl Into<String>) -> Error {
        Error { code, msg: msg.into(), details: String::new() }
    }

    pub fn config(msg: impl Into<String>) -> Error {
        Error::new(INVALID_CONFIG, msg)
    }

    pub fn generic(msg: impl Into<String>) -> Error {
        Error::new(GENERIC, msg)
    }

    pub fn to_json(&self, version: &str) -> Value {
        let mut out = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            out["details"] = json!(self.details);
        }
        out
    }
}

/// Says what was being done when an operation failed.
pub trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: std::fmt::Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|e| Error::new(IO_FAILURE, format!("{}: {e}", what())))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Address {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The result of ADD. `rest` carries what later versions of the specification may add through a chain unharmed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Success {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Address>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub dns: Map<String, Value>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Success {
    pub fn from_json(value: &Value) -> Result<Success, Error> {
        let mut success: Success = serde_json::from_value(value.clone())
            .map_err(|e| Error::new(DECODING, format!("could not parse prevResult: {e}")))?;
        success.rest.remove("cniVersion");
        Ok(success)
    }

    pub fn to_json(&self, version: &str) -> Value {
        let mut out = serde_json::to_value(self).unwrap_or_default();
        out["cniVersion"] = json!(version);
        // Before 1.0.0 every address names its family.
        if version.starts_with("0.") {
            for ip in out["ips"].as_array_mut().into_iter().flatten() {
                let v6 = ip["address"].as_str().is_some_and(|a| a.contains(':'));
                ip["version"] = json!(if v6 { "6" } else { "4" });
            }
        }
        out
    }
}

/// A port mapping as the runtime hands it to `portmap`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PortMapping {
    #[serde(rename = "hostport")]
    pub host_port: u16,
    #[serde(rename = "containerport")]
    pub container_port: u16,
    #[serde(default)]
    pub protocol: String,
    #[serde(default, rename = "hostip")]
    pub host_ip: String,
}

/// The same value with the keys of its objects in lower case. Runtimes disagree on the case of what they pass at run
/// time (containerd says `HostPort`), and the reference plugins, written in Go, do not care.
pub fn lower_keys(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().map(|(k, v)| (k.to_ascii_lowercase(), lower_keys(v))).collect::<Map<_, _>>().into()
        }
        Value::Array(list) => list.iter().map(lower_keys).collect(),
        other => other.clone(),
    }
}

/// Name and value of `CNI_ARGS` (`A=1;B=2`).
pub fn parse_args(args: &str) -> Result<BTreeMap<String, String>, Error> {
    args.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((k, v)) => Ok((k.to_owned(), v.to_owned())),
            None => Err(Error::new(INVALID_ENVIRONMENT, format!("ARGS: invalid CNI_ARGS pair {pair:?}"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_speak_the_version_asked_for() {
        let success = Success {
            interfaces: vec![Interface { name: "eth0".into(), sandbox: "/n".into(), ..Default::default() }],
            ips: vec![Address {
                interface: Some(0),
                address: "10.1.0.5/24".parse().unwrap(),
                gateway: Some("10.1.0.1".parse().unwrap()),
            }],
            ..Default::default()
        };
        let new = success.to_json("1.0.0");
        assert_eq!(new["cniVersion"], "1.0.0");
        assert!(new["ips"][0].get("version").is_none());
        let old = success.to_json("0.3.1");
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(Success::from_json(&new).unwrap(), success);
        // The family of old results is implied by the address and falls away.
        assert_eq!(Success::from_json(&old).unwrap(), success);
    }

    #[test]
    fn arguments() {
        let args = parse_args("IgnoreUnknown=1;K8S_POD_NAME=a=b;").unwrap();
        assert_eq!(args["K8S_POD_NAME"], "a=b");
        assert!(parse_args("nonsense").is_err());
    }
}
