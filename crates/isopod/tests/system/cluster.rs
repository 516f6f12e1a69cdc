//! The cluster under test and the ways to speak to it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::{Machine, Network, PREFIX, output, try_output};

/// How long anything may take here; machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const BUSYBOX: &str = "isopod.local/examples/busybox:1";

pub struct Cluster {
    pub machine: Machine,
    // Machines go before the wire between them.
    pub network: Network,
    pub directory: PathBuf,
    cgroup_root: String,
    images: PathBuf,
}

impl Cluster {
    /// Starts one with the images of the example.
    pub fn start() -> Cluster {
        for program in ["containerd", "runc", "nft", "ip", "kubectl", "curl"] {
            let found = Command::new("sh")
                .args(["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {program}")])
                .output();
            assert!(
                found.is_ok_and(|o| o.status.success()),
                "{program} is missing: run scripts/install-dependencies, or leave these tests out with ISOPOD_SYSTEM_TESTS=off"
            );
        }
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests need root; ISOPOD_SYSTEM_TESTS=off leaves them out"
        );
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/example-images");
        testkit::example_images::build(&images).expect("build the example's images");
        sweep();
        let directory = directory_of(std::process::id());
        std::fs::create_dir_all(directory.join("manifests")).expect("make the test's directory");
        let cgroup_root = format!("/{PREFIX}{}", std::process::id());
        let network = Network::new();
        let cluster = Cluster { machine: network.add(1), network, directory, cgroup_root, images };
        println!("{}", cluster.up().trim());
        for archive in ["busybox.tar", "nginx.tar", "redis.tar", "postgres.tar"] {
            output(&mut cluster.isopod("images", &["import".as_ref(), cluster.image(archive).as_os_str()]));
        }
        cluster
    }

    /// Starts the server and waits for the node.
    pub fn up(&self) -> String {
        output(&mut self.isopod("up", &[]))
    }

    pub fn down(&self, purge: bool) -> String {
        output(self.isopod("down", &[]).args(purge.then_some("--purge")))
    }

    /// The binary with the flags of this cluster.
    pub fn isopod(&self, command: &str, arguments: &[&std::ffi::OsStr]) -> Command {
        let mut isopod = self.machine.command(env!("CARGO_BIN_EXE_isopod"));
        isopod
            .arg(command)
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--write-kubeconfig")
            .arg(self.kubeconfig())
            .args(["--node-name", "node-1", "--cgroup-root", &self.cgroup_root])
            .arg("--pod-manifest-path")
            .arg(self.directory.join("manifests"))
            .args(arguments);
        isopod
    }

    /// An image archive of the example.
    pub fn image(&self, archive: &str) -> PathBuf {
        self.images.join(archive)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    pub fn server_pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.run_dir().join("isopod.pid")).expect("the server's pid file");
        text.trim().parse().expect("a pid")
    }

    /// Control groups of this cluster that exist.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(top).expect("read the cgroups").flatten().map(|e| e.path());
        std::iter::once(top.to_owned())
            .chain(hierarchies)
            .map(|h| h.join(self.cgroup_root.trim_start_matches('/')))
            .filter(|p| p.exists())
            .collect()
    }

    /// kubectl on the machine, as administrator.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut kubectl = self.machine.command("timeout");
        let seconds = (2 * PATIENCE.as_secs()).to_string();
        kubectl
            .args(["-k", "5", &seconds, "kubectl", "--kubeconfig"])
            .arg(self.kubeconfig())
            .args(arguments)
            .env("HOME", &self.directory);
        kubectl
    }

    /// kubectl with blank-separated arguments; its standard output.
    pub fn kubectl(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        output(&mut self.kubectl_command(&arguments))
    }

    pub fn kubectl_fails(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        match try_output(&mut self.kubectl_command(&arguments)) {
            Ok(text) => panic!("kubectl {line} succeeded:\n{text}"),
            Err(why) => why,
        }
    }

    /// kubectl with something on its standard input.
    pub fn kubectl_with(&self, line: &str, input: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let mut child = self
            .kubectl_command(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start kubectl");
        child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("write to kubectl");
        let output = child.wait_with_output().expect("kubectl ends");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "kubectl {line}: {stdout}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    pub fn apply(&self, manifest: &str) -> String {
        self.kubectl_with("apply -f -", manifest)
    }

    /// A namespace for one scenario; gone when it ends.
    pub fn namespace(&self, name: &'static str) -> Namespace<'_> {
        self.kubectl(&format!("create namespace {name}"));
        until(&format!("the default service account of {name}"), || {
            self.kubectl(&format!("get serviceaccounts -n {name} -o name")).contains("default").then_some(())
        });
        Namespace { cluster: self, name }
    }

    /// What helps to understand a failure.
    pub fn tell_what_went_on(&self) {
        for line in ["get pods -A -o wide", "get events -A --sort-by=.lastTimestamp"] {
            let arguments: Vec<&str> = line.split_whitespace().collect();
            let text = try_output(&mut self.kubectl_command(&arguments)).unwrap_or_else(|e| e);
            let lines: Vec<&str> = text.lines().collect();
            println!("--- kubectl {line}\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        let log = std::fs::read_to_string(self.data_dir().join("isopod.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        println!("--- the server's log\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(why) = try_output(self.isopod("down", &[]).arg("--purge")) {
            println!("down: {why}");
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn directory_of(run: u32) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{run}"))
}

/// Ends the clusters of test runs that were killed.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let run = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if let Some(run) = run.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists())
            && let network = Network::left_by(run)
            && let Some(machine) = network.find(1)
        {
            // Dropping it ends it.
            drop(Cluster {
                machine,
                network,
                directory: directory_of(run),
                cgroup_root: format!("/{PREFIX}{run}"),
                images: PathBuf::new(),
            });
        }
    }
}

pub struct Namespace<'a> {
    pub cluster: &'a Cluster,
    pub name: &'static str,
}

impl Namespace<'_> {
    pub fn kubectl(&self, line: &str) -> String {
        self.cluster.kubectl(&format!("-n {} {line}", self.name))
    }

    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.kubectl_command(&["-n", self.name]);
        command.args(arguments);
        command
    }

    pub fn apply(&self, manifest: &str) -> String {
        self.cluster.kubectl_with(&format!("-n {} apply -f -", self.name), manifest)
    }

    /// A field of an object by JSON path.
    pub fn field(&self, object: &str, path: &str) -> String {
        output(&mut self.kubectl_command(&["get", object, "-o", &format!("jsonpath={path}")]))
    }

    pub fn wait(&self, condition: &str, object: &str) {
        self.kubectl(&format!("wait --timeout=120s --for={condition} {object}"));
    }

    pub fn exec(&self, pod: &str, script: &str) -> String {
        output(&mut self.kubectl_command(&["exec", pod, "--", "sh", "-c", script]))
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let line = ["delete", "namespace", self.name, "--wait=false"];
        let _ = self.cluster.kubectl_command(&line).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// Looks until there is something to see; panics when it takes too long.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
