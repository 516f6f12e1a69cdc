//! A server to test against, with a client that may do anything.
#![allow(dead_code)]

pub mod https;

use std::net::IpAddr;
use std::sync::Arc;

use etcd::{Directory, Engine, Options};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use kube_apiserver::Handle;
use serde_json::json;
use tokio_util::sync::CancellationToken;

pub struct Cluster {
    pub client: kube::Client,
    pub handle: Handle,
    _stop: tokio_util::sync::DropGuard,
    _data: Option<tempfile::TempDir>,
}

pub async fn cluster() -> Cluster {
    let data = tempfile::tempdir().unwrap();
    let mut cluster = cluster_on(engine(&data), |_| {}).await;
    cluster._data = Some(data);
    cluster
}

pub fn engine(data: &tempfile::TempDir) -> Engine {
    let disk = Arc::new(Directory::open(data.path()).unwrap());
    Engine::open(disk, Options { sync: false, ..Options::default() }).unwrap()
}

/// A server on a store that may have been used before.
pub async fn cluster_on(engine: Engine, change: impl FnOnce(&mut kube_apiserver::Config)) -> Cluster {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut config = kube_apiserver::Config::new(
        Arc::new(engine),
        certificate.pem().into_bytes(),
        key.serialize_pem().into_bytes(),
    );
    config.bind_address = IpAddr::from([127, 0, 0, 1]);
    config.secure_port = 0;
    config.security.tokens = Some(
        "t,admin,1,system:masters\nalice-token,alice,2,dev\nnode-token,system:node:node1,3,system:nodes\n"
            .to_owned(),
    );
    config.security.service_account_signing_key =
        Some(rcgen::KeyPair::generate().unwrap().serialize_pem().into_bytes());
    config.security.advertise_address = IpAddr::from([192, 0, 2, 1]);
    change(&mut config);
    let (handle, prepared) = kube_apiserver::prepare(config).await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(prepared.run(stop.clone()));
    handle.ready().await;
    let client = client(&handle, Some("t"));
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    let _ = accounts.create(&PostParams::default(), &account).await;
    Cluster { client, handle, _stop: stop.drop_guard(), _data: None }
}

/// A client with a token of the token file, or with none.
pub fn client(handle: &Handle, token: Option<&str>) -> kube::Client {
    let mut kube = kube::Config::new(format!("https://{}", handle.address()).parse().unwrap());
    kube.accept_invalid_certs = true;
    kube.auth_info.token = token.map(|t| t.to_owned().into());
    kube::Client::try_from(kube).unwrap()
}

pub fn code(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("{other}"),
    }
}
