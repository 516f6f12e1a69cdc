//! From an authorized resource request to its answer.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::openapi::deletes_to_object;
use apimachinery::status::{FieldError, Status};
use apimachinery::user::UserInfo;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use serde_json::{Value, json};

use super::delete::DeleteOptions;
use super::list::{self, ListOptions};
use super::output::{self, IncludeObject, Show};
use super::selection::Selection;
use super::watching::WatchOptions;
use super::write::{Change, Write, Written};
use super::{Entry, Registry, meta, subresource};
use crate::http::Body;
use crate::http::negotiation::{self, Accept, Encoding, View};
use crate::http::request_info::Query;
use crate::http::respond;
use crate::metrics::requests::Asked;
use crate::seams::RequestInfo;
use crate::server::Server;
use crate::wire::{self, Shape, Strictness};

/// Largest request body.
pub const BODY_BYTES_MAX: usize = 3 << 20;

/// One request on its way through the server.
pub struct Call {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub info: RequestInfo,
    pub query: Query,
    pub user: UserInfo,
    pub body: Body,
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
    /// Sent as Warning headers.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub annotations: std::collections::BTreeMap<String, String>,
    pub record: Option<Box<crate::audit::Record>>,
    /// What priority and fairness took the request for.
    pub flow: Option<crate::flow_control::Ids>,
    /// Whether it got as far as something that answers it; the others are not counted by what they asked for.
    pub routed: bool,
    /// Whether what it asks for is going to be removed.
    pub deprecated: bool,
    /// How long it waited for its turn, and for webhooks.
    pub elsewhere: Duration,
}

impl Call {
    /// What it asks for, as figures tell.
    pub fn asked(&self) -> Asked<'_> {
        Asked::new(&self.method, &self.headers, &self.query, &self.info)
    }

    /// Counts it as one that there was no room for.
    pub fn turned_away(&mut self, server: &Server) {
        self.routed = true;
        server.metrics.terminated(&self.asked(), 429);
    }

    /// Takes over what a write has to tell the client, the audit log and the figures.
    pub fn absorb(&mut self, write: &mut Write<'_>) {
        self.warnings.append(&mut write.warnings);
        self.annotations.append(&mut write.annotations);
        self.elsewhere += std::mem::take(&mut write.elsewhere);
    }

    pub async fn take_body(&mut self) -> Result<Bytes, Status> {
        let limit = match std::mem::take(&mut self.body) {
            Body::Empty => return Ok(Bytes::new()),
            body => body.collect(BODY_BYTES_MAX).await?,
        };
        if let Some(record) = self.record.as_mut().filter(|r| r.wants_request()) {
            record.request_body = Some(limit.clone());
        }
        Ok(limit)
    }

    pub fn accept(&self, views: bool) -> Result<Accept, Status> {
        let text = negotiation::accept_header(&self.headers);
        let mut accept = negotiation::choose(&text, views).ok_or_else(|| {
            Status::not_acceptable(&[
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
            ])
        })?;
        let agent = self.headers.get(header::USER_AGENT).map_or(&b""[..], |v| v.as_bytes());
        accept.pretty |= match self.query.non_empty("pretty") {
            Some(said) => matches!(said, "1" | "t" | "T" | "TRUE" | "true" | "True"),
            // Programs that people look at answers with.
            None => [&b"curl"[..], b"Wget", b"Mozilla/5.0"].iter().any(|a| agent.starts_with(a)),
        };
        accept.pretty &= self.info.verb != "watch";
        Ok(accept)
    }

    fn dry_run(&self) -> Result<bool, Status> {
        let mut dry = false;
        for value in self.query.all("dryRun") {
            if value != "All" {
                let path = apimachinery::field_path::Path::new("dryRun");
                let given: Vec<&str> = self.query.all("dryRun").collect();
                let error = FieldError::not_supported(&path, given, &["All"]);
                return Err(Status::invalid(self.options_kind(), "meta.k8s.io", "", vec![error]));
            }
            dry = true;
        }
        Ok(dry)
    }

    fn options_kind(&self) -> &'static str {
        match self.info.verb.as_str() {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            _ => "DeleteOptions",
        }
    }

    pub fn strictness(&self) -> Result<Strictness, Status> {
        match self.query.non_empty("fieldValidation") {
            None | Some("Warn") => Ok(Strictness::Warn),
            Some("Strict") => Ok(Strictness::Strict),
            Some("Ignore") => Ok(Strictness::Ignore),
            Some(other) => {
                let path = apimachinery::field_path::Path::new("fieldValidation");
                let error = FieldError::not_supported(&path, other, &["", "Ignore", "Strict", "Warn"]);
                Err(Status::invalid(self.options_kind(), "meta.k8s.io", "", vec![error]))
            }
        }
    }

    /// The field manager: named, or the first word of the user agent.
    fn manager(&self) -> Result<String, Status> {
        if let Some(named) = self.query.non_empty("fieldManager") {
            let path = apimachinery::field_path::Path::new("fieldManager");
            if named.len() > 128 {
                return Err(Status::invalid(
                    self.options_kind(),
                    "meta.k8s.io",
                    "",
                    vec![FieldError::too_long(&path, 128)],
                ));
            }
            if let Some((at, c)) = named.char_indices().find(|(_, c)| c.is_control()) {
                let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
                let error = FieldError::invalid(&path, named, why);
                return Err(Status::invalid(self.options_kind(), "meta.k8s.io", "", vec![error]));
            }
            return Ok(named.to_owned());
        }
        let agent = self.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let first = agent.split('/').next().unwrap_or_default();
        Ok(first.chars().take(128).collect())
    }

    fn options(&self) -> Value {
        let mut options = json!({"kind": self.options_kind(), "apiVersion": "meta.k8s.io/v1"});
        for name in ["fieldManager", "fieldValidation"] {
            if let Some(value) = self.query.non_empty(name) {
                options[name] = value.into();
            }
        }
        if self.query.non_empty("dryRun").is_some() {
            options["dryRun"] = json!(["All"]);
        }
        if self.query.flag("force") {
            options["force"] = true.into();
        }
        options
    }

    fn encoding_of_body(&self) -> Result<Encoding, Status> {
        match negotiation::content_type(&self.headers) {
            "" => Ok(Encoding::Json),
            named => Encoding::of(named).ok_or_else(|| {
                Status::unsupported_media_type(&[
                    "application/json",
                    "application/yaml",
                    "application/vnd.kubernetes.protobuf",
                ])
            }),
        }
    }

    /// Reads a body that must be of a kind, checked against its schema.
    pub async fn decode(&mut self, shape: Shape<'_>) -> Result<Value, Status> {
        let (encoding, strictness) = (self.encoding_of_body()?, self.strictness()?);
        let body = self.take_body().await?;
        let (value, complaints) = wire::decode(&body, encoding, strictness, shape)?;
        self.complain(strictness, complaints)?;
        Ok(value)
    }

    pub fn complain(&mut self, strictness: Strictness, complaints: Vec<String>) -> Result<(), Status> {
        match strictness {
            Strictness::Ignore => {}
            Strictness::Warn => self.warnings.extend(complaints),
            Strictness::Strict if complaints.is_empty() => {}
            Strictness::Strict => {
                return Err(Status::bad_request(format!("strict decoding error: {}", complaints.join(", "))));
            }
        }
        Ok(())
    }

    /// Appliers say who they are; only they can force.
    pub fn check_patch_options(&self, kind: PatchKind) -> Result<(), Status> {
        use apimachinery::field_path::Path;
        let error = if kind == PatchKind::Apply && self.query.non_empty("fieldManager").is_none() {
            FieldError::required(&Path::new("fieldManager"), "is required for apply patch")
        } else if kind != PatchKind::Apply && self.query.get("force").is_some() {
            FieldError::forbidden(&Path::new("force"), "may not be specified for non-apply patch")
        } else {
            return Ok(());
        };
        Err(Status::invalid("PatchOptions", "meta.k8s.io", "", vec![error]))
    }

    /// Begins a write of `entry`.
    pub fn write<'a>(
        &self,
        registry: &'a Registry,
        entry: &'a Entry,
        user: &'a UserInfo,
        sub: &'a str,
    ) -> Result<Write<'a>, Status> {
        Ok(Write {
            registry,
            entry,
            subresource: sub,
            user,
            policy: Some(registry.policy()?),
            dry_run: self.dry_run()?,
            manager: self.manager()?,
            options: self.options(),
            warnings: Vec::new(),
            annotations: Default::default(),
            elsewhere: Duration::ZERO,
        })
    }

    /// Refuses what upstream's router refuses: routes of built-in resources name the types they take and give.
    pub fn check_route(&self, entry: &Entry) -> Result<(), Status> {
        if entry.custom.is_some()
            || matches!(&*self.info.subresource, "proxy" | "exec" | "attach" | "portforward")
        {
            return Ok(());
        }
        if self.info.verb == "patch" && PatchKind::routed(negotiation::content_type(&self.headers)).is_none()
        {
            return Err(Status::unsupported_by_route());
        }
        let mut produced =
            vec!["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
        match (&*self.info.verb, &*self.info.subresource) {
            ("list" | "watch", _) => {
                produced.extend([
                    "application/json;stream=watch",
                    "application/vnd.kubernetes.protobuf;stream=watch",
                ]);
            }
            (_, "log") => produced.push("text/plain"),
            _ => {}
        }
        let accept = negotiation::accept_header(&self.headers);
        if negotiation::is_routable(&accept, &produced) {
            Ok(())
        } else {
            Err(Status::not_routable(&produced))
        }
    }

    pub fn show<'a>(&self, entry: &'a Entry, registry: &Registry) -> Result<Show<'a>, Status> {
        let mut accept = self.accept(true)?;
        let of_list = matches!(&*self.info.verb, "list" | "deletecollection");
        if accept.view == View::Metadata && self.info.verb != "watch" && accept.list != of_list {
            return Err(other_metadata(entry, of_list));
        }
        if accept.encoding == Encoding::Protobuf && !wire::has_protobuf(entry, accept.view) {
            accept.encoding = Encoding::Json;
        }
        Ok(Show {
            entry,
            accept,
            include: if accept.view == View::Table {
                IncludeObject::parse(self.query.get("includeObject"))?
            } else {
                IncludeObject::default()
            },
            now: registry.clock.now(),
        })
    }
}

/// Metadata of a list was asked of an object, or of an object of a list.
fn other_metadata(entry: &Entry, of_list: bool) -> Status {
    let package = match (&entry.custom, entry.group.split('.').next()) {
        (Some(_), _) => "unstructured",
        (_, None | Some("")) => "core",
        (_, Some(first)) => first,
    };
    let message = match (of_list, &entry.custom) {
        (true, _) => format!(
            "you requested PartialObjectMetadata, but the requested object is a list (*{package}.{})",
            if entry.custom.is_some() { "UnstructuredList" } else { &entry.list_kind }
        ),
        (false, _) => format!(
            "you requested PartialObjectMetadataList, but the requested object is not a list (*{package}.{})",
            if entry.custom.is_some() { "Unstructured" } else { &entry.kind }
        ),
    };
    Status { message, ..Status::not_acceptable(&[]) }
}

/// Answers a resource request.
pub async fn serve(server: &Arc<Server>, call: &mut Call) -> Result<Response<Body>, Status> {
    let registry = &server.registry;
    let info = call.info.clone();
    if call.uri.path().contains("//") && info.subresource != "proxy" {
        return Err(Status::no_such_resource());
    }
    let table = registry.table.load_full();
    let Some(entry) = table.find(&info.group, &info.version, &info.resource) else {
        if !info.group.is_empty() && !table.groups().any(|(known, _)| known == info.group) {
            return Ok(crate::discovery::no_such_page());
        }
        return Err(Status::no_such_resource());
    };
    let deprecated = match (entry.group.as_str(), entry.resource.as_str()) {
        ("", "endpoints") => "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        ("", "componentstatuses") => "v1 ComponentStatus is deprecated in v1.19+",
        _ => entry.custom.as_ref().map_or("", |c| c.deprecation_warning()),
    };
    let collection = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    if entry.namespaced {
        let everywhere = matches!(info.verb.as_str(), "list" | "watch")
            || info.subresource.is_empty() && !entry.has_verb("get");
        if info.namespace.is_empty() && !everywhere {
            return Err(if info.name.is_empty() {
                Status::no_such_method()
            } else {
                Status::no_such_resource()
            });
        }
    } else if !info.namespace.is_empty() && !entry.is("", "namespaces") {
        return Err(Status::no_such_resource());
    }
    call.routed = true;
    if !info.subresource.is_empty() {
        return Box::pin(subresource::serve(server, entry, call)).await;
    }
    if info.verb == "watch" && call.method != Method::GET {
        return Err(Status::no_such_method());
    }
    // A collection takes no name, and a change needs one.
    let misplaced = match info.verb.as_str() {
        "create" => !info.name.is_empty(),
        "update" | "patch" => info.name.is_empty(),
        _ => false,
    };
    if misplaced || !entry.has_verb(&info.verb) || call.method == Method::HEAD {
        call.routed = false;
        return Err(Status::no_such_method());
    }
    call.check_route(entry)?;
    if !deprecated.is_empty() {
        call.warnings.push(deprecated.to_owned());
        call.deprecated = true;
        call.annotations.insert("k8s.io/deprecated".to_owned(), "true".to_owned());
    }
    if entry.cache.is_none() {
        return Box::pin(subresource::serve_unstored(server, entry, call)).await;
    }
    let namespace = if entry.namespaced { info.namespace.as_str() } else { "" };
    if collection {
        let selection = Selection::parse(
            entry,
            namespace,
            info.label_selector.as_deref(),
            info.field_selector.as_deref(),
        )?;
        return match info.verb.as_str() {
            "list" => {
                let show = call.show(entry, registry)?;
                let page = registry.list(entry, &selection, &ListOptions::parse(&call.query)?).await?;
                let response = list::response(show, page).await;
                registry.cache.messages_made();
                response
            }
            "watch" => {
                let show = call.show(entry, registry)?;
                ListOptions::check(&call.query)?;
                let options = WatchOptions::parse(&call.query)?;
                let mut selection = selection;
                if call.uri.path().contains("/watch/") && !info.name.is_empty() {
                    selection.fields =
                        apimachinery::selector::FieldSelector::equal("metadata.name", &info.name);
                }
                registry.watch(entry, &selection, &options, show.accept, show.include).await
            }
            _ => Box::pin(delete_collection(registry, entry, call, &selection)).await,
        };
    }
    match info.verb.as_str() {
        "get" => get(registry, entry, call).await,
        "create" => Box::pin(create(registry, entry, call)).await,
        "update" => Box::pin(update(registry, entry, call, "")).await,
        "patch" => Box::pin(patch(registry, entry, call, "")).await,
        "delete" => Box::pin(delete(registry, entry, call)).await,
        _ => Err(Status::no_such_method()),
    }
}

pub async fn get(registry: &Registry, entry: &Arc<Entry>, call: &mut Call) -> Result<Response<Body>, Status> {
    let show = call.show(entry, registry)?;
    if call.query.non_empty("export").is_some() {
        return Err(Status::bad_request(
            "the export parameter, deprecated since v1.14, is no longer supported",
        ));
    }
    let object = read_one(registry, entry, &call.info, &call.query).await?;
    show.response(StatusCode::OK, &object)
}

pub async fn read_one(
    registry: &Registry,
    entry: &Entry,
    info: &RequestInfo,
    query: &Query,
) -> Result<Arc<Encoded>, Status> {
    let cache = registry.cache_of(entry)?;
    let key = entry.key(&info.namespace, &info.name);
    let found = match query.non_empty("resourceVersion") {
        None => registry.read(cache, &key).await?,
        Some(text) => {
            let version = list::parse_version(text)
                .map_err(|why| Status::unknown(format!("resourceVersion: {why}")))?;
            if !registry.cache.wait_for(version, std::time::Duration::from_secs(3)).await {
                return Err(Status::too_large(version, registry.cache.revision()));
            }
            cache.get(&key)
        }
    };
    found.ok_or_else(|| Status::not_found(&entry.resource, &entry.group, &info.name))
}

/// Checks the namespace in an object, if there is one, against that of the path.
pub fn check_namespace(info: &RequestInfo, object: &Value) -> Result<(), Status> {
    let namespace = meta::text(object, "namespace");
    if namespace.is_empty() || namespace == info.namespace {
        return Ok(());
    }
    Err(Status::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

/// Checks the namespace and name in an object against those of the path.
fn check_identity(entry: &Entry, info: &RequestInfo, object: &mut Value) -> Result<(), Status> {
    if entry.namespaced {
        check_namespace(info, object)?;
        if meta::text(object, "namespace").is_empty() {
            meta::set(object, "namespace", info.namespace.as_str());
        }
    } else if !meta::text(object, "namespace").is_empty() {
        meta::clear(object, "namespace");
    }
    Ok(())
}

/// Checks that an object is of the name in the path.
pub fn check_name(info: &RequestInfo, object: &Value) -> Result<(), Status> {
    match meta::text(object, "name") {
        "" => Err(Status::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            info.name
        ))),
        name if name != info.name => Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            info.name
        ))),
        _ => Ok(()),
    }
}

async fn create(registry: &Registry, entry: &Arc<Entry>, call: &mut Call) -> Result<Response<Body>, Status> {
    let show = call.show(entry, registry)?;
    let mut object = call.decode(Shape::of(entry)).await?;
    check_identity(entry, &call.info, &mut object)?;
    output::to_working(entry, &mut object);
    let user = call.user.clone();
    let mut write = call.write(registry, entry, &user, "")?;
    let written = write.create(&call.info.namespace, object).await;
    call.absorb(&mut write);
    show.response(StatusCode::CREATED, &written?.object)
}

pub async fn update(
    registry: &Registry,
    entry: &Arc<Entry>,
    call: &mut Call,
    sub: &str,
) -> Result<Response<Body>, Status> {
    let show = call.show(entry, registry)?;
    let mut object = call.decode(Shape::of(entry)).await?;
    check_name(&call.info, &object)?;
    check_identity(entry, &call.info, &mut object)?;
    output::to_working(entry, &mut object);
    finish(registry, entry, call, sub, Change::Replace(object), show).await
}

async fn finish(
    registry: &Registry,
    entry: &Entry,
    call: &mut Call,
    sub: &str,
    change: Change<'_>,
    show: Show<'_>,
) -> Result<Response<Body>, Status> {
    let Written { object, created } = change_stored(registry, entry, call, sub, change).await?;
    show.response(if created { StatusCode::CREATED } else { StatusCode::OK }, &object)
}

pub async fn change_stored(
    registry: &Registry,
    entry: &Entry,
    call: &mut Call,
    sub: &str,
    change: Change<'_>,
) -> Result<Written, Status> {
    let user = call.user.clone();
    let mut write = call.write(registry, entry, &user, sub)?;
    let written = write.update(&call.info.namespace, &call.info.name, change).await;
    call.absorb(&mut write);
    written
}

/// The kinds of patch there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchKind {
    /// As [`PatchKind::of`], of the types that routes of built-in resources take.
    fn routed(content_type: &str) -> Option<PatchKind> {
        PatchKind::of(content_type).filter(|_| !content_type.ends_with("+cbor"))
    }

    pub fn of(content_type: &str) -> Option<PatchKind> {
        match content_type {
            "application/json-patch+json" => Some(PatchKind::Json),
            "application/merge-patch+json" => Some(PatchKind::Merge),
            "application/strategic-merge-patch+json" => Some(PatchKind::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Some(PatchKind::Apply),
            _ => None,
        }
    }
}

pub fn patch_kind(call: &Call, entry: &Entry) -> Result<PatchKind, Status> {
    let kind = PatchKind::of(negotiation::content_type(&call.headers));
    match kind {
        Some(PatchKind::Strategic) if entry.custom.is_some() => None,
        kind => kind,
    }
    .ok_or_else(|| {
        let mut known = vec!["application/json-patch+json", "application/merge-patch+json"];
        if entry.custom.is_none() {
            known.push("application/strategic-merge-patch+json");
        }
        known.push("application/apply-patch+yaml");
        Status::unsupported_media_type(&known)
    })
}

pub async fn patch(
    registry: &Registry,
    entry: &Arc<Entry>,
    call: &mut Call,
    sub: &str,
) -> Result<Response<Body>, Status> {
    let show = call.show(entry, registry)?;
    let kind = patch_kind(call, entry)?;
    let strictness = call.strictness()?;
    let body = call.take_body().await?;
    let force = call.query.flag("force");
    call.check_patch_options(kind)?;
    if kind == PatchKind::Apply {
        let (mut config, complaints) = wire::decode_apply(&body, strictness, Shape::of(entry))?;
        call.complain(strictness, complaints)?;
        if meta::text(&config, "name").is_empty() {
            meta::set(&mut config, "name", call.info.name.as_str());
        }
        check_identity(entry, &call.info, &mut config)?;
        return finish(registry, entry, call, sub, Change::Apply { config, force }, show).await;
    }
    let info = call.info.clone();
    let compute = |old: &Value| {
        let mut shown = old.clone();
        output::from_working(entry, &mut shown);
        let patched = wire::apply_patch(&shown, &body, kind, Shape::of(entry))?;
        check_name(&info, &patched)?;
        let (mut new, complaints) = wire::recheck(patched, &body, kind, strictness, Shape::of(entry))?;
        check_identity(entry, &info, &mut new)?;
        let warnings = if strictness == Strictness::Warn { complaints } else { Vec::new() };
        output::to_working(entry, &mut new);
        Ok((new, warnings))
    };
    finish(registry, entry, call, sub, Change::With(&compute), show).await
}

/// DeleteOptions from the body, or from the query.
async fn delete_options(call: &mut Call) -> Result<(DeleteOptions, Value), Status> {
    let encoding = call.encoding_of_body();
    let body = call.take_body().await?;
    let mut value = if body.is_empty() {
        json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"})
    } else {
        wire::decode_options(&body, encoding?)?
    };
    if body.is_empty() {
        if let Some(seconds) = call.query.non_empty("gracePeriodSeconds") {
            let seconds: i64 = seconds
                .parse()
                .map_err(|e| Status::bad_request(list::not_a_number("ParseInt", seconds, &e)))?;
            value["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = call.query.non_empty("propagationPolicy") {
            value["propagationPolicy"] = policy.into();
        }
        if call.query.get("orphanDependents").is_some() {
            value["orphanDependents"] = call.query.flag("orphanDependents").into();
        }
        let dry_run: Vec<&str> = call.query.all("dryRun").collect();
        if !dry_run.is_empty() {
            value["dryRun"] = json!(dry_run);
        }
    }
    Ok((DeleteOptions::from_value(&value)?, value))
}

/// Whether a deletion answers the object rather than a Status. Some do although the documents promise a Status.
fn answers_object(entry: &Entry) -> bool {
    entry.is("", "namespaces")
        || entry.group == "resource.k8s.io"
        || deletes_to_object(&entry.group, &entry.resource)
}

/// Warns of what a deletion does by default.
fn warn_of_orphans(entry: &Entry, call: &mut Call, options: &DeleteOptions) {
    if entry.is("batch", "jobs") && options.propagation.is_none() && options.orphan_dependents.is_none() {
        call.warnings.push(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them \
             or set propagationPolicy=Orphan to suppress this warning"
                .to_owned(),
        );
    }
}

async fn delete(registry: &Registry, entry: &Arc<Entry>, call: &mut Call) -> Result<Response<Body>, Status> {
    let show = call.show(entry, registry)?;
    let (options, value) = delete_options(call).await?;
    warn_of_orphans(entry, call, &options);
    let user = call.user.clone();
    let mut write = call.write(registry, entry, &user, "")?;
    write.dry_run |= options.dry_run;
    write.options = value;
    let deleted = write.delete(&call.info.namespace, &call.info.name, &options).await;
    call.absorb(&mut write);
    let deleted = deleted?;
    if deleted.gone && !answers_object(entry) {
        let status = Status::deleted(&entry.resource, &entry.group, &call.info.name, deleted.object.uid());
        let accept = Accept { view: View::Whole, ..show.accept };
        return Ok(respond::value(StatusCode::OK, &respond::status_value(&status), accept));
    }
    let accepted = !deleted.gone && options.orphan_dependents == Some(false);
    show.response(if accepted { StatusCode::ACCEPTED } else { StatusCode::OK }, &deleted.object)
}

async fn delete_collection(
    registry: &Registry,
    entry: &Arc<Entry>,
    call: &mut Call,
    selection: &Selection,
) -> Result<Response<Body>, Status> {
    let show = call.show(entry, registry)?;
    let list_options = ListOptions::parse(&call.query)?;
    let (options, value) = delete_options(call).await?;
    warn_of_orphans(entry, call, &options);
    let mut page = registry.list(entry, selection, &list_options).await?;
    let user = call.user.clone();
    let mut write = call.write(registry, entry, &user, "")?;
    write.dry_run |= options.dry_run;
    write.options = value;
    let mut deleted = Vec::with_capacity(page.items.len());
    for object in &page.items {
        match write.delete(object.namespace(), object.name(), &options).await {
            Ok(done) => deleted.push(done.object),
            Err(status) if status.code == 404 => {}
            Err(status) => return Err(status),
        }
    }
    call.absorb(&mut write);
    page.items = deleted;
    list::response(show, page).await
}
