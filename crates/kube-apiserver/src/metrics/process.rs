//! What the process itself uses, as Prometheus' own clients tell it.

use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};

/// Since when the process runs.
pub struct Process {
    started: Timestamp,
}

impl Default for Process {
    fn default() -> Process {
        Process { started: start().unwrap_or_else(Timestamp::now) }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn ticks_per_second() -> f64 {
    use nix::unistd::{SysconfVar, sysconf};
    sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|t| *t > 0).map_or(100.0, |t| t as f64)
}

/// A field of proc_pid_stat(5), by its number there.
fn field(stat: &str, number: usize) -> Option<f64> {
    // From the third field on: the second may hold spaces.
    stat.rsplit(')').next()?.split_whitespace().nth(number - 3)?.parse().ok()
}

fn start() -> Option<Timestamp> {
    let booted: f64 =
        read("/proc/stat").lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())?;
    let after = field(&read("/proc/self/stat"), 22)? / ticks_per_second();
    Timestamp::from_duration(SignedDuration::try_from_secs_f64(booted + after).ok()?).ok()
}

/// The soft limit of that name in proc_pid_limits(5); what has none has the largest number there is.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let soft = limits.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next())?;
    if soft == "unlimited" { Some(u64::MAX as f64) } else { soft.parse().ok() }
}

/// Bytes received and sent by the network namespace's interfaces, loopback aside.
fn network(devices: &str) -> (f64, f64) {
    let mut sum = (0.0, 0.0);
    for line in devices.lines().skip(2) {
        let Some((name, figures)) = line.split_once(':') else { continue };
        let figures: Vec<f64> = figures.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
        if name.trim() != "lo" && figures.len() > 8 {
            sum.0 += figures[0];
            sum.1 += figures[8];
        }
    }
    sum
}

impl Process {
    pub fn started(&self) -> Timestamp {
        self.started
    }

    pub fn render_start(&self, out: &mut String) {
        let seconds = self.started.as_duration().as_secs_f64();
        one(
            out,
            "process_start_time_seconds",
            "gauge",
            "When the process began, in seconds since the epoch.",
            Some(seconds),
        );
    }

    pub fn render(&self, out: &mut String) {
        let (stat, limits) = (read("/proc/self/stat"), read("/proc/self/limits"));
        let used = field(&stat, 14).zip(field(&stat, 15)).map(|(user, system)| user + system);
        let (received, sent) = network(&read("/proc/self/net/dev"));
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as f64);
        let resident = read("/proc/self/status")
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        one(
            out,
            "process_cpu_seconds_total",
            "counter",
            "CPU time of user and system, in seconds.",
            used.map(|t| t / ticks_per_second()),
        );
        one(
            out,
            "process_max_fds",
            "gauge",
            "File descriptors that may be open.",
            limit(&limits, "Max open files"),
        );
        one(
            out,
            "process_network_receive_bytes_total",
            "counter",
            "Bytes received from the network.",
            Some(received),
        );
        one(out, "process_network_transmit_bytes_total", "counter", "Bytes sent to the network.", Some(sent));
        one(out, "process_open_fds", "gauge", "File descriptors that are open.", open);
        one(
            out,
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory in bytes.",
            resident.map(|kib| kib * 1024.0),
        );
        self.render_start(out);
        one(out, "process_virtual_memory_bytes", "gauge", "Virtual memory in bytes.", field(&stat, 23));
        one(
            out,
            "process_virtual_memory_max_bytes",
            "gauge",
            "Virtual memory that may be had, in bytes.",
            limit(&limits, "Max address space"),
        );
    }
}

/// What the system does not tell is left out.
fn one(out: &mut String, name: &str, kind: &str, help: &str, value: Option<f64>) {
    if let Some(value) = value {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_system_tells() {
        assert_eq!(field("1 (a b) c) S 4 5", 5), Some(5.0));
        let limits = "Limit  Soft Limit  Hard Limit Units\nMax open files  1024  4096 files\nMax address space  unlimited unlimited bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(limit(limits, "Max address space"), Some(u64::MAX as f64));
        let devices = "Inter-| Receive |\n face |bytes |\n    lo: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n  eth0: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n";
        assert_eq!(network(devices), (10.0, 20.0));
        let mut out = String::new();
        Process::default().render(&mut out);
        assert!(out.contains("\nprocess_resident_memory_bytes "), "{out}");
    }
}
