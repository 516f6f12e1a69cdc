//! Names and amounts of resources: cpu, memory, `example.com/gpu`.

use apimachinery::quantity::Quantity;
use serde_json::Value;

use crate::check::{self, NOT_NEGATIVE, Report};
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, quantity};

const CONTAINER: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const COUNTED: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const AMOUNTS: [&str; 8] = [
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "requests.storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "storage",
];

pub fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Of Kubernetes itself: unprefixed, or under `kubernetes.io/`.
pub fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Of somebody else: prefixed by a domain, and still a valid name as a quota for requests.
pub fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && check::qualified_name(&format!("requests.{name}")).is_empty()
}

fn is_standard(name: &str) -> bool {
    CONTAINER.contains(&name)
        || COUNTED.contains(&name)
        || AMOUNTS.contains(&name)
        || is_huge_page(name)
        || name.starts_with("requests.hugepages-")
}

pub fn is_standard_quota(name: &str) -> bool {
    is_standard(name) && name != "storage"
}

pub fn is_standard_container(name: &str) -> bool {
    CONTAINER.contains(&name) || is_huge_page(name)
}

fn is_whole(name: &str) -> bool {
    COUNTED.contains(&name) || is_extended(name)
}

/// Whether requests may be below limits.
fn is_overcommittable(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

/// A name of anything that has an amount.
pub fn name(errors: &mut Errors, name: &str, path: &Path<'_>) -> bool {
    let messages = check::qualified_name(name);
    if !messages.is_empty() {
        errors.invalid_each(path, name, messages);
        return false;
    }
    if !name.contains('/') && !is_standard(name) {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

pub fn container_name(errors: &mut Errors, resource: &str, path: &Path<'_>) {
    name(errors, resource, path);
    if !resource.contains('/') {
        if !is_standard_container(resource) {
            errors.invalid(path, resource, "must be a standard resource for containers");
        }
    } else if !is_native(resource) && !is_extended(resource) {
        errors.invalid(path, resource, "doesn't follow extended resource name standard");
    }
}

/// An amount that is not negative, and whole where parts make no sense.
pub fn amount(errors: &mut Errors, resource: &str, value: &Value, path: &Path<'_>) {
    let Some(q) = quantity(value) else { return };
    if q.sign() < 0 {
        errors.invalid(path, q.to_string(), NOT_NEGATIVE);
    }
    if is_whole(resource) && !q.is_whole() {
        errors.invalid(path, q.to_string(), "must be an integer");
    }
}

/// Huge pages come whole.
fn whole_pages(errors: &mut Errors, resource: &str, value: &Value, path: &Path<'_>) {
    let size = resource.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok());
    if let (Some(size), Some(q)) = (size, quantity(value))
        && size.value() > 0
        && (q.value() <= 0 || q.value() % size.value() != 0)
    {
        errors.invalid(path, q.to_string(), format!("{q} is not positive integer multiple of {resource}"));
    }
}

/// `resources` of a container or of a pod. `claims` are the names of the pod's resource claims.
pub fn requirements(
    errors: &mut Errors,
    requirements: &Value,
    claims: &[&str],
    pod_level: bool,
    path: &Path<'_>,
) {
    let (limit_path, request_path) = (path.child("limits"), path.child("requests"));
    let check_name = |errors: &mut Errors, resource: &str, path: &Path<'_>| {
        if pod_level {
            if name(errors, resource, path)
                && !(matches!(resource, "cpu" | "memory") || is_huge_page(resource))
            {
                errors.not_supported(path, resource, &["cpu", "hugepages-", "memory"]);
            }
        } else {
            container_name(errors, resource, path);
        }
    };
    let (mut huge, mut compute) = (false, false);
    for (resource, value) in requirements.entries("limits") {
        let path = limit_path.key(resource);
        check_name(errors, resource, &path);
        amount(errors, resource, value, &path);
        whole_pages(errors, resource, value, &path);
        huge |= is_huge_page(resource);
        compute |= matches!(resource.as_str(), "cpu" | "memory");
    }
    for (resource, value) in requirements.entries("requests") {
        let path = request_path.key(resource);
        check_name(errors, resource, &path);
        amount(errors, resource, value, &path);
        huge |= is_huge_page(resource);
        compute |= matches!(resource.as_str(), "cpu" | "memory");
        let Some(request) = quantity(value) else { continue };
        match quantity(requirements.at("limits").get_or_null(resource)) {
            Some(limit) if request != limit && !is_overcommittable(resource) => errors.invalid(
                &request_path,
                request.to_string(),
                format!("must be equal to {resource} limit of {limit}"),
            ),
            Some(limit) if request > limit => errors.invalid(
                &request_path,
                request.to_string(),
                format!("must be less than or equal to {resource} limit of {limit}"),
            ),
            None if !is_overcommittable(resource) => {
                errors.required(&limit_path, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
        whole_pages(errors, resource, value, &path);
    }
    if huge && !compute {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    let path = path.child("claims");
    let mut seen: Vec<(&str, &str)> = vec![];
    for (i, claim) in requirements.list("claims").iter().enumerate() {
        let (name, request) = (claim.text("name"), claim.text("request"));
        let path = path.index(i);
        if name.is_empty() {
            errors.required(&path, "");
            continue;
        }
        if !request.is_empty() {
            errors.invalid_each(&path.child("request"), request, check::dns1123_label(request));
        }
        // A whole claim and one of its requests cannot both be asked for.
        let clash =
            seen.iter().any(|(n, r)| *n == name && (*r == request || r.is_empty() || request.is_empty()));
        if clash {
            let whole = request.is_empty() || seen.iter().any(|(n, r)| *n == name && r.is_empty());
            errors.duplicate(&path, if whole { name.to_owned() } else { format!("{name}/{request}") });
        }
        seen.push((name, request));
        if !claims.contains(&name) {
            let known = if claims.is_empty() {
                " which is empty".to_owned()
            } else {
                let mut claims = claims.to_vec();
                claims.sort_unstable();
                format!(": {}", claims.join(", "))
            };
            errors.report(
                apimachinery::status::FieldErrorKind::NotFound,
                &path,
                Some(name.into()),
                format!("must be one of the names in pod.spec.resourceClaims{known}"),
            );
        }
    }
}
