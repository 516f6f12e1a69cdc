//! Answers that are not objects of the registry.

use apimachinery::status::{Cause, Details, Status};
use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::body::Body;
use super::negotiation::{Accept, Encoding};
use crate::wire;

/// Constructors this module needs for itself.
pub fn bad_request(message: impl Into<String>) -> Status {
    Status::bad_request(message)
}

pub fn too_large(limit: usize) -> Status {
    Status::request_entity_too_large(format!("limit is {limit}"))
}

/// A failure of the store, as clients see it.
pub fn store_error(error: &storage::Error) -> Status {
    match error {
        storage::Error::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        storage::Error::FutureRevision { requested, current } => {
            let mut status = Status::too_large(*requested as u64, *current as u64);
            // Only who waited for the revision is told when to ask again.
            status.details.get_or_insert_default().retry_after_seconds = 0;
            status
        }
        other => Status::internal(other),
    }
}

/// Where a Status carries the continue token of its metadata until it is written.
const CONTINUE: &str = "metadata.continue";

/// Gives a 410 the token with which a list can go on from the present state.
pub fn set_continue(status: &mut Status, token: String) {
    let cause = Cause { reason: CONTINUE.to_owned(), message: token, field: String::new() };
    status.details.get_or_insert_default().causes.push(cause);
}

/// The Status as a JSON value, with `kind` and `apiVersion`.
pub fn status_value(status: &Status) -> Value {
    let (status, metadata) = with_metadata(status);
    let mut value = status.to_value();
    value["metadata"] = metadata;
    value
}

/// The Status as clients get it, and its metadata.
fn with_metadata(status: &Status) -> (Status, Value) {
    let mut status = status.clone();
    let mut token = None;
    if let Some(details) = &mut status.details {
        details.causes.retain(|c| {
            if c.reason == CONTINUE {
                token = Some(c.message.clone());
            }
            c.reason != CONTINUE
        });
        if **details == Details::default() && token.is_some() {
            status.details = None;
        }
    }
    let metadata = token.map_or_else(|| json!({}), |token| json!({"continue": token}));
    (status, metadata)
}

/// The answer that carries `status`.
pub fn status(status: &Status, accept: Accept) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = if accept.encoding == Encoding::Json {
        let (status, metadata) = with_metadata(status);
        bytes_response(code, Encoding::Json.content_type(), status.to_json(&metadata, accept.pretty))
    } else {
        value(code, &status_value(status), accept)
    };
    if let Some(seconds) = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// An answer with a generic object.
pub fn value(code: StatusCode, value: &Value, accept: Accept) -> Response<Body> {
    let (bytes, encoding) = match wire::encode_value(value, accept) {
        Ok(bytes) => (bytes, accept.encoding),
        // What has no schema has no protobuf form either; JSON is always understood.
        Err(_) => (serde_json::to_vec(value).unwrap_or_default(), Encoding::Json),
    };
    bytes_response(code, encoding.content_type(), bytes)
}

pub fn bytes_response(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<bytes::Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub fn text(code: StatusCode, body: impl Into<String>) -> Response<Body> {
    bytes_response(code, "text/plain; charset=utf-8", body.into())
}
