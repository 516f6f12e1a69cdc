//! Roles and bindings.

use serde_json::Value;

use crate::check::{self, Report};
use crate::meta;
use crate::path::Path;
use crate::strategy::{DEFAULT, Errors, Rules};
use crate::value::{Read, Write};

pub const GROUP: &str = "rbac.authorization.k8s.io";

const BASE: Rules = Rules { group: GROUP, create_on_update: true, name: meta::path_segment_name, ..DEFAULT };

pub static RULES: &[Rules] = &[
    Rules {
        resource: "roles",
        validate: validate_role,
        validate_update: |new, _| validate_role(new),
        ..BASE
    },
    Rules {
        resource: "rolebindings",
        defaults: binding_defaults,
        validate: validate_binding,
        validate_update: validate_binding_update,
        ..BASE
    },
    Rules {
        resource: "clusterroles",
        validate: validate_cluster_role,
        validate_update: |new, _| validate_cluster_role(new),
        namespaced: false,
        ..BASE
    },
    Rules {
        resource: "clusterrolebindings",
        namespaced: false,
        defaults: binding_defaults,
        validate: validate_binding,
        validate_update: validate_binding_update,
        ..BASE
    },
];

fn binding_defaults(binding: &mut Value) {
    binding.put_default_text("roleRef.apiGroup", GROUP);
    for subject in binding.list_mut("subjects") {
        if matches!(subject.text("kind"), "User" | "Group") {
            subject.put_default_text("apiGroup", GROUP);
        }
    }
}

fn rules(errors: &mut Errors, role: &Value, namespaced: bool) {
    for (i, rule) in role.list("rules").iter().enumerate() {
        let list = Path::new("rules");
        let path = list.index(i);
        if rule.list("verbs").is_empty() {
            errors.required(&path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = rule.list("nonResourceURLs");
        if !urls.is_empty() {
            let path = path.child("nonResourceURLs");
            if namespaced {
                errors.invalid(&path, urls.to_vec(), "namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|l| !rule.list(l).is_empty()) {
                errors.invalid(
                    &path,
                    urls.to_vec(),
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if rule.list("apiGroups").is_empty() {
            errors.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
        }
        if rule.list("resources").is_empty() {
            errors.required(&path.child("resources"), "resource rules must supply at least one resource");
        }
    }
}

fn validate_role(role: &Value) -> Errors {
    let mut errors = Errors::new();
    rules(&mut errors, role, true);
    errors
}

fn validate_cluster_role(role: &Value) -> Errors {
    let mut errors = Errors::new();
    rules(&mut errors, role, false);
    if role.has("aggregationRule") {
        let rule = Path::new("aggregationRule");
        let path = rule.child("clusterRoleSelectors");
        let selectors = role.list("aggregationRule.clusterRoleSelectors");
        if selectors.is_empty() {
            errors.required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for (i, selector) in selectors.iter().enumerate() {
            let path = path.index(i);
            meta::label_selector(&mut errors, selector, &path);
            if !meta::is_readable_selector(selector) {
                errors.invalid(&path, Value::Null, "invalid label selector.");
            }
        }
    }
    errors
}

fn validate_binding(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    let namespaced = !binding.text("metadata.namespace").is_empty();
    let path = Path::new("roleRef");
    errors.one_of(&path.child("apiGroup"), binding.text("roleRef.apiGroup"), &[GROUP]);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    errors.one_of(&path.child("kind"), binding.text("roleRef.kind"), kinds);
    let name = binding.text("roleRef.name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        errors.invalid_each(&path.child("name"), name, meta::path_segment_name(name, false));
    }
    for (i, subject) in binding.list("subjects").iter().enumerate() {
        let list = Path::new("subjects");
        let path = list.index(i);
        let (name, group) = (subject.text("name"), subject.text("apiGroup"));
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        match subject.text("kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errors.invalid_each(&path.child("name"), name, check::dns1123_subdomain(name));
                }
                errors.one_of(&path.child("apiGroup"), group, &[""]);
                if !namespaced && subject.text("namespace").is_empty() {
                    errors.required(&path.child("namespace"), "");
                }
            }
            "User" | "Group" => errors.one_of(&path.child("apiGroup"), group, &[GROUP]),
            kind => errors.not_supported(&path.child("kind"), kind, &["ServiceAccount", "User", "Group"]),
        }
    }
    errors
}

fn validate_binding_update(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_binding(new);
    if !crate::equality::same_at(new, old, "roleRef") {
        errors.invalid(&Path::new("roleRef"), new.at("roleRef").clone(), "cannot change roleRef");
    }
    errors
}
