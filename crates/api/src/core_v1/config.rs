//! Secrets, config maps and limit ranges.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::value::{Read, Write};

/// Besides its type: what was written as plain text goes into the data.
pub fn secret_defaults(secret: &mut Value) {
    secret.put_default_text("type", "Opaque");
    if let Some(Value::Object(plain)) = secret.remove("stringData")
        && let Some(data) = secret.object_mut("data")
    {
        for (key, text) in plain {
            data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
        }
    }
}

pub fn limit_range_defaults(range: &mut Value) {
    for item in range.list_mut("spec.limits").filter(|item| item.text("type") == "Container") {
        let map = |item: &Value, name: &str| item.at(name).as_object().cloned().unwrap_or_default();
        let mut default = map(item, "default");
        let mut request = map(item, "defaultRequest");
        let fill = |into: &mut Map<String, Value>, from: Map<String, Value>| {
            for (name, value) in from {
                into.entry(name).or_insert(value);
            }
        };
        fill(&mut default, map(item, "max"));
        fill(&mut request, default.clone());
        fill(&mut request, map(item, "min"));
        for (name, value) in [("default", default), ("defaultRequest", request)] {
            if !value.is_empty() {
                item.put(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_becomes_data() {
        let mut secret = json!({"data": {"a": "AA=="}, "stringData": {"b": "hi"}});
        secret_defaults(&mut secret);
        assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "AA==", "b": "aGk="}}));
    }

    #[test]
    fn limits_follow_each_other() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}});
        limit_range_defaults(&mut range);
        assert_eq!(
            range,
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"},
                "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Mi"}}]}})
        );
    }
}
