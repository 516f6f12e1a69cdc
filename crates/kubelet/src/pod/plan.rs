//! What to do next for a pod: a pure function of its spec, of what the runtime holds, and of what the worker
//! remembers.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::observed::{Instance, Observed};
use super::spec::{self, Kind};
use crate::cri::api::container_state;

pub const CRASH_LOOP_FIRST: SignedDuration = SignedDuration::from_secs(10);
pub const CRASH_LOOP_MAX: SignedDuration = SignedDuration::from_mins(5);
/// A container that ran this long begins anew.
const CRASH_LOOP_RESET: SignedDuration = SignedDuration::from_mins(10);

/// How long a container that keeps ending has to wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    pub delay: SignedDuration,
    /// When the last run that counted ended.
    pub at: Timestamp,
}

/// A running container that must not go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Unhealthy {
    pub message: String,
    pub grace: Option<i64>,
}

/// What the worker knows beyond spec and runtime.
pub struct Knowledge<'a> {
    pub now: Timestamp,
    /// Containers with an operation under way.
    pub busy: &'a HashSet<String>,
    /// A sandbox is being made or unmade, or volumes are being set up.
    pub sandbox_busy: bool,
    /// When a container, or under the empty name the sandbox, may be tried again after a failure.
    pub not_before: &'a HashMap<String, Timestamp>,
    pub crash_loops: &'a HashMap<String, Backoff>,
    /// Containers that have started up: no startup probe, or one that succeeded. By container id.
    pub started: &'a dyn Fn(&Container, &Instance) -> bool,
    /// By container id.
    pub unhealthy: &'a HashMap<String, Unhealthy>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    CreateSandbox {
        attempt: u32,
    },
    /// Ends what runs in sandboxes that cannot be used, and these themselves, so that a new one can be made.
    ResetSandbox,
    Start {
        kind: Kind,
        name: String,
        restarts: u32,
    },
    Kill {
        id: String,
        name: String,
        message: String,
        grace: Option<i64>,
    },
    /// Everything has run: the pod ends.
    Finish,
    RemoveInstance {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Why a container that ought to run does not: reason and message.
    pub waiting: BTreeMap<String, (String, String)>,
    /// When to plan again, should nothing happen before.
    pub wake_at: Option<Timestamp>,
    /// New values for `crash_loops`.
    pub crash_loops: Vec<(String, Backoff)>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// The next steps of a pod that ought to run.
pub fn plan(pod: &Pod, seen: &Observed, know: &Knowledge<'_>) -> Plan {
    let mut plan = Plan::default();
    if know.sandbox_busy {
        return plan;
    }
    let Some(sandbox) = seen.current() else {
        plan_sandbox(pod, seen, know, &mut plan);
        return plan;
    };
    tidy(pod, seen, know, &mut plan);
    let context = Context { pod, seen, know, sandbox: &sandbox.id };
    for e in spec::ephemeral_containers(pod) {
        // Ephemeral containers run once.
        if seen.newest(&e.name).is_none() {
            context.start(Kind::Ephemeral, &e.name, 0, &mut plan);
        }
    }
    let initialized = context.init_containers(&mut plan);
    if initialized == Init::Failed {
        plan.actions.push(Action::Finish);
        return plan;
    }
    if initialized == Init::Pending {
        return plan;
    }
    let mut left = 0;
    for container in &spec::spec(pod).containers {
        if context.main_container(container, &mut plan) {
            left += 1;
        }
    }
    if left == 0 {
        plan.actions.push(Action::Finish);
    }
    plan
}

fn plan_sandbox(pod: &Pod, seen: &Observed, know: &Knowledge<'_>, plan: &mut Plan) {
    let runs_again = |c: &Container| match seen.newest(&c.name) {
        Some(i) if i.exited() => spec::restarts(pod, c, i.exit_code),
        _ => true,
    };
    let attempt = seen.sandboxes.first().map_or(0, |s| s.attempt + 1);
    let containers = &spec::spec(pod).containers;
    let over = attempt > 0
        && ((spec::never_restarts(pod) && containers.iter().any(|c| seen.newest(&c.name).is_some()))
            || !containers.iter().any(runs_again)
            || spec::init_containers(pod).iter().any(|c| {
                !spec::is_sidecar(c)
                    && seen.newest(&c.name).is_some_and(|i| {
                        i.exited() && i.exit_code != 0 && !spec::restarts(pod, c, i.exit_code)
                    })
            }));
    if over {
        plan.actions.push(Action::Finish);
        return;
    }
    if let Some(at) = know.not_before.get("").filter(|at| **at > know.now) {
        plan.wake(*at);
        return;
    }
    if seen.running().next().is_some() {
        plan.actions.push(Action::ResetSandbox);
    } else {
        plan.actions.push(Action::CreateSandbox { attempt });
    }
}

#[derive(PartialEq)]
enum Init {
    Done,
    Pending,
    Failed,
}

struct Context<'a> {
    pod: &'a Pod,
    seen: &'a Observed,
    know: &'a Knowledge<'a>,
    sandbox: &'a str,
}

impl Context<'_> {
    fn start(&self, kind: Kind, name: &str, restarts: u32, plan: &mut Plan) {
        if self.know.busy.contains(name) {
            return;
        }
        if let Some(at) = self.know.not_before.get(name).filter(|at| **at > self.know.now) {
            plan.wake(*at);
            return;
        }
        plan.actions.push(Action::Start { kind, name: name.to_owned(), restarts });
    }

    /// Starts a container again that ended, unless it has to wait.
    fn restart(&self, kind: Kind, container: &Container, last: &Instance, plan: &mut Plan) {
        let name = &container.name;
        if self.know.busy.contains(name) {
            return;
        }
        // Another image is another container, which has not failed yet.
        let same = last.hash.is_empty() || last.hash == spec::container_hash(container);
        if last.exited() && same {
            let ended = timestamp(last.finished_at);
            let known = self.know.crash_loops.get(name);
            if let Some(backoff) = known {
                let until = ended + backoff.delay;
                if backoff.at != ended && until > self.know.now && !expired(backoff, ended) {
                    plan.waiting.insert(name.clone(), crash_loop(self.pod, name, backoff.delay));
                    plan.wake(until);
                    return;
                }
            }
            if known.is_none_or(|b| b.at != ended) {
                let delay = match known {
                    Some(b) if !expired(b, ended) => (b.delay * 2).min(CRASH_LOOP_MAX),
                    _ => CRASH_LOOP_FIRST,
                };
                plan.crash_loops.push((name.clone(), Backoff { delay, at: ended }));
            }
        }
        self.start(kind, name, last.restarts + 1, plan);
    }

    /// Ends a running container that is unwell or not the one of the spec; true if it has to go.
    fn replace(&self, container: &Container, running: &Instance, plan: &mut Plan) -> bool {
        let (message, grace) = if let Some(unhealthy) = self.know.unhealthy.get(&running.id) {
            (unhealthy.message.clone(), unhealthy.grace)
        } else if !running.hash.is_empty() && running.hash != spec::container_hash(container) {
            (format!("Container {} definition changed", container.name), None)
        } else {
            return false;
        };
        if !self.know.busy.contains(&container.name) {
            plan.actions.push(Action::Kill {
                id: running.id.clone(),
                name: container.name.clone(),
                message,
                grace,
            });
        }
        true
    }

    /// Runs init containers one after the other, and sidecars in their place among them.
    fn init_containers(&self, plan: &mut Plan) -> Init {
        let main_seen = spec::spec(self.pod)
            .containers
            .iter()
            .any(|c| self.seen.newest(&c.name).is_some_and(|i| i.sandbox == self.sandbox));
        for container in spec::init_containers(self.pod) {
            let sidecar = spec::is_sidecar(container);
            if main_seen && !sidecar {
                continue;
            }
            let newest = self.seen.newest(&container.name);
            let restarts = newest.map_or(0, |i| i.restarts + 1);
            let Some(instance) = newest.filter(|i| i.sandbox == self.sandbox) else {
                self.start(Kind::Init, &container.name, restarts, plan);
                if main_seen {
                    continue;
                }
                return Init::Pending;
            };
            let ready = match instance.state {
                container_state::RUNNING => {
                    let leaving = self.replace(container, instance, plan);
                    sidecar && !leaving && (self.know.started)(container, instance)
                }
                container_state::EXITED if sidecar => {
                    self.restart(Kind::Init, container, instance, plan);
                    false
                }
                container_state::EXITED if instance.exit_code == 0 => true,
                container_state::EXITED if !spec::restarts(self.pod, container, instance.exit_code) => {
                    return Init::Failed;
                }
                _ => {
                    self.restart(Kind::Init, container, instance, plan);
                    false
                }
            };
            if !ready && !main_seen {
                return Init::Pending;
            }
        }
        Init::Done
    }

    /// Whether the container runs or will.
    fn main_container(&self, container: &Container, plan: &mut Plan) -> bool {
        let Some(instance) = self.seen.newest(&container.name) else {
            self.start(Kind::Main, &container.name, 0, plan);
            return true;
        };
        match instance.state {
            container_state::RUNNING => {
                self.replace(container, instance, plan);
                true
            }
            container_state::EXITED => {
                if spec::restarts(self.pod, container, instance.exit_code) {
                    self.restart(Kind::Main, container, instance, plan);
                    true
                } else {
                    self.know.busy.contains(&container.name)
                }
            }
            _ => {
                self.restart(Kind::Main, container, instance, plan);
                true
            }
        }
    }
}

fn expired(backoff: &Backoff, ended: Timestamp) -> bool {
    ended.duration_since(backoff.at) > CRASH_LOOP_RESET
}

fn crash_loop(pod: &Pod, container: &str, delay: SignedDuration) -> (String, String) {
    let message = format!(
        "back-off {} restarting failed container={container} pod={}_{}({})",
        crate::events::go_duration(delay),
        spec::name(pod),
        spec::namespace(pod),
        spec::uid(pod)
    );
    ("CrashLoopBackOff".into(), message)
}

/// Removes runs that nobody asks for any more: all but the newest two of each container, and old sandboxes.
fn tidy(pod: &Pod, seen: &Observed, know: &Knowledge<'_>, plan: &mut Plan) {
    let mut count: HashMap<&str, usize> = HashMap::new();
    for instance in &seen.instances {
        let n = count.entry(&instance.name).or_default();
        *n += 1;
        let known = spec::find(pod, &instance.name).is_some();
        if *n > 2 && known && !instance.running() && !know.busy.contains(&instance.name) {
            plan.actions.push(Action::RemoveInstance { id: instance.id.clone() });
        }
    }
    for sandbox in seen.sandboxes.iter().skip(1) {
        if !seen.instances.iter().any(|i| i.sandbox == sandbox.id) {
            plan.actions.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}

pub fn timestamp(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}
