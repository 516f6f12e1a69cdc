//! Certificate signing requests and trust bundles.

use apimachinery::user::UserInfo;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, FieldLabels, Rules, WITH_STATUS, label_not_supported};
use crate::value::{Read, Write};

pub const GROUP: &str = "certificates.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "certificatesigningrequests",
        first_status: r#"{}"#,
        name: |_, _| vec![],
        record_requester,
        prepare_for_update: |new, old| new.copy_from(old, "spec"),
        prepare_for_status_update: prepare_status,
        prepare_for_subresource: Some(prepare_approval),
        stamp: Some(stamp_conditions),
        validate,
        validate_update: |new, old| changes(new, old, false, false),
        validate_status_update: |new, old| changes(new, old, false, true),
        validate_subresource: Some(|_, new, old| changes(new, old, true, false)),
        namespaced: false,
        fields: |csr| vec![("spec.signerName", csr.text("spec.signerName").to_owned())],
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["spec.signerName"],
            error: label_not_supported,
        },
        // Nobody owns a request: it cannot change.
        reset: &[&["spec"], &["status"]],
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

/// Who asks is written down by the server, not by the one who asks.
fn record_requester(request: &mut Value, user: &UserInfo) {
    request.put("spec.username", user.name.as_str());
    request.put("spec.groups", user.groups.clone());
    if user.uid.is_empty() {
        request.remove("spec.uid");
    } else {
        request.put("spec.uid", user.uid.as_str());
    }
    if user.extra.is_empty() {
        request.remove("spec.extra");
    } else {
        let extra: serde_json::Map<String, Value> =
            user.extra.iter().map(|(key, values)| (key.clone(), values.clone().into())).collect();
        request.put("spec.extra", extra);
    }
}

fn of_kind<'a>(request: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    request.list("status.conditions").iter().filter(move |c| c.text("type") == kind)
}

/// A status update leaves the decision alone.
fn prepare_status(new: &mut Value, old: &Value) {
    let mut conditions: Vec<Value> = old
        .list("status.conditions")
        .iter()
        .filter(|c| matches!(c.text("type"), "Approved" | "Denied"))
        .cloned()
        .collect();
    let others = new.list("status.conditions").iter().filter(|c| !conditions.contains(c)).cloned();
    let others: Vec<Value> = others.collect();
    conditions.extend(others);
    if !conditions.is_empty() {
        new.put("status.conditions", conditions);
    }
}

/// The decision changes through `approval`, and nothing else does.
/// When conditions were set, where the client does not say.
fn stamp_conditions(new: &mut Value, old: &Value, now: &str) {
    for condition in new.list_mut("status.conditions") {
        if condition.text("lastUpdateTime").is_empty() {
            condition.put("lastUpdateTime", now);
        }
        if condition.text("lastTransitionTime").is_empty() {
            let same = |was: &&Value| {
                ["type", "status"].iter().all(|name| was.text(name) == condition.text(name))
                    && !was.text("lastTransitionTime").is_empty()
            };
            let was = old.list("status.conditions").iter().find(same);
            let since = was.map_or(now, |was| was.text("lastTransitionTime")).to_owned();
            condition.put("lastTransitionTime", since);
        }
    }
}

fn prepare_approval(_: &str, new: &mut Value, old: &Value) {
    let conditions = new.at("status.conditions").clone();
    new.copy_from(old, "spec");
    new.copy_from(old, "status");
    if conditions.is_null() {
        new.remove("status.conditions");
    } else {
        new.put("status.conditions", conditions);
    }
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn validate(request: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = request.at("spec");
    if let Err(why) = parse_request(spec.text("request")) {
        errors.invalid(&path.child("request"), spec.at("request").clone(), why);
    }
    let usages: Vec<&str> = spec.list("usages").iter().filter_map(Value::as_str).collect();
    let list = path.child("usages");
    if usages.is_empty() {
        errors.required(&list, "");
    }
    for (i, usage) in usages.iter().enumerate() {
        errors.one_of(&list.index(i), usage, &USAGES);
        if usages[..i].contains(usage) {
            errors.duplicate(&list.index(i), *usage);
        }
    }
    signer_name(&mut errors, spec.text("signerName"), &path.child("signerName"));
    if spec.text("signerName") == "kubernetes.io/legacy-unknown" {
        let why = "the legacy signerName is not allowed via this API version";
        errors.invalid(&path.child("signerName"), spec.text("signerName"), why);
    }
    if let Some(seconds) = spec.maybe_int("expirationSeconds").filter(|s| *s < 600) {
        errors.invalid(
            &path.child("expirationSeconds"),
            seconds,
            "may not specify a duration less than 600 seconds (10 minutes)",
        );
    }
    conditions(&mut errors, request);
    errors
}

fn parse_request(text: &str) -> Result<(), String> {
    let bytes = STANDARD.decode(text).map_err(|e| e.to_string())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&bytes)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    use x509_parser::prelude::FromDer;
    x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
        .map(|_| ())
        .map_err(|e| e.to_string())
}

/// `example.com/name`: who signs.
pub fn signer_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, rest] = parts[..] else {
        errors.invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        );
        return;
    };
    for (part, labels) in [(domain, domain.split('.')), (rest, rest.split('.'))] {
        for label in labels {
            let messages = check::dns1123_label(label);
            if !messages.is_empty() {
                for message in messages {
                    errors.invalid(path, part, format!("validating label {label:?}: {message}"));
                }
                break;
            }
        }
    }
    if !domain.contains('.') {
        errors.invalid(path, domain, "should be a domain with at least two segments separated by dots");
    }
}

fn conditions(errors: &mut Errors, request: &Value) {
    let status = Path::new("status");
    let list = status.child("conditions");
    let all = request.list("status.conditions");
    for (i, condition) in all.iter().enumerate() {
        let path = list.index(i);
        let kind = condition.text("type");
        if kind.is_empty() {
            errors.required(&path.child("type"), "");
        }
        let supported: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        match condition.text("status") {
            "" => errors.required(&path.child("status"), ""),
            value => errors.one_of(&path.child("status"), value, supported),
        }
        if all[..i].iter().any(|c| c.text("type") == kind) {
            errors.duplicate(&path.child("type"), kind);
        }
    }
    if of_kind(request, "Approved").next().is_some() && of_kind(request, "Denied").next().is_some() {
        errors.invalid(&list, "Denied", "Approved and Denied conditions are mutually exclusive");
    }
}

fn changes(new: &Value, old: &Value, decides: bool, issues: bool) -> Errors {
    let mut errors = Errors::new();
    conditions(&mut errors, new);
    let status = Path::new("status");
    let path = status.child("conditions");
    for kind in ["Approved", "Denied", "Failed"] {
        let (now, was): (Vec<&Value>, Vec<&Value>) =
            (of_kind(new, kind).collect(), of_kind(old, kind).collect());
        if now.len() < was.len() {
            errors.forbidden(&path, format!("updates may not remove a condition of type {kind:?}"));
        } else if !decides && kind != "Failed" {
            if now.len() > was.len() {
                errors.forbidden(&path, format!("updates may not add a condition of type {kind:?}"));
            } else if now != was {
                errors.forbidden(&path, format!("updates may not modify a condition of type {kind:?}"));
            }
        }
    }
    let (now, was) = (new.text("status.certificate"), old.text("status.certificate"));
    if now != was {
        let path = status.child("certificate");
        if !issues {
            errors.forbidden(&path, "updates may not set certificate content");
        } else if !was.is_empty() {
            errors.forbidden(&path, "updates may not modify existing certificate content");
        } else if let Err(why) = parse_certificates(now) {
            errors.invalid(&path, "<certificate data>", why);
        }
    }
    errors
}

fn parse_certificates(text: &str) -> Result<(), String> {
    let bytes = STANDARD.decode(text).map_err(|e| e.to_string())?;
    let mut blocks = 0;
    for pem in x509_parser::pem::Pem::iter_from_buffer(&bytes) {
        let pem = pem.map_err(|e| e.to_string())?;
        if pem.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", pem.label));
        }
        pem.parse_x509().map_err(|e| e.to_string())?;
        blocks += 1;
    }
    if blocks == 0 { Err("must contain at least one CERTIFICATE PEM block".to_owned()) } else { Ok(()) }
}
