//! How components reach the API: a typed client (in-process or HTTPS), shared informers with indexes, work queues,
//! leader election, event recording.
//!
//! Components know nothing of the transport: in one process the informers are fed the API server's own bytes, over
//! the network the same informers run on list and watch.

mod client;
mod event_correlation;
mod event_recorder;
mod informer;
mod informers;
mod leader_election;
mod remote;
mod resource;
mod source;
mod work_queue;
mod workers;

pub use client::{Client, ClientError};
pub use event_recorder::{EventRecorder, EventType, reference, reference_to};
pub use informer::{Delta, Informer, NAMESPACE_INDEX, OWNER_INDEX, RawInformer};
pub use informers::Informers;
pub use leader_election::{LeaderElection, LeaderElector};
pub use remote::RemoteSource;
pub use resource::{Resource, Selection};
pub use source::{SourceEvent, WatchSource};
pub use work_queue::WorkQueue;
pub use workers::run_workers;
