//! The API server: HTTP, authentication, authorization, admission, registry, watch cache, discovery, OpenAPI.

pub mod admission;
pub mod allocators;
pub mod authentication;
pub mod authorization;
pub mod bootstrap;
pub mod seams;
pub mod security;
pub mod tokens;
