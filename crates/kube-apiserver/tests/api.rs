//! The server through a real client (kube-rs over TLS), on the embedded store.

mod common;

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ComponentStatus, ConfigMap, Namespace, Pod};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy, WatchEvent, WatchParams,
};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use kube_apiserver::{Component, SourceEvent, Wanted};
use serde_json::{Value, json};

use common::{cluster, cluster_on, code, engine};

fn config_map(name: &str, labels: Value, data: Value) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}, "data": data})).unwrap()
}

#[tokio::test]
async fn objects_live_and_die() {
    let cluster = cluster().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    let (post, patch, delete) = (PostParams::default(), PatchParams::default(), DeleteParams::default());

    let made = maps.create(&post, &config_map("a", json!({"x": "1"}), json!({"k": "v"}))).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.managed_fields.is_some());
    let again = maps.create(&post, &config_map("a", json!({}), json!({}))).await.unwrap_err();
    assert_eq!(code(again), (409, "AlreadyExists".into()));

    // What says nothing new moves nothing.
    let same = maps.patch("a", &patch, &Patch::Merge(json!({"data": {"k": "v"}}))).await.unwrap();
    assert_eq!(same.metadata.resource_version, made.metadata.resource_version);
    let changed = maps.patch("a", &patch, &Patch::Merge(json!({"data": {"k": "w"}}))).await.unwrap();
    assert_ne!(changed.metadata.resource_version, made.metadata.resource_version);
    let stale = maps.replace("a", &post, &made).await.unwrap_err();
    assert_eq!(code(stale), (409, "Conflict".into()));

    // A dry run stores nothing.
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    maps.create(&dry, &config_map("b", json!({}), json!({}))).await.unwrap();
    assert_eq!(code(maps.get("b").await.unwrap_err()), (404, "NotFound".into()));

    // A finalizer holds an object until it is taken off.
    maps.patch("a", &patch, &Patch::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}})))
        .await
        .unwrap();
    let held = maps.delete("a", &delete).await.unwrap().left().expect("the object, which is still there");
    assert!(held.metadata.deletion_timestamp.is_some());
    maps.patch("a", &patch, &Patch::Merge(json!({"metadata": {"finalizers": null}}))).await.unwrap();
    assert_eq!(code(maps.get("a").await.unwrap_err()), (404, "NotFound".into()));

    maps.create(&post, &config_map("c", json!({}), json!({}))).await.unwrap();
    let foreground = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..delete };
    let held = maps.delete("c", &foreground).await.unwrap().left().expect("the object");
    assert_eq!(held.metadata.finalizers.unwrap(), ["foregroundDeletion"]);
}

#[tokio::test]
async fn lists_come_in_pages_and_selections() {
    let cluster = cluster().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    for i in 0..25 {
        let labels = json!({"parity": if i % 2 == 0 { "even" } else { "odd" }});
        maps.create(&PostParams::default(), &config_map(&format!("m{i:02}"), labels, json!({})))
            .await
            .unwrap();
    }
    let mut names = Vec::new();
    let mut params = ListParams::default().limit(10);
    let mut versions = Vec::new();
    loop {
        let page = maps.list(&params).await.unwrap();
        names.extend(page.items.iter().map(|m| m.metadata.name.clone().unwrap()));
        versions.push(page.metadata.resource_version.clone());
        // What is written between pages is not seen by them.
        let name = format!("later{}", names.len());
        maps.create(&PostParams::default(), &config_map(&name, json!({}), json!({}))).await.unwrap();
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(token) => params = ListParams::default().limit(10).continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names.len(), 25);
    assert!(versions.windows(2).all(|w| w[0] == w[1]));
    assert_eq!(maps.list(&ListParams::default().labels("parity=even")).await.unwrap().items.len(), 13);
    assert_eq!(
        maps.list(&ListParams::default().labels("parity notin (even)")).await.unwrap().items.len(),
        15
    );
    assert_eq!(maps.list(&ListParams::default().fields("metadata.name=m03")).await.unwrap().items.len(), 1);
    let bad = maps.list(&ListParams::default().fields("data.x=1")).await.unwrap_err();
    assert_eq!(code(bad), (400, "BadRequest".into()));
}

#[tokio::test]
async fn answers_are_written_as_upstreams() {
    let cluster = cluster().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    maps.create(&PostParams::default(), &config_map("a", json!({}), json!({"k": "v"}))).await.unwrap();
    let get = async |path: &str, agent: &str| {
        let request = http::Request::get(path).header("user-agent", agent).body(Vec::new()).unwrap();
        let answer = cluster.client.send(request.map(kube::client::Body::from)).await.unwrap();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    };
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    let one = get(&format!("{MAPS}/a"), "x").await;
    assert!(one.starts_with(r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"#), "{one}");
    assert!(one.ends_with("\"data\":{\"k\":\"v\"}}\n"), "{one}");
    // The list says what its items are.
    for list in [MAPS.to_owned(), format!("{MAPS}?limit=5")] {
        let list = get(&list, "x").await;
        assert!(list.starts_with(r#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"#), "{list}");
        assert!(list.contains(r#""items":[{"metadata":{"resourceVersion":"#), "{list}");
        assert!(list.ends_with("]}\n"), "{list}");
    }
    let none = get(&format!("{MAPS}/b"), "x").await;
    assert_eq!(
        none,
        concat!(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
            r#""message":"configmaps \"b\" not found","reason":"NotFound","#,
            r#""details":{"name":"b","kind":"configmaps"},"code":404}"#,
            "\n"
        )
    );
    let resources = get("/api/v1", "x").await;
    let head = r#"{"kind":"APIResourceList","groupVersion":"v1","resources":["#;
    assert!(resources.starts_with(head), "{resources}");
    let apps = get("/apis/apps/v1", "x").await;
    let head = r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"apps/v1","resources":["#;
    assert!(apps.starts_with(head), "{apps}");
    let row =
        r#"{"name":"configmaps","singularName":"configmap","namespaced":true,"kind":"ConfigMap","verbs":["#;
    assert!(resources.contains(row), "{resources}");

    // Programs that people look at answers with get them laid out.
    let plain = format!("{MAPS}/a?pretty=false");
    for (path, agent, pretty) in [
        (&*format!("{MAPS}/a"), "curl/8.0", true),
        (MAPS, "Wget/1.2", true),
        (MAPS, "Mozilla/5.0 (X11)", true),
        (&plain, "curl/8.0", false),
        (&format!("{MAPS}/a?pretty=1"), "x", true),
        (&format!("{MAPS}/b"), "curl/8.0", true),
        ("/apis", "curl/8.0", true),
    ] {
        let text = get(path, agent).await;
        assert_eq!(text.starts_with("{\n  \"kind\": "), pretty, "{path} {agent}: {text}");
        assert_eq!(text.ends_with('\n'), !pretty, "{path} {agent}");
    }
}

#[tokio::test]
async fn components_are_asked_how_they_are() {
    let store = tempfile::tempdir().unwrap();
    let cluster = cluster_on(engine(&store), |config| {
        // Nobody serves at port 1.
        config.components =
            vec![("scheduler", Component::Within), ("controller-manager", Component::Port(1))];
    })
    .await;
    let all: Api<ComponentStatus> = Api::all(cluster.client.clone());
    let said = |found: &ComponentStatus| {
        let condition = &found.conditions.as_ref().unwrap()[0];
        let message = condition.message.clone().unwrap_or_default();
        (found.metadata.name.clone().unwrap(), condition.status.clone(), message)
    };
    let found: Vec<_> = all.list(&ListParams::default()).await.unwrap().iter().map(said).collect();
    let ok = |name: &str| (name.to_owned(), "True".to_owned(), "ok".to_owned());
    assert_eq!((&found[0], &found[2]), (&ok("scheduler"), &ok("etcd-0")));
    assert_eq!((found[1].0.as_str(), found[1].1.as_str()), ("controller-manager", "False"));
    assert!(
        found[1].2.starts_with("Get \"https://127.0.0.1:1/healthz\": dial tcp 127.0.0.1:1: "),
        "{found:?}"
    );
    let one = ListParams::default().fields("metadata.name=etcd-0");
    assert_eq!(all.list(&one).await.unwrap().items.len(), 1);
    assert_eq!(said(&all.get("scheduler").await.unwrap()), ok("scheduler"));
    assert_eq!(code(all.get("x").await.unwrap_err()), (404, "NotFound".into()));
}

#[tokio::test]
async fn lists_go_on_after_compaction() {
    let cluster = cluster().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    let make = |name: &str| config_map(name, json!({}), json!({}));
    for name in ["a", "b", "c", "d"] {
        maps.create(&PostParams::default(), &make(name)).await.unwrap();
    }
    let page = maps.list(&ListParams::default().limit(2)).await.unwrap();
    let token = page.metadata.continue_.unwrap();
    maps.create(&PostParams::default(), &make("e")).await.unwrap();
    let store = &cluster.handle.registry().store;
    store.compact(store.revision().await.unwrap()).await.unwrap();
    let path = |token: &str| format!("/api/v1/namespaces/default/configmaps?limit=2&continue={token}");
    let get = |path: String| {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        let client = cluster.client.clone();
        async move { client.send(request.map(kube::client::Body::from)).await.unwrap() }
    };
    let answer = get(path(&token)).await;
    assert_eq!(answer.status(), 410);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["reason"], "Expired");
    let next = status["metadata"]["continue"].as_str().unwrap();
    let answer = get(path(next)).await;
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    let list: Value = serde_json::from_slice(&body).unwrap();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|m| m["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["c", "d"]);
    assert!(list["metadata"]["continue"].is_string());
}

#[tokio::test]
async fn watches_see_selections_change() {
    let cluster = cluster().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    let from = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let params = WatchParams::default().labels("in=yes").timeout(20);
    let mut watch = maps.watch(&params, &from).await.unwrap().boxed();
    let patch = |body: Value| {
        let maps = maps.clone();
        async move { maps.patch("a", &PatchParams::default(), &Patch::Merge(body)).await.unwrap() }
    };
    maps.create(&PostParams::default(), &config_map("a", json!({}), json!({}))).await.unwrap();
    patch(json!({"metadata": {"labels": {"in": "yes"}}})).await;
    patch(json!({"data": {"x": "1"}})).await;
    let left = patch(json!({"metadata": {"labels": {"in": "no"}}})).await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let event =
            tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
        match event {
            WatchEvent::Added(_) => seen.push("added".to_owned()),
            WatchEvent::Modified(_) => seen.push("modified".to_owned()),
            WatchEvent::Deleted(m) => {
                assert_eq!(m.metadata.resource_version, left.metadata.resource_version);
                seen.push("deleted".to_owned());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["added", "modified", "deleted"]);
}

#[tokio::test]
async fn appliers_share_an_object() {
    let cluster = cluster().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    let config = |data: Value| {
        Patch::Apply(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}),
        )
    };
    let (one, two) = (PatchParams::apply("one"), PatchParams::apply("two"));
    maps.patch("a", &one, &config(json!({"x": "1"}))).await.unwrap();
    let both = maps.patch("a", &two, &config(json!({"y": "2"}))).await.unwrap();
    assert_eq!(both.data.unwrap().len(), 2);
    let conflict = maps.patch("a", &two, &config(json!({"x": "3", "y": "2"}))).await.unwrap_err();
    assert_eq!(code(conflict), (409, "Conflict".into()));
    let forced = maps.patch("a", &two.clone().force(), &config(json!({"x": "3"}))).await.unwrap();
    assert_eq!(forced.data.unwrap(), [("x".to_owned(), "3".to_owned())].into());
}

#[tokio::test]
async fn pods_are_bound_once_and_graceful() {
    let cluster = cluster().await;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    let pod = serde_json::from_value(
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
    );
    let made = pods.create(&PostParams::default(), &pod.unwrap()).await.unwrap();
    assert_eq!(made.status.unwrap().phase.unwrap(), "Pending");
    let bind = |node: &str| {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": node}});
        let request = http::Request::post("/api/v1/namespaces/default/pods/p/binding")
            .header("content-type", "application/json")
            .body(binding.to_string().into_bytes())
            .unwrap();
        let client = cluster.client.clone();
        async move { client.request::<Value>(request).await }
    };
    bind("n1").await.unwrap();
    assert_eq!(code(bind("n2").await.unwrap_err()), (409, "Conflict".into()));
    assert_eq!(pods.get("p").await.unwrap().spec.unwrap().node_name.unwrap(), "n1");
    let going = pods.delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(code(pods.get("p").await.unwrap_err()), (404, "NotFound".into()));
}

#[tokio::test]
async fn definitions_bring_resources() {
    let cluster = cluster().await;
    let kind = |group: &str, version: &str, kind: &str, plural: &str| {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    };
    let definitions: Api<DynamicObject> = Api::all_with(
        cluster.client.clone(),
        &kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
    );
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "subresources": {"status": {}}, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {
        "type": "object", "properties": {"size": {"type": "integer", "minimum": 1, "default": 2}}}}}}}]}});
    definitions.create(&PostParams::default(), &serde_json::from_value(definition).unwrap()).await.unwrap();
    let foos: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), "default", &kind("example.com", "v1", "Foo", "foos"));
    let foo = |spec: Value| -> DynamicObject {
        serde_json::from_value(
            json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": spec}),
        )
        .unwrap()
    };
    let mut established = definitions.watch(&WatchParams::default().timeout(20), "0").await.unwrap().boxed();
    while let Some(Ok(WatchEvent::Added(d) | WatchEvent::Modified(d))) = established.next().await {
        let conditions = d.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True") {
            break;
        }
    }
    let wrong = foos.create(&PostParams::default(), &foo(json!({"size": 0}))).await.unwrap_err();
    assert_eq!(code(wrong), (422, "Invalid".into()));
    let made = foos.create(&PostParams::default(), &foo(json!({"bogus": 1}))).await.unwrap();
    assert_eq!(made.data["spec"], json!({"size": 2}));
    definitions.delete("foos.example.com", &DeleteParams::default()).await.unwrap();
    let gone = async {
        while definitions.get_opt("foos.example.com").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    assert_eq!(code(foos.list(&ListParams::default()).await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn informers_in_this_process_get_the_bytes() {
    let cluster = cluster().await;
    let wanted = Wanted { version: "v1".into(), resource: "namespaces".into(), ..Wanted::default() };
    let mut events = Box::pin(cluster.handle.list_watch(wanted));
    let Some(SourceEvent::Replace { items, .. }) = events.next().await else { panic!("the state first") };
    assert!(items.iter().any(|n| n.name() == "kube-system"));
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "new"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let Some(SourceEvent::Applied(applied)) = events.next().await else { panic!("the addition") };
    assert_eq!(applied.name(), "new");
}
