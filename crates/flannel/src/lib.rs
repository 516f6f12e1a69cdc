//! The flannel component.
