//! A kubelet by itself, against any API server: `standalone <data-dir> --kubeconfig FILE [flags]`.

use clap::Parser;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    data_dir: std::path::PathBuf,
    #[arg(long, default_value = "isopod.local/pause:1")]
    sandbox_image: String,
    #[command(flatten)]
    flags: kubelet::Flags,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let kubeconfig =
        arguments.flags.kubeconfig.clone().ok_or_else(|| anyhow::anyhow!("--kubeconfig is missing"))?;
    let client = client::Client::from_kubeconfig(kubeconfig, "kubelet").await?;
    let name = nix::unistd::gethostname()?.to_string_lossy().to_lowercase();
    let run_dir = arguments.data_dir.join("run");
    let mut config = kubelet::Config::new(name, &arguments.data_dir, run_dir);
    config.containerd.sandbox_image = arguments.sandbox_image;
    arguments.flags.apply(&mut config)?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    kubelet::run(config, client, shutdown).await
}
