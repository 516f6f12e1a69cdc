//! The command line: one binary, a command for the whole and one for each component.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

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

/// The values of a command's flags by their names, given or by default; `/flagz` tells them.
pub type Told = BTreeMap<String, String>;

/// The command line, with help that is worth reading.
fn definition() -> clap::Command {
    let mut definition = Cli::command();
    // Names as long as upstream's leave no room for a text beside them.
    for name in ["up", "server", "kube-apiserver", "etcd"] {
        definition = definition.mut_subcommand(name, |command| command.next_line_help(true));
    }
    // They are to be addressed as the server was, whatever the server itself was told beyond that.
    for name in ["down", "status", "images"] {
        let hidden = |flag: clap::Arg| match flag.get_help_heading() {
            Some(_) => flag.hide(true),
            None => flag,
        };
        definition = definition.mut_subcommand(name, |command| command.mut_args(hidden));
    }
    definition
}

/// The command line of this process, and the flags of the command it names. Ends the process where it is wrong.
pub fn parse() -> (Cli, Told) {
    let mut definition = definition();
    let matches = definition.get_matches_mut();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let told = tell(&definition, &matches);
    (cli, told)
}

fn tell(definition: &clap::Command, matches: &ArgMatches) -> Told {
    if let Some((name, inner)) = matches.subcommand()
        && let Some(definition) = definition.find_subcommand(name)
    {
        return tell(definition, inner);
    }
    let mut told = Told::new();
    for flag in definition.get_arguments() {
        let (Some(name), ArgAction::Set | ArgAction::Append | ArgAction::SetTrue) =
            (flag.get_long(), flag.get_action())
        else {
            continue;
        };
        let values: Vec<_> = matches.get_raw(flag.get_id().as_str()).into_iter().flatten().collect();
        let text = values.iter().map(|v| v.to_string_lossy()).collect::<Vec<_>>().join(",");
        let many = matches!(flag.get_action(), ArgAction::Append) || flag.get_value_delimiter().is_some();
        told.insert(name.to_owned(), if many { format!("[{text}]") } else { text });
    }
    told
}

/// Writes the completion script to standard output.
pub fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut definition(), "isopod", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn flags_are_told_by_their_names() {
        let mut definition = definition();
        let line = ["isopod", "server", "--tls-san=a,b", "--tls-san=c", "--disable-agent", "--node-name=n"];
        let matches = definition.try_get_matches_from_mut(line).unwrap();
        let told = tell(&definition, &matches);
        for (name, value) in [
            ("tls-san", "[a,b,c]"),
            ("disable-agent", "true"),
            ("node-name", "n"),
            ("node-ip", ""),
            ("https-listen-port", "6443"),
            ("datastore-endpoint", "[]"),
        ] {
            assert_eq!(told.get(name).map(String::as_str), Some(value), "{name}");
        }
    }
}
