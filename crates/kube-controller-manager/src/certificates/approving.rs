//! certificatesigningrequest-approving-controller: approves client certificates of kubelets whose user may have them.

use std::time::Duration;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use kube::api::PostParams;

use super::request::Request;
use super::{CLIENT_KUBELET, has_condition, is_issued};
use crate::Context;
use crate::support::errors::IgnoreNotFound;

/// What a kubelet must be allowed to create for its request to be approved, and what the approval says.
const KINDS: [(&str, &str); 2] = [
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
];

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    super::each(ctx, 5, |ctx, csr| async move { approve(&ctx, csr).await }).await
}

/// Which of the kinds a request is of.
fn kinds(csr: &CertificateSigningRequest) -> Vec<(&'static str, &'static str)> {
    let decided = is_issued(csr) || has_condition(csr, "Approved") || has_condition(csr, "Denied");
    if decided || csr.spec.signer_name != CLIENT_KUBELET {
        return Vec::new();
    }
    let Ok(request) = Request::parse(&csr.spec.request.0) else { return Vec::new() };
    let usages = csr.spec.usages.clone().unwrap_or_default();
    if !matches!(request.fits(CLIENT_KUBELET, &usages), Some(Ok(()))) {
        return Vec::new();
    }
    let own = csr.spec.username.as_deref() == Some(&request.common_name);
    KINDS.into_iter().filter(|(kind, _)| own || *kind == "nodeclient").collect()
}

async fn approve(ctx: &Context, mut csr: CertificateSigningRequest) -> kube::Result<Option<Duration>> {
    for (kind, message) in kinds(&csr) {
        if !may(ctx, &csr, kind).await? {
            continue;
        }
        let status = csr.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("AutoApproved".into()),
            message: Some(message.into()),
            last_update_time: None,
            last_transition_time: None,
        });
        let name = csr.metadata.name.clone().unwrap_or_default();
        let api = ctx.client.all::<CertificateSigningRequest>();
        let answer: kube::Result<CertificateSigningRequest> =
            api.replace_subresource("approval", &name, &PostParams::default(), &csr).await;
        answer.ignore_not_found()?;
        return Ok(None);
    }
    Ok(None)
}

async fn may(ctx: &Context, csr: &CertificateSigningRequest, kind: &str) -> kube::Result<bool> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: csr.spec.username.clone(),
            uid: csr.spec.uid.clone(),
            groups: csr.spec.groups.clone(),
            extra: csr.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(kind.into()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SubjectAccessReview::default()
    };
    let answer = ctx.client.all::<SubjectAccessReview>().create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}
