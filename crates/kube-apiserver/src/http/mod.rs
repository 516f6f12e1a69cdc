//! From the socket to a request that is understood, authenticated and authorized, and back.

pub mod body;
pub mod compression;
pub mod connection;
pub mod filters;
pub mod negotiation;
pub mod request_info;
pub mod respond;
mod websocket;

pub use body::Body;
