//! The handle a component holds to the API.

use std::path::Path;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::{
    EventRecorder, Informer, Informers, RawInformer, RemoteSource, Resource, Selection, WatchSource,
};

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig { path: String, source: kube::config::KubeconfigError },
    #[error("client for {url}: {source}")]
    Connect { url: String, source: kube::Error },
}

/// A component's connection under its own identity. Cheap to clone; informers are shared with every other client
/// made over the same [`Informers`].
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
    source: Arc<dyn WatchSource>,
    informers: Informers,
    user_agent: Arc<str>,
}

impl Client {
    pub fn new(
        kube: kube::Client,
        source: Arc<dyn WatchSource>,
        informers: Informers,
        user_agent: impl Into<String>,
    ) -> Client {
        Client { kube, source, informers, user_agent: user_agent.into().into() }
    }

    /// A client over HTTPS as the kubeconfig's current context says. `component` is its user agent.
    pub async fn from_kubeconfig(path: impl AsRef<Path>, component: &str) -> Result<Client, ClientError> {
        let path = path.as_ref();
        let wrong = |source| ClientError::Kubeconfig { path: path.display().to_string(), source };
        let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(wrong)?;
        // Watches are silent for as long as nothing happens; the server ends them.
        config.read_timeout = None;
        if let Ok(agent) = http::HeaderValue::from_str(&format!("{component}/{}", env!("CARGO_PKG_VERSION")))
        {
            config.headers.push((http::header::USER_AGENT, agent));
        }
        let url = config.cluster_url.to_string();
        let kube = kube::Client::try_from(config).map_err(|source| ClientError::Connect { url, source })?;
        let source = Arc::new(RemoteSource::new(kube.clone()));
        Ok(Client::new(kube, source, Informers::new(CancellationToken::new()), component))
    }

    pub fn kube(&self) -> kube::Client {
        self.kube.clone()
    }

    pub fn user_agent(&self) -> &str {
        &self.user_agent
    }

    pub fn informers(&self) -> &Informers {
        &self.informers
    }

    /// A resource over all namespaces, or a cluster-scoped one.
    pub fn all<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = ()>,
    {
        Api::all(self.kube())
    }

    pub fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.kube(), namespace)
    }

    /// The shared informer of a kind; its first user starts it.
    pub fn informer<K>(&self) -> Informer<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + 'static,
    {
        self.informer_selected(Selection::all())
    }

    pub fn informer_selected<K>(&self, selection: Selection) -> Informer<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + 'static,
    {
        Informer::new(self.raw_informer(Resource::of::<K>(), selection))
    }

    pub fn raw_informer(&self, resource: Resource, selection: Selection) -> RawInformer {
        self.informers.informer(&*self.source, resource, selection)
    }

    /// Records Events as `component` on `host` (which may be empty).
    pub fn recorder(&self, component: impl Into<String>, host: impl Into<String>) -> EventRecorder {
        EventRecorder::start(
            self.kube(),
            component.into(),
            host.into(),
            self.informers.tasks(),
            self.informers.shutdown_token(),
        )
    }
}
