//! Flow schemas and priority levels, read into what decides about requests. Pure.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use apimachinery::user::UserInfo;
use http::HeaderValue;
use serde_json::Value;

use super::Ids;
use crate::seams::RequestInfo;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

/// One flow schema.
pub struct Class {
    name: String,
    precedence: i64,
    pub level: String,
    distinguisher: Distinguisher,
    rules: Value,
    pub ids: Ids,
}

/// One priority level, in seats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelSpec {
    pub exempt: bool,
    pub nominal: u32,
    pub lendable: u32,
    pub borrows_max: u32,
    /// 0 where requests do not wait.
    pub queues: usize,
    pub hand_size: usize,
    pub queue_length_max: usize,
}

#[derive(Default)]
pub struct Classes {
    all: Vec<Class>,
    pub levels: BTreeMap<String, LevelSpec>,
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn uid(object: &Value) -> HeaderValue {
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))
}

impl Classes {
    pub fn new(schemas: &[Value], levels: &[Value], total: u32) -> Classes {
        let shares = |level: &Value| {
            let spec = &level["spec"];
            let of = |kind: &Value| kind["nominalConcurrencyShares"].as_u64();
            match spec["type"].as_str() {
                Some("Exempt") => of(&spec["exempt"]).unwrap_or(0),
                _ => of(&spec["limited"]).unwrap_or(30),
            }
        };
        let sum: u64 = levels.iter().map(shares).sum::<u64>().max(1);
        let mut read = BTreeMap::new();
        let mut uids: HashMap<String, HeaderValue> = HashMap::new();
        for level in levels {
            let spec = &level["spec"];
            let exempt = spec["type"] == "Exempt";
            let limits = if exempt { &spec["exempt"] } else { &spec["limited"] };
            let nominal = (f64::from(total) * shares(level) as f64 / sum as f64).ceil();
            let part = |field: &str| {
                limits[field].as_f64().map(|percent| (nominal * percent / 100.0).round() as u32)
            };
            let queuing = &limits["limitResponse"]["queuing"];
            let queued = limits["limitResponse"]["type"] == "Queue";
            let count = |field: &str, usual: u64| {
                let given = queuing[field].as_u64().filter(|n| *n > 0).unwrap_or(usual);
                usize::try_from(given).unwrap_or(usize::MAX)
            };
            uids.insert(name(level), uid(level));
            let spec = LevelSpec {
                exempt,
                nominal: nominal as u32,
                lendable: part("lendablePercent").unwrap_or(0),
                // Without a limit a level borrows whatever is lent.
                borrows_max: if exempt { 0 } else { part("borrowingLimitPercent").unwrap_or(total) },
                queues: if queued { count("queues", 64).min(10_000) } else { 0 },
                hand_size: count("handSize", 8),
                queue_length_max: count("queueLengthLimit", 50),
            };
            read.insert(name(level), spec);
        }
        let mut all: Vec<Class> = schemas
            .iter()
            .filter_map(|schema| {
                let spec = &schema["spec"];
                let level = spec["priorityLevelConfiguration"]["name"].as_str()?.to_owned();
                // A schema of a level that does not exist is as if it were not there.
                let level_uid = uids.get(&level)?.clone();
                Some(Class {
                    name: name(schema),
                    precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
                    level,
                    distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                        Some("ByUser") => Distinguisher::User,
                        Some("ByNamespace") => Distinguisher::Namespace,
                        _ => Distinguisher::None,
                    },
                    rules: spec["rules"].clone(),
                    ids: Ids { schema: uid(schema), level: level_uid },
                })
            })
            .collect();
        all.sort_by(|a, b| a.precedence.cmp(&b.precedence).then_with(|| a.name.cmp(&b.name)));
        Classes { all, levels: read }
    }

    /// The names of the schemas and of their levels.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.all.iter().map(|class| (class.name.as_str(), class.level.as_str()))
    }

    /// The first schema that matches the request.
    pub fn classify(&self, user: &UserInfo, info: &RequestInfo) -> Option<&Class> {
        self.all.iter().find(|class| items(&class.rules).any(|rule| matches(rule, user, info)))
    }
}

impl Class {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which of the schema's flows a request belongs to, as a hash.
    pub fn flow(&self, user: &UserInfo, info: &RequestInfo) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.distinguisher {
            Distinguisher::None => {}
            Distinguisher::User => user.name.hash(&mut hasher),
            Distinguisher::Namespace => info.namespace.hash(&mut hasher),
        }
        hasher.finish()
    }
}

fn items(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn has(list: &Value, item: &str) -> bool {
    items(list).any(|v| v == "*" || v == item)
}

fn matches(rule: &Value, user: &UserInfo, info: &RequestInfo) -> bool {
    if !items(&rule["subjects"]).any(|s| is_subject(s, user)) {
        return false;
    }
    if !info.is_resource {
        return items(&rule["nonResourceRules"]).any(|r| {
            has(&r["verbs"], &info.verb)
                && items(&r["nonResourceURLs"]).filter_map(Value::as_str).any(|pattern| {
                    pattern == "*"
                        || pattern == info.path
                        || pattern.strip_suffix('*').is_some_and(|prefix| info.path.starts_with(prefix))
                })
        });
    }
    let resource = if info.subresource.is_empty() {
        info.resource.clone()
    } else {
        format!("{}/{}", info.resource, info.subresource)
    };
    items(&rule["resourceRules"]).any(|r| {
        let scope = if info.namespace.is_empty() {
            r["clusterScope"] == true
        } else {
            has(&r["namespaces"], &info.namespace)
        };
        scope
            && has(&r["verbs"], &info.verb)
            && has(&r["apiGroups"], &info.group)
            && has(&r["resources"], &resource)
    })
}

fn is_subject(subject: &Value, user: &UserInfo) -> bool {
    let text = |kind: &str, field: &str| subject[kind][field].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => matches!(text("user", "name"), "*") || text("user", "name") == user.name,
        Some("Group") => text("group", "name") == "*" || user.in_group(text("group", "name")),
        Some("ServiceAccount") => {
            let Some(account) = user.name.strip_prefix("system:serviceaccount:") else { return false };
            let Some((namespace, name)) = account.split_once(':') else { return false };
            let wanted = text("serviceAccount", "name");
            text("serviceAccount", "namespace") == namespace && (wanted == "*" || wanted == name)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classifies_and_shares() {
        let levels = [
            json!({"metadata": {"name": "exempt"}, "spec": {"type": "Exempt"}}),
            json!({"metadata": {"name": "a"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 30,
                "lendablePercent": 50, "limitResponse": {"type": "Queue", "queuing": {"queues": 16, "handSize": 4}}}}}),
            json!({"metadata": {"name": "b"}, "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 10,
                "borrowingLimitPercent": 10, "limitResponse": {"type": "Reject"}}}}),
        ];
        let schema = |name: &str, precedence: i64, level: &str, rule: Value| {
            json!({"metadata": {"name": name}, "spec": {"matchingPrecedence": precedence,
                "priorityLevelConfiguration": {"name": level}, "distinguisherMethod": {"type": "ByUser"}, "rules": [rule]}})
        };
        let everything = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]);
        let schemas = [
            schema(
                "rest",
                100,
                "b",
                json!({"subjects": [{"kind": "Group", "group": {"name": "*"}}], "resourceRules": everything,
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz*"]}]}),
            ),
            schema(
                "leases",
                1,
                "a",
                json!({"subjects": [{"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}}],
                "resourceRules": [{"verbs": ["get", "update"], "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["kube-system"]}]}),
            ),
            schema(
                "dangling",
                0,
                "none",
                json!({"subjects": [{"kind": "Group", "group": {"name": "*"}}], "resourceRules": everything}),
            ),
        ];
        let classes = Classes::new(&schemas, &levels, 600);
        assert_eq!(
            (classes.levels["a"].nominal, classes.levels["a"].lendable, classes.levels["a"].queues),
            (450, 225, 16)
        );
        assert_eq!(
            (classes.levels["b"].nominal, classes.levels["b"].borrows_max, classes.levels["b"].queues),
            (150, 15, 0)
        );
        assert!(classes.levels["exempt"].exempt);
        let user = UserInfo::new("system:serviceaccount:kube-system:x", &[]);
        let lease = |verb: &str, namespace: &str| RequestInfo {
            verb: verb.into(),
            is_resource: true,
            group: "coordination.k8s.io".into(),
            resource: "leases".into(),
            namespace: namespace.into(),
            ..RequestInfo::default()
        };
        let level =
            |user: &UserInfo, info: &RequestInfo| classes.classify(user, info).map(|c| c.level.clone());
        assert_eq!(level(&user, &lease("update", "kube-system")).as_deref(), Some("a"));
        assert_eq!(level(&user, &lease("delete", "kube-system")).as_deref(), Some("b"));
        assert_eq!(level(&user, &lease("update", "default")).as_deref(), Some("b"));
        assert_eq!(level(&UserInfo::new("x", &[]), &lease("update", "kube-system")).as_deref(), Some("b"));
        let health =
            RequestInfo { verb: "get".into(), path: "/healthz/ping".into(), ..RequestInfo::default() };
        assert_eq!(level(&user, &health).as_deref(), Some("b"));
        let other = RequestInfo { path: "/version".into(), ..health };
        assert_eq!(level(&user, &other), None);
    }
}
