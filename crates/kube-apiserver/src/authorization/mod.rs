//! Who may do what: the Node authorizer and RBAC, asked in this order.

pub mod rbac;
pub mod rule;
