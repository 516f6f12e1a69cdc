//! Answers that are not objects of the registry.

use apimachinery::status::{Details, Status};
use http::{Response, StatusCode, header};
use serde_json::Value;

use super::body::Body;
use super::negotiation::{Accept, Encoding};
use crate::wire;

pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Status {
    Status {
        status: "Failure".to_owned(),
        message: message.into(),
        reason: reason.to_owned(),
        details: None,
        code,
    }
}

pub fn bad_request(message: impl Into<String>) -> Status {
    failure(400, "BadRequest", message)
}

pub fn internal(message: impl std::fmt::Display) -> Status {
    failure(500, "InternalError", format!("Internal error occurred: {message}"))
}

pub fn too_large(limit: usize) -> Status {
    failure(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
}

pub fn not_acceptable(offered: &str) -> Status {
    failure(406, "NotAcceptable", format!("only the following media types are accepted: {offered}"))
}

pub fn path_not_found() -> Status {
    failure(404, "NotFound", "the server could not find the requested resource")
}

pub fn unavailable(message: impl Into<String>) -> Status {
    failure(503, "ServiceUnavailable", message)
}

pub fn timeout(message: impl Into<String>) -> Status {
    failure(504, "Timeout", message)
}

pub fn gone(message: impl Into<String>) -> Status {
    failure(410, "Expired", message)
}

pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
    Status {
        details: Some(Box::new(Details { retry_after_seconds, ..Details::default() })),
        ..failure(429, "TooManyRequests", message)
    }
}

/// A failure of the store, as clients see it.
pub fn store_error(error: &storage::Error) -> Status {
    match error {
        storage::Error::Compacted { .. } => {
            gone("The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.")
        }
        storage::Error::FutureRevision { requested, current } => {
            timeout(format!("Too large resource version: {requested}, current: {current}"))
        }
        other => internal(other),
    }
}

/// The Status as a JSON value, with `kind` and `apiVersion`.
pub fn status_value(status: &Status) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    value["kind"] = "Status".into();
    value["apiVersion"] = "v1".into();
    value["metadata"] = Value::Object(Default::default());
    value
}

/// The answer that carries `status`.
pub fn status(status: &Status, accept: Accept) -> Response<Body> {
    let encoding = accept.encoding;
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, &status_value(status), Accept { encoding, ..accept });
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

pub fn bytes_response(code: StatusCode, content_type: &'static str, body: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub fn text(code: StatusCode, body: impl Into<String>) -> Response<Body> {
    bytes_response(code, "text/plain; charset=utf-8", body.into())
}
