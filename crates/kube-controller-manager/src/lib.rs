//! The kube-controller-manager component.
