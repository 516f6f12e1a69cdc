//! Conversion webhooks: servers that turn custom resources of one version into another.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::Status;
use serde_json::{Value, json};

use super::client::Client;
use crate::seams::Objects;
use crate::security::failure;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Converts the objects of one custom resource definition.
pub struct Conversion {
    objects: Arc<dyn Objects>,
    client: Client,
    client_config: Value,
    review_version: Option<&'static str>,
}

impl std::fmt::Debug for Conversion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversion").field("client_config", &self.client_config).finish_non_exhaustive()
    }
}

impl Conversion {
    /// `spec` is that of a CustomResourceDefinition; `None` when its strategy is not `Webhook`.
    pub fn new(objects: Arc<dyn Objects>, spec: &Value) -> Option<Conversion> {
        if spec["conversion"]["strategy"] != "Webhook" {
            return None;
        }
        let webhook = &spec["conversion"]["webhook"];
        let versions = webhook["conversionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let review_version = versions.iter().find_map(|v| match v.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        });
        Some(Conversion {
            objects,
            client: Client::default(),
            client_config: webhook["clientConfig"].clone(),
            review_version,
        })
    }

    pub async fn convert(&self, object: Value, to: &str) -> Result<Value, Status> {
        let described = format!(
            "{}, Kind={}",
            object["apiVersion"].as_str().unwrap_or_default(),
            object["kind"].as_str().unwrap_or_default()
        );
        let fail =
            |why: String| failure::internal(format!("conversion webhook for {described} failed: {why}"));
        let Some(version) = self.review_version else {
            return Err(fail("it accepts no known ConversionReview version (v1, v1beta1)".into()));
        };
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "apiVersion": format!("apiextensions.k8s.io/{version}"),
            "kind": "ConversionReview",
            "request": {"uid": uid, "desiredAPIVersion": to, "objects": [object]},
        });
        let answer = self.client.post(&*self.objects, &self.client_config, &review, TIMEOUT).await;
        converted(&object, to, &uid, &answer.map_err(fail)?).map_err(fail)
    }

    /// [`Conversion::convert`] where the caller cannot wait; the thread's other tasks move elsewhere meanwhile.
    pub fn convert_blocking(&self, object: Value, to: &str) -> Result<Value, Status> {
        use tokio::runtime::{Handle, RuntimeFlavor};
        let handle = Handle::try_current().map_err(failure::internal)?;
        if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Err(failure::internal("conversion webhooks need a runtime with several threads"));
        }
        tokio::task::block_in_place(|| handle.block_on(self.convert(object, to)))
    }
}

/// The converted object of a webhook's answer. What identifies the object may not change; its labels and annotations
/// may.
fn converted(object: &Value, to: &str, uid: &str, answer: &Value) -> Result<Value, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("no response provided".into());
    }
    if response["uid"] != uid {
        let got = response["uid"].as_str().unwrap_or_default();
        return Err(format!("expected response.uid={uid:?}, got {got:?}"));
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        let why = result["message"].as_str().filter(|m| !m.is_empty());
        return Err(why.unwrap_or("the conversion did not succeed, without explanation").to_owned());
    }
    let objects = response["convertedObjects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [one] = objects else {
        return Err(format!("webhook returned {} objects, expected 1", objects.len()));
    };
    if one["apiVersion"] != to {
        return Err(format!("invalid converted object at index 0: invalid groupVersion (expected {to})"));
    }
    if one["kind"] != object["kind"] {
        return Err("invalid converted object at index 0: the kind changed".into());
    }
    let (before, after) = (&object["metadata"], &one["metadata"]);
    for field in ["name", "namespace", "uid"] {
        if before[field] != after[field] {
            return Err(format!("invalid metadata in object at index 0: metadata.{field} changed"));
        }
    }
    let mut out = one.clone();
    let mut metadata = before.clone();
    for field in ["labels", "annotations"] {
        if let Some(members) = metadata.as_object_mut() {
            match after.get(field) {
                Some(value) => members.insert(field.to_owned(), value.clone()),
                None => members.remove(field),
            };
        }
    }
    out["metadata"] = metadata;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n", "generation": 2, "labels": {"a": "b"}}});
        let answer = |object: Value| json!({"response": {"uid": "u", "result": {"status": "Success"}, "convertedObjects": [object]}});
        let good = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "n", "generation": 9, "labels": {"c": "d"}}, "x": 1});
        let out = converted(&object, "g/v2", "u", &answer(good.clone())).unwrap();
        assert_eq!((&out["x"], &out["metadata"]["generation"]), (&json!(1), &json!(2)));
        assert_eq!(out["metadata"]["labels"], json!({"c": "d"}));
        let mut renamed = good.clone();
        renamed["metadata"]["name"] = json!("other");
        for (answer, want) in [
            (json!({}), "no response provided"),
            (json!({"response": {"uid": "x"}}), "expected response.uid"),
            (json!({"response": {"uid": "u", "result": {"status": "Failure", "message": "no"}}}), "no"),
            (answer(object.clone()), "invalid groupVersion"),
            (answer(renamed), "metadata.name changed"),
        ] {
            assert!(converted(&object, "g/v2", "u", &answer).unwrap_err().contains(want));
        }
    }
}
