//! Typed selectors as the apimachinery ones.

use std::collections::BTreeMap;

use apimachinery::selector::LabelSelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;

/// A selector that does not parse selects nothing: the API server refuses such objects.
pub(crate) fn from_typed(selector: &meta::LabelSelector) -> LabelSelector {
    serde_json::to_value(selector)
        .ok()
        .and_then(|v| LabelSelector::from_value(&v).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

/// As [`from_typed`]; without a selector, nothing.
pub(crate) fn from_optional(selector: Option<&meta::LabelSelector>) -> LabelSelector {
    selector.map_or_else(LabelSelector::nothing, from_typed)
}

pub(crate) fn from_map(map: &BTreeMap<String, String>) -> LabelSelector {
    LabelSelector::from_pairs(map.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

pub(crate) fn matches(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    selector.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
}
