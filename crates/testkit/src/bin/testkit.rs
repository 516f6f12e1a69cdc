//! Builds what tests and examples need.

use std::path::PathBuf;

use clap::Parser;
use testkit::{example_images, load, pods, schedule};

#[derive(Parser)]
enum Cli {
    /// Build stand-ins for the images of examples/two-services from the distribution's packages
    ExampleImages { directory: PathBuf },
    /// Print a manifest with the public images' names replaced by the stand-ins'
    Substitute { manifests: Vec<PathBuf> },
    /// Print how long pods of a cluster take to become Ready
    Pods(Box<pods::Flags>),
    /// Print how soon pods are bound, on a control plane without nodes of its own
    Schedule(Box<schedule::Flags>),
    /// Load an API server and print what each operation costs it
    Load(Box<load::Flags>),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::ExampleImages { directory } => example_images::build(&directory),
        Cli::Substitute { manifests } => {
            for path in manifests {
                let mut text = std::fs::read_to_string(path)?;
                for stand_in in &example_images::STAND_INS {
                    text = text.replace(stand_in.public, stand_in.name);
                }
                println!("---\n{text}");
            }
            Ok(())
        }
        Cli::Pods(flags) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(pods::run(*flags))
        }
        Cli::Schedule(flags) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(schedule::run(*flags))
        }
        Cli::Load(flags) => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(load::run(*flags))
        }
    }
}
