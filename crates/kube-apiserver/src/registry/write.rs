//! Creating and changing objects: defaults, ownership, admission, strategy, validation, storage, in upstream's order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::clock::Clock;
use apimachinery::managed_fields::Unusual;
use apimachinery::object::{Encoded, InOrder, in_order};
use apimachinery::status::{FieldError, Status};
use apimachinery::user::UserInfo;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use storage::{Expect, LeaseId, Store};

use super::list::not_a_number;
use super::{Entry, Registry, Stored, meta, output, ownership, unchanged};
use crate::cache::ROOT;
use crate::http::respond;
use crate::seams::{AdmissionRequest, Operation, Policy, Reservation};

/// Rounds of read, change and compare-and-put before a write gives up.
const ATTEMPTS_MAX: usize = 8;
/// Names tried for an object with `generateName`.
const NAMES_MAX: usize = 8;
/// Memory a thread keeps for encoding.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

/// One write request: what to write with, besides the object.
pub struct Write<'a> {
    pub registry: &'a Registry,
    pub entry: &'a Entry,
    /// Empty for the object as a whole.
    pub subresource: &'a str,
    pub user: &'a UserInfo,
    /// Absent for the server's own writes, which no admission sees.
    pub policy: Option<Arc<Policy>>,
    pub dry_run: bool,
    pub manager: String,
    /// CreateOptions, UpdateOptions, PatchOptions or DeleteOptions, for admission.
    pub options: Value,
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: BTreeMap<String, String>,
    /// How long webhooks took.
    pub elsewhere: Duration,
}

/// What an update does with the stored object, all [as writes work on it](output::working) but for configurations.
pub enum Change<'a> {
    /// Puts this in its place, decoded and with schema defaults.
    Replace(Value),
    /// Computes the new object from the old one. Also returns warnings.
    With(&'a (dyn Fn(&Value) -> Result<(Value, Vec<String>), Status> + Send + Sync)),
    /// Server-side apply.
    Apply { config: Value, force: bool },
}

/// An object as it was written.
pub struct Written {
    pub object: Arc<Encoded>,
    pub created: bool,
}

impl<'a> Write<'a> {
    /// A write of the server's own, which no admission sees.
    pub fn own(registry: &'a Registry, entry: &'a Entry, user: &'a UserInfo) -> Write<'a> {
        Write {
            registry,
            entry,
            subresource: "",
            user,
            policy: None,
            dry_run: false,
            manager: "kube-apiserver".to_owned(),
            options: Value::Null,
            warnings: Vec::new(),
            annotations: BTreeMap::new(),
            elsewhere: Duration::ZERO,
        }
    }
}

impl Write<'_> {
    fn invalid(&self, name: &str, errors: Vec<FieldError>) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        // Events are told of as those of the core group, through whichever they came.
        let group = if self.entry.group == "events.k8s.io" { "" } else { &self.entry.group };
        Err(Status::invalid(&self.entry.kind, group, name, errors))
    }

    async fn admit(
        &mut self,
        operation: Operation,
        namespace: &str,
        name: &str,
        object: &mut Value,
        old: Option<&Value>,
        validating: bool,
    ) -> Result<(), Status> {
        let Some(policy) = self.policy.clone() else { return Ok(()) };
        let kind = match self.entry.subresource(self.subresource) {
            Some(s) if !self.subresource.is_empty() => &s.kind,
            _ => &self.entry.kind,
        };
        let mut request = AdmissionRequest {
            operation,
            group: &self.entry.group,
            version: &self.entry.version,
            kind,
            resource: &self.entry.resource,
            subresource: self.subresource,
            namespace,
            name,
            user: self.user,
            dry_run: self.dry_run,
            options: &self.options,
            object,
            old_object: old,
            warnings: &mut self.warnings,
            annotations: &mut self.annotations,
            elsewhere: &mut self.elsewhere,
        };
        if validating {
            return policy.admission.validate(&mut request).await;
        }
        policy.admission.admit(&mut request).await?;
        if let Some(custom) = &self.entry.custom {
            custom.prune(object);
        }
        Ok(())
    }

    /// Stores a new object, given [as writes work on it](output::working).
    pub async fn create(&mut self, namespace: &str, mut object: Value) -> Result<Written, Status> {
        let entry = self.entry;
        let metadata = meta::metadata(&mut object);
        meta::wipe_system_fields(metadata);
        if let Some(duplicates) = meta::distinct_owners(metadata) {
            self.warnings.push(format!(
                ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and \
                 may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {duplicates}"
            ));
        }
        entry.defaults(&mut object);
        let shown = self.policy.as_ref().is_some_and(|p| p.admission.shows_objects());
        let managed = match shown || entry.custom.is_some() {
            true => Err(Unusual),
            // Nobody looks at the managed fields before they are stored: they need not become values.
            false => ownership::created_json(self, &object),
        };
        let managed = managed.unwrap_or_else(|Unusual| {
            ownership::created(self, &mut object);
            None
        });
        self.finish_create(namespace, object, managed, shown).await
    }

    /// As [`Write::create`] where the managed fields are settled: in the object or, as JSON, beside it. `shown` says that others
    /// than this server's own plugins may change the object, and need not leave it complete.
    async fn finish_create(
        &mut self,
        namespace: &str,
        mut object: Value,
        managed: Option<String>,
        shown: bool,
    ) -> Result<Written, Status> {
        let (entry, registry) = (self.entry, self.registry);
        let cache = registry.cache_of(entry)?;
        if entry.namespaced {
            meta::set(&mut object, "namespace", namespace);
        }
        let name = meta::text(&object, "name").to_owned();
        let namespace_seen = if entry.is("", "namespaces") { name.clone() } else { namespace.to_owned() };
        self.admit(Operation::Create, &namespace_seen, &name, &mut object, None, false).await?;
        if shown {
            entry.defaults(&mut object);
        }
        let metadata = meta::metadata(&mut object);
        metadata.insert("uid".to_owned(), apimachinery::names::uid().into());
        metadata.insert("creationTimestamp".to_owned(), registry.clock.now_rfc3339().into());
        if entry.namespaced {
            metadata.insert("namespace".to_owned(), namespace.into());
        } else {
            metadata.remove("namespace");
        }
        let base = meta::text(&object, "generateName").to_owned();
        let generated = meta::text(&object, "name").is_empty() && !base.is_empty();
        if generated {
            // Before preparing, which writes the name into labels of some kinds.
            meta::set(&mut object, "name", apimachinery::names::generate(&base));
        }
        entry.strategy.record_requester(&mut object, self.user);
        entry.strategy.prepare_for_create(&mut object);
        if let Some(custom) = &entry.custom {
            custom.prepare_for_create(&mut object);
        }
        if entry.is("", "limitranges") && meta::text(&object, "name").is_empty() {
            meta::set(&mut object, "name", apimachinery::names::uid());
        }
        if meta::text(&object, "name").is_empty() {
            let path = apimachinery::field_path::Path::new("metadata").child("name");
            self.invalid("", vec![FieldError::required(&path, "name or generateName is required")])?;
        }
        let (mut attempt, mut given) = (0, 0);
        loop {
            if generated && attempt > 0 {
                meta::set(&mut object, "name", apimachinery::names::generate(&base));
            }
            let name = meta::text(&object, "name").to_owned();
            if attempt == 0 {
                let mut errors = entry.strategy.validate(&object);
                if let Some(custom) = &entry.custom {
                    errors.extend(custom.validate(&object, None, false).0);
                }
                self.invalid(&name, errors)?;
                self.warnings.extend(entry.strategy.warnings(&object, None));
                self.admit(Operation::Create, &namespace_seen, &name, &mut object, None, true).await?;
                // What is no number counts as none, and a rehearsal does not come as far as this.
                given = meta::text(&object, "resourceVersion").parse::<u64>().unwrap_or(0);
                if given != 0 && !self.dry_run {
                    return Err(Status::unknown(
                        "resourceVersion should not be set on objects to be created",
                    ));
                }
                output::worked(entry, &mut object)?;
            }
            let reserved = self.reserve(&mut object, None).await?;
            let encoded = encode_with(entry, &mut object, managed.as_deref());
            let key = entry.key(namespace, &name);
            if self.dry_run {
                self.release(reserved).await;
                return match cache.get(&key) {
                    Some(there) => Err(self.taken(&name, Some(&there))),
                    // A rehearsal shows the version that was sent.
                    None if given != 0 => {
                        let object = Arc::new(Encoded { resource_version: given, ..encoded });
                        Ok(Written { object, created: true })
                    }
                    None => Ok(Written { object: without_revision(encoded), created: true }),
                };
            }
            let lease = self.lease().await?;
            match registry.put(cache, &key, Expect::Absent, Arc::new(encoded.clone()), lease).await {
                Ok(Stored::Done { revision }) => {
                    let object = Arc::new(Encoded { resource_version: revision, ..encoded });
                    return Ok(Written { object, created: true });
                }
                Ok(Stored::Changed(there)) => {
                    self.release(reserved).await;
                    attempt += 1;
                    if !generated {
                        return Err(self.taken(&name, there.as_deref()));
                    }
                    if attempt == NAMES_MAX {
                        return Err(Status::generate_name_conflict(&entry.resource, &entry.group, &name));
                    }
                }
                Err(error) => {
                    self.release(reserved).await;
                    return Err(error);
                }
            }
        }
    }

    /// Another object has the name; one that is on its way out may free it soon.
    fn taken(&self, name: &str, there: Option<&Encoded>) -> Status {
        let mut status = Status::already_exists(&self.entry.resource, &self.entry.group, name);
        if there.is_some_and(|object| object.attributes.deleting) {
            status.message = format!("object is being deleted: {}", status.message);
        }
        status
    }

    async fn lease(&self) -> Result<LeaseId, Status> {
        if self.entry.resource != "events" {
            return Ok(0);
        }
        self.registry.leases.for_events(&*self.registry.store, &self.registry.clock).await
    }

    async fn reserve(&self, object: &mut Value, old: Option<&Value>) -> Result<Option<Reservation>, Status> {
        if !self.entry.is("", "services") || !self.subresource.is_empty() {
            return Ok(None);
        }
        // The server's own services take their addresses like any other.
        match self.registry.policy.load_full() {
            Some(policy) => policy.allocators.reserve(object, old).await.map(Some),
            None => Ok(None),
        }
    }

    async fn release(&self, reserved: Option<Reservation>) {
        if let (Some(policy), Some(reserved)) = (self.registry.policy.load_full(), reserved) {
            policy.allocators.release(reserved).await;
        }
    }

    /// Changes a stored object, in as many rounds as it takes while nobody said which revision it must be at.
    pub async fn update(
        &mut self,
        namespace: &str,
        name: &str,
        change: Change<'_>,
    ) -> Result<Written, Status> {
        let (entry, registry) = (self.entry, self.registry);
        let cache = registry.cache_of(entry)?;
        let key = entry.key(namespace, name);
        let mut fresh = false;
        let mut current = cache.get(&key);
        if current.is_none() {
            current = registry.read(cache, &key).await?;
            fresh = true;
        }
        let warnings = self.warnings.len();
        for _ in 0..ATTEMPTS_MAX {
            self.warnings.truncate(warnings);
            let Some(stored) = current.clone() else {
                match self.create_instead(namespace, name, &change).await {
                    // Somebody else was first: change what they made.
                    Err(status)
                        if status.reason == "AlreadyExists" && !matches!(change, Change::Replace(_)) =>
                    {
                        current = registry.read(cache, &key).await?;
                        fresh = true;
                        continue;
                    }
                    done => return done,
                }
            };
            let old = output::working(entry, &stored)?;
            let attempted = self.change_once(namespace, name, &old, &change).await;
            let settled = match &attempted {
                Ok(new) => {
                    !meta::same(new, &old) || registry.is_stale(cache, &key) || !entry.is_current(&stored)
                }
                Err(_) => false,
            };
            if !settled && !fresh {
                // The cache may lag: neither a failure nor "nothing changed" counts against an old state.
                let now = registry.read(cache, &key).await?;
                fresh = true;
                if now.as_ref().map(|n| n.resource_version) != Some(stored.resource_version) {
                    current = now;
                    continue;
                }
            }
            let mut new = attempted?;
            if !settled {
                return Ok(Written { object: stored, created: false });
            }
            let reserved = self.reserve(&mut new, Some(&old)).await?;
            let removing = should_remove(entry, &new);
            if !removing {
                output::worked(entry, &mut new)?;
            }
            let encoded = encode(entry, &mut new);
            if self.dry_run {
                self.release(reserved).await;
                let object = Encoded { resource_version: stored.resource_version, ..encoded };
                return Ok(Written { object: Arc::new(object), created: false });
            }
            let outcome = if removing {
                registry.remove(cache, &key, unchanged(&stored)).await
            } else {
                let lease = self.lease().await?;
                registry.put(cache, &key, unchanged(&stored), Arc::new(encoded.clone()), lease).await
            };
            match outcome {
                Ok(Stored::Done { revision }) => {
                    let object = Arc::new(Encoded { resource_version: revision, ..encoded });
                    return Ok(Written { object, created: false });
                }
                Ok(Stored::Changed(now)) => {
                    self.release(reserved).await;
                    current = now;
                    fresh = true;
                }
                Err(error) => {
                    self.release(reserved).await;
                    return Err(error);
                }
            }
        }
        Err(Status::conflict(&entry.resource, &entry.group, name, apimachinery::status::MODIFIED))
    }

    /// The object is not the one that was meant.
    fn other_uid(&self, namespace: &str, name: &str, meant: &str, is: &str) -> Result<Status, Status> {
        let entry = self.entry;
        let cache = self.registry.cache_of(entry)?;
        // A dry run ends before the store, which is what knows the root.
        let root = if self.dry_run { "/" } else { ROOT };
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: {root}{}{}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: UID in precondition: {meant}, UID in object meta: {is}",
            cache.prefix(),
            entry.key(namespace, name)
        );
        Ok(Status::conflict(&entry.resource, &entry.group, name, why))
    }

    async fn create_instead(
        &mut self,
        namespace: &str,
        name: &str,
        change: &Change<'_>,
    ) -> Result<Written, Status> {
        let entry = self.entry;
        let missing = || Status::not_found(&entry.resource, &entry.group, name);
        match change {
            Change::Replace(object)
                if self.subresource.is_empty() && entry.strategy.allow_create_on_update() =>
            {
                let uid = meta::text(object, "uid");
                if !uid.is_empty() {
                    return Err(self.other_uid(namespace, name, uid, "")?);
                }
                let mut object = object.clone();
                if entry.resource == "events" {
                    meta::clear(&mut object, "resourceVersion");
                } else if meta::resource_version(&object).is_some() {
                    return Err(missing());
                }
                self.create(namespace, object).await
            }
            Change::Apply { config, force } if self.subresource.is_empty() => {
                if !meta::text(config, "uid").is_empty() {
                    return Err(Status::conflict(
                        &entry.resource,
                        &entry.group,
                        name,
                        format!(
                            "uid mismatch: the provided object specified uid {}, and no existing object was found",
                            meta::text(config, "uid")
                        ),
                    ));
                }
                let mut object = ownership::applied(self, None, config, *force)?;
                entry.defaults(&mut object);
                meta::clear(&mut object, "resourceVersion");
                self.finish_create(namespace, object, None, true).await
            }
            _ => Err(missing()),
        }
    }

    /// The object as it would be stored, from what is stored now.
    async fn change_once(
        &mut self,
        namespace: &str,
        name: &str,
        old: &Value,
        change: &Change<'_>,
    ) -> Result<Value, Status> {
        let entry = self.entry;
        let mut new = match change {
            Change::Replace(object) => object.clone(),
            Change::With(compute) => {
                let (new, warnings) = compute(old)?;
                self.warnings.extend(warnings);
                new
            }
            Change::Apply { config, force } => ownership::applied(self, Some(old), config, *force)?,
        };
        if matches!(change, Change::Apply { .. }) && meta::text(&new, "name") != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::text(&new, "name")
            )));
        }
        let current = meta::text(old, "resourceVersion").to_owned();
        match meta::text(&new, "resourceVersion") {
            "" | "0"
                if entry.strategy.allow_unconditional_update() || matches!(change, Change::Apply { .. }) => {}
            "" | "0" => {
                let path = apimachinery::field_path::Path::new("metadata").child("resourceVersion");
                let error = FieldError::invalid(&path, 0, "must be specified for an update");
                // Upstream says the resource where the kind should be.
                return Err(Status::invalid(&entry.resource, &entry.group, name, vec![error]));
            }
            given if given == current => {}
            given if given.parse::<u64>().is_err() => {
                let why = given.parse::<u64>().err().map(|e| not_a_number("ParseUint", given, &e));
                return Err(Status::unknown(why.unwrap_or_default()));
            }
            _ => {
                return Err(Status::conflict(
                    &entry.resource,
                    &entry.group,
                    name,
                    apimachinery::status::MODIFIED,
                ));
            }
        }
        meta::set(&mut new, "resourceVersion", current);
        let (uid, old_uid) = (meta::text(&new, "uid"), meta::text(old, "uid"));
        // A patch that would change it is refused by validation.
        if matches!(change, Change::Replace(_)) && !uid.is_empty() && uid != old_uid {
            return Err(self.other_uid(namespace, name, uid, old_uid)?);
        }
        if entry.namespaced && meta::text(&new, "namespace").is_empty() {
            meta::set(&mut new, "namespace", namespace);
        }
        if meta::text(&new, "name").is_empty() {
            meta::set(&mut new, "name", name);
        }
        entry.defaults(&mut new);
        if !matches!(change, Change::Apply { .. }) {
            ownership::updated(self, old, &mut new);
        }
        let namespace_seen = if entry.is("", "namespaces") { name } else { namespace };
        self.admit(Operation::Update, namespace_seen, name, &mut new, Some(old), false).await?;
        entry.defaults(&mut new);
        let errors = if self.subresource.is_empty() {
            entry.strategy.prepare_for_update(&mut new, old);
            match &entry.custom {
                Some(custom) => custom.prepare_for_update(&mut new, old),
                None => entry.strategy.stamp(&mut new, old, &|| self.registry.clock.now_rfc3339()),
            }
            entry.strategy.validate_update(&new, old)
        } else {
            match &entry.custom {
                Some(custom) if self.subresource == "scale" => custom.prepare_for_update(&mut new, old),
                Some(custom) => custom.prepare_for_status_update(&mut new, old),
                None => {
                    entry.strategy.prepare_for_subresource_update(self.subresource, &mut new, old);
                    entry.strategy.stamp(&mut new, old, &|| self.registry.clock.now_rfc3339());
                }
            }
            entry.strategy.validate_subresource_update(self.subresource, &new, old)
        };
        let mut errors = errors;
        if let Some(custom) = &entry.custom {
            let (wrong, warnings) = custom.validate(&new, Some(old), self.subresource == "status");
            errors.extend(wrong);
            self.warnings.extend(warnings);
        }
        self.invalid(name, errors)?;
        self.warnings.extend(match self.subresource {
            "status" if entry.custom.is_none() => api::advice::of_status(&new),
            "status" => vec![],
            _ => entry.strategy.warnings(&new, Some(old)),
        });
        self.admit(Operation::Update, namespace_seen, name, &mut new, Some(old), true).await?;
        Ok(new)
    }

    /// Writes what `change` makes of the stored object, past admission, ownership and the strategy's preparation:
    /// for subresources that set one field themselves (binding, eviction, deletion marks).
    pub async fn edit(
        &self,
        namespace: &str,
        name: &str,
        change: &(dyn Fn(&Value) -> Result<Option<Value>, Status> + Send + Sync),
    ) -> Result<Arc<Encoded>, Status> {
        let (entry, registry) = (self.entry, self.registry);
        let cache = registry.cache_of(entry)?;
        let key = entry.key(namespace, name);
        for _ in 0..ATTEMPTS_MAX {
            let stored = registry
                .read(cache, &key)
                .await?
                .ok_or_else(|| Status::not_found(&entry.resource, &entry.group, name))?;
            let old = stored.to_value().map_err(Status::internal)?;
            let Some(mut new) = change(&old)? else { return Ok(stored) };
            if self.dry_run || meta::same(&new, &old) {
                return Ok(Arc::new(Encoded {
                    resource_version: stored.resource_version,
                    ..encode(entry, &mut new)
                }));
            }
            let encoded = encode(entry, &mut new);
            if let Stored::Done { revision } =
                registry.put(cache, &key, unchanged(&stored), Arc::new(encoded.clone()), 0).await?
            {
                return Ok(Arc::new(Encoded { resource_version: revision, ..encoded }));
            }
        }
        Err(Status::conflict(&entry.resource, &entry.group, name, apimachinery::status::MODIFIED))
    }
}

/// Whether an object on its way out has nothing left that holds it.
pub fn should_remove(entry: &Entry, new: &Value) -> bool {
    if !meta::is_deleting(new) || !meta::finalizers(new).is_empty() {
        return false;
    }
    if entry.is("", "namespaces") {
        return new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
    }
    new["metadata"]["deletionGracePeriodSeconds"].as_i64() == Some(0)
}

/// An object as it goes to the store; takes its resource version away.
pub fn encode(entry: &Entry, object: &mut Value) -> Encoded {
    encode_with(entry, object, None)
}

/// As [`encode`], with managed fields that are JSON already.
fn encode_with(entry: &Entry, object: &mut Value, managed: Option<&str>) -> Encoded {
    thread_local! {
        /// Grown once, so that bodies are allocated in their exact size.
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    meta::clear(object, "resourceVersion");
    let body = SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        match (managed, object.as_object()) {
            (Some(managed), Some(members)) => {
                let write = |out: &mut Vec<u8>, name: &str, value: &Value| match (name, value.as_object()) {
                    ("metadata", Some(metadata)) => write_metadata(out, metadata, managed),
                    _ => write_json(out, value),
                };
                match entry.custom {
                    Some(_) => write_members(scratch, members.iter(), write),
                    None => write_members(scratch, in_order(members), write),
                }
            }
            (None, Some(members)) if entry.custom.is_none() => write_json(scratch, &InOrder(members)),
            _ => write_json(scratch, object),
        }
        let body = Bytes::copy_from_slice(scratch);
        if scratch.capacity() > SCRATCH_BYTES_MAX {
            *scratch = Vec::new();
        }
        body
    });
    let fields = match &entry.custom {
        Some(custom) => custom.selectable_fields(object),
        None => entry.strategy.selectable_fields(object),
    };
    Encoded::with_value(body, 0, object, fields)
}

fn write_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    // Values have string keys only; writing to memory cannot fail.
    let _ = apimachinery::codec::numbers::to_writer(out, value);
}

fn write_members<'a>(
    out: &mut Vec<u8>,
    members: impl Iterator<Item = (&'a String, &'a Value)>,
    write: impl Fn(&mut Vec<u8>, &str, &Value),
) {
    out.push(b'{');
    for (i, (name, value)) in members.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_json(out, name);
        out.push(b':');
        write(out, name, value);
    }
    out.push(b'}');
}

/// The metadata with managed fields among its members, in their place.
fn write_metadata(out: &mut Vec<u8>, metadata: &Map<String, Value>, managed: &str) {
    const NAME: &str = "managedFields";
    let mut due = true;
    out.push(b'{');
    let mut separator: &[u8] = b"";
    let mut put = |out: &mut Vec<u8>, name: &str, value: &dyn Fn(&mut Vec<u8>)| {
        out.extend_from_slice(std::mem::replace(&mut separator, b","));
        write_json(out, name);
        out.push(b':');
        value(out);
    };
    for (name, value) in metadata {
        if name.as_str() == NAME {
            continue;
        }
        if due && name.as_str() > NAME {
            due = false;
            put(out, NAME, &|out| out.extend_from_slice(managed.as_bytes()));
        }
        put(out, name, &|out| write_json(out, value));
    }
    if due {
        put(out, NAME, &|out| out.extend_from_slice(managed.as_bytes()));
    }
    out.push(b'}');
}

/// An object that has no resource version, being stored nowhere.
pub fn without_revision(object: Encoded) -> Arc<Encoded> {
    Arc::new(Encoded { splice: 0, ..object })
}

/// Leases that events share, a bucket of a minute each.
#[derive(Default)]
pub struct Leases {
    events: Mutex<Option<(i64, LeaseId)>>,
    granting: tokio::sync::Mutex<()>,
}

const EVENT_TTL_SECONDS: i64 = 3600;
const EVENT_BUCKET_SECONDS: i64 = 60;

impl Leases {
    async fn for_events(&self, store: &dyn Store, clock: &Clock) -> Result<LeaseId, Status> {
        let now = clock.now().as_second();
        let usable = |bucket: Option<(i64, LeaseId)>| {
            bucket
                .filter(|(since, _)| (0..EVENT_BUCKET_SECONDS).contains(&(now - since)))
                .map(|(_, lease)| lease)
        };
        if let Some(lease) = usable(*self.events.lock()) {
            return Ok(lease);
        }
        let _one = self.granting.lock().await;
        if let Some(lease) = usable(*self.events.lock()) {
            return Ok(lease);
        }
        let ttl = EVENT_TTL_SECONDS + EVENT_BUCKET_SECONDS;
        let lease = store.lease_grant(ttl).await.map_err(|e| respond::store_error(&e))?;
        *self.events.lock() = Some((now, lease));
        Ok(lease)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn managed_fields_go_in_their_place() {
        for metadata in [
            json!({"annotations": {}, "labels": {"a": "b"}, "name": "x", "uid": "u"}),
            json!({"labels": {"a": "b"}}),
            json!({"name": "x"}),
            json!({}),
        ] {
            let mut out = Vec::new();
            write_metadata(&mut out, metadata.as_object().unwrap(), "[1]");
            let mut want = metadata.clone();
            want["managedFields"] = json!([1]);
            assert_eq!(String::from_utf8(out).unwrap(), want.to_string());
        }
    }
}
