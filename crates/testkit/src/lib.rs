//! The testkit component.
