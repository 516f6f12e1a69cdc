//! Nodes.

use serde_json::Value;

use crate::check::{self, Report};
use crate::core_v1::pod::{container, scheduling};
use crate::core_v1::resources;
use crate::path::Path;
use crate::strategy::Errors;
use crate::value::{Read, Write};

/// Configuration through the API is gone; its fields are dropped where they were not in use.
pub fn prepare_for_create(node: &mut Value) {
    node.remove("spec.configSource");
    node.remove("status.config");
}

pub fn prepare_for_update(new: &mut Value, old: &Value) {
    if !old.has("spec.configSource") {
        new.remove("spec.configSource");
    }
}

pub fn defaults(node: &mut Value) {
    if !node.has("status.allocatable") && node.has("status.capacity") {
        let capacity = node.at("status.capacity").clone();
        node.put("status.allocatable", capacity);
    }
    // The one range and the list of ranges agree.
    let one = node.text("spec.podCIDR").to_owned();
    match node.list("spec.podCIDRs").first().and_then(Value::as_str).map(str::to_owned) {
        None if !one.is_empty() => node.put("spec.podCIDRs", vec![one]),
        Some(first) if one.is_empty() => node.put("spec.podCIDR", first),
        Some(first) if first != one => node.put("spec.podCIDRs", vec![one]),
        _ => {}
    }
    if let Some(ready) = node.find_mut("status.daemonEndpoints.kubeletEndpoint") {
        ready.put_default("Port", 0);
    }
}

pub fn validate(node: &Value) -> Errors {
    let mut errors = Errors::new();
    taints(&mut errors, node);
    amounts(&mut errors, node);
    let spec = Path::new("spec");
    let path = spec.child("podCIDRs");
    let ranges: Vec<&str> = node.list("spec.podCIDRs").iter().filter_map(Value::as_str).collect();
    for (i, range) in ranges.iter().enumerate() {
        if apimachinery::validation::parse_cidr(range).is_none() {
            errors.invalid(
                &path.index(i),
                *range,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
    if ranges.len() > 2 || (ranges.len() == 2 && ranges[0].contains(':') == ranges[1].contains(':')) {
        errors.invalid(&path, ranges, "may specify no more than one CIDR for each IP family");
    }
    errors
}

fn taints(errors: &mut Errors, node: &Value) {
    let metadata = Path::new("metadata");
    let path = metadata.child("taints");
    let mut seen: Vec<(&str, &str)> = vec![];
    for (i, taint) in node.list("spec.taints").iter().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (taint.text("key"), taint.text("value"), taint.text("effect"));
        errors.invalid_each(&path.child("key"), key, check::qualified_name(key));
        let messages = check::label_value(value);
        if !messages.is_empty() {
            errors.invalid(&path.child("value"), value, messages.join(";"));
        }
        container::choice(errors, taint, "effect", &scheduling::EFFECTS, &path);
        if seen.contains(&(key, effect)) {
            errors.report(
                apimachinery::status::FieldErrorKind::Duplicate,
                &path,
                Some(taint.clone()),
                "taints must be unique by key and effect pair".to_owned(),
            );
        }
        seen.push((key, effect));
    }
}

/// Features a node says it has: sorted, and spelled like `MyFeature/mySubFeature`.
fn declared_features(errors: &mut Errors, node: &Value) {
    let status = Path::new("status");
    let list = status.child("declaredFeatures");
    let names: Vec<&str> = node.list("status.declaredFeatures").iter().filter_map(Value::as_str).collect();
    let spelled = |name: &str| {
        name.split('/').enumerate().all(|(i, part)| {
            let letter = |c: char| if i == 0 { c.is_ascii_uppercase() } else { c.is_ascii_alphabetic() };
            part.starts_with(letter) && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
    };
    for (i, name) in names.iter().enumerate() {
        if name.len() > 253 {
            let why = format!("invalid feature name {name:?}: must be no more than 253 characters");
            errors.invalid(&list.index(i), *name, why);
        } else if !spelled(name) {
            let why = format!(
                "invalid feature name {name:?}: must start with an UpperCamelCase segment, with subsequent segments \
                 separated by '/' (e.g., MyFeature or MyFeature/mySubFeature), and contain only alphanumeric \
                 characters and slashes"
            );
            errors.invalid(&list.index(i), *name, why);
        }
        match names.get(i + 1) {
            Some(next) if next == name => errors.duplicate(&list.index(i + 1), *next),
            Some(next) if next < name => {
                errors.invalid(&list.index(i + 1), *next, "list must be sorted alphabetically");
            }
            _ => {}
        }
    }
}

fn amounts(errors: &mut Errors, node: &Value) {
    let status = Path::new("status");
    for member in ["capacity", "allocatable"] {
        for (name, value) in node.at("status").entries(member) {
            let list = status.child(member);
            let path = list.child(name);
            resources::amount(errors, name, value, &path);
        }
    }
}

/// Of updates through either path.
fn changes(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    amounts(&mut errors, new);
    declared_features(&mut errors, new);
    let status = Path::new("status");
    let addresses = new.list("status.addresses");
    for (i, address) in addresses.iter().enumerate() {
        if addresses[..i].contains(address) {
            errors.duplicate(&status.child("addresses").index(i), address.clone());
        }
    }
    let spec = Path::new("spec");
    let was = old.list("spec.podCIDRs");
    if !was.is_empty() && was != new.list("spec.podCIDRs") {
        errors.forbidden(
            &spec.child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        );
    }
    let was = old.text("spec.providerID");
    if !was.is_empty() && was != new.text("spec.providerID") {
        errors.forbidden(
            &spec.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        );
    }
    if new.text("spec.externalID") != old.text("spec.externalID") {
        errors.forbidden(&spec.child("externalID"), "may not be updated");
    }
    errors
}

pub fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate(new);
    errors.extend(changes(new, old));
    errors
}

pub fn validate_status(new: &Value, old: &Value) -> Errors {
    let mut errors = changes(new, old);
    taints(&mut errors, new);
    errors
}
