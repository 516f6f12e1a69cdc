//! The node's components: kubelet with its runtime, kube-proxy, flannel, cluster DNS.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use apimachinery::user::SYSTEM_MASTERS;

use crate::local::Local;
use crate::pki::{Pki, Subject};
use crate::server::{component, service_account_clients};
use crate::settings::ServerFlags;
use crate::supervisor::Supervisor;
use crate::{addons, pause};

pub fn start(
    components: &mut Supervisor,
    flags: &ServerFlags,
    pki: &Pki,
    local: &Local,
    node_name: &str,
    node_ip: IpAddr,
) -> Result<()> {
    let admin = component(local, "system:isopod", &[SYSTEM_MASTERS], "isopod");
    let dns_ip = flags.cluster_dns()?;
    components.keep_running("addons", move |shutdown| {
        let admin = admin.clone();
        async move {
            addons::apply_accounts(&admin).await?;
            addons::apply_dns(&admin, dns_ip, node_ip).await?;
            shutdown.cancelled().await;
            Ok(())
        }
    });

    let names = [node_name.to_owned()];
    let addresses = [node_ip, IpAddr::from([127, 0, 0, 1])];
    let organizations = ["system:nodes"];
    let user = format!("system:node:{node_name}");
    pki.leaf(
        "kubelet",
        &Subject {
            common_name: &user,
            organizations: &organizations,
            dns_names: &names,
            addresses: &addresses,
            server: true,
        },
    )?;
    let mut config = kubelet::Config::new(node_name, &flags.data_dir, &flags.run_dir);
    config.node_ips = vec![node_ip];
    config.container_runtime_endpoint = flags.container_runtime_endpoint.clone();
    if let Some(image) = &flags.pod_infra_container_image {
        config.containerd.sandbox_image = image.clone();
    }
    config.cluster_dns = vec![dns_ip];
    config.cluster_domain = flags.cluster_domain.clone();
    config.cgroup_root = flags.cgroup_root.clone();
    config.manifest_path = flags.pod_manifest_path.clone();
    config.client_ca_file = Some(pki.path("ca.crt"));
    config.tls = Some((pki.path("kubelet.crt"), pki.path("kubelet.key")));
    if flags.pod_infra_container_image.is_none() {
        config.on_runtime_ready = Some(pause::importer());
    }
    let client = component(local, &user, &organizations, "kubelet");
    components
        .keep_running("kubelet", move |shutdown| kubelet::run(config.clone(), client.clone(), shutdown));

    let client = component(local, "system:kube-proxy", &[], "kube-proxy");
    let config = kube_proxy::Config::new(node_name, vec![flags.cluster_cidr], vec![flags.service_cidr]);
    components.keep_running("kube-proxy", move |shutdown| {
        kube_proxy::run(config.clone(), client.clone(), shutdown)
    });

    let client = service_account_clients(local)("flannel");
    let config = flags.flannel_config()?;
    components
        .keep_running("flannel", move |shutdown| flannel::run(config.clone(), client.clone(), shutdown));

    let client = service_account_clients(local)("cluster-dns");
    let mut config = cluster_dns::Config::new(vec![SocketAddr::new(node_ip, addons::DNS_PORT)]);
    config.cluster_domain = flags.cluster_domain.clone();
    components.keep_running("cluster-dns", move |shutdown| {
        cluster_dns::run(config.clone(), client.clone(), shutdown)
    });
    Ok(())
}
