//! Starting, crashing and ending a cluster.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::{Cluster, until};
use crate::machine::output;

pub fn up_leaves_a_ready_node_and_a_private_kubeconfig(cluster: &Cluster) {
    let nodes = cluster.kubectl("get nodes");
    assert!(nodes.contains("node-1") && nodes.contains(" Ready "), "{nodes}");
    let mode = std::fs::metadata(cluster.kubeconfig()).expect("the kubeconfig").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for entry in std::fs::read_dir(cluster.data_dir().join("pki")).expect("the keys").flatten() {
        let mode = entry.metadata().expect("its mode").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} is open to others", entry.path().display());
    }
    let again = cluster.up();
    assert!(again.contains("running already"), "{again}");
    let status = output(&mut cluster.isopod("status", &[]));
    assert!(status.contains("readyz      ok") && status.contains("node        node-1 Ready"), "{status}");
}

/// Container IDs and restart counts of the pods that serve the example.
fn containers(cluster: &Cluster) -> String {
    let path =
        "jsonpath={range .items[*].status.containerStatuses[*]}{.containerID} {.restartCount}{\"\\n\"}{end}";
    output(&mut cluster.kubectl_command(&["get", "pods", "-l", "app in (web-mongo,web-redis)", "-o", path]))
}

fn page(cluster: &Cluster) -> String {
    let url = format!("http://{}:30080/", cluster.machine.address);
    output(Command::new("curl").args(["-sS", "-m", "10", &url]))
}

pub fn killed_server_leaves_pods_and_traffic_alone(cluster: &Cluster) {
    let before = containers(cluster);
    assert_eq!(before.lines().count(), 8, "{before}");
    cluster.kubectl("create configmap kept --from-literal=a=b");
    let pid = cluster.server_pid();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the server");
    until("the end of the server", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    for _ in 0..20 {
        assert!(page(cluster).contains("Welcome to nginx"));
    }
    cluster.up();
    assert_ne!(cluster.server_pid(), pid);
    assert_eq!(cluster.kubectl("get configmap kept -o jsonpath={.data.a}"), "b");
    // The kubelet has told of every pod again once it has told of a new one.
    cluster.kubectl(&format!("run after-kill --image={} --restart=Never -- true", crate::cluster::BUSYBOX));
    cluster.kubectl("wait --timeout=60s --for=jsonpath={.status.phase}=Succeeded pod/after-kill");
    assert_eq!(containers(cluster), before, "containers were left alone");
    assert!(page(cluster).contains("Welcome to nginx"));
}

pub fn down_keeps_state_for_the_next_up(cluster: &Cluster) {
    cluster.down(false);
    nothing_is_left(cluster);
    cluster.up();
    assert_eq!(cluster.kubectl("get configmap kept -o jsonpath={.data.a}"), "b");
    for deployment in ["web-mongo", "web-redis", "client"] {
        cluster.kubectl(&format!("rollout status --timeout=180s deployment/{deployment}"));
    }
    until("traffic", || {
        let url = format!("http://{}:30081/", cluster.machine.address);
        let answer = crate::machine::try_output(Command::new("curl").args(["-sS", "-m", "10", &url])).ok()?;
        answer.contains("Welcome to nginx").then_some(())
    });
}

pub fn down_leaves_nothing_behind(cluster: &Cluster) {
    cluster.down(true);
    nothing_is_left(cluster);
    for path in [cluster.data_dir(), cluster.run_dir(), cluster.kubeconfig()] {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

fn nothing_is_left(cluster: &Cluster) {
    let directory = cluster.directory.to_string_lossy().into_owned();
    let processes: Vec<String> = std::fs::read_dir("/proc")
        .expect("processes")
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok_and(|pid| pid != std::process::id()))
        .filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
        .map(|c| String::from_utf8_lossy(&c).replace('\0', " "))
        .filter(|c| c.contains(&directory))
        .collect();
    assert!(processes.is_empty(), "processes are left: {processes:#?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let mounts: Vec<&str> = mounts.lines().filter(|l| l.contains(&directory)).collect();
    assert!(mounts.is_empty(), "mounts are left: {mounts:#?}");
    assert_eq!(cluster.machine.interfaces(), ["lo", "eth0"]);
    assert_eq!(output(cluster.machine.command("nft").args(["list", "tables"])).trim(), "");
    assert!(cluster.cgroups().is_empty(), "cgroups are left: {:?}", cluster.cgroups());
}
