//! Dynamic resource allocation.

use serde_json::Value;

use crate::check::{self, Report};
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, FieldLabels, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "resource.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "resourceclaims",
        first_status: "{}",
        validate: validate_claim,
        validate_update: fixed_spec,
        validate_status_update: validate_claim_status,
        defaults: |claim| requests(claim, "spec.devices.requests"),
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "resourceclaimtemplates",
        validate: validate_template,
        validate_update: fixed_spec,
        defaults: |template| {
            template.put_default("spec.metadata", serde_json::json!({}));
            requests(template, "spec.spec.devices.requests");
        },
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "deviceclasses",
        validate: validate_class,
        validate_update: |new, _| validate_class(new),
        namespaced: false,
        generation: &["spec"],
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "devicetaintrules",
        namespaced: false,
        generation: &["spec"],
        status_keeps_metadata: true,
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
    Rules {
        group: GROUP,
        resource: "resourceslices",
        defaults: |slice| slice.put_default("spec.pool.generation", 0),
        validate: validate_slice,
        validate_update: validate_slice_update,
        namespaced: false,
        generation: &["spec"],
        fields: |slice| ["spec.nodeName", "spec.driver"].map(|p| (p, slice.text(p).to_owned())).into(),
        field_labels: FieldLabels {
            labels: crate::core_v1::labels!["spec.nodeName", "spec.driver"],
            error: |version, label| {
                format!("field label not supported for {version}, Kind=ResourceSlice: {label}")
            },
        },
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "resourcepoolstatusrequests",
        namespaced: false,
        unconditional_update: false,
        status_keeps_metadata: true,
        ..WITH_STATUS
    },
];

/// A request is for exactly one device, where it does not say how many.
fn requests(holder: &mut Value, path: &str) {
    let count = |request: &mut Value| {
        request.put_default_text("allocationMode", "ExactCount");
        if request.text("allocationMode") == "ExactCount" && request.int("count") == 0 {
            request.put("count", 1);
        }
    };
    for request in holder.list_mut(path) {
        if let Some(exactly) = request.find_mut("exactly") {
            count(exactly);
        }
        request.list_mut("firstAvailable").for_each(count);
    }
}

const SPEC: Path<'static> = Path::new("spec");

/// `devices` of a claim: what is asked for, and what the answers must have in common.
fn devices(errors: &mut Errors, devices: &Value, path: &Path<'_>) {
    let all = devices.list("requests");
    let list = path.child("requests");
    let mut names: Vec<String> = vec![];
    for (i, request) in all.iter().enumerate() {
        let path = list.index(i);
        let name = request.text("name");
        if names.iter().any(|n| n == name) {
            errors.duplicate(&path, name);
        }
        names.push(name.to_owned());
        errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
        let choices = request.list("firstAvailable");
        match (request.has("exactly"), choices.is_empty()) {
            (false, true) => {
                errors.required(&path, "exactly one of `exactly` or `firstAvailable` is required")
            }
            (true, false) => errors.invalid(
                &path,
                Value::Null,
                "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
            ),
            (true, true) => one_request(errors, request.at("exactly"), &path.child("exactly")),
            (false, false) => {
                for (j, choice) in choices.iter().enumerate() {
                    let list = path.child("firstAvailable");
                    let path = list.index(j);
                    let own = choice.text("name");
                    errors.invalid_each(&path.child("name"), own, check::dns1123_label(own));
                    names.push(format!("{name}/{own}"));
                    one_request(errors, choice, &path);
                }
            }
        }
    }
    for (i, constraint) in devices.list("constraints").iter().enumerate() {
        let list = path.child("constraints");
        let path = list.index(i);
        known_requests(errors, constraint, &names, &path);
        let attribute = constraint.text("matchAttribute");
        if constraint.has("matchAttribute") && !attribute.contains('/') {
            errors.invalid(
                &path.child("matchAttribute"),
                attribute,
                "a fully qualified name must be a domain and a name separated by a slash",
            );
        }
    }
    for (i, config) in devices.list("config").iter().enumerate() {
        let list = path.child("config");
        let path = list.index(i);
        known_requests(errors, config, &names, &path);
        opaque(errors, config, &path);
    }
}

fn known_requests(errors: &mut Errors, holder: &Value, names: &[String], path: &Path<'_>) {
    let list = path.child("requests");
    for (i, name) in holder.list("requests").iter().enumerate() {
        let name = name.as_str().unwrap_or_default();
        if !names.iter().any(|n| n == name) {
            errors.invalid(
                &list.index(i),
                name,
                "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            );
        }
    }
}

fn one_request(errors: &mut Errors, request: &Value, path: &Path<'_>) {
    let class = request.text("deviceClassName");
    if class.is_empty() {
        errors.required(&path.child("deviceClassName"), "");
    } else {
        errors.invalid_each(&path.child("deviceClassName"), class, check::dns1123_subdomain(class));
    }
    selectors(errors, request, path);
    let count = request.int("count");
    match request.text("allocationMode") {
        "ExactCount" if count <= 0 => {
            errors.invalid(&path.child("count"), count, "must be greater than zero")
        }
        "All" if count != 0 => {
            errors.invalid(&path.child("count"), count, "must not be specified when allocationMode is 'All'")
        }
        mode => errors.one_of(&path.child("allocationMode"), mode, &["All", "ExactCount"]),
    }
}

fn selectors(errors: &mut Errors, holder: &Value, path: &Path<'_>) {
    for (i, selector) in holder.list("selectors").iter().enumerate() {
        let list = path.child("selectors");
        let item = list.index(i);
        let path = item.child("cel");
        if !selector.has("cel") {
            errors.required(&path, "");
        } else if selector.text("cel.expression").is_empty() {
            errors.required(&path.child("expression"), "");
        }
    }
}

fn opaque(errors: &mut Errors, config: &Value, path: &Path<'_>) {
    let path = path.child("opaque");
    if !config.has("opaque") {
        errors.required(&path, "");
        return;
    }
    driver(errors, config.text("opaque.driver"), &path.child("driver"));
    match config.at("opaque.parameters") {
        Value::Null => errors.required(&path.child("parameters"), ""),
        Value::Object(_) => {}
        _ => errors.invalid(&path.child("parameters"), "<value omitted>", "must be a JSON object"),
    }
}

fn driver(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
    } else if name.len() > 63 {
        errors.too_long(path, 63);
    }
    if !name.is_empty() {
        errors.invalid_each(path, name, check::dns1123_subdomain(&name.to_lowercase()));
    }
}

fn validate_claim(claim: &Value) -> Errors {
    let mut errors = Errors::new();
    devices(&mut errors, claim.at("spec.devices"), &SPEC.child("devices"));
    errors
}

fn fixed_spec(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    errors.immutable(&SPEC, new.at("spec"), old.at("spec"));
    errors
}

fn validate_claim_status(new: &Value, old: &Value) -> Errors {
    const RESERVED_MAX: usize = 256;
    let mut errors = Errors::new();
    let path = Path::new("status");
    let reserved = new.list("status.reservedFor");
    let list = path.child("reservedFor");
    if reserved.len() > RESERVED_MAX {
        errors.too_many(&list, reserved.len(), RESERVED_MAX);
    }
    for (i, consumer) in reserved.iter().enumerate() {
        for name in ["resource", "name", "uid"] {
            if consumer.text(name).is_empty() {
                errors.required(&list.index(i).child(name), "");
            }
        }
        if reserved[..i].iter().any(|r| r.at("uid") == consumer.at("uid")) {
            errors.duplicate(&list.index(i), consumer.text("uid"));
        }
    }
    if !reserved.is_empty() && !new.has("status.allocation") {
        errors.forbidden(&list, "may not be specified when `allocated` is not set");
    }
    let before = old.list("status.reservedFor");
    if new.has("metadata.deletionTimestamp") && reserved.iter().any(|r| !before.contains(r)) {
        errors.forbidden(
            &list,
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
        );
    }
    if new.has("status.allocation") && old.has("status.allocation") {
        errors.immutable(&path.child("allocation"), new.at("status.allocation"), old.at("status.allocation"));
    }
    errors
}

fn validate_template(template: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = SPEC.child("spec");
    devices(&mut errors, template.at("spec.spec.devices"), &spec.child("devices"));
    errors
}

fn validate_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    selectors(&mut errors, class.at("spec"), &SPEC);
    for (i, config) in class.list("spec.config").iter().enumerate() {
        let list = SPEC.child("config");
        opaque(&mut errors, config, &list.index(i));
    }
    errors
}

fn validate_slice(slice: &Value) -> Errors {
    const DEVICES_MAX: usize = 128;
    let mut errors = Errors::new();
    let spec = slice.at("spec");
    let places = [
        !spec.text("nodeName").is_empty(),
        spec.has("nodeSelector"),
        spec.flag("allNodes"),
        spec.flag("perDeviceNodeSelection"),
    ];
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    driver(&mut errors, spec.text("driver"), &SPEC.child("driver"));
    let pool = SPEC.child("pool");
    let name = spec.text("pool.name");
    if name.is_empty() {
        errors.required(&pool.child("name"), "");
    } else {
        for part in name.split('/') {
            errors.invalid_each(&pool.child("name"), part, check::dns1123_subdomain(part));
        }
    }
    errors.positive_value(&pool.child("resourceSliceCount"), spec.int("pool.resourceSliceCount"));
    errors.not_negative(&pool.child("generation"), spec.int("pool.generation"));
    match places.iter().filter(|p| **p).count() {
        0 => errors.required(&SPEC, ONE),
        1 => {}
        _ => errors.invalid(&SPEC, spec.clone(), format!("{ONE}, but multiple fields are set")),
    }
    let all = spec.list("devices");
    let list = SPEC.child("devices");
    if all.len() > DEVICES_MAX {
        errors.too_many(&list, all.len(), DEVICES_MAX);
    }
    let mut names: Vec<&str> = vec![];
    for (i, device) in all.iter().enumerate() {
        let name = device.text("name");
        if names.contains(&name) {
            errors.duplicate(&list.index(i), name);
        }
        names.push(name);
        errors.invalid_each(&list.index(i).child("name"), name, check::dns1123_label(name));
    }
    errors
}

fn validate_slice_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_slice(new);
    for name in ["driver", "nodeName"] {
        errors.immutable(&SPEC.child(name), new.at("spec").at(name), old.at("spec").at(name));
    }
    let pool = SPEC.child("pool");
    errors.immutable(&pool.child("name"), new.at("spec.pool.name"), old.at("spec.pool.name"));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_ask_for_what_they_name() {
        let one = json!({"name": "r", "exactly": {"deviceClassName": "c"}});
        for (devices, want) in [
            (json!({"requests": [one]}), None),
            (json!({"requests": [one, one]}), Some("spec.devices.requests[1]: Duplicate value: \"r\"")),
            (
                json!({"requests": [{"name": "r"}]}),
                Some(
                    "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
                ),
            ),
            (
                json!({"requests": [one], "constraints": [{"requests": ["q"], "matchAttribute": "a/b"}]}),
                Some(
                    "spec.devices.constraints[0].requests[0]: Invalid value: \"q\": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
                ),
            ),
        ] {
            let mut claim = json!({"spec": {"devices": devices}});
            requests(&mut claim, "spec.devices.requests");
            let got: Vec<String> = validate_claim(&claim).iter().map(ToString::to_string).collect();
            assert_eq!(got, Vec::from_iter(want), "{claim}");
        }
    }
}
