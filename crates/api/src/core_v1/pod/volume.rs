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
        if volume.has("ephemeral") && !pod_name.is_empty() && !name.is_empty() {
            let claim = format!("{pod_name}-{name}");
            for why in check::dns1123_subdomain(&claim) {
                errors.invalid(&path.child("name"), name, format!("PVC name {claim:?}: {why}"));
            }
        }
        let portal = volume.text("iscsi.targetPortal");
        if volume.has("iscsi.initiatorName") && name.len() + 1 + portal.len() > 64 {
            let long = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                        iscsi.initiatorName is specified.";
            errors.invalid(&path.child("name"), name, long);
        }
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
        if found {
            errors.forbidden(&path.child(second_name(kind)), "may not specify more than 1 volume type");
        } else {
            found = true;
            one_source(errors, kind, source, is_pod, &path.child(first_name(kind)));
        }
    }
    if !found {
        errors.required(path, "must specify a volume type");
    }
}

/// Upstream names the field of a disk by what the volume was called first.
pub fn first_name(kind: &'static str) -> &'static str {
    if kind == "gcePersistentDisk" { "persistentDisk" } else { kind }
}

/// What the field of a source that is one too many is called.
pub fn second_name(kind: &'static str) -> &'static str {
    match kind {
        "cephfs" => "cephFS",
        "downwardAPI" => "downwarAPI",
        _ => kind,
    }
}

pub fn require(errors: &mut Errors, source: &Value, names: &[&str], path: &Path<'_>) {
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
            if source.has("nodePublishSecretRef") {
                let name = source.text("nodePublishSecretRef.name");
                match name {
                    "" => errors.required(&path.child("nodePublishSecretRef").child("name"), ""),
                    _ => errors.invalid_each(&path.child("name"), name, check::dns1123_subdomain(name)),
                }
            }
        }
        "ephemeral" => match source.get_or_null("volumeClaimTemplate") {
            Value::Null => errors.required(&path.child("volumeClaimTemplate"), ""),
            template => {
                let path = path.child("volumeClaimTemplate");
                let metadata = path.child("metadata");
                meta::annotations(
                    errors,
                    template.at("metadata.annotations"),
                    &metadata.child("annotations"),
                );
                meta::labels(errors, template.at("metadata.labels"), &metadata.child("labels"));
                for (name, value) in template.entries("metadata") {
                    let empty = match value {
                        Value::Null => true,
                        Value::String(text) => text.is_empty(),
                        Value::Array(list) => list.is_empty(),
                        _ => false,
                    };
                    if !matches!(name.as_str(), "labels" | "annotations") && !empty {
                        errors.forbidden(&metadata.child(name), "cannot be set");
                    }
                }
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
        "gitRepo" => {
            require(errors, source, &["repository"], path);
            let directory = source.text("directory");
            if directory.starts_with('/') {
                errors.invalid(&path.child("directory"), directory, "must be a relative path");
            }
            no_backsteps(errors, directory, &path.child("directory"));
        }
        _ => legacy(errors, kind, source, None, path),
    }
}

/// A name that iSCSI knows targets and initiators by.
fn iscsi_name(name: &str) -> bool {
    let digits = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_digit());
    let word = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_alphanumeric());
    let (kind, rest) = (name.get(..3).unwrap_or_default(), name.get(4..).unwrap_or_default());
    match kind {
        "iqn" => {
            let date = rest.get(..7).and_then(|date| date.split_once('-'));
            let tail = rest.get(7..).unwrap_or_default();
            let Some((authority, own)) = tail.strip_prefix('.').and_then(|tail| tail.split_once(':')) else {
                return false;
            };
            name[3..].starts_with('.')
                && date.is_some_and(|(year, month)| digits(year, 4) && digits(month, 2))
                && !authority.is_empty()
                && authority.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
                && !own.is_empty()
                && !own.contains(|c: char| ",;*&$|".contains(c) || c.is_ascii_whitespace())
        }
        "eui" => word(rest, 16),
        "naa" => word(rest, 32),
        _ => false,
    }
}

/// Volumes of the plugins that once were part of the kubelet. `volume` is the name of the persistent volume, whose
/// references to secrets name their namespaces.
pub fn legacy(errors: &mut Errors, kind: &str, source: &Value, volume: Option<&str>, path: &Path<'_>) {
    let secret = |errors: &mut Errors, parts: &[&str]| {
        if source.has("secretRef") {
            require(errors, source.at("secretRef"), parts, &path.child("secretRef"));
        }
    };
    let parts: &[&str] = if volume.is_some() { &["name", "namespace"] } else { &["name"] };
    let partition = |errors: &mut Errors| {
        let partition = source.int("partition");
        if !(0..=255).contains(&partition) {
            errors.invalid(&path.child("partition"), partition, "must be between 1 and 255, inclusive");
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
        "cinder" => {
            require(errors, source, &["volumeID"], path);
            secret(errors, parts);
        }
        "azureFile" => {
            require(errors, source, &["secretName", "shareName"], path);
            if volume.is_some() && source.has("secretNamespace") {
                require(errors, source, &["secretNamespace"], path);
            }
        }
        "vsphereVolume" => require(errors, source, &["volumePath"], path),
        "photonPersistentDisk" => require(errors, source, &["pdID"], path),
        "portworxVolume" => require(errors, source, &["volumeID"], path),
        "scaleIO" => require(errors, source, &["gateway", "system", "volumeName"], path),
        "flexVolume" => {
            require(errors, source, &["driver"], path);
            for (key, _) in source.entries("options") {
                let domain = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
                if domain.ends_with(".kubernetes.io") || domain.ends_with(".k8s.io") {
                    let path = path.child("options");
                    errors.invalid(
                        &path.key(key),
                        key.as_str(),
                        "kubernetes.io and k8s.io namespaces are reserved",
                    );
                }
            }
        }
        "flocker" => {
            let (name, id) = (source.text("datasetName"), source.text("datasetUUID"));
            if name.is_empty() && id.is_empty() {
                errors.required(path, "one of datasetName and datasetUUID is required");
            } else if !name.is_empty() && !id.is_empty() {
                let both = "datasetName and datasetUUID can not be specified simultaneously";
                errors.invalid(path, "resource", both);
            }
            if name.contains('/') {
                errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
            }
        }
        "glusterfs" => {
            require(errors, source, &["endpoints", "path"], path);
            if volume.is_some() && source.has("endpointsNamespace") {
                let (path, namespace) = (path.child("endpointsNamespace"), source.text("endpointsNamespace"));
                match namespace {
                    "" => errors.invalid(
                        &path,
                        "",
                        "if the endpointnamespace is set, it must be a valid namespace name",
                    ),
                    _ => errors.invalid_each(&path, namespace, check::dns1123_label(namespace)),
                }
            }
        }
        "cephfs" => some(errors, "monitors"),
        "rbd" => {
            some(errors, "monitors");
            require(errors, source, &["image"], path);
        }
        "iscsi" => {
            let (portal, iqn) = (source.text("targetPortal"), source.text("iqn"));
            let format = if volume.is_some() {
                "must be valid format"
            } else {
                "must be valid format starting with iqn, eui, or naa"
            };
            let known = |name: &str| ["iqn", "eui", "naa"].iter().any(|kind| name.starts_with(kind));
            let name = |errors: &mut Errors, field: &str, name: &str| {
                if !known(name) {
                    errors.invalid(&path.child(field), name, format);
                } else if !iscsi_name(name) {
                    errors.invalid(&path.child(field), name, "must be valid format");
                }
            };
            require(errors, source, &["targetPortal"], path);
            if let Some(volume) = volume
                && source.has("initiatorName")
                && volume.len() + 1 + portal.len() > 64
            {
                let long = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                            iscsi.initiatorName is specified.";
                errors.invalid(&path.child("targetportal"), portal, long);
            }
            match iqn {
                "" => errors.required(&path.child("iqn"), ""),
                iqn => name(errors, "iqn", iqn),
            }
            lun(errors);
            if (source.flag("chapAuthDiscovery") || source.flag("chapAuthSession"))
                && !source.has("secretRef")
            {
                errors.required(&path.child("secretRef"), "");
            }
            if volume.is_some() {
                secret(errors, &["name"]);
            }
            if source.has("initiatorName") {
                name(errors, "initiatorname", source.text("initiatorName"));
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
            } else if source.text("tenant").len() >= 65 {
                let tenant = "must be a UUID and may not exceed a length of 64 characters";
                errors.required(&path.child("tenant"), tenant);
            } else {
                // One colon, unless the host is in brackets.
                let pair = |pair: &str| match pair.rsplit_once(':') {
                    Some((host, _)) if host.starts_with('[') => host.ends_with(']'),
                    Some((host, _)) => !host.contains([':', '[', ']']),
                    None => false,
                };
                for _ in registry.split(',').filter(|one| !pair(one)) {
                    errors.invalid(&path.child("registry"), registry, PAIRS);
                }
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
            secret(errors, parts);
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
    let (field, version) = (reference.text("fieldPath"), reference.text("apiVersion"));
    if version != "v1" {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        return errors.invalid(&path.child("fieldPath"), field, why);
    }
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
        return errors.required(&path.child("resource"), "");
    } else if !huge && !supported.contains(&resource) {
        return errors.not_supported(&path.child("resource"), resource, &supported);
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
