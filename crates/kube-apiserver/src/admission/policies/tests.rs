use super::*;
use crate::admission::testing::{Request, context};
use crate::security::testing::FakeObjects;
use serde_json::json;

fn put_policy(objects: &FakeObjects, kind: &str, spec: Value, binding: Value) {
    let rules = json!([{"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]);
    let mut spec = spec;
    spec["matchConstraints"] = json!({"resourceRules": rules});
    let mut binding = binding;
    binding["policyName"] = json!("p");
    objects.put(GROUP, &format!("{kind}admissionpolicies"), json!({"metadata": {"name": "p"}, "spec": spec}));
    objects.put(
        GROUP,
        &format!("{kind}admissionpolicybindings"),
        json!({"metadata": {"name": "b"}, "spec": binding}),
    );
}

fn deployment(replicas: i64) -> Request {
    let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "a", "name": "d"},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    Request::create("apps", "deployments", object)
}

#[test]
fn validates() {
    let objects = Arc::new(FakeObjects::default());
    objects.put("", "namespaces", json!({"metadata": {"name": "a"}}));
    put_policy(
        &objects,
        "validating",
        json!({
            "variables": [{"name": "odd", "expression": "variables_unused == 1"},
                          {"name": "replicas", "expression": "object.spec.replicas"},
                          {"name": "isOdd", "expression": "variables.replicas % 2 == 1"}],
            "validations": [
                {"expression": "variables.replicas > 1", "messageExpression": "'wants replicas > 1, got ' + string(variables.replicas)"},
                {"expression": "variables.isOdd", "message": "must be odd", "reason": "Forbidden"},
                {"expression": "namespaceObject.metadata.name == 'a'"}]}),
        json!({"validationActions": ["Deny", "Warn"]}),
    );
    let context = context(&objects);
    let policies = Policies::default();
    for (replicas, want) in
        [(3, None), (1, Some((422, "wants replicas > 1, got 1"))), (4, Some((403, "must be odd")))]
    {
        let mut request = deployment(replicas);
        let got = request.with(|r| policies.validate(&context, r));
        match want {
            None => got.unwrap(),
            Some((code, text)) => {
                let status = got.unwrap_err();
                let full = format!("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {text}");
                assert!(status.message.ends_with(&full), "{status}");
                assert_eq!(status.code, code);
                assert!(request.warnings[0].contains(text));
            }
        }
    }
}

#[test]
fn mutates() {
    let objects = Arc::new(FakeObjects::default());
    put_policy(
        &objects,
        "mutating",
        json!({"mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{spec: Object.spec{replicas: 1337}}"}},
            {"patchType": "ApplyConfiguration", "applyConfiguration": {
                "expression": "Object{metadata: Object.metadata{annotations: {\"mutated-by\": \"admission-policy\"}}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {
                "expression": "[JSONPatch{op: 'add', path: '/spec/paused', value: object.spec.replicas == 1337}]"}}]}),
        json!({}),
    );
    let context = context(&objects);
    let mut request = deployment(1);
    assert!(request.with(|r| Policies::default().mutate(&context, r, false)).unwrap());
    let object = &request.object;
    assert_eq!((&object["spec"]["replicas"], &object["spec"]["paused"]), (&json!(1337), &json!(true)));
    assert_eq!(object["metadata"]["annotations"]["mutated-by"], "admission-policy");
    assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["image"], "i");
}

#[test]
fn parameters() {
    let objects = Arc::new(FakeObjects::default());
    let bind = json!({"validationActions": ["Deny"], "paramRef": {"name": "limit", "parameterNotFoundAction": "Deny"}});
    put_policy(
        &objects,
        "validating",
        json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
               "validations": [{"expression": "object.spec.replicas <= int(params.data.max)"}]}),
        bind,
    );
    let context = context(&objects);
    let policies = Policies::default();
    let run =
        |replicas: i64| deployment(replicas).with(|r| policies.validate(&context, r)).map_err(|s| s.message);
    assert!(run(1).unwrap_err().contains("no params found"));
    objects.put(
        "",
        "configmaps",
        json!({"metadata": {"namespace": "a", "name": "limit"}, "data": {"max": "5"}}),
    );
    assert_eq!(run(5), Ok(()));
    assert!(run(6).unwrap_err().contains("failed expression: object.spec.replicas <= int(params.data.max)"));
}
