//! API services.

use serde_json::Value;

use crate::check::{self, Report};
use crate::meta;
use crate::path::Path;
use crate::strategy::{Errors, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "apiregistration.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "apiservices",
    revalidates: true,
    first_status: r#"{}"#,
    name: meta::path_segment_name,
    validate,
    validate_update: |new, _| validate(new),
    validate_status_update: |new, _| {
        let mut errors = Errors::new();
        let status = Path::new("status");
        let list = status.child("conditions");
        for (i, condition) in new.list("status.conditions").iter().enumerate() {
            let path = list.index(i);
            errors.one_of(&path.child("status"), condition.text("status"), &["True", "False", "Unknown"]);
        }
        errors
    },
    defaults: |service| {
        if let Some(backend) = service.find_mut("spec.service") {
            backend.put_default("port", 443);
        }
    },
    namespaced: false,
    unconditional_update: false,
    status_keeps_metadata: true,
    reset_by_status: SPEC_AND_METADATA,
    ..WITH_STATUS
}];

fn validate(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = service.at("spec");
    let (group, version) = (spec.text("group"), spec.text("version"));
    let name = service.text("metadata.name");
    let required = format!("{version}.{group}");
    if name != required {
        let metadata = Path::new("metadata");
        errors.invalid(
            &metadata.child("name"),
            name,
            format!("must be `spec.version+\".\"+spec.group`: {required:?}"),
        );
    }
    if group.is_empty() {
        if version != "v1" {
            errors.required(
                &path.child("group"),
                "only v1 may have an empty group and it better be legacy kube",
            );
        }
    } else {
        errors.invalid_each(&path.child("group"), group, check::dns1123_subdomain(group));
    }
    errors.invalid_each(&path.child("version"), version, check::dns1035_label(version));
    for (name, max) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let value = spec.int(name);
        if !(1..=max).contains(&value) {
            errors.invalid(&path.child(name), value, format!("must be positive and less than {max}"));
        }
    }
    let bundle = spec.text("caBundle");
    let skip = spec.flag("insecureSkipTLSVerify");
    let skip_path = path.child("insecureSkipTLSVerify");
    if !spec.has("service") {
        if !bundle.is_empty() {
            errors.invalid(
                &path.child("caBundle"),
                format!("{} bytes", bundle.len() / 4 * 3),
                "local APIServices may not have a caBundle",
            );
        }
        if skip {
            errors.invalid(&skip_path, true, "local APIServices may not have insecureSkipTLSVerify");
        }
        return errors;
    }
    let at = path.child("service");
    for name in ["namespace", "name"] {
        if spec.at("service").text(name).is_empty() {
            errors.required(&at.child(name), "");
        }
    }
    let port = spec.int("service.port");
    if let Some(message) = check::port_number(port) {
        errors.invalid(&at.child("port"), port, format!("port is not valid: {message}"));
    }
    if skip && !bundle.is_empty() {
        errors.invalid(&skip_path, true, "may not be true if caBundle is present");
    }
    errors
}
