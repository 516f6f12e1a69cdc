//! Persistent volumes and claims.

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::pod::{scheduling, volume};
use crate::core_v1::resources;
use crate::equality;
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write, quantity};

/// What the older of the two fields never took is dropped from it without a word.
pub fn drop_other_sources(claim: &mut Value) {
    let source = claim.at("spec.dataSource");
    let known = match source.text("apiGroup") {
        "" => source.text("kind") == "PersistentVolumeClaim",
        group => group == "snapshot.storage.k8s.io" && source.text("kind") == "VolumeSnapshot",
    };
    if !source.is_null() && !known && claim.at("spec.dataSourceRef").is_null() {
        claim.remove("spec.dataSource");
    }
}

/// A data source said in one of the two fields is said in both, where both can say it.
pub fn prepare_claim(claim: &mut Value) {
    // Sources in other namespaces are behind a gate that is off.
    if !claim.text("spec.dataSourceRef.namespace").is_empty() {
        claim.remove("spec.dataSourceRef");
    }
    let (source, reference) = (claim.at("spec.dataSource").clone(), claim.at("spec.dataSourceRef").clone());
    if !source.is_null() && reference.is_null() {
        claim.put("spec.dataSourceRef", source);
    } else if source.is_null() && !reference.is_null() && reference.text("namespace").is_empty() {
        let mut source = reference;
        source.remove("namespace");
        claim.put("spec.dataSource", source);
    }
}

pub fn defaults(volume: &mut Value) {
    volume.put_default_text("status.phase", "Pending");
    volume.put_default_text("spec.persistentVolumeReclaimPolicy", "Retain");
    volume.put_default("spec.volumeMode", "Filesystem");
    if let Some(spec) = volume.find_mut("spec") {
        crate::core_v1::pod::defaults::volume_source(spec);
        if let Some(path) = spec.find_mut("hostPath") {
            path.put_default("type", "");
        }
    }
}

pub fn prepare_for_create(volume: &mut Value) {
    volume.put("status.phase", "Pending");
    if volume.has("metadata.creationTimestamp") {
        let now = volume.at("metadata.creationTimestamp").clone();
        volume.put("status.lastPhaseTransitionTime", now);
    }
}

/// When the phase changed, where the client does not know.
pub fn stamp_phase(new: &mut Value, old: &Value, now: &str) {
    const AT: &str = "status.lastPhaseTransitionTime";
    let same_phase = new.at("status.phase") == old.at("status.phase");
    if same_phase && !new.has(AT) {
        new.copy_from(old, AT);
    } else if !same_phase && (!new.has(AT) || new.at(AT) == old.at(AT)) {
        new.put(AT, now);
    }
}

pub fn claim_defaults(claim: &mut Value) {
    claim.put_default_text("status.phase", "Pending");
    claim_spec_defaults(claim);
}

/// What claims and templates of claims share.
pub fn claim_spec_defaults(claim: &mut Value) {
    claim.put_default("spec.volumeMode", "Filesystem");
}

/// Names of CSI drivers.
pub fn driver_name(errors: &mut Errors, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(path, 63);
    }
    errors.invalid_each(path, name, check::dns1123_subdomain(&name.to_lowercase()));
}

fn access_modes(errors: &mut Errors, modes: &[Value], path: &Path<'_>) {
    let supported = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for mode in modes {
        errors.one_of(path, mode.as_str().unwrap_or_default(), &supported);
    }
    let alone = modes.iter().any(|m| m == "ReadWriteOncePod");
    if alone && modes.iter().any(|m| m != "ReadWriteOncePod") {
        errors.forbidden(path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn positive_amount(errors: &mut Errors, value: &Value, path: &Path<'_>) {
    if let Some(q) = quantity(value)
        && q.sign() <= 0
    {
        errors.invalid(path, q.to_string(), "must be greater than zero");
    }
}

fn class_name(errors: &mut Errors, spec: &Value, name: &str, path: &Path<'_>) {
    let class = spec.text(name);
    if !class.is_empty() {
        errors.invalid_each(&path.child(name), class, check::dns1123_subdomain(class));
    }
}

/// The spec of a claim or of a template of claims.
pub fn claim_spec(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let modes = spec.list("accessModes");
    if modes.is_empty() {
        errors.required(&path.child("accessModes"), "at least 1 access mode is required");
    }
    meta::label_selector(errors, spec.at("selector"), &path.child("selector"));
    access_modes(errors, modes, &path.child("accessModes"));
    let resources = path.child("resources");
    match spec.at("resources.requests.storage") {
        Value::Null => errors.required(&resources.key("storage"), ""),
        storage => positive_amount(errors, storage, &resources.key("storage")),
    }
    class_name(errors, spec, "storageClassName", path);
    if spec.has("volumeMode") {
        errors.one_of(&path.child("volumeMode"), spec.text("volumeMode"), &["Block", "Filesystem"]);
    }
    let (source, reference) = (spec.get_or_null("dataSource"), spec.get_or_null("dataSourceRef"));
    for name in ["dataSource", "dataSourceRef"] {
        let source = spec.get_or_null(name);
        if source.is_null() {
            continue;
        }
        let path = path.child(name);
        for member in ["name", "kind"] {
            if source.text(member).is_empty() {
                errors.required(&path.child(member), "");
            }
        }
        if source.text("apiGroup").is_empty() && source.text("kind") != "PersistentVolumeClaim" {
            errors.invalid(
                &path,
                source.text("kind"),
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            );
        }
        let group = source.text("apiGroup");
        if !group.is_empty() {
            errors.invalid_each(&path.child("apiGroup"), group, check::dns1123_subdomain(group));
        }
    }
    if !source.is_null() && !reference.is_null() && source != reference {
        errors.invalid(path, spec.clone(), "must match dataSourceRef");
    }
    class_name(errors, spec, "volumeAttributesClassName", path);
}

pub fn validate_claim(claim: &Value) -> Errors {
    let mut errors = Errors::new();
    claim_spec(&mut errors, claim.at("spec"), &Path::new("spec"));
    errors
}

pub fn validate_claim_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_claim(new);
    // Groups went unchecked once, and claims that have a source may keep theirs.
    if old.has("spec.dataSource") || old.has("spec.dataSourceRef") {
        errors.retain(|error| {
            !matches!(error.path.as_str(), "spec.dataSource.apiGroup" | "spec.dataSourceRef.apiGroup")
        });
    }
    let spec_path = Path::new("spec");
    let bound = new.text("status.phase") == "Bound";
    let (mut now, was) = (new.at("spec").clone(), old.at("spec"));
    if was.text("volumeName").is_empty() {
        now.remove("volumeName");
    }
    // A class may be given to a claim that had none.
    if !was.has("storageClassName") {
        now.remove("storageClassName");
    }
    if bound {
        now.copy_from(was, "resources.requests.storage");
        now.copy_from(was, "volumeAttributesClassName");
    }
    if !equality::same(&now, was) {
        errors.forbidden(
            &spec_path,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let size = |v: &Value, path: &str| quantity(v.at(path)).unwrap_or_default();
    let now = size(new, "spec.resources.requests.storage");
    if now < size(old, "spec.resources.requests.storage") && now <= size(old, "status.capacity.storage") {
        let resources = spec_path.child("resources");
        errors.forbidden(
            &resources.child("requests").child("storage"),
            "field can not be less than status.capacity",
        );
    }
    errors.immutable(&Path::new("volumeMode"), new.at("spec.volumeMode"), was.at("volumeMode"));
    if old.has("status.currentVolumeAttributesClassName") {
        let path = spec_path.child("volumeAttributesClassName");
        if !new.has("spec.volumeAttributesClassName") {
            errors.forbidden(
                &path,
                "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil",
            );
        } else if new.text("spec.volumeAttributesClassName").is_empty() {
            errors.forbidden(
                &path,
                "update to empty string is forbidden when status.currentVolumeAttributesClassName is not nil",
            );
        }
    }
    errors
}

pub fn validate_claim_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::new("status");
    let path = status.child("capacity");
    for (resource, value) in new.entries("status.capacity") {
        if let Some(q) = quantity(value).filter(|q| q.sign() < 0) {
            errors.invalid(&path.key(resource), q.to_string(), "must be a valid resource quantity");
        }
    }
    let stored = |errors: &mut Errors, resource: &str, path: &Path<'_>| {
        let wrong = check::qualified_name(resource);
        let native = resources::is_native(resource) && resource != "storage";
        let known = wrong.is_empty() && !native;
        if wrong.is_empty() && native {
            errors.not_supported(path, resource, &["storage"]);
        }
        errors.invalid_each(path, resource, wrong);
        known
    };
    let path = status.child("allocatedResourceStatuses");
    for (resource, state) in new.entries("status.allocatedResourceStatuses") {
        stored(&mut errors, resource, &path);
        if !state.as_str().is_some_and(|state| RESIZES.contains(&state)) {
            errors.not_supported(&path, resource.as_str(), &RESIZES);
        }
    }
    let path = status.child("allocatedResources");
    for (resource, value) in new.entries("status.allocatedResources") {
        if stored(&mut errors, resource, &path) {
            match quantity(value).filter(|q| q.sign() < 0) {
                Some(q) => {
                    let why = "must be a valid resource quantity";
                    errors.invalid(&path.key(resource), q.to_string(), why);
                }
                None => resources::amount(&mut errors, "storage", value, &path.key(resource)),
            }
        }
    }
    errors
}

/// How far a claim's growth has come.
const RESIZES: [&str; 5] = [
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
    "NodeResizePending",
];

/// Where the bytes of a persistent volume are.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

pub fn validate_volume(volume: &Value) -> Errors {
    let mut errors = Errors::new();
    volume_spec(&mut errors, volume.at("spec"), volume.text("metadata.name"), false, &Path::new("spec"));
    errors
}

/// The spec of a volume of that name, or (`inline`) of one that only an attachment knows.
pub fn volume_spec(errors: &mut Errors, spec: &Value, name: &str, inline: bool, path: &Path<'_>) {
    const INLINE: &str = "may not be specified in the context of inline volumes";
    if inline {
        if spec.has("claimRef") {
            errors.forbidden(&path.child("claimRef"), INLINE);
        }
        if spec.entries("capacity").next().is_some() {
            errors.forbidden(&path.child("capacity"), INLINE);
        }
        if !spec.has("csi") {
            errors.required(&path.child("csi"), "has to be specified in the context of inline volumes");
        }
    }
    let modes = spec.list("accessModes");
    if modes.is_empty() {
        errors.required(&path.child("accessModes"), "");
    }
    access_modes(errors, modes, &path.child("accessModes"));
    let policy = spec.text("persistentVolumeReclaimPolicy");
    let policy_path = path.child("persistentVolumeReclaimPolicy");
    let affinity_path = path.child("nodeAffinity");
    let affinity = spec.at("nodeAffinity");
    if inline {
        if !matches!(policy, "" | "Retain") {
            errors.forbidden(&policy_path, "may only be Retain in the context of inline volumes");
        }
        if !affinity.is_null() {
            errors.forbidden(&affinity_path, INLINE);
        }
    } else {
        let capacity = path.child("capacity");
        let amounts = spec.entries("capacity").count();
        if amounts == 0 {
            errors.required(&capacity, "");
        }
        if !spec.has("capacity.storage") || amounts > 1 {
            errors.not_supported(&capacity, spec.at("capacity").clone(), &["storage"]);
        }
        for (resource, value) in spec.entries("capacity") {
            positive_amount(errors, value, &capacity.key(resource));
        }
        if !policy.is_empty() {
            errors.one_of(&policy_path, policy, &["Delete", "Recycle", "Retain"]);
        }
        if !affinity.is_null() {
            match affinity.at("required") {
                Value::Null => {
                    errors
                        .required(&affinity_path.child("required"), "must specify required node constraints");
                }
                required => scheduling::node_selector(errors, required, &affinity_path.child("required")),
            }
        }
    }
    volume_source(errors, spec, name, path);
    if spec.text("hostPath.path") == "/" && policy == "Recycle" {
        errors.forbidden(&policy_path, "may not be 'recycle' for a hostPath mount of '/'");
    }
    if inline {
        if !spec.text("storageClassName").is_empty() {
            errors.forbidden(&path.child("storageClassName"), INLINE);
        }
        if !matches!(spec.text("volumeMode"), "Filesystem") && spec.has("volumeMode") {
            let mode = "may not specify volumeMode other than Filesystem in the context of inline volumes";
            errors.forbidden(&path.child("volumeMode"), mode);
        }
    } else {
        class_name(errors, spec, "storageClassName", path);
        if spec.has("volumeMode") {
            errors.one_of(&path.child("volumeMode"), spec.text("volumeMode"), &["Block", "Filesystem"]);
        }
    }
    if spec.has("volumeAttributesClassName") && !inline {
        if spec.text("volumeAttributesClassName").is_empty() {
            errors.required(&path.child("volumeAttributesClassName"), "an empty string is disallowed");
        } else {
            class_name(errors, spec, "volumeAttributesClassName", path);
        }
        if !spec.has("csi") {
            errors.required(&path.child("csi"), "has to be specified when using volumeAttributesClassName");
        }
    }
}

fn volume_source(errors: &mut Errors, spec: &Value, name: &str, path: &Path<'_>) {
    let mut found = false;
    for kind in SOURCES {
        let source = spec.get_or_null(kind);
        if source.is_null() {
            continue;
        }
        // Of this one upstream does not mind a second source.
        if found && kind != "flexVolume" {
            errors
                .forbidden(&path.child(volume::second_name(kind)), "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        let spec_path = path;
        let path = path.child(volume::first_name(kind));
        match kind {
            "hostPath" => volume::host_path(errors, source, &path),
            "nfs" => volume::nfs(errors, source, &path),
            "local" => {
                if source.text("path").is_empty() {
                    errors.required(&path.child("path"), "");
                } else {
                    volume::no_backsteps(errors, source.text("path"), &path.child("path"));
                }
                if !spec.has("nodeAffinity") {
                    errors.required(&spec_path.child("nodeAffinity"), "Local volume requires node affinity");
                }
            }
            "csi" => {
                driver_name(errors, source.text("driver"), &path.child("driver"));
                if source.text("volumeHandle").is_empty() {
                    errors.required(&path.child("volumeHandle"), "");
                }
                for reference in [
                    "controllerPublishSecretRef",
                    "controllerExpandSecretRef",
                    "nodePublishSecretRef",
                    "nodeExpandSecretRef",
                ] {
                    if !source.has(reference) {
                        continue;
                    }
                    let path = path.child(reference);
                    for (part, rule) in [
                        ("name", check::dns1123_subdomain as fn(&str) -> Vec<String>),
                        ("namespace", check::dns1123_label),
                    ] {
                        match source.at(reference).text(part) {
                            "" => errors.required(&path.child(part), ""),
                            value => errors.invalid_each(&path.child(part), value, rule(value)),
                        }
                    }
                }
            }
            _ => volume::legacy(errors, kind, source, Some(name), &path),
        }
    }
    if !found {
        errors.required(path, "must specify a volume type");
    }
}

pub fn validate_volume_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_volume(new);
    let spec = Path::new("spec");
    let mut now = new.at("spec").clone();
    if !old.has("spec.csi.controllerExpandSecretRef") {
        now.remove("csi.controllerExpandSecretRef");
    }
    if SOURCES.iter().any(|kind| !equality::same_at(&now, old.at("spec"), kind)) {
        errors.forbidden(
            &spec.child("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    errors.immutable(&Path::new("volumeMode"), new.at("spec.volumeMode"), old.at("spec.volumeMode"));
    if old.has("spec.nodeAffinity") && !equality::same_at(new, old, "spec.nodeAffinity") {
        errors.invalid(
            &Path::new("nodeAffinity"),
            new.at("spec.nodeAffinity").clone(),
            "field is immutable, except for updating from beta label to GA",
        );
    }
    if old.has("spec.volumeAttributesClassName") && !new.has("spec.volumeAttributesClassName") {
        errors.forbidden(
            &spec.child("volumeAttributesClassName"),
            "update from non-nil value to nil is forbidden",
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn claims() {
        let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(texts(&validate_claim(&claim)), Vec::<String>::new());
        assert_eq!(
            texts(&validate_claim(&json!({"spec": {"accessModes": ["X"]}}))),
            [
                "spec.accessModes: Unsupported value: \"X\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.resources[storage]: Required value",
            ]
        );
        let mut bigger = claim.clone();
        bigger["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        assert_eq!(validate_claim_update(&bigger, &claim).len(), 1);
        bigger["status"] = json!({"phase": "Bound"});
        assert_eq!(texts(&validate_claim_update(&bigger, &claim)), Vec::<String>::new());
    }

    #[test]
    fn volumes() {
        let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/x"}}});
        assert_eq!(
            texts(&validate_volume(&volume)),
            ["spec.nodeAffinity: Required value: Local volume requires node affinity"]
        );
    }
}
