//! Certificate requests: who is approved without being asked, what is signed, what is thrown away.

pub(crate) mod approving;
mod authority;
pub(crate) mod cleaner;
mod der;
mod request;
pub(crate) mod signing;

use std::time::Duration;

use client::{Delta, WorkQueue, run_workers};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use crate::Context;

pub(crate) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub(crate) const CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(crate) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub(crate) const LEGACY: &str = "kubernetes.io/legacy-unknown";

fn has_condition(csr: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == kind && c.status == "True"))
}

fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

/// Works on every request that comes or changes, and again after the time that `work` asks for.
async fn each<F, Fut>(ctx: Context, workers: usize, work: F) -> anyhow::Result<()>
where
    F: Fn(Context, CertificateSigningRequest) -> Fut,
    Fut: Future<Output = kube::Result<Option<Duration>>> + Send + 'static,
{
    let queue = WorkQueue::<String>::new();
    let requests = ctx.client.informer::<CertificateSigningRequest>();
    let q = queue.clone();
    requests.subscribe(move |delta| {
        if !matches!(delta, Delta::Deleted(_)) {
            q.add(delta.key());
        }
    });
    requests.synced().await;
    run_workers(queue, workers, ctx.shutdown.clone(), move |key| {
        let work = requests.get_key_typed(&key).map(|csr| work(ctx.clone(), csr));
        async move {
            match work {
                Some(work) => work.await,
                None => Ok(None),
            }
        }
    })
    .await;
    Ok(())
}
