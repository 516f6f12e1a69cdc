//! The kubelet's own server.

pub mod logs;

use std::sync::Arc;

use tokio::net::TcpListener;

use crate::kubelet::Kubelet;

pub fn listen(kubelet: &Kubelet) -> anyhow::Result<TcpListener> {
    let listener = std::net::TcpListener::bind((kubelet.config.address, kubelet.config.port))?;
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

pub async fn serve(kubelet: Arc<Kubelet>, _listener: TcpListener) {
    kubelet.shutdown.cancelled().await;
}
