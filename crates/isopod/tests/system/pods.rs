//! What the kubelet does with pods, seen from inside them and from the API.

use std::time::{Duration, Instant};

use crate::cluster::{BUSYBOX, Cluster, until};

pub fn get_their_volumes_and_environment(cluster: &Cluster) {
    let n = cluster.namespace("volumes");
    n.kubectl("create configmap settings --from-literal=mode=fast --from-literal=other=x");
    n.kubectl("create secret generic secret --from-literal=password=hunter2");
    n.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: reader
  labels: {{app: reader}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{fsGroup: 2000}}
  containers:
    - name: reader
      image: {BUSYBOX}
      command: [sh, -c, 'echo written > /shared/file; sleep 3600']
      resources: {{requests: {{cpu: 10m, memory: 16Mi}}, limits: {{memory: 64Mi}}}}
      env:
        - {{name: PLAIN, value: 'a $(MODE)'}}
        - {{name: MODE, valueFrom: {{configMapKeyRef: {{name: settings, key: mode}}}}}}
        - {{name: AFTER, value: 'after $(MODE)'}}
        - {{name: PASSWORD, valueFrom: {{secretKeyRef: {{name: secret, key: password}}}}}}
        - {{name: POD_IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
        - {{name: LIMIT, valueFrom: {{resourceFieldRef: {{resource: limits.memory}}}}}}
      envFrom: [{{prefix: S_, configMapRef: {{name: settings}}}}]
      volumeMounts:
        - {{name: shared, mountPath: /shared}}
        - {{name: settings, mountPath: /settings}}
        - {{name: secret, mountPath: /secret, readOnly: true}}
        - {{name: about, mountPath: /about}}
        - {{name: all, mountPath: /all}}
        - {{name: host, mountPath: /host}}
        - {{name: settings, mountPath: /one, subPath: mode}}
    - {{name: second, image: {BUSYBOX}, command: [sleep, '3600'], volumeMounts: [{{name: shared, mountPath: /shared}}]}}
  volumes:
    - {{name: shared, emptyDir: {{}}}}
    - {{name: settings, configMap: {{name: settings}}}}
    - {{name: secret, secret: {{secretName: secret, defaultMode: 0400}}}}
    - {{name: about, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}
    - name: all
      projected:
        sources:
          - {{configMap: {{name: settings, items: [{{key: mode, path: deep/mode}}]}}}}
          - {{serviceAccountToken: {{path: token, audience: someone}}}}
    - {{name: host, hostPath: {{path: {}, type: DirectoryOrCreate}}}}
",
        cluster.directory.join("host").display()
    ));
    n.wait("condition=Ready", "pod/reader");
    for (script, want) in [
        ("echo $PLAIN", "a $(MODE)"),
        ("echo $AFTER", "after fast"),
        ("echo $PASSWORD $S_mode $S_other", "hunter2 fast x"),
        ("test \"$POD_IP\" = $(hostname -i) && echo same", "same"),
        ("echo $LIMIT", "67108864"),
        ("cat /settings/mode /one /all/deep/mode", "fastfastfast"),
        ("stat -L -c %a /secret/password; cat /secret/password", "440\nhunter2"),
        ("cat /about/labels", "app=\"reader\""),
        ("cut -d. -f2 /all/token | tr '_-' '/+' | base64 -d 2>/dev/null | grep -o someone", "someone"),
        ("stat -c %g /shared", "2000"),
        ("cat /var/run/secrets/kubernetes.io/serviceaccount/namespace", "volumes"),
        ("echo here > /host/file; cat /etc/resolv.conf | grep -c svc.cluster.local", "1"),
        ("echo $KUBERNETES_SERVICE_HOST", "10.96.0.1"),
    ] {
        assert_eq!(n.exec("reader", script).trim(), want, "{script}");
    }
    assert_eq!(n.kubectl("exec reader -c second -- cat /shared/file"), "written\n");
    assert_eq!(
        std::fs::read_to_string(cluster.directory.join("host/file")).expect("the host's file"),
        "here\n"
    );
    n.kubectl("patch configmap settings -p {\"data\":{\"mode\":\"slow\"}}");
    until("the changed file", || (n.exec("reader", "cat /settings/mode") == "slow").then_some(()));
    assert_eq!(n.exec("reader", "cat /one"), "fast", "a path below a volume stays as it was");
}

pub fn run_init_containers_and_restart(cluster: &Cluster) {
    let n = cluster.namespace("restarts");
    n.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: steps}}
spec:
  restartPolicy: Never
  initContainers:
    - {{name: one, image: {BUSYBOX}, command: [sh, -c, 'echo one >> /w/f'], volumeMounts: [{{name: w, mountPath: /w}}]}}
    - name: beside
      image: {BUSYBOX}
      restartPolicy: Always
      command: [sh, -c, 'echo beside >> /w/f; trap \"exit 0\" TERM; while true; do sleep 0.1; done']
      volumeMounts: [{{name: w, mountPath: /w}}]
      startupProbe: {{exec: {{command: [grep, beside, /w/f]}}, periodSeconds: 1}}
    - {{name: two, image: {BUSYBOX}, command: [sh, -c, 'echo two >> /w/f'], volumeMounts: [{{name: w, mountPath: /w}}]}}
  containers:
    - {{name: main, image: {BUSYBOX}, command: [cat, /w/f], volumeMounts: [{{name: w, mountPath: /w}}]}}
  volumes: [{{name: w, emptyDir: {{}}}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: fails}}
spec:
  containers:
    - {{name: main, image: {BUSYBOX}, command: [sh, -c, 'echo said; echo why > /dev/termination-log; exit 3']}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: job}}
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{{name: main, image: {BUSYBOX}, command: ['true']}}]
"
    ));
    n.wait("jsonpath={.status.phase}=Succeeded", "pod/steps");
    assert_eq!(n.kubectl("logs steps -c main"), "one\nbeside\ntwo\n");
    until("a restart", || {
        let count: u32 = n.field("pod/fails", "{.status.containerStatuses[0].restartCount}").parse().ok()?;
        (count >= 2).then_some(())
    });
    let last = n.field("pod/fails", "{.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.message}");
    assert_eq!(last.trim(), "3 why");
    until("back-off", || {
        let why = n.field("pod/fails", "{.status.containerStatuses[0].state.waiting.reason}");
        (why == "CrashLoopBackOff").then_some(())
    });
    assert_eq!(n.kubectl("logs fails --previous"), "said\n");
    assert!(n.kubectl("get events").contains("Back-off restarting failed container main"));
    n.wait("condition=Complete", "job/job");
    assert_eq!(n.field("job/job", "{.status.succeeded}"), "3");
}

pub fn are_probed(cluster: &Cluster) {
    let n = cluster.namespace("probes");
    n.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: probed, labels: {{app: probed}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {BUSYBOX}
      command: [sh, -c, 'touch /ready; sleep 3600']
      startupProbe: {{exec: {{command: [test, -e, /ready]}}, periodSeconds: 1}}
      readinessProbe: {{exec: {{command: [test, -e, /ready]}}, periodSeconds: 1, failureThreshold: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: probed}}
spec: {{selector: {{app: probed}}, ports: [{{port: 80}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: dies}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: isopod.local/examples/nginx:1
      livenessProbe: {{httpGet: {{path: /no-such-page, port: 80}}, periodSeconds: 1, failureThreshold: 2}}
"
    ));
    n.wait("condition=Ready", "pod/probed");
    let ready = || n.field("endpointslices", "{.items[0].endpoints[0].conditions.ready}");
    until("the endpoint", || (ready() == "true").then_some(()));
    n.exec("probed", "rm /ready");
    n.wait("condition=Ready=false", "pod/probed");
    until("the endpoint's end", || (ready() == "false").then_some(()));
    n.exec("probed", "touch /ready");
    n.wait("condition=Ready", "pod/probed");
    assert_eq!(n.field("pod/probed", "{.status.containerStatuses[0].restartCount}"), "0");
    until("a restart by the liveness probe", || {
        let count: u32 = n.field("pod/dies", "{.status.containerStatuses[0].restartCount}").parse().ok()?;
        (count >= 1).then_some(())
    });
    let events = n.kubectl("get events");
    assert!(events.contains("Liveness probe failed: HTTP probe failed with statuscode: 404"), "{events}");
}

pub fn end_gracefully(cluster: &Cluster) {
    let n = cluster.namespace("graceful");
    let host = cluster.directory.join("graceful");
    n.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: ends}}
spec:
  terminationGracePeriodSeconds: 30
  containers:
    - name: main
      image: {BUSYBOX}
      command: [sh, -c, 'trap \"echo term >> /h/f; exit 0\" TERM; while true; do sleep 0.1; done']
      lifecycle:
        postStart: {{exec: {{command: [sh, -c, 'echo post >> /h/f']}}}}
        preStop: {{exec: {{command: [sh, -c, 'echo pre >> /h/f']}}}}
      volumeMounts: [{{name: h, mountPath: /h}}]
  volumes: [{{name: h, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]
",
        host.display()
    ));
    n.wait("condition=Ready", "pod/ends");
    let begun = Instant::now();
    n.kubectl("delete pod ends --timeout=60s");
    assert!(begun.elapsed() < Duration::from_secs(25), "it ended when told, not when killed");
    assert_eq!(std::fs::read_to_string(host.join("f")).expect("the traces"), "post\npre\nterm\n");
}

pub fn static_pods_have_mirrors(cluster: &Cluster) {
    let file = cluster.directory.join("manifests/fixed.yaml");
    std::fs::write(
        &file,
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: fixed, namespace: default}}, spec: {{terminationGracePeriodSeconds: 1, \
             containers: [{{name: main, image: '{BUSYBOX}', command: [sleep, '3600']}}]}}}}"
        ),
    )
    .expect("write the manifest");
    until("the mirror pod", || {
        crate::machine::try_output(&mut cluster.kubectl_command(&["get", "pod", "fixed-node-1"])).ok()
    });
    cluster.kubectl("wait --timeout=120s --for=condition=Ready pod/fixed-node-1");
    let uid =
        || cluster.kubectl("get pod fixed-node-1 -o jsonpath={.status.containerStatuses[0].containerID}");
    let before = uid();
    cluster.kubectl("delete pod fixed-node-1 --wait=false");
    until("another mirror pod", || {
        let pod = crate::machine::try_output(&mut cluster.kubectl_command(&[
            "get",
            "pod",
            "fixed-node-1",
            "-o",
            "jsonpath={.metadata.deletionTimestamp}/{.status.containerStatuses[0].containerID}",
        ]));
        (pod.ok()? == format!("/{before}")).then_some(())
    });
    std::fs::remove_file(&file).expect("remove the manifest");
    until("the end of the static pod", || {
        crate::machine::try_output(&mut cluster.kubectl_command(&["get", "pod", "fixed-node-1"])).err()
    });
}

pub fn are_limited_by_cgroups(cluster: &Cluster) {
    let n = cluster.namespace("limits");
    n.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: hungry}}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: {BUSYBOX}
      command: [sh, -c, 'tail /dev/zero']
      resources: {{limits: {{memory: 32Mi, cpu: 500m}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: modest}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {BUSYBOX}
      command: [sleep, '3600']
      resources: {{requests: {{memory: 32Mi, cpu: 250m}}, limits: {{memory: 64Mi, cpu: 500m}}}}
"
    ));
    n.wait("jsonpath={.status.phase}=Failed", "pod/hungry");
    assert_eq!(n.field("pod/hungry", "{.status.containerStatuses[0].state.terminated.reason}"), "OOMKilled");
    assert_eq!(n.field("pod/hungry", "{.status.qosClass}"), "Guaranteed");
    n.wait("condition=Ready", "pod/modest");
    assert_eq!(n.field("pod/modest", "{.status.qosClass}"), "Burstable");
    let uid = n.field("pod/modest", "{.metadata.uid}");
    let groups: Vec<_> = cluster
        .cgroups()
        .into_iter()
        .map(|g| g.join("kubepods/burstable").join(format!("pod{uid}")))
        .collect();
    let limit = groups
        .iter()
        .find_map(|g| {
            std::fs::read_to_string(g.join("memory.limit_in_bytes"))
                .or_else(|_| std::fs::read_to_string(g.join("memory.max")))
                .ok()
        })
        .expect("the pod's memory limit");
    assert_eq!(limit.trim(), (64 << 20).to_string());
}

pub fn unschedulable_pods_say_why(cluster: &Cluster) {
    let n = cluster.namespace("unschedulable");
    n.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: huge}}
spec: {{containers: [{{name: c, image: {BUSYBOX}, resources: {{requests: {{cpu: '1000'}}}}}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: elsewhere}}
spec: {{nodeSelector: {{disk: ssd}}, terminationGracePeriodSeconds: 1, containers: [{{name: c, image: {BUSYBOX}, command: [sleep, '3600']}}]}}
"
    ));
    for (pod, why) in [
        ("huge", "0/1 nodes are available: 1 Insufficient cpu."),
        ("elsewhere", "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
    ] {
        until("the condition", || {
            let message =
                n.field(&format!("pod/{pod}"), "{.status.conditions[?(@.type==\"PodScheduled\")].message}");
            message.starts_with(why).then_some(())
        });
    }
    assert!(n.kubectl("get events").contains("FailedScheduling"));
    cluster.kubectl("label node node-1 disk=ssd");
    n.wait("condition=Ready", "pod/elsewhere");
    cluster.kubectl("label node node-1 disk-");
}
