//! Encryption at rest with a KMS v2 plugin.

mod common;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{cluster_on, engine};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube_apiserver::encryption::Config;
use parking_lot::Mutex;
use prost::Message;
use serde_json::json;
use storage::{KeyRange, RangeRequest, Store};
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Clone, PartialEq, ::prost::Message)]
struct StatusResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

/// Both requests begin with the bytes; that of decryption names the key third.
#[derive(Clone, PartialEq, ::prost::Message)]
struct Request {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

/// A plugin that turns bits over.
struct Plugin {
    key_id: Mutex<String>,
    healthz: Mutex<String>,
    calls: Mutex<Vec<String>>,
}

fn turned(bytes: &[u8], key_id: &str) -> Vec<u8> {
    let key = key_id.bytes().fold(0x5a, |a: u8, b| a.rotate_left(1) ^ b);
    bytes.iter().map(|b| b ^ key).collect()
}

impl Plugin {
    fn answer(&self, method: &str, body: &[u8]) -> Vec<u8> {
        self.calls.lock().push(method.to_owned());
        let request = Request::decode(body).unwrap();
        let key_id = self.key_id.lock().clone();
        match method {
            "Status" => {
                let healthz = self.healthz.lock().clone();
                StatusResponse { version: "v2".into(), healthz, key_id }.encode_to_vec()
            }
            "Encrypt" => EncryptResponse {
                ciphertext: turned(&request.bytes, &key_id),
                annotations: [("kms.example.com".to_owned(), b"x".to_vec())].into(),
                key_id,
            }
            .encode_to_vec(),
            _ => Request { bytes: turned(&request.bytes, &request.key_id), ..Request::default() }
                .encode_to_vec(),
        }
    }

    fn serve(self: &Arc<Self>, socket: &Path) -> DropGuard {
        let _ = std::fs::remove_file(socket);
        let (listener, stop) = (tokio::net::UnixListener::bind(socket).unwrap(), CancellationToken::new());
        let (plugin, ending) = (self.clone(), stop.clone());
        tokio::spawn(ending.run_until_cancelled_owned(async move {
            let mut serving = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let plugin = plugin.clone();
                serving.spawn(async move {
                    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                        let plugin = plugin.clone();
                        async move {
                            let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            let message = plugin.answer(&method, &body[5..]);
                            let mut frame = vec![0];
                            frame.extend((message.len() as u32).to_be_bytes());
                            frame.extend(message);
                            let trailers = http::HeaderMap::from_iter([(
                                http::HeaderName::from_static("grpc-status"),
                                http::HeaderValue::from_static("0"),
                            )]);
                            let body =
                                Full::new(Bytes::from(frame)).with_trailers(async { Some(Ok(trailers)) });
                            let response =
                                http::Response::builder().header("content-type", "application/grpc");
                            Ok::<_, Infallible>(response.body(body).unwrap())
                        }
                    });
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = http2.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }));
        stop.drop_guard()
    }
}

fn plugin(key_id: &str) -> Arc<Plugin> {
    Arc::new(Plugin {
        key_id: Mutex::new(key_id.to_owned()),
        healthz: Mutex::new("ok".to_owned()),
        calls: Mutex::default(),
    })
}

fn yaml(providers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: [secrets, \
         pandas.example.com], providers: [{providers}]}}]"
    )
}

fn kms(name: &str, socket: &Path) -> String {
    format!("{{kms: {{apiVersion: v2, name: {name}, endpoint: 'unix://{}'}}}}", socket.display())
}

async fn raw(engine: &etcd::Engine, key: &str) -> Vec<u8> {
    let found = engine.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await.unwrap();
    found.kvs[0].value.to_vec()
}

async fn health(client: &kube::Client, path: &str) -> Result<String, u16> {
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    client.request_text(request).await.map_err(|e| common::code(e).0)
}

fn secret(name: &str) -> Secret {
    serde_json::from_value(json!({"metadata": {"name": name}, "stringData": {"k": "hidden"}})).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_kept_with_a_plugins_help() {
    let data = tempfile::tempdir().unwrap();
    let (engine, socket) = (engine(&data), data.path().join("kms.sock"));
    let path: PathBuf = data.path().join("encryption.yaml");
    let one = plugin("key-1");
    let serving = one.serve(&socket);
    let text = yaml(&format!("{}, {{identity: {{}}}}", kms("one", &socket)));
    let config = || Some(Config { text: text.clone().into_bytes(), follow: None });
    {
        let cluster = cluster_on(engine.clone(), |c| c.encryption = config()).await;
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
        for name in ["a", "b"] {
            secrets.create(&PostParams::default(), &secret(name)).await.unwrap();
        }
        let stored = raw(&engine, "/registry/secrets/default/a").await;
        assert!(stored.starts_with(b"k8s:enc:kms:v2:one:"));
        assert!(!String::from_utf8_lossy(&stored).contains("hidden"));
        assert_eq!(*one.calls.lock(), ["Status", "Encrypt"], "one seed is enough");
        assert_eq!(health(&cluster.client, "/healthz/kms-providers").await.as_deref(), Ok("ok"));
        assert!(health(&cluster.client, "/readyz?verbose").await.unwrap().contains("[+]kms-providers ok"));
        // Custom resources are kept so as well.
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "pandas.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "pandas", "kind": "Panda"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
        let of = |group: &str, version: &str, kind: &str| {
            ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
        };
        let definitions: Api<DynamicObject> = Api::all_with(
            cluster.client.clone(),
            &of("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
        );
        definitions
            .create(&PostParams::default(), &serde_json::from_value(definition).unwrap())
            .await
            .unwrap();
        let pandas: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), "default", &of("example.com", "v1", "Panda"));
        let panda = json!({"apiVersion": "example.com/v1", "kind": "Panda", "metadata": {"name": "p"}, "food": "hidden"});
        let panda: DynamicObject = serde_json::from_value(panda).unwrap();
        let mut tries = 0;
        while let Err(error) = pandas.create(&PostParams::default(), &panda).await {
            assert!(tries < 400, "{error}");
            tries += 1;
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let stored = raw(&engine, "/registry/example.com/pandas/default/p").await;
        assert!(stored.starts_with(b"k8s:enc:kms:v2:one:"));
        assert_eq!(pandas.get("p").await.unwrap().data["food"], "hidden");
        let metrics = health(&cluster.client, "/metrics").await.unwrap();
        assert!(metrics.contains(
            "apiserver_envelope_encryption_kms_operations_latency_seconds_count{provider_name=\"one\",\
             method_name=\"/v2.KeyManagementService/Encrypt\",grpc_status_code=\"OK\"} 1"
        ));
    }
    // Another server reads what this one wrote, with one call for each seed. The key has changed since.
    *one.key_id.lock() = "key-2".to_owned();
    one.calls.lock().clear();
    std::fs::write(&path, &text).unwrap();
    let config = || Some(Config { text: text.clone().into_bytes(), follow: Some(path.clone()) });
    let cluster = cluster_on(engine.clone(), |c| c.encryption = config()).await;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
    assert_eq!(secrets.list(&ListParams::default()).await.unwrap().items.len(), 2);
    let before = secrets.get("a").await.unwrap();
    assert_eq!(before.data.as_ref().unwrap()["k"].0, b"hidden");
    assert_eq!(one.calls.lock().iter().filter(|c| *c == "Decrypt").count(), 1);
    let stored = raw(&engine, "/registry/secrets/default/a").await;
    let after = secrets.replace("a", &PostParams::default(), &before).await.unwrap();
    assert_ne!(
        after.metadata.resource_version, before.metadata.resource_version,
        "it was kept with the old key"
    );
    assert_ne!(raw(&engine, "/registry/secrets/default/a").await, stored);
    let again = secrets.replace("a", &PostParams::default(), &after).await.unwrap();
    assert_eq!(again.metadata.resource_version, after.metadata.resource_version);
    // The file changes: a second plugin, whose health counts.
    let (two, second) = (plugin("key-a"), data.path().join("two.sock"));
    *two.healthz.lock() = "ill".to_owned();
    let _serving_too = two.serve(&second);
    let fresh = yaml(&format!("{}, {}, {{identity: {{}}}}", kms("two", &second), kms("one", &socket)));
    std::fs::write(&path, &fresh).unwrap();
    let reloads = |status: &'static str| {
        let client = cluster.client.clone();
        async move {
            let name =
                format!("apiserver_encryption_config_controller_automatic_reloads_total{{status={status:?}");
            for _ in 0..1200 {
                let metrics = health(&client, "/metrics").await.unwrap();
                if metrics.lines().any(|l| l.starts_with(&name)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            panic!("no {status}");
        }
    };
    reloads("failure").await;
    *two.healthz.lock() = "ok".to_owned();
    std::fs::write(&path, format!("{fresh}\n")).unwrap();
    reloads("success").await;
    // What was kept as it should be is not any more.
    let changed = secrets.replace("a", &PostParams::default(), &again).await.unwrap();
    assert_ne!(changed.metadata.resource_version, again.metadata.resource_version);
    assert!(raw(&engine, "/registry/secrets/default/a").await.starts_with(b"k8s:enc:kms:v2:two:"));
    let same = secrets.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(same.metadata.resource_version, changed.metadata.resource_version);
    assert_eq!(secrets.get("b").await.unwrap().data.unwrap()["k"].0, b"hidden");
    drop(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_may_come_late() {
    let data = tempfile::tempdir().unwrap();
    let socket = data.path().join("kms.sock");
    let text = yaml(&format!("{}, {{identity: {{}}}}", kms("one", &socket)));
    let config = Some(Config { text: text.into_bytes(), follow: None });
    let cluster = cluster_on(engine(&data), |c| c.encryption = config).await;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
    assert_eq!(common::code(secrets.create(&PostParams::default(), &secret("a")).await.unwrap_err()).0, 500);
    assert_eq!(health(&cluster.client, "/healthz/kms-providers").await, Err(500));
    let one = plugin("key-1");
    let _serving = one.serve(&socket);
    let mut tries = 0;
    while health(&cluster.client, "/healthz/kms-providers").await.is_err() {
        assert!(tries < 600);
        tries += 1;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    secrets.create(&PostParams::default(), &secret("a")).await.unwrap();
}
