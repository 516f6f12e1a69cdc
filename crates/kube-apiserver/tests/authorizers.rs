//! Authorizers by configuration: webhooks, ABAC, and what is told of their decisions.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::https::{Answer, Https};
use common::{client, cluster_on, code, engine};
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SubjectAccessReview};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, PostParams};
use kube_apiserver::authorization::configuration::AuthorizationConfiguration;
use parking_lot::Mutex;
use serde_json::{Value, json};

type Asked = Arc<Mutex<Vec<Value>>>;

/// A webhook that knows a few users.
async fn hook() -> (Https, Asked) {
    let asked = Asked::default();
    let seen = asked.clone();
    let https = Https::serve(move |request| {
        let review: Value = serde_json::from_slice(&request.body).unwrap();
        seen.lock().push(review.clone());
        let spec = &review["spec"];
        let status = match (spec["user"].as_str().unwrap_or_default(), request.path.as_str()) {
            (_, path) if path.starts_with("/broken") => return Answer::code(404),
            ("alice", _) if spec["resourceAttributes"]["resource"] == "pods" => {
                json!({"allowed": true, "reason": "hers"})
            }
            ("alice", _) if spec["resourceAttributes"]["resource"] == "configmaps" => {
                json!({"allowed": false, "denied": true, "reason": "never"})
            }
            _ => json!({"allowed": false, "reason": "not mine"}),
        };
        Answer::json(
            &json!({"kind": "SubjectAccessReview", "apiVersion": review["apiVersion"], "status": status}),
        )
    })
    .await;
    (https, asked)
}

fn yaml(authorizers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n{authorizers}"
    )
}

fn webhook(name: &str, kubeconfig: &std::path::Path, version: &str, policy: &str, more: &str) -> String {
    format!(
        "- type: Webhook\n  name: {name}\n  webhook: {{timeout: 3s, subjectAccessReviewVersion: {version}, failurePolicy: \
         {policy}, connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}{more}}}\n",
        kubeconfig.display()
    )
}

async fn review(cluster: &common::Cluster, spec: Value) -> Value {
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.client.clone());
    let review = serde_json::from_value(json!({"spec": spec})).unwrap();
    serde_json::to_value(reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_decide() {
    for version in ["v1", "v1beta1"] {
        let (data, (https, asked)) = (tempfile::tempdir().unwrap(), hook().await);
        let kubeconfig = data.path().join("good");
        std::fs::write(&kubeconfig, https.kubeconfig("/authorize")).unwrap();
        let conditions = ", matchConditionSubjectAccessReviewVersion: v1, matchConditions: [{expression: \
                          'has(request.resourceAttributes) && request.user != \"node\"'}]";
        let text = yaml(&format!(
            "{}- {{type: RBAC, name: rbac}}\n",
            webhook("hook", &kubeconfig, version, "Deny", conditions)
        ));
        let path = data.path().join("authorization.yaml");
        std::fs::write(&path, &text).unwrap();
        let cluster = cluster_on(engine(&data), |c| {
            c.security.authorization = AuthorizationConfiguration::parse(text.as_bytes()).unwrap();
            c.security.authorization_file = Some((path.clone(), text.clone().into_bytes()));
        })
        .await;
        let alice = client(&cluster.handle, Some("alice-token"));
        let pods: Api<Pod> = Api::namespaced(alice.clone(), "default");
        let selected = ListParams::default().labels("a=b").fields("spec.nodeName=n");
        for _ in 0..2 {
            pods.list(&selected).await.unwrap();
        }
        let seen = asked.lock().clone();
        assert_eq!(seen.len(), 1, "what was decided is remembered");
        assert_eq!(seen[0]["apiVersion"], format!("authorization.k8s.io/{version}"));
        let groups = if version == "v1" { "groups" } else { "group" };
        assert_eq!(seen[0]["spec"][groups], json!(["dev", "system:authenticated"]));
        let attributes = &seen[0]["spec"]["resourceAttributes"];
        assert_eq!(attributes["labelSelector"]["requirements"][0]["key"], "a");
        assert_eq!(attributes["fieldSelector"]["requirements"][0]["values"], json!(["n"]));
        // Denied for good, whatever RBAC says.
        let maps: Api<ConfigMap> = Api::namespaced(alice.clone(), "default");
        let refused = maps.list(&ListParams::default()).await.unwrap_err();
        let kube::Error::Api(status) = refused else { panic!() };
        assert!(status.message.ends_with("in the namespace \"default\": never"), "{}", status.message);
        // RBAC is asked about what the webhook has no opinion of, and about what its conditions keep from it.
        assert!(alice.apiserver_version().await.is_ok());
        let of = |user: &str, resource: &str| json!({"user": user, "resourceAttributes": {"verb": "get", "resource": resource, "namespace": "x"}});
        let status = review(&cluster, of("alice", "pods")).await;
        assert_eq!((&status["allowed"], &status["reason"]), (&json!(true), &json!("hers")));
        let status = review(&cluster, of("alice", "configmaps")).await;
        assert_eq!((&status["allowed"], &status["denied"]), (&json!(false), &json!(true)));
        let before = asked.lock().len();
        let status = review(&cluster, of("node", "pods")).await;
        assert_eq!((&status["allowed"], asked.lock().len()), (&json!(false), before));
        let rules: Api<SelfSubjectRulesReview> = Api::all(alice.clone());
        let rules_review = serde_json::from_value(json!({"spec": {"namespace": "default"}})).unwrap();
        let answer = rules.create(&PostParams::default(), &rules_review).await.unwrap().status.unwrap();
        assert!(answer.incomplete);
        let told = answer.evaluation_error.unwrap();
        assert_eq!(told, "webhook authorizer does not support user rule resolution");
        // The file changes: the webhook is broken now, and that denies.
        let broken = data.path().join("broken");
        std::fs::write(&broken, https.kubeconfig("/broken")).unwrap();
        std::fs::write(&path, text.replace(&kubeconfig.display().to_string(), &broken.display().to_string()))
            .unwrap();
        let mut tries = 0;
        loop {
            match pods.list(&ListParams::default()).await {
                Err(error) => {
                    assert_eq!(code(error).0, 500);
                    break;
                }
                Ok(_) if tries < 400 => tokio::time::sleep(Duration::from_millis(25)).await,
                Ok(_) => panic!("the change was not seen"),
            }
            tries += 1;
        }
        let status = review(&cluster, of("alice", "pods")).await;
        assert_eq!(status["evaluationError"], "the server could not find the requested resource");
        let metrics = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = cluster.client.request_text(metrics).await.unwrap();
        for line in [
            "apiserver_authorization_decisions_total{type=\"Webhook\",name=\"hook\",decision=\"denied\"}",
            "apiserver_authorization_webhook_evaluations_total{name=\"hook\",result=\"success\"}",
            "apiserver_authorization_webhook_evaluations_total{name=\"hook\",result=\"error\"}",
            "apiserver_authorization_match_condition_exclusions_total{type=\"Webhook\",name=\"hook\"}",
            "apiserver_authorization_config_controller_automatic_reloads_total{status=\"success\"",
        ] {
            assert!(text.contains(line), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_webhook_without_an_opinion_leaves_it_to_others() {
    let (data, (https, _)) = (tempfile::tempdir().unwrap(), hook().await);
    let kubeconfig = data.path().join("broken");
    std::fs::write(&kubeconfig, https.kubeconfig("/broken")).unwrap();
    let policies = "{\"user\": \"alice\", \"resource\": \"pods\", \"readonly\": true}\n";
    let text = yaml(&format!(
        "{}- {{type: ABAC, name: abac}}\n",
        webhook("hook", &kubeconfig, "v1", "NoOpinion", "")
    ));
    let cluster = cluster_on(engine(&data), |c| {
        c.security.authorization = AuthorizationConfiguration::parse(text.as_bytes()).unwrap();
        c.security.abac_policies = Some(("policies".to_owned(), policies.to_owned()));
    })
    .await;
    let alice = client(&cluster.handle, Some("alice-token"));
    let pods: Api<Pod> = Api::namespaced(alice.clone(), "default");
    pods.list(&ListParams::default()).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(alice, "default");
    assert_eq!(code(maps.list(&ListParams::default()).await.unwrap_err()).0, 500);
    // Selectors that cannot be read are told of.
    let spec = json!({"user": "alice", "resourceAttributes": {"verb": "list", "resource": "pods",
        "labelSelector": {"rawSelector": "a in"}, "fieldSelector": {"requirements": [
            {"key": "a", "operator": "In", "values": ["b"]}, {"key": "c", "operator": "Near"}]}}});
    let status = review(&cluster, spec).await;
    assert_eq!(status["allowed"], true);
    assert_eq!(
        status["evaluationError"],
        "spec.resourceAttributes.fieldSelector partially ignored due to parse error; \
         spec.resourceAttributes.labelSelector ignored due to parse error"
    );
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.client.clone());
    let wrong = json!({"spec": {"user": "alice", "resourceAttributes": {"labelSelector": {"rawSelector": "a",
        "requirements": [{"key": "a", "operator": "In"}]}}}});
    let wrong = serde_json::from_value(wrong).unwrap();
    let kube::Error::Api(told) = reviews.create(&PostParams::default(), &wrong).await.unwrap_err() else {
        panic!()
    };
    assert_eq!(told.code, 422);
    assert!(
        told.message.contains("spec.resourceAttributes.labelSelector.requirements[0].values: Required value")
    );
}
