//! `flannel`: turns the node's lease (`subnet.env`) into a configuration of the plugin it delegates to, by default
//! `bridge` with `host-local`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::types::{Doing, Error, NOT_AVAILABLE, Success};
use super::{Command, Request};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// What the daemon wrote about this node.
#[derive(Clone, Debug, PartialEq)]
struct Lease {
    networks: Vec<String>,
    subnets: Vec<String>,
    mtu: u64,
    masquerade: bool,
}

fn read_lease(path: &Path) -> Result<Lease, Error> {
    let text = fs::read_to_string(path)
        .map_err(|e| Error::generic(format!("loadFlannelSubnetEnv failed: open {}: {e}", path.display())))?;
    parse_lease(&text)
}

fn parse_lease(text: &str) -> Result<Lease, Error> {
    let vars: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.trim().split_once('=')).collect();
    let list = |keys: &[&str]| -> Vec<String> {
        keys.iter()
            .filter_map(|k| vars.get(k))
            .flat_map(|v| v.split(','))
            .filter(|v| !v.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let lease = Lease {
        networks: list(&["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]),
        subnets: list(&["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]),
        mtu: vars.get("FLANNEL_MTU").and_then(|v| v.parse().ok()).unwrap_or(0),
        masquerade: vars.get("FLANNEL_IPMASQ") == Some(&"true"),
    };
    let mut missing = vec![];
    for (name, there) in [
        ("FLANNEL_NETWORK", !lease.networks.is_empty()),
        ("FLANNEL_SUBNET", !lease.subnets.is_empty()),
        ("FLANNEL_MTU", lease.mtu > 0),
        ("FLANNEL_IPMASQ", vars.contains_key("FLANNEL_IPMASQ")),
    ] {
        if !there {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(lease);
    }
    Err(Error::generic(format!("loadFlannelSubnetEnv failed: missing {}", missing.join(", "))))
}

/// The configuration of the delegate.
fn delegate(config: &Value, lease: &Lease) -> Result<Value, Error> {
    let mut out = match &config["delegate"] {
        Value::Null => Map::new(),
        Value::Object(map) => map.clone(),
        _ => return Err(Error::config("'delegate' must be an object")),
    };
    if let Some(kind) = out.get("type").filter(|k| !k.is_string()) {
        return Err(Error::config(format!(
            "'delegate' dictionary, if present, must have (string) 'type' field, got {kind}"
        )));
    }
    for field in ["name", "ipam"] {
        if out.contains_key(field) {
            return Err(Error::config(format!(
                "'delegate' dictionary must not have '{field}' field, it'll be set by flannel"
            )));
        }
    }
    out.insert("name".into(), config["name"].clone());
    let kind = out.entry("type").or_insert_with(|| json!("bridge")).clone();
    // The node masquerades already, or nobody does.
    out.entry("ipMasq").or_insert_with(|| json!(!lease.masquerade));
    out.entry("mtu").or_insert_with(|| json!(lease.mtu));
    if kind == "bridge" {
        out.entry("isGateway").or_insert_with(|| json!(true));
    }
    out.insert("cniVersion".into(), config["cniVersion"].clone());
    for field in ["runtimeConfig", "prevResult"] {
        if let Some(value) = config.get(field).filter(|v| !v.is_null()) {
            out.insert(field.into(), value.clone());
        }
    }
    let mut ipam = match &config["ipam"] {
        Value::Object(map) => map.clone(),
        _ => Map::new(),
    };
    ipam.entry("type").or_insert_with(|| json!("host-local"));
    let subnets: Vec<Value> = lease
        .subnets
        .iter()
        .map(|s| match s.parse::<ipnet::IpNet>() {
            Ok(net) => Ok(json!([{ "subnet": net.trunc().to_string() }])),
            Err(_) => Err(Error::config(format!("invalid FLANNEL_SUBNET {s}"))),
        })
        .collect::<Result<_, _>>()?;
    ipam.insert("ranges".into(), Value::Array(subnets));
    let routes = ipam.entry("routes").or_insert_with(|| json!([]));
    if let Value::Array(routes) = routes {
        routes.extend(lease.networks.iter().map(|n| json!({ "dst": n })));
    }
    out.insert("ipam".into(), Value::Object(ipam));
    Ok(Value::Object(out))
}

fn saved_path(request: &Request) -> PathBuf {
    let dir = request.text("dataDir");
    Path::new(if dir.is_empty() { DATA_DIR } else { dir }).join(&request.container_id)
}

fn subnet_file(request: &Request) -> PathBuf {
    let file = request.text("subnetFile");
    PathBuf::from(if file.is_empty() { SUBNET_FILE } else { file })
}

pub fn run(command: Command, request: &Request) -> Result<Option<Success>, Error> {
    let fresh = || read_lease(&subnet_file(request)).and_then(|lease| delegate(&request.config, &lease));
    match command {
        Command::Add => {
            let config = fresh()?;
            let path = saved_path(request);
            let dir = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(dir).doing(|| format!("failed to create {}", dir.display()))?;
            // DEL must undo what ADD did even when the lease has changed meanwhile.
            fs::write(&path, config.to_string()).doing(|| format!("failed to write {}", path.display()))?;
            call(command, request, config)
        }
        Command::Del => {
            let path = saved_path(request);
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // Deleted before, or never added.
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e).doing(|| format!("failed to read {}", path.display())),
            };
            let mut config: Value = serde_json::from_str(&text)
                .map_err(|e| Error::generic(format!("failed to parse netconf in {}: {e}", path.display())))?;
            if let Some(previous) = request.config.get("prevResult") {
                config["prevResult"] = previous.clone();
            }
            call(command, request, config)?;
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    Err(e).doing(|| format!("failed to remove {}", path.display()))
                }
                _ => Ok(None),
            }
        }
        Command::Check => {
            let path = saved_path(request);
            let text = fs::read_to_string(&path).doing(|| format!("failed to read {}", path.display()))?;
            let mut config: Value = serde_json::from_str(&text)
                .map_err(|e| Error::generic(format!("failed to parse netconf in {}: {e}", path.display())))?;
            if let Some(previous) = request.config.get("prevResult") {
                config["prevResult"] = previous.clone();
            }
            call(command, request, config)
        }
        Command::Gc => {
            let mut config = fresh()?;
            config["cni.dev/valid-attachments"] = request.config["cni.dev/valid-attachments"].clone();
            call(command, request, config)
        }
        Command::Status => match fresh() {
            Ok(config) => call(command, request, config),
            Err(e) => Err(Error::new(NOT_AVAILABLE, e.msg)),
        },
    }
}

fn call(command: Command, request: &Request, config: Value) -> Result<Option<Success>, Error> {
    let kind = config["type"].as_str().unwrap_or("bridge").to_owned();
    super::invoke(&kind, command, &request.with_config(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_lease_becomes_a_bridge_with_host_local() {
        let lease = parse_lease(ENV).unwrap();
        let config = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "delegate": {"hairpinMode": true, "isDefaultGateway": true}});
        assert_eq!(
            delegate(&config, &lease).unwrap(),
            json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "hairpinMode": true,
                "isDefaultGateway": true, "isGateway": true, "ipMasq": false, "mtu": 1450,
                "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.3.0/24"}]],
                    "routes": [{"dst": "10.244.0.0/16"}]}})
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        let e = parse_lease("FLANNEL_NETWORK=10.244.0.0/16\n").unwrap_err();
        assert!(e.msg.contains("missing FLANNEL_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"));
        let lease = parse_lease(ENV).unwrap();
        for bad in
            [json!({"delegate": {"name": "x"}}), json!({"delegate": 3}), json!({"delegate": {"type": 1}})]
        {
            assert!(delegate(&bad, &lease).is_err());
        }
    }
}
