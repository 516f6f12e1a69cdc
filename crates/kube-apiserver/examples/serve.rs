//! An API server alone, for trying kubectl on and for measuring:
//! `cargo run -p kube-apiserver --example serve -- 7443 /tmp/data [tokens.csv]`. Prints the kubeconfig's path. Allocator and threads
//! are the ones of the binary `isopod`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use etcd::{Directory, Engine, Options};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(serve())
}

async fn serve() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().unwrap_or_default().parse().unwrap_or(7443);
    let data = PathBuf::from(args.next().unwrap_or_else(|| "/tmp/isopod-apiserver".to_owned()));
    std::fs::create_dir_all(&data)?;
    let engine = Engine::open(Arc::new(Directory::open(&data.join("store"))?), Options::default())?;
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?
        .self_signed(&key)?;
    let mut config = kube_apiserver::Config::new(
        Arc::new(engine),
        certificate.pem().into_bytes(),
        key.serialize_pem().into_bytes(),
    );
    config.bind_address = IpAddr::from([127, 0, 0, 1]);
    config.secure_port = port;
    // Further users, one "token,user,uid,groups" a line.
    let others = args.next().map(std::fs::read_to_string).transpose()?.unwrap_or_default();
    config.security.tokens = Some(format!("admin-token,admin,1,system:masters\n{others}"));
    config.security.service_account_signing_key =
        Some(rcgen::KeyPair::generate()?.serialize_pem().into_bytes());
    config.security.advertise_address = IpAddr::from([192, 0, 2, 1]);
    std::fs::write(data.join("tls.crt"), certificate.pem())?;
    let shutdown = CancellationToken::new();
    let (handle, prepared) = kube_apiserver::prepare(config).await?;
    let kubeconfig = data.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         clusters: [{{name: x, cluster: {{server: 'https://{}', insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: x, user: {{token: admin-token}}}}]\n\
         contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n",
        handle.address()
    );
    std::fs::write(&kubeconfig, text)?;
    println!("{}", kubeconfig.display());
    let stop = shutdown.clone();
    let waiting = tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    prepared.run(shutdown).await?;
    waiting.abort();
    Ok(())
}
