//! The plugins in real network namespaces, with real traffic.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;
use crate::testing::{Namespace, privileged};

fn call(command: &str, plugin: &str, id: &str, netns: &str, config: &Value) -> Result<Option<Value>, Error> {
    let env = |name: &str| match name {
        "CNI_COMMAND" => command.to_owned(),
        "CNI_CONTAINERID" => id.to_owned(),
        "CNI_NETNS" => netns.to_owned(),
        "CNI_IFNAME" => "eth0".to_owned(),
        "CNI_PATH" => "/nowhere".to_owned(),
        _ => String::new(),
    };
    answer(plugin, &env, &config.to_string()).1
}

fn serve(pod: &Namespace, port: u16, text: &'static str) {
    pod.run(move || {
        let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let peer = stream.peer_addr().unwrap().ip();
                let _ = write!(stream, "{text} {peer}");
            }
        });
    });
}

fn ask(from: &Namespace, to: &str) -> Result<String, String> {
    let to: SocketAddr = to.parse().unwrap();
    from.run(move || {
        let mut stream =
            TcpStream::connect_timeout(&to, Duration::from_secs(3)).map_err(|e| format!("{to}: {e}"))?;
        let mut out = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        stream.read_to_string(&mut out).map_err(|e| format!("{to}: {e}"))?;
        Ok(out)
    })
}

/// As [`ask`] with a source address of choice.
fn ask_from(from: &Namespace, source: &'static str, to: &'static str) -> String {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
    use std::os::fd::AsRawFd;
    from.run(move || {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
        let source = SocketAddr::new(source.parse().unwrap(), 0);
        bind(fd.as_raw_fd(), &SockaddrStorage::from(source)).unwrap();
        let to: SocketAddr = to.parse().unwrap();
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).unwrap();
        let mut out = String::new();
        std::net::TcpStream::from(fd).read_to_string(&mut out).unwrap();
        out
    })
}

fn flannel_config(dir: &Path) -> Value {
    let env = dir.join("subnet.env");
    std::fs::write(
        &env,
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )
    .unwrap();
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "subnetFile": env,
        "dataDir": dir.join("flannel"), "ipam": {"dataDir": dir.join("networks")},
        "delegate": {"hairpinMode": true, "isDefaultGateway": true}})
}

#[test]
fn pods_talk_and_host_ports_reach_them() {
    if !privileged("pods_talk_and_host_ports_reach_them") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (node, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    let config = flannel_config(dir.path());
    let add = |id: &str, pod: &Namespace| {
        let (path, config, id) = (pod.path.clone(), config.clone(), id.to_owned());
        node.run(move || {
            let begin = Instant::now();
            let result = call("ADD", "flannel", &id, &path, &config).unwrap().unwrap();
            assert!(begin.elapsed() < Duration::from_millis(200), "ADD took {:?}", begin.elapsed());
            println!("ADD took {:?}", begin.elapsed());
            result
        })
    };
    let (ra, rb) = (add("a", &a), add("b", &b));
    assert_eq!(ra["ips"][0]["address"], "10.244.3.2/24");
    assert_eq!(ra["ips"][0]["gateway"], "10.244.3.1");
    assert_eq!(ra["interfaces"][0]["name"], "cni0");
    assert_eq!(ra["interfaces"][2]["mac"], "0a:58:0a:f4:03:02");
    assert_eq!(rb["ips"][0]["address"], "10.244.3.3/24");
    serve(&a, 80, "a");
    serve(&b, 80, "b");
    assert_eq!(ask(&a, "10.244.3.3:80").unwrap(), "b 10.244.3.2");
    assert_eq!(ask(&node, "10.244.3.2:80").unwrap(), "a 10.244.3.1");

    // Host ports: from the node by address and by loopback, from the other pod, from the pod itself.
    let mut ports = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "prevResult": ra,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "10.244.3.1"},
            {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}]}});
    let portmap = |command: &'static str, config: &Value| {
        let (config, path) = (config.clone(), a.path.clone());
        node.run(move || call(command, "portmap", "a", &path, &config))
    };
    assert_eq!(portmap("ADD", &ports).unwrap().unwrap()["ips"], ra["ips"]);
    portmap("CHECK", &ports).unwrap();
    for (from, to) in [
        (&node, "10.244.3.1:8080"),
        (&node, "127.0.0.1:8080"),
        (&b, "10.244.3.1:8080"),
        (&b, "10.244.3.1:8081"),
        (&a, "10.244.3.1:8080"),
    ] {
        assert!(ask(from, to).unwrap().starts_with("a "), "{to}");
    }
    assert!(ask(&node, "127.0.0.1:8081").is_err());
    // From another address of the node than the loopback one it goes to.
    assert!(ask_from(&node, "10.244.3.1", "127.0.0.1:8082").starts_with("a "));
    ports["prevResult"] = Value::Null;
    portmap("DEL", &ports).unwrap();
    portmap("DEL", &ports).unwrap();
    assert!(ask(&node, "10.244.3.1:8080").is_err());

    // CHECK sees the pod; DEL takes everything away, twice without complaint, also when the namespace is gone.
    let flannel = |command: &'static str, id: &'static str, path: &str, previous: &Value| {
        let (mut config, path) = (config.clone(), path.to_owned());
        config["prevResult"] = previous.clone();
        node.run(move || call(command, "flannel", id, &path, &config))
    };
    flannel("CHECK", "a", &a.path, &ra).unwrap();
    flannel("DEL", "a", &a.path, &ra).unwrap();
    flannel("DEL", "a", &a.path, &ra).unwrap();
    assert!(flannel("CHECK", "a", &a.path, &ra).is_err());
    flannel("DEL", "b", "/no/such/namespace", &Value::Null).unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path().join("networks/cbr0"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("10."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_attachment_of_its_own_masquerades() {
    if !privileged("an_attachment_of_its_own_masquerades") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (node, pod) = (Namespace::new(), Namespace::new());
    let config = json!({"cniVersion": "0.3.1", "name": "n", "type": "bridge", "bridge": "br7", "isDefaultGateway": true,
        "ipMasq": true, "ipam": {"type": "host-local", "dataDir": dir.path(), "subnet": "10.9.0.0/24"}});
    let path = pod.path.clone();
    node.run(move || {
        let result = call("ADD", "bridge", "c", &path, &config).unwrap().unwrap();
        assert_eq!(result["ips"][0]["version"], "4");
        let text = |t: Option<Value>| t.unwrap().to_string();
        assert!(text(crate::nft::table("ip", "isopod-cni-masquerade").unwrap()).contains("n/c/eth0"));
        // The address on the bridge is another network's: refused, and nothing is left behind.
        let mut other = config.clone();
        other["ipam"]["subnet"] = json!("10.10.0.0/24");
        let fresh = Namespace::new();
        let e = call("ADD", "bridge", "d", &fresh.path, &other).unwrap_err();
        assert!(e.msg.contains("already has an IP address different from"), "{e}");
        assert!(fresh.run(|| crate::netlink::Netlink::open().unwrap().link("eth0").unwrap().is_none()));
        call("DEL", "bridge", "c", &path, &config).unwrap();
        call("DEL", "bridge", "c", &path, &config).unwrap();
        assert!(!text(crate::nft::table("ip", "isopod-cni-masquerade").unwrap()).contains("n/c/eth0"));
    });
}

#[test]
fn loopback_comes_up() {
    if !privileged("loopback_comes_up") {
        return;
    }
    let (node, pod) = (Namespace::new(), Namespace::new());
    let path = pod.path.clone();
    node.run(move || {
        let config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
        call("ADD", "loopback", "c", &path, &config).unwrap();
        let result = call("ADD", "loopback", "c", &path, &config).unwrap().unwrap();
        assert_eq!(result["ips"][0]["address"], "127.0.0.1/8");
        call("DEL", "loopback", "c", &path, &config).unwrap();
    });
}
