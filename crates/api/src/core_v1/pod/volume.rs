//! Volumes of pods.

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::persistent_volume;
use crate::meta;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, quantity};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// In the order in which a second source is blamed.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "storageos",
    "projected",
    "portworxVolume",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// Checks all; what is wrong with a volume makes mounts of it fail too, so the good ones are returned.
pub fn validate<'a>(
    errors: &mut Errors,
    volumes: &'a [Value],
    pod_name: &str,
    is_pod: bool,
    path: &Path<'_>,
) -> Vec<&'a Value> {
    let mut good: Vec<&Value> = vec![];
    let mut names: Vec<&str> = vec![];
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.index(i);
        let before = errors.len();
        source(errors, volume, is_pod, &path);
        let name = volume.text("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            errors.invalid_each(&path.child("name"), name, check::dns1123_label(name));
        }
        if names.contains(&name) {
            errors.duplicate(&path.child("name"), name);
        }
        if errors.len() == before {
            names.push(name);
            good.push(volume);
        }
        let claim = volume.text("persistentVolumeClaim.claimName");
        let made = !pod_name.is_empty()
            && volumes
                .iter()
                .any(|v| v.has("ephemeral") && claim == format!("{pod_name}-{}", v.text("name")));
        if made {
            errors.invalid(
                &path.child("persistentVolumeClaim").child("claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    good
}

fn source(errors: &mut Errors, volume: &Value, is_pod: bool, path: &Path<'_>) {
    let mut found = false;
    for kind in SOURCES {
        let source = volume.get_or_null(kind);
        if source.is_null() {
            continue;
        }
        // Upstream names this field by what the volume was called first.
        let path = path.child(if kind == "gcePersistentDisk" { "persistentDisk" } else { kind });
        if found {
            errors.forbidden(&path, "may not specify more than 1 volume type");
        } else {
            found = true;
            one_source(errors, kind, source, is_pod, &path);
        }
    }
    if !found {
        errors.required(path, "must specify a volume type");
    }
}

fn require(errors: &mut Errors, source: &Value, names: &[&str], path: &Path<'_>) {
    for name in names {
        if source.text(name).is_empty() {
            errors.required(&path.child(name), "");
        }
    }
}

fn mode(errors: &mut Errors, source: &Value, name: &str, path: &Path<'_>) {
    if let Some(mode) = source.maybe_int(name)
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(&path.child(name), mode, MODE);
    }
}

fn one_source(errors: &mut Errors, kind: &str, source: &Value, is_pod: bool, path: &Path<'_>) {
    match kind {
        "emptyDir" if quantity(source.get_or_null("sizeLimit")).is_some_and(|q| q.sign() < 0) => {
            errors.forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
        "hostPath" => host_path(errors, source, path),
        "secret" => {
            require(errors, source, &["secretName"], path);
            mode(errors, source, "defaultMode", path);
            items(errors, source, path);
        }
        "configMap" => {
            require(errors, source, &["name"], path);
            mode(errors, source, "defaultMode", path);
            items(errors, source, path);
        }
        "nfs" => nfs(errors, source, path),
        "persistentVolumeClaim" => require(errors, source, &["claimName"], path),
        "downwardAPI" => {
            mode(errors, source, "defaultMode", path);
            for file in source.list("items") {
                downward_file(errors, file, path);
            }
        }
        "projected" => projected(errors, source, path),
        "csi" => {
            persistent_volume::driver_name(errors, source.text("driver"), &path.child("driver"));
            if source.has("nodePublishSecretRef") && source.text("nodePublishSecretRef.name").is_empty() {
                errors.required(&path.child("nodePublishSecretRef").child("name"), "");
            }
        }
        "ephemeral" => match source.get_or_null("volumeClaimTemplate") {
            Value::Null => errors.required(&path.child("volumeClaimTemplate"), ""),
            template => {
                let path = path.child("volumeClaimTemplate");
                persistent_volume::claim_spec(errors, template.at("spec"), &path.child("spec"));
            }
        },
        "image" => {
            if is_pod {
                require(errors, source, &["reference"], path);
            }
            let policy = source.text("pullPolicy");
            if !policy.is_empty() {
                errors.one_of(&path.child("pullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
            }
        }
        "gcePersistentDisk"
        | "awsElasticBlockStore"
        | "cinder"
        | "cephfs"
        | "rbd"
        | "azureDisk"
        | "iscsi"
        | "fc"
        | "quobyte"
        | "storageos" => legacy(errors, kind, source, path),
        "gitRepo" => require(errors, source, &["repository"], path),
        "glusterfs" => require(errors, source, &["endpoints", "path"], path),
        "azureFile" => require(errors, source, &["secretName", "shareName"], path),
        "vsphereVolume" => require(errors, source, &["volumePath"], path),
        "flexVolume" => require(errors, source, &["driver"], path),
        "photonPersistentDisk" => require(errors, source, &["pdID"], path),
        "portworxVolume" => require(errors, source, &["volumeID"], path),
        "scaleIO" => require(errors, source, &["gateway", "system", "volumeName"], path),
        _ => {}
    }
}

/// Volumes of the plugins that once were part of the kubelet.
pub fn legacy(errors: &mut Errors, kind: &str, source: &Value, path: &Path<'_>) {
    let partition = |errors: &mut Errors| {
        let partition = source.int("partition");
        if !(0..=255).contains(&partition) {
            errors.invalid(&path.child("partition"), partition, "must be between 0 and 255, inclusive");
        }
    };
    let some = |errors: &mut Errors, list: &str| {
        if source.list(list).is_empty() {
            errors.required(&path.child(list), "");
        }
    };
    let lun = |errors: &mut Errors| {
        let lun = source.int("lun");
        if !(0..=255).contains(&lun) {
            errors.invalid(&path.child("lun"), lun, "must be between 0 and 255, inclusive");
        }
    };
    match kind {
        "gcePersistentDisk" => {
            require(errors, source, &["pdName"], path);
            partition(errors);
        }
        "awsElasticBlockStore" => {
            require(errors, source, &["volumeID"], path);
            partition(errors);
        }
        "cinder" => require(errors, source, &["volumeID"], path),
        "cephfs" => some(errors, "monitors"),
        "rbd" => {
            some(errors, "monitors");
            require(errors, source, &["image"], path);
        }
        "iscsi" => {
            require(errors, source, &["targetPortal", "iqn"], path);
            let iqn = source.text("iqn");
            if !iqn.is_empty() && !["iqn", "eui", "naa"].iter().any(|p| iqn.starts_with(p)) {
                errors.invalid(
                    &path.child("iqn"),
                    iqn,
                    "must be valid format starting with iqn, eui, or naa",
                );
            }
            lun(errors);
            if (source.flag("chapAuthDiscovery") || source.flag("chapAuthSession"))
                && !source.has("secretRef")
            {
                errors.required(&path.child("secretRef"), "");
            }
        }
        "fc" => {
            let (names, ids) = (source.list("targetWWNs"), source.list("wwids"));
            let field = path.child("targetWWNs");
            if names.is_empty() && ids.is_empty() {
                errors.required(&field, "must specify either targetWWNs or wwids, but not both");
            } else if !names.is_empty() && !ids.is_empty() {
                let both = "targetWWNs and wwids can not be specified simultaneously";
                errors.invalid(&field, source.at("targetWWNs").clone(), both);
            }
            if !names.is_empty() && !source.has("lun") {
                errors.required(&path.child("lun"), "lun is required if targetWWNs is specified");
            } else if !names.is_empty() {
                lun(errors);
            }
        }
        "azureDisk" => {
            require(errors, source, &["diskName", "diskURI"], path);
            let (uri, kind) = (source.text("diskURI"), source.text("kind"));
            if source.has("cachingMode") {
                let mode = source.text("cachingMode");
                errors.one_of(&path.child("cachingMode"), mode, &["None", "ReadOnly", "ReadWrite"]);
            }
            if source.has("kind") {
                errors.one_of(&path.child("kind"), kind, &["Dedicated", "Managed", "Shared"]);
                let (start, shape) = if kind == "Managed" {
                    let disk = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/";
                    ("/subscriptions/", format!("{disk}{{disk-id}}"))
                } else {
                    let blob =
                        "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
                    ("https://", blob.to_owned())
                };
                if !uri.starts_with(start) {
                    errors.not_supported(&path.child("diskURI"), uri, &[&shape]);
                }
            }
        }
        "quobyte" => {
            const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
            let registry = source.text("registry");
            if registry.is_empty() {
                errors.required(&path.child("registry"), PAIRS);
            } else if registry.split(',').any(|pair| !pair.contains(':')) {
                errors.invalid(&path.child("registry"), registry, PAIRS);
            }
            require(errors, source, &["volume"], path);
        }
        "storageos" => {
            require(errors, source, &["volumeName"], path);
            for name in ["volumeName", "volumeNamespace"] {
                let value = source.text(name);
                if !value.is_empty() {
                    errors.invalid_each(&path.child(name), value, check::dns1123_label(value));
                }
            }
        }
        _ => {}
    }
}

pub fn host_path(errors: &mut Errors, source: &Value, path: &Path<'_>) {
    let host = source.text("path");
    if host.is_empty() {
        errors.required(&path.child("path"), "");
        return;
    }
    no_backsteps(errors, host, &path.child("path"));
    let kinds =
        ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let kind = source.text("type");
    if !kind.is_empty() {
        let mut supported = vec![""];
        supported.extend(kinds);
        errors.one_of(&path.child("type"), kind, &supported);
    }
}

pub fn nfs(errors: &mut Errors, source: &Value, path: &Path<'_>) {
    require(errors, source, &["server", "path"], path);
    let at = source.text("path");
    if !at.starts_with('/') {
        errors.invalid(&path.child("path"), at, "must be an absolute path");
    }
}

fn items(errors: &mut Errors, source: &Value, path: &Path<'_>) {
    let path = path.child("items");
    for (i, item) in source.list("items").iter().enumerate() {
        key_to_path(errors, item, &path.index(i));
    }
}

fn key_to_path(errors: &mut Errors, item: &Value, path: &Path<'_>) {
    require(errors, item, &["key", "path"], path);
    local_path(errors, item.text("path"), &path.child("path"));
    mode(errors, item, "mode", path);
}

fn projected(errors: &mut Errors, source: &Value, path: &Path<'_>) {
    mode(errors, source, "defaultMode", path);
    let mut taken: Vec<&str> = vec![];
    for (i, one) in source.list("sources").iter().enumerate() {
        let list = path.child("sources");
        let from = list.index(i);
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let Some(part) = one.get(kind).filter(|p| !p.is_null()) else { continue };
            count += 1;
            let at = from.child(kind);
            require(errors, part, &["name"], &at);
            items(errors, part, &at);
            for item in part.list("items") {
                conflict(errors, &mut taken, item.text("path"), part.text("name"), path);
            }
        }
        if let Some(part) = one.get("downwardAPI").filter(|p| !p.is_null()) {
            count += 1;
            for file in part.list("items") {
                downward_file(errors, file, &from.child("downwardAPI"));
                conflict(errors, &mut taken, file.text("path"), file.text("path"), path);
            }
        }
        if let Some(part) = one.get("serviceAccountToken").filter(|p| !p.is_null()) {
            count += 1;
            let at = from.child("serviceAccountToken");
            let seconds = part.int("expirationSeconds");
            if seconds < 600 {
                errors.invalid(
                    &at.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            }
            if seconds > 1 << 32 {
                errors.invalid(
                    &at.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            if part.text("path").is_empty() {
                errors.required(&path.child("path"), "");
            } else {
                local_path(errors, part.text("path"), &path.child("path"));
            }
        }
        if let Some(part) = one.get("clusterTrustBundle").filter(|p| !p.is_null()) {
            count += 1;
            let at = from.child("clusterTrustBundle");
            match (part.has("name"), part.has("signerName")) {
                (true, true) => {
                    errors.invalid(&at, part.clone(), "only one of name and signerName may be used");
                }
                (false, false) => errors.required(&at, "either name or signerName must be specified"),
                (true, false) if part.has("labelSelector") => errors.invalid(
                    &at.child("labelSelector"),
                    part.at("labelSelector").clone(),
                    "labelSelector must be unset if name is specified",
                ),
                _ => meta::label_selector(errors, part.at("labelSelector"), &at.child("labelSelector")),
            }
            require(errors, part, &["path"], &at);
            local_path(errors, part.text("path"), &at.child("path"));
            conflict(errors, &mut taken, part.text("path"), part.text("path"), path);
        }
        if let Some(part) = one.get("podCertificate").filter(|p| !p.is_null()) {
            count += 1;
            let at = from.child("podCertificate");
            errors.one_of(
                &at.child("keyType"),
                part.text("keyType"),
                &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"],
            );
            let names = ["credentialBundlePath", "keyPath", "certificateChainPath"];
            if names.iter().all(|n| part.text(n).is_empty()) {
                errors.required(
                    &at,
                    "specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
                );
            }
            for name in names {
                if !part.text(name).is_empty() {
                    local_path(errors, part.text(name), &at.child(name));
                    conflict(errors, &mut taken, part.text(name), part.text(name), path);
                }
            }
        }
        if count > 1 {
            errors.forbidden(&from, "may not specify more than 1 volume type per source");
        }
    }
}

fn conflict<'a>(errors: &mut Errors, taken: &mut Vec<&'a str>, at: &'a str, blamed: &str, path: &Path<'_>) {
    if at.is_empty() {
        return;
    }
    if taken.contains(&at) {
        errors.invalid(path, blamed, "conflicting duplicate paths");
    } else {
        taken.push(at);
    }
}

fn downward_file(errors: &mut Errors, file: &Value, path: &Path<'_>) {
    require(errors, file, &["path"], path);
    local_path(errors, file.text("path"), &path.child("path"));
    if file.has("fieldRef") {
        field_reference(
            errors,
            file.at("fieldRef"),
            &[
                "metadata.annotations",
                "metadata.labels",
                "metadata.name",
                "metadata.namespace",
                "metadata.uid",
            ],
            &path.child("fieldRef"),
        );
        if file.has("resourceFieldRef") {
            errors.invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
    } else if file.has("resourceFieldRef") {
        resource_reference(errors, file.at("resourceFieldRef"), true, &path.child("resourceFieldRef"));
    } else {
        errors.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    mode(errors, file, "mode", path);
}

/// All that the downward API knows by name.
const FIELDS: [&str; 16] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "spec.hostNetwork",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];

/// `supported` is sorted.
pub fn field_reference(errors: &mut Errors, reference: &Value, supported: &[&str], path: &Path<'_>) {
    for name in ["apiVersion", "fieldPath"] {
        if reference.text(name).is_empty() {
            errors.required(&path.child(name), "");
            return;
        }
    }
    let field = reference.text("fieldPath");
    if let Some((map, key)) = field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        match map {
            "metadata.annotations" => {
                errors.invalid_each(path, &key.to_lowercase(), check::qualified_name(&key.to_lowercase()));
            }
            "metadata.labels" => errors.invalid_each(path, key, check::qualified_name(key)),
            _ => errors.invalid(
                &path.child("fieldPath"),
                field,
                format!("error converting fieldPath: field label does not support subscript: {field}"),
            ),
        }
        return;
    }
    if !FIELDS.contains(&field) {
        errors.invalid(
            &path.child("fieldPath"),
            field,
            format!("error converting fieldPath: field label not supported: {field}"),
        );
    } else if !supported.contains(&field) {
        errors.not_supported(&path.child("fieldPath"), field, supported);
    }
}

pub fn resource_reference(errors: &mut Errors, reference: &Value, in_volume: bool, path: &Path<'_>) {
    let resource = reference.text("resource");
    let supported = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    if in_volume && reference.text("containerName").is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !huge {
        errors.one_of(&path.child("resource"), resource, &supported);
    }
    let Some(divisor) = quantity(reference.at("divisor")).filter(|d| !d.is_zero()) else { return };
    let divisor = divisor.to_string();
    let sizes = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let kind = resource.split_once('.').map_or("", |(_, r)| r);
    let (good, text) = match kind {
        "cpu" => (
            ["1m", "1"].contains(&divisor.as_str()),
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned(),
        ),
        _ => {
            let what = match kind {
                "memory" => "memory",
                "ephemeral-storage" => "local ephemeral storage",
                _ => "hugepages",
            };
            (
                sizes.contains(&divisor.as_str()),
                format!("only divisor's values {} are supported with the {what} resource", sizes.join(", ")),
            )
        }
    };
    if !good {
        errors.invalid(&path.child("divisor"), resource, text);
    }
}

/// A path that stays below where it starts.
pub fn descending_path(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    no_backsteps(errors, text, path);
}

pub fn no_backsteps(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

/// As [`descending_path`]; names that begin with two dots are the volume's own.
pub fn local_path(errors: &mut Errors, text: &str, path: &Path<'_>) {
    descending_path(errors, text, path);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.invalid(path, text, "must not start with '..'");
    }
}
