//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction, ClusterTrustBundleAttest: who may approve,
//! sign and ask for which certificates.

use apimachinery::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Context, creates, refuse, writes};
use crate::seams::{AdmissionRequest, Operation, RequestInfo};

const GROUP: &str = "certificates.k8s.io";

/// Whom a certificate is asked for.
pub(super) struct Subject {
    pub common_name: String,
    pub organizations: Vec<String>,
}

/// Reads the PEM request inside a CertificateSigningRequest.
pub(super) fn subject(object: &Value) -> Option<Subject> {
    let pem = STANDARD.decode(object["spec"]["request"].as_str()?).ok()?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&block.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_owned();
    Some(Subject {
        common_name: subject.iter_common_name().last().map(text).unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
    })
}

/// Whether the user has a verb on a signer: by its name or by its domain.
fn may(context: &Context, request: &AdmissionRequest<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split_once('/').map(|(d, _)| format!("{d}/*"));
    [Some(signer.to_owned()), domain].into_iter().flatten().any(|name| {
        let asks = RequestInfo {
            verb: verb.into(),
            is_resource: true,
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..RequestInfo::default()
        };
        context.authorizers.decide_now(request.user, &asks).is_allowed()
    })
}

fn signer(object: &Value) -> String {
    object["spec"]["signerName"].as_str().unwrap_or_default().to_owned()
}

pub(super) fn approval(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let approves = request.group == GROUP
        && request.resource == "certificatesigningrequests"
        && request.subresource == "approval"
        && request.operation == Operation::Update;
    if !approves {
        return Ok(());
    }
    let signer = signer(request.old_object.unwrap_or(request.object));
    if may(context, request, "approve", &signer) {
        return Ok(());
    }
    Err(refuse(request, format!("user not permitted to approve requests with signerName {signer:?}")))
}

pub(super) fn signing(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let signs = request.group == GROUP
        && request.resource == "certificatesigningrequests"
        && request.subresource == "status"
        && request.operation == Operation::Update;
    let old = request.old_object.unwrap_or(&Value::Null);
    let failed = |v: &Value| {
        super::items(&v["status"], "conditions")
            .filter(|c| c["type"] == "Failed")
            .cloned()
            .collect::<Vec<_>>()
    };
    let changed = request.object["status"]["certificate"] != old["status"]["certificate"]
        || failed(request.object) != failed(old);
    if !signs || !changed {
        return Ok(());
    }
    let signer = signer(old);
    if may(context, request, "sign", &signer) {
        return Ok(());
    }
    Err(refuse(request, format!("user not permitted to sign requests with signerName {signer:?}")))
}

pub(super) fn subject_restriction(_: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
    let asks = creates(request, GROUP, "certificatesigningrequests");
    if !asks || request.object["spec"]["signerName"] != CLIENT {
        return Ok(());
    }
    let Some(subject) = subject(request.object) else {
        return Err(refuse(request, "failed to parse CSR: PEM block type must be CERTIFICATE REQUEST"));
    };
    let masters = apimachinery::user::SYSTEM_MASTERS;
    if subject.organizations.iter().any(|o| o == masters) {
        return Err(refuse(request, format!("use of {CLIENT} signer with {masters} group is not allowed")));
    }
    Ok(())
}

pub(super) fn attest(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !writes(request, GROUP, "clustertrustbundles") {
        return Ok(());
    }
    let signer = signer(request.object);
    let unchanged = request.old_object.is_some_and(|old| old["spec"] == request.object["spec"]);
    if signer.is_empty() || unchanged || may(context, request, "attest", &signer) {
        return Ok(());
    }
    Err(refuse(request, format!("user not permitted to attest for signerName {signer:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use rcgen::{CertificateParams, DnType, KeyPair};
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn masters_are_not_made_by_request() {
        let context = context(&Arc::new(FakeObjects::default()));
        for (organization, want) in [("dev", true), ("system:masters", false)] {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "x");
            params.distinguished_name.push(DnType::OrganizationName, organization);
            let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
            let object = json!({"metadata": {"name": "c"}, "spec": {
                "signerName": "kubernetes.io/kube-apiserver-client", "request": STANDARD.encode(pem)}});
            let mut request = Request::create(GROUP, "certificatesigningrequests", object);
            assert_eq!(request.with(|r| subject_restriction(&context, r)).is_ok(), want);
        }
    }

    #[test]
    fn approving_needs_the_verb_on_the_signer() {
        let objects = Arc::new(FakeObjects::default());
        let rbac = "rbac.authorization.k8s.io";
        let rules = json!([{"verbs": ["approve"], "apiGroups": [GROUP], "resources": ["signers"], "resourceNames": ["example.com/*"]}]);
        objects.put(rbac, "clusterroles", json!({"metadata": {"name": "r"}, "rules": rules}));
        objects.put(rbac, "clusterrolebindings", json!({"metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "alice"}]}));
        let context = context(&objects);
        for (signer, want) in [("example.com/a", true), ("example.org/a", false)] {
            let object = json!({"metadata": {"name": "c"}, "spec": {"signerName": signer}});
            let mut request = Request::create(GROUP, "certificatesigningrequests", object.clone());
            request.operation = Operation::Update;
            request.subresource = "approval";
            request.old = Some(object);
            assert_eq!(request.with(|r| approval(&context, r)).is_ok(), want);
        }
    }
}
