//! clusterrole-aggregation-controller: fills the rules of cluster roles that gather those of others.

use std::sync::Arc;
use std::time::Duration;

use client::{Informer, WorkQueue, run_workers};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::Context;
use crate::support::errors::IgnoreNotFound;
use crate::support::selectors;

/// Changes come in bursts (at start, when a chart is installed).
const GATHER: Duration = Duration::from_millis(100);

pub(crate) async fn run(ctx: Context) -> anyhow::Result<()> {
    let roles: Informer<ClusterRole> = ctx.client.informer();
    let queue = WorkQueue::<()>::new();
    let q = queue.clone();
    roles.subscribe(move |_| q.add_after((), GATHER));
    roles.synced().await;
    let roles = Arc::new(roles);
    run_workers(queue, 1, ctx.shutdown.clone(), move |()| {
        let (ctx, roles) = (ctx.clone(), roles.clone());
        async move {
            let all = roles.list_typed(None);
            for (name, rules) in plan(&all) {
                let patch = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                    "metadata": {"name": name}, "rules": rules});
                let parameters = PatchParams::apply("clusterrole-aggregation-controller").force();
                let api = ctx.client.all::<ClusterRole>();
                api.patch(&name, &parameters, &Patch::Apply(patch)).await.ignore_not_found()?;
            }
            Ok::<_, kube::Error>(None)
        }
    })
    .await;
    Ok(())
}

/// The gathering roles whose rules are not what they should be. Roles gathered from may gather themselves.
fn plan(roles: &[ClusterRole]) -> Vec<(String, Vec<PolicyRule>)> {
    let mut changes = Vec::new();
    for role in roles {
        let Some(aggregation) = &role.aggregation_rule else { continue };
        let chosen: Vec<_> =
            aggregation.cluster_role_selectors.iter().flatten().map(selectors::from_typed).collect();
        let mut sources: Vec<&ClusterRole> = roles
            .iter()
            .filter(|r| r.metadata.name != role.metadata.name)
            .filter(|r| chosen.iter().any(|s| selectors::matches(s, r.metadata.labels.as_ref())))
            .collect();
        sources.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let mut rules: Vec<PolicyRule> = Vec::new();
        for rule in sources.iter().flat_map(|s| s.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        // In whatever order: the API server keeps its own roles in one of its own.
        let present = role.rules.as_deref().unwrap_or_default();
        if present.len() != rules.len() || !rules.iter().all(|r| present.contains(r)) {
            changes.push((role.metadata.name.clone().unwrap_or_default(), rules));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathers_rules() {
        let role = |v: serde_json::Value| -> ClusterRole { serde_json::from_value(v).unwrap() };
        let mut roles = vec![
            role(
                json!({"metadata": {"name": "all"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}}),
            ),
            role(
                json!({"metadata": {"name": "b", "labels": {"to": "all"}}, "rules": [{"verbs": ["list"]}, {"verbs": ["get"]}]}),
            ),
            role(json!({"metadata": {"name": "a", "labels": {"to": "all"}}, "rules": [{"verbs": ["get"]}]})),
            role(json!({"metadata": {"name": "c"}, "rules": [{"verbs": ["delete"]}]})),
        ];
        let changes = plan(&roles);
        assert_eq!(changes.len(), 1);
        let verbs: Vec<_> = changes[0].1.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list"]);
        roles[0].rules = Some(changes[0].1.clone());
        assert!(plan(&roles).is_empty());
    }
}
