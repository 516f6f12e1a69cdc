//! How long admission took, and what it refused, by plugin and by webhook.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hashbrown::HashMap;

use super::DEFAULT_PLUGINS;
use super::matching::operation_name;
use crate::metrics::{Families, Family, Timer};
use crate::seams::Operation;

/// What stands for all plugins together.
const ALL: &str = "";
const BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
const WEBHOOK_BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Larger codes are told as this.
const CODE_MAX: u16 = 600;

/// What a request goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Admit,
    Validate,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::Admit => "admit",
            Step::Validate => "validate",
        }
    }

    /// As upstream's webhooks call it.
    fn of_webhooks(self) -> &'static str {
        match self {
            Step::Admit => "admit",
            Step::Validate => "validating",
        }
    }
}

/// How a webhook was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Allowed,
    /// With the code it said.
    Denied(u16),
    /// It failed and is needed.
    Failed,
    /// It failed, and requests go on without it.
    Ignored,
    /// What the server itself could not do.
    Broken,
}

/// A plugin's timers by step, operation and whether the request was rejected, each made when it is first needed: every
/// write passes more than a dozen plugins, and must not look for a timer among all there are.
type Timers = [OnceLock<Arc<Timer>>; 16];

fn place(step: Step, operation: Operation, rejected: bool) -> usize {
    (step as usize) << 3 | (operation as usize) << 1 | usize::from(rejected)
}

pub struct Figures {
    plugins: Arc<Family>,
    steps: Arc<Family>,
    /// By plugin, those that run by default; those of all of them together are under no name.
    known: HashMap<&'static str, Timers>,
    webhooks: Arc<Family>,
    webhook_requests: Arc<Family>,
    webhook_rejections: Arc<Family>,
    fail_open: Arc<Family>,
}

impl Figures {
    pub fn new(families: &Families) -> Figures {
        Figures {
            plugins: families.histogram(
                "apiserver_admission_controller_admission_duration_seconds",
                "[STABLE] Seconds an admission plugin took.",
                &["name", "type", "operation", "rejected"],
                BOUNDS,
            ),
            steps: families.histogram(
                "apiserver_admission_step_admission_duration_seconds",
                "[STABLE] Seconds all admission plugins took together.",
                &["type", "operation", "rejected"],
                BOUNDS,
            ),
            known: DEFAULT_PLUGINS.iter().chain([&ALL]).map(|name| (*name, Timers::default())).collect(),
            webhooks: families.histogram(
                "apiserver_admission_webhook_admission_duration_seconds",
                "[STABLE] Seconds an admission webhook took.",
                &["name", "type", "operation", "rejected"],
                WEBHOOK_BOUNDS,
            ),
            webhook_requests: families.counter(
                "apiserver_admission_webhook_request_total",
                "[ALPHA] Requests that admission webhooks were asked about, by the code of the answer.",
                &["name", "type", "operation", "code", "rejected"],
            ),
            webhook_rejections: families.counter(
                "apiserver_admission_webhook_rejection_count",
                "[ALPHA] Requests refused because of an admission webhook, and whether it said so or failed.",
                &["name", "type", "operation", "error_type", "rejection_code"],
            ),
            fail_open: families.counter(
                "apiserver_admission_webhook_fail_open_count",
                "[ALPHA] Requests that went on without an admission webhook that failed.",
                &["name", "type"],
            ),
        }
    }

    pub fn plugin(&self, name: &str, step: Step, operation: Operation, rejected: bool, took: Duration) {
        let make = || {
            let labels = [step.name(), operation_name(operation), if rejected { "true" } else { "false" }];
            match name {
                ALL => self.steps.timer(&labels),
                name => self.plugins.timer(&[name, labels[0], labels[1], labels[2]]),
            }
        };
        match self.known.get(name) {
            Some(timers) => timers[place(step, operation, rejected)].get_or_init(make).took(took),
            None => make().took(took),
        }
    }

    pub fn step(&self, step: Step, operation: Operation, rejected: bool, took: Duration) {
        self.plugin(ALL, step, operation, rejected, took);
    }

    pub fn webhook(&self, name: &str, step: Step, operation: Operation, asked: Asked, took: Duration) {
        let (step, operation) = (step.of_webhooks(), operation_name(operation));
        let (rejected, code, error) = match asked {
            Asked::Allowed => (false, 200, None),
            Asked::Denied(code) => (true, code.min(CODE_MAX), Some("no_error")),
            Asked::Failed => (true, 0, Some("calling_webhook_error")),
            Asked::Ignored => (false, 0, None),
            Asked::Broken => (true, 0, Some("apiserver_internal_error")),
        };
        let (code, rejected) = (code.to_string(), if rejected { "true" } else { "false" });
        self.webhooks.took(&[name, step, operation, rejected], took);
        self.webhook_requests.inc(&[name, step, operation, &code, rejected]);
        if let Some(error) = error {
            self.webhook_rejections.inc(&[name, step, operation, error, &code]);
        }
        if asked == Asked::Ignored {
            self.fail_open.inc(&[name, step]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_of_plugins_steps_and_webhooks() {
        let families = Families::default();
        let figures = Figures::new(&families);
        let took = Duration::from_millis(10);
        figures.plugin("Priority", Step::Admit, Operation::Create, false, took);
        figures.plugin("Another", Step::Validate, Operation::Connect, true, took);
        figures.step(Step::Validate, Operation::Delete, true, took);
        for asked in [Asked::Allowed, Asked::Denied(403), Asked::Failed, Asked::Ignored] {
            figures.webhook("h", Step::Validate, Operation::Update, asked, took);
        }
        let mut out = String::new();
        families.render(&mut out);
        for line in [
            "apiserver_admission_controller_admission_duration_seconds_bucket{name=\"Priority\",type=\"admit\",operation=\"CREATE\",rejected=\"false\",le=\"0.025\"} 1",
            "apiserver_admission_controller_admission_duration_seconds_count{name=\"Another\",type=\"validate\",operation=\"CONNECT\",rejected=\"true\"} 1",
            "apiserver_admission_step_admission_duration_seconds_count{type=\"validate\",operation=\"DELETE\",rejected=\"true\"} 1",
            "apiserver_admission_webhook_admission_duration_seconds_count{name=\"h\",type=\"validating\",operation=\"UPDATE\",rejected=\"true\"} 2",
            "apiserver_admission_webhook_request_total{name=\"h\",type=\"validating\",operation=\"UPDATE\",code=\"200\",rejected=\"false\"} 1",
            "apiserver_admission_webhook_rejection_count{name=\"h\",type=\"validating\",operation=\"UPDATE\",error_type=\"no_error\",rejection_code=\"403\"} 1",
            "apiserver_admission_webhook_fail_open_count{name=\"h\",type=\"validating\"} 1",
        ] {
            assert!(out.contains(line), "{line} in {out}");
        }
    }
}
