//! The authorizer as expressions see it: checks are put together step by step and asked at the end.

use std::sync::Arc;

use apimachinery::user::UserInfo;
use expression::{AUTHORIZER, DECISION, Error, GROUP_CHECK, Opaque, PATH_CHECK, RESOURCE_CHECK, Value, fail};

use crate::authorization::Chain;
use crate::seams::{AdmissionRequest, RequestInfo};

#[derive(Clone)]
pub struct Check {
    chain: Arc<Chain>,
    user: UserInfo,
    step: Step,
}

// One lives while an expression is evaluated, so its size costs nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
enum Step {
    Authorizer,
    Path(String),
    Group(String),
    Resource(RequestInfo),
    Decision { allowed: bool, reason: String, error: Option<String> },
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} as {}", self.step, self.user.name)
    }
}

impl Check {
    /// `authorizer`: checks for the user of a request.
    pub fn authorizer(chain: &Arc<Chain>, user: &UserInfo) -> Check {
        Check { chain: chain.clone(), user: user.clone(), step: Step::Authorizer }
    }

    /// `authorizer.requestResource`: a check of what the request is about.
    pub fn of_request(chain: &Arc<Chain>, request: &AdmissionRequest<'_>) -> Check {
        let info = RequestInfo {
            is_resource: true,
            group: request.group.to_owned(),
            version: "*".to_owned(),
            resource: request.resource.to_owned(),
            subresource: request.subresource.to_owned(),
            namespace: request.namespace.to_owned(),
            name: super::name(request).to_owned(),
            ..RequestInfo::default()
        };
        Check { chain: chain.clone(), user: request.user.clone(), step: Step::Resource(info) }
    }

    pub fn value(self) -> Value<'static> {
        Value::Opaque(Arc::new(self))
    }

    fn next(&self, step: Step) -> Result<Value<'static>, Error> {
        Ok(Check { step, ..self.clone() }.value())
    }

    fn decide(&self, request: &RequestInfo) -> Result<Value<'static>, Error> {
        let opinion = self.chain.decide_now(&self.user, request);
        let allowed = opinion.is_allowed();
        self.next(Step::Decision { allowed, reason: opinion.reason, error: opinion.error })
    }
}

impl Opaque for Check {
    fn type_name(&self) -> &'static str {
        match &self.step {
            Step::Authorizer => AUTHORIZER,
            Step::Path(_) => PATH_CHECK,
            Step::Group(_) => GROUP_CHECK,
            Step::Resource(_) => RESOURCE_CHECK,
            Step::Decision { .. } => DECISION,
        }
    }

    fn call(&self, function: &str, args: &[Value<'_>]) -> Result<Value<'static>, Error> {
        let text = |i: usize| args.get(i).and_then(Value::as_str).map(str::to_owned);
        match (&self.step, function, text(0)) {
            (Step::Authorizer, "path", Some(path)) => {
                if path.trim().is_empty() {
                    return fail("path must not be empty");
                }
                self.next(Step::Path(path))
            }
            (Step::Authorizer, "group", Some(group)) => self.next(Step::Group(group)),
            (Step::Authorizer, "serviceAccount", Some(namespace)) => {
                let name = text(1).unwrap_or_default();
                let errors = apimachinery::validation::dns1123_subdomain(&name);
                if let Some(why) = errors.first() {
                    return fail(format!("Invalid service account name: {why}"));
                }
                let errors = apimachinery::validation::dns1123_label(&namespace);
                if let Some(why) = errors.first() {
                    return fail(format!("Invalid service account namespace: {why}"));
                }
                let groups =
                    ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
                let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
                let user = UserInfo::new(format!("system:serviceaccount:{namespace}:{name}"), &groups);
                Ok(Check::authorizer(&self.chain, &user).value())
            }
            (Step::Group(group), "resource", Some(resource)) => {
                if resource.trim().is_empty() {
                    return fail("resource must not be empty");
                }
                let info = RequestInfo {
                    is_resource: true,
                    group: group.clone(),
                    version: "*".to_owned(),
                    resource,
                    ..RequestInfo::default()
                };
                self.next(Step::Resource(info))
            }
            (Step::Resource(info), "subresource", Some(subresource)) => {
                self.next(Step::Resource(RequestInfo { subresource, ..info.clone() }))
            }
            (Step::Resource(info), "namespace", Some(namespace)) => {
                self.next(Step::Resource(RequestInfo { namespace, ..info.clone() }))
            }
            (Step::Resource(info), "name", Some(name)) => {
                self.next(Step::Resource(RequestInfo { name, ..info.clone() }))
            }
            (Step::Resource(info), "fieldSelector", selector) => {
                self.next(Step::Resource(RequestInfo { field_selector: selector, ..info.clone() }))
            }
            (Step::Resource(info), "labelSelector", selector) => {
                self.next(Step::Resource(RequestInfo { label_selector: selector, ..info.clone() }))
            }
            (Step::Path(path), "check", Some(verb)) => self.decide(&RequestInfo {
                verb: verb.to_lowercase(),
                path: path.clone(),
                ..RequestInfo::default()
            }),
            (Step::Resource(info), "check", Some(verb)) => self.decide(&RequestInfo { verb, ..info.clone() }),
            (Step::Decision { allowed, .. }, "allowed", None) => Ok(Value::Bool(*allowed)),
            (Step::Decision { reason, .. }, "reason", None) => Ok(reason.clone().into()),
            (Step::Decision { error, .. }, "errored", None) => Ok(Value::Bool(error.is_some())),
            (Step::Decision { error, .. }, "error", None) => Ok(error.clone().unwrap_or_default().into()),
            _ => fail("no such overload"),
        }
    }
}
