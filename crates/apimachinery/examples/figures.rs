//! Prints what decoding, encoding and field tracking cost on a pod of about 3.5 KB; with the argument `openapi`,
//! writes the OpenAPI documents to standard output instead. Run with an optimizing profile.

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use apimachinery::codec::{self, MediaType, Strictness, protobuf};
use apimachinery::{managed_fields, openapi, schema};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn pod() -> Value {
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.com/team/{name}:1.2.3"), "imagePullPolicy": "IfNotPresent",
            "args": ["--listen=0.0.0.0:8080", "--log-level=info", "--config=/etc/config/config.yaml"],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "database", "key": "password"}}},
                {"name": "REGION", "value": "eu-west-1"}],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "initialDelaySeconds": 5,
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/config"},
                {"name": "kube-api-access-abcde", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "securityContext": {"runAsNonRoot": true, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
        })
    };
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "web-6f5c7d8b9-x2x4q", "generateName": "web-6f5c7d8b9-", "namespace": "default",
            "uid": "3d6c0e6e-1f5e-4c9d-9a58-5f1e3d3c2b1a", "creationTimestamp": "2024-01-01T00:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "6f5c7d8b9"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6f5c7d8b9",
                "uid": "6a1c2b8e-1f5e-4c9d-9a58-5f1e3d3c2b1a", "controller": true, "blockOwnerDeletion": true}]},
        "spec": {"volumes": [{"name": "config", "configMap": {"name": "web", "defaultMode": 420}}],
            "containers": [container("web")], "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst", "serviceAccountName": "web", "serviceAccount": "web", "nodeName": "node-17",
            "securityContext": {"fsGroup": 1000}, "schedulerName": "default-scheduler",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority"},
        "status": {"phase": "Running", "conditions": [
                {"type": "Initialized", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2024-01-01T00:00:00Z"},
                {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2024-01-01T00:00:02Z"},
                {"type": "ContainersReady", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2024-01-01T00:00:02Z"},
                {"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2024-01-01T00:00:00Z"}],
            "hostIP": "10.0.0.17", "podIP": "10.244.3.9", "podIPs": [{"ip": "10.244.3.9"}], "startTime": "2024-01-01T00:00:00Z",
            "containerStatuses": [{"name": "web", "state": {"running": {"startedAt": "2024-01-01T00:00:01Z"}}, "lastState": {},
                "ready": true, "restartCount": 0, "image": "registry.example.com/team/web:1.2.3",
                "imageID": "registry.example.com/team/web@sha256:0123456789abcdef", "containerID": "containerd://0123456789abcdef",
                "started": true}], "qosClass": "Burstable"}
    })
}

/// The best of many short rounds: other work on the machine only adds.
fn measure(what: &str, mut run: impl FnMut()) {
    let best = (0..200)
        .map(|_| {
            let start = Instant::now();
            (0..20).for_each(|_| run());
            start.elapsed().as_secs_f64() * 1e6 / 20.0
        })
        .fold(f64::MAX, f64::min);
    println!("{what:<44} {best:>8.1} µs");
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some("openapi") {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(&openapi::v2(&[], &|_, _| true));
        return;
    }
    let schema = schema::for_kind("", "v1", "Pod").expect("pods are built in");
    let pod = codec::normalize(&pod(), schema, Strictness::Strict).expect("a sound pod").value;
    let text = codec::encode_json(&pod);
    let bytes = protobuf::encode(&pod, schema);
    println!("pod: {} bytes of JSON, {} of protobuf", text.len(), bytes.len());
    measure("decode JSON by schema", || {
        black_box(codec::decode(&text, MediaType::Json, schema, Strictness::Warn).is_ok());
    });
    measure("decode JSON without schema (serde_json)", || {
        black_box(serde_json::from_slice::<Value>(&text).is_ok());
    });
    measure("encode JSON", || {
        black_box(codec::encode_json(&pod));
    });
    measure("decode protobuf", || {
        black_box(protobuf::decode(&bytes, schema).is_ok());
    });
    measure("encode protobuf", || {
        black_box(protobuf::encode(&pod, schema));
    });
    measure("JSON to protobuf, straight", || {
        black_box(protobuf::transcode_json(&text, schema).is_ok());
    });
    measure("clone", || {
        black_box(pod.clone());
    });
    let writer = managed_fields::Writer {
        manager: "kubelet",
        api_version: "v1",
        subresource: "status",
        now: "2024-01-01T00:00:05Z",
        reset_fields: &[&["spec"]],
    };
    let mut live = pod.clone();
    managed_fields::update(None, &mut live, schema, &managed_fields::Writer { subresource: "", ..writer });
    measure("own fields on creation", || {
        let mut new = pod.clone();
        managed_fields::update(None, &mut new, schema, &writer);
        black_box(new);
    });
    measure("own fields on creation, as JSON", || {
        black_box(managed_fields::created(&pod, schema, &writer).is_ok());
    });
    measure("own fields, nothing changed", || {
        let mut new = live.clone();
        managed_fields::update(Some(&live), &mut new, schema, &writer);
        black_box(new);
    });
    measure("own fields, one status field changed", || {
        let mut new = live.clone();
        new["status"]["phase"] = "Failed".into();
        managed_fields::update(Some(&live), &mut new, schema, &writer);
        black_box(new);
    });
    let start = Instant::now();
    let document = openapi::v2(&[], &|_, _| true);
    println!("OpenAPI v2: {} bytes in {:.1} ms", document.len(), start.elapsed().as_secs_f64() * 1e3);
}
