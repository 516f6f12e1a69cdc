//! What became of the requests of each flow schema.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::{self, Family, Timer};

const SECONDS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// Why a request was turned away.
#[derive(Clone, Copy)]
pub enum Rejection {
    /// The queue was full.
    Full = 0,
    /// It waited for too long.
    TimeOut = 1,
    /// No seat was free, and nobody waits for one.
    Limit = 2,
}

pub struct Families {
    dispatched: Arc<Family>,
    rejected: Arc<Family>,
    executing: [Arc<Family>; 2],
    waiting: [Arc<Family>; 2],
    waited: Arc<Family>,
    took: Arc<Family>,
}

impl Families {
    pub fn new(families: &metrics::Families) -> Families {
        const LABELS: &[&str] = &["flow_schema", "priority_level"];
        Families {
            dispatched: families.counter(
                "apiserver_flowcontrol_dispatched_requests_total",
                "[BETA] Requests that were let in.",
                LABELS,
            ),
            rejected: families.counter(
                "apiserver_flowcontrol_rejected_requests_total",
                "[BETA] Requests that were turned away.",
                &["flow_schema", "priority_level", "reason"],
            ),
            executing: [
                families.gauge(
                    "apiserver_flowcontrol_current_executing_requests",
                    "[BETA] Requests that were let in and have not ended.",
                    LABELS,
                ),
                families.gauge(
                    "apiserver_flowcontrol_current_executing_seats",
                    "[BETA] Seats of the requests that were let in and have not ended.",
                    LABELS,
                ),
            ],
            waiting: [
                families.gauge(
                    "apiserver_flowcontrol_current_inqueue_requests",
                    "[BETA] Requests that wait for their turn.",
                    LABELS,
                ),
                families.gauge(
                    "apiserver_flowcontrol_current_inqueue_seats",
                    "[ALPHA] Seats of the requests that wait for their turn.",
                    LABELS,
                ),
            ],
            waited: families.histogram(
                "apiserver_flowcontrol_request_wait_duration_seconds",
                "[BETA] Seconds that requests waited, and whether they were let in then.",
                &["execute", "flow_schema", "priority_level"],
                SECONDS,
            ),
            took: families.histogram(
                "apiserver_flowcontrol_request_execution_seconds",
                "[ALPHA] Seconds from when requests were let in until they ended.",
                &["flow_schema", "priority_level", "type"],
                SECONDS,
            ),
        }
    }

    pub fn of(&self, schema: &str, level: &str) -> Figures {
        let labels = [schema, level];
        let pair = |families: &[Arc<Family>; 2]| [0, 1].map(|i: usize| families[i].cell(&labels));
        Figures {
            level: level.to_owned(),
            dispatched: self.dispatched.cell(&labels),
            rejected: ["queue-full", "time-out", "concurrency-limit"]
                .map(|reason| self.rejected.cell(&[schema, level, reason])),
            executing: pair(&self.executing),
            waiting: pair(&self.waiting),
            waited: ["true", "false"].map(|execute| self.waited.timer(&[execute, schema, level])),
            took: self.took.timer(&[schema, level, "regular"]),
        }
    }
}

/// Those of one schema.
pub struct Figures {
    level: String,
    dispatched: Arc<AtomicU64>,
    rejected: [Arc<AtomicU64>; 3],
    executing: [Arc<AtomicU64>; 2],
    waiting: [Arc<AtomicU64>; 2],
    waited: [Arc<Timer>; 2],
    took: Arc<Timer>,
}

fn more(cells: &[Arc<AtomicU64>; 2], seats: u32) {
    cells[0].fetch_add(1, Ordering::Relaxed);
    cells[1].fetch_add(seats.into(), Ordering::Relaxed);
}

fn fewer(cells: &[Arc<AtomicU64>; 2], seats: u32) {
    cells[0].fetch_sub(1, Ordering::Relaxed);
    cells[1].fetch_sub(seats.into(), Ordering::Relaxed);
}

impl Figures {
    pub fn is_of(&self, level: &str) -> bool {
        self.level == level
    }

    pub fn waits(&self, seats: u32) {
        more(&self.waiting, seats);
    }

    pub fn waits_no_more(&self, seats: u32) {
        fewer(&self.waiting, seats);
    }

    pub fn began(&self, seats: u32, waited: Duration) {
        self.dispatched.fetch_add(1, Ordering::Relaxed);
        self.waited[0].took(waited);
        more(&self.executing, seats);
    }

    pub fn ended(&self, seats: u32, took: Duration) {
        fewer(&self.executing, seats);
        self.took.took(took);
    }

    pub fn rejected(&self, why: Rejection, waited: Option<Duration>) {
        self.rejected[why as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(waited) = waited {
            self.waited[1].took(waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_becomes_of_requests() {
        let all = metrics::Families::default();
        let figures = Families::new(&all).of("s", "l");
        figures.waits(2);
        figures.waits_no_more(2);
        figures.began(2, Duration::from_millis(10));
        figures.began(1, Duration::ZERO);
        figures.ended(1, Duration::from_millis(30));
        figures.rejected(Rejection::TimeOut, Some(Duration::from_secs(15)));
        let mut out = String::new();
        all.render(&mut out);
        for line in [
            "apiserver_flowcontrol_dispatched_requests_total{flow_schema=\"s\",priority_level=\"l\"} 2",
            "apiserver_flowcontrol_current_executing_seats{flow_schema=\"s\",priority_level=\"l\"} 2",
            "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"s\",priority_level=\"l\",reason=\"time-out\"} 1",
            "apiserver_flowcontrol_request_wait_duration_seconds_bucket{execute=\"true\",flow_schema=\"s\",priority_level=\"l\",le=\"0.02\"} 2",
            "apiserver_flowcontrol_request_execution_seconds_count{flow_schema=\"s\",priority_level=\"l\",type=\"regular\"} 1",
        ] {
            assert!(out.contains(line), "{line} in {out}");
        }
    }
}
