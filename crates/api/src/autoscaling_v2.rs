//! Horizontal pod autoscalers, stored as v2.

use serde_json::{Value, json};

use crate::strategy::{Rules, WITH_STATUS};
use crate::value::{Read, Write};

pub const GROUP: &str = "autoscaling";

pub static RULES: &[Rules] =
    &[Rules { group: GROUP, resource: "horizontalpodautoscalers", defaults, ..WITH_STATUS }];

/// Without metrics an autoscaler aims at this much of the requested CPU.
const CPU_UTILIZATION_PERCENT: i64 = 80;

fn defaults(autoscaler: &mut Value) {
    autoscaler.put_default("spec.minReplicas", 1);
    if autoscaler.list("spec.metrics").is_empty() {
        autoscaler.put(
            "spec.metrics",
            json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": CPU_UTILIZATION_PERCENT}}}]),
        );
    }
    if !autoscaler.has("spec.behavior") {
        return;
    }
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    autoscaler.put_default("spec.behavior.scaleUp.stabilizationWindowSeconds", 0);
    for (way, policies) in [("scaleUp", json!([pods, percent])), ("scaleDown", json!([percent]))] {
        autoscaler.put_default(&format!("spec.behavior.{way}.selectPolicy"), "Max");
        autoscaler.put_default(&format!("spec.behavior.{way}.policies"), policies);
    }
}
