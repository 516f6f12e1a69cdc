//! Review objects: questions about identity and access, answered in their status.

use std::sync::Arc;

use apimachinery::clock::Clock;
use apimachinery::field_path::Path;
use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::status::{FieldError, Status};
use apimachinery::user::UserInfo;
use apimachinery::validation;
use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::{Chain, Verdict};
use crate::authentication;
use crate::metrics::Families;
use crate::seams::{Impersonated, Notes, RequestInfo, Reviews};
use crate::security::failure;
use crate::tokens::Issuer;

const AUTHORIZATION: &str = "authorization.k8s.io";

pub struct Answers {
    pub authenticators: Arc<authentication::Chain>,
    pub authorizers: Arc<Chain>,
    pub issuer: Arc<Issuer>,
    pub clock: Clock,
    pub families: Families,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// `authentication.k8s.io/v1` UserInfo.
pub fn user_json(user: &UserInfo) -> Value {
    let mut out = Map::new();
    out.insert("username".into(), json!(user.name));
    if !user.uid.is_empty() {
        out.insert("uid".into(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        out.insert("groups".into(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        out.insert("extra".into(), json!(user.extra));
    }
    Value::Object(out)
}

/// The request a SubjectAccessReview's spec describes.
fn described(spec: &Value) -> RequestInfo {
    let resource = &spec["resourceAttributes"];
    if resource.is_object() {
        return RequestInfo {
            verb: text(&resource["verb"]),
            is_resource: true,
            path: String::new(),
            group: text(&resource["group"]),
            version: text(&resource["version"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            namespace: text(&resource["namespace"]),
            name: text(&resource["name"]),
            label_selector: selector(&resource["labelSelector"]),
            field_selector: selector(&resource["fieldSelector"]),
        };
    }
    let path = &spec["nonResourceAttributes"];
    RequestInfo { verb: text(&path["verb"]), path: text(&path["path"]), ..RequestInfo::default() }
}

fn selector(value: &Value) -> Option<String> {
    if let Some(raw) = value["rawSelector"].as_str().filter(|r| !r.is_empty()) {
        return Some(raw.to_owned());
    }
    let parts: Vec<String> = value["requirements"]
        .as_array()?
        .iter()
        .filter_map(|r| {
            let (key, values) = (r["key"].as_str()?, strings(&r["values"]));
            match (r["operator"].as_str()?, values.as_slice()) {
                ("In", [one]) => Some(format!("{key}={one}")),
                ("In", many) => Some(format!("{key} in ({})", many.join(","))),
                ("NotIn", [one]) => Some(format!("{key}!={one}")),
                ("NotIn", many) => Some(format!("{key} notin ({})", many.join(","))),
                ("Exists", _) => Some(key.to_owned()),
                ("DoesNotExist", _) => Some(format!("!{key}")),
                _ => None,
            }
        })
        .collect();
    Some(parts.join(","))
}

/// The attributes of a path as upstream shows them.
fn shown_path(attributes: &Value) -> Value {
    json!({"Path": text(&attributes["path"]), "Verb": text(&attributes["verb"])})
}

/// What is wrong with what is asked; `namespace` is that of the request's path.
fn problems(resource: &str, object: &Value, namespace: &str) -> Vec<FieldError> {
    let spec = &object["spec"];
    let local = resource == "localsubjectaccessreviews";
    let path = Path::new("spec");
    let (of_resource, of_path) = (path.child("resourceAttributes"), path.child("nonResourceAttributes"));
    let (has_resource, has_path) =
        (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object());
    let mut errors = Vec::new();
    if has_resource && has_path {
        let why = "cannot be specified in combination with resourceAttributes";
        errors.push(FieldError::invalid(&of_path, shown_path(&spec["nonResourceAttributes"]), why));
    }
    if !has_resource && !has_path {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        errors.push(FieldError::invalid(&of_resource, Value::Null, why));
    }
    let anonymous =
        spec["user"].as_str().unwrap_or_default().is_empty() && strings(&spec["groups"]).is_empty();
    if resource != "selfsubjectaccessreviews" && anonymous {
        let why = "at least one of user or group must be specified";
        errors.push(FieldError::invalid(&path.child("user"), "", why));
    }
    errors.extend(selector_problems(&spec["resourceAttributes"]));
    // What the server itself sets does not count, nor does what is empty.
    let said = |(name, value): (&String, &Value)| {
        const OWN: [&str; 7] = [
            "managedFields",
            "namespace",
            "selfLink",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ];
        let empty = match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(members) => members.is_empty(),
            _ => false,
        };
        !empty && !OWN.contains(&name.as_str())
    };
    if object["metadata"].as_object().is_some_and(|metadata| metadata.iter().any(said)) {
        let why = if local { "must be empty except for namespace" } else { "must be empty" };
        errors.push(FieldError::invalid(&Path::new("metadata"), object["metadata"].clone(), why));
    }
    if !local {
        return errors;
    }
    let named = text(&spec["resourceAttributes"]["namespace"]);
    if has_resource && named != namespace {
        let why = "must match metadata.namespace";
        errors.push(FieldError::invalid(&of_resource.child("namespace"), named, why));
    }
    if has_path {
        let why = "disallowed on this kind of request";
        errors.push(FieldError::invalid(&of_path, shown_path(&spec["nonResourceAttributes"]), why));
    }
    errors
}

/// What is wrong with the selectors of a spec.
fn selector_problems(attributes: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for name in ["fieldSelector", "labelSelector"] {
        let selector = &attributes[name];
        if !selector.is_object() {
            continue;
        }
        let path = Path::new("spec").child("resourceAttributes").child(name);
        let raw = selector["rawSelector"].as_str().unwrap_or_default();
        let requirements = selector["requirements"].as_array().cloned().unwrap_or_default();
        if !raw.is_empty() && !requirements.is_empty() {
            let why = "may not specified at the same time as requirements";
            errors.push(FieldError::invalid(&path.child("rawSelector"), raw, why));
        }
        if raw.is_empty() && requirements.is_empty() {
            let why = format!("when {path} is specified, requirements or rawSelector is required");
            errors.push(FieldError::required(&path.child("requirements"), why));
        }
        for (i, requirement) in requirements.iter().enumerate() {
            let path = path.child("requirements").index(i);
            let key = requirement["key"].as_str().unwrap_or_default();
            let values = strings(&requirement["values"]);
            match requirement["operator"].as_str().unwrap_or_default() {
                "In" | "NotIn" if values.is_empty() => {
                    let why = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(&path.child("values"), why));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(&path.child("values"), why));
                }
                // Newer clients may know operators that this server does not.
                _ => {}
            }
            if name == "fieldSelector" {
                if key.is_empty() {
                    errors.push(FieldError::required(&path.child("key"), "must be specified"));
                }
                continue;
            }
            let wrong = validation::qualified_name(key);
            errors.extend(wrong.into_iter().map(|why| FieldError::invalid(&path.child("key"), key, why)));
            for (v, value) in values.iter().enumerate() {
                let wrong = validation::label_value(value);
                let path = path.child("values").index(v);
                errors.extend(wrong.into_iter().map(|why| FieldError::invalid(&path, value.as_str(), why)));
            }
        }
    }
    errors
}

/// What of the selectors could not be taken into account.
fn ignored(attributes: &Value, request: &RequestInfo) -> Vec<String> {
    let unread = |name: &str, selector: &Option<String>, reads: &dyn Fn(&str) -> bool| {
        let text = selector.as_deref()?;
        let requirements = attributes[name]["requirements"].as_array().map_or(&[][..], Vec::as_slice);
        let known =
            |r: &&Value| matches!(r["operator"].as_str(), Some("In" | "NotIn" | "Exists" | "DoesNotExist"));
        let taken = requirements.iter().filter(known).count();
        let how = if !reads(text) || !requirements.is_empty() && taken == 0 {
            "ignored"
        } else if taken < requirements.len() {
            "partially ignored"
        } else {
            return None;
        };
        Some(format!("spec.resourceAttributes.{name} {how} due to parse error"))
    };
    let fields = unread("fieldSelector", &request.field_selector, &|s| FieldSelector::parse(s).is_ok());
    let labels = unread("labelSelector", &request.label_selector, &|s| LabelSelector::parse(s).is_ok());
    fields.into_iter().chain(labels).collect()
}

impl Answers {
    async fn access(
        &self,
        user: &UserInfo,
        resource: &str,
        object: &mut Value,
        ns: &str,
    ) -> Result<(), Status> {
        let errors = problems(resource, object, ns);
        if !errors.is_empty() {
            // Upstream does not say of what kind.
            return Err(Status::invalid("", AUTHORIZATION, "", errors));
        }
        if resource == "localsubjectaccessreviews" {
            object["metadata"]["namespace"] = json!(ns);
        }
        let spec = &object["spec"];
        let request = described(spec);
        let subject = if resource == "selfsubjectaccessreviews" {
            user.clone()
        } else {
            let extra = spec["extra"].as_object().into_iter().flatten();
            UserInfo {
                name: text(&spec["user"]),
                uid: text(&spec["uid"]),
                groups: strings(&spec["groups"]),
                extra: extra.map(|(k, v)| (k.to_lowercase(), strings(v))).collect(),
            }
        };
        let opinion = self.authorizers.decide(&subject, &request).await;
        let mut status = json!({"allowed": opinion.is_allowed()});
        if opinion.verdict == Verdict::Deny {
            status["denied"] = json!(true);
        }
        if !opinion.reason.is_empty() {
            status["reason"] = json!(opinion.reason);
        }
        let errors: Vec<String> =
            opinion.error.into_iter().chain(ignored(&spec["resourceAttributes"], &request)).collect();
        if !errors.is_empty() {
            status["evaluationError"] = json!(errors.join("; "));
        }
        object["status"] = status;
        Ok(())
    }

    fn rules(&self, user: &UserInfo, object: &mut Value) -> Result<(), Status> {
        let namespace = text(&object["spec"]["namespace"]);
        if namespace.is_empty() {
            return Err(failure::bad_request("no namespace on request"));
        }
        let (rules, unknown) = self.authorizers.rules(user, &namespace);
        let (mut resource_rules, mut path_rules) = (Vec::new(), Vec::new());
        for rule in rules {
            if !rule.resources.is_empty() {
                let mut out =
                    json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
                if !rule.resource_names.is_empty() {
                    out["resourceNames"] = json!(rule.resource_names);
                }
                resource_rules.push(out);
            }
            if !rule.non_resource_urls.is_empty() {
                path_rules.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
            }
        }
        let mut status = json!({"resourceRules": resource_rules, "nonResourceRules": path_rules,
            "incomplete": !unknown.is_empty()});
        if !unknown.is_empty() {
            status["evaluationError"] = json!(unknown.join(", "));
        }
        // The answer is of its own and repeats nothing of the question.
        object["metadata"] = json!({});
        object["spec"] = json!({});
        object["status"] = status;
        Ok(())
    }

    async fn token(&self, object: &mut Value) -> Result<(), Status> {
        let spec = &object["spec"];
        let token = text(&spec["token"]);
        if token.is_empty() {
            return Err(failure::bad_request("token is required for TokenReview in authentication"));
        }
        let asked = strings(&spec["audiences"]);
        let audiences = if asked.is_empty() { self.issuer.audiences.clone() } else { asked.clone() };
        object["status"] =
            match self.authenticators.authenticate_token(&token, &audiences, &mut Notes::default()).await {
                Ok((user, good_for)) => {
                    let user = authentication::authenticated(user);
                    json!({"authenticated": true, "user": user_json(&user), "audiences": good_for})
                }
                Err(why) => json!({"user": {}, "error": why}),
            };
        Ok(())
    }
}

#[async_trait]
impl Reviews for Answers {
    async fn review(
        &self,
        user: &UserInfo,
        resource: &str,
        namespace: &str,
        mut object: Value,
    ) -> Result<Value, Status> {
        if !object.is_object() {
            return Err(failure::bad_request("the request body is not an object"));
        }
        match resource {
            "tokenreviews" => self.token(&mut object).await?,
            "selfsubjectreviews" => {
                object["metadata"]["creationTimestamp"] = json!(self.clock.now_rfc3339());
                object["status"] = json!({"userInfo": user_json(user)});
            }
            "subjectaccessreviews" | "selfsubjectaccessreviews" | "localsubjectaccessreviews" => {
                self.access(user, resource, &mut object, namespace).await?;
            }
            "selfsubjectrulesreviews" => self.rules(user, &mut object)?,
            other => return Err(failure::internal(format!("{other} is not a review"))),
        }
        Ok(object)
    }

    async fn request_token(
        &self,
        _user: &UserInfo,
        namespace: &str,
        service_account: &str,
        request: Value,
    ) -> Result<Value, Status> {
        self.issuer.issue(namespace, service_account, request)
    }

    fn openid_configuration(&self) -> Option<Value> {
        self.issuer.openid_configuration()
    }

    fn jwks(&self) -> Option<Value> {
        self.issuer.openid_configuration().map(|_| self.issuer.keys.jwks())
    }

    async fn impersonate(
        &self,
        user: &UserInfo,
        headers: &http::HeaderMap,
        request: &RequestInfo,
    ) -> Result<Option<Impersonated>, Status> {
        let authorizer = &*self.authorizers;
        authentication::impersonation::impersonate(authorizer, user, headers, request, &self.families).await
    }
}
