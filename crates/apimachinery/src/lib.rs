//! What every API object shares: schema tables, JSON/YAML/protobuf codecs, patches, field management, selectors,
//! quantities, names, Status errors, Tables. Pure: nothing here does I/O.

pub mod clock;
pub mod object;
pub mod status;
pub mod user;
