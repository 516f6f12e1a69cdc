//! What the API server's generic handler asks about a resource. A resource is a row of [`Rules`]: facts, and
//! functions where it differs from the rest.

use std::collections::HashMap;
use std::sync::OnceLock;

use apimachinery::status::FieldError;
use apimachinery::user::UserInfo;
use serde_json::Value;

use crate::equality;
use crate::scale::Scale;
use crate::value::{Read, Write};

pub type Errors = Vec<FieldError>;

/// What happens to dependents when a delete does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GarbageCollection {
    /// In the background, after the owner is gone.
    DeleteDependents,
    OrphanDependents,
    /// The resource takes no part: finalizers for orphaning and foreground deletion are never set.
    Unsupported,
}

/// How objects of one resource are made, changed and removed. Objects are in the storage version of the resource
/// ([`crate::convert::storage_version`]); requests in another version are converted first and answers last.
pub trait Strategy: Send + Sync + 'static {
    /// Fills in what was left out. Runs after decoding, again after mutating admission, and on what is read from
    /// storage in an older shape. Idempotent.
    fn defaults(&self, object: &mut Value);

    /// Brings an object on its way to creation into shape: no status, first generation. Its name, uid and creation
    /// time are set already.
    fn prepare_for_create(&self, object: &mut Value);
    /// Writes down who asks, for the kinds that keep it (certificate signing requests). Runs before
    /// [`Strategy::prepare_for_create`].
    fn record_requester(&self, _object: &mut Value, _user: &UserInfo) {}
    /// Carries over what an update through the main resource cannot change (status, system metadata), and counts
    /// the generation.
    fn prepare_for_update(&self, new: &mut Value, old: &Value);
    /// Carries over what an update through `status` cannot change (spec and, for some resources, metadata).
    fn prepare_for_status_update(&self, new: &mut Value, old: &Value);
    /// As [`Strategy::prepare_for_update`] for the other subresources that take the whole object: `resize`,
    /// `ephemeralcontainers` of pods, `finalize` of namespaces, `approval` of certificate signing requests.
    fn prepare_for_subresource_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        match subresource {
            "status" => self.prepare_for_status_update(new, old),
            _ => self.prepare_for_update(new, old),
        }
    }

    /// Writes down when what an update says happened, for the kinds whose clients may leave that to the server. Runs
    /// after the preparation.
    fn stamp(&self, _new: &mut Value, _old: &Value, _now: &dyn Fn() -> String) {}

    fn validate(&self, object: &Value) -> Errors;
    fn validate_update(&self, new: &Value, old: &Value) -> Errors;
    fn validate_status_update(&self, new: &Value, old: &Value) -> Errors;
    fn validate_subresource_update(&self, subresource: &str, new: &Value, old: &Value) -> Errors {
        match subresource {
            "status" => self.validate_status_update(new, old),
            _ => self.validate_update(new, old),
        }
    }

    /// Advice for the client, sent as Warning headers. `old` is absent on create.
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String>;

    /// The values field selectors can ask for beyond `metadata.name` and `metadata.namespace`.
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)>;
    /// The stored name of a field label in a selector, or why it cannot be selected by. `group_version` is the one
    /// the client speaks.
    fn field_label(&self, group_version: &str, label: &str) -> Result<&'static str, String>;

    /// Whether an update of an object that does not exist creates it.
    fn allow_create_on_update(&self) -> bool;
    /// Whether an update may leave out the resource version.
    fn allow_unconditional_update(&self) -> bool;

    /// The grace period with which the object is deleted, or `None` when deletion is immediate for all objects of
    /// the resource. `Some(0)` removes it at once. `requested` is the one in the DeleteOptions.
    fn graceful_deletion(&self, object: &Value, requested: Option<i64>) -> Option<i64>;
    fn default_garbage_collection_policy(&self) -> GarbageCollection;

    fn has_status(&self) -> bool;
    fn scale(&self) -> Option<&'static Scale>;
    /// The fields a write through the main resource (or `status`, `true`) resets, as paths from the root. Appliers
    /// do not own them.
    fn reset_fields(&self, status: bool) -> &'static [&'static [&'static str]];

    /// Completes an object on its way out.
    fn decorate(&self, _object: &mut Value) {}
}

/// Which field labels selectors may use, beyond `metadata.name`.
#[derive(Clone, Copy, Debug)]
pub struct FieldLabels {
    /// (what the client may say, the stored name)
    pub labels: &'static [(&'static str, &'static str)],
    pub error: fn(group_version: &str, label: &str) -> String,
}

fn unknown_field_selector(_: &str, label: &str) -> String {
    format!("{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
}

pub(crate) fn label_not_supported(_: &str, label: &str) -> String {
    format!("field label not supported: {label}")
}

pub(crate) const METADATA_LABELS: FieldLabels = FieldLabels {
    labels: &[("metadata.name", "metadata.name"), ("metadata.namespace", "metadata.namespace")],
    error: unknown_field_selector,
};

/// One resource: a row. `..DEFAULT` fills in what is as for any resource.
pub struct Rules {
    pub group: &'static str,
    pub resource: &'static str,
    pub namespaced: bool,
    pub status: bool,
    /// Whether the status may be given at creation.
    pub status_on_create: bool,
    /// What the status of a new object says, as JSON: members that are always shown.
    pub first_status: &'static str,
    /// A status update leaves labels, annotations, finalizers and owners alone too.
    pub status_keeps_metadata: bool,
    /// Members whose change counts the generation; empty where there is no generation.
    pub generation: &'static [&'static str],
    /// Where the pod's template is, for kinds that have one.
    pub template: &'static str,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub garbage_collection: GarbageCollection,
    /// What is wrong with a name (`true`: with a name prefix, as in generateName).
    pub name: fn(&str, bool) -> Vec<String>,
    pub defaults: fn(&mut Value),
    /// Beyond dropping the status and setting the generation.
    pub prepare_for_create: fn(&mut Value),
    pub record_requester: fn(&mut Value, &UserInfo),
    /// Beyond keeping the status; runs before the generation is counted.
    pub prepare_for_update: fn(&mut Value, &Value),
    /// Beyond keeping the spec.
    pub prepare_for_status_update: fn(&mut Value, &Value),
    /// `None` where the subresource is handled as an update.
    pub prepare_for_subresource: Option<fn(&str, &mut Value, &Value)>,
    /// What [`Strategy::stamp`] does; the time is RFC 3339.
    pub stamp: Option<fn(&mut Value, &Value, &str)>,
    /// Beyond metadata.
    pub validate: fn(&Value) -> Errors,
    /// Whether an update is looked at as a creation, too, as far as metadata goes.
    pub revalidates: bool,
    pub validate_update: fn(&Value, &Value) -> Errors,
    pub validate_status_update: fn(&Value, &Value) -> Errors,
    pub validate_subresource: Option<fn(&str, &Value, &Value) -> Errors>,
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    pub fields: fn(&Value) -> Vec<(&'static str, String)>,
    pub field_labels: FieldLabels,
    pub graceful_deletion: fn(&Value, Option<i64>) -> Option<i64>,
    pub scale: Option<&'static Scale>,
    pub reset: &'static [&'static [&'static str]],
    pub reset_by_status: &'static [&'static [&'static str]],
    pub decorate: fn(&mut Value),
}

pub const DEFAULT: Rules = Rules {
    group: "",
    resource: "",
    namespaced: true,
    status: false,
    status_on_create: false,
    first_status: "",
    status_keeps_metadata: false,
    generation: &[],
    template: "",
    create_on_update: false,
    unconditional_update: true,
    garbage_collection: GarbageCollection::DeleteDependents,
    name: crate::meta::subdomain_name,
    defaults: |_| {},
    prepare_for_create: |_| {},
    record_requester: |_, _| {},
    prepare_for_update: |_, _| {},
    prepare_for_status_update: |_, _| {},
    prepare_for_subresource: None,
    stamp: None,
    validate: |_| vec![],
    revalidates: false,
    validate_update: |_, _| vec![],
    validate_status_update: |_, _| vec![],
    validate_subresource: None,
    warnings: |_, _| vec![],
    fields: |_| vec![],
    field_labels: METADATA_LABELS,
    graceful_deletion: |_, _| None,
    scale: None,
    reset: &[],
    reset_by_status: &[],
    decorate: |_| {},
};

pub(crate) const STATUS: &[&[&str]] = &[&["status"]];
pub(crate) const SPEC: &[&[&str]] = &[&["spec"]];
pub(crate) const SPEC_AND_METADATA: &[&[&str]] = &[&["spec"], &["metadata"]];

/// A resource with a status of its own.
pub const WITH_STATUS: Rules = Rules { status: true, reset: STATUS, reset_by_status: SPEC, ..DEFAULT };

/// System metadata an update cannot change.
fn keep_system_metadata(new: &mut Value, old: &Value) {
    new.copy_from(old, "metadata.generation");
    if new.text("metadata.uid").is_empty() {
        new.copy_from(old, "metadata.uid");
    }
    if old.has("metadata.creationTimestamp") {
        new.copy_from(old, "metadata.creationTimestamp");
    }
    if old.has("metadata.deletionTimestamp") {
        new.copy_from(old, "metadata.deletionTimestamp");
        if !new.has("metadata.deletionGracePeriodSeconds") {
            new.copy_from(old, "metadata.deletionGracePeriodSeconds");
        }
    }
}

impl Rules {
    /// Most built-in kinds know the finalizers that are not qualified by a domain.
    fn finalizers(&self, errors: &mut Errors, object: &Value) {
        let any = matches!(self.resource, "" | "events")
            || matches!(
                self.group,
                "apiextensions.k8s.io"
                    | "apiregistration.k8s.io"
                    | "coordination.k8s.io"
                    | "policy"
                    | "admissionregistration.k8s.io"
            );
        if !any {
            crate::meta::known_finalizers(errors, object.list("metadata.finalizers"));
        }
    }

    /// Drops what features that are off would need from the pod's template.
    fn drop_disabled(&self, object: &mut Value) {
        if !self.template.is_empty()
            && let Some(spec) = object.find_mut(self.template).and_then(|template| template.find_mut("spec"))
        {
            crate::core_v1::pod::drop_disabled(spec);
        }
    }

    fn count_generation(&self, new: &mut Value, old: &Value) {
        if self.generation.iter().any(|path| !equality::same_at(new, old, path)) {
            new.put("metadata.generation", old.int("metadata.generation") + 1);
        }
    }
}

impl Strategy for Rules {
    fn defaults(&self, object: &mut Value) {
        (self.defaults)(object);
    }

    fn record_requester(&self, object: &mut Value, user: &UserInfo) {
        (self.record_requester)(object, user);
    }

    fn prepare_for_create(&self, object: &mut Value) {
        if self.status && !self.status_on_create {
            object.remove("status");
            if let Ok(first) = serde_json::from_str::<Value>(self.first_status) {
                object.put("status", first);
            }
        }
        object.remove("metadata.deletionTimestamp");
        object.remove("metadata.deletionGracePeriodSeconds");
        if !self.generation.is_empty() {
            object.put("metadata.generation", 1);
        }
        self.drop_disabled(object);
        (self.prepare_for_create)(object);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        keep_system_metadata(new, old);
        if self.status {
            new.copy_from(old, "status");
        }
        self.drop_disabled(new);
        (self.prepare_for_update)(new, old);
        self.count_generation(new, old);
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        keep_system_metadata(new, old);
        // Everything but the status: some kinds have no member named spec.
        if let (Some(members), Some(was)) = (new.as_object_mut(), old.as_object()) {
            let kept = |name: &str| matches!(name, "status" | "metadata" | "kind" | "apiVersion");
            members.retain(|name, _| kept(name) || was.contains_key(name));
            for (name, value) in was {
                if !kept(name) {
                    members.insert(name.clone(), value.clone());
                }
            }
        }
        if self.status_keeps_metadata {
            for path in [
                "metadata.deletionTimestamp",
                "metadata.labels",
                "metadata.annotations",
                "metadata.finalizers",
                "metadata.ownerReferences",
            ] {
                new.copy_from(old, path);
            }
        }
        (self.prepare_for_status_update)(new, old);
    }

    fn prepare_for_subresource_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        match (subresource, self.prepare_for_subresource) {
            ("status", _) => self.prepare_for_status_update(new, old),
            ("", _) | (_, None) => self.prepare_for_update(new, old),
            (_, Some(prepare)) => {
                keep_system_metadata(new, old);
                prepare(subresource, new, old);
                self.count_generation(new, old);
            }
        }
    }

    fn stamp(&self, new: &mut Value, old: &Value, now: &dyn Fn() -> String) {
        if let Some(stamp) = self.stamp {
            stamp(new, old, &now());
        }
    }

    fn validate(&self, object: &Value) -> Errors {
        let mut errors = crate::meta::validate(object.at("metadata"), self.namespaced, self.name);
        self.finalizers(&mut errors, object);
        errors.extend((self.validate)(object));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Errors {
        let mut errors = crate::meta::validate_update(new.at("metadata"), old.at("metadata"));
        self.finalizers(&mut errors, new);
        if self.revalidates {
            crate::meta::revalidate(&mut errors, new.at("metadata"), old.at("metadata"), self.name);
        }
        errors.extend((self.validate_update)(new, old));
        errors
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Errors {
        let mut errors = crate::meta::validate_update(new.at("metadata"), old.at("metadata"));
        self.finalizers(&mut errors, new);
        errors.extend((self.validate_status_update)(new, old));
        errors
    }

    fn validate_subresource_update(&self, subresource: &str, new: &Value, old: &Value) -> Errors {
        match (subresource, self.validate_subresource) {
            ("status", _) => self.validate_status_update(new, old),
            ("", _) | (_, None) => self.validate_update(new, old),
            (_, Some(validate)) => {
                let mut errors = crate::meta::validate_update(new.at("metadata"), old.at("metadata"));
                if self.revalidates {
                    crate::meta::revalidate(&mut errors, new.at("metadata"), old.at("metadata"), self.name);
                }
                errors.extend(validate(subresource, new, old));
                errors
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        (self.warnings)(object, old)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        (self.fields)(object)
    }

    fn field_label(&self, group_version: &str, label: &str) -> Result<&'static str, String> {
        if label == "metadata.name" {
            return Ok("metadata.name");
        }
        self.field_labels
            .labels
            .iter()
            .find(|(said, _)| *said == label)
            .map(|(_, stored)| *stored)
            .ok_or_else(|| (self.field_labels.error)(group_version, label))
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn graceful_deletion(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        (self.graceful_deletion)(object, requested)
    }

    fn default_garbage_collection_policy(&self) -> GarbageCollection {
        self.garbage_collection
    }

    fn has_status(&self) -> bool {
        self.status
    }

    fn scale(&self) -> Option<&'static Scale> {
        self.scale
    }

    fn reset_fields(&self, status: bool) -> &'static [&'static [&'static str]] {
        if status { self.reset_by_status } else { self.reset }
    }

    fn decorate(&self, object: &mut Value) {
        (self.decorate)(object);
    }
}

/// The strategy of a built-in resource; one good for any resource where the group or resource is not built in.
/// `group` is empty for the core group.
pub fn strategy(group: &str, resource: &str) -> &'static dyn Strategy {
    static BY_NAME: OnceLock<HashMap<(&'static str, &'static str), &'static Rules>> = OnceLock::new();
    static ANY: Rules = DEFAULT;
    let by_name = BY_NAME.get_or_init(|| {
        crate::groups::ALL.iter().flat_map(|g| g.iter()).map(|r| ((r.group, r.resource), r)).collect()
    });
    by_name.get(&(group, resource)).copied().unwrap_or(&ANY)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn splits_status_from_the_rest() {
        let deployments = strategy("apps", "deployments");
        let mut created =
            json!({"metadata": {"name": "a"}, "spec": {"replicas": 1}, "status": {"replicas": 9}});
        deployments.prepare_for_create(&mut created);
        assert_eq!(
            created,
            json!({"metadata": {"name": "a", "generation": 1}, "spec": {"replicas": 1}, "status": {}})
        );

        let old = json!({"metadata": {"generation": 4}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let new = json!({"metadata": {"generation": 99}, "spec": {"replicas": 2}, "status": {"replicas": 9}});
        let mut by_main = new.clone();
        deployments.prepare_for_update(&mut by_main, &old);
        assert_eq!(
            by_main,
            json!({"metadata": {"generation": 5}, "spec": {"replicas": 2}, "status": {"replicas": 1}})
        );
        let mut by_status = new;
        deployments.prepare_for_status_update(&mut by_status, &old);
        assert_eq!(
            by_status,
            json!({"metadata": {"generation": 4}, "spec": {"replicas": 1}, "status": {"replicas": 9}})
        );
    }

    #[test]
    fn names_field_labels() {
        for (group, resource, version, label, want) in [
            ("", "pods", "v1", "spec.nodeName", Ok("spec.nodeName")),
            ("", "pods", "v1", "spec.host", Ok("spec.nodeName")),
            ("", "pods", "v1", "spec.x", Err("field label not supported: spec.x")),
            ("events.k8s.io", "events", "events.k8s.io/v1", "regarding.name", Ok("involvedObject.name")),
            ("", "events", "v1", "regarding.name", Err("field label not supported: regarding.name")),
            ("batch", "jobs", "batch/v1", "x", Err("field label \"x\" not supported for Job")),
            (
                "",
                "configmaps",
                "v1",
                "data.x",
                Err(
                    "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                ),
            ),
        ] {
            let got = strategy(group, resource).field_label(version, label);
            assert_eq!(got.as_deref().map_err(String::as_str), want.as_deref().map_err(|e: &&str| *e));
        }
    }

    #[test]
    fn pods_go_with_their_grace_period() {
        let pods = strategy("", "pods");
        let running = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        for (pod, requested, want) in [
            (running.clone(), None, Some(30)),
            (running.clone(), Some(5), Some(5)),
            (running.clone(), Some(-3), Some(1)),
            (json!({"spec": {"terminationGracePeriodSeconds": 30}}), Some(9), Some(0)),
            (json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), Some(9), Some(0)),
        ] {
            assert_eq!(pods.graceful_deletion(&pod, requested), want);
        }
        assert_eq!(strategy("", "secrets").graceful_deletion(&json!({}), Some(3)), None);
    }
}
