//! Issuing: a TokenRequest becomes a signed token.

use std::sync::Arc;

use apimachinery::clock::{Clock, rfc3339_seconds};
use apimachinery::object::Encoded;
use apimachinery::status::Status;
use serde_json::{Value, json};

use super::claims::{Claims, Private, Reference};
use super::{KeySet, SigningKey};
use crate::seams::Objects;
use crate::security::failure;

const EXPIRATION_DEFAULT_SECONDS: i64 = 3600;
const EXPIRATION_MIN_SECONDS: i64 = 600;
const EXPIRATION_MAX_SECONDS: i64 = 1 << 32;
/// What the service account admission plugin asks for. Tokens of exactly this life are extended, because old clients
/// read their token once.
pub const PROJECTED_EXPIRATION_SECONDS: i64 = 3607;
const EXTENDED_EXPIRATION_SECONDS: i64 = 365 * 24 * 3600;

/// Issues service account tokens.
pub struct Issuer {
    pub objects: Arc<dyn Objects>,
    pub clock: Clock,
    /// The first signs; all are accepted.
    pub issuers: Vec<String>,
    pub audiences: Vec<String>,
    pub key: Option<SigningKey>,
    pub keys: KeySet,
    pub jwks_uri: String,
    /// Longer requests are shortened to this.
    pub expiration_seconds_max: Option<i64>,
    pub extend_expiration: bool,
}

impl Issuer {
    /// The TokenRequest with its status.
    pub fn issue(&self, namespace: &str, name: &str, mut request: Value) -> Result<Value, Status> {
        let Some(key) = &self.key else {
            return Err(failure::not_found("", "serviceaccounts/token", name));
        };
        if !request.is_object() {
            return Err(failure::bad_request("the request body is not a TokenRequest"));
        }
        for (field, want, what) in [("name", name, "name"), ("namespace", namespace, "namespace")] {
            let got = request["metadata"][field].as_str().unwrap_or_default();
            if !got.is_empty() && got != want {
                return Err(invalid(
                    name,
                    &format!("metadata.{field}"),
                    &format!("{got:?}"),
                    &format!("must match the service account {what} if specified"),
                ));
            }
        }
        let account = self.find("serviceaccounts", namespace, name)?;
        let asked_uid = request["metadata"]["uid"].as_str().unwrap_or_default();
        if !asked_uid.is_empty() && asked_uid != account.uid() {
            return Err(failure::conflict(
                "authentication.k8s.io",
                "TokenRequest",
                name,
                format!(
                    "the UID in the token request ({asked_uid}) does not match the UID of the service account ({})",
                    account.uid()
                ),
            ));
        }
        let spec = &request["spec"];
        let mut audiences: Vec<String> = spec["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        if audiences.is_empty() {
            audiences = self.audiences.clone();
        }
        let mut seconds = spec["expirationSeconds"].as_i64().unwrap_or(EXPIRATION_DEFAULT_SECONDS);
        let complaint = match seconds {
            s if s < EXPIRATION_MIN_SECONDS => Some("may not specify a duration less than 10 minutes"),
            s if s > EXPIRATION_MAX_SECONDS => Some("may not specify a duration larger than 2^32 seconds"),
            _ => None,
        };
        if let Some(complaint) = complaint {
            return Err(invalid("", "spec.expirationSeconds", &seconds.to_string(), complaint));
        }
        let mut private = Private {
            namespace: namespace.to_owned(),
            serviceaccount: Reference { name: name.to_owned(), uid: account.uid().to_owned() },
            ..Private::default()
        };
        self.bind(&spec["boundObjectRef"], namespace, name, &mut private)?;
        if let Some(max) = self.expiration_seconds_max {
            seconds = seconds.min(max);
        }
        let now = self.clock.now();
        let start = now.as_second();
        let mut life = seconds;
        let for_us = audiences.iter().all(|a| self.audiences.contains(a));
        if self.extend_expiration
            && private.pod.is_some()
            && seconds == PROJECTED_EXPIRATION_SECONDS
            && for_us
        {
            private.warnafter = Some(start + seconds);
            life = EXTENDED_EXPIRATION_SECONDS;
        }
        let claims = Claims {
            aud: audiences.clone(),
            exp: start + life,
            iat: start,
            nbf: start,
            iss: self.issuers.first().cloned().unwrap_or_default(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("system:serviceaccount:{namespace}:{name}"),
            kubernetes: private,
        };
        let claims = serde_json::to_value(claims).map_err(failure::internal)?;
        let token = key.sign(&claims).map_err(failure::internal)?;
        let expires = jiff::Timestamp::from_second(start + seconds).map_err(failure::internal)?;
        request["apiVersion"] = json!("authentication.k8s.io/v1");
        request["kind"] = json!("TokenRequest");
        let meta = &mut request["metadata"];
        if !meta.is_object() {
            *meta = json!({});
        }
        meta["name"] = json!(name);
        meta["namespace"] = json!(namespace);
        meta["uid"] = json!(account.uid());
        meta["creationTimestamp"] = json!(rfc3339_seconds(now));
        let spec = &mut request["spec"];
        if !spec.is_object() {
            *spec = json!({});
        }
        spec["audiences"] = json!(audiences);
        spec["expirationSeconds"] = json!(seconds);
        if spec.get("boundObjectRef").is_none() {
            spec["boundObjectRef"] = Value::Null;
        }
        request["status"] = json!({"token": token, "expirationTimestamp": rfc3339_seconds(expires)});
        Ok(request)
    }

    fn find(&self, resource: &str, namespace: &str, name: &str) -> Result<Arc<Encoded>, Status> {
        self.objects.get("", resource, namespace, name).ok_or_else(|| failure::not_found("", resource, name))
    }

    fn bind(
        &self,
        reference: &Value,
        namespace: &str,
        account: &str,
        private: &mut Private,
    ) -> Result<(), Status> {
        if reference.is_null() {
            return Ok(());
        }
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
        let core = !text("apiVersion").contains('/');
        let bound = match kind {
            "Pod" if core => {
                let pod = self.find("pods", namespace, name)?;
                let value: Value = serde_json::from_slice(&pod.body).map_err(failure::internal)?;
                let spec = &value["spec"];
                let runs_as = spec["serviceAccountName"].as_str().unwrap_or_default();
                if runs_as != account {
                    return Err(failure::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different \
                         serviceaccount name."
                    )));
                }
                if let Some(node) = spec["nodeName"].as_str().filter(|n| !n.is_empty()) {
                    let uid = self.objects.get("", "nodes", "", node).map(|n| n.uid().to_owned());
                    private.node = Some(Reference { name: node.to_owned(), uid: uid.unwrap_or_default() });
                }
                private.pod = Some(Reference { name: name.to_owned(), uid: pod.uid().to_owned() });
                pod
            }
            "Node" if core => {
                let node = self.find("nodes", "", name)?;
                private.node = Some(Reference { name: name.to_owned(), uid: node.uid().to_owned() });
                node
            }
            "Secret" if core => {
                let secret = self.find("secrets", namespace, name)?;
                private.secret = Some(Reference { name: name.to_owned(), uid: secret.uid().to_owned() });
                secret
            }
            _ => {
                return Err(failure::bad_request(format!(
                    "cannot bind token to object of type {}, Kind={kind}",
                    text("apiVersion")
                )));
            }
        };
        if !uid.is_empty() && uid != bound.uid() {
            return Err(failure::conflict(
                "",
                kind,
                name,
                format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object \
                     might have been deleted and then recreated"
                ),
            ));
        }
        Ok(())
    }

    /// As served at `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self) -> Option<Value> {
        let issuer = self.issuers.first().filter(|i| i.starts_with("https://"))?;
        Some(json!({
            "issuer": issuer,
            "jwks_uri": self.jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": self.keys.algorithms(),
        }))
    }
}

fn invalid(name: &str, field: &str, value: &str, detail: &str) -> Status {
    failure::invalid_field("authentication.k8s.io", "TokenRequest", name, field, value, detail)
}
