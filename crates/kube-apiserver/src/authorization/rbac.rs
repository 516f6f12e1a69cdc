//! Role-based access control, answered from an index per subject.
//!
//! Sketch: a request looks up the user and each of its groups in two maps (cluster-wide, and one of its namespace)
//! and tries the rules found there; nothing is decoded or allocated. When roles or bindings change, the next request
//! rebuilds the maps, decoding only objects that changed (200 bindings: tens of microseconds).

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::object::Encoded;
use apimachinery::user::UserInfo;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::watch;

use super::rule::PolicyRule;
use crate::seams::{Objects, RequestInfo};

pub const GROUP: &str = "rbac.authorization.k8s.io";
const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

#[derive(Debug, Default, Deserialize)]
struct RoleObject {
    #[serde(default)]
    rules: Option<Vec<PolicyRule>>,
}

/// A binding's subject.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Subject {
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BindingObject {
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

/// What one binding gives one subject.
#[derive(Clone, Debug)]
struct Grant {
    /// `None` when the role does not exist.
    rules: Option<Arc<[PolicyRule]>>,
    binding: Arc<Encoded>,
    role: Arc<BindingObject>,
    subject: usize,
}

impl Grant {
    fn describe(&self) -> String {
        let subject = &self.role.subjects.as_deref().unwrap_or_default()[self.subject];
        let subject_name = if subject.kind == "ServiceAccount" {
            format!("{}/{}", subject.name, subject.namespace)
        } else {
            subject.name.clone()
        };
        let (kind, name) = if self.binding.namespace().is_empty() {
            ("ClusterRoleBinding", self.binding.name().to_owned())
        } else {
            ("RoleBinding", format!("{}/{}", self.binding.name(), self.binding.namespace()))
        };
        let role = &self.role.role_ref;
        format!("{kind} {name:?} of {} {:?} to {} {subject_name:?}", role.kind, role.name, subject.kind)
    }

    fn missing(&self) -> String {
        let role = &self.role.role_ref;
        format!("{}.{GROUP} {:?} not found", role.kind.to_lowercase(), role.name)
    }
}

#[derive(Debug, Default)]
struct Scope {
    users: HashMap<Box<str>, Vec<Grant>>,
    groups: HashMap<Box<str>, Vec<Grant>>,
}

impl Scope {
    fn grants<'a>(&'a self, user: &'a UserInfo) -> impl Iterator<Item = &'a Grant> {
        let by_user = self.users.get(user.name.as_str()).into_iter().flatten();
        by_user.chain(user.groups.iter().filter_map(|g| self.groups.get(g.as_str())).flatten())
    }
}

#[derive(Debug, Default)]
struct Index {
    revisions: [u64; 4],
    cluster: Scope,
    namespaces: HashMap<Box<str>, Scope>,
}

impl Index {
    fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        let local = if namespace.is_empty() { None } else { self.namespaces.get(namespace) };
        self.cluster.grants(user).chain(local.into_iter().flat_map(|s| s.grants(user)))
    }
}

/// Objects as they were last decoded, by key; reused while their revision stays.
#[derive(Default)]
struct Decoded {
    roles: HashMap<(bool, String), (u64, Arc<[PolicyRule]>)>,
    bindings: HashMap<(bool, String), (u64, Arc<BindingObject>)>,
}

/// What RBAC says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// By which binding.
    Allowed(String),
    /// Roles that could not be found; usually empty.
    NoOpinion(String),
}

pub struct Rbac {
    objects: Arc<dyn Objects>,
    changes: [watch::Receiver<u64>; 4],
    index: ArcSwap<Index>,
    decoded: Mutex<Decoded>,
}

impl Rbac {
    pub fn new(objects: Arc<dyn Objects>) -> Rbac {
        let changes = RESOURCES.map(|r| objects.changes(GROUP, r));
        let rbac = Rbac {
            objects,
            changes,
            index: ArcSwap::from_pointee(Index::default()),
            decoded: Mutex::default(),
        };
        rbac.rebuild();
        rbac
    }

    fn revisions(&self) -> [u64; 4] {
        std::array::from_fn(|i| *self.changes[i].borrow())
    }

    fn index(&self) -> Arc<Index> {
        let index = self.index.load_full();
        if index.revisions == self.revisions() { index } else { self.rebuild() }
    }

    fn rebuild(&self) -> Arc<Index> {
        let mut decoded = self.decoded.lock();
        // Read before the lists: a change in between is seen as one more rebuild, never missed.
        let revisions = self.revisions();
        let current = self.index.load_full();
        if current.revisions == revisions && revisions != [0; 4] {
            return current;
        }
        let index = Arc::new(build(&*self.objects, revisions, &mut decoded));
        self.index.store(index.clone());
        index
    }

    pub fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Verdict {
        let index = self.index();
        let mut missing: Vec<String> = Vec::new();
        for grant in index.grants(user, &request.namespace) {
            match &grant.rules {
                Some(rules) if rules.iter().any(|r| r.allows(request)) => {
                    return Verdict::Allowed(format!("RBAC: allowed by {}", grant.describe()));
                }
                Some(_) => {}
                None => missing.push(grant.missing()),
            }
        }
        Verdict::NoOpinion(match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    /// Whether a request is allowed; unlike [`Rbac::authorize`] it never allocates.
    pub fn allows(&self, user: &UserInfo, request: &RequestInfo) -> bool {
        self.index()
            .grants(user, &request.namespace)
            .filter_map(|g| g.rules.as_deref())
            .flatten()
            .any(|r| r.allows(request))
    }

    /// All rules a user has in a namespace (cluster-wide only, when it is empty), and what could not be resolved.
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let index = self.index();
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        for grant in index.grants(user, namespace) {
            match &grant.rules {
                Some(r) => rules.extend(r.iter().cloned()),
                None => missing.push(grant.missing()),
            }
        }
        (rules, missing)
    }

    /// The rules of the role a binding in `namespace` refers to.
    pub fn role_rules(&self, role: &RoleRef, namespace: &str) -> Option<Vec<PolicyRule>> {
        let object = match role.kind.as_str() {
            "ClusterRole" => self.objects.get(GROUP, "clusterroles", "", &role.name),
            "Role" => self.objects.get(GROUP, "roles", namespace, &role.name),
            _ => None,
        }?;
        object.decode::<RoleObject>().ok().map(|r| r.rules.unwrap_or_default())
    }
}

fn build(objects: &dyn Objects, revisions: [u64; 4], decoded: &mut Decoded) -> Index {
    let mut roles = HashMap::new();
    for (cluster, resource) in [(true, "clusterroles"), (false, "roles")] {
        for object in objects.list(GROUP, resource, None) {
            let key = (cluster, object.key());
            let entry = match decoded.roles.remove(&key) {
                Some((revision, rules)) if revision == object.resource_version => (revision, rules),
                _ => {
                    let role: RoleObject = serde_json::from_slice(&object.body).unwrap_or_default();
                    (object.resource_version, role.rules.unwrap_or_default().into())
                }
            };
            roles.insert(key, entry);
        }
    }
    let mut index = Index { revisions, ..Index::default() };
    let mut bindings = HashMap::new();
    for (cluster, resource) in [(true, "clusterrolebindings"), (false, "rolebindings")] {
        for object in objects.list(GROUP, resource, None) {
            let key = (cluster, object.key());
            let (revision, binding) = match decoded.bindings.remove(&key) {
                Some((revision, binding)) if revision == object.resource_version => (revision, binding),
                _ => {
                    let binding: BindingObject = serde_json::from_slice(&object.body).unwrap_or_default();
                    (object.resource_version, Arc::new(binding))
                }
            };
            let role = &binding.role_ref;
            let role_key = match role.kind.as_str() {
                "ClusterRole" => (true, role.name.clone()),
                _ => (false, apimachinery::object::object_key(object.namespace(), &role.name)),
            };
            let rules = roles.get(&role_key).map(|(_, rules)| rules.clone());
            let scope = if cluster {
                &mut index.cluster
            } else {
                index.namespaces.entry(object.namespace().into()).or_default()
            };
            for (i, subject) in binding.subjects.iter().flatten().enumerate() {
                let grant = Grant {
                    rules: rules.clone(),
                    binding: object.clone(),
                    role: binding.clone(),
                    subject: i,
                };
                match subject.kind.as_str() {
                    "User" => scope.users.entry(subject.name.as_str().into()).or_default().push(grant),
                    "Group" => scope.groups.entry(subject.name.as_str().into()).or_default().push(grant),
                    "ServiceAccount" => {
                        let namespace = if subject.namespace.is_empty() {
                            object.namespace()
                        } else {
                            &subject.namespace
                        };
                        let user = format!("system:serviceaccount:{namespace}:{}", subject.name);
                        scope.users.entry(user.into()).or_default().push(grant);
                    }
                    _ => {}
                }
            }
            bindings.insert(key, (revision, binding));
        }
    }
    *decoded = Decoded { roles, bindings };
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::testing::FakeObjects;
    use serde_json::json;

    fn fixture() -> Arc<FakeObjects> {
        let objects = FakeObjects::default();
        let role = |kind: &str, ns: &str, name: &str, rules: serde_json::Value| json!({"kind": kind, "metadata": {"namespace": ns, "name": name}, "rules": rules});
        let pods = json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]);
        objects.put(GROUP, "clusterroles", role("ClusterRole", "", "pod-reader", pods.clone()));
        objects.put(GROUP, "roles", role("Role", "a", "local", pods));
        let bind = |ns: &str, name: &str, kind: &str, role: &str, subjects: serde_json::Value| {
            json!({"metadata": {"namespace": ns, "name": name}, "roleRef": {"kind": kind, "name": role},
                   "subjects": subjects})
        };
        let group = json!([{"kind": "Group", "name": "readers"}]);
        let sa = json!([{"kind": "ServiceAccount", "name": "default", "namespace": "a"}]);
        let bob = json!([{"kind": "User", "name": "bob"}]);
        objects.put(GROUP, "clusterrolebindings", bind("", "all", "ClusterRole", "pod-reader", group));
        objects.put(GROUP, "rolebindings", bind("a", "sa", "ClusterRole", "pod-reader", sa));
        objects.put(GROUP, "rolebindings", bind("a", "bob", "Role", "local", bob.clone()));
        objects.put(GROUP, "rolebindings", bind("b", "bob", "Role", "gone", bob));
        Arc::new(objects)
    }

    #[test]
    fn resolves_bindings() {
        let objects = fixture();
        let rbac = Rbac::new(objects.clone());
        let request = |ns: &str| RequestInfo {
            verb: "list".into(),
            is_resource: true,
            resource: "pods".into(),
            namespace: ns.into(),
            ..RequestInfo::default()
        };
        let sa = UserInfo::new("system:serviceaccount:a:default", &[]);
        for (user, namespace, want) in [
            (UserInfo::new("x", &["readers"]), "", true),
            (UserInfo::new("x", &["readers"]), "b", true),
            (UserInfo::new("x", &[]), "b", false),
            (sa.clone(), "a", true),
            (sa, "", false),
            (UserInfo::new("bob", &[]), "a", true),
            (UserInfo::new("bob", &[]), "b", false),
        ] {
            assert_eq!(rbac.allows(&user, &request(namespace)), want, "{user:?} in {namespace:?}");
        }
        assert_eq!(
            rbac.authorize(&UserInfo::new("x", &["readers"]), &request("")),
            Verdict::Allowed(
                r#"RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "pod-reader" to Group "readers""#
                    .into()
            )
        );
        let bob = UserInfo::new("bob", &[]);
        assert_eq!(
            rbac.authorize(&bob, &request("b")),
            Verdict::NoOpinion(r#"RBAC: role.rbac.authorization.k8s.io "gone" not found"#.into())
        );
        let role = json!({"metadata": {"namespace": "b", "name": "gone"},
                          "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]});
        objects.put(GROUP, "roles", role);
        assert!(rbac.allows(&bob, &request("b")), "a new role is seen by the next request");
    }
}
