//! What all requests share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::aggregation::Aggregator;
use crate::discovery::Documents;
use crate::metrics::Metrics;
use crate::proxy::Kubelets;
use crate::registry::Registry;
use crate::resource_metrics::ResourceMetrics;

/// Requests in progress that read, as upstream's default.
const READING_MAX: usize = 400;
const WRITING_MAX: usize = 200;

pub struct Server {
    pub registry: Arc<Registry>,
    pub metrics: Metrics,
    pub reading: Arc<Semaphore>,
    pub writing: Arc<Semaphore>,
    pub documents: Documents,
    pub kubelets: Kubelets,
    pub aggregator: Aggregator,
    pub resource_metrics: ResourceMetrics,
}

impl Server {
    pub fn new(registry: Arc<Registry>, kubelets: Kubelets, aggregator: Aggregator) -> Arc<Server> {
        Arc::new(Server {
            registry,
            metrics: Metrics::default(),
            reading: Arc::new(Semaphore::new(READING_MAX)),
            writing: Arc::new(Semaphore::new(WRITING_MAX)),
            documents: Documents::default(),
            kubelets,
            aggregator,
            resource_metrics: ResourceMetrics::default(),
        })
    }
}
