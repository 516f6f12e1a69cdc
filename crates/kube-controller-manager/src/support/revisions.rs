//! ControllerRevisions: the history of the templates of daemon sets and stateful sets.

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

/// Reads the history of `owner`, adding or renumbering the revision of `template` as needed. `hash_label` names the
/// label that holds a revision's hash.
pub(crate) async fn ensure<O>(
    ctx: &Context,
    informer: &Informer<ControllerRevision>,
    owner: &Owner,
    selector: &LabelSelector,
    template: &PodTemplateSpec,
    hash_label: &str,
    mut collisions: Option<i32>,
) -> anyhow::Result<History>
where
    O: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
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
        let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        labels.insert(hash_label.to_owned(), hash.clone());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", owner.name)),
                namespace: Some(owner.namespace.clone()),
                labels: Some(labels),
                owner_references: Some(vec![owner.reference()]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data(template))),
            revision: newest + 1,
        };
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
