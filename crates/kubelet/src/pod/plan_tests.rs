//! Cases of `plan`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::observed::{Instance, Observed, Sandbox};
use super::plan::{Action, Backoff, CRASH_LOOP_FIRST, Knowledge, Plan, Unhealthy, plan};
use super::spec::Kind;
use crate::cri::api::container_state::{EXITED, RUNNING};

const NOW: i64 = 1_000_000;

fn pod(restart: &str, init: Value, main: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"restartPolicy": restart, "initContainers": init, "containers": main},
    }))
    .unwrap()
}

fn instance(name: &str, state: i32, exit_code: i32) -> Arc<Instance> {
    Arc::new(Instance {
        id: format!("{name}-id"),
        name: name.into(),
        sandbox: "s".into(),
        state,
        exit_code,
        finished_at: (NOW - 1) * 1_000_000_000,
        ..Instance::default()
    })
}

fn seen(instances: &[Arc<Instance>]) -> Observed {
    Observed {
        sandboxes: vec![Sandbox { id: "s".into(), ready: true, ..Sandbox::default() }],
        instances: instances.to_vec(),
    }
}

struct Case {
    pod: Pod,
    seen: Observed,
    crash_loops: HashMap<String, Backoff>,
    unhealthy: HashMap<String, Unhealthy>,
}

fn run(case: &Case) -> Plan {
    plan(
        &case.pod,
        &case.seen,
        &Knowledge {
            now: Timestamp::from_second(NOW).unwrap(),
            busy: &HashSet::new(),
            sandbox_busy: false,
            not_before: &HashMap::new(),
            crash_loops: &case.crash_loops,
            started: &|_, _| true,
            unhealthy: &case.unhealthy,
        },
    )
}

fn actions(pod: Pod, seen: Observed) -> Vec<Action> {
    run(&Case { pod, seen, crash_loops: HashMap::new(), unhealthy: HashMap::new() }).actions
}

fn start(kind: Kind, name: &str, restarts: u32) -> Action {
    Action::Start { kind, name: name.into(), restarts }
}

#[test]
fn what_comes_next() {
    let one = || json!([{"name": "a"}]);
    let two = || json!([{"name": "a"}, {"name": "b"}]);
    let init = || json!([{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]);
    let none = || json!([]);
    let cases: Vec<(&str, Pod, Observed, Vec<Action>)> = vec![
        (
            "a new pod",
            pod("Always", none(), one()),
            Observed::default(),
            vec![Action::CreateSandbox { attempt: 0 }],
        ),
        (
            "a sandbox",
            pod("Always", none(), two()),
            seen(&[]),
            vec![start(Kind::Main, "a", 0), start(Kind::Main, "b", 0)],
        ),
        ("first init container", pod("Always", init(), one()), seen(&[]), vec![start(Kind::Init, "i", 0)]),
        ("init container runs", pod("Always", init(), one()), seen(&[instance("i", RUNNING, 0)]), vec![]),
        (
            "init container is done",
            pod("Always", init(), one()),
            seen(&[instance("i", EXITED, 0)]),
            vec![start(Kind::Init, "s", 0)],
        ),
        (
            "sidecar runs",
            pod("Always", init(), one()),
            seen(&[instance("s", RUNNING, 0), instance("i", EXITED, 0)]),
            vec![start(Kind::Main, "a", 0)],
        ),
        (
            "init container failed for good",
            pod("Never", init(), one()),
            seen(&[instance("i", EXITED, 1)]),
            vec![Action::Finish],
        ),
        (
            "init container failed",
            pod("Always", init(), one()),
            seen(&[instance("i", EXITED, 1)]),
            vec![start(Kind::Init, "i", 1)],
        ),
        ("all runs", pod("Always", none(), one()), seen(&[instance("a", RUNNING, 0)]), vec![]),
        (
            "restart always",
            pod("Always", none(), one()),
            seen(&[instance("a", EXITED, 0)]),
            vec![start(Kind::Main, "a", 1)],
        ),
        (
            "succeeded on failure",
            pod("OnFailure", none(), one()),
            seen(&[instance("a", EXITED, 0)]),
            vec![Action::Finish],
        ),
        (
            "one of two succeeded",
            pod("OnFailure", none(), two()),
            seen(&[instance("a", EXITED, 0), instance("b", RUNNING, 0)]),
            vec![],
        ),
        (
            "failed never",
            pod("Never", none(), one()),
            seen(&[instance("a", EXITED, 1)]),
            vec![Action::Finish],
        ),
    ];
    for (what, pod, seen, want) in cases {
        assert_eq!(actions(pod, seen), want, "{what}");
    }
}

#[test]
fn a_lost_sandbox() {
    let mut lost = seen(&[instance("a", EXITED, 0)]);
    lost.sandboxes[0].ready = false;
    let main = || json!([{"name": "a"}]);
    assert_eq!(
        actions(pod("Always", json!([]), main()), lost.clone()),
        [Action::CreateSandbox { attempt: 1 }]
    );
    assert_eq!(actions(pod("Never", json!([]), main()), lost), [Action::Finish]);
}

#[test]
fn crash_loops_wait() {
    let ended = Timestamp::from_second(NOW - 1).unwrap();
    let before = ended - SignedDuration::from_secs(30);
    let with = |backoff: Option<Backoff>| {
        run(&Case {
            pod: pod("Always", json!([]), json!([{"name": "a"}])),
            seen: seen(&[instance("a", EXITED, 1)]),
            crash_loops: backoff.map(|b| ("a".to_owned(), b)).into_iter().collect(),
            unhealthy: HashMap::new(),
        })
    };
    // The first end is followed by a start at once, and remembered.
    let first = with(None);
    assert_eq!(first.actions, [start(Kind::Main, "a", 1)]);
    assert_eq!(first.crash_loops, [("a".to_owned(), Backoff { delay: CRASH_LOOP_FIRST, at: ended })]);
    // The second has to wait.
    let second = with(Some(Backoff { delay: CRASH_LOOP_FIRST, at: before }));
    assert!(second.actions.is_empty());
    assert_eq!(second.waiting["a"].0, "CrashLoopBackOff");
    assert_eq!(second.wake_at, Some(ended + CRASH_LOOP_FIRST));
    // After a long run the count begins anew.
    let long_ago = ended - SignedDuration::from_mins(11);
    assert_eq!(
        with(Some(Backoff { delay: CRASH_LOOP_FIRST, at: long_ago })).actions,
        [start(Kind::Main, "a", 1)]
    );
}

#[test]
fn the_unhealthy_go() {
    let plan = run(&Case {
        pod: pod("Always", json!([]), json!([{"name": "a"}])),
        seen: seen(&[instance("a", RUNNING, 0)]),
        crash_loops: HashMap::new(),
        unhealthy: HashMap::from([("a-id".into(), Unhealthy { message: "m".into(), grace: Some(3) })]),
    });
    assert_eq!(
        plan.actions,
        [Action::Kill { id: "a-id".into(), name: "a".into(), message: "m".into(), grace: Some(3) }]
    );
}
