//! Audit events on their way to a webhook.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::https::{Answer, Https};
use common::{cluster_on, engine};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams};
use kube_apiserver::audit::{Batching, Config, Mode, Options, Truncation, WebhookConfig};
use parking_lot::Mutex;
use serde_json::{Value, json};

const POLICY: &[u8] = b"{apiVersion: audit.k8s.io/v1, kind: Policy, omitStages: [RequestReceived], rules: [
    {level: Request, resources: [{group: '', resources: [configmaps]}], verbs: [create], namespaces: [default]}]}";

struct Hook {
    https: Https,
    lists: Arc<Mutex<Vec<Value>>>,
    broken: Arc<AtomicBool>,
}

async fn hook() -> Hook {
    let (lists, broken) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let (seen, refuse) = (lists.clone(), broken.clone());
    let https = Https::serve(move |request| {
        assert_eq!(request.path, "/events?timeout=30s");
        if refuse.load(Ordering::SeqCst) {
            return Answer::code(403);
        }
        seen.lock().push(serde_json::from_slice(&request.body).unwrap());
        Answer { code: 200, headers: Vec::new(), body: Vec::new() }
    })
    .await;
    Hook { https, lists, broken }
}

fn config(hook: &Hook, directory: &std::path::Path, policy: &[u8], options: Options) -> Option<Config> {
    let file = directory.join("kubeconfig");
    std::fs::write(&file, hook.https.kubeconfig("/events")).unwrap();
    let webhook = WebhookConfig { file, initial_backoff: Duration::from_millis(1), options };
    Some(Config { policy: policy.to_vec(), log: None, webhook: Some(webhook) })
}

async fn create(client: &kube::Client, name: &str, bytes: usize) -> Result<ConfigMap, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map = json!({"metadata": {"name": name}, "data": {"k": "x".repeat(bytes)}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_batches() {
    let (data, hook) = (tempfile::tempdir().unwrap(), hook().await);
    let batching =
        Batching { size_max: 3, wait_max: Duration::from_secs(3600), ..Options::webhook().batching };
    let options =
        Options { batching, truncation: Some(Truncation { event_max: 2000 }), ..Options::webhook() };
    let audit = config(&hook, data.path(), POLICY, options);
    let cluster = cluster_on(engine(&data), |c| c.audit = audit).await;
    // The first try of a batch fails, and that is made good.
    hook.broken.store(true, Ordering::SeqCst);
    for name in ["a", "b", "c"] {
        create(&cluster.client, name, if name == "b" { 5000 } else { 10 }).await.unwrap();
    }
    hook.broken.store(false, Ordering::SeqCst);
    let mut tries = 0;
    while hook.lists.lock().is_empty() && tries < 400 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        tries += 1;
    }
    let list = hook.lists.lock().first().cloned().unwrap();
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 3);
    assert_eq!(items[0]["requestObject"]["metadata"]["name"], "a");
    assert_eq!(items[1]["annotations"]["audit.k8s.io/truncated"], "true");
    assert!(items[1].get("requestObject").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_where_they_are_told_to() {
    for (mode, code) in [(Mode::Blocking, None), (Mode::BlockingStrict, Some(500))] {
        let (data, hook) = (tempfile::tempdir().unwrap(), hook().await);
        let policy =
            String::from_utf8(POLICY.to_vec()).unwrap().replace("omitStages: [RequestReceived], ", "");
        let audit = config(&hook, data.path(), policy.as_bytes(), Options { mode, ..Options::webhook() });
        let cluster = cluster_on(engine(&data), |c| c.audit = audit).await;
        create(&cluster.client, "a", 1).await.unwrap();
        let stages: Vec<Value> = hook.lists.lock().iter().map(|l| l["items"][0]["stage"].clone()).collect();
        assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
        hook.broken.store(true, Ordering::SeqCst);
        let refused = create(&cluster.client, "b", 1).await.err().map(|e| common::code(e).0);
        assert_eq!(refused, code, "{mode:?}");
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
        assert_eq!(
            maps.list(&ListParams::default()).await.unwrap().items.len(),
            if code.is_some() { 1 } else { 2 }
        );
        let metrics = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = cluster.client.request_text(metrics).await.unwrap();
        assert!(text.contains("apiserver_audit_error_total{plugin=\"webhook\"}"));
        assert_eq!(text.contains("apiserver_audit_requests_rejected_total 1"), code.is_some());
    }
}
