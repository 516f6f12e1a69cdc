//! Columns of custom resources: `additionalPrinterColumns` of a version.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json_path::JsonPath;
use super::{age, between, instant, name};
use crate::value::Read;

/// How objects of one version of a custom resource look in a table.
#[derive(Clone, Debug)]
pub struct CustomTable {
    /// TableColumnDefinitions, ready to be sent.
    pub columns: Vec<Value>,
    paths: Vec<(String, Option<JsonPath>)>,
}

impl CustomTable {
    /// From one element of `spec.versions` of a CustomResourceDefinition.
    pub fn new(version: &Value) -> CustomTable {
        let mut columns = vec![
            json!({"name": "Name", "type": "string", "format": "name", "description": "Name within its namespace", "priority": 0}),
        ];
        let mut paths = vec![];
        let additional = version.list("additionalPrinterColumns");
        for column in additional {
            columns.push(json!({
                "name": column.text("name"),
                "type": column.text("type"),
                "format": column.text("format"),
                "description": column.text("description"),
                "priority": column.int("priority"),
            }));
            paths.push((column.text("type").to_owned(), JsonPath::parse(column.text("jsonPath"))));
        }
        if additional.is_empty() {
            columns.push(json!({"name": "Age", "type": "date", "format": "", "description": "When it was created", "priority": 0}));
            paths.push(("date".to_owned(), JsonPath::parse(".metadata.creationTimestamp")));
        }
        CustomTable { columns, paths }
    }

    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = vec![name(object)];
        for (kind, path) in &self.paths {
            let found = path.as_ref().and_then(|p| p.find(object).into_iter().next());
            cells.push(found.map_or(Value::Null, |value| cell(kind, value, now)));
        }
        cells
    }
}

fn cell(kind: &str, value: &Value, now: Timestamp) -> Value {
    match kind {
        "integer" => match value.as_i64().or_else(|| value.as_f64().map(|f| f as i64)) {
            Some(n) => n.into(),
            None => Value::Null,
        },
        "number" => value.as_f64().map_or(Value::Null, |_| value.clone()),
        "boolean" => value.as_bool().map_or(Value::Null, Value::from),
        "date" => match (value.as_str(), instant(value)) {
            (_, Some(then)) => between(then, now).into(),
            (Some(_), None) => "<invalid>".into(),
            (None, None) => Value::Null,
        },
        _ => match value {
            Value::String(_) => value.clone(),
            other => other.to_string().into(),
        },
    }
}

/// Rows of objects of which nothing but metadata is known.
pub fn metadata_row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_custom_columns() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let table = CustomTable::new(&json!({"additionalPrinterColumns": [
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
            {"name": "Spec", "type": "string", "jsonPath": ".spec", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
            {"name": "None", "type": "string", "jsonPath": ".x"}]}));
        let object = json!({"metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"replicas": 2}});
        assert_eq!(
            table.row(&object, now),
            [json!("a"), json!(2), json!("{\"replicas\":2}"), json!("60m"), Value::Null]
        );
        assert_eq!(table.columns[2]["priority"], 1);
        assert_eq!(CustomTable::new(&json!({})).row(&object, now), [json!("a"), json!("60m")]);
    }
}
