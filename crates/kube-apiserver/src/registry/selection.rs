//! Label and field selectors of a request, as a decision on attributes.

use std::fmt::Display;
use std::sync::Arc;

use apimachinery::object::Attributes;
use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::status::Status;

use super::Entry;
use crate::cache::resource::Matches;

/// Which objects of a resource a request is about.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Empty means all.
    pub namespace: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// By fields that an object has only when it is in the version of the request, which a webhook makes it.
    converted: Option<FieldSelector>,
}

impl Selection {
    pub fn parse(
        entry: &Entry,
        namespace: &str,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Selection, Status> {
        let labels = match labels {
            None | Some("") => LabelSelector::everything(),
            Some(text) => LabelSelector::parse(text).map_err(|e| Status::bad_request(e.to_string()))?,
        };
        let fields = match fields {
            None | Some("") => FieldSelector::everything(),
            Some(text) => parse_fields(entry, text)?,
        };
        let (mut stored, mut converted) = (fields, None);
        if entry.custom.as_ref().is_some_and(|c| c.converts()) {
            let of_metadata = |field: &str| field.starts_with("metadata.");
            converted = Some(stored.retained(|field| !of_metadata(field))).filter(|s| !s.is_everything());
            stored = stored.retained(of_metadata);
        }
        Ok(Selection { namespace: namespace.to_owned(), labels, fields: stored, converted })
    }

    /// What the keys of the selected objects begin with.
    pub fn prefix(&self) -> String {
        if self.namespace.is_empty() { String::new() } else { format!("{}/", self.namespace) }
    }

    /// Where a list goes on that has come to `key`.
    pub fn after(&self, key: &str) -> String {
        format!("{}\0", key.strip_prefix(&self.prefix()).unwrap_or(key))
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.converted.is_none()
    }

    /// What is to be decided on objects in the version of the request, after [`Selection::matcher`]: slow.
    pub fn converted(&self) -> Option<&FieldSelector> {
        self.converted.as_ref()
    }

    /// The selectors as a shared decision; `None` when everything is selected. The namespace is the prefix's affair.
    pub fn matcher(&self) -> Option<Matches> {
        if self.labels.is_everything() && self.fields.is_everything() {
            return None;
        }
        let (labels, fields) = (self.labels.clone(), self.fields.clone());
        Some(Arc::new(move |a: &Attributes| labels.matches(a) && fields.matches(a)))
    }
}

/// Checks the fields against those the resource can be selected by, and names them as they are stored.
fn parse_fields(entry: &Entry, text: &str) -> Result<FieldSelector, Status> {
    let refused = |why: &dyn Display| Status::bad_request(why.to_string());
    let parsed = FieldSelector::parse(text).map_err(|e| refused(&e))?;
    let mut out = String::new();
    for term in parsed.terms() {
        let stored = match &entry.custom {
            Some(custom) => custom.field_label(&term.field),
            None => entry.strategy.field_label(&entry.api_version(), &term.field).map(str::to_owned),
        };
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&stored.map_err(|why| refused(&why))?);
        out.push_str(if term.equal { "=" } else { "!=" });
        for c in term.value.chars() {
            if matches!(c, '\\' | ',' | '=') {
                out.push('\\');
            }
            out.push(c);
        }
    }
    FieldSelector::parse(&out).map_err(|e| refused(&e))
}
