//! What the servers of HTTP/2 share, below HTTP.

pub mod gather;
