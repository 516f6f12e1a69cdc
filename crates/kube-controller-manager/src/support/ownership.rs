//! Which objects a controller owns: its own by reference, orphans to adopt, strangers to release.

use std::sync::Arc;

use apimachinery::object::Encoded;
use apimachinery::selector::LabelSelector;
use client::RawInformer;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::Context;
use crate::support::errors::{ApiError, IgnoreNotFound};

/// Index by the controller's UID; objects without a controller under `/namespace`.
pub(crate) const CONTROLLER_INDEX: &str = "controller-uid";

fn controller_key(object: &Encoded) -> Vec<String> {
    vec![match object.attributes.controller() {
        Some(owner) => owner.uid.to_string(),
        None => format!("/{}", object.namespace()),
    }]
}

/// Makes [`candidates`] possible on an informer.
pub(crate) fn index_by_controller(informer: &RawInformer) {
    informer.add_index(CONTROLLER_INDEX, controller_key);
}

pub(crate) fn controlled_by(informer: &RawInformer, uid: &str) -> Vec<Arc<Encoded>> {
    informer.by_index(CONTROLLER_INDEX, uid)
}

/// A controlling object.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) deleting: bool,
}

impl Owner {
    pub(crate) fn of<K: kube::Resource<DynamicType = ()>>(object: &K) -> Owner {
        let meta = object.meta();
        Owner {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// The controller reference that objects of this owner carry.
    pub(crate) fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }
}

/// What to do about the candidates.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    pub(crate) owned: Vec<Arc<Encoded>>,
    pub(crate) adopt: Vec<Arc<Encoded>>,
    pub(crate) release: Vec<Arc<Encoded>>,
}

/// Sorts objects by whether `owner` owns, adopts or releases them; all others are nobody's business.
pub(crate) fn claims(owner: &Owner, selector: &LabelSelector, candidates: Vec<Arc<Encoded>>) -> Claims {
    let mut claims = Claims::default();
    for object in candidates {
        let matches = selector.matches(&object.attributes);
        match object.attributes.controller() {
            Some(controller) if *controller.uid != *owner.uid => {}
            Some(_) if matches => claims.owned.push(object),
            Some(_) if !owner.deleting => claims.release.push(object),
            None if matches && !owner.deleting && !object.attributes.deleting => claims.adopt.push(object),
            _ => {}
        }
    }
    claims
}

/// Objects of an informer that `owner` controls or might adopt.
pub(crate) fn candidates(informer: &RawInformer, owner: &Owner) -> Vec<Arc<Encoded>> {
    let mut found = controlled_by(informer, &owner.uid);
    found.retain(|o| o.namespace() == owner.namespace);
    found.extend(informer.by_index(CONTROLLER_INDEX, &format!("/{}", owner.namespace)));
    found
}

/// The objects `owner` owns, adopting and releasing as needed. `O` is the owner's kind, read live before the first
/// adoption: the informer may not know yet that it is going away.
pub(crate) async fn claim<O, K>(
    ctx: &Context,
    informer: &RawInformer,
    owner: &Owner,
    selector: &LabelSelector,
) -> anyhow::Result<Vec<Arc<Encoded>>>
where
    O: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let Claims { mut owned, adopt, release } = claims(owner, selector, candidates(informer, owner));
    let api: Api<K> = ctx.client.namespaced(&owner.namespace);
    if !adopt.is_empty() {
        let live = ctx.client.namespaced::<O>(&owner.namespace).get_opt(&owner.name).await?;
        let may = live.is_some_and(|live| {
            live.meta().uid.as_deref() == Some(&owner.uid) && live.meta().deletion_timestamp.is_none()
        });
        anyhow::ensure!(may, "{} {}/{} is gone or going", owner.kind, owner.namespace, owner.name);
        for object in adopt {
            let patch = json!({"metadata": {"uid": object.uid(), "ownerReferences": [owner.reference()]}});
            match api.patch(object.name(), &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => owned.push(object),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    for object in release {
        let patch = json!({"metadata": {"uid": object.uid(), "ownerReferences": [{"$patch": "delete", "uid": owner.uid}]}});
        match api
            .patch(object.name(), &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .ignore_not_found()
        {
            // Invalid: the UID is another object's by now, or the reference is gone already.
            Err(kube::Error::Api(status)) if status.code == 422 => {}
            result => {
                result?;
            }
        }
    }
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use bytes_of::object;

    use super::*;

    mod bytes_of {
        use super::*;

        pub(super) fn object(label: &str, controller: Option<&str>, deleting: bool) -> Arc<Encoded> {
            let mut value = json!({"metadata": {"name": "x", "labels": {"app": label}}});
            if let Some(uid) = controller {
                value["metadata"]["ownerReferences"] = json!([{"uid": uid, "controller": true}]);
            }
            if deleting {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(Encoded::new(value.to_string().into(), 1, |_| vec![]).unwrap())
        }
    }

    #[test]
    fn who_owns_what() {
        let selector = LabelSelector::parse("app=a").unwrap();
        // (label, controller, object deleting, owner deleting) -> (owned, adopted, released)
        for (label, controller, deleting, owner_deleting, want) in [
            ("a", Some("me"), false, false, (1, 0, 0)),
            ("a", Some("me"), true, true, (1, 0, 0)),
            ("b", Some("me"), false, false, (0, 0, 1)),
            ("b", Some("me"), false, true, (0, 0, 0)),
            ("a", Some("other"), false, false, (0, 0, 0)),
            ("a", None, false, false, (0, 1, 0)),
            ("a", None, true, false, (0, 0, 0)),
            ("a", None, false, true, (0, 0, 0)),
            ("b", None, false, false, (0, 0, 0)),
        ] {
            let owner = Owner {
                api_version: "apps/v1".into(),
                kind: "ReplicaSet".into(),
                namespace: "n".into(),
                name: "me".into(),
                uid: "me".into(),
                deleting: owner_deleting,
            };
            let c = claims(&owner, &selector, vec![object(label, controller, deleting)]);
            assert_eq!((c.owned.len(), c.adopt.len(), c.release.len()), want, "{label} {controller:?}");
        }
    }
}
