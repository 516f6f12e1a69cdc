//! What all requests share.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::Config;
use crate::aggregation::Aggregator;
use crate::audit::Audit;
use crate::discovery::Documents;
use crate::encryption::Encrypted;
use crate::flow_control::FlowControl;
use crate::metrics::Metrics;
use crate::proxy::Kubelets;
use crate::registry::Registry;
use crate::registry::access::Access;
use crate::registry::component_status::Component;
use crate::resource_metrics::ResourceMetrics;

pub struct Server {
    pub registry: Arc<Registry>,
    pub metrics: Metrics,
    /// Limits where priority and fairness is off.
    pub reading: Arc<Semaphore>,
    pub writing: Arc<Semaphore>,
    pub flow_control: Arc<FlowControl>,
    pub audit: Option<Arc<Audit>>,
    /// The store, where it keeps values encrypted.
    pub encrypted: Option<Arc<Encrypted>>,
    pub documents: Documents,
    pub kubelets: Kubelets,
    pub aggregator: Aggregator,
    pub resource_metrics: ResourceMetrics,
    pub components: Vec<(&'static str, Component)>,
    /// How the server was started, by the names of its flags.
    pub flags: BTreeMap<String, String>,
}

impl Server {
    pub fn new(
        registry: Arc<Registry>,
        metrics: Metrics,
        kubelets: Kubelets,
        aggregator: Aggregator,
        config: &Config,
        audit: Option<Arc<Audit>>,
        encrypted: Option<Arc<Encrypted>>,
    ) -> Arc<Server> {
        let objects = Arc::new(Access(registry.clone()));
        let flow_control = FlowControl::new(config.flow_control.clone(), objects, &metrics.families);
        Arc::new(Server {
            registry,
            metrics,
            reading: Arc::new(Semaphore::new(config.flow_control.reading_max as usize)),
            writing: Arc::new(Semaphore::new(config.flow_control.writing_max as usize)),
            flow_control,
            audit,
            encrypted,
            documents: Documents::default(),
            kubelets,
            aggregator,
            resource_metrics: ResourceMetrics::default(),
            components: config.components.clone(),
            flags: config.flags.clone(),
        })
    }
}
