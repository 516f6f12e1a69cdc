//! Encryption at rest, from the configuration to the bytes in the store.

mod common;

use common::{cluster_on, engine};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use kube_apiserver::encryption::Config;
use serde_json::json;
use storage::{KeyRange, RangeRequest, Store};

fn configuration(providers: &str) -> Option<Config> {
    let keys = |names: &[&str]| {
        let keys =
            names.iter().map(|n| format!("{{name: {n}, secret: {}=}}", n.repeat(43))).collect::<Vec<_>>();
        format!("{{keys: [{}]}}", keys.join(", "))
    };
    let providers = providers
        .replace("<ab>", &keys(&["A", "B"]))
        .replace("<ba>", &keys(&["B", "A"]))
        .replace("<a>", &keys(&["A"]));
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: [secrets], providers: [{providers}]}}]"
    );
    Some(Config { text: text.into_bytes(), follow: None })
}

async fn raw(engine: &etcd::Engine, key: &str) -> Vec<u8> {
    let found = engine.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await.unwrap();
    found.kvs[0].value.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_kept_encrypted() {
    let data = tempfile::tempdir().unwrap();
    let engine = engine(&data);
    let key = "/registry/secrets/default/a";
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "stringData": {"k": "hidden"}})).unwrap();
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"k": "seen"}})).unwrap();
    {
        let cluster = cluster_on(engine.clone(), |c| c.encryption = None).await;
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
        secrets.create(&PostParams::default(), &secret).await.unwrap();
        assert!(raw(&engine, key).await.starts_with(b"{"));
    }
    for (providers, prefix) in [
        ("{aescbc: <a>}, {identity: {}}", "k8s:enc:aescbc:v1:A:"),
        ("{aesgcm: <ab>}, {aescbc: <a>}", "k8s:enc:aesgcm:v1:A:"),
        ("{aesgcm: <ba>}", "k8s:enc:aesgcm:v1:B:"),
        ("{secretbox: <a>}, {aesgcm: <ba>}", "k8s:enc:secretbox:v1:A:"),
        ("{identity: {}}, {secretbox: <a>}", "{"),
    ] {
        let cluster = cluster_on(engine.clone(), |c| c.encryption = configuration(providers)).await;
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
        let before = secrets.get("a").await.unwrap();
        assert_eq!(before.data.as_ref().unwrap()["k"].0, b"hidden", "{providers}");
        assert!(!raw(&engine, key).await.starts_with(prefix.as_bytes()), "{providers}");
        let listed = secrets.list(&ListParams::default()).await.unwrap();
        let mut changes = secrets
            .watch(&WatchParams::default(), &listed.metadata.resource_version.unwrap())
            .await
            .unwrap()
            .boxed();
        // Writing the same again is how what is kept is brought up to date.
        let after = secrets.replace("a", &PostParams::default(), &before).await.unwrap();
        assert!(raw(&engine, key).await.starts_with(prefix.as_bytes()), "{providers}");
        assert_ne!(before.metadata.resource_version, after.metadata.resource_version);
        match changes.try_next().await.unwrap() {
            Some(WatchEvent::Modified(seen)) => assert_eq!(seen.data, before.data),
            other => panic!("{other:?}"),
        }
        // Once it is, nothing is written.
        let again = secrets.replace("a", &PostParams::default(), &after).await.unwrap();
        assert_eq!(again.metadata.resource_version, after.metadata.resource_version);
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
        let _ = maps.create(&PostParams::default(), &map).await;
        assert!(raw(&engine, "/registry/configmaps/default/a").await.starts_with(b"{"));
    }
    // Without the key it cannot be read; all else can.
    {
        let cluster = cluster_on(engine.clone(), |c| c.encryption = configuration("{aescbc: <a>}")).await;
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
        let refused = secrets.get("a").await.unwrap_err();
        assert_eq!(common::code(refused).0, 500);
        let refused = secrets.list(&ListParams::default()).await.unwrap_err();
        assert_eq!(common::code(refused).0, 500, "a list does not leave out what it should hold");
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
        assert!(!maps.list(&ListParams::default()).await.unwrap().items.is_empty());
    }
}
