//! The etcd component.
