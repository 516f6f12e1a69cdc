use serde_json::{Value, json};

use super::*;
use crate::codec::{Strictness, normalize, read_applied, type_applied};

fn deployment() -> &'static Schema {
    schema::for_kind("apps", "v1", "Deployment").unwrap()
}

fn writer<'a>(manager: &'a str, now: &'a str) -> Writer<'a> {
    Writer { manager, api_version: "apps/v1", subresource: "", now, reset_fields: &[&["status"]] }
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"}, "spec": spec})
}

fn applied(spec: Value) -> Value {
    let text = object(spec).to_string();
    let read = read_applied(text.as_bytes(), Strictness::Strict).unwrap();
    type_applied(&read.value, deployment()).unwrap()
}

fn owned(object: &Value, manager: &str) -> Value {
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|e| e["manager"] == manager)
        .map_or(Value::Null, |e| e["fieldsV1"].clone())
}

fn stored(mut value: Value) -> Value {
    value["metadata"]["uid"] = "u".into();
    value
}

const T1: &str = "2024-01-01T00:00:01Z";
const T2: &str = "2024-01-01T00:00:02Z";

#[test]
fn what_stays_in_a_set_stays_with_its_owner() {
    let mut first = object(json!({"replicas": 1}));
    update(None, &mut first, deployment(), &writer("one", T1));
    // Nobody owns what admission added.
    first["metadata"]["finalizers"] = json!(["a.b/c"]);
    let first = stored(first);
    let mut second = first.clone();
    second["metadata"]["finalizers"] = json!(["x.y/z", "a.b/c"]);
    update(Some(&first), &mut second, deployment(), &writer("two", T2));
    assert_eq!(owned(&second, "two")["f:metadata"]["f:finalizers"], json!({"v:\"x.y/z\"": {}}));
}

#[test]
fn updates_move_ownership() {
    let mut first = normalize(
        &object(json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "1"}]}}})),
        deployment(),
        Strictness::Strict,
    )
    .unwrap()
    .value;
    update(None, &mut first, deployment(), &writer("one", T1));
    let first = stored(first);
    assert_eq!(
        owned(&first, "one")["f:spec"]["f:template"]["f:spec"]["f:containers"],
        json!({"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:image": {}, "f:resources": {}}})
    );
    assert_eq!(owned(&first, "one")["f:metadata"], Value::Null);

    let mut second = first.clone();
    second["spec"]["replicas"] = json!(2);
    update(Some(&first), &mut second, deployment(), &writer("two", T2));
    assert_eq!(owned(&second, "two"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(owned(&second, "one")["f:spec"]["f:replicas"], Value::Null);

    // Writing the same again changes nothing, times included; nor does a client that sends no managed fields.
    for mut same in [second.clone(), {
        let mut v = second.clone();
        take_managed_fields(&mut v);
        v
    }] {
        update(Some(&second), &mut same, deployment(), &writer("three", "2025-01-01T00:00:00Z"));
        assert_eq!(same, second);
    }

    // Removing a field takes it from its owner.
    let mut third = second.clone();
    third["spec"].as_object_mut().unwrap().remove("replicas");
    update(Some(&second), &mut third, deployment(), &writer("one", T2));
    assert_eq!(owned(&third, "two"), Value::Null);

    // An emptied list resets; tracking begins again with the next apply.
    let mut reset = third.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    update(Some(&third), &mut reset, deployment(), &writer("one", T2));
    assert_eq!(reset["metadata"].get("managedFields"), None);
}

#[test]
fn status_is_not_owned_through_the_object() {
    let mut value = object(json!({"replicas": 1}));
    value["status"] = json!({"replicas": 3});
    update(None, &mut value, deployment(), &writer("one", T1));
    assert_eq!(owned(&value, "one"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn applies() {
    let w = writer("a", T1);
    let first = apply(
        None,
        &applied(json!({"replicas": 1, "template": {"metadata": {"labels": {"x": "y"}},
            "spec": {"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80}]},
            {"name": "b", "image": "1"}]}}})),
        deployment(),
        &w,
        false,
    )
    .unwrap();
    assert_eq!(
        owned(&first, "a")["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"],
        json!({".": {}, "f:name": {}, "f:image": {}, "f:ports": {
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}})
    );
    assert_eq!(first["metadata"]["managedFields"][0]["operation"], "Apply");
    let first = stored(first);

    // The same again: nothing changes.
    let config = applied(json!({"replicas": 1, "template": {"metadata": {"labels": {"x": "y"}},
        "spec": {"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "1"}]}}}));
    assert_eq!(apply(Some(&first), &config, deployment(), &writer("a", T2), false).unwrap(), first);

    // What is no longer mentioned goes, be it a field, a list element or a map key.
    let config = applied(json!({"template": {"spec": {"containers": [{"name": "a", "image": "2"}]}}}));
    let second = apply(Some(&first), &config, deployment(), &writer("a", T2), false).unwrap();
    assert_eq!(
        second["spec"]["template"],
        json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "2", "resources": {}}]}})
    );
    assert_eq!(second["spec"].get("replicas"), None);

    // Another manager conflicts, or takes over when forced; sharing the value is fine.
    let config =
        applied(json!({"template": {"spec": {"containers": [{"name": "a", "image": "3"}, {"name": "c"}]}}}));
    let error = apply(Some(&second), &config, deployment(), &writer("b", T2), false).unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"a\": .spec.template.spec.containers[name=\"a\"].image"
    );
    assert_eq!((error.code, error.details.unwrap().causes[0].reason.as_str()), (409, "FieldManagerConflict"));
    let third = apply(Some(&second), &config, deployment(), &writer("b", T2), true).unwrap();
    assert_eq!(
        third["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "3", "resources": {}}, {"name": "c", "resources": {}}])
    );
    assert_eq!(
        owned(&third, "a")["f:spec"]["f:template"]["f:spec"]["f:containers"],
        json!({"k:{\"name\":\"a\"}": {".": {}, "f:name": {}}})
    );

    // A field owned by two stays when one lets go.
    let config = applied(json!({}));
    let fourth = apply(Some(&third), &config, deployment(), &writer("a", T2), false).unwrap();
    assert_eq!(fourth["spec"]["template"]["spec"]["containers"][0]["image"], "3");
    assert_eq!(owned(&fourth, "a"), json!({"f:spec": {}}));
}

#[test]
fn applies_over_updates() {
    let mut live = object(json!({"replicas": 1, "paused": true}));
    update(None, &mut live, deployment(), &writer("kubectl-create", T1));
    let live = stored(live);
    let config = applied(json!({"replicas": 2}));
    let error = apply(Some(&live), &config, deployment(), &writer("a", T2), false).unwrap_err();
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-create\" using apps/v1: .spec.replicas"
    );
    // Objects without managed fields get an owner for what is there.
    let mut untracked = live.clone();
    take_managed_fields(&mut untracked);
    let new = apply(Some(&untracked), &config, deployment(), &writer("a", T2), true).unwrap();
    assert_eq!(owned(&new, "before-first-apply"), json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(owned(&new, "a"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn refuses() {
    let config = json!({"apiVersion": "v1", "kind": "Deployment"});
    assert_eq!(apply(None, &config, deployment(), &writer("a", T1), false).unwrap_err().code, 400);
    let mut config = applied(json!({}));
    config["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    assert_eq!(
        apply(None, &config, deployment(), &writer("a", T1), false).unwrap_err().message,
        "metadata.managedFields must be nil"
    );
    assert_eq!(validate_manager("", true).len(), 1);
}

#[test]
fn caps_updaters() {
    let mut live = stored(object(json!({"replicas": 0})));
    update(None, &mut live, deployment(), &writer("m-00", T1));
    for i in 1..15 {
        let mut new = live.clone();
        new["metadata"]["annotations"][format!("a{i}")] = json!("x");
        let now = format!("2024-01-01T00:01:{i:02}Z");
        update(Some(&live), &mut new, deployment(), &writer(&format!("m-{i:02}"), &now));
        live = new;
    }
    let entries = live["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries.len(), MAX_UPDATE_MANAGERS);
    assert!(entries.iter().any(|e| e["manager"] == "ancient-changes"));
}

#[test]
fn custom_resources() {
    let schema = Schema::custom(&json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-preserve-unknown-fields": true, "properties": {"items": {"type": "array",
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"], "items": {"type": "object",
        "properties": {"id": {"type": "integer"}, "v": {"type": "string"}}}}}}}}));
    let w = Writer { manager: "a", api_version: "g/v1", subresource: "", now: T1, reset_fields: &[] };
    let config = json!({"apiVersion": "g/v1", "kind": "A", "metadata": {"name": "x"},
        "spec": {"items": [{"id": 1, "v": "x"}], "free": {"list": [1], "b": true}}});
    let new = apply(None, &config, &schema, &w, false).unwrap();
    assert_eq!(
        owned(&new, "a"),
        json!({"f:spec": {"f:items": {"k:{\"id\":1}": {".": {}, "f:id": {}, "f:v": {}}},
            "f:free": {".": {}, "f:list": {}, "f:b": {}}}})
    );
}
