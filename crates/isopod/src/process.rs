//! Processes by their pid files.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether the process exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    match stat.rsplit_once(')') {
        Some((_, rest)) => !rest.trim_start().starts_with('Z'),
        None => false,
    }
}

/// The live Isopod process that a pid file names.
pub fn running(pid_file: &Path) -> Option<i32> {
    let pid = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
    // A recycled number must not be taken for a server.
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let is_isopod = String::from_utf8_lossy(&command).split('\0').any(|word| word == "server");
    (is_isopod && alive(pid)).then_some(pid)
}

/// Asks a process to end, waits, and kills it when it does not.
pub async fn end(pid: i32, within: Duration) -> Result<()> {
    let target = Pid::from_raw(pid);
    kill(target, Signal::SIGTERM).with_context(|| format!("end process {pid}"))?;
    if gone(pid, within).await {
        return Ok(());
    }
    let _ = kill(target, Signal::SIGKILL);
    if gone(pid, Duration::from_secs(5)).await {
        return Ok(());
    }
    bail!("process {pid} does not end")
}

async fn gone(pid: i32, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    while alive(pid) {
        if Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// Writes this process's number.
pub fn write_pid_file(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    std::fs::write(path, format!("{}\n", std::process::id()))
        .with_context(|| format!("write {}", path.display()))
}
