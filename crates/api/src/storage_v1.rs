//! Storage classes and what CSI drivers say of themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::persistent_volume::driver_name;
use crate::equality;
use crate::meta;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, Rules, SPEC_AND_METADATA, WITH_STATUS};
use crate::value::{Read, Write, quantity};

pub const GROUP: &str = "storage.k8s.io";

pub static RULES: &[Rules] = &[
    Rules {
        group: GROUP,
        resource: "storageclasses",
        revalidates: true,
        warnings: crate::advice::of_storage_class,
        validate: validate_class,
        validate_update: validate_class_update,
        defaults: class_defaults,
        namespaced: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "csidrivers",
        warnings: crate::advice::of_driver,
        // The feature is off by default.
        prepare_for_create: |driver| drop(driver.remove("spec.preventPodSchedulingIfMissing")),
        prepare_for_update: |new, old| {
            if !old.has("spec.preventPodSchedulingIfMissing") {
                new.remove("spec.preventPodSchedulingIfMissing");
            }
            // It counts changes, but not the creation.
            if !equality::same_at(new, old, "spec") {
                new.put("metadata.generation", old.int("metadata.generation") + 1);
            }
        },
        validate: validate_driver,
        validate_update: validate_driver_update,
        defaults: driver_defaults,
        namespaced: false,
        unconditional_update: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "csinodes",
        revalidates: true,
        validate: validate_node,
        validate_update: validate_node_update,
        namespaced: false,
        unconditional_update: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "csistoragecapacities",
        revalidates: true,
        warnings: crate::advice::of_storage_capacity,
        validate: validate_capacity,
        validate_update: validate_capacity_update,
        unconditional_update: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "volumeattributesclasses",
        revalidates: true,
        validate: validate_attributes_class,
        validate_update: validate_attributes_class_update,
        namespaced: false,
        ..DEFAULT
    },
    Rules {
        group: GROUP,
        resource: "volumeattachments",
        revalidates: true,
        validate: validate_attachment,
        validate_update: validate_attachment_update,
        namespaced: false,
        status_on_create: true,
        status_keeps_metadata: true,
        unconditional_update: false,
        prepare_for_create: |attachment| {
            attachment.remove("status");
            attachment.put("status.attached", false);
        },
        reset_by_status: SPEC_AND_METADATA,
        ..WITH_STATUS
    },
];

fn class_defaults(class: &mut Value) {
    class.put_default("reclaimPolicy", "Delete");
    class.put_default("volumeBindingMode", "Immediate");
}

fn driver_defaults(driver: &mut Value) {
    for (name, value) in [
        ("attachRequired", true),
        ("podInfoOnMount", false),
        ("storageCapacity", false),
        ("requiresRepublish", false),
        ("seLinuxMount", false),
    ] {
        driver.put_default(&format!("spec.{name}"), value);
    }
    driver.put_default("spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
    if driver.list("spec.volumeLifecycleModes").is_empty() {
        driver.put("spec.volumeLifecycleModes", vec!["Persistent"]);
    }
}

fn validate_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let provisioner = class.text("provisioner");
    if provisioner.is_empty() {
        errors.required(&Path::new("provisioner"), "");
    } else {
        let lower = provisioner.to_lowercase();
        errors.invalid_each(&Path::new("provisioner"), &lower, check::qualified_name(&lower));
    }
    let path = Path::new("parameters");
    let mut size = 0;
    for (key, value) in class.entries("parameters") {
        if key.is_empty() {
            errors.invalid(&path, "", "field can not be empty.");
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > 256 * 1024 {
        errors.too_long(&path, 256 * 1024);
    }
    if class.entries("parameters").count() > 512 {
        errors.too_long(&path, 512);
    }
    if class.has("reclaimPolicy") {
        errors.one_of(&Path::new("reclaimPolicy"), class.text("reclaimPolicy"), &["Delete", "Retain"]);
    }
    let mode = Path::new("volumeBindingMode");
    if class.has("volumeBindingMode") {
        errors.one_of(&mode, class.text("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
    } else {
        errors.required(&mode, "");
    }
    let terms = Path::new("allowedTopologies");
    let all = class.list("allowedTopologies");
    // What a term asks of each label, whatever the order.
    let asked = |term: &Value| -> BTreeMap<String, BTreeSet<String>> {
        let mut labels = BTreeMap::<_, BTreeSet<String>>::new();
        for expression in term.list("matchLabelExpressions") {
            let values = expression.list("values").iter().filter_map(|v| v.as_str().map(str::to_owned));
            labels.entry(expression.text("key").to_owned()).or_insert_with(|| values.collect());
        }
        labels
    };
    for (i, term) in all.iter().enumerate() {
        let item = terms.index(i);
        let path = item.child("matchLabelExpressions");
        let this = asked(term);
        // Upstream begins with as many empty terms as there are terms.
        let blank = if this.is_empty() { all.len() } else { 0 };
        for _ in 0..blank + all[..i].iter().filter(|before| asked(before) == this).count() {
            errors.duplicate(&path, "");
        }
        for (j, expression) in term.list("matchLabelExpressions").iter().enumerate() {
            let path = path.index(j);
            let key = expression.text("key");
            let (path, values) = {
                errors.invalid_each(&path.child("key"), key, check::qualified_name(key));
                (path.child("values"), expression.list("values"))
            };
            if values.is_empty() {
                errors.required(&path, "");
            }
            for (v, value) in values.iter().enumerate() {
                if values[..v].contains(value) {
                    errors.duplicate(&path.index(v), value.clone());
                }
            }
        }
    }
    errors
}

fn validate_class_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_class(new);
    if !equality::same_at(new, old, "parameters") {
        errors.invalid(&Path::new("parameters"), new.at("parameters").clone(), "field is immutable");
    }
    for name in ["provisioner", "reclaimPolicy"] {
        errors.immutable(&Path::new(name), new.at(name), old.at(name));
    }
    errors.immutable(
        &Path::new("volumeBindingMode"),
        new.at("volumeBindingMode"),
        old.at("volumeBindingMode"),
    );
    errors
}

fn validate_driver(driver: &Value) -> Errors {
    let mut errors = Errors::new();
    let name = driver.text("metadata.name");
    // What makes it no name of an object has been told.
    if check::dns1123_subdomain(name).is_empty() {
        driver_name(&mut errors, name, &Path::new("metadata").child("name"));
    }
    let path = Path::new("spec");
    let spec = driver.at("spec");
    for name in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if !spec.has(name) {
            errors.required(&path.child(name), "");
        }
    }
    errors.one_of(
        &path.child("fsGroupPolicy"),
        spec.text("fsGroupPolicy"),
        &["File", "None", "ReadWriteOnceWithFSType"],
    );
    let mut audiences: Vec<&str> = vec![];
    for (i, request) in spec.list("tokenRequests").iter().enumerate() {
        let list = path.child("tokenRequests");
        let path = list.index(i);
        let audience = request.text("audience");
        if audiences.contains(&audience) {
            errors.duplicate(&path.child("audience"), audience);
        }
        audiences.push(audience);
        if let Some(seconds) = request.maybe_int("expirationSeconds") {
            let path = path.child("expirationSeconds");
            if seconds < 600 {
                errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
            }
            if seconds > 1 << 32 {
                errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
            }
        }
    }
    if spec.has("serviceAccountTokenInSecrets") && spec.list("tokenRequests").is_empty() {
        errors.invalid(
            &path.child("serviceAccountTokenInSecrets"),
            spec.at("serviceAccountTokenInSecrets").clone(),
            "serviceAccountTokenInSecrets is set but no tokenRequests are specified",
        );
    }
    if let Some(seconds) =
        spec.maybe_int("nodeAllocatableUpdatePeriodSeconds").filter(|seconds| *seconds < 10)
    {
        let path = path.child("nodeAllocatableUpdatePeriodSeconds");
        errors.invalid(&path, seconds, "must be greater than or equal to 10 seconds");
    }
    for mode in spec.list("volumeLifecycleModes") {
        errors.one_of(
            &path.child("volumeLifecycleModes"),
            mode.as_str().unwrap_or_default(),
            &["Persistent", "Ephemeral"],
        );
    }
    errors
}

fn validate_driver_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_driver(new);
    let path = Path::new("spec");
    for name in ["attachRequired", "volumeLifecycleModes"] {
        errors.immutable(&path.child(name), new.at("spec").at(name), old.at("spec").at(name));
    }
    errors
}

const NODE_ID_MAX_BYTES: usize = 256;

fn validate_node(node: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::new("spec");
    let path = spec.child("drivers");
    let mut names: Vec<&str> = vec![];
    for (i, driver) in node.list("spec.drivers").iter().enumerate() {
        let path = path.index(i);
        let (name, id) = (driver.text("name"), driver.text("nodeID"));
        driver_name(&mut errors, name, &path.child("name"));
        if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        }
        names.push(name);
        if id.is_empty() {
            errors.required(&path.child("nodeID"), "");
        }
        if id.len() > NODE_ID_MAX_BYTES {
            let why = format!("must be {NODE_ID_MAX_BYTES} characters or less");
            errors.invalid(&path.child("nodeID"), id, why);
        }
        errors.not_negative(&path.child("allocatable").child("count"), driver.int("allocatable.count"));
        let keys: Vec<&str> = driver.list("topologyKeys").iter().filter_map(Value::as_str).collect();
        for (j, key) in keys.iter().enumerate() {
            if key.is_empty() {
                errors.required(&path, "");
            }
            if keys[..j].contains(key) {
                errors.duplicate(&path, *key);
            }
            errors.invalid_each(&path, key, check::qualified_name(key));
        }
    }
    errors
}

fn validate_node_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_node(new);
    let spec = Path::new("spec");
    let path = spec.child("drivers");
    for was in old.list("spec.drivers") {
        for now in new.list("spec.drivers").iter().filter(|now| now.text("name") == was.text("name")) {
            let (mut now, mut was) = (now.clone(), was.clone());
            now.remove("allocatable");
            was.remove("allocatable");
            errors.immutable(&path, &now, &was);
        }
    }
    errors
}

fn validate_attachment(attachment: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let spec = attachment.at("spec");
    driver_name(&mut errors, spec.text("attacher"), &path.child("attacher"));
    let source = path.child("source");
    match (spec.has("source.persistentVolumeName"), spec.has("source.inlineVolumeSpec")) {
        (false, false) => {
            errors.required(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName");
        }
        (true, true) => {
            errors.forbidden(&source, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
        }
        _ => {}
    }
    if spec.has("source.inlineVolumeSpec") && !spec.has("source.persistentVolumeName") {
        let (inline, path) = (spec.at("source.inlineVolumeSpec"), source.child("inlineVolumeSpec"));
        crate::core_v1::persistent_volume::volume_spec(&mut errors, inline, "", true, &path);
    }
    if spec.has("source.persistentVolumeName") {
        let (name, path) = (spec.text("source.persistentVolumeName"), source.child("persistentVolumeName"));
        if name.is_empty() {
            errors.required(&path, "must specify non empty persistentVolumeName");
        }
        errors.invalid_each(&path, name, check::dns1123_subdomain(name));
    }
    let node = spec.text("nodeName");
    errors.invalid_each(&path.child("nodeName"), node, check::dns1123_subdomain(node));
    errors
}

fn validate_attachment_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_attachment(new);
    if !equality::same_at(new, old, "spec") {
        errors.invalid(&Path::new("spec"), new.at("spec").clone(), "field is immutable");
    }
    errors
}

fn validate_capacity(capacity: &Value) -> Errors {
    let mut errors = Errors::new();
    let class = capacity.text("storageClassName");
    errors.invalid_each(&Path::new("storageClassName"), class, check::dns1123_subdomain(class));
    meta::label_selector(&mut errors, capacity.at("nodeTopology"), &Path::new("nodeTopology"));
    if let Some(q) = quantity(capacity.at("capacity")).filter(|q| q.sign() < 0) {
        errors.invalid(&Path::new("capacity"), q.to_string(), check::NOT_NEGATIVE);
    }
    errors
}

fn validate_capacity_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_capacity(new);
    for name in ["nodeTopology", "storageClassName"] {
        errors.immutable(&Path::new(name), new.at(name), old.at(name));
    }
    errors
}

fn validate_attributes_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let driver = class.text("driverName").to_lowercase();
    let path = Path::new("driverName");
    match driver.as_str() {
        "" => errors.required(&path, ""),
        driver => errors.invalid_each(&path, driver, check::qualified_name(driver)),
    }
    if class.entries("parameters").any(|(key, _)| key.is_empty()) {
        errors.invalid(&Path::new("parameters"), "", "field can not be empty.");
    }
    if class.entries("parameters").next().is_none() {
        errors.required(&Path::new("parameters"), "must contain at least one key/value pair");
    }
    errors
}

fn validate_attributes_class_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if new.text("driverName") != old.text("driverName") {
        errors.forbidden(&Path::new("driverName"), "updates to driverName are forbidden.");
    }
    if !equality::same_at(new, old, "parameters") {
        errors.forbidden(&Path::new("parameters"), "updates to parameters are forbidden.");
    }
    errors.extend(validate_attributes_class(new));
    errors
}
