//! certificatesigningrequest-cleaner-controller: deletes requests that are done with.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{DeleteParams, Preconditions};

use crate::Context;
use crate::support::errors::IgnoreNotFound;

const DONE: Duration = Duration::from_secs(3600);
const PENDING: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    super::each(ctx, 1, |ctx, csr| async move {
        match left(&csr, ctx.clock.now()) {
            left if left.is_zero() => delete(&ctx, csr).await,
            left => Ok(Some(left)),
        }
    })
    .await
}

/// How long a request may still stay: an hour after it was decided, a day while it waits, and not beyond its
/// certificate.
fn left(csr: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let since = |at: Option<Timestamp>, stays: Duration| {
        let at = at.unwrap_or(now) + stays;
        Duration::try_from(at.duration_since(now)).unwrap_or_default()
    };
    let created = csr.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if conditions.is_empty() {
        return since(created, PENDING);
    }
    let mut left = Duration::MAX;
    for condition in conditions {
        let at = condition.last_update_time.as_ref().or(condition.last_transition_time.as_ref()).map(|t| t.0);
        if matches!(condition.type_.as_str(), "Approved" | "Denied" | "Failed") {
            left = left.min(since(at.or(created), DONE));
        }
    }
    if let Some(expires) = expires(csr) {
        left = left.min(Duration::try_from(expires.duration_since(now)).unwrap_or_default());
    }
    if left == Duration::MAX { since(created, PENDING) } else { left }
}

fn expires(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let pem = &csr.status.as_ref()?.certificate.as_ref()?.0;
    let (_, block) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    Timestamp::from_second(block.parse_x509().ok()?.validity().not_after.timestamp()).ok()
}

async fn delete(ctx: &Context, csr: CertificateSigningRequest) -> kube::Result<Option<Duration>> {
    let delete = DeleteParams {
        preconditions: Some(Preconditions { uid: csr.metadata.uid, resource_version: None }),
        ..DeleteParams::default()
    };
    let name = csr.metadata.name.unwrap_or_default();
    ctx.client.all::<CertificateSigningRequest>().delete(&name, &delete).await.ignore_not_found()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn how_long_requests_stay() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (status, want) in [
            (json!({}), 12 * 3600),
            (
                json!({"conditions": [{"type": "Denied", "status": "True", "lastUpdateTime": "2026-01-01T23:30:00Z"}]}),
                1800,
            ),
            (
                json!({"conditions": [{"type": "Failed", "status": "True", "lastUpdateTime": "2026-01-01T22:00:00Z"}]}),
                0,
            ),
            (
                json!({"conditions": [{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T23:30:00Z"}],
                "certificate": "eA=="}),
                1800,
            ),
        ] {
            let csr = serde_json::from_value(
                json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T12:00:00Z"},
                "spec": {"request": "", "signerName": "x/y"}, "status": status}),
            )
            .unwrap();
            assert_eq!(left(&csr, now).as_secs(), want, "{status}");
        }
    }
}
