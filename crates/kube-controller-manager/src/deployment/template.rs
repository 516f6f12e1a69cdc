//! Comparing and naming pod templates.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// A template as a value in which absent and empty are the same, without the label that tells sets apart.
pub(crate) fn canonical(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).unwrap_or_default();
    if let Some(labels) = value.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH_LABEL);
    }
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| {
                prune(v);
                !matches!(v, Value::Null)
                    && !v.as_object().is_some_and(|m| m.is_empty())
                    && !v.as_array().is_some_and(|a| a.is_empty())
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

/// A short name for a template, stable across runs; `collisions` makes another of the same.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let text = canonical(template).to_string();
    let salt = collisions.map(|c| c.to_le_bytes());
    for byte in text.bytes().chain(salt.into_iter().flatten()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    apimachinery::names::safe_encode(&hash.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(v: Value) -> PodTemplateSpec {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn same_but_for_the_hash_label_and_emptiness() {
        let a =
            template(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}));
        let b = template(json!({"metadata": {"labels": {"a": "b", HASH_LABEL: "x"}, "annotations": {}},
            "spec": {"containers": [{"name": "c", "env": []}]}}));
        let c =
            template(json!({"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "c"}]}}));
        assert_eq!(canonical(&a), canonical(&b));
        assert_eq!(hash(&a, None), hash(&b, None));
        assert_ne!(canonical(&a), canonical(&c));
        assert_ne!(hash(&a, None), hash(&c, None));
        assert_ne!(hash(&a, None), hash(&a, Some(1)));
    }
}
