//! Who may do what: the Node authorizer and RBAC, asked in this order.

pub mod escalation;
pub mod node;
pub mod rbac;
pub mod reviews;
pub mod rule;

use std::sync::Arc;

use apimachinery::user::{SYSTEM_MASTERS, UserInfo};
use async_trait::async_trait;

use crate::seams::{Authorizer, Decision, RequestInfo};

/// An authorization mode of the `--authorization-mode` flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(s: &str) -> Result<Mode, String> {
        match s {
            "AlwaysAllow" => Ok(Mode::AlwaysAllow),
            "AlwaysDeny" => Ok(Mode::AlwaysDeny),
            "Node" => Ok(Mode::Node),
            "RBAC" => Ok(Mode::Rbac),
            other => Err(format!("{other:?} is not a valid mode (AlwaysAllow, AlwaysDeny, Node, RBAC)")),
        }
    }
}

/// The configured modes in their order; the first that allows decides.
pub struct Chain {
    pub modes: Vec<Mode>,
    pub node: node::NodeAuthorizer,
    pub rbac: Arc<rbac::Rbac>,
}

impl Chain {
    /// Without RBAC there is nothing that roles could grant.
    pub fn rbac_is_off(&self) -> bool {
        !self.modes.contains(&Mode::Rbac)
    }

    /// Whether the request is allowed, and the authorizers' reasons.
    pub fn decide(&self, user: &UserInfo, request: &RequestInfo) -> (bool, String) {
        if user.in_group(SYSTEM_MASTERS) {
            return (true, String::new());
        }
        let mut reasons: Vec<String> = Vec::new();
        for mode in &self.modes {
            match mode {
                Mode::AlwaysAllow => return (true, String::new()),
                Mode::AlwaysDeny => reasons.push("Everything is forbidden.".into()),
                Mode::Node => match self.node.authorize(user, request) {
                    Some(Ok(())) => return (true, String::new()),
                    Some(Err(reason)) => reasons.push(reason),
                    None => {}
                },
                Mode::Rbac => match self.rbac.authorize(user, request) {
                    rbac::Verdict::Allowed(reason) => return (true, reason),
                    rbac::Verdict::NoOpinion(reason) => reasons.push(reason),
                },
            }
        }
        reasons.retain(|r| !r.is_empty());
        (false, reasons.join("\n"))
    }
}

#[async_trait]
impl Authorizer for Chain {
    async fn authorize(&self, user: &UserInfo, request: &RequestInfo) -> Decision {
        // The common case first, without building the reason.
        if user.in_group(SYSTEM_MASTERS)
            || self.modes.contains(&Mode::Rbac) && self.rbac.allows(user, request)
        {
            return Decision::Allow;
        }
        match self.decide(user, request) {
            (true, _) => Decision::Allow,
            (false, reason) => Decision::Deny(reason),
        }
    }
}
