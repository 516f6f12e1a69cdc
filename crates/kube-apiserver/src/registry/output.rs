//! Objects as clients asked to see them: in another version, as metadata alone, as table rows; in JSON, YAML or
//! protobuf.

use std::borrow::Cow;

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Entry, meta};
use crate::http::Body;
use crate::http::negotiation::{Accept, Encoding, View};
use crate::http::respond;
use crate::wire;

/// Objects up to this size are copied into an answer.
const COPIED_BYTES_MAX: usize = 64 << 10;

/// How much of each object a table row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

impl IncludeObject {
    pub fn parse(text: Option<&str>) -> Result<IncludeObject, Status> {
        match text {
            None | Some("" | "Metadata") => Ok(IncludeObject::Metadata),
            Some("None") => Ok(IncludeObject::None),
            Some("Object") => Ok(IncludeObject::Object),
            Some(other) => Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            ))),
        }
    }
}

/// Everything that decides what an object looks like to one client.
#[derive(Clone, Copy)]
pub struct Show<'a> {
    pub entry: &'a Entry,
    pub accept: Accept,
    pub include: IncludeObject,
    pub now: Timestamp,
}

impl Show<'_> {
    /// Whether clients get stored bytes as they are, those of [current](Entry::is_current) objects.
    pub fn is_verbatim(&self) -> bool {
        self.accept.encoding == Encoding::Json
            && self.accept.view == View::Whole
            && !self.accept.pretty
            && self.entry.is_storage_version()
            && self.entry.custom.as_ref().is_none_or(|c| c.reads_verbatim())
    }

    /// The object in the version of the request.
    pub fn value(&self, object: &Encoded) -> Result<Value, Status> {
        let value: Value = if object.splice == 0 || object.resource_version == 0 {
            serde_json::from_slice(&object.body).map_err(Status::internal)?
        } else {
            object.to_value().map_err(Status::internal)?
        };
        self.converted(value)
    }

    fn converted(&self, mut value: Value) -> Result<Value, Status> {
        from_storage(self.entry, &mut value)?;
        Ok(value)
    }

    /// The object as it appears by itself or in a watch event.
    pub fn single(&self, object: &Encoded) -> Result<Value, Status> {
        let value = self.value(object)?;
        Ok(match self.accept.view {
            View::Whole => value,
            View::Metadata => partial(&value, self.accept.view_version()),
            View::Table => self.table(&[Cow::Owned(value)], None),
        })
    }

    /// The answer with one object.
    pub fn response(&self, code: StatusCode, object: &Encoded) -> Result<Response<Body>, Status> {
        if self.is_verbatim() && self.entry.is_current(object) {
            // One piece, small objects copied: every piece is a frame of its own.
            let body = if object.body.len() <= COPIED_BYTES_MAX {
                let mut json = object.to_json();
                json.push(b'\n');
                Body::full(json)
            } else {
                let end = Bytes::from_static(b"\n");
                Body::Pieces(object.parts().into_iter().filter(|p| !p.is_empty()).chain([end]).collect())
            };
            let mut response = Response::new(body);
            *response.status_mut() = code;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return Ok(response);
        }
        if self.accept.encoding == Encoding::Protobuf
            && self.accept.view == View::Whole
            && object.splice > 0
            && object.resource_version > 0
            && let Some(schema) = wire::message_schema(self.entry)
            && let Some(bytes) = wire::protobuf_object(self.entry, object, schema)
        {
            return Ok(respond::bytes_response(code, Encoding::Protobuf.content_type(), bytes));
        }
        Ok(respond::value(code, &self.single(object)?, self.accept))
    }

    /// A Table of `objects`, which are in the version of the request.
    pub fn table(&self, objects: &[Cow<'_, Value>], list_metadata: Option<Value>) -> Value {
        let rows: Vec<Value> = objects.iter().map(|object| self.row(object)).collect();
        let metadata = list_metadata.unwrap_or_else(|| match objects {
            [one] => json!({"resourceVersion": meta::text(one, "resourceVersion")}),
            _ => json!({}),
        });
        json!({
            "kind": "Table",
            "apiVersion": self.accept.view_version(),
            "metadata": metadata,
            "columnDefinitions": self.columns(),
            "rows": rows,
        })
    }

    pub fn columns(&self) -> Vec<Value> {
        match &self.entry.custom {
            Some(custom) => custom.columns(),
            None => wire::columns(self.entry),
        }
    }

    pub fn row(&self, object: &Value) -> Value {
        let cells = match &self.entry.custom {
            Some(custom) => custom.cells(object, self.now),
            None => wire::cells(self.entry, object, self.now),
        };
        let mut row = Map::new();
        row.insert("cells".to_owned(), cells.into());
        if self.entry.custom.is_none()
            && let Some(conditions) = wire::row_conditions(self.entry, object)
        {
            row.insert("conditions".to_owned(), conditions);
        }
        match self.include {
            IncludeObject::None => {}
            IncludeObject::Metadata => {
                row.insert("object".to_owned(), partial(object, self.accept.view_version()));
            }
            IncludeObject::Object => {
                row.insert("object".to_owned(), object.clone());
            }
        }
        Value::Object(row)
    }
}

/// `metav1.PartialObjectMetadata` of an object.
pub fn partial(object: &Value, api_version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": api_version,
        "metadata": object["metadata"],
    })
}

/// Turns a stored object into the version of `entry`.
pub fn from_storage(entry: &Entry, value: &mut Value) -> Result<(), Status> {
    match &entry.custom {
        Some(custom) => custom.from_storage(value),
        None => {
            from_working(entry, value);
            Ok(())
        }
    }
}

/// A stored object as writes work on it: those of built-in kinds in the storage version, those of custom resources in the
/// version of the request, whose schema they are held to.
pub fn working(entry: &Entry, stored: &Encoded) -> Result<Value, Status> {
    let mut value = stored.to_value().map_err(Status::internal)?;
    if let Some(custom) = &entry.custom {
        custom.from_storage(&mut value)?;
    }
    Ok(value)
}

/// Turns what a write works on into what is stored.
pub fn worked(entry: &Entry, value: &mut Value) -> Result<(), Status> {
    entry.custom.as_ref().map_or(Ok(()), |custom| custom.to_storage(value))
}

/// Turns what a write works on into the version of `entry`.
pub fn from_working(entry: &Entry, value: &mut Value) {
    if entry.custom.is_none() && !entry.is_storage_version() {
        api::convert::convert(value, &entry.group, &entry.version);
        value["apiVersion"] = entry.api_version().into();
    }
}

/// Turns an object in the version of `entry` into what a write works on.
pub fn to_working(entry: &Entry, value: &mut Value) {
    if entry.custom.is_none() && !entry.is_storage_version() {
        api::convert::convert(value, &entry.storage_group, &entry.storage_version);
        value["apiVersion"] = entry.storage_api_version().into();
    }
}
