//! NamespaceLifecycle: nothing is made in a namespace that is missing or going away, and three namespaces stay.

use apimachinery::status::{Cause, Status};

use super::{Context, refuse};
use crate::seams::{AdmissionRequest, Operation};

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) async fn admit(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    let of_namespace = request.group.is_empty() && request.resource == "namespaces";
    if request.operation == Operation::Delete {
        if of_namespace && IMMORTAL.contains(&request.name) {
            return Err(refuse(request, "this namespace may not be deleted"));
        }
        return Ok(());
    }
    // Access reviews ask about namespaces that need not exist.
    if of_namespace || request.namespace.is_empty() || request.group == "authorization.k8s.io" {
        return Ok(());
    }
    let namespace = match context.objects.get("", "namespaces", "", request.namespace) {
        Some(namespace) => namespace,
        // It may have been created just now; the store knows.
        None => context.writer.read("", "namespaces", "", request.namespace).await?,
    };
    if request.operation != Operation::Create || !namespace.attributes.deleting {
        return Ok(());
    }
    let mut status = refuse(
        request,
        format!(
            "unable to create new content in namespace {} because it is being terminated",
            request.namespace
        ),
    );
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {} is being terminated", request.namespace),
            field: "metadata.namespace".into(),
        });
    }
    Err(status)
}
