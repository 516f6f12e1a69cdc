//! examples/two-services with the stand-in images: the scenario that the project exists for.

use std::path::Path;
use std::process::Command;

use crate::cluster::{Cluster, until};
use crate::machine::{output, try_output};

pub fn is_reached_by_name_address_and_port(cluster: &Cluster) {
    apply(cluster);
    for deployment in ["web-mongo", "web-redis", "client"] {
        cluster.kubectl(&format!("rollout status --timeout=180s deployment/{deployment}"));
    }
    for (service, port) in [("web-mongo", 30080), ("web-redis", 30081)] {
        let name = cluster.kubectl(&format!(
            "exec deployment/client -- wget -q -O- http://{service}.default.svc.cluster.local/"
        ));
        assert!(name.contains("Welcome to nginx"), "{service} by name: {name}");
        let address = cluster.kubectl(&format!("get service {service} -o jsonpath={{.spec.clusterIP}}"));
        let page =
            output(cluster.machine.command("curl").args(["-sS", "-m", "10", &format!("http://{address}/")]));
        assert!(page.contains("Welcome to nginx"), "{service} by address: {page}");
        // From this host, which is outside of the machine.
        let url = format!("http://{}:{port}/", cluster.machine.address);
        let page = output(Command::new("curl").args(["-sS", "-m", "10", &url]));
        assert!(page.contains("Welcome to nginx"), "{service} by node port: {page}");
    }
    let answer = output(&mut cluster.kubectl_command(&[
        "exec",
        "deployment/web-redis",
        "-c",
        "redis",
        "--",
        "redis-cli",
        "-h",
        "web-redis",
        "ping",
    ]));
    assert_eq!(answer.trim(), "PONG");
    let answer = output(&mut cluster.kubectl_command(&[
        "exec",
        "deployment/web-mongo",
        "-c",
        "mongo",
        "--",
        "psql",
        "-h",
        "web-mongo",
        "-p",
        "27017",
        "-U",
        "postgres",
        "-Atc",
        "select 6 * 7",
    ]));
    assert_eq!(answer.trim(), "42");
    until("the client's log", || {
        let log = cluster.kubectl("logs deployment/client --tail=20");
        ["web-mongo", "web-redis"]
            .iter()
            .all(|s| log.contains(&format!("{s}: reached by name")))
            .then_some(())
    });
    dns(cluster);
}

fn apply(cluster: &Cluster) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/two-services");
    for entry in std::fs::read_dir(directory).expect("the example").flatten() {
        let mut manifest = std::fs::read_to_string(entry.path()).expect("a manifest");
        for stand_in in &testkit::example_images::STAND_INS {
            manifest = manifest.replace(stand_in.public, stand_in.name);
        }
        cluster.apply(&manifest);
    }
}

fn dns(cluster: &Cluster) {
    let address = cluster.kubectl("get service web-mongo -o jsonpath={.spec.clusterIP}");
    let lookup = |name: &str| {
        try_output(&mut cluster.kubectl_command(&["exec", "deployment/client", "--", "nslookup", name]))
    };
    let forward = lookup("web-mongo.default.svc.cluster.local.").expect("a forward lookup");
    assert!(forward.contains(&address), "{forward}");
    let reverse = lookup(&address).expect("a reverse lookup");
    assert!(reverse.contains("web-mongo.default.svc.cluster.local"), "{reverse}");
    assert!(lookup("no-such.default.svc.cluster.local.").is_err());
}
