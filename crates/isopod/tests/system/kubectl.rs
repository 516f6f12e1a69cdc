//! Stock kubectl, the way its users use it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use base64::Engine as _;

use crate::cluster::{BUSYBOX, Cluster, Namespace, until};
use crate::machine::output;

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: isopod.local/examples/nginx:1
          ports: [{containerPort: 80, name: http}]
          readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
";

/// A command whose lines are read while it runs; killed when dropped.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn new(command: &mut Command) -> Running {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start it");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Running { child, lines }
    }

    /// Reads up to a line with `text`.
    fn until_line(&mut self, text: &str) -> String {
        for line in self.lines.by_ref() {
            let line = line.expect("read a line");
            if line.contains(text) {
                return line;
            }
        }
        panic!("it ended without {text:?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Asks it to end, since what it started must end with it.
fn end(child: &mut Child) {
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    );
    let _ = child.wait();
}

fn web<'a>(cluster: &'a Cluster, name: &'static str) -> Namespace<'a> {
    let namespace = cluster.namespace(name);
    namespace.apply(WEB);
    namespace.kubectl("rollout status --timeout=120s deployment/web");
    namespace
}

pub fn shows(cluster: &Cluster) {
    let n = web(cluster, "shows");
    for (line, words) in [
        ("get pods", &["NAME", "READY", "STATUS", "RESTARTS", "AGE", "1/1", "Running"][..]),
        ("get pods -o wide", &["IP", "NODE", "NOMINATED NODE", "READINESS GATES", "node-1", "10.244."]),
        ("get deployments", &["READY", "UP-TO-DATE", "AVAILABLE", "1/1"]),
        (
            "get deployments,replicasets -o wide",
            &["CONTAINERS", "IMAGES", "SELECTOR", "isopod.local/examples/nginx:1"],
        ),
        (
            "get nodes -o wide",
            &["INTERNAL-IP", "OS-IMAGE", "KERNEL-VERSION", "CONTAINER-RUNTIME", "containerd://"],
        ),
        ("get services -A", &["kubernetes", "ClusterIP", "10.96.0.1", "443/TCP", "kube-dns"]),
        ("get deployment web -o yaml", &["kind: Deployment", "resourceVersion:", "availableReplicas: 1"]),
        ("get pods -o name", &["pod/web-"]),
        ("get all", &["pod/web-", "deployment.apps/web", "replicaset.apps/web-"]),
        ("describe deployment web", &["Replicas:", "1 available", "ScalingReplicaSet", "NewReplicaSet:"]),
        ("describe pods", &["Status:", "Running", "Conditions:", "Events:", "Started"]),
        ("describe node node-1", &["Allocatable:", "Non-terminated Pods:", "Lease:", "KubeletReady"]),
        ("explain deployment.spec.strategy", &["KIND:", "rollingUpdate", "RollingUpdateDeployment"]),
        ("explain pods.spec.containers --recursive", &["imagePullPolicy", "livenessProbe"]),
        ("api-resources", &["SHORTNAMES", "deployments", "apps/v1", "customresourcedefinitions"]),
        (
            "api-resources --namespaced=false --verbs=list -o name",
            &["nodes", "namespaces", "clusterroles.rbac.authorization.k8s.io"],
        ),
        ("api-versions", &["apps/v1", "batch/v1", "v1"]),
        ("events", &["REASON", "ScalingReplicaSet", "Started"]),
        ("get events", &["Scheduled", "Created"]),
        ("cluster-info", &["Kubernetes control plane", "is running at"]),
        ("version", &["Server Version: v1.36"]),
        ("auth can-i create pods", &["yes"]),
        ("get --raw /livez", &["ok"]),
        ("get pods --show-labels -l app=web", &["pod-template-hash="]),
        ("get pods --field-selector=status.phase=Running", &["web-"]),
    ] {
        let text = n.kubectl(line);
        for word in words {
            assert!(text.contains(word), "kubectl {line} does not say {word:?}:\n{text}");
        }
    }
    for line in ["top nodes", "top pods --containers"] {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let figures = until(line, || crate::machine::try_output(&mut n.kubectl_command(&arguments)).ok());
        assert!(figures.contains("CPU(cores)") && figures.contains("Mi"), "{figures}");
    }
    let mut watch = Running::new(&mut n.kubectl_command(&["get", "pods", "-w", "--no-headers"]));
    watch.until_line("Running");
    n.kubectl(&format!("run watched --image={BUSYBOX} --restart=Never -- true"));
    watch.until_line("watched");
    watch.until_line("Completed");
    let missing = cluster.kubectl_fails("-n shows get pod no-such");
    assert!(missing.contains("Error from server (NotFound): pods \"no-such\" not found"), "{missing}");
}

pub fn changes(cluster: &Cluster) {
    let n = web(cluster, "changes");
    n.kubectl("label deployment web tier=front");
    n.kubectl("annotate deployment web note=kept");
    assert_eq!(
        n.field("deployment/web", "{.metadata.labels.tier}/{.metadata.annotations.note}"),
        "front/kept"
    );
    let changed = WEB.replace("replicas: 1", "replicas: 2");
    let mut diff = n.kubectl_command(&["diff", "-f", "-"]);
    let file = cluster.directory.join("web.yaml");
    std::fs::write(&file, &changed).expect("write the manifest");
    let difference =
        diff.stdin(std::fs::File::open(&file).expect("open it")).output().expect("run kubectl diff");
    assert_eq!(difference.status.code(), Some(1), "kubectl diff says that there are differences");
    let difference = String::from_utf8_lossy(&difference.stdout).into_owned();
    assert!(difference.contains("-  replicas: 1") && difference.contains("+  replicas: 2"), "{difference}");
    assert!(n.apply(&changed).contains("configured"));
    assert!(n.apply(&changed).contains("unchanged"));
    assert_eq!(n.field("deployment/web", "{.metadata.labels.tier}"), "front", "apply leaves what others set");
    let edited =
        output(n.kubectl_command(&["edit", "deployment", "web"]).env(
            "KUBE_EDITOR",
            "sed -i s/terminationGracePeriodSeconds:.*/terminationGracePeriodSeconds:\\ 2/",
        ));
    assert!(edited.contains("edited"), "{edited}");
    assert_eq!(n.field("deployment/web", "{.spec.template.spec.terminationGracePeriodSeconds}"), "2");
    output(&mut n.kubectl_command(&[
        "patch",
        "deployment",
        "web",
        "-p",
        r#"{"spec":{"minReadySeconds":1}}"#,
    ]));
    n.kubectl("set image deployment/web web=isopod.local/examples/nginx:1");
    n.kubectl("set env deployment/web A=b");
    n.kubectl("scale deployment web --replicas=3");
    n.kubectl("rollout status --timeout=120s deployment/web");
    assert_eq!(n.field("deployment/web", "{.status.readyReplicas}"), "3");
    n.kubectl("expose deployment web --port=80 --name=exposed");
    let address = n.field("service/exposed", "{.spec.clusterIP}");
    until("traffic through the exposed service", || {
        let answer = crate::machine::try_output(cluster.machine.command("curl").args([
            "-sS",
            "-m",
            "5",
            &format!("http://{address}/"),
        ]));
        answer.ok()?.contains("Welcome").then_some(())
    });
    let served = cluster.kubectl_with(
        "-n changes apply --server-side -f -",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n",
    );
    assert!(served.contains("serverside-applied"), "{served}");
    let refused = n
        .kubectl_command(&["create", "deployment", "Bad_Name", "--image=x"])
        .output()
        .expect("run kubectl create");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("a lowercase RFC 1123 subdomain"));
    n.kubectl("delete deployment web --timeout=60s");
    until("the pods' end", || n.kubectl("get pods -o name").is_empty().then_some(()));
}

/// A secret for an account's token is filled, the token is taken, and the secret goes with the account.
pub fn account_tokens_in_secrets(cluster: &Cluster) {
    let n = cluster.namespace("accounts");
    n.kubectl("create serviceaccount robot");
    n.apply(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\n\
         metadata: {name: key, annotations: {kubernetes.io/service-account.name: robot}}\n",
    );
    let token =
        until("the token", || Some(n.field("secret/key", "{.data.token}")).filter(|token| !token.is_empty()));
    let token = base64::engine::general_purpose::STANDARD.decode(token).expect("base64");
    let token = String::from_utf8(token).expect("a token");
    assert!(!n.field("secret/key", "{.data.ca\\.crt}").is_empty());
    // Client certificates go before tokens, so this caller shows none.
    let config = cluster.directory.join("token.yaml");
    let server = n.kubectl("config view -o jsonpath={.clusters[0].cluster.server}");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: '{server}', insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: u, user: {{token: '{token}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    std::fs::write(&config, text).expect("write the kubeconfig");
    let config = config.to_str().expect("its path");
    let who = output(&mut n.kubectl_command(&["--kubeconfig", config, "auth", "whoami"]));
    assert!(who.contains("system:serviceaccount:accounts:robot"), "{who}");
    n.kubectl("delete serviceaccount robot");
    n.kubectl("wait --for=delete --timeout=60s secret/key");
}

pub fn rolls_out_and_back(cluster: &Cluster) {
    let n = web(cluster, "rollout");
    n.kubectl("set env deployment/web GENERATION=2");
    n.kubectl("rollout status --timeout=120s deployment/web");
    let history = n.kubectl("rollout history deployment/web");
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    n.kubectl("rollout undo deployment/web");
    n.kubectl("rollout status --timeout=120s deployment/web");
    assert_eq!(n.field("deployment/web", "{.spec.template.spec.containers[0].env}"), "");
    n.kubectl("rollout pause deployment/web");
    n.kubectl("rollout resume deployment/web");
    n.kubectl("rollout restart deployment/web");
    n.kubectl("rollout status --timeout=120s deployment/web");
    let sets = n.kubectl("get replicasets --no-headers");
    assert_eq!(sets.lines().count(), 3, "{sets}");
}

pub fn reaches_into_containers(cluster: &Cluster) {
    let n = cluster.namespace("into");
    n.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: talker}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {BUSYBOX}
      stdin: true
      command: [sh, -c, 'echo begun; i=0; while read line; do echo heard $line; done; sleep 3600']
    - {{name: other, image: {BUSYBOX}, command: [sh, -c, 'echo from other; sleep 3600']}}
"
    ));
    n.wait("condition=Ready", "pod/talker");
    assert_eq!(n.kubectl("logs talker -c other"), "from other\n");
    assert!(n.kubectl("logs talker --all-containers --prefix").contains("[pod/talker/other] from other"));
    assert!(n.kubectl("logs talker -c main --timestamps --since=1h --tail=1").contains("Z begun"));
    let mut follow = Running::new(&mut n.kubectl_command(&["logs", "-f", "talker", "-c", "main"]));
    follow.until_line("begun");
    let mut attached = n
        .kubectl_command(&["attach", "-i", "talker", "-c", "main"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("attach");
    attached.stdin.take().expect("its input").write_all(b"to you\n").expect("write to it");
    follow.until_line("heard to you");
    // It stays attached until the container ends.
    end(&mut attached);
    assert_eq!(n.exec("talker", "echo $((6 * 7))"), "42\n");
    let echoed = cluster.kubectl_with("-n into exec -i talker -c main -- cat", "through and through");
    assert_eq!(echoed, "through and through");
    let failed = n
        .kubectl_command(&["exec", "talker", "-c", "main", "--", "sh", "-c", "exit 7"])
        .output()
        .expect("exec");
    assert_eq!(failed.status.code(), Some(7), "{}", String::from_utf8_lossy(&failed.stderr));
    // script gives kubectl a terminal.
    let kubeconfig = cluster.kubeconfig();
    let line = format!(
        "kubectl --kubeconfig {} -n into exec -it talker -c main -- sh -c 'test -t 0 && echo a terminal; stty size'",
        kubeconfig.display()
    );
    let terminal =
        output(cluster.machine.command("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()));
    assert!(terminal.contains("a terminal"), "{terminal}");
}

pub fn copies_and_forwards(cluster: &Cluster) {
    let n = web(cluster, "forward");
    let pod = n.field("pods", "{.items[0].metadata.name}");
    let (there, back) = (cluster.directory.join("there"), cluster.directory.join("back"));
    let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
    std::fs::write(&there, &text).expect("write a file");
    output(n.kubectl_command(&["cp"]).arg(&there).arg(format!("{pod}:/tmp/copied")));
    output(n.kubectl_command(&["cp"]).arg(format!("{pod}:/tmp/copied")).arg(&back));
    assert!(std::fs::read_to_string(&back).expect("the copy") == text, "the copy is the same");
    n.kubectl("expose deployment web --port=8080 --target-port=80");
    for (target, port) in
        [(format!("pod/{pod}"), "80"), ("service/web".into(), "8080"), ("deployment/web".into(), "80")]
    {
        let mut forward =
            Running::new(&mut n.kubectl_command(&["port-forward", &target, &format!(":{port}")]));
        let line = forward.until_line("Forwarding from 127.0.0.1:");
        let local: String = line
            .trim_start_matches("Forwarding from 127.0.0.1:")
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        for _ in 0..3 {
            let page = output(cluster.machine.command("curl").args([
                "-sS",
                "-m",
                "10",
                &format!("http://127.0.0.1:{local}/"),
            ]));
            assert!(page.contains("Welcome to nginx"), "{target}: {page}");
        }
    }
    let proxied = cluster.kubectl("get --raw /api/v1/namespaces/forward/services/web:8080/proxy/");
    assert!(proxied.contains("Welcome to nginx"), "{proxied}");
}
