//! Go structs inside Go structs, which JSON does not show but Go's messages do.

use crate::schema::Field;

/// The structs through which Go reaches a field that it inlines, outermost first.
pub(super) fn inlined(outer: &str, field: &Field) -> &'static [&'static str] {
    if matches!(&*field.name, "apiVersion" | "kind") && field.numbers[0] == 0 {
        return &["TypeMeta"];
    }
    if field.numbers[1] == 0 {
        return &[];
    }
    match outer.rsplit('.').next().unwrap_or_default() {
        "ConfigMapEnvSource"
        | "ConfigMapKeySelector"
        | "ConfigMapProjection"
        | "ConfigMapVolumeSource"
        | "SecretEnvSource"
        | "SecretKeySelector"
        | "SecretProjection" => &["LocalObjectReference"],
        "DeviceAllocationConfiguration" | "DeviceClaimConfiguration" | "DeviceClassConfiguration" => {
            &["DeviceConfiguration"]
        }
        "EphemeralContainer" => &["EphemeralContainerCommon"],
        "IngressRule" => &["IngressRuleValue"],
        "NamedRuleWithOperations" if field.numbers[2] == 0 => &["RuleWithOperations"],
        "NamedRuleWithOperations" => &["RuleWithOperations", "Rule"],
        "PersistentVolumeSpec" => &["PersistentVolumeSource"],
        "Probe" => &["ProbeHandler"],
        "RuleWithOperations" => &["Rule"],
        "Volume" => &["VolumeSource"],
        _ => &[],
    }
}
