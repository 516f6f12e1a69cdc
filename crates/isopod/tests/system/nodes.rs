//! A second machine that joins the cluster: each of a node's components by itself, over HTTPS.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};

use crate::cluster::{Cluster, until};
use crate::machine::{Machine, output, try_output};

const NAME: &str = "node-2";

struct SecondNode<'a> {
    cluster: &'a Cluster,
    machine: Machine,
    directory: PathBuf,
    components: Vec<Child>,
}

impl<'a> SecondNode<'a> {
    fn join(cluster: &'a Cluster) -> SecondNode<'a> {
        let machine = cluster.network.add(2);
        let directory = cluster.directory.join(NAME);
        std::fs::create_dir_all(&directory).expect("make its directory");
        let mut node = SecondNode { cluster, machine, directory, components: Vec::new() };
        let network = "{\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}";
        std::fs::write(node.path("net-conf.json"), network).expect("write flannel's configuration");
        let address = node.machine.address.to_string();
        let kubelet = node.kubeconfig("kubelet", &format!("system:node:{NAME}"), "system:nodes");
        let admin = node.kubeconfig("admin", "second-node", "system:masters");
        let (data, run) = (node.path("data"), node.path("run"));
        let ca = cluster.data_dir().join("pki/ca.crt").display().to_string();
        node.start(
            "flannel",
            &[
                ("--kubeconfig-file", &admin),
                ("--iface", &address),
                ("--net-config-path", &node.path("net-conf.json")),
                ("--subnet-file", &node.path("run/flannel/subnet.env")),
                ("--cni-conf-dir", &node.path("data/cni/net.d")),
                ("--cni-bin-dir", &node.path("data/cni/bin")),
            ],
        );
        node.start(
            "kube-proxy",
            &[
                ("--kubeconfig", &admin),
                ("--hostname-override", NAME),
                ("--cluster-cidr", "10.244.0.0/16"),
                ("--service-cidr", "10.96.0.0/16"),
            ],
        );
        node.start(
            "kubelet",
            &[
                ("--kubeconfig", &kubelet),
                ("--hostname-override", NAME),
                ("--node-ip", &address),
                ("--data-dir", &data),
                ("--run-dir", &run),
                ("--cgroup-root", &node.cgroup_root()),
                ("--client-ca-file", &ca),
                ("--tls-cert-file", &node.path("kubelet.crt")),
                ("--tls-private-key-file", &node.path("kubelet.key")),
                ("--cluster-dns", "10.96.0.10"),
            ],
        );
        node
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn cgroup_root(&self) -> String {
        format!("/{}{}/{NAME}", crate::machine::PREFIX, std::process::id())
    }

    fn start(&mut self, component: &str, flags: &[(&str, &str)]) {
        let log = std::fs::File::create(self.path(&format!("{component}.log"))).expect("make its log");
        let mut command = self.machine.command(env!("CARGO_BIN_EXE_isopod"));
        command.arg(component).env("NODE_NAME", NAME).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        for (flag, value) in flags {
            command.arg(flag).arg(value);
        }
        self.components.push(command.spawn().expect("start it"));
    }

    /// Makes a certificate that the cluster's authority signed, and a kubeconfig with it; the latter's path.
    fn kubeconfig(&self, name: &str, user: &str, group: &str) -> String {
        let pki = self.cluster.data_dir().join("pki");
        let read = |file: &str| std::fs::read_to_string(pki.join(file)).expect("read the authority");
        let key = KeyPair::from_pem(&read("ca.key")).expect("the authority's key");
        let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), key).expect("the authority");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, user);
        params.subject_alt_names = vec![SanType::IpAddress(self.machine.address.into())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        let (crt, pem) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        std::fs::write(&crt, certificate.pem()).expect("write the certificate");
        std::fs::write(&pem, key.serialize_pem()).expect("write the key");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: c}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://{}:6443', certificate-authority: '{}'}}}}]\n\
             users: [{{name: c, user: {{client-certificate: '{crt}', client-key: '{pem}'}}}}]\n",
            self.cluster.machine.address,
            pki.join("ca.crt").display()
        );
        let path = self.path(&format!("{name}.kubeconfig"));
        std::fs::write(&path, text).expect("write the kubeconfig");
        path
    }

    fn isopod(&self, command: &str) -> Command {
        let mut isopod = self.machine.command(env!("CARGO_BIN_EXE_isopod"));
        isopod.args([command, "--data-dir", &self.path("data"), "--run-dir", &self.path("run")]);
        isopod.args(["--node-name", NAME, "--cgroup-root", &self.cgroup_root()]);
        isopod
    }
}

impl Drop for SecondNode<'_> {
    fn drop(&mut self) {
        for component in self.components.iter().rev() {
            let _ = kill(Pid::from_raw(component.id() as i32), Signal::SIGTERM);
        }
        for component in &mut self.components {
            let _ = component.wait();
        }
        if let Err(why) = try_output(&mut self.isopod("down")) {
            println!("{NAME}: {why}");
        }
        let line = ["delete", "node", NAME, "--ignore-not-found"];
        let _ = self.cluster.kubectl_command(&line).stdout(Stdio::null()).status();
    }
}

pub fn second_node_of_single_components_joins(cluster: &Cluster) {
    let node = SecondNode::join(cluster);
    until("the node", || try_output(&mut cluster.kubectl_command(&["get", "node", NAME])).ok());
    cluster.kubectl("wait --timeout=120s --for=condition=Ready node/node-2");
    for archive in ["busybox.tar", "nginx.tar"] {
        output(node.isopod("images").arg("import").arg(cluster.image(archive)));
    }
    let n = cluster.namespace("nodes");
    n.apply(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {name: spread}
spec:
  replicas: 2
  selector: {matchLabels: {app: spread}}
  template:
    metadata: {labels: {app: spread}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: spread}}}
      containers:
        - name: web
          image: isopod.local/examples/nginx:1
          command: [sh, -c, 'hostname > /usr/share/nginx/html/index.html; exec nginx -g \"daemon off;\"']
          readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: spread}
spec: {type: NodePort, selector: {app: spread}, ports: [{port: 80, nodePort: 30090}]}
",
    );
    n.kubectl("rollout status --timeout=120s deployment/spread");
    let pods =
        n.field("pods", "{range .items[*]}{.spec.nodeName} {.metadata.name} {.status.podIP}{\"\\n\"}{end}");
    let mut pods: Vec<Vec<&str>> = pods.lines().map(|l| l.split(' ').collect()).collect();
    pods.sort();
    assert_eq!(pods.iter().map(|p| p[0]).collect::<Vec<_>>(), ["node-1", NAME], "{pods:?}");
    // From each to the other, by address: through the tunnel between the nodes.
    for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
        let said = until("the way to the other node", || {
            let page = format!("timeout 3 wget -q -O- http://{}/", to[2]);
            try_output(&mut n.kubectl_command(&["exec", from[1], "--", "sh", "-c", &page])).ok()
        });
        assert_eq!(said.trim(), to[1]);
    }
    // By name from the second node, and by its node port from outside: in time both pods answer.
    for what in ["name", "port"] {
        let mut answered = std::collections::BTreeSet::new();
        until("answers of both pods", || {
            let said = match what {
                "name" => n.exec(pods[1][1], "timeout 3 wget -q -O- http://spread.nodes.svc.cluster.local/"),
                _ => {
                    let url = format!("http://{}:30090/", node.machine.address);
                    output(Command::new("curl").args(["-sS", "-m", "5", &url]))
                }
            };
            answered.insert(said.trim().to_owned());
            (answered.len() == 2).then_some(())
        });
        assert!(pods.iter().all(|p| answered.contains(p[1])), "{answered:?}");
    }
    let logs = n.kubectl(&format!("logs {}", pods[1][1]));
    assert!(logs.contains("GET / HTTP/1.1"), "{logs}");
    n.kubectl("delete deployment spread --timeout=60s");
    until("the pods' end", || n.kubectl("get pods -o name").is_empty().then_some(()));
}
