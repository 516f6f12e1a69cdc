//! The API server: HTTP, authentication, authorization, admission, registry, watch cache, discovery, OpenAPI.

pub mod seams;
