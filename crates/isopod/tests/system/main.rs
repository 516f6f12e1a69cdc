//! Whole-system tests: the real binary, real containers, stock kubectl, in a network namespace of their own. They need root,
//! containerd, runc, nft, ip and kubectl; a test fails where one is missing, unless `ISOPOD_SYSTEM_TESTS=off` leaves them out.
//!
//! All scenarios share one cluster and run in order; `system NAME` runs those whose name contains NAME.

mod cluster;
mod example;
mod kubectl;
mod lifecycle;
mod machine;
mod nodes;
mod pods;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use cluster::Cluster;

type Scenario = (&'static str, fn(&Cluster));

/// In the order in which they run. The last ones end the server and then the cluster.
const SCENARIOS: [Scenario; 19] = [
    (
        "up_leaves_a_ready_node_and_a_private_kubeconfig",
        lifecycle::up_leaves_a_ready_node_and_a_private_kubeconfig,
    ),
    ("example_is_reached_by_name_address_and_port", example::is_reached_by_name_address_and_port),
    ("kubectl_shows", kubectl::shows),
    ("kubectl_changes", kubectl::changes),
    ("kubectl_rolls_out_and_back", kubectl::rolls_out_and_back),
    ("kubectl_reaches_into_containers", kubectl::reaches_into_containers),
    ("kubectl_copies_and_forwards", kubectl::copies_and_forwards),
    ("account_tokens_in_secrets", kubectl::account_tokens_in_secrets),
    ("pods_get_their_volumes_and_environment", pods::get_their_volumes_and_environment),
    ("pods_run_init_containers_and_restart", pods::run_init_containers_and_restart),
    ("pods_are_probed", pods::are_probed),
    ("pods_end_gracefully", pods::end_gracefully),
    ("static_pods_have_mirrors", pods::static_pods_have_mirrors),
    ("pods_are_limited_by_cgroups", pods::are_limited_by_cgroups),
    ("unschedulable_pods_say_why", pods::unschedulable_pods_say_why),
    ("second_node_of_single_components_joins", nodes::second_node_of_single_components_joins),
    ("killed_server_leaves_pods_and_traffic_alone", lifecycle::killed_server_leaves_pods_and_traffic_alone),
    ("down_keeps_state_for_the_next_up", lifecycle::down_keeps_state_for_the_next_up),
    ("down_leaves_nothing_behind", lifecycle::down_leaves_nothing_behind),
];

fn main() -> ExitCode {
    // The flags of the standard test harness are accepted where they make sense here.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        SCENARIOS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let chosen: Vec<Scenario> = SCENARIOS.into_iter().filter(|(name, _)| chosen(name)).collect();
    println!("\nrunning {} tests", chosen.len());
    if chosen.is_empty() || std::env::var("ISOPOD_SYSTEM_TESTS").is_ok_and(|v| v == "off") {
        println!("test result: ok. 0 passed; 0 failed; {} ignored", chosen.len());
        return ExitCode::SUCCESS;
    }
    let mut failed = Vec::new();
    let mut passed = 0;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let cluster = Cluster::start();
        for (name, scenario) in &chosen {
            let begun = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| scenario(&cluster)));
            let word = if outcome.is_ok() { "ok" } else { "FAILED" };
            println!("test {name} ... {word} ({:.1} s)", begun.elapsed().as_secs_f64());
            match outcome {
                Ok(()) => passed += 1,
                Err(_) => {
                    cluster.tell_what_went_on();
                    failed.push(*name);
                }
            }
        }
    }));
    if outcome.is_err() {
        failed.push("the cluster itself");
    }
    let word = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {} failed; 0 ignored", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
