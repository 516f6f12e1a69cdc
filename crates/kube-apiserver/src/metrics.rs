//! The server's own figures, in Prometheus' text form and under upstream's names.

mod access;
mod families;
mod process;
pub mod requests;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

pub use access::Access;
pub use families::{Families, Family, Timer, hash};
pub use process::Process;
use requests::{Asked, LABELS, Requests};

pub struct Metrics {
    pub families: Families,
    /// What `/metrics/slis` tells.
    pub health: Families,
    pub process: Process,
    pub requests: Requests,
    pub access: Access,
    /// Requests at work that read, and that write.
    at_work: [AtomicI64; 2],
    terminated: Arc<Family>,
    deprecated: Arc<Family>,
    long: Arc<Family>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let families = Families::default();
        Metrics {
            access: Access::new(&families),
            terminated: families.counter(
                "apiserver_request_terminations_total",
                "[ALPHA] Requests that the server ended to protect itself.",
                &["verb", "group", "version", "resource", "subresource", "scope", "component", "code"],
            ),
            deprecated: families.gauge(
                "apiserver_requested_deprecated_apis",
                "[STABLE] Deprecated APIs that were asked for, and the release without them.",
                &["group", "version", "resource", "subresource", "removed_release"],
            ),
            long: families.gauge(
                "apiserver_longrunning_requests",
                "[STABLE] Requests in progress that last as long as the client likes; watches and logs.",
                LABELS,
            ),
            families,
            health: Families::default(),
            process: Process::default(),
            requests: Requests::default(),
            at_work: Default::default(),
        }
    }
}

/// A request at work; over when dropped.
pub struct AtWork<'a>(&'a AtomicI64);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn at_work(&self, reads: bool) -> AtWork<'_> {
        let count = &self.at_work[usize::from(!reads)];
        count.fetch_add(1, Ordering::Relaxed);
        AtWork(count)
    }

    /// One more, or one fewer, of the requests that last.
    pub fn lasting(&self, asked: &Asked<'_>, more: f64) {
        self.long.add(&asked.values(), more);
    }

    pub fn terminated(&self, asked: &Asked<'_>, code: u16) {
        let code = code.to_string();
        let [verb, group, version, resource, subresource, scope, component] = asked.values();
        self.terminated.inc(&[verb, group, version, resource, subresource, scope, component, &code]);
    }

    pub fn deprecated(&self, asked: &Asked<'_>) {
        let Asked { group, version, resource, subresource, .. } = asked;
        self.deprecated.set(&[group, version, resource, subresource, ""], 1.0);
    }

    /// Forgets what was counted.
    pub fn reset(&self) {
        self.families.reset();
        self.requests.reset();
    }

    pub fn render(&self, out: &mut String) {
        self.families.render(out);
        self.requests.render(out);
        self.process.render(out);
        out.push_str(
            "# HELP apiserver_current_inflight_requests [STABLE] Requests at work, of those that read and those that \
             write.\n# TYPE apiserver_current_inflight_requests gauge\n",
        );
        for (kind, count) in ["readOnly", "mutating"].iter().zip(&self.at_work) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {count}");
        }
    }
}
