//! Admission webhooks: configured servers that are asked about writes, and may change them.

pub mod client;
pub mod conversion;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use apimachinery::patch::json::JsonPatch;
use apimachinery::status::Status;
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use serde_json::{Value, json};

use super::figures::{Asked, Step};
use super::matching::{self, Presented};
use super::{Context, items};
use crate::authorization::reviews::user_json;
use crate::seams::{AdmissionRequest, Operation};
use crate::security::failure;

const GROUP: &str = "admissionregistration.k8s.io";
const TIMEOUT_SECONDS_DEFAULT: u64 = 10;
const TIMEOUT_SECONDS_MAX: u64 = 30;

/// One webhook of one configuration.
struct Hook {
    /// Tells hooks of the same name apart: configuration uid and position.
    id: String,
    name: String,
    spec: Value,
}

impl Hook {
    fn ignores_failures(&self) -> bool {
        self.spec["failurePolicy"] == "Ignore"
    }

    fn timeout(&self) -> Duration {
        let seconds = self.spec["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT_SECONDS_DEFAULT);
        Duration::from_secs(seconds.clamp(1, TIMEOUT_SECONDS_MAX))
    }
}

/// The hooks of one configuration resource, read again when it changes.
struct Source {
    resource: &'static str,
    cached: ArcSwapOption<(u64, Vec<Hook>)>,
}

impl Source {
    fn new(resource: &'static str) -> Source {
        Source { resource, cached: ArcSwapOption::empty() }
    }

    fn hooks(&self, context: &Context) -> Arc<(u64, Vec<Hook>)> {
        let revision = context.objects.revision(GROUP, self.resource);
        if let Some(cached) = self.cached.load_full()
            && cached.0 == revision
        {
            return cached;
        }
        let mut configurations: Vec<Value> = context
            .objects
            .list(GROUP, self.resource, None)
            .iter()
            .filter_map(|c| serde_json::from_slice(&c.body).ok())
            .collect();
        configurations.sort_by(|a, b| a["metadata"]["name"].as_str().cmp(&b["metadata"]["name"].as_str()));
        let hooks = configurations.iter().flat_map(|configuration| {
            let uid = configuration["metadata"]["uid"].as_str().unwrap_or_default();
            items(configuration, "webhooks").enumerate().map(move |(i, spec)| Hook {
                id: format!("{uid}/{i}"),
                name: spec["name"].as_str().unwrap_or_default().to_owned(),
                spec: spec.clone(),
            })
        });
        let fresh = Arc::new((revision, hooks.collect()));
        self.cached.store(Some(fresh.clone()));
        fresh
    }
}

/// How a call ended other than by being allowed.
enum Ending {
    /// The webhook said no.
    Denied(Status),
    /// It could not be asked or did not answer properly; the failure policy decides.
    Failed(String),
    /// The request cannot be admitted, whatever the policy.
    Fatal(Status),
}

/// What the mutating webhooks of one request have done so far.
#[derive(Default)]
pub struct Round {
    /// Called hooks that want to be called again when somebody else changes the object.
    reinvocable: HashSet<String>,
    /// Those of them after which the object was changed.
    again: HashSet<String>,
    pub changed: bool,
}

impl Round {
    /// After the other plugins ran again: whether they changed the object since the webhooks saw it.
    pub fn plugins_changed(&mut self) {
        self.again.extend(self.reinvocable.drain());
    }
}

pub struct Webhooks {
    mutating: Source,
    validating: Source,
    client: client::Client,
}

impl Default for Webhooks {
    fn default() -> Webhooks {
        Webhooks {
            mutating: Source::new("mutatingwebhookconfigurations"),
            validating: Source::new("validatingwebhookconfigurations"),
            client: client::Client::default(),
        }
    }
}

/// The JSON of an AdmissionReview's request.
fn review(uid: &str, presented: &Presented, request: &AdmissionRequest<'_>, version: &str) -> Value {
    let kind = |p: &Presented| json!({"group": p.group, "version": p.version, "kind": p.kind});
    let resource = |p: &Presented| json!({"group": p.group, "version": p.version, "resource": p.resource});
    let own = Presented {
        group: request.group.to_owned(),
        version: request.version.to_owned(),
        resource: request.resource.to_owned(),
        kind: request.kind.to_owned(),
    };
    let of_object = |object: &Value, p: &Presented| {
        // A subresource's object has a kind of its own (Scale, Binding, PodExecOptions …).
        let given = object["apiVersion"].as_str().zip(object["kind"].as_str());
        match given.filter(|_| !request.subresource.is_empty()) {
            Some((api_version, kind)) => {
                let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
                json!({"group": group, "version": version, "kind": kind})
            }
            None => kind(p),
        }
    };
    let sample = if request.object.is_object() {
        &*request.object
    } else {
        request.old_object.unwrap_or(&Value::Null)
    };
    let namespace = if request.group.is_empty() && request.resource == "namespaces" {
        super::name(request)
    } else {
        request.namespace
    };
    let name = if request.name.is_empty() {
        request.object["metadata"]["name"].as_str().unwrap_or_default()
    } else {
        request.name
    };
    let mut body = json!({
        "uid": uid,
        "kind": of_object(sample, presented),
        "resource": resource(presented),
        "requestKind": of_object(sample, &own),
        "requestResource": resource(&own),
        "operation": matching::operation_name(request.operation),
        "userInfo": user_json(request.user),
        "object": matching::in_version(request.object, presented),
        "oldObject": request.old_object.map(|o| matching::in_version(o, presented)),
        "dryRun": request.dry_run,
        "options": request.options,
    });
    if !request.subresource.is_empty() {
        body["subResource"] = json!(request.subresource);
        body["requestSubResource"] = json!(request.subresource);
    }
    if !name.is_empty() {
        body["name"] = json!(name);
    }
    if !namespace.is_empty() {
        body["namespace"] = json!(namespace);
    }
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": body})
}

/// The denial a webhook's result stands for.
fn denial(name: &str, result: &Value) -> Status {
    let mut status: Status = serde_json::from_value(result.clone()).unwrap_or_default();
    status.code = status.code.max(400);
    status.status = "Failure".into();
    let denied = format!("admission webhook {name:?} denied the request");
    status.message = if !status.message.is_empty() {
        format!("{denied}: {}", status.message)
    } else if !status.reason.is_empty() {
        format!("{denied}: {}", status.reason)
    } else {
        format!("{denied} without explanation")
    };
    status
}

/// The response of a proper answer to our review.
fn verified<'a>(uid: &str, version: &str, answer: &'a Value) -> Result<&'a Value, String> {
    let got =
        (answer["apiVersion"].as_str().unwrap_or_default(), answer["kind"].as_str().unwrap_or_default());
    let want = (format!("admission.k8s.io/{version}"), "AdmissionReview");
    let empty_v1beta1 = version == "v1beta1" && got == ("", "");
    if got != (want.0.as_str(), want.1) && !empty_v1beta1 {
        return Err(format!(
            "expected webhook response of {}, Kind={}, got {}, Kind={}",
            want.0, want.1, got.0, got.1
        ));
    }
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    if version == "v1" && response["uid"] != uid {
        let got = response["uid"].as_str().unwrap_or_default();
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    Ok(response)
}

impl Webhooks {
    /// Whether any webhook is configured.
    pub fn any(&self, context: &Context) -> bool {
        [&self.mutating, &self.validating].iter().any(|source| !source.hooks(context).1.is_empty())
    }

    /// Whether, and in which version, a hook wants to be asked.
    fn wants(
        context: &Context,
        hook: &Hook,
        request: &AdmissionRequest<'_>,
    ) -> Result<Option<Presented>, Status> {
        let spec = &hook.spec;
        let presented = matching::presented(context, &spec["rules"], &spec["matchPolicy"], request);
        let Some(presented) = presented else { return Ok(None) };
        let namespace = matching::namespace_matches(context, &spec["namespaceSelector"], request);
        let object = matching::object_matches(&spec["objectSelector"], request);
        match (namespace, object) {
            (Ok(false), _) | (_, Ok(false)) => Ok(None),
            (Err(why), _) | (_, Err(why)) => Err(failure::internal(why)),
            (Ok(true), Ok(true)) => Ok(Some(presented)),
        }
    }

    /// Whether all match conditions hold. An error counts as the failure policy says.
    fn conditions_hold(
        context: &Context,
        hook: &Hook,
        presented: &Presented,
        request: &AdmissionRequest<'_>,
    ) -> Result<bool, Status> {
        if items(&hook.spec, "matchConditions").len() == 0 {
            return Ok(true);
        }
        match super::conditions::all_hold(context, &hook.spec["matchConditions"], presented, request) {
            Ok(hold) => Ok(hold),
            Err(_) if hook.ignores_failures() => Ok(false),
            Err(why) => Err(super::refuse(request, why)),
        }
    }

    async fn call(
        &self,
        context: &Context,
        hook: &Hook,
        presented: &Presented,
        request: &AdmissionRequest<'_>,
    ) -> Result<(Value, Vec<String>), Ending> {
        if request.dry_run && !matches!(hook.spec["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
            let text = format!("admission webhook {:?} does not support dry run", hook.name);
            return Err(Ending::Fatal(failure::bad_request(text)));
        }
        let versions: Vec<&str> =
            items(&hook.spec, "admissionReviewVersions").filter_map(Value::as_str).collect();
        let version = versions.into_iter().find(|v| matches!(*v, "v1" | "v1beta1"));
        let Some(version) = version else {
            return Err(Ending::Failed(
                "webhook does not accept known AdmissionReview versions (v1, v1beta1)".into(),
            ));
        };
        let uid = uuid::Uuid::new_v4().to_string();
        let body = review(&uid, presented, request, version);
        let answer =
            self.client.post(&*context.objects, &hook.spec["clientConfig"], &body, hook.timeout()).await;
        let answer = answer.map_err(|why| Ending::Failed(format!("failed to call webhook: {why}")))?;
        let response = verified(&uid, version, &answer)
            .map_err(|why| Ending::Failed(format!("received invalid webhook response: {why}")))?;
        let warnings = items(response, "warnings").filter_map(|w| w.as_str().map(str::to_owned)).collect();
        if response["allowed"] != true {
            return Err(Ending::Denied(denial(&hook.name, &response["status"])));
        }
        Ok((response.clone(), warnings))
    }

    /// As [`Webhooks::call`], told of in the figures.
    async fn ask(
        &self,
        context: &Context,
        hook: &Hook,
        presented: &Presented,
        request: &AdmissionRequest<'_>,
        step: Step,
    ) -> Result<(Value, Vec<String>), Ending> {
        let began = Instant::now();
        let outcome = self.call(context, hook, presented, request).await;
        let asked = match &outcome {
            Ok(_) => Asked::Allowed,
            Err(Ending::Denied(status)) => Asked::Denied(status.code),
            Err(Ending::Failed(_)) if hook.ignores_failures() => Asked::Ignored,
            Err(Ending::Failed(_)) => Asked::Failed,
            Err(Ending::Fatal(_)) => Asked::Broken,
        };
        context.figures.webhook(&hook.name, step, request.operation, asked, began.elapsed());
        outcome
    }

    /// What a failed call means for the request.
    fn settle(hook: &Hook, ending: Ending) -> Result<(), Status> {
        match ending {
            Ending::Denied(status) | Ending::Fatal(status) => Err(status),
            Ending::Failed(why) if hook.ignores_failures() => {
                tracing::warn!(webhook = hook.name, why, "webhook failed, going on without it");
                Ok(())
            }
            Ending::Failed(why) => {
                Err(failure::internal(format!("failed calling webhook {:?}: {why}", hook.name)))
            }
        }
    }

    /// Asks the mutating webhooks one after the other. In a second round only those that asked for it are called.
    pub async fn mutate(
        &self,
        context: &Context,
        request: &mut AdmissionRequest<'_>,
        round: &mut Round,
        second: bool,
    ) -> Result<(), Status> {
        if matching::is_exempt(request) {
            return Ok(());
        }
        let hooks = self.mutating.hooks(context);
        for hook in &hooks.1 {
            if second && !round.again.contains(&hook.id) {
                continue;
            }
            let Some(presented) = Self::wants(context, hook, request)? else { continue };
            if !Self::conditions_hold(context, hook, &presented, request)? {
                continue;
            }
            let began = Instant::now();
            let outcome = self.ask(context, hook, &presented, request, Step::Admit).await;
            *request.elsewhere += began.elapsed();
            match outcome {
                Ok((response, warnings)) => {
                    request.warnings.extend(warnings);
                    match patched(&response, &presented, request) {
                        Ok(Some(object)) => {
                            *request.object = object;
                            round.changed = true;
                            round.again.extend(round.reinvocable.drain());
                        }
                        Ok(None) => {}
                        Err(ending) => Self::settle(hook, ending)?,
                    }
                }
                Err(ending) => Self::settle(hook, ending)?,
            }
            if hook.spec["reinvocationPolicy"] == "IfNeeded" {
                round.reinvocable.insert(hook.id.clone());
            }
        }
        Ok(())
    }

    /// Asks all validating webhooks at once; the first in order that refuses gives the answer.
    pub async fn validate(
        &self,
        context: &Context,
        request: &mut AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        if matching::is_exempt(request) {
            return Ok(());
        }
        let hooks = self.validating.hooks(context);
        let mut calls = Vec::new();
        for hook in &hooks.1 {
            if let Some(presented) = Self::wants(context, hook, request)?
                && Self::conditions_hold(context, hook, &presented, request)?
            {
                calls.push((hook, presented));
            }
        }
        if calls.is_empty() {
            return Ok(());
        }
        let shared = &*request;
        let began = Instant::now();
        let asking =
            calls.iter().map(|(hook, presented)| self.ask(context, hook, presented, shared, Step::Validate));
        let answers = join_all(asking).await;
        *request.elsewhere += began.elapsed();
        for ((hook, _), answer) in calls.iter().zip(answers) {
            match answer {
                Ok((_, warnings)) => request.warnings.extend(warnings),
                Err(ending) => Self::settle(hook, ending)?,
            }
        }
        Ok(())
    }
}

/// The object after the response's patch; `None` when it changes nothing.
fn patched(
    response: &Value,
    presented: &Presented,
    request: &AdmissionRequest<'_>,
) -> Result<Option<Value>, Ending> {
    let Some(patch) = response["patch"].as_str().filter(|p| !p.is_empty()) else { return Ok(None) };
    if response["patchType"] != "JSONPatch" && !response["patchType"].is_null() {
        return Err(Ending::Failed(format!("unsupported patch type {}", response["patchType"])));
    }
    let undecodable = |e: &dyn std::fmt::Display| {
        Ending::Failed(format!("received undecodable patch in webhook response: {e}"))
    };
    let patch = STANDARD.decode(patch).map_err(|e| undecodable(&e))?;
    let patch = JsonPatch::decode(&patch).map_err(|e| undecodable(&e))?;
    if patch.is_empty() {
        return Ok(None);
    }
    if request.operation == Operation::Delete || !request.object.is_object() {
        return Err(Ending::Fatal(failure::internal(
            "admission webhook attempted to modify the object, which is not supported for this operation",
        )));
    }
    let mut object = matching::in_version(request.object, presented);
    patch.apply(&mut object).map_err(|e| Ending::Fatal(failure::internal(e)))?;
    let own = Presented { version: request.version.to_owned(), ..presented.clone() };
    let object = matching::in_version(&object, &own);
    Ok((object != *request.object).then_some(object))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::testing::{Request, context};
    use crate::security::testing::FakeObjects;
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::TokioIo;

    #[test]
    fn denials() {
        for (result, message, code) in [
            (json!({"message": "no", "code": 403}), "admission webhook \"h\" denied the request: no", 403),
            (json!({"reason": "bad"}), "admission webhook \"h\" denied the request: bad", 400),
            (Value::Null, "admission webhook \"h\" denied the request without explanation", 400),
        ] {
            let status = denial("h", &result);
            assert_eq!((status.message.as_str(), status.code), (message, code));
        }
    }

    /// A webhook server that adds a label, or denies objects that are named `denied`.
    async fn serve() -> (u16, String, tokio::task::JoinHandle<()>) {
        let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let pem = certificate.cert.pem();
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(certificate.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let service = hyper::service::service_fn(
                    |request: http::Request<hyper::body::Incoming>| async {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let review: Value = serde_json::from_slice(&body).unwrap();
                        let request = &review["request"];
                        let patch = STANDARD
                            .encode(r#"[{"op":"add","path":"/metadata/labels","value":{"seen":"yes"}}]"#);
                        let response = if request["name"] == "denied" {
                            json!({"uid": request["uid"], "allowed": false, "status": {"message": "not this one"}})
                        } else {
                            json!({"uid": request["uid"], "allowed": true, "patchType": "JSONPatch", "patch": patch,
                               "warnings": ["careful"]})
                        };
                        let answer = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(bytes::Bytes::from(
                            answer.to_string(),
                        ))))
                    },
                );
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            }
        });
        (port, pem, task)
    }

    #[tokio::test]
    async fn asks_a_server() {
        let (port, pem, task) = serve().await;
        let objects = Arc::new(FakeObjects::default());
        let hook = |bundle: &str, policy: &str| {
            json!({"metadata": {"name": "c"}, "webhooks": [{
                "name": "h.example.com", "failurePolicy": policy, "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("https://localhost:{port}/"), "caBundle": STANDARD.encode(bundle)},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            }]})
        };
        let context = context(&objects);
        let webhooks = Webhooks::default();
        let run = async |name: &str| {
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
            let mut request = Request::create("", "configmaps", object);
            let mut round = Round::default();
            let (mut object, user, mut warnings) = (request.object.take(), request.user.clone(), Vec::new());
            let mut admission = AdmissionRequest {
                operation: Operation::Create,
                group: "",
                version: "v1",
                kind: "ConfigMap",
                resource: "configmaps",
                subresource: "",
                namespace: "a",
                name,
                user: &user,
                dry_run: false,
                options: &Value::Null,
                object: &mut object,
                old_object: None,
                warnings: &mut warnings,
                annotations: &mut Default::default(),
                elsewhere: &mut Default::default(),
            };
            let result = webhooks.mutate(&context, &mut admission, &mut round, false).await;
            (result.map_err(|s| s.message), object, warnings)
        };
        objects.put(GROUP, "mutatingwebhookconfigurations", hook(&pem, "Fail"));
        let (result, object, warnings) = run("x").await;
        assert_eq!((result, &object["metadata"]["labels"]["seen"]), (Ok(()), &json!("yes")));
        assert_eq!(warnings, ["careful"]);
        let (result, _, _) = run("denied").await;
        assert_eq!(
            result.unwrap_err(),
            "admission webhook \"h.example.com\" denied the request: not this one"
        );
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap().cert.pem();
        objects.put(GROUP, "mutatingwebhookconfigurations", hook(&other, "Fail"));
        let (result, _, _) = run("x").await;
        assert!(result.unwrap_err().starts_with(
            "Internal error occurred: failed calling webhook \"h.example.com\": failed to call webhook: Post \"https://localhost"
        ));
        objects.put(GROUP, "mutatingwebhookconfigurations", hook(&other, "Ignore"));
        let (result, object, _) = run("x").await;
        assert_eq!((result, object["metadata"].get("labels")), (Ok(()), None));
        task.abort();
    }
}
