//! What the servers of HTTP/2 share, around hyper's connections.

pub mod calls;
pub mod gather;
pub mod inbound;
pub mod socket;
