//! Persistent volumes and claims.

use serde_json::Value;

use crate::value::{Read, Write};

/// A data source said in one of the two fields is said in both, where both can say it.
pub fn prepare_claim(claim: &mut Value) {
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

pub fn claim_defaults(claim: &mut Value) {
    claim.put_default_text("status.phase", "Pending");
    claim_spec_defaults(claim);
}

/// What claims and templates of claims share.
pub fn claim_spec_defaults(claim: &mut Value) {
    claim.put_default("spec.volumeMode", "Filesystem");
}
