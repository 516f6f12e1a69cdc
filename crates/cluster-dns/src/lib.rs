//! The cluster-dns component.
