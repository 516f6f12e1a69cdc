//! Events through their own group; see [`crate::core_v1::event`] for how they are stored.

use crate::core_v1::event;
use crate::strategy::{DEFAULT, FieldLabels, GarbageCollection, Rules, label_not_supported};

pub const GROUP: &str = "events.k8s.io";

pub static RULES: &[Rules] = &[Rules {
    group: GROUP,
    resource: "events",
    defaults: event::defaults,
    validate: event::validate_new,
    validate_update: event::validate_new_update,
    create_on_update: true,
    garbage_collection: GarbageCollection::Unsupported,
    fields: event::fields,
    field_labels: FieldLabels { labels: event::NEW_LABELS, error: label_not_supported },
    ..DEFAULT
}];
