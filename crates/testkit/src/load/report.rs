//! The table.

use std::time::Duration;

use anyhow::Result;

use super::Flags;
use super::process::{self, Usage};

/// One phase: `count` operations in `elapsed`, for which the server `used` so much.
pub struct Row<'a> {
    pub what: &'a str,
    pub count: usize,
    pub elapsed: Duration,
    pub used: Usage,
    /// Latency of each operation that was timed.
    pub took: Vec<Duration>,
    /// Bytes of answers.
    pub bytes: usize,
    /// Memory of the server afterwards, in bytes.
    pub resident: u64,
}

pub fn heading(flags: &Flags) {
    println!("{} connections, {} requests in flight", flags.connections, flags.in_flight);
    println!(
        "{:<26} {:>8} {:>10} {:>14} {:>10} {:>10} {:>10} {:>10}",
        "operation", "count", "ops/s", "server CPU µs", "p50 ms", "p99 ms", "MB/s", "RSS MB"
    );
}

impl Row<'_> {
    pub fn print(mut self) {
        self.took.sort_unstable();
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        println!(
            "{:<26} {:>8} {:>10.0} {:>14.2} {:>10.2} {:>10.2} {:>10.1} {:>10.1}",
            self.what,
            self.count,
            self.count as f64 / seconds,
            self.used.cpu.as_secs_f64() * 1e6 / self.count.max(1) as f64,
            quantile(&self.took, 0.5).as_secs_f64() * 1e3,
            quantile(&self.took, 0.99).as_secs_f64() * 1e3,
            self.bytes as f64 / 1e6 / seconds,
            self.resident as f64 / 1e6,
        );
    }
}

/// Of a sorted list; zero when it is empty.
fn quantile(sorted: &[Duration], q: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * q).round() as usize).copied().unwrap_or_default()
}

pub fn memory(pids: &[u32]) -> Result<()> {
    if pids.is_empty() {
        return Ok(());
    }
    let (now, peak) = process::resident(pids)?;
    println!("resident memory: {:.1} MB, at most {:.1} MB", now as f64 / 1e6, peak as f64 / 1e6);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let sorted: Vec<Duration> = (1..=101).map(Duration::from_millis).collect();
        assert_eq!(quantile(&sorted, 0.5), Duration::from_millis(51));
        assert_eq!(quantile(&sorted, 0.99), Duration::from_millis(100));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
