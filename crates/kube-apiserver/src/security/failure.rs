//! The failures identity and policy answer with, in upstream's words.

use apimachinery::status::{Cause, Details, Status};
use apimachinery::user::UserInfo;

use crate::seams::RequestInfo;

fn failure(code: u16, reason: &str, message: String) -> Status {
    Status { status: "Failure".into(), code, reason: reason.into(), message, details: None }
}

pub fn unauthorized() -> Status {
    failure(401, "Unauthorized", "Unauthorized".into())
}

pub fn bad_request(message: impl Into<String>) -> Status {
    failure(400, "BadRequest", message.into())
}

pub fn internal(message: impl std::fmt::Display) -> Status {
    failure(500, "InternalError", format!("Internal error occurred: {message}"))
}

/// `pods` or `deployments.apps`.
pub fn group_resource(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

/// `pods "x" is forbidden: message`; without a name the resource alone, without a resource the message alone.
pub fn forbidden(group: &str, resource: &str, name: &str, message: impl std::fmt::Display) -> Status {
    let text = if resource.is_empty() {
        format!("forbidden: {message}")
    } else if name.is_empty() {
        format!("{} is forbidden: {message}", group_resource(group, resource))
    } else {
        format!("{} {name:?} is forbidden: {message}", group_resource(group, resource))
    };
    Status {
        details: Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        })),
        ..failure(403, "Forbidden", text)
    }
}

pub fn not_found(group: &str, resource: &str, name: &str) -> Status {
    Status {
        details: Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        })),
        ..failure(404, "NotFound", format!("{} {name:?} not found", group_resource(group, resource)))
    }
}

pub fn already_exists(group: &str, resource: &str, name: &str) -> Status {
    Status {
        details: Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        })),
        ..failure(
            409,
            "AlreadyExists",
            format!("{} {name:?} already exists", group_resource(group, resource)),
        )
    }
}

pub fn conflict(group: &str, resource: &str, name: &str, why: impl std::fmt::Display) -> Status {
    let what = group_resource(group, resource);
    Status {
        details: Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: resource.into(),
            ..Details::default()
        })),
        ..failure(409, "Conflict", format!("Operation cannot be fulfilled on {what} {name:?}: {why}"))
    }
}

/// A 422 for one field; `value` as it is printed.
pub fn invalid_field(group: &str, kind: &str, name: &str, field: &str, value: &str, detail: &str) -> Status {
    invalid_cause(group, kind, name, "FieldValueInvalid", field, &format!("Invalid value: {value}: {detail}"))
}

/// A 422 with one cause.
pub fn invalid_cause(
    group: &str,
    kind: &str,
    name: &str,
    reason: &str,
    field: &str,
    message: &str,
) -> Status {
    let what = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    let cause = Cause { reason: reason.into(), message: message.into(), field: field.into() };
    Status {
        details: Some(Box::new(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes: vec![cause],
            ..Details::default()
        })),
        ..failure(422, "Invalid", format!("{what} {name:?} is invalid: {field}: {message}"))
    }
}

/// The 403 of a request that no authorizer allowed.
pub fn access_denied(user: &UserInfo, request: &RequestInfo, reason: &str) -> Status {
    let what = access_message(user, request);
    let message = if reason.is_empty() { what } else { format!("{what}: {reason}") };
    forbidden(&request.group, &request.resource, &request.name, message)
}

fn access_message(user: &UserInfo, request: &RequestInfo) -> String {
    let text = if !request.is_resource {
        format!("User {:?} cannot {} path {:?}", user.name, request.verb, request.path)
    } else {
        let resource = if request.subresource.is_empty() {
            request.resource.clone()
        } else {
            format!("{}/{}", request.resource, request.subresource)
        };
        let scope = if request.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", request.namespace)
        };
        format!(
            "User {:?} cannot {} resource {resource:?} in API group {:?} {scope}",
            user.name, request.verb, request.group
        )
    };
    for_browsers(&text)
}

/// Names reach browsers in texts; they must not become markup.
pub fn for_browsers(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_denied() {
        let request = |namespace: &str, name: &str, subresource: &str| RequestInfo {
            verb: "list".into(),
            is_resource: true,
            resource: "pods".into(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.into(),
            ..RequestInfo::default()
        };
        let user = UserInfo::new("x", &[]);
        for (request, reason, want) in [
            (
                request("default", "", ""),
                "",
                r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                request("", "", "log"),
                "RBAC: y",
                r#"pods is forbidden: User "x" cannot list resource "pods/log" in API group "" at the cluster scope: RBAC: y"#,
            ),
            (
                request("a", "p", ""),
                "",
                r#"pods "p" is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "a""#,
            ),
            (
                RequestInfo { verb: "get".into(), path: "/metrics".into(), ..RequestInfo::default() },
                "",
                r#"forbidden: User "x" cannot get path "/metrics""#,
            ),
        ] {
            assert_eq!(access_denied(&user, &request, reason).message, want);
        }
    }
}
