//! What columns are said to hold. `descriptions.tsv` has a row `group resource column text` for each, or `@type field`
//! where a column is told in the words of the field that it shows.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::Column;

static ROWS: &str = include_str!("descriptions.tsv");

const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// By `group resource column`; what all tables have is under the field's name.
type Texts = HashMap<String, String>;

/// The description of a column of a built-in resource.
pub(super) fn of(group: &str, resource: &str, column: &Column) -> &'static str {
    static TEXTS: OnceLock<Texts> = OnceLock::new();
    let texts = TEXTS.get_or_init(read);
    if let Some(text) = texts.get(&format!("{group}\t{resource}\t{}", column.name)) {
        return text;
    }
    let field = match column.name {
        "Name" => "name",
        "Age" | "Created At" => "creationTimestamp",
        _ => return "",
    };
    texts.get(field).map_or("", String::as_str)
}

fn read() -> Texts {
    let rows: Vec<Vec<&'static str>> = ROWS.lines().map(|line| line.split('\t').collect()).collect();
    let column = |row: &[&'static str], i: usize| row.get(i).copied().unwrap_or("");
    let mut keys = vec!["name".to_owned(), "creationTimestamp".to_owned()];
    let mut fields = vec![(METADATA, "name"), (METADATA, "creationTimestamp")];
    let mut texts = Texts::new();
    for row in &rows {
        let key = row[..row.len().min(3)].join("\t");
        match column(row, 3).strip_prefix('@') {
            Some(name) => {
                keys.push(key);
                fields.push((name, column(row, 4)));
            }
            None => drop(texts.insert(key, column(row, 3).to_owned())),
        }
    }
    texts.extend(keys.into_iter().zip(apimachinery::openapi::descriptions(&fields)));
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_of_columns_and_say_something() {
        for row in ROWS.lines().map(|line| line.split('\t').collect::<Vec<_>>()) {
            let [group, resource, name] = row[..3] else { panic!("{row:?}") };
            let columns = crate::table::columns(group, resource);
            let column = columns.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("{row:?}"));
            assert_eq!(of(group, resource, column).is_empty(), name == "Handler", "{row:?}");
        }
        let pods = crate::table::columns("", "pods");
        assert!(of("", "pods", &pods[0]).starts_with("Name must be unique within a namespace."));
        assert_eq!(
            of("", "pods", &pods[1]),
            "The aggregate readiness state of this pod for accepting traffic."
        );
    }
}
