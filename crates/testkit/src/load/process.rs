//! What processes have used, from `/proc`.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of some processes up to now, user and system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: Duration,
}

impl Usage {
    pub fn of(pids: &[u32]) -> Result<Usage> {
        let mut cpu = Duration::ZERO;
        for pid in pids {
            cpu += cpu_of(*pid)?;
        }
        Ok(Usage { cpu })
    }

    pub fn since(&self, before: &Usage) -> Usage {
        Usage { cpu: self.cpu.saturating_sub(before.cpu) }
    }
}

fn cpu_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = parse_ticks(&text).with_context(|| format!("{path} is not understood"))?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100) as u64;
    Ok(Duration::from_micros(ticks * 1_000_000 / per_second))
}

/// utime and stime of a `/proc/PID/stat`, in clock ticks.
fn parse_ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold blanks and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of some processes now, and the most they ever had, in bytes.
pub fn resident(pids: &[u32]) -> Result<(u64, u64)> {
    let (mut now, mut peak) = (0, 0);
    for pid in pids {
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let kilobytes = |name: &str| {
            text.lines()
                .find_map(|l| l.strip_prefix(name)?.split_ascii_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or_default()
        };
        now += kilobytes("VmRSS:") * 1024;
        peak += kilobytes("VmHWM:") * 1024;
    }
    Ok((now, peak))
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_ticks() {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 100 1 1";
        assert_eq!(super::parse_ticks(stat), Some(300));
        assert_eq!(super::parse_ticks("12 (a"), None);
    }
}
