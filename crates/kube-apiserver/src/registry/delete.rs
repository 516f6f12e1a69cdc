//! Removing objects: at once, after a grace period, or when their finalizers are gone.

use std::sync::Arc;

use api::strategy::GarbageCollection;
use apimachinery::clock::rfc3339_seconds;
use apimachinery::object::Encoded;
use apimachinery::status::Status;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::write::{Write, encode};
use super::{Entry, Stored, meta, output, unchanged};
use crate::custom;
use crate::seams::{AdmissionRequest, Operation};
use crate::security::failure;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS_MAX: usize = 8;

/// `metav1.DeleteOptions`, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub propagation: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options in a body.
    pub fn from_value(value: &Value) -> Result<DeleteOptions, Status> {
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let dry_run: Vec<&str> =
            value["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let options = DeleteOptions {
            grace_period_seconds: value["gracePeriodSeconds"].as_i64(),
            uid: text(&value["preconditions"]["uid"]),
            resource_version: text(&value["preconditions"]["resourceVersion"]),
            orphan_dependents: value["orphanDependents"].as_bool(),
            propagation: value["propagationPolicy"].as_str().map(str::to_owned),
            dry_run: !dry_run.is_empty(),
        };
        options.check(&dry_run)?;
        Ok(options)
    }

    fn check(&self, dry_run: &[&str]) -> Result<(), Status> {
        use apimachinery::field_path::Path;
        use apimachinery::status::FieldError;
        let mut errors = Vec::new();
        if self.propagation.is_some() && self.orphan_dependents.is_some() {
            errors.push(FieldError::invalid(
                &Path::new("propagationPolicy"),
                self.propagation.clone().unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if let Some(policy) = &self.propagation
            && !matches!(policy.as_str(), "Orphan" | "Background" | "Foreground")
        {
            errors.push(FieldError::not_supported(
                &Path::new("propagationPolicy"),
                policy.clone(),
                &["Foreground", "Background", "Orphan", "nil"],
            ));
        }
        if dry_run.iter().any(|d| *d != "All") {
            errors.push(FieldError::not_supported(&Path::new("dryRun"), dry_run.to_vec(), &["All"]));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Status::invalid("DeleteOptions", "meta.k8s.io", "", errors))
        }
    }
}

/// What to do with an object that somebody wants gone.
#[derive(Debug, PartialEq)]
pub enum Plan {
    Remove,
    /// Store this state; it goes when its finalizers or its grace period have.
    Mark(Value),
    /// It is going already, at least as fast.
    Wait,
}

/// Decides how `old` is deleted.
pub fn plan(entry: &Entry, old: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    if entry.is("", "namespaces") {
        return plan_namespace(old, options, entry, now);
    }
    if entry.is("apiextensions.k8s.io", "customresourcedefinitions") && !meta::is_deleting(old) {
        return Plan::Mark(definition_going(old, now));
    }
    let mut new = old.clone();
    let finalizers = meta::finalizers(old);
    let wanted = finalizers_for(entry.strategy.default_garbage_collection_policy(), &finalizers, options);
    if wanted != finalizers {
        if wanted.is_empty() {
            meta::clear(&mut new, "finalizers");
        } else {
            meta::set(&mut new, "finalizers", wanted.clone());
        }
    }
    let deleting = meta::is_deleting(old);
    let present_grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if let Some(grace) = entry.strategy.graceful_deletion(old, options.grace_period_seconds) {
        if deleting {
            match present_grace {
                Some(present) if present > 0 => {
                    // Only a shorter period than the one that runs changes anything.
                    if options.grace_period_seconds.is_none() || grace >= present {
                        return Plan::Wait;
                    }
                    if grace == 0 && wanted.is_empty() {
                        return Plan::Remove;
                    }
                    let began = meta::text(old, "deletionTimestamp")
                        .parse::<Timestamp>()
                        .map(|t| t - SignedDuration::from_secs(present))
                        .unwrap_or(now);
                    mark(&mut new, began, grace);
                    return Plan::Mark(new);
                }
                _ => {}
            }
        } else if grace > 0 {
            mark(&mut new, now, grace);
            bump_generation(&mut new);
            return Plan::Mark(new);
        } else if !wanted.is_empty() {
            mark(&mut new, now, 0);
            bump_generation(&mut new);
            return Plan::Mark(new);
        }
    }
    if wanted.is_empty() {
        return Plan::Remove;
    }
    if !deleting {
        mark(&mut new, now, 0);
        bump_generation(&mut new);
    } else if present_grace != Some(0) {
        meta::set(&mut new, "deletionGracePeriodSeconds", 0);
    }
    if new == *old { Plan::Wait } else { Plan::Mark(new) }
}

/// A definition that is to go, whatever becomes of what else depends on it: first its objects go.
fn definition_going(old: &Value, now: Timestamp) -> Value {
    let mut new = old.clone();
    let mut finalizers = meta::finalizers(old);
    if !finalizers.iter().any(|f| f == custom::controller::CLEANUP) {
        finalizers.push(custom::controller::CLEANUP.to_owned());
    }
    meta::set(&mut new, "finalizers", finalizers);
    meta::set(&mut new, "deletionTimestamp", rfc3339_seconds(now));
    let condition = serde_json::json!({
        "type": "Terminating",
        "status": "True",
        "lastTransitionTime": rfc3339_seconds(now),
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    });
    if !new["status"].is_object() {
        new["status"] = serde_json::json!({});
    }
    match &mut new["status"]["conditions"] {
        Value::Array(conditions) => {
            conditions.retain(|c| c["type"] != "Terminating");
            conditions.push(condition);
        }
        none => *none = Value::Array(vec![condition]),
    }
    new
}

fn plan_namespace(old: &Value, options: &DeleteOptions, entry: &Entry, now: Timestamp) -> Plan {
    let held = !old["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    let finalizers = meta::finalizers(old);
    let wanted = finalizers_for(entry.strategy.default_garbage_collection_policy(), &finalizers, options);
    if meta::is_deleting(old) {
        return if held || !finalizers.is_empty() { Plan::Wait } else { Plan::Remove };
    }
    if !held && wanted.is_empty() {
        return Plan::Remove;
    }
    let mut new = old.clone();
    meta::set(&mut new, "deletionTimestamp", rfc3339_seconds(now));
    if wanted != finalizers {
        meta::set(&mut new, "finalizers", wanted);
    }
    new["status"]["phase"] = "Terminating".into();
    Plan::Mark(new)
}

fn mark(object: &mut Value, since: Timestamp, grace: i64) {
    meta::set(object, "deletionTimestamp", rfc3339_seconds(since + SignedDuration::from_secs(grace)));
    meta::set(object, "deletionGracePeriodSeconds", grace);
}

fn bump_generation(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64().filter(|g| *g > 0) {
        meta::set(object, "generation", generation + 1);
    }
}

/// The finalizers that make the garbage collector orphan or remove the dependents first.
fn finalizers_for(default: GarbageCollection, existing: &[String], options: &DeleteOptions) -> Vec<String> {
    let has = |name: &str| existing.iter().any(|f| f == name);
    let (orphan, foreground) = match (default, options.orphan_dependents, options.propagation.as_deref()) {
        (GarbageCollection::Unsupported, ..) => (false, false),
        (_, Some(orphan), _) => (orphan, false),
        (_, None, Some(policy)) => (policy == "Orphan", policy == "Foreground"),
        _ if has(ORPHAN) => (true, false),
        _ if has(FOREGROUND) => (false, true),
        (default, ..) => (default == GarbageCollection::OrphanDependents, false),
    };
    let mut wanted: Vec<String> =
        existing.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    if orphan {
        wanted.push(ORPHAN.to_owned());
    }
    if foreground {
        wanted.push(FOREGROUND.to_owned());
    }
    // The order of what was there already says nothing new.
    let mut sorted = (wanted.clone(), existing.to_vec());
    sorted.0.sort();
    sorted.1.sort();
    if sorted.0 == sorted.1 { existing.to_vec() } else { wanted }
}

/// What a deletion left.
pub struct Deleted {
    pub object: Arc<Encoded>,
    /// Whether the object is gone.
    pub gone: bool,
}

impl Write<'_> {
    async fn admit_deletion(&mut self, namespace: &str, name: &str, old: &Value) -> Result<(), Status> {
        let Some(policy) = self.policy.clone() else { return Ok(()) };
        let mut nothing = Value::Null;
        let mut request = AdmissionRequest {
            operation: Operation::Delete,
            group: &self.entry.group,
            version: &self.entry.version,
            kind: &self.entry.kind,
            resource: &self.entry.resource,
            subresource: self.subresource,
            namespace: if self.entry.is("", "namespaces") { name } else { namespace },
            name,
            user: self.user,
            dry_run: self.dry_run,
            options: &self.options,
            object: &mut nothing,
            old_object: Some(old),
            warnings: &mut self.warnings,
            annotations: &mut self.annotations,
            elsewhere: &mut self.elsewhere,
        };
        policy.admission.admit(&mut request).await?;
        policy.admission.validate(&mut request).await
    }

    pub async fn delete(
        &mut self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let (entry, registry) = (self.entry, self.registry);
        let cache = registry.cache_of(entry)?;
        let key = entry.key(namespace, name);
        let missing = || Status::not_found(&entry.resource, &entry.group, name);
        if entry.is("scheduling.k8s.io", "priorityclasses")
            && matches!(name, "system-node-critical" | "system-cluster-critical")
        {
            let why = "this is a system priority class and cannot be deleted";
            return Err(failure::forbidden(&entry.group, &entry.resource, name, why));
        }
        for _ in 0..ATTEMPTS_MAX {
            let stored = registry.read(cache, &key).await?.ok_or_else(missing)?;
            let old = output::working(entry, &stored)?;
            for (said, what, is, so) in [
                (&options.uid, "UID", meta::text(&old, "uid"), "deleted and then recreated"),
                (
                    &options.resource_version,
                    "ResourceVersion",
                    meta::text(&old, "resourceVersion"),
                    "modified",
                ),
            ] {
                if let Some(said) = said.as_deref().filter(|s| *s != is) {
                    let why = format!(
                        "the {what} in the precondition ({said}) does not match the {what} in record ({is}). The \
                         object might have been {so}"
                    );
                    return Err(Status::conflict(&entry.kind, &entry.group, name, why));
                }
            }
            self.admit_deletion(namespace, name, &old).await?;
            let outcome = match plan(entry, &old, options, registry.clock.now()) {
                Plan::Wait => return Ok(Deleted { object: stored, gone: false }),
                Plan::Mark(mut new) => {
                    output::worked(entry, &mut new)?;
                    let encoded = encode(entry, &mut new);
                    if self.dry_run {
                        let object = Encoded { resource_version: stored.resource_version, ..encoded };
                        return Ok(Deleted { object: Arc::new(object), gone: false });
                    }
                    let put =
                        registry.put(cache, &key, unchanged(&stored), Arc::new(encoded.clone()), 0).await?;
                    match put {
                        Stored::Done { revision } => {
                            let object = Arc::new(Encoded { resource_version: revision, ..encoded });
                            return Ok(Deleted { object, gone: false });
                        }
                        changed => changed,
                    }
                }
                Plan::Remove => {
                    if self.dry_run {
                        return Ok(Deleted { object: stored, gone: true });
                    }
                    match registry.remove(cache, &key, unchanged(&stored)).await? {
                        Stored::Done { .. } => {
                            if entry.is("", "services")
                                && let Some(policy) = &self.policy
                            {
                                policy.allocators.service_deleted(&old).await;
                            }
                            return Ok(Deleted { object: stored, gone: true });
                        }
                        changed => changed,
                    }
                }
            };
            if let Stored::Changed(None) = outcome {
                return Err(missing());
            }
        }
        Err(Status::conflict(&entry.resource, &entry.group, name, apimachinery::status::MODIFIED))
    }
}
