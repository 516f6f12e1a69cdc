//! How long something took, as a histogram in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of etcd's disk histograms: 1 ms, and twice as long each.
const BUCKETS: usize = 14;
const FIRST: Duration = Duration::from_millis(1);

/// Counts durations by their length.
#[derive(Default)]
pub struct Durations {
    buckets: [AtomicU64; BUCKETS],
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Durations {
    pub fn observe(&self, took: Duration) {
        if let Some(bucket) = (0..BUCKETS).find(|i| took <= bound(*i)) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Appends the histogram under `name`.
    pub fn write(&self, out: &mut String, name: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let count = self.count.load(Ordering::Relaxed);
        let mut below = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {below}", bound(i).as_secs_f64());
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let seconds = Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {count}");
    }
}

fn bound(bucket: usize) -> Duration {
    FIRST * (1 << bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_is_not_longer() {
        let durations = Durations::default();
        for millis in [0, 1, 2, 3, 8192, 9000] {
            durations.observe(Duration::from_millis(millis));
        }
        let mut out = String::new();
        durations.write(&mut out, "took_seconds", "How long.");
        for line in [
            "# TYPE took_seconds histogram",
            "took_seconds_bucket{le=\"0.001\"} 2",
            "took_seconds_bucket{le=\"0.002\"} 3",
            "took_seconds_bucket{le=\"0.004\"} 4",
            "took_seconds_bucket{le=\"8.192\"} 5",
            "took_seconds_bucket{le=\"+Inf\"} 6",
            "took_seconds_sum 17.198",
            "took_seconds_count 6",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }
}
