//! Horizontal pod autoscalers, stored as v2.

use crate::strategy::{Rules, WITH_STATUS};

pub const GROUP: &str = "autoscaling";

pub static RULES: &[Rules] = &[Rules { group: GROUP, resource: "horizontalpodautoscalers", ..WITH_STATUS }];
