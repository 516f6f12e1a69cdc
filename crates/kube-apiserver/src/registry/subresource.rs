//! Subresources, and the kinds that are asked rather than stored.

use std::borrow::Cow;
use std::sync::Arc;

use api::scale::Scale;
use apimachinery::selector::LabelSelector;
use apimachinery::status::{Cause, Status};
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::delete::DeleteOptions;
use super::handler::{self, Call, PatchKind};
use super::output::{Show, partial};
use super::write::{Change, Write};
use super::{Entry, Registry, component_status, meta};
use crate::http::Body;
use crate::http::negotiation::View;
use crate::http::respond;
use crate::proxy;
use crate::seams::{AdmissionRequest, Operation};
use crate::server::Server;
use crate::wire::{self, Shape};

/// Answers a request for a subresource.
pub async fn serve(
    server: &Arc<Server>,
    entry: &Arc<Entry>,
    call: &mut Call,
) -> Result<Response<Body>, Status> {
    let registry = &server.registry;
    let info = call.info.clone();
    let Some(sub) = entry.subresource(&info.subresource) else {
        return Err(Status::no_such_resource());
    };
    // What is proxied takes any method, also those that are no verb here (OPTIONS).
    if sub.name != "proxy" && !sub.verbs.contains(&info.verb) {
        return Err(Status::no_such_method());
    }
    call.check_route(entry)?;
    let name = sub.name.as_str();
    match (entry.resource.as_str(), name) {
        (_, "scale") => return scale(registry, entry, call).await,
        ("pods", "binding") => return bind_one(registry, entry, call).await,
        ("pods", "eviction") => return evict(registry, entry, call).await,
        ("serviceaccounts", "token") => return token(registry, entry, call).await,
        ("pods", "log") => return proxy::log(server, call).await,
        ("pods", "exec" | "attach" | "portforward") => return proxy::stream(server, call).await,
        ("pods" | "services" | "nodes", "proxy") => return proxy::forward(server, call).await,
        _ => {}
    }
    match info.verb.as_str() {
        "get" => handler::get(registry, entry, call).await,
        "update" => handler::update(registry, entry, call, name).await,
        "patch" => handler::patch(registry, entry, call, name).await,
        _ => Err(Status::no_such_method()),
    }
}

/// Kinds without objects in the store: bindings, reviews, componentstatuses.
pub async fn serve_unstored(
    server: &Arc<Server>,
    entry: &Arc<Entry>,
    call: &mut Call,
) -> Result<Response<Body>, Status> {
    let registry = &server.registry;
    match (entry.group.as_str(), entry.resource.as_str(), call.info.verb.as_str()) {
        ("", "bindings", "create") => {
            let body = call.decode(Shape::builtin("", "v1", "Binding")).await?;
            let table = registry.table.load_full();
            let pods = table.find("", "v1", "pods").ok_or_else(Status::no_such_resource)?;
            call.info.name = meta::text(&body, "name").to_owned();
            bind(registry, pods, call, body).await
        }
        ("", "componentstatuses", "list") => {
            let (labels, fields) = (call.query.get("labelSelector"), call.query.get("fieldSelector"));
            let found = component_status::list(server, entry, labels, fields).await?;
            let show = call.show(entry, registry)?;
            let value = match show.accept.view {
                View::Table => {
                    let found: Vec<Cow<'_, Value>> = found.into_iter().map(Cow::Owned).collect();
                    show.table(&found, Some(json!({})))
                }
                View::Metadata => {
                    let version = show.accept.view_version();
                    let items: Vec<Value> = found.iter().map(|o| partial(o, version)).collect();
                    json!({"kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": {}, "items": items})
                }
                View::Whole => {
                    json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": found})
                }
            };
            Ok(respond::value(StatusCode::OK, &value, show.accept))
        }
        ("", "componentstatuses", "get") => {
            let found = component_status::get(server, &call.info.name).await?;
            let show = call.show(entry, registry)?;
            let value = match show.accept.view {
                View::Table => show.table(&[Cow::Owned(found)], None),
                View::Metadata => partial(&found, show.accept.view_version()),
                View::Whole => found,
            };
            Ok(respond::value(StatusCode::OK, &value, show.accept))
        }
        (_, _, "create") => {
            let accept = call.accept(false)?;
            let mut object = call.decode(Shape::of(entry)).await?;
            if entry.namespaced {
                handler::check_namespace(&call.info, &object)?;
            } else {
                meta::clear(&mut object, "namespace");
            }
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                meta::wipe_system_fields(metadata);
            }
            let policy = registry.policy()?;
            let mut owned = object.clone();
            let user = call.user.clone();
            super::ownership::created(&call.write(registry, entry, &user, "")?, &mut owned);
            let mut answer =
                policy.reviews.review(&call.user, &entry.resource, &call.info.namespace, object).await?;
            // The answer about a user's rules is of its own.
            let repeats = entry.resource != "selfsubjectrulesreviews";
            if repeats && !owned["metadata"]["managedFields"].is_null() {
                meta::set(&mut answer, "managedFields", owned["metadata"]["managedFields"].take());
            }
            Ok(respond::value(StatusCode::CREATED, &answer, accept))
        }
        _ => Err(Status::no_such_method()),
    }
}

fn scale_of(entry: &Entry) -> Result<Scale, Status> {
    match &entry.custom {
        Some(custom) => custom.scale(),
        None => entry.strategy.scale().copied(),
    }
    .ok_or_else(Status::no_such_resource)
}

const SCALE_KIND: (&str, &str, &str) = ("autoscaling", "v1", "Scale");

/// What is wrong with a scale as a whole.
fn check_scale(scale: &Value, name: &str) -> Result<(), Status> {
    let mut metadata = scale["metadata"].clone();
    // Whose fields these are is not the scale's to say.
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.remove("managedFields");
    }
    let mut errors = api::meta::validate(&metadata, true, api::meta::subdomain_name);
    let finalizers = metadata["finalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    api::meta::known_finalizers(&mut errors, finalizers);
    errors.extend(negative_replicas(scale));
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("Scale", "autoscaling", name, errors)) }
}

fn negative_replicas(scale: &Value) -> Option<apimachinery::status::FieldError> {
    let replicas = &scale["spec"]["replicas"];
    let path = apimachinery::field_path::Path::new("spec").child("replicas");
    let why = "must be greater than or equal to 0";
    let wrong = replicas.as_i64().is_some_and(|n| n < 0);
    wrong.then(|| apimachinery::status::FieldError::invalid(&path, replicas.clone(), why))
}

async fn scale(registry: &Registry, entry: &Arc<Entry>, call: &mut Call) -> Result<Response<Body>, Status> {
    let scale = scale_of(entry)?;
    let kind_of_scale = Shape::builtin(SCALE_KIND.0, SCALE_KIND.1, SCALE_KIND.2);
    let show = call.show(entry, registry)?;
    let shown = |object: &apimachinery::object::Encoded| -> Result<Value, Status> {
        let whole = Show { accept: Default::default(), ..show };
        Ok(scale.of(&whole.value(object)?))
    };
    if call.info.verb == "get" {
        let object = handler::read_one(registry, entry, &call.info, &call.query).await?;
        return Ok(respond::value(StatusCode::OK, &shown(&object)?, show.accept));
    }
    type Computed<'a> = Box<dyn Fn(&Value) -> Result<Value, Status> + Send + Sync + 'a>;
    let wanted: Computed<'_> = if call.info.verb == "update" {
        let sent = call.decode(kind_of_scale).await?;
        handler::check_name(&call.info, &sent)?;
        Box::new(move |_| Ok(sent.clone()))
    } else {
        let kind = handler::patch_kind(call, entry)?;
        call.check_patch_options(kind)?;
        let body = call.take_body().await?;
        if kind == PatchKind::Apply {
            let force = call.query.flag("force");
            let (applied, complaints) = wire::decode_apply(&body, call.strictness()?, kind_of_scale)?;
            call.complain(call.strictness()?, complaints)?;
            if let Some(error) = negative_replicas(&applied) {
                return Err(Status::invalid("Scale", "autoscaling", &call.info.name, vec![error]));
            }
            let mut config = json!({"apiVersion": entry.api_version(), "kind": entry.kind,
                "metadata": {"name": call.info.name}});
            if applied["spec"].get("replicas").is_some_and(|r| !r.is_null()) {
                scale.apply(&applied, &mut config);
            }
            let change = Change::Apply { config, force };
            let written = handler::change_stored(registry, entry, call, "scale", change).await;
            // Whose fields these are is told in the words of who applies.
            let written = written.map_err(|status| {
                let own = format!("using {}", entry.api_version());
                Status { message: status.message.replace(&own, "using autoscaling/v1"), ..status }
            })?;
            return Ok(respond::value(StatusCode::OK, &shown(&written.object)?, show.accept));
        }
        Box::new(move |old| wire::apply_patch(old, &body, kind, kind_of_scale))
    };
    let info = call.info.clone();
    let prefix = registry.cache_of(entry)?.prefix().to_owned();
    let compute = |old: &Value| {
        let mut object = old.clone();
        super::output::from_working(entry, &mut object);
        let mut new = wanted(&scale.of(&object))?;
        let version = meta::text(&new, "resourceVersion");
        if !version.is_empty() && version != "0" {
            meta::set(&mut object, "resourceVersion", version);
        }
        let (uid, old_uid) = (meta::text(&new, "uid"), meta::text(old, "uid"));
        if !uid.is_empty() && uid != old_uid {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: /{}{}, ResourceVersion: 0, AdditionalErrorMsg: \
                 Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}",
                prefix,
                entry.key(meta::text(old, "namespace"), meta::text(old, "name"))
            );
            return Err(Status::conflict(&entry.resource, &entry.group, meta::text(old, "name"), why));
        }
        handler::check_name(&info, &new)?;
        handler::check_namespace(&info, &new)?;
        meta::set(&mut new, "namespace", info.namespace.as_str());
        check_scale(&new, meta::text(old, "name"))?;
        scale.apply(&new, &mut object);
        super::output::to_working(entry, &mut object);
        Ok((object, Vec::new()))
    };
    let written = handler::change_stored(registry, entry, call, "scale", Change::With(&compute)).await?;
    Ok(respond::value(StatusCode::OK, &shown(&written.object)?, show.accept))
}

async fn bind_one(
    registry: &Registry,
    entry: &Arc<Entry>,
    call: &mut Call,
) -> Result<Response<Body>, Status> {
    let body = call.decode(Shape::builtin("", "v1", "Binding")).await?;
    let name = meta::text(&body, "name");
    if name != call.info.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    handler::check_namespace(&call.info, &body)?;
    bind(registry, entry, call, body).await
}

/// Puts a pod on a node.
async fn bind(
    registry: &Registry,
    pods: &Arc<Entry>,
    call: &mut Call,
    mut binding: Value,
) -> Result<Response<Body>, Status> {
    let user = call.user.clone();
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let node = binding["target"]["name"].as_str().unwrap_or_default().to_owned();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    if node.is_empty() || !(kind.is_empty() || kind == "Node") {
        let path = apimachinery::field_path::Path::new("target");
        let error = if node.is_empty() {
            apimachinery::status::FieldError::required(&path.child("name"), "")
        } else {
            apimachinery::status::FieldError::not_supported(&path.child("kind"), kind, &["Node", "<empty>"])
        };
        // Upstream does not dress these up as an invalid object.
        return Err(Status::unknown(error.to_string()));
    }
    let mut write = call.write(registry, pods, &user, "binding")?;
    connect(&mut write, Operation::Create, &namespace, &name, "Binding", &mut binding).await?;
    call.absorb(&mut write);
    let uid = meta::text(&binding, "uid").to_owned();
    let version = meta::text(&binding, "resourceVersion").to_owned();
    let now = registry.clock.now_rfc3339();
    let labels = binding["metadata"]["labels"].clone();
    let annotations = binding["metadata"]["annotations"].clone();
    write
        .edit(&namespace, &name, &|old| {
            let conflict = |why: String| Status::conflict("pods/binding", "", &name, why);
            for (what, wanted) in [("UID", &uid), ("ResourceVersion", &version)] {
                let field = if what == "UID" { "uid" } else { "resourceVersion" };
                if !wanted.is_empty() && wanted != meta::text(old, field) {
                    let why = format!(
                        "StorageError: invalid object, Code: 4, Key: /pods/{namespace}/{name}, ResourceVersion: 0, \
                         AdditionalErrorMsg: Precondition failed: {what} in precondition: {wanted}, {what} in \
                         object meta: {}",
                        meta::text(old, field)
                    );
                    return Err(Status::conflict("pods", "", &name, why));
                }
            }
            if meta::is_deleting(old) {
                return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            let assigned = old["spec"]["nodeName"].as_str().unwrap_or_default();
            if !assigned.is_empty() {
                return Err(conflict(format!("pod {name} is already assigned to node {assigned:?}")));
            }
            if old["spec"]["schedulingGates"].as_array().is_some_and(|g| !g.is_empty()) {
                return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            let mut new = old.clone();
            new["spec"]["nodeName"] = node.as_str().into();
            for (what, values) in [("labels", &labels), ("annotations", &annotations)] {
                for (k, v) in values.as_object().into_iter().flatten() {
                    new["metadata"][what][k.as_str()] = v.clone();
                }
            }
            set_condition(
                &mut new,
                json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}),
            );
            Ok(Some(new))
        })
        .await?;
    let success = respond::status_value(&Status { code: 201, ..Status::success() });
    Ok(respond::value(StatusCode::CREATED, &success, call.accept(false)?))
}

/// Sets a pod condition, keeping its transition time while its status stays.
fn set_condition(pod: &mut Value, mut condition: Value) {
    let status = &mut pod["status"];
    if !status.is_object() {
        *status = json!({});
    }
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let conditions = status["conditions"].as_array_mut().expect("an array, as just ensured");
    match conditions.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(there) => {
            if there["status"] == condition["status"] {
                condition["lastTransitionTime"] = there["lastTransitionTime"].clone();
            }
            *there = condition;
        }
        None => conditions.push(condition),
    }
}

/// Admission of a subresource whose object is not the resource's own.
async fn connect(
    write: &mut Write<'_>,
    operation: Operation,
    namespace: &str,
    name: &str,
    kind: &str,
    object: &mut Value,
) -> Result<(), Status> {
    let Some(policy) = write.policy.clone() else { return Ok(()) };
    let mut request = AdmissionRequest {
        operation,
        group: &write.entry.group,
        version: &write.entry.version,
        kind,
        resource: &write.entry.resource,
        subresource: write.subresource,
        namespace,
        name,
        user: write.user,
        dry_run: write.dry_run,
        options: &write.options,
        object,
        old_object: None,
        warnings: &mut write.warnings,
        annotations: &mut write.annotations,
        elsewhere: &mut write.elsewhere,
    };
    policy.admission.admit(&mut request).await?;
    policy.admission.validate(&mut request).await
}

async fn token(registry: &Registry, entry: &Arc<Entry>, call: &mut Call) -> Result<Response<Body>, Status> {
    let mut request = call.decode(Shape::builtin("authentication.k8s.io", "v1", "TokenRequest")).await?;
    let user = call.user.clone();
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let cache = registry.cache_of(entry)?;
    if registry.read(cache, &entry.key(&namespace, &name)).await?.is_none() {
        return Err(Status::not_found("serviceaccounts", "", &name));
    }
    let mut write = call.write(registry, entry, &user, "token")?;
    connect(&mut write, Operation::Create, &namespace, &name, "TokenRequest", &mut request).await?;
    call.absorb(&mut write);
    let answer = registry.policy()?.reviews.request_token(&user, &namespace, &name, request).await?;
    Ok(respond::value(StatusCode::CREATED, &answer, call.accept(false)?))
}

/// Deletes a pod when the disruption budgets over it allow.
async fn evict(registry: &Registry, entry: &Arc<Entry>, call: &mut Call) -> Result<Response<Body>, Status> {
    let mut eviction = call.decode(Shape::builtin("policy", "v1", "Eviction")).await?;
    let user = call.user.clone();
    let (namespace, name) = (call.info.namespace.clone(), call.info.name.clone());
    let said = meta::text(&eviction, "name");
    if said != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    handler::check_namespace(&call.info, &eviction)?;
    if eviction["deleteOptions"]["ignoreStoreReadErrorWithClusterBreakingPotential"] == true {
        let path = apimachinery::field_path::Path::new("deleteOptions")
            .child("ignoreStoreReadErrorWithClusterBreakingPotential");
        let why = "can not be set for pod eviction, try after removing the option";
        let error = apimachinery::status::FieldError::invalid(&path, true, why);
        return Err(Status::invalid("Eviction", "policy", &name, vec![error]));
    }
    let mut write = call.write(registry, entry, &user, "eviction")?;
    let mut options = DeleteOptions::from_value(&eviction["deleteOptions"])?;
    write.dry_run |= options.dry_run;
    connect(&mut write, Operation::Create, &namespace, &name, "Eviction", &mut eviction).await?;
    let cache = registry.cache_of(entry)?;
    let pod = registry
        .read(cache, &entry.key(&namespace, &name))
        .await?
        .ok_or_else(|| Status::not_found("pods", "", &name))?;
    let pod = pod.to_value().map_err(Status::internal)?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    let free = matches!(phase, "Succeeded" | "Failed" | "Pending" | "") || meta::is_deleting(&pod);
    if !free {
        take_from_budget(registry, &write, &namespace, &name, &pod).await?;
        if options.resource_version.is_none() && options.uid.is_none() {
            options.uid = Some(meta::text(&pod, "uid").to_owned());
        }
    }
    write
        .edit(&namespace, &name, &|old| {
            let mut new = old.clone();
            set_condition(
                &mut new,
                json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting", "lastProbeTime": null,
                    "lastTransitionTime": registry.clock.now_rfc3339()}),
            );
            Ok((!meta::is_deleting(old)).then_some(new))
        })
        .await?;
    write.subresource = "";
    write.delete(&namespace, &name, &options).await?;
    call.absorb(&mut write);
    let success = respond::status_value(&Status { code: 201, ..Status::success() });
    Ok(respond::value(StatusCode::CREATED, &success, call.accept(false)?))
}

fn blocked(message: &str, budget: &str, detail: Option<String>) -> Status {
    let mut status = Status::too_many_requests(message, 0);
    if let Some(detail) = detail {
        let details = status.details.get_or_insert_default();
        details.causes.push(Cause {
            reason: "DisruptionBudget".to_owned(),
            message: detail,
            field: String::new(),
        });
        let _ = budget;
    }
    status
}

/// Counts one disruption against the budget that covers the pod.
async fn take_from_budget(
    registry: &Registry,
    write: &Write<'_>,
    namespace: &str,
    name: &str,
    pod: &Value,
) -> Result<(), Status> {
    let table = registry.table.load_full();
    let Some(budgets) = table.find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let all = registry.cache_of(budgets)?.snapshot(&format!("{namespace}/"), None).items;
    let mut covering = Vec::new();
    for budget in all {
        let value = budget.to_value().map_err(Status::internal)?;
        let selector = LabelSelector::from_value(&value["spec"]["selector"]).map_err(Status::internal)?;
        if selector.matches_map(&pod["metadata"]["labels"]) {
            covering.push(value);
        }
    }
    match covering.as_slice() {
        [] => return Ok(()),
        [_] => {}
        _ => {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    }
    let budget = meta::text(&covering[0], "name").to_owned();
    let ready = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    let now = registry.clock.now_rfc3339();
    let budget_write = Write {
        registry,
        entry: budgets,
        subresource: "status",
        user: write.user,
        policy: None,
        dry_run: write.dry_run,
        manager: write.manager.clone(),
        options: Value::Null,
        warnings: Vec::new(),
        annotations: Default::default(),
        elsewhere: Default::default(),
    };
    budget_write
        .edit(namespace, &budget, &|old| {
            let status = &old["status"];
            let number = |field: &str| status[field].as_i64().unwrap_or(0);
            let always = old["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
            let healthy_enough =
                number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
            if !ready && (always || healthy_enough) {
                return Ok(None);
            }
            if number("observedGeneration") < old["metadata"]["generation"].as_i64().unwrap_or(0) {
                return Err(blocked(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    &budget,
                    Some(format!("The disruption budget {budget} is still being processed by the server.")),
                )
                .retry_after(10));
            }
            if number("disruptionsAllowed") <= 0 {
                return Err(blocked(
                    "Cannot evict pod as it would violate the pod's disruption budget.",
                    &budget,
                    Some(format!(
                        "The disruption budget {budget} needs {} healthy pods and has {} currently",
                        number("desiredHealthy"),
                        number("currentHealthy")
                    )),
                ));
            }
            let mut new = old.clone();
            new["status"]["disruptionsAllowed"] = (number("disruptionsAllowed") - 1).into();
            new["status"]["disruptedPods"][name] = now.as_str().into();
            Ok(Some(new))
        })
        .await?;
    Ok(())
}
