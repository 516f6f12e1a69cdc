//! Hooks: what runs after a container started and before it is stopped.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cri::Cri;
use crate::net;

/// Hooks have no time limit of their own; one that hangs ends with its container's grace period, or here.
const HOOK_TIMEOUT: Duration = Duration::from_secs(3600);

/// The number of a port that may be given by its name.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => u16::try_from(*n).ok().filter(|n| *n > 0),
        IntOrString::String(name) => match name.parse() {
            Ok(n) => Some(n),
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref() == Some(name))
                .and_then(|p| u16::try_from(p.container_port).ok()),
        },
    };
    number.ok_or_else(|| match port {
        IntOrString::Int(n) => format!("invalid port number: {n}"),
        IntOrString::String(s) => format!("couldn't find port: {s:?} in container {:?}", container.name),
    })
}

pub fn http_target(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: Option<&str>,
    user_agent: &str,
) -> Result<net::Target, String> {
    let host = match action.host.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        None => pod_ip.ok_or("the pod has no address")?.to_owned(),
    };
    Ok(net::Target {
        https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
        host,
        port: port(&action.port, container)?,
        path: action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into()),
        headers: action.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
        user_agent: user_agent.to_owned(),
    })
}

pub async fn run(
    cri: &Cri,
    id: &str,
    container: &Container,
    pod_ip: Option<&str>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = format!("{command:?}");
        let answer = cri.exec_sync(id, command, None).await.map_err(|e| e.to_string())?;
        if answer.exit_code != 0 {
            let mut output = answer.stdout;
            output.extend(answer.stderr);
            return Err(format!(
                "Exec lifecycle hook ({shown}) failed - error: command exited with {}, message: {:?}",
                answer.exit_code,
                String::from_utf8_lossy(&output)
            ));
        }
        return Ok(());
    }
    if let Some(action) = &hook.http_get {
        let mut target = http_target(action, container, pod_ip, "kube-lifecycle/1.36")?;
        let mut result = net::get(&target, HOOK_TIMEOUT).await;
        if target.https && result.is_err() {
            // Older clusters declared HTTPS and served HTTP; that goes on to work.
            target.https = false;
            result = net::get(&target, HOOK_TIMEOUT).await;
        }
        return match result {
            Ok(answer) if answer.status < 400 => Ok(()),
            Ok(answer) => {
                Err(format!("HTTP lifecycle hook ({}) failed: status {}", target.path, answer.status))
            }
            Err(error) => Err(format!("HTTP lifecycle hook ({}) failed: {error}", target.path)),
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("invalid lifecycle handler: none of exec, httpGet and sleep is given".into())
}
