//! Objects the API server makes for itself.
