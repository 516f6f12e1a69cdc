//! Names inside a pod: hostname, `/etc/hosts`, and the resolver's configuration.

use std::path::Path;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use super::spec;
use crate::config::Config;
use crate::cri::api::DnsConfig;

/// A hostname and the domain it is in; either may be empty.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = spec::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let mut name = spec.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| {
        let mut name = spec::name(pod).to_owned();
        if name.len() > 63 {
            name.truncate(63);
            name = name.trim_end_matches(['-', '.']).to_owned();
        }
        name
    });
    let domain = match spec.subdomain.as_deref().filter(|s| !s.is_empty()) {
        Some(sub) => format!("{sub}.{}.svc.{cluster_domain}", spec::namespace(pod)),
        None => String::new(),
    };
    if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        name = format!("{name}.{domain}");
    }
    (name, domain)
}

pub fn hosts_file(
    host_network: bool,
    host_file: &str,
    ips: &[String],
    name: &str,
    domain: &str,
    aliases: &[HostAlias],
) -> String {
    let mut out = String::new();
    if host_network {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host_file);
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n");
        out.push_str("127.0.0.1\tlocalhost\n");
        out.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        out.push_str("fe00::0\tip6-localnet\n");
        out.push_str("fe00::0\tip6-mcastprefix\n");
        out.push_str("fe00::1\tip6-allnodes\n");
        out.push_str("fe00::2\tip6-allrouters\n");
        for ip in ips {
            if domain.is_empty() {
                out.push_str(&format!("{ip}\t{name}\n"));
            } else {
                let short = name.strip_suffix(&format!(".{domain}")).unwrap_or(name);
                out.push_str(&format!("{ip}\t{short}.{domain}\t{short}\n"));
            }
        }
    }
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            out.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    out
}

/// A `resolv.conf` taken apart.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                config.searches =
                    words.map(|w| w.trim_end_matches('.').to_owned()).filter(|w| !w.is_empty()).collect();
            }
            Some("options") => config.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    config
}

pub fn dns_config(pod: &Pod, config: &Config) -> DnsConfig {
    let host = || {
        let path: &Path = &config.resolv_conf;
        parse_resolv_conf(&std::fs::read_to_string(path).unwrap_or_default())
    };
    compose_dns(
        pod,
        host,
        &config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        &config.cluster_domain,
    )
}

fn compose_dns(
    pod: &Pod,
    host: impl Fn() -> DnsConfig,
    cluster_dns: &[String],
    cluster_domain: &str,
) -> DnsConfig {
    let spec = spec::spec(pod);
    let cluster_first = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !spec::host_network(pod),
        _ => false,
    };
    let mut dns = if spec.dns_policy.as_deref() == Some("None") {
        DnsConfig::default()
    } else if cluster_first && !cluster_dns.is_empty() {
        let namespace = spec::namespace(pod);
        let mut searches = vec![
            format!("{namespace}.svc.{cluster_domain}"),
            format!("svc.{cluster_domain}"),
            cluster_domain.to_owned(),
        ];
        for search in host().searches {
            if !searches.contains(&search) {
                searches.push(search);
            }
        }
        DnsConfig { servers: cluster_dns.to_vec(), searches, options: vec!["ndots:5".into()] }
    } else {
        host()
    };
    if let Some(extra) = &spec.dns_config {
        let add = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
            for item in more.iter().flatten() {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut dns.servers, &extra.nameservers);
        add(&mut dns.searches, &extra.searches);
        for option in extra.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options.retain(|o| o.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    // What resolvers understand: more is cut off, as everywhere.
    dns.servers.truncate(3);
    dns.searches.truncate(32);
    dns
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption, PodSpec};

    fn pod(spec: PodSpec) -> Pod {
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        pod
    }

    #[test]
    fn dns() {
        let host = || parse_resolv_conf("nameserver 1.1.1.1\nsearch example.org.\noptions timeout:1\n");
        let cluster = ["10.0.0.10".to_owned()];
        let dns = compose_dns(&pod(PodSpec::default()), host, &cluster, "c.local");
        assert_eq!(dns.searches, ["ns.svc.c.local", "svc.c.local", "c.local", "example.org"]);
        assert_eq!((dns.servers, dns.options), (vec!["10.0.0.10".to_owned()], vec!["ndots:5".to_owned()]));
        let custom = PodSpec {
            dns_policy: Some("None".into()),
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["9.9.9.9".into()]),
                searches: Some(vec!["x".into()]),
                options: Some(vec![PodDNSConfigOption {
                    name: Some("ndots".into()),
                    value: Some("2".into()),
                }]),
            }),
            ..PodSpec::default()
        };
        let dns = compose_dns(&pod(custom), host, &cluster, "c.local");
        assert_eq!(
            (dns.servers, dns.searches, dns.options),
            (vec!["9.9.9.9".to_owned()], vec!["x".to_owned()], vec!["ndots:2".to_owned()])
        );
        let host_network = PodSpec { host_network: Some(true), ..PodSpec::default() };
        assert_eq!(compose_dns(&pod(host_network), host, &cluster, "c.local").servers, ["1.1.1.1"]);
    }

    #[test]
    fn hostnames() {
        let with = |hostname: &str, subdomain: &str| {
            hostname_of(PodSpec {
                hostname: Some(hostname.into()),
                subdomain: Some(subdomain.into()),
                ..PodSpec::default()
            })
        };
        fn hostname_of(spec: PodSpec) -> (String, String) {
            hostname(&pod(spec), "c.local")
        }
        assert_eq!(with("", ""), ("p".into(), String::new()));
        assert_eq!(with("h", "s"), ("h".into(), "s.ns.svc.c.local".into()));
    }
}
