//! The scheduler: finds a node for every pod that has none.
//!
//! [`schedule::schedule`] is the decision and [`preemption::preempt`] the one that follows where no node will do, both
//! pure; [`queue`] says which pod is next; [`scheduler`] is the shell.

pub mod affinity;
pub mod filters;
pub mod node;
pub mod pod;
pub mod preemption;
pub mod queue;
pub mod schedule;
mod scheduler;
pub mod scores;
pub mod snapshot;

use tokio_util::sync::CancellationToken;

/// Upstream's main flags.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// How to reach the API server
    #[arg(long)]
    pub kubeconfig: Option<std::path::PathBuf>,
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Pods that name this scheduler are its own.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Config {
        Config { scheduler_name: "default-scheduler".into() }
    }
}

/// Schedules pods until `shutdown`.
pub async fn run(config: Config, client: client::Client, shutdown: CancellationToken) -> anyhow::Result<()> {
    scheduler::run(config.scheduler_name, client, shutdown).await
}
