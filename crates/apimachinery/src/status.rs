//! `metav1.Status`: how every failure is told to clients.

use std::fmt::{self, Display, Write};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::field_path::Path;

/// A failed (or, for deletions, successful) answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// `Success` or `Failure`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Machine-readable, such as `NotFound`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    /// The HTTP status code.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub code: u16,
}

/// What a failure is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// One reason among several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

fn is_zero<N: Default + PartialEq>(n: &N) -> bool {
    *n == N::default()
}

/// What an optimistic write answers when its object has changed.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// `pods`, or `deployments.apps`: a resource (or kind) with its group.
pub fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl Status {
    fn failure(code: u16, reason: &str, message: impl Into<String>) -> Status {
        Status {
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            details: None,
            code,
        }
    }

    fn about(mut self, resource: &str, group: &str, name: &str) -> Status {
        self.details = Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        }));
        self
    }

    /// The answer to a deletion that left nothing behind.
    pub fn success() -> Status {
        Status { status: "Success".into(), code: 200, ..Status::default() }
    }

    /// As [`Status::success`], naming what was deleted.
    pub fn deleted(resource: &str, group: &str, name: &str, uid: &str) -> Status {
        let mut status = Status { status: "Success".into(), ..Status::default() };
        status.details = Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            uid: uid.into(),
            ..Details::default()
        }));
        status
    }

    pub fn not_found(resource: &str, group: &str, name: &str) -> Status {
        let message = format!("{} {} not found", qualified(resource, group), quote(name));
        Status::failure(404, "NotFound", message).about(resource, group, name)
    }

    /// The path names no resource that is served.
    pub fn no_such_resource() -> Status {
        let mut status = Status::failure(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn already_exists(resource: &str, group: &str, name: &str) -> Status {
        let message = format!("{} {} already exists", qualified(resource, group), quote(name));
        Status::failure(409, "AlreadyExists", message).about(resource, group, name)
    }

    /// No generated name was free.
    pub fn generate_name_conflict(resource: &str, group: &str, name: &str) -> Status {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(resource, group),
            quote(name)
        );
        Status::failure(409, "AlreadyExists", message).about(resource, group, name).retry_after(1)
    }

    /// The write was made from an older revision, or a precondition does not hold; see [`MODIFIED`].
    pub fn conflict(resource: &str, group: &str, name: &str, why: impl Display) -> Status {
        let message =
            format!("Operation cannot be fulfilled on {} {}: {why}", qualified(resource, group), quote(name));
        Status::failure(409, "Conflict", message).about(resource, group, name)
    }

    /// Server-side apply met fields that others own.
    pub fn apply_conflict(causes: Vec<Cause>, message: impl Into<String>) -> Status {
        let mut status = Status::failure(409, "Conflict", message);
        status.details = Some(Box::new(Details { causes, ..Details::default() }));
        status
    }

    /// Without a resource the message begins with `forbidden:`; without a name it speaks of the resource.
    pub fn forbidden(resource: &str, group: &str, name: &str, why: impl Display) -> Status {
        let message = match (resource.is_empty() && group.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{} is forbidden: {why}", qualified(resource, group)),
            (false, false) => {
                format!("{} {} is forbidden: {why}", qualified(resource, group), quote(name))
            }
        };
        Status::failure(403, "Forbidden", message).about(resource, group, name)
    }

    pub fn unauthorized() -> Status {
        Status::failure(401, "Unauthorized", "Unauthorized")
    }

    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::failure(400, "BadRequest", message)
    }

    /// 422 with one cause per error.
    pub fn invalid(kind: &str, group: &str, name: &str, errors: Vec<FieldError>) -> Status {
        let mut message = format!("{} {} is invalid", qualified(kind, group), quote(name));
        let mut texts: Vec<String> = Vec::with_capacity(errors.len());
        for error in &errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match &texts[..] {
            [] => {}
            [one] => {
                let _ = write!(message, ": {one}");
            }
            many => {
                let _ = write!(message, ": [{}]", many.join(", "));
            }
        }
        let mut status = Status::failure(422, "Invalid", message).about(kind, group, name);
        let causes = errors
            .into_iter()
            .map(|e| Cause { reason: e.kind.reason().into(), message: e.body(), field: e.path })
            .collect();
        if let Some(details) = &mut status.details {
            details.causes = causes;
        }
        status
    }

    pub fn method_not_allowed(resource: &str, group: &str, action: &str) -> Status {
        let message =
            format!("{action} is not supported on resources of kind {}", quote(&qualified(resource, group)));
        Status::failure(405, "MethodNotAllowed", message).about(resource, group, "")
    }

    /// The path is served, but not with this method.
    pub fn no_such_method() -> Status {
        let mut status = Status::failure(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        status.details = Some(Box::default());
        status
    }

    pub fn not_acceptable(accepted: &[&str]) -> Status {
        Status::failure(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", accepted.join(", ")),
        )
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Status {
        Status::failure(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// What upstream's router says, before anything of the server is asked.
    pub fn not_routable(available: &[&str]) -> Status {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", available.join(", "));
        Status { details: Some(Box::default()), ..Status::failure(406, "NotAcceptable", message) }
    }

    /// As [`Status::not_routable`], of what was sent.
    pub fn unsupported_by_route() -> Status {
        let status = Status::failure(415, "UnsupportedMediaType", "415: Unsupported Media Type");
        Status { details: Some(Box::default()), ..status }
    }

    pub fn gone(message: impl Into<String>) -> Status {
        Status::failure(410, "Gone", message)
    }

    /// A revision or a continue token that history no longer covers.
    pub fn expired(message: impl Into<String>) -> Status {
        Status::failure(410, "Expired", message)
    }

    /// The watch or list asked for history that is gone.
    pub fn too_old(requested: u64, oldest: u64) -> Status {
        Status::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// The revision asked for has not been reached yet.
    pub fn too_large(requested: u64, current: u64) -> Status {
        let mut status =
            Status::timeout(format!("Too large resource version: {requested}, current: {current}"), 1);
        if let Some(details) = &mut status.details {
            details.causes = vec![Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            }];
        }
        status
    }

    pub fn timeout(message: impl Display, retry_after_seconds: u32) -> Status {
        Status::failure(504, "Timeout", format!("Timeout: {message}")).retry_after(retry_after_seconds)
    }

    pub fn server_timeout(resource: &str, group: &str, operation: &str, retry_after_seconds: u32) -> Status {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(resource, group)
        );
        Status::failure(500, "ServerTimeout", message)
            .about(resource, group, operation)
            .retry_after(retry_after_seconds)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Status {
        Status::failure(429, "TooManyRequests", message).retry_after(retry_after_seconds)
    }

    pub fn service_unavailable(message: impl Into<String>) -> Status {
        Status::failure(503, "ServiceUnavailable", message)
    }

    pub fn internal(why: impl Display) -> Status {
        let why = why.to_string();
        let mut status = Status::failure(500, "InternalError", format!("Internal error occurred: {why}"));
        status.details = Some(Box::new(Details {
            causes: vec![Cause { message: why, ..Cause::default() }],
            ..Details::default()
        }));
        status
    }

    /// 500 without a reason: what upstream answers where an error has no status of its own.
    pub fn unknown(message: impl Into<String>) -> Status {
        Status::failure(500, "", message)
    }

    pub fn request_entity_too_large(message: impl Display) -> Status {
        Status::failure(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Status {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    pub fn is_success(&self) -> bool {
        self.status == "Success"
    }

    /// The object clients get.
    pub fn to_value(&self) -> Value {
        let mut object = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}});
        if let (Value::Object(object), Ok(Value::Object(own))) = (&mut object, serde_json::to_value(self)) {
            object.extend(own);
        }
        object
    }

    /// Its JSON with the members in upstream's order; there are clients that show it as it comes.
    pub fn to_json(&self, metadata: &Value, pretty: bool) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Whole<'a> {
            kind: &'static str,
            api_version: &'static str,
            metadata: &'a Value,
            #[serde(flatten)]
            own: &'a Status,
        }
        let whole = Whole { kind: "Status", api_version: "v1", metadata, own: self };
        // Members have string keys only; writing to memory cannot fail.
        if pretty {
            return serde_json::to_vec_pretty(&whole).unwrap_or_default();
        }
        let mut out = serde_json::to_vec(&whole).unwrap_or_default();
        out.push(b'\n');
        out
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooShort,
    TooMany,
    TooFew,
    TypeInvalid,
    Internal,
}

impl FieldErrorKind {
    /// As causes name it.
    pub fn reason(self) -> &'static str {
        match self {
            FieldErrorKind::NotFound => "FieldValueNotFound",
            FieldErrorKind::Required => "FieldValueRequired",
            FieldErrorKind::Duplicate => "FieldValueDuplicate",
            FieldErrorKind::Invalid => "FieldValueInvalid",
            FieldErrorKind::NotSupported => "FieldValueNotSupported",
            FieldErrorKind::Forbidden => "FieldValueForbidden",
            FieldErrorKind::TooLong => "FieldValueTooLong",
            FieldErrorKind::TooShort => "FieldValueTooShort",
            FieldErrorKind::TooMany => "FieldValueTooMany",
            FieldErrorKind::TooFew => "FieldValueTooFew",
            FieldErrorKind::TypeInvalid => "FieldValueTypeInvalid",
            FieldErrorKind::Internal => "InternalError",
        }
    }

    fn title(self) -> &'static str {
        match self {
            FieldErrorKind::NotFound => "Not found",
            FieldErrorKind::Required => "Required value",
            FieldErrorKind::Duplicate => "Duplicate value",
            FieldErrorKind::Invalid | FieldErrorKind::TypeInvalid => "Invalid value",
            FieldErrorKind::NotSupported => "Unsupported value",
            FieldErrorKind::Forbidden => "Forbidden",
            FieldErrorKind::TooLong => "Too long",
            FieldErrorKind::TooShort => "Too short",
            FieldErrorKind::TooMany => "Too many",
            FieldErrorKind::TooFew => "Too few",
            FieldErrorKind::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            FieldErrorKind::Required
                | FieldErrorKind::Forbidden
                | FieldErrorKind::TooLong
                | FieldErrorKind::TooShort
                | FieldErrorKind::Internal
        )
    }
}

/// One thing wrong with one field; prints as `path: Title: value: detail`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub kind: FieldErrorKind,
    pub path: String,
    /// Shown for the kinds that blame a value; `None` leaves it out.
    pub bad_value: Option<Value>,
    pub detail: String,
}

impl FieldError {
    fn new(kind: FieldErrorKind, path: &Path, bad_value: Option<Value>, detail: impl Into<String>) -> Self {
        FieldError { kind, path: path.to_string(), bad_value, detail: detail.into() }
    }

    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Required, path, None, detail)
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, path, Some(value.into()), detail)
    }

    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::TypeInvalid, path, Some(value.into()), detail)
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, path, Some(value.into()), "")
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, path, Some(value.into()), "")
    }

    /// `supported` in the order to be shown (upstream mostly sorts them).
    pub fn not_supported<S: AsRef<str>>(path: &Path, value: impl Into<Value>, supported: &[S]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| quote(s.as_ref())).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(FieldErrorKind::NotSupported, path, Some(value.into()), detail)
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, path, None, detail)
    }

    pub fn too_long(path: &Path, max_bytes: usize) -> Self {
        let unit = if max_bytes == 1 { "byte" } else { "bytes" };
        Self::new(FieldErrorKind::TooLong, path, None, format!("may not be more than {max_bytes} {unit}"))
    }

    pub fn too_short(path: &Path, min: usize) -> Self {
        let unit = if min == 1 { "character" } else { "characters" };
        Self::new(FieldErrorKind::TooShort, path, None, format!("must be at least {min} {unit}"))
    }

    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let unit = if max == 1 { "item" } else { "items" };
        Self::new(
            FieldErrorKind::TooMany,
            path,
            Some(actual.into()),
            format!("must have at most {max} {unit}"),
        )
    }

    pub fn too_few(path: &Path, actual: usize, min: usize) -> Self {
        let unit = if min == 1 { "item" } else { "items" };
        Self::new(
            FieldErrorKind::TooFew,
            path,
            Some(actual.into()),
            format!("must have at least {min} {unit}"),
        )
    }

    pub fn internal(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Internal, path, None, detail)
    }

    /// The text without the path.
    pub fn body(&self) -> String {
        let mut text = self.kind.title().to_owned();
        if self.kind.shows_value() {
            match &self.bad_value {
                None => {}
                Some(Value::String(s)) => {
                    let _ = write!(text, ": {}", quote(s));
                }
                Some(other) => {
                    let _ = write!(text, ": {other}");
                }
            }
        }
        if !self.detail.is_empty() {
            let _ = write!(text, ": {}", self.detail);
        }
        text
    }
}

impl Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A string between double quotes, escaped as Go's `%q` does.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if c.is_control() || c == '\u{feff}' || c == '\u{2028}' || c == '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let spec = Path::new("spec");
        for (status, code, message) in [
            (Status::not_found("deployments", "apps", "x"), 404, r#"deployments.apps "x" not found"#),
            (Status::already_exists("pods", "", "x"), 409, r#"pods "x" already exists"#),
            (
                Status::conflict("pods", "", "x", MODIFIED),
                409,
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply \
                 your changes to the latest version and try again",
            ),
            (Status::forbidden("pods", "", "", "no"), 403, "pods is forbidden: no"),
            (Status::forbidden("", "", "", "no"), 403, "forbidden: no"),
            (
                Status::invalid("Pod", "", "x", vec![FieldError::required(&spec.child("a"), "")]),
                422,
                r#"Pod "x" is invalid: spec.a: Required value"#,
            ),
            (
                Status::invalid(
                    "Deployment",
                    "apps",
                    "x",
                    vec![
                        FieldError::invalid(&spec.child("a"), "q\"", "bad"),
                        FieldError::not_supported(&spec.child("b"), "z", &["x", "y"]),
                        FieldError::too_many(&spec.child("c"), 3, 1),
                    ],
                ),
                422,
                "Deployment.apps \"x\" is invalid: [spec.a: Invalid value: \"q\\\"\": bad, spec.b: \
                 Unsupported value: \"z\": supported values: \"x\", \"y\", spec.c: Too many: 3: must have at \
                 most 1 item]",
            ),
            (
                Status::method_not_allowed("pods", "", "watch"),
                405,
                r#"watch is not supported on resources of kind "pods""#,
            ),
            (Status::internal("boom"), 500, "Internal error occurred: boom"),
        ] {
            assert_eq!((status.code, status.message.as_str()), (code, message));
        }
    }

    #[test]
    fn json_shape() {
        let value = Status::not_found("pods", "", "x").to_value();
        assert_eq!(
            value,
            json!({"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
                "message":"pods \"x\" not found","reason":"NotFound","details":{"name":"x","kind":"pods"},
                "code":404})
        );
        let json = Status::not_found("pods", "", "x").to_json(&json!({}), false);
        assert_eq!(
            String::from_utf8(json).unwrap(),
            concat!(
                r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
                r#""message":"pods \"x\" not found","reason":"NotFound","details":{"name":"x","kind":"pods"},"#,
                r#""code":404}"#,
                "\n"
            )
        );
    }
}
