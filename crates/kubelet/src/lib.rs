//! The kubelet component.
