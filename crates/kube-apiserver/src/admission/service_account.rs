//! ServiceAccount: every pod runs as an account, with its pull secrets and a mounted token.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use rand::Rng as _;
use serde_json::{Value, json};

use super::{Context, array, creates, is_mirror_pod, items, refuse};
use crate::seams::AdmissionRequest;
use crate::tokens::request::PROJECTED_EXPIRATION_SECONDS;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Names without vowels and look-alikes, as all generated names.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// The default account of a new namespace appears a moment after the namespace.
const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_secs(1);

pub(super) async fn admit(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !creates(request, "", "pods") || is_mirror_pod(request.object) || !request.object["spec"].is_object() {
        return Ok(());
    }
    let given = request.object["spec"]["serviceAccountName"].as_str().filter(|n| !n.is_empty());
    let given = given.or_else(|| request.object["spec"]["serviceAccount"].as_str().filter(|n| !n.is_empty()));
    let account_name = given.unwrap_or("default").to_owned();
    request.object["spec"]["serviceAccountName"] = json!(account_name);
    request.object["spec"]["serviceAccount"] = json!(account_name);
    let Some(account) = find(context, request.namespace, &account_name).await else {
        return Err(refuse(
            request,
            format!(
                "error looking up service account {}/{account_name}: serviceaccount {account_name:?} not found",
                request.namespace
            ),
        ));
    };
    let account: Value = serde_json::from_slice(&account.body).unwrap_or_default();
    apply(request.object, &account);
    Ok(())
}

/// Mirror pods show what runs already; they must not give the node anything new.
pub(super) fn validate(request: &AdmissionRequest<'_>) -> Result<(), Status> {
    if !creates(request, "", "pods") || !is_mirror_pod(request.object) {
        return Ok(());
    }
    let spec = &request.object["spec"];
    if spec["serviceAccountName"].as_str().is_some_and(|n| !n.is_empty()) {
        return Err(refuse(request, "a mirror pod may not reference service accounts"));
    }
    for volume in items(spec, "volumes") {
        for (field, what) in [
            ("secret", "secrets"),
            ("configMap", "configmaps"),
            ("persistentVolumeClaim", "persistentvolumeclaims"),
            ("projected", "projected volumes"),
        ] {
            if !volume[field].is_null() {
                return Err(refuse(request, format!("a mirror pod may not reference {what}")));
            }
        }
    }
    Ok(())
}

async fn find(context: &Context, namespace: &str, name: &str) -> Option<Arc<Encoded>> {
    let get = || context.objects.get("", "serviceaccounts", namespace, name);
    if let Some(account) = get() {
        return Some(account);
    }
    if let Ok(account) = context.writer.read("", "serviceaccounts", namespace, name).await {
        return Some(account);
    }
    if name != "default" {
        return None;
    }
    let mut changes = context.objects.changes("", "serviceaccounts");
    let appears = async {
        loop {
            if let Some(account) = get() {
                return Some(account);
            }
            changes.changed().await.ok()?;
        }
    };
    tokio::time::timeout(DEFAULT_ACCOUNT_WAIT, appears).await.ok().flatten()
}

fn apply(pod: &mut Value, account: &Value) {
    let pull_secrets = items(account, "imagePullSecrets").cloned().collect::<Vec<_>>();
    if items(&pod["spec"], "imagePullSecrets").next().is_none() && !pull_secrets.is_empty() {
        pod["spec"]["imagePullSecrets"] = Value::Array(pull_secrets);
    }
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(&mut pod["spec"]);
    }
}

fn mount_token(spec: &mut Value) {
    let existing = items(spec, "volumes").find_map(|volume| {
        let name = volume["name"].as_str()?;
        let is_token = name.starts_with(VOLUME_PREFIX)
            && items(&volume["projected"], "sources").any(|s| s["serviceAccountToken"].is_object());
        is_token.then(|| name.to_owned())
    });
    let is_new = existing.is_none();
    let volume = existing.unwrap_or_else(|| {
        let mut random = rand::rng();
        let suffix: String =
            (0..5).map(|_| char::from(NAME_ALPHABET[random.random_range(0..NAME_ALPHABET.len())])).collect();
        format!("{VOLUME_PREFIX}{suffix}")
    });
    let mut used = false;
    for field in ["initContainers", "containers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            if items(container, "volumeMounts").any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            array(container, "volumeMounts").push(mount);
            used = true;
        }
    }
    if used && is_new {
        array(spec, "volumes").push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": PROJECTED_EXPIRATION_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_once_where_nothing_is_mounted() {
        let pod = |spec: Value| json!({"spec": spec});
        let own = json!({"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]});
        for (spec, account, volumes, mounts) in [
            (
                json!({"containers": [{"name": "a"}, own], "initContainers": [{"name": "i"}]}),
                json!({}),
                1,
                [1, 1, 1],
            ),
            (json!({"containers": [own, own]}), json!({}), 0, [1, 1, 0]),
            (
                json!({"containers": [{}, {}], "automountServiceAccountToken": false}),
                json!({"automountServiceAccountToken": true}),
                0,
                [0, 0, 0],
            ),
            (json!({"containers": [{}, {}]}), json!({"automountServiceAccountToken": false}), 0, [0, 0, 0]),
        ] {
            let mut pod = pod(spec);
            apply(&mut pod, &account);
            let spec = &pod["spec"];
            assert_eq!(items(spec, "volumes").count(), volumes, "{spec}");
            let counts = [&spec["containers"][0], &spec["containers"][1], &spec["initContainers"][0]]
                .map(|c| items(c, "volumeMounts").count());
            assert_eq!(counts, mounts, "{spec}");
            let before = pod.clone();
            apply(&mut pod, &account);
            assert_eq!(pod, before, "a second time changes nothing");
        }
    }

    #[test]
    fn pull_secrets_are_those_of_the_account_unless_given() {
        let account = json!({"imagePullSecrets": [{"name": "a"}], "automountServiceAccountToken": false});
        let mut pod = json!({"spec": {"containers": []}});
        apply(&mut pod, &account);
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "a"}]));
        let mut pod = json!({"spec": {"imagePullSecrets": [{"name": "b"}]}});
        apply(&mut pod, &account);
        assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": "b"}]));
    }
}
