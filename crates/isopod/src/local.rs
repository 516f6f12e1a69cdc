//! The in-process transport: components call the API server's handler directly, under their own identity, and
//! informers are fed the watch cache's own objects. No TLS, no HTTP framing, no copies.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use apimachinery::user::UserInfo;
use client::{Client, Informers, Resource, Selection, SourceEvent, WatchSource};
use futures::StreamExt;
use futures::stream::BoxStream;
use kube_apiserver::{Body, Handle, SourceEvent as ServerEvent, Wanted};

/// Makes clients for components of this process.
#[derive(Clone)]
pub struct Local {
    handle: Handle,
    source: Arc<Source>,
    informers: Informers,
}

impl Local {
    pub fn new(handle: Handle, informers: Informers) -> Local {
        let source = Arc::new(Source(handle.clone()));
        Local { handle, source, informers }
    }

    /// A client that acts as `user`.
    pub fn client(&self, user: UserInfo, user_agent: &str) -> Client {
        let agent = format!("{user_agent}/{}", env!("CARGO_PKG_VERSION"));
        let agent = http::HeaderValue::from_str(&agent).unwrap_or(http::HeaderValue::from_static("isopod"));
        let service = InProcess { handle: self.handle.clone(), user, agent };
        let kube = kube::Client::new(service, "default");
        Client::new(kube, self.source.clone(), self.informers.clone(), user_agent)
    }
}

struct InProcess {
    handle: Handle,
    user: UserInfo,
    /// Names the field manager of what the component writes.
    agent: http::HeaderValue,
}

impl tower_service::Service<http::Request<kube::client::Body>> for InProcess {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let (handle, user) = (self.handle.clone(), self.user.clone());
        let mut request = request.map(Body::wrap);
        request.headers_mut().entry(http::header::USER_AGENT).or_insert_with(|| self.agent.clone());
        Box::pin(async move { Ok(handle.call(request, user).await) })
    }
}

struct Source(Handle);

impl WatchSource for Source {
    fn list_watch(&self, resource: &Resource, selection: &Selection) -> BoxStream<'static, SourceEvent> {
        let wanted = Wanted {
            group: resource.group.clone(),
            version: resource.version.clone(),
            resource: resource.plural.clone(),
            namespace: selection.namespace.clone().unwrap_or_default(),
            labels: selection.labels.clone().unwrap_or_default(),
            fields: selection.fields.clone().unwrap_or_default(),
        };
        self.0
            .list_watch(wanted)
            .map(|event| match event {
                ServerEvent::Replace { items, resource_version } => {
                    SourceEvent::Replace { items, resource_version }
                }
                ServerEvent::Applied(object) => SourceEvent::Applied(object),
                ServerEvent::Deleted(object) => SourceEvent::Deleted(object),
                ServerEvent::Bookmark(version) => SourceEvent::Bookmark(version),
            })
            .boxed()
    }
}
