//! Certificate signing requests and trust bundles.

use crate::strategy::{DEFAULT, FieldLabels, Rules, WITH_STATUS, label_not_supported};
use crate::value::Read;

pub const GROUP: &str = "certificates.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "certificatesigningrequests",
        namespaced: false,
        fields: |csr| vec![("spec.signerName", csr.text("spec.signerName").to_owned())],
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["spec.signerName"],
            error: label_not_supported,
        },
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "clustertrustbundles",
        namespaced: false,
        unconditional_update: false,
        fields: |bundle| vec![("spec.signerName", bundle.text("spec.signerName").to_owned())],
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["spec.signerName"],
            error: label_not_supported,
        },
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "podcertificaterequests",
        unconditional_update: false,
        status_keeps_metadata: true,
        fields: |request| {
            ["spec.signerName", "spec.podName", "spec.nodeName"]
                .map(|p| (p, request.text(p).to_owned()))
                .into()
        },
        field_labels: FieldLabels {
            labels: crate::core_v1::labels![
                "metadata.namespace",
                "spec.signerName",
                "spec.podName",
                "spec.nodeName"
            ],
            error: label_not_supported,
        },
        ..WITH_STATUS
    },
];
