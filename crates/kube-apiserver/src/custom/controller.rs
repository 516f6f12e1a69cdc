//! Follows the definitions: names, conditions, rows of the table, and cleaning up after a deleted one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::registry::access::Access;
use crate::registry::write::Write;
use crate::registry::{Entry, Registry, meta};
use crate::seams::{Objects, Writer};

const GROUP: &str = "apiextensions.k8s.io";
const RESOURCE: &str = "customresourcedefinitions";
/// Keeps a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
const RETRY: Duration = Duration::from_millis(500);

/// What is in the table on behalf of one definition.
struct Served {
    /// uid and generation the rows were made from.
    made_from: String,
    group: String,
    resource: String,
}

pub struct Controller {
    registry: Arc<Registry>,
    access: Access,
    served: HashMap<String, Served>,
}

impl Controller {
    pub fn new(registry: Arc<Registry>) -> Controller {
        Controller { access: Access(registry.clone()), registry, served: HashMap::new() }
    }

    /// Runs until `shutdown`; sets everything up anew whenever a definition changes.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut changes = self.access.changes(GROUP, RESOURCE);
        loop {
            changes.mark_unchanged();
            let settled = tokio::select! {
                () = shutdown.cancelled() => return,
                settled = self.reconcile() => settled,
            };
            let again = async {
                if settled {
                    let _ = changes.changed().await;
                } else {
                    let _ = tokio::time::timeout(RETRY, changes.changed()).await;
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = again => {}
            }
        }
    }

    /// One pass over all definitions; false when something must be tried again.
    async fn reconcile(&mut self) -> bool {
        let definitions = self.access.list(GROUP, RESOURCE, None);
        let mut settled = true;
        let gone: Vec<String> = self
            .served
            .keys()
            .filter(|name| !definitions.iter().any(|d| d.name() == name.as_str()))
            .cloned()
            .collect();
        for name in gone {
            self.withdraw(&name);
        }
        let mut names = Names::default();
        let mut values: Vec<(Arc<Encoded>, Value)> = Vec::new();
        for definition in definitions {
            match definition.to_value() {
                Ok(value) => values.push((definition, value)),
                Err(error) => tracing::error!(name = definition.name(), %error, "unreadable definition"),
            }
        }
        // Who was accepted before goes first.
        values.sort_by_key(|(d, v)| (condition(v, "NamesAccepted") != Some("True"), d.resource_version));
        for (definition, value) in values {
            let accepted = names.accept(&value);
            if let Err(error) = self.reconcile_one(&definition, value, accepted).await {
                tracing::debug!(name = definition.name(), %error, "custom resource definition");
                settled = false;
            }
        }
        settled
    }

    async fn reconcile_one(
        &mut self,
        definition: &Arc<Encoded>,
        mut value: Value,
        accepted: Result<(), (String, String)>,
    ) -> Result<(), Status> {
        let now = self.registry.clock.now_rfc3339();
        let established_before = condition(&value, "Established") == Some("True");
        let names_ok = accepted.is_ok();
        let before = value.clone();
        match accepted {
            Ok(()) => {
                value["status"]["acceptedNames"] = accepted_names(&value);
                set_condition(&mut value, &now, "NamesAccepted", true, "NoConflicts", "no conflicts found");
            }
            Err((reason, message)) => {
                set_condition(&mut value, &now, "NamesAccepted", false, &reason, &message);
            }
        }
        if names_ok || established_before {
            self.publish(definition, &value).await?;
            set_condition(
                &mut value,
                &now,
                "Established",
                true,
                "InitialNamesAccepted",
                "the initial names have been accepted",
            );
        } else {
            set_condition(
                &mut value,
                &now,
                "Established",
                false,
                "NotAccepted",
                "not all names are accepted",
            );
        }
        if meta::is_deleting(&value) {
            return self.clean_up(definition, value).await;
        }
        if value != before {
            let written = self.access.update(GROUP, "v1", &format!("{RESOURCE}/status"), value).await;
            match written {
                Ok(_) => {}
                // The newer state brings another pass.
                Err(status) if matches!(status.code, 404 | 409) => {}
                Err(status) => return Err(status),
            }
        }
        Ok(())
    }

    /// Puts the definition's served versions into the table.
    async fn publish(&mut self, definition: &Arc<Encoded>, value: &Value) -> Result<(), Status> {
        let made_from = format!("{}/{}", definition.uid(), value["metadata"]["generation"]);
        let name = definition.name().to_owned();
        if self.served.get(&name).is_some_and(|s| s.made_from == made_from) {
            return Ok(());
        }
        let kind = super::cache_kind(value);
        let cache = self.registry.cache.add_live(kind).await.map_err(Status::internal)?;
        let objects: Arc<dyn crate::seams::Objects> =
            Arc::new(crate::registry::access::Access(self.registry.clone()));
        let entries = super::entries(definition, value, &cache, &objects);
        let served = Served {
            made_from,
            group: value["spec"]["group"].as_str().unwrap_or_default().to_owned(),
            resource: value["spec"]["names"]["plural"].as_str().unwrap_or_default().to_owned(),
        };
        self.replace(&served, entries);
        self.served.insert(name, served);
        Ok(())
    }

    fn replace(&self, served: &Served, entries: Vec<Arc<Entry>>) {
        self.registry.table.rcu(|table| {
            let mut table = crate::registry::Table::clone(table);
            table.remove(&served.group, &served.resource);
            for entry in &entries {
                table.insert(entry.clone());
            }
            table
        });
    }

    fn withdraw(&mut self, name: &str) {
        if let Some(served) = self.served.remove(name) {
            self.replace(&served, Vec::new());
            self.registry.cache.remove(&format!("{}/{}/", served.group, served.resource));
        }
    }

    /// Deletes the objects of a definition that is being deleted, then lets it go.
    async fn clean_up(&mut self, definition: &Arc<Encoded>, value: Value) -> Result<(), Status> {
        if !meta::finalizers(&value).iter().any(|f| f == CLEANUP) {
            return Ok(());
        }
        if let Some(served) = self.served.get(definition.name()) {
            let (group, resource) = (served.group.clone(), served.resource.clone());
            for object in self.access.list(&group, &resource, None) {
                match Writer::delete(&self.access, &group, &resource, object.namespace(), object.name()).await
                {
                    Ok(()) => {}
                    Err(status) if status.code == 404 => {}
                    Err(status) => return Err(status),
                }
            }
            let left = self.access.list(&group, &resource, None).len();
            if left > 0 {
                return Err(Status::service_unavailable(format!("{left} objects wait for their finalizers")));
            }
        }
        let table = self.registry.table.load_full();
        let entry = table.find(GROUP, "v1", RESOURCE).ok_or_else(Status::no_such_resource)?;
        let user = apimachinery::user::UserInfo::default();
        let mut write = Write::own(&self.registry, entry, &user);
        let release = |old: &Value| {
            let mut new = old.clone();
            let mut finalizers = meta::finalizers(&new);
            finalizers.retain(|f| f != CLEANUP);
            if finalizers.is_empty() {
                meta::clear(&mut new, "finalizers");
            } else {
                meta::set(&mut new, "finalizers", finalizers);
            }
            Ok((new, Vec::new()))
        };
        let released =
            write.update("", definition.name(), crate::registry::write::Change::With(&release)).await;
        // It has no grace period at whose end it would go by itself.
        let gone = match released {
            Ok(_) => Writer::delete(&self.access, GROUP, RESOURCE, "", definition.name()).await,
            Err(status) => Err(status),
        };
        gone.or_else(|status| if status.code == 404 { Ok(()) } else { Err(status) })
    }
}

fn accepted_names(value: &Value) -> Value {
    let names = &value["spec"]["names"];
    let mut accepted = names.clone();
    let kind = names["kind"].as_str().unwrap_or_default().to_owned();
    for (field, usual) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
        if names[field].as_str().unwrap_or_default().is_empty() {
            accepted[field] = usual.into();
        }
    }
    accepted
}

fn condition<'a>(value: &'a Value, kind: &str) -> Option<&'a str> {
    value["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn set_condition(value: &mut Value, now: &str, kind: &str, holds: bool, reason: &str, message: &str) {
    let status = if holds { "True" } else { "False" };
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    if !value["status"]["conditions"].is_array() {
        value["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut) else {
        return;
    };
    let fresh = json!({"type": kind, "status": status, "lastTransitionTime": now, "reason": reason, "message": message});
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(there)
            if there["status"] == status && there["reason"] == reason && there["message"] == message => {}
        Some(there) => {
            let since =
                if there["status"] == status { there["lastTransitionTime"].clone() } else { now.into() };
            *there = fresh;
            there["lastTransitionTime"] = since;
        }
        None => conditions.push(fresh),
    }
}

/// The names taken within each group.
#[derive(Default)]
struct Names {
    /// (group, name) of plurals, singulars and short names.
    resources: HashMap<(String, String), ()>,
    kinds: HashMap<(String, String), ()>,
}

impl Names {
    /// Takes the names of a definition; says which are taken already.
    fn accept(&mut self, value: &Value) -> Result<(), (String, String)> {
        let group = value["spec"]["group"].as_str().unwrap_or_default();
        let names = accepted_names(value);
        let mut resources = vec![("Plural", names["plural"].as_str().unwrap_or_default().to_owned())];
        let singular = names["singular"].as_str().unwrap_or_default();
        if singular != resources[0].1 {
            resources.push(("Singular", singular.to_owned()));
        }
        resources.extend(super::texts(&names["shortNames"]).into_iter().map(|n| ("ShortNames", n)));
        let kinds = [("Kind", &names["kind"]), ("ListKind", &names["listKind"])]
            .map(|(what, n)| (what, n.as_str().unwrap_or_default().to_owned()));
        for (what, name) in &resources {
            if self.resources.contains_key(&(group.to_owned(), name.clone())) {
                return Err((format!("{what}Conflict"), format!("{name:?} is already in use")));
            }
        }
        for (what, name) in &kinds {
            if self.kinds.contains_key(&(group.to_owned(), name.clone())) {
                return Err((format!("{what}Conflict"), format!("{name:?} is already in use")));
            }
        }
        self.resources.extend(resources.into_iter().map(|(_, n)| ((group.to_owned(), n), ())));
        self.kinds.extend(kinds.into_iter().map(|(_, n)| ((group.to_owned(), n), ())));
        Ok(())
    }
}
