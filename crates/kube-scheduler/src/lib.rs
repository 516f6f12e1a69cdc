//! The kube-scheduler component.
