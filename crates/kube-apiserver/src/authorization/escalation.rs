//! Nobody grants what they do not have: checks on writes of roles and bindings.
//!
//! Upstream does this in the storage of these resources; here it is one more check after admission.

use apimachinery::status::Status;
use apimachinery::user::{SYSTEM_MASTERS, UserInfo};
use serde_json::Value;

use super::Chain;
use super::rbac::{GROUP, RoleRef};
use super::rule::{PolicyRule, describe, uncovered};
use crate::seams::{AdmissionRequest, Operation, RequestInfo};
use crate::security::failure;

fn rules_of(object: &Value) -> Vec<PolicyRule> {
    serde_json::from_value(object["rules"].clone()).unwrap_or_default()
}

fn everything() -> Vec<PolicyRule> {
    let any = || vec!["*".to_owned()];
    vec![
        PolicyRule { verbs: any(), api_groups: any(), resources: any(), ..PolicyRule::default() },
        PolicyRule { verbs: any(), non_resource_urls: any(), ..PolicyRule::default() },
    ]
}

fn aggregates(role: &Value) -> bool {
    role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|s| !s.is_empty())
}

fn asks(verb: &str, resource: &str, name: &str, namespace: &str) -> RequestInfo {
    RequestInfo {
        verb: verb.into(),
        is_resource: true,
        group: GROUP.into(),
        version: "*".into(),
        resource: resource.into(),
        name: name.into(),
        namespace: namespace.into(),
        ..RequestInfo::default()
    }
}

/// Only fields changed that garbage collection needs to change.
fn only_collects(object: &Value, old: &Value) -> bool {
    let without = |v: &Value| {
        let mut v = v.clone();
        if let Some(meta) = v["metadata"].as_object_mut() {
            for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion", "generation"] {
                meta.remove(field);
            }
        }
        v
    };
    without(object) == without(old)
}

/// Refuses roles and bindings that give more than the user has.
pub fn check(chain: &Chain, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    if request.group != GROUP || !writes || chain.rbac_is_off() || request.user.in_group(SYSTEM_MASTERS) {
        return Ok(());
    }
    if request.old_object.is_some_and(|old| only_collects(request.object, old)) {
        return Ok(());
    }
    let (user, object) = (request.user, &*request.object);
    match request.resource {
        "roles" | "clusterroles" => {
            let escalate = asks("escalate", request.resource, request.name, request.namespace);
            if chain.decide_now(user, &escalate).is_allowed() {
                return Ok(());
            }
            confirm(chain, request, &rules_of(object))?;
            if aggregates(object) || request.old_object.is_some_and(aggregates) {
                let owned = chain.rbac.rules(user, "").0;
                if !uncovered(&owned, &everything()).is_empty() {
                    return Err(refused(
                        request,
                        "must have cluster-admin privileges to use the aggregationRule",
                    ));
                }
            }
            Ok(())
        }
        "rolebindings" | "clusterrolebindings" => {
            let role: RoleRef = serde_json::from_value(object["roleRef"].clone()).unwrap_or_default();
            let resource = if role.kind == "ClusterRole" { "clusterroles" } else { "roles" };
            if chain.decide_now(user, &asks("bind", resource, &role.name, request.namespace)).is_allowed() {
                return Ok(());
            }
            let Some(rules) = chain.rbac.role_rules(&role, request.namespace) else {
                return Err(failure::not_found(GROUP, resource, &role.name));
            };
            confirm(chain, request, &rules)
        }
        _ => Ok(()),
    }
}

fn refused(request: &AdmissionRequest<'_>, message: &str) -> Status {
    let name = request.object["metadata"]["name"].as_str().unwrap_or(request.name);
    failure::forbidden(request.group, request.resource, name, message)
}

fn confirm(chain: &Chain, request: &AdmissionRequest<'_>, wanted: &[PolicyRule]) -> Result<(), Status> {
    let user: &UserInfo = request.user;
    let (owned, unresolved) = chain.rbac.rules(user, request.namespace);
    let missing = uncovered(&owned, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = user.groups.iter().map(|g| format!("{g:?}")).collect();
    let mut message = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        describe(&missing)
    );
    if !unresolved.is_empty() {
        message.push_str(&format!("; resolution errors: [{}]", unresolved.join(", ")));
    }
    Err(refused(request, &message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn nobody_gives_more_than_they_have() {
        let objects = Arc::new(FakeObjects::default());
        let rules = |verbs: Value| json!([{"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}]);
        let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
        objects.put(GROUP, "clusterroles", role("view-pods", rules(json!(["get"]))));
        objects.put(GROUP, "clusterroles", role("all-pods", rules(json!(["*"]))));
        let binder = json!([{"verbs": ["bind"], "apiGroups": [GROUP], "resources": ["clusterroles"], "resourceNames": ["all-pods"]}]);
        objects.put(GROUP, "clusterroles", role("binder", binder));
        for (name, user) in [("view-pods", "alice"), ("binder", "bob")] {
            objects.put(GROUP, "clusterrolebindings", json!({"metadata": {"name": name},
                "roleRef": {"kind": "ClusterRole", "name": name}, "subjects": [{"kind": "User", "name": user}]}));
        }
        let context = context(&objects);
        let binding =
            |name: &str| json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": name}});
        let everything = json!({"metadata": {"name": "r"}, "rules": [],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
        for (user, group, resource, object, want) in [
            ("alice", "", "clusterroles", role("r", rules(json!(["get"]))), None),
            (
                "alice",
                "",
                "clusterroles",
                role("r", rules(json!(["get", "list"]))),
                Some(
                    "is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}",
                ),
            ),
            ("alice", "", "clusterroles", everything, Some("must have cluster-admin privileges")),
            ("root", "system:masters", "clusterroles", role("r", rules(json!(["*"]))), None),
            ("alice", "", "clusterrolebindings", binding("view-pods"), None),
            ("alice", "", "clusterrolebindings", binding("all-pods"), Some("not currently held")),
            ("bob", "", "clusterrolebindings", binding("all-pods"), None),
            ("bob", "", "clusterrolebindings", binding("view-pods"), Some("not currently held")),
            ("bob", "", "clusterrolebindings", binding("none"), Some("\"none\" not found")),
        ] {
            let mut request = Request::create(GROUP, resource, object.clone());
            request.user = UserInfo::new(user, &[group]);
            let got = request.with(|r| check(&context.authorizers, r)).map_err(|s| s.message);
            match want {
                None => assert_eq!(got, Ok(()), "{user} {object}"),
                Some(text) => assert!(got.clone().unwrap_err().contains(text), "{user} {object}: {got:?}"),
            }
        }
    }
}
