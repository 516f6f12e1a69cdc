//! Requests that end at a kubelet, a pod or a service: logs, exec, attach, port-forward, proxying.

use std::sync::Arc;

use apimachinery::status::Status;
use http::Response;

use crate::http::Body;
use crate::registry::handler::Call;
use crate::server::Server;

/// How the server reaches kubelets.
#[derive(Default)]
pub struct Kubelets {}

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
