//! Authorizers elsewhere: a request is described to them in a SubjectAccessReview.

use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::clock::Clock;
use apimachinery::field_path::Path;
use apimachinery::selector::{FieldSelector, LabelSelector, Operator};
use apimachinery::user::UserInfo;
use expression::{CALL_COST_MAX, Error, Value as Cel, Variables};
use serde_json::{Map, Value, json};

use super::configuration::{self, WebhookConfiguration};
use super::{Opinion, Verdict};
use crate::config_file;
use crate::metrics::{Families, Family};
use crate::outbound::{Backoff, Failure, Service};
use crate::remembered::Remembered;
use crate::seams::RequestInfo;

const REMEMBERED_MAX: usize = 8192;
/// Requests with names longer than this, taken together, are not remembered.
const NAMES_BYTES_MAX: usize = 10_000;
const BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const CONDITION_BOUNDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];

/// One webhook.
pub struct Webhook {
    name: String,
    service: Service,
    api_version: String,
    timeout: Duration,
    backoff: Backoff,
    on_failure: Verdict,
    conditions: configuration::Compiled,
    authorized_ttl: Duration,
    unauthorized_ttl: Duration,
    known: Remembered<String, Opinion>,
    metrics: Metrics,
}

struct Metrics {
    evaluations: Arc<Family>,
    duration: Arc<Family>,
    fail_open: Arc<Family>,
    condition_errors: Arc<Family>,
    condition_exclusions: Arc<Family>,
    condition_seconds: Arc<Family>,
}

impl Metrics {
    fn new(families: &Families) -> Metrics {
        const RESULT: &[&str] = &["name", "result"];
        const KIND: &[&str] = &["type", "name"];
        Metrics {
            evaluations: families.counter(
                "apiserver_authorization_webhook_evaluations_total",
                "Round trips to authorization webhooks.",
                RESULT,
            ),
            duration: families.histogram(
                "apiserver_authorization_webhook_duration_seconds",
                "Time of round trips to authorization webhooks, in seconds.",
                RESULT,
                BOUNDS,
            ),
            fail_open: families.counter(
                "apiserver_authorization_webhook_evaluations_fail_open_total",
                "Requests that an authorization webhook had no opinion of because it failed.",
                RESULT,
            ),
            condition_errors: families.counter(
                "apiserver_authorization_match_condition_evaluation_errors_total",
                "Requests that match conditions of an authorization webhook failed on.",
                KIND,
            ),
            condition_exclusions: families.counter(
                "apiserver_authorization_match_condition_exclusions_total",
                "Requests that match conditions kept from an authorization webhook.",
                KIND,
            ),
            condition_seconds: families.histogram(
                "apiserver_authorization_match_condition_evaluation_seconds",
                "Time spent on match conditions of authorization webhooks, in seconds.",
                KIND,
                CONDITION_BOUNDS,
            ),
        }
    }
}

impl Webhook {
    pub async fn new(
        name: &str,
        config: &WebhookConfiguration,
        clock: Clock,
        families: &Families,
    ) -> anyhow::Result<Webhook> {
        let version = config.subject_access_review_version.as_str();
        anyhow::ensure!(
            matches!(version, "v1" | "v1beta1"),
            "unsupported webhook authorizer version {version:?}, supported versions are \"v1\", \"v1beta1\""
        );
        let mut errors = Vec::new();
        let conditions = configuration::compile(&config.match_conditions, &Path::root(), &mut errors);
        config_file::aggregate(&errors)?;
        let file = config.connection_info.kube_config_file.clone().unwrap_or_default();
        let (authorized_ttl, unauthorized_ttl) = config.ttls();
        Ok(Webhook {
            name: name.to_owned(),
            service: Service::from_kubeconfig(&file).await?,
            api_version: format!("authorization.k8s.io/{version}"),
            timeout: config.timeout(),
            backoff: Backoff::default(),
            on_failure: if config.failure_policy == "Deny" { Verdict::Deny } else { Verdict::NoOpinion },
            conditions,
            authorized_ttl,
            unauthorized_ttl,
            known: Remembered::new(REMEMBERED_MAX, clock),
            metrics: Metrics::new(families),
        })
    }

    pub async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Opinion {
        match self.is_asked(user, request) {
            Ok(true) => {}
            Ok(false) => return Opinion::default(),
            Err(why) => return Opinion { verdict: self.on_failure, error: Some(why), ..Opinion::default() },
        }
        let spec = spec(user, request);
        let key = spec.to_string();
        if let Some(opinion) = self.known.get(&key) {
            return opinion;
        }
        let review = json!({"kind": "SubjectAccessReview", "apiVersion": self.api_version, "metadata": {},
            "spec": self.in_version(spec), "status": {"allowed": false}});
        let mut result = "success";
        let answer = self.backoff.retry(|| self.ask(&review)).await;
        let answer =
            answer.and_then(|answer| self.read(&answer)).inspect_err(|failure| result = outcome(failure));
        let opinion = match answer {
            Ok(opinion) => opinion,
            Err(failure) => {
                tracing::error!(webhook = self.name, %failure, "Failed to make webhook authorizer request");
                if self.on_failure == Verdict::NoOpinion {
                    self.metrics.fail_open.inc(&[&self.name, result]);
                }
                let error = Some(failure.to_string());
                return Opinion { verdict: self.on_failure, error, ..Opinion::default() };
            }
        };
        let ttl = if opinion.verdict == Verdict::Allow { self.authorized_ttl } else { self.unauthorized_ttl };
        if names_bytes(request) < NAMES_BYTES_MAX {
            self.known.keep(key, opinion.clone(), ttl);
        }
        opinion
    }

    async fn ask(&self, review: &Value) -> Result<Value, Failure> {
        let started = Instant::now();
        let answer = self.service.post(review, self.timeout).await;
        let result = answer.as_ref().err().map_or("success", outcome);
        self.metrics.evaluations.inc(&[&self.name, result]);
        self.metrics.duration.took(&[&self.name, result], started.elapsed());
        answer
    }

    /// A spec as this webhook's version names its members.
    fn in_version(&self, mut spec: Value) -> Value {
        if self.api_version.ends_with("v1beta1")
            && let Some(members) = spec.as_object_mut()
            && let Some(groups) = members.remove("groups")
        {
            members.insert("group".to_owned(), groups);
        }
        spec
    }

    fn read(&self, answer: &Value) -> Result<Opinion, Failure> {
        if answer["kind"] != "SubjectAccessReview" || answer["apiVersion"] != self.api_version {
            let message = format!(
                "the webhook answered with {} of {}, not with a SubjectAccessReview of {:?}",
                answer["kind"], answer["apiVersion"], self.api_version
            );
            return Err(Failure::Broken { message, reset: false });
        }
        let status = &answer["status"];
        let (allowed, denied) = (status["allowed"] == true, status["denied"] == true);
        let both = "webhook subject access review returned both allow and deny response";
        Ok(Opinion {
            verdict: match (allowed, denied) {
                (_, true) => Verdict::Deny,
                (true, false) => Verdict::Allow,
                (false, false) => Verdict::NoOpinion,
            },
            reason: status["reason"].as_str().unwrap_or_default().to_owned(),
            error: (allowed && denied).then(|| both.to_owned()),
        })
    }

    /// Whether the match conditions let the request through to the webhook.
    fn is_asked(&self, user: &UserInfo, request: &RequestInfo) -> Result<bool, String> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let labels = ["Webhook", self.name.as_str()];
        let started = Instant::now();
        let holds = hold(&self.conditions, &seen(user, request));
        self.metrics.condition_seconds.took(&labels, started.elapsed());
        match &holds {
            Ok(true) => {}
            Ok(false) => self.metrics.condition_exclusions.inc(&labels),
            Err(_) => self.metrics.condition_errors.inc(&labels),
        }
        holds
    }
}

fn outcome(failure: &Failure) -> &'static str {
    match failure {
        Failure::TimedOut { .. } | Failure::Refused { code: 504, .. } => "timeout",
        _ => "error",
    }
}

fn names_bytes(request: &RequestInfo) -> usize {
    let RequestInfo { namespace, verb, group, version, resource, subresource, name, path, .. } = request;
    [namespace, verb, group, version, resource, subresource, name, path].iter().map(|s| s.len()).sum()
}

/// All conditions true; the first that is false decides, errors count only when none is.
fn hold(conditions: &configuration::Compiled, request: &Value) -> Result<bool, String> {
    let mut variables = Variables::default();
    variables.set("request", Cel::from_json(request, None));
    let mut errors: Vec<String> = Vec::new();
    for (source, program) in conditions {
        let why = match program.evaluate(&variables, CALL_COST_MAX).value {
            Ok(Cel::Bool(true)) => continue,
            Ok(Cel::Bool(false)) => return Ok(false),
            Ok(other) => {
                errors.push(format!(
                    "cel evaluation error: expression '{source}' eval result type should be bool but got {}",
                    other.ty()
                ));
                continue;
            }
            Err(Error::Cancelled) => "operation cancelled: actual cost limit exceeded".to_owned(),
            Err(Error::Failed(why)) => why.to_string(),
        };
        errors.push(format!("cel evaluation error: expression '{source}' resulted in error: {why}"));
    }
    match errors.len() {
        0 => Ok(true),
        1 => Err(errors.swap_remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

/// What match conditions see: every member, even those that say nothing.
fn seen(user: &UserInfo, request: &RequestInfo) -> Value {
    let mut out = json!({"user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra});
    if request.is_resource {
        let mut resource = json!({"namespace": request.namespace, "verb": request.verb, "group": request.group,
            "version": request.version, "resource": request.resource, "subresource": request.subresource,
            "name": request.name});
        for (name, requirements) in selectors(request) {
            resource[name] = json!({"requirements": requirements});
        }
        out["resourceAttributes"] = resource;
    } else {
        out["nonResourceAttributes"] = json!({"verb": request.verb, "path": request.path});
    }
    out
}

/// The spec of a SubjectAccessReview (v1) about a request.
pub fn spec(user: &UserInfo, request: &RequestInfo) -> Value {
    let mut out = Map::new();
    let attributes = |parts: &[(&str, &str)]| -> Map<String, Value> {
        let present = parts.iter().filter(|(_, v)| !v.is_empty());
        present.map(|(k, v)| ((*k).to_owned(), json!(v))).collect()
    };
    if request.is_resource {
        let mut resource = attributes(&[
            ("namespace", &request.namespace),
            ("verb", &request.verb),
            ("group", &request.group),
            ("version", &request.version),
            ("resource", &request.resource),
            ("subresource", &request.subresource),
            ("name", &request.name),
        ]);
        for (name, requirements) in selectors(request) {
            resource.insert(name.to_owned(), json!({"requirements": requirements}));
        }
        out.insert("resourceAttributes".to_owned(), resource.into());
    } else {
        let path = attributes(&[("path", &request.path), ("verb", &request.verb)]);
        out.insert("nonResourceAttributes".to_owned(), path.into());
    }
    if !user.name.is_empty() {
        out.insert("user".to_owned(), json!(user.name));
    }
    if !user.groups.is_empty() {
        out.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        out.insert("extra".to_owned(), json!(user.extra));
    }
    if !user.uid.is_empty() {
        out.insert("uid".to_owned(), json!(user.uid));
    }
    Value::Object(out)
}

/// The request's selectors as requirements. Those that cannot be read are left out: that asks for more, not for less.
fn selectors(request: &RequestInfo) -> Vec<(&'static str, Vec<Value>)> {
    let mut out = Vec::new();
    let requirement = |key: &str, operator: &str, values: &[String]| {
        let mut requirement = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            requirement["values"] = json!(values);
        }
        requirement
    };
    if let Some(selector) = request.field_selector.as_deref().and_then(|s| FieldSelector::parse(s).ok()) {
        let operator = |equal: bool| if equal { "In" } else { "NotIn" };
        let terms = selector.terms().iter();
        let terms = terms.map(|t| requirement(&t.field, operator(t.equal), std::slice::from_ref(&t.value)));
        out.push(("fieldSelector", terms.collect::<Vec<_>>()));
    }
    if let Some(selector) = request.label_selector.as_deref().and_then(|s| LabelSelector::parse(s).ok()) {
        let terms = selector.requirements().iter().filter_map(|r| {
            let operator = match r.operator {
                Operator::In | Operator::Equals => "In",
                Operator::NotIn | Operator::NotEquals => "NotIn",
                Operator::Exists => "Exists",
                Operator::DoesNotExist => "DoesNotExist",
                Operator::GreaterThan | Operator::LessThan => return None,
            };
            Some(requirement(&r.key, operator, &r.values))
        });
        out.push(("labelSelector", terms.collect()));
    }
    out.retain(|(_, requirements)| !requirements.is_empty());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::configuration::MatchCondition;

    fn request() -> RequestInfo {
        RequestInfo {
            verb: "list".into(),
            is_resource: true,
            version: "v1".into(),
            resource: "pods".into(),
            namespace: "a".into(),
            field_selector: Some("spec.nodeName=n,metadata.name!=x".into()),
            label_selector: Some("a=b,c notin (d,e),f,!g,h>1".into()),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn requests_are_described() {
        let user = UserInfo { name: "u".into(), groups: vec!["g".into()], ..UserInfo::default() };
        let described = spec(&user, &request());
        assert_eq!(
            described,
            json!({"user": "u", "groups": ["g"], "resourceAttributes": {"namespace": "a", "verb": "list", "version": "v1",
                "resource": "pods",
                "fieldSelector": {"requirements": [
                    {"key": "metadata.name", "operator": "NotIn", "values": ["x"]},
                    {"key": "spec.nodeName", "operator": "In", "values": ["n"]}]},
                "labelSelector": {"requirements": [
                    {"key": "a", "operator": "In", "values": ["b"]},
                    {"key": "c", "operator": "NotIn", "values": ["d", "e"]},
                    {"key": "f", "operator": "Exists"},
                    {"key": "g", "operator": "DoesNotExist"}]}}})
        );
        let path = RequestInfo { verb: "get".into(), path: "/healthz".into(), ..RequestInfo::default() };
        assert_eq!(
            spec(&user, &path),
            json!({"user": "u", "groups": ["g"], "nonResourceAttributes": {"path": "/healthz", "verb": "get"}})
        );
    }

    #[test]
    fn conditions_are_asked() {
        let of = |sources: &[&str]| {
            let conditions: Vec<MatchCondition> =
                sources.iter().map(|s| MatchCondition { expression: (*s).to_owned() }).collect();
            let mut errors = Vec::new();
            let compiled = configuration::compile(&conditions, &Path::root(), &mut errors);
            assert!(errors.is_empty(), "{errors:?}");
            let user = UserInfo { name: "u".into(), groups: vec!["g".into()], ..UserInfo::default() };
            hold(&compiled, &seen(&user, &request()))
        };
        for (sources, want) in [
            (&["true"] as &[&str], Ok(true)),
            (&["has(request.resourceAttributes)", "request.resourceAttributes.namespace == 'a'"], Ok(true)),
            (&["request.resourceAttributes.labelSelector.requirements.exists(r, r.key == 'f')"], Ok(true)),
            (&["request.groups.exists(g, g == 'h')"], Ok(false)),
            (
                &["request.nonResourceAttributes.path == '/x'", "request.user == 'u'"],
                Err("cel evaluation error: expression 'request.nonResourceAttributes.path == '/x'' resulted in error: no \
                     such key: nonResourceAttributes"
                    .to_owned()),
            ),
            (&["request.nonResourceAttributes.path == '/x'", "request.user == 'v'"], Ok(false)),
        ] {
            assert_eq!(of(sources), want, "{sources:?}");
        }
    }
}
