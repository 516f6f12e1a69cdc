use std::time::Duration;

use super::*;

/// Everything a service has, one line each.
fn show(rules: &ServiceRules) -> Vec<String> {
    let mut out = vec![];
    for ((set, key), verdict) in &rules.elements {
        out.push(match verdict {
            Some(verdict) => format!("{set} {{ {key} : {verdict} }}"),
            None => format!("{set} {{ {key} }}"),
        });
    }
    for (chain, body) in &rules.chains {
        out.extend(body.iter().map(|rule| format!("{chain}: {rule}")));
    }
    out.extend(rules.affinity_sets.iter().map(|(set, timeout)| format!("{set}: {timeout}s")));
    out
}

const TWO: &[(&str, &str)] = &[("10.244.0.2", "n1"), ("10.244.1.2", "n2")];
const REMOTE: &[(&str, &str)] = &[("10.244.1.2", "n2")];

#[test]
fn rules_of_services() {
    let cases: &[(&str, Value, Value, &[(&str, &str)], &[&str])] = &[
        (
            "cluster IP",
            json!({}),
            json!([]),
            TWO,
            &[
                "cluster-ips { 10.96.0.10 }",
                "hairpin-connections { 10.244.0.2 . 10.244.0.2 . tcp . 8080 }",
                "service-ips { 10.96.0.10 . tcp . 80 : goto service-#-ns/svc/tcp/p80 }",
                "service-#-ns/svc/tcp/p80: meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.244.0.2 . 8080, 1 : 10.244.1.2 . 8080 }",
            ],
        ),
        (
            "nobody there",
            json!({"externalIPs": ["203.0.113.1"], "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]}),
            json!([]),
            &[],
            &[
                "cluster-ips { 10.96.0.10 }",
                "no-endpoint-nodeports { tcp . 30080 : goto reject-chain }",
                "no-endpoint-services { 10.96.0.10 . tcp . 80 : goto reject-chain }",
                "no-endpoint-services { 203.0.113.1 . tcp . 80 : goto reject-chain }",
            ],
        ),
        (
            "node port",
            json!({"type": "NodePort", "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]}),
            json!([]),
            REMOTE,
            &[
                "cluster-ips { 10.96.0.10 }",
                "service-ips { 10.96.0.10 . tcp . 80 : goto service-#-ns/svc/tcp/p80 }",
                "service-nodeports { tcp . 30080 : goto external-#-ns/svc/tcp/p80 }",
                "external-#-ns/svc/tcp/p80: jump mark-for-masquerade",
                "external-#-ns/svc/tcp/p80: goto service-#-ns/svc/tcp/p80",
                "service-#-ns/svc/tcp/p80: meta l4proto tcp dnat to 10.244.1.2:8080",
            ],
        ),
        (
            "load balancer, policy Local, nobody here",
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["198.51.100.0/24"],
                "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]}),
            json!([{"ip": "203.0.113.9"}, {"ip": "203.0.113.10", "ipMode": "Proxy"}]),
            REMOTE,
            &[
                "cluster-ips { 10.96.0.10 }",
                "firewall-ips { 203.0.113.9 . tcp . 80 : goto firewall-#-ns/svc/tcp/p80 }",
                "no-endpoint-nodeports { tcp . 30080 : drop }",
                "no-endpoint-services { 203.0.113.9 . tcp . 80 : drop }",
                "service-ips { 10.96.0.10 . tcp . 80 : goto service-#-ns/svc/tcp/p80 }",
                "service-ips { 203.0.113.9 . tcp . 80 : goto external-#-ns/svc/tcp/p80 }",
                "service-nodeports { tcp . 30080 : goto external-#-ns/svc/tcp/p80 }",
                "external-#-ns/svc/tcp/p80: ip saddr { 10.244.0.0/16 } goto service-#-ns/svc/tcp/p80",
                "external-#-ns/svc/tcp/p80: fib saddr type local jump mark-for-masquerade",
                "external-#-ns/svc/tcp/p80: fib saddr type local goto service-#-ns/svc/tcp/p80",
                "firewall-#-ns/svc/tcp/p80: ip saddr != { 198.51.100.0/24 } drop",
                "service-#-ns/svc/tcp/p80: meta l4proto tcp dnat to 10.244.1.2:8080",
            ],
        ),
        (
            "internal policy Local, nobody here",
            json!({"internalTrafficPolicy": "Local"}),
            json!([]),
            REMOTE,
            &["cluster-ips { 10.96.0.10 }", "no-endpoint-services { 10.96.0.10 . tcp . 80 : drop }"],
        ),
        (
            "affinity",
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}}),
            json!([]),
            REMOTE,
            &[
                "cluster-ips { 10.96.0.10 }",
                "service-ips { 10.96.0.10 . tcp . 80 : goto service-#-ns/svc/tcp/p80 }",
                "endpoint-#-ns/svc/tcp/p80__10.244.1.2/8080: update @affinity-#-ns/svc/tcp/p80__10.244.1.2/8080 { ip saddr }",
                "endpoint-#-ns/svc/tcp/p80__10.244.1.2/8080: meta l4proto tcp dnat to 10.244.1.2:8080",
                "service-#-ns/svc/tcp/p80: ip saddr @affinity-#-ns/svc/tcp/p80__10.244.1.2/8080 goto endpoint-#-ns/svc/tcp/p80__10.244.1.2/8080",
                "service-#-ns/svc/tcp/p80: numgen random mod 1 vmap { 0 : goto endpoint-#-ns/svc/tcp/p80__10.244.1.2/8080 }",
                "affinity-#-ns/svc/tcp/p80__10.244.1.2/8080: 60s",
            ],
        ),
    ];
    let hash = |line: &str| -> String {
        // Hashes are eight hexadecimal digits between dashes.
        let mut out = line.to_owned();
        for kind in ["service-", "local-", "external-", "firewall-", "endpoint-", "affinity-"] {
            let mut from = 0;
            while let Some(at) = out[from..].find(kind).map(|at| at + from + kind.len()) {
                if out.get(at..at + 8).is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit())) {
                    out.replace_range(at..at + 8, "#");
                }
                from = at;
            }
        }
        out
    };
    for (name, spec, ingress, endpoints, want) in cases {
        let have = show(&rules(&service(spec.clone(), ingress.clone()), &[slice("TCP", 8080, endpoints)]));
        let have: Vec<String> = have.iter().map(|line| hash(line)).collect();
        assert_eq!(have, *want, "{name}");
    }
}

#[test]
fn a_service_of_the_other_family_has_no_rules() {
    let dual = service(json!({"clusterIPs": ["10.96.0.10", "fd00:96::1"]}), json!([]));
    let slices = [slice("TCP", 80, &[("fd00::2", "n1")])];
    let v6 = service_rules(&dual, &slices, Family::V6, &context());
    assert!(show(&v6).iter().any(|l| l.ends_with("dnat to [fd00::2]:80")), "{:?}", show(&v6));
    let single = service(json!({}), json!([]));
    assert_eq!(service_rules(&single, &slices, Family::V6, &context()), ServiceRules::default());
}

#[test]
fn changes_touch_only_what_differs() {
    let mut table = Table::new(base(Family::V4));
    let svc = service(json!({}), json!([]));
    let one = rules(&svc, &[slice("TCP", 80, REMOTE)]);
    let two = rules(&svc, &[slice("TCP", 80, TWO)]);
    let first = change(&mut table, Some(one.clone()));
    assert!(
        first.contains("add chain ip kube-proxy service-")
            && first.contains("add element ip kube-proxy service-ips")
    );
    assert_eq!(change(&mut table, Some(one.clone())), "");
    let more = change(&mut table, Some(two.clone()));
    assert!(
        more.contains("numgen random mod 2") && more.contains("hairpin") && !more.contains("service-ips"),
        "{more}"
    );
    // Another service with the same endpoint: its hairpin entry is there already, and stays until both are gone.
    let mut other = svc.clone();
    (other.name, other.cluster_ips) = ("other".into(), vec!["10.96.0.11".parse().unwrap()]);
    let other = rules(&other, &[slice("TCP", 80, TWO)]);
    let now = Instant::now();
    assert!(!table.update(vec![("ns/other".into(), Some(other))], now).contains("hairpin"));
    let less = change(&mut table, None);
    assert!(!less.contains("hairpin") && less.contains("delete element ip kube-proxy service-ips"), "{less}");
    assert!(
        table.update(vec![("ns/other".into(), None)], now).contains("delete element ip kube-proxy hairpin")
    );
    // Chains go a moment later, unless they are in use again.
    change(&mut table, Some(one));
    assert_eq!(table.sweep(now), "");
    let later = Instant::now() + Duration::from_secs(2);
    assert_eq!(table.sweep(later).lines().count(), 1);
    assert_eq!(table.next_sweep(), None);
    assert!(
        table
            .full()
            .starts_with("add table ip kube-proxy\ndelete table ip kube-proxy\ntable ip kube-proxy {")
    );
}
