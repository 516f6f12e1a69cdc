//! What the expressions of validating policies would do with the types they are about: the warnings in a policy's status.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::field_path::Path;
use expression::{Decl, Type};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::compiled::{Expressions, Known};
use crate::admission::items;
use crate::registry::access::Access;
use crate::registry::{Entry, Registry, Table};
use crate::seams::{Objects, Writer};

const RESOURCE: &str = "validatingadmissionpolicies";
const RETRY: Duration = Duration::from_secs(1);
/// How many types one policy is checked with.
const KINDS_MAX: usize = 10;

fn decl(entry: &Entry) -> Option<Arc<Decl>> {
    match &entry.custom {
        Some(custom) => expression::schema::declare(custom.open_api_schema(), true, &entry.kind),
        None => entry.schema().map(|schema| expression::schema::of_type(schema, &entry.kind)),
    }
}

/// The types a policy is about, as far as its rules name them.
fn kinds(spec: &Value, table: &Table) -> Vec<Arc<Entry>> {
    let mut found = BTreeSet::new();
    for rule in items(&spec["matchConstraints"], "resourceRules") {
        let named = |field: &str| -> Vec<&str> {
            let all: Vec<&str> = items(rule, field).filter_map(Value::as_str).collect();
            // What stands for everything names nothing.
            if all.iter().any(|v| v.contains('*')) { Vec::new() } else { all }
        };
        for group in named("apiGroups") {
            for version in named("apiVersions") {
                for resource in named("resources") {
                    if table.find(group, version, resource).is_some() && found.len() < KINDS_MAX {
                        found.insert((group, version, resource));
                    }
                }
            }
        }
    }
    found.iter().filter_map(|(g, v, r)| table.find(g, v, r).cloned()).collect()
}

/// The warnings about a policy's expressions.
pub fn warnings(spec: &Value, table: &Table) -> Vec<Value> {
    let param_kind = &spec["paramKind"];
    let params = param_kind["apiVersion"].as_str().and_then(|api_version| {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let entry = table.find_kind(group, version, param_kind["kind"].as_str()?)?;
        decl(entry)
    });
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for entry in kinds(spec, table) {
        let Some(object) = decl(&entry) else { continue };
        let known = Known {
            object: Some(object.ty()),
            params: params.as_ref().map(|p: &Arc<Decl>| -> Type { p.ty() }),
        };
        let expressions = Expressions::new(spec, &known);
        let gvk = format!("{}, Kind={}", entry.api_version(), entry.kind);
        let gvk = if entry.group.is_empty() { format!("/{gvk}") } else { gvk };
        for (i, validation) in expressions.validations.iter().enumerate() {
            let path = Path::new("spec").child("validations").index(i);
            let both = [
                ("expression", Some(&validation.rule)),
                ("messageExpression", validation.message_rule.as_ref()),
            ];
            for (field, expression) in both {
                let Some(Err(why)) = expression.map(|e| &e.program) else { continue };
                let path = path.child(field).to_string();
                let text = format!("{gvk}: {why}\n");
                match found.iter_mut().find(|(p, _)| *p == path) {
                    Some((_, texts)) => texts.push(text),
                    None => found.push((path, vec![text])),
                }
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.into_iter().map(|(path, texts)| json!({"fieldRef": path, "warning": texts.join("\n")})).collect()
}

/// Keeps the status of all policies, until `shutdown`.
pub async fn run(registry: Arc<Registry>, shutdown: CancellationToken) {
    let access = Access(registry.clone());
    let mut changes = access.changes(super::GROUP, RESOURCE);
    loop {
        changes.mark_unchanged();
        let mut settled = true;
        for policy in access.list(super::GROUP, RESOURCE, None) {
            let Ok(mut policy) = policy.to_value() else { continue };
            let generation = policy["metadata"]["generation"].clone();
            if policy["status"]["observedGeneration"] == generation {
                continue;
            }
            let warnings = warnings(&policy["spec"], &registry.table.load());
            policy["status"]["observedGeneration"] = generation;
            policy["status"]["typeChecking"] =
                if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
            let written =
                access.update(super::GROUP, "v1", "validatingadmissionpolicies/status", policy).await;
            match written {
                Ok(_) => {}
                // The newer state brings another pass.
                Err(status) if matches!(status.code, 404 | 409) => {}
                Err(status) => {
                    tracing::debug!(%status, "status of a validating admission policy");
                    settled = false;
                }
            }
        }
        let again = async {
            if settled {
                let _ = changes.changed().await;
            } else {
                let _ = tokio::time::timeout(RETRY, changes.changed()).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = again => {}
        }
    }
}
