//! The api component.
