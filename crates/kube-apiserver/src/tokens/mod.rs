//! Service account tokens: keys, claims, issuing and the discovery documents.

pub mod claims;
pub mod keys;
pub mod request;

pub use claims::{Claims, LEGACY_ISSUER, LegacyClaims};
pub use keys::{KeySet, SigningKey};
pub use request::Issuer;
