//! Environment variables: references, services, and `$(NAME)` in commands and values.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod, Service};

use super::spec;
use crate::quantity;

/// Replaces `$(NAME)` by what `lookup` knows; `$$` stands for `$`, and unknown names stay as they are.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// What a pod may say about itself; `None` where there is no such field.
pub fn field(pod: &Pod, path: &str, facts: &Facts<'_>) -> Option<String> {
    if let Some((map, key)) = subscript(path) {
        let entries = match map {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return None,
        };
        return Some(entries.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => spec::name(pod).into(),
        "metadata.namespace" => spec::namespace(pod).into(),
        "metadata.uid" => spec::uid(pod).into(),
        "metadata.labels" => format_map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => format_map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec::spec(pod).node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return None,
    })
}

/// `map['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    Some((map, key.trim_matches(['\'', '"'])))
}

/// One `key="value"` line for each entry, sorted.
pub fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(k, v)| format!("{k}=\"{}\"", quote(v))).collect();
    lines.join("\n")
}

fn quote(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// What is known of node and sandbox.
pub struct Facts<'a> {
    pub host_ips: &'a [String],
    pub pod_ips: &'a [String],
    /// Resources a container without limits may use: the node's allocatable ones.
    pub allocatable: &'a quantity::Resources,
}

/// The value of a resource field such as `limits.cpu`.
pub fn resource(
    container: &Container,
    resource: &str,
    divisor: Option<&str>,
    facts: &Facts<'_>,
) -> Option<String> {
    let (list, name) = resource.split_once('.')?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|r| r.limits.as_ref());
    let own = match list {
        "limits" => limits,
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return None,
    };
    let own = own.and_then(|r| r.get(name));
    let value = match (own, list) {
        (Some(v), _) => v.0.as_str(),
        (None, "requests") => limits.and_then(|r| r.get(name)).map_or("0", |v| v.0.as_str()),
        (None, _) => facts.allocatable.get(name).map_or("0", |v| v.0.as_str()),
    };
    let divisor = divisor.filter(|d| !d.is_empty() && *d != "0").unwrap_or("1");
    quantity::divided(value, divisor).map(|v| v.to_string())
}

/// Variables that tell of a namespace's services.
pub fn service_variables(services: &[Service]) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" {
            continue;
        }
        let name = service.metadata.name.as_deref().unwrap_or_default().replace('-', "_").to_uppercase();
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        out.insert(format!("{name}_SERVICE_HOST"), ip.into());
        out.insert(format!("{name}_SERVICE_PORT"), first.port.to_string());
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (n, port) in ports.iter().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                let port_name = port_name.replace('-', "_").to_uppercase();
                out.insert(format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string());
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if n == 0 {
                out.insert(format!("{name}_PORT"), url.clone());
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
            out.insert(prefix.clone(), url);
            out.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{prefix}_PORT"), port.port.to_string());
            out.insert(format!("{prefix}_ADDR"), ip.into());
        }
    }
    out
}

/// Config maps and secrets a container's environment refers to.
#[derive(Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// The names of config maps and secrets that `container` needs, each with whether it may be absent.
pub fn needed(container: &Container) -> (BTreeMap<String, bool>, BTreeMap<String, bool>) {
    let (mut maps, mut secrets) = (BTreeMap::new(), BTreeMap::new());
    let need = |map: &mut BTreeMap<String, bool>, name: &str, optional: Option<bool>| {
        let optional = optional.unwrap_or(false);
        map.entry(name.to_owned()).and_modify(|o| *o &= optional).or_insert(optional);
    };
    for from in container.env_from.iter().flatten() {
        if let Some(r) = &from.config_map_ref {
            need(&mut maps, &r.name, r.optional);
        }
        if let Some(r) = &from.secret_ref {
            need(&mut secrets, &r.name, r.optional);
        }
    }
    for from in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        if let Some(r) = &from.config_map_key_ref {
            need(&mut maps, &r.name, r.optional);
        }
        if let Some(r) = &from.secret_key_ref {
            need(&mut secrets, &r.name, r.optional);
        }
    }
    (maps, secrets)
}

/// A container's variables in order. Errors tell what is missing.
pub fn variables(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<Vec<(String, String)>, String> {
    let mut out: Vec<(String, String)> = Vec::new();
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |known: &mut BTreeMap<String, String>, name: String, value: String| {
        match out.iter_mut().find(|(n, _)| *n == name) {
            Some(entry) => entry.1.clone_from(&value),
            None => out.push((name.clone(), value.clone())),
        }
        known.insert(name, value);
    };
    for from in container.env_from.iter().flatten() {
        let data = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => sources.config_maps.get(&r.name),
            (_, Some(r)) => sources.secrets.get(&r.name),
            _ => None,
        };
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in data.into_iter().flatten() {
            set(&mut known, format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let text = variable.value.as_deref().unwrap_or_default();
                Some(expand(text, |n| known.get(n).or_else(|| services.get(n)).cloned()))
            }
            Some(from) => from_source(pod, container, from, sources, facts)?,
        };
        if let Some(value) = value {
            set(&mut known, variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !known.contains_key(name) {
            out.push((name.clone(), value.clone()));
        }
    }
    Ok(out)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    sources: &Sources,
    facts: &Facts<'_>,
) -> Result<Option<String>, String> {
    if let Some(r) = &from.field_ref {
        let unknown = || format!("unsupported field path {:?}", r.field_path);
        return field(pod, &r.field_path, facts).map(Some).ok_or_else(unknown);
    }
    if let Some(r) = &from.resource_field_ref {
        let other = r.container_name.as_deref().filter(|n| !n.is_empty()).and_then(|n| spec::find(pod, n));
        let holder = other.as_ref().map_or(container, |(_, c)| c);
        let divisor = r.divisor.as_ref().map(|d| d.0.as_str());
        return resource(holder, &r.resource, divisor, facts)
            .map(Some)
            .ok_or_else(|| format!("unsupported container resource : {}", r.resource));
    }
    let (kind, data, name, key, optional) = if let Some(r) = &from.config_map_key_ref {
        ("ConfigMap", sources.config_maps.get(&r.name), &r.name, &r.key, r.optional)
    } else if let Some(r) = &from.secret_key_ref {
        ("Secret", sources.secrets.get(&r.name), &r.name, &r.key, r.optional)
    } else {
        return Err("this source of environment variables is not supported".into());
    };
    match data.and_then(|d| d.get(key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(format!("couldn't find key {key} in {kind} {}/{name}", spec::namespace(pod))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let lookup = |n: &str| (n == "A").then(|| "x".to_owned());
        for (text, want) in [
            ("$(A)", "x"),
            ("a$(A)b$(B)", "axb$(B)"),
            ("$$(A)", "$(A)"),
            ("$A $(", "$A $("),
            ("$", "$"),
            ("$$$(A)", "$x"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, lookup), want, "{text}");
        }
    }
}
