//! OwnerReferencesPermissionEnforcement (off by default): who changes owners may delete the object, and who blocks an
//! owner's deletion may set the owner's finalizers.

use apimachinery::resources;
use apimachinery::status::Status;
use serde_json::Value;

use super::{Context, items, refuse};
use crate::seams::{AdmissionRequest, Operation, RequestInfo};

pub(super) fn validate(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !matches!(request.operation, Operation::Create | Operation::Update) || !request.subresource.is_empty()
    {
        return Ok(());
    }
    let owners = |v: &Value| -> Vec<Value> { items(&v["metadata"], "ownerReferences").cloned().collect() };
    let (new, old) = (owners(request.object), request.old_object.map(owners).unwrap_or_default());
    if new == old {
        return Ok(());
    }
    let asks = |verb: &str, group: &str, resource: &str, sub: &str, namespace: &str, name: &str| {
        let asks = RequestInfo {
            verb: verb.into(),
            is_resource: true,
            group: group.into(),
            version: "*".into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        };
        context.authorizers.decide_now(request.user, &asks).is_allowed()
    };
    let may_delete = asks("delete", request.group, request.resource, "", request.namespace, request.name);
    if request.operation == Operation::Update && !may_delete {
        return Err(refuse(request, "cannot set an ownerRef on a resource you can't delete: , <nil>"));
    }
    for owner in new.iter().filter(|o| o["blockOwnerDeletion"] == true && !old.contains(o)) {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
        let known = resources::find_kind(group, version, text("kind"));
        let Some(known) = known else { continue };
        let namespace = if known.namespaced { request.namespace } else { "" };
        if !asks("update", group, known.resource, "finalizers", namespace, text("name")) {
            return Err(refuse(
                request,
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: \
                 , <nil>",
            ));
        }
    }
    Ok(())
}
