//! Isopod: Kubernetes in one binary. This crate alone knows all components; it wires them and gives them a command
//! line.

mod addons;
mod apiserver;
mod cli;
mod components;
mod down;
mod images;
mod leftovers;
mod local;
mod node;
mod pause;
mod pki;
mod preflight;
mod process;
mod residency;
mod server;
mod settings;
mod status;
mod supervisor;
mod up;

use std::io::IsTerminal;
use std::process::ExitCode;

use cli::{Command, ImagesCommand, Told};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Worker threads: as many as there are cores, but few enough to stay small on a large machine.
const WORKERS_MIN: usize = 2;
const WORKERS_MAX: usize = 8;

fn main() -> ExitCode {
    // Called by the runtime under a CNI plugin's name, or with CNI_COMMAND set, this is that plugin.
    if let Some(plugin) = cni_plugin() {
        return flannel::cni::main(&plugin);
    }
    let (cli, told) = cli::parse();
    // Whoever asks in vain says so; the client would say it once more, even while `up` waits for a server to answer.
    let levels = Targets::new()
        .with_default(cli.log_level)
        .with_target("kube_client::client::builder", LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines.with_filter(levels)).init();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cores = std::thread::available_parallelism().map_or(WORKERS_MIN, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.clamp(WORKERS_MIN, WORKERS_MAX))
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(cli.command, told)),
        Err(error) => Err(anyhow::Error::new(error).context("start the async runtime")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("isopod: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn cni_plugin() -> Option<String> {
    std::env::var_os("CNI_COMMAND")?;
    let program = std::env::args_os().next()?;
    Some(std::path::Path::new(&program).file_name()?.to_string_lossy().into_owned())
}

async fn dispatch(command: Command, told: Told) -> anyhow::Result<()> {
    match command {
        Command::Up(flags) => {
            let arguments: Vec<String> = std::env::args().skip_while(|a| a != "up").skip(1).collect();
            up::run(&flags, &arguments).await
        }
        Command::Status(flags) => status::run(&flags).await,
        Command::Images { flags, command: ImagesCommand::Import { archives } } => {
            images::import(&flags, &archives).await
        }
        Command::Images { flags, command: ImagesCommand::List } => images::list(&flags).await,
        Command::Completions { shell } => {
            cli::completions(shell);
            Ok(())
        }
        Command::Component(component) => components::run(component, told).await,
        Command::Server(flags) => server::run(&flags, told).await,
        Command::Down { flags, purge } => down::run(&flags, purge).await,
    }
}
