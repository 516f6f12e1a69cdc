//! Requests that end at a kubelet, a pod or a service: logs, exec, attach, port-forward, proxying.

use std::sync::Arc;

use apimachinery::status::Status;
use http::Response;

use crate::http::Body;
use crate::registry::handler::Call;
use crate::server::Server;

/// How the server proves itself to kubelets, as PEM.
#[derive(Clone, Debug, Default)]
pub struct KubeletClient {
    pub certificate: Option<Vec<u8>>,
    pub key: Option<Vec<u8>>,
    /// Whom kubelets' certificates must be signed by; without it they are not checked, as upstream's default.
    pub ca: Option<Vec<u8>>,
    /// Which addresses of a node are tried, first to last; empty means upstream's order.
    pub address_types: Vec<String>,
}

/// How the server reaches kubelets.
pub struct Kubelets {}

impl Kubelets {
    pub fn new(_client: &KubeletClient) -> anyhow::Result<Kubelets> {
        Ok(Kubelets {})
    }
}

fn missing() -> Status {
    let mut status = Status::service_unavailable("this server cannot reach kubelets yet");
    status.code = 501;
    status.reason = "NotImplemented".to_owned();
    status
}

pub async fn log(_server: &Arc<Server>, _call: &mut Call) -> Result<Response<Body>, Status> {
    Err(missing())
}

pub async fn stream(_server: &Arc<Server>, _call: &mut Call) -> Result<Response<Body>, Status> {
    Err(missing())
}

pub async fn forward(_server: &Arc<Server>, _call: &mut Call) -> Result<Response<Body>, Status> {
    Err(missing())
}
