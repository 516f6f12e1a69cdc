//! Who came, and who was let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Families, Timer};
use crate::seams::Decision;

/// Upper bounds in seconds, each twice the one before.
const BOUNDS: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// How often something came out in one way, and how long it took.
struct Outcome {
    count: Arc<AtomicU64>,
    took: Arc<Timer>,
}

impl Outcome {
    fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.took.took(took);
    }
}

pub struct Access {
    authenticated: [Outcome; 3],
    authorized: [Outcome; 4],
    users: [Arc<AtomicU64>; 7],
}

/// Names that are told; whatever else has an `@` counts as an address of mail, and all others together.
const USERS: [&str; 7] = [
    "admin",
    "client",
    "kube_proxy",
    "kubelet",
    "system:serviceaccount:kube-system:default",
    "email_id",
    "other",
];

impl Access {
    pub fn new(families: &Families) -> Access {
        let outcomes = |names: (&'static str, &'static str), helps: (&'static str, &'static str)| {
            let counts = families.counter(names.0, helps.0, &["result"]);
            let times = families.histogram(names.1, helps.1, &["result"], BOUNDS);
            move |result: &str| Outcome { count: counts.cell(&[result]), took: times.timer(&[result]) }
        };
        let authenticated = outcomes(
            ("authentication_attempts", "authentication_duration_seconds"),
            ("[ALPHA] Attempts to find out who asks.", "[ALPHA] Seconds until it was known who asks."),
        );
        let authorized = outcomes(
            ("authorization_attempts_total", "authorization_duration_seconds"),
            (
                "[ALPHA] Attempts to find out whether a request is allowed.",
                "[ALPHA] Seconds until it was known whether a request is allowed.",
            ),
        );
        let help = "[ALPHA] Requests of users who are known, by a few names.";
        let users = families.counter("authenticated_user_requests", help, &["username"]);
        Access {
            authenticated: ["success", "failure", "error"].map(authenticated),
            authorized: ["allowed", "denied", "no-opinion", "error"].map(authorized),
            users: USERS.map(|name| users.cell(&[name])),
        }
    }

    /// `user` is whom the request is of. Without it, either it had no credentials that anybody looked at or they are
    /// not accepted.
    pub fn authenticated(&self, user: Option<&str>, with_credentials: bool, took: Duration) {
        let outcome = match (user, with_credentials) {
            (Some(_), _) => 0,
            (None, false) => 1,
            (None, true) => 2,
        };
        self.authenticated[outcome].add(took);
        if let Some(user) = user {
            let known = USERS[..5].iter().position(|name| *name == user);
            let others = if user.contains('@') { 5 } else { 6 };
            self.users[known.unwrap_or(others)].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn authorized(&self, decision: &Decision, took: Duration) {
        let outcome = match decision {
            Decision::Allow => 0,
            Decision::Deny(_) => 2,
            Decision::Failed(_) => 3,
        };
        self.authorized[outcome].add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_are_told() {
        let families = Families::default();
        let access = Access::new(&families);
        for user in ["admin", "a@b", "system:node:n", "system:node:m"] {
            access.authenticated(Some(user), true, Duration::from_millis(3));
        }
        access.authenticated(None, true, Duration::ZERO);
        access.authorized(&Decision::Allow, Duration::ZERO);
        access.authorized(&Decision::Deny(String::new()), Duration::ZERO);
        let mut out = String::new();
        families.render(&mut out);
        for line in [
            "authenticated_user_requests{username=\"admin\"} 1",
            "authenticated_user_requests{username=\"email_id\"} 1",
            "authenticated_user_requests{username=\"other\"} 2",
            "authentication_attempts{result=\"error\"} 1",
            "authentication_duration_seconds_bucket{result=\"success\",le=\"0.004\"} 4",
            "authorization_attempts_total{result=\"no-opinion\"} 1",
        ] {
            assert!(out.contains(line), "{line} in {out}");
        }
    }
}
