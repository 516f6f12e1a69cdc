//! The `scale` subresource: how an object's replica fields look as `autoscaling/v1` Scale and back.

use serde_json::{Map, Value, json};

use crate::value::{Read, Write};

/// Where an object keeps what its Scale shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    pub spec_replicas: &'static str,
    pub status_replicas: &'static str,
    /// A label selector, or a plain map of labels for replication controllers.
    pub selector: &'static str,
}

pub const WORKLOAD: Scale =
    Scale { spec_replicas: "spec.replicas", status_replicas: "status.replicas", selector: "spec.selector" };

impl Scale {
    /// The Scale of `object`.
    pub fn of(&self, object: &Value) -> Value {
        let mut metadata = Map::new();
        for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            let value = object.at("metadata").get_or_null(name);
            if !value.is_null() {
                metadata.insert(name.to_owned(), value.clone());
            }
        }
        let mut scale = json!({
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": metadata,
            "spec": {},
            "status": {"replicas": object.int(self.status_replicas)},
        });
        let replicas = object.int(self.spec_replicas);
        if replicas != 0 {
            scale.put("spec.replicas", replicas);
        }
        let selector = selector_text(object.at(self.selector));
        if !selector.is_empty() {
            scale.put("status.selector", selector);
        }
        scale
    }

    /// Puts the replicas a client asks for in `scale` into `object`.
    pub fn apply(&self, scale: &Value, object: &mut Value) {
        object.put(self.spec_replicas, scale.int("spec.replicas"));
    }
}

/// A label selector (or a plain map of labels) in the form that goes into a query.
pub fn selector_text(selector: &Value) -> String {
    if selector.as_object().is_some_and(|m| m.values().all(Value::is_string)) {
        return label_text(selector);
    }
    let mut parts: Vec<(String, String)> = selector
        .entries("matchLabels")
        .map(|(k, v)| (k.clone(), format!("{k}={}", v.as_str().unwrap_or_default())))
        .collect();
    for requirement in selector.list("matchExpressions") {
        let key = requirement.text("key");
        let mut values: Vec<&str> = requirement.list("values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match requirement.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => continue,
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort();
    parts.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

fn label_text(labels: &Value) -> String {
    let mut parts: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    parts.sort();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_selectors() {
        for (selector, want) in [
            (json!({}), ""),
            (json!({"b": "2", "a": "1"}), "a=1,b=2"),
            (json!({"matchLabels": {"app": "x"}}), "app=x"),
            (
                json!({"matchLabels": {"app": "x"}, "matchExpressions": [
                    {"key": "tier", "operator": "In", "values": ["b", "a"]},
                    {"key": "aa", "operator": "DoesNotExist"}]}),
                "!aa,app=x,tier in (a,b)",
            ),
        ] {
            assert_eq!(selector_text(&selector), want);
        }
    }

    #[test]
    fn reads_and_applies() {
        let mut object = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"replicas": 3,
            "selector": {"matchLabels": {"app": "x"}}}, "status": {"replicas": 2}});
        let scale = WORKLOAD.of(&object);
        assert_eq!(
            scale,
            json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": "a"},
                "spec": {"replicas": 3}, "status": {"replicas": 2, "selector": "app=x"}})
        );
        WORKLOAD.apply(&json!({"spec": {"replicas": 5}}), &mut object);
        assert_eq!(object.int("spec.replicas"), 5);
    }
}
