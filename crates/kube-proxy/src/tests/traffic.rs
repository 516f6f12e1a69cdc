//! A node with two pods on a bridge and a client outside, each a network namespace on a thread of its own.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::fake_api::FakeApi;
use super::*;
use crate::conntrack;

type Job = Box<dyn FnOnce() + Send>;

struct Namespace {
    tid: i32,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    fn new() -> Namespace {
        let (jobs, queue) = channel::<Job>();
        let (ready, started) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            for job in queue {
                job();
            }
        });
        let namespace = Namespace { tid: started.recv().unwrap(), jobs: Some(jobs), thread: Some(thread) };
        namespace.sh("ip link set lo up");
        namespace
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tx, rx) = channel();
        let job: Job = Box::new(move || {
            let _ = tx.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        rx.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn sh(&self, script: &str) {
        let script = format!("set -e\n{script}");
        self.run(move || {
            assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "{script}")
        });
    }

    fn nft(&self, script: String) {
        self.run(move || {
            let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{script}");
        });
    }

    /// Answers every connection to `port` with `name` and the client's address.
    fn serve(&self, port: u16, name: &'static str) {
        self.run(move || {
            let tcp = TcpListener::bind(("0.0.0.0", port)).unwrap();
            let udp = UdpSocket::bind(("0.0.0.0", port)).unwrap();
            std::thread::spawn(move || {
                for stream in tcp.incoming().flatten() {
                    let peer = stream.peer_addr().unwrap().ip();
                    let _ = write!(&stream, "{name} {peer}");
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(name.as_bytes(), peer);
                }
            });
        });
    }

    fn ask(&self, to: &str) -> Result<String, ErrorKind> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let mut stream =
                TcpStream::connect_timeout(&to, Duration::from_millis(2000)).map_err(|e| e.kind())?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut out = String::new();
            stream.read_to_string(&mut out).map_err(|e| e.kind())?;
            Ok(out)
        })
    }

    /// Who answered over `n` connections.
    fn answers(&self, to: &str, n: usize) -> BTreeSet<String> {
        (0..n).map(|_| self.ask(to).unwrap().split(' ').next().unwrap().to_owned()).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Cluster {
    node: Namespace,
    a: Namespace,
    b: Namespace,
    outside: Namespace,
}

fn cluster(test: &str) -> Option<Cluster> {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs root to make network namespaces");
        return None;
    }
    let c = Cluster {
        node: Namespace::new(),
        a: Namespace::new(),
        b: Namespace::new(),
        outside: Namespace::new(),
    };
    c.node.sh("ip link add cni0 type bridge; ip addr add 10.244.0.1/24 dev cni0; ip link set cni0 up
        echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
        echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables");
    for (pod, number) in [(&c.a, 2), (&c.b, 3)] {
        c.node.sh(&format!(
            "ip link add veth{number} type veth peer name eth0 netns {}
            ip link set veth{number} master cni0 up; bridge link set dev veth{number} hairpin on",
            pod.tid
        ));
        pod.sh(&format!(
            "ip addr add 10.244.0.{number}/24 dev eth0; ip link set eth0 up; ip route add default via 10.244.0.1"
        ));
    }
    c.node.sh(&format!("ip link add eth0 type veth peer name eth0 netns {}", c.outside.tid));
    c.node.sh("ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.2");
    c.outside.sh("ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up
        ip route add 10.96.0.0/16 via 192.0.2.1; ip route add 203.0.113.0/24 via 192.0.2.1");
    c.a.serve(8080, "a");
    c.b.serve(8080, "b");
    Some(c)
}

const BOTH: &[(&str, &str)] = &[("10.244.0.2", "n1"), ("10.244.0.3", "n1")];
const ONLY_B: &[(&str, &str)] = &[("10.244.0.3", "n1")];

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn services_forward() {
    let Some(c) = cluster("services_forward") else { return };
    let mut table = Table::new(base(Family::V4));
    c.node.nft(table.full());
    let node_port = json!({"type": "NodePort", "externalIPs": ["203.0.113.1"],
        "ports": [{"name": "p80", "port": 80, "nodePort": 30080}]});
    let svc = service(node_port.clone(), json!([]));
    c.node.nft(change(&mut table, Some(rules(&svc, &[slice("TCP", 8080, BOTH)]))));

    // A pod, itself among the endpoints; the node; somebody outside.
    assert_eq!(c.a.answers("10.96.0.10:80", 24), set(["a", "b"]));
    assert_eq!(c.node.answers("10.96.0.10:80", 24), set(["a", "b"]));
    for to in ["127.0.0.1:30080", "192.0.2.1:30080", "203.0.113.1:80"] {
        assert_eq!(c.node.answers(to, 24), set(["a", "b"]), "{to}");
    }
    for to in ["192.0.2.1:30080", "203.0.113.1:80", "10.96.0.10:80"] {
        assert_eq!(c.outside.answers(to, 24), set(["a", "b"]), "{to}");
    }
    // Pods see each other's addresses, and the node's instead of an outsider's.
    assert!((0..24).any(|_| c.a.ask("10.96.0.10:80").unwrap() == "b 10.244.0.2"));
    assert!(c.outside.ask("192.0.2.1:30080").unwrap().ends_with(" 10.244.0.1"));
    // A port the service does not have.
    assert_eq!(c.a.ask("10.96.0.10:81"), Err(ErrorKind::ConnectionRefused));

    // Fewer endpoints, then none, then the service gone.
    c.node.nft(change(&mut table, Some(rules(&svc, &[slice("TCP", 8080, ONLY_B)]))));
    assert_eq!(c.a.answers("10.96.0.10:80", 8), set(["b"]));
    c.node.nft(change(&mut table, Some(rules(&svc, &[]))));
    for (from, to) in [(&c.a, "10.96.0.10:80"), (&c.node, "10.96.0.10:80"), (&c.outside, "192.0.2.1:30080")] {
        assert_eq!(from.ask(to), Err(ErrorKind::ConnectionRefused), "{to}");
    }
    c.node.nft(table.sweep(Instant::now() + Duration::from_secs(2)));
    c.node.nft(change(&mut table, None));
    assert_eq!(c.a.ask("10.96.0.10:80"), Err(ErrorKind::TimedOut));

    // An endpoint that is the node itself, as cluster DNS and the API server are.
    c.node.serve(8080, "node");
    c.node.nft(change(&mut table, Some(rules(&svc, &[slice("TCP", 8080, &[("192.0.2.1", "n1")])]))));
    assert_eq!(c.a.ask("10.96.0.10:80").unwrap(), "node 10.244.0.2");
    for (from, to) in
        [(&c.node, "10.96.0.10:80"), (&c.node, "127.0.0.1:30080"), (&c.outside, "192.0.2.1:30080")]
    {
        assert!(from.ask(to).unwrap().starts_with("node "), "{to}");
    }

    // Policy Local keeps the outsider's address.
    let mut local = node_port;
    local["externalTrafficPolicy"] = json!("Local");
    let svc = service(local, json!([]));
    c.node.nft(change(&mut table, Some(rules(&svc, &[slice("TCP", 8080, ONLY_B)]))));
    assert_eq!(c.outside.ask("192.0.2.1:30080").unwrap(), "b 192.0.2.2");
    assert!(c.node.ask("127.0.0.1:30080").unwrap().starts_with("b "));
    // Every other shape of the table is one the kernel takes.
    let primary = Base { node_port_ips: Some(context().node_ips), masquerade_all: true, ..base(Family::V4) };
    for other in [
        base(Family::V6),
        primary,
        Base { local_traffic: LocalTraffic::Bridge("cni0".into()), ..base(Family::V6) },
    ] {
        c.outside.nft(Table::new(other).full());
    }
    c.outside.nft("flush ruleset".into());
    // The whole table again, from memory, over what is there.
    c.node.nft(table.full());
    assert_eq!(c.outside.ask("192.0.2.1:30080").unwrap(), "b 192.0.2.2");

    // Policy Local with endpoints elsewhere only: silence.
    c.node.nft(change(&mut table, Some(rules(&svc, &[slice("TCP", 8080, &[("10.244.0.3", "n2")])]))));
    assert_eq!(c.outside.ask("192.0.2.1:30080"), Err(ErrorKind::TimedOut));
    assert!(c.a.ask("192.0.2.1:30080").unwrap().starts_with("b "));
}

#[test]
fn clients_stay_and_ranges_hold() {
    let Some(c) = cluster("clients_stay_and_ranges_hold") else { return };
    let mut table = Table::new(base(Family::V4));
    let mut spec = json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": ["198.51.100.0/24"]});
    let ingress = json!([{"ip": "203.0.113.9"}]);
    let both = [slice("TCP", 8080, BOTH)];
    let mut apply = |spec: &Value| {
        let script = change(&mut table, Some(rules(&service(spec.clone(), ingress.clone()), &both)));
        let full = table.full();
        (script, full)
    };
    c.node.nft(apply(&spec).1);
    assert_eq!(c.a.answers("10.96.0.10:80", 12).len(), 1);
    assert_eq!(c.outside.ask("203.0.113.9:80"), Err(ErrorKind::TimedOut));
    // Another timeout replaces the sets under the rules that use them.
    spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 7}});
    spec["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "192.0.2.0/24"]);
    c.node.nft(apply(&spec).0);
    assert_eq!(c.a.answers("10.96.0.10:80", 12).len(), 1);
    assert_eq!(c.outside.answers("203.0.113.9:80", 12).len(), 1);
    // No affinity any more: the sets go with their users.
    spec["sessionAffinity"] = json!("None");
    c.node.nft(apply(&spec).0);
    assert_eq!(c.a.answers("10.96.0.10:80", 24), set(["a", "b"]));
}

#[test]
fn udp_clients_move_on() {
    let Some(c) = cluster("udp_clients_move_on") else { return };
    let mut table = Table::new(base(Family::V4));
    c.node.nft(table.full());
    let svc = service(json!({"ports": [{"name": "p80", "protocol": "UDP", "port": 80}]}), json!([]));
    let socket = c.a.run(|| {
        let socket = UdpSocket::bind("10.244.0.2:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.connect("10.96.0.10:80").unwrap();
        socket
    });
    let ask = || {
        let mut buffer = [0; 16];
        let n = socket.send(b"?").and_then(|_| socket.recv(&mut buffer)).ok()?;
        Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
    };
    let mut now = |endpoints: &[(&str, &str)]| {
        let rules = rules(&svc, &[slice("UDP", 8080, endpoints)]);
        c.node.nft(change(&mut table, Some(rules.clone())));
        let services: Vec<_> = rules.udp.into_iter().collect();
        c.node.run(move || conntrack::forget_stale(Family::V4, &services, &[]).unwrap())
    };
    now(&[]);
    assert_eq!(ask(), None);
    now(&[("10.244.0.2", "n1")]);
    assert_eq!(ask().as_deref(), Some("a"));
    // The flow goes on to the old endpoint unless it is ended.
    assert_eq!(now(ONLY_B), 1);
    assert_eq!(ask().as_deref(), Some("b"));
    assert_eq!(now(ONLY_B), 0);
}

/// The whole proxy, fed by a stand-in for the API.
#[test]
fn the_proxy_follows_the_api() {
    let Some(c) = cluster("the_proxy_follows_the_api") else { return };
    let api = std::sync::Arc::new(FakeApi::default());
    let object = |name: &str, ip: &str, extra: Value| {
        let mut object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "p80", "protocol": "TCP", "port": 80}]}});
        for (key, value) in extra.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        object
    };
    let slice = |service: &str, endpoints: &[(&str, &str)]| {
        let endpoints: Vec<Value> =
            endpoints.iter().map(|(ip, node)| json!({"addresses": [ip], "nodeName": node})).collect();
        json!({"metadata": {"namespace": "ns", "name": format!("{service}-1"),
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "p80", "protocol": "TCP", "port": 8080}], "endpoints": endpoints})
    };
    api.put(
        "nodes",
        &json!({"metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
    );
    api.put("services", &object("one", "10.96.0.10", json!({})));
    api.put("endpointslices", &slice("one", ONLY_B));
    let stop = tokio_util::sync::CancellationToken::new();
    let (ended, end) = channel();
    let (proxy_api, proxy_stop) = (api.clone(), stop.clone());
    // In the node's namespace, on a thread that stays there.
    let job: Job = Box::new(move || {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let config = crate::Config::new(
                "n1",
                vec!["10.244.0.0/16".parse().unwrap()],
                vec!["10.96.0.0/16".parse().unwrap()],
            );
            runtime.block_on(async {
                let client = proxy_api.client(&proxy_stop);
                crate::run(config, client, proxy_stop).await.unwrap();
            });
            ended.send(()).unwrap();
        });
    });
    c.node.jobs.as_ref().unwrap().send(job).unwrap();
    let eventually = |what: &str, check: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !check() {
            assert!(begin.elapsed() < Duration::from_secs(8), "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let answered = |to: &str, by: &str| c.a.ask(to).is_ok_and(|a| a.starts_with(by));
    eventually("the first service", &|| answered("10.96.0.10:80", "b "));
    // Within a moment of each change.
    api.put("endpointslices", &slice("one", &[("10.244.0.2", "n1")]));
    eventually("another endpoint", &|| answered("10.96.0.10:80", "a "));
    api.put(
        "services",
        &object(
            "two",
            "10.96.0.11",
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 30999}),
        ),
    );
    eventually("a refusal", &|| c.a.ask("10.96.0.11:80") == Err(ErrorKind::ConnectionRefused));
    let status = |port: u16| {
        c.node.run(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
            let mut out = String::new();
            stream.read_to_string(&mut out).ok()?;
            Some(out)
        })
    };
    eventually("a health check without endpoints", &|| {
        status(30999).is_some_and(|s| s.starts_with("HTTP/1.1 503"))
    });
    api.put("endpointslices", &slice("two", ONLY_B));
    eventually("the second service", &|| answered("10.96.0.11:80", "b "));
    eventually("a health check", &|| {
        status(30999).is_some_and(|s| s.starts_with("HTTP/1.1 200") && s.contains("\"localEndpoints\": 1"))
    });
    assert!(status(10256).unwrap().contains("nodeEligible"));
    // Somebody flushes everything: the next change brings all of it back.
    c.node.nft("flush ruleset".into());
    api.put("endpointslices", &slice("two", BOTH));
    eventually("all rules again", &|| answered("10.96.0.10:80", "a "));
    api.delete("services", "ns", "two");
    api.delete("endpointslices", "ns", "two-1");
    eventually("a port nobody listens at", &|| status(30999).is_none());
    stop.cancel();
    end.recv_timeout(Duration::from_secs(5)).expect("the proxy ends");
}
