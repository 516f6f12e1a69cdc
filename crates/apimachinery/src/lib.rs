//! What every API object shares: schema tables, JSON/YAML/protobuf codecs, patches, field management, selectors,
//! quantities, names, Status errors, Tables. Pure: nothing here does I/O.

pub mod clock;
pub mod codec;
pub mod continue_token;
pub mod defaults;
pub mod duration;
pub mod field_path;
pub mod go;
pub mod managed_fields;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod pod_resources;
pub mod prune;
pub mod quantity;
pub mod quota_usage;
pub mod resources;
pub mod schema;
pub mod selector;
pub mod status;
pub mod structural;
pub mod user;
pub mod validation;
