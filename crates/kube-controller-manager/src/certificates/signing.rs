//! certificatesigningrequest-signing-controller: signs approved requests for the signers of kubernetes.io.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::PostParams;

use super::authority::Authority;
use super::request::Request;
use super::{has_condition, is_issued};
use crate::Context;
use crate::support::errors::IgnoreNotFound;

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let Some(authority) = authority(&ctx).await? else {
        tracing::info!("no --cluster-signing-cert-file: certificate requests are not signed");
        return Ok(());
    };
    super::each(ctx, 5, move |ctx, csr| {
        let authority = authority.clone();
        async move { sign(&ctx, &authority, csr).await }
    })
    .await
}

async fn authority(ctx: &Context) -> anyhow::Result<Option<Arc<Authority>>> {
    let Some(certificate) = &ctx.config.cluster_signing_cert_file else { return Ok(None) };
    let key = ctx.config.cluster_signing_key_file.as_ref();
    let key = key.context("--cluster-signing-cert-file needs --cluster-signing-key-file")?;
    let certificate =
        tokio::fs::read(certificate).await.with_context(|| certificate.display().to_string())?;
    let key = tokio::fs::read(key).await.with_context(|| key.display().to_string())?;
    Ok(Some(Arc::new(Authority::new(&certificate, &key)?)))
}

async fn sign(
    ctx: &Context,
    authority: &Authority,
    mut csr: CertificateSigningRequest,
) -> kube::Result<Option<Duration>> {
    if is_issued(&csr)
        || !has_condition(&csr, "Approved")
        || has_condition(&csr, "Failed")
        || has_condition(&csr, "Denied")
    {
        return Ok(None);
    }
    let name = csr.metadata.name.clone().unwrap_or_default();
    let usages = csr.spec.usages.clone().unwrap_or_default();
    let request = match Request::parse(&csr.spec.request.0) {
        Ok(request) => request,
        Err(error) => {
            tracing::warn!(name, error = format!("{error:#}"), "a certificate request cannot be read");
            return Ok(None);
        }
    };
    let now = ctx.clock.now();
    let status = csr.status.get_or_insert_default();
    match request.fits(&csr.spec.signer_name, &usages) {
        None => return Ok(None),
        Some(Err(why)) => {
            status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                type_: "Failed".into(),
                status: "True".into(),
                reason: Some("SignerValidationFailure".into()),
                message: Some(why),
                last_update_time: Some(Time(now)),
                last_transition_time: None,
            });
        }
        Some(Ok(())) => {
            let asked = csr.spec.expiration_seconds.map(|s| Duration::from_secs(s.max(0) as u64));
            let signed = authority.sign(&request, &usages, asked, ctx.config.cluster_signing_duration, now);
            match signed {
                Ok(pem) => status.certificate = Some(ByteString(pem)),
                Err(error) => {
                    tracing::warn!(
                        name,
                        error = format!("{error:#}"),
                        "a certificate request cannot be signed"
                    );
                    return Ok(Some(Duration::from_secs(60)));
                }
            }
        }
    }
    let api = ctx.client.all::<CertificateSigningRequest>();
    api.replace_status(&name, &PostParams::default(), &csr).await.ignore_not_found()?;
    Ok(None)
}
