//! What the proxy counts, under upstream's names.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::http::{Answer, Handler};

const BUCKETS_S: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

#[derive(Default)]
struct Histogram {
    counts: [AtomicU64; BUCKETS_S.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe(&self, value: Duration) {
        if let Some(at) = BUCKETS_S.iter().position(|b| value.as_secs_f64() <= *b) {
            self.counts[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(value.as_micros() as u64, Ordering::Relaxed);
    }

    fn render(&self, out: &mut String, name: &str) {
        let _ = writeln!(out, "# TYPE {name} histogram");
        let mut total = 0;
        for (bound, count) in BUCKETS_S.iter().zip(&self.counts) {
            total += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let (count, sum) = (self.count.load(Ordering::Relaxed), self.sum_us.load(Ordering::Relaxed));
        let _ = writeln!(
            out,
            "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {}\n{name}_count {count}",
            sum as f64 / 1e6
        );
    }
}

#[derive(Default)]
pub struct Metrics {
    sync: Histogram,
    full_sync: Histogram,
    partial_sync: Histogram,
    last_sync_ms: AtomicU64,
    pub sync_failures: AtomicU64,
    pub cleanup_failures: AtomicU64,
    pub service_changes: AtomicU64,
    pub endpoint_changes: AtomicU64,
    pub no_local_internal: AtomicU64,
    pub no_local_external: AtomicU64,
}

impl Metrics {
    pub fn synced(&self, took: Duration, full: bool) {
        self.sync.observe(took);
        if full { &self.full_sync } else { &self.partial_sync }.observe(took);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_sync_ms.store(now.as_millis() as u64, Ordering::Relaxed);
    }

    fn render(&self) -> String {
        let mut out = String::with_capacity(4096);
        self.sync.render(&mut out, "kubeproxy_sync_proxy_rules_duration_seconds");
        self.full_sync.render(&mut out, "kubeproxy_sync_full_proxy_rules_duration_seconds");
        self.partial_sync.render(&mut out, "kubeproxy_sync_partial_proxy_rules_duration_seconds");
        let last = self.last_sync_ms.load(Ordering::Relaxed) as f64 / 1e3;
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let _ = writeln!(out, "# TYPE {name} gauge\n{name} {last}");
        for (name, value) in [
            ("kubeproxy_sync_proxy_rules_service_changes_total", &self.service_changes),
            ("kubeproxy_sync_proxy_rules_endpoint_changes_total", &self.endpoint_changes),
            ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", &self.sync_failures),
            ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", &self.cleanup_failures),
        ] {
            let _ = writeln!(out, "# TYPE {name} counter\n{name} {}", value.load(Ordering::Relaxed));
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let _ = writeln!(out, "# TYPE {name} gauge");
        for (policy, value) in [("internal", &self.no_local_internal), ("external", &self.no_local_external)]
        {
            let _ = writeln!(out, "{name}{{traffic_policy=\"{policy}\"}} {}", value.load(Ordering::Relaxed));
        }
        out
    }

    pub fn handler(self: &Arc<Metrics>) -> Handler {
        let metrics = self.clone();
        Arc::new(move |path| match path {
            "/metrics" => Answer {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                headers: vec![],
                body: metrics.render(),
            },
            "/proxyMode" => Answer::text(200, "nftables"),
            "/healthz" => Answer::text(200, "ok"),
            _ => Answer::text(404, "404 page not found\n"),
        })
    }
}
