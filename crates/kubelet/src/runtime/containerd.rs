//! containerd as a process of our own: configured, started in its own session so that it and its shims outlive a
//! crash of Isopod, found again through its socket and pid file, and stopped on request.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::Cri;

/// Where an own containerd lives and what it is told.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// Images, snapshots and metadata: `<data-dir>/containerd`.
    pub root: PathBuf,
    /// Socket, pid file and running state: `/run/isopod/containerd`.
    pub state: PathBuf,
    pub sandbox_image: String,
    pub cni_bin_dir: PathBuf,
    pub cni_conf_dir: PathBuf,
    /// `hosts.toml` files per registry.
    pub registry_dir: PathBuf,
    pub systemd_cgroup: bool,
}

impl Containerd {
    pub fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn pid_file(&self) -> PathBuf {
        self.state.join("containerd.pid")
    }

    fn config_file(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// Makes sure that it runs: adopts the one that answers, or starts one and waits for its answer.
    pub async fn ensure(&self) -> Result<()> {
        if answers(&self.endpoint()).await {
            tracing::info!(socket = %self.socket().display(), "containerd is already running");
            return Ok(());
        }
        if let Some(pid) = self.running_pid() {
            // It may be starting still; else it hangs and is replaced. Shims survive that.
            if self.wait_for_answer(Duration::from_secs(10)).await {
                return Ok(());
            }
            stop_process(pid, Duration::from_secs(5)).await;
        }
        let program = find_program("containerd").context(
            "containerd is not installed: install the packages containerd and runc, \
             or name a runtime with --container-runtime-endpoint",
        )?;
        find_program("runc").context("runc is not installed: install the package runc")?;
        for dir in [&self.root, &self.state, &self.cni_bin_dir, &self.cni_conf_dir, &self.registry_dir] {
            fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        }
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o711))?;
        fs::write(self.config_file(), self.config())?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.join("containerd.log"))?;
        let mut command = std::process::Command::new(program);
        command
            .arg("--config")
            .arg(self.config_file())
            .env("PATH", search_path())
            // A small daemon that is mostly idle: rather collect often than keep memory.
            .env("GOGC", "50")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                nix::unistd::setsid().map(drop).map_err(std::io::Error::from)
            });
        }
        let mut child = command.spawn().context("starting containerd")?;
        let pid = child.id();
        fs::write(self.pid_file(), format!("{pid}\n"))?;
        // Reaps it, should it end while we live.
        std::thread::Builder::new().name("containerd-wait".into()).stack_size(64 << 10).spawn(move || {
            if let Ok(status) = child.wait() {
                tracing::warn!(%status, "containerd ended");
            }
        })?;
        if !self.wait_for_answer(Duration::from_secs(30)).await {
            bail!("containerd does not answer; see {}", self.root.join("containerd.log").display());
        }
        tracing::info!(pid, socket = %self.socket().display(), "containerd started");
        Ok(())
    }

    async fn wait_for_answer(&self, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        let mut pause = Duration::from_millis(5);
        while tokio::time::Instant::now() < deadline {
            if answers(&self.endpoint()).await {
                return true;
            }
            if self.running_pid().is_none() {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        false
    }

    /// The process named in the pid file, if that still is a containerd.
    pub fn running_pid(&self) -> Option<Pid> {
        let pid: i32 = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let zombie = state.rsplit(')').next().is_some_and(|s| s.trim_start().starts_with('Z'));
        (name.trim() == "containerd" && !zombie).then(|| Pid::from_raw(pid))
    }

    /// Ends every pod and then containerd itself. What was never started is no error.
    pub async fn stop(&self) -> Result<()> {
        if answers(&self.endpoint()).await {
            let cri = Cri::new(&self.endpoint());
            let sandboxes = cri.list_sandboxes(None).await.unwrap_or_default();
            let mut tasks = tokio::task::JoinSet::new();
            for sandbox in sandboxes {
                let cri = cri.clone();
                tasks.spawn(async move {
                    if let Err(error) = cri.stop_sandbox(&sandbox.id).await {
                        tracing::warn!(sandbox = %sandbox.id, %error, "stopping");
                    }
                    if let Err(error) = cri.remove_sandbox(&sandbox.id).await {
                        tracing::warn!(sandbox = %sandbox.id, %error, "removing");
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        }
        if let Some(pid) = self.running_pid() {
            stop_process(pid, Duration::from_secs(10)).await;
        }
        end_shims(&self.socket().to_string_lossy());
        let _ = fs::remove_file(self.pid_file());
        Ok(())
    }

    fn config(&self) -> String {
        let text = |p: &Path| toml_string(&p.to_string_lossy());
        let unused: String = UNUSED_PLUGINS.iter().map(|p| format!("  \"{p}\",\n")).collect();
        format!(
            r#"# Written by Isopod at every start of containerd.
version = 2
root = {root}
state = {state}
disabled_plugins = [
{unused}]
oom_score = 0

[grpc]
  address = {socket}

[debug]
  level = "warn"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {sandbox}
  restrict_oom_score_adj = {restrict}
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  max_container_log_line_size = 16384
  disable_apparmor = {no_apparmor}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {cni_bin}
    conf_dir = {cni_conf}
    max_conf_num = 1
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = {systemd}
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.test-handler]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.test-handler.options]
        SystemdCgroup = {systemd}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {registry}
"#,
            root = text(&self.root.join("root")),
            state = text(&self.state.join("state")),
            socket = text(&self.socket()),
            sandbox = toml_string(&self.sandbox_image),
            restrict = !has_sys_resource(),
            no_apparmor = !Path::new("/sys/kernel/security/apparmor").exists(),
            cni_bin = text(&self.cni_bin_dir),
            cni_conf = text(&self.cni_conf_dir),
            systemd = self.systemd_cgroup,
            registry = text(&self.registry_dir),
        )
    }
}

/// What a node of ours never uses; each costs memory or start-up time.
const UNUSED_PLUGINS: [&str; 10] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.tracing",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.nri.v1.nri",
];

fn toml_string(s: &str) -> String {
    format!("\"{}\"", s.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whether something at `endpoint` speaks CRI.
pub async fn answers(endpoint: &str) -> bool {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !Path::new(path).exists() {
        return false;
    }
    Cri::new(endpoint).version().await.is_ok()
}

/// Without this capability nobody may lower an `oom_score_adj`, and containerd must not try.
fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u64 = 24;
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            let line = s.lines().find_map(|l| l.strip_prefix("CapEff:"))?.trim().to_owned();
            u64::from_str_radix(&line, 16).ok()
        })
        .is_some_and(|caps| caps >> CAP_SYS_RESOURCE & 1 == 1)
}

/// The search path, with the directories where distributions put runtimes.
fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    let mut dirs: Vec<&str> = own.split(':').filter(|d| !d.is_empty()).collect();
    for dir in ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs.join(":")
}

fn find_program(name: &str) -> Option<PathBuf> {
    search_path().split(':').map(|d| Path::new(d).join(name)).find(|p| p.is_file())
}

async fn stop_process(pid: Pid, patience: Duration) {
    let _ = kill(pid, Signal::SIGTERM);
    let deadline = tokio::time::Instant::now() + patience;
    while tokio::time::Instant::now() < deadline {
        let gone = kill(pid, None).is_err()
            || fs::read_to_string(format!("/proc/{pid}/stat"))
                .map_or(true, |s| s.rsplit(')').next().is_some_and(|s| s.trim_start().starts_with('Z')));
        if gone {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _ = kill(pid, Signal::SIGKILL);
}

/// Ends the shims of the containerd at `socket`, which is gone. Those whose sandbox was never made, or was given up, are
/// known to nobody else.
fn end_shims(socket: &str) {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok()) {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if is_shim_of(&command, socket) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Whether a command line (words that end in zeros) is that of a shim of the containerd at `socket`.
fn is_shim_of(command: &[u8], socket: &str) -> bool {
    let words: Vec<&[u8]> = command.split(|b| *b == 0).collect();
    let program = words.first().and_then(|w| w.rsplit(|b| *b == b'/').next()).unwrap_or_default();
    program.starts_with(b"containerd-shim")
        && words.windows(2).any(|w| w[0] == b"-address" && w[1] == socket.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_shims() {
        let command = |words: &[&str]| (words.join("\0") + "\0").into_bytes();
        for (words, want) in [
            (&["/usr/bin/containerd-shim-runc-v2", "-id", "a", "-address", "/run/x.sock"][..], true),
            (&["containerd-shim-runc-v2", "-address", "/run/y.sock"], false),
            (&["/usr/bin/containerd", "-address", "/run/x.sock"], false),
            (&["containerd-shim-runc-v2", "-address"], false),
            (&[], false),
        ] {
            assert_eq!(is_shim_of(&command(words), "/run/x.sock"), want, "{words:?}");
        }
    }
}
