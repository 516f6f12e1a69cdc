//! ControllerRevisions: the history of the templates of daemon sets and stateful sets.

use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use apimachinery::selector::LabelSelector;
use client::Informer;

use crate::Context;
use crate::deployment::template::{canonical, hash};
use crate::support::errors::{ApiError, IgnoreNotFound};
use crate::support::ownership::{self, Owner};

/// On pods: the revision they were made from.
pub(crate) const POD_REVISION: &str = "controller-revision-hash";

pub(crate) fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// The template a revision holds.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// A set's revisions, and the one of its present template.
pub(crate) struct History {
    /// Oldest first, the present one included.
    pub(crate) all: Vec<ControllerRevision>,
    pub(crate) update: ControllerRevision,
    /// A new name was needed because another template hashes the same.
    pub(crate) collisions: Option<i32>,
}

/// What a set's present revision is made of.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Those of the set: they say why it was changed (`kubernetes.io/change-cause`).
    pub(crate) annotations: Option<&'a BTreeMap<String, String>>,
    pub(crate) template: &'a PodTemplateSpec,
    /// The label that holds a revision's hash.
    pub(crate) hash_label: &'a str,
}

impl Source<'_> {
    fn revision(&self, owner: &Owner, hash: &str, number: i64) -> ControllerRevision {
        let labels = self.template.metadata.as_ref().and_then(|m| m.labels.clone());
        let mut labels = labels.unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), hash.to_owned());
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", owner.name)),
                namespace: Some(owner.namespace.clone()),
                labels: Some(labels),
                annotations: self.annotations.cloned(),
                owner_references: Some(vec![owner.reference()]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data(self.template))),
            revision: number,
        }
    }
}

/// Reads the history of `owner`, adding or renumbering the revision of `source` as needed.
pub(crate) async fn ensure<O>(
    ctx: &Context,
    informer: &Informer<ControllerRevision>,
    owner: &Owner,
    selector: &LabelSelector,
    source: Source<'_>,
    mut collisions: Option<i32>,
) -> anyhow::Result<History>
where
    O: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let template = source.template;
    let owned = ownership::claim::<O, ControllerRevision>(ctx, informer, owner, selector).await?;
    let mut all: Vec<ControllerRevision> = owned.iter().filter_map(|r| informer.decode(r)).collect();
    all.sort_by_key(|r| (r.revision, r.metadata.creation_timestamp.as_ref().map(|t| t.0)));
    let wanted = canonical(template);
    let same = |r: &ControllerRevision| self::template(r).is_some_and(|t| canonical(&t) == wanted);
    let newest = all.last().map_or(0, |r| r.revision);
    let api = ctx.client.namespaced::<ControllerRevision>(&owner.namespace);
    if let Some(at) = all.iter().rposition(same) {
        if at + 1 != all.len() {
            // The template went back to an earlier one.
            let patch = json!({"revision": newest + 1});
            let moved = api.patch(name(&all[at]), &PatchParams::default(), &Patch::Merge(patch)).await?;
            all.remove(at);
            all.push(moved);
        }
        let update = all[all.len() - 1].clone();
        return Ok(History { all, update, collisions });
    }
    loop {
        let hash = hash(template, collisions);
        let revision = source.revision(owner, &hash, newest + 1);
        match api.create(&PostParams::default(), &revision).await {
            Ok(made) => {
                all.push(made.clone());
                return Ok(History { all, update: made, collisions });
            }
            Err(error) if error.is_already_exists() => {
                let taken = api.get(name(&revision)).await?;
                let ours = taken.metadata.owner_references.iter().flatten().any(|r| r.uid == owner.uid);
                if ours && same(&taken) {
                    all.push(taken.clone());
                    return Ok(History { all, update: taken, collisions });
                }
                anyhow::ensure!(
                    collisions.unwrap_or(0) < 100,
                    "no free name for a revision of {}",
                    owner.name
                );
                collisions = Some(collisions.unwrap_or(0) + 1);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Deletes revisions beyond `limit`, oldest first, except those in use.
pub(crate) async fn clean_up(
    ctx: &Context,
    owner: &Owner,
    history: &History,
    limit: i32,
    in_use: impl Fn(&ControllerRevision) -> bool,
) -> anyhow::Result<()> {
    let idle: Vec<&ControllerRevision> =
        history.all.iter().filter(|r| name(r) != name(&history.update) && !in_use(r)).collect();
    let surplus = idle.len().saturating_sub(limit.max(0) as usize);
    let api = ctx.client.namespaced::<ControllerRevision>(&owner.namespace);
    for revision in idle.into_iter().take(surplus) {
        api.delete(name(revision), &DeleteParams::default()).await.ignore_not_found()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DaemonSet;

    use super::*;

    #[test]
    fn what_a_revision_says() {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "u",
                "annotations": {"kubernetes.io/change-cause": "apply"}},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}}}))
        .unwrap();
        let source = Source {
            annotations: set.metadata.annotations.as_ref(),
            template: &set.spec.as_ref().unwrap().template,
            hash_label: POD_REVISION,
        };
        let revision = source.revision(&Owner::of(&set), "5f", 3);
        let said = serde_json::to_value(&revision).unwrap();
        assert_eq!(said["metadata"]["name"], "d-5f");
        assert_eq!(said["metadata"]["labels"], json!({"a": "b", "controller-revision-hash": "5f"}));
        assert_eq!(said["metadata"]["annotations"], json!({"kubernetes.io/change-cause": "apply"}));
        assert_eq!(said["revision"], 3);
        assert_eq!(said["data"]["spec"]["template"]["$patch"], "replace");
    }
}
