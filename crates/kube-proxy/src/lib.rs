//! The kube-proxy component.
