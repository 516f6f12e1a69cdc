//! Where informers get their objects from.

use std::sync::Arc;

use apimachinery::object::Encoded;
use futures::stream::BoxStream;

use crate::{Resource, Selection};

/// What a source tells of a resource, in order.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// The whole selection as of `resource_version`. The first event, and again after every relist.
    Replace {
        items: Vec<Arc<Encoded>>,
        resource_version: u64,
    },
    Applied(Arc<Encoded>),
    /// The last state of an object that is gone or no longer matches.
    Deleted(Arc<Encoded>),
    Bookmark(u64),
}

/// Lists and watches. The stream never ends; the source relists and backs off by itself.
pub trait WatchSource: Send + Sync + 'static {
    fn list_watch(&self, resource: &Resource, selection: &Selection) -> BoxStream<'static, SourceEvent>;
}
