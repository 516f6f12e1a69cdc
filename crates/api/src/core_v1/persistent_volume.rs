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
