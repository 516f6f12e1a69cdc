//! Custom resources: rules in their schema, webhooks on their way, fields to select by.

mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::discovery::ApiResource;
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use common::{Cluster, cluster};

const GROUP: &str = "stable.example.com";

fn of_kind(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

/// A definition of Things with these versions, written and served.
async fn define(cluster: &Cluster, versions: Value, conversion: Value) {
    let definitions: Api<DynamicObject> = Api::all_with(
        cluster.client.clone(),
        &of_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    );
    let first = versions[0]["name"].as_str().unwrap().to_owned();
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("things.{GROUP}")}, "spec": {"group": GROUP, "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": versions, "conversion": conversion}});
    definitions.create(&PostParams::default(), &object(definition)).await.unwrap();
    let things = things(cluster, &first);
    let served = async {
        while things.list(&ListParams::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), served).await.unwrap();
}

fn things(cluster: &Cluster, version: &str) -> Api<DynamicObject> {
    Api::namespaced_with(cluster.client.clone(), "default", &of_kind(GROUP, version, "Thing"))
}

fn thing(version: &str, name: &str, rest: Value) -> DynamicObject {
    let mut value =
        json!({"apiVersion": format!("{GROUP}/{version}"), "kind": "Thing", "metadata": {"name": name}});
    for (k, v) in rest.as_object().unwrap() {
        value[k] = v.clone();
    }
    object(value)
}

fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("{other}"),
    }
}

/// A webhook server: `answer` makes the response of a review from its path and request. Answers URL and certificate.
async fn webhook(answer: fn(&str, &Value) -> Value) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let chain = vec![certificate.der().clone()];
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                    let path = request.uri().path().to_owned();
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let mut review: Value = serde_json::from_slice(&body).unwrap();
                    let mut response = answer(&path, &review["request"]);
                    response["uid"] = review["request"]["uid"].clone();
                    review.as_object_mut().unwrap().remove("request");
                    review["response"] = response;
                    let body = Full::new(bytes::Bytes::from(serde_json::to_vec(&review).unwrap()));
                    Ok::<_, Infallible>(http::Response::new(body))
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    use base64::Engine;
    let bundle = base64::engine::general_purpose::STANDARD.encode(certificate.pem());
    (format!("https://{address}"), bundle)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_kept() {
    let cluster = cluster().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}, "name": {"type": "string", "maxLength": 8}},
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "messageExpression": "'%d is more than %d'.format([self.min, self.max])"},
            {"rule": "!has(oldSelf.name) || self.name == oldSelf.name", "message": "name is immutable", "fieldPath": ".name"}]}}});
    let version = |schema: Value| json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]);
    define(&cluster, version(schema.clone()), Value::Null).await;
    let things = things(&cluster, "v1");
    let post = PostParams::default();
    things
        .create(&post, &thing("v1", "good", json!({"spec": {"min": 1, "max": 2, "name": "a"}})))
        .await
        .unwrap();
    let bad =
        things.create(&post, &thing("v1", "bad", json!({"spec": {"min": 3, "max": 2}}))).await.unwrap_err();
    assert_eq!(
        message(bad),
        "Thing.stable.example.com \"bad\" is invalid: spec: Invalid value: 3 is more than 2"
    );
    let patch = Patch::Merge(json!({"spec": {"name": "b"}}));
    let bad = things.patch("good", &PatchParams::default(), &patch).await.unwrap_err();
    assert_eq!(
        message(bad),
        "Thing.stable.example.com \"good\" is invalid: spec.name: Invalid value: name is immutable"
    );

    // A stricter rule lets stand what stood.
    let definitions: Api<DynamicObject> = Api::all_with(
        cluster.client.clone(),
        &of_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    );
    let mut stricter = schema.clone();
    stricter["properties"]["spec"]["x-kubernetes-validations"] = json!([{"rule": "self.min > 5"}]);
    let patch = Patch::Merge(json!({"spec": {"versions": version(stricter)}}));
    let name = format!("things.{GROUP}");
    definitions.patch(&name, &PatchParams::default(), &patch).await.unwrap();
    let refused = async {
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let probe = thing("v1", "probe", json!({"spec": {"min": 1, "max": 2}}));
        while things.create(&dry, &probe).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    let labelled = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    things.patch("good", &PatchParams::default(), &labelled).await.unwrap();
    let changed = Patch::Merge(json!({"spec": {"max": 3}}));
    let bad = things.patch("good", &PatchParams::default(), &changed).await.unwrap_err();
    assert!(message(bad).contains("failed rule: self.min > 5"));

    // Rules are checked when they are written.
    let mut wrong = schema;
    wrong["properties"]["spec"]["x-kubernetes-validations"] = json!([{"rule": "self.min == 'a'"}]);
    let patch = Patch::Merge(json!({"spec": {"versions": version(wrong)}}));
    let bad = message(definitions.patch(&name, &PatchParams::default(), &patch).await.unwrap_err());
    assert!(bad.contains("found no matching overload for '_==_' applied to '(int, string)'"), "{bad}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_webhooks_add_is_pruned() {
    let cluster = cluster().await;
    let (url, bundle) = webhook(|_, request| {
        use base64::Engine;
        assert_eq!(request["object"]["kind"], "Thing");
        let patch = json!([{"op": "add", "path": "/data/known", "value": "yes"},
            {"op": "add", "path": "/data/unknown", "value": "yes"}]);
        let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
        json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
    })
    .await;
    let schema = json!({"type": "object", "properties": {"data": {"type": "object", "properties": {"known": {"type": "string"}}}}});
    let versions =
        json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]);
    define(&cluster, versions, Value::Null).await;
    let kind = of_kind("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration");
    let configurations: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &kind);
    let configuration = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "w"}, "webhooks": [{"name": "w.example.com", "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "clientConfig": {"url": url, "caBundle": bundle},
        "rules": [{"operations": ["CREATE"], "apiGroups": [GROUP], "apiVersions": ["v1"], "resources": ["things"]}]}]});
    configurations.create(&PostParams::default(), &object(configuration)).await.unwrap();
    let made =
        things(&cluster, "v1").create(&PostParams::default(), &thing("v1", "a", json!({"data": {}}))).await;
    assert_eq!(made.unwrap().data["data"], json!({"known": "yes"}));
}

/// Between v1, which has `hostPort`, and v2, which has `host` and `port`.
fn convert(_: &str, request: &Value) -> Value {
    let to = request["desiredAPIVersion"].as_str().unwrap();
    let converted: Vec<Value> = request["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let mut object = object.clone();
            let members = object.as_object_mut().unwrap();
            if to.ends_with("/v1") {
                let text =
                    |v: Option<Value>| v.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
                let (host, port) = (text(members.remove("host")), text(members.remove("port")));
                members.insert("hostPort".into(), format!("{host}:{port}").into());
            } else if let Some((host, port)) = members
                .remove("hostPort")
                .and_then(|v| v.as_str()?.split_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())))
            {
                members.insert("host".into(), host.into());
                members.insert("port".into(), port.into());
            }
            object["apiVersion"] = to.into();
            object
        })
        .collect();
    json!({"convertedObjects": converted, "result": {"status": "Success"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_every_version_select() {
    let cluster = cluster().await;
    let (url, bundle) = webhook(convert).await;
    let schema = |fields: &[&str]| {
        let properties: serde_json::Map<String, Value> =
            fields.iter().map(|f| ((*f).to_owned(), json!({"type": "string"}))).collect();
        json!({"openAPIV3Schema": {"type": "object", "properties": properties}})
    };
    let versions = json!([
        {"name": "v1", "served": true, "storage": false, "schema": schema(&["hostPort"]),
         "selectableFields": [{"jsonPath": ".hostPort"}]},
        {"name": "v2", "served": true, "storage": true, "schema": schema(&["host", "port"]),
         "selectableFields": [{"jsonPath": ".host"}, {"jsonPath": ".port"}]}]);
    let conversion = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": url, "caBundle": bundle}}});
    define(&cluster, versions, conversion).await;
    let (v1, v2) = (things(&cluster, "v1"), things(&cluster, "v2"));
    let watch = |api: Api<DynamicObject>, fields: &'static str| async move {
        let params = WatchParams::default().fields(fields).timeout(20);
        api.watch(&params, "0").await.unwrap().boxed()
    };
    let mut watches = [watch(v1.clone(), "hostPort=host1:80").await, watch(v2.clone(), "host=host1").await];
    for (name, host, port) in [("a", "host1", "80"), ("b", "host1", "8080"), ("c", "host2", "80")] {
        v2.create(&PostParams::default(), &thing("v2", name, json!({"host": host, "port": port})))
            .await
            .unwrap();
    }
    for (api, fields, want) in [
        (&v2, "host=host1", &["a", "b"][..]),
        (&v2, "host=host1,port=80", &["a"]),
        (&v1, "hostPort=host1:80", &["a"]),
        (&v1, "hostPort!=host1:80", &["b", "c"]),
        (&v1, "hostPort=host1:8080,metadata.name=b", &["b"]),
    ] {
        let found = api.list(&ListParams::default().fields(fields)).await.unwrap();
        let names: Vec<String> = found.items.into_iter().map(|t| t.metadata.name.unwrap()).collect();
        assert_eq!(names, want, "{fields}");
    }
    v2.patch("a", &PatchParams::default(), &Patch::Merge(json!({"port": "81"}))).await.unwrap();
    let mut seen: Vec<Vec<String>> = Vec::new();
    for (watch, count) in watches.iter_mut().zip([2, 3]) {
        let mut events = Vec::new();
        while events.len() < count {
            let event =
                tokio::time::timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap().unwrap();
            let (kind, object) = match event {
                WatchEvent::Added(o) => ("added", o),
                WatchEvent::Modified(o) => ("modified", o),
                WatchEvent::Deleted(o) => ("deleted", o),
                _ => continue,
            };
            events.push(format!("{kind} {}", object.metadata.name.unwrap()));
        }
        seen.push(events);
    }
    assert_eq!(seen, [vec!["added a", "deleted a"], vec!["added a", "added b", "modified a"]]);
    let wrong = v1.list(&ListParams::default().fields("host=host1")).await.unwrap_err();
    assert!(message(wrong).contains("field label not supported: host"));
}

/// Two versions without a conversion: each is judged by its own schema, and keeps of what is stored what it knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_have_schemas_of_their_own() {
    let cluster = cluster().await;
    let versions = |stored: &str| {
        let version = |name: &str, properties: Value, required: Value| {
            let spec = json!({"type": "object", "properties": properties, "required": required});
            json!({"name": name, "served": true, "storage": name == stored,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}})
        };
        json!([
            version(
                "v1",
                json!({"name": {"type": "string"}, "old": {"type": "integer"}}),
                json!(["name", "old"])
            ),
            version(
                "v2",
                json!({"name": {"type": "string"}, "new": {"type": "string", "default": "x"}}),
                json!(["name"])
            ),
        ])
    };
    define(&cluster, versions("v1"), Value::Null).await;
    let (v1, v2) = (things(&cluster, "v1"), things(&cluster, "v2"));
    let post = PostParams::default();
    let spec = |thing: DynamicObject| (thing.types.unwrap().api_version, thing.data["spec"].clone());
    let said = |version: &str, spec: Value| (format!("{GROUP}/{version}"), spec);

    v1.create(&post, &thing("v1", "a", json!({"spec": {"name": "a", "old": 5}}))).await.unwrap();
    assert_eq!(spec(v1.get("a").await.unwrap()), said("v1", json!({"name": "a", "old": 5})));
    // Defaults are those of the version that is stored.
    assert_eq!(spec(v2.get("a").await.unwrap()), said("v2", json!({"name": "a"})));
    // What v1 does not know is not stored.
    let made = v2.create(&post, &thing("v2", "b", json!({"spec": {"name": "b", "new": "y"}}))).await.unwrap();
    assert_eq!(spec(made), said("v2", json!({"name": "b"})));
    let strict = |kind: &str, value: Value| {
        let request = http::Request::builder()
            .method("PATCH")
            .uri(format!("/apis/{GROUP}/{kind}/namespaces/default/things/a?fieldValidation=Strict"))
            .header("content-type", "application/merge-patch+json")
            .body(serde_json::to_vec(&value).unwrap())
            .unwrap();
        cluster.client.request::<DynamicObject>(request)
    };
    // What v2 does not know is not what the client wrote.
    let labelled = strict("v2", json!({"metadata": {"labels": {"a": "b"}}})).await.unwrap();
    // The default of v2 is no field of v1, whose owner's fields are forgotten with all others.
    assert_eq!(labelled.metadata.managed_fields, None);
    // Which takes it away.
    assert_eq!(spec(v1.get("a").await.unwrap()), said("v1", json!({"name": "a"})));

    let definitions: Api<DynamicObject> = Api::all_with(
        cluster.client.clone(),
        &of_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    );
    let patch = Patch::Merge(json!({"spec": {"versions": versions("v2")}}));
    definitions.patch(&format!("things.{GROUP}"), &PatchParams::default(), &patch).await.unwrap();
    let switched = async {
        let probe = thing("v2", "probe", json!({"spec": {"name": "p", "new": "z"}}));
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        while v2.create(&dry, &probe).await.unwrap().data["spec"]["new"] != "z" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), switched).await.unwrap();

    // Stored as v1 still.
    assert_eq!(spec(v2.get("a").await.unwrap()), said("v2", json!({"name": "a"})));
    let path = format!("/apis/{GROUP}/v1/namespaces/default/things");
    let list = cluster.client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(
        (&list["metadata"]["continue"], &list["items"][1]["apiVersion"]),
        (&json!(""), &json!(format!("{GROUP}/v1")))
    );
    let listed: Vec<_> = v2.list(&ListParams::default()).await.unwrap().items.into_iter().map(spec).collect();
    assert_eq!(listed, [said("v2", json!({"name": "a"})), said("v2", json!({"name": "b"}))]);
    let watch = v2.watch(&WatchParams::default().timeout(20), "0").await.unwrap();
    let mut watch = std::pin::pin!(watch);
    let Some(Ok(WatchEvent::Added(seen))) = watch.next().await else { panic!("no event") };
    assert_eq!(seen.types.unwrap().api_version, format!("{GROUP}/v2"));
    // A change of nothing stores it anew, and the next one does not.
    let nothing = Patch::Merge(json!({}));
    let before = v2.get("a").await.unwrap().metadata.resource_version;
    let rewritten = v2.patch("a", &PatchParams::default(), &nothing).await.unwrap();
    assert_ne!(rewritten.metadata.resource_version, before);
    let same = v2.patch("a", &PatchParams::default(), &nothing).await.unwrap();
    assert_eq!(same.metadata.resource_version, rewritten.metadata.resource_version);
    // Required of v1 only: there when v1 is judged, although v2 is stored.
    let made = v1.create(&post, &thing("v1", "c", json!({"spec": {"name": "c", "old": 1}}))).await.unwrap();
    assert_eq!(spec(made), said("v1", json!({"name": "c"})));
    let apply = PatchParams::apply("test").force();
    let config = Patch::Apply(thing("v1", "c", json!({"spec": {"name": "d", "old": 2}})));
    assert_eq!(spec(v1.patch("c", &apply, &config).await.unwrap()), said("v1", json!({"name": "d"})));
    let lacking = v1.patch("c", &PatchParams::default(), &Patch::Merge(json!({"spec": {"name": "e"}}))).await;
    assert_eq!(
        message(lacking.unwrap_err()),
        "Thing.stable.example.com \"c\" is invalid: spec.old: Required value"
    );
    let config = Patch::Apply(thing("v2", "c", json!({"spec": {"name": "d"}})));
    let undeclared = v2.patch("c", &apply, &config).await;
    assert_eq!(message(undeclared.unwrap_err()), ".spec.new: field not declared in schema");
    v1.delete("c", &Default::default()).await.unwrap();
}

/// What clients sent, as upstream reads and answers it: nulls, numbers, members that come twice, other kinds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_read_without_types() {
    let cluster = cluster().await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "i": {"type": "integer"}, "n": {"type": "number"}, "s": {"type": "string"}, "x": {"x-kubernetes-int-or-string": true},
        "d": {"type": "string", "default": "z"}, "nullable": {"type": "string", "nullable": true},
        "none": {"type": "object"},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        "status": {"type": "object", "properties": {"n": {"type": "integer"}}}}}});
    let version = json!([{"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}}}]);
    define(&cluster, version, Value::Null).await;
    let send = |method: &str, path: &str, content: &str, body: String| {
        let uri = format!("/apis/{GROUP}/v1/namespaces/default/things{path}");
        let request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", content)
            .body(body.into_bytes());
        cluster.client.request_text(request.unwrap())
    };
    let body = |name: &str, spec: &str| {
        format!(
            r#"{{"apiVersion":"{GROUP}/v1","kind":"Thing","metadata":{{"name":"{name}"}},"spec":{spec}}}"#
        )
    };
    for (i, (spec, want)) in [
        (
            r#"{"s":null,"d":null,"nullable":null,"free":{"a":null}}"#,
            r#"{"d":"z","free":{"a":null},"nullable":null}"#,
        ),
        (r#"{"i":3.0,"n":1e20,"x":3.0}"#, r#"{"d":"z","i":3,"n":100000000000000000000,"x":3}"#),
        (r#"{"n":9223372036854775808}"#, r#"{"d":"z","n":9223372036854776000}"#),
        (r#"{"none":{"a":1}}"#, r#"{"d":"z","none":{}}"#),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("a{i}");
        let want = format!(r#""spec":{want}}}"#);
        let made = send("POST", "", "application/json", body(&name, spec)).await.unwrap();
        assert!(made.contains(&want), "{made}");
        let read = send("GET", &format!("/{name}"), "", String::new()).await.unwrap();
        assert!(read.contains(&want), "{read}");
    }
    let merge = "application/merge-patch+json";
    let json = "application/json-patch+json";
    let strict = "?dryRun=All&fieldValidation=Strict";
    for (method, path, content, sent, want) in [
        (
            "POST",
            "?dryRun=All".to_owned(),
            "application/json",
            body("b", r#"{"i":9223372036854775808}"#),
            "Thing.stable.example.com \"b\" is invalid: [spec.i: Invalid value: \"number\": spec.i in body must be of type \
             integer: \"number\", <nil>: Invalid value: \"\": Checked value must be of type integer (default format) in \
             spec.i]",
        ),
        (
            "POST",
            strict.to_owned(),
            "application/json",
            body("b", r#"{"free":{"a":1,"a":2},"u":1}"#),
            "strict decoding error: duplicate field \"spec.free.a\", unknown field \"spec.u\"",
        ),
        (
            "PATCH",
            format!("/a0{strict}"),
            merge,
            r#"{"spec":{"free":{"b":1,"b":2}}}"#.to_owned(),
            "strict decoding error: duplicate field \"spec.free.b\"",
        ),
        ("PATCH", "/a0".to_owned(), merge, r#"{"kind":null}"#.to_owned(), "Object 'Kind' is missing in '"),
        (
            "PATCH",
            "/a0".to_owned(),
            json,
            r#"[{"op":"remove","path":"/kind"}]"#.to_owned(),
            "Object 'Kind' is missing in '",
        ),
        (
            "PATCH",
            "/a0".to_owned(),
            merge,
            r#"{"apiVersion":null}"#.to_owned(),
            "Object 'apiVersion' is missing in 'object has no apiVersion field'",
        ),
        (
            "PATCH",
            "/a0".to_owned(),
            merge,
            r#"{"apiVersion":"other/v1","kind":"Foo"}"#.to_owned(),
            "Foo.other \"a0\" is invalid: [kind: Invalid value: \"Foo\": must be Thing, apiVersion: Invalid value: \
             \"other/v1\": must be stable.example.com/v1]",
        ),
        (
            "POST",
            String::new(),
            "application/json",
            r#"{"apiVersion":"stable.example.com/v1"}"#.to_owned(),
            "the object provided is unrecognized (must be of type Thing): Object 'Kind' is missing in \
             '{\"apiVersion\":\"stable.example.com/v1\"}' ({\"apiVersion\":\"stable.example. ...)",
        ),
        (
            "POST",
            String::new(),
            "application/yaml",
            "kind: ''\n".to_owned(),
            "the object provided is unrecognized (must be of type Thing): Object 'Kind' is missing in 'kind: ''\n' (",
        ),
        (
            "POST",
            String::new(),
            "application/json",
            r#"{"apiVersion":"a/b/c","kind":"Thing"}"#.to_owned(),
            "the object provided is unrecognized (must be of type Thing): unexpected GroupVersion string: a/b/c (",
        ),
        (
            "POST",
            String::new(),
            "application/json",
            r#"{"kind":"Thing"}"#.to_owned(),
            "the API version in the data () does not match the expected API version (stable.example.com/v1)",
        ),
        (
            "PATCH",
            "/a0?fieldManager=a&force=true".to_owned(),
            "application/apply-patch+yaml",
            body("a0", r#"{"s":5}"#),
            "failed to create typed patch object (/a0; stable.example.com/v1, Kind=Thing): .spec.s: expected \
             string, got &value.valueUnstructured{Value:5}",
        ),
    ] {
        let error = message(send(method, &path, content, sent.clone()).await.unwrap_err());
        assert!(error.contains(want), "{sent}: {error}");
    }
    // A status is judged by itself.
    let status = r#"{"status":{"n":1.5}}"#.to_owned();
    let error = message(send("PATCH", "/a0/status", merge, status).await.unwrap_err());
    assert_eq!(
        error,
        "Thing.stable.example.com \"a0\" is invalid: [status.n: Invalid value: \"number\": n in body must be of type integer: \
         \"number\", status: Invalid value: \"\": Checked value must be of type integer (default format) in n]"
    );
    // What declares nothing is owned although it is dropped.
    let applied = send(
        "PATCH",
        "/c?fieldManager=a",
        "application/apply-patch+yaml",
        body("c", r#"{"none":{"a":{"b":1}}}"#),
    );
    let applied: Value = serde_json::from_str(&applied.await.unwrap()).unwrap();
    assert_eq!(applied["spec"], json!({"d": "z", "none": {}}));
    assert_eq!(
        applied["metadata"]["managedFields"][0]["fieldsV1"],
        json!({"f:spec": {"f:none": {"f:a": {".": {}, "f:b": {}}}}})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_tell_what_their_types_say() {
    let cluster = cluster().await;
    let kind = of_kind("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy");
    let policies: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &kind);
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [{"operations": ["CREATE"],
        "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]},
        "validations": [{"expression": "object.spec.replicas > 1"}, {"expression": "object.replicas > 1",
            "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"}]}});
    policies.create(&PostParams::default(), &object(policy)).await.unwrap();
    let status = async {
        loop {
            let policy = policies.get("p").await.unwrap();
            if let Some(warnings) = policy.data["status"]["typeChecking"]["expressionWarnings"].as_array() {
                return warnings.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let warnings = tokio::time::timeout(Duration::from_secs(10), status).await.unwrap();
    assert_eq!(
        Value::from(warnings),
        json!([
            {"fieldRef": "spec.validations[1].expression",
             "warning": "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n"},
            {"fieldRef": "spec.validations[1].messageExpression",
             "warning": "apps/v1, Kind=Deployment: compilation failed: ERROR: <input>:1:28: found no matching overload for '_+_' applied to '(string, int)'\n | 'wants replicas > 1, got ' + object.spec.replicas\n | ...........................^\n"}
        ])
    );
}

/// A definition goes once its objects are gone, and what it served with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_definitions_go() {
    let cluster = cluster().await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let versions = json!([{"name": "v1", "served": true, "storage": true, "schema": schema}]);
    define(&cluster, versions, json!({"strategy": "None"})).await;
    let things = things(&cluster, "v1");
    things.create(&PostParams::default(), &thing("v1", "a", json!({}))).await.unwrap();
    let definitions: Api<DynamicObject> = Api::all_with(
        cluster.client.clone(),
        &of_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    );
    let name = format!("things.{GROUP}");
    definitions.delete(&name, &Default::default()).await.unwrap();
    let gone = async {
        while definitions.get_opt(&name).await.unwrap().is_some()
            || things.list(&ListParams::default()).await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("the definition goes");
}

#[tokio::test]
async fn deprecated_versions_say_so() {
    let cluster = cluster().await;
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let version =
        |name: &str| json!({"name": name, "served": true, "storage": name == "v1", "schema": schema});
    let mut versions = json!([version("v1"), version("v1beta2"), version("v1beta1"), version("v2")]);
    versions[1]["deprecated"] = true.into();
    versions[2]["deprecated"] = true.into();
    versions[2]["deprecationWarning"] = "gone soon".into();
    define(&cluster, versions, Value::Null).await;
    for (version, want) in [
        ("v1", None),
        (
            "v1beta2",
            Some("299 - \"stable.example.com/v1beta2 Thing is deprecated; use stable.example.com/v2 Thing\""),
        ),
        ("v1beta1", Some("299 - \"gone soon\"")),
    ] {
        let path = format!("/apis/{GROUP}/{version}/namespaces/default/things");
        let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
        let answer = cluster.client.send(request).await.unwrap();
        assert_eq!(answer.headers().get("warning").map(|w| w.to_str().unwrap()), want, "{version}");
    }
}
