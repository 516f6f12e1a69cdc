//! The command line: one binary, a command for the whole and one for each component.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use crate::settings::ServerFlags;

/// Kubernetes in one small binary.
///
/// `isopod up` starts a cluster on this machine and returns when its node is Ready; `isopod down` ends it again.
/// Everything in between is kubectl with the kubeconfig that `up` names.
#[derive(Debug, Parser)]
#[command(name = "isopod", version, max_term_width = 110, disable_help_subcommand = true)]
pub struct Cli {
    /// How much is logged: error, warn, info, debug or trace
    #[arg(long, global = true, default_value = "info", env = "ISOPOD_LOG")]
    pub log_level: tracing::level_filters::LevelFilter,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a cluster in the background and wait until its node is Ready
    Up(Box<ServerFlags>),
    /// End the cluster on this machine: server, pods, runtime, network
    Down {
        #[command(flatten)]
        flags: Box<ServerFlags>,
        /// Delete all state as well
        #[arg(long)]
        purge: bool,
    },
    /// Tell what runs
    Status(Box<ServerFlags>),
    /// Run control plane and node in the foreground
    Server(Box<ServerFlags>),
    /// Put container images into the node's runtime, or list them
    Images {
        #[command(flatten)]
        flags: Box<ServerFlags>,
        #[command(subcommand)]
        command: ImagesCommand,
    },
    #[command(flatten)]
    Component(crate::components::Component),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// Import image archives (docker save, OCI)
    Import {
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// List images
    List,
}

/// Writes the completion script to standard output.
pub fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "isopod", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
