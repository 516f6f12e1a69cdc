//! etcd's v3 API over the engine: one file per service, and what they share.
//!
//! Sketch of a put: the connection's task decodes the request once (key and value get memory of their own, which the store
//! then keeps), hands it to the log and sleeps; woken with the outcome it writes one frame of some 30 bytes. A range copies
//! each key-value once, from the store's shared memory into the frame. An event is encoded once for all watchers ([`feed`]).

pub mod auth;
pub mod cluster;
pub mod convert;
pub mod election;
pub mod failure;
pub mod feed;
pub mod grpc;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod metrics;
pub mod service;
pub mod validate;
pub mod watch;
pub mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::Engine;
use crate::auth::{Auth, Identity};
use feed::Feed;
use wire::Header;

/// The version of etcd whose API this is.
pub const VERSION: &str = "3.6.8";
/// The version that a cluster of such members has.
pub const CLUSTER_VERSION: &str = "3.6.0";

/// What a member is told to allow.
#[derive(Clone, Debug)]
pub struct Limits {
    pub request_bytes_max: usize,
    pub txn_ops_max: usize,
    /// 0: no limit.
    pub quota_bytes: u64,
    pub progress_interval: Duration,
    /// Whether a client certificate's common name is a user.
    pub certificate_users: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request_bytes_max: 3 << 19,
            txn_ops_max: 128,
            quota_bytes: 2 << 30,
            progress_interval: Duration::from_secs(600),
            certificate_users: false,
        }
    }
}

/// Bytes beyond the largest request that a message may have, as gRPC's own limit in etcd.
const REQUEST_OVERHEAD: usize = 512 << 10;

/// A member of a cluster, which so far is its only one.
pub struct Member {
    pub engine: Engine,
    pub auth: Auth,
    pub feed: Arc<Feed>,
    pub header: Header,
    pub limits: Limits,
    pub metrics: metrics::Metrics,
    /// Where there is room for a snapshot that is being sent.
    pub directory: PathBuf,
    pub identity: Mutex<cluster::Identity>,
    /// Set while the alarm for damaged data is raised.
    corrupt: AtomicBool,
    pub defragmenting: AtomicBool,
    pub shutdown: CancellationToken,
}

/// What a call carries beside its message.
#[derive(Clone, Debug, Default)]
pub struct Call {
    pub token: Option<String>,
    /// Of a verified client certificate.
    pub common_name: Option<Arc<str>>,
}

impl Call {
    pub fn new(headers: &HeaderMap, common_name: Option<Arc<str>>) -> Call {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        Call { token: text("token").or_else(|| text("authorization")).map(str::to_owned), common_name }
    }
}

impl Member {
    pub fn new(
        engine: Engine,
        auth: Auth,
        identity: cluster::Identity,
        limits: Limits,
        directory: PathBuf,
        shutdown: CancellationToken,
    ) -> Arc<Member> {
        let header = Header::new(identity.cluster_id, identity.member_id, 1);
        let member = Member {
            feed: Feed::new(engine.clone()),
            header,
            limits,
            metrics: metrics::Metrics::default(),
            directory,
            identity: Mutex::new(identity),
            corrupt: AtomicBool::new(false),
            defragmenting: AtomicBool::new(false),
            shutdown,
            auth,
            engine,
        };
        member.note_alarms();
        Arc::new(member)
    }

    /// Bytes of the largest message that is decoded at all.
    pub fn message_bytes_max(&self) -> usize {
        self.limits.request_bytes_max + REQUEST_OVERHEAD
    }

    /// Who calls, when access control is on.
    pub fn identify(&self, call: &Call) -> Result<Option<Identity>, Status> {
        let common_name = call.common_name.as_deref().filter(|_| self.limits.certificate_users);
        Ok(self.auth.identify(call.token.as_deref(), common_name)?)
    }

    fn note_alarms(&self) {
        let corrupt = self.engine.alarms().iter().any(|alarm| alarm.kind == crate::AlarmKind::Corrupt);
        self.corrupt.store(corrupt, Ordering::Relaxed);
    }

    /// Damaged data is not written.
    fn check_intact(&self) -> Result<(), Status> {
        if self.corrupt.load(Ordering::Relaxed) { Err(failure::CORRUPT.into()) } else { Ok(()) }
    }

    /// Refuses a request that etcd's log would refuse: its entry is a little longer than the message.
    fn check_size(&self, message_bytes: usize) -> Result<(), Status> {
        const ENTRY_OVERHEAD: usize = 18;
        if message_bytes + ENTRY_OVERHEAD > self.limits.request_bytes_max {
            return Err(failure::REQUEST_TOO_LARGE.into());
        }
        Ok(())
    }
}
