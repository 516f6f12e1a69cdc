//! The client component.
