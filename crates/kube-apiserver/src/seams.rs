//! Where request handling meets identity and policy. Handlers know only these traits; authentication,
//! authorization, admission and the allocators know only these views of the registry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::object::Encoded;
use apimachinery::status::Status;
use apimachinery::user::UserInfo;
use async_trait::async_trait;
use serde_json::Value;

/// What a request asks for, read from its method, path and query (upstream's RequestInfo).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; for non-resource
    /// requests the lower-case HTTP method.
    pub verb: String,
    /// Whether the path names an API resource.
    pub is_resource: bool,
    pub path: String,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
}

/// How a request proved who it is.
#[derive(Clone, Debug)]
pub struct Credentials<'a> {
    pub headers: &'a http::HeaderMap,
    /// DER certificates the client presented, leaf first; empty without TLS client authentication.
    pub peer_certificates: &'a [Vec<u8>],
    /// What is asked for.
    pub path: &'a str,
}

/// What the client and the audit log are to be told about how a request proved who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    pub warnings: Vec<String>,
    pub annotations: BTreeMap<String, String>,
}

#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// `Err` is the 401 to answer. Without credentials the answer is the anonymous user. The caller handles
    /// impersonation headers through [`Authorizer`].
    async fn authenticate(&self, credentials: Credentials<'_>, notes: &mut Notes)
    -> Result<UserInfo, Status>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Why not, for the Status message; may be empty.
    Deny(String),
    /// Nobody allowed it, and somebody could not tell.
    Failed(String),
}

#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Decision;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write on its way in. Plugins change `object` in `admit` and only read it in `validate`.
#[derive(Debug)]
pub struct AdmissionRequest<'a> {
    pub operation: Operation,
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// May be empty on create with generateName.
    pub name: &'a str,
    pub user: &'a UserInfo,
    pub dry_run: bool,
    /// CreateOptions, UpdateOptions, PatchOptions or DeleteOptions.
    pub options: &'a Value,
    /// The new object; `Null` on delete.
    pub object: &'a mut Value,
    /// The stored object; absent on create.
    pub old_object: Option<&'a Value>,
    /// Sent to the client as Warning headers.
    pub warnings: &'a mut Vec<String>,
    /// For the audit log.
    pub annotations: &'a mut BTreeMap<String, String>,
    /// How long webhooks took.
    pub elsewhere: &'a mut Duration,
}

#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Mutating plugins and webhooks, in upstream's order. The caller defaults (and prunes) the object again
    /// afterwards, since webhooks may have added anything.
    async fn admit(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status>;
    /// Validating plugins, policies and webhooks.
    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status>;
    /// Whether anybody from outside (a webhook, a policy) may see objects now, and so must see all of them.
    fn shows_objects(&self) -> bool {
        true
    }
}

/// Values a write reserves outside its object (cluster IPs, node ports). Called inside create, update and delete of
/// services, after admission and before storage; what `reserve` returns is undone with `release` when the write
/// fails (or was a dry run), and confirmed by dropping it when it succeeds. On updates `reserve` also fills in what the
/// client left out and the service has, so it runs before validation; values an update gives up need no further call.
#[async_trait]
pub trait Allocators: Send + Sync + 'static {
    /// Fills `clusterIP(s)`, `nodePort`s, `healthCheckNodePort` of `service` and reserves them.
    async fn reserve(&self, service: &mut Value, old: Option<&Value>) -> Result<Reservation, Status>;
    async fn release(&self, reservation: Reservation);
    /// The service is gone (or gave these values up).
    async fn service_deleted(&self, service: &Value);
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    pub addresses: Vec<std::net::IpAddr>,
    pub node_ports: Vec<(String, u16)>,
}

/// Read access to the watch caches. Never blocks; `group` is empty for the core group.
pub trait Objects: Send + Sync + 'static {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Encoded>>;
    /// All objects of a resource, in one namespace or (`None`) everywhere.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Encoded>>;
    /// What [`Objects::changes`] would begin with.
    fn revision(&self, group: &str, resource: &str) -> u64 {
        *self.changes(group, resource).borrow()
    }
    /// Changes whenever an object of the resource does (the value is a revision).
    fn changes(&self, group: &str, resource: &str) -> tokio::sync::watch::Receiver<u64>;
}

/// Write access below admission and authorization, for the server's own objects. Goes through strategy, defaulting,
/// validation and storage like any other write.
#[async_trait]
pub trait Writer: Send + Sync + 'static {
    async fn create(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Encoded>, Status>;
    /// `resource` may name a status subresource (`servicecidrs/status`).
    /// Optimistic update: `object` carries the resource version it was read at, or none for an unconditional one.
    async fn update(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Encoded>, Status>;
    /// Applies a configuration as `manager`, whoever owned its fields before.
    async fn apply(
        &self,
        group: &str,
        version: &str,
        resource: &str,
        config: Value,
        manager: &str,
    ) -> Result<Arc<Encoded>, Status>;
    /// Reads the stored object, consistently.
    async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Encoded>, Status>;
    async fn delete(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Result<(), Status>;
}

/// Somebody a request is made as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonated {
    pub user: UserInfo,
    /// The verb of the way that was allowed; empty for the one that asks nothing about the request.
    pub constraint: String,
}

/// Questions about identity and policy that clients ask as objects, and tokens they ask for.
#[async_trait]
pub trait Reviews: Send + Sync + 'static {
    /// Answers `tokenreviews`, `selfsubjectreviews`, `subjectaccessreviews`, `selfsubjectaccessreviews`,
    /// `localsubjectaccessreviews` and `selfsubjectrulesreviews`: the object with its status filled in. Nothing is
    /// stored. `namespace` is that of the request's path.
    async fn review(
        &self,
        user: &UserInfo,
        resource: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status>;

    /// Answers a create of `serviceaccounts/token` (after admission): the TokenRequest with its status.
    async fn request_token(
        &self,
        user: &UserInfo,
        namespace: &str,
        service_account: &str,
        request: Value,
    ) -> Result<Value, Status>;

    /// The document at `/.well-known/openid-configuration`; `None` when no service account issuer is configured.
    fn openid_configuration(&self) -> Option<Value>;

    /// The key set at `/openid/v1/jwks`.
    fn jwks(&self) -> Option<Value>;

    /// Applies the `Impersonate-*` headers of a request: whom to act as, or `None` when there are no such headers.
    async fn impersonate(
        &self,
        user: &UserInfo,
        headers: &http::HeaderMap,
        request: &RequestInfo,
    ) -> Result<Option<Impersonated>, Status>;
}

/// All that identity and policy give the server; `security` assembles it from the configuration.
#[derive(Clone)]
pub struct Policy {
    pub authenticator: Arc<dyn Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    pub admission: Arc<dyn Admission>,
    pub allocators: Arc<dyn Allocators>,
    pub reviews: Arc<dyn Reviews>,
}
